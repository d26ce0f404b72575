//! `component`: leaves the step to a node of another workflow.

use stepwell_document as document;

use crate::bindings::stepwell::workflow::types::{Delegation, Failure, Outcome};
use crate::step::Step;
use crate::template::{Template, Templates};

pub(crate) struct Component {
    pub(crate) workflow: String,
    pub(crate) version: String,
    pub(crate) node: String,
    inputs: Vec<(String, Template)>,
}

impl Component {
    pub(crate) fn compile(node: document::Component, templates: &mut Templates) -> Self {
        let inputs = node.inputs.into_iter().map(|(name, value)| {
            let template = templates.value(&field(&name), &value);
            (name, template)
        });
        let inputs = inputs.collect();
        Self { workflow: node.workflow, version: node.version, node: node.node, inputs }
    }

    pub(crate) fn run(&self, step: &Step) -> Result<Outcome, Failure> {
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for (name, template) in &self.inputs {
            let field = field(name);
            let value = step.value(&field, template)?;
            inputs.push((name.clone(), step.json(&field, &value)?));
        }
        Ok(Outcome::Delegate(Delegation { inputs }))
    }
}

fn field(name: &str) -> String {
    format!("inputs.{name}")
}
