//! Graph documents, from the JSON that somebody saves to the run that it becomes.

mod compile;
mod component;
mod computing;
mod documents;
mod hostile;
mod loops;
mod maps;

use serde_json::{Value, json};

use crate::support::{Server, check_history};

/// Nodes in a row: each leads to the next, and the last one's output is the run's.
pub(crate) fn row(nodes: Value) -> Value {
    let ids: Vec<&Value> = nodes.as_array().unwrap().iter().map(|node| &node["id"]).collect();
    let edges: Vec<Value> = ids.windows(2).map(|pair| json!({"source": pair[0], "target": pair[1]})).collect();
    json!({"stepwell": 1, "nodes": nodes, "edges": edges, "output": ids.last().unwrap()})
}

/// Deploys a document in place of the last one, runs it and returns the run. Its history is checked.
pub(crate) async fn run(server: &Server, document: &Value, input: Value) -> Value {
    server.deploy_graph("graph", document).await;
    let run = server.run("graph", input).await;
    check_history_of_items(&events(server, &run).await);
    run
}

/// What a document puts out.
pub(crate) async fn output(server: &Server, document: &Value, input: Value) -> Value {
    let run = run(server, document, input).await;
    assert_eq!(run["status"], "completed", "{run}");
    run["output"].clone()
}

/// How a document fails: `kind source code`, and the failure.
pub(crate) async fn failure(server: &Server, document: &Value, input: Value) -> (String, Value) {
    let run = run(server, document, input).await;
    assert_eq!(run["status"], "failed", "{run}");
    let failure = run["failure"].clone();
    let text = |name: &str| failure[name].as_str().unwrap().to_owned();
    (format!("{} {} {}", text("kind"), text("source"), text("code")), failure)
}

pub(crate) async fn events(server: &Server, run: &Value) -> Vec<Value> {
    server.events(run["id"].as_str().unwrap()).await
}

/// Events of a kind, of a node.
pub(crate) fn of<'a>(events: &'a [Value], kind: &str, node: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["kind"] == kind && event["node"] == node).collect()
}

/// What every history keeps to. Within maps and loops a node has a step for each item.
fn check_history_of_items(events: &[Value]) -> Vec<Value> {
    let named = events.iter().map(|event| {
        let mut event = event.clone();
        if event.get("items").is_some() {
            event["node"] = format!("{}{}", event["node"].as_str().unwrap(), event["items"]).into();
        }
        event
    });
    check_history(&named.collect::<Vec<_>>())
}

/// The interfaces among imports, by their names alone.
pub(crate) fn interfaces(imports: &Value) -> Vec<String> {
    let name = |import: &Value| {
        let name = import.as_str().unwrap().strip_prefix("stepwell:workflow/").unwrap();
        name.split('@').next().unwrap().to_owned()
    };
    imports.as_array().unwrap().iter().map(name).collect()
}
