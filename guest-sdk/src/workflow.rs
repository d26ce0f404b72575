//! Where the host's calls arrive: a `Workflow` is what a component exports.
//!
//! Owns the way from the two exports to the trait, and the panic hook. It holds no state between calls,
//! because each call gets a fresh instance.

#[cfg(target_arch = "wasm32")]
use crate::bindings::exports::stepwell::workflow::steps;
use crate::{Ctx, Edge, ErrorPolicy, Failure, Graph, Inputs, Limits, Node, Outcome, RetryPolicy, Signal};

/// A workflow as the host sees it. `#[workflow]` implements it for a type `Workflow` in the module.
///
/// Tests use it to look at the graph, or to run a step with JSON for its inputs.
pub trait Workflow {
    /// The graph. The host asks for it once, when the component is uploaded.
    fn describe() -> Graph;

    /// Executes one attempt of the step that `ctx` names.
    ///
    /// # Errors
    ///
    /// The step's own failure, or `invalid_input`, `missing_input`, `invalid_output` and `unknown_node`, which are
    /// permanent.
    fn run_step(ctx: &Ctx, inputs: Inputs) -> Result<Outcome, Failure>;
}

#[cfg(target_arch = "wasm32")]
impl<W: Workflow> steps::Guest for W {
    fn describe() -> steps::Graph {
        W::describe()
    }

    // The types of the steps' parameters say what a step takes, and each step says so itself.
    fn check_input(_input: String) -> Vec<steps::InputProblem> {
        Vec::new()
    }

    // So does whoever waits for a signal.
    fn check_signal(_name: String, _payload: String) -> Vec<steps::InputProblem> {
        Vec::new()
    }

    fn run_step(step: steps::StepContext, inputs: Vec<(String, String)>) -> Result<steps::Outcome, steps::Failure> {
        log_panics();
        match W::run_step(&Ctx::new(step), Inputs::from(inputs)) {
            Ok(outcome) => Ok(outcome.into()),
            Err(failure) => Err(failure.into()),
        }
    }
}

/// A trap tells the host where in the code it happened, but not the panic's message: that goes to the log.
#[cfg(target_arch = "wasm32")]
fn log_panics() {
    use crate::bindings::stepwell::workflow::log;
    std::panic::set_hook(Box::new(|panic| log::log(log::Level::Error, &panic.to_string())));
}

// What `#[workflow]` builds a graph from. Functions, so that the code it writes stays small and readable.

#[doc(hidden)]
pub fn graph(
    nodes: Vec<Node>,
    edges: Vec<Edge>,
    output: &str,
    topics: &[&str],
    channel: Option<&str>,
    signals: &[&str],
    timeout_ms: Option<u64>,
) -> Graph {
    Graph {
        nodes,
        edges,
        output: Some(output.to_owned()),
        topics: topics.iter().map(|&topic| topic.to_owned()).collect(),
        channel: channel.map(str::to_owned),
        input_schema: None,
        signals: signals.iter().map(|&name| Signal { name: name.to_owned(), schema: None }).collect(),
        timeout_ms,
    }
}

#[doc(hidden)]
pub fn error_policy(code: &str, max_attempts: u32, initial_ms: u64, factor: f64, max_ms: u64) -> ErrorPolicy {
    ErrorPolicy { code: code.to_owned(), max_attempts, initial_ms, factor, max_ms }
}

#[doc(hidden)]
pub fn node(id: &str, description: Option<&str>, needs: &[&str], retry: RetryPolicy, limits: Limits) -> Node {
    Node {
        id: id.to_owned(),
        description: description.map(str::to_owned),
        needs: needs.iter().map(|&need| need.to_owned()).collect(),
        retry,
        limits,
        opens: None,
        closes: None,
        delegates_to: None,
    }
}

#[doc(hidden)]
pub fn edge(source: &str, target: &str, label: Option<&str>) -> Edge {
    Edge { source: source.to_owned(), target: target.to_owned(), label: label.map(str::to_owned) }
}

#[doc(hidden)]
pub fn unknown_node(node: &str) -> Failure {
    Failure::permanent("unknown_node", format!("this component has no step `{node}`"))
}
