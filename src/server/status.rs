//! What `/v1/status` and `/v1/identities` say: written here, read by the commands.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{
    config::{Endpoint, Identity, Quarantined},
    report::Report,
    tokens::{Snapshot, TokenSnapshot},
};

/// The daemon's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// When it started, in RFC 3339.
    pub started: String,
    /// How often the configuration was put in force, from 1.
    pub generation: u64,
    /// The sockets.
    pub listeners: Vec<ListenerStatus>,
    /// Where JWT-SVIDs come from.
    pub workload_api: WorkloadApiStatus,
    /// The identities that are served.
    pub identities: Vec<IdentityStatus>,
    /// Those that are not, for mistakes in the configuration.
    pub quarantined: Vec<QuarantineStatus>,
}

/// One socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// Its path.
    pub socket: String,
    /// How many connections it has.
    pub connections: usize,
    /// How many it takes.
    pub max_connections: usize,
}

/// The Workload API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadApiStatus {
    /// Its address.
    pub endpoint: String,
    /// Whether it answers.
    pub reachable: bool,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Fault>,
}

/// One identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityStatus {
    /// Its name.
    pub name: String,
    /// Whose JWT-SVID.
    pub spiffe_id: String,
    /// Whose token: the tenant.
    pub tenant: String,
    /// Whose token: the application or managed identity.
    pub client_id: String,
    /// In a word.
    pub state: State,
    /// The issuer of its JWT-SVID, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Seconds its JWT-SVID has left, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assertion_expires_in: Option<u64>,
    /// The tokens held or tried for.
    pub tokens: Vec<TokenStatus>,
    /// Why it has no JWT-SVID, or no longer may have tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Fault>,
}

/// The state of an identity in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Has tokens, and nothing is wrong.
    Ready,
    /// Nobody asked yet.
    Idle,
    /// Something is wrong; what it holds is still served.
    Failing,
    /// SPIRE or Entra withdrew its consent: nothing is served.
    Revoked,
}

/// One token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    /// What it is for.
    pub resource: String,
    /// Seconds it has left; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
    /// Seconds until it is renewed or tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_refresh_in: Option<u64>,
    /// Seconds since the last exchange that worked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success_ago: Option<u64>,
    /// The last failure, until the next success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Fault>,
}

/// A quarantined identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineStatus {
    /// Its name, or its place.
    pub name: String,
    /// Its mistakes.
    pub mistakes: Vec<String>,
}

/// A [`Report`] that has been sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Stable and machine-readable.
    pub code: Cow<'static, str>,
    /// What happened, in a few words.
    pub title: Cow<'static, str>,
    /// What happened this time.
    pub detail: String,
    /// What to change.
    pub fix: String,
    /// Whether it may pass by itself.
    pub retryable: bool,
    /// Entra's correlation id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
}

/// What a caller may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identities {
    /// One for each identity.
    pub identities: Vec<Usable>,
}

/// An identity that a caller may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usable {
    /// Its name.
    pub name: String,
    /// Whose JWT-SVID.
    pub spiffe_id: String,
    /// Whose token: the application or managed identity.
    pub client_id: String,
    /// Whose token: the tenant.
    pub tenant: String,
    /// For what; `*` is anything.
    pub resources: Vec<String>,
}

impl IdentityStatus {
    /// From the configuration and the state of the account.
    pub(super) fn of(identity: &Identity, snapshot: Snapshot) -> Self {
        let state = State::of(&snapshot);
        let error = snapshot
            .revoked
            .as_ref()
            .or(snapshot.assertion_error.as_ref());
        Self {
            name: identity.name.clone(),
            spiffe_id: identity.trust.assertion.subject.to_string(),
            tenant: identity.trust.target.tenant.to_string(),
            client_id: identity.trust.target.client_id.to_string(),
            state,
            error: error.map(Fault::from),
            issuer: snapshot.assertion_issuer,
            assertion_expires_in: snapshot.assertion_expires_in,
            tokens: snapshot.tokens.into_iter().map(TokenStatus::from).collect(),
        }
    }
}

impl State {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        if snapshot.revoked.is_some() {
            return Self::Revoked;
        }
        let failing = snapshot.tokens.iter().any(|token| token.error.is_some());
        if failing || snapshot.assertion_error.is_some() {
            return Self::Failing;
        }
        let held = snapshot.tokens.iter().any(|t| t.expires_in.is_some());
        if held { Self::Ready } else { Self::Idle }
    }

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Idle => "idle",
            Self::Failing => "failing",
            Self::Revoked => "revoked",
        }
    }
}

impl From<TokenSnapshot> for TokenStatus {
    fn from(token: TokenSnapshot) -> Self {
        Self {
            resource: token.resource,
            expires_in: token.expires_in,
            next_refresh_in: token.next_attempt_in,
            last_success_ago: token.last_success_ago,
            error: token.error.as_ref().map(Fault::from),
        }
    }
}

impl From<&Report> for Fault {
    fn from(report: &Report) -> Self {
        Self {
            code: report.code.clone(),
            title: report.title.clone(),
            detail: report.detail.clone(),
            fix: report.fix.clone(),
            retryable: report.retryable,
            correlation_id: report.correlation_id.clone(),
        }
    }
}

impl From<&Quarantined> for QuarantineStatus {
    fn from(quarantined: &Quarantined) -> Self {
        Self {
            name: quarantined.name.clone(),
            mistakes: quarantined.mistakes.clone(),
        }
    }
}

/// An endpoint as it is configured.
pub(super) fn endpoint(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Unix(path) => format!("unix://{}", path.display()),
        Endpoint::Tcp(address) => format!("tcp://{address}"),
    }
}
