//! Why the host did not do what a step asked for.
//!
//! These are answers, not failures: the step goes on and decides what they mean. What they mean when a step
//! passes them on with `?` is decided in `failure.rs`.

use std::error::Error;
use std::fmt::{self, Display};
use std::time::Duration;

/// Why an update was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublishError {
    /// The workflow does not declare this topic.
    UnknownTopic(String),
    /// The payload is larger than an update may be.
    TooLarge {
        /// What it may have at most.
        limit_bytes: u64,
    },
    /// The value could not be written as JSON.
    InvalidPayload(String),
    /// Too many updates for now. Trying again after this long can help.
    RateLimited(Duration),
    /// This attempt has used up all it may publish.
    QuotaExceeded,
    /// The run was cancelled or ended; nothing the step does is recorded any more.
    StepCancelled,
    /// The host cannot record updates at present.
    Unavailable,
}

impl Error for PublishError {}

impl Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownTopic(topic) => write!(f, "the workflow declares no topic `{topic}`"),
            Self::TooLarge { limit_bytes } => write!(f, "an update has at most {limit_bytes} bytes"),
            Self::InvalidPayload(reason) => write!(f, "the update is not JSON: {reason}"),
            Self::RateLimited(wait) => write!(f, "too many updates; try again in {wait:?}"),
            Self::QuotaExceeded => f.write_str("the attempt has published as much as it may"),
            Self::StepCancelled => f.write_str("the step was cancelled"),
            Self::Unavailable => f.write_str("the host cannot record updates at present"),
        }
    }
}

/// Why a wait brought nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitError {
    /// The workflow does not declare this signal.
    UnknownSignal(String),
    /// What was waited for has not come in time.
    Timeout,
    /// This attempt has waited as often as it may.
    QuotaExceeded,
    /// The signal's payload is not what the step expects.
    InvalidPayload(String),
}

impl Error for WaitError {}

impl Display for WaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownSignal(name) => write!(f, "the workflow declares no signal `{name}`"),
            Self::Timeout => f.write_str("what was waited for has not come in time"),
            Self::QuotaExceeded => f.write_str("the attempt has waited as often as it may"),
            Self::InvalidPayload(reason) => write!(f, "the signal's payload has another form: {reason}"),
        }
    }
}

/// Why no child was started.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartError {
    /// A name, a version or the input is not what it should be; the text says which.
    InvalidRequest(String),
    /// The tenant has no such workflow.
    UnknownWorkflow,
    /// The workflow has no such version.
    UnknownVersion,
    /// The other workflow does not take this input.
    InvalidInput(String),
    /// Too many runs have started each other already.
    TooDeep,
    /// The run has as many children as it may.
    QuotaExceeded,
}

impl Error for StartError {}

impl Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidRequest(reason) => write!(f, "no run can be started like this: {reason}"),
            Self::UnknownWorkflow => f.write_str("there is no such workflow"),
            Self::UnknownVersion => f.write_str("the workflow has no such version"),
            Self::InvalidInput(reason) => write!(f, "the workflow does not take this input: {reason}"),
            Self::TooDeep => f.write_str("too many runs have started each other already"),
            Self::QuotaExceeded => f.write_str("the run has as many children as it may"),
        }
    }
}

/// Why a child brought nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChildError {
    /// It has failed.
    Failed {
        /// The failure's code.
        code: String,
        /// The failure's message.
        message: String,
    },
    /// It was cancelled, or is gone.
    Cancelled,
    /// It has not ended in time. It goes on.
    Timeout,
    /// This run has not started it.
    NotAChild,
    /// This attempt has waited as often as it may.
    QuotaExceeded,
    /// Its output is not what the step expects.
    InvalidOutput(String),
}

impl Error for ChildError {}

impl Display for ChildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { code, message } => write!(f, "the child has failed ({code}): {message}"),
            Self::Cancelled => f.write_str("the child was cancelled"),
            Self::Timeout => f.write_str("the child has not ended in time"),
            Self::NotAChild => f.write_str("the run is no child of this one"),
            Self::QuotaExceeded => f.write_str("the attempt has waited as often as it may"),
            Self::InvalidOutput(reason) => write!(f, "the child's output has another form: {reason}"),
        }
    }
}

/// Why a file was not stored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ArtifactError {
    /// The name or the media type has not the required form; the text says what is wrong.
    InvalidName(String),
    /// The content is larger than a file may be.
    TooLarge {
        /// What it may have at most.
        limit_bytes: u64,
    },
    /// This attempt has stored as much as it may.
    QuotaExceeded,
    /// The run was cancelled or ended; nothing the step does is recorded any more.
    StepCancelled,
    /// The host cannot store files at present.
    Unavailable,
}

impl Error for ArtifactError {}

impl Display for ArtifactError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InvalidName(reason) => write!(f, "the file's name or type is not allowed: {reason}"),
            Self::TooLarge { limit_bytes } => write!(f, "a file has at most {limit_bytes} bytes"),
            Self::QuotaExceeded => f.write_str("the attempt has stored as much as it may"),
            Self::StepCancelled => f.write_str("the step was cancelled"),
            Self::Unavailable => f.write_str("the host cannot store files at present"),
        }
    }
}
