//! Documents that are fine, and what becomes of them.

use std::fmt::Write;

use expect_test::{Expect, expect};
use serde_json::{Value, json};
use stepwell_core::Graph;
use stepwell_core::retry::Exhausted;
use stepwell_document::Document;

use crate::{checked, document, shown, transform};

/// What a graph needs and stands in, a line for each node.
fn plans(document: &Value, expected: Expect) {
    let checked = checked(&document.to_string()).unwrap_or_else(|problems| panic!("{}", shown(&problems)));
    let mut lines = String::new();
    for (node, plan) in checked.program.document.nodes.iter().zip(&checked.program.plans) {
        write!(lines, "{}: needs [{}]", node.id, plan.needs.join(" ")).unwrap();
        if !plan.scopes.is_empty() {
            write!(lines, " in [{}]", plan.scopes.join(" ")).unwrap();
        }
        if let Some(joined) = &plan.joins {
            write!(lines, " hands on {joined}").unwrap();
        }
        lines.push('\n');
    }
    expected.assert_eq(&lines);
    // The host accepts the graph, and the document is what serde reads.
    Graph::check(checked.graph).unwrap();
    assert_eq!(checked.program.document, serde_json::from_value::<Document>(document.clone()).unwrap());
}

/// One of every kind, with every field.
pub(crate) fn complete() -> Value {
    json!({
        "stepwell": 1,
        "name": "Digest",
        "description": "Sums up documents.",
        "input": { "type": "object" },
        "topics": ["progress", "answer"],
        "channel": "tasks",
        "signals": { "approval": { "type": "object", "required": ["by"] }, "stop": true },
        "timeout": "36h",
        "nodes": [
            { "id": "fetch", "kind": "http", "method": "GET", "url": "https://example.org/${ .input.id }?x=$${y}",
              "query": { "page": 1, "filter": "${ .input.filter }", "none": null, "on": true },
              "headers": { "x-trace": "${ .run.id }" },
              "authorization": { "secret": "api-key", "header": "x-key", "prefix": "" },
              "status": { "ok": ["2xx", 304], "retry": [408, "5xx"] },
              "retry": { "max_attempts": 3, "initial": "500ms", "factor": 1.5, "max": "1m30s", "jitter": 0,
                "errors": { "rate_limited": { "max_attempts": 9, "initial": "10s", "factor": 1, "max": "1h" }, "gone": { "max_attempts": 1 } },
                "when_exhausted": "pause" },
              "timeout": "10s", "fuel": 5, "description": "Gets the list." },
            { "id": "post", "kind": "http", "url": "${ .input.url }", "body": { "list": ["${ .nodes.fetch.body }"] } },
            { "id": "kind", "kind": "branch",
              "cases": [ { "when": "${ .nodes.fetch.status == 200 }", "label": "some" } ], "else": "none" },
            { "id": "each", "kind": "map", "items": "${ .nodes.fetch.body.items }", "concurrency": 5, "on_failure": "collect" },
            { "id": "ask", "kind": "llm", "provider": "mock", "model": "${ .input.model // \"small\" }", "system": "Be brief.",
              "prompt": "Sum up: ${ .item.text }", "max_tokens": 100, "temperature": 0.5,
              "schema": { "type": "object" }, "topic": "answer" },
            { "id": "refine", "kind": "loop", "initial": { "text": "${ .nodes.ask.text }", "n": 0 },
              "while": "${ .index < 3 and (.item.text | length) > .nodes.ask.json.most }", "max": 10, "on_max": "stop" },
            { "id": "shorten", "kind": "component", "workflow": "tools", "version": "ab".repeat(32), "node": "shorten",
              "inputs": { "input": "${ .item.text }", "style": { "tone": "${ .input.tone }" } } },
            { "id": "refined", "kind": "join", "of": "refine", "output": { "text": "${ .nodes.shorten }", "n": "${ .item.n + 1 }" } },
            { "id": "all", "kind": "join", "of": "each" },
            { "id": "end", "kind": "transform", "topic": "progress", "output": { "sums": "${ .nodes.all }", "failed": "${ .nodes.post.status }" } },
            { "id": "rest", "kind": "sleep", "for": "${ .input.rest }" },
            { "id": "approval", "kind": "signal", "name": "approval", "within": "24h", "on_timeout": "null" },
            { "id": "book", "kind": "workflow", "workflow": "ledger", "version": "cd".repeat(32), "detached": true,
              "input": { "by": "${ .nodes.approval.by }", "sums": "${ .nodes.all }" } }
        ],
        "edges": [
            { "source": "fetch", "target": "kind" },
            { "source": "fetch", "target": "post" },
            { "source": "kind", "target": "each", "label": "some" },
            { "source": "kind", "target": "end", "label": "none" },
            { "source": "each", "target": "ask" },
            { "source": "ask", "target": "refine" },
            { "source": "refine", "target": "shorten" },
            { "source": "shorten", "target": "refined" },
            { "source": "refined", "target": "all" },
            { "source": "all", "target": "end" },
            { "source": "post", "target": "end" },
            { "source": "end", "target": "rest" },
            { "source": "rest", "target": "approval" },
            { "source": "approval", "target": "book" }
        ],
        "output": "end"
    })
}

#[test]
fn every_kind_with_every_field() {
    plans(
        &complete(),
        expect![[r#"
            fetch: needs [input]
            post: needs [input fetch]
            kind: needs [fetch]
            each: needs [fetch]
            ask: needs [input each] in [each]
            refine: needs [ask] in [each]
            shorten: needs [input refine] in [each refine]
            refined: needs [ask refine shorten] in [each refine]
            all: needs [refined] hands on refined
            end: needs [post all]
            rest: needs [input]
            approval: needs []
            book: needs [all approval]
        "#]],
    );
}

#[test]
fn signals_the_runs_time_and_policies_of_single_codes_reach_the_graph() {
    let graph = checked(&complete().to_string()).unwrap().graph;
    assert_eq!(graph.timeout_ms, Some(129_600_000));
    let signals: Vec<(&str, bool)> =
        graph.signals.iter().map(|signal| (signal.name.as_str(), signal.schema.is_some())).collect();
    assert_eq!(signals, [("approval", true), ("stop", false)], "one that takes anything is not checked");
    let retry = &graph.nodes[0].retry;
    assert_eq!(retry.when_exhausted, Exhausted::Pause);
    let errors: Vec<_> = retry
        .errors
        .iter()
        .map(|error| (error.code.as_str(), error.max_attempts, error.initial_ms, error.factor, error.max_ms))
        .collect();
    // What a code leaves out is as for all others.
    assert_eq!(errors, [("gone", 1, 500, 1.5, 90_000), ("rate_limited", 9, 10_000, 1.0, 3_600_000)]);
    assert_eq!(graph.nodes[1].retry.when_exhausted, Exhausted::Fail);
}

#[test]
fn a_document_says_as_little_as_it_has_to() {
    let document = json!({ "stepwell": 1, "nodes": [transform("only", "")] });
    plans(
        &document,
        expect![[r#"
            only: needs []
        "#]],
    );
    let checked = checked(&document.to_string()).unwrap();
    let node = &checked.graph.nodes[0];
    assert_eq!((node.limits.timeout_ms, node.limits.fuel), (30_000, 5_000_000_000));
    assert_eq!(node.retry, stepwell_core::retry::RetryPolicy::default());
}

#[test]
fn defaults_are_those_of_the_kind() {
    let checked = checked(&complete().to_string()).unwrap();
    let timeout = |id: &str| checked.graph.nodes.iter().find(|node| node.id == id).unwrap().limits.timeout_ms;
    assert_eq!((timeout("fetch"), timeout("post"), timeout("ask"), timeout("all")), (10_000, 60_000, 600_000, 30_000));
    let fetch = &checked.program.plans[0];
    assert_eq!((fetch.retry.initial_ms, fetch.retry.max_ms, fetch.retry.factor), (500, 90_000, 1.5));
    assert_eq!(fetch.fuel, 5);
}

#[test]
fn fields_that_are_null_are_left_out() {
    let document = json!({ "stepwell": 1, "name": null, "output": null, "nodes": [
        { "id": "a", "kind": "http", "url": "http://x", "body": null, "timeout": null, "retry": null, "status": { "ok": null } }
    ] });
    plans(
        &document,
        expect![[r#"
            a: needs []
        "#]],
    );
}

#[test]
fn an_expression_that_uses_its_whole_context_is_handed_all_that_it_can_see() {
    plans(
        &document(
            json!([
                transform("a", "1"), transform("b", "2"), transform("apart", "3"),
                { "id": "m", "kind": "map", "items": [1, 2] },
                transform("in", "${ . }"), transform("deeper", "${ .nodes | keys }"),
                { "id": "j", "kind": "join", "of": "m", "output": "${ tojson }" },
                transform("end", "${ . as $c | 1 }"),
            ]),
            "a -> b; b -> m; m -> in; in -> deeper; deeper -> j; j -> end; a -> apart",
        ),
        expect![[r#"
            a: needs []
            b: needs []
            apart: needs []
            m: needs []
            in: needs [input a b m] in [m]
            deeper: needs [input a b m in] in [m]
            j: needs [input a b m in deeper]
            end: needs [input a b m j]
        "#]],
    );
}

#[test]
fn scopes_stand_in_scopes() {
    plans(
        &document(
            json!([
                transform("first", "1"),
                { "id": "outer", "kind": "map", "items": "${ .input }" },
                { "id": "inner", "kind": "map", "items": "${ .item }" },
                transform("x", "${ [.item, .nodes.outer, .nodes.first, .index] }"),
                { "id": "way", "kind": "branch", "cases": [{ "when": "${ .item }", "label": "on" }] },
                { "id": "inner-join", "kind": "join", "of": "inner", "output": "${ [.nodes.x, .item, .failures] }" },
                { "id": "outer-join", "kind": "join", "of": "outer" },
                transform("last", "${ .nodes[\"outer-join\"], .nodes.outer, .nodes.first }"),
            ]),
            "first -> outer; outer -> inner; inner -> x; x -> way; way -on-> inner-join; inner-join -> outer-join; outer-join -> last",
        ),
        expect![[r#"
            first: needs []
            outer: needs [input]
            inner: needs [outer] in [outer]
            x: needs [first outer inner] in [outer inner]
            way: needs [inner] in [outer inner]
            inner-join: needs [outer x] in [outer]
            outer-join: needs [inner-join] hands on inner-join
            last: needs [first outer outer-join]
        "#]],
    );
}

#[test]
fn a_loops_join_is_handed_the_state_and_what_the_condition_needs() {
    plans(
        &document(
            json!([
                transform("limit", "1"),
                { "id": "l", "kind": "loop", "initial": 0, "while": "${ .item < .nodes.limit + .input.more }", "max": 5 },
                transform("next", "${ .item + 1 }"),
                { "id": "j", "kind": "join", "of": "l" },
                { "id": "l2", "kind": "loop", "initial": 0, "while": "${ . | tojson | length > 3 }", "max": 5 },
                transform("next2", "${ .nodes.j }"),
                { "id": "j2", "kind": "join", "of": "l2", "output": 1 },
            ]),
            "limit -> l; l -> next; next -> j; j -> l2; l2 -> next2; next2 -> j2",
        ),
        expect![[r#"
            limit: needs []
            l: needs [input limit]
            next: needs [l] in [l]
            j: needs [input limit l next] in [l] hands on next
            l2: needs [input limit l j]
            next2: needs [j] in [l2]
            j2: needs [input limit l j l2] in [l2]
        "#]],
    );
}

#[test]
fn a_node_inside_may_lead_nowhere() {
    plans(
        &document(
            json!([
                { "id": "m", "kind": "map", "items": [1] }, transform("a", "1"), transform("aside", "${ .nodes.a }"),
                { "id": "j", "kind": "join", "of": "m" },
            ]),
            "m -> a; a -> j; a -> aside",
        ),
        expect![[r#"
            m: needs []
            a: needs [] in [m]
            aside: needs [a] in [m]
            j: needs [a] hands on a
        "#]],
    );
}
