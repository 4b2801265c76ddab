//! Asking the daemon as somebody else: a child of another uid that sends one request.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use lab::daemon::Connection;
use nix::unistd::geteuid;
use serde_json::{Value, json};

/// Becomes the one who asks, when this process was started for that.
pub(crate) fn enter() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != ASK {
        return None;
    }
    let (socket, target) = (args.next()?, args.next()?.into_string().ok()?);
    Some(match ask(Path::new(&socket), &target) {
        Ok(answer) => {
            // The parent reads it, or misses it.
            let _ = writeln!(std::io::stdout(), "{answer}");
            ExitCode::SUCCESS
        }
        Err(_unreachable) => ExitCode::FAILURE,
    })
}

/// The status and the body of what the daemon answers to `uid`; `None` when we cannot be that uid,
/// or that uid cannot reach the socket.
pub(crate) fn as_uid(uid: u32, socket: &Path, target: &str) -> Option<Value> {
    if !geteuid().is_root() {
        return None;
    }
    // By this name the child needs no right to the folder that the program is in.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg(ASK)
        .arg(socket)
        .arg(target)
        .uid(uid)
        .gid(uid)
        .current_dir("/");
    let output = command.output().ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

#[tokio::main(flavor = "current_thread")]
async fn ask(socket: &Path, target: &str) -> Result<Value, lab::daemon::DaemonError> {
    let answer = Connection::open(socket).await?.get(target).await?;
    Ok(json!({ "status": answer.status.as_u16(), "body": answer.json() }))
}

/// The argument by which the child is known.
const ASK: &str = "@ask";
