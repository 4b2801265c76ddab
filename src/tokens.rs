//! The token cache.

use std::{sync::Arc, time::Duration};

use crate::{
    assertion::{Assertion, AssertionError, AssertionSource},
    config::{Limits, Trust},
    exchange::TokenExchange,
    id::Scope,
    metrics::Metrics,
    report::Report,
    secret::Secret,
    time::Clock,
};

/// All tokens of the process.
#[derive(Clone, Debug)]
pub struct Tokens {}

/// The tokens that rest on one [`Trust`], and its JWT-SVID.
#[derive(Debug)]
pub struct Account {}

/// A token that is handed out now.
#[derive(Clone, Debug)]
pub struct Served {
    /// The token with what is known of it.
    pub token: Arc<CachedToken>,
    /// What it has left, in whole seconds.
    pub expires_in: u64,
    /// When it expires, in seconds since the Unix epoch.
    pub expires_on: i64,
}

/// A token in the cache.
#[derive(Debug)]
pub struct CachedToken {
    /// The bearer token.
    pub access_token: Secret,
    /// The scope it was asked for.
    pub scope: Scope,
    /// Entra's id of the exchange.
    pub correlation_id: Option<Arc<str>>,
    /// Its `uti` claim.
    pub uti: Option<Arc<str>>,
}

/// The state of an account, for status and metrics.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The tokens held or tried for, sorted by resource.
    pub tokens: Vec<TokenSnapshot>,
    /// Seconds the JWT-SVID has left, when there is one.
    pub assertion_expires_in: Option<u64>,
    /// Its issuer, when there is one.
    pub assertion_issuer: Option<String>,
    /// The last failure to fetch a JWT-SVID, until one is fetched.
    pub assertion_error: Option<Report>,
    /// Whether tokens are withdrawn, and why.
    pub revoked: Option<Report>,
}

/// The state of one token.
#[derive(Clone, Debug)]
pub struct TokenSnapshot {
    /// The resource.
    pub resource: String,
    /// Seconds it has left, when there is one.
    pub expires_in: Option<u64>,
    /// Seconds until it is renewed or tried again, when that is planned.
    pub next_attempt_in: Option<u64>,
    /// Seconds since the last exchange that worked.
    pub last_success_ago: Option<u64>,
    /// The last failure, until the next success.
    pub error: Option<Report>,
}

/// Follows one token through its renewals.
#[derive(Debug)]
pub struct TokenWatch {}

impl Tokens {
    /// An empty cache.
    pub fn new(
        _clock: Clock,
        _source: Arc<dyn AssertionSource>,
        _exchange: Arc<dyn TokenExchange>,
        _limits: Limits,
        _metrics: Metrics,
    ) -> Self {
        todo!()
    }

    /// The account of a trust: the same for equal trusts.
    pub fn account(&self, _trust: &Trust) -> Arc<Account> {
        todo!()
    }
}

impl Account {
    /// A token from memory that is good enough to hand out, if there is one. The fast path.
    pub fn ready(&self, _scope: &Scope) -> Option<Served> {
        todo!()
    }

    /// A token, exchanged now if need be. `claims` is a decoded claims challenge (JSON).
    pub async fn token(&self, _scope: &Scope, _claims: Option<&str>) -> Result<Served, Report> {
        todo!()
    }

    /// Follows a token: the present one first, then each new one.
    pub fn watch(self: &Arc<Self>, _scope: &Scope) -> TokenWatch {
        todo!()
    }

    /// Drops this account's tokens and JWT-SVID and fetches new ones; returns how many tokens were renewed.
    pub async fn refresh(&self) -> Result<usize, Report> {
        todo!()
    }

    /// The JWT-SVID in use, fetched now if need be: tells whether SPIRE knows us.
    pub async fn assertion(&self) -> Result<Arc<Assertion>, AssertionError> {
        todo!()
    }

    /// The state, for status and metrics.
    pub fn snapshot(&self) -> Snapshot {
        todo!()
    }
}

impl TokenWatch {
    /// The next token, or why there will be none until something changes (the stream may go on).
    pub async fn next(&mut self) -> Result<Served, Report> {
        todo!()
    }
}

/// How long a caller waits for a first token at most.
pub const FIRST_TOKEN_WAIT: Duration = Duration::from_secs(10);
