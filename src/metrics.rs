//! What is counted, in Prometheus' terms. The registry is a value: every test has its own.

use std::sync::Arc;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

/// The counters that stages of the program raise as they work. What can be read off the state at
/// any time (expiries, cache size) is not here: it is gathered when somebody scrapes.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Requests for tokens by outcome.
    pub requests: Family<Outcome, Counter>,
    /// Exchanges at Entra by class and code.
    pub exchanges: Family<Exchanged, Counter>,
    /// Fetches of assertions by outcome.
    pub assertions: Family<Outcome, Counter>,
    /// Connections accepted, and those turned away by reason.
    pub connections: Family<Outcome, Counter>,
    /// Reloads by outcome.
    pub reloads: Family<Outcome, Counter>,
}

/// How something ended: a code of a [`crate::report::Report`], or `ok`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Outcome {
    /// The code.
    pub outcome: String,
}

/// How an exchange ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Exchanged {
    /// `ok`, or [`crate::exchange::Class::as_str`].
    pub class: String,
    /// `ok`, Entra's code, or ours where Entra did not answer.
    pub code: String,
}

impl Outcome {
    /// For a code.
    pub fn of(outcome: impl Into<String>) -> Self {
        Self {
            outcome: outcome.into(),
        }
    }
}

impl Metrics {
    /// A new set, registered in a new registry.
    pub fn registered() -> (Self, Arc<Registry>) {
        let metrics = Self::default();
        let mut registry = Registry::with_prefix("spiffe_entra");
        registry.register(
            "token_requests",
            "Token requests by outcome",
            metrics.requests.clone(),
        );
        registry.register(
            "exchanges",
            "Exchanges at the token endpoint by class and code",
            metrics.exchanges.clone(),
        );
        registry.register(
            "assertion_fetches",
            "JWT-SVID fetches from the Workload API by outcome",
            metrics.assertions.clone(),
        );
        registry.register(
            "connections",
            "Connections to the sockets by outcome",
            metrics.connections.clone(),
        );
        registry.register(
            "reloads",
            "Reloads of the configuration",
            metrics.reloads.clone(),
        );
        // Born at zero, so that the first refusal is an increase.
        for outcome in ["ok", "refused"] {
            metrics
                .reloads
                .get_or_create(&Outcome::of(outcome))
                .inc_by(0);
        }
        (metrics, Arc::new(registry))
    }
}
