//! What is said to runs that exist: pause and resume, reruns, the same for many, and what bad requests get.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Server, check_history, eventually, problem};
use crate::tenancy::create;

async fn post(server: &Server, path: &str, body: Value) -> reqwest::Response {
    server.request(Method::POST, path).json(&body).send().await.unwrap()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["kind"].as_str().unwrap()).collect()
}

/// The index of the first event of a kind.
fn first(events: &[Value], kind: &str) -> usize {
    events.iter().position(|event| event["kind"] == kind).unwrap_or_else(|| panic!("no {kind}: {:?}", kinds(events)))
}

#[tokio::test]
async fn a_paused_run_ends_what_it_has_begun_and_begins_nothing_until_it_is_resumed() {
    let mut server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"busy_ms": 300, "updates": 2})).await;
    server.run_when(&id, |run| run["status"] == "running").await;
    let paused = post(&server, &format!("/v1/runs/{id}/pause"), json!({"reason": "lunch"})).await;
    assert_eq!(paused.status(), StatusCode::OK);
    assert_eq!(paused.json::<Value>().await.unwrap()["status"], "paused");
    assert_eq!(
        problem(post(&server, &format!("/v1/runs/{id}/pause"), json!({})).await).await,
        (409, "run_paused".to_owned())
    );
    // What was under way comes to its end, and a crash makes no difference to what is held.
    let done = |events: Vec<Value>| events.iter().any(|event| event["kind"] == "step.completed");
    eventually("begin to end", || async { done(server.events(&id).await).then_some(()) }).await;
    server.crash();
    let events = server.events(&id).await;
    assert!(!kinds(&events[first(&events, "run.paused")..]).contains(&"step.started"), "{:?}", kinds(&events));
    assert_eq!(events[first(&events, "run.paused")]["reason"], "lunch");

    let resumed = post(&server, &format!("/v1/runs/{id}/resume"), json!({})).await;
    assert_eq!(resumed.status(), StatusCode::OK);
    assert_eq!(server.ended(&id).await["status"], "completed");
    let events = server.events(&id).await;
    check_history(&events);
    assert_eq!(events[first(&events, "run.resumed") + 1]["kind"], "step.started", "{:?}", kinds(&events));
    for wrong in ["pause", "resume"] {
        let response = post(&server, &format!("/v1/runs/{id}/{wrong}"), json!({})).await;
        assert_eq!(problem(response).await, (409, "run_ended".to_owned()));
    }
    let unknown = "/v1/runs/01890000-0000-7000-8000-000000000000/pause";
    assert_eq!(problem(post(&server, unknown, json!({})).await).await, (404, "unknown_run".to_owned()));
}

#[tokio::test]
async fn a_run_that_waits_for_a_retry_can_be_paused_and_goes_on_where_it_was() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let input = json!({"fail_node": "begin", "fail_first": 1, "retry_after_ms": 600, "updates": 0});
    let id = server.start_run("probe", input).await;
    let waiting = server.run_when(&id, |run| run["status"] == "suspended").await;
    assert_eq!(waiting["waits_for"], "retry");
    assert!(waiting["waits_until"].is_string(), "{waiting}");
    let response = post(&server, &format!("/v1/runs/{id}/pause"), json!({})).await;
    assert_eq!(response.status(), StatusCode::OK);
    let response = post(&server, &format!("/v1/runs/{id}/resume"), json!({})).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(server.ended(&id).await["status"], "completed");
    let events = server.events(&id).await;
    let about_the_run: Vec<&str> = kinds(&events).into_iter().filter(|kind| kind.starts_with("run.")).collect();
    let expected = [
        "run.queued",
        "run.started",
        "run.suspended",
        "run.paused",
        "run.resumed",
        "run.suspended",
        "run.resumed",
        "run.completed",
    ];
    assert_eq!(about_the_run, expected);
}

#[tokio::test]
async fn a_rerun_takes_over_what_does_not_come_after_its_step() {
    let server = Server::start();
    let version = server.deploy("probe", "stepwell_probe").await;
    let input = json!({"fail_node": "right", "fail_first": 9, "permanent": true, "updates": 1});
    let failed = server.run("probe", input.clone()).await;
    assert_eq!((failed["status"].as_str(), failed["failure_code"].as_str()), (Some("failed"), Some("asked_to_fail")));
    let id = failed["id"].as_str().unwrap();

    let body = json!({"from_step": "right", "input": {"updates": 2, "text": "again"}});
    let response = post(&server, &format!("/v1/runs/{id}/rerun"), body).await;
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    let location = response.headers()["location"].to_str().unwrap().to_owned();
    let new: Value = response.json().await.unwrap();
    let new_id = new["id"].as_str().unwrap();
    assert_eq!(location, format!("/v1/runs/{new_id}"));
    assert_eq!((&new["rerun_of"], &new["version"]), (&json!(id), &json!(version)));
    let ended = server.ended(new_id).await;
    assert_eq!((&ended["status"], &ended["output"]["text"]), (&json!("completed"), &json!("again")));

    let events = server.events(new_id).await;
    check_history(&events);
    assert_eq!((&events[0]["rerun_of"], &events[0]["from_step"]), (&json!(id), &json!("right")));
    let of = |kind: &str| -> Vec<&str> {
        let mut nodes: Vec<&str> =
            events.iter().filter(|event| event["kind"] == kind).map(|event| event["node"].as_str().unwrap()).collect();
        nodes.sort_unstable();
        nodes
    };
    // `left` may or may not have come to its end when `right` failed.
    let before = server.events(id).await;
    let left_was_done = before.iter().any(|event| event["kind"] == "step.completed" && event["node"] == "left");
    let (taken, run) = if left_was_done {
        (vec!["begin", "left"], vec!["finish", "join", "right"])
    } else {
        (vec!["begin"], vec!["finish", "join", "left", "right"])
    };
    assert_eq!((of("step.taken_over"), of("step.started")), (taken, run));
    // The positions are those of the first run: the result was taken over as it was.
    let begin = before.iter().find(|event| event["kind"] == "step.completed" && event["node"] == "begin").unwrap();
    let taken_over =
        events.iter().find(|event| event["kind"] == "step.taken_over" && event["node"] == "begin").unwrap();
    assert_eq!(taken_over["output"], begin["output"]);
    let steps = server.get(&format!("/v1/runs/{new_id}/steps")).await;
    assert!(steps["data"].as_array().unwrap().iter().all(|step| step["status"] == "completed"), "{steps}");
    // The old run is what it was, and both can be found from each other.
    assert_eq!(server.get(&format!("/v1/runs/{id}")).await["status"], "failed");
    let reruns = server.get(&format!("/v1/runs?rerun_of={id}")).await;
    assert_eq!(reruns["data"][0]["id"], json!(new_id));

    // From the start, with the run's own input: it fails as before.
    let response = post(&server, &format!("/v1/runs/{id}/rerun"), json!({})).await;
    let again: Value = response.json().await.unwrap();
    let again = server.ended(again["id"].as_str().unwrap()).await;
    assert_eq!((&again["status"], &again["input"]), (&json!("failed"), &input));
}

#[tokio::test]
async fn a_rerun_that_cannot_be_is_refused_and_starts_nothing() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let run = server.run("probe", json!({"route": "left", "updates": 0})).await;
    let id = run["id"].as_str().unwrap();
    let path = format!("/v1/runs/{id}/rerun");
    for (body, code) in [
        (json!({"from_step": "nowhere"}), "unknown_step"),
        (json!({"from_step": "right"}), "step_did_not_run"),
        (json!({"from_step": "no node"}), "invalid_body"),
        (json!({"version": "newest"}), "invalid_body"),
        (json!({"fromstep": "left"}), "invalid_body"),
    ] {
        assert_eq!(problem(post(&server, &path, body.clone()).await).await, (422, code.to_owned()), "{body}");
    }
    let version = "0".repeat(64);
    let response = post(&server, &path, json!({"version": version})).await;
    assert_eq!(problem(response).await, (404, "unknown_version".to_owned()));
    assert_eq!(server.get("/v1/runs").await["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn the_same_key_repeats_a_run_once() {
    let server = Server::start();
    server.deploy("noop", "stepwell_noop").await;
    let run = server.run("noop", json!(1)).await;
    let path = format!("/v1/runs/{}/rerun", run["id"].as_str().unwrap());
    let rerun = |body: Value| server.request(Method::POST, &path).header("idempotency-key", "k").json(&body).send();
    let first: Value = rerun(json!({})).await.unwrap().json().await.unwrap();
    let second = rerun(json!({})).await.unwrap();
    assert_eq!(second.headers()["idempotent-replayed"], "true");
    assert_eq!(second.json::<Value>().await.unwrap()["id"], first["id"]);
    let other = rerun(json!({"input": 2})).await.unwrap();
    assert_eq!(problem(other).await, (422, "idempotency_mismatch".to_owned()));
}

#[tokio::test]
async fn failures_are_grouped_and_repeated_or_cancelled_by_what_they_have_in_common() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let fails = |node: &str| json!({"fail_node": node, "fail_first": 1, "permanent": true, "updates": 0});
    for node in ["begin", "left", "left"] {
        assert_eq!(server.run("probe", fails(node)).await["status"], "failed");
    }
    let groups = server.get("/v1/failures").await;
    let groups: Vec<(&str, u64)> = groups["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| (group["node"].as_str().unwrap(), group["runs"].as_u64().unwrap()))
        .collect();
    assert_eq!(groups, [("left", 2), ("begin", 1)], "the latest first");
    let listed = server.get("/v1/runs?status=failed&failed_node=left&failure_code=asked_to_fail").await;
    assert_eq!(listed["data"].as_array().unwrap().len(), 2);
    assert_eq!(server.get("/v1/runs?failure_code=other").await["data"].as_array().unwrap().len(), 0);

    let body = json!({"workflow": "probe", "failed_node": "left", "limit": 1});
    let answer: Value = post(&server, "/v1/bulk/rerun", body.clone()).await.json().await.unwrap();
    assert_eq!((answer["data"].as_array().unwrap().len(), &answer["page"]["has_more"]), (1, &json!(true)));
    let mut next = body;
    next["cursor"] = answer["page"]["cursor"].clone();
    let rest: Value = post(&server, "/v1/bulk/rerun", next).await.json().await.unwrap();
    let old = [&answer["data"][0]["run_id"], &rest["data"][0]["run_id"]];
    assert_ne!(old[0], old[1]);
    for entry in [&answer["data"][0], &rest["data"][0]] {
        let new = server.ended(entry["new_run_id"].as_str().unwrap()).await;
        assert_eq!((&new["rerun_of"], &new["failed_node"]), (&entry["run_id"], &json!("left")));
    }

    let mut slow = Vec::new();
    for _ in 0..3 {
        slow.push(server.start_run("probe", json!({"busy_ms": 30_000})).await);
    }
    let answer: Value =
        post(&server, "/v1/bulk/cancel", json!({"workflow": "probe", "reason": "all"})).await.json().await.unwrap();
    let cancelled = answer["data"].as_array().unwrap();
    assert_eq!(cancelled.len(), 3, "ended runs are not asked: {answer}");
    for id in &slow {
        let run = server.ended(id).await;
        assert_eq!(run["status"], "cancelled");
    }
    let named = json!({"runs": [slow[0], "01890000-0000-7000-8000-000000000000"]});
    let answer: Value = post(&server, "/v1/bulk/cancel", named).await.json().await.unwrap();
    assert_eq!((&answer["data"][0]["code"], &answer["data"][1]["code"]), (&json!("run_ended"), &json!("unknown_run")));
    // Named twice is named once; and what is neither one nor the other, or more than a page, is refused.
    let failed = &old[0];
    let twice: Value = post(&server, "/v1/bulk/rerun", json!({"runs": [failed, failed]})).await.json().await.unwrap();
    assert_eq!(twice["data"].as_array().unwrap().len(), 1, "{twice}");
    let id = server.start_run("probe", json!({"busy_ms": 30_000})).await;
    for body in [json!({}), json!({"runs": [id], "workflow": "other"}), json!({"workflow": "probe", "limit": 501})] {
        let refused = post(&server, "/v1/bulk/cancel", body).await;
        assert_eq!(problem(refused).await, (422, "invalid_body".to_owned()));
    }
    assert_eq!(server.get(&format!("/v1/runs/{id}")).await["status"], "running");
}

#[tokio::test]
async fn what_another_tenant_owns_cannot_be_told_anything() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"busy_ms": 30_000})).await;
    let key = create(&server, "other").key;
    for path in ["pause", "resume", "rerun", "signals/go"] {
        let path = format!("/v1/runs/{id}/{path}");
        let response = server.request_as(&key, Method::POST, &path).json(&json!({})).send().await.unwrap();
        assert_eq!(problem(response).await, (404, "unknown_run".to_owned()), "{path}");
    }
    let listed = server.request_as(&key, Method::GET, &format!("/v1/runs/{id}/signals")).send().await.unwrap();
    assert_eq!(problem(listed).await, (404, "unknown_run".to_owned()));
    let body = json!({"runs": [id]});
    let answer = server.request_as(&key, Method::POST, "/v1/bulk/cancel").json(&body).send().await.unwrap();
    assert_eq!(answer.json::<Value>().await.unwrap()["data"][0]["code"], "unknown_run");
    let unknown = post(&server, &format!("/v1/runs/{id}/signals/go"), json!({})).await;
    assert_eq!(problem(unknown).await, (422, "unknown_signal".to_owned()));
    assert_eq!(server.get(&format!("/v1/runs/{id}")).await["status"], "running");
}
