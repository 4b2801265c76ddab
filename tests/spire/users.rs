//! Users for the tests: mostly bare numbers, which need no entry in the user database.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::unistd::{Uid, User};

use crate::process::{both, command, output, wait_for};

/// A uid that nobody has. The same `number` is the same uid in all tests: each has a daemon and
/// an agent of its own, so they do not get into each other's way.
pub(crate) fn unused_uid(number: u32) -> u32 {
    let uid = FIRST_UID + number;
    let known = User::from_uid(Uid::from_raw(uid)).unwrap();
    assert!(
        known.is_none(),
        "the tests use uid {uid}, but somebody has it: {known:?}"
    );
    uid
}

/// A user with a name, removed when dropped.
pub(crate) struct NamedUser {
    pub(crate) name: String,
    pub(crate) uid: u32,
}

impl NamedUser {
    /// Makes a system user whose name no other test has, in this run or another.
    pub(crate) fn create(test: &str) -> Self {
        remove_left_behind();
        let name = format!("{PREFIX}{test}-{}", std::process::id());
        // One program at a time may change the user database.
        wait_for("useradd", Duration::from_secs(30), || {
            let mut useradd = command("useradd");
            useradd.args(["--system", "--no-create-home"]).arg(&name);
            let done = output(useradd);
            if done.status.success() {
                Ok(())
            } else {
                Err(both(&done))
            }
        });
        let uid = User::from_name(&name).unwrap().unwrap().uid.as_raw();
        Self { name, uid }
    }
}

impl Drop for NamedUser {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Removes the users of test runs that were killed.
fn remove_left_behind() {
    let known = fs::read_to_string("/etc/passwd").unwrap();
    let ours = known.lines().filter_map(|line| line.split(':').next());
    for name in ours.filter(|name| name.starts_with(PREFIX)) {
        let runner = name.rsplit('-').next().unwrap_or_default();
        if !Path::new("/proc").join(runner).exists() {
            remove(name);
        }
    }
}

fn remove(name: &str) {
    for _ in 0..100 {
        let mut userdel = command("userdel");
        userdel.arg(name);
        let done = output(userdel);
        // 6: there is no such user, somebody else was faster.
        if done.status.success() || done.status.code() == Some(6) {
            return;
        }
        eprintln!("removing user {name}: {}", both(&done));
        thread::sleep(Duration::from_millis(100));
    }
}

/// How the names of the tests' users begin; the test's name and the runner's pid follow.
const PREFIX: &str = "spiffe-test-";

/// Between the ranges that systemd gives out for homes and for dynamic users.
const FIRST_UID: u32 = 60_700;
