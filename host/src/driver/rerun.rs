//! Runs that repeat others.
//!
//! Owns: gathering what of a run counts in the next, and starting that.
//! Does not: change the run that is repeated, or decide what counts; the core does.
//! Keeps: a rerun is a run like any other, with a name for where it comes from.

use std::sync::Arc;

use stepwell_core::event::RerunRef;
use stepwell_core::rerun::{CannotRerun, Results};
use stepwell_core::{Digest, Event, Json, Payload, RunKey, Seq, StepId};

use super::placing::Origin;
use super::run_loop::{NewRun, read_payload};
use super::{Driver, StartError, Started};
use crate::clock;
use crate::journal::{IdempotencyKey, Journal, JournalError, RedbJournal, history};

/// How a run is to be repeated.
#[derive(Debug, Clone, Default)]
pub struct Rerun {
    /// From this step; from the start when it is left out.
    pub from_step: Option<StepId>,
    /// Another input than the run had.
    pub input: Option<Json>,
    /// Another version than the run had.
    pub version: Option<Digest>,
    /// Two requests with the same key are one.
    pub idempotency: Option<IdempotencyKey>,
}

/// Why a run was not repeated.
#[derive(Debug, thiserror::Error)]
pub enum RerunError {
    /// The tenant has no such run.
    #[error("there is no such run")]
    UnknownRun,
    /// It is a shadow. What repeats it would be none, and would do what a shadow must not.
    #[error("the run is a shadow: repeat the run that it shadows")]
    Shadow,
    /// It cannot be repeated from that step.
    #[error(transparent)]
    Step(#[from] CannotRerun),
    /// What it would begin with has outlived its retention.
    #[error("the input, or a result that is taken over, has outlived its retention")]
    Expired,
    /// The new run was not started.
    #[error(transparent)]
    Start(#[from] StartError),
}

impl From<JournalError> for RerunError {
    fn from(error: JournalError) -> Self {
        Self::Start(error.into())
    }
}

/// The input that a run began with.
fn input_of(journal: &RedbJournal, key: &RunKey, input: Payload) -> Result<Json, RerunError> {
    if let Some(content) = input.stored()
        && !journal.has_content(&key.tenant, &content.sha256)?
    {
        return Err(RerunError::Expired);
    }
    let damaged = |reason| JournalError::Damaged { what: format!("the input of {key}"), reason };
    Ok(read_payload(journal, key, input).map_err(damaged)?)
}

impl Driver {
    /// Starts a run that repeats another, which may be under way still.
    pub async fn rerun(&self, key: &RunKey, rerun: Rerun) -> Result<Started, RerunError> {
        let shared = &self.shared;
        let summary = shared.journal.summary(key)?.ok_or(RerunError::UnknownRun)?;
        if summary.shadow_of.is_some() {
            return Err(RerunError::Shadow);
        }
        let Rerun { from_step, input, version, idempotency } = rerun;
        if let Some(started) = shared.started_before(&key.tenant, &summary.workflow, idempotency.as_ref())? {
            return Ok(started);
        }
        let (version, graph) =
            shared.resolve(&key.tenant, &summary.workflow, Some(version.unwrap_or(summary.version)))?;
        let (journal, of) = (Arc::clone(&shared.journal), key.clone());
        // A long run takes a while to read.
        let read = move || {
            let mut results = Results::default();
            let mut queued_with = None;
            for page in history(&*journal, &of, Seq::MAX) {
                for recorded in &page? {
                    if let Event::RunQueued { input, .. } = &recorded.event {
                        queued_with = Some(input.clone());
                    }
                    results.see(recorded);
                }
            }
            Ok::<_, JournalError>((results, queued_with))
        };
        let (results, before) =
            tokio::task::spawn_blocking(read).await.map_err(|_| RerunError::Start(StartError::Stopping))??;
        let taken_over = match &from_step {
            Some(step) => results.taken_over(&graph, step)?,
            None => Vec::new(),
        };
        for content in taken_over.iter().filter_map(|result| result.output.stored()) {
            if !shared.journal.has_content(&key.tenant, &content.sha256)? {
                return Err(RerunError::Expired);
            }
        }
        let input = match (input, before) {
            (Some(input), _) => input,
            (None, Some(before)) => input_of(&shared.journal, key, before)?,
            (None, None) => Json::null(),
        };
        shared.check_input(&key.tenant, version, &graph, &input).await?;
        let flow = shared.place(&key.tenant, &summary.workflow, &input, Origin::Inside).await?;
        let new = NewRun {
            flow,
            graph,
            workflow: summary.workflow,
            version,
            input,
            idempotency,
            parent: None,
            rerun_of: Some(RerunRef { run: key.run, from_step }),
            shadow_of: None,
            taken_over,
            correlation: summary.correlation,
        };
        let key = RunKey { tenant: key.tenant.clone(), run: clock::run_id() };
        Ok(shared.create(&key, new).await?)
    }
}
