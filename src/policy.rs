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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        assertion::AssertionSpec,
        config::{
            Endpoint, Entra, Federation, Limits, Listener, Mistakes, Resources, Trust, WorkloadApi,
        },
        exchange::Target,
        id::SpiffeId,
    };
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn plan(identities: Vec<Identity>, served: Vec<Option<BTreeSet<String>>>) -> Plan {
        let url = |text: &str| text.parse().unwrap();
        let listener = |(i, identities)| Listener {
            socket: format!("/run/{i}.sock").into(),
            mode: 0o660,
            owner: None,
            group: None,
            identities,
            max_connections: 1,
        };
        Plan {
            workload_api: WorkloadApi {
                endpoint: Endpoint::Unix("/run/api.sock".into()),
                timeout: WorkloadApi::DEFAULT_TIMEOUT,
            },
            entra: Entra {
                ca_file: None,
                ca_only: false,
                proxy: None,
                allow_http_loopback: false,
            },
            listeners: served.into_iter().enumerate().map(listener).collect(),
            admins: Vec::new(),
            metrics: None,
            limits: Limits::default(),
            identities: identities.into_iter().map(Arc::new).collect(),
            quarantined: Vec::new(),
            federation: Federation {
                issuer: None,
                owner: None,
                sign_in: None,
                graph_endpoint: url("https://graph.microsoft.com"),
                arm_endpoint: url("https://management.azure.com"),
            },
            daemon_uid: Some(900),
            warnings: Vec::new(),
            mistakes: Mistakes::new(),
        }
    }

    fn identity(name: &str, callers: Vec<CallerRule>) -> Identity {
        Identity {
            name: name.into(),
            trust: Trust {
                target: Target {
                    authority: "https://login.microsoftonline.com".parse().unwrap(),
                    tenant: "contoso.com".into(),
                    client_id: guid(name).into(),
                },
                assertion: AssertionSpec {
                    subject: SpiffeId::parse(&format!("spiffe://example.org/{name}")).unwrap(),
                    audience: "aud".into(),
                    issuer: None,
                },
            },
            object_id: None,
            resource_id: None,
            resources: Resources::Any,
            callers,
            expose_assertion: false,
            federate: None,
        }
    }

    /// A client id that is easily told.
    fn guid(name: &str) -> String {
        let number: u32 = name.bytes().map(u32::from).sum();
        format!("{number:08x}-0000-0000-0000-00000000000a")
    }

    fn rule(uid: Option<u32>, gids: &[u32]) -> CallerRule {
        CallerRule {
            uid,
            gids: gids.to_vec(),
            resources: None,
            written: String::new(),
        }
    }

    fn caller(uid: u32, gid: u32, groups: &[u32]) -> Caller {
        Caller {
            pid: None,
            uid,
            gid,
            groups: groups.into(),
            pidfd: None,
        }
    }

    fn scope(resource: &str) -> Scope {
        Scope::from_resource(resource).unwrap()
    }

    fn only(resources: &[&str]) -> Resources {
        Resources::Only(resources.iter().map(|r| (*r).to_owned()).collect())
    }

    #[test]
    fn whatever_no_rule_allows_is_denied() {
        let policy = Policy::new(&plan(vec![identity("a", vec![])], vec![None]));
        for uid in [0, 900, 1000] {
            let caller = caller(uid, uid, &[]);
            let (a, any) = (scope("https://a"), None);
            assert_eq!(
                policy.decide(&caller, 0, Some("a"), &a),
                Err(Denial::Identity)
            );
            assert_eq!(policy.decide(&caller, 0, any, &a), Err(Denial::NoIdentity));
            assert!(!policy.knows(&caller, 0));
            assert!(policy.identities_of(&caller, 0).is_empty());
        }
    }

    #[test]
    fn an_identity_that_is_not_there_looks_like_one_that_is_not_for_the_caller() {
        let theirs = identity("theirs", vec![rule(Some(1), &[])]);
        let policy = Policy::new(&plan(vec![theirs], vec![None, Some(BTreeSet::new())]));
        let (us, them) = (caller(2, 2, &[]), caller(1, 1, &[]));
        let denied = Err(Denial::Identity);
        assert_eq!(policy.identity(&us, 0, Some("theirs")), denied);
        assert_eq!(policy.identity(&us, 0, Some("nobodys")), denied);
        assert_eq!(policy.identity(&us, 0, Some("")), denied);
        assert_eq!(policy.identity(&them, 0, Some("theirs")), Ok(0));
        // Another socket, and one that there is not.
        assert_eq!(policy.identity(&them, 1, Some("theirs")), denied);
        assert_eq!(policy.identity(&them, 2, Some("theirs")), denied);
        assert_eq!(policy.identity(&them, 2, None), Err(Denial::NoIdentity));
    }

    #[test]
    fn all_of_an_entry_must_hold_and_one_entry_is_enough() {
        let rules = vec![
            rule(Some(1), &[10]),
            rule(None, &[20, 30]),
            rule(Some(4), &[]),
        ];
        let policy = Policy::new(&plan(vec![identity("a", rules)], vec![None]));
        for (caller, allowed) in [
            (caller(1, 1, &[]), false),
            (caller(1, 10, &[]), true),
            (caller(1, 1, &[5, 10]), true),
            (caller(2, 10, &[]), false),
            (caller(2, 20, &[]), false),
            (caller(2, 20, &[30]), true),
            (caller(2, 2, &[30, 20]), true),
            (caller(4, 4, &[]), true),
        ] {
            assert_eq!(policy.knows(&caller, 0), allowed, "{caller:?}");
            assert_eq!(policy.identity(&caller, 0, Some("a")).is_ok(), allowed);
            assert_eq!(policy.identity(&caller, 0, None).is_ok(), allowed);
        }
    }

    #[test]
    fn an_identity_may_be_left_out_when_there_is_exactly_one() {
        let one = identity(
            "one",
            vec![rule(Some(1), &[]), rule(None, &[10]), rule(None, &[])],
        );
        let two = identity("two", vec![rule(Some(2), &[])]);
        let only_two = Some(["two".to_owned(), "quarantined".to_owned()].into());
        let policy = Policy::new(&plan(vec![one, two], vec![None, only_two]));
        // Found by three rules, it is one identity all the same.
        assert_eq!(policy.identity(&caller(1, 10, &[10, 10]), 0, None), Ok(0));
        let both = caller(2, 2, &[]);
        assert_eq!(policy.identity(&both, 0, None), Err(Denial::Ambiguous));
        assert_eq!(policy.identities_of(&both, 0), [0, 1]);
        assert_eq!(policy.identity(&both, 0, Some("two")), Ok(1));
        assert_eq!(policy.identity(&both, 1, None), Ok(1), "one on this socket");
        assert_eq!(
            policy.identity(&caller(1, 1, &[]), 1, None),
            Err(Denial::NoIdentity)
        );
    }

    #[test]
    fn an_identity_has_a_name_and_ids_whose_case_does_not_matter() {
        let arm = "/subscriptions/x/resourceGroups/G/providers/Microsoft.ManagedIdentity/y/P";
        let it = Identity {
            object_id: Some("0000000b-0000-0000-0000-00000000000b".into()),
            resource_id: Some(arm.into()),
            ..identity("It", vec![rule(None, &[])])
        };
        let client_id = it.trust.target.client_id.to_string();
        let policy = Policy::new(&plan(vec![it], vec![None]));
        let us = caller(1, 1, &[]);
        for name in [
            "It",
            &client_id,
            &client_id.to_uppercase(),
            "0000000B-0000-0000-0000-00000000000b",
            arm,
            &arm.to_uppercase(),
        ] {
            assert_eq!(policy.identity(&us, 0, Some(name)), Ok(0), "{name}");
        }
        assert_eq!(policy.identity(&us, 0, Some("it")), Err(Denial::Identity));
    }

    #[test]
    fn of_identities_with_one_client_id_the_callers_own_is_meant() {
        let share = |name: &str, uid| {
            let mut it = identity(name, vec![rule(Some(uid), &[])]);
            it.trust.target.client_id = guid("shared").into();
            it
        };
        let all = vec![share("a", 1), share("b", 2), share("c", 2)];
        let only_b = Some(["b".to_owned()].into());
        let policy = Policy::new(&plan(all, vec![None, only_b]));
        let id = guid("shared");
        assert_eq!(policy.identity(&caller(1, 1, &[]), 0, Some(&id)), Ok(0));
        let two = caller(2, 2, &[]);
        assert_eq!(policy.identity(&two, 0, Some(&id)), Err(Denial::Ambiguous));
        assert_eq!(policy.identity(&two, 1, Some(&id)), Ok(1));
        assert_eq!(policy.identity(&two, 0, Some("c")), Ok(2));
        assert_eq!(
            policy.identity(&caller(3, 3, &[]), 0, Some(&id)),
            Err(Denial::Identity)
        );
    }

    #[test]
    fn several_entries_allow_what_any_of_them_does() {
        let narrow = |uid, gids: &[u32], resources: &[&str]| CallerRule {
            resources: Some(only(resources)),
            ..rule(uid, gids)
        };
        let it = Identity {
            resources: only(&["https://a", "https://b", "https://c"]),
            ..identity(
                "it",
                vec![
                    narrow(Some(1), &[], &["https://a"]),
                    narrow(None, &[10], &["https://b", "https://x"]),
                    rule(Some(2), &[]),
                ],
            )
        };
        let policy = Policy::new(&plan(vec![it], vec![None]));
        let decide = |caller: &Caller, resource: &str| {
            policy
                .decide(caller, 0, Some("it"), &scope(resource))
                .is_ok()
        };
        let allowed = |caller: Caller| -> Vec<&str> {
            let all = ["https://a", "https://b", "https://c", "https://x"];
            all.into_iter()
                .filter(|resource| decide(&caller, resource))
                .collect()
        };
        assert_eq!(allowed(caller(1, 1, &[])), ["https://a"]);
        assert_eq!(allowed(caller(1, 10, &[])), ["https://a", "https://b"]);
        assert_eq!(allowed(caller(3, 3, &[10])), ["https://b"]);
        assert_eq!(
            allowed(caller(2, 2, &[])),
            ["https://a", "https://b", "https://c"]
        );
        // One slash at the end is forgiven, nothing else is.
        assert!(decide(&caller(1, 1, &[]), "https://a/"));
        for other in ["https://a//", "https://a/b", "https://A", "a"] {
            let denied = policy.decide(&caller(1, 1, &[]), 0, None, &scope(other));
            assert_eq!(denied, Err(Denial::Resource), "{other}");
        }
    }

    #[test]
    fn admins_are_root_the_daemon_and_those_listed() {
        let mut plan = plan(vec![identity("a", vec![rule(None, &[])])], vec![None]);
        plan.admins = vec![rule(Some(5), &[50]), rule(None, &[10])];
        let policy = Policy::new(&plan);
        for (caller, admin) in [
            (caller(0, 0, &[]), true),
            (caller(900, 1, &[]), true),
            (caller(5, 5, &[]), false),
            (caller(5, 50, &[]), true),
            (caller(6, 6, &[10]), true),
            (caller(7, 7, &[]), false),
        ] {
            assert_eq!(policy.is_admin(&caller), admin, "{caller:?}");
        }
        plan.daemon_uid = None;
        assert!(!Policy::new(&plan).is_admin(&caller(900, 1, &[])));
    }

    /// Nothing here takes time to be measured: what a request looks at is counted.
    #[test]
    fn ten_thousand_identities_cost_no_scan() {
        let own = |i: u32| {
            identity(
                &format!("own-{i}"),
                vec![rule(Some(i), &[]), rule(Some(i), &[1])],
            )
        };
        let shared = |i: u32| identity(&format!("all-{i}"), vec![rule(None, &[])]);
        let everybody: Vec<Identity> = (0..10_000).map(own).collect();
        let policy = Policy::new(&plan(everybody, vec![None, None]));
        let us = caller(77, 1, &[2, 3]);
        let looked_at = |policy: &Policy, caller: &Caller| -> Vec<usize> {
            let lists = keys(caller).filter_map(|key| policy.sockets[0].index.rules.get(&key));
            lists.map(Vec::len).collect()
        };
        assert_eq!(
            looked_at(&policy, &us),
            [1, 1],
            "of 20,000 rules, those that hold"
        );
        assert_eq!(policy.identity(&us, 0, None), Ok(77));
        assert_eq!(policy.by_name.len(), 10_000);
        assert!(Arc::ptr_eq(
            &policy.sockets[0].index,
            &policy.sockets[1].index
        ));
        // Where all are for everybody, the search stops at the second.
        let policy = Policy::new(&plan((0..10_000).map(shared).collect(), vec![None]));
        let mut seen = 0;
        let candidates = policy
            .candidates(&us, &policy.sockets[0])
            .inspect(|_| seen += 1);
        assert_eq!(one(candidates, Denial::NoIdentity), Err(Denial::Ambiguous));
        assert_eq!(seen, 2);
        assert!(policy.knows(&us, 0));
        assert_eq!(policy.identities_of(&us, 0).len(), 10_000);
    }

    /// The same by looking at everything, as one would say it.
    fn naive(
        plan: &Plan,
        caller: &Caller,
        listener: usize,
        wanted: Option<&str>,
        resource: &str,
    ) -> Result<usize, Denial> {
        let holds = |rule: &CallerRule| {
            let uid = rule.uid.is_none() || rule.uid == Some(caller.uid);
            let mut groups = caller.groups.to_vec();
            groups.push(caller.gid);
            uid && rule.gids.iter().all(|gid| groups.contains(gid))
        };
        let mut mine = Vec::new();
        for (place, identity) in plan.identities.iter().enumerate() {
            let served = plan
                .listeners
                .get(listener)
                .is_some_and(|l| match &l.identities {
                    None => true,
                    Some(names) => names.contains(&identity.name),
                });
            let meant = wanted.is_none_or(|wanted| {
                let target = &identity.trust.target;
                wanted == identity.name
                    || wanted.eq_ignore_ascii_case(&target.client_id)
                    || identity
                        .object_id
                        .as_ref()
                        .is_some_and(|id| wanted.eq_ignore_ascii_case(id))
            });
            if served && meant && identity.callers.iter().any(holds) {
                mine.push(place);
            }
        }
        let place = match mine[..] {
            [place] => place,
            [] if wanted.is_some() => return Err(Denial::Identity),
            [] => return Err(Denial::NoIdentity),
            _ => return Err(Denial::Ambiguous),
        };
        let identity = &plan.identities[place];
        let allowed = identity.resources.allow(resource)
            && identity.callers.iter().any(|rule| {
                holds(rule) && rule.resources.as_ref().is_none_or(|r| r.allow(resource))
            });
        if allowed {
            Ok(place)
        } else {
            Err(Denial::Resource)
        }
    }

    const RESOURCES: [&str; 3] = ["https://a", "https://b", "api://c"];

    fn some_resources() -> impl Strategy<Value = Resources> {
        prop_oneof![
            Just(Resources::Any),
            proptest::sample::subsequence(&RESOURCES[..], 0..=3).prop_map(|list| only(&list)),
        ]
    }

    fn some_rule() -> impl Strategy<Value = CallerRule> {
        (
            proptest::option::of(0u32..4),
            proptest::sample::subsequence(vec![0u32, 1, 2, 3], 0..=2),
            proptest::option::of(some_resources()),
        )
            .prop_map(|(uid, gids, resources)| CallerRule {
                resources,
                ..rule(uid, &gids)
            })
    }

    /// Rules, resources, and the numbers of client and object id.
    type Drawn = (Vec<CallerRule>, Resources, (u32, Option<u32>));

    fn some_plan() -> impl Strategy<Value = Plan> {
        let rules = proptest::collection::vec(some_rule(), 0..4);
        let ids = (0u32..3, proptest::option::of(0u32..3));
        let identities = proptest::collection::vec((rules, some_resources(), ids), 0..6);
        let name = |i: usize| format!("i{i}");
        let listener = proptest::option::of(proptest::collection::btree_set(
            (0usize..7).prop_map(name),
            0..4,
        ));
        (identities, proptest::collection::vec(listener, 1..3)).prop_map(|(list, listeners)| {
            let build = |(i, (rules, resources, (client, object))): (usize, Drawn)| {
                let mut it = identity(&format!("i{i}"), rules);
                it.resources = resources;
                it.trust.target.client_id =
                    format!("{client:08x}-0000-0000-0000-00000000000a").into();
                // The same numbers: an object id may be another's client id.
                it.object_id = object.map(|o| format!("{o:08x}-0000-0000-0000-00000000000a"));
                it
            };
            plan(list.into_iter().enumerate().map(build).collect(), listeners)
        })
    }

    fn some_wanted() -> impl Strategy<Value = Option<String>> {
        prop_oneof![
            2 => Just(None),
            2 => (0usize..7).prop_map(|i| Some(format!("i{i}"))),
            2 => (0u32..4).prop_map(|c| Some(format!("{c:08x}-0000-0000-0000-00000000000A"))),
            1 => ".{0,4}".prop_map(Some),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn decisions_are_those_of_the_naive_specification(
            plan in some_plan(),
            uid in 0u32..5,
            gid in 0u32..5,
            groups in proptest::collection::vec(0u32..5, 0..4),
            listener in 0usize..3,
            wanted in some_wanted(),
            resource in proptest::sample::select(&RESOURCES[..]),
            slash in any::<bool>(),
        ) {
            let policy = Policy::new(&plan);
            let caller = caller(uid, gid, &groups);
            let wanted = wanted.as_deref();
            let asked = if slash { format!("{resource}/") } else { resource.to_owned() };
            let expected = naive(&plan, &caller, listener, wanted, resource);
            prop_assert_eq!(policy.decide(&caller, listener, wanted, &scope(&asked)), expected);
            // The other answers are no other policy.
            let identity = policy.identity(&caller, listener, wanted);
            match expected {
                Ok(place) => prop_assert_eq!(identity, Ok(place)),
                Err(Denial::Resource) => prop_assert!(identity.is_ok()),
                Err(denial) => prop_assert_eq!(identity, Err(denial)),
            }
            let mine = policy.identities_of(&caller, listener);
            prop_assert_eq!(policy.knows(&caller, listener), !mine.is_empty());
            for (place, identity) in plan.identities.iter().enumerate() {
                let by_name = policy.identity(&caller, listener, Some(&identity.name));
                prop_assert_eq!(mine.contains(&place), by_name == Ok(place));
            }
        }
    }
}
