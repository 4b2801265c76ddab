//! What a connection is doing, as far as its listener has to know.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};

use super::limits::Slot;

/// What a connection is doing, in the order in which such a one has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doing {
    /// A request is in flight.
    Request,
    /// A request is overdue.
    Reading,
    /// Tokens are sent as they come.
    Streaming,
    /// Nothing that counts. A stream of health is nothing: whoever wants it asks again.
    Nothing,
}

/// What a connection is doing. Written by the connection alone, with a few plain stores a request;
/// hyper's own header timer would cost an allocation and a timer a request, and would close idle
/// connections as early as slow ones.
#[derive(Debug)]
pub(super) struct Activity {
    /// Requests begun.
    requests: AtomicU32,
    /// Requests in flight that did not end as soon as they began.
    busy: AtomicU32,
    /// Streams of tokens.
    streams: AtomicU32,
    /// Whether HTTP/1 bytes came in that are no request yet.
    reading: AtomicBool,
    /// Whether it speaks HTTP/2.
    http2: AtomicBool,
    /// Whole minutes without a request.
    idle_minutes: AtomicU32,
    /// `requests` when the last minute ended.
    requests_before: AtomicU32,
}

impl Activity {
    /// Who connects owes us a request: until then the time runs as for one half sent.
    pub(super) fn new() -> Self {
        Self {
            requests: AtomicU32::new(0),
            busy: AtomicU32::new(0),
            streams: AtomicU32::new(0),
            reading: AtomicBool::new(true),
            http2: AtomicBool::new(false),
            idle_minutes: AtomicU32::new(0),
            requests_before: AtomicU32::new(0),
        }
    }

    /// A request is complete as far as its head goes.
    pub(super) fn request(&self, http2: bool) {
        self.requests.fetch_add(1, Relaxed);
        self.reading.store(false, Relaxed);
        if http2 {
            // A preface in pieces is not recognised as one.
            self.http2.store(true, Relaxed);
        }
    }

    /// A request takes longer.
    pub(super) fn begin(&self) {
        self.busy.fetch_add(1, Relaxed);
    }

    /// Such a request is over.
    pub(super) fn end(&self) {
        self.busy.fetch_sub(1, Relaxed);
    }

    /// A stream of tokens begins.
    pub(super) fn begin_stream(&self) {
        self.streams.fetch_add(1, Relaxed);
    }

    /// And ends.
    pub(super) fn end_stream(&self) {
        self.streams.fetch_sub(1, Relaxed);
    }

    /// Whether a request is overdue.
    pub(super) fn is_reading(&self) -> bool {
        self.doing() == Doing::Reading
    }

    /// Whether nothing is going on.
    pub(super) fn is_idle(&self) -> bool {
        self.doing() == Doing::Nothing
    }

    /// What is going on.
    pub(super) fn doing(&self) -> Doing {
        if self.busy.load(Relaxed) != 0 {
            Doing::Request
        } else if self.reading.load(Relaxed) {
            Doing::Reading
        } else if self.streams.load(Relaxed) != 0 {
            Doing::Streaming
        } else {
            Doing::Nothing
        }
    }

    /// For how many minutes there was no request.
    pub(super) fn idle_minutes(&self) -> u32 {
        self.idle_minutes.load(Relaxed)
    }

    /// Counts the minutes without a request; called once a minute.
    pub(super) fn minute(&self) -> u32 {
        let requests = self.requests.load(Relaxed);
        let before = self.requests_before.swap(requests, Relaxed);
        let working = self.busy.load(Relaxed) != 0 || self.streams.load(Relaxed) != 0;
        if requests != before || working {
            self.idle_minutes.store(0, Relaxed);
            return 0;
        }
        self.idle_minutes.fetch_add(1, Relaxed) + 1
    }

    fn received(&self, bytes: &[u8]) {
        if self.http2.load(Relaxed) {
            return;
        }
        // HTTP/2's preface; no method begins like that. Later frames are none of our business: h2
        // has its own limits, and pings come at any time.
        if self.requests.load(Relaxed) == 0 && bytes.starts_with(b"PRI") {
            self.http2.store(true, Relaxed);
            self.reading.store(false, Relaxed);
        } else {
            self.reading.store(true, Relaxed);
        }
    }
}

/// A stream that notes what comes in.
#[derive(Debug)]
pub(super) struct Watched {
    stream: UnixStream,
    slot: Arc<Slot>,
}

impl Watched {
    pub(super) fn new(stream: UnixStream, slot: Arc<Slot>) -> Self {
        Self { stream, slot }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Some(bytes) = buffer.filled().get(before..)
            && !bytes.is_empty()
        {
            self.slot.activity.received(bytes);
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_sent_request_is_overdue_and_http2_never_is() {
        let activity = Activity::new();
        assert!(activity.is_reading());
        activity.received(b"GET / HT");
        assert!(activity.is_reading() && !activity.is_idle());
        activity.request(false);
        assert!(!activity.is_reading() && activity.is_idle());
        activity.received(b"G");
        assert!(activity.is_reading());

        let activity = Activity::new();
        activity.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        assert!(!activity.is_reading());
        activity.received(b"ping");
        assert!(!activity.is_reading());

        let activity = Activity::new();
        activity.received(b"P");
        activity.received(b"RI * HTTP/2.0");
        activity.request(true);
        activity.received(b"ping");
        assert!(!activity.is_reading());
    }

    #[test]
    fn minutes_without_a_request_are_counted() {
        let activity = Activity::new();
        activity.request(false);
        assert_eq!(activity.minute(), 0);
        assert_eq!(activity.minute(), 1);
        assert_eq!(activity.minute(), 2);
        activity.begin();
        assert_eq!(activity.minute(), 0);
        activity.end();
        assert_eq!(activity.minute(), 1);
        activity.request(false);
        assert_eq!(activity.minute(), 0);
    }
}
