//! JWT-SVIDs from the SPIFFE Workload API, as SPIRE's agent serves it.
//!
//! The connection is made when it is needed and made anew when it is gone, so an agent may start
//! late, restart, or come back on the same path. Every call has a deadline. One SPIFFE ID and one
//! audience are asked for, and the answer is believed only after [`check`].

mod explain;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ::spiffe::{
    SpiffeId as WireId, WorkloadApiClient, WorkloadApiError, transport::Endpoint as WireEndpoint,
};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint as ChannelEndpoint, Uri};

use self::explain::{Place, connection_lost, permanent};
use super::{Assertion, AssertionError, AssertionErrorKind, AssertionSource, AssertionSpec, Fetch};
use crate::{
    assertion::check::check, assertion::endpoint::Endpoint, id::SpiffeId, secret::Secret,
    time::Clock,
};

/// How long one call may take when nothing else is said.
///
/// SPIRE's agent gives its server 30 seconds, and only then falls back to the SVID it has
/// (`jwt_svid_cache_hit_timeout`, 30 s unless configured). A shorter deadline would give up just
/// before a valid answer. It is background work: callers wait for the token cache, not for this.
pub const DEADLINE: Duration = Duration::from_secs(35);

/// How long [`SpiffeSource::reachable`] waits for the agent to accept: readiness probes are short.
const REACH: Duration = Duration::from_secs(2);

/// A SPIFFE Workload API.
#[derive(Debug)]
pub struct SpiffeSource {
    endpoint: Endpoint,
    clock: Clock,
    deadline: Duration,
    /// Replaced after a call that hung: see [`SpiffeSource::call`]. Locked for a clone only.
    client: Mutex<WorkloadApiClient>,
}

impl SpiffeSource {
    /// A source that has not connected yet. Needs a tokio runtime around it.
    pub fn new(endpoint: Endpoint, clock: Clock) -> Self {
        Self::with_deadline(endpoint, clock, DEADLINE)
    }

    /// The same with another deadline than [`DEADLINE`].
    pub fn with_deadline(endpoint: Endpoint, clock: Clock, deadline: Duration) -> Self {
        let client = Mutex::new(lazy_client(&endpoint));
        Self {
            endpoint,
            clock,
            deadline,
            client,
        }
    }

    /// The one identity that the agent gives this process; an error that lists them if there are
    /// several.
    pub async fn only_identity(&self, audience: &str) -> Result<SpiffeId, AssertionError> {
        let fetch = |client: WorkloadApiClient| async move {
            client.fetch_all_jwt_svids([audience], None).await
        };
        let svids = self.call(fetch, None).await?;
        let mut ids: Vec<_> = svids.iter().map(|s| s.spiffe_id().to_string()).collect();
        ids.sort();
        ids.dedup();
        match ids.as_slice() {
            [id] => SpiffeId::parse(id).map_err(|detail| {
                permanent(
                    AssertionErrorKind::Unusable,
                    "svid-subject",
                    "The agent's identity cannot be federated",
                    detail,
                    "give this process a registration entry whose SPIFFE ID has a path and fits into \
                     a federated identity credential",
                )
            }),
            _ => Err(permanent(
                AssertionErrorKind::Unusable,
                "workload-api-many-identities",
                "The agent gives this process more than one identity",
                format!("it gives {}", ids.join(", ")),
                "say which one is meant: set SPIFFE_ID, or write an [[identity]] for each",
            )),
        }
    }

    /// Whether something accepts connections on the agent's socket. Cheap: asks for nothing.
    pub async fn reachable(&self) -> Result<(), AssertionError> {
        let connect = async {
            match &self.endpoint {
                Endpoint::Unix(path) => UnixStream::connect(path).await.map(drop),
                Endpoint::Tcp(address) => TcpStream::connect(address).await.map(drop),
            }
        };
        match tokio::time::timeout(REACH, connect).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(self.place().no_connection(&e)),
            Err(_) => Err(self.place().too_slow(REACH)),
        }
    }

    async fn fetch_checked(&self, spec: &AssertionSpec) -> Result<Assertion, AssertionError> {
        let subject = WireId::new(spec.subject.as_str()).map_err(|e| {
            permanent(
                AssertionErrorKind::Refused,
                "svid-subject",
                "The SPIFFE ID is malformed",
                format!("{}: {e}", spec.subject),
                "correct `spiffe_id`",
            )
        })?;
        let (audience, subject) = (&*spec.audience, &subject);
        // The token alone, unparsed: `check` says better than the crate's parser what is wrong.
        let fetch = |client: WorkloadApiClient| async move {
            client.fetch_jwt_token([audience], Some(subject)).await
        };
        let token = Secret::new(self.call(fetch, Some(&spec.subject)).await?);
        check(token, spec, self.clock.now())
    }

    /// Makes one call within the deadline. If the connection turns out to be dead, as it does after
    /// the agent was restarted, the call is made once more on a new one: that it had been lost is
    /// noticed only now, and asking twice does no harm.
    async fn call<T, F>(
        &self,
        rpc: impl Fn(WorkloadApiClient) -> F,
        subject: Option<&SpiffeId>,
    ) -> Result<T, AssertionError>
    where
        F: Future<Output = Result<T, WorkloadApiError>>,
    {
        let attempts = async {
            match rpc(self.client()).await {
                Err(error) if connection_lost(&error) => rpc(self.reconnect()).await,
                answer => answer,
            }
        };
        match tokio::time::timeout(self.deadline, attempts).await {
            Ok(answer) => answer.map_err(|e| self.place().explain(&e, subject)),
            Err(_) => {
                // Whoever holds the other end of this connection is stuck, perhaps for good, while
                // a new agent already listens on the path: the next call shall find that one.
                self.reconnect();
                Err(self.place().too_slow(self.deadline))
            }
        }
    }

    fn client(&self) -> WorkloadApiClient {
        self.lock().clone()
    }

    /// Leaves the connection to the calls that are on it, and has the next ones make a new one.
    fn reconnect(&self) -> WorkloadApiClient {
        let client = lazy_client(&self.endpoint);
        *self.lock() = client.clone();
        client
    }

    fn lock(&self) -> MutexGuard<'_, WorkloadApiClient> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> Place<'_> {
        Place(&self.endpoint)
    }
}

impl AssertionSource for SpiffeSource {
    fn fetch<'a>(&'a self, spec: &'a AssertionSpec) -> Fetch<'a> {
        Box::pin(self.fetch_checked(spec))
    }
}

/// A client that connects at its first call, and again whenever the connection is gone.
fn lazy_client(endpoint: &Endpoint) -> WorkloadApiClient {
    // The URI is never resolved, but it becomes `:authority`, where gRPC servers refuse a path.
    let channel = ChannelEndpoint::from_static("http://localhost");
    // Built, not parsed: the crate's parser leaves percent-escapes in the path.
    let (wire, channel): (_, Channel) = match endpoint {
        Endpoint::Unix(path) => {
            let to = path.clone();
            let connect = tower::service_fn(move |_: Uri| {
                let to = to.clone();
                async move { UnixStream::connect(to).await.map(TokioIo::new) }
            });
            (
                WireEndpoint::Unix(path.clone()),
                channel.connect_with_connector_lazy(connect),
            )
        }
        Endpoint::Tcp(address) => {
            let to = *address;
            let connect = tower::service_fn(move |_: Uri| async move {
                TcpStream::connect(to).await.map(TokioIo::new)
            });
            let wire = WireEndpoint::Tcp {
                host: to.ip(),
                port: to.port(),
            };
            (wire, channel.connect_with_connector_lazy(connect))
        }
    };
    WorkloadApiClient::new_with_channel(wire, channel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_deadline_outlasts_the_agents_own() {
        assert!(DEADLINE > Duration::from_secs(30));
    }
}
