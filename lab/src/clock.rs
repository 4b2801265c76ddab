//! A wall clock that can be set wrong: each server of the lab has its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The wall clock of one server. Clones share the offset.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    offset_millis: Arc<AtomicI64>,
}

impl Clock {
    /// Puts the clock `seconds` before (positive) or behind (negative) the machine's.
    pub fn set_offset(&self, seconds: i64) {
        self.offset_millis
            .store(seconds.saturating_mul(1000), Ordering::SeqCst);
    }

    /// Moves the clock on by `step`, on top of the offset it has.
    pub fn advance(&self, step: Duration) {
        let millis = i64::try_from(step.as_millis()).unwrap_or(i64::MAX);
        self.offset_millis.fetch_add(millis, Ordering::SeqCst);
    }

    /// Seconds since the epoch, as this clock has it.
    #[must_use]
    pub fn now(&self) -> i64 {
        self.millis().div_euclid(1000)
    }

    /// Milliseconds since the epoch, as this clock has it.
    #[must_use]
    pub fn millis(&self) -> i64 {
        let real = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| {
                i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
            });
        real.saturating_add(self.offset_millis.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_offset() {
        let clock = Clock::default();
        let twin = clock.clone();
        let before = clock.now();
        twin.set_offset(-3600);
        assert!(clock.now() <= before - 3599);
        twin.advance(Duration::from_secs(7200));
        assert!(clock.now() >= before + 3600);
    }
}
