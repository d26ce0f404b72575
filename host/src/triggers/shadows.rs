//! Shadows: started when the run has ended that they shadow, and compared with it when they have.
//!
//! Owns: when a shadow is started, and what a comparison looks at.
//! Does not: say what is due; the journal does, in the transaction of each run's end.
//! Keeps: what is due stays due until it is done. A shadow has its id before it is started, so one that a crash has left in
//! doubt is looked for and not started again.

use std::sync::Arc;
use std::time::Duration;

use stepwell_core::difference::first_difference;
use stepwell_core::{Event, Json, Payload, RunId, RunKey, Timestamp, WorkflowName};

use super::work::{Owed, Width};
use super::{ActError, Triggers};
use crate::driver::{StartError, read_payload};
use crate::journal::due::Lane;
use crate::journal::shadows::{Compared, SHADOWED_EVENTS_MAX, ShadowPair, Side, Usage};
use crate::journal::{Journal, JournalError, RedbJournal, RunSummary, error_chain, history};
use crate::sandbox::usage_of;

/// Stored bytes that hold one event.
const ONE_EVENT: usize = 1;
/// Before a shadow is looked at again for which there was no room.
const BUSY_PAUSE: Duration = Duration::from_millis(200);
/// After trouble of our own.
const PAUSE: Duration = Duration::from_secs(1);

/// Pairs with something to do.
#[derive(Clone)]
pub(super) struct Shadowing(pub(super) Triggers);

impl Owed for Shadowing {
    type Key = RunId;
    /// Most of it is a start; a comparison reads two runs.
    const WIDTH: Width = Width { all: 64, per_tenant: 16 };

    fn lanes(&self, now: Timestamp) -> Result<Vec<Lane>, JournalError> {
        self.0.journal.shadow_lanes(now)
    }

    fn due(&self, lane: &Lane, now: Timestamp, limit: usize) -> Result<Vec<(Timestamp, RunId)>, JournalError> {
        self.0.journal.shadows_due(lane, now, limit)
    }

    async fn carry_out(&self, Lane { tenant, name }: Lane, at: Timestamp, run: RunId) {
        let run = RunKey { tenant, run };
        let Ok(workflow) = name.parse::<WorkflowName>() else { return }; // never: it was one when it was written
        if let Err(error) = self.0.see_to_pair(&run, &workflow, at).await {
            tracing::error!(%run, error = error_chain(&error), "a shadow could not be seen to");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// What was done for a pair.
enum Done {
    Started,
    /// There is no room yet.
    Later,
    /// Why not: a code and a sentence.
    NotStarted(String, String),
    Compared(Box<Compared>),
}

impl Triggers {
    /// Starts the shadow of a run, or compares the two. An error leaves it due.
    async fn see_to_pair(&self, run: &RunKey, workflow: &WorkflowName, due: Timestamp) -> Result<(), ActError> {
        let pair = self.journal.shadow_pair(&run.tenant, workflow, &run.run)?;
        let (Some(mut pair), Some(summary)) = (pair, self.journal.summary(run)?) else {
            // The run is deleted.
            return Ok(self.journal.settle_shadow(run, workflow, due, None).await?);
        };
        let shadow = RunKey { tenant: run.tenant.clone(), run: pair.shadow };
        let done = match self.journal.summary(&shadow)? {
            Some(ended) if ended.status.is_terminal() => self.compare((run.clone(), summary), (shadow, ended)).await,
            // Its end is due when it comes.
            Some(_) => return Ok(self.journal.settle_shadow(run, workflow, due, None).await?),
            None => self.start_shadow(run, &summary, &pair).await,
        };
        match done {
            Ok(Done::Compared(compared)) => pair.compared = Some(*compared),
            Ok(Done::Started) => {}
            Ok(Done::Later) => {
                // It stays due, behind a moment in which some other shadow may end.
                tokio::time::sleep(BUSY_PAUSE).await;
                return Ok(());
            }
            Ok(Done::NotStarted(code, why)) => pair.problem = Some((code, why)),
            Err(ActError::Start(StartError::Journal(
                error @ (JournalError::Damaged { .. } | JournalError::Truncated { .. }),
            ))) => {
                // It would be no other the next time.
                tracing::error!(%run, error = error_chain(&error), "a shadow could not be seen to");
                pair.problem = Some(("unreadable".to_owned(), "one of the two cannot be read".to_owned()));
            }
            Err(error) => return Err(error),
        }
        Ok(self.journal.settle_shadow(run, workflow, due, Some(pair)).await?)
    }

    async fn start_shadow(&self, run: &RunKey, summary: &RunSummary, pair: &ShadowPair) -> Result<Done, ActError> {
        let setting = self.journal.shadow(&run.tenant, &summary.workflow)?;
        if setting.is_none_or(|setting| setting.version != pair.version) {
            let why = "the workflow's shadow was switched off or changed before this one was started";
            return Ok(Done::NotStarted("shadow_off".to_owned(), why.to_owned()));
        }
        match self.driver.start_shadow(run, summary, pair).await.map_err(ActError::from) {
            Ok(true) => Ok(Done::Started),
            Ok(false) => Ok(Done::Later),
            Err(error) if error.may_pass() => Err(error),
            Err(error) => {
                tracing::info!(%run, code = error.code(), %error, "a run has no shadow");
                Ok(Done::NotStarted(error.code().to_owned(), error.to_string()))
            }
        }
    }

    /// What came of a run and its shadow. Both have ended.
    async fn compare(&self, run: (RunKey, RunSummary), shadow: (RunKey, RunSummary)) -> Result<Done, ActError> {
        let journal = Arc::clone(&self.journal);
        // Two runs take a while to read.
        let compared = tokio::task::spawn_blocking(move || compare(&journal, &run, &shadow)).await;
        Ok(Done::Compared(Box::new(compared.map_err(|_| JournalError::Closed)??)))
    }
}

fn compare(
    journal: &RedbJournal,
    run: &(RunKey, RunSummary),
    shadow: &(RunKey, RunSummary),
) -> Result<Compared, JournalError> {
    let differs_at = match (output_of(journal, run)?, output_of(journal, shadow)?) {
        (Some(one), Some(other)) => first_difference(&one, &other),
        _ => None,
    };
    Ok(Compared { run: side(journal, run)?, shadow: side(journal, shadow)?, differs_at })
}

/// The output of a run that has completed.
fn output_of(journal: &RedbJournal, (key, summary): &(RunKey, RunSummary)) -> Result<Option<Json>, JournalError> {
    let last = journal.read(key, summary.status_seq.saturating_sub(1), ONE_EVENT)?;
    match last.into_iter().next().map(|recorded| recorded.event) {
        Some(Event::RunCompleted { output }) => read(journal, key, output).map(Some),
        _ => Ok(None),
    }
}

fn side(journal: &RedbJournal, (key, summary): &(RunKey, RunSummary)) -> Result<Side, JournalError> {
    let (mut fuel_used, mut usage): (u64, _) = (0, Usage::default());
    // A shadow that ran away is not read to its end: whatever it used, it was too much.
    for page in history(journal, key, SHADOWED_EVENTS_MAX) {
        for recorded in page? {
            match recorded.event {
                Event::StepCompleted { fuel_used: fuel, .. } | Event::StepFailed { fuel_used: fuel, .. } => {
                    fuel_used = fuel_used.saturating_add(fuel);
                }
                Event::StepCall { call, result, .. } if call == "llm.complete" => {
                    let [input_tokens, output_tokens, cost_micros] = usage_of(&read(journal, key, result)?);
                    usage = usage.plus(Usage { input_tokens, output_tokens, cost_micros });
                }
                _ => {}
            }
        }
    }
    let failure = summary.failure.as_ref();
    let began = summary.started_at.unwrap_or(summary.created_at);
    Ok(Side {
        status: summary.status,
        failure_code: failure.map(|failure| failure.code.clone()),
        failed_node: failure.and_then(|failure| failure.step.as_ref()).map(|step| step.node.to_string()),
        fuel_used,
        duration_ms: summary.ended_at.map_or(0, |ended| ended.millis_since(began)),
        usage,
    })
}

fn read(journal: &RedbJournal, key: &RunKey, payload: Payload) -> Result<Json, JournalError> {
    let damaged = |reason| JournalError::Damaged { what: format!("a value of {key}"), reason };
    read_payload(journal, key, payload).map_err(damaged)
}
