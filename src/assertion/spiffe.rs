//! JWT-SVIDs from the SPIFFE Workload API, as SPIRE's agent serves it.
//!
//! The connection is made when it is needed and made anew when it is gone, so an agent may start
//! late, restart, or come back on the same path. Every call has a deadline. One SPIFFE ID and one
//! audience are asked for, and the answer is believed only after [`check`].

use std::{
    error::Error as StdError,
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ::spiffe::{
    SpiffeId as WireId, WorkloadApiClient, WorkloadApiError,
    transport::{Endpoint as WireEndpoint, GrpcStatusCode, TransportError},
};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint as ChannelEndpoint, Uri};

use super::{Assertion, AssertionError, AssertionErrorKind, AssertionSource, AssertionSpec, Fetch};
use crate::{
    assertion::check::check, config::Endpoint, id::SpiffeId, report::Report, secret::Secret,
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

/// How much of an agent's message is shown.
const MESSAGE_LIMIT: usize = 300;

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
            Ok(Err(e)) => Err(self.no_connection(&e)),
            Err(_) => Err(self.too_slow(REACH)),
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
            Ok(answer) => answer.map_err(|e| self.explain(&e, subject)),
            Err(_) => {
                // Whoever holds the other end of this connection is stuck, perhaps for good, while
                // a new agent already listens on the path: the next call shall find that one.
                self.reconnect();
                Err(self.too_slow(self.deadline))
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

    fn lock(&self) -> std::sync::MutexGuard<'_, WorkloadApiClient> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what an error of the Workload API means (SPIFFE Workload Endpoint, section on error
    /// codes): InvalidArgument and Unimplemented are for people, everything else is retried.
    fn explain(&self, error: &WorkloadApiError, subject: Option<&SpiffeId>) -> AssertionError {
        match error {
            WorkloadApiError::NoIdentityIssued => denied("no identity issued", subject),
            WorkloadApiError::PermissionDenied(message) => denied(message, subject),
            WorkloadApiError::Transport(TransportError::Status(status)) => match status.code() {
                GrpcStatusCode::InvalidArgument => permanent(
                    AssertionErrorKind::Refused,
                    "workload-api-invalid-argument",
                    "The Workload API says that the request is wrong",
                    said(status.message()),
                    format!(
                        "make sure that {} is a SPIFFE Workload API without a proxy that drops the \
                         metadata `workload.spiffe.io`, and that `spiffe_id` and `entra.audience` are \
                         what SPIRE knows",
                        self.place()
                    ),
                ),
                GrpcStatusCode::Unimplemented => permanent(
                    AssertionErrorKind::Refused,
                    "workload-api-unimplemented",
                    "What listens there is no Workload API, or one without JWT-SVIDs",
                    said(status.message()),
                    format!(
                        "point `workload_api.endpoint` (SPIFFE_ENDPOINT_SOCKET) at the agent's Workload \
                         API, not at its admin or broker socket: it is {} now; SPIRE's `disable_jwt_svids` \
                         must not be set",
                        self.place()
                    ),
                ),
                GrpcStatusCode::DeadlineExceeded => transient(
                    "workload-api-timeout",
                    "The Workload API did not answer in time",
                    said(status.message()),
                    SERVER_HINT,
                ),
                _ => match io_error(error) {
                    Some(e) => self.no_connection(e),
                    None if connection_lost(error) => self.broken(&said(status.message())),
                    None => transient(
                        "workload-api-unavailable",
                        "The Workload API cannot answer at the moment",
                        format!("{}: {}", status.code(), said(status.message())),
                        ATTESTATION_HINT,
                    ),
                },
            },
            WorkloadApiError::Transport(_) => match io_error(error) {
                Some(e) => self.no_connection(e),
                None => self.broken(&said(&error.to_string())),
            },
            // What is left is an answer that breaks the standard; it names fields, not values.
            other => permanent(
                AssertionErrorKind::Unusable,
                "workload-api-bad-answer",
                "The Workload API's answer breaks the SPIFFE standard",
                said(&other.to_string()),
                format!(
                    "look at what serves {}: SPIRE's agent answers otherwise",
                    self.place()
                ),
            ),
        }
    }

    fn no_connection(&self, error: &io::Error) -> AssertionError {
        let place = self.place();
        let (code, title, fix) = match error.kind() {
            io::ErrorKind::NotFound => (
                "workload-api-socket-missing",
                "The Workload API's socket does not exist",
                format!(
                    "start SPIRE's agent, or correct `workload_api.endpoint` (SPIFFE_ENDPOINT_SOCKET), \
                     which is {place}; in a container, mount the socket's folder, not the socket"
                ),
            ),
            io::ErrorKind::ConnectionRefused => (
                "workload-api-refused",
                "Nothing listens on the Workload API's socket",
                format!(
                    "start SPIRE's agent, or correct `workload_api.endpoint`, which is {place}; in a \
                     container, mount the socket's folder, not the socket: an agent that restarts makes \
                     a new one"
                ),
            ),
            io::ErrorKind::PermissionDenied => (
                "workload-api-permission",
                "The Workload API's socket may not be opened",
                format!(
                    "let uid {} through every folder on the way to {place} (x) and connect to it (rw); \
                     SPIRE makes the socket 0777, so it is mostly a folder, SELinux or AppArmor",
                    nix::unistd::geteuid()
                ),
            ),
            _ => return self.broken(&error.to_string()),
        };
        transient(code, title, format!("{place}: {error}"), fix)
    }

    fn broken(&self, cause: &str) -> AssertionError {
        let place = self.place();
        transient(
            "workload-api-unavailable",
            "The connection to the Workload API failed",
            format!("{place}: {cause}"),
            format!("see whether SPIRE's agent runs and stays up behind {place}"),
        )
    }

    fn too_slow(&self, deadline: Duration) -> AssertionError {
        transient(
            "workload-api-timeout",
            "The Workload API did not answer in time",
            format!("{} gave no answer within {deadline:?}", self.place()),
            SERVER_HINT,
        )
    }

    /// The endpoint as it is written in the configuration.
    fn place(&self) -> String {
        match &self.endpoint {
            Endpoint::Unix(path) => format!("unix://{}", path.display()),
            Endpoint::Tcp(address) => format!("tcp://{address}"),
        }
    }
}

impl AssertionSource for SpiffeSource {
    fn fetch<'a>(&'a self, spec: &'a AssertionSpec) -> Fetch<'a> {
        Box::pin(self.fetch_checked(spec))
    }
}

const SERVER_HINT: &str = "see whether SPIRE's agent is stuck or cannot reach its server (its log, \
    `spire-agent healthcheck`); `experimental.jwt_svid_cache_hit_timeout` in agent.conf says how long \
    it waits for the server before it gives what it has";

const ATTESTATION_HINT: &str = "see the agent's log: it may be starting, overloaded, cut off from its \
    server, or unable to attest this process (in a container it needs the host's pid namespace, \
    `pid: host` or `hostPID`)";

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

fn denied(message: &str, subject: Option<&SpiffeId>) -> AssertionError {
    let id = subject.map_or("<the SPIFFE ID>", SpiffeId::as_str);
    AssertionError {
        kind: AssertionErrorKind::Denied,
        report: Box::new(Report::transient(
            "workload-api-denied",
            "SPIRE has no registration entry for this process",
            match subject {
                Some(id) => format!("asked for {id}, the agent says: {}", said(message)),
                None => format!("the agent says: {}", said(message)),
            },
            format!(
                "spire-server entry create -spiffeID {id} -parentID <this node's or agent's SPIFFE ID> \
                 -selector unix:uid:{} (the agent attests the process that asks, which is this one; a new \
                 entry reaches it within seconds)",
                nix::unistd::geteuid()
            ),
        )),
    }
}

fn transient(
    code: &'static str,
    title: &'static str,
    detail: impl Into<String>,
    fix: impl Into<String>,
) -> AssertionError {
    AssertionError {
        kind: AssertionErrorKind::Unavailable,
        report: Box::new(Report::transient(code, title, detail, fix)),
    }
}

fn permanent(
    kind: AssertionErrorKind,
    code: &'static str,
    title: &'static str,
    detail: impl Into<String>,
    fix: impl Into<String>,
) -> AssertionError {
    AssertionError {
        kind,
        report: Box::new(Report::permanent(code, title, detail, fix)),
    }
}

/// Whether the call was not answered because its connection was lost, rather than never made. What
/// an agent says has no cause on our side of the wire.
fn connection_lost(error: &WorkloadApiError) -> bool {
    let WorkloadApiError::Transport(TransportError::Status(status)) = error else {
        return false;
    };
    let ours = status
        .source()
        .is_some_and(|status| status.source().is_some());
    let unconnected = io_error(error).is_some_and(|e| {
        use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
        matches!(e.kind(), NotFound | ConnectionRefused | PermissionDenied)
    });
    ours && !unconnected
}

/// The connector's own error beneath tonic's, where there is one.
fn io_error(error: &WorkloadApiError) -> Option<&io::Error> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref() {
            return Some(io);
        }
        next = error.source();
    }
    None
}

/// An agent's message: bounded, on one line.
fn said(message: &str) -> String {
    let plain = message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c });
    let text: String = plain.take(MESSAGE_LIMIT).collect();
    if text.trim().is_empty() {
        "(no message)".into()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(endpoint: &str) -> SpiffeSource {
        let endpoint = match endpoint.strip_prefix('/') {
            Some(_) => Endpoint::Unix(endpoint.into()),
            None => Endpoint::Tcp(endpoint.parse().unwrap()),
        };
        SpiffeSource::new(endpoint, Clock::system())
    }

    #[tokio::test]
    async fn each_way_not_to_connect_names_the_setting() {
        let source = source("/run/spire/agent/public/api.sock");
        for (kind, code, fix) in [
            (
                io::ErrorKind::NotFound,
                "workload-api-socket-missing",
                "workload_api.endpoint",
            ),
            (
                io::ErrorKind::ConnectionRefused,
                "workload-api-refused",
                "workload_api.endpoint",
            ),
            (
                io::ErrorKind::PermissionDenied,
                "workload-api-permission",
                "let uid ",
            ),
            (
                io::ErrorKind::ConnectionReset,
                "workload-api-unavailable",
                "SPIRE's agent runs",
            ),
        ] {
            let error = source.no_connection(&io::Error::from(kind));
            assert_eq!(
                (error.kind, &*error.report.code),
                (AssertionErrorKind::Unavailable, code)
            );
            assert!(error.is_transient());
            assert!(error.report.fix.contains(fix), "{}", error.report.fix);
            assert!(
                error
                    .report
                    .fix
                    .contains("unix:///run/spire/agent/public/api.sock")
            );
        }
    }

    #[tokio::test]
    async fn answers_that_break_the_standard_are_unusable() {
        let source = source("127.0.0.1:1");
        let error = WorkloadApiError::MissingRequiredField {
            field: "JWTSVID.svid",
        };
        let error = source.explain(&error, None);
        assert_eq!(error.kind, AssertionErrorKind::Unusable);
        assert!(error.report.detail.contains("JWTSVID.svid"));
        assert!(
            error.report.fix.contains("tcp://127.0.0.1:1"),
            "{}",
            error.report.fix
        );
    }

    #[test]
    fn an_agents_status_is_no_lost_connection() {
        let said = TransportError::status(GrpcStatusCode::Unavailable, "busy");
        assert!(!connection_lost(&WorkloadApiError::Transport(said)));
        assert!(!connection_lost(&WorkloadApiError::NoIdentityIssued));
    }

    #[test]
    fn the_default_deadline_outlasts_the_agents_own() {
        assert!(DEADLINE > Duration::from_secs(30));
    }

    #[test]
    fn messages_are_bounded_and_on_one_line() {
        assert_eq!(said("a\nb\u{1b}c"), "a b c");
        assert_eq!(said(" \n"), "(no message)");
        assert_eq!(said(&"x".repeat(1000)).len(), MESSAGE_LIMIT);
    }
}
