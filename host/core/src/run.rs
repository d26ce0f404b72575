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
use crate::event::{ChildEnd, ChildRef, Event, ParentRef, SuspendReason, WaitingCall, Woke};
use crate::failure::{Failure, FailureKind};
use crate::graph::{Graph, ItemFailure, Need, Node, NodeIndex, Outgoing, ScopeKind};
use crate::ids::{Digest, RunId, Seq, StepId};
use crate::json::{Json, Payload};
use crate::scope::{Inner, OUTERMOST, ScopeIndex};
use crate::snapshot;
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
    /// Someone holds it: attempts under way come to their end, and nothing else begins.
    Paused,
    /// Every step has completed or was skipped.
    Completed,
    /// A step failed for good, or the run's time was over.
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
            Self::Paused => "paused",
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
            Event::RunStarted { .. } | Event::RunResumed {} => Some(Self::Running),
            Event::RunSuspended { .. } => Some(Self::Suspended),
            Event::RunPaused { .. } => Some(Self::Paused),
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
            | Event::StepCancelled { .. }
            | Event::StepTakenOver { .. }
            | Event::SignalReceived { .. } => None,
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
/// Signals that a run keeps until a step takes them, besides those that a step waits for. A sender that is so far ahead of
/// the run is told to wait.
pub const SIGNALS_KEPT_MAX: usize = if cfg!(test) { 4 } else { 1_000 };
/// Idempotency keys of signals that a run remembers, the last ones: more than anybody has under way at once.
pub const SIGNAL_KEYS_MAX: usize = if cfg!(test) { 8 } else { 10_000 };
/// Children that the steps of a run start, those that have ended included: what a run keeps of each is with it to its end.
pub const CHILDREN_MAX: usize = if cfg!(test) { 6 } else { 1_000 };
/// Runs above a run at most: a workflow that starts itself comes to an end.
pub const DEPTH_MAX: u32 = 8;
/// Events of a run, after which it fails; what follows from the last of them is still recorded. The longest loop there can
/// be has half as many; a run that goes on beyond it has lost its way.
pub const EVENTS_MAX: Seq = if cfg!(test) { 3_000 } else { 10_000_000 };
/// Bytes of results that a run keeps in memory. A shell stores further ones apart, see [`Run::keeps_much`].
const KEPT_BYTES: usize = 16 << 20;
/// Bytes of a failure's message that the node which closes its fan-out is told.
const TOLD_BYTES_MAX: usize = 256;

fn most_events() -> Seq {
    EVENTS_MAX
}

/// A run, as far as its events tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    #[serde(skip, default = "snapshot::any_graph")]
    pub(crate) graph: Arc<Graph>,
    /// As many events as its tenant's runs may have. Nobody's state, so it is in no snapshot.
    #[serde(skip, default = "most_events")]
    pub(crate) events_max: Seq,
    /// `None` before the first event.
    pub(crate) status: Option<RunStatus>,
    last_seq: Seq,
    input: Payload,
    #[serde(with = "snapshot::pairs")]
    frames: HashMap<FrameKey, Frame>,
    /// Scopes that were entered and not closed yet. The items are those around the scope.
    #[serde(with = "snapshot::pairs")]
    regions: HashMap<FrameKey, Region>,
    /// What failed first in each fan-out in which something has.
    #[serde(with = "snapshot::pairs")]
    first_failures: HashMap<FrameKey, (StepId, Failure)>,
    /// Steps that are running or suspended: all that can move, or be owed, without looking at every step.
    pub(crate) active: BTreeSet<Place>,
    /// How many of them are not suspended.
    moving: usize,
    /// Bytes of all results that were kept as they are.
    kept_bytes: usize,
    /// What must be recorded before anything else happens. Between appends there are only starts left, for which there
    /// is no room, and what a paused run holds back.
    due: BTreeSet<Due>,
    /// Updates of attempts that have just failed or been cancelled, to be marked. Empty between appends.
    rollbacks: VecDeque<(StepId, u32, Seq, Seq)>,
    /// What ends the run. Set between appends only when the run has ended.
    failed: Option<(StepId, Failure)>,
    /// Why the run is to be paused. Empty between appends.
    pause_due: Option<String>,
    /// The last `run.paused`.
    pub(crate) paused_since: Seq,
    /// When the run fails if it has not ended by then, and the event that says so.
    pub(crate) deadline: Option<(Timestamp, Seq)>,
    /// Signals that no step has taken, by their names, the oldest first.
    signals: BTreeMap<String, VecDeque<(Seq, Payload)>>,
    /// How many they are.
    pub(crate) signals_kept: usize,
    pub(crate) signal_keys: SignalKeys,
    /// Steps that wait for a signal, by its name; whoever has waited longest is first.
    listeners: BTreeMap<String, BTreeSet<(Seq, Place)>>,
    parent: Option<ParentRef>,
    pub(crate) children: BTreeMap<RunId, Child>,
    /// Results of the run that this one repeats, for the steps that have not been reached yet.
    taken_over: BTreeMap<NodeIndex, (Payload, Vec<String>)>,
    /// How the run has ended, for its parent.
    end: Option<ChildEnd>,
}

/// Bytes of half a digest.
const KEY_HALF: usize = 16;

/// How a signal's idempotency key stands in its event: half of what stands for the sender's key, which brings one signal, and half
/// of what stands for what came with it.
#[must_use]
pub fn signal_key(of_sender: &Digest, of_content: &Digest) -> Digest {
    let (mut key, content) = (*of_sender.as_bytes(), of_content.as_bytes());
    key.iter_mut().skip(KEY_HALF).zip(content).for_each(|(to, from)| *to = *from);
    Digest::from_bytes(key)
}

/// The idempotency keys of the last signals.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct SignalKeys {
    /// By what stands for the sender's key: the event, and all of the key.
    by_key: HashMap<Digest, (Seq, Digest)>,
    in_order: VecDeque<Digest>,
}

impl SignalKeys {
    /// The event of the signal that came with this key of its sender, and all of the key that it had.
    pub(crate) fn get(&self, key: &Digest) -> Option<(Seq, Digest)> {
        self.by_key.get(&Self::of_sender(key)).copied()
    }

    fn of_sender(key: &Digest) -> Digest {
        signal_key(key, &Digest::from_bytes([0; 32]))
    }

    fn insert(&mut self, key: Digest, seq: Seq) {
        let of_sender = Self::of_sender(&key);
        if self.by_key.insert(of_sender, (seq, key)).is_none() {
            self.in_order.push_back(of_sender);
        }
        if self.in_order.len() > SIGNAL_KEYS_MAX
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.by_key.remove(&oldest);
        }
    }
}

/// A run that one of the steps has started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Child {
    step: StepId,
    attempt: u32,
    detached: bool,
    /// A step was told of its end.
    over: bool,
    /// The event since which it is to be cancelled: the attempt that started it has failed.
    unwanted: Option<Seq>,
}

/// Names a frame, by its scope and the path of its item; or a region, by its scope and the path around it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
struct FrameKey {
    scope: ScopeIndex,
    items: Vec<u32>,
}

/// The steps of one item, of one iteration, or of the outermost scope.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Frame {
    /// In the order of the scope's nodes.
    steps: Vec<Step>,
    /// Steps that have neither completed nor been skipped.
    open: usize,
}

/// A scope that was entered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ItemFailed {
    index: u32,
    step: StepId,
    code: String,
    /// The beginning of it.
    message: String,
}

/// Where a step is: its node and the items of its frame.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Place {
    // First, so that everything within an item lies together.
    pub(crate) items: Vec<u32>,
    pub(crate) node: NodeIndex,
}

/// An event that must follow, in the order in which they do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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

impl Due {
    /// Whether it is the beginning of something, and not the end of what was.
    const fn begins_something(&self) -> bool {
        matches!(self, Self::Again(_) | Self::Start(_) | Self::Item(..))
    }
}

/// A step, as far as the run's events tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// The `step.started` of the last attempt.
    started: Seq,
    /// The last attempt is in the middle of a call that has published.
    mid_call: bool,
    /// The child that the last attempt has just recorded, and its event. Once the attempt does something else, the child
    /// is there.
    starting: Option<(Box<ChildRef>, Seq)>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
        /// The call that waits; `None` between attempts.
        call: Option<Box<WaitingCall>>,
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
            events_max: EVENTS_MAX,
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
            pause_due: None,
            paused_since: 0,
            deadline: None,
            signals: BTreeMap::new(),
            signals_kept: 0,
            signal_keys: SignalKeys::default(),
            listeners: BTreeMap::new(),
            parent: None,
            children: BTreeMap::new(),
            taken_over: BTreeMap::new(),
            end: None,
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

    /// Lets it have fewer events than [`EVENTS_MAX`]; more are not to be had. A run that has more already fails at the next
    /// thing that happens, unless that is its cancellation. In no snapshot: whoever takes a run up says it again.
    pub fn limit_events(&mut self, events_max: Seq) {
        self.events_max = events_max.min(EVENTS_MAX);
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
        let Some(status) = self.status else { return Vec::new() };
        if status == RunStatus::Queued {
            return vec![Effect::StartRun { since: self.last_seq }];
        }
        let ended = status.is_terminal();
        let mut owed: Vec<Effect> = Vec::new();
        for (run, child) in &self.children {
            let since = child.unwanted.or(ended.then_some(self.last_seq));
            if let Some(since) = since.filter(|_| !child.detached && !child.over) {
                owed.push(Effect::CancelChild { run: *run, since });
            }
        }
        if let (Some(parent), Some(end)) = (&self.parent, &self.end) {
            owed.push(Effect::TellParent { parent: parent.run, end: end.clone(), since: self.last_seq });
        }
        if ended {
            return owed;
        }
        owed.extend(self.deadline.map(|(at, since)| Effect::WakeAt { at, since }));
        // Whoever waits for a child may come before the step that starts it.
        let mut starts = Vec::new();
        for place in &self.active {
            let Some((step, id)) = self.at(place).zip(self.id_of(place)) else { continue };
            match &step.state {
                StepState::Running { since } => {
                    if let Some((child, since)) = &step.starting {
                        starts.push(Effect::StartChild { step: id.clone(), child: child.clone(), since: *since });
                    }
                    owed.push(Effect::RunStep { step: id, node: place.node, attempt: step.attempts, since: *since });
                }
                // What ends a wait is not looked at before the run is resumed.
                StepState::Suspended { .. } if status == RunStatus::Paused => {}
                StepState::Suspended { until, since, call, .. } => {
                    let child = call.as_ref().and_then(|call| call.child);
                    owed.extend(child.map(|run| Effect::AskChild { run, since: *since }));
                    owed.extend(until.map(|at| Effect::WakeAt { at, since: *since }));
                }
                StepState::Pending
                | StepState::BetweenAttempts
                | StepState::Completed { .. }
                | StepState::Failed
                | StepState::Skipped
                | StepState::Cancelled => {}
            }
        }
        owed.splice(0..0, starts);
        owed
    }

    /// When a timer is next due, of those that are not held back.
    fn next_timer(&self) -> Option<Timestamp> {
        let steps = self.active.iter().filter_map(|place| match self.at(place)?.state {
            StepState::Suspended { until, .. } => until,
            _ => None,
        });
        steps.chain(self.deadline.map(|(at, _)| at)).min()
    }

    /// Runs above this one.
    #[must_use]
    pub fn depth(&self) -> u32 {
        self.parent.as_ref().map_or(0, |parent| parent.depth)
    }

    /// The `step.started` of a step's last attempt: what the attempt has done is recorded behind it.
    #[must_use]
    pub fn attempt_started(&self, step: &StepId) -> Option<Seq> {
        Some(self.step(step)?.1.started)
    }

    /// Whether an attempt that was cut off can be taken up again. One in the middle of a call that has published cannot:
    /// the call would publish again, and something else.
    #[must_use]
    pub fn can_resume(&self, step: &StepId) -> bool {
        self.step(step).is_some_and(|(_, step)| !step.mid_call)
    }

    /// Whether a step that is owed an attempt had one under way: what became due while the run was paused was not begun.
    #[must_use]
    pub fn has_begun(&self, step: &StepId) -> bool {
        self.step(step).is_some_and(|(_, step)| !self.is_held(step))
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
        // A run becomes too long with what is on record, and not with what is refused for it: whoever was told that
        // something is on record will find it there.
        self.next_consequence().or_else(|| self.is_too_long().then(|| too_long(self.events_max)))
    }

    fn is_too_long(&self) -> bool {
        self.last_seq >= self.events_max && !self.has_ended()
    }

    fn next_consequence(&self) -> Option<Event> {
        let paused = match self.status? {
            RunStatus::Running => false,
            RunStatus::Paused => true,
            RunStatus::Suspended => return self.next_signal().map(|_| Event::RunResumed {}),
            RunStatus::Queued | RunStatus::Completed | RunStatus::Failed | RunStatus::Cancelled => return None,
        };
        if let Some((step, attempt, first_seq, last_seq)) = self.rollbacks.front().cloned() {
            return Some(Event::StepRolledBack { step, attempt, first_seq, last_seq });
        }
        if let Some((step, failure)) = self.failed.clone() {
            return Some(Event::RunFailed { step: Some(step), failure });
        }
        let due = self.next_due();
        if let Some(reason) = self.pause_due.clone().filter(|_| !paused && due.is_none_or(Due::begins_something)) {
            return Some(Event::RunPaused { reason: Some(reason) });
        }
        if let Some(due) = due {
            return match due {
                Due::Cancel(step, ..) => Some(Event::StepCancelled { step: step.clone() }),
                Due::Skip(place) => Some(Event::StepSkipped { step: self.id_of(place)? }),
                Due::Suspend(place, until) => {
                    let reason = if until.is_some() { SuspendReason::Retry } else { SuspendReason::Operator };
                    Some(Event::StepSuspended { step: self.id_of(place)?, reason, until: *until, call: None })
                }
                Due::Start(place) | Due::Again(place) => {
                    Some(Event::StepStarted { step: self.id_of(place)?, attempt: self.at(place)?.attempts + 1 })
                }
                Due::Item(_, key) => self.first_of_next_item(key).map(|step| Event::StepStarted { step, attempt: 1 }),
            };
        }
        if paused {
            return None;
        }
        if let Some((place, seq, payload)) = self.next_signal() {
            let woke = Woke::Signal { seq, payload: payload.clone() };
            return Some(Event::StepResumed { step: self.id_of(place)?, woke: Some(Box::new(woke)) });
        }
        if self.open() == 0 {
            let output = self.graph.output().and_then(|node| self.output_at(&[], node));
            return Some(Event::RunCompleted { output: output.unwrap_or_else(|| Payload::Inline(Json::null())) });
        }
        if self.is_waiting() {
            return Some(Event::RunSuspended { reason: self.waits_for()?, until: self.next_timer() });
        }
        None
    }

    /// Whether a signal of this name has come and nobody has taken it.
    pub(crate) fn is_kept(&self, name: &str) -> bool {
        self.signals.get(name).is_some_and(|kept| !kept.is_empty())
    }

    /// A signal that a step waits for and nobody has taken: the oldest of its name, for whoever has waited longest.
    fn next_signal(&self) -> Option<(&Place, Seq, &Payload)> {
        // A graph has few signals.
        self.signals.iter().find_map(|(name, kept)| {
            let (_, place) = self.listeners.get(name)?.first()?;
            let (seq, payload) = kept.front()?;
            Some((place, *seq, payload))
        })
    }

    /// Whether a step waits for a further signal of this name. Such a signal is taken at once, or when the run is resumed,
    /// so it is welcome however many others wait to be taken: otherwise these could keep it away for ever.
    pub(crate) fn is_awaited(&self, name: &str) -> bool {
        let listeners = self.listeners.get(name).map_or(0, BTreeSet::len);
        listeners > self.signals.get(name).map_or(0, VecDeque::len)
    }

    /// What a run waits for in which nothing moves: what can take longest, and needs somebody, comes first.
    fn waits_for(&self) -> Option<SuspendReason> {
        let reasons = self.active.iter().filter_map(|place| match self.at(place)?.state {
            StepState::Suspended { reason, .. } => Some(reason),
            _ => None,
        });
        reasons.max_by_key(|reason| match reason {
            SuspendReason::Retry => 0,
            SuspendReason::Timer => 1,
            SuspendReason::Child => 2,
            SuspendReason::Signal => 3,
            SuspendReason::Operator => 4,
        })
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
        use RunStatus::{Paused, Queued, Running, Suspended};
        match (self.status, event) {
            (Some(status), _) if status.is_terminal() => {
                return Err(format!("the run has ended ({})", status.as_str()));
            }
            (None, Event::RunQueued { input, parent, .. }) => {
                self.input = input.clone();
                self.parent.clone_from(parent);
            }
            (None, _) => return Err("a run begins with run.queued".to_owned()),
            (Some(_), Event::RunQueued { .. }) => return Err("the run is queued already".to_owned()),

            (Some(_), Event::SignalReceived { name, payload, key }) => {
                if self.graph.signal(name).is_none() {
                    return Err(format!("the workflow has no signal `{name}`"));
                }
                self.signals.entry(name.clone()).or_default().push_back((seq, payload.clone()));
                self.signals_kept += 1;
                if let Some(key) = key {
                    self.signal_keys.insert(*key, seq);
                }
            }
            (Some(Queued), Event::StepTakenOver { step, output, labels }) => self.keep_for(step, output, labels)?,
            (_, Event::StepTakenOver { .. }) => return Err("results are taken over before a run starts".to_owned()),

            (Some(Queued), Event::RunStarted { deadline }) => {
                self.deadline = deadline.map(|at| (at, seq));
                self.enter(OUTERMOST, &[]);
                self.take_over();
            }
            (_, Event::RunStarted { .. }) => return Err("the run has started already".to_owned()),
            (Some(Running), Event::RunSuspended { .. }) if self.is_settled() && self.is_waiting() => {}
            (_, Event::RunSuspended { .. }) => return Err("something in the run can progress".to_owned()),
            (Some(Suspended | Paused), Event::RunResumed {}) => {}
            (_, Event::RunResumed {}) => return Err("the run is neither suspended nor paused".to_owned()),
            (Some(Running | Suspended), Event::RunPaused { .. }) => (self.pause_due, self.paused_since) = (None, seq),
            (_, Event::RunPaused { .. }) => return Err("the run has not started, or is paused already".to_owned()),
            (Some(Running), Event::RunCompleted { .. }) if self.is_settled() && self.open() == 0 => {}
            (_, Event::RunCompleted { .. }) => return Err("steps are still open".to_owned()),
            (Some(_), Event::RunFailed { step, .. }) => {
                if step.is_some() && *step != self.failed.as_ref().map(|(step, _)| step.clone()) {
                    return Err("the step it names has not failed".to_owned());
                }
                self.cancel_open_steps();
            }
            (Some(_), Event::RunCancelled { .. }) => self.cancel_open_steps(),

            (Some(Paused), event @ (Event::StepStarted { .. } | Event::StepSkipped { .. })) => {
                return Err(format!("{} while the run is paused", event.kind()));
            }
            // Each suspension is followed by its resumption before anything else moves.
            (Some(Queued | Suspended), _) => {
                return Err("no step moves while the run is queued or suspended".to_owned());
            }
            (Some(_), event) => {
                self.fold_step(seq, event)?;
                self.take_over();
            }
        }
        if let Some(status) = RunStatus::after(event) {
            self.status = Some(status);
        }
        self.end = match event {
            Event::RunCompleted { output } => Some(ChildEnd::Completed { output: output.clone() }),
            Event::RunFailed { failure: Failure { code, message, .. }, .. } => {
                Some(ChildEnd::Failed { code: code.clone(), message: message.clone() })
            }
            Event::RunCancelled { .. } => Some(ChildEnd::Cancelled),
            _ => None,
        };
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
                (step.updates, step.started, step.mid_call, step.starting) = (None, seq, false, None);
                self.set(&place, StepState::Running { since: seq })?;
            }
            Event::StepUpdate { step, attempt, .. } | Event::StepArtifact { step, attempt, .. } => {
                let (_, step) = self.running(step, *attempt)?;
                step.mid_call = matches!(event, Event::StepUpdate { within_call: true, .. });
                step.starting = None;
                let first = step.updates.map_or(seq, |(first, _)| first);
                step.updates = Some((first, seq));
            }
            Event::StepLog { step, attempt, .. } => {
                let (_, step) = self.running(step, *attempt)?;
                (step.mid_call, step.starting) = (false, None);
            }
            Event::StepCall { step: id, attempt, child, .. } => {
                let (_, step) = self.running(id, *attempt)?;
                (step.mid_call, step.starting) = (false, child.clone().map(|child| (child, seq)));
                if let Some(child) = child {
                    let ChildRef { run, detached, .. } = **child;
                    let child = Child { step: id.clone(), attempt: *attempt, detached, over: false, unwanted: None };
                    self.children.insert(run, child);
                }
            }
            Event::StepCompleted { step, attempt, output, labels, fan_out, again, .. } => {
                let (place, _) = self.running(step, *attempt)?;
                self.complete(&place, output, labels, *fan_out, *again)?;
            }
            Event::StepFailed { step: id, attempt, failure, will_retry, next_attempt_at, pauses, .. } => {
                let (place, step) = self.running(id, *attempt)?;
                (step.mid_call, step.starting) = (false, None);
                if failure.is_the_hosts() && *will_retry {
                    step.interruptions += 1;
                } else {
                    step.failures += 1;
                }
                if let Some((first, last)) = step.updates.take() {
                    self.rollbacks.push_back((id.clone(), *attempt, first, last));
                }
                self.disown(id, *attempt, seq);
                if *pauses {
                    self.set(&place, StepState::BetweenAttempts)?;
                    self.due.insert(Due::Suspend(place, None));
                    // In a run that is paused already, whoever resumes it sees to this step too.
                    let is_paused = self.status == Some(RunStatus::Paused);
                    let reason = || format!("`{id}` has used up its attempts ({})", failure.code);
                    self.pause_due = (!is_paused).then(reason);
                } else if !*will_retry {
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
            Event::StepSuspended { step: id, reason, until, call } => {
                let place = self.find(id)?;
                if let Some(call) = call {
                    let (_, step) = self.running(id, self.at(&place).map_or(0, |step| step.attempts))?;
                    (step.mid_call, step.starting) = (false, None);
                    if let Some(signal) = &call.signal {
                        self.listeners.entry(signal.clone()).or_default().insert((seq, place.clone()));
                    }
                } else if !self.due.remove(&Due::Suspend(place.clone(), *until)) {
                    return Err("the step has nothing to wait for".to_owned());
                }
                let call = call.clone();
                self.set(&place, StepState::Suspended { reason: *reason, until: *until, since: seq, call })?;
            }
            Event::StepResumed { step, woke } => self.resume(seq, step, woke.as_deref())?,
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
                self.disown(&id, attempt, seq);
                self.due.remove(&Due::Cancel(id, attempt, updates));
            }
            Event::RunQueued { .. }
            | Event::RunStarted { .. }
            | Event::RunSuspended { .. }
            | Event::RunResumed {}
            | Event::RunPaused { .. }
            | Event::SignalReceived { .. }
            | Event::StepTakenOver { .. }
            | Event::RunCompleted { .. }
            | Event::RunFailed { .. }
            | Event::RunCancelled { .. } => return Err("not an event of a step".to_owned()),
        }
        Ok(())
    }

    /// A step goes on: another attempt, the same one behind the call in which it waited, or one that was cut off.
    fn resume(&mut self, seq: Seq, id: &StepId, woke: Option<&Woke>) -> Result<(), String> {
        let place = self.find(id)?;
        let is_paused = self.status == Some(RunStatus::Paused);
        let step = self.at_mut(&place)?;
        let (reason, until, since, call) = match &step.state {
            StepState::Running { .. } if woke.is_none() => {
                // The attempt goes on in another instance.
                step.interruptions += 1;
                return self.set(&place, StepState::Running { since: seq });
            }
            StepState::Suspended { reason, until, since, call } if !is_paused => {
                (*reason, *until, *since, call.as_deref().cloned())
            }
            _ => return Err("the step is neither suspended nor under way".to_owned()),
        };
        let fits = match (woke, reason) {
            (None, SuspendReason::Retry) | (Some(Woke::Timer), SuspendReason::Timer) => true,
            (Some(Woke::TimedOut), SuspendReason::Signal | SuspendReason::Child) => until.is_some(),
            (Some(Woke::Operator), SuspendReason::Operator) => true,
            (Some(Woke::Child(_)), SuspendReason::Child) => true,
            (Some(Woke::Signal { seq, payload }), SuspendReason::Signal) => {
                let name = call.as_ref().and_then(|call| call.signal.as_ref());
                let kept = name.and_then(|name| self.signals.get_mut(name));
                let taken = kept.and_then(VecDeque::pop_front);
                self.signals_kept -= usize::from(taken.is_some());
                taken.is_some_and(|(of, what)| of == *seq && what == *payload)
            }
            _ => false,
        };
        if !fits {
            return Err("the step waits for something else".to_owned());
        }
        let Some(call) = call else {
            if reason == SuspendReason::Operator {
                let step = self.at_mut(&place)?;
                (step.failures, step.interruptions) = (0, 0);
            }
            self.set(&place, StepState::BetweenAttempts)?;
            self.due.insert(Due::Again(place));
            return Ok(());
        };
        self.stop_listening(&call, since, &place);
        if let (Some(Woke::Child(_)), Some(child)) = (woke, call.child.and_then(|run| self.children.get_mut(&run))) {
            child.over = true;
        }
        self.set(&place, StepState::Running { since: seq })
    }

    fn stop_listening(&mut self, call: &WaitingCall, since: Seq, place: &Place) {
        if let Some(listeners) = call.signal.as_ref().and_then(|name| self.listeners.get_mut(name)) {
            listeners.remove(&(since, place.clone()));
        }
    }

    /// Children of an attempt that has failed are not wanted any more: the next attempt starts its own.
    fn disown(&mut self, step: &StepId, attempt: u32, seq: Seq) {
        let children = self.children.values_mut();
        for child in children.filter(|child| child.attempt == attempt && child.step == *step) {
            child.unwanted.get_or_insert(seq);
        }
    }

    /// Keeps a result for when its step is reached.
    fn keep_for(&mut self, step: &StepId, output: &Payload, labels: &[String]) -> Result<(), String> {
        let index = self.graph.index_of(&step.node);
        let node = index.and_then(|index| self.graph.node(index)).filter(|node| node.scope == OUTERMOST);
        let (Some(index), Some(_), true) = (index, node, step.items.is_empty()) else {
            return Err(format!("`{step}` is no step of the outermost scope"));
        };
        self.taken_over.insert(index, (output.clone(), labels.to_vec()));
        Ok(())
    }

    /// Completes steps that are due and have a result already. A scope is taken over as a whole, from the node that opens
    /// it to the one that closes it.
    fn take_over(&mut self) {
        while !self.taken_over.is_empty() {
            let graph = Arc::clone(&self.graph);
            let closer = |node: NodeIndex| {
                graph
                    .node(node)
                    .and_then(|node| node.opens)
                    .and_then(|scope| graph.inner(scope))
                    .map(|inner| inner.closer)
            };
            let is_taken_over = |due: &&Due| match due {
                Due::Start(place) => {
                    let has = |node: NodeIndex| self.taken_over.contains_key(&node);
                    place.items.is_empty() && has(place.node) && closer(place.node).is_none_or(has)
                }
                _ => false,
            };
            let Some(Due::Start(place)) = self.due.iter().find(is_taken_over).cloned() else { return };
            self.due.remove(&Due::Start(place.clone()));
            let Some(labels) = self.complete_taken_over(&place) else { return };
            let Some(closer) = closer(place.node) else {
                self.close(&place, &Taken::by(&labels));
                continue;
            };
            if let Some(frame) = self.frames.get_mut(&FrameKey { scope: OUTERMOST, items: Vec::new() }) {
                frame.open -= 1;
            }
            let closer = Place { items: Vec::new(), node: closer };
            if let Some(labels) = self.complete_taken_over(&closer) {
                self.close(&closer, &Taken::by(&labels));
            }
        }
    }

    fn complete_taken_over(&mut self, place: &Place) -> Option<Vec<String>> {
        let (output, labels) = self.taken_over.remove(&place.node)?;
        if let Payload::Inline(json) = &output {
            self.kept_bytes += json.len_bytes();
        }
        self.set(place, StepState::Completed { output }).ok()?;
        Some(labels)
    }

    /// What must be recorded next of what is due: not a start when there is no room.
    fn next_due(&self) -> Option<&Due> {
        let has_room = self.active.len() < STEPS_AT_ONCE_MAX;
        if self.status == Some(RunStatus::Paused) {
            return self.due.iter().find(|due| matches!(due, Due::Cancel(..) | Due::Suspend(..)));
        }
        self.due.first().filter(|due| match due {
            Due::Start(_) | Due::Item(..) => has_room,
            Due::Cancel(..) | Due::Skip(_) | Due::Suspend(..) | Due::Again(_) => true,
        })
    }

    /// Whether nothing must be recorded before anything else.
    fn is_settled(&self) -> bool {
        self.next_due().is_none()
            && self.rollbacks.is_empty()
            && self.failed.is_none()
            && self.pause_due.is_none()
            && self.next_signal().is_none()
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
                let waiting = match &step.state {
                    StepState::Suspended { since, call: Some(call), .. } => Some((call.clone(), *since)),
                    _ => None,
                };
                self.due.insert(cancel);
                if let Some((call, since)) = waiting {
                    self.stop_listening(&call, since, &place);
                }
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
        self.pause_due = None;
        self.deadline = None;
        self.signals.clear();
        self.signals_kept = 0;
        self.listeners.clear();
        self.taken_over.clear();
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

/// The end of a run with as many events as it may have.
fn too_long(events_max: Seq) -> Event {
    let message = format!("the run has {events_max} events, and no more are allowed");
    let failure = Failure::platform(FailureKind::Permanent, "run_too_long", message);
    Event::RunFailed { step: None, failure }
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
            started: 0,
            mid_call: false,
            starting: None,
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
