//! Attempts that are taken up again, and requests that are made again: what was done is told, and not done twice.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use stepwell::journal::Journal;
use stepwell_core::flow::FlowControl;
use stepwell_core::{Json, RunKey};

use crate::driver::Host;
use crate::journal::Trouble;
use crate::support::{PATIENCE, Server, check_history, eventually, problem};

fn count(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|event| event["kind"] == kind).count()
}

/// Waits until the run waits for the nth time.
async fn waiting(server: &Server, id: &str, nth: usize) {
    eventually("a wait", || async {
        let events = server.events(id).await;
        let waits = count(&events, "run.suspended") == nth && count(&events, "run.resumed") == nth - 1;
        waits.then_some(())
    })
    .await;
}

async fn signal(server: &Server, id: &str, payload: &Value) {
    let response = server.request(Method::POST, &format!("/v1/runs/{id}/signals/go")).json(payload).send().await;
    assert_eq!(response.unwrap().status(), StatusCode::ACCEPTED);
}

async fn post(server: &Server, path: &str, key: &str, body: &Value) -> reqwest::Response {
    server.request(Method::POST, path).header("idempotency-key", key).json(body).send().await.unwrap()
}

/// All that an attempt was ever answered was once read into memory whenever it was taken up again. It is read in pages
/// now; here there are many, with answers that are stored apart, and with what each call was answered.
#[tokio::test]
async fn a_long_record_is_gone_through_page_by_page_as_it_was() {
    let mut server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let go = json!({"signal": {"name": "go"}});
    let mut acts = vec![json!({"calls": 400}), json!({"publish": 1}), go.clone(), json!({"calls": 400}), go.clone()];
    acts.extend([json!({"publish": 2}), json!({"calls": 3}), go, json!({"publish": 3})]);
    // What is read at once has 256 KiB.
    let begin = (0..16).map(|n| json!({"publish": format!("{n} {}", "x".repeat(50_000))}));
    let acts: Vec<Value> = begin.chain(acts).collect();
    let id = server.start_run("waits", Value::from(acts)).await;
    let large = json!("x".repeat(100_000));
    waiting(&server, &id, 1).await;
    server.crash();
    signal(&server, &id, &large).await;
    waiting(&server, &id, 2).await;
    signal(&server, &id, &json!(2)).await;
    waiting(&server, &id, 3).await;
    server.crash();
    signal(&server, &id, &json!(3)).await;
    let run = server.ended(&id).await;
    assert_eq!(run["status"], "completed", "{run}");
    let events = server.events(&id).await;
    let updates = check_history(&events);
    assert_eq!((count(&events, "step.call"), count(&events, "step.started")), (803, 1));
    // What the step saw is what is on record: the clock as it was then, the positions and the signals.
    let calls: Vec<&Value> = events.iter().filter(|event| event["kind"] == "step.call").collect();
    let positions: Vec<&Value> = updates.iter().map(|update| &update["seq"]).collect();
    let seen = &run["output"].as_array().unwrap()[16..];
    for (told, call) in [(&seen[0], calls[399]), (&seen[3], calls[799]), (&seen[6], calls[802])] {
        let at = call["at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond();
        assert!(told.as_i64().unwrap() <= at, "told {told}, and it was {at}");
    }
    assert_eq!([&seen[1], &seen[5], &seen[8]], positions[16..]);
    assert_eq!([&seen[2], &seen[4], &seen[7]], [&large, &json!(2), &json!(3)]);
}

/// The refusal was on no record, so the attempt came with it where the record had the next call.
#[tokio::test]
async fn a_step_that_asked_for_what_is_no_child_can_be_taken_up_again() {
    let mut server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let foreign = server.run("waits", json!([])).await["id"].clone();
    let wait = json!({"await": {"run": foreign}});
    let id = server.start_run("waits", json!([wait, {"publish": 1}, {"signal": {"name": "go"}}, wait])).await;
    waiting(&server, &id, 1).await;
    server.crash();
    signal(&server, &id, &json!(1)).await;
    let run = server.ended(&id).await;
    let refused = json!({"error": "NotAChild"});
    assert_eq!(run["status"], "completed", "{run}");
    assert_eq!([&run["output"][0], &run["output"][2], &run["output"][3]], [&refused, &json!(1), &refused]);
    let events = server.events(&id).await;
    check_history(&events);
    assert_eq!(count(&events, "step.failed"), 0);
}

/// The power goes at every write. A step that was taken up again once asked for the end of its child before that was made again,
/// and was told that it had been cancelled.
#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_is_on_record_is_there_before_its_step_goes_on() {
    let mut host = Host::with("waits", "stepwell_waits").await;
    // A key, so that it takes a while until a run is accepted.
    let control = FlowControl { key: Some(".[0].publish".to_owned()), ..FlowControl::default() };
    host.driver.set_flow_control(&host.tenant, &host.workflow, Some(&control)).await.unwrap();
    let mut cut_off = 0;
    for writes in 0.. {
        host.disk.trouble(Trouble::GoneAfter(writes));
        let acts = json!([{"start": {"workflow": "waits", "input": [{"publish": 1}]}}, {"await": {}}]);
        let input = Json::parse(acts.to_string()).unwrap();
        let started = host.driver.start(&host.tenant, &host.workflow, None, input, None).await;
        let key = started.map(|started| RunKey { tenant: host.tenant.clone(), run: started.run });
        let is_done =
            |host: &Host, key: &RunKey| host.journal.summary(key).unwrap().is_some_and(|run| run.status.is_terminal());
        let is_whole = match &key {
            Ok(key) => tokio::select! {
                () = host.journal.broken() => false,
                () = eventually("the run to end", async || is_done(&host, key).then_some(())) => true,
            },
            Err(_) => false,
        };
        host = host.after_a_power_cut(0).await;
        let Ok(key) = key else { continue };
        eventually("the run to end", async || is_done(&host, &key).then_some(())).await;
        let output = host.output(&key);
        assert!(output[1][0].is_number(), "after {writes} writes: {output}");
        if is_whole {
            break;
        }
        cut_off += 1;
    }
    assert!(cut_off >= 4, "{cut_off}");
    tokio::time::timeout(PATIENCE, host.driver.stop()).await.unwrap();
}

/// What was accepted once is answered as it was, whatever has changed since: the request was once looked at first.
#[tokio::test]
async fn a_repeated_start_is_recognised_before_it_is_looked_at() {
    let server = Server::start_prepared(&["--dev"]);
    let mut document = json!({"stepwell": 1, "nodes": [{"id": "a", "kind": "transform", "output": "${ .input }"}]});
    server.deploy_graph("strict", &document).await;
    let start = |input: Value| server.post_run("strict", input).header("idempotency-key", "k").send();
    let first: Value = start(json!(1)).await.unwrap().json().await.unwrap();
    document["input"] = json!({"type": "string"});
    server.deploy_graph("strict", &document).await;
    let again = start(json!(1)).await.unwrap();
    assert_eq!(again.headers()["idempotent-replayed"], "true");
    assert_eq!(again.json::<Value>().await.unwrap()["id"], first["id"]);
    assert_eq!(problem(start(json!(2)).await.unwrap()).await, (422, "idempotency_mismatch".to_owned()));
    let fresh = server.post_run("strict", json!(1)).header("idempotency-key", "other").send().await.unwrap();
    assert_eq!(problem(fresh).await, (422, "invalid_input".to_owned()));

    // A rerun of the latest version is the same request, although the latest is another one by now.
    let id = first["id"].as_str().unwrap();
    server.ended(id).await;
    let path = format!("/v1/runs/{id}/rerun");
    let body = json!({"version": "latest", "input": "text"});
    let rerun: Value = post(&server, &path, "k2", &body).await.json().await.unwrap();
    document["input"] = json!({"type": "number"});
    server.deploy_graph("strict", &document).await;
    let again = post(&server, &path, "k2", &body).await;
    assert_eq!(again.headers()["idempotent-replayed"], "true");
    assert_eq!(again.json::<Value>().await.unwrap()["id"], rerun["id"]);
}

/// Whoever had no answer to a signal and sends it again is told that it came, also when the run has ended by it.
#[tokio::test]
async fn a_repeated_signal_is_recognised_after_the_run_has_ended() {
    let mut server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let id = server.start_run("waits", json!([{"signal": {"name": "go"}}])).await;
    let path = format!("/v1/runs/{id}/signals/go");
    let first: Value = post(&server, &path, "k", &json!(1)).await.json().await.unwrap();
    assert_eq!(server.ended(&id).await["output"], json!([1]));
    for _ in 0..2 {
        let again = post(&server, &path, "k", &json!(1)).await;
        assert_eq!(again.status(), StatusCode::ACCEPTED);
        assert_eq!(again.headers()["idempotent-replayed"], "true");
        assert_eq!(again.json::<Value>().await.unwrap(), first);
        server.crash();
    }
    for (key, payload, status, code) in
        [("k", json!(2), 422, "idempotency_mismatch"), ("other", json!(1), 409, "run_ended")]
    {
        assert_eq!(problem(post(&server, &path, key, &payload).await).await, (status, code.to_owned()));
    }
    let without_key = server.request(Method::POST, &path).json(&json!(1)).send().await.unwrap();
    assert_eq!(problem(without_key).await, (409, "run_ended".to_owned()));
    check_history(&server.events(&id).await);
}

/// `null` is an input like any other. It was once taken for none.
#[tokio::test]
async fn a_rerun_with_null_has_null_as_its_input() {
    let server = Server::start();
    server.deploy("noop", "stepwell_noop").await;
    let run = server.run("noop", json!(1)).await;
    let path = format!("/v1/runs/{}/rerun", run["id"].as_str().unwrap());
    for (key, body, input) in [("a", json!({"input": null}), json!(null)), ("b", json!({}), json!(1))] {
        let rerun: Value = post(&server, &path, key, &body).await.json().await.unwrap();
        assert_eq!(server.ended(rerun["id"].as_str().unwrap()).await["input"], input);
    }
    // And so they are two requests.
    let other = post(&server, &path, "a", &json!({})).await;
    assert_eq!(problem(other).await, (422, "idempotency_mismatch".to_owned()));
}

#[tokio::test]
async fn the_same_key_repeats_each_of_many_runs_once() {
    let server = Server::start();
    let version = server.deploy("probe", "stepwell_probe").await;
    let fails = json!({"fail_node": "begin", "fail_first": 1, "permanent": true, "updates": 0});
    let mut failed = Vec::new();
    for _ in 0..2 {
        failed.push(server.run("probe", fails.clone()).await["id"].clone());
    }
    let bulk = async |key: &str, body: Value| -> Vec<Value> {
        let mut answer: Value = post(&server, "/v1/bulk/rerun", key, &body).await.json().await.unwrap();
        for entry in answer["data"].as_array().unwrap() {
            if let Some(new) = entry["new_run_id"].as_str() {
                server.ended(new).await;
            }
        }
        let mut entries = std::mem::take(answer["data"].as_array_mut().unwrap());
        entries.sort_by_key(|entry| entry["run_id"].to_string());
        entries
    };
    let body = || json!({"workflow": "probe"});
    let first = bulk("k", body()).await;
    assert_eq!(first.len(), 2);
    // The new runs have failed too. They are what the request has made, not what it is about.
    assert_eq!(bulk("k", body()).await, first);
    // What has failed meanwhile is repeated, and what was is not.
    let later = server.run("probe", fails.clone()).await["id"].clone();
    let third = bulk("k", body()).await;
    assert_eq!(third.len(), 3);
    assert_eq!(third.iter().filter(|entry| first.contains(entry)).count(), 2);
    let new = third.iter().find(|entry| entry["run_id"] == later).unwrap();
    assert!(new["new_run_id"].is_string(), "{new}");
    // The same key for something else is refused for each.
    let other = bulk("k", json!({"runs": [failed[0]], "rerun_version": version})).await;
    assert_eq!(other[0]["code"], "idempotency_mismatch", "{other:?}");
    // Another key is another request, which is about all six; and one without a key repeats whatever it finds.
    assert_eq!(bulk("k2", body()).await.len(), 6);
}
