//! What attempts did that were under way when the host stopped.
//!
//! Owns: the record of each such attempt, gathered while its run is read, and given to the attempt when it is taken up.
//! Does not: go through it; the sandbox does.

use std::collections::HashMap;

use stepwell_core::event::Recorded as RecordedEvent;
use stepwell_core::{Event, Payload, RunKey, Seq, StepId};

use super::run_loop::{artifact_id, read_payload};
use crate::journal::Journal;
use crate::sandbox::{Recorded, StoredArtifact, sha256};

/// Events of attempts that have not ended, by step.
#[derive(Debug, Default)]
pub(super) struct Interrupted(HashMap<StepId, (u32, Vec<(Seq, Event)>)>);

impl Interrupted {
    /// Takes in the next event of the run.
    pub(super) fn see(&mut self, RecordedEvent { seq, event, .. }: RecordedEvent) {
        match &event {
            Event::StepStarted { step, attempt } => drop(self.0.insert(step.clone(), (*attempt, Vec::new()))),
            Event::StepUpdate { step, .. }
            | Event::StepLog { step, .. }
            | Event::StepArtifact { step, .. }
            | Event::StepCall { step, .. } => {
                if let Some((_, events)) = self.0.get_mut(step) {
                    events.push((seq, event));
                }
            }
            Event::StepCompleted { step, .. }
            | Event::StepFailed { step, .. }
            | Event::StepCancelled { step }
            | Event::StepSkipped { step } => drop(self.0.remove(step)),
            Event::RunCompleted { .. } | Event::RunFailed { .. } | Event::RunCancelled { .. } => self.0.clear(),
            Event::RunQueued { .. }
            | Event::RunStarted {}
            | Event::RunSuspended { .. }
            | Event::RunResumed {}
            | Event::StepSuspended { .. }
            | Event::StepResumed { .. }
            | Event::StepRolledBack { .. } => {}
        }
    }

    /// Whether a step's attempt can be taken up again. One in the middle of a call that has published cannot: the call
    /// would publish again, and something else.
    pub(super) fn can_resume(&self, step: &StepId) -> bool {
        let last = self.0.get(step).and_then(|(_, events)| events.last());
        !matches!(last, Some((_, Event::StepUpdate { within_call: true, .. })))
    }

    /// What an attempt did, if it was interrupted. It is given once.
    pub(super) fn take(&mut self, step: &StepId, attempt: u32) -> Vec<(Seq, Event)> {
        match self.0.remove(step) {
            Some((interrupted, events)) if interrupted == attempt => events,
            _ => Vec::new(),
        }
    }
}

/// The record that the sandbox goes through.
pub(super) fn resolve(
    journal: &impl Journal,
    key: &RunKey,
    events: Vec<(Seq, Event)>,
) -> Result<Vec<Recorded>, String> {
    let recorded = |(seq, event)| {
        Ok(Some(match event {
            Event::StepUpdate { topic, payload, within_call, .. } => {
                let payload = match payload {
                    Payload::Inline(json) => sha256(json.as_str()),
                    Payload::Stored(content) => content.sha256,
                };
                Recorded::Update { topic, payload, within_call, seq }
            }
            Event::StepLog { level, message, .. } => Recorded::Log { level, message },
            Event::StepArtifact { name, media_type, content, .. } => {
                let stored = StoredArtifact { id: artifact_id(key, seq), seq, sha256: content.sha256 };
                Recorded::Artifact { name, media_type, stored }
            }
            Event::StepCall { call, arguments, result, .. } => {
                Recorded::Call { call, arguments, result: read_payload(journal, key, result)? }
            }
            _ => return Ok(None),
        }))
    };
    events.into_iter().filter_map(|event| recorded(event).transpose()).collect()
}
