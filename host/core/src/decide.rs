//! What we do about it: given a state and something that just happened, the facts that follow.
//!
//! [`Run::decide`] changes nothing, and finds only the first facts. What follows from those alone (which steps are due
//! now, whether the run has ended) is the fold's to say: [`Run::follow`] takes them in and returns the whole, which belongs
//! into one append. A step's result and the scheduling of its successors are one fact on disk or none.

use crate::event::{
    ChildEnd, ChildRef, Event, LogLevel, ParentRef, RerunRef, ShadowRef, SuspendReason, WaitingCall, Woke,
};
use crate::failure::{Failure, FailureKind, INTERRUPTED};
use crate::flow::FlowPlace;
use crate::graph::{NodeIndex, ScopeKind};
use crate::ids::{Digest, RunId, Seq, StepId, WorkflowName};
use crate::json::{ContentRef, Payload};
use crate::rerun::TakenOver;
use crate::retry::{Dice, Exhausted, INTERRUPTIONS_MAX, RetryPolicy};
use crate::run::{CHILDREN_MAX, DEPTH_MAX, Place, Run, RunStatus, SIGNALS_KEPT_MAX, Step, StepState};
use crate::scope::ITEMS_MAX;
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
        /// The run that starts it.
        parent: Option<ParentRef>,
        /// The run that it repeats.
        rerun_of: Option<RerunRef>,
        /// The run that it shadows.
        shadow_of: Option<ShadowRef>,
        /// Results of that run that count in this one.
        taken_over: Vec<TakenOver>,
        /// Its place in its workflow's flow control.
        place: Option<FlowPlace>,
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
        /// Whether a call publishes it that the step has not come back from.
        within_call: bool,
    },
    /// A step has called something outside and was answered.
    RecordCall {
        /// The step.
        step: StepId,
        /// Its attempt.
        attempt: u32,
        /// What it called.
        call: String,
        /// SHA-256 of what it called it with.
        arguments: Digest,
        /// What it was answered.
        result: Payload,
    },
    /// A step waits for something in a call, and can go without its sandbox meanwhile.
    Wait {
        /// The step.
        step: StepId,
        /// Its attempt.
        attempt: u32,
        /// The call.
        call: WaitingCall,
        /// When the wait ends at the latest.
        until: Option<Timestamp>,
    },
    /// A step starts a child.
    StartChild {
        /// The step.
        step: StepId,
        /// Its attempt.
        attempt: u32,
        /// What it called.
        call: String,
        /// SHA-256 of what it called it with.
        arguments: Digest,
        /// What it is answered.
        result: Payload,
        /// The child.
        child: Box<ChildRef>,
    },
    /// A child has ended.
    ChildEnded {
        /// The child.
        run: RunId,
        /// How.
        end: ChildEnd,
    },
    /// The outside has something to tell.
    Signal {
        /// The signal's name.
        name: String,
        /// What it tells.
        payload: Payload,
        /// The sender's idempotency key, as it stands in the event.
        key: Option<Digest>,
    },
    /// Somebody wants the run to be held.
    Pause {
        /// Why.
        reason: Option<String>,
    },
    /// Somebody lets a paused run go on.
    Resume,
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
        /// Whether it can be taken up again: it was not in the middle of a call that has published.
        can_resume: bool,
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
    /// What it wants to happen behind it.
    pub next: Next,
}

/// What a successful attempt wants to happen behind its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// What the edges say.
    Done,
    /// The output is an array of so many items, each of which is to be worked on.
    FanOut(u32),
    /// The output is the state of one more iteration.
    Again,
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
    /// The graph does not name this signal.
    #[error("the workflow has no such signal")]
    UnknownSignal,
    /// The signal has come before, with the same idempotency key.
    #[error("the signal has come before, as event {0}")]
    SignalRepeated(Seq),
    /// The idempotency key came with another payload before.
    #[error("this idempotency key was used for another signal of this run")]
    SignalMismatch,
    /// No step takes the signals that have come.
    #[error("{SIGNALS_KEPT_MAX} signals wait to be taken")]
    TooManySignals,
    /// The run that a step waits for is none of its children.
    #[error("the run is no child of this one")]
    NotAChild,
    /// The run has as many children as it may.
    #[error("a run has at most {CHILDREN_MAX} children")]
    TooManyChildren,
    /// The run has as many runs above it as it may.
    #[error("children go {DEPTH_MAX} deep at most")]
    TooDeep,
    /// Only a run that has started can be paused.
    #[error("the run has not started")]
    NotStarted,
    /// The run is paused already.
    #[error("the run is paused")]
    Paused,
    /// Only a paused run can be resumed.
    #[error("the run is not paused")]
    NotPaused,
    /// The input does not fit the state, for instance a second start.
    #[error("nothing follows from this now")]
    OutOfPlace,
}

impl Run {
    /// The first events that follow from an input, for [`follow`](Self::follow). Changes nothing; an empty list means that
    /// nothing is to be done.
    pub fn decide(&self, input: Input, now: Timestamp, dice: Dice) -> Result<Vec<Event>, Refusal> {
        if let Some(status) = self.status.filter(|status| status.is_terminal()) {
            // Whoever repeats the signal that ended the run asks about that signal, not about the run.
            let repeats = match &input {
                Input::Signal { key: Some(key), .. } => self.signal_known(key),
                _ => None,
            };
            return Err(repeats.unwrap_or(Refusal::Ended(status)));
        }
        match input {
            Input::Queue { workflow, version, input, parent, rerun_of, shadow_of, taken_over, place } => {
                if self.status.is_some() {
                    return Err(Refusal::OutOfPlace);
                }
                let mut events =
                    vec![Event::RunQueued { workflow, version, input, parent, rerun_of, shadow_of, place }];
                events.extend(taken_over.into_iter().map(|TakenOver { step, output, labels }| Event::StepTakenOver {
                    step,
                    output,
                    labels,
                }));
                Ok(events)
            }
            Input::Start if self.status == Some(RunStatus::Queued) => {
                let deadline = self.graph.spec().timeout_ms.map(|ms| now.plus_millis(ms));
                Ok(vec![Event::RunStarted { deadline }])
            }
            Input::Start => Err(Refusal::OutOfPlace),
            Input::Publish { step, attempt, topic, payload, within_call } => {
                self.under_way(&step, attempt)?;
                if !self.graph.has_topic(&topic) {
                    return Err(Refusal::UnknownTopic);
                }
                Ok(vec![Event::StepUpdate { step, attempt, topic, payload, within_call }])
            }
            Input::RecordCall { step, attempt, call, arguments, result } => {
                self.under_way(&step, attempt)?;
                Ok(vec![Event::StepCall { step, attempt, call, arguments, result, child: None }])
            }
            Input::Wait { step, attempt, call, until } => self.wait(step, attempt, call, until, now),
            Input::StartChild { step, attempt, call, arguments, result, child } => {
                self.under_way(&step, attempt)?;
                self.may_start_child()?;
                Ok(vec![Event::StepCall { step, attempt, call, arguments, result, child: Some(child) }])
            }
            Input::ChildEnded { run, end } => Ok(self.child_ended(run, &end)),
            Input::Signal { name, payload, key } => {
                if self.status.is_none() {
                    return Err(Refusal::OutOfPlace);
                }
                if self.graph.signal(&name).is_none() {
                    return Err(Refusal::UnknownSignal);
                }
                if let Some(known) = key.and_then(|key| self.signal_known(&key)) {
                    return Err(known);
                }
                if self.signals_kept >= SIGNALS_KEPT_MAX && !self.is_awaited(&name) {
                    return Err(Refusal::TooManySignals);
                }
                Ok(vec![Event::SignalReceived { name, payload, key }])
            }
            Input::Pause { reason } => match self.status {
                None => Err(Refusal::OutOfPlace),
                Some(RunStatus::Queued) => Err(Refusal::NotStarted),
                Some(RunStatus::Paused) => Err(Refusal::Paused),
                Some(_) => Ok(vec![Event::RunPaused { reason }]),
            },
            Input::Resume if self.status == Some(RunStatus::Paused) => Ok(self.unpause(now)),
            Input::Resume => Err(Refusal::NotPaused),
            Input::Log { step, attempt, level, message } => {
                self.under_way(&step, attempt)?;
                Ok(vec![Event::StepLog { step, attempt, level, message }])
            }
            Input::StoreArtifact { step, attempt, name, media_type, content } => {
                self.under_way(&step, attempt)?;
                Ok(vec![Event::StepArtifact { step, attempt, name, media_type, content }])
            }
            Input::AttemptEnded { step, attempt, result, fuel_used } => {
                let (place, state) = self.under_way(&step, attempt)?;
                Ok(vec![match result.and_then(|success| self.check_success(&place, success)) {
                    Ok(Success { output, labels, next }) => {
                        let fan_out = if let Next::FanOut(count) = next { Some(count) } else { None };
                        let again = next == Next::Again;
                        Event::StepCompleted { step, attempt, output, labels, fan_out, again, fuel_used }
                    }
                    Err(failure) => self.failed(step, (&place, state), failure, fuel_used, now, dice),
                }])
            }
            Input::AttemptLost { step, attempt, can_resume } => self.lost(step, attempt, can_resume, now),
            Input::TimerDue => Ok(self.wake(now)),
            Input::Cancel { reason } => {
                if self.status.is_none() {
                    return Err(Refusal::OutOfPlace);
                }
                Ok(vec![Event::RunCancelled { reason }])
            }
        }
    }

    /// Why a signal with this key is not taken, if it is not.
    fn signal_known(&self, key: &Digest) -> Option<Refusal> {
        let (seq, known) = self.signal_keys.get(key)?;
        Some(if known == *key { Refusal::SignalRepeated(seq) } else { Refusal::SignalMismatch })
    }

    /// An outcome must fit its node. It may only name labels that the node's edges carry; anything else is a slip that
    /// would skip whole branches in silence.
    fn check_success(&self, place: &Place, success: Success) -> Result<Success, Failure> {
        let permanent = |code: &str, message: String| Err(Failure::platform(FailureKind::Permanent, code, message));
        let unknown = |label: &&String| !self.graph.node(place.node).is_some_and(|node| node.has_label(label));
        if let Some(label) = success.labels.iter().find(unknown) {
            let shown: String = label.chars().take(64).collect();
            let message = format!("the step chose the label `{shown}`, which no edge out of its node carries");
            return permanent("unknown_route", message);
        }
        let (opens, closes) = self.scopes_at(place.node);
        match (success.next, opens, closes) {
            (Next::FanOut(count), Some(ScopeKind::Each { .. }), _) if count > ITEMS_MAX => {
                permanent("too_many_items", format!("the fan-out has {count} items, at most {ITEMS_MAX} are allowed"))
            }
            (Next::Again, _, Some(ScopeKind::Repeat { max }))
                if self.next_iteration(place).is_some_and(|n| n >= max) =>
            {
                permanent("loop_limit", format!("the loop wants more than {max} iterations"))
            }
            (Next::FanOut(_), Some(ScopeKind::Each { .. }), _)
            | (Next::Again | Next::Done, Some(ScopeKind::Repeat { .. }), _)
            | (Next::Again, None, Some(ScopeKind::Repeat { .. }))
            | (Next::Done, None, _) => Ok(success),
            (Next::Done, Some(ScopeKind::Each { .. }), _) => {
                permanent("unexpected_outcome", "a node that opens a fan-out hands over its items".to_owned())
            }
            (Next::FanOut(_) | Next::Again, ..) => {
                let message =
                    "only nodes that open a fan-out, or open or close a loop, have such an outcome".to_owned();
                permanent("unexpected_outcome", message)
            }
        }
    }

    /// What a node opens, and what it closes.
    fn scopes_at(&self, node: NodeIndex) -> (Option<ScopeKind>, Option<ScopeKind>) {
        let kind = |scope| self.graph.inner(scope).map(|inner| inner.kind);
        self.graph.node(node).map_or((None, None), |node| (node.opens.and_then(kind), node.closes.and_then(kind)))
    }

    fn failed(
        &self,
        step: StepId,
        (place, state): (&Place, &Step),
        failure: Failure,
        fuel_used: u64,
        now: Timestamp,
        dice: Dice,
    ) -> Event {
        let policy = self.policy_of(place);
        let next_attempt_at = match failure.kind {
            FailureKind::Permanent => None,
            FailureKind::Retryable if failure.is_the_hosts() => {
                let patience = RetryPolicy { max_attempts: INTERRUPTIONS_MAX, ..RetryPolicy::default() };
                patience.next_attempt_at(&failure.code, state.interruptions + 1, None, now, dice)
            }
            FailureKind::Retryable => {
                policy.next_attempt_at(&failure.code, state.failures + 1, failure.retry_after_ms, now, dice)
            }
        };
        let will_retry = next_attempt_at.is_some();
        let pauses = !will_retry && failure.kind == FailureKind::Retryable && policy.when_exhausted == Exhausted::Pause;
        Event::StepFailed { step, attempt: state.attempts, failure, will_retry, next_attempt_at, pauses, fuel_used }
    }

    /// An attempt that was cut off is taken up again, or where that cannot be rolled back and started anew at once, as a
    /// new attempt. Neither uses up the policy's attempts: the step has done nothing wrong. One that is cut off again and
    /// again has, or the host is not well; that is a case for whom the policy names.
    fn lost(&self, step: StepId, attempt: u32, can_resume: bool, now: Timestamp) -> Result<Vec<Event>, Refusal> {
        let (place, state) = self.under_way(&step, attempt)?;
        if can_resume && self.is_held(state) {
            return Ok(Vec::new());
        }
        let will_retry = state.interruptions < INTERRUPTIONS_MAX;
        if will_retry && can_resume {
            return Ok(vec![Event::StepResumed { step, woke: None }]);
        }
        let pauses = !will_retry && self.policy_of(&place).when_exhausted == Exhausted::Pause;
        let failure = if will_retry {
            Failure::platform(FailureKind::Retryable, INTERRUPTED, "the host stopped while the attempt was under way")
        } else {
            let kind = if pauses { FailureKind::Retryable } else { FailureKind::Permanent };
            let message = format!("the host stopped {INTERRUPTIONS_MAX} times while this step was under way");
            Failure::platform(kind, "interrupted_too_often", message)
        };
        let next_attempt_at = will_retry.then_some(now);
        Ok(vec![Event::StepFailed { step, attempt, failure, will_retry, next_attempt_at, pauses, fuel_used: 0 }])
    }

    /// Whether an attempt has had no instance since it was last due: nothing is begun in a paused run. What a host that
    /// stops takes from it is nothing.
    pub(crate) fn is_held(&self, step: &Step) -> bool {
        let held = |since: Seq| self.status == Some(RunStatus::Paused) && since > self.paused_since;
        matches!(step.state, StepState::Running { since } if held(since))
    }

    fn policy_of(&self, place: &Place) -> RetryPolicy {
        self.graph.node(place.node).map(|node| node.retry.clone()).unwrap_or_default()
    }

    /// A step waits. What has come already ends the wait at once.
    fn wait(
        &self,
        step: StepId,
        attempt: u32,
        call: WaitingCall,
        until: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Vec<Event>, Refusal> {
        self.under_way(&step, attempt)?;
        if call.signal.as_ref().is_some_and(|name| self.graph.signal(name).is_none()) {
            return Err(Refusal::UnknownSignal);
        }
        if call.child.is_some_and(|run| !self.children.contains_key(&run)) {
            return Err(Refusal::NotAChild);
        }
        let reason = match (&call.signal, &call.child) {
            (Some(_), _) => SuspendReason::Signal,
            (None, Some(_)) => SuspendReason::Child,
            (None, None) => SuspendReason::Timer,
        };
        let over = until.is_some_and(|until| until <= now)
            && reason == SuspendReason::Timer
            && self.status == Some(RunStatus::Running);
        let mut events = vec![Event::StepSuspended { step: step.clone(), reason, until, call: Some(Box::new(call)) }];
        if over {
            events.push(Event::StepResumed { step, woke: Some(Box::new(Woke::Timer)) });
        }
        Ok(events)
    }

    /// Whether a step may start one more child.
    pub fn may_start_child(&self) -> Result<(), Refusal> {
        if self.depth() >= DEPTH_MAX {
            return Err(Refusal::TooDeep);
        }
        if self.children.len() >= CHILDREN_MAX {
            return Err(Refusal::TooManyChildren);
        }
        Ok(())
    }

    /// Steps that wait for a child go on. Whoever begins to wait later asks by itself.
    fn child_ended(&self, child: RunId, end: &ChildEnd) -> Vec<Event> {
        let waits = |place: &Place| match &self.at(place)?.state {
            StepState::Suspended { call: Some(call), .. } if call.child == Some(child) => self.id_of(place),
            _ => None,
        };
        let woke = Some(Box::new(Woke::Child(end.clone())));
        let steps = self.active.iter().filter_map(waits);
        self.resumed(steps.map(|step| Event::StepResumed { step, woke: woke.clone() }).collect())
    }

    /// A paused run goes on, and with it the steps that wait for an operator, and those whose time has come meanwhile.
    /// Children may have ended meanwhile, which the run was not told: they are asked before a wait for one is over.
    fn unpause(&self, now: Timestamp) -> Vec<Event> {
        let waits = |place: &Place| match self.at(place)?.state {
            StepState::Suspended { reason: SuspendReason::Operator, .. } => self.id_of(place),
            _ => None,
        };
        let steps = self.active.iter().filter_map(waits);
        let operator = steps.map(|step| Event::StepResumed { step, woke: Some(Box::new(Woke::Operator)) });
        let due = self.due_timers(now, |reason| reason != SuspendReason::Child);
        [Event::RunResumed {}].into_iter().chain(operator).chain(due).collect()
    }

    /// Nothing in a paused run goes on, and a suspended one is resumed first.
    fn resumed(&self, mut steps: Vec<Event>) -> Vec<Event> {
        match self.status {
            Some(RunStatus::Suspended) if !steps.is_empty() => {
                steps.insert(0, Event::RunResumed {});
                steps
            }
            Some(RunStatus::Paused) => Vec::new(),
            _ => steps,
        }
    }

    fn wake(&self, now: Timestamp) -> Vec<Event> {
        if self.deadline.is_some_and(|(deadline, _)| deadline <= now) {
            let limit = self.graph.spec().timeout_ms.unwrap_or_default();
            let message = format!("the run has not ended within {limit} ms");
            let failure = Failure::platform(FailureKind::Permanent, "run_timeout", message);
            return vec![Event::RunFailed { step: None, failure }];
        }
        self.resumed(self.due_timers(now, |_| true).collect())
    }

    /// Waits whose time has come, and that nothing else ends: what has come already counts, however late anybody looks at
    /// the clock.
    fn due_timers(&self, now: Timestamp, concerns: impl Fn(SuspendReason) -> bool) -> impl Iterator<Item = Event> {
        self.active.iter().filter_map(move |place| match &self.at(place)?.state {
            StepState::Suspended { reason, until: Some(until), call, .. } if *until <= now && concerns(*reason) => {
                let signal = call.as_ref().and_then(|call| call.signal.as_ref());
                if signal.is_some_and(|name| self.is_kept(name)) {
                    return None;
                }
                let woke = match reason {
                    SuspendReason::Retry | SuspendReason::Operator => None,
                    SuspendReason::Timer => Some(Box::new(Woke::Timer)),
                    SuspendReason::Signal | SuspendReason::Child => Some(Box::new(Woke::TimedOut)),
                };
                Some(Event::StepResumed { step: self.id_of(place)?, woke })
            }
            _ => None,
        })
    }

    fn under_way(&self, id: &StepId, attempt: u32) -> Result<(Place, &Step), Refusal> {
        let found = self
            .step(id)
            .filter(|(_, step)| matches!(step.state, StepState::Running { .. }) && step.attempts == attempt);
        found.ok_or_else(|| Refusal::NotUnderWay { step: id.clone(), attempt })
    }
}
