//! Everything that rests on one trust: the JWT-SVID and the tokens exchanged for it.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared as Joint},
};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    FIRST_TOKEN_WAIT, Served, Shared, Snapshot, TokenWatch, consent,
    entry::{Entry, Failure, Verdict},
    keeper::Keeper,
    keys::{Found, Keys},
    limits::Allowance,
    schedule, worker,
};
use crate::{
    assertion::{Assertion, AssertionError},
    config::Trust,
    id::Scope,
    report::Report,
    time::Moment,
};

/// The tokens that rest on one [`Trust`], and its JWT-SVID.
pub struct Account {
    pub(super) trust: Trust,
    pub(super) shared: Arc<Shared>,
    pub(super) allowance: Allowance,
    /// Exchanges in flight: one identity's that hang leave room for the others'.
    pub(super) flights: Semaphore,
    keeper: Keeper,
    keys: Keys,
    /// Why no token is served, while SPIRE or Entra has withdrawn its consent.
    revoked: Mutex<Option<Arc<Report>>>,
    /// Whether the task that renews the JWT-SVID runs.
    keeping: AtomicBool,
    /// The fetch of a JWT-SVID that somebody wanted to see the end of: one at a time.
    fetching: Mutex<Option<SharedFetch>>,
    /// When an exchange last worked.
    last_success: Mutex<Option<Moment>>,
    pub(super) stop: CancellationToken,
}

type SharedFetch = Joint<BoxFuture<'static, Result<Arc<Assertion>, AssertionError>>>;

impl Account {
    pub(super) fn new(trust: Trust, shared: Arc<Shared>) -> Self {
        let now = shared.clock.now();
        Self {
            trust,
            allowance: Allowance::new(shared.limits().exchanges_per_minute, now),
            flights: Semaphore::new(FLIGHTS_PER_ACCOUNT),
            keeper: Keeper::new(
                shared.clock.clone(),
                Arc::clone(&shared.source),
                shared.metrics.clone(),
                shared.jitter,
            ),
            keys: Keys::default(),
            revoked: Mutex::default(),
            keeping: AtomicBool::new(false),
            fetching: Mutex::default(),
            last_success: Mutex::default(),
            stop: shared.stop.child_token(),
            shared,
        }
    }

    /// A token from memory that is good enough to hand out, if there is one. The fast path.
    pub fn ready(&self, scope: &Scope) -> Option<Served> {
        let now = self.shared.clock.now();
        self.keys.ready(scope, now)
    }

    /// A token, exchanged now if need be. `claims` is a decoded claims challenge (JSON): it is
    /// answered by a new exchange, never from memory.
    pub async fn token(
        self: &Arc<Self>,
        scope: &Scope,
        claims: Option<&str>,
    ) -> Result<Served, Report> {
        if claims.is_none()
            && let Some(served) = self.ready(scope)
        {
            return Ok(served);
        }
        let started = self.shared.clock.now();
        let mut wanted = None;
        loop {
            let entry = self.entry(scope, claims)?;
            let number = *wanted.get_or_insert_with(|| match claims {
                Some(_) => entry.demand(),
                None => 0,
            });
            match self.await_verdict(&entry, started, number).await {
                Verdict::Serve(served) => {
                    if claims.is_some() {
                        // The resource refused what the plain key holds.
                        self.keys.supersede(scope);
                    }
                    return Ok(served);
                }
                Verdict::Fail(report) => return Err(report),
                Verdict::Closed | Verdict::Wait { .. } => {
                    // The key was taken out: the next one counts from the beginning. Not for ever,
                    // and not at once, should each end as soon as it is made.
                    wanted = None;
                    if self.shared.clock.now().since(started) >= FIRST_TOKEN_WAIT {
                        return Err(worker::closed());
                    }
                    sleep(CLOSED_PAUSE).await;
                }
            }
        }
    }

    async fn await_verdict(&self, entry: &Entry, started: Moment, wanted: u64) -> Verdict {
        let _follower = entry.follow();
        let mut changes = entry.state.subscribe();
        loop {
            changes.mark_unchanged();
            let now = self.shared.clock.now();
            entry.touch(now);
            match entry.judge(now, now.since(started), wanted) {
                Verdict::Wait { limit, kick } => {
                    if kick {
                        entry.want.notify_one();
                    }
                    // Whichever comes first, the state is looked at again.
                    let _elapsed = timeout(limit, changes.changed()).await;
                }
                verdict => return verdict,
            }
        }
    }

    /// Follows a token: the present one first, then each new one.
    pub fn watch(self: &Arc<Self>, scope: &Scope) -> TokenWatch {
        TokenWatch::new(Arc::clone(self), scope.clone())
    }

    /// Drops this account's tokens and JWT-SVID and fetches new ones; returns how many tokens.
    pub async fn refresh(self: &Arc<Self>) -> Result<usize, Report> {
        // First what is dropped whatever comes: an operator who wants a token gone has a reason.
        self.keeper.forget();
        self.restore();
        for entry in self.keys.all() {
            entry.state.send_modify(|state| {
                state.token = None;
                state.failure = None;
            });
        }
        let entries = self.keys.plain_entries();
        let wanted: Vec<_> = entries.iter().map(|entry| entry.demand()).collect();
        self.assertion().await.map_err(|error| *error.report)?;
        let started = self.shared.clock.now();
        for entry in &entries {
            entry.want.notify_one();
        }
        let mut renewed = 0;
        for (entry, wanted) in entries.iter().zip(wanted) {
            match self.await_verdict(entry, started, wanted).await {
                Verdict::Serve(_) => renewed += 1,
                Verdict::Fail(report) => return Err(report),
                Verdict::Closed | Verdict::Wait { .. } => {}
            }
        }
        Ok(renewed)
    }

    /// The JWT-SVID in use, fetched now if need be: tells whether SPIRE knows us. The fetch goes on
    /// when the caller does not wait for its end.
    pub async fn assertion(self: &Arc<Self>) -> Result<Arc<Assertion>, AssertionError> {
        let fetch = {
            let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
            match fetching.as_ref() {
                Some(fetch) => fetch.clone(),
                None => {
                    let fetch = self.spawn_fetch();
                    *fetching = Some(fetch.clone());
                    fetch
                }
            }
        };
        fetch.await
    }

    fn spawn_fetch(self: &Arc<Self>) -> SharedFetch {
        let account = Arc::clone(self);
        let fetch = self.shared.tasks.spawn(async move {
            let fetched = tokio::select! {
                biased;
                () = account.stop.cancelled() => Err(worker::stopping_assertion()),
                fetched = account.keeper.get(&account.trust.assertion) => fetched,
            };
            // Whoever asks from now on asks anew, also when nobody saw this one's end. The lock is
            // held by whoever started it until it is stored.
            *account
                .fetching
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = None;
            fetched
        });
        // The task is not aborted, so an error is a panic in the source.
        let fetch = async {
            fetch
                .await
                .unwrap_or_else(|_panic| Err(worker::stopping_assertion()))
        };
        fetch.boxed().shared()
    }

    /// Learns whether there is a JWT-SVID for an account that nobody has asked yet, so that
    /// `status` knows. Keeps none: nothing would renew it.
    pub async fn probe(self: &Arc<Self>) {
        let in_use = !self.keys.all().is_empty();
        if in_use || (self.keeper.error().is_none() && self.keeper.has_fetched()) {
            return;
        }
        // The keeper has noted the outcome.
        let _outcome = self.assertion().await;
        if self.keys.all().is_empty() {
            self.keeper.drop_current();
        }
    }

    /// The state, for status and metrics.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::of(self, self.shared.clock.now())
    }

    /// The key of a scope, with its task; made if there is none.
    fn entry(self: &Arc<Self>, scope: &Scope, claims: Option<&str>) -> Result<Arc<Entry>, Report> {
        let limit = self.shared.limits().resources_per_identity;
        let now = self.shared.clock.now();
        let entry = match self.keys.find_or_insert(scope, claims, limit, now)? {
            Found::Old(entry) => return Ok(entry),
            Found::New(entry) => entry,
        };
        let tasks = &self.shared.tasks;
        tasks.spawn(worker::renew(Arc::clone(self), Arc::clone(&entry)));
        if !self.keeping.swap(true, Ordering::AcqRel) {
            tasks.spawn(consent::keep(Arc::clone(self)));
        }
        Ok(entry)
    }

    /// Takes a key out of the map, unless somebody wants it after all.
    pub(super) fn release(&self, entry: &Arc<Entry>, still_wanted: impl FnOnce() -> bool) -> bool {
        self.keys.release(entry, still_wanted)
    }

    /// Ends the task that renews the JWT-SVID, unless there are keys.
    pub(super) fn stop_keeping(&self) -> bool {
        self.keys.if_empty(|| {
            self.keeping.store(false, Ordering::Release);
            self.keeper.forget_denial();
            self.keeper.drop_current();
        })
    }

    /// The task that renews the JWT-SVID is no more.
    pub(super) fn keeping_ended(&self) {
        self.keeping.store(false, Ordering::Release);
    }

    /// Withdraws every token: SPIRE or Entra no longer consents.
    pub(super) fn revoke(&self, report: &Report) {
        let report = Arc::new(report.clone());
        *self.revoked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&report));
        let until = self.shared.clock.now().after(schedule::REMEMBER_PERMANENT);
        for entry in self.keys.all() {
            let withdrawn = entry.state.send_if_modified(|state| {
                let withdrawn = state.token.take().is_some();
                if withdrawn {
                    // No renewal is planned: SPIRE is asked on behalf of all keys.
                    state.next = None;
                }
                // What SPIRE said holds for every key; what Entra said about one may not hold for
                // another (a policy can be about a resource), so that one is asked about anew.
                if withdrawn && report.retryable {
                    state.failure = Some(Failure {
                        report: Arc::clone(&report),
                        until,
                        permanent: false,
                        slow: true,
                    });
                }
                withdrawn
            });
            if withdrawn && !report.retryable {
                entry.want.notify_one();
            }
        }
        tracing::warn!(
            subject = %self.trust.assertion.subject,
            client_id = %self.trust.target.client_id,
            code = %report.code,
            detail = %report.detail,
            "tokens withdrawn"
        );
    }

    /// Ends a withdrawal.
    pub(super) fn restore(&self) {
        *self.revoked.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Why tokens are withdrawn.
    pub(super) fn revoked(&self) -> Option<Arc<Report>> {
        self.revoked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Forgets failures that waiting cannot cure, so that the next request is tried anew.
    pub(super) fn forgive(&self) {
        for entry in self.keys.all() {
            entry.state.send_if_modified(|state| {
                let forgiven = state
                    .failure
                    .as_ref()
                    .is_some_and(|failure| failure.permanent);
                if forgiven {
                    state.failure = None;
                }
                forgiven
            });
            entry.want.notify_one();
        }
    }

    /// Ends every task of the account; callers that wait get an answer.
    pub(super) fn close(&self) {
        self.stop.cancel();
        self.keys.close();
    }

    /// Notes an exchange that worked.
    pub(super) fn succeeded(&self, now: Moment) {
        *self
            .last_success
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// When an exchange last worked.
    pub(super) fn last_success(&self) -> Option<Moment> {
        *self
            .last_success
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any key holds a token that has not expired.
    pub(super) fn holds_token(&self, now: Moment) -> bool {
        self.keys
            .plain_entries()
            .iter()
            .any(|entry| entry.state.borrow().holds_token(now))
    }

    pub(super) fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }
}

const FLIGHTS_PER_ACCOUNT: usize = 8;
/// How long a caller lets a key be that was taken out under it.
const CLOSED_PAUSE: Duration = Duration::from_millis(10);

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account")
            .field("trust", &self.trust)
            .finish_non_exhaustive()
    }
}
