//! What is done in the background so that nothing grows for ever.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::journal::{JournalError, RedbJournal};

/// How often there is a look at what may be deleted. Retention counts in days, so minutes are early enough.
const INTERVAL: Duration = Duration::from_secs(10 * 60);
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Deletes what has outlived its retention, until the host stops.
pub async fn run(journal: Arc<RedbJournal>, stopping: CancellationToken) {
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = stopping.cancelled() => return,
        }
        match sweep(&journal, &stopping).await {
            Ok(0) => {}
            Ok(deleted) => tracing::info!(deleted, "runs past their retention were deleted"),
            Err(error) => tracing::error!(%error, "what is past its retention could not be deleted"),
        }
    }
}

/// Deletes all that may be deleted now, in small writes with room for others in between. Returns the number of runs.
pub async fn sweep(journal: &RedbJournal, stopping: &CancellationToken) -> Result<usize, JournalError> {
    let now = clock::now();
    let mut deleted = 0;
    for tenant in journal.tenants()? {
        let keep_ms = u64::from(tenant.retention_days) * DAY_MS;
        let cutoff = stepwell_core::Timestamp::from_millis(now.as_millis().saturating_sub(keep_ms));
        while !stopping.is_cancelled() {
            let count = journal.delete_runs_ended_before(&tenant.id, cutoff).await?;
            deleted += count;
            if count == 0 {
                break;
            }
        }
    }
    while !stopping.is_cancelled() && journal.delete_old_idempotency_keys(now).await? > 0 {}
    while !stopping.is_cancelled() && journal.delete_old_events(now).await? > 0 {}
    Ok(deleted)
}
