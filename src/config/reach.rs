//! Whether those whom policy allows can open a socket.
//!
//! connect(2) needs write permission on the socket. A rule is kept out where nobody whom it names
//! can have it, as far as can be known here:
//!
//! * uid 0 passes any mode, and so does a caller with the capability to; only root counts here.
//! * For a user, the socket's owner, the groups that the user database gives the user, and the
//!   groups that the rule itself demands decide, as in the kernel: the owner's bits for the owner,
//!   else the group's for a member, else the others'.
//! * A uid that the database does not know lives in another container, whose groups are not known
//!   here: what would be a mistake is a warning.
//! * A rule for a group promises the right to every member. Membership alone lets a process in
//!   where the socket belongs to that group and the group may write, or where others may (that a
//!   member happens to be the socket's owner helps that one only).
//! * `"any"` is whoever can open the socket, so nobody is kept out.

use super::{
    CallerRule, Listener, accounts::Directory, callers, diagnostics::Fault, identity, raw::Reading,
};

/// Whether those whom policy allows can open a socket.
pub(super) struct Reach<'a> {
    pub(super) listeners: &'a [Listener],
    /// The uid and gid that a socket has where it is not given others.
    pub(super) us: (u32, u32),
    pub(super) directory: &'a Directory<'a>,
}

impl Reach<'_> {
    pub(super) fn identity(&self, read: &mut identity::Read<'_>) {
        let Some(name) = read.name.clone() else {
            return;
        };
        let serving: Vec<&Listener> = self
            .listeners
            .iter()
            .filter(|l| {
                l.identities
                    .as_ref()
                    .is_none_or(|names| names.contains(&name))
            })
            .collect();
        if serving.is_empty() {
            let fault = Fault::new(
                format!("no [[listen]] serves `{name}`"),
                "add it to the `identities` of one",
            );
            read.mistakes
                .push(read.source.mistake(&read.name_span, fault));
            return;
        }
        for rule in &read.rules {
            match self.verdict(&serving, rule) {
                Verdict::Open => {}
                Verdict::Doubt(fault) => {
                    read.warnings.push(read.source.mistake(&rule.span(), fault));
                }
                Verdict::Closed(fault) => {
                    read.mistakes.push(read.source.mistake(&rule.span(), fault));
                }
            }
        }
    }

    pub(super) fn admins(&self, rules: &[callers::At], reading: Reading<'_>) {
        let all: Vec<&Listener> = self.listeners.iter().collect();
        for rule in rules {
            if rule.get_ref().is_any() {
                let message = "whoever can open a socket may see status and refresh";
                reading.warn(&rule.span(), message.into(), "name users or groups");
                continue;
            }
            match self.verdict(&all, rule) {
                Verdict::Open => {}
                Verdict::Doubt(fault) => reading.warn(&rule.span(), fault.message, &fault.fix),
                Verdict::Closed(fault) => reading.mistake(&rule.span(), fault),
            }
        }
    }

    fn verdict(&self, sockets: &[&Listener], rule: &callers::At) -> Verdict {
        let rule = rule.get_ref();
        if rule.is_any() {
            let open = |l: &&&Listener| l.mode & OTHER_WRITE != 0;
            return match sockets.iter().find(open) {
                Some(listener) => Verdict::Doubt(Fault::new(
                    format!(
                        "every local user may ask: everybody can open {}",
                        described(listener, self.us)
                    ),
                    "name users or groups, or close the socket with mode = \"0660\"",
                )),
                None => Verdict::Open,
            };
        }
        let mut unknown = None;
        for listener in sockets {
            match access(listener, rule, self.us, self.directory) {
                Ok(Access::Open) => return Verdict::Open,
                Ok(Access::Closed) => {}
                Ok(Access::Unknown) => {
                    unknown = Some("its groups are not known here".to_owned());
                }
                Err(error) => {
                    unknown = Some(format!("its groups cannot be looked up ({error})"));
                }
            }
        }
        let sockets: Vec<String> = sockets.iter().map(|l| described(l, self.us)).collect();
        let sockets = sockets.join(", ");
        let fix = "set `group` in [[listen]] to a group of theirs, or mode = \"0666\" (policy \
                   decides all the same who has which token)";
        match unknown {
            Some(why) => Verdict::Doubt(Fault::new(
                format!(
                    "perhaps `{}` cannot open a socket for this ({why}): {sockets}",
                    rule.written
                ),
                "make sure that its processes have the socket's group, and say so by adding \
                 `gid` to the entry",
            )),
            None => Verdict::Closed(Fault::new(
                format!(
                    "`{}` is allowed to ask, and the mode of the socket keeps it out: {sockets}",
                    rule.written
                ),
                if rule.uid.is_some() {
                    format!("{fix}; if its processes are given another group, add that as `gid`")
                } else {
                    fix.to_owned()
                },
            )),
        }
    }
}

enum Verdict {
    Open,
    Doubt(Fault),
    Closed(Fault),
}

/// How a rule fares at a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// Somebody whom the rule names can connect.
    Open,
    /// Nobody can.
    Closed,
    /// That depends on groups that are not known here.
    Unknown,
}

/// Whether somebody whom the rule names can connect; `us` is the uid and gid that the socket has
/// where it is not given others.
fn access(
    listener: &Listener,
    rule: &CallerRule,
    us: (u32, u32),
    directory: &Directory<'_>,
) -> Result<Access, String> {
    let owner = listener.owner.unwrap_or(us.0);
    let group = listener.group.unwrap_or(us.1);
    let may = |bit: u32| {
        if listener.mode & bit == 0 {
            Access::Closed
        } else {
            Access::Open
        }
    };
    let in_group = rule.gids.contains(&group);
    let Some(uid) = rule.uid else {
        if rule.gids.is_empty() {
            return Ok(Access::Open);
        }
        return Ok(may(if in_group { GROUP_WRITE } else { OTHER_WRITE }));
    };
    if uid == 0 {
        return Ok(Access::Open);
    }
    if uid == owner {
        return Ok(may(OWNER_WRITE));
    }
    if in_group {
        return Ok(may(GROUP_WRITE));
    }
    Ok(match directory.groups_of(uid)? {
        Some(groups) if groups.contains(&group) => may(GROUP_WRITE),
        Some(_) => may(OTHER_WRITE),
        None if listener.mode & (GROUP_WRITE | OTHER_WRITE) == 0 => Access::Closed,
        None if listener.mode & OTHER_WRITE != 0 => Access::Open,
        None => Access::Unknown,
    })
}

/// The socket in a sentence: `/run/x.sock (mode 0660, owner 0, group 2000)`.
fn described(listener: &Listener, us: (u32, u32)) -> String {
    format!(
        "{} (mode {:04o}, uid {}, gid {})",
        listener.socket.display(),
        listener.mode,
        listener.owner.unwrap_or(us.0),
        listener.group.unwrap_or(us.1)
    )
}

const OTHER_WRITE: u32 = 0o002;
const GROUP_WRITE: u32 = 0o020;
const OWNER_WRITE: u32 = 0o200;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        accounts::fake::FakeAccounts,
        listen::default_listener,
        testing::{HEAD, IDENTITY, given, identity_with, says},
    };
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// The mistakes or warnings of an identity with these callers at this socket. The daemon is
    /// uid 900 and gid 900; `payments` is uid 1001 in groups 1001 and 2000.
    fn at(socket: &str, callers: &str) -> Result<Vec<String>, Vec<String>> {
        let listen = format!("[[listen]]\nsocket = \"/run/a.sock\"\n{socket}\n");
        let identity = identity_with("callers", &format!("callers = [{callers}]"));
        let sound =
            identity_with("callers", "callers = [\"any\"]").replace("\"payments\"\ns", "\"b\"\ns");
        let given = given(&format!("{HEAD}{listen}{identity}{sound}"));
        let plan = given.load().unwrap();
        let warnings = given.lines(
            plan.warnings
                .iter()
                .filter(|w| !w.message.contains("every local")),
        );
        if plan.mistakes.is_empty() {
            Ok(warnings)
        } else {
            Err(given.lines(&plan.mistakes))
        }
    }

    #[test]
    fn who_is_allowed_and_kept_out_by_the_mode_is_a_mistake() {
        let keeps_out = |socket: &str, callers: &str| {
            let mistakes = at(socket, callers).expect_err(socket);
            says(
                &mistakes,
                "the mode of the socket keeps it out: /run/a.sock (mode",
            );
        };
        let lets_in = |socket: &str, callers: &str| {
            assert_eq!(at(socket, callers), Ok(vec![]), "{socket} {callers}");
        };
        let user = "{ user = \"payments\" }";
        let group = "{ gid = 2000 }";
        // Unset, the socket belongs to the daemon: uid 900, gid 900.
        keeps_out("", user);
        keeps_out("", group);
        lets_in("", "{ gid = 900 }");
        lets_in("", "{ uid = 900 }");
        lets_in("mode = \"0666\"", user);
        lets_in("mode = \"0666\"", group);
        lets_in("group = \"tokens\"", user);
        lets_in("group = \"tokens\"", group);
        lets_in("group = \"payments\"", user);
        keeps_out("group = \"payments\"", group);
        lets_in("owner = \"payments\"", user);
        // The owner has the owner's bits, a member the group's, whatever others may.
        keeps_out("owner = \"payments\"\nmode = \"0066\"", user);
        keeps_out("group = \"tokens\"\nmode = \"0606\"", user);
        keeps_out("group = \"tokens\"\nmode = \"0606\"", group);
        keeps_out("group = \"tokens\"\nmode = \"0640\"", user);
        // Root passes, and any is whoever can.
        lets_in("mode = \"0000\"", "{ uid = 0 }");
        lets_in("mode = \"0600\"", "\"any\"");
        // What the entry demands, its callers have: started with a supplementary group, say.
        keeps_out("group = 3000", user);
        lets_in("group = 3000", "{ user = \"payments\", gid = 3000 }");
        keeps_out("group = 3000", "{ user = \"orders\", gid = 2000 }");
    }

    #[test]
    fn groups_that_are_not_known_here_are_a_warning() {
        let warned = at("group = \"tokens\"", "{ uid = 5000 }").unwrap();
        says(&warned, "perhaps `{ uid = 5000 }` cannot open a socket");
        assert_eq!(
            at("group = \"tokens\"", "{ uid = 5000, gid = 2000 }"),
            Ok(vec![])
        );
        assert_eq!(at("mode = \"0666\"", "{ uid = 5000 }"), Ok(vec![]));
        assert!(at("mode = \"0600\"", "{ uid = 5000 }").is_err());
    }

    #[test]
    fn one_socket_that_lets_a_caller_in_is_enough() {
        let two = "[[listen]]\nsocket = \"/a\"\n\
                   [[listen]]\nsocket = \"/b\"\ngroup = \"tokens\"\n";
        given(&format!("{HEAD}{two}{IDENTITY}")).fine();
        // But it must serve the identity.
        let other = IDENTITY.replace("name = \"payments\"", "name = \"other\"");
        let other = other.replace("{ user = \"payments\" }", "{ uid = 0 }");
        let two = format!("{two}identities = [\"other\"]\n");
        let given = given(&format!("{HEAD}{two}{IDENTITY}{other}"));
        says(
            &given.quarantined(),
            "keeps it out: /a (mode 0660, uid 900, gid 900)",
        );
    }

    #[test]
    fn an_identity_that_no_socket_serves_is_a_mistake() {
        let other = IDENTITY.replace("name = \"payments\"", "name = \"other\"");
        let listen = "[[listen]]\nsocket = \"/a\"\nmode = \"0666\"\nidentities = [\"other\"]\n";
        let given = given(&format!("{HEAD}{listen}{IDENTITY}{other}"));
        says(&given.quarantined(), "no [[listen]] serves `payments`");
    }

    #[test]
    fn admins_must_be_able_to_open_a_socket() {
        let listen = "[[listen]]\nsocket = \"/a\"\ngroup = \"tokens\"\n";
        let with = |admins: &str| given(&format!("admins = [{admins}]\n{HEAD}{listen}{IDENTITY}"));
        with("{ gid = 2000 }").fine();
        says(&with("{ group = \"wheel\" }").refused(), "keeps it out");
        says(&with("{ uid = 5000 }").warnings(), "perhaps");
    }

    proptest! {
        /// The kernel's rule for one process, tried on every process a rule for a known user can
        /// be about: `access` says what the kernel would.
        #[test]
        fn access_is_what_the_kernel_says(
            mode in 0u32..0o1000, owner in 1000u32..1004, group in 1000u32..1004,
            uid in 1000u32..1004, own in 1000u32..1004, more in proptest::option::of(1000u32..1004),
            demanded in proptest::option::of(1000u32..1004),
        ) {
            let mut accounts = FakeAccounts::usual();
            let account = crate::config::Account { name: "u".into(), uid, gid: own };
            accounts.users = vec![(account, more.into_iter().collect())];
            let directory = Directory::new(&accounts, 65534, 65534);
            let listener = Listener { mode, owner: Some(owner), group: Some(group), ..default_listener() };
            let rule = CallerRule {
                uid: Some(uid),
                gids: demanded.into_iter().collect(),
                resources: None,
                written: String::new(),
            };
            let groups: BTreeSet<u32> = [own].into_iter().chain(more).chain(demanded).collect();
            let class = if uid == owner { 6 } else if groups.contains(&group) { 3 } else { 0 };
            let open = (mode >> class) & 2 != 0;
            let access = access(&listener, &rule, (0, 0), &directory).unwrap();
            prop_assert_eq!(access, if open { Access::Open } else { Access::Closed });
        }
    }
}
