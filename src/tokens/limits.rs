//! What keeps the daemon from being used as a hammer on Entra.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{exchange::Target, time::Moment};

/// How many exchanges an account may still make: a bucket that fills over a minute.
#[derive(Debug)]
pub(super) struct Allowance {
    /// Exchanges left, and when that was true.
    left: Mutex<(f64, Moment)>,
}

impl Allowance {
    /// A full one.
    pub(super) fn new(per_minute: u32, now: Moment) -> Self {
        Self {
            left: Mutex::new((f64::from(per_minute), now)),
        }
    }

    /// Takes one, or says how long until there is one.
    pub(super) fn take(&self, per_minute: u32, now: Moment) -> Result<(), Duration> {
        let capacity = f64::from(per_minute);
        let per_second = capacity / 60.0;
        let mut guard = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, at) = *guard;
        let left = (left + now.since(at).as_secs_f64() * per_second).min(capacity);
        if left >= 1.0 {
            *guard = (left - 1.0, now);
            Ok(())
        } else {
            *guard = (left, now);
            Err(Duration::from_secs_f64((1.0 - left) / per_second))
        }
    }
}

/// Until when Entra wants to hear nothing from a tenant's client (HTTP 429). Shared by all keys.
#[derive(Debug, Default)]
pub(super) struct Throttles(Mutex<HashMap<Target, Moment>>);

impl Throttles {
    /// Notes that nothing is to be asked for `time`.
    pub(super) fn hold(&self, target: &Target, now: Moment, time: Duration) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that are over are swept here: the map stays as small as the trouble is.
        held.retain(|_, until| !until.since(now).is_zero());
        let until = held.entry(target.clone()).or_insert(now);
        let wanted = now.after(time);
        if wanted.since(*until) > Duration::ZERO {
            *until = wanted;
        }
    }

    /// How long this target is still to be left alone.
    pub(super) fn remaining(&self, target: &Target, now: Moment) -> Option<Duration> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(target)
            .map(|until| until.since(now))
            .filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Clock;

    #[tokio::test(start_paused = true)]
    async fn an_allowance_fills_again() {
        let clock = Clock::manual();
        let allowance = Allowance::new(60, clock.now());
        for _ in 0..60 {
            assert_eq!(allowance.take(60, clock.now()), Ok(()));
        }
        let wait = allowance.take(60, clock.now()).unwrap_err();
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
        tokio::time::advance(wait + Duration::from_millis(1)).await;
        assert_eq!(allowance.take(60, clock.now()), Ok(()));
        assert!(allowance.take(60, clock.now()).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_hold_counts_and_ends() {
        let clock = Clock::manual();
        let throttles = Throttles::default();
        let target = Target {
            authority: "https://login.example".parse().unwrap(),
            tenant: "t".into(),
            client_id: "c".into(),
        };
        let other = Target {
            client_id: "d".into(),
            ..target.clone()
        };
        throttles.hold(&target, clock.now(), Duration::from_secs(60));
        throttles.hold(&target, clock.now(), Duration::from_secs(10));
        assert_eq!(
            throttles.remaining(&target, clock.now()),
            Some(Duration::from_secs(60))
        );
        assert_eq!(throttles.remaining(&other, clock.now()), None);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(throttles.remaining(&target, clock.now()), None);
    }
}
