//! `branch`: takes the edges whose label is that of the first case that holds.

use serde_json::Value;
use stepwell_document as document;

use crate::bindings::stepwell::workflow::types::{Failure, Outcome, Routed};
use crate::jq::Expression;
use crate::step::Step;
use crate::template::Templates;

pub(crate) struct Branch {
    /// Conditions and their labels.
    cases: Vec<(Expression, String)>,
    otherwise: Option<String>,
}

impl Branch {
    pub(crate) fn compile(node: document::Branch, templates: &mut Templates) -> Self {
        let cases = node.cases.into_iter().enumerate();
        let cases = cases.map(|(number, case)| (templates.condition(&when(number), &case.when), case.label)).collect();
        Self { cases, otherwise: node.otherwise }
    }

    pub(crate) fn run(&self, step: &Step) -> Result<Outcome, Failure> {
        for (number, (condition, label)) in self.cases.iter().enumerate() {
            if step.holds(&when(number), *condition)? {
                return Ok(route(Some(label)));
            }
        }
        Ok(route(self.otherwise.as_ref()))
    }
}

fn route(label: Option<&String>) -> Outcome {
    let output = label.map_or(Value::Null, |label| Value::from(label.as_str())).to_string();
    Outcome::Route(Routed { output, labels: label.into_iter().cloned().collect() })
}

fn when(number: usize) -> String {
    format!("cases[{number}].when")
}
