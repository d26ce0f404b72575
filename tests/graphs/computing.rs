//! `transform`, `branch` and `llm` with made-up answers: one step, one value.

use reqwest::Method;
use serde_json::{Value, json};

use super::{check_history_of_items, events, failure, of, output, row, run};
use crate::support::{Server, problem};

fn transform(output: &Value) -> Value {
    row(json!([{"id": "a", "kind": "transform", "output": output}]))
}

#[tokio::test]
async fn a_transform_makes_a_value_and_publishes_it_on_its_topic() {
    let server = Server::start_prepared(&["--dev"]);
    let input = json!({"n": 12_345_678_901_234_567_890_123.0, "text": "ü", "deep": [[{"a": 1}]]});
    let document = transform(
        &json!({"all": "${ .input }", "in": ["${ .input.text }!", 1, null, {"x": "${ 1, 2 | select(. > 1) }"}]}),
    );
    assert_eq!(output(&server, &document, input.clone()).await, json!({"all": input, "in": ["ü!", 1, null, {"x": 2}]}));

    let mut document = transform(&json!("${ .input }"));
    document["topics"] = json!(["said"]);
    document["nodes"][0]["topic"] = json!("said");
    let run = run(&server, &document, json!({"x": 1})).await;
    let updates = check_history_of_items(&events(&server, &run).await);
    let [update] = &updates[..] else { panic!("{updates:?}") };
    assert_eq!((&update["topic"], &update["payload"]), (&json!("said"), &json!({"x": 1})));
    let (told, _) = failure(&server, &document, json!("x".repeat(300_000))).await;
    assert_eq!(told, "permanent workflow publish_too_large");

    for (code, expected) in [
        ("${ empty }", "no_value"),
        ("${ 1, 2 }", "several_values"),
        ("${ error(\"no\") }", "expression_failed"),
        ("${ 1 / 0 }", "expression_failed"),
        ("${ \"a\" | tobytes }", "not_json"),
        ("${ reduce range(101) as $n (null; [.]) }", "not_json"),
    ] {
        let (told, failure) = failure(&server, &transform(&json!({"list": [0, code]})), Value::Null).await;
        assert_eq!(told, format!("permanent workflow {expected}"), "{code}");
        let field = if expected == "not_json" { "output" } else { "output.list[1]" };
        assert_eq!(failure["details"], json!({"node": "a", "field": field}), "{code}: {failure}");
    }
}

#[tokio::test]
async fn an_expression_without_end_costs_its_step_and_nothing_else() {
    let server = Server::start_prepared(&["--dev"]);
    for code in [
        "[range(1e12)] | length",
        "def f: f; f",
        "[limit(1e9; repeat(1))]",
        "last(range(1e12))",
        "reduce range(1e9) as $n (\"\"; . + \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\")",
        "[recurse(.; true)]",
        "\"a\" * 4000000 | test(\"(a|a)*(a|a)*b\")",
    ] {
        let mut document = transform(&json!(format!("${{ {code} }}")));
        document["nodes"][0]["fuel"] = json!(1_000_000_000);
        assert_eq!(failure(&server, &document, Value::Null).await.0, "permanent platform out_of_fuel", "{code}");
    }
    let mut much = transform(&json!("${ [range(1e8)] | length }"));
    much["nodes"][0]["fuel"] = json!(100_000_000_000u64);
    assert_eq!(failure(&server, &much, Value::Null).await.0, "permanent platform out_of_memory");
    for code in ["def f: 1 + f; f", "def f: [f]; f", "def f($n): [$n, f($n + 1)]; f(0)"] {
        let (told, _) = failure(&server, &transform(&json!(format!("${{ {code} }}"))), Value::Null).await;
        // A guest that runs off its own stack leaves its memory.
        assert!(matches!(&*told, "permanent platform trap" | "permanent platform stack_overflow"), "{code}: {told}");
    }
    assert_eq!(output(&server, &transform(&json!("${ .input + 1 }")), json!(1)).await, 2, "the server is fine");
}

#[tokio::test]
async fn a_branch_takes_the_first_case_that_holds_and_without_one_no_labelled_edge() {
    let server = Server::start_prepared(&["--dev"]);
    let mut document = json!({
        "stepwell": 1,
        "nodes": [
            {"id": "way", "kind": "branch", "cases": [
                {"when": "${ .input.a }", "label": "a"},
                {"when": "${ .input.b }", "label": "b"},
            ]},
            {"id": "on-a", "kind": "transform", "output": "a"},
            {"id": "on-b", "kind": "transform", "output": "b"},
            {"id": "always", "kind": "transform", "output": "${ [.nodes.way, .nodes[\"on-a\"], .nodes[\"on-b\"]] }"},
        ],
        "edges": [
            {"source": "way", "target": "on-a", "label": "a"},
            {"source": "way", "target": "on-b", "label": "b"},
            {"source": "way", "target": "always"},
            {"source": "on-a", "target": "always"},
            {"source": "on-b", "target": "always"},
        ],
        "output": "always",
    });
    for (input, expected) in [
        (json!({"a": 0, "b": true}), json!(["a", "a", null])),
        (json!({"a": false, "b": ""}), json!(["b", null, "b"])),
        (json!({"a": null}), json!([null, null, null])),
        (Value::Null, json!([null, null, null])),
    ] {
        assert_eq!(output(&server, &document, input.clone()).await, expected, "{input}");
    }
    let (told, _) = failure(&server, &document, json!("text")).await;
    assert_eq!(told, "permanent workflow expression_failed");

    // Nothing leads past it then: what is behind it is skipped, and so is the output.
    document["edges"].as_array_mut().unwrap().remove(2);
    let run = run(&server, &document, json!({})).await;
    assert_eq!((&run["status"], &run["output"]), (&json!("completed"), &Value::Null));
    let events = events(&server, &run).await;
    for node in ["on-a", "on-b", "always"] {
        assert_eq!(of(&events, "step.skipped", node).len(), 1, "{node}");
    }
    document["nodes"][0]["else"] = json!("b");
    assert_eq!(output(&server, &document, json!({})).await, json!(["b", null, "b"]));
}

#[tokio::test]
async fn a_made_up_model_answers_and_fails_like_a_real_one() {
    let server = Server::start_prepared(&["--dev"]);
    let ask = |more: Value| {
        let mut document = row(json!([{
            "id": "ask", "kind": "llm", "provider": "mock", "model": "mock", "prompt": "one ${ .input } three",
            "topic": "said", "retry": {"max_attempts": 2, "initial": "1ms"},
        }]));
        document["topics"] = json!(["said"]);
        document["nodes"][0].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        document
    };
    let run = run(&server, &ask(json!({})), json!("two")).await;
    let text = "[mock] No model has read this. You wrote 3 words: one two three";
    let usage = json!({"input_tokens": 3, "output_tokens": 13, "cost_usd": null});
    let expected = json!({"text": text, "model": "mock", "provider": "mock", "stop_reason": "stop", "usage": usage});
    assert_eq!(run["output"], expected);
    let updates = check_history_of_items(&events(&server, &run).await);
    assert_eq!(updates.iter().map(|u| u["payload"]["delta"].as_str().unwrap()).collect::<String>(), text);

    let cut = output(&server, &ask(json!({"max_tokens": 2})), json!("two")).await;
    assert_eq!((&cut["text"], &cut["stop_reason"]), (&json!("[mock] No "), &json!("length")));
    let schema = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer", "minimum": 3}}});
    assert_eq!(output(&server, &ask(json!({"schema": schema})), json!("two")).await["json"], json!({"n": 3}));

    for (more, attempts, expected) in [
        (json!({"model": "mock-fail"}), 2, "retryable workflow llm_overloaded"),
        (json!({"model": "mock-echo", "schema": schema}), 2, "retryable workflow llm_invalid_answer"),
        (json!({"model": "gpt"}), 1, "permanent workflow llm_refused"),
        (json!({"provider": "nobody"}), 1, "permanent workflow llm_unknown_provider"),
        (json!({"provider": "openai"}), 1, "permanent workflow llm_missing_secret"),
        (json!({"provider": "anthropic"}), 1, "permanent workflow llm_missing_secret"),
        (json!({"prompt": "${ \"x\" * 3000000 }"}), 1, "permanent workflow llm_invalid_request"),
        (json!({"prompt": "${ empty }"}), 1, "permanent workflow no_value"),
    ] {
        let document = ask(more.clone());
        let run = super::run(&server, &document, json!("two")).await;
        let told = ["kind", "source", "code"].map(|name| run["failure"][name].as_str().unwrap()).join(" ");
        assert_eq!(told, expected, "{more}");
        assert_eq!(of(&events(&server, &run).await, "step.failed", "ask").len(), attempts, "{more}");
    }
}

#[tokio::test]
async fn an_input_that_the_schema_does_not_take_starts_no_run() {
    let server = Server::start_prepared(&["--dev"]);
    let mut document = transform(&json!("${ .input.names | join(\", \") }"));
    document["input"] = json!({
        "type": "object",
        "required": ["names"],
        "additionalProperties": false,
        "properties": {"names": {"type": "array", "items": {"$ref": "#/$defs/name"}}},
        "$defs": {"name": {"type": "string", "pattern": "^[a-z]+$"}},
    });
    server.deploy_graph("names", &document).await;
    for (input, pointers) in [
        (json!(5), &[""][..]),
        (json!({}), &["/names"]),
        (json!({"names": ["a", "B", 3], "a/b": 1}), &["/a~1b", "/names/1", "/names/2"]),
    ] {
        let response = server.post_run("names", input.clone()).send().await.unwrap();
        assert_eq!(response.status(), 422);
        let refused: Value = response.json().await.unwrap();
        assert_eq!(refused["code"], "invalid_input");
        let told = refused["problems"].as_array().unwrap().iter();
        let told: Vec<&str> = told.map(|problem| problem["pointer"].as_str().unwrap()).collect();
        assert_eq!(told, pointers, "{input}: {refused}");
    }
    // More than can be checked is refused as well, and said to be so.
    let many = json!({"names": vec!["a"; 1_000_000]});
    let response = server.post_run("names", many).send().await.unwrap();
    assert_eq!(problem(response).await, (422, "input_not_checked".to_owned()));
    assert_eq!(server.get("/v1/runs").await["data"], json!([]), "no run was created");

    let run = server.run("names", json!({"names": ["a", "b"]})).await;
    assert_eq!(run["output"], "a, b");
    let version = server.get("/v1/workflows/names").await["latest_version"].as_str().unwrap().to_owned();
    let version = server.get(&format!("/v1/workflows/names/versions/{version}")).await;
    assert_eq!(version["graph"]["input_schema"], document["input"], "those who start runs can read the schema");
    let anonymous = server.anonymous(Method::GET, "/v1/schemas/graph.json").send().await.unwrap();
    assert_eq!(anonymous.headers()["content-type"], "application/schema+json");
    assert_eq!(anonymous.json::<Value>().await.unwrap()["properties"]["stepwell"]["type"], "integer");
}
