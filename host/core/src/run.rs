//! What the facts mean: the state of a run, as the fold of its events.
//!
//! The same [`Run::apply`] is used live and in recovery; there is no other way for state to change. It refuses
//! every event that cannot follow, so a history that folds is a history that could have happened.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::effect::Effect;
use crate::event::{Event, SuspendReason};
use crate::graph::{Graph, Need, Node, NodeIndex, Outgoing};
use crate::ids::{Seq, StepId};
use crate::json::{Json, Payload};
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
            | Event::StepLog { .. }
            | Event::StepArtifact { .. }
            | Event::StepSuspended { .. }
            | Event::StepResumed { .. }
            | Event::StepCompleted { .. }
            | Event::StepFailed { .. }
            | Event::StepRolledBack { .. }
            | Event::StepSkipped { .. } => None,
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
    /// The run ended before it did.
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

/// A run, as far as its events tell.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    pub(crate) graph: Arc<Graph>,
    /// `None` before the first event.
    pub(crate) status: Option<RunStatus>,
    pub(crate) last_seq: Seq,
    input: Payload,
    pub(crate) steps: Vec<Step>,
    /// Steps that are running or suspended: all that can move, or be owed, without looking at every node.
    pub(crate) active: BTreeSet<NodeIndex>,
    /// Steps that have neither completed nor been skipped.
    pub(crate) open: usize,
}

/// A step, as far as the run's events tell.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Step {
    pub(crate) state: StepState,
    /// No edge leads to it, so it is ready when the run starts.
    is_root: bool,
    /// Incoming edges that are not resolved yet.
    pub(crate) unresolved: usize,
    /// Incoming edges that were taken.
    pub(crate) taken: usize,
    /// The number of the last attempt that was started; 0 before the first.
    pub(crate) attempts: u32,
    /// Failed attempts that count against the retry policy.
    pub(crate) failures: u32,
    /// Attempts that ended through no fault of the step: cut off by a stopping host, or never run.
    pub(crate) interruptions: u32,
    /// The first and last update or artifact of the last attempt.
    pub(crate) updates: Option<(Seq, Seq)>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum StepState {
    Pending,
    Running {
        since: Seq,
    },
    /// An attempt has failed and nothing has been said yet about what follows.
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

impl Run {
    /// A run of this graph before its first event.
    #[must_use]
    pub fn new(graph: Arc<Graph>) -> Self {
        let step = |node: &Node| Step {
            state: StepState::Pending,
            is_root: node.incoming == 0,
            unresolved: node.incoming,
            taken: 0,
            attempts: 0,
            failures: 0,
            interruptions: 0,
            updates: None,
        };
        Self {
            status: None,
            last_seq: 0,
            input: Payload::Inline(Json::null()),
            steps: graph.nodes().iter().map(step).collect(),
            active: BTreeSet::new(),
            open: graph.nodes().len(),
            graph,
        }
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
        let owed = self.active.iter().filter_map(|index| {
            let (step, node) = (self.steps.get(*index)?, self.graph.node(*index)?);
            match step.state {
                StepState::Running { since } => {
                    Some(Effect::RunStep { step: node.id.clone().into(), node: *index, attempt: step.attempts, since })
                }
                StepState::Suspended { until: Some(at), since, .. } => Some(Effect::WakeAt { at, since }),
                StepState::Suspended { until: None, .. }
                | StepState::Pending
                | StepState::BetweenAttempts
                | StepState::Completed { .. }
                | StepState::Failed
                | StepState::Skipped
                | StepState::Cancelled => None,
            }
        });
        owed.collect()
    }

    /// What a step is handed, in the order of its node's needs. Ancestors that were skipped are left out.
    #[must_use]
    pub fn inputs_of(&self, node: NodeIndex) -> Vec<(String, Payload)> {
        let needs = self.graph.node(node).map(|node| node.needs.as_slice()).unwrap_or_default();
        let value = |need: &Need| match need {
            Need::Input => Some(("input".to_owned(), self.input.clone())),
            Need::Output(index) => {
                let name = self.graph.node(*index)?.id.to_string();
                Some((name, self.output_of(*index)?))
            }
        };
        needs.iter().filter_map(value).collect()
    }

    /// A completed step's output.
    pub(crate) fn output_of(&self, node: NodeIndex) -> Option<Payload> {
        match &self.steps.get(node)?.state {
            StepState::Completed { output } => Some(output.clone()),
            _ => None,
        }
    }

    /// Where a step stands.
    #[must_use]
    pub fn step_status(&self, node: NodeIndex) -> Option<StepStatus> {
        Some(match self.steps.get(node)?.state {
            StepState::Pending => StepStatus::Pending,
            StepState::Running { .. } => StepStatus::Running,
            StepState::Suspended { .. } | StepState::BetweenAttempts => StepStatus::Suspended,
            StepState::Completed { .. } => StepStatus::Completed,
            StepState::Failed => StepStatus::Failed,
            StepState::Skipped => StepStatus::Skipped,
            StepState::Cancelled => StepStatus::Cancelled,
        })
    }

    /// Takes in the next event. On an error nothing has changed.
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

            (Some(Queued), Event::RunStarted {}) => {}
            (_, Event::RunStarted {}) => return Err("the run has started already".to_owned()),
            (Some(Running), Event::RunSuspended { .. }) if self.is_waiting() => {}
            (_, Event::RunSuspended { .. }) => return Err("something in the run can progress".to_owned()),
            (Some(Suspended), Event::RunResumed {}) => {}
            (_, Event::RunResumed {}) => return Err("the run is not suspended".to_owned()),
            (Some(Running), Event::RunCompleted { .. }) if self.open == 0 => {}
            (_, Event::RunCompleted { .. }) => return Err("steps are still open".to_owned()),
            (Some(_), Event::RunFailed { step, .. }) => {
                if let Some(step) = step {
                    let (_, step) = self.step(step)?;
                    if step.state != StepState::Failed {
                        return Err("the step it names has not failed".to_owned());
                    }
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
                let (index, step) = self.step_mut(step)?;
                if !step.is_ready() && step.state != StepState::BetweenAttempts {
                    return Err("the step is not ready".to_owned());
                }
                if *attempt != step.attempts + 1 {
                    return Err(format!("attempt {attempt} does not follow attempt {}", step.attempts));
                }
                step.attempts = *attempt;
                step.updates = None;
                step.state = StepState::Running { since: seq };
                self.active.insert(index);
            }
            Event::StepUpdate { step, attempt, .. } | Event::StepArtifact { step, attempt, .. } => {
                let step = self.running(step, *attempt)?;
                let first = step.updates.map_or(seq, |(first, _)| first);
                step.updates = Some((first, seq));
            }
            Event::StepLog { step, attempt, .. } => drop(self.running(step, *attempt)?),
            Event::StepCompleted { step: id, attempt, output, labels, .. } => {
                let step = self.running(id, *attempt)?;
                step.state = StepState::Completed { output: output.clone() };
                self.close(id, &Taken::by(labels))?;
            }
            Event::StepFailed { step: id, attempt, failure, will_retry, .. } => {
                let step = self.running(id, *attempt)?;
                if failure.is_the_hosts() && *will_retry {
                    step.interruptions += 1;
                } else {
                    step.failures += 1;
                }
                step.state = if *will_retry { StepState::BetweenAttempts } else { StepState::Failed };
                if !*will_retry {
                    let (index, _) = self.step(id)?;
                    self.active.remove(&index);
                }
            }
            Event::StepRolledBack { step, attempt, first_seq, last_seq } => {
                let (_, step) = self.step_mut(step)?;
                let failed = matches!(step.state, StepState::BetweenAttempts | StepState::Failed);
                if !failed || step.attempts != *attempt || step.updates != Some((*first_seq, *last_seq)) {
                    return Err("there is nothing like it to roll back".to_owned());
                }
                step.updates = None;
            }
            Event::StepSuspended { step, reason, until } => {
                let (_, step) = self.step_mut(step)?;
                if step.state != StepState::BetweenAttempts {
                    return Err("the step has nothing to wait for".to_owned());
                }
                step.state = StepState::Suspended { reason: *reason, until: *until, since: seq };
            }
            Event::StepResumed { step } => {
                let (_, step) = self.step_mut(step)?;
                if !matches!(step.state, StepState::Suspended { .. }) {
                    return Err("the step is not suspended".to_owned());
                }
                step.state = StepState::BetweenAttempts;
            }
            Event::StepSkipped { step: id } => {
                let (_, step) = self.step_mut(id)?;
                if step.state != StepState::Pending || step.unresolved > 0 || step.is_ready() {
                    return Err("the step is not to be skipped".to_owned());
                }
                step.state = StepState::Skipped;
                self.close(id, &Taken::None)?;
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

    /// Whether all that is left waits: then the run is suspended.
    pub(crate) fn is_waiting(&self) -> bool {
        let waits =
            |index| self.steps.get(index).is_some_and(|step: &Step| matches!(step.state, StepState::Suspended { .. }));
        !self.active.is_empty() && self.active.iter().all(|index| waits(*index))
    }

    /// Resolves the edges out of a step that completed or was skipped.
    fn close(&mut self, id: &StepId, taken: &Taken<'_>) -> Result<(), String> {
        let (index, _) = self.step(id)?;
        self.active.remove(&index);
        self.open -= 1;
        let graph = Arc::clone(&self.graph);
        for edge in graph.node(index).into_iter().flat_map(|node| &node.outgoing) {
            if let Some(target) = self.steps.get_mut(edge.target) {
                target.unresolved -= 1;
                target.taken += usize::from(taken.takes(edge));
            }
        }
        Ok(())
    }

    fn cancel_open_steps(&mut self) {
        for step in &mut self.steps {
            if !matches!(step.state, StepState::Completed { .. } | StepState::Failed | StepState::Skipped) {
                step.state = StepState::Cancelled;
            }
        }
        self.active.clear();
    }

    pub(crate) fn step(&self, id: &StepId) -> Result<(NodeIndex, &Step), String> {
        let unknown = || format!("`{id}` is no step of this run");
        // Fan-outs give items a path; without one there is exactly one step for a node.
        let index = self.graph.index_of(&id.node).filter(|_| id.items.is_empty()).ok_or_else(unknown)?;
        Ok((index, self.steps.get(index).ok_or_else(unknown)?))
    }

    fn step_mut(&mut self, id: &StepId) -> Result<(NodeIndex, &mut Step), String> {
        let (index, _) = self.step(id)?;
        let step = self.steps.get_mut(index).ok_or_else(|| format!("`{id}` is no step of this run"))?;
        Ok((index, step))
    }

    fn running(&mut self, id: &StepId, attempt: u32) -> Result<&mut Step, String> {
        let (_, step) = self.step_mut(id)?;
        match step.state {
            StepState::Running { .. } if step.attempts == attempt => Ok(step),
            _ => Err(format!("attempt {attempt} of `{id}` is not under way")),
        }
    }
}

impl Step {
    /// Its incoming edges are resolved and at least one was taken, or there are none.
    pub(crate) fn is_ready(&self) -> bool {
        self.state == StepState::Pending && self.unresolved == 0 && (self.taken > 0 || self.is_root)
    }
}

/// Which edges out of a resolved step are taken.
pub(crate) enum Taken<'a> {
    /// The step has completed: the unlabelled ones, and those with these labels.
    Labels(HashSet<&'a str>),
    /// The step was skipped: none.
    None,
}

impl<'a> Taken<'a> {
    pub(crate) fn by(labels: &'a [String]) -> Self {
        Self::Labels(labels.iter().map(String::as_str).collect())
    }

    pub(crate) fn takes(&self, edge: &Outgoing) -> bool {
        match (self, edge.label.as_deref()) {
            (Self::None, _) => false,
            (Self::Labels(_), None) => true,
            (Self::Labels(labels), Some(label)) => labels.contains(label),
        }
    }
}
