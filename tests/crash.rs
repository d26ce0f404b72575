//! `kill -9` at any moment: what was acknowledged continues where its journal ends.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{Server, check_history};

/// A number that is different in each run of the test and printed when it fails.
pub(crate) fn seed() -> u64 {
    std::env::var("STEPWELL_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos().into()
    })
}

pub(crate) fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[tokio::test]
async fn acknowledged_runs_survive_being_killed_again_and_again() {
    let seed = seed();
    println!("STEPWELL_SEED={seed}");
    let mut random = seed;
    let mut server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    server.deploy("noop", "stepwell_noop").await;
    let mut accepted: Vec<(String, Value)> = Vec::new();
    for round in 0..25 {
        // Some runs are slow enough to be in the middle of something, some fail first, some are over at once.
        let inputs = (0..6).map(|n| {
            let text = format!("{round}-{n}");
            let fails = next(&mut random) % 3;
            json!({"busy_ms": next(&mut random) % 40, "updates": 4, "text": text, "fail_node": "join", "fail_first": fails})
        });
        let inputs: Vec<Value> = inputs.collect();
        let starts = inputs.iter().map(|input| server.post_run("probe", input.clone()).send());
        for (input, response) in inputs.iter().zip(futures_util::future::join_all(starts).await) {
            let response = response.unwrap();
            assert_eq!(response.status(), StatusCode::ACCEPTED);
            let run: Value = response.json().await.unwrap();
            accepted.push((run["id"].as_str().unwrap().to_owned(), input["text"].clone()));
        }
        let requests: Vec<_> = (0..20).map(|n| server.post_run("noop", json!(n))).collect();
        let starting: Vec<_> = requests.into_iter().map(|request| tokio::spawn(request.send())).collect();
        // The moment of the crash is the point of this test.
        tokio::time::sleep(Duration::from_micros(next(&mut random) % 60_000)).await;
        server.crash();
        for start in starting {
            // What was answered before the crash counts; what was not may or may not exist.
            if let Ok(Ok(response)) = start.await
                && let Ok(run) = response.json::<Value>().await
            {
                accepted.push((run["id"].as_str().unwrap().to_owned(), Value::Null));
            }
        }
    }
    for (id, text) in accepted {
        let run = server.ended(&id).await;
        assert_eq!(run["status"], "completed", "{run}");
        let events = server.events(&id).await;
        check_history(&events);
        if text.is_string() {
            assert_eq!(run["output"]["text"], text);
        }
    }
    // Nobody is left behind, not even runs whose start was never answered.
    for status in ["queued", "running", "suspended", "failed"] {
        let server = &server;
        crate::support::eventually("all runs to end", || async move {
            let page = server.get(&format!("/v1/runs?status={status}")).await;
            (page["data"] == json!([])).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_run_that_waits_for_a_retry_waits_on_after_a_crash() {
    let mut server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let input = json!({"fail_node": "begin", "fail_first": 1, "retry_after_ms": 1_500});
    let id = server.start_run("probe", input).await;
    let suspended = server.event_when(&id, |event| event["kind"] == "run.suspended").await;
    assert_eq!(suspended["reason"], "retry");
    server.crash();
    let run = server.ended(&id).await;
    assert_eq!(run["status"], "completed");
    let events = server.events(&id).await;
    check_history(&events);
    let resumed = events.iter().find(|event| event["kind"] == "run.resumed").unwrap();
    assert!(resumed["at"].as_str() >= suspended["until"].as_str(), "{resumed} before {suspended}");
    let started = events.iter().filter(|e| e["kind"] == "step.started" && e["node"] == "begin").count();
    assert_eq!(started, 2, "a wait is not an attempt: nothing was lost in the crash");
}

/// What an attempt had published, stored and asked for is neither lost nor done again, however often it is cut off.
#[tokio::test]
async fn an_interrupted_attempt_goes_on_where_its_record_ends() {
    let mut server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let input = json!({"busy_ms": 1_500, "updates": 60, "files": 2, "route": "left"});
    let id = server.start_run("probe", input).await;
    // More often than the policy allows attempts.
    for crash in 1..=6 {
        let at_least = crash * 15;
        crate::support::eventually("more updates", || async {
            let events = server.events(&id).await;
            (events.iter().filter(|event| event["kind"] == "step.update").count() >= at_least).then_some(())
        })
        .await;
        server.crash();
    }
    let run = server.ended(&id).await;
    assert_eq!(run["status"], "completed", "{run}");
    let events = server.events(&id).await;
    let mut updates = check_history(&events);
    updates.retain(|update| update["topic"] == "update");
    let of = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
    assert_eq!((of("step.failed"), of("step.rolled_back"), of("step.started")), (0, 0, 4));
    assert_eq!(of("step.resumed"), 6, "once for each crash");
    assert_eq!((updates.len(), of("step.artifact")), (4 * 60, 4 * 2));
    for step in ["begin", "left", "join", "finish"] {
        let seqs: Vec<&Value> = updates.iter().filter(|u| u["node"] == step).map(|u| &u["seq"]).collect();
        let told: Vec<&Value> = run["output"][step]["positions"].as_array().unwrap().iter().collect();
        assert_eq!(told, seqs, "{step} was told where its updates stand");
    }
}

/// A model that had begun to answer would say something else the second time, so such an attempt starts clean.
#[tokio::test]
async fn an_attempt_that_is_cut_off_in_the_middle_of_an_answer_starts_clean() {
    let mut server = Server::start();
    let document = json!({ "stepwell": 1, "topics": ["answer"], "output": "ask", "nodes": [
        { "id": "ask", "kind": "llm", "provider": "mock", "model": "mock-slow", "topic": "answer",
          "prompt": "One two three four five six seven eight nine ten.", "retry": { "max_attempts": 1 } },
    ] });
    server.deploy_graph("asking", &document).await;
    let id = server.start_run("asking", json!(null)).await;
    server.event_when(&id, |event| event["kind"] == "step.update").await;
    server.crash();
    let run = server.ended(&id).await;
    assert_eq!(run["status"], "completed", "{run}");
    let events = server.events(&id).await;
    let updates = check_history(&events);
    let text: String = updates.iter().map(|update| update["payload"]["delta"].as_str().unwrap()).collect();
    assert_eq!(text, run["output"]["text"], "what counts of the stream is the answer");
    let failed = events.iter().find(|event| event["kind"] == "step.failed").unwrap();
    assert_eq!((&failed["failure"]["code"], &failed["will_retry"]), (&json!("interrupted"), &json!(true)));
}
