//! Runs that wait and have no loop, when their time has come.
//!
//! Owns: looking at the journal's list of wakes, each tenant's in order of time.
//! Does not: know what a run waits for, or whether it still does: its loop reads the run and sees. A run whose loop is
//! there anyway keeps its own time.
//! Keeps: a timer fires late rather than never. What has come due while the host was down is first in the list. A tenant
//! whose timers are due by the million holds up its own only: of each tenant no more is read than may be woken.

use std::sync::Arc;
use std::time::Duration;

use stepwell_core::{RunKey, TenantId};

use super::Shared;
use super::run_loop::Message;
use crate::clock;
use crate::journal::{JournalError, error_chain};

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

/// Goes through what is due, tenant by tenant. Those whose tenant has no room for them stay in the list for the next look.
/// Returns when that is.
async fn wake_due(shared: &Arc<Shared>) -> Result<Duration, JournalError> {
    let mut pause = LOOK;
    for tenant in shared.journal.tenants_to_wake(clock::now().plus_millis(LOOK.as_millis() as u64))? {
        pause = pause.min(wake_due_of(shared, &tenant).await?);
    }
    Ok(pause)
}

async fn wake_due_of(shared: &Arc<Shared>, tenant: &TenantId) -> Result<Duration, JournalError> {
    let mut after = None;
    loop {
        if !shared.woken.has_room(tenant) {
            return Ok(LOOK);
        }
        let now = clock::now();
        let until = now.plus_millis(LOOK.as_millis() as u64);
        let found = shared.journal.wakes(tenant, after, until, PAGE)?;
        let Some(last) = found.last() else { return Ok(LOOK) };
        after = Some(*last);
        for (at, run) in found {
            if at > now {
                return Ok(Duration::from_millis(at.millis_since(now)).min(LOOK));
            }
            let key = RunKey { tenant: tenant.clone(), run };
            // A loop that is there keeps its own time.
            if shared.registry.has(&key) {
                continue;
            }
            let Some(permit) = shared.woken.try_acquire_fairly(tenant) else { return Ok(LOOK) };
            if let Some(inbox) = shared.inbox_of(&key) {
                drop(inbox.send(Message::Woken(permit)));
            }
        }
        tokio::task::yield_now().await;
    }
}
