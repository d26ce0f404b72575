//! `loop`: makes the first state, and asks before each iteration whether there is to be one.

use jaq_json::Val;
use stepwell_document as document;
use stepwell_document::OnMax;

use crate::bindings::stepwell::workflow::types::{Failure, Outcome};
use crate::jq::Expression;
use crate::step::Step;
use crate::template::{Template, Templates};

pub(crate) struct Loop {
    initial: Template,
    condition: Expression,
    pub(crate) max: u32,
    pub(crate) on_max: OnMax,
}

impl Loop {
    pub(crate) fn compile(node: &document::Loop, templates: &mut Templates) -> Self {
        Self {
            initial: templates.value("initial", &node.initial),
            condition: templates.condition("while", &node.condition),
            max: node.max,
            on_max: node.on_max,
        }
    }

    pub(crate) fn run(&self, step: &Step) -> Result<Outcome, Failure> {
        let state = step.value("initial", &self.initial)?;
        let json = step.json("initial", &state)?;
        Ok(if self.goes_on(step, &step.node.id, &state, 0)? { Outcome::Again(json) } else { Outcome::Output(json) })
    }

    /// Whether iteration `index` is to begin, with this state. `id` is the loop's: its join asks too.
    pub(crate) fn goes_on(&self, step: &Step, id: &str, state: &Val, index: u32) -> Result<bool, Failure> {
        let context = step.context.with_state(id, state, index).value();
        step.holds_on(&context, "while", self.condition)
    }
}
