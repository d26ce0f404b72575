//! Runs that wait and have no loop: when their time has come, they get one.
//!
//! Owns: looking at the journal's list of wakes, in order of time.
//! Does not: know what a run waits for, or whether it still does: its loop reads the run and sees. A run whose loop is
//! there anyway keeps its own time.
//! Keeps: a timer fires late rather than never. What has come due while the host was down is first in the list.

use std::sync::Arc;
use std::time::Duration;

use stepwell_core::{RunKey, Timestamp};

use super::Shared;
use crate::clock;
use crate::journal::{Journal, error_chain};

/// The list is looked at this often, and sooner when something is due sooner. A run is let go of only when its timer is
/// further away than this (see `run_loop`), so none is found too late.
const LOOK: Duration = Duration::from_secs(1);
/// Runs taken up at once before others get a turn.
const WAKES_MAX: usize = 500;
/// While so many runs have loops, no further ones are taken up: a million timers that come due while the host is down
/// must not all be in memory after its start.
const LOOPS_MAX: usize = 20_000;
/// What was taken up and is still listed after this time is taken up again: its loop may have failed.
const AGAIN: Duration = Duration::from_secs(60);

/// Takes up runs whose time has come, until the host stops.
pub(super) async fn wake_waiting(shared: Arc<Shared>) {
    let mut after: Option<(Timestamp, RunKey)> = None;
    let mut again_at = tokio::time::Instant::now() + AGAIN;
    while !shared.stopping.is_cancelled() {
        if again_at.elapsed() > Duration::ZERO {
            (after, again_at) = (None, tokio::time::Instant::now() + AGAIN);
        }
        let now = clock::now();
        let horizon = now.plus_millis(LOOK.as_millis() as u64);
        let found = match shared.journal.wakes(after.as_ref(), horizon, WAKES_MAX) {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(error = error_chain(&error), "the runs to be woken could not be read");
                Vec::new()
            }
        };
        let mut pause = LOOK;
        for (at, key) in found {
            if at > now {
                pause = Duration::from_millis(at.millis_since(now)).min(LOOK);
                break;
            }
            if shared.registry.len() >= LOOPS_MAX {
                pause = LOOK / 10;
                break;
            }
            drop(shared.inbox_of(&key));
            after = Some((at, key));
            pause = Duration::ZERO;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.stopping.cancelled() => return,
        }
    }
}
