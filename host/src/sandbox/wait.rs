//! What a step can wait for, and what it is told afterwards.
//!
//! Owns: the words in which a step's waits reach the driver, and the recorded form of what ended them.
//! Does not: wait. A step that waits ends, and is taken up again when its answer is on record.

use serde::{Deserialize, Serialize};
use stepwell_core::{Digest, Json, RunId, WorkflowName};

/// What a step waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// Time.
    Timer {
        /// How much.
        ms: u64,
    },
    /// A signal.
    Signal {
        /// Its name.
        name: String,
        /// How long at most.
        timeout_ms: Option<u64>,
    },
    /// The end of a child.
    Child {
        /// The child.
        run: RunId,
        /// How long at most.
        timeout_ms: Option<u64>,
    },
}

/// What comes of a wait at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited {
    /// It was there already: a [`WaitRecord`].
    Answered(Json),
    /// Nothing yet: the instance ends here.
    Suspended,
}

/// What ended a wait, as it is recorded and told to the step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitRecord {
    /// The time is over.
    Elapsed,
    /// The signal's payload.
    Signal(Json),
    /// It has not come in time.
    TimedOut,
    /// The child's output.
    Completed(Json),
    /// The child has failed.
    Failed {
        /// The failure's code.
        code: String,
        /// The failure's message.
        message: String,
    },
    /// The child was cancelled.
    Cancelled,
}

/// A child that a step wants to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildRequest {
    /// Its workflow.
    pub workflow: WorkflowName,
    /// Its version; the latest when it is left out.
    pub version: Option<Digest>,
    /// Its input.
    pub input: Json,
    /// Whether it goes on when its parent ends.
    pub detached: bool,
}

/// Why a child was not started. Part of the stored format, like what ended a wait: see `docs/journal.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChildError {
    /// The tenant has no such workflow.
    UnknownWorkflow,
    /// The workflow has no such version.
    UnknownVersion,
    /// The workflow does not take this input.
    InvalidInput(String),
    /// Too many runs are above it.
    TooDeep,
    /// The run has as many children as it may.
    TooMany,
}
