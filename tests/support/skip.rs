//! What is left out is said, and where everything must run it fails.

use std::{env, io::Write};

/// Says that a test is left out and why. libtest keeps what a passing test prints to itself, so
/// this goes to stderr past it. Where `CI=true` it fails instead.
pub fn left_out(reason: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(
        env::var("CI").as_deref() != Ok("true"),
        "{test} must not be left out, but: {reason}"
    );
    let line = format!("left out: {test}: {reason}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}
