//! Who may have what: caller × identity × resource → allow, or deny with a reason. Pure.
//!
//! Whatever no rule allows is denied. Look-ups are by hash: ten thousand identities cost a request
//! no more than ten. Each rule stands in an index under what it demands, so a caller's uid and
//! groups lead straight to the identities that are for it, and the search for "the only one" stops
//! at the second.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use crate::{
    caller::Caller,
    config::{CallerRule, Identity, Plan},
    id::Scope,
};

/// The rules in force.
#[derive(Debug)]
pub struct Policy {
    identities: Vec<Arc<Identity>>,
    /// Places of identities by name: one each.
    by_name: HashMap<String, usize>,
    /// Places of identities by client id, object id and resource id, in lower case: ids may be
    /// shared.
    by_id: HashMap<String, Vec<usize>>,
    /// One for each socket, in the order of [`Plan::listeners`].
    sockets: Vec<Socket>,
    admins: Vec<CallerRule>,
    daemon_uid: Option<u32>,
}

/// Why a request is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// The identity does not exist, or is not for this caller on this socket: which of the two is
    /// not told.
    Identity,
    /// None was named and no identity is for this caller on this socket.
    NoIdentity,
    /// There is more than one to choose from: none was named, or an id that several have.
    Ambiguous,
    /// The identity is for this caller, the resource is not.
    Resource,
}

impl Policy {
    /// Indexes a plan.
    pub fn new(plan: &Plan) -> Self {
        let identities = plan.identities.clone();
        let by_name = named(&identities);
        let mut by_id: HashMap<String, Vec<usize>> = HashMap::new();
        for (place, identity) in identities.iter().enumerate() {
            for id in ids(identity) {
                push_new(by_id.entry(id).or_default(), place);
            }
        }
        let everywhere = Arc::new(Index::of(&identities, 0..identities.len()));
        let sockets = plan
            .listeners
            .iter()
            .map(|listener| match &listener.identities {
                None => Socket {
                    only: None,
                    index: Arc::clone(&everywhere),
                },
                Some(names) => {
                    // A quarantined identity's name leads nowhere.
                    let only: BTreeSet<usize> = names
                        .iter()
                        .filter_map(|name| by_name.get(name).copied())
                        .collect();
                    Socket {
                        index: Arc::new(Index::of(&identities, only.iter().copied())),
                        only: Some(only.into_iter().collect()),
                    }
                }
            });
        Self {
            sockets: sockets.collect(),
            by_name,
            by_id,
            identities,
            admins: plan.admins.clone(),
            daemon_uid: plan.daemon_uid,
        }
    }

    /// Which identity (its place in [`Plan::identities`]) answers this request. `wanted` is a name,
    /// a client id, an object id or a resource id; `listener` the place of the socket in
    /// [`Plan::listeners`].
    pub fn decide(
        &self,
        caller: &Caller,
        listener: usize,
        wanted: Option<&str>,
        scope: &Scope,
    ) -> Result<usize, Denial> {
        let place = self.identity(caller, listener, wanted)?;
        let allowed = self
            .identities
            .get(place)
            .is_some_and(|identity| allows(identity, caller, scope.policy_resource()));
        if allowed {
            Ok(place)
        } else {
            Err(Denial::Resource)
        }
    }

    /// As [`Self::decide`], for what concerns an identity and no resource.
    pub fn identity(
        &self,
        caller: &Caller,
        listener: usize,
        wanted: Option<&str>,
    ) -> Result<usize, Denial> {
        let Some(socket) = self.sockets.get(listener) else {
            return Err(wanted.map_or(Denial::NoIdentity, |_| Denial::Identity));
        };
        let Some(wanted) = wanted else {
            return one(self.candidates(caller, socket), Denial::NoIdentity);
        };
        let for_caller = |place: &usize| socket.serves(*place) && self.is_for(*place, caller);
        let named = self.named(wanted).iter().copied().filter(for_caller);
        one(named, Denial::Identity)
    }

    /// All identities that this caller may ask for on this socket.
    pub fn identities_of(&self, caller: &Caller, listener: usize) -> Vec<usize> {
        let Some(socket) = self.sockets.get(listener) else {
            return Vec::new();
        };
        let all: BTreeSet<usize> = self.candidates(caller, socket).collect();
        all.into_iter().collect()
    }

    /// Whether there is any identity for this caller on this socket.
    pub fn knows(&self, caller: &Caller, listener: usize) -> bool {
        self.sockets
            .get(listener)
            .is_some_and(|socket| self.candidates(caller, socket).next().is_some())
    }

    /// Whether this caller may see status and refresh: root, the daemon's own uid, `admins`.
    pub fn is_admin(&self, caller: &Caller) -> bool {
        caller.uid == 0
            || self.daemon_uid == Some(caller.uid)
            || self.admins.iter().any(|rule| matches(rule, caller))
    }

    /// The identities that a name or an id means. A name is never a GUID and never a path, so it
    /// is no other identity's id.
    fn named(&self, wanted: &str) -> &[usize] {
        if let Some(place) = self.by_name.get(wanted) {
            return std::slice::from_ref(place);
        }
        let ids = self.by_id.get(&wanted.to_ascii_lowercase());
        ids.map_or(&[], Vec::as_slice)
    }

    /// The identities for a caller on a socket. One may come several times.
    fn candidates<'a>(
        &'a self,
        caller: &'a Caller,
        socket: &'a Socket,
    ) -> impl Iterator<Item = usize> + 'a {
        let keys = keys(caller).filter_map(|key| socket.index.rules.get(&key));
        // The key of a rule says all there is to it, but where it demands several groups.
        keys.flatten()
            .copied()
            .filter(|place| self.is_for(*place, caller))
    }

    fn is_for(&self, place: usize, caller: &Caller) -> bool {
        self.identities
            .get(place)
            .is_some_and(|identity| identity.callers.iter().any(|rule| matches(rule, caller)))
    }
}

/// What one socket serves.
#[derive(Debug)]
struct Socket {
    /// The places of the identities that are served; all, when `None`.
    only: Option<HashSet<usize>>,
    /// Shared by all sockets that serve everything.
    index: Arc<Index>,
}

impl Socket {
    fn serves(&self, place: usize) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(&place))
    }
}

/// Identities by what their rules demand.
#[derive(Debug, Default)]
struct Index {
    rules: HashMap<Key, Vec<usize>>,
}

/// What a rule demands; of several groups, the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Any,
    Uid(u32),
    Gid(u32),
    Both(u32, u32),
}

impl Index {
    fn of(identities: &[Arc<Identity>], places: impl IntoIterator<Item = usize>) -> Self {
        let mut index = Self::default();
        for place in places {
            let Some(identity) = identities.get(place) else {
                continue;
            };
            for rule in &identity.callers {
                push_new(index.rules.entry(Key::of(rule)).or_default(), place);
            }
        }
        index
    }
}

impl Key {
    fn of(rule: &CallerRule) -> Self {
        match (rule.uid, rule.gids.first()) {
            (None, None) => Self::Any,
            (Some(uid), None) => Self::Uid(uid),
            (None, Some(gid)) => Self::Gid(*gid),
            (Some(uid), Some(gid)) => Self::Both(uid, *gid),
        }
    }
}

/// Every key under which a rule for this caller can stand.
fn keys(caller: &Caller) -> impl Iterator<Item = Key> + '_ {
    let groups = std::iter::once(&caller.gid).chain(caller.groups.iter());
    let by_group = groups.flat_map(|gid| [Key::Gid(*gid), Key::Both(caller.uid, *gid)]);
    [Key::Uid(caller.uid), Key::Any].into_iter().chain(by_group)
}

/// Whether all that a rule demands holds.
fn matches(rule: &CallerRule, caller: &Caller) -> bool {
    rule.uid.is_none_or(|uid| uid == caller.uid)
        && rule.gids.iter().all(|gid| caller.has_group(*gid))
}

/// Whether one of the rules for the caller, and the identity itself, allow a resource.
fn allows(identity: &Identity, caller: &Caller, resource: &str) -> bool {
    let narrowed = |rule: &CallerRule| rule.resources.as_ref().is_none_or(|r| r.allow(resource));
    identity.resources.allow(resource)
        && identity
            .callers
            .iter()
            .any(|rule| narrowed(rule) && matches(rule, caller))
}

/// The only one; looks no further than to a second.
fn one(mut places: impl Iterator<Item = usize>, none: Denial) -> Result<usize, Denial> {
    let first = places.next().ok_or(none)?;
    match places.find(|place| *place != first) {
        Some(_) => Err(Denial::Ambiguous),
        None => Ok(first),
    }
}

fn named(identities: &[Arc<Identity>]) -> HashMap<String, usize> {
    let name = |(place, identity): (usize, &Arc<Identity>)| (identity.name.clone(), place);
    identities.iter().enumerate().map(name).collect()
}

/// What an identity can be named by beside its name. GUIDs and resource ids know no case.
fn ids(identity: &Identity) -> impl Iterator<Item = String> + '_ {
    let ids = [
        Some(&*identity.trust.target.client_id),
        identity.object_id.as_deref(),
        identity.resource_id.as_deref(),
    ];
    ids.into_iter().flatten().map(str::to_ascii_lowercase)
}

/// Adds a place to a list that is filled in order, once.
fn push_new(places: &mut Vec<usize>, place: usize) {
    if places.last() != Some(&place) {
        places.push(place);
    }
}
