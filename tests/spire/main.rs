//! Tests with a real SPIRE: what the lab's stand-in for it cannot prove.
//!
//! They need root, SPIRE's programs (`tests/spire/build.sh`) and a few others
//! (`tests/interop/build.sh`). Without them each test says so and passes; see [`parts`].

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests, with real processes in real time"
)]

mod daemon;
mod harness;
mod mesh;
mod parts;
mod process;
#[path = "../support/mod.rs"]
mod support;
mod svid;
mod tls;
mod tokens;
mod users;
