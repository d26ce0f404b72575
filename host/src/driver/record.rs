//! What an attempt has done so far, for when it is taken up again: after a crash of the host, or after a wait.
//!
//! Owns: reading it from the journal, in the form that the sandbox goes through.
//! Does not: go through it; the sandbox does.
//! Keeps: the record is what is on disk between the attempt's start and now, and nothing else; so a run that waits
//! keeps none of it in memory. Of a record that is gone through, a page of its events is in memory and the answer of one
//! call. And the time that reading takes is not the attempt's.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use stepwell_core::event::{ChildEnd, WaitingCall, Woke};
use stepwell_core::{Event, Json, Payload, RunId, RunKey, Seq, StepId};

use super::reading::Readers;
use super::run_loop::{artifact_id, read_payload};
use super::trail::Span;
use crate::journal::{Journal, RedbJournal};
use crate::sandbox::{AttemptTime, Record, Recorded, StoredArtifact, WaitRecord, sha256};

/// Stored bytes read at once.
const READ_BYTES: usize = 256 << 10;
/// Events of an attempt after which a page is full. Each has at most 64 KiB, so a page has some megabytes at most.
const PAGE_EVENTS: usize = 32;
/// Reads after which a page is complete, whatever was found: what lies between may be others' events.
const PAGE_READS: usize = 16;

/// Events that were read and not gone through.
pub(super) type Page = VecDeque<(Seq, Event)>;

/// The record of a step's attempt, from its `step.started` to the last event that is on disk.
pub(super) struct AttemptRecord {
    pub(super) readers: Readers,
    pub(super) journal: Arc<RedbJournal>,
    pub(super) key: RunKey,
    pub(super) step: StepId,
    /// Where its events are that are still to be read.
    pub(super) spans: VecDeque<Span>,
    pub(super) time: Arc<AttemptTime>,
    pub(super) page: Page,
    /// A wait is on record as two events, between which other steps go on.
    pub(super) waiting: Option<WaitingCall>,
}

/// What a call was answered, not yet read.
enum Answer {
    Result(Payload),
    Woke(Woke),
}

impl Record for AttemptRecord {
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Recorded>, String>> {
        async move {
            loop {
                while let Some((seq, event)) = self.page.pop_front() {
                    if let Some(recorded) = self.recorded(seq, event).await? {
                        return Ok(Some(recorded));
                    }
                }
                if self.spans.is_empty() {
                    return Ok(None);
                }
                self.turn_page().await?;
            }
        }
        .boxed()
    }
}

impl AttemptRecord {
    /// Reads further events.
    async fn turn_page(&mut self) -> Result<(), String> {
        let spans = std::mem::take(&mut self.spans);
        let (journal, key, step) = (Arc::clone(&self.journal), self.key.clone(), self.step.clone());
        let read = move || page_of(&*journal, &key, &step, spans);
        let _held = self.time.hold();
        let read = self.readers.read(&self.key.tenant, read).await.map_err(|error| error.to_string())?;
        (self.page, self.spans) = read?;
        Ok(())
    }

    async fn recorded(&mut self, seq: Seq, event: Event) -> Result<Option<Recorded>, String> {
        // What is stored apart is read apart.
        let is_large = event.content().is_some();
        let (call, arguments, answer) = match event {
            Event::StepSuspended { call, .. } => {
                self.waiting = call.map(|call| *call);
                return Ok(None);
            }
            Event::StepResumed { woke: Some(woke), .. } => match self.waiting.take() {
                Some(WaitingCall { call, arguments, .. }) => (call, arguments, Answer::Woke(*woke)),
                None => return Ok(None),
            },
            Event::StepCall { call, arguments, result, .. } => (call, arguments, Answer::Result(result)),
            other => return Ok(of_event(&self.key, seq, other)),
        };
        let (journal, key) = (Arc::clone(&self.journal), self.key.clone());
        let read = move || match answer {
            Answer::Result(payload) => read_payload(&*journal, &key, payload),
            Answer::Woke(woke) => of_wait(&*journal, &key, woke),
        };
        let result = if is_large {
            let _held = self.time.hold();
            self.readers.read(&self.key.tenant, read).await.map_err(|error| error.to_string())??
        } else {
            read()?
        };
        Ok(Some(Recorded::Call { call, arguments, result }))
    }
}

/// A page of a step's events, and where further ones are.
fn page_of(
    journal: &impl Journal,
    key: &RunKey,
    step: &StepId,
    mut spans: VecDeque<Span>,
) -> Result<(Page, VecDeque<Span>), String> {
    let mut page = Page::new();
    for _ in 0..PAGE_READS {
        let Some((first, last)) = spans.pop_front() else { break };
        let found = journal.read_until(key, first.saturating_sub(1), last, READ_BYTES);
        let found = found.map_err(|error| error.to_string())?;
        if let Some(end) = found.last().map(|found| found.seq).filter(|end| *end < last) {
            spans.push_front((end + 1, last));
        }
        let own = found.into_iter().filter(|found| found.event.step() == Some(step));
        page.extend(own.map(|found| (found.seq, found.event)));
        if page.len() >= PAGE_EVENTS {
            break;
        }
    }
    Ok((page, spans))
}

fn of_event(key: &RunKey, seq: Seq, event: Event) -> Option<Recorded> {
    Some(match event {
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
        _ => return None,
    })
}

/// Whether what ended a wait is stored apart.
pub(super) const fn is_large(woke: &Woke) -> bool {
    matches!(
        woke,
        Woke::Signal { payload: Payload::Stored(_), .. }
            | Woke::Child(ChildEnd::Completed { output: Payload::Stored(_) })
    )
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
