//! Opens a file of the configuration, and judges who can write it or its folder. Which rule that is,
//! and why, is told in [`super::files`].

use std::{
    fs::{File, FileType, Metadata, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::statvfs::{FsFlags, statvfs},
};

use super::diagnostics::{Fault, quoted};

/// How the files of a folder are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    ByName,
    ByPattern,
}

/// Opens a file without waiting, whatever it turns out to be, and returns the folders that the way
/// to it led through: the named one, and one more for each link that was followed.
pub(super) fn open(path: &Path) -> Result<(File, Vec<PathBuf>), Fault> {
    let mut at = path.to_owned();
    let mut folders = vec![parent(path).to_owned()];
    while let Ok(target) = at.read_link() {
        let folder = parent(&at);
        if is_shared(folder) {
            return Err(Fault::new(
                format!(
                    "cannot be read: {} is a link, in a folder where others can put one",
                    quoted(&at)
                ),
                "name the file that it leads to",
            ));
        }
        if folders.len() > MAX_LINKS {
            return Err(unreadable(&Errno::ELOOP.into()));
        }
        at = folder.join(target);
        folders.push(parent(&at).to_owned());
    }
    // Without O_NONBLOCK, a pipe would wait for its writer. O_CLOEXEC is Rust's default.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    let refused = |error: io::Error| unreadable(&error);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(&at)
        .map_err(refused)?;
    let metadata = file.metadata().map_err(refused)?;
    if !metadata.is_file() {
        let message = format!("cannot be read: it is {}", kind(metadata.file_type()));
        return Err(Fault::new(message, "name a file"));
    }
    if metadata.nlink() > 1 && is_shared(parent(&at)) {
        return Err(Fault::new(
            "cannot be read: it has a second name (a hard link), and others can put one there",
            "copy it to a folder that only root can write",
        ));
    }
    Ok((file, folders))
}

/// What decides who can write a file or folder.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judged {
    is_dir: bool,
    mode: u32,
    uid: u32,
    gid: u32,
    /// The sticky bit keeps others from writing what matters.
    sticky: bool,
    /// So does the file system.
    read_only: bool,
}

impl Judged {
    pub(super) fn file(metadata: &Metadata) -> Self {
        Self {
            is_dir: false,
            mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            sticky: false,
            read_only: false,
        }
    }

    pub(super) fn folder(path: &Path, metadata: &Metadata, found: Found) -> Self {
        Self {
            is_dir: true,
            sticky: metadata.mode() & 0o1000 != 0 && found == Found::ByName,
            read_only: is_read_only(path),
            ..Self::file(metadata)
        }
    }

    pub(super) fn faults(&self, path: &Path, our_uid: u32) -> Vec<Fault> {
        let mut faults = Vec::new();
        let what = if self.is_dir { "folder" } else { "file" };
        let path = shell_word(path);
        if self.uid != 0 && self.uid != our_uid {
            let us = if our_uid == 0 {
                String::new()
            } else {
                format!(" or uid {our_uid}, which reads it")
            };
            faults.push(Fault::new(
                format!(
                    "the {what} is owned by uid {}, who could change who has which token: it must \
                     be owned by root{us}",
                    self.uid
                ),
                format!("chown root {path}"),
            ));
        }
        if self.sticky || self.read_only {
            return faults;
        }
        let group = self.mode & 0o020 != 0;
        let other = self.mode & 0o002 != 0;
        let (who, change) = match (group, other) {
            (false, false) => return faults,
            (true, false) => (format!("group {}", self.gid), "g-w"),
            (false, true) => ("everybody".to_owned(), "o-w"),
            (true, true) => ("everybody".to_owned(), "go-w"),
        };
        faults.push(Fault::new(
            format!(
                "{who} can write the {what} (mode {:04o}), and so decide who has which token",
                self.mode & 0o7777
            ),
            format!("chmod {change} {path}"),
        ));
        faults
    }
}

/// The folder that holds a file.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

pub(super) fn unreadable(error: &io::Error) -> Fault {
    let fix = match error.kind() {
        io::ErrorKind::NotFound => "create it, or name another with --config",
        io::ErrorKind::PermissionDenied => "let the daemon's user read it (chgrp and chmod g+r)",
        _ => "make it readable",
    };
    Fault::new(format!("cannot be read: {error}"), fix)
}

/// What is no regular file, for people.
fn kind(what: FileType) -> &'static str {
    if what.is_dir() {
        "a directory"
    } else if what.is_fifo() {
        "a pipe"
    } else {
        "a device"
    }
}

/// As many as the kernel follows.
const MAX_LINKS: usize = 40;

/// Whether others than its owner can add names to a folder, and the sticky bit is all that keeps
/// them from more. Without that bit the folder is refused anyway.
fn is_shared(folder: &Path) -> bool {
    const STICKY: u32 = 0o1000;
    let shared = |metadata: Metadata| metadata.mode() & STICKY != 0 && metadata.mode() & 0o022 != 0;
    folder.metadata().is_ok_and(shared) && !is_read_only(folder)
}

fn is_read_only(folder: &Path) -> bool {
    statvfs(folder).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY))
}

/// A path as it can be pasted into a shell.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain =
        |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '+' | ',' | '@');
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::geteuid;
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt,
    };

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn who_counts_as_others() {
        let safe = Judged {
            is_dir: false,
            mode: 0o644,
            uid: 0,
            gid: 1001,
            sticky: false,
            read_only: false,
        };
        let faults = |judged: Judged, our_uid| judged.faults(Path::new("/etc/a b"), our_uid);
        assert_eq!(faults(safe, 900), []);
        assert_eq!(faults(Judged { uid: 900, ..safe }, 900), []);
        let foreign = faults(Judged { uid: 1001, ..safe }, 900);
        assert!(foreign[0].message.contains("owned by uid 1001"));
        assert!(foreign[0].message.contains("root or uid 900"));
        assert_eq!(foreign[0].fix, "chown root '/etc/a b'");
        assert!(!faults(Judged { uid: 900, ..safe }, 0).is_empty());
        // Any group is others: what looks like root's may be the mask of an access control list.
        for gid in [1001, 0] {
            let group = faults(
                Judged {
                    mode: 0o664,
                    gid,
                    ..safe
                },
                900,
            );
            let says = format!("group {gid} can write the file (mode 0664)");
            assert!(group[0].message.contains(&says), "{group:?}");
            assert_eq!(group[0].fix, "chmod g-w '/etc/a b'");
        }
        let all = faults(
            Judged {
                mode: 0o666,
                ..safe
            },
            900,
        );
        assert_eq!(all[0].fix, "chmod go-w '/etc/a b'");
        // Folders: sticky and read-only ones are safe, a foreign owner is not.
        let folder = Judged {
            is_dir: true,
            mode: 0o777,
            ..safe
        };
        assert_eq!(faults(folder, 900).len(), 1);
        let sticky = Judged {
            mode: 0o1777,
            sticky: true,
            ..folder
        };
        assert_eq!(faults(sticky, 900), []);
        assert_eq!(faults(Judged { uid: 7, ..sticky }, 900).len(), 1);
        let read_only = Judged {
            read_only: true,
            ..folder
        };
        assert_eq!(faults(read_only, 900), []);
    }

    #[test]
    fn the_sticky_bit_means_nothing_on_a_file_nor_where_a_pattern_finds_files() {
        let dir = tempfile::tempdir().unwrap();
        let metadata_of = |path: &Path, mode| {
            chmod(path, mode);
            path.metadata().unwrap()
        };
        let folder = metadata_of(dir.path(), 0o1777);
        let judged = |found| Judged::folder(dir.path(), &folder, found);
        let us = geteuid().as_raw();
        assert_eq!(judged(Found::ByName).faults(dir.path(), us), []);
        let by_pattern = judged(Found::ByPattern).faults(dir.path(), us);
        assert_eq!(by_pattern.len(), 1);
        assert!(by_pattern[0].message.contains("(mode 1777)"));
        let path = dir.path().join("a.toml");
        fs::write(&path, "").unwrap();
        let file = Judged::file(&metadata_of(&path, 0o1666));
        assert_eq!(file.faults(&path, us).len(), 1);
    }
}
