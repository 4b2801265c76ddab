//! Keeps the direction of the data flow (src/lib.rs): a module sees only the stages it calls and the
//! base. Reads the sources as text, without their comments and tests.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

/// What everybody may use, among themselves too.
const BASE: [&str; 7] = [
    "harden",
    "id",
    "metrics",
    "report",
    "secret",
    "telemetry",
    "time",
];

/// The stages, and what each may use beside the base and itself. From the workload to the socket.
const STAGES: [(&str, &[&str]); 12] = [
    ("caller", &[]),
    ("assertion", &[]),
    ("exchange", &["assertion"]),
    ("config", &["caller", "assertion", "exchange"]),
    ("tokens", &["assertion", "exchange", "config"]),
    ("policy", &["caller", "config"]),
    (
        "server",
        &[
            "caller",
            "assertion",
            "exchange",
            "config",
            "tokens",
            "policy",
        ],
    ),
    (
        "app",
        &[
            "caller",
            "assertion",
            "exchange",
            "config",
            "tokens",
            "policy",
            "server",
        ],
    ),
    ("cli", &[]),
    // The types of answers are those of the server that gives them.
    ("client", &["server"]),
    ("commands", &["app", "config", "server", "cli", "client"]),
    // The library's own root only lists its modules.
    ("lib", &[]),
];

#[test]
fn no_module_looks_up_the_stream() {
    let mut mistakes = Vec::new();
    for file in sources(Path::new(SOURCES)) {
        if file == Path::new(SOURCES).join("main.rs") || file.ends_with("tests.rs") {
            continue;
        }
        let (module, depth) = place(&file);
        let text = without_comments_and_tests(&fs::read_to_string(&file).unwrap());
        mistakes.extend(
            upward(&module, depth, &text)
                .into_iter()
                .map(|used| format!("{}: `{module}` may not use `{used}`", file.display())),
        );
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

#[test]
fn every_module_has_its_layer() {
    let lib = include_str!("../src/lib.rs");
    let declared: BTreeSet<&str> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    let known: BTreeSet<&str> = BASE
        .into_iter()
        .chain(STAGES.map(|(name, _)| name))
        .collect();
    let strangers: Vec<_> = declared.difference(&known).collect();
    assert!(strangers.is_empty(), "not in a layer: {strangers:?}");
}

#[test]
fn what_is_wrong_is_found() {
    let text = "use crate::{\n    id::Scope,\n    tokens::{Tokens, x::Y}, server,\n};\n\
                fn f() { crate::app::run(); $crate::x!() } // crate::cli::Cli\n\
                #[cfg(test)]\nmod tests { use crate::policy::Policy; }";
    let text = without_comments_and_tests(text);
    assert_eq!(upward("policy", 1, &text), ["app", "server", "tokens"]);
    assert_eq!(upward("app", 1, &text), ["app"; 0]);
    // Out of the module by way of `super`, in a top-level file and in one below.
    assert_eq!(upward("policy", 1, "use super::server::X;\n"), ["server"]);
    assert_eq!(
        upward("policy", 2, "use super::super::server::X;\n"),
        ["server"]
    );
    assert_eq!(upward("policy", 2, "use super::index::X;\n"), [""; 0]);
}

/// The modules that `text`, a file of `module`, uses and may not.
fn upward(module: &str, depth: usize, text: &str) -> Vec<String> {
    let allowed: &[&str] = BTreeMap::from(STAGES)
        .get(module)
        .copied()
        .unwrap_or_default();
    let mut used = used_after("crate::", text);
    // `super` once for each folder, at the outermost level of a file, is the crate's root.
    for line in text.lines().filter(|line| line.starts_with("use super::")) {
        used.extend(used_after(&"super::".repeat(depth), line));
    }
    used.into_iter()
        .filter(|name| {
            name != module && !BASE.contains(&name.as_str()) && !allowed.contains(&name.as_str())
        })
        .collect()
}

/// The first names after each `prefix`: `prefix::{a::x, b}` has two.
fn used_after(prefix: &str, text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in text.match_indices(prefix) {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '$' | ':')) {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            names.extend(group_heads(group));
        } else {
            names.insert(head(rest));
        }
    }
    names.remove("");
    names.remove("super");
    names
}

/// The first name of each member of a `{…}` group whose opening brace is gone.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = vec![head(group)];
    let mut depth = 1;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => heads.push(head(&group[at + 1..])),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

fn head(path: &str) -> String {
    path.trim_start()
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

fn without_comments_and_tests(text: &str) -> String {
    let code = text
        .split("#[cfg(test)]\nmod tests")
        .next()
        .unwrap_or_default();
    code.lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The top-level module of a file, and how many `super` it takes to leave it.
fn place(file: &Path) -> (String, usize) {
    let inside: Vec<String> = file
        .strip_prefix(SOURCES)
        .unwrap()
        .iter()
        .map(|part| part.to_string_lossy().trim_end_matches(".rs").to_owned())
        .collect();
    (inside[0].clone(), inside.len())
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}
