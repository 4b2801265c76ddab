//! The task that keeps an account's JWT-SVID fresh, and so learns whether SPIRE still consents.

use std::{sync::Arc, time::Duration};

use tokio::{select, time::sleep};

use super::{account::Account, schedule, worker::SLICE};

/// Keeps the account's JWT-SVID fresh while there are keys, and withdraws their tokens when SPIRE
/// has denied it for too long.
pub(super) async fn keep(account: Arc<Account>) {
    // Also when this ends by a panic: the next key starts it anew.
    let _ended = Ended(&account);
    let shared = &account.shared;
    let mut failures = 0;
    let mut signer = None;
    loop {
        let wait = match account.keeper().due_in() {
            Some(due) if failures == 0 => due,
            // The keys fetch first; there is nothing to keep yet.
            None if failures == 0 && account.keeper().denied_for().is_none() => FIRST_LOOK,
            _ => schedule::backoff(failures.max(1), None, (shared.jitter)()).min(KEEP_RETRY),
        };
        // Not beyond the moment at which tokens are to be withdrawn; and in slices, so that a
        // suspended machine is noticed.
        let limit = shared.limits().revoke_after;
        let left = account
            .keeper()
            .denied_for()
            .and_then(|denied| limit.checked_sub(denied));
        let wait = wait.min(SLICE).min(left.unwrap_or(SLICE));
        select! {
            biased;
            () = account.stop.cancelled() => return,
            () = sleep(wait) => {}
        }
        if account.keys().all().is_empty() && account.stop_keeping() {
            return;
        }
        if account.keeper().due_in().is_some_and(|due| !due.is_zero()) {
            failures = 0;
        } else {
            let fetched = select! {
                biased;
                () = account.stop.cancelled() => return,
                fetched = account.keeper().fetch(&account.trust.assertion) => fetched,
            };
            match fetched {
                Ok(_) if account.keeper().error().is_none() => failures = 0,
                Ok(_) | Err(_) => failures = failures.saturating_add(1),
            }
        }
        watch_consent(&account);
        let current = account.keeper().signer();
        if current.is_some() && current != signer {
            if signer.is_some() {
                account.forgive();
            }
            signer = current;
        }
    }
}

struct Ended<'a>(&'a Account);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.keeping_ended();
        }
    }
}

/// Withdraws tokens that SPIRE no longer consents to, and ends a withdrawal that it lifted.
fn watch_consent(account: &Account) {
    let limit = account.shared.limits().revoke_after;
    match account.keeper().denied_for() {
        Some(time) if time >= limit => {
            if account.revoked().is_none()
                && let Some(error) = account.keeper().error()
            {
                account.revoke(&error.report);
            }
        }
        Some(_) => {}
        None => {
            let by_spire = account.revoked().is_some_and(|report| report.retryable);
            if by_spire && account.keeper().signer().is_some() {
                account.restore();
                account.forgive();
            }
        }
    }
}

/// How soon the JWT-SVID's task first looks at what the keys have fetched.
const FIRST_LOOK: Duration = Duration::from_secs(1);
/// How often at least SPIRE is asked again after it did not give a JWT-SVID.
const KEEP_RETRY: Duration = Duration::from_secs(30);
