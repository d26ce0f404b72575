//! Random graphs, run by the real server, against a tiny reference interpreter.
//!
//! Owns: an expression language of a few words ([`language`]), what a graph of nodes, branches, maps and loops does with
//! it ([`interpreter`]), what is drawn ([`generator`]), and what is compared ([`trace`]). Nothing of the product is used:
//! not its core, not its compiler, not its jq. What the two agree on was written down twice, by different rules.
//! Compared are a run's end, its output, which step failed it and with which code; the fate of every step; the output of
//! every step that completed; the updates on topics; and that nothing else ran. Of the compiler: that it takes the
//! document, and that what came of it asks for no more than it needs.
//! Does not: know messages of failures, times, the order of events, retries that help, or nodes that reach outside. It
//! cannot find what both sides get wrong, which is most likely where jq itself is unclear.
//! Keeps: a failing seed is printed with its document, input and differences, and plays again the same but for what runs
//! side by side: `STEPWELL_SEED=17`. More are played by `STEPWELL_GRAPHS=10000`.

mod dealer;
mod generator;
mod graph;
mod interpreter;
mod language;
mod trace;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::support::Server;
use dealer::Dealer;
use graph::Graph;
use trace::{Sights, Trace};

/// Graphs played in a test run.
const GRAPHS: u64 = 80;
/// Inputs that each is run with.
const INPUTS: usize = 4;
/// Graphs under way at once. While one is compiled, others run.
const GRAPHS_AT_ONCE: usize = 6;
/// Seeds whose differences are printed.
const SHOWN_MAX: usize = 3;

/// How much was played.
#[derive(Debug, Default)]
struct Tally {
    sights: BTreeMap<&'static str, usize>,
    problems: Vec<(u64, String)>,
}

#[tokio::test(flavor = "multi_thread")]
async fn random_graphs_do_what_the_reference_says() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seeds = match number("STEPWELL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("STEPWELL_GRAPHS").unwrap_or(GRAPHS),
    };
    let (server, places) = (Arc::new(Server::start()), Arc::new(Semaphore::new(GRAPHS_AT_ONCE)));
    let started = Instant::now();
    let mut playing = JoinSet::new();
    for seed in seeds.clone() {
        let (server, places) = (Arc::clone(&server), Arc::clone(&places));
        playing.spawn(async move {
            let _place = places.acquire().await.unwrap();
            play(&server, seed).await
        });
    }
    let mut sum = Tally::default();
    while let Some(played) = playing.join_next().await {
        let Tally { sights, problems } = played.unwrap();
        for (name, count) in sights {
            *sum.sights.entry(name).or_default() += count;
        }
        sum.problems.extend(problems);
    }
    let Tally { sights, mut problems } = sum;
    problems.sort();
    let count = seeds.end - seeds.start;
    println!("{count} graphs in {:?}: {sights:?}", started.elapsed());
    let shown: Vec<_> = problems.iter().take(SHOWN_MAX).map(|(_, problem)| problem.as_str()).collect();
    let mut failing: Vec<_> = problems.iter().map(|(seed, _)| seed).collect();
    failing.dedup();
    assert!(problems.is_empty(), "seeds that differ: {failing:?}\n\n{}", shown.join("\n\n"));
    if count >= GRAPHS {
        assert!(sights.values().all(|seen| *seen > 0), "the graphs have become dull: {sights:?}");
    }
}

/// Plays one graph with several inputs.
async fn play(server: &Server, seed: u64) -> Tally {
    let mut dealer = Dealer::new(seed);
    let graph = generator::graph(&mut dealer);
    let document = graph.document(&mut dealer);
    let inputs: Vec<Value> = (0..INPUTS).map(|_| generator::input(&mut dealer)).collect();
    let mut tally = Tally::default();
    let shown = |input: &Value, problems: &[String]| {
        format!("STEPWELL_SEED={seed}\ndocument: {document:#}\ninput: {input}\n{}", problems.join("\n"))
    };
    // Short, so that expressions which read the beginning of it see which one it is.
    let workflow = format!("g{seed}");
    if let Err(problem) = deploy(server, &workflow, &document).await {
        tally.problems.push((seed, shown(&Value::Null, &[problem])));
        return tally;
    }
    let mut runs = Vec::new();
    for input in &inputs {
        runs.push((input, server.start_run(&workflow, input.clone()).await));
    }
    for (input, run) in runs {
        let (sights, problems) = compare(server, &graph, &workflow, input, &run).await;
        for (name, count) in sights {
            *tally.sights.entry(name).or_default() += count;
        }
        if !problems.is_empty() {
            tally.problems.push((seed, shown(input, &problems)));
        }
    }
    tally
}

/// Deploys a document, and looks at what the compiler says about it.
async fn deploy(server: &Server, workflow: &str, document: &Value) -> Result<(), String> {
    let checked = server.request(Method::POST, "/v1/graphs/validate").json(document).send().await.unwrap();
    let checked: Value = checked.json().await.unwrap();
    if checked != json!({ "valid": true, "problems": [] }) {
        return Err(format!("is not accepted: {checked:#}"));
    }
    let deployed = server.post_graph(workflow, document).send().await.unwrap();
    let (status, version): (_, Value) = (deployed.status(), deployed.json().await.unwrap());
    if status != StatusCode::CREATED {
        return Err(format!("is not deployed: {version:#}"));
    }
    let publishes = document["nodes"].as_array().unwrap().iter().any(|node| node["topic"].is_string());
    let needed = if publishes { json!(["stepwell:workflow/publish@0.1.0"]) } else { json!([]) };
    if version["imports"] != needed {
        return Err(format!("asks for {} and needs {needed}", version["imports"]));
    }
    Ok(())
}

/// Waits for a run's end, and says what is not as the reference has it.
async fn compare(server: &Server, graph: &Graph, workflow: &str, input: &Value, run: &str) -> (Sights, Vec<String>) {
    let frames = server.follow(run, None).await.rest().await;
    let events: Vec<Value> = frames.into_iter().map(|frame| frame.data).collect();
    let trace = Trace::of(&events);
    let expected = interpreter::play(graph, workflow, input, &|steps| trace.which_failed(steps));
    let mut problems = trace.problems(&expected);
    let shown = server.get(&format!("/v1/runs/{run}")).await;
    let status = if expected.end.is_ok() { "completed" } else { "failed" };
    let output = expected.end.clone().unwrap_or_default();
    if shown["status"] != status || shown["output"] != output {
        problems.push(format!("the run: expected {status} with {output}, got {shown}"));
    }
    (trace.sights(&expected), problems)
}
