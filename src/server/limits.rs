//! How many may connect, what a connection is doing, and which one has to go when it is crowded.
//!
//! One uid must not be able to keep another out. A socket takes `max_connections`; one uid (other
//! than root's and our own) at most half of them, or `connections_per_uid` when that is less; and
//! when a socket is full, a newcomer takes the place of the longest idle connection of the uid that
//! holds most, as long as that one stays ahead of the newcomer. A few places beyond the limit are
//! kept for root and our own uid, so that `status` and health checks get through.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::Notify,
};

/// Counts the connections of one socket.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<HashMap<u32, Vec<Arc<Slot>>>>);

/// A place at a [`Gate`], given back when dropped.
#[derive(Debug)]
pub(super) struct Permit {
    gate: Arc<Gate>,
    uid: u32,
    slot: Arc<Slot>,
}

/// What the listener and a connection know of each other.
#[derive(Debug)]
pub(super) struct Slot {
    /// What the connection does.
    pub(super) activity: Activity,
    /// Bits of [`Order`] that were not seen yet.
    orders: AtomicU8,
    /// Wakes the connection for its orders.
    pub(super) called: Notify,
}

/// What a listener tells its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The configuration changed: look whether the caller may still be here.
    Recheck = 1,
    /// Finish what is in flight and go.
    Drain = 2,
    /// Make room for somebody else.
    Evict = 4,
}

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caps {
    /// On the socket.
    pub(super) total: usize,
    /// Of one uid.
    pub(super) per_uid: usize,
    /// Whether the one who connects may have one of the reserved places.
    pub(super) privileged: bool,
}

/// Why somebody is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crowded {
    /// This uid has as many as it may.
    Uid,
    /// The socket has, and nobody can be asked to go.
    Socket,
}

impl Caps {
    /// For `uid` on a socket that takes `total`.
    pub(super) fn new(total: usize, connections_per_uid: usize, privileged: bool) -> Self {
        let share = if privileged {
            total
        } else {
            (total / 2).max(1)
        };
        Self {
            total,
            per_uid: connections_per_uid.min(share),
            privileged,
        }
    }
}

impl Gate {
    /// Lets `uid` in, or says why not.
    pub(super) fn admit(self: &Arc<Self>, uid: u32, caps: Caps) -> Result<Permit, Crowded> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = open.values().map(Vec::len).sum();
        let own = open.get(&uid).map_or(0, Vec::len);
        if own >= caps.per_uid {
            return Err(Crowded::Uid);
        }
        if total >= caps.total {
            let reserved = caps.privileged && total < caps.total + RESERVED;
            if !reserved {
                let room = total < caps.total + RESERVED && make_room(&open, own);
                if !room {
                    return Err(Crowded::Socket);
                }
            }
        }
        let slot = Arc::new(Slot::default());
        open.entry(uid).or_default().push(slot.clone());
        drop(open);
        Ok(Permit {
            gate: self.clone(),
            uid,
            slot,
        })
    }

    /// Tells all connections something.
    pub(super) fn order_all(&self, order: Order) {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in open.values().flatten() {
            slot.order(order);
        }
    }

    /// How many are open.
    pub(super) fn open(&self) -> usize {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.values().map(Vec::len).sum()
    }
}

/// Asks the longest idle connection of the uid with most of them to go, unless the newcomer would
/// then have as many as that uid.
fn make_room(open: &HashMap<u32, Vec<Arc<Slot>>>, own: usize) -> bool {
    let Some(most) = open.values().max_by_key(|slots| slots.len()) else {
        return false;
    };
    if most.len() <= own + 1 {
        return false;
    }
    let idle = most
        .iter()
        .filter(|s| s.activity.is_idle() && !s.is_leaving());
    // Of equally idle ones the one that has been open longest: the first.
    match idle
        .rev()
        .max_by_key(|slot| slot.activity.idle_minutes.load(Relaxed))
    {
        Some(slot) => {
            slot.order(Order::Evict);
            true
        }
        None => false,
    }
}

impl Permit {
    /// The connection's side of it.
    pub(super) fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.gate.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slots) = open.get_mut(&self.uid) {
            slots.retain(|slot| !Arc::ptr_eq(slot, &self.slot));
            if slots.is_empty() {
                open.remove(&self.uid);
            }
        }
    }
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            activity: Activity::new(),
            orders: AtomicU8::new(0),
            called: Notify::new(),
        }
    }
}

impl Slot {
    fn order(&self, order: Order) {
        self.orders.fetch_or(order as u8, Relaxed);
        self.called.notify_one();
    }

    fn is_leaving(&self) -> bool {
        self.orders.load(Relaxed) & (Order::Evict as u8 | Order::Drain as u8) != 0
    }

    /// Whether this was ordered. [`Order::Recheck`] is forgotten by asking, the others stay.
    pub(super) fn take(&self, order: Order) -> bool {
        let before = match order {
            Order::Recheck => self.orders.fetch_and(!(order as u8), Relaxed),
            Order::Drain | Order::Evict => self.orders.load(Relaxed),
        };
        before & order as u8 != 0
    }
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
    fn new() -> Self {
        Self {
            requests: AtomicU32::new(0),
            busy: AtomicU32::new(0),
            reading: AtomicBool::new(true),
            http2: AtomicBool::new(false),
            idle_minutes: AtomicU32::new(0),
            requests_before: AtomicU32::new(0),
        }
    }

    /// A request is complete as far as its head goes.
    pub(super) fn request(&self) {
        self.requests.fetch_add(1, Relaxed);
        self.reading.store(false, Relaxed);
    }

    /// A request takes longer.
    pub(super) fn begin(&self) {
        self.busy.fetch_add(1, Relaxed);
    }

    /// Such a request is over.
    pub(super) fn end(&self) {
        self.busy.fetch_sub(1, Relaxed);
    }

    /// Whether a request is overdue.
    pub(super) fn is_reading(&self) -> bool {
        self.reading.load(Relaxed) && self.busy.load(Relaxed) == 0
    }

    fn is_idle(&self) -> bool {
        self.busy.load(Relaxed) == 0 && !self.reading.load(Relaxed)
    }

    /// Counts the minutes without a request; called once a minute.
    pub(super) fn minute(&self) -> u32 {
        let requests = self.requests.load(Relaxed);
        let before = self.requests_before.swap(requests, Relaxed);
        if requests != before || self.busy.load(Relaxed) != 0 {
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

/// How long a request's head may take, counted from its first byte, and a new connection's first
/// request from the connection.
pub(super) const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// After how many minutes without a request a connection is closed. Pools of clients keep theirs
/// for a minute or two.
pub(super) const IDLE_MINUTES: u32 = 5;
/// The longest request target.
pub(super) const URI_LIMIT: usize = 8 * 1024;
/// The longest head of a request in all.
pub(super) const HEAD_SIZE_LIMIT: usize = 16 * 1024;
/// The longest body of a request over HTTP: no route reads one.
pub(super) const BODY_LIMIT: u64 = 8 * 1024;
/// The longest message of a gRPC request.
pub(super) const MESSAGE_LIMIT: usize = 16 * 1024;
/// How many requests an HTTP/2 connection may have in flight.
pub(super) const STREAM_LIMIT: u32 = 64;
/// Places beyond a socket's limit: for root and our own uid, and while an evicted connection goes.
const RESERVED: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const CAPS: Caps = Caps {
        total: 4,
        per_uid: 3,
        privileged: false,
    };

    fn gate() -> Arc<Gate> {
        Arc::new(Gate::default())
    }

    #[test]
    fn one_uid_has_half_at_most() {
        let caps = Caps::new(100, 1024, false);
        assert_eq!((caps.total, caps.per_uid), (100, 50));
        assert_eq!(Caps::new(100, 10, false).per_uid, 10);
        assert_eq!(Caps::new(1, 1024, false).per_uid, 1);
        assert_eq!(Caps::new(100, 1024, true).per_uid, 100);
    }

    #[test]
    fn a_uid_is_stopped_at_its_limit_and_others_are_not() {
        let gate = gate();
        let held: Vec<_> = (0..3).map(|_| gate.admit(7, CAPS).unwrap()).collect();
        assert_eq!(gate.admit(7, CAPS).unwrap_err(), Crowded::Uid);
        let other = gate.admit(8, CAPS).unwrap();
        assert_eq!(gate.open(), 4);
        drop(held);
        drop(other);
        assert_eq!(gate.open(), 0);
        assert!(gate.0.lock().unwrap().is_empty());
    }

    #[test]
    fn when_it_is_full_the_longest_idle_of_the_greediest_goes() {
        let gate = gate();
        let held: Vec<_> = (0..3).map(|_| gate.admit(7, CAPS).unwrap()).collect();
        let _other = gate.admit(8, CAPS).unwrap();
        // All are still expected to send their first request: nobody is idle.
        assert_eq!(gate.admit(9, CAPS).unwrap_err(), Crowded::Socket);
        for permit in &held {
            permit.slot().activity.request();
        }
        held[1].slot().activity.minute();
        held[1].slot().activity.minute();
        held[2].slot().activity.minute();
        let _newcomer = gate.admit(9, CAPS).unwrap();
        let evicted: Vec<_> = held.iter().map(|p| p.slot().take(Order::Evict)).collect();
        assert_eq!(evicted, [false, true, false]);
        // Until that one is gone, the next asks another one to go.
        let _second = gate.admit(10, CAPS).unwrap();
        assert!(held[2].slot().take(Order::Evict) || held[0].slot().take(Order::Evict));
    }

    #[test]
    fn a_busy_connection_is_not_sent_away() {
        let gate = gate();
        let held: Vec<_> = (0..3).map(|_| gate.admit(7, CAPS).unwrap()).collect();
        let _other = gate.admit(8, CAPS).unwrap();
        for permit in &held {
            permit.slot().activity.request();
            permit.slot().activity.begin();
        }
        assert_eq!(gate.admit(9, CAPS).unwrap_err(), Crowded::Socket);
        held[0].slot().activity.end();
        let _newcomer = gate.admit(9, CAPS).unwrap();
        assert!(held[0].slot().take(Order::Evict));
    }

    #[test]
    fn a_fair_share_is_not_taken_away() {
        let gate = gate();
        let held: Vec<_> = [7, 7, 8, 8]
            .map(|uid| gate.admit(uid, CAPS).unwrap())
            .into();
        for permit in &held {
            permit.slot().activity.request();
        }
        let _first = gate.admit(9, CAPS).unwrap();
        assert_eq!(gate.admit(9, CAPS).unwrap_err(), Crowded::Socket);
    }

    #[test]
    fn root_gets_in_when_it_is_full() {
        let gate = gate();
        let _held: Vec<_> = [7, 7, 8, 8]
            .map(|uid| gate.admit(uid, CAPS).unwrap())
            .into();
        let caps = Caps {
            privileged: true,
            per_uid: 64,
            ..CAPS
        };
        let reserved: Vec<_> = (0..RESERVED)
            .map(|_| gate.admit(0, caps).unwrap())
            .collect();
        assert_eq!(gate.admit(0, caps).unwrap_err(), Crowded::Socket);
        drop(reserved);
    }

    #[test]
    fn orders_wait_until_they_are_seen() {
        let gate = gate();
        let permit = gate.admit(7, CAPS).unwrap();
        gate.order_all(Order::Recheck);
        assert!(!permit.slot().take(Order::Drain));
        assert!(permit.slot().take(Order::Recheck));
        assert!(!permit.slot().take(Order::Recheck));
        gate.order_all(Order::Drain);
        assert!(permit.slot().take(Order::Drain) && permit.slot().take(Order::Drain));
    }

    #[test]
    fn a_half_sent_request_is_overdue_and_http2_never_is() {
        let activity = Activity::new();
        assert!(activity.is_reading());
        activity.received(b"GET / HT");
        assert!(activity.is_reading() && !activity.is_idle());
        activity.request();
        assert!(!activity.is_reading() && activity.is_idle());
        activity.received(b"G");
        assert!(activity.is_reading());

        let activity = Activity::new();
        activity.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        assert!(!activity.is_reading());
        activity.received(b"ping");
        assert!(!activity.is_reading());
    }

    #[test]
    fn minutes_without_a_request_are_counted() {
        let activity = Activity::new();
        activity.request();
        assert_eq!(activity.minute(), 0);
        assert_eq!(activity.minute(), 1);
        assert_eq!(activity.minute(), 2);
        activity.begin();
        assert_eq!(activity.minute(), 0);
        activity.end();
        assert_eq!(activity.minute(), 1);
        activity.request();
        assert_eq!(activity.minute(), 0);
    }
}
