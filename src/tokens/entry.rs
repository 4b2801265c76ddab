//! One key of the cache: a token that is kept fresh by a task of its own.
//!
//! The task is the only one that exchanges; everybody else reads its state through a `watch`
//! channel and may ask it to hurry. Withdrawal (revocation, reload, refresh) writes the state too,
//! under the channel's lock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, watch};

use super::{CachedToken, Served, schedule};
use crate::{
    id::Scope,
    report::Report,
    time::{Expiry, Moment},
};

/// One key: a scope (and a claims challenge) of an account.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) scope: Scope,
    /// A decoded claims challenge; such a key is not renewed, only asked for.
    pub(super) claims: Option<Box<str>>,
    pub(super) state: watch::Sender<State>,
    /// Somebody wants an attempt now.
    pub(super) want: Notify,
    /// Somebody wants an attempt although there is a fresh token.
    pub(super) force: AtomicBool,
    /// When it was last asked for, in seconds of the boot-time clock.
    asked: AtomicI64,
    /// Streams and waiting callers.
    followers: AtomicUsize,
}

/// Keeps a key alive.
pub(super) struct Follower<'a>(&'a Entry);

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        self.0.end_following();
    }
}

/// What is known of a key.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The token, until it is replaced or withdrawn. May have expired.
    pub(super) token: Option<Arc<CachedToken>>,
    /// The last failure, until the next success.
    pub(super) failure: Option<Failure>,
    /// An attempt is under way.
    pub(super) trying: bool,
    /// When the task will look again by itself.
    pub(super) next: Option<Moment>,
    /// Exchanges that worked.
    pub(super) successes: u64,
    /// When the last of them was.
    pub(super) last_success: Option<Moment>,
    /// The task has ended and the key is out of the map.
    pub(super) closed: bool,
}

/// A failed attempt.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) report: Arc<Report>,
    /// Until when it is the answer, because nothing is tried before.
    pub(super) until: Moment,
    /// Somebody must change something first.
    pub(super) permanent: bool,
    /// Passes in minutes rather than seconds: callers are not kept waiting for it.
    pub(super) slow: bool,
}

/// What a caller gets from the present state.
pub(super) enum Verdict {
    /// This.
    Serve(Served),
    /// Nothing, for this reason.
    Fail(Report),
    /// Nothing yet: look again after a change, for so long at most.
    Wait { limit: Duration, kick: bool },
    /// The key is gone from the map: look it up again.
    Closed,
}

impl Entry {
    pub(super) fn new(scope: Scope, claims: Option<&str>, now: Moment) -> Self {
        let entry = Self {
            scope,
            claims: claims.map(Into::into),
            state: watch::Sender::default(),
            want: Notify::new(),
            force: AtomicBool::new(false),
            asked: AtomicI64::new(0),
            followers: AtomicUsize::new(0),
        };
        entry.touch(now);
        entry
    }

    /// Notes that it was asked for.
    pub(super) fn touch(&self, now: Moment) {
        let seconds = now.boot_seconds();
        // A store to a shared cache line for every request would be felt; once a second is enough.
        if self.asked.load(Ordering::Relaxed) != seconds {
            self.asked.store(seconds, Ordering::Relaxed);
        }
    }

    /// When it was last asked for, in seconds of the boot-time clock; `None` while it is followed.
    pub(super) fn idle_since(&self) -> Option<i64> {
        let followed = self.followers.load(Ordering::Relaxed) > 0;
        (!followed).then(|| self.asked.load(Ordering::Relaxed))
    }

    /// Whether anybody has asked for it within `time`, or is waiting or following now.
    pub(super) fn is_wanted(&self, now: Moment, time: Duration) -> bool {
        let ago = now.boot_seconds() - self.asked.load(Ordering::Relaxed);
        self.followers.load(Ordering::Relaxed) > 0
            || u64::try_from(ago).unwrap_or(0) <= time.as_secs()
    }

    /// Asks for a new exchange whatever is held; returns the number of the success that satisfies.
    /// One that is under way already will do.
    pub(super) fn demand(&self) -> u64 {
        self.force.store(true, Ordering::Release);
        self.state.borrow().successes + 1
    }

    /// Ends the key: whoever waits for it looks elsewhere.
    pub(super) fn close(&self) {
        self.state.send_modify(|state| {
            state.closed = true;
            state.token = None;
        });
        // Its task ends.
        self.want.notify_one();
    }

    pub(super) fn begin_following(&self) {
        self.followers.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end_following(&self) {
        self.followers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Keeps the key alive until the guard is dropped.
    pub(super) fn follow(&self) -> Follower<'_> {
        self.begin_following();
        Follower(self)
    }

    /// A token that is good enough without trying anything. The fast path.
    pub(super) fn ready(&self, now: Moment) -> Option<Served> {
        let state = self.state.borrow();
        let token = state.token.as_ref()?;
        let served = Served::new(token, now)?;
        (token.expiry.remaining(now) >= schedule::freshness(token.lifetime)).then_some(served)
    }

    /// What a caller gets who began to wait `waited` ago and wants the result of exchange number
    /// `wanted` or later.
    pub(super) fn judge(&self, now: Moment, waited: Duration, wanted: u64) -> Verdict {
        let state = self.state.borrow();
        let valid = state
            .token
            .as_ref()
            .filter(|token| token.number >= wanted)
            .and_then(|token| Some((token, Served::new(token, now)?)));
        if let Some((token, served)) = &valid
            && token.expiry.remaining(now) >= schedule::freshness(token.lifetime)
        {
            return Verdict::Serve(served.clone());
        }
        if state.closed {
            return Verdict::Closed;
        }
        let failure = state.failure.as_ref();
        let patience = match (&valid, failure) {
            (Some(_), _) => RENEWAL_WAIT,
            (None, Some(failure)) if failure.slow => SPREADING_WAIT,
            (None, _) => super::FIRST_TOKEN_WAIT,
        };
        let left = patience.saturating_sub(waited);
        let retry_in = failure
            .map(|f| f.until.since(now))
            .filter(|wait| !wait.is_zero());
        let hopeless = match (failure, retry_in) {
            _ if state.trying => false,
            (Some(failure), Some(wait)) => failure.permanent || valid.is_some() || wait > left,
            _ => false,
        };
        if !hopeless && !left.is_zero() {
            return Verdict::Wait {
                limit: left,
                kick: !state.trying && retry_in.is_none(),
            };
        }
        match (valid, failure) {
            (Some((_, served)), _) => Verdict::Serve(served),
            (None, Some(failure)) => Verdict::Fail(failure.answer(now)),
            (None, None) => Verdict::Fail(still_trying()),
        }
    }
}

impl State {
    /// Whether there is a token that has not expired.
    pub(super) fn holds_token(&self, now: Moment) -> bool {
        self.token
            .as_ref()
            .is_some_and(|token| !token.expiry.is_past(now))
    }
}

impl Failure {
    /// The report with the time until the next attempt.
    pub(super) fn answer(&self, now: Moment) -> Report {
        let mut report = (*self.report).clone();
        report.retryable = !self.permanent;
        report.retry_after = report
            .retryable
            .then(|| self.until.since(now).max(Duration::from_secs(1)));
        report
    }
}

impl Served {
    /// `None` once it has expired.
    pub(super) fn new(token: &Arc<CachedToken>, now: Moment) -> Option<Self> {
        let remaining = token.expiry.remaining(now).as_secs();
        (remaining > 0).then(|| Self {
            token: Arc::clone(token),
            expires_in: remaining,
            expires_on: token.expiry.unix_seconds(now),
        })
    }
}

impl CachedToken {
    pub(super) fn new(issued: crate::exchange::IssuedToken, started: Moment, number: u64) -> Self {
        Self {
            is_plain: is_plain(issued.access_token.expose()),
            access_token: issued.access_token,
            correlation_id: issued.correlation_id,
            uti: issued.uti,
            // Counted from before the request: Entra's clock started no earlier.
            expiry: Expiry::after(started, issued.lifetime),
            lifetime: issued.lifetime,
            number,
        }
    }
}

/// Whether a text means itself between the quotes of a JSON string. Looked at once for each token:
/// at each answer it would be felt.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|b| b > 0x1f && b != b'"' && b != b'\\')
}

fn still_trying() -> Report {
    let mut report = Report::transient(
        "still-trying",
        "no token yet",
        "SPIRE or Entra has not answered so far; the attempt goes on",
        "ask again; if this lasts, look at `spiffe-entra status`",
    );
    report.retry_after = Some(Duration::from_secs(1));
    report
}

/// How long a caller waits for a better token than a valid one.
const RENEWAL_WAIT: Duration = Duration::from_secs(2);
/// How long a caller waits when the answer is that a change has not spread yet.
const SPREADING_WAIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_is_what_json_does_not_change() {
        for character in (0..=255).map(char::from) {
            let text = format!("eyJ0.{character}");
            let json = serde_json::Value::from(&*text).to_string();
            assert_eq!(is_plain(&text), json == format!("\"{text}\""), "{text:?}");
        }
    }
}
