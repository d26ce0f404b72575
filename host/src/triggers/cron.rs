//! Times of a calendar that start runs.
//!
//! Keeps: a time starts one run. Its creation and the trigger's mark are one write: whatever becomes of the host, and for
//! however long, either both are there or neither.

use std::time::Duration;

use serde_json::json;
use stepwell_core::{Json, TenantId, Timestamp};

use super::schedule::{InvalidSchedule, Schedule};
use super::work::{Owed, Width};
use super::{ActError, Acted, Occurrence, StartError, Triggers};
use crate::clock;
use crate::journal::due::Lane;
use crate::journal::triggers::{Missed, TakenTime, TriggerMark, TriggerOn, TriggerRecord};
use crate::journal::{JournalError, error_chain};

/// After a start that could not be made at present.
const PAUSE: Duration = Duration::from_secs(1);

/// Triggers that are to fire.
#[derive(Clone)]
pub(super) struct Firing(pub(super) Triggers);

impl Owed for Firing {
    type Key = String;
    /// Each start waits for one write, which all share.
    const WIDTH: Width = Width { all: 64, per_tenant: 16 };

    fn lanes(&self, now: Timestamp) -> Result<Vec<Lane>, JournalError> {
        self.0.journal.lanes_to_fire(now)
    }

    fn due(&self, lane: &Lane, now: Timestamp, limit: usize) -> Result<Vec<(Timestamp, String)>, JournalError> {
        self.0.journal.triggers_due(lane, now, limit)
    }

    async fn carry_out(&self, Lane { tenant, .. }: Lane, at: Timestamp, name: String) {
        if let Err(error) = self.0.fire(&tenant, &name, at).await {
            tracing::error!(%tenant, trigger = name, error = error_chain(&error), "a trigger could not fire");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Triggers {
    /// Does what a trigger is to do whose first time that it has not fired for is `first`.
    async fn fire(&self, tenant: &TenantId, name: &str, first: Timestamp) -> Result<(), JournalError> {
        let record = self.journal.trigger(tenant, name)?.filter(|record| record.enabled);
        let mark = self.journal.trigger_mark(tenant, name)?;
        if mark.next != Some(first) {
            return Ok(()); // it was set up anew while this was on its way
        }
        let Some((record, schedule)) = record.as_ref().and_then(|record| Some((record, schedule_of(record)?))) else {
            // It was switched off, or is of another kind by now: it has no next time.
            let moved = TriggerMark { next: None, ..mark };
            return self.journal.move_trigger_mark(tenant, name, Some(first), moved).await;
        };
        let (schedule, missed) = match schedule {
            Ok(schedule) => schedule,
            Err(error) => {
                // It was read when it was set up: another version of this program has another database of time zones.
                tracing::warn!(%tenant, trigger = name, %error, "a trigger has no times any more");
                let problem = Some((error.code().to_owned(), error.to_string()));
                let moved = TriggerMark { next: None, last_problem: problem, ..mark };
                return self.journal.move_trigger_mark(tenant, name, Some(first), moved).await;
            }
        };
        let due = schedule.due(first, clock::now(), missed);
        if due.fire.is_empty() {
            let moved = TriggerMark { next: due.next, ..mark };
            return self.journal.move_trigger_mark(tenant, name, Some(first), moved).await;
        }
        // The mark goes from one time to the next, so that a start that must wait loses none of those after it.
        let nexts = due.fire.iter().skip(1).copied().map(Some).chain([due.next]);
        let mut expected = first;
        for (at, next) in due.fire.iter().copied().zip(nexts) {
            let time = TakenTime { trigger: name.to_owned(), expected, at, next };
            match self.fire_for(tenant, record, time).await {
                Ok(Some(Acted::Started { run, .. })) => {
                    tracing::debug!(%tenant, trigger = name, %run, "a trigger has started a run");
                }
                Ok(_) => {}
                // It was changed or deleted meanwhile; what it is to do now is on the list.
                Err(ActError::Start(StartError::Journal(JournalError::TimeTaken))) => return Ok(()),
                Err(error) if error.may_pass() => {
                    tracing::warn!(%tenant, trigger = name, %error, "a trigger cannot fire at present");
                    tokio::time::sleep(PAUSE).await;
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(%tenant, trigger = name, %error, "a trigger could not start its run");
                    let problem = Some((error.code().to_owned(), error.to_string()));
                    let last_run = self.journal.trigger_mark(tenant, name)?.last_run;
                    let moved = TriggerMark { next, last: Some(at), last_run, last_problem: problem };
                    self.journal.move_trigger_mark(tenant, name, Some(expected), moved).await?;
                }
            }
            let Some(next) = next else { break };
            expected = next;
        }
        Ok(())
    }

    async fn fire_for(
        &self,
        tenant: &TenantId,
        record: &TriggerRecord,
        time: TakenTime,
    ) -> Result<Option<Acted>, ActError> {
        let scheduled = clock::rfc3339(time.at);
        let value = json!({ "trigger": record.name, "scheduled_at": scheduled });
        let Ok(value) = Json::of(&value) else { return Ok(None) };
        let occurrence = Occurrence { default_input: value.clone(), value, id: scheduled, time: Some(time) };
        self.act(tenant, record, &occurrence).await.map(Some)
    }
}

/// A trigger's schedule, and what becomes of times that were missed. `None` for a trigger of another kind.
fn schedule_of(record: &TriggerRecord) -> Option<Result<(Schedule, Missed), InvalidSchedule>> {
    match &record.on {
        TriggerOn::Cron { schedule, time_zone, missed } => {
            Some(Schedule::parse(schedule, time_zone).map(|schedule| (schedule, *missed)))
        }
        _ => None,
    }
}
