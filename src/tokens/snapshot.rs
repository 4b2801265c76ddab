//! The state of an account as `status` and the metrics show it.

use super::{account::Account, entry::Entry};
use crate::{report::Report, time::Moment};

/// The state of an account.
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
    /// Why tokens are withdrawn, when they are.
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

impl Snapshot {
    pub(super) fn of(account: &Account, now: Moment) -> Self {
        let mut tokens: Vec<_> = account
            .keys()
            .plain_entries()
            .iter()
            .map(|entry| TokenSnapshot::of(entry, now))
            .collect();
        tokens.sort_by(|a, b| a.resource.cmp(&b.resource));
        let keeper = account.keeper();
        Self {
            tokens,
            assertion_expires_in: keeper.expires_in(),
            assertion_issuer: keeper.signer().map(|(issuer, _)| issuer),
            assertion_error: keeper.error().map(|error| *error.report),
            revoked: account.revoked().map(|report| (*report).clone()),
        }
    }
}

impl TokenSnapshot {
    fn of(entry: &Entry, now: Moment) -> Self {
        let state = entry.state.borrow();
        Self {
            resource: entry.scope.resource().to_owned(),
            expires_in: state
                .token
                .as_ref()
                .map(|token| token.expiry.remaining(now).as_secs())
                .filter(|left| *left > 0),
            next_attempt_in: state.next.map(|next| next.since(now).as_secs()),
            last_success_ago: state.last_success.map(|at| now.since(at).as_secs()),
            error: state
                .failure
                .as_ref()
                .map(|failure| (*failure.report).clone()),
        }
    }
}
