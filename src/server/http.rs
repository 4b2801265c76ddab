//! The HTTP service of a connection: which route, and gRPC or not.
//!
//! Written out by hand: what is asked most, a token that is in memory, is answered without a
//! future, a router or a middleware in between.

use std::{
    cell::RefCell,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Method, Request, Response, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;

use super::{
    connection::Connection,
    grpc,
    limits::{BODY_LIMIT, URI_LIMIT},
    memo::{Memo, Quick},
    problem::Problem,
    query,
    reply::Body,
    routes,
};

/// Answers the requests of one connection.
#[derive(Debug)]
pub(super) struct Service {
    connection: Arc<Connection>,
    grpc: grpc::Routes,
    memo: RefCell<Memo>,
}

/// An answer, now or later.
pub(super) enum Answer {
    /// Now, until it is taken.
    Now(Option<Response<Body>>),
    /// Later.
    Later(Pin<Box<dyn Future<Output = Response<Body>> + Send>>),
}

impl Service {
    pub(super) fn new(connection: Arc<Connection>, grpc: grpc::Routes) -> Self {
        Self {
            memo: RefCell::new(Memo::new(&connection)),
            connection,
            grpc,
        }
    }

    fn later<F>(&self, answer: impl FnOnce(Arc<Connection>) -> F) -> Answer
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let busy = self.connection.busy();
        let answer = answer(Arc::clone(&self.connection));
        Answer::Later(Box::pin(async move {
            let response = answer.await;
            drop(busy);
            response
        }))
    }

    fn token(&self, query: &str) -> Answer {
        match self.memo.borrow_mut().token(&self.connection, query) {
            Quick::Answer(response) => Answer::now(response),
            Quick::Fetch(fetch) => {
                self.later(|connection| async move { fetch.answer(&connection).await })
            }
        }
    }

    fn other(&self, request: &Request<Incoming>) -> Answer {
        let uri = request.uri();
        let (path, query) = (uri.path(), uri.query().unwrap_or_default());
        let allow = match path {
            "/v1/token" | "/v1/identities" | "/v1/status" | "/metrics" | "/livez" | "/readyz" => {
                "GET"
            }
            "/v1/refresh" => "POST",
            _ if path.starts_with(READYZ) => "GET",
            _ => return Answer::now(Problem::no_route().into_http()),
        };
        if request.method().as_str() != allow {
            return Answer::now(Problem::method(allow).into_http());
        }
        let connection = &self.connection;
        let parameters = match path {
            "/v1/token" | "/v1/refresh" => Ok(()),
            _ => query::none(query),
        };
        if let Err(problem) = parameters {
            return Answer::now(problem.into_http());
        }
        match path {
            "/v1/token" => self.token(query),
            "/livez" => Answer::now(routes::livez()),
            "/v1/identities" => Answer::now(routes::identities(connection)),
            "/metrics" => Answer::now(routes::metrics(connection)),
            "/readyz" => self.later(|c| async move { routes::readyz(&c).await }),
            "/v1/status" => self.later(|c| async move { routes::status(&c).await }),
            "/v1/refresh" => match query::identity_of(query) {
                Ok(identity) => {
                    let identity = identity.into_owned();
                    self.later(|c| async move { routes::refresh(&c, &identity).await })
                }
                Err(problem) => Answer::now(problem.into_http()),
            },
            _ => match query::percent_decode(path.strip_prefix(READYZ).unwrap_or_default()) {
                Ok(identity) => {
                    let identity = identity.into_owned();
                    self.later(|c| async move { routes::identity_ready(&c, &identity).await })
                }
                Err(problem) => Answer::now(problem.into_http()),
            },
        }
    }
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        self.connection.slot.activity.request();
        let uri = request.uri();
        let length = uri.path().len() + uri.query().map_or(0, str::len);
        if length > URI_LIMIT {
            return Answer::now(Problem::uri_too_long(URI_LIMIT).into_http());
        }
        if is_grpc(&request) {
            if request.version() != Version::HTTP_2 {
                return Answer::now(Problem::grpc_needs_http2().into_http());
            }
            let answer = self.grpc.answer(&self.connection, request);
            return Answer::Later(Box::pin(answer));
        }
        if request.method() == Method::GET
            && uri.path() == "/v1/token"
            && request.body().is_end_stream()
        {
            return self.token(uri.query().unwrap_or_default());
        }
        if request.body().size_hint().lower() > BODY_LIMIT {
            return Answer::now(Problem::body_too_large(BODY_LIMIT).into_http());
        }
        // A body within the limit is not read either: hyper throws away what has come of it, or
        // closes the connection.
        self.other(&request)
    }
}

impl Answer {
    pub(super) fn now(response: Response<Body>) -> Self {
        Self::Now(Some(response))
    }
}

impl Future for Answer {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            // Polled again after its end, a future may do anything but harm.
            Self::Now(response) => response
                .take()
                .map_or(Poll::Pending, |r| Poll::Ready(Ok(r))),
            Self::Later(answer) => answer.as_mut().poll(context).map(Ok),
        }
    }
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

const READYZ: &str = "/readyz/";
