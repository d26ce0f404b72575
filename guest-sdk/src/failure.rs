//! How an attempt fails, and what the errors of this crate mean when a step passes them on.
//!
//! It does not decide whether there is another attempt: that is the node's retry policy and the host's matter.

use std::error::Error;
use std::fmt::{self, Display};
use std::time::Duration;

use serde::Serialize;

use crate::bindings::stepwell::workflow::types;
use crate::{ArtifactError, ChildError, PublishError, StartError, WaitError};

/// How an attempt failed, in the words of the step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    retryable: bool,
    code: String,
    message: String,
    retry_after: Option<Duration>,
    details: Option<String>,
}

impl Failure {
    /// The same attempt may succeed later: it is retried by the step's retry policy.
    ///
    /// `code` is a stable identifier for programs: `[a-z0-9_]`, 1 to 64 characters; the host replaces anything
    /// else by `step_failed`. `message` is a sentence for people, cut off after 4 KiB.
    pub fn retryable(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(true, code.into(), message.into())
    }

    /// Trying again cannot help: the step has failed. `code` and `message` as in [`Failure::retryable`].
    pub fn permanent(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(false, code.into(), message.into())
    }

    /// Asks for a wait of at least this long before the next attempt, at most 24 hours. Without effect on a
    /// permanent failure.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Adds anything else a program may want to know, at most 64 KiB of JSON. A value that cannot be written
    /// as JSON is left out: failing must not fail.
    #[must_use]
    pub fn details(mut self, details: &(impl Serialize + ?Sized)) -> Self {
        self.details = serde_json::to_string(details).ok();
        self
    }

    /// Whether the same attempt may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// The identifier for programs.
    pub fn code(&self) -> &str {
        &self.code
    }

    /// The sentence for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    fn new(retryable: bool, code: String, message: String) -> Self {
        Self { retryable, code, message, retry_after: None, details: None }
    }
}

impl Error for Failure {}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl From<PublishError> for Failure {
    /// Retryable where waiting can help. A quota is counted per attempt and the next attempt would
    /// use it up in the same way, so running into it is permanent.
    fn from(error: PublishError) -> Self {
        let message = error.to_string();
        match error {
            PublishError::UnknownTopic(_) => Self::permanent("publish_unknown_topic", message),
            PublishError::TooLarge { .. } => Self::permanent("publish_too_large", message),
            PublishError::InvalidPayload(_) => Self::permanent("publish_invalid_payload", message),
            PublishError::RateLimited(wait) => Self::retryable("publish_rate_limited", message).retry_after(wait),
            PublishError::QuotaExceeded => Self::permanent("publish_quota_exceeded", message),
            PublishError::StepCancelled => Self::permanent("step_cancelled", message),
            PublishError::Unavailable => Self::retryable("publish_unavailable", message),
        }
    }
}

impl From<ArtifactError> for Failure {
    /// Retryable where waiting can help.
    fn from(error: ArtifactError) -> Self {
        let message = error.to_string();
        match error {
            ArtifactError::InvalidName(_) => Self::permanent("artifact_invalid_name", message),
            ArtifactError::TooLarge { .. } => Self::permanent("artifact_too_large", message),
            ArtifactError::QuotaExceeded => Self::permanent("artifact_quota_exceeded", message),
            ArtifactError::StepCancelled => Self::permanent("step_cancelled", message),
            ArtifactError::Unavailable => Self::retryable("artifact_unavailable", message),
        }
    }
}

impl From<WaitError> for Failure {
    /// Permanent: the next attempt would wait for something else, or meet the same.
    fn from(error: WaitError) -> Self {
        let code = match &error {
            WaitError::UnknownSignal(_) => "unknown_signal",
            WaitError::Timeout => "signal_timeout",
            WaitError::QuotaExceeded => "wait_quota",
            WaitError::InvalidPayload(_) => "invalid_signal",
        };
        Self::permanent(code, error.to_string())
    }
}

impl From<StartError> for Failure {
    /// Permanent: the next attempt would meet the same.
    fn from(error: StartError) -> Self {
        let code = match &error {
            StartError::InvalidRequest(_) => "child_invalid",
            StartError::UnknownWorkflow => "child_unknown_workflow",
            StartError::UnknownVersion => "child_unknown_version",
            StartError::InvalidInput(_) => "child_invalid_input",
            StartError::TooDeep => "child_too_deep",
            StartError::QuotaExceeded => "child_quota",
        };
        Self::permanent(code, error.to_string())
    }
}

impl From<ChildError> for Failure {
    /// Permanent: a child that failed has had its own attempts.
    fn from(error: ChildError) -> Self {
        let code = match &error {
            ChildError::Failed { .. } => "child_failed",
            ChildError::Cancelled => "child_cancelled",
            ChildError::Timeout => "child_timeout",
            ChildError::NotAChild => "not_a_child",
            ChildError::QuotaExceeded => "wait_quota",
            ChildError::InvalidOutput(_) => "child_invalid_output",
        };
        Self::permanent(code, error.to_string())
    }
}

impl From<serde_json::Error> for Failure {
    /// Permanent: the same text would be read, or the same value written, in the same way.
    fn from(error: serde_json::Error) -> Self {
        Self::permanent("invalid_json", error.to_string())
    }
}

impl From<Failure> for types::Failure {
    fn from(failure: Failure) -> Self {
        Self {
            kind: if failure.retryable { types::FailureKind::Retryable } else { types::FailureKind::Permanent },
            code: failure.code,
            message: failure.message,
            retry_after_ms: failure.retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
            details: failure.details,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_helps_against_a_rate_limit_but_not_against_a_quota() {
        let limited = Failure::from(PublishError::RateLimited(Duration::from_millis(250)));
        assert!(limited.is_retryable());
        assert_eq!(types::Failure::from(limited).retry_after_ms, Some(250));

        let quota = Failure::from(PublishError::QuotaExceeded);
        assert!(!quota.is_retryable());
        assert_eq!(quota.code(), "publish_quota_exceeded");
    }

    #[test]
    fn every_code_keeps_to_the_contract() {
        let failures = [
            Failure::from(PublishError::UnknownTopic("x".to_owned())),
            Failure::from(PublishError::TooLarge { limit_bytes: 1 }),
            Failure::from(PublishError::InvalidPayload("x".to_owned())),
            Failure::from(PublishError::RateLimited(Duration::ZERO)),
            Failure::from(PublishError::QuotaExceeded),
            Failure::from(PublishError::StepCancelled),
            Failure::from(PublishError::Unavailable),
            Failure::from(ArtifactError::InvalidName("x".to_owned())),
            Failure::from(ArtifactError::TooLarge { limit_bytes: 1 }),
            Failure::from(ArtifactError::QuotaExceeded),
            Failure::from(ArtifactError::StepCancelled),
            Failure::from(ArtifactError::Unavailable),
        ];
        for failure in failures {
            let code = failure.code();
            assert!(code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{code}");
        }
    }

    #[test]
    fn details_that_are_not_json_are_left_out() {
        let not_json = std::collections::BTreeMap::from([((1, 2), 3)]);
        let failure = types::Failure::from(Failure::permanent("x", "y").details(&not_json));
        assert_eq!(failure.details, None);
    }

    #[test]
    fn a_wait_longer_than_the_contract_can_say_is_cut_off() {
        let failure = types::Failure::from(Failure::retryable("x", "y").retry_after(Duration::MAX));
        assert_eq!(failure.retry_after_ms, Some(u64::MAX));
    }
}
