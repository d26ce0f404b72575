//! Times of a calendar that start runs.
//!
//! Keeps: a time starts one run. The run is started under a key made of the trigger and the time, and afterwards the
//! trigger's mark moves on; what a crash cuts off in between is started again and finds the run.

use std::time::Duration;

use serde_json::json;
use stepwell_core::{Json, TenantId, Timestamp};
use tokio_util::sync::CancellationToken;

use super::schedule::Schedule;
use super::work::{Width, drive};
use super::{ActError, Acted, Occurrence, Triggers};
use crate::clock;
use crate::journal::triggers::{TriggerMark, TriggerOn, TriggerRecord};
use crate::journal::{JournalError, error_chain};

/// Triggers that fire at once. Each start waits for one write, which all share.
const WIDTH: Width = Width { all: 64, per_tenant: 16 };
/// After a start that could not be made at present.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn run(triggers: &Triggers, stopping: &CancellationToken) {
    let due = |until, limit| {
        let found = triggers.journal.triggers_due(until, limit)?;
        Ok(found.into_iter().map(|(at, tenant, name)| (at, (tenant, name))).collect())
    };
    let work = |at, (tenant, name): (TenantId, String)| {
        let triggers = triggers.clone();
        async move {
            if let Err(error) = triggers.fire(&tenant, &name, at).await {
                tracing::error!(%tenant, trigger = name, error = error_chain(&error), "a trigger could not fire");
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    drive(WIDTH, stopping, |(tenant, _)| tenant.clone(), due, work).await;
}

impl Triggers {
    /// Does what a trigger is to do whose first time that it has not fired for is `first`.
    async fn fire(&self, tenant: &TenantId, name: &str, first: Timestamp) -> Result<(), JournalError> {
        let record = self.journal.trigger(tenant, name)?.filter(|record| record.enabled);
        let mark = self.journal.trigger_mark(tenant, name)?;
        if mark.next != Some(first) {
            return Ok(()); // it was set up anew while this was on its way
        }
        let schedule = record.as_ref().and_then(|record| match &record.on {
            TriggerOn::Cron { schedule, time_zone, missed } => {
                Some((Schedule::parse(schedule, time_zone).ok()?, *missed))
            }
            _ => None,
        });
        let (Some(record), Some((schedule, missed))) = (record, schedule) else {
            // It was switched off, or is of another kind by now: it has no next time.
            let moved = TriggerMark { next: None, ..mark };
            return self.journal.move_trigger_mark(tenant, name, Some(first), moved).await;
        };
        let due = schedule.due(first, clock::now(), missed);
        let mut moved = TriggerMark { next: due.next, ..mark };
        for at in due.fire {
            moved.last = Some(at);
            match self.fire_for(tenant, &record, at).await {
                Ok(Some(Acted::Started { run, .. })) => {
                    tracing::debug!(%tenant, trigger = name, %run, "a trigger has started a run");
                    (moved.last_run, moved.last_problem) = (Some(run), None);
                }
                Ok(_) => {}
                Err(error) if error.may_pass() => {
                    // Nothing is written down: all of it is tried again, and what was started is found.
                    tracing::warn!(%tenant, trigger = name, %error, "a trigger cannot fire at present");
                    tokio::time::sleep(PAUSE).await;
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(%tenant, trigger = name, %error, "a trigger could not start its run");
                    moved.last_problem = Some((error.code().to_owned(), error.to_string()));
                }
            }
        }
        self.journal.move_trigger_mark(tenant, name, Some(first), moved).await
    }

    async fn fire_for(
        &self,
        tenant: &TenantId,
        record: &TriggerRecord,
        at: Timestamp,
    ) -> Result<Option<Acted>, ActError> {
        let scheduled = clock::rfc3339(at);
        let value = json!({ "trigger": record.name, "scheduled_at": scheduled });
        let Ok(value) = Json::of(&value) else { return Ok(None) };
        let occurrence = Occurrence { default_input: value.clone(), value, id: scheduled };
        self.act(tenant, record, &occurrence).await.map(Some)
    }
}
