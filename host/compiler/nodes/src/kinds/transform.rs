//! `transform`: makes a value out of others.

use stepwell_document as document;

use crate::bindings::stepwell::workflow::types::{Failure, Outcome};
use crate::step::Step;
use crate::template::{Template, Templates};

pub(crate) struct Transform {
    output: Template,
}

impl Transform {
    pub(crate) fn compile(node: &document::Transform, templates: &mut Templates) -> Self {
        Self { output: templates.value("output", &node.output) }
    }

    pub(crate) fn run(&self, step: &Step) -> Result<Outcome, Failure> {
        let output = step.value("output", &self.output)?;
        Ok(Outcome::Output(step.json("output", &output)?))
    }
}
