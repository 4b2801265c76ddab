//! What `run` does to its own process. A file of its own, so that it happens to no other test.

use nix::sys::{
    prctl,
    resource::{Resource, getrlimit},
};

#[test]
fn no_dump_is_written_and_nobody_looks_in() {
    assert!(
        prctl::get_dumpable().unwrap(),
        "the test starts from a plain process"
    );
    spiffe_entra::harden::process();
    assert!(!prctl::get_dumpable().unwrap());
    assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
}
