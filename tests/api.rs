//! Starting, reading and cancelling runs over HTTP, and what a bad request gets.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Server, check_history, problem};

#[tokio::test]
async fn a_run_is_accepted_runs_and_can_be_read_in_every_way() {
    let server = Server::start();
    let version = server.deploy("noop", "stepwell_noop").await;

    let response = server.post_run("noop", json!({"n": 1})).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let accepted: Value = response.json().await.unwrap();
    let id = accepted["id"].as_str().unwrap();
    assert_eq!(location, format!("/v1/runs/{id}"));

    let run = server.ended(id).await;
    assert_eq!(run["status"], "completed");
    assert_eq!((&run["input"], &run["output"]), (&json!({"n": 1}), &json!({"n": 1})));
    assert_eq!((&run["workflow"], &run["version"]), (&json!("noop"), &json!(version)));
    let (created, started, ended) = (&run["created_at"], &run["started_at"], &run["ended_at"]);
    assert!(created.as_str() <= started.as_str() && started.as_str() <= ended.as_str(), "{run}");

    let steps = server.get(&format!("{location}/steps")).await;
    let steps = steps["data"].as_array().unwrap();
    assert_eq!(steps.len(), 10);
    for step in steps {
        assert_eq!((&step["status"], step["attempts"].as_array().unwrap().len()), (&json!("completed"), 1));
        assert!(step["attempts"][0]["fuel_used"].as_u64().unwrap() > 0);
    }
    let events = server.events(id).await;
    check_history(&events);
    let kinds: Vec<&str> = events.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds[..4], ["run.queued", "run.started", "step.started", "step.completed"]);
    assert_eq!(kinds.len(), 23);
}

#[tokio::test]
async fn whoever_prefers_to_wait_gets_the_ended_run() {
    let server = Server::start();
    server.deploy("noop", "stepwell_noop").await;
    server.deploy("probe", "stepwell_probe").await;
    let response = server.post_run("noop", json!(7)).header("prefer", "Wait=\"30\"").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["preference-applied"], "wait=30");
    let run: Value = response.json().await.unwrap();
    assert_eq!((&run["status"], &run["output"]), (&json!("completed"), &json!(7)));

    let slow = json!({"busy_ms": 20_000});
    let response = server.post_run("probe", slow).header("prefer", "respond-async, wait=1").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::ACCEPTED, "the wait is over before the run is");
}

#[tokio::test]
async fn runs_are_listed_newest_first_in_pages_and_by_filter() {
    let server = Server::start();
    server.deploy("noop", "stepwell_noop").await;
    server.deploy("probe", "stepwell_probe").await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(server.run("noop", json!(n)).await["id"].clone());
    }
    let failed = server.run("probe", json!({"fail_node": "begin", "fail_first": 1, "permanent": true})).await;
    assert_eq!(failed["status"], "failed");
    ids.push(failed["id"].clone());
    ids.reverse();

    let mut listed = Vec::new();
    let mut path = "/v1/runs?limit=4".to_owned();
    loop {
        let page = server.get(&path).await;
        listed.extend(page["data"].as_array().unwrap().iter().map(|run| run["id"].clone()));
        match page["page"]["cursor"].as_str() {
            Some(cursor) => path = format!("/v1/runs?limit=4&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(listed, ids);
    let by_status = server.get("/v1/runs?status=failed").await;
    assert_eq!(by_status["data"].as_array().unwrap().len(), 1);
    let by_workflow = server.get("/v1/runs?workflow=noop").await;
    assert_eq!(by_workflow["data"].as_array().unwrap().len(), 5);
}

#[tokio::test]
async fn the_same_key_starts_the_same_run() {
    let mut server = Server::start();
    server.deploy("noop", "stepwell_noop").await;
    let start = |server: &Server, input: Value| server.post_run("noop", input).header("idempotency-key", "k-1").send();
    let first = start(&server, json!(1)).await.unwrap();
    assert!(!first.headers().contains_key("idempotent-replayed"));
    let first: Value = first.json().await.unwrap();
    for round in 0..2 {
        let again = start(&server, json!(1)).await.unwrap();
        assert_eq!(again.headers()["idempotent-replayed"], "true", "round {round}");
        assert_eq!(again.json::<Value>().await.unwrap()["id"], first["id"]);
        let other = start(&server, json!(2)).await.unwrap();
        assert_eq!(problem(other).await, (422, "idempotency_mismatch".to_owned()));
        server.crash();
    }
    assert_eq!(server.get("/v1/runs").await["data"].as_array().unwrap().len(), 1);

    // Many at the same moment: one run.
    let many = (0..50).map(|_| server.post_run("noop", json!(3)).header("idempotency-key", "k-2").send());
    let mut ids = std::collections::HashSet::new();
    for response in futures_util::future::join_all(many).await {
        ids.insert(response.unwrap().json::<Value>().await.unwrap()["id"].to_string());
    }
    assert_eq!(ids.len(), 1);
}

#[tokio::test]
async fn a_retried_step_shows_its_attempts_and_when_the_next_one_comes() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let input = json!({"fail_node": "left", "fail_first": 2, "updates": 2, "retry_after_ms": 150});
    let run = server.run("probe", input).await;
    assert_eq!(run["status"], "completed", "{run}");
    let id = run["id"].as_str().unwrap();
    let events = server.events(id).await;
    let updates = check_history(&events);
    let from_left: Vec<&Value> = updates.iter().filter(|update| update["node"] == "left").collect();
    assert!(from_left.len() == 2 && from_left.iter().all(|update| update["attempt"] == 3), "{from_left:?}");
    let failed: Vec<&Value> = events.iter().filter(|event| event["kind"] == "step.failed").collect();
    assert_eq!(failed.len(), 2);
    for failure in failed {
        assert_eq!((&failure["will_retry"], &failure["failure"]["code"]), (&json!(true), &json!("asked_to_fail")));
        assert_eq!(failure["failure"]["source"], "workflow");
        let next = events
            .iter()
            .find(|e| e["kind"] == "step.started" && e["attempt"] == failure["attempt"].as_u64().unwrap() + 1);
        assert!(next.unwrap()["at"].as_str() >= failure["next_attempt_at"].as_str(), "not before its time");
    }
    let steps = server.get(&format!("/v1/runs/{id}/steps")).await;
    let left = steps["data"].as_array().unwrap().iter().find(|step| step["node"] == "left").unwrap();
    let failures: Vec<&Value> = left["attempts"].as_array().unwrap().iter().map(|a| &a["failure"]["code"]).collect();
    assert_eq!(failures, [&json!("asked_to_fail"), &json!("asked_to_fail"), &Value::Null]);
}

#[tokio::test]
async fn routes_decide_what_runs_and_what_is_skipped() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    for (route, skipped) in [("left", Some("right")), ("right", Some("left")), ("both", None)] {
        let run = server.run("probe", json!({"route": route})).await;
        assert_eq!(run["status"], "completed");
        let events = server.events(run["id"].as_str().unwrap()).await;
        let found =
            events.iter().find(|event| event["kind"] == "step.skipped").map(|event| event["node"].as_str().unwrap());
        assert_eq!(found, skipped, "route {route}");
    }
}

#[tokio::test]
async fn a_cancelled_run_stops_at_once_and_says_so() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"busy_ms": 25_000, "updates": 10_000, "route": "left"})).await;
    server.event_when(&id, |event| event["kind"] == "step.update").await;
    let cancel = |body: Value| server.request(Method::POST, &format!("/v1/runs/{id}/cancel")).json(&body).send();
    let response = cancel(json!({"reason": "changed my mind"})).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.json::<Value>().await.unwrap()["status"], "cancelled");
    let events = server.events(&id).await;
    check_history(&events);
    assert_eq!(events.last().unwrap()["reason"], "changed my mind");
    assert_eq!(problem(cancel(json!({})).await.unwrap()).await, (409, "run_ended".to_owned()));
    // Its slot is free again: nothing of the run moves any more.
    let after = server.run("probe", json!({"updates": 1})).await;
    assert_eq!(after["status"], "completed");
    assert_eq!(server.events(&id).await.len(), events.len());
}

#[tokio::test]
async fn large_values_arrive_whole_wherever_they_are_shown() {
    let server = Server::start();
    server.deploy("noop", "stepwell_noop").await;
    let large = json!({"text": "ü".repeat(500_000), "number": 1.5});
    let run = server.run("noop", large.clone()).await;
    assert_eq!((&run["input"], &run["output"]), (&large, &large));
    let events = server.events(run["id"].as_str().unwrap()).await;
    assert_eq!(events[0]["input"], large);
    assert_eq!(events.last().unwrap()["output"], large);
    // The value is stored once, not once for each of the ten steps.
    let journal = std::fs::metadata(server.data_dir().join("journal.redb")).unwrap().len();
    assert!(journal < 12_000_000, "{journal} bytes");
}

#[tokio::test]
async fn pages_end_by_size_and_steps_come_in_pages() {
    let server = Server::start();
    server.deploy("noop", "stepwell_noop").await;
    let large = json!("x".repeat(3 << 20));
    let run = server.run("noop", large).await;
    let id = run["id"].as_str().unwrap();
    let page = server.get(&format!("/v1/runs/{id}/events?limit=1000")).await;
    let count = page["data"].as_array().unwrap().len();
    assert!(count < 10 && page["page"]["has_more"] == true, "{count} events of 3 MiB on a page");
    assert_eq!(server.events(id).await.len(), 23, "nothing is left out");
    let steps = server.get(&format!("/v1/runs/{id}/steps?limit=4&cursor=8")).await;
    let nodes: Vec<&str> =
        steps["data"].as_array().unwrap().iter().map(|step| step["node"].as_str().unwrap()).collect();
    assert_eq!((nodes, &steps["page"]["has_more"]), (vec!["s9", "s10"], &json!(false)));
    let first = &steps["data"][0];
    assert_eq!((&first["output"], &first["output_size_bytes"]), (&Value::Null, &json!((3 << 20) + 2)));
}

#[tokio::test]
async fn events_have_the_fields_that_the_description_names() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let document = server.anonymous(Method::GET, "/openapi.json").send().await.unwrap().json::<Value>().await.unwrap();
    let described = document["components"]["schemas"]["Event"]["properties"].as_object().unwrap();
    let mut seen = std::collections::HashSet::new();
    let scopes = json!({ "stepwell": 1, "nodes": [
        { "id": "ask", "kind": "llm", "provider": "mock", "model": "mock", "prompt": "Hello" },
        { "id": "map", "kind": "map", "items": [1] },
        { "id": "loop", "kind": "loop", "initial": 0, "while": "${ .item < 1 }", "max": 3 },
        { "id": "next", "kind": "transform", "output": "${ .item + 1 }" },
        { "id": "looped", "kind": "join", "of": "loop" },
        { "id": "mapped", "kind": "join", "of": "map" },
    ], "edges": [
        { "source": "map", "target": "loop" }, { "source": "loop", "target": "next" },
        { "source": "next", "target": "looped" }, { "source": "looped", "target": "mapped" },
    ] });
    server.deploy_graph("scopes", &scopes).await;
    let run = server.run("scopes", json!(null)).await;
    for event in server.events(run["id"].as_str().unwrap()).await {
        seen.extend(event.as_object().unwrap().keys().cloned());
    }
    for input in [
        json!({"fail_node": "join", "fail_first": 1, "files": 1, "route": "left"}),
        json!({"fail_node": "begin", "fail_first": 1, "permanent": true}),
    ] {
        let run = server.run("probe", input).await;
        for event in server.events(run["id"].as_str().unwrap()).await {
            seen.extend(event.as_object().unwrap().keys().cloned());
        }
    }
    let id = run["id"].as_str().unwrap();
    let response = server.request(Method::POST, &format!("/v1/runs/{id}/rerun")).json(&json!({"from_step": "map"}));
    let again: Value = response.send().await.unwrap().json().await.unwrap();
    server.ended(again["id"].as_str().unwrap()).await;
    for event in server.events(again["id"].as_str().unwrap()).await {
        seen.extend(event.as_object().unwrap().keys().cloned());
    }
    let mut described: std::collections::HashSet<String> = described.keys().cloned().collect();
    // What only workflows show that wait for something or have children.
    let of_waits = ["parent", "woke", "deadline", "pauses", "signal_seq", "child", "child_status", "signal"];
    // And shadows, and what has outlived its retention.
    for field in of_waits.into_iter().chain(["shadow_of", "live", "expired"]) {
        assert!(described.remove(field), "{field}");
    }
    let undescribed: Vec<&String> = seen.difference(&described).collect();
    assert!(undescribed.is_empty(), "written and not described: {undescribed:?}");
    assert_eq!(described.difference(&seen).collect::<Vec<_>>(), [""; 0], "described and never written");
}

#[tokio::test]
async fn numbers_and_text_come_back_as_they_were_written() {
    let server = Server::start();
    server.deploy("noop", "stepwell_noop").await;
    let body = "{\"input\": {\"n\": \"\\u0000 \\ud83d\\ude00\",\n \"e\": 1e2, \"big\": 123456789012345678}}";
    let request = server.request(Method::POST, "/v1/workflows/noop/runs").header("prefer", "wait=30").body(body);
    let text = request.send().await.unwrap().text().await.unwrap();
    assert!(text.contains("123456789012345678") && text.contains("1e2"), "{text}");
}

#[tokio::test]
async fn bad_requests_get_a_code_and_start_nothing() {
    let server = Server::start();
    server.deploy("noop", "stepwell_noop").await;
    let post = |path: &str, body: String| server.request(Method::POST, path).body(body);
    let get = |path: &str| server.request(Method::GET, path);
    let runs = "/v1/workflows/noop/runs";
    let deep = format!("{{\"input\": {}{}}}", "[".repeat(101), "]".repeat(101));
    let very_deep = format!("{{\"input\": {}", "[".repeat(1_000_000));
    let no_run = "00000000-0000-7000-8000-000000000000";
    let cases = [
        (post("/v1/workflows/nope/runs", "{}".into()), 404, "unknown_workflow"),
        (post("/v1/workflows/..%2f/runs", "{}".into()), 404, "unknown_workflow"),
        (post(runs, "{".into()), 422, "invalid_json"),
        (post(runs, "[]".into()), 422, "invalid_body"),
        (post(runs, r#"{"input": 1, "inputs": 2}"#.into()), 422, "invalid_body"),
        (post(runs, r#"{"version": "abc"}"#.into()), 422, "invalid_body"),
        (post(runs, format!(r#"{{"version": "{}"}}"#, "0".repeat(64))), 404, "unknown_version"),
        (post(runs, deep), 422, "invalid_input"),
        (post(runs, very_deep), 422, "invalid_json"),
        (post(runs, format!("{{\"input\": \"{}\"}}", "x".repeat(4 << 20))), 413, "too_large"),
        (post(runs, "x".repeat(10 << 20)), 413, "too_large"),
        (post(runs, "{}".into()).header("idempotency-key", " "), 400, "invalid_idempotency_key"),
        (post(runs, "{}".into()).header("idempotency-key", "k".repeat(256)), 400, "invalid_idempotency_key"),
        (get("/v1/runs/abc"), 404, "unknown_run"),
        (get(&format!("/v1/runs/{no_run}")), 404, "unknown_run"),
        (get(&format!("/v1/runs/{no_run}/events")), 404, "unknown_run"),
        (get(&format!("/v1/runs/{no_run}/steps")), 404, "unknown_run"),
        (post(&format!("/v1/runs/{no_run}/cancel"), "{}".into()), 404, "unknown_run"),
        (get("/v1/runs?limit=0"), 400, "invalid_query"),
        (get("/v1/runs?limit=x"), 400, "invalid_query"),
        (get("/v1/runs?status=done"), 400, "invalid_query"),
        (get("/v1/runs?cursor=1"), 400, "invalid_query"),
        (get("/v1/runs?colour=red"), 400, "invalid_query"),
        (get("/v1/artifacts"), 400, "invalid_query"),
        (get("/v1/artifacts/abc"), 404, "unknown_artifact"),
        (get(&format!("/v1/artifacts/{no_run}-1")), 404, "unknown_artifact"),
        (get("/v1/workflows/nope"), 404, "unknown_workflow"),
        (get("/v1/workflows/noop/versions/abc"), 404, "unknown_version"),
        (get("/v1/runs/%ff"), 400, "invalid_path"),
        (get("/v1/nothing"), 404, "unknown_route"),
        (post("/v1/runs", "{}".into()), 405, "method_not_allowed"),
    ];
    for (number, (request, status, code)) in cases.into_iter().enumerate() {
        let response = request.send().await.unwrap();
        assert_eq!(problem(response).await, (status, code.to_owned()), "case {number}");
    }
    assert_eq!(server.get("/v1/runs").await["data"], json!([]), "nothing was started");
}

/// Every `$ref` in a document.
fn references(value: &Value) -> Vec<&str> {
    match value {
        Value::Object(fields) => {
            let own = fields.get("$ref").and_then(Value::as_str);
            own.into_iter().chain(fields.values().flat_map(references)).collect()
        }
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn the_description_of_the_api_is_the_one_in_docs() {
    let server = Server::start();
    let described = server.anonymous(Method::GET, "/openapi.json").send().await.unwrap().json::<Value>().await.unwrap();
    // `UPDATE_EXPECT=1` writes it anew.
    expect_test::expect_file!["../docs/openapi.json"].assert_eq(&format!("{described:#}\n"));
    let schemas = described["components"]["schemas"].as_object().unwrap();
    for reference in references(&described) {
        let name =
            reference.strip_prefix("#/components/schemas/").unwrap_or_else(|| panic!("{reference} leads elsewhere"));
        assert!(schemas.contains_key(name), "{name} is referred to and not described");
    }
    // As an editor fetches it: without a key.
    let request = server.anonymous(Method::GET, "/v1/schemas/graph.json");
    let schema = request.send().await.unwrap().json::<Value>().await.unwrap();
    expect_test::expect_file!["../docs/graph.schema.json"].assert_eq(&format!("{schema:#}\n"));
    assert_eq!(server.anonymous(Method::GET, "/healthz").send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(server.anonymous(Method::GET, "/readyz").send().await.unwrap().status(), StatusCode::OK);
}
