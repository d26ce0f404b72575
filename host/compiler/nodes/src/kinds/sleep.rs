//! `sleep`: waits for a time, without a sandbox.

use serde_json::Value;
use stepwell_document as document;
use stepwell_document::duration::parse_ms;

use crate::bindings::stepwell::workflow::types::{Failure, Outcome};
use crate::bindings::stepwell::workflow::wait::WaitError;
use crate::failure::permanent;
use crate::step::{Outside, Step};
use crate::template::{Template, Templates};

pub(crate) struct Sleep {
    duration: Template,
}

impl Sleep {
    pub(crate) fn compile(node: &document::Sleep, templates: &mut Templates) -> Self {
        Self { duration: templates.value("for", &node.duration) }
    }

    pub(crate) fn run(&self, step: &Step, outside: &impl Outside) -> Result<Outcome, Failure> {
        let duration = step.value("for", &self.duration)?;
        let ms = duration_ms(&step.json("for", &duration)?).ok_or_else(|| {
            let rule = "must be milliseconds, a whole number, or a duration such as `1m30s`";
            step.fail("for", "invalid_duration", rule)
        })?;
        outside.sleep(ms).map_err(not_waited)?;
        Ok(Outcome::Output("null".to_owned()))
    }
}

/// Milliseconds of a value. A fraction of one is not waited for.
fn duration_ms(json: &str) -> Option<u64> {
    match serde_json::from_str(json).ok()? {
        Value::String(text) => parse_ms(&text),
        Value::Number(number) => number.as_u64().or_else(|| {
            let ms = number.as_f64().filter(|ms| (0.0..1e15).contains(ms))?;
            // In range, and what is behind the point does not count.
            Some(ms as u64)
        }),
        _ => None,
    }
}

/// A wait that ended with an error that its kind has no words for.
pub(crate) fn not_waited(error: WaitError) -> Failure {
    match error {
        WaitError::UnknownSignal => permanent("unknown_signal", "the workflow has no such signal"),
        WaitError::QuotaExceeded => permanent("wait_quota", "this attempt has waited as often as it may"),
        WaitError::Timeout => permanent("wait_timeout", "the wait has taken too long"),
    }
}

#[cfg(test)]
mod tests {
    use super::duration_ms;

    #[test]
    fn durations_are_texts_or_numbers() {
        for (json, ms) in [("\"1m30s\"", 90_000), ("1500", 1500), ("1.5e3", 1500), ("0", 0), ("2.9", 2)] {
            assert_eq!(duration_ms(json), Some(ms), "{json}");
        }
        for json in ["null", "-1", "\"\"", "\"soon\"", "[1]", "1e300"] {
            assert_eq!(duration_ms(json), None, "{json}");
        }
    }
}
