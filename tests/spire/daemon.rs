//! This project's daemon as a program of its own, run as any user, and the ways to ask it.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use nix::unistd::geteuid;

use crate::parts;
use crate::process::{both, command, command_as, output};
use crate::support::{self, Response, Start, install};

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

/// A running daemon with one socket that everybody can open. What it hands out, and what looks like
/// a JWT, must not be in its log when it goes.
pub(crate) struct Daemon(support::Daemon);

impl Daemon {
    /// Runs the daemon as `uid`, and waits until it answers.
    pub(crate) fn start(uid: u32, settings: &Settings<'_>) -> Self {
        let mut start = Start::new(&render(settings));
        if uid != geteuid().as_raw() {
            start = start.uid(uid);
        }
        Self(start.run())
    }

    /// `GET PATH` by a process of this user.
    pub(crate) fn get(&self, uid: u32, path: &str) -> Response {
        let mut curl = command_as_or_self(uid, Path::new("curl"));
        curl.args(["--silent", "--show-error", "--include", "--max-time", "60"]);
        curl.arg("--unix-socket")
            .arg(&self.0.socket)
            .arg(format!("http://localhost{path}"));
        let done = output(curl);
        assert!(done.status.success(), "{}", both(&done));
        let response = Response::parse(&String::from_utf8_lossy(&done.stdout));
        self.0.remember(&response);
        response
    }

    /// `GET /v1/token` for this resource.
    pub(crate) fn token(&self, uid: u32, resource: &str) -> Response {
        self.get(uid, &format!("/v1/token?resource={resource}"))
    }

    /// The program as a client of this daemon, run by this user.
    pub(crate) fn client(&self, uid: u32, arguments: &[&str]) -> Output {
        let program = install(&self.0.program, self.0.folder());
        let mut command = command_as_or_self(uid, &program);
        command.args(arguments).arg("--socket").arg(&self.0.socket);
        output(command)
    }

    /// `grpcurl` for this daemon, run by this user; the method's name comes last.
    pub(crate) fn grpcurl(&self, uid: u32, options: &[&str], method: &[&str]) -> Command {
        let program = install(&parts::interop("grpcurl"), self.0.folder());
        let mut command = command_as_or_self(uid, &program);
        command
            .args(["-plaintext", "-authority", "localhost"])
            .args(options);
        command
            .arg(format!("unix://{}", self.0.socket.display()))
            .args(method);
        command
    }
}

/// The configuration; `SOCKET` in it stands for the socket's path.
fn render(settings: &Settings<'_>) -> String {
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
socket = "SOCKET"
mode = "0666"
"#,
        settings.workload_api.display(),
        settings.issuer,
        settings.authority,
        settings.tenant,
        settings.ca_file.display(),
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
