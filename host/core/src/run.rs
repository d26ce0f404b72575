//! What the facts mean: the state of a run, as the fold of its events.
//!
//! The same [`Run::apply`] is used live and in recovery; there is no other way for state to change. It refuses
//! every event that cannot follow, so a history that folds is a history that could have happened.
//!
//! Some events leave others to be recorded: a result makes successors due, a last failure ends the run. What is due is
//! part of the state, and [`Run::consequence`] names it, one event at a time, until nothing is left. All of that belongs
//! into one append, so nobody ever sees a run between an event and its consequences.
//!
//! Steps live in *frames*: the outermost scope has one, a fan-out has one for each item under way, a loop one for
//! its iteration. A frame goes when its steps are done; what remains of it is what the closing node needs.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::effect::Effect;
use crate::event::{Event, SuspendReason};
use crate::failure::Failure;
use crate::graph::{Graph, ItemFailure, Need, Node, NodeIndex, Outgoing, ScopeKind};
use crate::ids::{Seq, StepId};
use crate::json::{Json, Payload};
use crate::scope::{Inner, OUTERMOST, ScopeIndex};
use crate::time::Timestamp;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Accepted; no step is due yet.
    Queued,
    /// At least one step is due or under way.
    Running,
    /// Nothing can progress without the outside.
    Suspended,
    /// Every step has completed or was skipped.
    Completed,
    /// A step failed for good.
    Failed,
    /// Someone asked for the end.
    Cancelled,
}

impl RunStatus {
    /// Whether nothing can change any more.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// The name that clients see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Suspended => "suspended",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The status after an event that changes it.
    #[must_use]
    pub const fn after(event: &Event) -> Option<Self> {
        match event {
            Event::RunQueued { .. } => Some(Self::Queued),
            Event::RunStarted {} | Event::RunResumed {} => Some(Self::Running),
            Event::RunSuspended { .. } => Some(Self::Suspended),
            Event::RunCompleted { .. } => Some(Self::Completed),
            Event::RunFailed { .. } => Some(Self::Failed),
            Event::RunCancelled { .. } => Some(Self::Cancelled),
            Event::StepStarted { .. }
            | Event::StepUpdate { .. }
            | Event::StepCall { .. }
            | Event::StepLog { .. }
            | Event::StepArtifact { .. }
            | Event::StepSuspended { .. }
            | Event::StepResumed { .. }
            | Event::StepCompleted { .. }
            | Event::StepFailed { .. }
            | Event::StepRolledBack { .. }
            | Event::StepSkipped { .. }
            | Event::StepCancelled { .. } => None,
        }
    }
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepStatus {
    /// Its incoming edges are not all resolved.
    Pending,
    /// An attempt is due or under way.
    Running,
    /// It waits and holds no sandbox.
    Suspended,
    /// It has its result.
    Completed,
    /// It failed for good.
    Failed,
    /// None of its incoming edges was taken.
    Skipped,
    /// The run, or the item it belongs to, ended before it did.
    Cancelled,
}

/// An event that cannot follow the ones before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("event {seq} ({kind}) cannot follow: {reason}")]
pub struct IllegalEvent {
    /// The number it would have had.
    pub seq: Seq,
    /// Its kind.
    pub kind: &'static str,
    /// Why not.
    pub reason: String,
}

/// Steps of one run that are under way or wait for something, at once. What is due beyond it begins when others end: a
/// fan-out within a fan-out must take neither the memory of the host nor the time of other runs.
pub const STEPS_AT_ONCE_MAX: usize = if cfg!(test) { 6 } else { 1_000 };
/// Bytes of results that a run keeps in memory. A shell stores further ones apart, see [`Run::keeps_much`].
const KEPT_BYTES: usize = 16 << 20;
/// Bytes of a failure's message that the node which closes its fan-out is told.
const TOLD_BYTES_MAX: usize = 256;

/// A run, as far as its events tell.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub(crate) graph: Arc<Graph>,
    /// `None` before the first event.
    pub(crate) status: Option<RunStatus>,
    last_seq: Seq,
    input: Payload,
    frames: HashMap<FrameKey, Frame>,
    /// Scopes that were entered and not closed yet. The items are those around the scope.
    regions: HashMap<FrameKey, Region>,
    /// What failed first in each fan-out in which something has.
    first_failures: HashMap<FrameKey, (StepId, Failure)>,
    /// Steps that are running or suspended: all that can move, or be owed, without looking at every step.
    pub(crate) active: BTreeSet<Place>,
    /// How many of them are not suspended.
    moving: usize,
    /// Bytes of all results that were kept as they are.
    kept_bytes: usize,
    /// What must be recorded before anything else happens. Between appends there are only starts left, for which there
    /// is no room.
    due: BTreeSet<Due>,
    /// Updates of attempts that have just failed or been cancelled, to be marked. Empty between appends.
    rollbacks: VecDeque<(StepId, u32, Seq, Seq)>,
    /// What ends the run. Set between appends only when the run has ended.
    failed: Option<(StepId, Failure)>,
}

/// Names a frame, by its scope and the path of its item; or a region, by its scope and the path around it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct FrameKey {
    scope: ScopeIndex,
    items: Vec<u32>,
}

/// The steps of one item, of one iteration, or of the outermost scope.
#[derive(Debug, Clone, PartialEq)]
struct Frame {
    /// In the order of the scope's nodes.
    steps: Vec<Step>,
    /// Steps that have neither completed nor been skipped.
    open: usize,
}

/// A scope that was entered.
#[derive(Debug, Clone, PartialEq)]
enum Region {
    Each {
        count: u32,
        /// The first item that was not started.
        next: u32,
        /// Items that were started and are not done.
        under_way: u32,
        /// What the closing node needs of the items that are done and have not failed.
        outputs: BTreeMap<u32, Box<[Option<Payload>]>>,
        failures: Vec<ItemFailed>,
    },
    Repeat {
        /// The number of the iteration.
        index: u32,
        /// What it began with.
        state: Payload,
    },
}

/// An item that has failed, in a fan-out that goes on.
#[derive(Debug, Clone, PartialEq)]
struct ItemFailed {
    index: u32,
    step: StepId,
    code: String,
    /// The beginning of it.
    message: String,
}

/// Where a step is: its node and the items of its frame.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    // First, so that everything within an item lies together.
    pub(crate) items: Vec<u32>,
    pub(crate) node: NodeIndex,
}

/// An event that must follow, in the order in which they do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Cancel(StepId, u32, Option<(Seq, Seq)>),
    Skip(Place),
    Suspend(Place, Option<Timestamp>),
    /// The next attempt of a step that has its place among those under way.
    Again(Place),
    Start(Place),
    /// The next item of a region. The innermost first, so that what was begun is brought to an end before more is begun.
    Item(Reverse<usize>, FrameKey),
}

/// A step, as far as the run's events tell.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    pub(crate) state: StepState,
    /// Incoming edges that are not resolved yet.
    unresolved: usize,
    /// Whether one of them was taken.
    reached: bool,
    /// The number of the last attempt that was started; 0 before the first.
    pub(crate) attempts: u32,
    /// Failed attempts that count against the retry policy.
    pub(crate) failures: u32,
    /// Attempts that ended through no fault of the step: cut off by a stopping host, or never run.
    pub(crate) interruptions: u32,
    /// The first and last update or artifact of the last attempt.
    updates: Option<(Seq, Seq)>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum StepState {
    Pending,
    Running {
        since: Seq,
    },
    /// An attempt has failed and what follows is due.
    BetweenAttempts,
    Suspended {
        reason: SuspendReason,
        until: Option<Timestamp>,
        since: Seq,
    },
    Completed {
        output: Payload,
    },
    Failed,
    Skipped,
    Cancelled,
}

/// A value that a step is handed.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A value as it is.
    One(Payload),
    /// One element of an array.
    Element {
        /// The array.
        of: Payload,
        /// The element.
        index: u32,
    },
    /// An array of values, `null` where there is none.
    Many(Vec<Option<Payload>>),
}

impl Value {
    /// Bytes of its JSON text, or more.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::One(payload) | Self::Element { of: payload, .. } => payload.size_bytes(),
            Self::Many(values) => {
                values.iter().map(|value| value.as_ref().map_or(4, Payload::size_bytes) + 1).sum::<u64>() + 2
            }
        }
    }
}

/// The name under which the node that closes a fan-out is handed the items that failed.
pub const FAILURES: &str = "failures";

impl Run {
    /// A run of this graph before its first event.
    #[must_use]
    pub fn new(graph: Arc<Graph>) -> Self {
        let mut this = Self {
            status: None,
            last_seq: 0,
            input: Payload::Inline(Json::null()),
            frames: HashMap::new(),
            regions: HashMap::new(),
            first_failures: HashMap::new(),
            active: BTreeSet::new(),
            moving: 0,
            kept_bytes: 0,
            due: BTreeSet::new(),
            rollbacks: VecDeque::new(),
            failed: None,
            graph,
        };
        let outermost = FrameKey { scope: OUTERMOST, items: Vec::new() };
        this.frames.insert(outermost, this.new_frame(OUTERMOST));
        this
    }

    /// Its graph.
    #[must_use]
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// Where it stands; `None` before its first event.
    #[must_use]
    pub fn status(&self) -> Option<RunStatus> {
        self.status
    }

    /// Whether nothing can follow.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.status.is_some_and(RunStatus::is_terminal)
    }

    /// The number of its last event; 0 before its first.
    #[must_use]
    pub fn last_seq(&self) -> Seq {
        self.last_seq
    }

    /// What a shell must do next. After recovery that is all of it; live, a shell leaves out what is under way.
    #[must_use]
    pub fn owed(&self) -> Vec<Effect> {
        if self.status == Some(RunStatus::Queued) {
            return vec![Effect::StartRun { since: self.last_seq }];
        }
        let owed = self.active.iter().filter_map(|place| match self.at(place)?.state {
            StepState::Running { since } => {
                let attempt = self.at(place)?.attempts;
                Some(Effect::RunStep { step: self.id_of(place)?, node: place.node, attempt, since })
            }
            StepState::Suspended { until: Some(at), since, .. } => Some(Effect::WakeAt { at, since }),
            StepState::Suspended { until: None, .. }
            | StepState::Pending
            | StepState::BetweenAttempts
            | StepState::Completed { .. }
            | StepState::Failed
            | StepState::Skipped
            | StepState::Cancelled => None,
        });
        owed.collect()
    }

    /// What a step is handed, in the order of its node's needs. Ancestors that were skipped are left out.
    #[must_use]
    pub fn inputs_of(&self, step: &StepId) -> Vec<(String, Value)> {
        let found = self.find(step).ok().and_then(|place| Some((self.graph.node(place.node)?, place)));
        let Some((node, place)) = found else { return Vec::new() };
        let value = |need: &Need| match need {
            Need::Input => Some(("input".to_owned(), Value::One(self.input.clone()))),
            other => {
                let index = other.node()?;
                Some((self.graph.node(index)?.id.to_string(), self.needed(node, &place, *other, index)?))
            }
        };
        let mut inputs: Vec<(String, Value)> = node.needs.iter().filter_map(value).collect();
        if let Some(Region::Each { failures, .. }) = node.closes.and_then(|scope| self.region(scope, &place.items)) {
            inputs.push((FAILURES.to_owned(), Value::One(Payload::Inline(failures_json(failures)))));
        }
        inputs
    }

    fn needed(&self, node: &Node, place: &Place, need: Need, index: NodeIndex) -> Option<Value> {
        match need {
            Need::Input => None,
            Need::Output(_) => {
                let depth = self.graph.depth(self.graph.node(index)?.scope);
                Some(Value::One(self.output_at(place.items.get(..depth)?, index)?))
            }
            Need::Item(_) => {
                let scope = self.graph.node(index)?.opens?;
                let around = place.items.get(..self.graph.depth(scope) - 1)?;
                match self.region(scope, around)? {
                    Region::Repeat { state, .. } => Some(Value::One(state.clone())),
                    Region::Each { .. } => {
                        let item = place.items.get(around.len()).copied()?;
                        Some(Value::Element { of: self.output_at(around, index)?, index: item })
                    }
                }
            }
            Need::EachOutput(_) => {
                let Region::Each { outputs, count, .. } = self.region(node.closes?, &place.items)? else { return None };
                let needed = gathered(node).position(|needed| needed == index)?;
                let output = |item: u32| outputs.get(&item)?.get(needed)?.clone();
                Some(Value::Many((0..*count).map(output).collect()))
            }
            Need::LastOutput(_) => {
                let Region::Repeat { index: iteration, .. } = self.region(node.closes?, &place.items)? else {
                    return None;
                };
                let mut items = place.items.clone();
                items.push(*iteration);
                Some(Value::One(self.output_at(&items, index)?))
            }
        }
    }

    /// A completed step's output.
    fn output_at(&self, items: &[u32], node: NodeIndex) -> Option<Payload> {
        match &self.at(&Place { items: items.to_vec(), node })?.state {
            StepState::Completed { output } => Some(output.clone()),
            _ => None,
        }
    }

    /// Where a step stands. `None` when there is no such step, or none any more: what lies in an item or iteration goes
    /// with it.
    #[must_use]
    pub fn step_status(&self, step: &StepId) -> Option<StepStatus> {
        let place = self.find(step).ok()?;
        Some(match self.at(&place)?.state {
            StepState::Pending => StepStatus::Pending,
            StepState::Running { .. } => StepStatus::Running,
            StepState::Suspended { .. } | StepState::BetweenAttempts => StepStatus::Suspended,
            StepState::Completed { .. } => StepStatus::Completed,
            StepState::Failed => StepStatus::Failed,
            StepState::Skipped => StepStatus::Skipped,
            StepState::Cancelled => StepStatus::Cancelled,
        })
    }

    /// The event that must be recorded next because of what was, if there is one. Changes nothing.
    #[must_use]
    pub fn consequence(&self) -> Option<Event> {
        if !matches!(self.status, Some(RunStatus::Running | RunStatus::Suspended)) {
            return None;
        }
        if let Some((step, attempt, first_seq, last_seq)) = self.rollbacks.front().cloned() {
            return Some(Event::StepRolledBack { step, attempt, first_seq, last_seq });
        }
        if let Some((step, failure)) = self.failed.clone() {
            return Some(Event::RunFailed { step: Some(step), failure });
        }
        if let Some(due) = self.next_due() {
            return match due {
                Due::Cancel(step, ..) => Some(Event::StepCancelled { step: step.clone() }),
                Due::Skip(place) => Some(Event::StepSkipped { step: self.id_of(place)? }),
                Due::Suspend(place, until) => {
                    let (step, reason) = (self.id_of(place)?, SuspendReason::Retry);
                    Some(Event::StepSuspended { step, reason, until: *until })
                }
                Due::Start(place) | Due::Again(place) => {
                    Some(Event::StepStarted { step: self.id_of(place)?, attempt: self.at(place)?.attempts + 1 })
                }
                Due::Item(_, key) => self.first_of_next_item(key).map(|step| Event::StepStarted { step, attempt: 1 }),
            };
        }
        if self.open() == 0 {
            let output = self.graph.output().and_then(|node| self.output_at(&[], node));
            return Some(Event::RunCompleted { output: output.unwrap_or_else(|| Payload::Inline(Json::null())) });
        }
        if self.is_waiting() {
            let until = self.active.iter().filter_map(|place| match self.at(place)?.state {
                StepState::Suspended { until, .. } => until,
                _ => None,
            });
            return Some(Event::RunSuspended { reason: SuspendReason::Retry, until: until.min() });
        }
        None
    }

    /// Takes in events that were decided, and all that follows from them. Returns the whole of it, which belongs into one
    /// append. After an error the run is worth nothing any more.
    pub fn follow(&mut self, decided: Vec<Event>) -> Result<Vec<Event>, IllegalEvent> {
        let mut events = decided;
        for event in &events {
            self.apply(event)?;
        }
        // Without a first event nothing has changed.
        while let Some(event) = self.consequence().filter(|_| !events.is_empty()) {
            self.apply(&event)?;
            events.push(event);
        }
        Ok(events)
    }

    /// Takes in the next event. On an error the run is worth nothing any more.
    pub fn apply(&mut self, event: &Event) -> Result<(), IllegalEvent> {
        let seq = self.last_seq + 1;
        self.fold(seq, event).map_err(|reason| IllegalEvent { seq, kind: event.kind(), reason })?;
        self.last_seq = seq;
        Ok(())
    }

    fn fold(&mut self, seq: Seq, event: &Event) -> Result<(), String> {
        use RunStatus::{Queued, Running, Suspended};
        match (self.status, event) {
            (Some(status), _) if status.is_terminal() => {
                return Err(format!("the run has ended ({})", status.as_str()));
            }
            (None, Event::RunQueued { input, .. }) => self.input = input.clone(),
            (None, _) => return Err("a run begins with run.queued".to_owned()),
            (Some(_), Event::RunQueued { .. }) => return Err("the run is queued already".to_owned()),

            (Some(Queued), Event::RunStarted {}) => self.enter(OUTERMOST, &[]),
            (_, Event::RunStarted {}) => return Err("the run has started already".to_owned()),
            (Some(Running), Event::RunSuspended { .. }) if self.is_settled() && self.is_waiting() => {}
            (_, Event::RunSuspended { .. }) => return Err("something in the run can progress".to_owned()),
            (Some(Suspended), Event::RunResumed {}) => {}
            (_, Event::RunResumed {}) => return Err("the run is not suspended".to_owned()),
            (Some(Running), Event::RunCompleted { .. }) if self.is_settled() && self.open() == 0 => {}
            (_, Event::RunCompleted { .. }) => return Err("steps are still open".to_owned()),
            (Some(_), Event::RunFailed { step, .. }) => {
                if step.is_some() && *step != self.failed.as_ref().map(|(step, _)| step.clone()) {
                    return Err("the step it names has not failed".to_owned());
                }
                self.cancel_open_steps();
            }
            (Some(_), Event::RunCancelled { .. }) => self.cancel_open_steps(),

            // Each suspension is followed by its resumption before anything else moves.
            (Some(Queued | Suspended), _) => {
                return Err("no step moves while the run is queued or suspended".to_owned());
            }
            (Some(_), event) => self.fold_step(seq, event)?,
        }
        if let Some(status) = RunStatus::after(event) {
            self.status = Some(status);
        }
        Ok(())
    }

    fn fold_step(&mut self, seq: Seq, event: &Event) -> Result<(), String> {
        match event {
            Event::StepStarted { step, attempt } => {
                let place = self.find(step)?;
                self.enter_next_item(&place);
                let is_due = self.due.remove(&Due::Start(place.clone())) || self.due.remove(&Due::Again(place.clone()));
                if !is_due {
                    return Err("the step is not due".to_owned());
                }
                let step = self.at_mut(&place)?;
                if *attempt != step.attempts + 1 {
                    return Err(format!("attempt {attempt} does not follow attempt {}", step.attempts));
                }
                step.attempts = *attempt;
                step.updates = None;
                self.set(&place, StepState::Running { since: seq })?;
            }
            Event::StepUpdate { step, attempt, .. } | Event::StepArtifact { step, attempt, .. } => {
                let (_, step) = self.running(step, *attempt)?;
                let first = step.updates.map_or(seq, |(first, _)| first);
                step.updates = Some((first, seq));
            }
            Event::StepLog { step, attempt, .. } | Event::StepCall { step, attempt, .. } => {
                drop(self.running(step, *attempt)?);
            }
            Event::StepCompleted { step, attempt, output, labels, fan_out, again, .. } => {
                let (place, _) = self.running(step, *attempt)?;
                self.complete(&place, output, labels, *fan_out, *again)?;
            }
            Event::StepFailed { step: id, attempt, failure, will_retry, next_attempt_at, .. } => {
                let (place, step) = self.running(id, *attempt)?;
                if failure.is_the_hosts() && *will_retry {
                    step.interruptions += 1;
                } else {
                    step.failures += 1;
                }
                if let Some((first, last)) = step.updates.take() {
                    self.rollbacks.push_back((id.clone(), *attempt, first, last));
                }
                if !*will_retry {
                    self.set(&place, StepState::Failed)?;
                    self.fail(&place, id, failure);
                } else {
                    self.set(&place, StepState::BetweenAttempts)?;
                    let at_once = failure.is_interruption();
                    self.due.insert(if at_once { Due::Again(place) } else { Due::Suspend(place, *next_attempt_at) });
                }
            }
            Event::StepRolledBack { step, attempt, first_seq, last_seq } => {
                let expected = self.rollbacks.pop_front();
                if expected != Some((step.clone(), *attempt, *first_seq, *last_seq)) {
                    return Err("there is nothing like it to roll back".to_owned());
                }
            }
            Event::StepSuspended { step, reason, until } => {
                let place = self.find(step)?;
                if !self.due.remove(&Due::Suspend(place.clone(), *until)) {
                    return Err("the step has nothing to wait for".to_owned());
                }
                self.set(&place, StepState::Suspended { reason: *reason, until: *until, since: seq })?;
            }
            Event::StepResumed { step } => {
                let place = self.find(step)?;
                let step = self.at_mut(&place)?;
                match step.state {
                    // The attempt goes on in another instance.
                    StepState::Running { .. } => {
                        step.interruptions += 1;
                        self.set(&place, StepState::Running { since: seq })?;
                    }
                    StepState::Suspended { .. } => {
                        self.set(&place, StepState::BetweenAttempts)?;
                        self.due.insert(Due::Again(place));
                    }
                    _ => return Err("the step is neither suspended nor under way".to_owned()),
                }
            }
            Event::StepSkipped { step } => {
                let place = self.find(step)?;
                if !self.due.remove(&Due::Skip(place.clone())) {
                    return Err("the step is not to be skipped".to_owned());
                }
                self.set(&place, StepState::Skipped)?;
                self.close(&place, &Taken::None);
            }
            Event::StepCancelled { step } => {
                let due = self.due.iter().find(|due| matches!(due, Due::Cancel(cancelled, ..) if cancelled == step));
                let Some(Due::Cancel(id, attempt, updates)) = due.cloned() else {
                    return Err("the step is not to be cancelled".to_owned());
                };
                self.rollbacks.extend(updates.map(|(first, last)| (id.clone(), attempt, first, last)));
                self.due.remove(&Due::Cancel(id, attempt, updates));
            }
            Event::RunQueued { .. }
            | Event::RunStarted {}
            | Event::RunSuspended { .. }
            | Event::RunResumed {}
            | Event::RunCompleted { .. }
            | Event::RunFailed { .. }
            | Event::RunCancelled { .. } => return Err("not an event of a step".to_owned()),
        }
        Ok(())
    }

    /// What must be recorded next of what is due: not a start when there is no room.
    fn next_due(&self) -> Option<&Due> {
        let has_room = self.active.len() < STEPS_AT_ONCE_MAX;
        self.due.first().filter(|due| match due {
            Due::Start(_) | Due::Item(..) => has_room,
            Due::Cancel(..) | Due::Skip(_) | Due::Suspend(..) | Due::Again(_) => true,
        })
    }

    /// Whether nothing must be recorded before anything else.
    fn is_settled(&self) -> bool {
        self.next_due().is_none() && self.rollbacks.is_empty() && self.failed.is_none()
    }

    /// Whether the results that the run keeps have become many: further ones are better stored apart, with a reference in
    /// their event.
    #[must_use]
    pub fn keeps_much(&self) -> bool {
        self.kept_bytes > KEPT_BYTES
    }

    /// Whether all that is left waits: then the run is suspended.
    fn is_waiting(&self) -> bool {
        self.status == Some(RunStatus::Running) && !self.active.is_empty() && self.moving == 0
    }

    /// Steps of the outermost scope that are not done.
    fn open(&self) -> usize {
        self.frame(OUTERMOST, &[]).map_or(0, |frame| frame.open)
    }

    fn complete(
        &mut self,
        place: &Place,
        output: &Payload,
        labels: &[String],
        fan_out: Option<u32>,
        again: bool,
    ) -> Result<(), String> {
        let graph = Arc::clone(&self.graph);
        let node = graph.node(place.node).ok_or("there is no such node")?;
        if let Some(scope) = node.closes {
            let key = FrameKey { scope, items: place.items.clone() };
            match self.regions.get_mut(&key) {
                Some(Region::Repeat { index, state }) => {
                    let mut items = place.items.clone();
                    items.push(*index);
                    if again {
                        *index += 1;
                        *state = output.clone();
                        let next = *index;
                        self.frames.remove(&FrameKey { scope, items });
                        self.set(place, StepState::Pending)?;
                        *self.at_mut(place)? = Step { unresolved: 1, ..Step::pending() };
                        self.enter(scope, &[place.items.as_slice(), &[next]].concat());
                        return Ok(());
                    }
                    self.frames.remove(&FrameKey { scope, items });
                }
                Some(Region::Each { .. }) | None => {}
            }
            self.regions.remove(&key);
            self.first_failures.remove(&key);
        }
        let opens = node.opens.and_then(|scope| Some((scope, graph.inner(scope)?.kind)));
        let region = match (opens, fan_out, again) {
            (Some((_, ScopeKind::Each { .. })), Some(count), false) => {
                let (outputs, failures) = (BTreeMap::new(), Vec::new());
                Some(Region::Each { count, next: 0, under_way: 0, outputs, failures })
            }
            (Some((_, ScopeKind::Repeat { .. })), None, _) => Some(Region::Repeat { index: 0, state: output.clone() }),
            (None, None, false) => None,
            _ => return Err("the result does not fit the node".to_owned()),
        };
        if let Payload::Inline(json) = output {
            self.kept_bytes += json.len_bytes();
        }
        self.set(place, StepState::Completed { output: output.clone() })?;
        let (Some((scope, _)), Some(region)) = (opens, region) else {
            self.close(place, &Taken::by(labels));
            return Ok(());
        };
        // The edge to the closing node is resolved when the scope is done.
        if let Some(frame) = self.frames.get_mut(&FrameKey { scope: node.scope, items: place.items.clone() }) {
            frame.open -= 1;
        }
        let key = FrameKey { scope, items: place.items.clone() };
        let repeats = matches!(region, Region::Repeat { .. });
        self.regions.insert(key.clone(), region);
        if !repeats {
            self.go_on(&key);
        } else if again {
            self.enter(scope, &[place.items.as_slice(), &[0]].concat());
        } else {
            self.leave(&key);
        }
        Ok(())
    }

    /// Resolves the edges out of a step that completed or was skipped, and sees whether its frame is done.
    fn close(&mut self, place: &Place, taken: &Taken<'_>) {
        let graph = Arc::clone(&self.graph);
        let Some(node) = graph.node(place.node) else { return };
        let key = FrameKey { scope: node.scope, items: place.items.clone() };
        for edge in &node.outgoing {
            self.resolve(&key, edge.target, taken.takes(edge));
        }
        let Some(frame) = self.frames.get_mut(&key) else { return };
        frame.open -= 1;
        if frame.open == 0
            && let Some(inner) = graph.inner(key.scope)
        {
            self.frame_done(key, inner);
        }
    }

    /// One edge to a step is resolved.
    fn resolve(&mut self, key: &FrameKey, target: NodeIndex, taken: bool) {
        let place = Place { items: key.items.clone(), node: target };
        let Ok(step) = self.at_mut(&place) else { return };
        step.unresolved -= 1;
        step.reached |= taken;
        if step.unresolved == 0 {
            let reached = step.reached;
            self.due.insert(if reached { Due::Start(place) } else { Due::Skip(place) });
        }
    }

    /// Makes a frame; what its scope begins with is due.
    fn enter(&mut self, scope: ScopeIndex, items: &[u32]) {
        let key = FrameKey { scope, items: items.to_vec() };
        let frame = self.new_frame(scope);
        let nodes = self.graph.scopes().get(scope).map(|scope| scope.nodes.as_slice()).unwrap_or_default();
        for (node, step) in nodes.iter().zip(&frame.steps) {
            if step.unresolved == 0 {
                self.due.insert(Due::Start(Place { items: items.to_vec(), node: *node }));
            }
        }
        self.frames.insert(key, frame);
    }

    fn new_frame(&self, scope: ScopeIndex) -> Frame {
        let nodes = self.graph.scopes().get(scope).map(|scope| scope.nodes.as_slice()).unwrap_or_default();
        let step = |node: &NodeIndex| {
            let (incoming, entries) = self.graph.node(*node).map_or((0, 0), |node| (node.incoming, node.entries));
            // What leads in from the opening node is taken with the frame.
            Step { unresolved: incoming - entries, reached: entries > 0, ..Step::pending() }
        };
        let steps: Vec<Step> = nodes.iter().map(step).collect();
        Frame { open: steps.len(), steps }
    }

    /// Makes the frame of a fan-out's next item when this is its first step.
    fn enter_next_item(&mut self, place: &Place) {
        let Some(scope) = self.graph.node(place.node).map(|node| node.scope) else { return };
        let Some((item, around)) = place.items.split_last() else { return };
        let key = FrameKey { scope, items: around.to_vec() };
        if !self.due.contains(&self.due_item(&key)) || self.frame(scope, &place.items).is_some() {
            return;
        }
        if let Some(Region::Each { next, under_way, .. }) = self.regions.get_mut(&key)
            && *next == *item
        {
            *next += 1;
            *under_way += 1;
            self.enter(scope, &place.items);
            self.go_on(&key);
        }
    }

    fn first_of_next_item(&self, key: &FrameKey) -> Option<StepId> {
        let Region::Each { next, .. } = self.region(key.scope, &key.items)? else { return None };
        let nodes = &self.graph.scopes().get(key.scope)?.nodes;
        let first =
            nodes.iter().filter_map(|node| self.graph.node(*node)).find(|node| node.incoming == node.entries)?;
        Some(StepId { node: first.id.clone(), items: [key.items.as_slice(), &[*next]].concat() })
    }

    fn due_item(&self, key: &FrameKey) -> Due {
        Due::Item(Reverse(self.graph.depth(key.scope)), key.clone())
    }

    /// Sees what a fan-out does next.
    fn go_on(&mut self, key: &FrameKey) {
        let kind = self.graph.inner(key.scope).map(|inner| inner.kind);
        let (
            Some(ScopeKind::Each { concurrency, on_failure }),
            Some(Region::Each { count, next, under_way, failures, .. }),
        ) = (kind, self.regions.get(key))
        else {
            return;
        };
        let has_room = next < count && *under_way < concurrency;
        let is_done = next == count && *under_way == 0;
        let failed = failures.first().filter(|_| on_failure == ItemFailure::Finish).cloned();
        if has_room {
            self.due.insert(self.due_item(key));
        } else {
            self.due.remove(&self.due_item(key));
        }
        match failed {
            _ if !is_done => {}
            Some(_) => {
                if let Some((step, failure)) = self.first_failures.remove(key) {
                    self.fail_around(key, &step, &failure);
                }
            }
            None => self.leave(key),
        }
    }

    /// A scope is done: its closing node is next.
    fn leave(&mut self, key: &FrameKey) {
        let Some(inner) = self.graph.inner(key.scope) else { return };
        let around = FrameKey { scope: inner.parent, items: key.items.clone() };
        self.resolve(&around, inner.closer, true);
    }

    /// All steps of an item or iteration are done.
    fn frame_done(&mut self, key: FrameKey, inner: Inner) {
        let graph = Arc::clone(&self.graph);
        let Some((item, around)) = key.items.split_last() else { return };
        let around = FrameKey { scope: key.scope, items: around.to_vec() };
        if matches!(inner.kind, ScopeKind::Repeat { .. }) {
            // The frame stays: the closing node may need it.
            self.leave(&around);
            return;
        }
        let needed = graph.node(inner.closer).into_iter().flat_map(gathered);
        let gathered = needed.map(|node| self.output_at(&key.items, node)).collect();
        if let Some(Region::Each { under_way, outputs, .. }) = self.regions.get_mut(&around) {
            *under_way -= 1;
            outputs.insert(*item, gathered);
        }
        self.frames.remove(&key);
        self.go_on(&around);
    }

    /// A step has failed for good, and with it everything that it is part of, up to an item that may fail, or the run.
    fn fail(&mut self, place: &Place, id: &StepId, failure: &Failure) {
        let scope = self.graph.node(place.node).map_or(OUTERMOST, |node| node.scope);
        self.fail_frame(FrameKey { scope, items: place.items.clone() }, id, failure);
    }

    /// A scope has failed, and with it the frame around it.
    fn fail_around(&mut self, key: &FrameKey, id: &StepId, failure: &Failure) {
        let parent = self.graph.inner(key.scope).map_or(OUTERMOST, |inner| inner.parent);
        self.fail_frame(FrameKey { scope: parent, items: key.items.clone() }, id, failure);
    }

    fn fail_frame(&mut self, mut key: FrameKey, id: &StepId, failure: &Failure) {
        loop {
            let Some(inner) = self.graph.inner(key.scope) else {
                self.failed = Some((id.clone(), failure.clone()));
                return;
            };
            let on_failure = match inner.kind {
                ScopeKind::Each { on_failure, .. } => on_failure,
                ScopeKind::Repeat { .. } => ItemFailure::Cancel,
            };
            if on_failure != ItemFailure::Cancel {
                break;
            }
            key.items.pop();
            key.scope = inner.parent;
        }
        // The item has failed and the run goes on without it.
        self.drop_within(&key);
        let Some(index) = key.items.pop() else { return };
        if let Some(Region::Each { under_way, failures, .. }) = self.regions.get_mut(&key) {
            *under_way -= 1;
            let message = failure.message.get(..failure.message.floor_char_boundary(TOLD_BYTES_MAX));
            let (code, message) = (failure.code.clone(), message.unwrap_or_default().to_owned());
            failures.push(ItemFailed { index, step: id.clone(), code, message });
            self.first_failures.entry(key.clone()).or_insert_with(|| (id.clone(), failure.clone()));
        }
        self.go_on(&key);
    }

    /// Forgets a frame and everything within it. Steps that were under way are to be cancelled.
    fn drop_within(&mut self, key: &FrameKey) {
        let graph = Arc::clone(&self.graph);
        let scope_of = |node: NodeIndex| graph.node(node).map_or(OUTERMOST, |node| node.scope);
        let inside =
            |scope: ScopeIndex, items: &[u32]| items.starts_with(&key.items) && graph.is_within(scope, key.scope);
        let active: Vec<Place> =
            self.active.iter().filter(|place| inside(scope_of(place.node), &place.items)).cloned().collect();
        for place in active {
            if let (Some(id), Some(step)) = (self.id_of(&place), self.at(&place)) {
                let cancel = Due::Cancel(id, step.attempts, step.updates);
                self.due.insert(cancel);
            }
            // It is in `active`, so it is somewhere.
            drop(self.set(&place, StepState::Cancelled));
        }
        self.due.retain(|due| match due {
            Due::Cancel(..) => true,
            Due::Skip(place) | Due::Suspend(place, _) | Due::Again(place) | Due::Start(place) => {
                !inside(scope_of(place.node), &place.items)
            }
            Due::Item(_, region) => !(region.scope != key.scope && inside(region.scope, &region.items)),
        });
        let is_left = |region: &FrameKey| region.scope == key.scope || !inside(region.scope, &region.items);
        self.regions.retain(|region, _| is_left(region));
        self.first_failures.retain(|region, _| is_left(region));
        self.frames.retain(|frame, _| !inside(frame.scope, &frame.items));
    }

    fn cancel_open_steps(&mut self) {
        self.frames.retain(|key, _| key.scope == OUTERMOST);
        for step in self.frames.values_mut().flat_map(|frame| &mut frame.steps) {
            if !matches!(step.state, StepState::Completed { .. } | StepState::Failed | StepState::Skipped) {
                step.state = StepState::Cancelled;
            }
        }
        self.regions.clear();
        self.first_failures.clear();
        self.active.clear();
        self.due.clear();
        self.rollbacks.clear();
        self.moving = 0;
    }

    /// Changes the state of a step, and what is counted of it.
    fn set(&mut self, place: &Place, state: StepState) -> Result<(), String> {
        let is_active = |state: &StepState| {
            matches!(state, StepState::Running { .. } | StepState::BetweenAttempts | StepState::Suspended { .. })
        };
        let moves = |state: &StepState| is_active(state) && !matches!(state, StepState::Suspended { .. });
        let (before, after) = (&self.at_mut(place)?.state.clone(), &state);
        self.moving = self.moving + usize::from(moves(after)) - usize::from(moves(before));
        if is_active(after) && !is_active(before) {
            self.active.insert(place.clone());
        } else if is_active(before) && !is_active(after) {
            self.active.remove(place);
        }
        self.at_mut(place)?.state = state;
        Ok(())
    }

    fn frame(&self, scope: ScopeIndex, items: &[u32]) -> Option<&Frame> {
        self.frames.get(&FrameKey { scope, items: items.to_vec() })
    }

    fn region(&self, scope: ScopeIndex, around: &[u32]) -> Option<&Region> {
        self.regions.get(&FrameKey { scope, items: around.to_vec() })
    }

    /// The iteration that a step which closes a loop belongs to.
    fn iteration(&self, node: &Node, items: &[u32]) -> Option<u32> {
        match self.region(node.closes?, items)? {
            Region::Repeat { index, .. } => Some(*index),
            Region::Each { .. } => None,
        }
    }

    /// The name of a step.
    pub(crate) fn id_of(&self, place: &Place) -> Option<StepId> {
        let node = self.graph.node(place.node)?;
        let mut items = place.items.clone();
        items.extend(self.iteration(node, &place.items));
        Some(StepId { node: node.id.clone(), items })
    }

    /// The place of a name, whether or not there is a step at present.
    fn find(&self, id: &StepId) -> Result<Place, String> {
        let unknown = || format!("`{id}` is no step of this run");
        let index = self.graph.index_of(&id.node).ok_or_else(unknown)?;
        let node = self.graph.node(index).ok_or_else(unknown)?;
        let (items, iteration) = id.items.split_at_checked(self.graph.depth(node.scope)).ok_or_else(unknown)?;
        if iteration != self.iteration(node, items).as_slice() {
            return Err(unknown());
        }
        Ok(Place { items: items.to_vec(), node: index })
    }

    /// The step at a place.
    pub(crate) fn at(&self, place: &Place) -> Option<&Step> {
        let node = self.graph.node(place.node)?;
        self.frame(node.scope, &place.items)?.steps.get(node.place)
    }

    fn at_mut(&mut self, place: &Place) -> Result<&mut Step, String> {
        let found = self.graph.node(place.node).and_then(|node| {
            let key = FrameKey { scope: node.scope, items: place.items.clone() };
            self.frames.get_mut(&key)?.steps.get_mut(node.place)
        });
        found.ok_or_else(|| "there is no such step at present".to_owned())
    }

    /// The step that a name stands for.
    pub(crate) fn step(&self, id: &StepId) -> Option<(Place, &Step)> {
        let place = self.find(id).ok()?;
        let step = self.at(&place)?;
        Some((place, step))
    }

    fn running(&mut self, id: &StepId, attempt: u32) -> Result<(Place, &mut Step), String> {
        let place = self.find(id)?;
        let step = self.at_mut(&place)?;
        match step.state {
            StepState::Running { .. } if step.attempts == attempt => Ok((place, step)),
            _ => Err(format!("attempt {attempt} of `{id}` is not under way")),
        }
    }

    /// For each fan-out that is under way: how many items may be, and are.
    #[cfg(test)]
    pub(crate) fn items_under_way(&self) -> impl Iterator<Item = (u32, u32)> {
        self.regions.iter().filter_map(|(key, region)| match (self.graph.inner(key.scope)?.kind, region) {
            (ScopeKind::Each { concurrency, .. }, Region::Each { under_way, .. }) => Some((concurrency, *under_way)),
            _ => None,
        })
    }

    /// The number of the iteration that a node which closes a loop would start next.
    pub(crate) fn next_iteration(&self, place: &Place) -> Option<u32> {
        Some(self.iteration(self.graph.node(place.node)?, &place.items)? + 1)
    }
}

/// The nodes between whose outputs the node that closes a fan-out needs, in a fixed order.
fn gathered(closer: &Node) -> impl Iterator<Item = NodeIndex> {
    closer.needs.iter().filter_map(|need| match need {
        Need::EachOutput(node) => Some(*node),
        _ => None,
    })
}

fn failures_json(failures: &[ItemFailed]) -> Json {
    let mut failures: Vec<&ItemFailed> = failures.iter().collect();
    failures.sort_by_key(|failed| failed.index);
    let failures = failures.iter().map(|ItemFailed { index, step, code, message }| {
        json!({ "index": index, "node": step.node, "code": code, "message": message })
    });
    // Names, numbers and texts: always JSON.
    Json::of(&failures.collect::<Vec<_>>()).unwrap_or_else(|_| Json::null())
}

impl Step {
    const fn pending() -> Self {
        Self {
            state: StepState::Pending,
            unresolved: 0,
            reached: false,
            attempts: 0,
            failures: 0,
            interruptions: 0,
            updates: None,
        }
    }
}

/// Which edges out of a resolved step are taken.
enum Taken<'a> {
    /// The step has completed: the unlabelled ones, and those with these labels.
    Labels(HashSet<&'a str>),
    /// The step was skipped: none.
    None,
}

impl<'a> Taken<'a> {
    fn by(labels: &'a [String]) -> Self {
        Self::Labels(labels.iter().map(String::as_str).collect())
    }

    fn takes(&self, edge: &Outgoing) -> bool {
        match (self, edge.label.as_deref()) {
            (Self::None, _) => false,
            (Self::Labels(_), None) => true,
            (Self::Labels(labels), Some(label)) => labels.contains(label),
        }
    }
}
