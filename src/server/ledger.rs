//! How many audit lines a uid may cause, and what becomes of the rest.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::audit::{Grant, Refusal, write_left_out};
use crate::{
    caller::Caller,
    time::{Clock, Moment},
};

/// Writes audit lines, not more than so many for each uid, and counts the others.
///
/// Grants and refusals have a rate each: neither can keep the other out of the log. Beyond
/// [`UIDS_LIMIT`] uids within a minute or two, all others share one.
#[derive(Debug)]
pub(super) struct Ledger {
    clock: Clock,
    grants: Mutex<Table>,
    refusals: Mutex<Table>,
}

/// The uids that caused lines of one kind lately.
#[derive(Debug)]
struct Table {
    rate: Rate,
    uids: HashMap<u32, Bucket>,
    others: Bucket,
}

/// How many lines are written at once, and how often one more.
#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: f64,
    period: Duration,
}

#[derive(Debug)]
struct Bucket {
    lines: f64,
    filled: Moment,
    /// What is told by its number alone.
    left_out: u64,
    /// Grants that are told by identity and resource.
    rest: Vec<(Grant, u64)>,
}

impl Ledger {
    pub(super) fn new(clock: Clock) -> Self {
        let now = clock.now();
        Self {
            clock,
            grants: Mutex::new(Table::new(GRANTS, now)),
            refusals: Mutex::new(Table::new(REFUSALS, now)),
        }
    }

    /// Writes or counts a first grant, or so many repeats.
    pub(super) fn granted(&self, caller: &Caller, grant: &Grant, repeats: Option<u64>) {
        let now = self.clock.now();
        let mut grants = locked(&self.grants);
        let rate = grants.rate;
        let (_, bucket) = grants.bucket(caller.uid, now);
        if bucket.take(rate, now) {
            drop(grants);
            grant.write(caller, repeats);
        } else {
            bucket.set_aside(grant, repeats.unwrap_or(1));
        }
    }

    /// Writes or counts a refusal.
    pub(super) fn refused(&self, caller: &Caller, refusal: Refusal<'_>) {
        let now = self.clock.now();
        let mut refusals = locked(&self.refusals);
        let rate = refusals.rate;
        let (own, bucket) = refusals.bucket(caller.uid, now);
        if bucket.take(rate, now) {
            // Those of several uids are not this caller's.
            let left_out = if own {
                std::mem::take(&mut bucket.left_out)
            } else {
                0
            };
            drop(refusals);
            refusal.write(caller, left_out);
        } else {
            bucket.left_out += 1;
        }
    }

    /// Writes the numbers that no line has told yet, and forgets who is quiet. Called once a minute
    /// and at the end.
    pub(super) fn sweep(&self) {
        let now = self.clock.now();
        locked(&self.grants).sweep(now);
        locked(&self.refusals).sweep(now);
    }

    /// How many uids are remembered.
    #[cfg(test)]
    pub(super) fn uids(&self) -> usize {
        locked(&self.grants).uids.len() + locked(&self.refusals).uids.len()
    }
}

/// What trails left after the last sweep.
impl Drop for Ledger {
    fn drop(&mut self) {
        self.sweep();
    }
}

impl Table {
    fn new(rate: Rate, now: Moment) -> Self {
        Self {
            rate,
            uids: HashMap::new(),
            others: Bucket::full(rate, now),
        }
    }

    /// Where a uid's lines are counted, and whether that is its alone.
    fn bucket(&mut self, uid: u32, now: Moment) -> (bool, &mut Bucket) {
        if self.uids.len() >= UIDS_LIMIT && !self.uids.contains_key(&uid) {
            return (false, &mut self.others);
        }
        let bucket = self.uids.entry(uid);
        (true, bucket.or_insert_with(|| Bucket::full(self.rate, now)))
    }

    fn sweep(&mut self, now: Moment) {
        let rate = self.rate;
        self.others.tell(None);
        self.uids.retain(|uid, bucket| {
            bucket.tell(Some(*uid));
            bucket.fill(rate, now);
            bucket.lines < rate.burst
        });
    }
}

impl Bucket {
    fn full(rate: Rate, now: Moment) -> Self {
        Self {
            lines: rate.burst,
            filled: now,
            left_out: 0,
            rest: Vec::new(),
        }
    }

    fn fill(&mut self, rate: Rate, now: Moment) {
        let gained = now.since(self.filled).as_secs_f64() / rate.period.as_secs_f64();
        self.lines = (self.lines + gained).min(rate.burst);
        self.filled = now;
    }

    /// Whether a line may be written, which then counts.
    fn take(&mut self, rate: Rate, now: Moment) -> bool {
        self.fill(rate, now);
        let may = self.lines >= 1.0;
        if may {
            self.lines -= 1.0;
        }
        may
    }

    fn set_aside(&mut self, grant: &Grant, count: u64) {
        let known = self.rest.iter_mut().find(|(like, _)| like.is_like(grant));
        if let Some((_, known)) = known {
            *known += count;
        } else if self.rest.len() < REST_LIMIT {
            self.rest.push((grant.clone(), count));
        } else {
            self.left_out += count;
        }
    }

    /// Writes what was counted.
    fn tell(&mut self, uid: Option<u32>) {
        for (grant, left_out) in std::mem::take(&mut self.rest) {
            grant.write_left_out(uid, left_out);
        }
        let left_out = std::mem::take(&mut self.left_out);
        if left_out > 0 {
            write_left_out(uid, left_out);
        }
    }
}

fn locked(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// More than an honest caller causes, one that connects for every request included: every first
/// grant on a connection is a line, short of an attempt to bury the others' under them.
const GRANTS: Rate = Rate {
    burst: 10_000.0,
    period: Duration::from_millis(1),
};
const REFUSALS: Rate = Rate {
    burst: 20.0,
    period: Duration::from_secs(1),
};
/// How many uids have a rate of their own.
const UIDS_LIMIT: usize = 1024;
/// How many identities, resources and tokens of a uid are told apart beyond its rate.
const REST_LIMIT: usize = 32;
