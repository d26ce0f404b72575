//! Graph documents: how long it takes from saving one until it can run, and what many of them cost.

use std::time::Instant;

use anyhow::ensure;
use bytes::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use crate::http::Connection;
use crate::report;
use crate::server::Server;

/// Nodes of a document of the size that people draw.
const NODES: usize = 20;

/// What saving graphs costs.
#[derive(Debug)]
pub(crate) struct SaveFigures {
    /// Milliseconds of the first graph that a new server is given: it prepares for all others.
    pub(crate) cold_ms: f64,
    /// Milliseconds of further graphs, each of them new.
    pub(crate) warm_ms: Vec<f64>,
}

/// A chain of transforms, branches and a fan-out with a model in it. `number` makes it a graph of its own.
pub(crate) fn document(number: usize) -> Value {
    let mut nodes = vec![
        json!({ "id": "begin", "kind": "transform", "output": { "graph": number, "n": "${ .input.n // 1 }" } }),
        json!({ "id": "each", "kind": "map", "items": "${ [range(.nodes.begin.n)] }" }),
        json!({ "id": "ask", "kind": "llm", "provider": "mock", "model": "mock", "prompt": "Item ${ .item } of ${ .nodes.begin.n }" }),
        json!({ "id": "asked", "kind": "join", "of": "each", "output": "${ [.nodes.ask[].text | length] | add }" }),
        json!({ "id": "large", "kind": "branch", "cases": [{ "when": "${ .nodes.asked > 10 }", "label": "yes" }], "else": "no" }),
    ];
    let mut edges = vec![
        json!({ "source": "begin", "target": "each" }),
        json!({ "source": "each", "target": "ask" }),
        json!({ "source": "ask", "target": "asked" }),
        json!({ "source": "asked", "target": "large" }),
        json!({ "source": "large", "target": "t5", "label": "yes" }),
        json!({ "source": "large", "target": "t5", "label": "no" }),
    ];
    for place in nodes.len()..NODES {
        let before = if place == 5 { "begin".to_owned() } else { format!("t{}", place - 1) };
        nodes.push(json!({
            "id": format!("t{place}"), "kind": "transform",
            "output": { "n": format!("${{ .nodes.{before}.n + 1 }}"), "text": "step ${ .run.node } of ${ .run.workflow }" },
        }));
        if place > 5 {
            edges.push(json!({ "source": before, "target": format!("t{place}") }));
        }
    }
    let output = format!("t{}", NODES - 1);
    json!({ "stepwell": 1, "nodes": nodes, "edges": edges, "output": output })
}

/// Deploys a document and says how many milliseconds that took.
async fn save(connection: &mut Connection, name: &str, document: &Value) -> anyhow::Result<f64> {
    let (path, body) = (format!("/v1/workflows/{name}/versions"), Bytes::from(document.to_string()));
    let headers = [(CONTENT_TYPE, "application/json")];
    let started = Instant::now();
    connection.send_for_json(Method::POST, &path, &headers, body, StatusCode::CREATED).await?;
    Ok(started.elapsed().as_secs_f64() * 1e3)
}

/// Runs a workflow to its end.
async fn run(connection: &mut Connection, name: &str) -> anyhow::Result<()> {
    let path = format!("/v1/workflows/{name}/runs");
    let headers = [(CONTENT_TYPE, "application/json"), (hyper::header::HeaderName::from_static("prefer"), "wait=30")];
    let body = Bytes::from_static(br#"{"input": {"n": 2}}"#);
    let run = connection.send_for_json(Method::POST, &path, &headers, body, StatusCode::OK).await?;
    ensure!(run.get("status").and_then(Value::as_str) == Some("completed"), "a graph did not complete: {run}");
    Ok(())
}

/// Saves graphs on a new server, one after the other.
pub(crate) async fn saving(server: &Server, count: usize) -> anyhow::Result<SaveFigures> {
    report::progress("saving graphs");
    let mut connection = server.connect().await?;
    let cold_ms = save(&mut connection, "graph", &document(0)).await?;
    let mut warm_ms = Vec::with_capacity(count);
    for number in 1..=count {
        warm_ms.push(save(&mut connection, "graph", &document(number)).await?);
    }
    // What was saved does run.
    run(&mut connection, "graph").await?;
    Ok(SaveFigures { cold_ms, warm_ms })
}

/// Deploys this many versions and runs each of them once, so that each had its code in memory.
pub(crate) async fn many_versions(server: &Server, count: usize) -> anyhow::Result<()> {
    let mut connection = server.connect().await?;
    for number in 1..=count {
        if number % 100 == 0 {
            report::progress(&format!("versions: {number} of {count}"));
        }
        save(&mut connection, "graph", &document(1_000_000 + number)).await?;
        run(&mut connection, "graph").await?;
    }
    Ok(())
}
