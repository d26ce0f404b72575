//! `stepwell build tests/guests/hostile`, then `stepwell deploy hostile COMPONENT` and
//! `stepwell run hostile --input '{"behaviour": "loop"}' --follow`.
//!
//! A workflow that does what no workflow should. Each [`Behaviour`] is one attack or mistake; the host must end
//! it with the right failure and be none the worse for it.
//!
//! ```text
//!            ┌─ act ───┐   200M fuel, 5 s, 32 MiB, 4 attempts
//! choose ────┼─ large ─┼── end      for what does not fit into 32 MiB
//!            ├─ hungry ┤   2 MiB, and the run's input may have more
//!            ├─ slow ──┤   far more fuel than time
//!            └─ retry ─┘   3 attempts
//! ```
//!
//! It is written against the contract itself and not with the guest SDK, which does not let a step hand over
//! what is not JSON. `behaviour.rs` has the behaviours, `secret.rs` the search for what other instances left
//! behind.

// Nothing here makes sense elsewhere, and a test of the whole workspace must compile.
#![cfg(target_arch = "wasm32")]

mod behaviour;
mod secret;

// A module of its own, so that the rest of the crate can be read without it.
mod bindings {
    wit_bindgen::generate!({ path: "../../../wit", world: "workflow" });
}

use bindings::exports::stepwell::workflow::steps::{Failure, Guest, InputProblem, Outcome, StepContext};
use bindings::stepwell::workflow::graph::{Edge, Exhausted, Graph, Limits, Node, RetryPolicy};
use bindings::stepwell::workflow::types::{FailureKind, Routed};
use serde::Deserialize;

use behaviour::Behaviour;

const MIB: u64 = 1024 * 1024;

/// What the run is to do.
#[derive(Deserialize)]
pub struct Input {
    /// The one behaviour of this run.
    pub behaviour: Behaviour,
    /// What it means depends on the behaviour.
    #[serde(default)]
    pub n: u64,
}

struct Hostile;

impl Guest for Hostile {
    fn describe() -> Graph {
        let act = node("act", 4, limits(200_000_000, 5_000, 32 * MIB));
        let large = node("large", 1, limits(5_000_000_000, 10_000, 256 * MIB));
        let slow = node("slow", 1, limits(100_000_000_000, 300, 32 * MIB));
        let retry = node("retry", 3, limits(200_000_000, 5_000, 32 * MIB));
        let hungry = node("hungry", 1, limits(200_000_000, 5_000, 2 * MIB));
        let branches = [act, large, slow, retry, hungry];

        let mut end = node("end", 1, limits(200_000_000, 5_000, 32 * MIB));
        end.needs = branches.iter().map(|branch| branch.id.clone()).collect();

        let edge = |source: &str, target: &str, label: Option<&str>| Edge {
            source: source.to_owned(),
            target: target.to_owned(),
            label: label.map(str::to_owned),
        };
        let edges = branches
            .iter()
            .flat_map(|branch| [edge("choose", &branch.id, Some(&branch.id)), edge(&branch.id, "end", None)])
            .collect();

        let choose = node("choose", 1, limits(200_000_000, 5_000, 32 * MIB));
        Graph {
            nodes: [choose].into_iter().chain(branches).chain([end]).collect(),
            edges,
            output: Some("end".to_owned()),
            topics: vec!["update".to_owned()],
            channel: None,
            input_schema: None,
            signals: Vec::new(),
            timeout_ms: None,
        }
    }

    fn check_input(_input: String) -> Vec<InputProblem> {
        Vec::new()
    }

    fn check_signal(_name: String, _payload: String) -> Vec<InputProblem> {
        Vec::new()
    }

    fn run_step(ctx: StepContext, inputs: Vec<(String, String)>) -> Result<Outcome, Failure> {
        let Some((_, text)) = inputs.into_iter().next() else {
            return Err(permanent("no_input", "the step was handed nothing"));
        };
        if ctx.node == "end" {
            // The one branch that was taken, as it is.
            return Ok(Outcome::Output(text));
        }
        let input: Input =
            serde_json::from_str(&text).map_err(|error| permanent("invalid_input", &error.to_string()))?;
        if ctx.node == "choose" {
            let labels = vec![input.behaviour.branch().to_owned()];
            return Ok(Outcome::Route(Routed { output: "null".to_owned(), labels }));
        }
        input.behaviour.act(ctx.attempt, input.n)
    }
}

bindings::export!(Hostile with_types_in bindings);

/// Waits of 10 to 50 ms: tests wait for them.
fn node(id: &str, max_attempts: u32, limits: Limits) -> Node {
    Node {
        id: id.to_owned(),
        description: None,
        needs: vec!["input".to_owned()],
        retry: RetryPolicy {
            max_attempts,
            initial_ms: 10,
            factor: 2.0,
            max_ms: 50,
            jitter: 0.0,
            errors: Vec::new(),
            when_exhausted: Exhausted::Fail,
        },
        limits,
        opens: None,
        closes: None,
        delegates_to: None,
    }
}

fn limits(fuel: u64, timeout_ms: u64, memory_bytes: u64) -> Limits {
    Limits { fuel, timeout_ms, memory_bytes }
}

fn permanent(code: &str, message: &str) -> Failure {
    Failure {
        kind: FailureKind::Permanent,
        code: code.to_owned(),
        message: message.to_owned(),
        retry_after_ms: None,
        details: None,
    }
}
