//! systemd: sockets it hands over, and what it is told in return.
//!
//! Everything here does nothing when systemd did not start us.

use std::{
    io,
    os::{
        linux::fs::MetadataExt,
        unix::net::{SocketAddr, UnixListener},
    },
    path::Path,
    time::Duration,
};

use listenfd::ListenFd;
use sd_notify::NotifyState;

use super::bind::Bound;
use crate::config::Listener;

/// The sockets that systemd handed over, empty without. Call this first thing in `main`: it edits
/// the environment, which is only sound while there is one thread.
pub fn inherited() -> io::Result<Vec<UnixListener>> {
    let mut handed = ListenFd::from_env();
    (0..handed.len())
        .filter_map(|place| handed.take_unix_listener(place).transpose())
        .collect()
}

/// Gives each inherited socket to the [`Listener`] with its path. In the result a listener's place
/// is empty when nothing was inherited for it. Owner and mode are as the socket unit made them.
pub fn adopt(
    inherited: Vec<UnixListener>,
    listeners: &[Listener],
) -> io::Result<Vec<Option<Bound>>> {
    let mut adopted: Vec<Option<Bound>> = listeners.iter().map(|_| None).collect();
    for socket in inherited {
        let address = socket.local_addr()?;
        let place = listeners.iter().position(|l| is_at(&address, &l.socket));
        let Some((listener, free)) = place.and_then(|p| listeners.get(p).zip(adopted.get_mut(p)))
        else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "systemd handed over a socket at {address:?} that no [[listen]] has: give its \
                     path as `socket`, or remove it from the socket unit's ListenStream="
                ),
            ));
        };
        *free = Some(Bound {
            listener: socket,
            socket: listener.socket.clone(),
            file: None,
        });
    }
    Ok(adopted)
}

/// Tells systemd that everything listens.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Tells systemd that a reload begins; [`ready`] ends it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "cannot read the clock that systemd asks for"),
    }
}

/// Tells systemd that we stop.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}

/// Tells systemd one line for `systemctl status`.
pub fn status(line: &str) {
    notify(&[NotifyState::Status(line)]);
}

/// Tells systemd that we are alive.
pub fn alive() {
    notify(&[NotifyState::Watchdog]);
}

/// How often [`alive`] is to be called, if at all: half of what systemd allows.
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot tell systemd our state");
    }
}

/// Whether an address is that of a path: by name, or by the file when `/run` and `/var/run` differ.
fn is_at(address: &SocketAddr, path: &Path) -> bool {
    let Some(bound) = address.as_pathname() else {
        return false;
    };
    let file = |path: &Path| {
        let meta = path.symlink_metadata().ok()?;
        Some((meta.st_dev(), meta.st_ino()))
    };
    bound == path || file(bound).is_some_and(|f| Some(f) == file(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn listener(socket: PathBuf) -> Listener {
        Listener {
            socket,
            mode: 0o660,
            owner: None,
            group: None,
            identities: None,
            max_connections: 64,
        }
    }

    #[test]
    fn inherited_sockets_find_their_listeners_by_path() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().join("real");
        std::fs::create_dir(&real).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&real, &link).unwrap();

        let configured = [
            listener(folder.path().join("none")),
            listener(link.join("b")),
            listener(real.join("a")),
        ];
        let inherited = vec![
            UnixListener::bind(real.join("a")).unwrap(),
            UnixListener::bind(real.join("b")).unwrap(),
        ];
        let adopted = adopt(inherited, &configured).unwrap();
        let sockets: Vec<_> = adopted
            .iter()
            .map(|b| b.as_ref().map(|b| b.socket.clone()))
            .collect();
        assert_eq!(sockets, [None, Some(link.join("b")), Some(real.join("a"))]);
        assert!(adopted.iter().flatten().all(|b| b.file.is_none()));
    }

    #[test]
    fn a_socket_that_nobody_configured_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let stray = UnixListener::bind(folder.path().join("stray")).unwrap();
        let error = adopt(vec![stray], &[listener(folder.path().join("x"))]).unwrap_err();
        assert!(error.to_string().contains("no [[listen]] has"), "{error}");
    }

    #[test]
    fn without_systemd_everything_is_quiet() {
        assert!(inherited().unwrap().is_empty());
        ready("serving");
        reloading();
        alive();
        stopping();
        assert_eq!(watchdog_period(), None);
    }
}
