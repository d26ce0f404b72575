//! How a history reads to a person: its steps with their attempts, and its artifacts.
//!
//! Projections, made from events when somebody asks. Nothing is decided from them.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::event::{Event, Recorded, SuspendReason, Woke};
use crate::failure::Failure;
use crate::graph::{Graph, NodeIndex, ScopeKind};
use crate::ids::{Seq, StepId};
use crate::json::{ContentRef, Payload};
use crate::run::StepStatus;
use crate::time::Timestamp;

/// A step as a person sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct StepView {
    /// The step.
    pub step: StepId,
    /// Where it stands.
    pub status: StepStatus,
    /// What a suspended step waits for, and until when.
    pub waits_for: Option<(SuspendReason, Option<Timestamp>)>,
    /// Its attempts, oldest first.
    pub attempts: Vec<AttemptView>,
    /// Its result.
    pub output: Option<Payload>,
    /// Labels that its result chose.
    pub labels: Vec<String>,
}

/// An attempt as a person sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptView {
    /// Its number.
    pub attempt: u32,
    /// When it became due.
    pub started_at: Timestamp,
    /// When its end was recorded.
    pub ended_at: Option<Timestamp>,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// Metered instructions it used.
    pub fuel_used: Option<u64>,
}

/// A signal as a person sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct SignalView {
    /// The number of its event.
    pub seq: Seq,
    /// When it came.
    pub at: Timestamp,
    /// Its name.
    pub name: String,
    /// What it says.
    pub payload: Payload,
    /// The step that took it.
    pub taken_by: Option<StepId>,
}

/// The signals of a run after a position, oldest first, made from its events one after the other.
#[derive(Debug)]
pub struct Signals {
    after: Seq,
    limit: usize,
    views: Vec<SignalView>,
}

impl Signals {
    /// At most so many signals after an event, before the first event of the run.
    #[must_use]
    pub const fn new(after: Seq, limit: usize) -> Self {
        Self { after, limit, views: Vec::new() }
    }

    /// Takes in the next event.
    pub fn see(&mut self, Recorded { seq, at, event }: &Recorded) {
        match event {
            Event::SignalReceived { name, payload, .. } if *seq > self.after && self.views.len() < self.limit => {
                let (name, payload) = (name.clone(), payload.clone());
                self.views.push(SignalView { seq: *seq, at: *at, name, payload, taken_by: None });
            }
            Event::StepResumed { step, woke: Some(woke) } => {
                if let Woke::Signal { seq, .. } = &**woke
                    && let Some(view) = self.views.iter_mut().find(|view| view.seq == *seq)
                {
                    view.taken_by = Some(step.clone());
                }
            }
            _ => {}
        }
    }

    /// The signals that there are after what was seen.
    #[must_use]
    pub fn finish(self) -> Vec<SignalView> {
        self.views
    }
}

/// A file that a run has stored and not rolled back.
#[derive(Debug, Clone, PartialEq)]
pub struct ArtifactView {
    /// The number of its event.
    pub seq: Seq,
    /// When it was stored.
    pub at: Timestamp,
    /// The step that stored it.
    pub step: StepId,
    /// The attempt that stored it.
    pub attempt: u32,
    /// Its name.
    pub name: String,
    /// Its media type.
    pub media_type: String,
    /// Where its bytes are.
    pub content: ContentRef,
}

/// Steps of a run, made from its events one after the other: those of the outermost scope in the order of the graph's
/// nodes, then those of items and iterations in the order in which they began.
///
/// What is not among the wanted ones is counted and not kept: a loop has millions of steps.
#[derive(Debug)]
pub struct Steps {
    graph: Arc<Graph>,
    /// Nodes that have one step, whatever happens, in order.
    single: Vec<NodeIndex>,
    wanted: Range<usize>,
    views: Vec<StepView>,
    /// Steps of items and iterations that have begun.
    begun: usize,
    /// Where in `views` those of them are that are wanted.
    inner: HashMap<StepId, usize>,
}

impl Steps {
    /// The steps at these places, before the first event.
    #[must_use]
    pub fn new(graph: Arc<Graph>, wanted: Range<usize>) -> Self {
        let outermost = graph.scopes().first().map(|scope| scope.nodes.as_slice()).unwrap_or_default();
        // A node that closes a loop has a step for each iteration.
        let closes_loop = |node: &&NodeIndex| {
            let closed = graph.node(**node).and_then(|node| graph.inner(node.closes?));
            closed.is_some_and(|inner| matches!(inner.kind, ScopeKind::Repeat { .. }))
        };
        let single: Vec<NodeIndex> = outermost.iter().filter(|node| !closes_loop(node)).copied().collect();
        let first = single.get(wanted.start.min(single.len())..wanted.end.min(single.len()));
        let nodes = first.unwrap_or_default().iter().filter_map(|node| graph.node(*node));
        let views = nodes.map(|node| StepView::new(node.id.clone().into())).collect();
        Self { graph, single, wanted, views, begun: 0, inner: HashMap::new() }
    }

    /// Takes in the next event.
    pub fn see(&mut self, Recorded { at, event, .. }: &Recorded) {
        if matches!(event, Event::RunFailed { .. } | Event::RunCancelled { .. }) {
            self.views.iter_mut().for_each(|view| view.cancel(*at));
        }
        let index = event.step().and_then(|step| self.index_of(step, event));
        if let Some(view) = index.and_then(|index| self.views.get_mut(index)) {
            view.see(*at, event);
        }
    }

    /// Where the view of a step is, if it is wanted.
    fn index_of(&mut self, step: &StepId, event: &Event) -> Option<usize> {
        let node = self.graph.index_of(&step.node)?;
        if let Some(place) = self.single.binary_search(&node).ok().filter(|_| step.items.is_empty()) {
            return self.wanted.contains(&place).then(|| place - self.wanted.start);
        }
        if !is_first_of_step(event) {
            return self.inner.get(step).copied();
        }
        let place = self.count();
        self.begun += 1;
        if !self.wanted.contains(&place) {
            return None;
        }
        // Places are given in the order of beginning, so what is new comes last.
        let index = self.views.len();
        self.views.push(StepView::new(step.clone()));
        self.inner.insert(step.clone(), index);
        Some(index)
    }

    /// How many steps there are after what was seen.
    #[must_use]
    pub fn count(&self) -> usize {
        self.single.len() + self.begun
    }

    /// Names of steps that are kept.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        self.inner.len()
    }

    /// The steps as they are after what was seen.
    #[must_use]
    pub fn finish(self) -> Vec<StepView> {
        self.views
    }
}

/// Whether nothing about its step comes before an event. Each step has exactly one such event.
const fn is_first_of_step(event: &Event) -> bool {
    match event {
        Event::StepStarted { attempt, .. } => *attempt == 1,
        Event::StepSkipped { .. } | Event::StepTakenOver { .. } => true,
        _ => false,
    }
}

impl StepView {
    fn new(step: StepId) -> Self {
        Self {
            step,
            status: StepStatus::Pending,
            waits_for: None,
            attempts: Vec::new(),
            output: None,
            labels: Vec::new(),
        }
    }

    /// Its run or its item has ended without it.
    fn cancel(&mut self, at: Timestamp) {
        if matches!(self.status, StepStatus::Pending | StepStatus::Running | StepStatus::Suspended) {
            self.status = StepStatus::Cancelled;
            self.waits_for = None;
            if let Some(attempt) = self.attempts.last_mut() {
                attempt.ended_at.get_or_insert(at);
            }
        }
    }

    fn see(&mut self, at: Timestamp, event: &Event) {
        let mut end = |failed: Option<&Failure>, fuel: u64| {
            if let Some(attempt) = self.attempts.last_mut() {
                attempt.ended_at = Some(at);
                attempt.failure = failed.cloned();
                attempt.fuel_used = Some(fuel);
            }
        };
        match event {
            Event::StepStarted { attempt, .. } => {
                self.status = StepStatus::Running;
                self.attempts.push(AttemptView {
                    attempt: *attempt,
                    started_at: at,
                    ended_at: None,
                    failure: None,
                    fuel_used: None,
                });
            }
            Event::StepTakenOver { output, labels, .. } => {
                self.status = StepStatus::Completed;
                self.output = Some(output.clone());
                self.labels.clone_from(labels);
            }
            Event::StepSuspended { reason, until, .. } => {
                self.status = StepStatus::Suspended;
                self.waits_for = Some((*reason, *until));
            }
            Event::StepResumed { .. } => {
                self.waits_for = None;
                self.status = StepStatus::Running;
            }
            Event::StepCompleted { output, labels, fuel_used, .. } => {
                end(None, *fuel_used);
                self.status = StepStatus::Completed;
                self.output = Some(output.clone());
                self.labels.clone_from(labels);
            }
            Event::StepFailed { failure, will_retry, pauses, fuel_used, .. } => {
                end(Some(failure), *fuel_used);
                self.status = if *will_retry || *pauses { StepStatus::Suspended } else { StepStatus::Failed };
            }
            Event::StepSkipped { .. } => self.status = StepStatus::Skipped,
            Event::StepCancelled { .. } => self.cancel(at),
            Event::StepUpdate { .. }
            | Event::StepCall { .. }
            | Event::StepLog { .. }
            | Event::StepArtifact { .. }
            | Event::StepRolledBack { .. }
            | Event::RunQueued { .. }
            | Event::RunStarted { .. }
            | Event::RunSuspended { .. }
            | Event::RunResumed {}
            | Event::RunPaused { .. }
            | Event::SignalReceived { .. }
            | Event::RunCompleted { .. }
            | Event::RunFailed { .. }
            | Event::RunCancelled { .. } => {}
        }
    }
}

/// The files of a run, oldest first, without those that were rolled back, made from its events one after the other.
#[derive(Debug, Default)]
pub struct Artifacts(Vec<ArtifactView>);

impl Artifacts {
    /// Takes in the next event.
    pub fn see(&mut self, Recorded { seq, at, event }: &Recorded) {
        match event {
            Event::StepArtifact { step, attempt, name, media_type, content } => self.0.push(ArtifactView {
                seq: *seq,
                at: *at,
                step: step.clone(),
                attempt: *attempt,
                name: name.clone(),
                media_type: media_type.clone(),
                content: *content,
            }),
            Event::StepRolledBack { step, attempt, .. } => {
                self.0.retain(|view| view.step != *step || view.attempt != *attempt);
            }
            _ => {}
        }
    }

    /// The files that there are after what was seen.
    #[must_use]
    pub fn finish(self) -> Vec<ArtifactView> {
        self.0
    }
}
