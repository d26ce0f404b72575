//! How a history reads to a person: its steps with their attempts, and its artifacts.
//!
//! Projections, made from events when somebody asks. Nothing is decided from them.

use std::ops::Range;
use std::sync::Arc;

use crate::event::{Event, Recorded, SuspendReason};
use crate::failure::Failure;
use crate::graph::{Graph, Node, NodeIndex};
use crate::ids::{NodeId, Seq, StepId};
use crate::json::{ContentRef, Payload};
use crate::run::StepStatus;
use crate::time::Timestamp;

/// A step as a person sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct StepView {
    /// Its node.
    pub node: NodeId,
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

/// Steps of a run, in the order of its graph's nodes, made from its events one after the other.
#[derive(Debug)]
pub struct Steps {
    graph: Arc<Graph>,
    wanted: Range<NodeIndex>,
    views: Vec<StepView>,
}

impl Steps {
    /// The steps of these nodes, before the first event.
    #[must_use]
    pub fn new(graph: Arc<Graph>, wanted: Range<NodeIndex>) -> Self {
        let new = |node: &Node| StepView {
            node: node.id.clone(),
            status: StepStatus::Pending,
            waits_for: None,
            attempts: Vec::new(),
            output: None,
            labels: Vec::new(),
        };
        let views = graph.nodes().get(wanted.clone()).unwrap_or_default().iter().map(new).collect();
        Self { graph, wanted, views }
    }

    /// Takes in the next event.
    pub fn see(&mut self, Recorded { at, event, .. }: &Recorded) {
        if matches!(event, Event::RunFailed { .. } | Event::RunCancelled { .. }) {
            let open = [StepStatus::Pending, StepStatus::Running, StepStatus::Suspended];
            for view in self.views.iter_mut().filter(|view| open.contains(&view.status)) {
                view.status = StepStatus::Cancelled;
                view.waits_for = None;
                if let Some(attempt) = view.attempts.last_mut() {
                    attempt.ended_at.get_or_insert(*at);
                }
            }
        }
        let index = event.step().and_then(|step| self.graph.index_of(&step.node));
        let place = index.and_then(|index| index.checked_sub(self.wanted.start));
        if let Some(view) = place.and_then(|place| self.views.get_mut(place)) {
            view.see(*at, event);
        }
    }

    /// The steps as they are after what was seen.
    #[must_use]
    pub fn finish(self) -> Vec<StepView> {
        self.views
    }
}

impl StepView {
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
            Event::StepSuspended { reason, until, .. } => {
                self.status = StepStatus::Suspended;
                self.waits_for = Some((*reason, *until));
            }
            Event::StepResumed { .. } => self.waits_for = None,
            Event::StepCompleted { output, labels, fuel_used, .. } => {
                end(None, *fuel_used);
                self.status = StepStatus::Completed;
                self.output = Some(output.clone());
                self.labels.clone_from(labels);
            }
            Event::StepFailed { failure, will_retry, fuel_used, .. } => {
                end(Some(failure), *fuel_used);
                self.status = if *will_retry { StepStatus::Suspended } else { StepStatus::Failed };
            }
            Event::StepSkipped { .. } => self.status = StepStatus::Skipped,
            Event::StepUpdate { .. }
            | Event::StepLog { .. }
            | Event::StepArtifact { .. }
            | Event::StepRolledBack { .. }
            | Event::RunQueued { .. }
            | Event::RunStarted {}
            | Event::RunSuspended { .. }
            | Event::RunResumed {}
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
