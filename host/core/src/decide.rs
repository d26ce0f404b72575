//! What we do about it: given a state and something that just happened, the facts that follow.
//!
//! [`Run::decide`] changes nothing. What it returns belongs into one append: a step's result and the scheduling of
//! its successors are one fact on disk or none.

use std::collections::{HashMap, VecDeque};

use crate::event::{Event, LogLevel, SuspendReason};
use crate::failure::{Failure, FailureKind, INTERRUPTED};
use crate::graph::{Graph, NodeIndex};
use crate::ids::{Digest, NodeId, StepId, WorkflowName};
use crate::json::{ContentRef, Json, Payload};
use crate::retry::{Dice, INTERRUPTIONS_MAX, RetryPolicy};
use crate::run::{Run, RunStatus, Step, StepState, Taken};
use crate::time::Timestamp;

/// Something that just happened outside.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Somebody asked for a run.
    Queue {
        /// The workflow's name.
        workflow: WorkflowName,
        /// The version to run.
        version: Digest,
        /// The run's input.
        input: Payload,
    },
    /// There is room for a queued run.
    Start,
    /// A step published an update.
    Publish {
        /// The step.
        step: StepId,
        /// Its attempt.
        attempt: u32,
        /// The topic.
        topic: String,
        /// The update.
        payload: Payload,
    },
    /// A step wrote a line.
    Log {
        /// The step.
        step: StepId,
        /// Its attempt.
        attempt: u32,
        /// How much it matters.
        level: LogLevel,
        /// The line.
        message: String,
    },
    /// A step stored a file.
    StoreArtifact {
        /// The step.
        step: StepId,
        /// Its attempt.
        attempt: u32,
        /// The file's name.
        name: String,
        /// Its media type.
        media_type: String,
        /// Where its bytes are.
        content: ContentRef,
    },
    /// An attempt has ended.
    AttemptEnded {
        /// The step.
        step: StepId,
        /// The attempt.
        attempt: u32,
        /// How.
        result: Result<Success, Failure>,
        /// Metered instructions it used.
        fuel_used: u64,
    },
    /// The host that ran an attempt is gone, and the attempt with it.
    AttemptLost {
        /// The step.
        step: StepId,
        /// The attempt.
        attempt: u32,
    },
    /// A time that was owed has come.
    TimerDue,
    /// Somebody asked for the end.
    Cancel {
        /// What they said.
        reason: Option<String>,
    },
}

/// What a successful attempt brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Success {
    /// The step's output.
    pub output: Payload,
    /// Labels of the edges to take besides the unlabelled ones.
    pub labels: Vec<String>,
}

/// Why nothing follows from an input.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The run has ended.
    #[error("the run has ended ({})", .0.as_str())]
    Ended(RunStatus),
    /// The attempt is not under way: it belongs to another host, or to the past.
    #[error("attempt {attempt} of `{step}` is not under way")]
    NotUnderWay {
        /// The step.
        step: StepId,
        /// The attempt.
        attempt: u32,
    },
    /// The graph does not name this topic.
    #[error("the workflow has no such topic")]
    UnknownTopic,
    /// The input does not fit the state, for instance a second start.
    #[error("nothing follows from this now")]
    OutOfPlace,
}

impl Run {
    /// The events that follow from an input. Changes nothing; an empty list means that nothing is to be done.
    pub fn decide(&self, input: Input, now: Timestamp, dice: Dice) -> Result<Vec<Event>, Refusal> {
        if let Some(status) = self.status.filter(|status| status.is_terminal()) {
            return Err(Refusal::Ended(status));
        }
        match input {
            Input::Queue { workflow, version, input } => {
                if self.status.is_some() {
                    return Err(Refusal::OutOfPlace);
                }
                Ok(vec![Event::RunQueued { workflow, version, input }])
            }
            Input::Start => self.start(),
            Input::Publish { step, attempt, topic, payload } => {
                self.under_way(&step, attempt)?;
                if !self.graph.has_topic(&topic) {
                    return Err(Refusal::UnknownTopic);
                }
                Ok(vec![Event::StepUpdate { step, attempt, topic, payload }])
            }
            Input::Log { step, attempt, level, message } => {
                self.under_way(&step, attempt)?;
                Ok(vec![Event::StepLog { step, attempt, level, message }])
            }
            Input::StoreArtifact { step, attempt, name, media_type, content } => {
                self.under_way(&step, attempt)?;
                Ok(vec![Event::StepArtifact { step, attempt, name, media_type, content }])
            }
            Input::AttemptEnded { step, attempt, result, fuel_used } => {
                let (index, _) = self.under_way(&step, attempt)?;
                match result.and_then(|success| self.check_labels(index, success)) {
                    Ok(success) => Ok(self.complete(index, step, attempt, success, fuel_used)),
                    Err(failure) => self.fail(step, attempt, failure, fuel_used, now, dice),
                }
            }
            Input::AttemptLost { step, attempt } => self.lose(step, attempt, now),
            Input::TimerDue => Ok(self.wake(now)),
            Input::Cancel { reason } => {
                if self.status.is_none() {
                    return Err(Refusal::OutOfPlace);
                }
                Ok(vec![Event::RunCancelled { reason }])
            }
        }
    }

    fn start(&self) -> Result<Vec<Event>, Refusal> {
        if self.status != Some(RunStatus::Queued) {
            return Err(Refusal::OutOfPlace);
        }
        let roots = self.graph.nodes().iter().zip(&self.steps).filter(|(_, step)| step.is_ready());
        let started = roots.map(|(node, _)| Event::StepStarted { step: node.id.clone().into(), attempt: 1 });
        Ok(std::iter::once(Event::RunStarted {}).chain(started).collect())
    }

    /// An outcome may only name labels that its node's edges carry; anything else is a slip that would skip
    /// whole branches in silence.
    fn check_labels(&self, index: NodeIndex, success: Success) -> Result<Success, Failure> {
        let unknown = |label: &&String| !self.graph.node(index).is_some_and(|node| node.has_label(label));
        match success.labels.iter().find(unknown) {
            None => Ok(success),
            Some(label) => {
                let shown: String = label.chars().take(64).collect();
                let message = format!("the step chose the label `{shown}`, which no edge out of its node carries");
                Err(Failure::platform(FailureKind::Permanent, "unknown_route", message))
            }
        }
    }

    fn complete(&self, index: NodeIndex, step: StepId, attempt: u32, success: Success, fuel_used: u64) -> Vec<Event> {
        let Success { output, labels } = success;
        let after = Resolution::of(self, index, &labels);
        // The output node's payload, which may be the very one that is being recorded.
        let run_output = |graph: &Graph| match graph.output() {
            Some(node) if node == index => Some(output.clone()),
            Some(node) => self.output_of(node),
            None => None,
        };
        let last = (after.started.is_empty() && after.skipped.len() + 1 == self.open)
            .then(|| run_output(&self.graph).unwrap_or_else(|| Payload::Inline(Json::null())));
        let mut events = vec![Event::StepCompleted { step, attempt, output, labels, fuel_used }];
        events.extend(after.skipped.into_iter().map(|node| Event::StepSkipped { step: node.into() }));
        if let Some(output) = last {
            events.push(Event::RunCompleted { output });
        } else if after.started.is_empty() {
            // Nothing new is due, and this step is done: all that is left may be waiting.
            events.extend(self.suspension_without(index, None));
        } else {
            events.extend(after.started.into_iter().map(|node| Event::StepStarted { step: node.into(), attempt: 1 }));
        }
        events
    }

    fn fail(
        &self,
        step: StepId,
        attempt: u32,
        failure: Failure,
        fuel_used: u64,
        now: Timestamp,
        dice: Dice,
    ) -> Result<Vec<Event>, Refusal> {
        let (index, state) = self.under_way(&step, attempt)?;
        let policy = self.graph.node(index).map(|node| node.retry).unwrap_or_default();
        let next_attempt_at = match failure.kind {
            FailureKind::Permanent => None,
            FailureKind::Retryable if failure.is_the_hosts() => {
                let patience = RetryPolicy { max_attempts: INTERRUPTIONS_MAX, ..RetryPolicy::default() };
                patience.next_attempt_at(state.interruptions + 1, None, now, dice)
            }
            FailureKind::Retryable => policy.next_attempt_at(state.failures + 1, failure.retry_after_ms, now, dice),
        };
        let mut events = vec![Event::StepFailed {
            step: step.clone(),
            attempt,
            failure: failure.clone(),
            will_retry: next_attempt_at.is_some(),
            next_attempt_at,
            fuel_used,
        }];
        events.extend(rolled_back(&step, attempt, state));
        match next_attempt_at {
            Some(at) => {
                events.push(Event::StepSuspended { step, reason: SuspendReason::Retry, until: Some(at) });
                events.extend(self.suspension_without(index, Some(at)));
            }
            None => events.push(Event::RunFailed { step: Some(step), failure }),
        }
        Ok(events)
    }

    /// An attempt that was cut off is rolled back and started anew at once, as a new attempt. It does not use up
    /// the policy's attempts: the step has done nothing wrong. One that is cut off again and again has.
    fn lose(&self, step: StepId, attempt: u32, now: Timestamp) -> Result<Vec<Event>, Refusal> {
        let (_, state) = self.under_way(&step, attempt)?;
        let again = state.interruptions < INTERRUPTIONS_MAX;
        let failure = if again {
            Failure::platform(FailureKind::Retryable, INTERRUPTED, "the host stopped while the attempt was under way")
        } else {
            let message = format!("the host stopped {INTERRUPTIONS_MAX} times while this step was under way");
            Failure::platform(FailureKind::Permanent, "interrupted_too_often", message)
        };
        let mut events = vec![Event::StepFailed {
            step: step.clone(),
            attempt,
            failure: failure.clone(),
            will_retry: again,
            next_attempt_at: again.then_some(now),
            fuel_used: 0,
        }];
        events.extend(rolled_back(&step, attempt, state));
        events.push(if again {
            Event::StepStarted { step, attempt: attempt + 1 }
        } else {
            Event::RunFailed { step: Some(step), failure }
        });
        Ok(events)
    }

    fn wake(&self, now: Timestamp) -> Vec<Event> {
        let due = |index: &NodeIndex| {
            let step = self.steps.get(*index)?;
            let StepState::Suspended { until: Some(until), .. } = step.state else { return None };
            (until <= now).then_some((self.graph.node(*index)?.id.clone(), step.attempts + 1))
        };
        let due: Vec<(NodeId, u32)> = self.active.iter().filter_map(due).collect();
        let mut events = Vec::with_capacity(1 + 2 * due.len());
        if !due.is_empty() && self.status == Some(RunStatus::Suspended) {
            events.push(Event::RunResumed {});
        }
        for (node, attempt) in due {
            events.push(Event::StepResumed { step: node.clone().into() });
            events.push(Event::StepStarted { step: node.into(), attempt });
        }
        events
    }

    /// The suspension of the run when one step stops moving (until a time, or for good) and all others wait.
    fn suspension_without(&self, index: NodeIndex, until: Option<Timestamp>) -> Option<Event> {
        let mut earliest = until;
        for other in self.active.iter().filter(|other| **other != index) {
            match self.steps.get(*other)?.state {
                StepState::Suspended { until, .. } => earliest = [earliest, until].into_iter().flatten().min(),
                _ => return None,
            }
        }
        let waits = until.is_some() || self.active.len() > 1;
        waits.then_some(Event::RunSuspended { reason: SuspendReason::Retry, until: earliest })
    }

    fn under_way(&self, id: &StepId, attempt: u32) -> Result<(NodeIndex, &Step), Refusal> {
        let refusal = || Refusal::NotUnderWay { step: id.clone(), attempt };
        let (index, step) = self.step(id).map_err(|_| refusal())?;
        let matches = matches!(step.state, StepState::Running { .. }) && step.attempts == attempt;
        if matches { Ok((index, step)) } else { Err(refusal()) }
    }
}

fn rolled_back(step: &StepId, attempt: u32, state: &Step) -> Option<Event> {
    let (first_seq, last_seq) = state.updates?;
    Some(Event::StepRolledBack { step: step.clone(), attempt, first_seq, last_seq })
}

/// What becomes of the nodes behind one that has just completed.
#[derive(Default)]
struct Resolution {
    started: Vec<NodeId>,
    skipped: Vec<NodeId>,
}

impl Resolution {
    /// Follows the edges out of a completed node. A node that is skipped resolves its own edges in turn, so this
    /// walks on until nothing more is decided; it looks only at nodes behind the completed one.
    fn of(run: &Run, index: NodeIndex, labels: &[String]) -> Self {
        let mut found = Self::default();
        let mut changed: HashMap<NodeIndex, (usize, usize)> = HashMap::new();
        let mut resolved = VecDeque::from([(index, Taken::by(labels))]);
        while let Some((index, edges)) = resolved.pop_front() {
            for edge in run.graph.node(index).into_iter().flat_map(|node| &node.outgoing) {
                let (Some(step), Some(node)) = (run.steps.get(edge.target), run.graph.node(edge.target)) else {
                    continue;
                };
                let (unresolved, taken) = changed.entry(edge.target).or_insert((step.unresolved, step.taken));
                *unresolved -= 1;
                *taken += usize::from(edges.takes(edge));
                match (*unresolved, *taken) {
                    (0, 0) => {
                        found.skipped.push(node.id.clone());
                        resolved.push_back((edge.target, Taken::None));
                    }
                    (0, _) => found.started.push(node.id.clone()),
                    _ => {}
                }
            }
        }
        found
    }
}
