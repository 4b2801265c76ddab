//! The only clock of the program.
//!
//! A token's life is measured on two clocks at once: the wall clock, which Entra and SPIRE speak
//! in, and the boot-time clock, which goes on while the machine sleeps and which nobody can set.
//! Whichever says "expired" first is believed, so neither a stepped clock nor a suspended machine
//! makes a dead token look alive.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// Tells the time. Cheap to clone; a value, so that tests can hold their own.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual(Arc<Manual>),
}

/// A clock that follows tokio's pausable one and can be set by a test.
#[derive(Debug)]
struct Manual {
    start: Instant,
    wall_start: i64,
    /// How far the wall clock was stepped, in milliseconds.
    wall_step: AtomicI64,
    /// How long the machine was asleep, in milliseconds: tokio's clock did not see it.
    asleep: AtomicI64,
}

/// One instant, read from both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Milliseconds since the Unix epoch.
    wall: i64,
    /// Milliseconds since boot, sleep included.
    boot: i64,
}

/// When something ends, on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry(Moment);

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock for tests: follows tokio's (paused) clock from a fixed date.
    pub fn manual() -> Self {
        Self(Source::Manual(Arc::new(Manual {
            start: Instant::now(),
            wall_start: 1_790_000_000_000,
            wall_step: AtomicI64::new(0),
            asleep: AtomicI64::new(0),
        })))
    }

    /// The present.
    pub fn now(&self) -> Moment {
        match &self.0 {
            Source::System => Moment {
                wall: read(ClockId::CLOCK_REALTIME),
                boot: read(ClockId::CLOCK_BOOTTIME),
            },
            Source::Manual(manual) => {
                let elapsed = millis(manual.start.elapsed());
                let asleep = manual.asleep.load(Ordering::Relaxed);
                let step = manual.wall_step.load(Ordering::Relaxed);
                Moment {
                    wall: manual.wall_start + elapsed + asleep + step,
                    boot: elapsed + asleep,
                }
            }
        }
    }

    /// Steps the wall clock of a manual clock, as an operator or NTP does. Nothing on the system's.
    pub fn step_wall(&self, seconds: i64) {
        if let Source::Manual(manual) = &self.0 {
            manual
                .wall_step
                .fetch_add(seconds * 1000, Ordering::Relaxed);
        }
    }

    /// Lets a manual clock sleep through `time`, unseen by timers. Nothing on the system's.
    pub fn suspend(&self, time: Duration) {
        if let Source::Manual(manual) = &self.0 {
            manual.asleep.fetch_add(millis(time), Ordering::Relaxed);
        }
    }
}

impl Moment {
    /// Seconds since the Unix epoch.
    pub fn unix_seconds(self) -> i64 {
        self.wall.div_euclid(1000)
    }

    /// Whole seconds since boot, sleep included.
    pub fn boot_seconds(self) -> i64 {
        self.boot.div_euclid(1000)
    }

    /// How long ago `earlier` was on the boot-time clock; zero if it is still to come.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.boot - earlier.boot).unwrap_or(0))
    }

    /// The moment `time` later on both clocks.
    pub fn after(self, time: Duration) -> Self {
        let time = millis(time);
        Self {
            wall: self.wall.saturating_add(time),
            boot: self.boot.saturating_add(time),
        }
    }
}

impl Expiry {
    /// What ends `lifetime` after `start`.
    pub fn after(start: Moment, lifetime: Duration) -> Self {
        Self(start.after(lifetime))
    }

    /// What ends at a time somebody else's clock gave, in seconds since the Unix epoch.
    pub fn at_unix_seconds(now: Moment, seconds: i64) -> Self {
        let wall = seconds.saturating_mul(1000);
        let left = wall.saturating_sub(now.wall);
        Self(Moment {
            wall,
            boot: now.boot.saturating_add(left),
        })
    }

    /// What is left, by the clock that says less.
    pub fn remaining(&self, now: Moment) -> Duration {
        let left = (self.0.wall.saturating_sub(now.wall)).min(self.0.boot.saturating_sub(now.boot));
        Duration::from_millis(u64::try_from(left).unwrap_or(0))
    }

    /// Whether nothing is left.
    pub fn is_past(&self, now: Moment) -> bool {
        self.remaining(now).is_zero()
    }

    /// When it ends in seconds since the Unix epoch, never later than [`Self::remaining`] allows.
    pub fn unix_seconds(&self, now: Moment) -> i64 {
        let by_remaining = now.wall.saturating_add(millis(self.remaining(now)));
        // The two clocks drift by milliseconds: the same token should not change its date for that.
        const DRIFT: i64 = 2_000;
        let wall = if self.0.wall.saturating_sub(by_remaining) < DRIFT {
            self.0.wall
        } else {
            by_remaining
        };
        wall.div_euclid(1000)
    }
}

fn read(id: ClockId) -> i64 {
    // Both clocks exist on every Linux this runs on, and reading them cannot fail otherwise; a zero
    // makes everything look expired, which is the safe side.
    clock_gettime(id).map_or(0, |t| t.tv_sec() * 1000 + t.tv_nsec() / 1_000_000)
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX / 4)
}

/// `secs` as RFC 3339 in UTC, for people.
pub fn rfc3339(unix_seconds: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp(unix_seconds)
        .ok()
        .and_then(|t| {
            t.format(&time::format_description::well_known::Rfc3339)
                .ok()
        })
        .unwrap_or_else(|| unix_seconds.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stepped_clock_never_lengthens_a_life() {
        let clock = Clock::manual();
        let expiry = Expiry::after(clock.now(), Duration::from_secs(100));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(expiry.remaining(clock.now()), Duration::from_secs(40));
        clock.step_wall(-3600);
        assert_eq!(expiry.remaining(clock.now()), Duration::from_secs(40));
        clock.step_wall(3600 + 30);
        assert_eq!(expiry.remaining(clock.now()), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspended_machine_ages_its_tokens() {
        let clock = Clock::manual();
        let expiry = Expiry::after(clock.now(), Duration::from_secs(100));
        clock.suspend(Duration::from_secs(101));
        assert!(expiry.is_past(clock.now()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_date_told_to_callers_is_stable_and_never_too_late() {
        let clock = Clock::manual();
        let start = clock.now();
        let expiry = Expiry::after(start, Duration::from_secs(100));
        assert_eq!(expiry.unix_seconds(start), start.unix_seconds() + 100);
        clock.step_wall(-50);
        let now = clock.now();
        assert_eq!(expiry.unix_seconds(now), now.unix_seconds() + 100);
    }

    #[test]
    fn the_system_clocks_are_readable() {
        let now = Clock::system().now();
        assert!(now.unix_seconds() > 1_700_000_000 && now.boot > 0);
    }

    #[test]
    fn dates_are_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
    }
}
