//! Group root counts as "others" like any group: the group's bits are also what an access control
//! list shows, so `root:root` with mode 0664 may well be a file that a listed user can write.
//!
//! The files of a configuration: read them, and make sure that nobody else can write them.
//!
//! Whoever can write a file decides who has which token, so every file that is read (and the CA
//! file, which decides who is believed to be Entra) must be owned by root or by the daemon's own
//! user, and writable by nobody else. The same goes for the folder that holds it, under the name
//! that was given and wherever a link leads: whoever can write there can put an older file back, or
//! take one away.
//!
//! Folders further up are left alone on purpose: in containers they often belong to users that are
//! not mapped, which would refuse sound configurations. Whoever can write there can put a folder of
//! their own in the way, which the rule above refuses, or a link to another folder of root's, which
//! it does not: they have to be as safe as `/etc` is.
//!
//! Not counted as "others": writers of a folder on a read-only file system (a Kubernetes ConfigMap
//! is mounted so, with mode 0777), and writers of a folder with the sticky bit, where the file has
//! its name in the configuration: they can neither replace nor remove what is not theirs. They can
//! add what is root's, by a link, so no link is followed there, and a folder in which a pattern
//! looks for files has to be closed to them.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use glob::{MatchOptions, Pattern};

use super::{
    diagnostics::{Fault, Mistake, Sink, Source, quoted},
    guard::{Found, Judged, open, parent, unreadable},
    raw::{At, Reading},
};

/// Reads files for one uid, and says what is wrong with a folder once.
pub(super) struct Files {
    /// The daemon's own uid.
    uid: u32,
    /// By device and inode: a folder may have several names.
    said: RefCell<BTreeSet<(u64, u64, String)>>,
}

impl Files {
    pub(super) fn new(uid: u32) -> Self {
        Self {
            uid,
            said: RefCell::default(),
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
        match self.read_opened(path, sink) {
            Ok(bytes) => Some(bytes),
            Err(fault) => {
                sink.mistake(Mistake::about(path, fault.message, fault.fix));
                None
            }
        }
    }

    fn read_opened(&self, path: &Path, sink: &Sink) -> Result<Vec<u8>, Fault> {
        let (mut file, folders) = open(path)?;
        // What is looked at is the file that was opened, whatever its name leads to by now.
        let metadata = file.metadata().map_err(|error| unreadable(&error))?;
        for fault in Judged::file(&metadata).faults(path, self.uid) {
            sink.mistake(Mistake::about(path, fault.message, fault.fix));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(|error| unreadable(&error))?;
        for folder in folders {
            self.check_folder(&folder, Found::ByName, sink);
        }
        Ok(bytes)
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
        if text.contains("**") {
            // It would search folders that nobody looked at.
            let fix = "name the folders, one `*` each: \"teams/*/*.toml\"";
            reading.mistake(
                &span,
                Fault::new("`**` is more than can be vouched for", fix),
            );
            return Vec::new();
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
        let depth = self.check_pattern_folder(folder, text, reading.sink);
        let mut found = Vec::new();
        for path in paths {
            match path {
                Ok(path) => {
                    // Each folder that was looked into on the way.
                    for folder in parent(&path).ancestors().take(depth) {
                        self.check_folder(folder, Found::ByPattern, reading.sink);
                    }
                    found.push(path);
                }
                Err(error) => {
                    let fault = unreadable(error.error());
                    let mistake = Mistake::about(error.path(), fault.message, fault.fix);
                    reading.sink.mistake(mistake);
                }
            }
        }
        found
    }

    /// Looks at the folder that a pattern starts from. One that is empty today is looked at all the
    /// same: what counts is who can put a file there. Returns how many folders of a match, from the
    /// file's own upwards, were searched.
    fn check_pattern_folder(&self, folder: &Path, pattern: &str, sink: &Sink) -> usize {
        let (mut start, mut depth) = (folder.to_owned(), 0);
        for part in parent(Path::new(pattern)).components() {
            let name = part.as_os_str().to_string_lossy();
            if depth > 0 || name.contains(['*', '?', '[']) {
                depth += 1;
            } else if part != Component::CurDir {
                start.push(part);
            }
        }
        if start.is_dir() {
            self.check_folder(&start, Found::ByPattern, sink);
        }
        depth
    }

    fn check_folder(&self, folder: &Path, found: Found, sink: &Sink) {
        let metadata = match folder.metadata() {
            Ok(metadata) => metadata,
            Err(error) => {
                let message = format!("cannot be looked at: {error}");
                sink.mistake(Mistake::about(folder, message, unreadable(&error).fix));
                return;
            }
        };
        for fault in Judged::folder(folder, &metadata, found).faults(folder, self.uid) {
            let new = (metadata.dev(), metadata.ino(), fault.message.clone());
            if self.said.borrow_mut().insert(new) {
                sink.mistake(Mistake::about(folder, fault.message, fault.fix));
            }
        }
    }
}

fn count_lines(bytes: &[u8], until: usize) -> usize {
    bytes.iter().take(until).filter(|b| **b == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::geteuid;
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt, symlink},
        sync::mpsc,
        thread,
        time::Duration,
    };
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

    /// What reading `path` finds.
    fn read(path: &Path) -> (bool, Vec<String>) {
        let sink = Sink::default();
        let read = files().read(path, &sink).is_some();
        (read, mistakes(sink))
    }

    #[test]
    fn where_others_can_add_names_no_second_name_is_followed() {
        let (old, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (old, shared) = (old.path().join("old.toml"), shared.path());
        fs::write(&old, "").unwrap();
        let (linked, named, own) = (
            shared.join("linked.toml"),
            shared.join("named.toml"),
            shared.join("own.toml"),
        );
        symlink(&old, &linked).unwrap();
        fs::hard_link(&old, &named).unwrap();
        fs::write(&own, "").unwrap();
        for path in [&linked, &named, &own] {
            assert_eq!(read(path), (true, vec![]), "nobody else can write here");
        }
        chmod(shared, 0o1777);
        assert_eq!(read(&own), (true, vec![]));
        for (path, part) in [(&linked, "is a link"), (&named, "a hard link")] {
            let (read, found) = read(path);
            assert!(!read && found.len() == 1, "{found:?}");
            assert!(found[0].contains(part), "{found:?}");
        }
        // A link of ours that leads to another one is followed as far as that.
        let ours = old.with_file_name("ours.toml");
        symlink(&linked, &ours).unwrap();
        let (read, found) = read(&ours);
        assert!(!read && found[0].contains("is a link"), "{found:?}");
    }

    #[test]
    fn links_are_followed_the_way_a_configmap_has_them() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("..2026")).unwrap();
        fs::write(dir.path().join("..2026/config.toml"), "").unwrap();
        symlink("..2026", dir.path().join("..data")).unwrap();
        symlink("..data/config.toml", dir.path().join("config.toml")).unwrap();
        assert_eq!(read(&dir.path().join("config.toml")), (true, vec![]));
        symlink("round.toml", dir.path().join("round.toml")).unwrap();
        let (read, found) = read(&dir.path().join("round.toml"));
        assert!(!read && found[0].contains("symbolic link"), "{found:?}");
    }

    #[test]
    fn a_pipe_is_refused_without_waiting_for_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe.toml");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || sender.send(read(&path)));
        let (read, found) = receiver
            .recv_timeout(Duration::from_secs(20))
            .expect("an answer without a writer");
        assert!(!read && found[0].contains("it is a pipe"), "{found:?}");
        let (read, found) = self::read(Path::new("/dev/null"));
        assert!(!read && found[0].contains("it is a device"), "{found:?}");
    }

    #[test]
    fn a_file_behind_a_link_is_judged_where_it_is() {
        let (links, real) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(real.path().join("real.toml"), "").unwrap();
        let link = links.path().join("config.toml");
        symlink(real.path().join("real.toml"), &link).unwrap();
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
        let (paths, mistakes) = include(&main, &["no.toml", "", "a**/b.toml", "[", "none*.toml"]);
        assert!(paths.is_empty());
        assert_eq!(mistakes.len(), 4, "{mistakes:#?}");
        assert!(mistakes[0].contains("no.toml` does not exist"));
        assert!(mistakes[1].contains("names no file"));
        assert!(mistakes[2].contains("vouched for") && mistakes[3].contains("no pattern"));
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

    #[test]
    fn every_folder_that_a_pattern_searches_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let teams = dir.path().join("teams");
        fs::create_dir_all(teams.join("a/more")).unwrap();
        fs::write(teams.join("a/more/x.toml"), "").unwrap();
        let main = dir.path().join("config.toml");
        let refused = |patterns: &[&str]| {
            let (_, mistakes) = include(&main, patterns);
            mistakes
        };
        let patterns = ["teams/*/more/*.toml", "./teams/a/*/x.toml"];
        assert_eq!(refused(&patterns), [""; 0]);
        for folder in ["teams/a/more", "teams/a", "teams"] {
            chmod(&dir.path().join(folder), 0o1777);
            let mistakes = refused(&patterns[..1]);
            assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
            let named = format!("{}: ", dir.path().join(folder).display());
            assert!(mistakes[0].starts_with(&named), "{mistakes:#?}");
            chmod(&dir.path().join(folder), 0o755);
        }
        // Above the first wildcard it is as with any folder further up.
        chmod(&teams, 0o1777);
        assert_eq!(refused(&patterns[1..]), [""; 0]);
        // Found both ways, a folder is named once.
        chmod(&teams, 0o755);
        chmod(dir.path(), 0o1777);
        fs::write(&main, "").unwrap();
        let (files, sink) = (files(), Sink::default());
        files.read(&main, &sink).unwrap();
        files.read(&main, &sink).unwrap();
        files.check_folder(dir.path(), Found::ByPattern, &sink);
        files.check_folder(dir.path(), Found::ByPattern, &sink);
        assert_eq!(mistakes(sink).len(), 1);
    }
}
