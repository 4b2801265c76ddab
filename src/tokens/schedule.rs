//! When to renew and when to try again: arithmetic without a clock.
//!
//! `jitter` is always a number in `[0, 1)`, given by the caller.

use std::time::Duration;

/// What a token must have left to be handed out without trying to renew it first: five minutes (the
/// Azure SDKs throw away a token with less), or half its life when that is shorter.
pub(super) fn freshness(lifetime: Duration) -> Duration {
    FRESHNESS.min(lifetime / 2)
}

/// How long after its issue a token is renewed: at `refresh_in` if Entra gave one, else at
/// half-life. Jitter only brings it forward, by a fifth at most, so that an outage that begins at
/// any moment finds a token with half its life left; and it is always due before the token stops
/// being fresh.
pub(super) fn refresh_after(
    lifetime: Duration,
    refresh_in: Option<Duration>,
    jitter: f64,
) -> Duration {
    let latest = lifetime.saturating_sub(freshness(lifetime));
    let wanted = refresh_in
        .filter(|at| !at.is_zero())
        .unwrap_or(lifetime / 2)
        .min(latest);
    earlier(wanted, jitter)
}

/// How long after its fetch a JWT-SVID with `remaining` to live is fetched again: at half of that,
/// when the agent has renewed it; and after five minutes at most, for that is also how a deleted
/// registration entry is noticed (the agent answers repeats from memory).
pub(super) fn refetch_after(remaining: Duration, jitter: f64) -> Duration {
    earlier((remaining / 2).min(MAX_REFETCH), jitter).max(MIN_REFETCH)
}

/// How long to wait after the `failures`th failure in a row (from 1): full jitter over a doubling
/// range, never less than what was asked for (`Retry-After`), and never so short that it is no wait.
pub(super) fn backoff(failures: u32, asked: Option<Duration>, jitter: f64) -> Duration {
    let range = BACKOFF_BASE.saturating_mul(1 << failures.saturating_sub(1).min(16));
    let wait = range.min(BACKOFF_LIMIT).mul_f64(jitter).max(BACKOFF_MIN);
    match asked {
        // Everybody who was told the same time comes back at the same time: spread them behind it.
        Some(asked) => asked.saturating_add(wait.min(asked / 4).min(Duration::from_secs(5))),
        None => wait,
    }
}

/// How long to wait while a change spreads: from `every` on, growing to six times as much.
pub(super) fn propagation(failures: u32, every: Duration, jitter: f64) -> Duration {
    let factor = failures.clamp(1, 6);
    every
        .saturating_mul(factor)
        .min(every.max(PROPAGATION_LIMIT))
        .mul_f64(1.0 + jitter / 10.0)
}

/// How long to wait before looking again whether an exchange may be made: what is missing, and a
/// little more, so that those who were held together do not come back together.
pub(super) fn held(missing: Duration, jitter: f64) -> Duration {
    missing.max(BACKOFF_MIN).mul_f64(1.0 + jitter / 4.0)
}

/// How long a permanent failure is tried again after, while a valid token makes that worth while.
pub(super) fn permanent(failures: u32) -> Duration {
    REMEMBER_PERMANENT
        .saturating_mul(1 << failures.saturating_sub(1).min(4))
        .min(PERMANENT_LIMIT)
}

fn earlier(time: Duration, jitter: f64) -> Duration {
    time.mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 5.0)
}

/// How long a permanent failure is answered from memory.
pub(super) const REMEMBER_PERMANENT: Duration = Duration::from_secs(30);

const FRESHNESS: Duration = Duration::from_secs(300);
const MIN_REFETCH: Duration = Duration::from_secs(1);
const MAX_REFETCH: Duration = Duration::from_secs(300);
const BACKOFF_BASE: Duration = Duration::from_secs(1);
const BACKOFF_MIN: Duration = Duration::from_millis(250);
const BACKOFF_LIMIT: Duration = Duration::from_secs(60);
const PROPAGATION_LIMIT: Duration = Duration::from_secs(30);
const PERMANENT_LIMIT: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEC: Duration = Duration::from_secs(1);

    #[test]
    fn the_usual_cases() {
        assert_eq!(freshness(SEC * 3600), SEC * 300);
        assert_eq!(freshness(SEC * 60), SEC * 30);
        assert_eq!(refresh_after(SEC * 3600, None, 0.0), SEC * 1800);
        assert_eq!(
            refresh_after(SEC * 86_400, Some(SEC * 43_200), 0.0),
            SEC * 43_200
        );
        assert_eq!(refresh_after(SEC * 3600, None, 0.5), SEC * 1620);
        // A `refresh_in` beyond the point where callers would have to wait is brought forward.
        assert_eq!(refresh_after(SEC * 3600, Some(SEC * 3590), 0.0), SEC * 3300);
        assert_eq!(refetch_after(SEC * 300, 0.0), SEC * 150);
        assert_eq!(refetch_after(SEC * 86_400, 0.0), SEC * 300);
        assert_eq!(held(Duration::ZERO, 0.0), BACKOFF_MIN);
        assert_eq!(backoff(1, Some(SEC * 60), 0.0), SEC * 60 + BACKOFF_MIN);
        assert_eq!(propagation(1, SEC * 5, 0.0), SEC * 5);
        assert_eq!(propagation(100, SEC * 5, 0.0), SEC * 30);
        assert_eq!(propagation(100, SEC * 60, 0.0), SEC * 60);
        assert_eq!(permanent(1), SEC * 30);
        assert_eq!(permanent(9), SEC * 300);
    }

    proptest! {
        #[test]
        fn a_renewal_is_due_while_the_token_is_fresh(
            lifetime in 1u64..200_000, refresh_in in proptest::option::of(0u64..400_000), jitter in 0.0f64..1.0,
        ) {
            let lifetime = SEC * u32::try_from(lifetime).unwrap();
            let at = refresh_after(lifetime, refresh_in.map(Duration::from_secs), jitter);
            prop_assert!(lifetime - at >= freshness(lifetime));
            if refresh_in.is_none() {
                prop_assert!(at <= lifetime / 2 && at >= lifetime.mul_f64(0.39));
            }
        }

        #[test]
        fn a_wait_is_bounded_and_obeys_what_was_asked(
            failures in 0u32..=u32::MAX, asked in proptest::option::of(0u64..3600), jitter in 0.0f64..1.0,
        ) {
            let asked = asked.map(Duration::from_secs);
            let wait = backoff(failures, asked, jitter);
            match asked {
                Some(asked) => prop_assert!(wait >= asked && wait <= asked + SEC * 5),
                None => prop_assert!(wait >= BACKOFF_MIN && wait <= BACKOFF_LIMIT),
            }
            let wait = propagation(failures, SEC * 5, jitter);
            prop_assert!(wait >= SEC * 5 && wait <= SEC * 33);
            prop_assert!(permanent(failures) >= REMEMBER_PERMANENT && permanent(failures) <= PERMANENT_LIMIT);
        }

        #[test]
        fn an_svid_is_fetched_again_before_it_dies(remaining in 2u64..100_000, jitter in 0.0f64..1.0) {
            let remaining = Duration::from_secs(remaining);
            let at = refetch_after(remaining, jitter);
            prop_assert!(at >= MIN_REFETCH && at <= (remaining / 2).clamp(MIN_REFETCH, MAX_REFETCH));
        }
    }
}
