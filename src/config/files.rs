//! The files of a configuration: read them, and make sure that nobody else can write them.
//!
//! Whoever can write a file decides who has which token, so every file that is read (and the CA
//! file, which decides who is believed to be Entra) must be owned by root or by the daemon's own
//! user, and writable by nobody else. The same goes for the folder that holds it, under the name
//! that was given and, where a link was followed, in its real place: whoever can write there can put
//! an older file back, or take one away.
//!
//! Folders further up are left alone on purpose. Whoever can write there can put a folder of their
//! own in the way, but not one that belongs to root or the daemon, so what they put there is
//! refused by the rule above; and in containers those folders often belong to users that are not
//! mapped, which would refuse sound configurations.
//!
//! Not counted as "others": group root (a file `root:root` with mode 0664 is root's alone), writers
//! of a folder with the sticky bit (they can neither replace nor remove what is not theirs, and what
//! they add is not owned by root or the daemon), and writers of a folder on a read-only file system
//! (a Kubernetes ConfigMap is mounted so, with mode 0777).

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use glob::{MatchOptions, Pattern};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::{
    diagnostics::{Fault, Mistake, Sink, Source, quoted},
    raw::{At, Reading},
};

/// Reads files for one uid, and looks at each folder once.
pub(super) struct Files {
    /// The daemon's own uid.
    uid: u32,
    /// By device and inode: a folder may have several names.
    seen: RefCell<BTreeSet<(u64, u64)>>,
}

impl Files {
    pub(super) fn new(uid: u32) -> Self {
        Self {
            uid,
            seen: RefCell::default(),
        }
    }

    /// The text of a file of the configuration, or `None` and why it cannot be read noted. That
    /// others can write it is noted too, but its text is returned: to find all mistakes at once.
    pub(super) fn read(&self, path: &Path, sink: &Sink) -> Option<Source> {
        let bytes = self.read_bytes(path, sink)?;
        match String::from_utf8(bytes) {
            Ok(text) => Some(Source::new(path, text)),
            Err(error) => {
                let line = 1 + count_lines(error.as_bytes(), error.utf8_error().valid_up_to());
                sink.mistake(Mistake::about(
                    path,
                    format!("line {line} of the file is not UTF-8"),
                    "TOML is UTF-8: convert the file",
                ));
                None
            }
        }
    }

    /// As [`Self::read`], for a file in another format.
    pub(super) fn read_bytes(&self, path: &Path, sink: &Sink) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|mut file| {
            // What is looked at is the file that was opened, whatever its name leads to by now.
            let metadata = file.metadata()?;
            if metadata.is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            self.check(path, &metadata, false, sink);
            file.read_to_end(&mut bytes)
        });
        if let Err(error) = read {
            sink.mistake(Mistake::about(
                path,
                format!("cannot be read: {error}"),
                unreadable(&error),
            ));
            return None;
        }
        self.check_folder(parent(path), sink);
        if let Ok(real) = path.canonicalize() {
            self.check_folder(parent(&real), sink);
        }
        Some(bytes)
    }

    /// The files that `include` means, sorted, each once, and never the main file itself.
    pub(super) fn included(
        &self,
        main: &Path,
        patterns: &[At<&str>],
        reading: Reading<'_>,
    ) -> Vec<PathBuf> {
        let folder = parent(main);
        let mut seen: BTreeSet<PathBuf> = main.canonicalize().into_iter().collect();
        let mut files = Vec::new();
        for pattern in patterns {
            for path in self.matches(folder, pattern, reading) {
                // Two patterns, or two links, may lead to the same file.
                let real = path.canonicalize().unwrap_or_else(|_error| path.clone());
                if seen.insert(real) {
                    files.push(path);
                }
            }
        }
        files
    }

    fn matches(&self, folder: &Path, pattern: &At<&str>, reading: Reading<'_>) -> Vec<PathBuf> {
        let (text, span) = (*pattern.get_ref(), pattern.span());
        if text.is_empty() {
            reading.mistake(&span, Fault::new("this names no file", "remove it"));
            return Vec::new();
        }
        if !text.contains(['*', '?', '[']) {
            let path = folder.join(text);
            // Anything but "not there" is said when it is read.
            if path.symlink_metadata().is_err() {
                let message = format!("{} does not exist", quoted(&path));
                reading.mistake(&span, Fault::new(message, "correct the name, or remove it"));
                return Vec::new();
            }
            return vec![path];
        }
        // The folder's own name may hold characters that mean something in a pattern.
        let whole = if text.starts_with('/') {
            text.to_owned()
        } else {
            format!("{}/{text}", Pattern::escape(&folder.to_string_lossy()))
        };
        // `.name` is left out: editors and configuration management put unfinished files there.
        let options = MatchOptions {
            require_literal_leading_dot: true,
            require_literal_separator: true,
            ..MatchOptions::new()
        };
        let paths = match glob::glob_with(&whole, options) {
            Ok(paths) => paths,
            Err(error) => {
                let message = format!("this is no pattern: {}", error.msg);
                reading.mistake(
                    &span,
                    Fault::new(message, "write it as in \"identities.d/*.toml\""),
                );
                return Vec::new();
            }
        };
        self.check_pattern_folder(folder, text, reading.sink);
        let mut found = Vec::new();
        for path in paths {
            match path {
                Ok(path) => found.push(path),
                Err(error) => reading.sink.mistake(Mistake::about(
                    error.path(),
                    format!("cannot be read: {}", error.error()),
                    unreadable(error.error()),
                )),
            }
        }
        found
    }

    /// A folder that is empty today is looked at all the same: what counts is who can put a file
    /// there.
    fn check_pattern_folder(&self, folder: &Path, pattern: &str, sink: &Sink) {
        let named = folder.join(parent(Path::new(pattern)));
        if !named.to_string_lossy().contains(['*', '?', '[']) && named.is_dir() {
            self.check_folder(&named, sink);
        }
    }

    fn check_folder(&self, folder: &Path, sink: &Sink) {
        match folder.metadata() {
            Ok(metadata) => {
                let new = (metadata.dev(), metadata.ino());
                if self.seen.borrow_mut().insert(new) {
                    self.check(folder, &metadata, is_read_only(folder), sink);
                }
            }
            Err(error) => sink.mistake(Mistake::about(
                folder,
                format!("cannot be looked at: {error}"),
                unreadable(&error),
            )),
        }
    }

    fn check(&self, path: &Path, metadata: &Metadata, read_only: bool, sink: &Sink) {
        let judged = Judged {
            is_dir: metadata.is_dir(),
            mode: metadata.permissions().mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
            read_only,
        };
        for fault in judged.faults(path, self.uid) {
            sink.mistake(Mistake::about(path, fault.message, fault.fix));
        }
    }
}

/// What decides who can write a file or folder.
#[derive(Clone, Copy, Debug)]
struct Judged {
    is_dir: bool,
    mode: u32,
    uid: u32,
    gid: u32,
    read_only: bool,
}

impl Judged {
    fn faults(&self, path: &Path, our_uid: u32) -> Vec<Fault> {
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
        let sticky = self.is_dir && self.mode & 0o1000 != 0;
        if sticky || (self.is_dir && self.read_only) {
            return faults;
        }
        let group = self.mode & 0o020 != 0 && self.gid != 0;
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

fn is_read_only(folder: &Path) -> bool {
    statvfs(folder).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY))
}

fn unreadable(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "create it, or name another with --config",
        io::ErrorKind::PermissionDenied => "let the daemon's user read it (chgrp and chmod g+r)",
        io::ErrorKind::IsADirectory => "name a file",
        _ => "make it readable",
    }
}

fn count_lines(bytes: &[u8], until: usize) -> usize {
    bytes.iter().take(until).filter(|b| **b == b'\n').count()
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
    use std::fs::{self, Permissions};
    use toml::Spanned;

    fn files() -> Files {
        Files::new(geteuid().as_raw())
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn mistakes(sink: Sink) -> Vec<String> {
        let (mistakes, _) = sink.into_parts();
        mistakes.iter().map(ToString::to_string).collect()
    }

    /// What reading `dir/config.toml` finds, with these modes of the folder and the file.
    fn found(folder: u32, file: u32) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, "a = 1").unwrap();
        chmod(&path, file);
        chmod(dir.path(), folder);
        // Our own group counts as others unless it is root's.
        let sink = Sink::default();
        let source = files().read(&path, &sink).unwrap();
        assert_eq!(source.text, "a = 1");
        mistakes(sink)
    }

    #[test]
    fn a_file_that_everybody_can_write_is_a_mistake_with_its_chmod() {
        assert_eq!(found(0o700, 0o600), [""; 0]);
        assert_eq!(found(0o755, 0o644), [""; 0]);
        let of_file = found(0o755, 0o646);
        assert_eq!(of_file.len(), 1, "{of_file:?}");
        assert!(of_file[0].contains("everybody can write the file (mode 0646)"));
        assert!(of_file[0].contains("chmod o-w "), "{of_file:?}");
        assert!(of_file[0].ends_with("/config.toml"), "{of_file:?}");
    }

    #[test]
    fn a_folder_that_everybody_can_write_is_a_mistake_with_its_chmod() {
        let of_folder = found(0o757, 0o644);
        assert_eq!(of_folder.len(), 1, "{of_folder:?}");
        assert!(of_folder[0].contains("everybody can write the folder (mode 0757)"));
        assert!(of_folder[0].contains("chmod o-w "));
        // Nobody can replace another's file there.
        assert_eq!(found(0o1777, 0o644), [""; 0]);
        assert_eq!(found(0o757, 0o646).len(), 2);
    }

    #[test]
    fn who_counts_as_others() {
        let safe = Judged {
            is_dir: false,
            mode: 0o644,
            uid: 0,
            gid: 1001,
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
        // Groups: root's is root, any other is others.
        let group = faults(
            Judged {
                mode: 0o664,
                ..safe
            },
            900,
        );
        assert!(group[0].message.contains("group 1001 can write the file"));
        assert_eq!(group[0].fix, "chmod g-w '/etc/a b'");
        let roots = Judged {
            mode: 0o664,
            gid: 0,
            ..safe
        };
        assert_eq!(faults(roots, 900), []);
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
            ..folder
        };
        assert_eq!(faults(sticky, 900), []);
        assert_eq!(faults(Judged { uid: 7, ..sticky }, 900).len(), 1);
        let read_only = Judged {
            read_only: true,
            ..folder
        };
        assert_eq!(faults(read_only, 900), []);
        // A file has no sticky bit worth the name, and its mode holds on other mounts.
        let file = Judged {
            is_dir: false,
            mode: 0o1666,
            ..read_only
        };
        assert_eq!(faults(file, 900).len(), 1);
    }

    #[test]
    fn a_file_behind_a_link_is_judged_where_it_is() {
        let (links, real) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(real.path().join("real.toml"), "").unwrap();
        let link = links.path().join("config.toml");
        std::os::unix::fs::symlink(real.path().join("real.toml"), &link).unwrap();
        chmod(real.path(), 0o777);
        let sink = Sink::default();
        files().read(&link, &sink).unwrap();
        let found = mistakes(sink);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("can write the folder"));
        assert!(found[0].starts_with(&real.path().display().to_string()));
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let sink = Sink::default();
        assert!(files().read(&dir.path().join("no.toml"), &sink).is_none());
        assert!(files().read(dir.path(), &sink).is_none());
        let bad = dir.path().join("bad.toml");
        fs::write(&bad, b"a = 1\nb = \"\xff\"\n").unwrap();
        assert!(files().read(&bad, &sink).is_none());
        let found = mistakes(sink);
        assert!(
            found[0].contains("No such file") && found[0].contains("--config"),
            "{found:?}"
        );
        assert!(found[1].contains("directory"), "{found:?}");
        assert!(
            found[2].contains("line 2 of the file is not UTF-8"),
            "{found:?}"
        );
    }

    fn include(main: &Path, patterns: &[&str]) -> (Vec<PathBuf>, Vec<String>) {
        let source = Source::new(main, " ".repeat(40));
        let sink = Sink::default();
        let reading = Reading {
            source: &source,
            sink: &sink,
        };
        let patterns: Vec<_> = patterns.iter().map(|p| Spanned::new(0..1, *p)).collect();
        let paths = files().included(main, &patterns, reading);
        (paths, mistakes(sink))
    }

    #[test]
    fn includes_are_sorted_and_relative_to_the_files_folder() {
        // The folder's name has characters that mean something in a pattern.
        let outer = tempfile::tempdir().unwrap();
        let dir = outer.path().join("conf[1]");
        fs::create_dir_all(dir.join("identities.d")).unwrap();
        let main = dir.join("config.toml");
        for name in [
            "config.toml",
            "extra.toml",
            "identities.d/b.toml",
            "identities.d/a.toml",
            "identities.d/.hidden.toml",
            "identities.d/c.txt",
        ] {
            fs::write(dir.join(name), "").unwrap();
        }
        let names = |paths: &[PathBuf]| -> Vec<String> {
            let relative = |p: &PathBuf| p.strip_prefix(&dir).unwrap().display().to_string();
            paths.iter().map(relative).collect()
        };
        let (paths, mistakes) = include(&main, &["identities.d/*.toml"]);
        assert_eq!(
            names(&paths),
            ["identities.d/a.toml", "identities.d/b.toml"]
        );
        assert_eq!(mistakes, [""; 0]);
        // The main file is not its own include, and no file is read twice.
        let absolute = format!("{}/identities.d/a.toml", dir.display());
        let (paths, mistakes) = include(
            &main,
            &[
                "*.toml",
                "extra.toml",
                &absolute,
                "identities.d/a*",
                "no.d/*.toml",
            ],
        );
        assert_eq!(names(&paths), ["extra.toml", "identities.d/a.toml"]);
        assert_eq!(mistakes, [""; 0]);
    }

    #[test]
    fn a_plain_name_must_exist_and_a_pattern_must_be_one() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("config.toml");
        let (paths, mistakes) = include(&main, &["no.toml", "", "a***", "[", "none*.toml"]);
        assert!(paths.is_empty());
        assert_eq!(mistakes.len(), 4, "{mistakes:#?}");
        assert!(mistakes[0].contains("no.toml` does not exist"));
        assert!(mistakes[1].contains("names no file"));
        assert!(mistakes[2].contains("no pattern") && mistakes[3].contains("no pattern"));
    }

    #[test]
    fn a_folder_for_includes_is_judged_before_there_is_a_file_in_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("identities.d")).unwrap();
        chmod(&dir.path().join("identities.d"), 0o777);
        let (_, mistakes) = include(&dir.path().join("config.toml"), &["identities.d/*.toml"]);
        assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
        assert!(mistakes[0].contains("can write the folder"));
    }
}
