//! What can be true: the facts that a run's journal is made of.
//!
//! This file is the stored format (see `docs/journal.md`). Once released, a variant is never edited, renamed or
//! reordered; a new field has a default. The names in `rename` are the ones clients see.

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::flow::FlowPlace;
use crate::ids::{Digest, RunId, Seq, StepId, WorkflowName};
use crate::json::{ContentRef, Payload};
use crate::time::Timestamp;

/// A stored fact of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The run exists and was accepted. Always the first event.
    #[serde(rename = "run.queued")]
    RunQueued {
        /// The workflow's name.
        workflow: WorkflowName,
        /// The version the run is pinned to.
        version: Digest,
        /// The run's input.
        input: Payload,
        /// The run that started it as a child.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent: Option<ParentRef>,
        /// The run that this one repeats.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rerun_of: Option<RerunRef>,
        /// The run that this one shadows: it has the same input, and another version.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shadow_of: Option<ShadowRef>,
        /// Its place in its workflow's flow control.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        place: Option<FlowPlace>,
    },
    /// The run's first steps are due.
    #[serde(rename = "run.started")]
    RunStarted {
        /// When the run fails if it has not ended by then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline: Option<Timestamp>,
    },
    /// Nothing in the run can progress without the outside.
    #[serde(rename = "run.suspended")]
    RunSuspended {
        /// What it waits for.
        reason: SuspendReason,
        /// When a timer ends the wait.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
    },
    /// What the run waited for has come, or whoever paused it lets it go on.
    #[serde(rename = "run.resumed")]
    RunResumed {},
    /// Someone holds the run: attempts under way come to their end, and nothing else begins until the run is resumed.
    #[serde(rename = "run.paused")]
    RunPaused {
        /// Why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    /// The outside has told the run something. It is kept until a step takes it.
    #[serde(rename = "signal.received")]
    SignalReceived {
        /// One of the graph's signals.
        name: String,
        /// What was told.
        payload: Payload,
        /// What stands for the sender's idempotency key and for what came with it, see [`crate::run::signal_key`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<Digest>,
    },
    /// Every step has completed or was skipped. Terminal.
    #[serde(rename = "run.completed")]
    RunCompleted {
        /// The output of the graph's output node, `null` without one.
        output: Payload,
    },
    /// A step has failed for good. Terminal: steps still under way are cancelled.
    #[serde(rename = "run.failed")]
    RunFailed {
        /// The step that failed; `None` when no single one did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<StepId>,
        /// Why.
        failure: Failure,
    },
    /// Someone asked for the end. Terminal: steps still under way are cancelled.
    #[serde(rename = "run.cancelled")]
    RunCancelled {
        /// What they said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },

    /// An attempt is due: it runs as soon as there is a sandbox for it.
    #[serde(rename = "step.started")]
    StepStarted {
        /// The step.
        step: StepId,
        /// 1 for the first attempt; never used twice for one step.
        attempt: u32,
    },
    /// A step published something.
    #[serde(rename = "step.update")]
    StepUpdate {
        /// The step.
        step: StepId,
        /// The attempt that published.
        attempt: u32,
        /// One of the graph's topics.
        topic: String,
        /// What it published.
        payload: Payload,
        /// It was published by a call that the step had not come back from, such as an answer while it comes.
        #[serde(default, skip_serializing_if = "is_false")]
        within_call: bool,
    },
    /// A step has called something outside, and this is what came of it. When the attempt is interrupted and taken up
    /// again, the call is not made a second time: it is answered with this.
    #[serde(rename = "step.call")]
    StepCall {
        /// The step.
        step: StepId,
        /// The attempt that called.
        attempt: u32,
        /// What it called, such as `http.send`.
        call: String,
        /// SHA-256 of what it called it with.
        arguments: Digest,
        /// What it was answered.
        result: Payload,
        /// The run that the call has started.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        child: Option<Box<ChildRef>>,
    },
    /// A step wrote a line for its operators.
    #[serde(rename = "step.log")]
    StepLog {
        /// The step.
        step: StepId,
        /// The attempt that wrote it.
        attempt: u32,
        /// How much it matters.
        level: LogLevel,
        /// The line.
        message: String,
    },
    /// A step stored a file.
    #[serde(rename = "step.artifact")]
    StepArtifact {
        /// The step.
        step: StepId,
        /// The attempt that stored it.
        attempt: u32,
        /// The file's name, as the step chose it.
        name: String,
        /// Its media type.
        media_type: String,
        /// Where its bytes are.
        content: ContentRef,
    },
    /// A step waits and holds no sandbox.
    #[serde(rename = "step.suspended")]
    StepSuspended {
        /// The step.
        step: StepId,
        /// What it waits for.
        reason: SuspendReason,
        /// When a timer ends the wait.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Timestamp>,
        /// The call of the attempt that waits. `None` between two attempts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        call: Option<Box<WaitingCall>>,
    },
    /// What the step waited for has come; or the host that ran its attempt had stopped, and the attempt is taken up again
    /// where its recorded calls end.
    #[serde(rename = "step.resumed")]
    StepResumed {
        /// The step.
        step: StepId,
        /// What has ended the wait. `None` for a retry whose time has come, and for an attempt that was cut off.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        woke: Option<Box<Woke>>,
    },
    /// A step has its result. Recorded exactly once for a step.
    #[serde(rename = "step.completed")]
    StepCompleted {
        /// The step.
        step: StepId,
        /// The attempt that brought it.
        attempt: u32,
        /// The result.
        output: Payload,
        /// Labels of the edges taken besides the unlabelled ones.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        labels: Vec<String>,
        /// For a node that opens a fan-out: how many items the result has.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fan_out: Option<u32>,
        /// For a node that opens or closes a loop: the result is the state of one more iteration.
        #[serde(default, skip_serializing_if = "is_false")]
        again: bool,
        /// Metered instructions the attempt used.
        fuel_used: u64,
    },
    /// An attempt has failed.
    #[serde(rename = "step.failed")]
    StepFailed {
        /// The step.
        step: StepId,
        /// The attempt.
        attempt: u32,
        /// Why.
        failure: Failure,
        /// Whether another attempt follows.
        will_retry: bool,
        /// When the next attempt starts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next_attempt_at: Option<Timestamp>,
        /// The attempts are used up, and the workflow wants an operator to see to it: the step waits for one.
        #[serde(default, skip_serializing_if = "is_false")]
        pauses: bool,
        /// Metered instructions the attempt used; inexact after a trap.
        fuel_used: u64,
    },
    /// What a failed attempt published or stored between these positions does not count any more.
    #[serde(rename = "step.rolled_back")]
    StepRolledBack {
        /// The step.
        step: StepId,
        /// The failed attempt.
        attempt: u32,
        /// Its first update or artifact.
        first_seq: Seq,
        /// Its last update or artifact.
        last_seq: Seq,
    },
    /// None of the step's incoming edges was taken.
    #[serde(rename = "step.skipped")]
    StepSkipped {
        /// The step.
        step: StepId,
    },
    /// The item that the step belongs to has failed elsewhere, and the run goes on without it.
    #[serde(rename = "step.cancelled")]
    StepCancelled {
        /// The step.
        step: StepId,
    },
    /// The step has the result that it had in the run which this one repeats. It is not run again.
    #[serde(rename = "step.taken_over")]
    StepTakenOver {
        /// The step.
        step: StepId,
        /// The result.
        output: Payload,
        /// Labels of the edges taken besides the unlabelled ones.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        labels: Vec<String>,
    },
}

/// The run that started another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentRef {
    /// The run.
    pub run: RunId,
    /// Runs above this one: 1 for the child of a run that nobody started but a client.
    pub depth: u32,
}

/// The run that another one repeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RerunRef {
    /// The run.
    pub run: RunId,
    /// The step that it is repeated from; `None` from the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_step: Option<StepId>,
}

/// The run that another one shadows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowRef {
    /// The run.
    pub run: RunId,
    /// Whether requests and questions that are not on that run's record are made all the same.
    #[serde(default, skip_serializing_if = "is_false")]
    pub live: bool,
}

/// A run that a step has started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildRef {
    /// The run.
    pub run: RunId,
    /// Its workflow.
    pub workflow: WorkflowName,
    /// Its version.
    pub version: Digest,
    /// Its input.
    pub input: Payload,
    /// Whether it goes on when this run, or the attempt that started it, ends before it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub detached: bool,
}

/// A call that an attempt waits in. With the event that ends the wait it is on record like every other call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingCall {
    /// What was called, such as `wait.signal`.
    pub call: String,
    /// SHA-256 of what it was called with.
    pub arguments: Digest,
    /// The signal that ends the wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// The child whose end ends the wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child: Option<RunId>,
}

/// What has ended a wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Woke {
    /// The time that the step wanted to sleep is over.
    Timer,
    /// What it waited for has not come in time.
    TimedOut,
    /// A signal.
    Signal {
        /// Its event.
        seq: Seq,
        /// Its payload.
        payload: Payload,
    },
    /// A child has ended.
    Child(ChildEnd),
    /// An operator lets a step go on whose attempts were used up.
    Operator,
}

/// How a child has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChildEnd {
    /// It has completed.
    Completed {
        /// Its output.
        output: Payload,
    },
    /// It has failed.
    Failed {
        /// The failure's code.
        code: String,
        /// The failure's message.
        message: String,
    },
    /// It was cancelled, or is gone.
    Cancelled,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_false(value: &bool) -> bool {
    !value
}

/// What a suspended run or step waits for. Typed, so that nobody mistakes a retry for a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SuspendReason {
    /// The next attempt after a failed one.
    Retry,
    /// A time.
    Timer,
    /// Somebody outside, who sends a signal.
    Signal,
    /// The end of a child.
    Child,
    /// An operator: the attempts are used up.
    Operator,
}

/// How much a log line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// For whoever wrote the step.
    Debug,
    /// For whoever watches the run.
    Info,
    /// Something is odd.
    Warn,
    /// Something is wrong.
    Error,
}

impl Event {
    /// All kinds there are, for those who are asked for one.
    pub const KINDS: &'static [&'static str] = &[
        "run.queued",
        "run.started",
        "run.suspended",
        "run.resumed",
        "run.paused",
        "signal.received",
        "run.completed",
        "run.failed",
        "run.cancelled",
        "step.started",
        "step.update",
        "step.call",
        "step.log",
        "step.artifact",
        "step.suspended",
        "step.resumed",
        "step.completed",
        "step.failed",
        "step.rolled_back",
        "step.skipped",
        "step.cancelled",
        "step.taken_over",
    ];

    /// The kind's name: the `event:` of a stream, the `kind` of the JSON form.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::RunQueued { .. } => "run.queued",
            Self::RunStarted { .. } => "run.started",
            Self::RunSuspended { .. } => "run.suspended",
            Self::RunResumed { .. } => "run.resumed",
            Self::RunPaused { .. } => "run.paused",
            Self::SignalReceived { .. } => "signal.received",
            Self::RunCompleted { .. } => "run.completed",
            Self::RunFailed { .. } => "run.failed",
            Self::RunCancelled { .. } => "run.cancelled",
            Self::StepStarted { .. } => "step.started",
            Self::StepUpdate { .. } => "step.update",
            Self::StepCall { .. } => "step.call",
            Self::StepLog { .. } => "step.log",
            Self::StepArtifact { .. } => "step.artifact",
            Self::StepSuspended { .. } => "step.suspended",
            Self::StepResumed { .. } => "step.resumed",
            Self::StepCompleted { .. } => "step.completed",
            Self::StepFailed { .. } => "step.failed",
            Self::StepRolledBack { .. } => "step.rolled_back",
            Self::StepSkipped { .. } => "step.skipped",
            Self::StepCancelled { .. } => "step.cancelled",
            Self::StepTakenOver { .. } => "step.taken_over",
        }
    }

    /// Whether nothing can follow it.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        matches!(self, Self::RunCompleted { .. } | Self::RunFailed { .. } | Self::RunCancelled { .. })
    }

    /// The step it is about.
    #[must_use]
    pub const fn step(&self) -> Option<&StepId> {
        match self {
            Self::StepStarted { step, .. }
            | Self::StepUpdate { step, .. }
            | Self::StepCall { step, .. }
            | Self::StepLog { step, .. }
            | Self::StepArtifact { step, .. }
            | Self::StepSuspended { step, .. }
            | Self::StepResumed { step, .. }
            | Self::StepCompleted { step, .. }
            | Self::StepFailed { step, .. }
            | Self::StepRolledBack { step, .. }
            | Self::StepSkipped { step }
            | Self::StepCancelled { step }
            | Self::StepTakenOver { step, .. } => Some(step),
            Self::RunFailed { step, .. } => step.as_ref(),
            Self::RunQueued { .. }
            | Self::RunStarted { .. }
            | Self::RunSuspended { .. }
            | Self::RunResumed {}
            | Self::RunPaused { .. }
            | Self::SignalReceived { .. }
            | Self::RunCompleted { .. }
            | Self::RunCancelled { .. } => None,
        }
    }

    /// The value that the event carries.
    #[must_use]
    pub fn payload(&self) -> Option<&Payload> {
        match self {
            Self::RunQueued { input: payload, .. }
            | Self::RunCompleted { output: payload }
            | Self::SignalReceived { payload, .. }
            | Self::StepUpdate { payload, .. }
            | Self::StepCall { result: payload, .. }
            | Self::StepCompleted { output: payload, .. }
            | Self::StepTakenOver { output: payload, .. } => Some(payload),
            Self::StepResumed { woke: Some(woke), .. } => match &**woke {
                Woke::Signal { payload, .. } | Woke::Child(ChildEnd::Completed { output: payload }) => Some(payload),
                Woke::Timer | Woke::TimedOut | Woke::Child(_) | Woke::Operator => None,
            },
            _ => None,
        }
    }

    /// The content outside the journal that the event refers to.
    #[must_use]
    pub fn content(&self) -> Option<&ContentRef> {
        match (self, self.payload()) {
            (_, Some(Payload::Stored(content))) => Some(content),
            (Self::StepArtifact { content, .. }, _) => Some(content),
            _ => None,
        }
    }
}

/// An event in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Its number in the run.
    pub seq: Seq,
    /// When it was decided, to the append: events of one append share the time of the last of them.
    pub at: Timestamp,
    /// The fact.
    pub event: Event,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A kind that is missing would be refused in a filter, though it exists.
    #[test]
    fn every_kind_is_among_the_kinds() {
        let source = include_str!("event.rs");
        let renamed = source.lines().filter_map(|line| line.trim().strip_prefix("#[serde(rename = \""));
        let stored: BTreeSet<&str> = renamed.filter_map(|rest| rest.split('"').next()).collect();
        assert_eq!(stored, Event::KINDS.iter().copied().collect());
        assert_eq!(stored.len(), Event::KINDS.len());
        assert!(Event::KINDS.contains(&Event::RunStarted { deadline: None }.kind()));
    }

    /// What was written before there were shadows reads, and what is no shadow is still written as it was.
    #[test]
    fn a_run_that_shadows_nothing_is_stored_as_it_was_before_there_were_shadows() {
        let version = "ab".repeat(32);
        let stored = format!(r#"{{"run.queued":{{"workflow":"w","version":"{version}","input":{{"inline":1}}}}}}"#);
        let read: Event = serde_json::from_str(&stored).unwrap();
        assert!(matches!(read, Event::RunQueued { shadow_of: None, .. }));
        assert_eq!(serde_json::to_string(&read).unwrap(), stored);
        let run = RunId::from_bytes([7; 16]);
        for (live, suffix) in [(false, ""), (true, r#","live":true"#)] {
            let shadow_of = ShadowRef { run, live };
            let stored = serde_json::to_string(&shadow_of).unwrap();
            assert_eq!(stored, format!(r#"{{"run":"{run}"{suffix}}}"#));
            assert_eq!(serde_json::from_str::<ShadowRef>(&stored).unwrap(), shadow_of);
        }
    }
}
