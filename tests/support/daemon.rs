//! A daemon of the test's own: started, watched, and gone when the test is.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::unix::{
        fs::{PermissionsExt, chown},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::client::Response;

/// How long anything may take that is expected to happen.
pub const SOON: Duration = Duration::from_secs(20);

/// A running daemon. It is killed when this is dropped.
pub struct Daemon {
    child: Mutex<Child>,
    folder: tempfile::TempDir,
    /// The program, in a place where its user can start it.
    pub program: PathBuf,
    pub socket: PathBuf,
    secrets: Mutex<BTreeSet<String>>,
}

/// How to start a daemon.
pub struct Start {
    pub config: String,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// As which user and group, without others, when the test is root.
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

    /// Runs it as another user, in a folder that this user can read. Needs setpriv.
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
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
        open_to_all(folder.path());
        let socket = self
            .at
            .clone()
            .unwrap_or_else(|| folder.path().join("run").join("s"));
        let config = folder.path().join("config.toml");
        let text = self.config.replace("SOCKET", socket.to_str().unwrap());
        fs::write(&config, text).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();

        let mut program = PathBuf::from(env!("CARGO_BIN_EXE_spiffe-entra"));
        let mut words = self.launcher.clone();
        for word in &mut words {
            if word == "SOCKET" {
                *word = socket.display().to_string();
            }
        }
        if let Some(uid) = self.uid {
            program = install(&program, folder.path());
            // It cannot make a folder next to the configuration.
            let sockets = socket.parent().unwrap();
            fs::create_dir(sockets).unwrap();
            open_to_all(sockets);
            chown(sockets, Some(uid), Some(uid)).unwrap();
            words.extend(become_user(uid));
        }
        words.push(program.display().to_string());
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
        let child = command.spawn().unwrap();
        Daemon {
            child: Mutex::new(child),
            folder,
            program,
            socket,
            secrets: Mutex::default(),
        }
    }
}

impl Daemon {
    /// Where its files are. Every user can read it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

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
        self.remember(&response);
        response
    }

    /// Notes the token in an answer, if there is one, as a secret.
    pub fn remember(&self, response: &Response) {
        if let Some(token) = response.json().get("access_token").and_then(Value::as_str) {
            self.secret(token);
        }
    }

    /// Notes a secret that must never show up.
    pub fn secret(&self, secret: &str) {
        self.secrets.lock().unwrap().insert(secret.into());
    }

    /// Runs the program with this daemon's socket.
    pub fn command(&self, args: &[&str]) -> Output {
        Command::new(&self.program)
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

/// Puts a program where every user can start it, which a build's folder may not be.
pub fn install(program: &Path, folder: &Path) -> PathBuf {
    let there = folder.join(program.file_name().expect("a program has a name"));
    if !there.exists() && fs::hard_link(program, &there).is_err() {
        // Another file system.
        fs::copy(program, &there).unwrap();
    }
    there
}

/// The words before a program that make it run as this user and group, without further groups.
/// `setpriv` becomes the program, so its pid is the program's. With the signal, the program does
/// not outlive a test runner that is killed.
fn become_user(uid: u32) -> Vec<String> {
    let words = format!("setpriv --pdeathsig KILL --reuid {uid} --regid {uid} --clear-groups --");
    words.split(' ').map(str::to_owned).collect()
}

fn open_to_all(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
}
