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
