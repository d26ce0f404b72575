//! What the component exports, and where its steps' requests go: the wiring between `wit/` and this crate.

use serde_json::Value;
use stepwell_document::json_schema;

use crate::bindings::exports::stepwell::workflow::steps::{Guest, InputProblem};
use crate::bindings::stepwell::workflow::graph::Graph;
use crate::bindings::stepwell::workflow::types::{Failure, Outcome, StepContext};
use crate::bindings::stepwell::workflow::{children, http, llm, publish, wait};
use crate::step::Outside;
use crate::{describe, evaluate, specialize, step};

struct Nodes;

impl Guest for Nodes {
    fn describe() -> Graph {
        // Without a program there are no nodes, and a graph without nodes is refused.
        let none = || Graph {
            nodes: Vec::new(),
            edges: Vec::new(),
            output: None,
            topics: Vec::new(),
            channel: None,
            input_schema: None,
            signals: Vec::new(),
            timeout_ms: None,
        };
        specialize::program().map_or_else(none, describe::describe)
    }

    fn check_input(input: String) -> Vec<InputProblem> {
        check(specialize::program().and_then(|program| program.input.as_ref()), &input)
    }

    fn check_signal(name: String, payload: String) -> Vec<InputProblem> {
        check(specialize::program().and_then(|program| program.signals.get(&name)), &payload)
    }

    fn run_step(ctx: StepContext, inputs: Vec<(String, String)>) -> Result<Outcome, Failure> {
        match specialize::program() {
            Some(program) => step::run(program, &Imports, &ctx, &inputs),
            None => evaluate::run(&inputs),
        }
    }
}

/// What is wrong with a value by its schema.
fn check(schema: Option<&Value>, text: &str) -> Vec<InputProblem> {
    let Some(schema) = schema else { return Vec::new() };
    let problems = match serde_json::from_str(text) {
        Ok(value) => json_schema::validate(schema, &value),
        Err(error) => {
            vec![json_schema::Problem { pointer: String::new(), message: format!("cannot be read: {error}") }]
        }
    };
    problems.into_iter().map(|problem| InputProblem { pointer: problem.pointer, message: problem.message }).collect()
}

crate::bindings::export!(Nodes with_types_in crate::bindings);

struct Imports;

impl Outside for Imports {
    fn publish(&self, topic: &str, payload: &str) -> Result<u64, publish::PublishError> {
        publish::publish(topic, payload)
    }

    fn complete(&self, request: &llm::Request) -> Result<llm::Completion, llm::LlmError> {
        llm::complete(request)
    }

    fn send(&self, request: &http::Request) -> Result<http::Response, http::HttpError> {
        http::send(request)
    }

    fn sleep(&self, ms: u64) -> Result<(), wait::WaitError> {
        wait::sleep(ms)
    }

    fn signal(&self, name: &str, timeout_ms: Option<u64>) -> Result<String, wait::WaitError> {
        wait::signal(name, timeout_ms)
    }

    fn start_child(&self, request: &children::Request) -> Result<String, children::StartError> {
        children::start(request)
    }

    fn await_child(&self, run: &str, timeout_ms: Option<u64>) -> Result<String, children::AwaitError> {
        children::await_(run, timeout_ms)
    }
}
