//! One expression on one value, for a guest without a program: what the host has evaluated that belongs to no graph,
//! such as the filter of a trigger.
//!
//! Owns: what is handed over for it: `expression`, a JSON string, and `input`, any JSON. Without `input` the expression is
//! only compiled, so that whoever writes one learns at once that it is none.
//! Invariant: nothing is asked of the host. An expression that never ends takes up its fuel and nothing else.

use crate::bindings::stepwell::workflow::types::{Failure, Outcome};
use crate::failure::{permanent, quoted};
use crate::jq::{Expression, Expressions, Invalid, NoValue};
use crate::json;

/// Evaluates what was handed over.
pub(crate) fn run(inputs: &[(String, String)]) -> Result<Outcome, Failure> {
    let of = |name: &str| inputs.iter().find(|(given, _)| given == name).map(|(_, text)| text.as_str());
    let code = of("expression").and_then(|text| serde_json::from_str::<String>(text).ok());
    let code = code.ok_or_else(|| permanent("no_program", "this component was not specialised"))?;
    let expressions = Expressions::compile(&[&code]).map_err(|problems| invalid(&problems))?;
    let Some(input) = of("input") else { return Ok(Outcome::Output("null".to_owned())) };
    let input = json::read(input).map_err(|error| permanent("invalid_input", error))?;
    let value = expressions.value(Expression(0), &input).map_err(|cause| match cause {
        NoValue::Empty => permanent("no_value", "the expression has no value; `null` would be one"),
        NoValue::Several => permanent("several_values", "the expression has several values; `first(…)` takes one"),
        NoValue::Failed(message) => permanent("expression_failed", quoted(&message)),
    })?;
    let text = json::write(&value)
        .map_err(|what| permanent("not_json", format!("the value holds {what}, which JSON does not have")))?;
    Ok(Outcome::Output(text))
}

fn invalid(problems: &[Invalid]) -> Failure {
    let message = problems.first().map_or("the expression is not jq", |problem| problem.message.as_str());
    permanent("invalid_expression", quoted(message))
}
