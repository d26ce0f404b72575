//! What the component exports, and where its steps' requests go: the wiring between `wit/` and this crate.

use stepwell_document::json_schema;

use crate::bindings::exports::stepwell::workflow::steps::{Guest, InputProblem};
use crate::bindings::stepwell::workflow::graph::Graph;
use crate::bindings::stepwell::workflow::types::{Failure, Outcome, StepContext};
use crate::bindings::stepwell::workflow::{http, llm, publish};
use crate::step::Outside;
use crate::{describe, failure, specialize, step};

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
        };
        specialize::program().map_or_else(none, describe::describe)
    }

    fn check_input(input: String) -> Vec<InputProblem> {
        let Some(schema) = specialize::program().and_then(|program| program.input.as_ref()) else { return Vec::new() };
        let problems = match serde_json::from_str(&input) {
            Ok(input) => json_schema::validate(schema, &input),
            Err(error) => {
                vec![json_schema::Problem { pointer: String::new(), message: format!("cannot be read: {error}") }]
            }
        };
        problems
            .into_iter()
            .map(|problem| InputProblem { pointer: problem.pointer, message: problem.message })
            .collect()
    }

    fn run_step(ctx: StepContext, inputs: Vec<(String, String)>) -> Result<Outcome, Failure> {
        let program = specialize::program();
        let program = program.ok_or_else(|| failure::permanent("no_program", "this component was not specialised"))?;
        step::run(program, &Imports, &ctx, &inputs)
    }
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
}
