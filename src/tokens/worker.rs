//! The task behind a key: when to try, and what to make of the outcome.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{select, time::sleep};

use super::{
    CachedToken, Shared,
    account::Account,
    attempt::{AttemptError, attempt},
    entry::{Entry, Failure},
    schedule,
};
use crate::{
    assertion::{AssertionError, AssertionErrorKind},
    exchange::{Class, IssuedToken},
    report::Report,
    time::Moment,
};

/// Keeps one key's token fresh until nobody wants it any more.
pub(super) async fn renew(account: Arc<Account>, entry: Arc<Entry>) {
    // Also when this ends by a panic: whoever waits looks elsewhere, and the key can be made anew.
    let _released = Released {
        account: &account,
        entry: &entry,
    };
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

/// Takes a key out of the map when its task ends, however it ends.
struct Released<'a> {
    account: &'a Account,
    entry: &'a Arc<Entry>,
}

impl Drop for Released<'_> {
    fn drop(&mut self) {
        self.account.release(self.entry, || false);
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

fn decide(account: &Account, entry: &Arc<Entry>, wake: Wake) -> Next {
    let now = account.shared.clock.now();
    let (blocked, holds_token, lifetime, permanent) = {
        let state = entry.state.borrow();
        if state.closed {
            return Next::End;
        }
        let failure = state.failure.as_ref();
        (
            failure.is_some_and(|failure| !failure.until.since(now).is_zero()),
            state.holds_token(now),
            state
                .token
                .as_ref()
                .map_or(IDLE_KEY, |token| token.lifetime),
            failure.is_some_and(|failure| failure.permanent),
        )
    };
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
            if entry.claims.is_some() || (permanent && !holds_token) {
                // Nothing to keep warm: look again later whether anybody still wants it.
                plan(entry, now.after(IDLE_KEY));
                return Next::Wait;
            }
            Next::Try
        }
    }
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
            account.succeeded(now);
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
                let token = CachedToken::new(issued, started, number);
                state.token = Some(Arc::new(token));
                state.failure = None;
                state.trying = false;
                state.last_success = Some(now);
                // A challenge is answered once, and not kept fresh.
                state.next = Some(match entry.claims {
                    None => started.after(after),
                    Some(_) => now.after(IDLE_KEY),
                });
            });
        }
        Err(error) => fail(account, entry, error, streak, now),
    }
}

fn fail(account: &Account, entry: &Entry, error: AttemptError, streak: &mut Streak, now: Moment) {
    streak.failures = streak.failures.saturating_add(1);
    let holds_token = entry.state.borrow().holds_token(now);
    let quiet = matches!(error, AttemptError::Held(..));
    let Setback {
        report,
        wait,
        permanent,
        slow,
        revokes,
    } = judge(account, error, streak, now);
    // Entra's answer to a renewal says that what was granted no longer is. To a first request, or
    // to a challenge, it says nothing about the tokens of others.
    let revokes = revokes && holds_token && entry.claims.is_none();
    if quiet {
        tracing::debug!(scope = %entry.scope, code = %report.code, "no attempt yet");
    } else {
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
    }
    if revokes {
        account.revoke(&report);
    }
    // From memory for half a minute, however long the next attempt of our own takes.
    let until = now.after(if permanent {
        schedule::REMEMBER_PERMANENT
    } else {
        wait
    });
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

/// What a failed attempt means.
struct Setback {
    report: Report,
    /// Until the next attempt.
    wait: Duration,
    permanent: bool,
    slow: bool,
    revokes: bool,
}

fn judge(account: &Account, error: AttemptError, streak: &mut Streak, now: Moment) -> Setback {
    let shared = &account.shared;
    let jitter = (shared.jitter)();
    let failures = streak.failures;
    let passing = |report, wait, slow| Setback {
        report,
        wait,
        permanent: false,
        slow,
        revokes: false,
    };
    let lasting = |mut report: Report, revokes| {
        report.retryable = false;
        let wait = schedule::permanent(failures);
        Setback {
            report,
            wait,
            permanent: true,
            slow: false,
            revokes,
        }
    };
    match error {
        AttemptError::Held(report, wait) => passing(report, schedule::held(wait, jitter), false),
        AttemptError::Assertion(error) if error.is_transient() => {
            let wait = schedule::backoff(failures, None, jitter).min(ENTRY_ARRIVES);
            passing(
                *error.report,
                wait,
                error.kind == AssertionErrorKind::Denied,
            )
        }
        AttemptError::Assertion(error) => lasting(*error.report, false),
        AttemptError::Exchange(error) => {
            let asked = error.report.retry_after;
            match error.class {
                Class::Transient => {
                    let wait = schedule::backoff(failures, asked, jitter);
                    if error.throttled {
                        shared.throttles.hold(&account.trust.target, now, wait);
                    }
                    passing(*error.report, wait, false)
                }
                Class::Propagating { window, every }
                    if is_spreading(account, streak, window, now) =>
                {
                    let wait = schedule::propagation(failures, every, jitter);
                    passing(
                        *error.report,
                        asked.map_or(wait, |asked| asked.max(wait)),
                        true,
                    )
                }
                Class::Propagating { .. } | Class::Misconfigured | Class::Denied => {
                    lasting(*error.report, error.revokes)
                }
            }
        }
    }
}

/// Whether "there is no such credential" may mean "not yet, here": within the window after a start,
/// a reload or the account's last success; and, while the account holds a token, for as long as the
/// window from the first such answer on, because one replica that lags must not take away what the
/// credential was good for a while ago.
fn is_spreading(account: &Account, streak: &mut Streak, window: Duration, now: Moment) -> bool {
    let began = *streak.unmatched_since.get_or_insert(now);
    let recently = |at: Moment| now.since(at) < window;
    recently(account.shared.rules.borrow().since)
        || account.last_success().is_some_and(recently)
        || (recently(began) && account.holds_token(now))
}

fn plan(entry: &Entry, at: Moment) {
    // Not a change that a reader waits for.
    entry.state.send_if_modified(|state| {
        state.next = Some(at);
        false
    });
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
pub(super) const SLICE: Duration = Duration::from_secs(60);
/// A registration entry reaches the agent in about five seconds.
const ENTRY_ARRIVES: Duration = Duration::from_secs(5);
