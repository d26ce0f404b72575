//! Programs run as the sandbox runs them, with the host's side played by [`Fake`].

mod evaluate;
mod kinds;
mod load;
mod manual;
mod templates;

use std::cell::RefCell;
use std::collections::VecDeque;

use serde_json::{Value, json};

use crate::bindings::stepwell::workflow::types::{Failure, FailureKind, Outcome, StepContext};
use crate::bindings::stepwell::workflow::{children, http, llm, publish, wait};
use crate::program::Program;
use crate::step::{self, Outside};
use crate::template::Problem;

/// What is asked of the host, and what it answers, in order.
#[derive(Default)]
struct Fake {
    completions: RefCell<VecDeque<Result<llm::Completion, llm::LlmError>>>,
    asked: RefCell<Vec<llm::Request>>,
    responses: RefCell<VecDeque<Result<http::Response, http::HttpError>>>,
    sent: RefCell<Vec<http::Request>>,
    published: RefCell<Vec<(String, String)>>,
    refuses_updates: RefCell<Option<publish::PublishError>>,
    slept: RefCell<Vec<u64>>,
    awaited: RefCell<Vec<(String, Option<u64>)>>,
    signals: RefCell<VecDeque<Result<String, wait::WaitError>>>,
    started: RefCell<Vec<children::Request>>,
    ends: RefCell<VecDeque<Result<String, children::AwaitError>>>,
}

impl Outside for Fake {
    fn publish(&self, topic: &str, payload: &str) -> Result<u64, publish::PublishError> {
        if let Some(refusal) = self.refuses_updates.borrow().clone() {
            return Err(refusal);
        }
        self.published.borrow_mut().push((topic.to_owned(), payload.to_owned()));
        Ok(1)
    }

    fn complete(&self, request: &llm::Request) -> Result<llm::Completion, llm::LlmError> {
        self.asked.borrow_mut().push(request.clone());
        self.completions.borrow_mut().pop_front().expect("no answer is prepared")
    }

    fn send(&self, request: &http::Request) -> Result<http::Response, http::HttpError> {
        self.sent.borrow_mut().push(request.clone());
        self.responses.borrow_mut().pop_front().expect("no response is prepared")
    }

    fn sleep(&self, ms: u64) -> Result<(), wait::WaitError> {
        self.slept.borrow_mut().push(ms);
        Ok(())
    }

    fn signal(&self, name: &str, timeout_ms: Option<u64>) -> Result<String, wait::WaitError> {
        self.awaited.borrow_mut().push((name.to_owned(), timeout_ms));
        self.signals.borrow_mut().pop_front().unwrap_or(Err(wait::WaitError::Timeout))
    }

    fn start_child(&self, request: &children::Request) -> Result<String, children::StartError> {
        self.started.borrow_mut().push(request.clone());
        Ok("child".to_owned())
    }

    fn await_child(&self, run: &str, _: Option<u64>) -> Result<String, children::AwaitError> {
        assert_eq!(run, "child");
        self.ends.borrow_mut().pop_front().expect("no end is prepared")
    }
}

/// A program of nodes without plans of their own.
fn load(nodes: Value) -> Result<Program, Vec<Problem>> {
    let plans = nodes.as_array().unwrap().iter().map(|_| plan(&[], None)).collect();
    load_with(nodes, plans)
}

fn load_with(nodes: Value, plans: Vec<Value>) -> Result<Program, Vec<Problem>> {
    let program = json!({ "document": { "stepwell": 1, "nodes": nodes }, "plans": plans });
    Program::load(program.to_string().as_bytes())
}

fn plan(scopes: &[&str], joins: Option<&str>) -> Value {
    json!({
        "needs": [], "scopes": scopes, "joins": joins, "timeout_ms": 30_000, "fuel": 1_000_000, "memory_bytes": 1_000_000,
        "retry": { "max_attempts": 4, "initial_ms": 1000, "factor": 2.0, "max_ms": 60_000, "jitter": 0.2 },
    })
}

fn context(node: &str, items: &[u32]) -> StepContext {
    StepContext {
        run_id: "0190".to_owned(),
        workflow: "orders".to_owned(),
        version: "ab12".to_owned(),
        node: node.to_owned(),
        items: items.to_vec(),
        attempt: 2,
    }
}

fn inputs(inputs: &[(&str, Value)]) -> Vec<(String, String)> {
    inputs.iter().map(|(name, value)| ((*name).to_owned(), value.to_string())).collect()
}

fn run(program: &Program, node: &str, items: &[u32], handed: &[(&str, Value)]) -> Result<Outcome, Failure> {
    step::run(program, &Fake::default(), &context(node, items), &inputs(handed))
}

/// One attempt of the only node.
fn run_one(node: Value, handed: &[(&str, Value)]) -> Result<Outcome, Failure> {
    let program = load(json!([node])).unwrap();
    let id = program.nodes[0].id.clone();
    run(&program, &id, &[], handed)
}

fn parsed(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"))
}

#[track_caller]
fn output(outcome: Result<Outcome, Failure>) -> Value {
    match outcome {
        Ok(Outcome::Output(json)) => parsed(&json),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn again(outcome: Result<Outcome, Failure>) -> Value {
    match outcome {
        Ok(Outcome::Again(json)) => parsed(&json),
        other => panic!("{other:?}"),
    }
}

/// The code of a failure that is not tried again.
#[track_caller]
fn permanent(outcome: Result<Outcome, Failure>) -> String {
    let failure = outcome.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Permanent, "{failure:?}");
    failure.code
}
