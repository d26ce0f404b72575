//! Work owed to the outside.

use crate::event::{ChildEnd, ChildRef};
use crate::graph::NodeIndex;
use crate::ids::{RunId, Seq, StepId};
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
    /// Come back with [`Input::TimerDue`](crate::Input::TimerDue) at this time or later. Where an
    /// [`AskChild`](Self::AskChild) is owed too that comes first, or a child that ended in time would be too late.
    WakeAt {
        /// When.
        at: Timestamp,
        /// The `step.suspended` that set the timer, or the `run.started` that set the run's time limit.
        since: Seq,
    },
    /// Make the run of a child, unless it is there, and tell the step that waits for it.
    StartChild {
        /// The step.
        step: StepId,
        /// The child.
        child: Box<ChildRef>,
        /// Its `step.call`.
        since: Seq,
    },
    /// See whether a child has ended, and come back with [`Input::ChildEnded`](crate::Input::ChildEnded) if it has. One
    /// that ends later tells by itself.
    AskChild {
        /// The child.
        run: RunId,
        /// The `step.suspended` of the step that waits for it.
        since: Seq,
    },
    /// Cancel a child that has not ended.
    CancelChild {
        /// The child.
        run: RunId,
        /// The end of what it was started by.
        since: Seq,
    },
    /// Tell the parent how the run has ended.
    TellParent {
        /// The parent.
        parent: RunId,
        /// How.
        end: ChildEnd,
        /// The run's last event.
        since: Seq,
    },
}

impl Effect {
    /// The event that made it due.
    #[must_use]
    pub const fn since(&self) -> Seq {
        match self {
            Self::StartRun { since }
            | Self::RunStep { since, .. }
            | Self::WakeAt { since, .. }
            | Self::StartChild { since, .. }
            | Self::AskChild { since, .. }
            | Self::CancelChild { since, .. }
            | Self::TellParent { since, .. } => *since,
        }
    }
}
