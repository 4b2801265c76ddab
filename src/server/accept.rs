//! The accept loop of a socket: who is let in, and with what. What comes then is in [`attend`].
//!
//! [`attend`]: super::attend

use std::{future::Future, io, path::Path, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::{interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Inner,
    activity::Watched,
    attend::{MINUTE, attend},
    audit::Refusal,
    bind::Bound,
    connection::{Connection, View},
    grpc,
    http::Service,
    limits::{Caps, Crowded, Gate, HEAD_SIZE_LIMIT, Order, Permit, STREAM_LIMIT},
    problem::Problem,
};
use crate::caller::Caller;

/// Serves a socket until `shutdown`.
pub(super) async fn run(
    server: Arc<Inner>,
    bound: Bound,
    shutdown: CancellationToken,
) -> io::Result<()> {
    bound.listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(bound.listener)?;
    let gate = server.gate(&bound.socket);
    let door = Door {
        grpc: grpc::Routes::new().await?,
        socket: Arc::from(bound.socket),
        builder: builder(),
        stopping: shutdown.clone(),
        gate,
        server,
    };
    let mut connections = JoinSet::new();
    door.open(&listener, &mut connections).await;

    // The file first: who looks for a daemon now should not find this one.
    drop(bound.file);
    drop(listener);
    door.gate.order_all(Order::Drain);
    let drain = door.server.live().plan.limits.drain;
    let drained = timeout(drain, async {
        while connections.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        tracing::info!(
            socket = %door.socket.display(),
            connections = connections.len(),
            "requests did not finish in time and are cut off"
        );
        connections.shutdown().await;
    }
    door.server.audit.sweep();
    Ok(())
}

/// What every connection of a socket starts from.
struct Door {
    server: Arc<Inner>,
    socket: Arc<Path>,
    gate: Arc<Gate>,
    grpc: grpc::Routes,
    builder: auto::Builder<TokioExecutor>,
    stopping: CancellationToken,
}

impl Door {
    /// Lets callers in until the end.
    async fn open(&self, listener: &UnixListener, connections: &mut JoinSet<()>) {
        let mut live = self.server.live.clone();
        live.mark_unchanged();
        let mut live_changes = true;
        let mut minutes = interval(MINUTE);
        let mut backoff = Backoff::default();
        loop {
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => return,
                changed = live.changed(), if live_changes => {
                    // An error means that nothing new will come.
                    live_changes = changed.is_ok();
                    self.gate.order_all(Order::Recheck);
                }
                _ = minutes.tick() => self.server.audit.sweep(),
                Some(ended) = connections.join_next() => if let Err(error) = ended {
                    tracing::error!(%error, "a connection's task failed");
                },
                accepted = listener.accept() => match accepted {
                    Ok((stream, _address)) => {
                        backoff = Backoff::default();
                        self.greet(stream, connections);
                    }
                    Err(error) => tokio::select! {
                        () = self.stopping.cancelled() => return,
                        () = backoff.after(&error) => {}
                    },
                },
            }
        }
    }

    fn greet(&self, stream: UnixStream, connections: &mut JoinSet<()>) {
        let caller = match Caller::of(&stream) {
            Ok(caller) => caller,
            Err(error) => {
                tracing::warn!(%error, "a caller that the kernel does not name is turned away");
                self.server.count_connection("no-credentials");
                return;
            }
        };
        match self.gate.admit(caller.uid, self.caps(&caller)) {
            Ok(permit) => {
                self.server.count_connection("ok");
                connections.spawn(self.converse(stream, caller, permit));
            }
            Err(crowded) => self.turn_away(&stream, &caller, crowded),
        }
    }

    fn caps(&self, caller: &Caller) -> Caps {
        let view = View::of(self.server.live(), &self.socket);
        Caps::new(
            view.max_connections(),
            view.live.plan.limits.connections_per_uid,
            view.standing(caller),
        )
    }

    /// Says in HTTP/1 why there is no place, as far as that can be done without waiting.
    fn turn_away(&self, stream: &UnixStream, caller: &Caller, crowded: Crowded) {
        let (outcome, detail) = match crowded {
            Crowded::Uid => ("uid-limit", "this uid has too many connections open"),
            Crowded::Socket => ("socket-limit", "the socket has too many connections open"),
            Crowded::Strangers => (
                "stranger-limit",
                "callers without an identity have too many connections open",
            ),
        };
        self.server.count_connection(outcome);
        let problem = Problem::too_many_connections(detail);
        self.server.audit.refused(
            caller,
            Refusal {
                outcome: "denied",
                reason: &problem.code,
                ..Refusal::default()
            },
        );
        let body = serde_json::to_string(&problem).unwrap_or_default();
        let answer = format!(
            "HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/problem+json\r\n\
             cache-control: no-store\r\nretry-after: 1\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len(),
        );
        // Who hung up already does not need to know.
        let _unsent = stream.try_write(answer.as_bytes());
    }

    fn converse(
        &self,
        stream: UnixStream,
        caller: Caller,
        permit: Permit,
    ) -> impl Future<Output = ()> + Send + use<> {
        let slot = Arc::clone(permit.slot());
        let io = TokioIo::new(Watched::new(stream, Arc::clone(&slot)));
        let connection = Arc::new(Connection::new(
            Arc::clone(&self.server),
            Arc::clone(&self.socket),
            caller,
            Arc::clone(&slot),
            self.stopping.clone(),
        ));
        let service = Service::new(Arc::clone(&connection), self.grpc.clone());
        let serving = self.builder.serve_connection(io, service).into_owned();
        async move {
            let outcome = attend(serving, &connection, &slot).await;
            if let Err(error) = outcome {
                tracing::debug!(uid = connection.caller.uid, error = %chain(&*error), "connection ended");
            }
            connection.trail.flush();
            drop(permit);
        }
    }
}

/// Waits after a failed accept: until file descriptors or memory are there again.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(super) async fn after(&mut self, error: &io::Error) {
        let passing = [io::ErrorKind::ConnectionAborted, io::ErrorKind::Interrupted];
        if passing.contains(&error.kind()) {
            return;
        }
        if self.failures == 0 {
            tracing::warn!(%error, "cannot accept connections for now");
        }
        let wait = Duration::from_millis(10 << self.failures.min(7));
        self.failures = self.failures.saturating_add(1);
        sleep(wait).await;
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        // Who sends a request and closes its side for writing wants the answer all the same.
        .half_close(true)
        .max_buf_size(HEAD_SIZE_LIMIT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAM_LIMIT)
        .max_header_list_size(HEAD_SIZE_LIMIT as u32)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW * 2)
        .max_send_buf_size(WINDOW as usize)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG);
    builder
}

/// An error with its causes: hyper's own says little.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// HTTP/2 flow control: requests are small.
const WINDOW: u32 = 64 * 1024;
/// How often an HTTP/2 peer is asked whether it is there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(60);
const PONG: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_shortage_is_waited_out_and_a_lost_caller_is_not() {
        let mut backoff = Backoff::default();
        let begin = Instant::now();
        let lost = io::Error::from_raw_os_error(libc::ECONNABORTED);
        backoff.after(&lost).await;
        assert_eq!(begin.elapsed(), Duration::ZERO);
        let shortage = io::Error::from_raw_os_error(libc::EMFILE);
        let mut waits = Vec::new();
        for _ in 0..10 {
            let begin = Instant::now();
            backoff.after(&shortage).await;
            waits.push(begin.elapsed().as_millis());
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 320, 640, 1280, 1280, 1280]);
    }

    #[test]
    fn causes_are_told() {
        let cause = io::Error::other(io::Error::other("malformed authority"));
        assert!(chain(&cause).contains("malformed authority"));
    }
}
