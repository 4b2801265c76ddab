//! Configuration: from what the operator wrote to the [`Plan`] that the program uses.
//!
//! The conversion is the validation: a value in a `Plan` needs no further check. [`load()`] notes
//! every mistake before it gives up, each with its file, line and column and what to change.
//!
//! # Layout
//!
//! [`files`] finds and reads the files, [`guard`] says who can write them, [`raw`] reads their tables
//! key by key, [`values`] and [`urls`] the
//! single values; [`trust`], [`identity`], [`callers`], [`listen`], [`limits`] and [`federation`]
//! convert one table each, [`reach`] looks at identities and sockets together, and [`mod@load`]
//! at everything. [`ca`] looks into the CA file, [`accounts`] is the user database,
//! [`environment`] the rest of the world (and the configuration without a file), [`diagnostics`]
//! what a mistake looks like, [`reload`] what a reload can change.

mod accounts;
mod ca;
mod callers;
mod diagnostics;
mod environment;
mod federation;
mod files;
mod guard;
mod identity;
mod limits;
mod listen;
mod load;
mod raw;
mod reach;
mod reload;
#[cfg(test)]
pub(crate) mod testing;
mod trust;
mod urls;
mod values;

use std::{
    collections::BTreeSet,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use url::Url;

use crate::{
    assertion::{self, AssertionSpec},
    exchange::Target,
};

pub use crate::{assertion::endpoint::Endpoint, exchange::settings::Settings as Entra};
pub use accounts::{Account, Accounts, SystemAccounts};
pub use diagnostics::{Mistake, Mistakes};
pub use environment::{EnvPlan, Environment, default_path, from_env};
pub use load::load_in;

/// Reads the configuration in `path`. A plan may come with quarantined identities; see
/// [`Plan::strict`].
pub fn load(path: &Path) -> Result<Plan, Mistakes> {
    load_in(path, &Environment::system())
}

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
    /// What the federation commands work with.
    pub federation: Federation,
    /// The daemon's own uid, which counts as an admin. Missing where it is the kernel's overflow
    /// uid: that is everybody's.
    pub daemon_uid: Option<u32>,
    /// What is in order, and probably not meant.
    pub warnings: Vec<Mistake>,
    /// The mistakes of the quarantined identities, in full.
    pub mistakes: Mistakes,
}

impl Plan {
    /// The identities that a socket serves.
    pub fn identities_on(&self, listener: &Listener) -> Vec<&Identity> {
        let served = |identity: &&Arc<Identity>| {
            let names = listener.identities.as_ref();
            names.is_none_or(|names| names.contains(&identity.name))
        };
        self.identities
            .iter()
            .filter(served)
            .map(AsRef::as_ref)
            .collect()
    }

    /// The plan, unless an identity is quarantined.
    pub fn strict(self) -> Result<Self, Mistakes> {
        if self.mistakes.is_empty() {
            Ok(self)
        } else {
            Err(self.mistakes)
        }
    }
}

/// Where JWT-SVIDs come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadApi {
    /// The agent's socket.
    pub endpoint: Endpoint,
    /// How long one call may take.
    pub timeout: Duration,
}

impl WorkloadApi {
    /// The timeout where none is configured: longer than the 30 s that SPIRE's agent gives its
    /// server before it hands out the SVID that it still holds. No caller waits for that long.
    pub const DEFAULT_TIMEOUT: Duration = assertion::spiffe::DEADLINE;
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
    /// What carries its credential, for the federation commands.
    pub federate: Option<Federate>,
}

/// What a federated identity credential belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Federate {
    /// An application, by its object id.
    Application(String),
    /// A user-assigned managed identity, by its resource id.
    ManagedIdentity(String),
}

/// What the federation commands work with. The daemon does not look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Federation {
    /// The issuer to write into credentials: that of `[federation]`, else of `[workload_api]`.
    pub issuer: Option<Arc<str>>,
    /// Marks the credentials that are ours.
    pub owner: Option<String>,
    /// Whom the commands sign in as.
    pub sign_in: Option<Trust>,
    /// Microsoft Graph.
    pub graph_endpoint: Url,
    /// Azure Resource Manager.
    pub arm_endpoint: Url,
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

/// As it is written in a configuration.
impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("[\"*\"]"),
            Self::Only(set) => f.debug_list().entries(set).finish(),
        }
    }
}

/// Whom one entry of `callers` or `admins` matches: all that is given must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerRule {
    /// The peer's uid.
    pub uid: Option<u32>,
    /// Gids that must all be among the peer's own and supplementary ones.
    pub gids: Vec<u32>,
    /// What this entry narrows the identity's resources to.
    pub resources: Option<Resources>,
    /// As it was written, for `check`.
    pub written: String,
}

impl CallerRule {
    /// Whether it matches whoever can open the socket.
    pub fn is_any(&self) -> bool {
        self.uid.is_none() && self.gids.is_empty()
    }
}

/// An identity that cannot be served, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// Its name, or its place where it has none.
    pub name: String,
    /// The mistakes, one line each, with file and line.
    pub mistakes: Vec<String>,
}
