//! Users and groups: the system's database behind a seam, asked once for each name.

use std::{cell::RefCell, collections::HashMap, ffi::CString, fs, hash::Hash, io, path::Path};

use nix::{
    errno::Errno,
    unistd::{Gid, Group, Uid, User, getgrouplist},
};

use super::diagnostics::Mistake;

/// A user as the database has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The name.
    pub name: String,
    /// The uid.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
}

/// Where users and groups are looked up. Does no caching: its caller does.
pub trait Accounts {
    /// The user of a name.
    fn user(&self, name: &str) -> io::Result<Option<Account>>;
    /// The user of a uid.
    fn user_of(&self, uid: u32) -> io::Result<Option<Account>>;
    /// The gid of a group's name.
    fn group(&self, name: &str) -> io::Result<Option<u32>>;
    /// All groups of a user, the primary one included.
    fn groups_of(&self, account: &Account) -> io::Result<Vec<u32>>;
}

/// The system's own, through NSS.
#[derive(Clone, Copy, Debug)]
pub struct SystemAccounts;

impl Accounts for SystemAccounts {
    fn user(&self, name: &str) -> io::Result<Option<Account>> {
        found(User::from_name(name).map(|user| user.map(account)))
    }

    fn user_of(&self, uid: u32) -> io::Result<Option<Account>> {
        found(User::from_uid(Uid::from_raw(uid)).map(|user| user.map(account)))
    }

    fn group(&self, name: &str) -> io::Result<Option<u32>> {
        found(Group::from_name(name).map(|group| group.map(|group| group.gid.as_raw())))
    }

    fn groups_of(&self, account: &Account) -> io::Result<Vec<u32>> {
        let name = CString::new(account.name.as_str())?;
        let groups = getgrouplist(&name, Gid::from_raw(account.gid))?;
        Ok(groups.into_iter().map(Gid::as_raw).collect())
    }
}

fn account(user: User) -> Account {
    Account {
        name: user.name,
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
    }
}

/// getpwnam(3) and its kin have several ways to say "no such entry", a database that does not
/// exist (an image without `/etc/passwd`) among them.
fn found<T>(result: nix::Result<Option<T>>) -> io::Result<Option<T>> {
    match result {
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => Ok(None),
        other => Ok(other?),
    }
}

/// Answers each question once, however many identities ask it.
pub(super) struct Directory<'a> {
    accounts: &'a dyn Accounts,
    users: Memo<String, Option<Account>>,
    groups: Memo<String, Option<u32>>,
    groups_by_uid: Memo<u32, Option<Vec<u32>>>,
    pub(super) overflow: OverflowIds,
}

impl<'a> Directory<'a> {
    pub(super) fn new(accounts: &'a dyn Accounts, overflow: OverflowIds) -> Self {
        Self {
            accounts,
            users: Memo::default(),
            groups: Memo::default(),
            groups_by_uid: Memo::default(),
            overflow,
        }
    }

    pub(super) fn user(&self, name: &str) -> Result<Option<Account>, String> {
        self.users
            .get(name.to_owned(), |name| self.accounts.user(name))
    }

    pub(super) fn group(&self, name: &str) -> Result<Option<u32>, String> {
        self.groups
            .get(name.to_owned(), |name| self.accounts.group(name))
    }

    /// The groups of a uid, or `None` for a uid that the database does not know.
    pub(super) fn groups_of(&self, uid: u32) -> Result<Option<Vec<u32>>, String> {
        self.groups_by_uid
            .get(uid, |uid| match self.accounts.user_of(*uid)? {
                Some(account) => self.accounts.groups_of(&account).map(Some),
                None => Ok(None),
            })
    }
}

/// Remembers answers, failures too: a directory server that is down is not asked ten thousand
/// times.
struct Memo<K, V>(RefCell<HashMap<K, Result<V, String>>>);

impl<K, V> Default for Memo<K, V> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<K: Eq + Hash, V: Clone> Memo<K, V> {
    fn get(&self, key: K, ask: impl FnOnce(&K) -> io::Result<V>) -> Result<V, String> {
        if let Some(known) = self.0.borrow().get(&key) {
            return known.clone();
        }
        let answer = ask(&key).map_err(|error| error.to_string());
        self.0.borrow_mut().insert(key, answer.clone());
        answer
    }
}

/// The ids that stand for everybody who is not mapped into this user namespace: the kernel's own
/// setting, where it can be read, and its default in any case. File systems and container runtimes
/// use the default whatever the setting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OverflowIds {
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

impl OverflowIds {
    /// This kernel's, as far as `/proc` shows them.
    pub(super) fn of_kernel() -> Self {
        Self::in_folder(Path::new("/proc/sys/kernel"))
    }

    fn in_folder(folder: &Path) -> Self {
        let read = |name| {
            fs::read_to_string(folder.join(name))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        Self {
            uid: read("overflowuid"),
            gid: read("overflowgid"),
        }
    }

    pub(super) fn has_uid(&self, uid: u32) -> bool {
        uid == Self::DEFAULT || self.uid == Some(uid)
    }

    pub(super) fn has_gid(&self, gid: u32) -> bool {
        gid == Self::DEFAULT || self.gid == Some(gid)
    }

    /// What to say where only the default is known.
    pub(super) fn warning(&self) -> Option<Mistake> {
        if self.uid.is_some() && self.gid.is_some() {
            return None;
        }
        Some(Mistake::general(
            format!(
                "/proc/sys/kernel/overflowuid or overflowgid cannot be read, so only {} is refused \
                 as the id that all unmapped users share: on a machine with another setting, a \
                 rule for that id would let all of them in",
                Self::DEFAULT
            ),
            "show /proc/sys to the daemon (ProcSubset=all in a systemd unit)",
        ))
    }

    /// The kernel's default for both.
    pub(super) const DEFAULT: u32 = 65534;
}

/// A user database for tests, which counts how often it is asked.
#[cfg(test)]
pub(super) mod fake {
    use super::*;
    use std::{cell::Cell, rc::Rc};

    /// `name:uid:gid:supplementary,…` and `name:gid`.
    #[derive(Clone, Default)]
    pub(in crate::config) struct FakeAccounts {
        pub(in crate::config) users: Vec<(Account, Vec<u32>)>,
        pub(in crate::config) groups: Vec<(String, u32)>,
        pub(in crate::config) questions: Rc<Cell<usize>>,
        pub(in crate::config) broken: bool,
    }

    impl FakeAccounts {
        pub(in crate::config) fn usual() -> Self {
            let user = |name: &str, uid, gid, groups: &[u32]| {
                let account = Account {
                    name: name.into(),
                    uid,
                    gid,
                };
                (account, groups.to_vec())
            };
            Self {
                users: vec![
                    user("root", 0, 0, &[]),
                    user("payments", 1001, 1001, &[2000]),
                    user("orders", 1002, 1002, &[]),
                    user("daemon", 900, 900, &[]),
                    user("nobody", 65534, 65534, &[]),
                ],
                groups: vec![
                    ("root".into(), 0),
                    ("payments".into(), 1001),
                    ("tokens".into(), 2000),
                    ("wheel".into(), 10),
                    ("nogroup".into(), 65534),
                ],
                ..Self::default()
            }
        }

        fn asked(&self) -> io::Result<()> {
            self.questions.set(self.questions.get() + 1);
            if self.broken {
                return Err(io::Error::other("the directory server is down"));
            }
            Ok(())
        }
    }

    impl Accounts for FakeAccounts {
        fn user(&self, name: &str) -> io::Result<Option<Account>> {
            self.asked()?;
            let mut users = self.users.iter();
            Ok(users.find(|u| u.0.name == name).map(|u| u.0.clone()))
        }

        fn user_of(&self, uid: u32) -> io::Result<Option<Account>> {
            self.asked()?;
            Ok(self
                .users
                .iter()
                .find(|u| u.0.uid == uid)
                .map(|u| u.0.clone()))
        }

        fn group(&self, name: &str) -> io::Result<Option<u32>> {
            self.asked()?;
            Ok(self.groups.iter().find(|g| g.0 == name).map(|g| g.1))
        }

        fn groups_of(&self, account: &Account) -> io::Result<Vec<u32>> {
            self.asked()?;
            let user = self.users.iter().find(|u| u.0 == *account);
            let supplementary = user.map(|u| u.1.clone()).unwrap_or_default();
            Ok([vec![account.gid], supplementary].concat())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{fake::FakeAccounts, *};

    #[test]
    fn the_systems_database_knows_root_and_not_everybody() {
        let root = SystemAccounts.user("root").unwrap().unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(SystemAccounts.user_of(0).unwrap(), Some(root.clone()));
        assert_eq!(SystemAccounts.group("root").unwrap(), Some(0));
        assert!(SystemAccounts.groups_of(&root).unwrap().contains(&0));
        assert_eq!(SystemAccounts.user("no-such-user-here").unwrap(), None);
        assert_eq!(SystemAccounts.group("no-such-group-here").unwrap(), None);
    }

    #[test]
    fn each_question_is_asked_once() {
        let fake = FakeAccounts::usual();
        let directory = Directory::new(&fake, OverflowIds::of_kernel());
        for _ in 0..3 {
            assert_eq!(directory.user("payments").unwrap().unwrap().uid, 1001);
            assert_eq!(directory.user("who").unwrap(), None);
            assert_eq!(directory.group("wheel").unwrap(), Some(10));
            assert_eq!(directory.groups_of(1001).unwrap(), Some(vec![1001, 2000]));
            assert_eq!(directory.groups_of(7).unwrap(), None);
        }
        // Groups of a known uid take two questions.
        assert_eq!(fake.questions.get(), 3 + 2 + 1);
    }

    #[test]
    fn a_database_that_is_down_is_asked_once_too() {
        let fake = FakeAccounts {
            broken: true,
            ..FakeAccounts::usual()
        };
        let directory = Directory::new(&fake, OverflowIds::of_kernel());
        for _ in 0..3 {
            assert!(directory.user("payments").unwrap_err().contains("down"));
        }
        assert_eq!(fake.questions.get(), 1);
    }

    #[test]
    fn the_overflow_ids_are_the_kernels() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| fs::write(dir.path().join(name), "77\n").unwrap();
        let ids = || OverflowIds::in_folder(dir.path());
        let known = || {
            let ids = ids();
            [77, 65534, 0].map(|id| (ids.has_uid(id), ids.has_gid(id)))
        };
        // Out of sight, the default counts, and that is said.
        assert_eq!(known(), [(false, false), (true, true), (false, false)]);
        assert!(ids().warning().unwrap().message.contains("cannot be read"));
        write("overflowuid");
        assert_eq!(known(), [(true, false), (true, true), (false, false)]);
        assert!(ids().warning().is_some());
        write("overflowgid");
        assert_eq!(known(), [(true, true), (true, true), (false, false)]);
        assert_eq!(ids().warning(), None);
    }
}
