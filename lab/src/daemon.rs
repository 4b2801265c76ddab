//! The product as a child process, for the demo and the benchmarks: started with a configuration,
//! waited for, asked over its socket, and never left behind.
//!
//! A program that starts daemons calls [`enter_child`] first: its children are itself for a moment,
//! to tie their life to their parent's and to choose a core, which only a process can do for itself.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

/// What can go wrong with a daemon that is not the daemon's answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// A file, a socket or a process.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system answered.
        source: io::Error,
    },
    /// HTTP on the socket.
    #[error("{0}: {1}")]
    Http(String, hyper::Error),
    /// It ended by itself.
    #[error("the daemon ended ({status}); the last lines of its log:\n{log}")]
    Ended {
        /// How.
        status: ExitStatus,
        /// Why, as it says.
        log: String,
    },
    /// It does not do what it should in time.
    #[error("{what} did not come within {seconds} s; the last lines of the daemon's log:\n{log}")]
    Late {
        /// What was waited for.
        what: String,
        /// For how long.
        seconds: u64,
        /// What it says.
        log: String,
    },
}

/// A running daemon in a folder of its own. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    folder: TempDir,
    started: Instant,
}

impl Daemon {
    /// Starts `program` with a configuration in which `{socket}` stands for the path of its socket.
    ///
    /// # Errors
    /// When the folder cannot be made or the program not be started.
    pub fn start(program: &Path, config: &str) -> Result<Self, DaemonError> {
        Self::start_as(tied(program, None), config)
    }

    /// As [`start`](Self::start), by a command of one's own.
    ///
    /// # Errors
    /// When the folder cannot be made or the program not be started.
    pub fn start_as(mut command: Command, config: &str) -> Result<Self, DaemonError> {
        // Short, for a socket's path has room for a hundred bytes; and open to callers of other uids.
        let folder = tempfile::Builder::new()
            .prefix("demo-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir()
            .map_err(io_error("make a temporary folder"))?;
        let path = |name: &str| folder.path().join(name);
        let run = path("run");
        fs::create_dir(&run).map_err(io_error(format!("make {}", run.display())))?;
        let socket = run.join(SOCKET).display().to_string();
        let config = config.replace("{socket}", &socket);
        for (file, text) in [("config.toml", config.as_str()), ("log", "")] {
            let file = path(file);
            fs::write(&file, text)
                .and_then(|()| fs::set_permissions(&file, fs::Permissions::from_mode(0o644)))
                .map_err(io_error(format!("write {}", file.display())))?;
        }
        let log = path("log");
        let log = File::options()
            .append(true)
            .open(&log)
            .map_err(io_error(format!("open {}", log.display())))?;
        let stdout = log
            .try_clone()
            .map_err(io_error("duplicate a descriptor"))?;
        command.arg("run").arg("--config").arg(path("config.toml"));
        command.stdin(Stdio::null()).stdout(stdout).stderr(log);
        let started = Instant::now();
        let child = command.spawn().map_err(io_error("start the daemon"))?;
        Ok(Self {
            child,
            folder,
            started,
        })
    }

    /// Waits until it answers on its socket; how long after its start that was.
    ///
    /// # Errors
    /// When it ends or does not answer in time.
    pub async fn ready(&mut self) -> Result<Duration, DaemonError> {
        loop {
            if let Ok(mut connection) = Connection::open(&self.socket()).await
                && connection.get("/livez").await.is_ok()
            {
                return Ok(self.started.elapsed());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                let log = self.log_tail();
                return Err(DaemonError::Ended { status, log });
            }
            if self.started.elapsed() > DEADLINE {
                return Err(self.late("an answer on the socket"));
            }
            // There is nothing to wait on for a socket that does not exist yet.
            sleep(Duration::from_micros(500)).await;
        }
    }

    /// The socket's path.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("run").join(SOCKET)
    }

    /// The configuration's path.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("config.toml")
    }

    /// The log's path.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// That `what` has not come in time.
    #[must_use]
    pub fn late(&self, what: &str) -> DaemonError {
        DaemonError::Late {
            what: what.to_owned(),
            seconds: DEADLINE.as_secs(),
            log: self.log_tail(),
        }
    }

    /// The last lines it has logged.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    /// Tells it to stop and waits until it has.
    ///
    /// # Errors
    /// When it does not stop in time, or not with 0.
    pub async fn stop(mut self) -> Result<Duration, DaemonError> {
        let told = Instant::now();
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap_or(i32::MAX));
        kill(pid, Signal::SIGTERM)
            .map_err(|errno| io_error("signal the daemon")(io::Error::from(errno)))?;
        while told.elapsed() < DEADLINE {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(told.elapsed()),
                Ok(Some(status)) => {
                    let log = self.log_tail();
                    return Err(DaemonError::Ended { status, log });
                }
                Ok(None) => sleep(Duration::from_millis(1)).await,
                Err(error) => return Err(io_error("wait for the daemon")(error)),
            }
        }
        Err(self.late("its end"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program's executable beside the one that runs: cargo puts both in one folder.
///
/// # Errors
/// When this program does not know where it is.
pub fn beside_us(name: &str) -> Result<PathBuf, DaemonError> {
    let own = std::env::current_exe().map_err(io_error("find this program"))?;
    Ok(own.with_file_name(name))
}

/// A command that runs `program` on one core, if one is said, and for no longer than the thread
/// that starts it lives: whatever kills us, no daemon is left.
#[must_use]
pub fn tied(program: &Path, core: Option<usize>) -> Command {
    // This very program, wherever it is by now: see `enter_child`.
    let mut command = Command::new("/proc/self/exe");
    command.args([CHILD, &std::process::id().to_string()]);
    command.arg(core.map_or_else(|| "-".to_owned(), |core| core.to_string()));
    command.arg(program);
    command
}

/// Becomes the child that was wanted, when this process was started to become one: never returns
/// then, but for a failure. To be called first in `main`.
#[must_use]
pub fn enter_child() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != CHILD {
        return None;
    }
    let parent = args.next()?.to_str()?.parse().ok()?;
    let core = args.next()?.to_str()?.parse().ok();
    let program = args.next()?;
    let mut command = Command::new(&program);
    let error = become_child(Pid::from_raw(parent), core, command.args(args));
    // To the log that the parent reads.
    let line = format!("cannot start {}: {error}\n", program.display());
    let _ = io::Write::write_all(&mut io::stderr(), line.as_bytes());
    Some(ExitCode::FAILURE)
}

fn become_child(parent: Pid, core: Option<usize>, command: &mut Command) -> io::Error {
    if let Err(errno) = prctl::set_pdeathsig(Signal::SIGKILL) {
        return errno.into();
    }
    if getppid() != parent {
        return io::Error::other("the parent is gone");
    }
    if let Some(core) = core
        && let Err(errno) = pin(core)
    {
        return errno.into();
    }
    command.exec()
}

/// Keeps this thread, and the threads and processes it starts, on one core.
///
/// # Errors
/// When there is no such core.
pub fn pin(core: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// A kept-alive HTTP/1.1 connection to a daemon's socket.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Empty<Bytes>>,
}

/// What a daemon answered.
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body: it may hold a token.
    pub body: Bytes,
    /// From the request to the end of the answer.
    pub took: Duration,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn open(socket: &Path) -> Result<Self, DaemonError> {
        let stream = UnixStream::connect(socket)
            .await
            .map_err(io_error(format!("connect to {}", socket.display())))?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| DaemonError::Http(socket.display().to_string(), error))?;
        // What goes wrong with the connection is said to whoever waits for an answer on it.
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// Asks.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn get(&mut self, target: &str) -> Result<Answer, DaemonError> {
        let request = Request::get(target)
            .header(header::HOST, "localhost")
            .body(Empty::new())
            .map_err(|error| io_error(target)(io::Error::other(error)))?;
        let asked = Instant::now();
        let exchange = async {
            // It is that a moment after the last answer.
            self.sender.ready().await?;
            let (head, body) = self.sender.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok(Answer {
                status: head.status,
                headers: head.headers,
                body,
                took: asked.elapsed(),
            })
        };
        match timeout(DEADLINE, exchange).await {
            Ok(answer) => answer.map_err(|error| DaemonError::Http(target.to_owned(), error)),
            Err(_elapsed) => Err(io_error(target)(io::ErrorKind::TimedOut.into())),
        }
    }
}

impl Answer {
    /// The body as JSON; null when it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.status)
            .field("took", &self.took)
            .finish_non_exhaustive()
    }
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> DaemonError {
    let what = what.into();
    move |source| DaemonError::Io { what, source }
}

/// The argument by which a child is known. No option of any program begins like this.
const CHILD: &str = "@child";
/// The socket's name.
const SOCKET: &str = "spiffe-entra.sock";
/// How long anything may take that is expected to happen.
const DEADLINE: Duration = Duration::from_secs(15);
/// How much of the log is shown when something is wrong.
const TAIL: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_does_not_show_its_token() {
        let answer = Answer {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Bytes::from_static(br#"{"access_token":"s3cret"}"#),
            took: Duration::ZERO,
        };
        assert_eq!(answer.json()["access_token"], "s3cret");
        assert!(!format!("{answer:?}").contains("s3cret"));
    }

    #[tokio::test]
    async fn a_program_that_ends_is_told_with_what_it_said() {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "echo no such luck >&2; exit 3", "sh"]);
        let mut daemon = Daemon::start_as(shell, "socket = '{socket}'").unwrap();
        let config = fs::read_to_string(daemon.config()).unwrap();
        assert_eq!(config, format!("socket = '{}'", daemon.socket().display()));
        let folder = daemon.folder.path().to_owned();
        match daemon.ready().await {
            Err(DaemonError::Ended { status, log }) => {
                assert_eq!((status.code(), log.as_str()), (Some(3), "no such luck"));
            }
            other => panic!("{other:?}"),
        }
        drop(daemon);
        assert!(!folder.exists());
    }
}
