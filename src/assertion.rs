//! Assertions: the signed statements about a workload that Entra is shown.
//!
//! [`AssertionSource`] is the seam: the SPIFFE Workload API today ([`spiffe`]), Kubernetes, GitHub
//! Actions and others tomorrow. Whatever a source returns has passed [`check`].

pub mod check;
pub mod endpoint;
pub mod spiffe;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use crate::{id::SpiffeId, report::Report, secret::Secret, time::Moment};

/// The assertion that is wanted: what the federated identity credential trusts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AssertionSpec {
    /// The credential's subject and the JWT-SVID's `sub`.
    pub subject: SpiffeId,
    /// The credential's one audience and the JWT-SVID's `aud`.
    pub audience: Arc<str>,
    /// The `iss` it must carry; any, when not configured.
    pub issuer: Option<Arc<str>>,
}

/// A checked assertion.
#[derive(Clone, Debug)]
pub struct Assertion {
    /// The JWT in compact serialization.
    pub token: Secret,
    /// `iss`: the credential's issuer.
    pub issuer: String,
    /// `kid` of the signing key.
    pub key_id: String,
    /// `alg`, RS256 after the check.
    pub algorithm: String,
    /// `iat`, in seconds since the Unix epoch, where there is one.
    pub issued_at: Option<i64>,
    /// `exp`, in seconds since the Unix epoch.
    pub expires_at: i64,
    /// When it was fetched.
    pub fetched: Moment,
}

impl Assertion {
    /// How long it lives in all: `exp - iat`, or from the fetch where there is no `iat`.
    pub fn lifetime(&self) -> Duration {
        let issued = self
            .issued_at
            .unwrap_or_else(|| self.fetched.unix_seconds());
        Duration::from_secs(u64::try_from(self.expires_at.saturating_sub(issued)).unwrap_or(0))
    }
}

/// What [`AssertionSource::fetch`] returns: boxed, so that sources can stand behind `dyn`.
pub type Fetch<'a> = Pin<Box<dyn Future<Output = Result<Assertion, AssertionError>> + Send + 'a>>;

/// Where assertions come from. Does no caching and no retrying: its callers do.
pub trait AssertionSource: Send + Sync + 'static {
    /// Fetches and checks one assertion, within a deadline of the source's own.
    fn fetch<'a>(&'a self, spec: &'a AssertionSpec) -> Fetch<'a>;
}

/// Why there is no assertion. Cheap to clone: many callers wait for the same answer.
#[derive(Clone, Debug)]
pub struct AssertionError {
    /// What kind of failure it is, for those who must act on it.
    pub kind: AssertionErrorKind,
    /// The same for people. Boxed, to keep `Result`s small.
    pub report: Box<Report>,
}

/// What went wrong between us and the assertion's issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssertionErrorKind {
    /// The source knows us not, or not yet (PermissionDenied): there is no registration entry.
    Denied,
    /// The source is not there, or says it is busy (Unavailable), or did not answer in time.
    Unavailable,
    /// The source says that the request is wrong (InvalidArgument, Unimplemented).
    Refused,
    /// What came back is not what was asked for, or Entra would refuse it.
    Unusable,
}

impl AssertionError {
    /// Whether it may pass by itself.
    pub fn is_transient(&self) -> bool {
        self.report.retryable
    }
}
