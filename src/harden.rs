//! Keeps the process' memory, which holds bearer tokens, from leaving it by way of the kernel.

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

/// Forbids core dumps, and reading this process' memory (ptrace, `/proc/PID/mem`) to all but root.
///
/// Both are defence in depth: a failure is logged, and the daemon serves on.
pub fn process() {
    // The one that counts: a core pattern that is a pipe (systemd-coredump) ignores the limit.
    if let Err(error) = prctl::set_dumpable(false) {
        tracing::error!(%error, "cannot clear PR_SET_DUMPABLE: processes of the same user can read our memory");
    }
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        tracing::error!(%error, "cannot set RLIMIT_CORE to 0: a crash may write a core file");
    }
}
