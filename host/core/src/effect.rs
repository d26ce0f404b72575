//! Work owed to the outside.

use crate::graph::NodeIndex;
use crate::ids::{Seq, StepId};
use crate::time::Timestamp;

/// Something a shell must do next. Derived from the state of a run, so a crash cannot lose it; each names the
/// event that made it due, because a shell acts only on what is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Start the run as soon as there is room for it.
    StartRun {
        /// Its `run.queued`.
        since: Seq,
    },
    /// Run an attempt of a step, unless it is under way.
    RunStep {
        /// The step.
        step: StepId,
        /// Its node in the graph.
        node: NodeIndex,
        /// The attempt.
        attempt: u32,
        /// Its `step.started`.
        since: Seq,
    },
    /// Come back with [`Input::TimerDue`](crate::Input::TimerDue) at this time or later.
    WakeAt {
        /// When.
        at: Timestamp,
        /// The `step.suspended` that set the timer.
        since: Seq,
    },
}

impl Effect {
    /// The event that made it due.
    #[must_use]
    pub const fn since(&self) -> Seq {
        match self {
            Self::StartRun { since } | Self::RunStep { since, .. } | Self::WakeAt { since, .. } => *since,
        }
    }
}
