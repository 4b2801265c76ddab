//! The tasks behind an account: one that renews each key's token, one that renews the JWT-SVID.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{select, time::sleep};

use super::{
    CachedToken, Shared,
    account::Account,
    entry::{Entry, Failure},
    schedule,
};
use crate::{
    assertion::{Assertion, AssertionError, AssertionErrorKind},
    exchange::{Class, ExchangeError, ExchangeRequest, IssuedToken},
    metrics::Exchanged,
    report::Report,
    time::Moment,
};

/// Keeps one key's token fresh until nobody wants it any more.
pub(super) async fn renew(account: Arc<Account>, entry: Arc<Entry>) {
    let mut streak = Streak::default();
    let mut first = true;
    loop {
        if !first {
            let wake = select! {
                biased;
                () = account.stop.cancelled() => return entry.close(),
                () = entry.want.notified() => Wake::Wanted,
                () = due(&account.shared, &entry) => Wake::Due,
            };
            match decide(&account, &entry, wake) {
                Next::Wait => continue,
                Next::End => return,
                Next::Try => {}
            }
        }
        first = false;
        entry.force.store(false, Ordering::Release);
        entry.state.send_modify(|state| state.trying = true);
        let outcome = select! {
            biased;
            () = account.stop.cancelled() => return entry.close(),
            // Boxed: an idle key should not carry an exchange's state.
            outcome = Box::pin(attempt(&account, &entry)) => outcome,
        };
        settle(&account, &entry, outcome, &mut streak);
    }
}

enum Wake {
    /// The planned time has come.
    Due,
    /// A caller asks for an attempt.
    Wanted,
}

enum Next {
    Try,
    Wait,
    End,
}

/// Failures in a row.
#[derive(Default)]
struct Streak {
    failures: u32,
    /// Since when Entra has said that the credential is not there.
    unmatched_since: Option<Moment>,
}

/// Why an attempt failed.
enum AttemptError {
    Assertion(AssertionError),
    Exchange(ExchangeError),
    /// Our own limit, or Entra's wish to be left alone: nothing was asked.
    Held(Report, Duration),
}

/// Sleeps until the key's planned time. In slices, because the timer does not see a suspended
/// machine and the plan is on the boot-time clock.
async fn due(shared: &Shared, entry: &Entry) {
    loop {
        let next = entry.state.borrow().next;
        let left = next.map_or(SLICE, |next| next.since(shared.clock.now()));
        if left.is_zero() {
            return;
        }
        sleep(left.min(SLICE)).await;
        if next.is_none() {
            return;
        }
    }
}

fn decide(account: &Account, entry: &Entry, wake: Wake) -> Next {
    let now = account.shared.clock.now();
    let state = entry.state.borrow();
    let blocked = state
        .failure
        .as_ref()
        .is_some_and(|f| !f.until.since(now).is_zero());
    let lifetime = state
        .token
        .as_ref()
        .map_or(IDLE_KEY, |token| token.lifetime);
    let has_token = state
        .token
        .as_ref()
        .is_some_and(|token| !token.expiry.is_past(now));
    let permanent = state
        .failure
        .as_ref()
        .is_some_and(|failure| failure.permanent);
    let recoverable = !permanent;
    drop(state);
    match wake {
        Wake::Wanted if entry.force.load(Ordering::Acquire) => Next::Try,
        Wake::Wanted if blocked || entry.ready(now).is_some() => Next::Wait,
        Wake::Wanted => Next::Try,
        Wake::Due => {
            let wanted_within = if entry.claims.is_some() {
                IDLE_KEY
            } else {
                lifetime
            };
            let is_wanted = || entry.is_wanted(now, wanted_within);
            if !is_wanted() && account.release(entry, is_wanted) {
                return Next::End;
            }
            if entry.claims.is_some() || !(has_token || recoverable) {
                // Nothing to keep warm: look again later whether anybody still wants it.
                plan(entry, now.after(IDLE_KEY));
                return Next::Wait;
            }
            Next::Try
        }
    }
}

/// One attempt: a JWT-SVID, then an exchange; and once more with a newer JWT-SVID if Entra says that
/// this one is outside its time range.
async fn attempt(account: &Account, entry: &Entry) -> Result<(IssuedToken, Moment), AttemptError> {
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
        Ok(_) => ("ok", "ok".into()),
        Err(error) => (error.class.as_str(), error.report.code.clone()),
    };
    let labels = Exchanged {
        class: class.into(),
        code: code.into_owned(),
    };
    shared.metrics.exchanges.get_or_create(&labels).inc();
    result
        .map(|issued| (issued, now))
        .map_err(AttemptError::Exchange)
}

/// Writes the outcome of an attempt into the key's state and plans the next.
fn settle(
    account: &Account,
    entry: &Entry,
    outcome: Result<(IssuedToken, Moment), AttemptError>,
    streak: &mut Streak,
) {
    let shared = &account.shared;
    let now = shared.clock.now();
    match outcome {
        Ok(_) if account.revoked().is_some() && account.keeper().denied_for().is_some() => {
            // Withdrawn while the exchange was under way.
            entry.state.send_modify(|state| {
                state.trying = false;
                state.next = Some(now.after(IDLE_KEY));
            });
        }
        Ok((issued, started)) => {
            *streak = Streak::default();
            account.restore();
            let after =
                schedule::refresh_after(issued.lifetime, issued.refresh_in, (shared.jitter)());
            tracing::debug!(
                subject = %account.trust.assertion.subject,
                scope = %entry.scope,
                lifetime = issued.lifetime.as_secs(),
                renewal_in = after.as_secs(),
                correlation_id = issued.correlation_id.as_deref(),
                "token issued"
            );
            entry.state.send_modify(|state| {
                if state.closed {
                    return;
                }
                state.successes += 1;
                let number = state.successes;
                let token = CachedToken::new(issued, entry.scope.clone(), started, number);
                state.token = Some(Arc::new(token));
                state.failure = None;
                state.trying = false;
                state.last_success = Some(now);
                state.next = Some(started.after(after));
            });
        }
        Err(error) => fail(account, entry, error, streak, now),
    }
}

fn fail(account: &Account, entry: &Entry, error: AttemptError, streak: &mut Streak, now: Moment) {
    let shared = &account.shared;
    let jitter = (shared.jitter)();
    streak.failures = streak.failures.saturating_add(1);
    let failures = streak.failures;
    let (last_success, holds_token) = {
        let state = entry.state.borrow();
        let holds = state
            .token
            .as_ref()
            .is_some_and(|token| !token.expiry.is_past(now));
        (state.last_success, holds)
    };
    let mut revokes = false;
    let (report, wait, permanent, slow) = match error {
        AttemptError::Held(report, wait) => (report, wait, false, false),
        AttemptError::Assertion(error) => {
            let denied = error.kind == AssertionErrorKind::Denied;
            let permanent = !error.is_transient();
            let wait = if permanent {
                schedule::permanent(failures)
            } else {
                schedule::backoff(failures, None, jitter).min(ENTRY_ARRIVES)
            };
            (*error.report, wait, permanent, denied)
        }
        AttemptError::Exchange(error) => {
            let asked = error.report.retry_after;
            let mut report = *error.report;
            match error.class {
                Class::Transient => {
                    let wait = schedule::backoff(failures, asked, jitter);
                    if error.throttled {
                        shared.throttles.hold(&account.trust.target, now, wait);
                    }
                    (report, wait, false, false)
                }
                Class::Propagating { window, every }
                    if is_spreading(shared, streak, last_success, holds_token, window, now) =>
                {
                    let wait = schedule::propagation(failures, every, jitter);
                    (
                        report,
                        asked.map_or(wait, |asked| asked.max(wait)),
                        false,
                        true,
                    )
                }
                Class::Propagating { .. } | Class::Misconfigured | Class::Denied => {
                    revokes = error.revokes;
                    report.retryable = false;
                    (report, schedule::permanent(failures), true, false)
                }
            }
        }
    };
    tracing::warn!(
        subject = %account.trust.assertion.subject,
        client_id = %account.trust.target.client_id,
        scope = %entry.scope,
        code = %report.code,
        detail = %report.detail,
        fix = %report.fix,
        permanent,
        retry_in = wait.as_secs_f32(),
        still_served = holds_token && !revokes,
        correlation_id = report.correlation_id.as_deref(),
        "no new token"
    );
    if revokes {
        account.revoke(&report);
    }
    // From memory for half a minute, however long the next attempt of our own takes.
    let until = if permanent {
        now.after(schedule::REMEMBER_PERMANENT)
    } else {
        now.after(wait)
    };
    entry.state.send_modify(|state| {
        state.trying = false;
        state.failure = Some(Failure {
            report: Arc::new(report),
            until,
            permanent,
            slow,
        });
        state.next = Some(now.after(wait));
    });
}

/// Whether "there is no such credential" may mean "not yet, here": within the window after a start,
/// a reload or the last success; and, while a token is held, for as long as the window from the
/// first such answer on, because one replica that lags must not take a good token away.
fn is_spreading(
    shared: &Shared,
    streak: &mut Streak,
    last_success: Option<Moment>,
    holds_token: bool,
    window: Duration,
    now: Moment,
) -> bool {
    let began = *streak.unmatched_since.get_or_insert(now);
    let since_rules = shared.rules.borrow().since;
    let recently = |at: Moment| now.since(at) < window;
    recently(since_rules) || last_success.is_some_and(recently) || (holds_token && recently(began))
}

/// Keeps the account's JWT-SVID fresh while there are keys, and withdraws their tokens when SPIRE
/// has denied it for too long.
pub(super) async fn keep(account: Arc<Account>) {
    let shared = &account.shared;
    let mut failures = 0;
    let mut signer = None;
    loop {
        let wait = match account.keeper().due_in() {
            Some(due) if failures == 0 => due,
            // The keys fetch first; there is nothing to keep yet.
            None if failures == 0 && account.keeper().denied_for().is_none() => FIRST_LOOK,
            _ => schedule::backoff(failures.max(1), None, (shared.jitter)()).min(KEEP_RETRY),
        };
        // Not beyond the moment at which tokens are to be withdrawn; and in slices, so that a
        // suspended machine is noticed.
        let limit = shared.limits().revoke_after;
        let left = account
            .keeper()
            .denied_for()
            .and_then(|denied| limit.checked_sub(denied));
        let wait = wait.min(SLICE).min(left.unwrap_or(SLICE));
        select! {
            biased;
            () = account.stop.cancelled() => return,
            () = sleep(wait) => {}
        }
        if account.entries().is_empty() && account.stop_keeping() {
            return;
        }
        if account.keeper().due_in().is_some_and(|due| !due.is_zero()) {
            failures = 0;
        } else {
            let fetched = select! {
                biased;
                () = account.stop.cancelled() => return,
                fetched = account.keeper().fetch(&account.trust.assertion) => fetched,
            };
            match fetched {
                Ok(_) if account.keeper().error().is_none() => failures = 0,
                Ok(_) | Err(_) => failures = failures.saturating_add(1),
            }
        }
        watch_consent(&account);
        let current = account.keeper().signer();
        if current.is_some() && current != signer {
            if signer.is_some() {
                account.forgive();
            }
            signer = current;
        }
    }
}

/// Withdraws tokens that SPIRE no longer consents to, and ends a withdrawal that it lifted.
fn watch_consent(account: &Account) {
    let limit = account.shared.limits().revoke_after;
    match account.keeper().denied_for() {
        Some(time) if time >= limit => {
            if account.revoked().is_none()
                && let Some(error) = account.keeper().error()
            {
                account.revoke(&error.report);
            }
        }
        Some(_) => {}
        None => {
            let by_spire = account.revoked().is_some_and(|report| report.retryable);
            if by_spire && account.keeper().signer().is_some() {
                account.restore();
                account.forgive();
            }
        }
    }
}

fn plan(entry: &Entry, at: Moment) {
    // Not a change that a reader waits for.
    entry.state.send_if_modified(|state| {
        state.next = Some(at);
        false
    });
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

/// The answer to those who wait when an account is closed.
pub(super) fn closed() -> Report {
    Report::transient(
        "stopping",
        "the identity is going away",
        "the daemon stops, or a reload changed this identity",
        "ask again",
    )
}

/// As [`closed`], for those who wait for a JWT-SVID.
pub(super) fn stopping_assertion() -> AssertionError {
    AssertionError {
        kind: AssertionErrorKind::Unavailable,
        report: Box::new(closed()),
    }
}

/// How long a key without a token is kept, and how often one that needs nothing is looked at.
const IDLE_KEY: Duration = Duration::from_secs(60);
/// The longest sleep in one piece.
const SLICE: Duration = Duration::from_secs(60);
/// How soon the JWT-SVID's task first looks at what the keys have fetched.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// How often at least SPIRE is asked again after it did not give a JWT-SVID.
const KEEP_RETRY: Duration = Duration::from_secs(30);
/// A registration entry reaches the agent in about five seconds.
const ENTRY_ARRIVES: Duration = Duration::from_secs(5);
