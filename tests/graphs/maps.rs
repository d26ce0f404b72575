//! `map` and `join`: the same nodes once for each element of an array.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{events, failure, of, output, row, run};
use crate::support::Server;

/// A map over `${ .input }` with one node in it.
fn map(more: Value, each: Value, joined: Option<Value>) -> Value {
    let mut document = row(json!([
        {"id": "each", "kind": "map", "items": "${ .input }"},
        {"id": "work", "kind": "transform", "output": each},
        {"id": "all", "kind": "join", "of": "each"},
    ]));
    document["nodes"][0].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    if let Some(joined) = joined {
        document["nodes"][2]["output"] = joined;
    }
    document
}

/// The most items under way at once: from an item's first event to its last.
fn most_at_once(events: &[Value]) -> usize {
    let mut spans: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
    for (place, event) in events.iter().enumerate() {
        if let Some(item) = event["items"][0].as_u64() {
            spans.entry(item).and_modify(|span| span.1 = place).or_insert((place, place));
        }
    }
    let begun = |at: usize| spans.values().filter(|(first, last)| *first <= at && at < *last).count();
    (0..events.len()).map(begun).max().unwrap_or(0)
}

#[tokio::test]
async fn a_map_runs_its_nodes_for_each_item_and_joins_them_in_order() {
    let server = Server::start_prepared(&["--dev"]);
    let numbered = map(json!({}), json!({"item": "${ .item }", "index": "${ .index }"}), None);
    assert_eq!(output(&server, &numbered, json!([])).await, json!([]));
    let items = json!([{"a": 1}, null, "x", [2]]);
    let expected = json!([
        {"item": {"a": 1}, "index": 0}, {"item": null, "index": 1}, {"item": "x", "index": 2}, {"item": [2], "index": 3}
    ]);
    assert_eq!(output(&server, &numbered, items).await, expected);

    let summed =
        json!({"sum": "${ .nodes.work | add }", "of": "${ .nodes.each | length }", "failed": "${ .failures }"});
    let many = map(json!({"concurrency": 7}), json!("${ .item * 2 }"), Some(summed));
    let run = run(&server, &many, json!((0..1_000).collect::<Vec<_>>())).await;
    assert_eq!(run["output"], json!({"sum": 999_000, "of": 1_000, "failed": []}));
    let history = events(&server, &run).await;
    assert_eq!(of(&history, "step.completed", "work").len(), 1_000);
    assert_eq!(most_at_once(&history), 7, "all that may, and no more");
    let steps = server.get(&format!("/v1/runs/{}/steps?limit=1000&cursor=900", run["id"].as_str().unwrap())).await;
    let last = steps["data"].as_array().unwrap().iter().find(|step| step["items"] == json!([999])).unwrap();
    assert_eq!((&last["node"], &last["output"]), (&json!("work"), &json!(1998)));

    let literal = map(json!({"items": [3, "${ .input }"]}), json!("${ .item }"), None);
    assert_eq!(output(&server, &literal, json!(4)).await, json!([3, 4]));
    assert_eq!(failure(&server, &numbered, json!({"a": 1})).await.0, "permanent workflow not_an_array");
    let too_many = json!(vec![0; 10_001]);
    assert_eq!(failure(&server, &numbered, too_many).await.0, "permanent workflow too_many_items");
    let missing = map(json!({}), json!("${ .item }"), Some(json!("${ .nodes.work[5] | error(\"none\") }")));
    assert_eq!(failure(&server, &missing, json!([1])).await.0, "permanent workflow expression_failed");
}

#[tokio::test]
async fn maps_stand_in_each_other_and_items_may_branch() {
    let server = Server::start_prepared(&["--dev"]);
    let nested = row(json!([
        {"id": "rows", "kind": "map", "items": "${ .input }", "concurrency": 2},
        {"id": "cells", "kind": "map", "items": "${ .item }", "concurrency": 3},
        {"id": "cell", "kind": "transform", "output": "${ [.index, .item, .nodes.rows[0], .run.items] }"},
        {"id": "row", "kind": "join", "of": "cells", "output": "${ {row: .index, cells: .nodes.cell} }"},
        {"id": "table", "kind": "join", "of": "rows"},
    ]));
    let expected = json!([
        {"row": 0, "cells": [[0, "a", "a", [0, 0]], [1, "b", "a", [0, 1]]]},
        {"row": 1, "cells": []},
        {"row": 2, "cells": [[0, "c", "c", [2, 0]]]},
    ]);
    assert_eq!(output(&server, &nested, json!([["a", "b"], [], ["c"]])).await, expected);

    let branching = json!({
        "stepwell": 1,
        "nodes": [
            {"id": "each", "kind": "map", "items": "${ .input }"},
            {"id": "odd", "kind": "branch", "cases": [{"when": "${ .item % 2 == 1 }", "label": "yes"}]},
            {"id": "mark", "kind": "transform", "output": "${ \"odd \\(.item)\" }"},
            {"id": "all", "kind": "join", "of": "each", "output": ["${ .nodes.odd }", "${ .nodes.mark }"]},
        ],
        "edges": [
            {"source": "each", "target": "odd"}, {"source": "odd", "target": "mark", "label": "yes"},
            {"source": "odd", "target": "all"}, {"source": "mark", "target": "all"},
        ],
        "output": "all",
    });
    let expected = json!([["yes", null, "yes"], ["odd 1", null, "odd 3"]]);
    assert_eq!(output(&server, &branching, json!([1, 2, 3])).await, expected);
}

#[tokio::test]
async fn what_becomes_of_the_others_when_one_item_fails_is_as_the_map_says() {
    let server = Server::start_prepared(&["--dev"]);
    let two_fail = json!("${ if .item % 3 == 1 then error(\"no \\(.item)\") else .item end }");
    let settings = |on_failure: &str| {
        let joined = json!({"work": "${ .nodes.work }", "failures": "${ .failures }"});
        map(json!({"on_failure": on_failure, "concurrency": 2}), two_fail.clone(), Some(joined))
    };
    let items = json!([0, 1, 2, 3, 4, 5, 6, 8, 9]);
    let collected = output(&server, &settings("collect"), items.clone()).await;
    assert_eq!(collected["work"], json!([0, null, 2, 3, null, 5, 6, 8, 9]));
    let failures = collected["failures"].as_array().unwrap();
    let told = failures.iter().map(|f| (f["index"].as_u64().unwrap(), f["node"].as_str().unwrap()));
    assert_eq!(told.collect::<Vec<_>>(), [(1, "work"), (4, "work")]);
    assert!(failures.iter().all(|f| f["code"] == "expression_failed"), "{failures:?}");
    assert!(failures[0]["message"].as_str().unwrap().contains("no 1"), "{failures:?}");

    for (on_failure, all_end) in [("cancel", false), ("finish", true)] {
        let run = run(&server, &settings(on_failure), items.clone()).await;
        assert_eq!((&run["status"], &run["failed_node"]), (&json!("failed"), &json!("work")), "{on_failure}");
        assert_eq!(run["failure"]["code"], "expression_failed");
        let history = events(&server, &run).await;
        assert_eq!(of(&history, "step.started", "work").len() == 9, all_end, "{on_failure}");
        assert_eq!(of(&history, "step.completed", "work").len() == 7, all_end, "{on_failure}");
        assert!(of(&history, "step.started", "all").is_empty(), "the join does not run");
    }

    // What has failed with an inner map is the item of the outer one.
    let nested = row(json!([
        {"id": "rows", "kind": "map", "items": "${ .input }", "on_failure": "collect"},
        {"id": "cells", "kind": "map", "items": "${ .item }", "on_failure": "cancel"},
        {"id": "work", "kind": "transform", "output": two_fail},
        {"id": "row", "kind": "join", "of": "cells"},
        {"id": "all", "kind": "join", "of": "rows", "output": {
            "rows": "${ .nodes.row }", "failed": "${ .failures | map([.index, .node]) }",
        }},
    ]));
    let rows = output(&server, &nested, json!([[0, 2], [3, 1, 5], [6]])).await;
    assert_eq!(rows, json!({"rows": [[0, 2], null, [6]], "failed": [[1, "work"]]}));

    // An item that fails at first and then does not has not failed.
    let mut retried = map(json!({}), Value::Null, Some(json!("${ .nodes.work | map(.text) }")));
    let model = "${ if .run.attempt == 1 then \"mock-fail\" else \"mock-echo\" end }";
    retried["nodes"][1] = json!({
        "id": "work", "kind": "llm", "provider": "mock", "model": model, "prompt": "${ .item }",
        "retry": {"initial": "1ms"},
    });
    assert_eq!(output(&server, &retried, json!(["a", "b"])).await, json!(["a", "b"]));
}
