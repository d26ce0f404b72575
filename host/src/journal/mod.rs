//! Where events live.
//!
//! Owns: the order of each run's events, their durability, and the projections that are kept with them (run
//! summaries, the list of unfinished runs, idempotency keys, stored content).
//! Does not: decide anything, or know what an event means beyond its status change.
//! Keeps: after [`Journal::append`] has answered, its events are on disk, numbered without gaps, once; and when two
//! writers race for a run, one of them is refused.
//!
//! [`Journal`] is the small trait that the driver and the streams see. It asks for no transaction across runs and
//! for no local order beyond one run, so that a replicated log can stand behind it as well. [`redb`] is the
//! implementation: one file, one writer thread, one fsync for all that waits ([`writer`]).
//! [`usage`] counts what each tenant has, [`limits`] says what it may have, and [`retention`] deletes what is old.
//! [`channels`] has one order for many runs. [`catalog`] keeps what is not a run in the same file: tenants, keys, workflows, versions; and [`access`] what says who
//! may read streams from a browser.

pub mod access;
pub mod catalog;
pub mod channels;
mod dead;
pub mod due;
mod ended;
pub mod flow;
mod keys;
pub mod limits;
mod record;
pub mod redb;
pub mod retention;
pub mod shadows;
mod snapshots;
mod tails;
pub mod triggers;
mod upgrade;
pub mod usage;
mod waking;
mod writer;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use stepwell_core::event::{ShadowRef, SuspendReason};
use stepwell_core::flow::FlowPlace;
use stepwell_core::json::ContentRef;
use stepwell_core::{
    Digest, Event, NodeId, Recorded, RunId, RunKey, RunStatus, Seq, StepId, TenantId, Timestamp, WorkflowName,
};

pub use self::dead::{DEAD_MAX, DeadCounts};
pub use self::flow::{Admission, FlowChange};
pub use self::redb::RedbJournal;
pub use self::tails::{Latest, Tail, TailState};

/// How long an idempotency key answers with the run it started: 24 hours.
pub const IDEMPOTENCY_TTL_MS: u64 = 24 * 60 * 60 * 1000;
/// Stored bytes of a run that are read at once by whoever reads all of it.
const HISTORY_BYTES: usize = 1 << 20;

/// Events that go to disk together, or not at all.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// When they were decided.
    pub at: Timestamp,
    /// The events, at least one.
    pub events: Vec<Event>,
    /// Content that they refer to and that may not be stored yet.
    pub contents: Vec<Content>,
    /// Content that they refer to and that another run of the tenant has stored. From here on it is this run's too; when
    /// it is gone the batch is refused with [`JournalError::ContentGone`].
    pub references: Vec<Digest>,
    /// What the run's summary says once they are on disk; `None` leaves it as it is.
    pub summary: Option<RunSummary>,
    /// Whether the run is then among the [unfinished](Journal::unfinished). `None` leaves it as it is, but for the first
    /// events of a run, which enter it, and a terminal event, which removes it.
    pub listed: Option<bool>,
    /// When the run is to be [woken](RedbJournal::wakes).
    pub wake: Option<WakeChange>,
    /// The channel that the run's updates reach besides.
    pub channel: Option<String>,
    /// What changes in its workflow's flow control.
    pub flow: Option<FlowChange>,
    /// On what condition a new run is accepted, by its workflow's flow control.
    pub admission: Option<Admission>,
}

/// A run is to be woken at another time than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WakeChange {
    /// When it was to be woken.
    pub before: Option<Timestamp>,
    /// When it is to be.
    pub after: Option<Timestamp>,
}

/// Bytes that an event refers to by their hash.
#[derive(Debug, Clone)]
pub struct Content {
    /// SHA-256 of the bytes.
    pub sha256: Digest,
    /// The bytes.
    pub bytes: Bytes,
}

impl Content {
    /// What an event says of it.
    #[must_use]
    pub fn reference(&self) -> ContentRef {
        ContentRef { sha256: self.sha256, size_bytes: self.bytes.len() as u64 }
    }
}

/// What is known of a run without reading its events. A projection: it changes in the same write as the event that
/// changes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSummary {
    /// The workflow's name.
    pub workflow: WorkflowName,
    /// The version the run is pinned to.
    pub version: Digest,
    /// Where the run stands.
    pub status: RunStatus,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its first steps became due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// The number of the event that brought it where it stands.
    pub status_seq: Seq,
    /// The run that started it as a child.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<RunId>,
    /// The run that it repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rerun_of: Option<RunId>,
    /// The run that it shadows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow_of: Option<ShadowRef>,
    /// What a suspended run waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<SuspendReason>,
    /// Until when a suspended run waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_until: Option<Timestamp>,
    /// Nobody drives the run and it is not among the unfinished: it is taken up when it is to be woken, or when somebody
    /// has something to tell it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub parked: bool,
    /// Why it has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureSummary>,
    /// The channel that its updates reach besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// What whoever started it knows it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// Its place in its workflow's flow control.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<FlowPlace>,
}

/// Why a run has failed, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureSummary {
    /// The step that failed; `None` when no single one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepId>,
    /// The failure's code.
    pub code: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_false(value: &bool) -> bool {
    !value
}

/// A client's promise that two requests are the same one.
#[derive(Debug, Clone)]
pub struct IdempotencyKey {
    /// What the client sent. Scoped to the tenant and the workflow.
    pub key: String,
    /// Hash of all that must be the same in a repetition.
    pub fingerprint: Digest,
    /// For a run that a trigger starts for a time of its schedule. The key is then not kept: the trigger's mark is what
    /// remembers, and has no end. When it stands elsewhere, the run is refused with [`JournalError::TimeTaken`].
    pub time: Option<triggers::TakenTime>,
}

/// The answer to a create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// The run exists now.
    New {
        /// A run that waited for a later one to take its place, which this one has. It has not been told.
        superseded: Option<RunId>,
    },
    /// The same key has started this run before.
    Existing(RunId),
}

/// Which runs to list.
#[derive(Debug, Clone, Default)]
pub struct RunFilter {
    /// Only runs of this workflow.
    pub workflow: Option<WorkflowName>,
    /// Only runs with this status.
    pub status: Option<RunStatus>,
    /// Only runs that were started with this.
    pub correlation: Option<String>,
    /// Only runs older than this one.
    pub before: Option<RunId>,
    /// Only runs of this version.
    pub version: Option<Digest>,
    /// Only children of this run.
    pub parent: Option<RunId>,
    /// Only runs that repeat this one.
    pub rerun_of: Option<RunId>,
    /// Only runs that failed with this code.
    pub failure_code: Option<String>,
    /// Only runs in which a step of this node failed last.
    pub failed_node: Option<NodeId>,
    /// What of shadows there is among them.
    pub shadows: Shadows,
}

/// Whether shadows are among the runs that are listed. They are not unless somebody says so: a list of a tenant's runs,
/// and whatever is done to all that it has, is about the runs that were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shadows {
    /// None is.
    #[default]
    Hidden,
    /// They are among the others.
    Shown,
    /// Only those of this run.
    Of(RunId),
}

impl Shadows {
    fn include(self, shadow_of: Option<&ShadowRef>) -> bool {
        match self {
            Self::Hidden => shadow_of.is_none(),
            Self::Shown => true,
            Self::Of(run) => shadow_of.is_some_and(|shadow| shadow.run == run),
        }
    }
}

impl RunFilter {
    /// Whether a run is among them, but for `before`, which is a matter of its id.
    #[must_use]
    pub fn matches(&self, summary: &RunSummary) -> bool {
        let failure = summary.failure.as_ref();
        self.workflow.as_ref().is_none_or(|workflow| *workflow == summary.workflow)
            && self.status.is_none_or(|status| status == summary.status)
            && self.correlation.as_ref().is_none_or(|wanted| summary.correlation.as_ref() == Some(wanted))
            && self.version.is_none_or(|version| version == summary.version)
            && self.parent.is_none_or(|parent| summary.parent == Some(parent))
            && self.rerun_of.is_none_or(|run| summary.rerun_of == Some(run))
            && self.shadows.include(summary.shadow_of.as_ref())
            && self.failure_code.as_ref().is_none_or(|code| failure.is_some_and(|failure| failure.code == *code))
            && self.failed_node.as_ref().is_none_or(|node| {
                failure.and_then(|failure| failure.step.as_ref()).is_some_and(|step| step.node == *node)
            })
    }
}

/// A page of runs, newest first.
#[derive(Debug, Clone)]
pub struct RunPage {
    /// The runs.
    pub runs: Vec<(RunId, RunSummary)>,
    /// Where the next page starts; `None` when there is none. A filter that matches little can make a page short
    /// or empty though more follow.
    pub next: Option<RunId>,
}

/// What can go wrong in the journal.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    /// Another writer was first.
    #[error("{run} is at event {found}, not at {expected}: another writer was first")]
    Fenced {
        /// The run.
        run: RunKey,
        /// The last event the writer knew of.
        expected: Seq,
        /// The last event there is.
        found: Seq,
    },
    /// The idempotency key was used for another request.
    #[error("the idempotency key was used for another request")]
    IdempotencyMismatch,
    /// A run was started for this time of a trigger before, or the trigger has been changed or deleted since.
    #[error("the trigger has no run to start for this time")]
    TimeTaken,
    /// The workflow's runs are accepted at a limited rate, and this one was too early.
    #[error("the workflow takes no further run with this key before {}", crate::clock::rfc3339(*.from))]
    RateLimited {
        /// From when on one is accepted.
        from: Timestamp,
    },
    /// Content of another run that a batch refers to was deleted with that run.
    #[error("content {0} is gone: the run that stored it was deleted")]
    ContentGone(Digest),
    /// What was asked for begins before the first event that still exists.
    #[error("the history begins with {first_seq}")]
    Truncated {
        /// The first that exists.
        first_seq: Seq,
    },
    /// Stored bytes do not read as what they should be.
    #[error("{what} is damaged: {reason}")]
    Damaged {
        /// What was read.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file has a format that this program does not know.
    #[error("the journal has format {found}, this program knows format {known}")]
    UnknownFormat {
        /// The file's.
        found: u64,
        /// Ours.
        known: u64,
    },
    /// The storage failed.
    #[error("the journal could not {operation}")]
    Storage {
        /// What was attempted.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: Arc<::redb::Error>,
    },
    /// The tenant has as much in the journal as it may.
    #[error("the journal is full: it keeps at most {bytes_max} bytes of this tenant")]
    Full {
        /// Its limit.
        bytes_max: u64,
    },
    /// The tenant has as many runs that have not ended as it may.
    #[error("the tenant has {runs_max} runs that have not ended, as many as it may")]
    TooManyRuns {
        /// Its limit.
        runs_max: u64,
    },
    /// The writer has stopped, after a failed write or on the way down. Nothing is written any more.
    #[error("the journal does not accept writes any more")]
    Closed,
}

/// Where a run's events live.
pub trait Journal: Send + Sync + 'static {
    /// Records the first events of a run.
    ///
    /// Before: nothing is known of the run. After `Ok(New)`: its events are on disk, it is among the unfinished, and
    /// the idempotency key, if any, answers with it for [`IDEMPOTENCY_TTL_MS`], or has moved its trigger's mark. After
    /// `Ok(Existing)` and after an error nothing has changed. [`JournalError::RateLimited`] when its [`Admission`]
    /// says so. [`JournalError::Full`] and [`JournalError::TooManyRuns`] refuse a run that is nobody's child; a child is
    /// part of what was accepted, and whoever starts one asks before.
    fn create(
        &self,
        key: &RunKey,
        batch: Batch,
        idempotency: Option<IdempotencyKey>,
    ) -> BoxFuture<'_, Result<Created, JournalError>>;

    /// The run that an idempotency key has started, where it still answers. [`JournalError::IdempotencyMismatch`] when it
    /// was used for another request. For those who want to know before they look at a request any closer:
    /// [`create`](Self::create) is what decides.
    fn started_with(
        &self,
        tenant: &TenantId,
        workflow: &WorkflowName,
        idempotency: &IdempotencyKey,
        now: Timestamp,
    ) -> Result<Option<RunId>, JournalError>;

    /// Records the next events of a run.
    ///
    /// Before: the run's last event is `last_seq`; otherwise [`JournalError::Fenced`], and nothing has changed.
    /// After `Ok`: the events are on disk as `last_seq + 1` and following, in this order, and every
    /// [`tail`](Self::tail) says so. After any other error it is not known whether they are: read again.
    fn append(&self, key: &RunKey, last_seq: Seq, batch: Batch) -> BoxFuture<'_, Result<(), JournalError>>;

    /// The events of a run after `after`, oldest first, until `bytes_max` of stored events are exceeded; empty when
    /// there are none, and for a run that does not exist. [`JournalError::Truncated`] when events after `after` were
    /// deleted and later ones exist: nobody goes over a gap without being told.
    fn read(&self, key: &RunKey, after: Seq, bytes_max: usize) -> Result<Vec<Recorded>, JournalError> {
        self.read_until(key, after, Seq::MAX, bytes_max)
    }

    /// The same, but for events after `until`: nothing behind it is read.
    fn read_until(&self, key: &RunKey, after: Seq, until: Seq, bytes_max: usize)
    -> Result<Vec<Recorded>, JournalError>;

    /// Follows how far a run's journal goes. The first value is the state at some moment after the call: whoever
    /// reads the journal afterwards and then waits for the tail to move misses nothing.
    fn tail(&self, key: &RunKey) -> Result<Tail, JournalError>;

    /// What is known of a run without reading its events.
    fn summary(&self, key: &RunKey) -> Result<Option<RunSummary>, JournalError>;

    /// A tenant's runs, newest first, at most `limit`.
    fn runs(&self, tenant: &TenantId, filter: &RunFilter, limit: usize) -> Result<RunPage, JournalError>;

    /// The tenants that have [unfinished](Self::unfinished) runs.
    fn tenants_with_unfinished(&self) -> Result<BTreeSet<TenantId>, JournalError>;

    /// A tenant's runs that have not ended and have something to do, at most `limit`, after `after` in the order of ids.
    fn unfinished(&self, tenant: &TenantId, after: Option<RunId>, limit: usize) -> Result<Vec<RunKey>, JournalError>;

    /// Removes a run from the [unfinished](Self::unfinished): it has ended, and whoever was to be told has been.
    fn settle(&self, key: &RunKey) -> BoxFuture<'_, Result<(), JournalError>>;

    /// Keeps the state of a run after an event, in place of an earlier one, so that it need not be folded from the first. Can be
    /// lost at any time.
    fn put_snapshot(&self, key: &RunKey, seq: Seq, bytes: Vec<u8>) -> BoxFuture<'_, Result<(), JournalError>>;

    /// The last state that was kept of a run, and the event that it stands after.
    fn snapshot(&self, key: &RunKey) -> Result<Option<(Seq, Vec<u8>)>, JournalError>;

    /// Content that some event of the tenant refers to.
    fn content(&self, tenant: &TenantId, sha256: &Digest) -> Result<Option<Bytes>, JournalError>;
}

/// Reads a run's events from the first one on, about a megabyte of stored bytes at a time, until one that has the number
/// `until` or a later one was among them.
pub fn history(
    journal: &impl Journal,
    key: &RunKey,
    until: Seq,
) -> impl Iterator<Item = Result<Vec<Recorded>, JournalError>> {
    let mut after: Seq = 0;
    std::iter::from_fn(move || {
        if after >= until {
            return None;
        }
        let page = journal.read(key, after, HISTORY_BYTES);
        // After an error there is nothing more to read.
        after = page.as_ref().map_or(until, |page| page.last().map_or(until, |last| last.seq));
        page.map(|page| (!page.is_empty()).then_some(page)).transpose()
    })
}

impl RunSummary {
    /// The summary after these events, if one of them changes it. `first_seq` is the number of the first of them;
    /// `before` is `None` for the first events of a run.
    #[must_use]
    pub fn after(before: Option<&Self>, first_seq: Seq, at: Timestamp, events: &[Event]) -> Option<Self> {
        let mut summary = before.cloned();
        let mut changed = false;
        for (seq, event) in (first_seq..).zip(events) {
            if let Event::RunQueued { workflow, version, parent, rerun_of, shadow_of, place, .. } = event {
                summary = Some(Self {
                    workflow: workflow.clone(),
                    version: *version,
                    status: RunStatus::Queued,
                    created_at: at,
                    started_at: None,
                    ended_at: None,
                    status_seq: seq,
                    parent: parent.as_ref().map(|parent| parent.run),
                    rerun_of: rerun_of.as_ref().map(|rerun| rerun.run),
                    shadow_of: *shadow_of,
                    waits_for: None,
                    waits_until: None,
                    parked: false,
                    failure: None,
                    channel: None,
                    correlation: None,
                    place: place.clone(),
                });
            }
            if let (Some(status), Some(summary)) = (RunStatus::after(event), summary.as_mut()) {
                changed = true;
                summary.status = status;
                summary.status_seq = seq;
                (summary.waits_for, summary.waits_until, summary.parked) = (None, None, false);
                match event {
                    Event::RunStarted { .. } => summary.started_at = Some(at),
                    Event::RunSuspended { reason, until } => {
                        (summary.waits_for, summary.waits_until) = (Some(*reason), *until);
                    }
                    Event::RunFailed { step, failure } => {
                        summary.failure = Some(FailureSummary { step: step.clone(), code: failure.code.clone() });
                    }
                    _ => {}
                }
                if status.is_terminal() {
                    summary.ended_at = Some(at);
                }
            }
        }
        summary.filter(|_| changed)
    }
}

/// An error with all that caused it, on one line.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
