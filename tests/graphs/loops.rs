//! `loop` and `join`: the same nodes again and again while a condition holds.

use serde_json::{Value, json};

use super::{events, failure, of, output, row, run};
use crate::support::Server;

/// Counts from `.input.from` while it is under `.input.to`.
fn count(more: Value) -> Value {
    let mut document = row(json!([
        {"id": "again", "kind": "loop", "initial": "${ .input.from }", "while": "${ .item < .input.to }", "max": 1_000},
        {"id": "work", "kind": "transform", "output": "${ .item + 1 }"},
        {"id": "done", "kind": "join", "of": "again"},
    ]));
    document["nodes"][0].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    document
}

#[tokio::test]
async fn a_loop_runs_while_its_condition_holds() {
    let server = Server::start_prepared(&["--dev"]);
    let none = run(&server, &count(json!({})), json!({"from": 5, "to": 5})).await;
    assert_eq!(none["output"], 5);
    let history = events(&server, &none).await;
    assert!(of(&history, "step.started", "work").is_empty(), "{history:?}");

    let many = run(&server, &count(json!({})), json!({"from": 0, "to": 1_000})).await;
    assert_eq!((&many["status"], &many["output"]), (&json!("completed"), &json!(1_000)), "{many}");
    let history = events(&server, &many).await;
    let items: Vec<u64> =
        of(&history, "step.completed", "work").iter().map(|e| e["items"][0].as_u64().unwrap()).collect();
    assert_eq!(items, (0..1_000).collect::<Vec<_>>(), "one after the other");
    assert_eq!(of(&history, "step.completed", "again").len(), 1, "the state is made once");

    // The number of the iteration is there for the condition, the nodes and the join.
    let numbered = row(json!([
        {"id": "again", "kind": "loop", "initial": [], "while": "${ .index < 3 }", "max": 10},
        {"id": "work", "kind": "transform", "output": "${ [.index, (.item | length)] }"},
        {"id": "done", "kind": "join", "of": "again", "output": "${ .item + [.nodes.work + [.index]] }"},
    ]));
    assert_eq!(output(&server, &numbered, Value::Null).await, json!([[0, 0, 0], [1, 1, 1], [2, 2, 2]]));
}

#[tokio::test]
async fn a_loop_that_would_go_on_for_ever_fails_or_stops_at_its_most() {
    let server = Server::start_prepared(&["--dev"]);
    let endless = json!({"from": 0, "to": 1_000_000});
    let (told, failure_at_max) = failure(&server, &count(json!({"max": 3})), endless.clone()).await;
    assert_eq!(told, "permanent workflow loop_limit");
    assert!(failure_at_max["message"].as_str().unwrap().contains("after 3 iterations"), "{failure_at_max}");
    let stopped = output(&server, &count(json!({"max": 3, "on_max": "stop"})), endless).await;
    assert_eq!(stopped, 3);
    let just = json!({"from": 0, "to": 3});
    assert_eq!(output(&server, &count(json!({"max": 3})), just).await, 3, "as many as it may are not too many");

    for (more, node) in [(json!({"initial": "${ empty }"}), "again"), (json!({"while": "${ error(\"no\") }"}), "again")]
    {
        let run = run(&server, &count(more.clone()), json!({"from": 0, "to": 1})).await;
        assert_eq!((&run["status"], &run["failed_node"]), (&json!("failed"), &json!(node)), "{more}");
    }
    // The condition is asked again by the join.
    let later = count(json!({"while": "${ if .item == 2 then error(\"two\") else true end }"}));
    let run = run(&server, &later, json!({"from": 0, "to": 9})).await;
    assert_eq!((&run["failed_node"], &run["failure"]["code"]), (&json!("done"), &json!("expression_failed")));
}

#[tokio::test]
async fn loops_and_maps_stand_in_each_other() {
    let server = Server::start_prepared(&["--dev"]);
    let loops_in_a_map = row(json!([
        {"id": "each", "kind": "map", "items": "${ .input }"},
        {"id": "again", "kind": "loop", "initial": "${ .item }", "while": "${ .item > 0 }", "max": 10},
        {"id": "work", "kind": "transform", "output": "${ .item - 3 }"},
        {"id": "done", "kind": "join", "of": "again"},
        {"id": "all", "kind": "join", "of": "each"},
    ]));
    assert_eq!(output(&server, &loops_in_a_map, json!([7, 0, 3])).await, json!([-2, 0, 0]));
    let mut too_many = loops_in_a_map.clone();
    too_many["nodes"][0]["on_failure"] = json!("collect");
    too_many["nodes"][4]["output"] = json!("${ .failures | map([.index, .node, .code]) }");
    assert_eq!(output(&server, &too_many, json!([7, 100, 3])).await, json!([[1, "done", "loop_limit"]]));

    let maps_in_a_loop = row(json!([
        {"id": "again", "kind": "loop", "initial": [1], "while": "${ .item | length < 8 }", "max": 10},
        {"id": "each", "kind": "map", "items": "${ .item }"},
        {"id": "work", "kind": "transform", "output": "${ [.item, .nodes.again[0] + .item] }"},
        {"id": "all", "kind": "join", "of": "each"},
        {"id": "done", "kind": "join", "of": "again", "output": "${ .nodes.all | add }"},
    ]));
    assert_eq!(output(&server, &maps_in_a_loop, Value::Null).await, json!([1, 2, 2, 3, 2, 3, 3, 4]));
}
