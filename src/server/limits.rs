//! How many may connect, and which connection has to go when it is crowded.
//!
//! One uid must not be able to keep another out. A socket takes `max_connections`; one uid (other
//! than an admin's) at most half of them, or `connections_per_uid` when that is less; and when a
//! socket is full, a newcomer takes the place of a connection of a uid that holds more than the
//! newcomer would: the longest idle one, else one that only streams tokens, else one whose request
//! is not complete. A request in flight is not sent away; it ends soon by itself.
//!
//! A stranger, a caller for whom there is nothing here, may ask whether the daemon is well, and
//! needs no more than a few places for that: [`STRANGERS`] on a socket for all of them together.
//! They are the first to go when somebody else needs a place, and make room for each other,
//! whatever they do.
//!
//! A few places beyond the limit are kept for admins, so that `status` and health checks get
//! through, and for those who come while somebody goes.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::activity::{Activity, Doing};

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
    /// Whether there was nothing here for the caller when that was last looked at.
    stranger: AtomicBool,
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
    /// Who it is that connects.
    pub(super) standing: Standing,
}

/// What somebody who connects is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// May have one of the reserved places.
    Admin,
    /// Has an identity here.
    Caller,
    /// Has nothing here.
    Stranger,
}

/// Why somebody is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crowded {
    /// This uid has as many as it may.
    Uid,
    /// The socket has, and nobody can be asked to go.
    Socket,
    /// Strangers have.
    Strangers,
}

impl Caps {
    /// For somebody on a socket that takes `total`.
    pub(super) fn new(total: usize, connections_per_uid: usize, standing: Standing) -> Self {
        let share = match standing {
            Standing::Admin => total,
            Standing::Caller | Standing::Stranger => (total / 2).max(1),
        };
        Self {
            total,
            per_uid: connections_per_uid.min(share),
            standing,
        }
    }

    /// How many strangers there may be.
    fn strangers(&self) -> usize {
        STRANGERS.min((self.total / 4).max(1))
    }
}

impl Gate {
    /// Lets `uid` in, or says why not.
    pub(super) fn admit(self: &Arc<Self>, uid: u32, caps: Caps) -> Result<Permit, Crowded> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.get(&uid).map_or(0, Vec::len) >= caps.per_uid {
            return Err(Crowded::Uid);
        }
        let stranger = caps.standing == Standing::Stranger;
        let mut made_room = false;
        if stranger {
            let all: usize = open.values().map(|slots| strangers(slots).count()).sum();
            let going = RESERVED.min(caps.strangers());
            if all >= caps.strangers() {
                made_room = all < caps.strangers() + going && replace_stranger(&open, Some(uid));
                if !made_room {
                    return Err(Crowded::Strangers);
                }
            }
        }
        let total: usize = open.values().map(Vec::len).sum();
        if total >= caps.total {
            // However fast strangers come and go, they leave some of the reserve to others.
            let reserve = if stranger { RESERVED / 2 } else { RESERVED };
            let spare = total < caps.total + reserve;
            let reserved = caps.standing == Standing::Admin && spare;
            let room = || {
                made_room
                    || (!stranger && replace_stranger(&open, None))
                    || replace(&open, uid, stranger)
            };
            if !(reserved || spare && room()) {
                return Err(Crowded::Socket);
            }
        }
        let slot = Arc::new(Slot::new(stranger));
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

/// Asks a stranger to go, whatever it does: of the uid with most of them the one that has been here
/// longest. For another stranger, only if that uid then still has as many as the newcomer's, or if
/// it does nothing.
fn replace_stranger(open: &HashMap<u32, Vec<Arc<Slot>>>, newcomer: Option<u32>) -> bool {
    let staying = |slots| strangers(slots).filter(|slot| !slot.is_leaving());
    let own = newcomer.map(|uid| open.get(&uid).map_or(0, |slots| staying(slots).count()));
    let most = open.values().max_by_key(|slots| staying(slots).count());
    let fair = most.filter(|slots| own.is_none_or(|own| staying(slots).count() > own + 1));
    // Nothing is taken from one that does nothing: a probe that keeps its connection open must not
    // keep the next one out.
    let idle = || {
        open.values()
            .filter(|slots| own.is_some_and(|own| staying(slots).count() > own))
            .flat_map(|slots| staying(slots))
            .find(|slot| slot.activity.doing() == Doing::Nothing)
    };
    let leaves = fair.and_then(|slots| staying(slots).next()).or_else(idle);
    leaves.is_some_and(|slot| {
        slot.order(Order::Evict);
        true
    })
}

fn strangers(slots: &[Arc<Slot>]) -> impl Iterator<Item = &Arc<Slot>> {
    slots.iter().filter(|slot| slot.stranger.load(Relaxed))
}

/// Asks one connection to go, of a uid that then still has as many as the newcomer's. For a
/// stranger, only one that does nothing.
fn replace(open: &HashMap<u32, Vec<Arc<Slot>>>, newcomer: u32, stranger: bool) -> bool {
    let staying = |slots: &Vec<Arc<Slot>>| slots.iter().filter(|s| !s.is_leaving()).count();
    let own = open.get(&newcomer).map_or(0, staying);
    let greedy = open
        .values()
        .map(|slots| (staying(slots), slots))
        .filter(|(count, _)| *count > own + 1);
    let candidates = greedy.flat_map(|(count, slots)| {
        // Of equal ones the one that has been open longest: the first.
        slots.iter().rev().filter_map(move |slot| {
            let doing = slot.activity.doing();
            let may_go = match doing {
                Doing::Request => false,
                Doing::Nothing => true,
                Doing::Streaming | Doing::Reading => !stranger,
            };
            let rank = (doing, count, slot.activity.idle_minutes());
            (may_go && !slot.is_leaving()).then_some((rank, slot))
        })
    });
    match candidates.max_by_key(|(rank, _)| *rank) {
        Some((_, slot)) => {
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

impl Slot {
    pub(super) fn new(stranger: bool) -> Self {
        Self {
            activity: Activity::new(),
            stranger: AtomicBool::new(stranger),
            orders: AtomicU8::new(0),
            called: Notify::new(),
        }
    }

    /// There is something here for the caller now.
    pub(super) fn welcome(&self) {
        self.stranger.store(false, Relaxed);
    }

    fn order(&self, order: Order) {
        self.orders.fetch_or(order as u8, Relaxed);
        self.called.notify_one();
    }

    pub(super) fn is_stranger(&self) -> bool {
        self.stranger.load(Relaxed)
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

/// How long a request's head may take, counted from its first byte, and a new connection's first
/// request from the connection; and how long the body of a gRPC request.
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
/// How many places of a socket strangers have together, and never more than a quarter of them.
const STRANGERS: usize = 8;
/// Places beyond a socket's limit: for admins, and while an evicted connection goes.
const RESERVED: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const CAPS: Caps = Caps {
        total: 4,
        per_uid: 3,
        standing: Standing::Caller,
    };

    fn gate() -> Arc<Gate> {
        Arc::new(Gate::default())
    }

    #[test]
    fn one_uid_has_half_at_most() {
        let caps = Caps::new(100, 1024, Standing::Caller);
        assert_eq!((caps.total, caps.per_uid), (100, 50));
        assert_eq!(Caps::new(100, 10, Standing::Caller).per_uid, 10);
        assert_eq!(Caps::new(1, 1024, Standing::Caller).per_uid, 1);
        assert_eq!(Caps::new(100, 1024, Standing::Admin).per_uid, 100);
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
        for permit in &held {
            permit.slot().activity.request(false);
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
            permit.slot().activity.request(false);
            permit.slot().activity.begin();
        }
        assert_eq!(gate.admit(9, CAPS).unwrap_err(), Crowded::Socket);
        held[0].slot().activity.end();
        let _newcomer = gate.admit(9, CAPS).unwrap();
        assert!(held[0].slot().take(Order::Evict));
    }

    #[test]
    fn streams_and_half_sent_requests_make_room_for_a_caller_and_not_for_a_stranger() {
        for streams in [true, false] {
            let gate = gate();
            // Two uids hold everything, and mean to for ever.
            let held: Vec<_> = [7, 7, 8, 8]
                .map(|uid| gate.admit(uid, CAPS).unwrap())
                .into();
            for permit in held.iter().filter(|_| streams) {
                permit.slot().activity.request(true);
                permit.slot().activity.begin_stream();
            }
            let stranger = Caps {
                standing: Standing::Stranger,
                ..CAPS
            };
            assert_eq!(gate.admit(9, stranger).unwrap_err(), Crowded::Socket);
            let _newcomer = gate.admit(9, CAPS).unwrap();
            let gone = held.iter().filter(|p| p.slot().take(Order::Evict)).count();
            assert_eq!(gone, 1);
        }
    }

    #[test]
    fn what_is_done_decides_who_goes() {
        let gate = gate();
        let held: Vec<_> = (0..3).map(|_| gate.admit(7, CAPS).unwrap()).collect();
        let _other = gate.admit(8, CAPS).unwrap();
        for permit in &held {
            permit.slot().activity.request(true);
        }
        held[0].slot().activity.begin();
        held[1].slot().activity.begin_stream();
        let _first = gate.admit(9, CAPS).unwrap();
        assert!(held[2].slot().take(Order::Evict), "idle before streaming");
        let _second = gate.admit(10, CAPS).unwrap();
        assert!(held[1].slot().take(Order::Evict), "streaming before busy");
        assert_eq!(gate.admit(11, CAPS).unwrap_err(), Crowded::Socket);
    }

    #[test]
    fn strangers_have_a_few_places_and_make_room_for_each_other() {
        let gate = gate();
        let caps = Caps::new(100, 1024, Standing::Stranger);
        let held: Vec<_> = (0..STRANGERS)
            .map(|_| gate.admit(7, caps).unwrap())
            .collect();
        assert_eq!(gate.admit(7, caps).unwrap_err(), Crowded::Strangers);
        for permit in &held {
            permit.slot().activity.begin();
        }
        let second = gate.admit(8, caps).unwrap();
        assert!(held[0].slot().take(Order::Evict), "busy or not");
        // One who has got an identity since then is none of them.
        second.slot().welcome();
        let _third = gate.admit(9, caps).unwrap();
        assert!(!second.slot().take(Order::Evict));
        assert!(
            gate.admit(10, Caps::new(100, 1024, Standing::Caller))
                .is_ok()
        );
        // However many uids there are: a few go while a few come.
        let many = (100..200).filter_map(|uid| gate.admit(uid, caps).ok());
        assert!(many.collect::<Vec<_>>().len() <= STRANGERS);
    }

    #[test]
    fn a_probe_that_keeps_its_connection_keeps_no_other_out() {
        let gate = gate();
        let caps = Caps::new(100, 1024, Standing::Stranger);
        let uids = 100..100 + u32::try_from(STRANGERS).unwrap();
        let held: Vec<_> = uids.map(|uid| gate.admit(uid, caps).unwrap()).collect();
        // Each of another uid, and in the middle of something.
        assert_eq!(gate.admit(99, caps).unwrap_err(), Crowded::Strangers);
        // One has had its answer, and waits for the next question.
        held[3].slot().activity.request(false);
        let _next = gate.admit(99, caps).unwrap();
        let gone = held.iter().map(|permit| permit.slot().take(Order::Evict));
        assert_eq!(
            gone.collect::<Vec<_>>().iter().position(|gone| *gone),
            Some(3)
        );
    }

    #[test]
    fn strangers_who_come_and_go_leave_places_for_admins() {
        let gate = gate();
        let known = Caps {
            total: 32,
            per_uid: 32,
            standing: Standing::Caller,
        };
        let stranger = Caps {
            standing: Standing::Stranger,
            ..known
        };
        let _known: Vec<_> = (0..24).map(|_| gate.admit(7, known).unwrap()).collect();
        // None of those told to go does.
        let strangers = [100; STRANGERS].into_iter().chain(101..200);
        let _strangers: Vec<_> = strangers
            .filter_map(|uid| gate.admit(uid, stranger).ok())
            .collect();
        let admin = Caps {
            standing: Standing::Admin,
            ..known
        };
        let admins = (0..RESERVED / 2).map(|_| gate.admit(0, admin));
        assert!(admins.collect::<Vec<_>>().iter().all(Result::is_ok));
    }

    #[test]
    fn strangers_go_first_whatever_they_do() {
        let gate = gate();
        let stranger = Caps {
            standing: Standing::Stranger,
            ..CAPS
        };
        let stranger = gate.admit(7, stranger).unwrap();
        stranger.slot().activity.begin();
        let held: Vec<_> = (0..3).map(|_| gate.admit(8, CAPS).unwrap()).collect();
        for permit in &held {
            permit.slot().activity.request(false);
        }
        let _newcomer = gate.admit(9, CAPS).unwrap();
        assert!(stranger.slot().take(Order::Evict));
        assert!(held.iter().all(|p| !p.slot().take(Order::Evict)));
    }

    #[test]
    fn a_fair_share_is_not_taken_away() {
        let gate = gate();
        let held: Vec<_> = [7, 7, 8, 8]
            .map(|uid| gate.admit(uid, CAPS).unwrap())
            .into();
        for permit in &held {
            permit.slot().activity.request(false);
        }
        let _first = gate.admit(9, CAPS).unwrap();
        assert_eq!(gate.admit(9, CAPS).unwrap_err(), Crowded::Socket);
    }

    #[test]
    fn an_admin_gets_in_when_it_is_full() {
        let gate = gate();
        let _held: Vec<_> = [7, 7, 8, 8]
            .map(|uid| gate.admit(uid, CAPS).unwrap())
            .into();
        let caps = Caps {
            standing: Standing::Admin,
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
}
