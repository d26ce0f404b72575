//! The place that a new run gets in its workflow's flow control.
//!
//! Owns: what the settings' expressions say of an input.
//! Does not: count anything; the journal does, when the run is created.

use stepwell_core::flow::{FlowPlace, KEY_BYTES_MAX, PRIORITY_MAX};
use stepwell_core::{Json, TenantId, WorkflowName};

use super::{Shared, StartError};
use crate::clock;
use crate::journal::Admission;
use crate::journal::flow::FlowId;
use crate::sandbox::EvaluateError;

/// Where a start comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// From somebody who can be refused, and whose next start can take the place of this one.
    Outside,
    /// From a run: a child, or one that repeats another. It waits its turn, and is never refused or replaced.
    Inside,
}

/// A new run's place, and on what condition it gets it.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) id: FlowId,
    pub(super) place: FlowPlace,
    pub(super) admission: Admission,
}

impl Shared {
    /// The place of a new run; `None` when its workflow has no flow control.
    pub(super) async fn place(
        &self,
        tenant: &TenantId,
        workflow: &WorkflowName,
        input: &Json,
        origin: Origin,
    ) -> Result<Option<Placed>, StartError> {
        let Some(control) = self.journal.flow_control(tenant, workflow)? else { return Ok(None) };
        let key = match &control.key {
            None => Ok(String::new()),
            Some(expression) => self.flow_value(tenant, "key", expression, input).await.and_then(key_of),
        };
        let priority = match &control.priority {
            None => Ok(0),
            Some(expression) => self.flow_value(tenant, "priority", expression, input).await.and_then(priority_of),
        };
        let (key, priority) = match origin {
            Origin::Outside => (key?, priority?),
            // A run is not to hang because of an expression: what has no key counts with what has an empty one.
            Origin::Inside => (or_default(key)?, or_default(priority)?),
        };
        let mut place = FlowPlace { key, priority, not_before: None };
        let id = FlowId::new(tenant, workflow, &place);
        let mut admission = Admission::default();
        if origin == Origin::Outside {
            admission.rate_limit = control.rate_limit;
            if let Some(debounce) = control.debounce {
                let since =
                    self.journal.flow_count(&id)?.and_then(|count| count.debounced).map(|debounced| debounced.since);
                place.not_before = Some(debounce.not_before(since, clock::now()));
                admission.debounced = true;
            }
        }
        Ok(Some(Placed { id, place, admission }))
    }

    async fn flow_value(
        &self,
        tenant: &TenantId,
        field: &'static str,
        expression: &str,
        input: &Json,
    ) -> Result<Json, StartError> {
        let value = self.sandbox.evaluate(tenant, expression, input).await;
        value.map_err(|source| StartError::Flow { field, source })
    }
}

/// A text is the key itself; anything else is its JSON.
fn key_of(value: Json) -> Result<String, StartError> {
    let key = serde_json::from_str::<String>(value.as_str()).unwrap_or_else(|_| value.as_str().to_owned());
    if key.len() > KEY_BYTES_MAX {
        return Err(StartError::FlowValue { field: "key", wanted: "of at most 256 bytes" });
    }
    Ok(key)
}

fn priority_of(value: Json) -> Result<i32, StartError> {
    let priority = serde_json::from_str::<i32>(value.as_str()).ok();
    let within = priority.filter(|priority| (-PRIORITY_MAX..=PRIORITY_MAX).contains(priority));
    within.ok_or(StartError::FlowValue { field: "priority", wanted: "an integer from -1000 to 1000" })
}

/// What a value is when the input does not have it. Trouble of the host's is none of the input's.
fn or_default<T: Default>(value: Result<T, StartError>) -> Result<T, StartError> {
    match value {
        Err(StartError::FlowValue { .. } | StartError::Flow { source: EvaluateError::Failed(_), .. }) => {
            Ok(T::default())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_priorities_are_what_an_expression_says() {
        let json = |text: &str| Json::parse(text.to_owned()).unwrap();
        let key = |text: &str| key_of(json(text)).ok();
        assert_eq!((key("\"a\\u0000b\""), key("\"\"")), (Some("a\0b".to_owned()), Some(String::new())));
        assert_eq!(
            (key("7"), key("null"), key("[1,2]")),
            (Some("7".into()), Some("null".into()), Some("[1,2]".into()))
        );
        assert_eq!(
            (key(&format!("\"{}\"", "x".repeat(256))).is_some(), key(&format!("\"{}\"", "x".repeat(257)))),
            (true, None)
        );
        let priority = |text: &str| priority_of(json(text)).ok();
        assert_eq!((priority("1000"), priority("-1000"), priority("0")), (Some(1_000), Some(-1_000), Some(0)));
        assert_eq!((priority("1001"), priority("1.5"), priority("\"1\""), priority("null")), (None, None, None, None));
    }
}
