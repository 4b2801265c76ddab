//! Runs the real daemon against the lab and talks to it as a client would: over its socket.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "a module of every test binary")]
#![allow(clippy::disallowed_methods, reason = "waits in real time")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;

/// How long anything may take that is expected to happen.
pub const SOON: Duration = Duration::from_secs(20);

/// A running daemon. It is killed when this is dropped.
pub struct Daemon {
    child: Mutex<Child>,
    folder: tempfile::TempDir,
    pub socket: PathBuf,
    secrets: Mutex<BTreeSet<String>>,
}

/// An answer of the daemon.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// How to start a daemon.
pub struct Start {
    pub config: String,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Under which uid, when the test is root.
    pub uid: Option<u32>,
    /// Where the socket is to be, when not in the daemon's own folder.
    pub at: Option<PathBuf>,
    /// What is run with the program's command line behind its own. `SOCKET` stands for the path.
    pub launcher: Vec<String>,
}

impl Start {
    /// With a configuration. `SOCKET` in it stands for the socket's path.
    pub fn new(config: &str) -> Self {
        Self {
            config: config.into(),
            args: Vec::new(),
            env: Vec::new(),
            uid: None,
            at: None,
            launcher: Vec::new(),
        }
    }

    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.into());
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Puts the socket elsewhere.
    pub fn socket(mut self, path: &Path) -> Self {
        self.at = Some(path.to_owned());
        self
    }

    /// Starts it by way of another program that ends in exec.
    pub fn launcher(mut self, command: &[&str]) -> Self {
        self.launcher = command.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Starts it and waits until it accepts.
    pub fn run(self) -> Daemon {
        let daemon = self.spawn();
        daemon.until("the daemon accepts", || {
            UnixStream::connect(&daemon.socket).is_ok()
        });
        daemon
    }

    /// Starts it.
    pub fn spawn(self) -> Daemon {
        let folder = tempfile::Builder::new().prefix("se-").tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let socket = self
            .at
            .clone()
            .unwrap_or_else(|| folder.path().join("run").join("s"));
        let config = folder.path().join("config.toml");
        fs::write(
            &config,
            self.config.replace("SOCKET", socket.to_str().unwrap()),
        )
        .unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let mut words: Vec<String> = self
            .launcher
            .iter()
            .map(|word| {
                if word == "SOCKET" {
                    socket.display().to_string()
                } else {
                    word.clone()
                }
            })
            .collect();
        words.push(env!("CARGO_BIN_EXE_spiffe-entra").into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
            .arg("run")
            .args(&self.args)
            .env("SPIFFE_ENTRA_CONFIG", &config)
            .env("RUST_LOG", "trace")
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if let Some(uid) = self.uid {
            command.uid(uid).gid(uid);
        }
        let child = command.spawn().unwrap();
        Daemon {
            child: Mutex::new(child),
            folder,
            socket,
            secrets: Mutex::default(),
        }
    }
}

impl Daemon {
    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    /// Writes another configuration; [`Self::signal`] with SIGHUP puts it in force.
    pub fn configure(&self, config: &str) {
        fs::write(
            self.config_path(),
            config.replace("SOCKET", self.socket.to_str().unwrap()),
        )
        .unwrap();
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = i32::try_from(self.child.lock().unwrap().id()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.lock().unwrap().id()
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// Waits until the log has a line with all of these words.
    pub fn until_logged(&self, words: &[&str]) {
        self.until(&format!("a log line with {words:?}"), || {
            self.log()
                .lines()
                .any(|line| words.iter().all(|word| line.contains(word)))
        });
    }

    /// Waits for a condition, and fails with the log when it does not come.
    pub fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            let ended = self.child.lock().unwrap().try_wait().unwrap();
            if let Some(status) = ended {
                panic!("the daemon ended ({status}) before: {what}\n{}", self.log());
            }
            assert!(
                start.elapsed() < SOON,
                "did not come: {what}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until it ends.
    pub fn wait(&self) -> i32 {
        let start = Instant::now();
        loop {
            let ended = self.child.lock().unwrap().try_wait().unwrap();
            if let Some(status) = ended {
                return status.code().unwrap_or(-1);
            }
            assert!(
                start.elapsed() < SOON,
                "the daemon does not end\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn get(&self, target: &str) -> Response {
        self.request("GET", target)
    }

    /// Asks for a token and remembers it as a secret.
    pub fn token(&self, query: &str) -> Response {
        self.get(&format!("/v1/token?{query}"))
    }

    pub fn request(&self, method: &str, target: &str) -> Response {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(
            stream,
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .unwrap_or_else(|e| panic!("{e}\n{}", self.log()));
        let response = Response::parse(&answer);
        if let Some(token) = response.json().get("access_token").and_then(Value::as_str) {
            self.secret(token);
        }
        response
    }

    /// Notes a secret that must never show up.
    pub fn secret(&self, secret: &str) {
        self.secrets.lock().unwrap().insert(secret.into());
    }

    /// Runs the program with this daemon's socket.
    pub fn command(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_spiffe-entra"))
            .args(args)
            .env("SPIFFE_ENTRA_SOCKET", &self.socket)
            .env("SPIFFE_ENTRA_CONFIG", self.config_path())
            .output()
            .unwrap()
    }

    /// Fails when a secret, or a part of one that is worth something, is in `text`.
    pub fn assert_no_secret_in(&self, what: &str, text: &str) {
        // Whatever looks like the beginning of a JWT, known to us or not.
        if let Some(at) = text.find("eyJ") {
            let shown: String = text[at.saturating_sub(200)..].chars().take(240).collect();
            panic!("{what} shows what may be a JWT: …{shown}");
        }
        for secret in self.secrets.lock().unwrap().iter() {
            for part in secret.split('.') {
                let bytes: Vec<char> = part.chars().collect();
                for window in bytes.windows(16).step_by(8) {
                    let fragment: String = window.iter().collect();
                    assert!(!text.contains(&fragment), "{what} shows a part of a secret");
                }
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        let _ = child.kill();
        let _ = child.wait();
        drop(child);
        if !std::thread::panicking() {
            self.assert_no_secret_in("the log", &self.log());
        }
    }
}

impl Response {
    pub fn parse(answer: &str) -> Self {
        let (head, body) = answer.split_once("\r\n\r\n").expect("a whole answer");
        let mut lines = head.lines();
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        Self {
            status,
            headers,
            body: body.into(),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    pub fn access_token(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()["access_token"].as_str().unwrap().to_owned()
    }
}

/// The claims of a JWT.
pub fn claims(token: &str) -> Value {
    let payload = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
}

/// The part of a configuration that says where the lab is.
pub fn lab_config(world: &lab::World) -> String {
    format!(
        r#"
[workload_api]
endpoint = "unix://{}"

[entra]
tenant = "{}"
authority = "{}"
ca_file = "{}"
ca_only = true

[[listen]]
socket = "SOCKET"
mode = "0666"
"#,
        world.socket().display(),
        world.tenant(),
        world.authority(),
        world.ca_file().display(),
    )
}

/// One identity of a configuration.
pub fn identity_config(name: &str, spiffe_id: &str, client_id: &str, callers: &str) -> String {
    format!(
        r#"
[[identity]]
name = "{name}"
spiffe_id = "{spiffe_id}"
client_id = "{client_id}"
resources = ["https://vault.azure.net", "https://graph.microsoft.com"]
callers = [{callers}]
"#
    )
}

/// A caller rule for the uid that runs the test.
pub fn me() -> String {
    format!("{{ uid = {} }}", nix::unistd::geteuid())
}

/// Whether the test can become other users.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Asks as another user, by curl-less means: a child that connects under that uid.
pub fn get_as(uid: u32, socket: &Path, target: &str) -> Response {
    let script = "import socket,sys\n\
        s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n\
        s.sendall(('GET '+sys.argv[2]+' HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n').encode())\n\
        out=b''\n\
        while True:\n\
        \x20 d=s.recv(65536)\n\
        \x20 if not d: break\n\
        \x20 out+=d\n\
        sys.stdout.buffer.write(out)";
    let output = Command::new("python3")
        .args(["-c", script])
        .arg(socket)
        .arg(target)
        .uid(uid)
        .gid(uid)
        .current_dir("/")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Response::parse(&String::from_utf8(output.stdout).unwrap())
}

/// Asks many times at once as one user: all connect, then all ask, then all listen.
pub fn crowd(uid: u32, socket: &Path, target: &str, size: usize) -> Vec<Response> {
    let script = "import resource,socket,sys\n\
        hard=resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n\
        resource.setrlimit(resource.RLIMIT_NOFILE,(hard,hard))\n\
        peers=[]\n\
        for _ in range(int(sys.argv[3])):\n\
        \x20 s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); peers.append(s)\n\
        for s in peers:\n\
        \x20 s.sendall(('GET '+sys.argv[2]+' HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n').encode())\n\
        for s in peers:\n\
        \x20 out=b''.join(iter(lambda: s.recv(65536), b''))\n\
        \x20 sys.stdout.buffer.write(len(out).to_bytes(4,'big')+out)";
    let mut command = Command::new("python3");
    command
        .args(["-c", script])
        .arg(socket)
        .arg(target)
        .arg(size.to_string())
        .current_dir("/");
    if is_root() {
        command.uid(uid).gid(uid);
    }
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut rest = output.stdout.as_slice();
    let mut answers = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let (answer, behind) = behind.split_at(u32::from_be_bytes(*length) as usize);
        answers.push(Response::parse(std::str::from_utf8(answer).unwrap()));
        rest = behind;
    }
    assert_eq!(answers.len(), size);
    answers
}
