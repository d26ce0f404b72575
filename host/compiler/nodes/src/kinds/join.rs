//! `join`: closes a `map` or a `loop`.
//!
//! The join of a `map` runs once, after all items. The join of a `loop` runs at the end of each iteration, makes the
//! next state, and says whether there is another iteration. It also runs when there was none, because all that follows
//! a loop follows its join: then the loop's condition does not hold for the first state, which is handed on.

use jaq_json::Val;
use stepwell_document as document;
use stepwell_document::OnMax;

use super::looping::Loop;
use crate::bindings::stepwell::workflow::types::{Failure, Outcome};
use crate::step::Step;
use crate::template::{Template, Templates};

pub(crate) struct Join {
    /// The `map` or `loop`.
    pub(crate) of: String,
    output: Option<Template>,
}

impl Join {
    pub(crate) fn compile(node: document::Join, templates: &mut Templates) -> Self {
        Self { of: node.of, output: node.output.map(|output| templates.value("output", &output)) }
    }

    pub(crate) fn run(&self, step: &Step) -> Result<Outcome, Failure> {
        match step.program.looping(&self.of) {
            None => {
                let output = self.output(step)?;
                Ok(Outcome::Output(step.json("output", &output)?))
            }
            Some(looping) => self.run_iteration(step, looping),
        }
    }

    fn run_iteration(&self, step: &Step, looping: &Loop) -> Result<Outcome, Failure> {
        let (Some(state), index) = step.context.item() else {
            return Err(step.fail("of", "missing_input", "the state of the loop is not handed over"));
        };
        let index = index.unwrap_or(0);
        // Of every later iteration the join before has already asked.
        if index == 0 && !looping.goes_on(step, &self.of, state, 0)? {
            return Ok(Outcome::Output(step.json("of", state)?));
        }
        let next = self.output(step)?;
        let json = step.json("output", &next)?;
        let done = index.saturating_add(1);
        if !looping.goes_on(step, &self.of, &next, done)? {
            Ok(Outcome::Output(json))
        } else if done < looping.max {
            Ok(Outcome::Again(json))
        } else {
            match looping.on_max {
                OnMax::Stop => Ok(Outcome::Output(json)),
                OnMax::Fail => {
                    let message = format!("the condition of `{}` still holds after {done} iterations", self.of);
                    Err(step.fail("of", "loop_limit", &message))
                }
            }
        }
    }

    /// What the template says; without one, what the node before the join has put out.
    fn output(&self, step: &Step) -> Result<Val, Failure> {
        match (&self.output, &step.node.plan.joins) {
            (Some(output), _) => step.value("output", output),
            (None, Some(before)) => Ok(step.context.of_node(before)),
            (None, None) => Ok(Val::Null),
        }
    }
}
