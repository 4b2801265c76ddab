//! This project's daemon as a program of its own, run as any user, and the ways to ask it.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use nix::unistd::geteuid;

use crate::parts;
use crate::process::{Process, both, command, command_as, install, output, wait_for};
use crate::support::Response;

/// What the daemon is configured with.
pub(crate) struct Settings<'a> {
    /// The agent's socket.
    pub(crate) workload_api: &'a Path,
    /// The issuer that every JWT-SVID must have.
    pub(crate) issuer: &'a str,
    /// Entra's address, and what signed its certificate.
    pub(crate) authority: &'a str,
    pub(crate) ca_file: &'a Path,
    pub(crate) tenant: &'a str,
    pub(crate) identities: Vec<Identity<'a>>,
}

/// One of the daemon's identities.
pub(crate) struct Identity<'a> {
    pub(crate) name: &'a str,
    pub(crate) spiffe_id: String,
    pub(crate) client_id: String,
    /// In TOML, `{ uid = 1000 }` say.
    pub(crate) callers: String,
}

/// A running daemon with one socket that everybody can open.
pub(crate) struct Daemon {
    // Stopped before its folder goes.
    process: Process,
    program: PathBuf,
    socket: PathBuf,
}

impl Daemon {
    /// Runs the daemon as `uid` below `folder`, and waits until it answers.
    pub(crate) fn start(folder: &Path, uid: u32, settings: &Settings<'_>) -> Self {
        let program = install(Path::new(env!("CARGO_BIN_EXE_spiffe-entra")), folder);
        let config = folder.join("config.toml");
        let sockets = folder.join("sockets");
        let socket = sockets.join("entra.sock");
        fs::write(&config, render(settings, &socket)).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).unwrap();
        fs::create_dir(&sockets).unwrap();
        fs::set_permissions(&sockets, fs::Permissions::from_mode(0o755)).unwrap();
        if uid != geteuid().as_raw() {
            chown(&sockets, Some(uid), Some(uid)).unwrap();
        }

        let mut run = command_as_or_self(uid, &program);
        run.arg("run").arg("--config").arg(&config);
        let log = folder.join("spiffe-entra.log");
        let process = Process::spawn("spiffe-entra", run, &log);
        let mut daemon = Self {
            process,
            program,
            socket,
        };
        wait_for("spiffe-entra to answer", Duration::from_secs(30), || {
            daemon.process.assert_running();
            let answer = daemon.ask(geteuid().as_raw(), &["/livez"])?;
            if answer.status == 200 {
                Ok(())
            } else {
                Err(format!("{answer:?}"))
            }
        });
        daemon
    }

    /// `GET PATH` by a process of this user.
    pub(crate) fn get(&self, uid: u32, path: &str) -> Response {
        self.ask(uid, &[path]).unwrap()
    }

    /// `GET /v1/token` for this resource.
    pub(crate) fn token(&self, uid: u32, resource: &str) -> Response {
        self.get(uid, &format!("/v1/token?resource={resource}"))
    }

    /// The program as a client of this daemon, run by this user.
    pub(crate) fn client(&self, uid: u32, arguments: &[&str]) -> Output {
        let mut command = command_as_or_self(uid, &self.program);
        command.args(arguments).arg("--socket").arg(&self.socket);
        output(command)
    }

    /// `grpcurl` for this daemon, run by this user; the method's name comes last.
    pub(crate) fn grpcurl(&self, uid: u32, options: &[&str], method: &[&str]) -> Command {
        let folder = self.program.parent().expect("a program is in a folder");
        let mut command = command_as_or_self(uid, &install(&parts::interop("grpcurl"), folder));
        command
            .args(["-plaintext", "-authority", "localhost"])
            .args(options);
        command
            .arg(format!("unix://{}", self.socket.display()))
            .args(method);
        command
    }

    fn ask(&self, uid: u32, arguments: &[&str]) -> Result<Response, String> {
        let (path, options) = arguments.split_last().expect("a path comes last");
        let mut curl = command_as_or_self(uid, Path::new("curl"));
        curl.args(["--silent", "--show-error", "--include", "--max-time", "60"])
            .args(options);
        curl.arg("--unix-socket")
            .arg(&self.socket)
            .arg(format!("http://localhost{path}"));
        let done = output(curl);
        if !done.status.success() {
            return Err(both(&done));
        }
        Ok(Response::parse(&String::from_utf8_lossy(&done.stdout)))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !thread::panicking() {
            let leaked = self.process.output().contains("eyJ");
            assert!(!leaked, "a token or a JWT-SVID is in the log");
        }
    }
}

fn render(settings: &Settings<'_>, socket: &Path) -> String {
    let mut text = format!(
        r#"
[workload_api]
endpoint = "unix://{}"
issuer = "{}"

[entra]
authority = "{}"
tenant = "{}"
ca_file = "{}"
ca_only = true

[[listen]]
socket = "{}"
mode = "0666"
"#,
        settings.workload_api.display(),
        settings.issuer,
        settings.authority,
        settings.tenant,
        settings.ca_file.display(),
        socket.display(),
    );
    for Identity {
        name,
        spiffe_id,
        client_id,
        callers,
    } in &settings.identities
    {
        let _ = write!(
            text,
            r#"
[[identity]]
name = "{name}"
spiffe_id = "{spiffe_id}"
client_id = "{client_id}"
resources = ["*"]
callers = [{callers}]
"#
        );
    }
    text
}

/// Where nobody can change users, the only user is one's own.
fn command_as_or_self(uid: u32, program: &Path) -> Command {
    if uid == geteuid().as_raw() {
        command(program)
    } else {
        command_as(uid, program)
    }
}
