//! What these tests need that `cargo test` does not bring along, and what happens without it: the
//! test says what it left out and returns, except where it must not be left out.

use std::env;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Something outside this repository, or built by one of its scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// What every test starts programs with.
    Tools,
    /// Being root: to start programs as other users.
    Root,
    /// spire-server, spire-agent and oidc-discovery-provider.
    Spire,
    /// grpcurl and gospiffe-fetch.
    Interop,
    /// useradd and userdel.
    Users,
}

/// Whether a test that needs these parts can run. Where `CI=true` or
/// `SPIFFE_ENTRA_REQUIRE_SPIRE=1`, a missing part fails the test instead.
pub(crate) fn have(test: &str, parts: &[Part]) -> bool {
    let missing: Vec<String> = parts.iter().flat_map(|part| part.missing()).collect();
    if missing.is_empty() {
        return true;
    }
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|set| set == value);
    let missing = missing.join("; ");
    assert!(
        !is("CI", "true") && !is("SPIFFE_ENTRA_REQUIRE_SPIRE", "1"),
        "{test} must not be left out, but: {missing}"
    );
    // Past libtest, which keeps what a passing test prints to itself.
    let line = format!("left out: {test}: {missing}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    false
}

/// One of SPIRE's programs.
pub(crate) fn spire(name: &str) -> PathBuf {
    built("SPIRE_BIN", "spire").join(name)
}

/// One of the programs of `tests/interop/build.sh`.
pub(crate) fn interop(name: &str) -> PathBuf {
    built("INTEROP_BIN", "interop").join(name)
}

impl Part {
    /// What of this part is not there, each with how to get it.
    fn missing(self) -> Vec<String> {
        match self {
            Self::Tools => absent_tools(&["setpriv", "curl"]),
            Self::Root if nix::unistd::geteuid().is_root() => Vec::new(),
            Self::Root => vec!["not root, and it starts programs as other users".to_owned()],
            Self::Users => absent_tools(&["useradd", "userdel"]),
            Self::Spire => {
                let names = ["spire-server", "spire-agent", "oidc-discovery-provider"];
                absent_programs(&spire(""), &names, "tests/spire/build.sh")
            }
            Self::Interop => {
                let names = ["grpcurl", "gospiffe-fetch"];
                absent_programs(&interop(""), &names, "tests/interop/build.sh")
            }
        }
    }
}

fn absent_tools(names: &[&str]) -> Vec<String> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Administrators' tools are not on everybody's PATH.
    let folders: Vec<PathBuf> = env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .collect();
    let is_there = |name: &&&str| folders.iter().any(|folder| folder.join(name).is_file());
    names
        .iter()
        .filter(|name| !is_there(name))
        .map(|name| format!("no {name}"))
        .collect()
}

fn absent_programs(folder: &Path, names: &[&str], script: &str) -> Vec<String> {
    let absent: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| !folder.join(name).is_file())
        .collect();
    if absent.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "no {} in {} (run {script})",
        absent.join(", "),
        folder.display()
    )]
}

fn built(variable: &str, folder: &str) -> PathBuf {
    let default = || {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("target")
            .join(folder)
            .join("bin")
    };
    env::var_os(variable).map_or_else(default, PathBuf::from)
}
