//! The life of a connection.
//!
//! A connection is one task. It is told what concerns it by its [`Slot`]: a reload, the end, or that
//! somebody else needs the place. What it does itself is watch the time (see
//! [`super::activity::Activity`]): a request must come within ten seconds of its first byte, and
//! after five minutes without one the connection is closed.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::time::{Instant, Sleep, sleep};

use super::{
    activity::{Doing, Watched},
    connection::Connection,
    http::Service,
    limits::{HEAD_LIMIT, IDLE_MINUTES, Order, Slot},
};

/// A connection as hyper serves it.
pub(super) type Serving = auto::Connection<'static, TokioIo<Watched>, Service, TokioExecutor>;
/// How it ends.
pub(super) type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// What a connection is woken for.
enum Event {
    Ended(Outcome),
    Called,
    Overdue,
    Minute,
}

/// Drives a connection to its end.
pub(super) async fn attend(serving: Serving, connection: &Connection, slot: &Slot) -> Outcome {
    let mut serving = pin!(serving);
    let mut called = pin!(slot.called.notified());
    let mut minute = pin!(sleep(MINUTE));
    // Only there while a request is overdue: most connections never have one half sent.
    let mut overdue: Option<Pin<Box<Sleep>>> = None;
    let mut leaving = None;
    loop {
        let event = poll_fn(|context| {
            if let Poll::Ready(outcome) = serving.as_mut().poll(context) {
                return Poll::Ready(Event::Ended(outcome));
            }
            if slot.activity.is_reading() {
                let timer = overdue.get_or_insert_with(|| Box::pin(sleep(HEAD_LIMIT)));
                if timer.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Event::Overdue);
                }
            } else {
                overdue = None;
            }
            if called.as_mut().poll(context).is_ready() {
                return Poll::Ready(Event::Called);
            }
            minute.as_mut().poll(context).map(|()| Event::Minute)
        });
        match event.await {
            Event::Ended(outcome) => return outcome,
            Event::Overdue => {
                connection.server.count_connection("overdue");
                return Err("no complete request within ten seconds".into());
            }
            Event::Called => {
                called.set(slot.called.notified());
                let order = orders(connection, slot);
                // Whoever was told to go and has a moment gets no second one.
                if order > leaving {
                    leaving = order;
                    minute.as_mut().reset(Instant::now() + LAST_WORDS);
                }
                if leaving.is_some() || slot.take(Order::Drain) {
                    serving.as_mut().graceful_shutdown();
                }
            }
            Event::Minute => match leaving {
                // It began before the order was seen: it is answered, within the time that a caller
                // may wait for a token.
                Some(Leaving::Evicted) if slot.activity.doing() == Doing::Request => {
                    leaving = Some(Leaving::Dismissed);
                    minute.as_mut().reset(Instant::now() + LAST_ANSWER);
                }
                Some(Leaving::Evicted | Leaving::Dismissed) => return Ok(()),
                Some(Leaving::Idle) if slot.activity.is_idle() => return Ok(()),
                Some(Leaving::Idle) => minute.as_mut().reset(Instant::now() + LAST_WORDS),
                None => {
                    connection.trail.flush();
                    let mut next = MINUTE;
                    if slot.activity.minute() >= IDLE_MINUTES {
                        serving.as_mut().graceful_shutdown();
                        leaving = Some(Leaving::Idle);
                        next = LAST_WORDS;
                    }
                    minute.as_mut().reset(Instant::now() + next);
                }
            },
        }
    }
}

/// Whether a connection has to go now.
fn orders(connection: &Connection, slot: &Slot) -> Option<Leaving> {
    if slot.take(Order::Recheck) {
        if connection.view().admits(&connection.caller) {
            slot.welcome();
        } else {
            return Some(Leaving::Dismissed);
        }
    }
    let evicted = slot.take(Order::Evict);
    evicted.then(|| {
        if slot.is_stranger() {
            Leaving::Dismissed
        } else {
            Leaving::Evicted
        }
    })
}

/// Why a connection is on its way out, after a polite word to the other side.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Leaving {
    /// Nothing is going on. What begins at the last moment is still answered.
    Idle,
    /// Somebody else needs the place: a request in flight is answered first.
    Evicted,
    /// The caller may no longer be here: what is in flight gets a moment, streams to say why they
    /// end. Nobody stays who does not listen.
    Dismissed,
}

/// How often a connection looks at what it does.
pub(super) const MINUTE: Duration = Duration::from_secs(60);
/// How long a connection that has to go may take to do so.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long an answer that is under way may take on a connection that has to go.
const LAST_ANSWER: Duration = Duration::from_secs(11);
