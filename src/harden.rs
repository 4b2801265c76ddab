//! What the process asks of the kernel: to keep its memory, which holds bearer tokens, to itself,
//! and to let it have the descriptors it needs.

use nix::sys::{
    prctl,
    resource::{Resource, getrlimit, setrlimit},
};

/// Takes as many file descriptors as the system lets us: each connection is one.
pub fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files: fewer connections than configured may be served");
    }
}

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
