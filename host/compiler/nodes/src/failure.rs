//! How an attempt fails, in the words of `wit/types.wit`.

use serde_json::{Value, json};

use crate::bindings::stepwell::workflow::types::{Failure, FailureKind};

/// What is quoted in details and messages, in bytes. Enough to see what went wrong, and little of what may be private.
pub(crate) const QUOTED_BYTES_MAX: usize = 2 << 10;

/// A failure that another attempt would meet again.
pub(crate) fn permanent(code: &str, message: impl Into<String>) -> Failure {
    Failure {
        kind: FailureKind::Permanent,
        code: code.to_owned(),
        message: message.into(),
        retry_after_ms: None,
        details: None,
    }
}

/// A failure that another attempt may not meet, at the earliest after a wait where one is given.
pub(crate) fn retryable(code: &str, message: impl Into<String>, retry_after_ms: Option<u64>) -> Failure {
    Failure { kind: FailureKind::Retryable, retry_after_ms, ..permanent(code, message) }
}

/// The same failure with details.
pub(crate) fn with_details(failure: Failure, details: &Value) -> Failure {
    Failure { details: Some(details.to_string()), ..failure }
}

/// A failure of an expression, which names its place.
pub(crate) fn at(node: &str, field: &str, code: &str, message: &str) -> Failure {
    let failure = permanent(code, format!("node `{node}`, {field}: {message}"));
    with_details(failure, &json!({ "node": node, "field": field }))
}

/// The beginning of a text.
pub(crate) fn quoted(text: &str) -> &str {
    let end = text.floor_char_boundary(QUOTED_BYTES_MAX);
    text.get(..end).unwrap_or(text)
}
