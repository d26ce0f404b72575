//! What is done in the background so that nothing grows for ever.
//!
//! Keeps: each write is small, with room for others in between; tenants take turns, so one with much to delete holds up
//! nobody's retention; and a round ends, so that everything else that is to be deleted has its turn too.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use stepwell_core::{TenantId, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::journal::catalog::TenantRecord;
use crate::journal::retention::Deleted;
use crate::journal::{JournalError, RedbJournal};

/// How often there is a look at what may be deleted. Retention counts in days, so minutes are early enough.
const INTERVAL: Duration = Duration::from_secs(10 * 60);
/// The same after a round that has left something.
const PAUSE: Duration = Duration::from_secs(1);
/// Turns of one round in which something is deleted: some seconds.
const TURNS_MAX: usize = 500;
/// Writes of one round for each kind of what answers for a day and is then forgotten.
const FORGETTING_WRITES_MAX: usize = 200;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Deletes what has outlived its retention, until the host stops.
pub async fn run(journal: Arc<RedbJournal>, stopping: CancellationToken) {
    let mut sweeper = Sweeper::default();
    let mut wait = Duration::ZERO;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stopping.cancelled() => return,
        }
        wait = INTERVAL;
        match sweeper.round(&journal, clock::now(), &stopping).await {
            Ok(swept) => {
                if swept.runs + swept.contents > 0 {
                    let Swept { runs, contents, .. } = swept;
                    tracing::info!(runs, contents, "what is past its retention was deleted");
                }
                if swept.more {
                    wait = PAUSE;
                }
            }
            Err(error) => tracing::error!(%error, "what is past its retention could not be deleted"),
        }
    }
}

/// What a round has deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Runs, with all that was theirs.
    pub runs: usize,
    /// Runs whose files and large values were deleted before them.
    pub contents: usize,
    /// Whether there is more to delete.
    pub more: bool,
}

/// Goes around all tenants.
#[derive(Debug)]
pub struct Sweeper {
    /// Turns of a round in which something is deleted.
    turns_max: usize,
    /// Who had the last turn. The next round begins behind it.
    last: Option<TenantId>,
}

impl Default for Sweeper {
    fn default() -> Self {
        Self::with_turns(TURNS_MAX)
    }
}

impl Sweeper {
    /// One whose rounds have so many turns.
    #[must_use]
    pub fn with_turns(turns_max: usize) -> Self {
        Self { turns_max, last: None }
    }

    /// Deletes what may be deleted now, a bounded number of writes; whoever has more than one write's work waits until all
    /// others have had their turn.
    pub async fn round(
        &mut self,
        journal: &RedbJournal,
        now: Timestamp,
        stopping: &CancellationToken,
    ) -> Result<Swept, JournalError> {
        let mut swept = Swept::default();
        let mut waiting = self.in_order(journal.tenants()?);
        let mut turns = 0;
        while let Some(tenant) = waiting.pop_front() {
            if stopping.is_cancelled() || turns >= self.turns_max {
                swept.more = true;
                break;
            }
            let runs = journal.delete_runs_ended_before(&tenant.id, before(now, tenant.retention_days)).await?;
            swept.runs += runs.runs;
            let (mut more, mut wrote) = (runs.more, runs != Deleted::default());
            if let Some(days) = tenant.artifact_retention_days {
                let contents = journal.delete_contents_ended_before(&tenant.id, before(now, days)).await?;
                swept.contents += contents.runs;
                more |= contents.more;
                wrote |= contents != Deleted::default();
            }
            turns += usize::from(wrote);
            self.last = Some(tenant.id.clone());
            if more {
                waiting.push_back(tenant);
            }
        }
        for _ in 0..FORGETTING_WRITES_MAX {
            let forgotten = journal.delete_old_idempotency_keys(now).await? + journal.delete_old_events(now).await?;
            if stopping.is_cancelled() || forgotten == 0 {
                return Ok(swept);
            }
        }
        swept.more = true;
        Ok(swept)
    }

    /// The tenants, beginning behind whoever had the last turn.
    fn in_order(&self, mut tenants: Vec<TenantRecord>) -> VecDeque<TenantRecord> {
        let first = match &self.last {
            Some(last) => tenants.iter().position(|tenant| tenant.id > *last).unwrap_or(0),
            None => 0,
        };
        tenants.rotate_left(first);
        tenants.into()
    }
}

fn before(now: Timestamp, days: u32) -> Timestamp {
    Timestamp::from_millis(now.as_millis().saturating_sub(u64::from(days) * DAY_MS))
}
