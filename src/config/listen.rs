//! `[[listen]]`: the sockets, and whether those whom policy allows can open them.
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

use std::{
    collections::BTreeSet,
    ops::Range,
    path::{Path, PathBuf},
};

use super::{
    CallerRule, Endpoint, Listener,
    accounts::Directory,
    callers::{MAX_ID, find_group, find_user},
    diagnostics::{Fault, closest},
    limits::{MAX_CONNECTIONS, count},
    raw::{At, Reading, Table},
    values,
};

/// A listener with what mistakes about it point at.
pub(super) struct Read<'a> {
    pub(super) listener: Listener,
    reading: Reading<'a>,
    socket: Range<usize>,
    identities: Vec<At<&'a str>>,
}

/// Reads one `[[listen]]`.
pub(super) fn read<'a>(mut table: Table<'a>, directory: &Directory<'_>) -> Option<Read<'a>> {
    let reading = table.reading();
    let before = reading.sink.count();
    let place = table
        .value("socket")
        .map_or(table.span(), |value| value.span());
    let socket = table.required(
        "socket",
        "the socket's path, such as socket = \"/run/spiffe-entra/spiffe-entra.sock\"",
        values::listen_path,
    );
    let mode = table.parsed("mode", values::mode);
    let owner = id(&mut table, "owner", |name| find_user(directory, name));
    let group = id(&mut table, "group", |name| find_group(directory, name));
    let max_connections = count(&mut table, "max_connections", MAX_CONNECTIONS);
    let identities = identities(&mut table);
    table.elsewhere(ELSEWHERE);
    table.finish();
    let names = identities.as_ref().map(|names| {
        let names = names.iter().map(|name| (*name.get_ref()).to_owned());
        names.collect::<BTreeSet<_>>()
    });
    let listener = Listener {
        socket: socket?,
        mode: mode.unwrap_or(DEFAULT_MODE),
        owner,
        group,
        identities: names,
        max_connections: max_connections.unwrap_or(DEFAULT_MAX_CONNECTIONS),
    };
    (reading.sink.count() == before).then(|| Read {
        listener,
        reading,
        socket: place,
        identities: identities.unwrap_or_default(),
    })
}

/// A user or group by name, or by number.
fn id(
    table: &mut Table<'_>,
    key: &'static str,
    find: impl FnOnce(&str) -> Result<u32, Fault>,
) -> Option<u32> {
    let value = table.value(key)?;
    if value.get_ref().is_integer() {
        let number = table.number(key, 0, MAX_ID)?;
        return u32::try_from(number.into_inner()).ok();
    }
    table.parsed(key, find)
}

fn identities<'a>(table: &mut Table<'a>) -> Option<Vec<At<&'a str>>> {
    let names = table.texts("identities")?;
    if names.get_ref().is_empty() {
        let fix = "name identities, or remove `identities` to serve all of them";
        let fault = Fault::new("a socket that serves no identity is of no use", fix);
        table.reading().mistake(&names.span(), fault);
    }
    Some(names.into_inner())
}

/// The socket that there is without a `[[listen]]`.
pub(super) fn default_listener() -> Listener {
    Listener {
        socket: PathBuf::from(DEFAULT_SOCKET),
        mode: DEFAULT_MODE,
        owner: None,
        group: None,
        identities: None,
        max_connections: DEFAULT_MAX_CONNECTIONS,
    }
}

impl Read<'_> {
    /// Notes names of identities that do not exist. Quarantined ones do.
    pub(super) fn check_identities(&self, exists: impl Fn(&str) -> bool, all: &[&str]) {
        for name in self
            .identities
            .iter()
            .filter(|name| !exists(name.get_ref()))
        {
            let fix = match closest(name.get_ref(), all.iter().copied()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => "add the [[identity]], or remove the name".to_owned(),
            };
            let message = format!("there is no identity `{}`", name.get_ref());
            self.reading.mistake(&name.span(), Fault::new(message, fix));
        }
    }

    /// Notes a path that something else is bound to: an earlier `[[listen]]`, or SPIRE's agent.
    pub(super) fn check_path(&self, earlier: &[&Self], endpoint: Option<&Endpoint>) {
        let ours = &self.listener.socket;
        if earlier
            .iter()
            .any(|other| same_path(&other.listener.socket, ours))
        {
            let fix = "give each [[listen]] a path of its own";
            let fault = Fault::new("another [[listen]] has this socket already", fix);
            self.reading.mistake(&self.socket, fault);
        }
        if matches!(endpoint, Some(Endpoint::Unix(path)) if same_path(path, ours)) {
            let fix = "choose another path: this one would replace the agent's socket";
            let fault = Fault::new("this is the socket of the SPIFFE Workload API", fix);
            self.reading.mistake(&self.socket, fault);
        }
    }
}

fn same_path(a: &Path, b: &Path) -> bool {
    // Components leave out `//` and `/./`.
    a.components().eq(b.components())
}

/// How a rule fares at a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Somebody whom the rule names can connect.
    Open,
    /// Nobody can.
    Closed,
    /// That depends on groups that are not known here.
    Unknown,
}

/// Whether somebody whom the rule names can connect; `us` is the uid and gid that the socket has
/// where it is not given others.
pub(super) fn access(
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
pub(super) fn described(listener: &Listener, us: (u32, u32)) -> String {
    format!(
        "{} (mode {:04o}, uid {}, gid {})",
        listener.socket.display(),
        listener.mode,
        listener.owner.unwrap_or(us.0),
        listener.group.unwrap_or(us.1)
    )
}

/// Keys that end up below a `[[listen]]` when they are put after it.
const ELSEWHERE: &[(&str, &str)] = &[
    ("admins", "at the top of the file, above the first [table]"),
    ("include", "at the top of the file, above the first [table]"),
];

pub(super) const OTHER_WRITE: u32 = 0o002;
const GROUP_WRITE: u32 = 0o020;
const OWNER_WRITE: u32 = 0o200;
const DEFAULT_MODE: u32 = 0o660;
const DEFAULT_MAX_CONNECTIONS: usize = 1024;
pub(super) const DEFAULT_SOCKET: &str = "/run/spiffe-entra/spiffe-entra.sock";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        accounts::fake::FakeAccounts,
        testing::{HEAD, IDENTITY, given, identity_with, says},
    };
    use proptest::prelude::*;

    fn with(listen: &str) -> crate::config::testing::Given {
        given(&format!(
            "{HEAD}{listen}{}",
            identity_with("callers", "callers = [{ uid = 0 }]")
        ))
    }

    #[test]
    fn a_listener_is_what_was_written() {
        let plan = with(
            "[[listen]]\nsocket = \"/run/a.sock\"\nmode = \"0600\"\nowner = \"payments\"\n\
             group = 2000\nidentities = [\"payments\"]\nmax_connections = 7\n\
             [[listen]]\nsocket = \"/run/b.sock\"\n",
        )
        .fine();
        assert_eq!(
            plan.listeners[0],
            Listener {
                socket: "/run/a.sock".into(),
                mode: 0o600,
                owner: Some(1001),
                group: Some(2000),
                identities: Some(["payments".to_owned()].into()),
                max_connections: 7,
            }
        );
        assert_eq!(
            plan.listeners[1],
            Listener {
                socket: "/run/b.sock".into(),
                ..default_listener()
            }
        );
    }

    #[test]
    fn without_a_listen_there_is_the_usual_socket() {
        let plan = with("").fine();
        assert_eq!(plan.listeners, [default_listener()]);
        assert_eq!(plan.listeners[0].socket, Path::new(DEFAULT_SOCKET));
        assert_eq!(
            (plan.listeners[0].mode, plan.listeners[0].max_connections),
            (0o660, 1024)
        );
    }

    #[test]
    fn a_mistake_in_a_listener_costs_the_whole() {
        for (line, part) in [
            ("", "[[listen]] has no `socket`"),
            ("socket = \"a.sock\"", "no absolute path"),
            (
                "socket = \"/a\"\nmode = 660",
                "`mode` of [[listen]] is a whole number",
            ),
            ("socket = \"/a\"\nmode = \"4660\"", "set-uid"),
            ("socket = \"/a\"\nowner = \"who\"", "there is no user `who`"),
            ("socket = \"/a\"\nowner = -1", "out of range"),
            (
                "socket = \"/a\"\ngroup = \"who\"",
                "there is no group `who`",
            ),
            ("socket = \"/a\"\ngroup = true", "is true or false"),
            ("socket = \"/a\"\nmax_connections = 0", "out of range"),
            ("socket = \"/a\"\nidentities = []", "serves no identity"),
            (
                "socket = \"/a\"\nidentities = [\"paiments\"]",
                "did you mean `payments`?",
            ),
            (
                "socket = \"/a\"\nadmins = []",
                "belongs at the top of the file",
            ),
            ("socket = \"/a\"\nmod = \"0600\"", "did you mean `mode`?"),
            (
                "socket = \"/a\"\n[[listen]]\nsocket = \"//a\"",
                "another [[listen]] has this",
            ),
            (
                "socket = \"/run/spire/agent/public/api.sock\"",
                "socket of the SPIFFE Workload API",
            ),
        ] {
            says(&with(&format!("[[listen]]\n{line}\n")).refused(), part);
        }
        says(
            &with("[listen]\nsocket = \"/a\"\n").refused(),
            "headed [[listen]]",
        );
    }

    #[test]
    fn a_listener_may_name_a_quarantined_identity() {
        let bad = IDENTITY.replace("name = \"payments\"", "name = \"bad\"\nx = 1");
        let listen = "[[listen]]\nsocket = \"/a\"\nmode = \"0666\"\n\
                      identities = [\"bad\", \"payments\"]\n";
        let given = given(&format!("{HEAD}{listen}{IDENTITY}{bad}"));
        says(&given.quarantined(), "unknown key `x`");
    }

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
