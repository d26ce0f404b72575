//! What a step is told when it publishes, and in which order things come.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::Server;

async fn behave(server: &Server, input: Value) -> (Value, Vec<Value>) {
    let run = server.run("hostile", input).await;
    let events = server.events(run["id"].as_str().unwrap()).await;
    (run, events)
}

/// Every refusal has its name, and the step goes on: it returns what it was told, and its run completes.
#[tokio::test]
async fn a_publish_is_answered_with_a_position_or_a_reason_and_never_fails_the_step_by_itself() {
    let server = Server::start();
    server.deploy("hostile", "stepwell_hostile").await;
    for (behaviour, said) in [("publish_unknown_topic", "unknown_topic"), ("publish_too_large", "too_large")] {
        let (run, events) = behave(&server, json!({"behaviour": behaviour})).await;
        assert_eq!(run["status"], "completed", "{run}");
        assert!(run["output"].to_string().contains(said), "{behaviour}: {run}");
        assert!(!events.iter().any(|event| event["kind"] == "step.update"), "{behaviour}");
    }
    let (run, _) = behave(&server, json!({"behaviour": "publish_bad_json"})).await;
    assert_eq!(run["status"], "completed", "{run}");
    // The step's own limit: what was taken is there, the rest is named.
    let (run, events) = behave(&server, json!({"behaviour": "publish_flood", "n": 10_050})).await;
    assert_eq!(run["status"], "completed", "{run}");
    assert!(run["output"].to_string().contains("quota_exceeded"), "{run}");
    assert_eq!(events.iter().filter(|event| event["kind"] == "step.update").count(), 10_000);
}

/// A tenant's flood waits for its turn, and loses nothing.
#[tokio::test]
async fn a_tenant_that_publishes_too_fast_is_slowed_down_and_not_cut_off() {
    let server = Server::start_with(&["--dev", "--updates-per-second", "500"]);
    server.deploy("hostile", "stepwell_hostile").await;
    let (run, events) = behave(&server, json!({"behaviour": "publish_flood", "n": 2_000})).await;
    assert_eq!(run["status"], "completed", "{run}");
    let updates: Vec<&Value> = events.iter().filter(|event| event["kind"] == "step.update").collect();
    assert_eq!(updates.len(), 2_000);
    let at = |event: &Value| event["at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond();
    // A burst of two seconds' worth, and then the rate: another two seconds.
    let took = at(updates[1_999]) - at(updates[0]);
    assert!(took >= 1_500, "2,000 updates took {took} ms");
}

/// Waiting for the tenant's turn once used up the step's own time: a step that had done nothing wrong was over.
#[tokio::test]
async fn a_step_that_is_slowed_down_does_not_run_out_of_time_for_it() {
    let server = Server::start_with(&["--dev", "--updates-per-second", "100"]);
    server.deploy("hostile", "stepwell_hostile").await;
    // Seven seconds of waiting, and the step has five.
    let (run, events) = behave(&server, json!({"behaviour": "publish_flood", "n": 900})).await;
    assert_eq!(run["status"], "completed", "{run}");
    assert_eq!(events.iter().filter(|event| event["kind"] == "step.started" && event["attempt"] == 2).count(), 0);
}

/// What a step does is in its run's order: updates, lines and files as it did them, each update where it was told.
#[tokio::test]
async fn updates_lines_and_files_of_a_step_stay_in_their_order() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let run = server.run("probe", json!({"updates": 10, "files": 3, "busy_ms": 10})).await;
    let events = server.events(run["id"].as_str().unwrap()).await;
    let mut by_node: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for event in &events {
        if let Some(node) = event["node"].as_str() {
            by_node.entry(node).or_default().push(event);
        }
    }
    for (node, events) in by_node {
        let kinds: Vec<&str> = events.iter().map(|event| event["kind"].as_str().unwrap()).collect();
        assert_eq!((kinds[0], *kinds.last().unwrap()), ("step.started", "step.completed"), "{node}");
        let place = |kind: &str| kinds.iter().position(|known| *known == kind).unwrap();
        assert!(
            place("step.log") < kinds.iter().rposition(|kind| *kind == "step.update").unwrap(),
            "{node}: {kinds:?}"
        );
        assert!(place("step.artifact") > place("step.update"), "{node}: {kinds:?}");
        let numbers: Vec<u64> = events.iter().filter_map(|event| event["payload"]["n"].as_u64()).collect();
        assert_eq!(numbers, (1..=10).collect::<Vec<_>>(), "{node}");
        let of_updates = events.iter().filter(|event| event["topic"] == "update");
        let positions: Vec<&Value> = of_updates.map(|event| &event["seq"]).collect();
        let told = match node {
            "join" | "finish" | "begin" | "left" | "right" => run["output"][node]["positions"].as_array().unwrap(),
            other => panic!("{other}"),
        };
        assert_eq!(told.iter().collect::<Vec<_>>(), positions, "{node} was told where its updates stand");
    }
}

/// A cancelled step's publish is refused, and nothing of it comes after the end.
#[tokio::test]
async fn nothing_is_published_after_a_run_was_cancelled() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    for _ in 0..5 {
        let id = server.start_run("probe", json!({"busy_ms": 5_000, "updates": 5_000})).await;
        server.event_when(&id, |event| event["topic"] == "update").await;
        assert_eq!(server.cli(&["cancel", &id]).code, 0);
        let events = server.events(&id).await;
        assert_eq!(events.last().unwrap()["kind"], "run.cancelled");
        let follower = server.follow(&id, Some(0)).await.rest().await;
        assert_eq!(follower.len(), events.len());
    }
}
