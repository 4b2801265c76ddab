//! Asks SPIRE about identities that nobody has asked for yet, so that `status` and the metrics know
//! of a missing registration entry before the first caller finds out.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{RunError, cancelled_within};
use crate::server::Live;

/// Goes round for ever: one identity after the other, spread over a round, so that a start with
/// ten thousand of them is no storm on the agent.
pub(super) async fn run(
    mut live: watch::Receiver<Arc<Live>>,
    stop: CancellationToken,
) -> Result<(), RunError> {
    // Callers of the first moment come first.
    if cancelled_within(&stop, FIRST_ROUND.mul_f64(fastrand::f64())).await {
        return Ok(());
    }
    loop {
        let now = Arc::clone(&live.borrow_and_update());
        let count = u32::try_from(now.accounts.len()).unwrap_or(u32::MAX).max(1);
        let pause = (ROUND / count).min(LONGEST_PAUSE).max(SHORTEST_PAUSE);
        for account in &now.accounts {
            let probe = account.probe();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = probe => {}
            }
            if live.has_changed().unwrap_or(false) {
                break;
            }
            if cancelled_within(&stop, pause.mul_f64(0.5 + fastrand::f64())).await {
                return Ok(());
            }
        }
        let rest = ROUND.mul_f64(0.5 + fastrand::f64());
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            // A reload brings identities that want to be known soon.
            changed = live.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(rest) => {}
        }
    }
}

const FIRST_ROUND: Duration = Duration::from_secs(1);
/// How long a round through all identities takes at least, and the pause after it.
const ROUND: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
