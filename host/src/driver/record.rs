//! What an attempt has done so far, for when it is taken up again: after a crash of the host, or after a wait.
//!
//! Owns: reading it from the journal, in the form that the sandbox goes through.
//! Does not: go through it; the sandbox does.
//! Keeps: the record is what is on disk between the attempt's start and now, and nothing else; so a run that waits
//! keeps none of it in memory.

use std::ops::Range;

use stepwell_core::event::{ChildEnd, WaitingCall, Woke};
use stepwell_core::{Event, Json, Payload, RunId, RunKey, Seq, StepId};

use super::run_loop::{artifact_id, read_payload};
use crate::journal::Journal;
use crate::sandbox::{Recorded, StoredArtifact, WaitRecord, sha256};

/// Stored bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// The record of a step's last attempt, from its `step.started` to the last event that is on disk.
pub(super) fn of_attempt(
    journal: &impl Journal,
    key: &RunKey,
    step: &StepId,
    range: Range<Seq>,
) -> Result<Vec<Recorded>, String> {
    let mut recorded = Vec::new();
    // A wait is on record as two events, between which other steps go on.
    let mut waiting: Option<WaitingCall> = None;
    let mut after = range.start;
    while after < range.end {
        let page = journal.read(key, after, READ_BYTES).map_err(|error| error.to_string())?;
        let Some(last) = page.last() else { break };
        after = last.seq;
        for found in page.into_iter().filter(|found| found.seq <= range.end && found.event.step() == Some(step)) {
            match found.event {
                Event::StepSuspended { call, .. } => waiting = call.map(|call| *call),
                Event::StepResumed { woke: Some(woke), .. } => {
                    if let Some(WaitingCall { call, arguments, .. }) = waiting.take() {
                        recorded.push(Recorded::Call { call, arguments, result: of_wait(journal, key, *woke)? });
                    }
                }
                event => recorded.extend(of_event(journal, key, found.seq, event)?),
            }
        }
    }
    Ok(recorded)
}

fn of_event(journal: &impl Journal, key: &RunKey, seq: Seq, event: Event) -> Result<Option<Recorded>, String> {
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
}

/// What the call is answered that a step waited in.
pub(super) fn of_wait(journal: &impl Journal, key: &RunKey, woke: Woke) -> Result<Json, String> {
    let read = |payload| read_payload(journal, key, payload);
    let record = match woke {
        // An operator ends no wait within an attempt.
        Woke::Timer | Woke::Operator => WaitRecord::Elapsed,
        Woke::TimedOut => WaitRecord::TimedOut,
        Woke::Signal { payload, .. } => WaitRecord::Signal(read(payload)?),
        Woke::Child(ChildEnd::Completed { output }) => WaitRecord::Completed(read(output)?),
        Woke::Child(ChildEnd::Failed { code, message }) => WaitRecord::Failed { code, message },
        Woke::Child(ChildEnd::Cancelled) => WaitRecord::Cancelled,
    };
    Json::of(&record).map_err(|error| error.to_string())
}

/// What the call is answered that has started a child.
pub(super) fn started(run: RunId) -> Json {
    // A name and an id: always JSON.
    Json::of(&serde_json::json!({ "started": run })).unwrap_or_else(|_| Json::null())
}
