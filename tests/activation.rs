//! systemd's side of a start, played by this test: a socket handed over, and what the service says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

use std::{
    io::{Read, Write},
    os::{
        fd::AsRawFd,
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use spiffe_entra::{config::Listener, server::activation};

const ROLE: &str = "ACTIVATION_SOCKET";

#[test]
fn a_socket_is_taken_over_and_systemd_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    // Without close-on-exec, as systemd leaves it.
    let handed = nix::unistd::dup(&listener).unwrap();
    let notify = folder.path().join("notify");
    let told = UnixDatagram::bind(&notify).unwrap();
    told.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();

    let mut service = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_a_service", "--nocapture", "--quiet"])
        .env(ROLE, &socket)
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDS_FIRST_FD", handed.as_raw_fd().to_string())
        .env("NOTIFY_SOCKET", &notify)
        .env("WATCHDOG_USEC", "3000000")
        .spawn()
        .unwrap();
    drop((listener, handed));

    let next = || {
        let mut buffer = [0; 512];
        let length = told.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    assert_eq!(next(), "READY=1\nSTATUS=serving\n");
    let mut answer = String::new();
    UnixStream::connect(&socket)
        .unwrap()
        .read_to_string(&mut answer)
        .unwrap();
    assert_eq!(answer, "hello");
    let reloading = next();
    let usec = reloading
        .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
        .unwrap();
    assert!(usec.trim_end().parse::<u64>().unwrap() > 0, "{reloading}");
    assert_eq!(next(), "STATUS=a line\n");
    assert_eq!(next(), "WATCHDOG=1\n");
    assert_eq!(next(), "STOPPING=1\n");
    assert!(service.wait().unwrap().success());
    assert!(socket.exists(), "it is systemd's");
}

/// The service. Does nothing in an ordinary run.
#[test]
fn as_a_service() {
    let Some(socket) = std::env::var_os(ROLE).map(PathBuf::from) else {
        return;
    };
    let inherited = activation::inherited().unwrap();
    assert_eq!(inherited.len(), 1);
    let mut adopted = activation::adopt(inherited, &[listener(&socket)]).unwrap();
    let bound = adopted.remove(0).unwrap();
    assert!(bound.file.is_none());
    assert_eq!(
        activation::watchdog_period(),
        Some(Duration::from_millis(1500))
    );

    activation::ready("serving");
    let (mut peer, _) = bound.listener.accept().unwrap();
    peer.write_all(b"hello").unwrap();
    drop(peer);
    activation::reloading();
    activation::status("a line");
    activation::alive();
    activation::stopping();
}

fn listener(socket: &Path) -> Listener {
    Listener {
        socket: socket.to_owned(),
        mode: 0o660,
        owner: None,
        group: None,
        identities: None,
        max_connections: 64,
    }
}
