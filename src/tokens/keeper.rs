//! Keeps one account's JWT-SVID: one fetch at a time, reused while young, and the record of how
//! long the Workload API has been saying that we are not allowed to have it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::schedule;
use crate::{
    assertion::{Assertion, AssertionError, AssertionErrorKind, AssertionSource, AssertionSpec},
    metrics::{Metrics, Outcome},
    time::{Clock, Expiry, Moment},
};

/// One account's JWT-SVID.
pub(super) struct Keeper {
    clock: Clock,
    source: Arc<dyn AssertionSource>,
    metrics: Metrics,
    jitter: fn() -> f64,
    /// Held over a fetch: whoever waits for it takes the result over.
    flight: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    current: Option<Held>,
    /// The last failure, until the next success.
    error: Option<(Moment, AssertionError)>,
    /// Since when every fetch has been denied.
    denied_since: Option<Moment>,
    /// Fetches that ended, however.
    finished: u64,
}

#[derive(Clone)]
struct Held {
    assertion: Arc<Assertion>,
    expiry: Expiry,
    /// When it is to be fetched again.
    due: Moment,
}

impl Keeper {
    pub(super) fn new(
        clock: Clock,
        source: Arc<dyn AssertionSource>,
        metrics: Metrics,
        jitter: fn() -> f64,
    ) -> Self {
        Self {
            clock,
            source,
            metrics,
            jitter,
            flight: tokio::sync::Mutex::new(()),
            state: Mutex::default(),
        }
    }

    /// The JWT-SVID to exchange: the one at hand while it is young, else a new one. While the
    /// Workload API is out of reach, the one at hand for as long as it lives.
    pub(super) async fn get(&self, spec: &AssertionSpec) -> Result<Arc<Assertion>, AssertionError> {
        let now = self.clock.now();
        {
            let state = self.state();
            if let Some(held) = &state.current
                && held.due.since(now) > Duration::ZERO
                && is_usable(held, now)
            {
                return Ok(Arc::clone(&held.assertion));
            }
            // Sixty-four keys that fail together ask once.
            if let Some((at, error)) = &state.error
                && now.since(*at) < RETRY_FLOOR
            {
                return state.fallback(error, now);
            }
        }
        self.fetch(spec).await
    }

    /// A JWT-SVID fetched now, whatever is at hand.
    pub(super) async fn fetch(
        &self,
        spec: &AssertionSpec,
    ) -> Result<Arc<Assertion>, AssertionError> {
        let before = self.state().finished;
        let _flight = self.flight.lock().await;
        {
            let state = self.state();
            if state.finished != before {
                let now = self.clock.now();
                return match (&state.error, &state.current) {
                    (Some((_, error)), _) => state.fallback(error, now),
                    (None, Some(held)) => Ok(Arc::clone(&held.assertion)),
                    (None, None) => Err(forgotten()),
                };
            }
        }
        let result = self.source.fetch(spec).await;
        let now = self.clock.now();
        let mut state = self.state();
        state.finished += 1;
        match result {
            Ok(assertion) => {
                self.metrics
                    .assertions
                    .get_or_create(&Outcome::of("ok"))
                    .inc();
                let expiry = Expiry::at_unix_seconds(now, assertion.expires_at);
                let due = now.after(schedule::refetch_after(
                    expiry.remaining(now),
                    (self.jitter)(),
                ));
                let assertion = Arc::new(assertion);
                state.current = Some(Held {
                    assertion: Arc::clone(&assertion),
                    expiry,
                    due,
                });
                state.error = None;
                state.denied_since = None;
                Ok(assertion)
            }
            Err(error) => {
                let outcome = Outcome::of(error.report.label());
                self.metrics.assertions.get_or_create(&outcome).inc();
                if error.kind == AssertionErrorKind::Denied {
                    state.denied_since.get_or_insert(now);
                    state.current = None;
                }
                state.error = Some((now, error.clone()));
                state.fallback(&error, now)
            }
        }
    }

    /// Forgets what is at hand, so that the next use fetches.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        state.current = None;
        state.error = None;
    }

    /// Drops the one at hand; what is known of the last fetch stays.
    pub(super) fn drop_current(&self) {
        self.state().current = None;
    }

    /// Whether a fetch has ended, however.
    pub(super) fn has_fetched(&self) -> bool {
        self.state().finished > 0
    }

    /// Forgets for how long we have been denied: nothing is held that this would concern.
    pub(super) fn forget_denial(&self) {
        self.state().denied_since = None;
    }

    /// For how long every fetch has been denied.
    pub(super) fn denied_for(&self) -> Option<Duration> {
        let now = self.clock.now();
        self.state().denied_since.map(|since| now.since(since))
    }

    /// How long until the one at hand is to be fetched again; `None` when there is none.
    pub(super) fn due_in(&self) -> Option<Duration> {
        let now = self.clock.now();
        self.state()
            .current
            .as_ref()
            .map(|held| held.due.since(now))
    }

    /// Issuer and key of the one at hand: when they change, what Entra said before is worth nothing.
    pub(super) fn signer(&self) -> Option<(String, String)> {
        let state = self.state();
        let held = state.current.as_ref()?;
        Some((held.assertion.issuer.clone(), held.assertion.key_id.clone()))
    }

    /// The last failure, until the next success.
    pub(super) fn error(&self) -> Option<AssertionError> {
        self.state().error.as_ref().map(|(_, error)| error.clone())
    }

    /// Seconds the one at hand has left.
    pub(super) fn expires_in(&self) -> Option<u64> {
        let now = self.clock.now();
        let state = self.state();
        let left = state.current.as_ref()?.expiry.remaining(now).as_secs();
        (left > 0).then_some(left)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What there is to use although the last fetch failed: an SVID that lives, if the Workload API
    /// is merely out of reach.
    fn fallback(
        &self,
        error: &AssertionError,
        now: Moment,
    ) -> Result<Arc<Assertion>, AssertionError> {
        match &self.current {
            Some(held) if error.kind == AssertionErrorKind::Unavailable && is_usable(held, now) => {
                Ok(Arc::clone(&held.assertion))
            }
            _ => Err(error.clone()),
        }
    }
}

fn is_usable(held: &Held, now: Moment) -> bool {
    let enough = (held.assertion.lifetime() / 2).min(MIN_LEFT);
    held.expiry.remaining(now) >= enough && !held.expiry.is_past(now)
}

/// The SVID was dropped (`refresh`) between a fetch and the look at its result.
fn forgotten() -> AssertionError {
    AssertionError {
        kind: AssertionErrorKind::Unavailable,
        report: Box::new(crate::report::Report::transient(
            "svid-dropped",
            "the JWT-SVID was dropped while it was being used",
            "a refresh was asked for at the same moment",
            "ask again",
        )),
    }
}

/// What an SVID must have left to be sent to Entra, unless half its life is less.
const MIN_LEFT: Duration = Duration::from_secs(5);
/// A failure younger than this is the answer for everybody.
const RETRY_FLOOR: Duration = Duration::from_secs(1);
