//! `#[workflow]` from the outside: the graph it describes, and steps run with JSON as the host would.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test that fails may panic")]

use serde::{Deserialize, Serialize};
use serde_json::json;
use stepwell_guest::prelude::*;
use stepwell_guest::{Inputs, Outcome, Workflow, defaults};

#[derive(Debug, Serialize, Deserialize)]
struct Order {
    amount: u64,
}

#[workflow(topics = ["update", "status"], channel = "orders", output = "close")]
mod orders {
    use super::*;

    /// Looks at the order
    /// and chooses its way.
    ///
    /// This paragraph is not part of the description.
    #[step]
    pub(super) fn classify(input: Order) -> Result<Routed<u64>, Failure> {
        match input.amount {
            0 => Err(Failure::permanent("empty", "there is nothing to do")),
            amount if amount > 1000 => Ok(Routed::to_all(["big", "huge"], amount)),
            amount => Ok(Routed { output: amount, labels: Vec::new() }),
        }
    }

    #[step(
        when(classify = ["big", "huge"]),
        retry(max_attempts = 5, initial = "500ms", factor = 3, max = "10s", jitter = 0.5),
        timeout = "10s",
        fuel = 50_000_000,
        memory = "32MiB",
    )]
    pub(super) fn approve(ctx: &Ctx, classify: u64) -> Result<String, Failure> {
        ctx.publish("update", &json!({ "amount": classify }))?;
        Ok("approved".to_owned())
    }

    #[step(after = [classify], retry(initial = "2m"))]
    pub(super) fn audit(_input: Order) -> Result<(), Failure> {
        Ok(())
    }

    #[step(after = audit)]
    pub(super) fn close(r#approve: Option<String>) -> Result<String, Failure> {
        Ok(approve.unwrap_or_else(|| "small".to_owned()))
    }

    /// A function without `#[step]` is no node.
    #[allow(dead_code)]
    fn helper() {}
}

fn inputs(values: &[(&str, &str)]) -> Inputs {
    Inputs::from(values.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect::<Vec<_>>())
}

fn run(node: &str, values: &[(&str, &str)]) -> Result<Outcome, Failure> {
    orders::Workflow::run_step(&Ctx::for_test().on_node(node), inputs(values))
}

#[test]
fn parameters_after_and_when_become_the_graph() {
    let graph = orders::Workflow::describe();
    assert_eq!(graph.topics, ["update", "status"]);
    assert_eq!(graph.channel.as_deref(), Some("orders"));
    assert_eq!(graph.output.as_deref(), Some("close"));

    let nodes: Vec<(&str, Vec<&str>)> =
        graph.nodes.iter().map(|node| (node.id.as_str(), node.needs.iter().map(String::as_str).collect())).collect();
    assert_eq!(
        nodes,
        [
            ("classify", vec!["input"]),
            ("approve", vec!["classify"]),
            ("audit", vec!["input"]),
            ("close", vec!["approve"]),
        ]
    );

    let edges: Vec<(&str, &str, Option<&str>)> =
        graph.edges.iter().map(|edge| (edge.source.as_str(), edge.target.as_str(), edge.label.as_deref())).collect();
    assert_eq!(
        edges,
        [
            ("classify", "approve", Some("big")),
            ("classify", "approve", Some("huge")),
            ("classify", "audit", None),
            ("approve", "close", None),
            ("audit", "close", None),
        ]
    );
}

#[test]
fn the_first_paragraph_is_the_description() {
    let graph = orders::Workflow::describe();
    assert_eq!(graph.nodes[0].description.as_deref(), Some("Looks at the order and chooses its way."));
    assert_eq!(graph.nodes[1].description, None);
}

#[test]
fn limits_and_retry_are_what_is_written_or_the_default() {
    let graph = orders::Workflow::describe();
    let (classify, approve, audit) = (&graph.nodes[0], &graph.nodes[1], &graph.nodes[2]);

    assert_eq!(approve.limits.fuel, 50_000_000);
    assert_eq!(approve.limits.timeout_ms, 10_000);
    assert_eq!(approve.limits.memory_bytes, 32 * 1024 * 1024);
    assert_eq!(approve.retry.max_attempts, 5);
    assert_eq!((approve.retry.initial_ms, approve.retry.max_ms), (500, 10_000));
    assert_eq!((approve.retry.factor, approve.retry.jitter), (3.0, 0.5));

    assert_eq!(classify.limits.fuel, defaults::FUEL);
    assert_eq!(classify.retry.max_attempts, defaults::MAX_ATTEMPTS);
    assert_eq!(classify.retry.max_ms, defaults::RETRY_MAX_MS);

    // A first wait above the default for the longest one raises that.
    assert_eq!((audit.retry.initial_ms, audit.retry.max_ms), (120_000, 120_000));
}

#[test]
fn a_step_is_run_with_json_and_answers_with_json() {
    let outcome = run("audit", &[("input", r#"{"amount": 5}"#)]).unwrap();
    assert_eq!(outcome, Outcome { output: "null".to_owned(), labels: Vec::new() });
}

#[test]
fn a_routed_output_names_its_labels() {
    let outcome = run("classify", &[("input", r#"{"amount": 5000}"#)]).unwrap();
    assert_eq!(outcome, Outcome { output: "5000".to_owned(), labels: vec!["big".to_owned(), "huge".to_owned()] });
}

#[test]
fn the_output_of_a_skipped_step_is_none() {
    assert_eq!(run("close", &[]).unwrap().output, r#""small""#);
    assert_eq!(run("close", &[("approve", r#""approved""#)]).unwrap().output, r#""approved""#);
}

#[test]
fn the_output_of_a_skipped_step_is_missed_where_it_is_required() {
    let failure = run("approve", &[]).unwrap_err();
    assert_eq!(failure.code(), "missing_input");
    assert!(!failure.is_retryable());
}

#[test]
fn an_input_of_another_type_fails_with_its_parameter_and_place() {
    let failure = run("classify", &[("input", r#"{"amount": "many"}"#)]).unwrap_err();
    assert_eq!(failure.code(), "invalid_input");
    assert!(!failure.is_retryable());
    assert_eq!(failure.message(), "`input`: invalid type: string \"many\", expected u64 at line 1 column 17");
}

#[test]
fn a_failure_of_the_step_arrives_as_it_is() {
    let failure = run("classify", &[("input", r#"{"amount": 0}"#)]).unwrap_err();
    assert_eq!(failure, Failure::permanent("empty", "there is nothing to do"));
}

#[test]
fn a_node_that_is_not_there_is_a_failure() {
    assert_eq!(run("nobody", &[]).unwrap_err().code(), "unknown_node");
}

#[test]
fn a_test_context_records_what_a_step_does() {
    let ctx = Ctx::for_test();
    orders::approve(&ctx, 5000).unwrap();
    ctx.log_at(Level::Warn, "careful");
    let artifact = ctx.artifact("a.txt", "text/plain", b"abc").unwrap();
    assert_eq!(artifact.url(), format!("/v1/artifacts/{}", artifact.id));

    let recorded = ctx.recorded();
    assert_eq!(recorded.updates[0].payload, json!({ "amount": 5000 }));
    assert_eq!(recorded.lines, [(Level::Warn, "careful".to_owned())]);
    assert_eq!(recorded.artifacts[0].content, b"abc");
    assert!(ctx.now_ms() < ctx.now_ms());
}

#[test]
fn random_bytes_are_asked_for_until_there_are_enough() {
    let ctx = Ctx::for_test();
    assert_eq!(ctx.random_bytes(10_000).len(), 10_000);
    assert!(ctx.random_bytes(0).is_empty());
}

#[workflow]
mod one_step {
    use super::*;

    #[step]
    fn only() -> Result<&'static str, Failure> {
        Ok("done")
    }
}

#[test]
fn the_only_step_at_the_end_is_the_output() {
    assert_eq!(one_step::Workflow::describe().output.as_deref(), Some("only"));
    let outcome = one_step::Workflow::run_step(&Ctx::for_test().on_node("only"), Inputs::default());
    assert_eq!(outcome.unwrap().output, r#""done""#);
}

#[workflow(signals = ["approval", "stop"], timeout = "36h")]
mod patient {
    use std::time::Duration;

    use super::*;

    #[step(retry(
        max_attempts = 3,
        initial = "1s",
        when_exhausted = "pause",
        errors(rate_limited(max_attempts = 9, initial = "10s"), gone(max_attempts = 1))
    ))]
    pub(super) fn ask(ctx: &Ctx, input: Order) -> Result<u64, Failure> {
        ctx.sleep(Duration::from_secs(60))?;
        let approved: Order = ctx.signal_within("approval", Duration::from_secs(3_600))?;
        let child = ctx.start_child(Child::of("ledger").input(&approved))?;
        let booked: u64 = ctx.await_child(&child)?;
        Ok(booked + input.amount)
    }
}

#[test]
fn signals_the_runs_time_and_policies_of_single_codes_are_described() {
    let graph = patient::Workflow::describe();
    let signals: Vec<_> = graph.signals.iter().map(|signal| (signal.name.as_str(), signal.schema.as_deref())).collect();
    assert_eq!(signals, [("approval", None), ("stop", None)]);
    assert_eq!(graph.timeout_ms, Some(129_600_000));
    let retry = &graph.nodes[0].retry;
    assert!(matches!(retry.when_exhausted, stepwell_guest::Exhausted::Pause));
    let errors: Vec<_> =
        retry.errors.iter().map(|error| (error.code.as_str(), error.max_attempts, error.initial_ms)).collect();
    assert_eq!(errors, [("rate_limited", 9, 10_000), ("gone", 1, 1_000)]);
    assert!(matches!(orders::Workflow::describe().nodes[0].retry.when_exhausted, stepwell_guest::Exhausted::Fail));
}

#[test]
fn waiting_steps_are_tested_without_a_host() {
    let input = || inputs(&[("input", r#"{"amount": 1}"#)]);
    let ctx = Ctx::for_test().on_node("ask").with_signal("approval", &json!({ "amount": 5 })).with_child_output(&41);
    assert_eq!(patient::Workflow::run_step(&ctx, input()).unwrap().output, "42");
    let recorded = ctx.recorded();
    assert_eq!(recorded.slept_ms, 60_000);
    let child = &recorded.children[0];
    assert_eq!((child.workflow.as_str(), &child.input, child.detached), ("ledger", &json!({ "amount": 5 }), false));

    let failed = |ctx: Ctx| patient::Workflow::run_step(&ctx.on_node("ask"), input()).unwrap_err();
    assert_eq!(failed(Ctx::for_test()).code(), "signal_timeout");
    assert_eq!(failed(Ctx::for_test().with_signal("approval", &json!("yes"))).code(), "invalid_signal");
    let unfinished = Ctx::for_test().with_signal("approval", &json!({ "amount": 5 }));
    assert_eq!(failed(unfinished).code(), "child_cancelled");

    let ctx = Ctx::for_test();
    ctx.sleep(std::time::Duration::MAX).unwrap();
    assert_eq!(ctx.recorded().slept_ms, 31_622_400_000, "no longer than a host would take");
    assert!(ctx.now_ms() > 0);
}
