//! The exchange of an assertion for an access token (RFC 7523, section 2.2).
//!
//! [`TokenExchange`] is the seam; [`entra`] is the one POST behind it and [`aadsts`] the table that
//! says what Entra's error codes mean.

pub mod aadsts;
pub mod entra;
pub mod settings;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use url::Url;

use crate::{assertion::Assertion, id::Scope, report::Report, secret::Secret};

/// Whose tokens are asked for, and where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// `https://login.microsoftonline.com`, another cloud's, or a private one. No path.
    pub authority: Url,
    /// GUID or verified domain.
    pub tenant: Arc<str>,
    /// Of the application or managed identity; a GUID in lower case.
    pub client_id: Arc<str>,
}

/// One exchange to make.
#[derive(Clone, Copy, Debug)]
pub struct ExchangeRequest<'a> {
    /// Whose token.
    pub target: &'a Target,
    /// For what.
    pub scope: &'a Scope,
    /// A claims challenge (the JSON, decoded) to satisfy.
    pub claims: Option<&'a str>,
    /// Why Entra should believe it.
    pub assertion: &'a Assertion,
}

/// What Entra issued.
#[derive(Clone, Debug)]
pub struct IssuedToken {
    /// The access token: opaque to us.
    pub access_token: Secret,
    /// Its life from the moment of the request.
    pub lifetime: Duration,
    /// When Entra wants it renewed, counted likewise.
    pub refresh_in: Option<Duration>,
    /// Entra's id of this exchange.
    pub correlation_id: Option<Arc<str>>,
    /// The token's `uti` claim, which Entra's sign-in log carries too, when it can be read.
    pub uti: Option<Arc<str>>,
}

/// What [`TokenExchange::exchange`] returns: boxed, so that it can stand behind `dyn` and an idle
/// cache entry does not carry an HTTP client's state.
pub type Exchange<'a> =
    Pin<Box<dyn Future<Output = Result<IssuedToken, ExchangeError>> + Send + 'a>>;

/// Makes exchanges. Does no caching and no retrying: its callers do.
pub trait TokenExchange: Send + Sync + 'static {
    /// One exchange, within a deadline of its own.
    fn exchange<'a>(&'a self, request: ExchangeRequest<'a>) -> Exchange<'a>;
}

/// Why there is no token. Cheap to clone: many callers wait for the same answer.
#[derive(Clone, Debug)]
pub struct ExchangeError {
    /// How the failure behaves in time.
    pub class: Class,
    /// Whether a token issued before must no longer be served: what it was issued for is no longer
    /// allowed (client disabled or deleted, issuer blocked, credential gone). With
    /// [`Class::Propagating`] it counts once the window is over.
    pub revokes: bool,
    /// Entra asked everybody of this tenant and client to slow down (HTTP 429).
    pub throttled: bool,
    /// Entra says the assertion is outside its time range (700024): a fresh one may do.
    pub stale_assertion: bool,
    /// The same for people; `retry_after` is what Entra asked for. Boxed, to keep `Result`s small.
    pub report: Box<Report>,
}

/// How a failure behaves in time (`T`, `P`, `M`, `D` of the AADSTS table).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Passes by itself: retried with back-off.
    Transient,
    /// Passes by itself if something was changed lately, and is [`Class::Misconfigured`] otherwise.
    Propagating {
        /// How long after a start, a reload or a success it may last.
        window: Duration,
        /// How long to wait between attempts at least.
        every: Duration,
    },
    /// Somebody must change something.
    Misconfigured,
    /// Somebody decided so.
    Denied,
}

impl Class {
    /// A stable, low-cardinality label for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transient => "transient",
            Self::Propagating { .. } => "propagating",
            Self::Misconfigured => "misconfigured",
            Self::Denied => "denied",
        }
    }
}
