//! Runs the real daemon against the lab and talks to it as a client would: over its socket.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "a module of every test binary")]
#![allow(unused_imports, reason = "each test binary uses a part of it")]
#![allow(clippy::disallowed_methods, reason = "waits in real time")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code"
)]

mod client;
mod daemon;
mod skip;

pub use client::{Response, claims, crowd, get_as, get_as_member, is_root};
pub use daemon::{Daemon, SOON, Start, install};
pub use skip::left_out;

/// The part of a configuration that says where the lab is.
pub fn lab_config(world: &lab::World) -> String {
    format!(
        r#"
[workload_api]
endpoint = "unix://{}"

[entra]
tenant = "{}"
authority = "{}"
ca_file = "{}"
ca_only = true

[[listen]]
socket = "SOCKET"
mode = "0666"
"#,
        world.socket().display(),
        world.tenant(),
        world.authority(),
        world.ca_file().display(),
    )
}

/// One identity of a configuration.
pub fn identity_config(name: &str, spiffe_id: &str, client_id: &str, callers: &str) -> String {
    format!(
        r#"
[[identity]]
name = "{name}"
spiffe_id = "{spiffe_id}"
client_id = "{client_id}"
resources = ["https://vault.azure.net", "https://graph.microsoft.com"]
callers = [{callers}]
"#
    )
}

/// A caller rule for the uid that runs the test.
pub fn me() -> String {
    format!("{{ uid = {} }}", nix::unistd::geteuid())
}
