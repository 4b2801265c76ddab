//! Configuration: from what the operator wrote to the [`Plan`] that the program uses.
//!
//! The conversion is the validation: a value in a `Plan` needs no further check. See `load`.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use url::Url;

use crate::{assertion::AssertionSpec, exchange::Target};

/// Everything the daemon does, decided.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where JWT-SVIDs come from.
    pub workload_api: WorkloadApi,
    /// How Entra is reached.
    pub entra: Entra,
    /// The sockets, at least one.
    pub listeners: Vec<Listener>,
    /// Who may see status and refresh, beside root and the daemon's own uid.
    pub admins: Vec<CallerRule>,
    /// Where Prometheus may scrape over TCP, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// Limits and periods.
    pub limits: Limits,
    /// The identities that are in order.
    pub identities: Vec<Arc<Identity>>,
    /// Those that are not, with their mistakes.
    pub quarantined: Vec<Quarantined>,
}

/// Where JWT-SVIDs come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadApi {
    /// The agent's socket.
    pub endpoint: Endpoint,
}

/// A Workload API address (SPIFFE Workload Endpoint, section 4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `unix:///path`
    Unix(PathBuf),
    /// `tcp://ip:port`
    Tcp(SocketAddr),
}

/// How Entra is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entra {
    /// CA certificates in PEM, added to the system's or in place of them.
    pub ca_file: Option<PathBuf>,
    /// Whether `ca_file` stands alone.
    pub ca_only: bool,
    /// An explicit proxy; the usual variables are honoured without one.
    pub proxy: Option<Url>,
    /// Whether an `http://` authority on loopback is acceptable (`allow_http_loopback`).
    pub allow_http_loopback: bool,
}

/// One socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its path.
    pub socket: PathBuf,
    /// Its mode bits.
    pub mode: u32,
    /// Its owner's uid, where it is to be changed.
    pub owner: Option<u32>,
    /// Its group's gid, where it is to be changed.
    pub group: Option<u32>,
    /// The names of the identities served there; all, when `None`.
    pub identities: Option<BTreeSet<String>>,
    /// How many connections it takes at once.
    pub max_connections: usize,
}

/// Limits and periods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long SPIRE must have said PermissionDenied before tokens are withdrawn.
    pub revoke_after: Duration,
    /// How many resources one identity may hold tokens for.
    pub resources_per_identity: usize,
    /// How many exchanges one identity may cause in a minute.
    pub exchanges_per_minute: u32,
    /// How many connections one uid may hold on one socket.
    pub connections_per_uid: usize,
    /// How long a graceful stop lets requests in flight take.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            revoke_after: Duration::from_secs(300),
            resources_per_identity: 64,
            exchanges_per_minute: 60,
            connections_per_uid: 1024,
            drain: Duration::from_secs(10),
        }
    }
}

/// One workload identity: a SPIFFE ID, and what it becomes in Entra.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its name here.
    pub name: String,
    /// What Entra is asked for, with which assertion.
    pub trust: Trust,
    /// Other ids that clients may name it by.
    pub object_id: Option<String>,
    /// The ARM id of the managed identity.
    pub resource_id: Option<String>,
    /// What may be asked for.
    pub resources: Resources,
    /// Who may ask: one rule that matches is enough, none is nobody.
    pub callers: Vec<CallerRule>,
    /// Whether callers may have the assertion itself.
    pub expose_assertion: bool,
}

/// What a token rests on. Two identities with equal trust share tokens; others never do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Trust {
    /// Whose tokens.
    pub target: Target,
    /// By which assertion.
    pub assertion: AssertionSpec,
}

/// Which resources may be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resources {
    /// `["*"]`
    Any,
    /// These, without one trailing slash ([`crate::id::Scope::policy_resource`]).
    Only(BTreeSet<String>),
}

impl Resources {
    /// Whether this one may be asked for.
    pub fn allow(&self, policy_resource: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Only(set) => set.contains(policy_resource),
        }
    }
}

/// Whom one entry of `callers` or `admins` matches: all that is given must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerRule {
    /// The peer's uid.
    pub uid: Option<u32>,
    /// A gid among the peer's own and supplementary ones.
    pub gids: Vec<u32>,
    /// What this entry narrows the identity's resources to.
    pub resources: Option<Resources>,
    /// As it was written, for `check`.
    pub written: String,
}

/// An identity that cannot be served, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// Its name, or its place where it has none.
    pub name: String,
    /// The mistakes, one line each, with file and line.
    pub mistakes: Vec<String>,
}
