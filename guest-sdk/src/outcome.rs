//! How an attempt succeeds: an output, and perhaps a choice of the way on.
//!
//! It does not check labels or sizes: the host knows the graph and the limits, and answers with
//! `unknown_route` or `invalid_output`.

use serde::Serialize;

use crate::Failure;
use crate::bindings::stepwell::workflow::types;

/// An output that chooses its way on: the labelled edges that are taken besides the unlabelled ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed<T> {
    /// The step's output.
    pub output: T,
    /// Labels of outgoing edges. With none, only unlabelled edges are taken.
    pub labels: Vec<String>,
}

impl<T> Routed<T> {
    /// Takes the edges with this label. A label that no outgoing edge carries ends the attempt with `unknown_route`.
    pub fn to(label: impl Into<String>, output: T) -> Self {
        Self { output, labels: vec![label.into()] }
    }

    /// Takes the edges with any of these labels.
    pub fn to_all<L: Into<String>>(labels: impl IntoIterator<Item = L>, output: T) -> Self {
        Self { output, labels: labels.into_iter().map(Into::into).collect() }
    }
}

/// A successful attempt as the host is told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The output as JSON.
    pub output: String,
    /// Labels of the edges to take besides the unlabelled ones.
    pub labels: Vec<String>,
}

/// What a step may return as the `T` of its `Result<T, Failure>`: anything serde can write, or [`Routed`].
#[diagnostic::on_unimplemented(
    message = "a step cannot return `{Self}`",
    label = "neither `Serialize` nor `Routed<impl Serialize>`"
)]
pub trait IntoOutcome {
    /// Writes the output as JSON.
    ///
    /// # Errors
    ///
    /// Permanent, `invalid_output`, when the value has no form in JSON: a map with keys that are not strings, say.
    fn into_outcome(self) -> Result<Outcome, Failure>;
}

impl<T: Serialize> IntoOutcome for T {
    fn into_outcome(self) -> Result<Outcome, Failure> {
        outcome(&self, Vec::new())
    }
}

// Allowed beside the impl above because only this crate could make `Routed` serialisable – so it must not.
impl<T: Serialize> IntoOutcome for Routed<T> {
    fn into_outcome(self) -> Result<Outcome, Failure> {
        outcome(&self.output, self.labels)
    }
}

fn outcome(output: &impl Serialize, labels: Vec<String>) -> Result<Outcome, Failure> {
    let output =
        serde_json::to_string(output).map_err(|error| Failure::permanent("invalid_output", error.to_string()))?;
    Ok(Outcome { output, labels })
}

impl From<Outcome> for types::Outcome {
    fn from(outcome: Outcome) -> Self {
        let Outcome { output, labels } = outcome;
        if labels.is_empty() { Self::Output(output) } else { Self::Route(types::Routed { output, labels }) }
    }
}
