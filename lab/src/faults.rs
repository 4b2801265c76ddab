//! Faults that a test arms on a running server: for one client or for all, until cleared or for a
//! number of requests.

use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// The faults armed on one server. Clones share them.
#[derive(Debug)]
pub(crate) struct Board<F> {
    state: Arc<Mutex<State<F>>>,
}

#[derive(Debug)]
struct State<F> {
    next: u64,
    slots: Vec<Slot<F>>,
}

#[derive(Debug)]
struct Slot<F> {
    id: u64,
    /// Whom it concerns; everybody without one.
    scope: Option<String>,
    /// Requests it still spoils; all without a number.
    left: Option<u32>,
    fault: F,
}

/// Arms faults on one server: for one of its clients or for all.
#[derive(Clone, Debug)]
pub struct Faults<F> {
    pub(crate) board: Board<F>,
    pub(crate) scope: Option<String>,
}

impl<F: Clone> Faults<F> {
    /// Arms any fault.
    #[allow(
        clippy::must_use_candidate,
        reason = "called for its effect as often as not"
    )]
    pub fn arm(&self, fault: F) -> Armed<F> {
        self.board.arm(self.scope.as_deref(), fault)
    }

    /// Ends every fault of the server, whomever it concerns.
    pub fn clear(&self) {
        self.board.clear();
    }
}

/// A method for each fault that has a name: `faults().throttle(Some(60))`. Where it is used, `Faults`
/// and `Armed` are in scope, and `Fault` is that server's.
macro_rules! shorthands {
    ($($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*) => $fault:expr;)*) => {
        impl Faults {
            $(
                $(#[$doc])*
                #[allow(clippy::must_use_candidate, reason = "called for its effect as often as not")]
                pub fn $name(&self, $($argument: $type),*) -> Armed<Fault> {
                    self.arm($fault)
                }
            )*
        }
    };
}
pub(crate) use shorthands;

/// A fault that has been armed: it holds until it is cleared, or for so many [`times`](Self::times).
/// Dropping the handle leaves the fault armed.
#[derive(Debug)]
pub struct Armed<F> {
    board: Board<F>,
    id: u64,
}

impl<F> Armed<F> {
    /// Limits the fault to the next `count` requests that it concerns, counted from now.
    #[allow(
        clippy::must_use_candidate,
        reason = "called for its effect as often as not"
    )]
    pub fn times(self, count: u32) -> Self {
        let mut state = lock(&self.board.state);
        if count == 0 {
            state.slots.retain(|slot| slot.id != self.id);
        }
        for slot in state.slots.iter_mut().filter(|slot| slot.id == self.id) {
            slot.left = Some(count);
        }
        drop(state);
        self
    }

    /// Ends the fault.
    pub fn clear(self) {
        lock(&self.board.state)
            .slots
            .retain(|slot| slot.id != self.id);
    }

    /// Whether the fault can still hit a request.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        lock(&self.board.state)
            .slots
            .iter()
            .any(|slot| slot.id == self.id)
    }
}

impl<F: Clone> Board<F> {
    pub(crate) fn arm(&self, scope: Option<&str>, fault: F) -> Armed<F> {
        let mut state = lock(&self.state);
        let id = state.next;
        state.next += 1;
        state.slots.push(Slot {
            id,
            scope: scope.map(str::to_owned),
            left: None,
            fault,
        });
        Armed {
            board: self.clone(),
            id,
        }
    }

    pub(crate) fn clear(&self) {
        lock(&self.state).slots.clear();
    }

    /// The faults that hit a request of `scope`, each counted down. Of those that `replaces` says
    /// make up the whole answer only the one armed first is taken.
    pub(crate) fn take(&self, scope: &str, replaces: impl Fn(&F) -> bool) -> Vec<F> {
        let mut taken = Vec::new();
        let mut replaced = false;
        lock(&self.state).slots.retain_mut(|slot| {
            let concerned = slot
                .scope
                .as_deref()
                .is_none_or(|of| of.eq_ignore_ascii_case(scope));
            if !concerned || (replaced && replaces(&slot.fault)) {
                return true;
            }
            replaced |= replaces(&slot.fault);
            taken.push(slot.fault.clone());
            match &mut slot.left {
                None => true,
                Some(left) => {
                    *left = left.saturating_sub(1);
                    *left > 0
                }
            }
        });
        taken
    }
}

impl<F> Clone for Board<F> {
    fn clone(&self) -> Self {
        Self {
            state: Arc::clone(&self.state),
        }
    }
}

impl<F> Default for Board<F> {
    fn default() -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                next: 0,
                slots: Vec::new(),
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_down_and_respects_the_scope() {
        let board = Board::default();
        let armed = board.arm(Some("a"), 1).times(2);
        assert!(board.take("b", |_| true).is_empty());
        assert_eq!(board.take("A", |_| true), [1]);
        assert!(armed.is_armed());
        assert_eq!(board.take("a", |_| true), [1]);
        assert!(!armed.is_armed());
        assert!(board.take("a", |_| true).is_empty());
    }

    #[test]
    fn one_whole_answer_at_a_time_with_every_modifier() {
        let board = Board::default();
        board.arm(None, 10).times(1);
        board.arm(None, 20);
        let modifier = board.arm(None, 3);
        assert_eq!(board.take("x", |fault| *fault >= 10), [10, 3]);
        modifier.clear();
        assert_eq!(board.take("x", |fault| *fault >= 10), [20]);
        board.clear();
        assert!(board.take("x", |fault| *fault >= 10).is_empty());
    }
}
