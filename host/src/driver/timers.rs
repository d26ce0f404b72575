//! Runs that have no loop and should: those that wait, when their time has come, and those that were let go of.
//!
//! Owns: looking at the journal's list of wakes, in order of time, and now and then at that of unfinished runs.
//! Does not: know what a run waits for, or whether it still does: its loop reads the run and sees. A run whose loop is
//! there anyway keeps its own time.
//! Keeps: a timer fires late rather than never. What has come due while the host was down is first in the list. A tenant
//! whose timers are due by the thousands holds up its own only.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use stepwell_core::{RunKey, RunStatus, TenantId, Timestamp};

use super::Shared;
use super::run_loop::Message;
use crate::clock;
use crate::journal::{Journal, JournalError, error_chain};

/// The list is looked at this often, and sooner when something is due sooner. A run is let go of only when its timer is
/// further away than this (see `run_loop`), so none is found too late.
const LOOK: Duration = Duration::from_secs(1);
/// Wakes read at once.
const PAGE: usize = 500;
/// Runs that a timer has taken up and that wait for room: a million timers that come due while the host is down must not
/// all be in memory after its start.
pub(super) const WOKEN_MAX: usize = 20_000;
/// The same for one tenant.
pub(super) const WOKEN_PER_TENANT: usize = 5_000;
/// Loops beyond which a starting host takes up no further runs until some have left.
const LOOPS_MAX: usize = 50_000;
/// How often those are looked for that no loop drives though they move: a loop may have failed.
const AGAIN: Duration = Duration::from_secs(60);
/// Unfinished runs read at once.
const UNFINISHED_PAGE: usize = 1_000;

/// Takes up runs whose time has come, until the host stops.
pub(super) async fn wake_waiting(shared: Arc<Shared>) {
    while !shared.stopping.is_cancelled() {
        let pause = wake_due(&shared).await.unwrap_or_else(|error| {
            tracing::error!(error = error_chain(&error), "the runs to be woken could not be read");
            LOOK
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.stopping.cancelled() => return,
        }
    }
}

/// Looks now and then for runs that no loop drives, until the host stops. Not where timers are: it waits for memory, and they
/// must not.
pub(super) async fn look_again(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = shared.stopping.cancelled() => return,
        }
        if let Err(error) = take_up_lost(&shared).await {
            tracing::error!(error = error_chain(&error), "the unfinished runs could not be read");
        }
    }
}

/// Goes through what is due. Those whose tenant has no room for them stay in the list for the next look. Returns when that
/// is.
async fn wake_due(shared: &Arc<Shared>) -> Result<Duration, JournalError> {
    let mut after: Option<(Timestamp, RunKey)> = None;
    let mut full: HashSet<TenantId> = HashSet::new();
    loop {
        let now = clock::now();
        let found = shared.journal.wakes(after.as_ref(), now.plus_millis(LOOK.as_millis() as u64), PAGE)?;
        let Some(last) = found.last() else { return Ok(LOOK) };
        after = Some(last.clone());
        for (at, key) in found {
            if at > now {
                return Ok(Duration::from_millis(at.millis_since(now)).min(LOOK));
            }
            // A loop that is there keeps its own time.
            if full.contains(&key.tenant) || shared.registry.has(&key) {
                continue;
            }
            let Some(permit) = shared.woken.try_acquire_fairly(&key.tenant) else {
                full.insert(key.tenant);
                continue;
            };
            if let Some(inbox) = shared.inbox_of(&key) {
                drop(inbox.send(Message::Woken(permit)));
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Takes up runs that move and have no loop, and those that have ended and owe somebody the news.
async fn take_up_lost(shared: &Arc<Shared>) -> Result<(), JournalError> {
    let mut after = None;
    loop {
        let page = shared.journal.unfinished(after.as_ref(), UNFINISHED_PAGE)?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.clone());
        for key in &page {
            let waits = |status| matches!(status, RunStatus::Suspended | RunStatus::Paused);
            if !shared.registry.has(key) && shared.journal.summary(key)?.is_some_and(|run| !waits(run.status)) {
                tracing::warn!(run = %key, "a run without a loop is taken up again");
                drop(shared.inbox_of(key));
            }
        }
        wait_for_memory(shared).await;
    }
}

/// Waits until fewer runs are in memory, if there are very many.
pub(super) async fn wait_for_memory(shared: &Shared) {
    tokio::task::yield_now().await;
    while shared.registry.len() > LOOPS_MAX && !shared.stopping.is_cancelled() {
        tokio::time::sleep(LOOK / 10).await;
    }
}
