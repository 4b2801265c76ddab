//! `--hold`: commands to try while everything stays up.

use std::path::Path;

use super::Mishap;
use super::stage::{LIFETIME, RESOURCE, Stage};
use super::teller::Teller;

pub(crate) fn explain(stage: &Stage, program: &Path, teller: &Teller) -> Result<(), Mishap> {
    let socket = stage.daemon.socket();
    let (program, socket) = (program.display(), socket.display());
    teller.text(&format!(
        "\nIt stays up until Ctrl-C; its tokens live for {} s. To try in another terminal:\n",
        LIFETIME.as_secs()
    ))?;
    for command in [
        format!("export SPIFFE_ENTRA_SOCKET={socket}"),
        format!("{program} token --resource {RESOURCE} --identity payments"),
        format!("{program} token --resource {RESOURCE} --identity reports"),
        format!("{program} status"),
        format!(
            "curl --unix-socket {socket} 'http://localhost/v1/token?resource={RESOURCE}&identity=payments'"
        ),
        format!("curl --unix-socket {socket} http://localhost/v1/identities"),
        format!(
            "grpcurl -plaintext -authority localhost -d '{{\"resource\":\"{RESOURCE}\",\"identity\":\"payments\"}}' \\\n    \
             unix://{socket} spiffe_entra.v1.TokenService/WatchToken"
        ),
        format!("less {}", stage.daemon.config().display()),
        format!("tail -f {}", stage.daemon.log().display()),
    ] {
        teller.command(&command)?;
    }
    Ok(())
}
