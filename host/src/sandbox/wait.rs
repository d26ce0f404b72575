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
    /// There was nothing to wait for: the run was no child then. It can have become one since.
    NotAChild,
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
    /// The tenant has as many runs that have not ended as it may.
    TooManyRuns,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Journals have these texts in them: they are read for as long as there are such journals.
    #[test]
    fn what_is_recorded_is_written_as_it_always_was() {
        let json = |text: &str| Json::parse(text.to_owned()).unwrap();
        for (record, text) in [
            (WaitRecord::Elapsed, r#""elapsed""#),
            (WaitRecord::Signal(json(r#"{"a": 1.10}"#)), r#"{"signal":{"a": 1.10}}"#),
            (WaitRecord::TimedOut, r#""timed_out""#),
            (WaitRecord::Completed(json("null")), r#"{"completed":null}"#),
            (
                WaitRecord::Failed { code: "c".to_owned(), message: "m".to_owned() },
                r#"{"failed":{"code":"c","message":"m"}}"#,
            ),
            (WaitRecord::Cancelled, r#""cancelled""#),
            (WaitRecord::NotAChild, r#""not_a_child""#),
        ] {
            assert_eq!(serde_json::to_string(&record).unwrap(), text);
            assert_eq!(serde_json::from_str::<WaitRecord>(text).unwrap(), record);
        }
        for (refused, text) in [
            (ChildError::UnknownWorkflow, r#""unknown_workflow""#),
            (ChildError::UnknownVersion, r#""unknown_version""#),
            (ChildError::InvalidInput("no".to_owned()), r#"{"invalid_input":"no"}"#),
            (ChildError::TooDeep, r#""too_deep""#),
            (ChildError::TooMany, r#""too_many""#),
            (ChildError::TooManyRuns, r#""too_many_runs""#),
        ] {
            assert_eq!(serde_json::to_string(&refused).unwrap(), text);
            assert_eq!(serde_json::from_str::<ChildError>(text).unwrap(), refused);
        }
    }
}
