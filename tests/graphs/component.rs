//! `component`: a node of another workflow does a step's work.

use serde_json::{Value, json};

use super::{check_history_of_items, events, failure, interfaces, of, output, row, run};
use crate::support::Server;

fn delegating(workflow: &str, version: &str, node: &str, inputs: Value) -> Value {
    row(json!([{
        "id": "there", "kind": "component", "workflow": workflow, "version": version, "node": node, "inputs": inputs,
    }]))
}

async fn refused(server: &Server, document: &Value) -> Value {
    let response = server.post_graph("delegating", document).send().await.unwrap();
    assert_eq!(response.status(), 422);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["code"], "unknown_delegate", "{body}");
    body["problems"].clone()
}

#[tokio::test]
async fn a_component_node_runs_a_node_of_another_workflow() {
    let server = Server::start_prepared(&["--dev"]);
    let noop = server.deploy("noop", "stepwell_noop").await;
    let probe = server.deploy("probe", "stepwell_probe").await;

    let document = delegating("noop", &noop, "s2", json!({"s1": ["${ .input }", "$${"]}));
    assert_eq!(output(&server, &document, json!({"a": 1})).await, json!([{"a": 1}, "${"]));
    let version = server.deploy_graph("graph", &document).await;
    let asks_for = server.get(&format!("/v1/workflows/graph/versions/{version}")).await["imports"].clone();
    let of_noop = server.get(&format!("/v1/workflows/noop/versions/{noop}")).await["imports"].clone();
    assert_eq!(asks_for, of_noop);

    // A guest that publishes, stores a file and fails at first. The retry policy is that of the node which delegates.
    let input = json!({"updates": 2, "files": 1, "fail_node": "left", "fail_first": 1, "retry_after_ms": 1});
    let mut document = delegating("probe", &probe, "left", json!({"input": "${ .input }"}));
    document["topics"] = json!(["update"]);
    document["nodes"][0]["retry"] = json!({"max_attempts": 2, "initial": "1ms"});
    let done = run(&server, &document, input.clone()).await;
    assert_eq!((&done["output"]["node"], &done["output"]["attempt"]), (&json!("left"), &json!(2)), "{done}");
    let history = events(&server, &done).await;
    let updates = check_history_of_items(&history);
    let told =
        updates.iter().map(|update| (update["node"].as_str().unwrap(), update["payload"]["n"].as_u64().unwrap()));
    assert_eq!(told.collect::<Vec<_>>(), [("there", 1), ("there", 2)], "as updates of the node that delegates");
    assert_eq!(of(&history, "step.artifact", "there").len(), 2);
    let version = server.deploy_graph("graph", &document).await;
    let asks_for = server.get(&format!("/v1/workflows/graph/versions/{version}")).await["imports"].clone();
    let of_probe = server.get(&format!("/v1/workflows/probe/versions/{probe}")).await["imports"].clone();
    assert_eq!(asks_for, of_probe, "what the other asks for is asked for");
    assert!(interfaces(&of_probe).contains(&"publish".to_owned()), "{of_probe}");

    // Its failures are the node's, and what it is handed is for it to judge.
    let permanent = json!({"fail_node": "left", "fail_first": 9, "permanent": true});
    assert_eq!(failure(&server, &document, permanent).await.0, "permanent workflow asked_to_fail");
    assert_eq!(failure(&server, &document, json!({"no": "field"})).await.0, "permanent workflow invalid_input");
    let nothing = delegating("noop", &noop, "s2", json!({}));
    assert_eq!(failure(&server, &nothing, Value::Null).await.0, "permanent workflow missing_input");
    document["topics"] = json!([]);
    let (told, _) = failure(&server, &document, input).await;
    assert_eq!(told, "permanent workflow publish_unknown_topic", "topics are those of this document");

    // A graph can be delegated to as well, and to many at once.
    let double = row(json!([{"id": "double", "kind": "transform", "output": "${ .input * 2 }"}]));
    let double = server.deploy_graph("double", &double).await;
    let mut each = delegating("double", &double, "double", json!({"input": "${ .item }"}));
    each["nodes"] = json!([
        {"id": "each", "kind": "map", "items": "${ .input }"},
        each["nodes"][0],
        {"id": "all", "kind": "join", "of": "each"},
    ]);
    each["edges"] = json!([{"source": "each", "target": "there"}, {"source": "there", "target": "all"}]);
    each["output"] = json!("all");
    assert_eq!(output(&server, &each, json!([1, 2, 3])).await, json!([2, 4, 6]));
}

#[tokio::test]
async fn a_graph_that_delegates_to_what_is_not_there_is_refused() {
    let server = Server::start_prepared(&["--dev"]);
    let noop = server.deploy("noop", "stepwell_noop").await;
    let data_dir = server.data_dir().display().to_string();
    let admin = |arguments: &[&str]| server.cli(&[&["admin"], arguments, &["--data-dir", &data_dir]].concat());
    assert_eq!(admin(&["tenant", "create", "rival"]).code, 0);
    let rival = admin(&["key", "create", "rival"]).stdout.trim().to_owned();
    let theirs = server.deploy_as(&rival, "theirs", "stepwell_probe").await;
    let mapped = row(json!([
        {"id": "each", "kind": "map", "items": []}, {"id": "work", "kind": "transform", "output": 1},
        {"id": "all", "kind": "join", "of": "each"},
    ]));
    let mapped = server.deploy_graph("mapped", &mapped).await;

    let inputs = || json!({"input": null});
    for (workflow, version, node) in [
        ("nobody", noop.as_str(), "s1"),
        ("noop", &"0".repeat(64), "s1"),
        ("noop", &noop, "s11"),
        ("noop", &mapped, "work"),
        ("theirs", &theirs, "left"),
        ("noop", &theirs, "left"),
        ("mapped", &mapped, "each"),
        ("mapped", &mapped, "all"),
    ] {
        let problems = refused(&server, &delegating(workflow, version, node, inputs())).await;
        let [problem] = &problems.as_array().unwrap()[..] else { panic!("{problems}") };
        assert_eq!((&problem["node"], &problem["code"]), (&json!("there"), &json!("unknown_delegate")));
    }
    // Another tenant's version reads like one that there never was.
    let absent = refused(&server, &delegating("theirs", &theirs, "left", inputs())).await.to_string();
    let never = refused(&server, &delegating("theirs", &"0".repeat(64), "left", inputs())).await.to_string();
    assert_eq!(absent.replace(&theirs, "…"), never.replace(&"0".repeat(64), "…"));
    let names = server.get("/v1/workflows").await["data"].clone();
    assert_eq!(names.as_array().unwrap().len(), 2, "nothing was stored: {names}");
}
