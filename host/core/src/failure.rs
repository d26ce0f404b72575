//! How attempts and runs fail. A failure is data in an event, not a Rust error.

use serde::{Deserialize, Serialize};

use crate::json::Json;

/// Whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The same attempt may succeed later.
    Retryable,
    /// It would fail again.
    Permanent,
}

/// Whose failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureSource {
    /// The host ended the attempt: a limit, a trap, an interruption.
    Platform,
    /// The step said so.
    Workflow,
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Whether trying again can help.
    pub kind: FailureKind,
    /// Whose failure it is.
    pub source: FailureSource,
    /// A stable identifier: `[a-z0-9_]`, 1 to 64 characters.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// The next attempt starts no sooner than this many milliseconds from the failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// Anything else the step wanted to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Json>,
}

/// The code of an attempt that was cut off because the host stopped, and could not be taken up again.
pub const INTERRUPTED: &str = "interrupted";
/// The code of an attempt that the host could not run.
pub const UNAVAILABLE: &str = "sandbox_unavailable";
/// The code of an attempt that the journal had no room for: its tenant has as much there as it may.
pub const JOURNAL_FULL: &str = "journal_full";

/// Whether a failure can have this code: 1 to 64 characters out of `[a-z0-9_]`.
#[must_use]
pub fn is_code(code: &str) -> bool {
    let is_of_code = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=64).contains(&code.len()) && code.bytes().all(is_of_code)
}

impl Failure {
    /// Whether the host is at fault and not the step: such an attempt does not use up the policy's attempts. A step may
    /// use the same codes for what it likes.
    #[must_use]
    pub fn is_the_hosts(&self) -> bool {
        self.source == FailureSource::Platform && matches!(self.code.as_str(), INTERRUPTED | UNAVAILABLE | JOURNAL_FULL)
    }

    /// Whether the attempt was cut off because the host stopped. The next one starts at once.
    #[must_use]
    pub fn is_interruption(&self) -> bool {
        self.source == FailureSource::Platform && self.code == INTERRUPTED
    }

    /// A failure that the host declares.
    #[must_use]
    pub fn platform(kind: FailureKind, code: &str, message: impl Into<String>) -> Self {
        Self {
            kind,
            source: FailureSource::Platform,
            code: code.to_owned(),
            message: message.into(),
            retry_after_ms: None,
            details: None,
        }
    }
}
