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
