//! The bodies of gRPC requests and answers: neither goes on for ever.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

use super::super::{connection::Connection, limits::HEAD_LIMIT, problem::Problem};

/// The body of a request: has to come to its end in time. A stream of questions to reflection, too:
/// clients ask all they have at once, or again.
pub(super) struct Patient {
    body: Incoming,
    deadline: Instant,
    /// Only there while the rest is awaited: most bodies come with the head.
    waiting: Option<Pin<Box<Sleep>>>,
}

/// The body of an answer: ends when the daemon stops or the caller's process is gone, whatever
/// stream it is. What is ready is sent all the same: that is a request in flight.
pub(in super::super) struct Guarded {
    body: tonic::body::Body,
    ending: Pin<Box<dyn Future<Output = Status> + Send>>,
    ended: bool,
}

impl Patient {
    pub(super) fn new(body: Incoming) -> Self {
        Self {
            body,
            deadline: Instant::now() + HEAD_LIMIT,
            waiting: None,
        }
    }
}

impl Body for Patient {
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let deadline = this.deadline;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.waiting = None;
            // Whoever keeps sending is not waited for.
            let late = matches!(frame, Some(Ok(_))) && Instant::now() >= deadline;
            return Poll::Ready(if late {
                Some(Err(overdue()))
            } else {
                frame.map(|frame| frame.map_err(Into::into))
            });
        }
        let waiting = this
            .waiting
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        waiting
            .as_mut()
            .poll(context)
            .map(|()| Some(Err(overdue())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn overdue() -> tonic::codegen::StdError {
    Status::deadline_exceeded("no complete request within ten seconds").into()
}

impl Guarded {
    pub(super) fn new(body: tonic::body::Body, connection: Arc<Connection>) -> Self {
        let ending = async move {
            tokio::select! {
                () = connection.stopping.cancelled() => Problem::stopping().into_grpc(),
                () = connection.exited() => Status::cancelled("the caller's process has ended"),
            }
        };
        Self {
            body,
            ending: Box::pin(ending),
            ended: false,
        }
    }
}

impl Body for Guarded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        let Poll::Ready(status) = this.ending.as_mut().poll(context) else {
            return Poll::Pending;
        };
        this.ended = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(
            status
                .add_header(&mut trailers)
                .map(|()| Frame::trailers(trailers)),
        ))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").finish_non_exhaustive()
    }
}
