//! The Unix socket server: HTTP/1.1 JSON and gRPC on one socket.
//!
//! ```text
//! bind / activation ──► accept ──► limits ──► http ──► connection ──► policy, tokens
//!  a listening socket    one task    who may     routes    decides, hands
//!                        a peer      stay         grpc      out, audits
//! ```
//!
//! What is in force ([`Live`]) arrives on a `watch` channel: every request is judged by the newest,
//! and a reload closes the connections of those who may no longer be there.
//!
//! Nothing is made of `Host` or `Origin`: no browser reaches a Unix socket, and the caller is who
//! the kernel says it is.

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{metrics::counter::Counter, registry::Registry};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use self::{audit::Ledger, limits::Gate};
pub use self::{bind::Bound, grpc::proto, problem::Problem};
use crate::{
    config::Plan,
    metrics::{Metrics, Outcome},
    policy::Policy,
    report::Report,
    time::{Clock, Moment},
    tokens::Account,
};

mod accept;
pub mod activation;
mod activity;
mod attend;
mod audit;
pub mod bind;
mod connection;
mod grpc;
mod http;
mod ledger;
mod limits;
mod memo;
mod problem;
mod query;
mod reply;
mod routes;
mod scrape;
pub mod status;

/// What is in force. Made at start and at each reload.
#[derive(Debug)]
pub struct Live {
    /// The configuration.
    pub plan: Arc<Plan>,
    /// Its rules, indexed.
    pub policy: Policy,
    /// The accounts of [`Plan::identities`], in the same places.
    pub accounts: Vec<Arc<Account>>,
    /// How often a configuration was put in force, from 1.
    pub generation: u64,
}

/// Tells whether the Workload API can be reached, and if not, why.
pub type Probe =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), Report>> + Send>> + Send + Sync>;

/// What the server needs of the rest of the daemon.
pub struct Parts {
    /// What is in force.
    pub live: watch::Receiver<Arc<Live>>,
    /// The counters.
    pub metrics: Metrics,
    /// Where they are registered.
    pub registry: Arc<Registry>,
    /// The clock.
    pub clock: Clock,
    /// Asked by `/readyz` and `/v1/status`, once a second at most.
    pub workload_api: Probe,
}

/// The server, for any number of sockets. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Server(Arc<Inner>);

/// What all sockets share.
struct Inner {
    live: watch::Receiver<Arc<Live>>,
    metrics: Metrics,
    registry: Arc<Registry>,
    clock: Clock,
    started: Moment,
    workload_api: routes::Probed,
    audit: Arc<Ledger>,
    /// The counter of granted requests: looking it up costs more than raising it.
    granted: Counter,
    gates: Mutex<Vec<(PathBuf, Arc<Gate>)>>,
}

impl Server {
    /// A server that serves nothing yet.
    pub fn new(parts: Parts) -> Self {
        let granted = parts
            .metrics
            .requests
            .get_or_create(&Outcome::of("ok"))
            .clone();
        Self(Arc::new(Inner {
            granted,
            live: parts.live,
            metrics: parts.metrics,
            registry: parts.registry,
            started: parts.clock.now(),
            audit: Arc::new(Ledger::new(parts.clock.clone())),
            clock: parts.clock,
            workload_api: routes::Probed::new(parts.workload_api),
            gates: Mutex::default(),
        }))
    }

    /// Serves a socket until `shutdown`, then lets requests in flight finish within
    /// `limits.drain`. The socket file is gone before the first connection is.
    pub async fn serve(&self, bound: Bound, shutdown: CancellationToken) -> io::Result<()> {
        accept::run(Arc::clone(&self.0), bound, shutdown).await
    }

    /// Serves `GET /metrics` over TCP until `shutdown`, to whoever can connect.
    pub async fn serve_metrics(&self, listener: TcpListener, shutdown: CancellationToken) {
        scrape::run(Arc::clone(&self.0), listener, shutdown).await;
    }

    /// Binds the address of `[metrics] listen`.
    pub async fn bind_metrics(address: SocketAddr) -> io::Result<TcpListener> {
        TcpListener::bind(address).await
    }
}

impl Inner {
    /// What is in force now.
    fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live.borrow())
    }

    /// The counter of a socket's connections; a new one for a new socket.
    fn gate(&self, socket: &Path) -> Arc<Gate> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, gate)) = gates.iter().find(|(path, _)| path == socket) {
            return Arc::clone(gate);
        }
        let gate = Arc::new(Gate::default());
        gates.push((socket.to_owned(), Arc::clone(&gate)));
        gate
    }

    fn count_connection(&self, outcome: &str) {
        self.metrics
            .connections
            .get_or_create(&Outcome::of(outcome))
            .inc();
    }

    fn count_request(&self, outcome: &str) {
        self.metrics
            .requests
            .get_or_create(&Outcome::of(outcome))
            .inc();
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}
