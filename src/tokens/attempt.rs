//! One attempt at a token: within our limits and Entra's wishes, a JWT-SVID and an exchange.

use std::time::Duration;

use super::{account::Account, entry::Entry};
use crate::{
    assertion::{Assertion, AssertionError},
    exchange::{ExchangeError, ExchangeRequest, IssuedToken},
    metrics::Exchanged,
    report::Report,
    time::Moment,
};

/// Why an attempt failed.
pub(super) enum AttemptError {
    Assertion(AssertionError),
    Exchange(ExchangeError),
    /// Our own limit, or Entra's wish to be left alone: nothing was asked.
    Held(Report, Duration),
}

/// One attempt: a JWT-SVID, then an exchange; and once more with a newer JWT-SVID if Entra says that
/// this one is outside its time range.
pub(super) async fn attempt(
    account: &Account,
    entry: &Entry,
) -> Result<(IssuedToken, Moment), AttemptError> {
    let spec = &account.trust.assertion;
    let assertion = account
        .keeper()
        .get(spec)
        .await
        .map_err(AttemptError::Assertion)?;
    match post(account, entry, &assertion).await {
        Err(AttemptError::Exchange(error)) if error.stale_assertion => {
            let fresh = account
                .keeper()
                .fetch(spec)
                .await
                .map_err(AttemptError::Assertion)?;
            // The agent hands out the same SVID until its half-life: sending it again is pointless.
            if fresh.expires_at == assertion.expires_at && fresh.key_id == assertion.key_id {
                return Err(AttemptError::Exchange(error));
            }
            tracing::debug!(scope = %entry.scope, "exchanging a newer JWT-SVID after AADSTS700024");
            post(account, entry, &fresh).await
        }
        other => other,
    }
}

async fn post(
    account: &Account,
    entry: &Entry,
    assertion: &Assertion,
) -> Result<(IssuedToken, Moment), AttemptError> {
    let shared = &account.shared;
    let target = &account.trust.target;
    let _own = account.flights.acquire().await;
    let _flight = shared.flights.acquire().await;
    let now = shared.clock.now();
    if let Some(left) = shared.throttles.remaining(target, now) {
        return Err(AttemptError::Held(throttled(), left));
    }
    let per_minute = shared.limits().exchanges_per_minute;
    if let Err(wait) = account.allowance.take(per_minute, now) {
        return Err(AttemptError::Held(too_many_exchanges(per_minute), wait));
    }
    let request = ExchangeRequest {
        target,
        scope: &entry.scope,
        claims: entry.claims.as_deref(),
        assertion,
    };
    let result = shared.exchange.exchange(request).await;
    let (class, code) = match &result {
        Ok(_) => ("ok", "ok"),
        Err(error) => (error.class.as_str(), error.report.label()),
    };
    let labels = Exchanged {
        class: class.into(),
        code: code.into(),
    };
    shared.metrics.exchanges.get_or_create(&labels).inc();
    result
        .map(|issued| (issued, now))
        .map_err(AttemptError::Exchange)
}

fn throttled() -> Report {
    Report::transient(
        "entra-throttled",
        "Entra asked to be left alone",
        "Entra answered 429 for this tenant and client; nothing is sent until it may be",
        "wait; if this lasts, ask for fewer tokens or spread them over more applications",
    )
}

fn too_many_exchanges(per_minute: u32) -> Report {
    Report::transient(
        "limit-exchanges",
        "too many exchanges",
        format!("this identity has made {per_minute} exchanges within a minute"),
        "find out who asks for so many different tokens, or raise limits.exchanges_per_minute",
    )
}
