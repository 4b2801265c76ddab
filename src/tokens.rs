//! The token cache: one task a live key, a `watch` channel to read it.
//!
//! An [`Account`] is everything that rests on one [`Trust`]: its JWT-SVID (`keeper`) and a key for
//! each resource asked for (`keys`, each an `entry` driven by its `worker`). [`Tokens`] holds the accounts. Nothing
//! crosses from one account to another but Entra's wish to be left alone (`limits`).

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Semaphore, watch::Sender};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::limits::Throttles;
pub use self::{
    account::Account,
    snapshot::{Snapshot, TokenSnapshot},
    watch::TokenWatch,
};
use crate::{
    assertion::AssertionSource,
    config::{Limits, Trust},
    exchange::TokenExchange,
    metrics::Metrics,
    secret::Secret,
    time::{Clock, Expiry, Moment},
};

mod account;
mod attempt;
mod consent;
mod entry;
mod keeper;
mod keys;
mod limits;
mod schedule;
mod snapshot;
mod watch;
mod worker;

#[cfg(test)]
mod tests;

/// All tokens of the process. Cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    shared: Arc<Shared>,
    accounts: Arc<Mutex<HashMap<Trust, Arc<Account>>>>,
}

/// What all accounts use.
pub(crate) struct Shared {
    clock: Clock,
    source: Arc<dyn AssertionSource>,
    exchange: Arc<dyn TokenExchange>,
    metrics: Metrics,
    /// A number in `[0, 1)`; a value, so that tests can do without chance.
    jitter: fn() -> f64,
    throttles: Throttles,
    /// Exchanges in flight: a start-up with ten thousand keys is spread by it.
    flights: Semaphore,
    /// The limits in force, and when they came into force (start or reload).
    rules: Sender<Rules>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What a reload changes.
#[derive(Clone, Copy, Debug)]
struct Rules {
    limits: Limits,
    since: Moment,
}

/// A token in the cache.
#[derive(Debug)]
pub struct CachedToken {
    /// The bearer token.
    pub access_token: Secret,
    /// Entra's id of the exchange.
    pub correlation_id: Option<Arc<str>>,
    /// Its `uti` claim.
    pub uti: Option<Arc<str>>,
    /// Whether it can stand in JSON as it is. All of Entra's can.
    pub is_plain: bool,
    expiry: Expiry,
    lifetime: Duration,
    /// Which success of its key it is, from 1.
    number: u64,
}

/// A token that is handed out now.
#[derive(Clone, Debug)]
pub struct Served {
    /// The token with what is known of it.
    pub token: Arc<CachedToken>,
    /// What it has left, in whole seconds; never zero.
    pub expires_in: u64,
    /// When it expires, in seconds since the Unix epoch.
    pub expires_on: i64,
}

impl Tokens {
    /// An empty cache.
    pub fn new(
        clock: Clock,
        source: Arc<dyn AssertionSource>,
        exchange: Arc<dyn TokenExchange>,
        limits: Limits,
        metrics: Metrics,
    ) -> Self {
        Self::with_jitter(clock, source, exchange, limits, metrics, fastrand::f64)
    }

    fn with_jitter(
        clock: Clock,
        source: Arc<dyn AssertionSource>,
        exchange: Arc<dyn TokenExchange>,
        limits: Limits,
        metrics: Metrics,
        jitter: fn() -> f64,
    ) -> Self {
        let since = clock.now();
        let shared = Shared {
            clock,
            source,
            exchange,
            metrics,
            jitter,
            throttles: Throttles::default(),
            flights: Semaphore::new(EXCHANGES_IN_FLIGHT),
            rules: Sender::new(Rules { limits, since }),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        Self {
            shared: Arc::new(shared),
            accounts: Arc::default(),
        }
    }

    /// The account of a trust: the same for equal trusts.
    pub fn account(&self, trust: &Trust) -> Arc<Account> {
        let mut accounts = self.accounts();
        if let Some(account) = accounts.get(trust) {
            return Arc::clone(account);
        }
        let account = Arc::new(Account::new(trust.clone(), Arc::clone(&self.shared)));
        accounts.insert(trust.clone(), Arc::clone(&account));
        account
    }

    /// Puts a new configuration in force: accounts that nothing in it rests on are closed, the
    /// others keep their tokens and forget what Entra refused, since that may be what was mended.
    pub fn reload(&self, kept: &HashSet<&Trust>, limits: Limits) {
        self.shared.rules.send_replace(Rules {
            limits,
            since: self.shared.clock.now(),
        });
        self.accounts().retain(|trust, account| {
            if kept.contains(trust) {
                account.forgive();
                return true;
            }
            account.close();
            false
        });
    }

    /// Ends every task; callers that wait get an answer.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        for account in self.accounts().values() {
            account.close();
        }
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<Trust, Arc<Account>>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn limits(&self) -> Limits {
        self.rules.borrow().limits
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens")
            .field("accounts", &self.accounts().len())
            .finish()
    }
}

/// How long a caller waits for a first token at most.
pub const FIRST_TOKEN_WAIT: Duration = Duration::from_secs(10);

const EXCHANGES_IN_FLIGHT: usize = 256;
