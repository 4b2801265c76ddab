//! A SPIRE of the test's own: server, agent and OIDC provider, run as root on loopback ports from
//! the files in `spire-config`, in a folder that goes with it.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::parts;
use crate::process::{Process, both, command, command_as, output, succeed, wait_for};
use crate::support::install;
use crate::tls::Certificate;

/// The trust domain of every SPIRE that the tests start.
pub(crate) const TRUST_DOMAIN: &str = "example.org";

/// A running SPIRE.
pub(crate) struct Spire {
    // Fields are dropped in this order: whoever depends on another goes first.
    provider: Option<Process>,
    agent: Option<Process>,
    server: Option<Process>,
    /// What `spire-config` leaves open.
    variables: BTreeMap<String, String>,
    /// The OIDC provider's.
    certificate: Certificate,
    dir: TempDir,
}

impl Spire {
    /// Starts all three parts and waits until each is healthy.
    pub(crate) fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("spire-").tempdir().unwrap();
        // Other users must be able to reach the sockets below.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut spire = Self {
            provider: None,
            agent: None,
            server: None,
            variables: variables(dir.path()),
            certificate: Certificate::for_localhost(),
            dir,
        };
        let Certificate { ca, chain, key } = &spire.certificate;
        for (name, content) in [("oidc-ca.crt", ca), ("oidc.crt", chain), ("oidc.key", key)] {
            fs::write(spire.path(name), content).unwrap();
        }
        for folder in ["server", "agent"] {
            fs::create_dir_all(spire.data().join(folder)).unwrap();
        }
        // Made by the server, it would be closed to other users.
        fs::create_dir(spire.run()).unwrap();
        spire.start_server();
        spire.join_agent();
        spire.start_provider();
        spire
    }

    /// The issuer of the JWT-SVIDs, and where the OIDC provider is.
    pub(crate) fn issuer(&self) -> &str {
        &self.variables["JWT_ISSUER"]
    }

    /// What the OIDC provider's clients must trust, in PEM.
    pub(crate) fn issuer_ca(&self) -> &str {
        &self.certificate.ca
    }

    /// The agent's socket.
    pub(crate) fn workload_api(&self) -> PathBuf {
        self.run().join("agent/public/api.sock")
    }

    /// A path in the folder of this SPIRE.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Registers `spiffe://example.org/NAME` for processes with this selector, `unix:uid:N` say.
    pub(crate) fn register(&self, name: &str, selector: &str) {
        let id = spiffe_id(name);
        let parent = spiffe_id(NODE);
        let arguments = [
            "-spiffeID",
            &id,
            "-parentID",
            &parent,
            "-selector",
            selector,
        ];
        succeed(self.server_command(&["entry", "create"], &arguments));
    }

    /// Registers what `spire-config/entries.json` lists, for processes with this selector,
    /// `uid:N` say.
    pub(crate) fn register_template(&self, selector: &str) {
        let mut variables = self.variables.clone();
        variables.insert("DAEMON_SELECTOR".into(), selector.into());
        let file = self.path("entries.json");
        fs::write(&file, substitute(&config_text("entries.json"), &variables)).unwrap();
        let arguments = ["-data", file.to_str().unwrap()];
        succeed(self.server_command(&["entry", "create"], &arguments));
    }

    /// The JWT-SVID for `spiffe://example.org/NAME` that a process of this user gets from the
    /// agent, once the agent knows the entry.
    pub(crate) fn svid(&self, uid: u32, name: &str) -> String {
        let program = install(&parts::spire("spire-agent"), self.dir.path());
        let done = wait_for("a JWT-SVID", ENTRY_LIMIT, || {
            let mut fetch = command_as(uid, &program);
            fetch.args(["api", "fetch", "jwt", "-output", "json", "-timeout", "5s"]);
            fetch.args(["-audience", lab::AUDIENCE, "-spiffeID", &spiffe_id(name)]);
            fetch.arg("-socketPath").arg(self.workload_api());
            let done = output(fetch);
            if done.status.success() {
                Ok(done)
            } else {
                Err(both(&done))
            }
        });
        // The bundles follow the SVIDs in the same list.
        let said: Value = serde_json::from_slice(&done.stdout).unwrap();
        said[0]["svids"][0]["svid"]
            .as_str()
            .expect("a JWT-SVID")
            .to_owned()
    }

    /// A GET of the OIDC provider, by a client that trusts its CA alone.
    pub(crate) fn published(&self, path: &str) -> Result<Value, String> {
        let mut curl = command("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--fail",
            "--max-time",
            "5",
            "--cacert",
        ]);
        curl.arg(self.path("oidc-ca.crt"))
            .arg(format!("{}{path}", self.issuer()));
        let done = output(curl);
        if !done.status.success() {
            return Err(both(&done));
        }
        serde_json::from_slice(&done.stdout).map_err(|error| error.to_string())
    }

    /// Stops the agent; its state stays.
    pub(crate) fn stop_agent(&mut self) {
        self.agent.take().expect("the agent runs").stop();
    }

    /// Starts an agent that has joined before.
    pub(crate) fn start_agent(&mut self) {
        self.run_agent(&[]);
    }

    /// Stops the server; its state stays.
    pub(crate) fn stop_server(&mut self) {
        self.server.take().expect("the server runs").stop();
    }

    /// Starts the server, with the keys and entries it had.
    pub(crate) fn start_server(&mut self) {
        let arguments = ["run", "-expandEnv", "-config"];
        let server = self.spawn("spire-server", &arguments, "server.conf", &[]);
        self.server = Some(server);
        wait_for("spire-server to be healthy", START_LIMIT, || {
            self.server.as_mut().expect("just started").assert_running();
            healthy(self.server_command(&["healthcheck"], &[]))
        });
    }

    /// Stops the OIDC provider.
    pub(crate) fn stop_provider(&mut self) {
        self.provider.take().expect("the provider runs").stop();
    }

    /// Starts the OIDC provider and waits until it publishes keys.
    pub(crate) fn start_provider(&mut self) {
        let arguments = ["-expandEnv", "-config"];
        let provider = self.spawn("oidc-discovery-provider", &arguments, "oidc.conf", &[]);
        self.provider = Some(provider);
        wait_for("the OIDC provider to publish keys", START_LIMIT, || {
            self.provider
                .as_mut()
                .expect("just started")
                .assert_running();
            self.published("/keys")
        });
    }

    /// Lets a new agent in by a join token.
    fn join_agent(&mut self) {
        let bundle = succeed(self.server_command(&["bundle", "show"], &[]));
        fs::write(self.data().join("agent/bootstrap.crt"), bundle).unwrap();
        let node = spiffe_id(NODE);
        let said = succeed(self.server_command(&["token", "generate"], &["-spiffeID", &node]));
        let token = said
            .split_whitespace()
            .nth(1)
            .expect("Token: TOKEN")
            .to_owned();
        self.run_agent(&["-joinToken", &token]);
    }

    fn run_agent(&mut self, more: &[&str]) {
        let arguments = ["run", "-expandEnv", "-config"];
        self.agent = Some(self.spawn("spire-agent", &arguments, "agent.conf", more));
        wait_for("spire-agent to be healthy", START_LIMIT, || {
            self.agent.as_mut().expect("just started").assert_running();
            let mut check = command(parts::spire("spire-agent"));
            check
                .args(["healthcheck", "-socketPath"])
                .arg(self.workload_api());
            healthy(check)
        });
    }

    /// Starts one of SPIRE's programs with a file of `spire-config`.
    fn spawn(&self, name: &str, arguments: &[&str], config: &str, more: &[&str]) -> Process {
        let mut command = command(parts::spire(name));
        command
            .args(arguments)
            .arg(config_path(config))
            .args(more)
            .envs(&self.variables);
        Process::spawn(name, command, &self.path(&format!("{name}.log")))
    }

    /// `spire-server VERB -socketPath … ARGUMENTS`
    fn server_command(&self, verb: &[&str], arguments: &[&str]) -> Command {
        let mut command = command(parts::spire("spire-server"));
        command
            .args(verb)
            .arg("-socketPath")
            .arg(self.run().join("server/private/api.sock"));
        command.args(arguments);
        command
    }

    fn data(&self) -> PathBuf {
        PathBuf::from(&self.variables["SPIRE_DATA"])
    }

    fn run(&self) -> PathBuf {
        PathBuf::from(&self.variables["SPIRE_RUN"])
    }
}

/// `spiffe://example.org/NAME`
pub(crate) fn spiffe_id(name: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/{name}")
}

/// A loopback port that is free now. It is taken from below the range the system gives out by
/// itself, so that only another test looking for one could come in between.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(15_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The names of `spire-config/one-host.env`, with values for a SPIRE below `dir`.
fn variables(dir: &Path) -> BTreeMap<String, String> {
    let (server, oidc) = (free_port(), free_port());
    let path = |name: &str| dir.join(name).to_str().expect("a path in UTF-8").to_owned();
    let ours = BTreeMap::from([
        ("TRUST_DOMAIN", TRUST_DOMAIN.to_owned()),
        ("JWT_ISSUER", format!("https://localhost:{oidc}")),
        ("DAEMON_SELECTOR", String::new()),
        ("SERVER_ADDRESS", "127.0.0.1".to_owned()),
        ("SERVER_PORT", server.to_string()),
        ("OIDC_DOMAIN", "localhost".to_owned()),
        ("OIDC_LISTEN", format!("127.0.0.1:{oidc}")),
        ("OIDC_CERT", path("oidc.crt")),
        ("OIDC_KEY", path("oidc.key")),
        ("SPIRE_DATA", path("data")),
        ("SPIRE_RUN", path("run")),
    ]);
    let text = config_text("one-host.env");
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let theirs: Vec<&str> = lines
        .map(|line| line.split_once('=').expect("NAME=VALUE in one-host.env").0)
        .collect();
    for name in &theirs {
        assert!(
            ours.contains_key(name),
            "one-host.env has {name}, the tests do not"
        );
    }
    assert_eq!(
        theirs.len(),
        ours.len(),
        "the tests have a name that one-host.env lacks"
    );
    ours.into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Fills `${NAME}` as `envsubst` does, and leaves none.
fn substitute(text: &str, variables: &BTreeMap<String, String>) -> String {
    let filled = variables
        .iter()
        .fold(text.to_owned(), |text, (name, value)| {
            text.replace(&format!("${{{name}}}"), value)
        });
    assert!(
        !filled.contains("${"),
        "a name without a value in\n{filled}"
    );
    filled
}

fn config_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("spire-config")
        .join(name)
}

fn config_text(name: &str) -> String {
    let path = config_path(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn healthy(check: Command) -> Result<(), String> {
    let done = output(check);
    if done.status.success() {
        Ok(())
    } else {
        Err(both(&done))
    }
}

/// The agent's name as the parent of entries.
const NODE: &str = "node";

/// How long an entry may take to the agent; it asks every five seconds.
pub(crate) const ENTRY_LIMIT: Duration = Duration::from_secs(60);

/// Machines that run tests are busy: SPIRE itself needs a second.
const START_LIMIT: Duration = Duration::from_secs(90);
