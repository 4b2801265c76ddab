//! `[[listen]]`: the sockets. Whether those whom policy allows can open them is in [`reach`].
//!
//! [`reach`]: super::reach

use std::{
    collections::BTreeSet,
    ops::Range,
    path::{Path, PathBuf},
};

use super::{
    Endpoint, Listener,
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
        .map_or_else(|| table.span(), |value| value.span());
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

/// Keys that end up below a `[[listen]]` when they are put after it.
const ELSEWHERE: &[(&str, &str)] = &[
    ("admins", "at the top of the file, above the first [table]"),
    ("include", "at the top of the file, above the first [table]"),
];

const DEFAULT_MODE: u32 = 0o660;
const DEFAULT_MAX_CONNECTIONS: usize = 4096;
pub(super) const DEFAULT_SOCKET: &str = "/run/spiffe-entra/spiffe-entra.sock";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::{HEAD, IDENTITY, given, identity_with, says};

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
            (0o660, 4096)
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
}
