//! What was asked of the token endpoint and what it answered. Neither assertions nor tokens are
//! kept.

use std::sync::Mutex;
use std::time::SystemTime;

use tokio::sync::watch;

use crate::sync::lock;

/// One request for a token and its answer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Exchange {
    /// When it arrived, by the machine's clock.
    pub at: SystemTime,
    /// The HTTP method.
    pub method: String,
    /// The path.
    pub path: String,
    /// Whether it came over HTTP/2.
    pub http2: bool,
    /// `User-Agent`.
    pub user_agent: Option<String>,
    /// The names of the form's fields, in order.
    pub fields: Vec<String>,
    /// `client_id`.
    pub client_id: Option<String>,
    /// `scope`.
    pub scope: Option<String>,
    /// `claims`: a policy, no secret.
    pub claims: Option<String>,
    /// The assertion's `sub`, once it could be read.
    pub subject: Option<String>,
    /// The assertion's `kid`, once it could be read.
    pub kid: Option<String>,
    /// The assertion's `exp`, once it could be read.
    pub assertion_expires: Option<i64>,
    /// The HTTP status answered; none for a request that got no answer.
    pub status: Option<u16>,
    /// The AADSTS code answered.
    pub code: Option<u32>,
    /// Why, where the answer does not say.
    pub detail: Option<String>,
    /// Its correlation id.
    pub correlation_id: String,
    /// `uti` of the token issued.
    pub uti: Option<String>,
    /// `expires_in` of the token issued.
    pub expires_in: Option<i64>,
    /// The faults that hit it.
    pub faults: Vec<&'static str>,
}

/// Everything that was asked of one fake Entra.
#[derive(Debug)]
pub(super) struct Record {
    /// Token requests that have arrived.
    pub(super) arrived: watch::Sender<u64>,
    /// Token requests whose answer has been decided.
    pub(super) answered: watch::Sender<u64>,
    exchanges: Mutex<Vec<Exchange>>,
    issued: Mutex<u64>,
}

impl Record {
    pub(super) fn new() -> Self {
        Self {
            arrived: watch::Sender::new(0),
            answered: watch::Sender::new(0),
            exchanges: Mutex::default(),
            issued: Mutex::default(),
        }
    }

    /// Keeps an exchange, or only counts it.
    pub(super) fn push(&self, exchange: Exchange, keep: bool) {
        if exchange.uti.is_some() {
            *lock(&self.issued) += 1;
        }
        tracing::info!(
            method = exchange.method,
            path = exchange.path,
            client = exchange.client_id,
            scope = exchange.scope,
            subject = exchange.subject,
            status = exchange.status,
            code = exchange.code,
            detail = exchange.detail,
            correlation_id = exchange.correlation_id,
            "token request"
        );
        if keep {
            lock(&self.exchanges).push(exchange);
        }
        self.answered.send_modify(|count| *count += 1);
    }

    pub(super) fn issued(&self) -> u64 {
        *lock(&self.issued)
    }

    pub(super) fn exchanges(&self) -> Vec<Exchange> {
        lock(&self.exchanges).clone()
    }

    pub(super) fn clear(&self) {
        lock(&self.exchanges).clear();
    }
}

/// Waits until a count has got that far.
pub(super) async fn reached(sender: &watch::Sender<u64>, count: u64) {
    let mut receiver = sender.subscribe();
    // The sender outlives this borrow.
    let _ = receiver.wait_for(|seen| *seen >= count).await;
}
