//! Runs that have something to do and have no loop: all of them when the host starts, and later those whose loop has failed.
//!
//! Owns: going through the journal's list of unfinished runs, and that of the queues.
//! Does not: know what a run has to do: its loop reads the run and sees. Most of them only look around and leave.
//! Keeps: tenants take turns, a page each, and nobody has so many loops by this that there are none for others: whose runs
//! wait by the thousands holds up its own only. A tenant's queues are looked at after its runs, for what has begun
//! comes before what has not. What cannot be read is read again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use stepwell_core::{RunId, RunKey, RunStatus, TenantId};

use super::Shared;
use crate::journal::{Journal, JournalError, error_chain};

/// Runs read at once.
const PAGE: usize = 200;
/// Loops of all tenants from which on each tenant gets [`LOOPS_LEAST`] only.
const LOOPS_MAX: usize = 50_000;
/// Loops of a tenant from which on no more of its runs are taken up.
const LOOPS_PER_TENANT: usize = 10_000;
/// Loops that a tenant may have in any case.
const LOOPS_LEAST: usize = 200;
/// The wait when no tenant may have more loops, and after the journal could not be read.
const PAUSE: Duration = Duration::from_millis(100);
/// How often those are looked for that no loop drives though they move: a loop may have failed.
const AGAIN: Duration = Duration::from_secs(60);

/// Takes up every run that has something to do, and has the queues looked at. Returns how many runs that were.
pub(super) async fn all(shared: &Arc<Shared>) -> usize {
    take_up(shared, &|_| true, true).await
}

/// Looks now and then for runs that no loop drives, until the host stops.
pub(super) async fn look_again(shared: Arc<Shared>) {
    let is_lost = |key: &RunKey| {
        let waits = |status| matches!(status, RunStatus::Suspended | RunStatus::Paused);
        if shared.registry.has(key) {
            return false;
        }
        let is_lost = match shared.journal.summary(key) {
            Ok(summary) => summary.is_some_and(|run| !waits(run.status)),
            // It may be damaged for good, and must not keep others from being found.
            Err(error) => {
                tracing::error!(run = %key, error = error_chain(&error), "a run cannot be read");
                false
            }
        };
        if is_lost {
            tracing::warn!(run = %key, "a run without a loop is taken up again");
        }
        is_lost
    };
    while !shared.stopping.is_cancelled() {
        shared.pause(AGAIN).await;
        take_up(&shared, &is_lost, false).await;
    }
}

/// A tenant whose runs are being taken up.
struct Turn {
    tenant: TenantId,
    /// The last run that was looked at.
    after: Option<RunId>,
}

/// Goes through all tenants once. At a start that is not over before everything was taken up, and the queues are looked at too;
/// later, whoever has no room for more is left to the next time, for others' runs may be lost meanwhile.
async fn take_up(shared: &Arc<Shared>, wanted: &(impl Fn(&RunKey) -> bool + Sync), at_start: bool) -> usize {
    let mut turns = VecDeque::new();
    while !shared.stopping.is_cancelled() {
        match tenants(shared, at_start) {
            Ok(found) => {
                turns = found;
                break;
            }
            Err(error) => unreadable(shared, &error).await,
        }
    }
    let (mut count, mut passed) = (0, 0);
    while let Some(mut turn) = turns.pop_front()
        && !shared.stopping.is_cancelled()
    {
        if !has_room(shared.registry.len_of(&turn.tenant), shared.registry.len()) {
            turns.push_back(turn);
            passed += 1;
            if passed >= turns.len() {
                if !at_start {
                    break;
                }
                passed = 0;
                shared.pause(PAUSE).await;
            }
            continue;
        }
        passed = 0;
        match take_up_page(shared, &mut turn, wanted, at_start).await {
            Ok(Some(taken)) => {
                count += taken;
                turns.push_back(turn);
            }
            Ok(None) => {}
            Err(error) => {
                turns.push_back(turn);
                unreadable(shared, &error).await;
            }
        }
        tokio::task::yield_now().await;
    }
    count
}

fn tenants(shared: &Shared, at_start: bool) -> Result<VecDeque<Turn>, JournalError> {
    let mut tenants = shared.journal.tenants_with_unfinished()?;
    if at_start {
        tenants.extend(shared.journal.tenants_with_queues()?);
    }
    Ok(tenants.into_iter().map(|tenant| Turn { tenant, after: None }).collect())
}

/// Whether more runs of a tenant may get loops by this: fewer of them have one than are left for all, or very few.
fn has_room(of_tenant: usize, of_all: usize) -> bool {
    of_tenant < LOOPS_MAX.saturating_sub(of_all).clamp(LOOPS_LEAST, LOOPS_PER_TENANT)
}

/// Takes up a page of a tenant's runs. Returns how many that were; `None` at the end.
async fn take_up_page(
    shared: &Arc<Shared>,
    turn: &mut Turn,
    wanted: &(impl Fn(&RunKey) -> bool + Sync),
    at_start: bool,
) -> Result<Option<usize>, JournalError> {
    let page = shared.journal.unfinished(&turn.tenant, turn.after, PAGE)?;
    if page.is_empty() {
        if at_start {
            shared.flow.recover(&turn.tenant).await?;
        }
        return Ok(None);
    }
    let mut taken = 0;
    for key in page {
        if wanted(&key) {
            drop(shared.inbox_of(&key));
            taken += 1;
        }
        turn.after = Some(key.run);
    }
    Ok(Some(taken))
}

async fn unreadable(shared: &Shared, error: &JournalError) {
    tracing::error!(error = error_chain(error), "the unfinished runs could not be read");
    shared.pause(PAUSE * 10).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_few_loops_gets_more_however_many_others_have() {
        let mut of_tenants = [0; 100];
        while let Some(tenant) =
            (0..of_tenants.len()).find(|tenant| has_room(of_tenants[*tenant], of_tenants.iter().sum()))
        {
            of_tenants[tenant] += PAGE;
        }
        assert_eq!(of_tenants[0], LOOPS_PER_TENANT, "the first takes all that one may have");
        assert!(of_tenants.iter().all(|loops| *loops >= LOOPS_LEAST), "{of_tenants:?}");
        assert!(of_tenants.iter().sum::<usize>() <= LOOPS_MAX + of_tenants.len() * (LOOPS_LEAST + PAGE));
    }
}
