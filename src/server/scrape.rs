//! `/metrics`: the counters, and what can be read off the state when somebody asks.

use std::{
    convert::Infallible,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Inner,
    accept::Backoff,
    problem::Problem,
    reply::{self, Body},
    status::State,
};
use crate::{config::Identity, time::Moment, tokens::Snapshot};

/// What is gathered for a scrape. Made anew each time: what is gone leaves no series behind.
#[derive(Debug, Default)]
struct Gathered {
    token_expiry: Family<OfToken, Gauge>,
    token_success: Family<OfToken, Gauge>,
    assertion_expiry: Family<OfIdentity, Gauge>,
    state: Family<InState, Gauge>,
    cached: Gauge,
    quarantined: Gauge,
    open: Family<OfSocket, Gauge>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfToken {
    identity: String,
    resource: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfIdentity {
    identity: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct InState {
    identity: String,
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfSocket {
    socket: String,
}

/// The answer to a scrape.
pub(super) fn answer(server: &Inner) -> Response<Body> {
    match page(server) {
        Ok(page) => reply::with(StatusCode::OK, CONTENT_TYPE, Bytes::from(page)),
        Err(error) => unwritten(error),
    }
}

/// Writing to a `String` fails only when a metric says so.
fn unwritten(error: fmt::Error) -> Response<Body> {
    Problem::unready(error.to_string(), "report this mistake").into_http()
}

/// Serves `GET /metrics` over TCP. Whoever can connect may read it: no secret is in it.
pub(super) async fn run(server: Arc<Inner>, listener: TcpListener, shutdown: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let pages = Arc::new(Pages::default());
    let mut backoff = Backoff::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _peer)) => stream,
            Err(error) => {
                backoff.after(&error).await;
                continue;
            }
        };
        backoff = Backoff::default();
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let (server, shutdown) = (Arc::clone(&server), shutdown.clone());
        let pages = Arc::clone(&pages);
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let answer = over_tcp(&server, &pages, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let serving = http1::Builder::new()
                // One request each, so that no scraper's next one meets the end of its time.
                .keep_alive(false)
                .header_read_timeout(None)
                .max_buf_size(HEAD_LIMIT)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                () = shutdown.cancelled() => {}
                ended = timeout(LIFETIME, serving) => match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "metrics connection ended"),
                    Err(_elapsed) => tracing::debug!("metrics connection took too long"),
                },
            }
            drop(place);
        });
    }
}

fn over_tcp(server: &Inner, pages: &Pages, request: &Request<Incoming>) -> Response<Body> {
    if request.uri().path() != "/metrics" {
        return Problem::no_route().into_http();
    }
    if request.method() != Method::GET {
        return Problem::method("GET").into_http();
    }
    match pages.current(server) {
        Ok(page) => reply::with(StatusCode::OK, CONTENT_TYPE, page),
        Err(error) => unwritten(error),
    }
}

/// A page that is good for a second: whoever can connect may ask for it, as often as they like.
#[derive(Debug, Default)]
struct Pages(Mutex<Option<(Moment, Bytes)>>);

impl Pages {
    fn current(&self, server: &Inner) -> Result<Bytes, fmt::Error> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = server.clock.now();
        if let Some((at, page)) = &*last
            && now.since(*at) < PAGE_AGE
        {
            return Ok(page.clone());
        }
        let page = Bytes::from(page(server)?);
        *last = Some((now, page.clone()));
        Ok(page)
    }
}

fn page(server: &Inner) -> Result<String, fmt::Error> {
    let mut page = String::new();
    text::encode_registry(&mut page, &server.registry)?;
    text::encode_registry(&mut page, &gather(server))?;
    text::encode_eof(&mut page)?;
    Ok(page)
}

fn gather(server: &Inner) -> Registry {
    let gathered = Gathered::default();
    let live = server.live();
    for (identity, account) in live.plan.identities.iter().zip(&live.accounts) {
        gathered.identity(identity, &account.snapshot());
    }
    gathered
        .quarantined
        .set(signed(live.plan.quarantined.len()));
    for listener in &live.plan.listeners {
        let socket = listener.socket.display().to_string();
        let open = server.gate(&listener.socket).open();
        gathered
            .open
            .get_or_create(&OfSocket { socket })
            .set(signed(open));
    }
    gathered.registered()
}

impl Gathered {
    fn identity(&self, identity: &Identity, snapshot: &Snapshot) {
        let name = || identity.name.clone();
        let state = InState {
            identity: name(),
            state: State::of(snapshot).as_str(),
        };
        self.state.get_or_create(&state).set(1);
        if let Some(left) = snapshot.assertion_expires_in {
            let of = OfIdentity { identity: name() };
            self.assertion_expiry.get_or_create(&of).set(signed(left));
        }
        for token in &snapshot.tokens {
            let of = OfToken {
                identity: name(),
                resource: token.resource.clone(),
            };
            // A token that is gone has nothing left: an alert on the number goes off.
            let left = token.expires_in.unwrap_or(0);
            self.token_expiry.get_or_create(&of).set(signed(left));
            if let Some(ago) = token.last_success_ago {
                self.token_success.get_or_create(&of).set(signed(ago));
            }
            if token.expires_in.is_some() {
                self.cached.inc();
            }
        }
    }

    fn registered(self) -> Registry {
        let mut registry = Registry::with_prefix("spiffe_entra");
        registry.register(
            "build",
            "The program",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register_with_unit(
            "token_expires_in",
            "What a token has left",
            Unit::Seconds,
            self.token_expiry,
        );
        registry.register_with_unit(
            "token_last_success_age",
            "How long ago the last exchange for a token worked",
            Unit::Seconds,
            self.token_success,
        );
        registry.register_with_unit(
            "assertion_expires_in",
            "What a JWT-SVID has left",
            Unit::Seconds,
            self.assertion_expiry,
        );
        registry.register(
            "identity_state",
            "1 for the state that an identity is in",
            self.state,
        );
        registry.register("cached_tokens", "Tokens in the cache", self.cached);
        registry.register(
            "quarantined_identities",
            "Identities that are not served for mistakes in the configuration",
            self.quarantined,
        );
        registry.register(
            "open_connections",
            "Connections that are open now",
            self.open,
        );
        registry
    }
}

fn signed(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// A scraper or two, and somebody with curl.
const CONNECTIONS: usize = 16;
/// How long a connection may take in all: to ask, and to read.
const LIFETIME: Duration = Duration::from_secs(10);
const PAGE_AGE: Duration = Duration::from_secs(1);
const HEAD_LIMIT: usize = 16 * 1024;
