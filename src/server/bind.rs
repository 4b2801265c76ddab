//! Puts a socket file in its place, and takes it away again.
//!
//! Nobody may connect before owner and mode are right, nobody may be pushed aside, and nothing may
//! be followed or removed that is not ours:
//!
//! * The socket is bound in a fresh directory of mode 0700 beside its place, gets its owner and
//!   mode there, and is renamed to its place when it already listens. Between "not there" and
//!   "there, with the right mode" is nothing, and a stale socket is replaced in one step.
//! * The directory is opened once, and everything happens relative to that descriptor (through
//!   `/proc/self/fd`, which also keeps the address short). Neither the directory itself nor the
//!   socket may be a symbolic link. Links further up are followed, `/var/run` being one: whoever
//!   can change those can give us another directory altogether, link or not.
//! * The directory must belong to root or to us and nobody else may write there, sticky or not:
//!   others could put a socket of theirs in the place of ours. A missing directory is made (0755),
//!   one level deep.
//! * A lock file (`.NAME.lock`, mode 0600) beside the socket is held for as long as we serve: of
//!   two daemons that start at once one says that the other is there. It stays when we end, because
//!   removing a lock file races with the next one who opens it. (A lock on the directory itself
//!   would not do: whoever can read a directory can lock it.)
//! * A socket that is there already is only replaced when connecting to it is refused, that is when
//!   nobody listens.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{ffi::OsStrExt, net::UnixListener},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, Flock, FlockArg, OFlag, open, openat},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket},
        stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, fstatat, mkdirat},
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, geteuid, unlinkat},
};

use crate::config::Listener;

/// A socket that listens, and its file.
#[derive(Debug)]
pub struct Bound {
    /// The listening end, not yet handed to a runtime.
    pub listener: UnixListener,
    /// Its path as configured.
    pub socket: PathBuf,
    /// The file to take away at the end; `None` when it belongs to systemd.
    pub file: Option<SocketFile>,
}

/// A socket file of ours. Dropping it removes the file, if it is still the one we made.
#[derive(Debug)]
pub struct SocketFile {
    directory: OwnedFd,
    name: OsString,
    device: u64,
    inode: u64,
    /// Held until the file is gone.
    _lock: Flock<OwnedFd>,
}

/// Why a socket cannot be put in its place.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The path is no path of a socket.
    #[error(
        "{0}: a socket needs an absolute path without `..`, of at most {PATH_LIMIT} bytes: change \
         `socket` of [[listen]]"
    )]
    Path(String),
    /// There is no directory to put it in.
    #[error("{path}: cannot open the directory: {error}: make it, owned by the daemon's user")]
    Directory {
        /// The directory.
        path: String,
        /// What the system said.
        error: Errno,
    },
    /// The directory is a symbolic link, or no directory.
    #[error("{0} is a symbolic link or no directory: give the real path of the directory")]
    Link(String),
    /// Somebody else could put another socket in the place of ours.
    #[error(
        "{path} belongs to uid {owner} and has mode {mode:04o}, so others can replace the socket: \
         make a directory for it alone that belongs to root or uid {us} and that only its owner \
         can write (chmod go-w)"
    )]
    Unsafe {
        /// The directory.
        path: String,
        /// Its owner.
        owner: u32,
        /// Its mode.
        mode: u32,
        /// Our uid.
        us: u32,
    },
    /// A live daemon is there.
    #[error("{0}: another process answers on this socket: stop it, or choose another path")]
    Answered(String),
    /// A live daemon is just starting there.
    #[error(
        "{0}: another process holds the lock beside this socket: is spiffe-entra running already?"
    )]
    Locked(String),
    /// Something is in the way that is not ours to remove.
    #[error("{path} is {what}, not a socket: remove it, or choose another path")]
    Occupied {
        /// The path.
        path: String,
        /// What is there.
        what: &'static str,
    },
    /// The socket cannot be given away as configured.
    #[error(
        "{path}: cannot set owner, group and mode: {error}: a daemon that is not root can only \
         use its own user and the groups it is in"
    )]
    Permissions {
        /// The path.
        path: String,
        /// What the system said.
        error: Errno,
    },
    /// Anything else.
    #[error("{path}: cannot {step}: {error}")]
    Io {
        /// The path.
        path: String,
        /// What was tried.
        step: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// What fits into a socket address on every system that a client may run on.
pub const PATH_LIMIT: usize = 104;

/// Binds a configured socket and listens.
pub fn bind(config: &Listener) -> Result<Bound, BindError> {
    let path = &config.socket;
    let shown = path.display().to_string();
    let (parent, name) = split(path)?;
    let directory = open_directory(parent)?;
    let lock = take_lock(&directory, name, &shown)?;
    clear_the_way(&directory, name, &shown)?;
    let (listener, stat) = bind_aside(&directory, name, config, &shown)?;
    Ok(Bound {
        listener,
        socket: path.clone(),
        file: Some(SocketFile {
            directory,
            name: name.to_owned(),
            device: stat.st_dev,
            inode: stat.st_ino,
            _lock: lock,
        }),
    })
}

impl SocketFile {
    /// Removes the file unless somebody else's took its place.
    pub fn remove(self) {
        drop(self);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let name = self.name.as_os_str();
        match fstatat(&self.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if stat.st_dev == self.device && stat.st_ino == self.inode => {
                if let Err(error) = unlinkat(&self.directory, name, UnlinkatFlags::NoRemoveDir) {
                    tracing::warn!(socket = ?name, %error, "cannot remove the socket");
                }
            }
            Ok(_) => tracing::warn!(
                socket = ?name,
                "the socket was replaced while we served it, so it is left alone"
            ),
            // Removed by somebody else: nothing left to do.
            Err(_) => {}
        }
    }
}

fn split(path: &Path) -> Result<(&Path, &OsStr), BindError> {
    let bad = || BindError::Path(path.display().to_string());
    let plain = path
        .components()
        .all(|c| !matches!(c, std::path::Component::ParentDir));
    if !path.is_absolute() || !plain || path.as_os_str().len() > PATH_LIMIT {
        return Err(bad());
    }
    // `/run/x.sock/` and `/run/x.sock/.` have a file name for `Path`, and none for the kernel.
    let bytes = path.as_os_str().as_bytes();
    if bytes.ends_with(b"/") || bytes.ends_with(b"/.") {
        return Err(bad());
    }
    path.parent().zip(path.file_name()).ok_or_else(bad)
}

/// Opens the directory of the socket, made if it is missing, and checks whose it is.
fn open_directory(path: &Path) -> Result<OwnedFd, BindError> {
    let shown = path.display().to_string();
    let failed = |error| BindError::Directory {
        path: shown.clone(),
        error,
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = match path.parent().zip(path.file_name()) {
        None => open(path, flags, Mode::empty()).map_err(failed)?,
        Some((above, name)) => {
            let above = open(above, flags, Mode::empty()).map_err(failed)?;
            let nofollow = flags | OFlag::O_NOFOLLOW;
            let opened = match openat(&above, name, nofollow, Mode::empty()) {
                Err(Errno::ENOENT) => {
                    mkdirat(&above, name, Mode::from_bits_truncate(0o755)).map_err(failed)?;
                    openat(&above, name, nofollow, Mode::empty())
                }
                other => other,
            };
            match opened {
                Err(Errno::ENOTDIR | Errno::ELOOP) => return Err(BindError::Link(shown)),
                other => other.map_err(failed)?,
            }
        }
    };
    let stat = fstat(&directory).map_err(failed)?;
    let (us, mode) = (geteuid().as_raw(), stat.st_mode & 0o7777);
    if (stat.st_uid != 0 && stat.st_uid != us) || mode & 0o022 != 0 {
        return Err(BindError::Unsafe {
            path: shown,
            owner: stat.st_uid,
            mode,
            us,
        });
    }
    Ok(directory)
}

fn take_lock(directory: &OwnedFd, name: &OsStr, shown: &str) -> Result<Flock<OwnedFd>, BindError> {
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(
        directory,
        beside(name, ".lock").as_os_str(),
        flags,
        Mode::from_bits_truncate(0o600),
    )
    .map_err(|error| io_error(shown, "open the lock file beside it", error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => BindError::Locked(shown.into()),
        other => io_error(shown, "lock the lock file beside it", other),
    })
}

/// Sees to it that nothing or a stale socket is at the socket's place.
fn clear_the_way(directory: &OwnedFd, name: &OsStr, shown: &str) -> Result<(), BindError> {
    let stat = match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => return Ok(()),
        other => other.map_err(|error| io_error(shown, "look at it", error))?,
    };
    let what = match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFSOCK => None,
        SFlag::S_IFLNK => Some("a symbolic link"),
        SFlag::S_IFDIR => Some("a directory"),
        SFlag::S_IFREG => Some("a file"),
        _ => Some("a device or pipe"),
    };
    if let Some(what) = what {
        return Err(BindError::Occupied {
            path: shown.into(),
            what,
        });
    }
    match knock(directory, name) {
        // Nobody listens: `rename` replaces it. Or it went away by itself.
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(()),
        // A full backlog is somebody's as well, and so is a socket of another type.
        Ok(()) | Err(Errno::EAGAIN | Errno::EINPROGRESS | Errno::EPROTOTYPE) => {
            Err(BindError::Answered(shown.into()))
        }
        Err(error) => Err(io_error(
            shown,
            "tell whether somebody answers there",
            error,
        )),
    }
}

/// Connects without waiting.
fn knock(directory: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(
        socket.as_raw_fd(),
        &UnixAddr::new(&through(directory, name))?,
    )
}

/// Binds in a directory of our own and moves the finished socket to its place.
fn bind_aside(
    directory: &OwnedFd,
    name: &OsStr,
    config: &Listener,
    shown: &str,
) -> Result<(UnixListener, FileStat), BindError> {
    let aside = beside(name, ".new");
    // Left by one that was killed here. We hold the lock, so it is nobody's.
    sweep(directory, &aside);
    mkdirat(directory, aside.as_os_str(), Mode::S_IRWXU)
        .map_err(|error| io_error(shown, "make a directory beside it", error))?;
    let bound = bind_in(directory, &aside, name, config, shown);
    sweep(directory, &aside);
    bound
}

fn bind_in(
    directory: &OwnedFd,
    aside: &OsStr,
    name: &OsStr,
    config: &Listener,
    shown: &str,
) -> Result<(UnixListener, FileStat), BindError> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let inside = openat(directory, aside, flags, Mode::empty())
        .map_err(|error| io_error(shown, "open the directory beside it", error))?;
    let listener =
        UnixListener::bind(through(&inside, OsStr::new(FRESH))).map_err(|error| BindError::Io {
            path: shown.into(),
            step: "bind (through /proc/self/fd, so /proc must be mounted)",
            error,
        })?;
    let refused = |error| BindError::Permissions {
        path: shown.into(),
        error,
    };
    // The mode first: afterwards the file may be somebody else's.
    let mode = Mode::from_bits_truncate(config.mode & 0o777);
    fchmodat(&inside, FRESH, mode, FchmodatFlags::FollowSymlink).map_err(refused)?;
    if config.owner.is_some() || config.group.is_some() {
        let (owner, group) = (
            config.owner.map(Uid::from_raw),
            config.group.map(Gid::from_raw),
        );
        fchownat(&inside, FRESH, owner, group, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(refused)?;
    }
    let stat = fstatat(&inside, FRESH, AtFlags::AT_SYMLINK_NOFOLLOW)
        .map_err(|error| io_error(shown, "look at the new socket", error))?;
    nix::fcntl::renameat(&inside, FRESH, directory, name)
        .map_err(|error| io_error(shown, "move the new socket to its place", error))?;
    Ok((listener, stat))
}

/// Removes the directory in which a socket is made ready, as far as it is there.
fn sweep(directory: &OwnedFd, aside: &OsStr) {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let Ok(inside) = openat(directory, aside, flags, Mode::empty()) else {
        return;
    };
    // If either fails something else is in there, and making the directory anew will say so.
    _ = unlinkat(&inside, FRESH, UnlinkatFlags::NoRemoveDir);
    _ = unlinkat(directory, aside, UnlinkatFlags::RemoveDir);
}

/// `.NAME` with an ending.
fn beside(name: &OsStr, ending: &str) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(ending);
    hidden
}

/// A path to `name` in an open directory that nobody can redirect.
fn through(directory: &OwnedFd, name: &OsStr) -> PathBuf {
    Path::new("/proc/self/fd")
        .join(directory.as_raw_fd().to_string())
        .join(name)
}

fn io_error(path: &str, step: &'static str, error: Errno) -> BindError {
    BindError::Io {
        path: path.into(),
        step,
        error: error.into(),
    }
}

/// The socket's name in the directory where it is made ready.
const FRESH: &str = "s";

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
            net::UnixStream,
        },
    };

    fn at(socket: impl Into<PathBuf>) -> Listener {
        Listener {
            socket: socket.into(),
            mode: 0o660,
            owner: None,
            group: None,
            identities: None,
            max_connections: 64,
        }
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        folder
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_socket_appears_with_its_mode_and_goes_when_dropped() {
        let folder = folder();
        let config = at(folder.path().join("s.sock"));
        let bound = bind(&config).unwrap();
        let meta = fs::symlink_metadata(&config.socket).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.mode() & 0o7777, 0o660);
        UnixStream::connect(&config.socket).unwrap();
        assert_eq!(names(folder.path()), [".s.sock.lock", "s.sock"]);
        drop(bound);
        assert_eq!(names(folder.path()), [".s.sock.lock"]);
        bind(&config).unwrap();
    }

    #[test]
    fn owner_and_group_are_set_or_the_reason_is_told() {
        let folder = folder();
        let config = Listener {
            owner: Some(4242),
            group: Some(4243),
            ..at(folder.path().join("s.sock"))
        };
        if geteuid().is_root() {
            let _bound = bind(&config).unwrap();
            let meta = fs::metadata(&config.socket).unwrap();
            assert_eq!((meta.uid(), meta.gid()), (4242, 4243));
        } else {
            let error = bind(&config).unwrap_err();
            assert!(matches!(error, BindError::Permissions { .. }), "{error}");
            assert_eq!(names(folder.path()), [".s.sock.lock"]);
        }
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let folder = folder();
        let config = at(folder.path().join("s.sock"));
        drop(UnixListener::bind(&config.socket).unwrap());
        let _bound = bind(&config).unwrap();
        UnixStream::connect(&config.socket).unwrap();
    }

    #[test]
    fn a_live_daemon_is_not_pushed_aside() {
        let folder = folder();
        let config = at(folder.path().join("s.sock"));
        let foreign = UnixListener::bind(&config.socket).unwrap();
        let error = bind(&config).unwrap_err();
        assert!(matches!(error, BindError::Answered(_)), "{error}");
        assert!(error.to_string().contains("s.sock"));
        drop(foreign);

        let bound = bind(&config).unwrap();
        let error = bind(&config).unwrap_err();
        assert!(matches!(error, BindError::Locked(_)), "{error}");
        drop(bound);
    }

    #[test]
    fn a_live_daemon_with_a_full_backlog_is_not_pushed_aside() {
        let folder = folder();
        let config = at(folder.path().join("s.sock"));
        let socket = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::empty(),
            None,
        )
        .unwrap();
        nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(&config.socket).unwrap())
            .unwrap();
        nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let _waiting = UnixStream::connect(&config.socket).unwrap();
        let error = bind(&config).unwrap_err();
        assert!(matches!(error, BindError::Answered(_)), "{error}");
    }

    #[test]
    fn a_datagram_socket_is_not_taken_over() {
        let folder = folder();
        let config = at(folder.path().join("s.sock"));
        let _other = std::os::unix::net::UnixDatagram::bind(&config.socket).unwrap();
        let error = bind(&config).unwrap_err();
        assert!(matches!(error, BindError::Answered(_)), "{error}");
    }

    #[test]
    fn nothing_but_a_socket_is_removed() {
        let folder = folder();
        let target = folder.path().join("target");
        drop(UnixListener::bind(&target).unwrap());
        let cases: [(&str, &str); 3] = [
            ("file", "a file"),
            ("dir", "a directory"),
            ("link", "a symbolic link"),
        ];
        fs::write(folder.path().join("file"), "").unwrap();
        fs::create_dir(folder.path().join("dir")).unwrap();
        symlink(&target, folder.path().join("link")).unwrap();
        for (name, what) in cases {
            let error = bind(&at(folder.path().join(name))).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
        assert!(fs::symlink_metadata(&target).is_ok());
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        let folder = folder();
        for mode in [0o777, 0o1777, 0o775, 0o757] {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
            let error = bind(&at(folder.path().join("s"))).unwrap_err();
            assert!(
                matches!(error, BindError::Unsafe { .. }),
                "{mode:o}: {error}"
            );
            assert!(names(folder.path()).is_empty());
        }
        if geteuid().is_root() {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
            std::os::unix::fs::chown(folder.path(), Some(4242), None).unwrap();
            let error = bind(&at(folder.path().join("s"))).unwrap_err();
            assert!(error.to_string().contains("uid 4242"), "{error}");
        }
    }

    #[test]
    fn a_link_in_place_of_the_directory_is_refused_and_one_above_is_followed() {
        let folder = folder();
        fs::create_dir(folder.path().join("real")).unwrap();
        symlink(folder.path().join("real"), folder.path().join("link")).unwrap();
        let error = bind(&at(folder.path().join("link/s"))).unwrap_err();
        assert!(matches!(error, BindError::Link(_)), "{error}");
        fs::create_dir(folder.path().join("real/below")).unwrap();
        bind(&at(folder.path().join("link/below/s"))).unwrap();
    }

    #[test]
    fn a_missing_directory_is_made_one_level_deep() {
        let folder = folder();
        let bound = bind(&at(folder.path().join("run/s"))).unwrap();
        assert_eq!(names(&folder.path().join("run")), [".s.lock", "s"]);
        drop(bound);
        let error = bind(&at(folder.path().join("not/there/s"))).unwrap_err();
        assert!(matches!(error, BindError::Directory { .. }), "{error}");
    }

    #[test]
    fn paths_are_checked() {
        let long = format!("/{}", "a".repeat(PATH_LIMIT));
        for path in [
            "s.sock",
            "",
            "/",
            "/run/../s.sock",
            "/run/x/",
            "/run/x/.",
            &long,
        ] {
            let error = bind(&at(path)).unwrap_err();
            assert!(matches!(error, BindError::Path(_)), "{path}: {error}");
        }
    }

    #[test]
    fn the_longest_path_works() {
        let folder = folder();
        let used = folder.path().as_os_str().len() + 1;
        let config = at(folder.path().join("s".repeat(PATH_LIMIT - used)));
        let _bound = bind(&config).unwrap();
        UnixStream::connect(&config.socket).unwrap();
    }

    #[test]
    fn what_took_our_place_stays() {
        let folder = folder();
        let config = at(folder.path().join("s.sock"));
        let bound = bind(&config).unwrap();
        fs::remove_file(&config.socket).unwrap();
        let _theirs = UnixListener::bind(&config.socket).unwrap();
        drop(bound);
        UnixStream::connect(&config.socket).unwrap();
    }

    #[test]
    fn what_a_killed_daemon_left_is_swept() {
        let folder = folder();
        let aside = folder.path().join(".s.sock.new");
        fs::create_dir(&aside).unwrap();
        drop(UnixListener::bind(aside.join("s")).unwrap());
        let _bound = bind(&at(folder.path().join("s.sock"))).unwrap();
        assert_eq!(names(folder.path()), [".s.sock.lock", "s.sock"]);
    }
}
