//! One attempt of a step: what every kind of node has in common.
//!
//! Owns: how what is wrong with an expression becomes a failure, and what a step may ask for ([`Outside`]).
//! Does not: know the kinds, but for handing over to them.

use jaq_json::Val;

use crate::bindings::stepwell::workflow::children;
use crate::bindings::stepwell::workflow::http;
use crate::bindings::stepwell::workflow::llm;
use crate::bindings::stepwell::workflow::publish;
use crate::bindings::stepwell::workflow::types::{Failure, Outcome, StepContext};
use crate::bindings::stepwell::workflow::wait;
use crate::context::Context;
use crate::failure::{at, permanent};
use crate::jq::{Expression, NoValue};
use crate::json;
use crate::program::{Node, Program, Work};
use crate::template::{Cause, Template, Wrong};

/// What a step may ask for. In the sandbox these are imports.
pub(crate) trait Outside {
    fn publish(&self, topic: &str, payload: &str) -> Result<u64, publish::PublishError>;
    fn complete(&self, request: &llm::Request) -> Result<llm::Completion, llm::LlmError>;
    fn send(&self, request: &http::Request) -> Result<http::Response, http::HttpError>;
    fn sleep(&self, ms: u64) -> Result<(), wait::WaitError>;
    fn signal(&self, name: &str, timeout_ms: Option<u64>) -> Result<String, wait::WaitError>;
    fn start_child(&self, request: &children::Request) -> Result<String, children::StartError>;
    fn await_child(&self, run: &str, timeout_ms: Option<u64>) -> Result<String, children::AwaitError>;
}

/// An attempt under way.
pub(crate) struct Step<'a> {
    pub(crate) program: &'a Program,
    pub(crate) node: &'a Node,
    pub(crate) context: &'a Context,
    /// The context as expressions see it.
    value: Val,
}

/// Executes one attempt.
pub(crate) fn run(
    program: &Program,
    outside: &impl Outside,
    step: &StepContext,
    inputs: &[(String, String)],
) -> Result<Outcome, Failure> {
    let node = program
        .node(&step.node)
        .ok_or_else(|| permanent("unknown_node", format!("the graph has no node `{}`", step.node)))?;
    let context = Context::new(program, node, step, inputs)?;
    let step = Step { program, node, context: &context, value: context.clone().value() };
    match &node.work {
        Work::Transform(work) => work.run(&step, outside),
        Work::Branch(work) => work.run(&step),
        Work::Map(work) => work.run(&step),
        Work::Loop(work) => work.run(&step),
        Work::Join(work) => work.run(&step),
        Work::Llm(work) => work.run(&step, outside),
        Work::Http(work) => work.run(&step, outside),
        Work::Component(work) => work.run(&step),
        Work::Sleep(work) => work.run(&step, outside),
        Work::Signal(work) => work.run(&step, outside),
        Work::Workflow(work) => work.run(&step, outside),
    }
}

impl Step<'_> {
    /// The value of one of the node's fields.
    pub(crate) fn value(&self, field: &str, template: &Template) -> Result<Val, Failure> {
        template.value(&self.program.expressions, &self.value).map_err(|wrong| self.wrong(field, wrong))
    }

    /// The text of one of the node's fields.
    pub(crate) fn text(&self, field: &str, template: &Template) -> Result<String, Failure> {
        self.text_with(field, template, |inserted| inserted)
    }

    /// The same. What expressions insert into a longer text goes through `insert` first.
    pub(crate) fn text_with(
        &self,
        field: &str,
        template: &Template,
        insert: impl Fn(String) -> String,
    ) -> Result<String, Failure> {
        template.text(&self.program.expressions, &self.value, insert).map_err(|wrong| self.wrong(field, wrong))
    }

    /// Whether a condition holds: its value is neither `false` nor `null`.
    pub(crate) fn holds(&self, field: &str, condition: Expression) -> Result<bool, Failure> {
        self.holds_on(&self.value, field, condition)
    }

    /// Whether a condition holds in another context than the step's own.
    pub(crate) fn holds_on(&self, context: &Val, field: &str, condition: Expression) -> Result<bool, Failure> {
        Ok(!matches!(self.value_on(context, field, condition)?, Val::Null | Val::Bool(false)))
    }

    fn value_on(&self, context: &Val, field: &str, expression: Expression) -> Result<Val, Failure> {
        let value = Template::Expression(expression).value(&self.program.expressions, context);
        value.map_err(|wrong| self.wrong(field, wrong))
    }

    /// A value of a field as JSON.
    pub(crate) fn json(&self, field: &str, value: &Val) -> Result<String, Failure> {
        json::write(value).map_err(|what| self.not_json(field, what))
    }

    /// A failure that names a field.
    pub(crate) fn fail(&self, field: &str, code: &str, message: &str) -> Failure {
        at(&self.node.id, field, code, message)
    }

    fn wrong(&self, field: &str, Wrong { path, cause }: Wrong) -> Failure {
        let field = format!("{field}{path}");
        match cause {
            Cause::Expression(NoValue::Empty) => {
                self.fail(&field, "no_value", "the expression has no value; `null` would be one")
            }
            Cause::Expression(NoValue::Several) => self.fail(
                &field,
                "several_values",
                "the expression has several values; `[…]` makes an array of them, `first(…)` takes one",
            ),
            Cause::Expression(NoValue::Failed(message)) => {
                self.fail(&field, "expression_failed", crate::failure::quoted(&message))
            }
            Cause::NotJson(what) => self.not_json(&field, what),
        }
    }

    fn not_json(&self, field: &str, what: &str) -> Failure {
        self.fail(field, "not_json", &format!("the value holds {what}, which JSON does not have"))
    }
}
