//! Failures of real systems, each with a test that fails if it came back. The stories are theirs.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{frames_of, open};
use crate::support::{Frame, Server, check_history};

/// What a client makes of the kinds that it sees: a status at each moment.
fn status_after(before: &str, kind: &str) -> String {
    match kind {
        "run.queued" => "queued",
        "run.started" | "run.resumed" => "running",
        "run.suspended" => "suspended",
        "run.completed" => "completed",
        "run.failed" => "failed",
        "run.cancelled" => "cancelled",
        _ => before,
    }
    .to_owned()
}

/// *The story:* a chat page waited for "workflow resumed" before it showed anything of a follow-up turn. The method that
/// made the event existed; nobody called it. 815 events arrived, 24 of them "suspended", none "resumed", and all of them
/// were thrown away.
#[tokio::test]
async fn a_suspension_is_always_followed_by_its_resumption_before_anything_else() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"fail_node": "begin", "fail_first": 3, "retry_after_ms": 30})).await;
    // A follower that subscribes before, and skips everything until it sees the resumption, as that page did.
    let frames = server.follow(&id, None).await.rest().await;
    let kinds: Vec<&str> = frames.iter().map(|frame| frame.event.as_str()).collect();
    let suspended = kinds.iter().filter(|kind| **kind == "run.suspended").count();
    assert!(suspended >= 3, "{kinds:?}");
    assert_eq!(kinds.iter().filter(|kind| **kind == "run.resumed").count(), suspended);
    for (place, kind) in kinds.iter().enumerate() {
        if *kind == "run.suspended" {
            assert_eq!(kinds[place + 1], "run.resumed", "{kinds:?}");
        }
    }
    let after = frames.iter().skip_while(|frame| frame.event != "run.resumed");
    assert!(after.into_iter().any(|frame| frame.event == "step.update"), "what comes after it is there to be shown");
}

/// *The story:* the state changed in six places in the code, and none of them published the event. Here the state that
/// a reader is shown is the one that the events make, whatever the way there: retries, failures, a cancellation, a crash.
#[tokio::test]
async fn no_way_to_change_the_state_of_a_run_goes_without_its_event() {
    let mut server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let inputs = [
        json!({}),
        json!({"fail_node": "left", "fail_first": 2}),
        json!({"fail_node": "join", "fail_first": 9}),
        json!({"fail_node": "begin", "fail_first": 1, "permanent": true}),
        json!({"busy_ms": 300, "updates": 3}),
        json!({"busy_ms": 300, "updates": 3, "fail_node": "right", "fail_first": 1, "retry_after_ms": 200}),
        json!({"busy_ms": 20_000, "updates": 1}),
    ];
    let mut runs = Vec::new();
    for input in inputs {
        runs.push(server.start_run("probe", input).await);
    }
    server.event_when(&runs[4], |event| event["kind"] == "step.update").await;
    server.crash();
    server.event_when(&runs[6], |event| event["kind"] == "step.update").await;
    server.cli(&["cancel", &runs[6]]);
    for id in &runs {
        let run = server.ended(id).await;
        let events = server.events(id).await;
        check_history(&events);
        let status =
            events.iter().fold(String::new(), |status, event| status_after(&status, event["kind"].as_str().unwrap()));
        assert_eq!(run["status"], status, "{id}: the state and the stream disagree");
        // Steps too: how each ended is an event of its own.
        let steps = server.get(&format!("/v1/runs/{id}/steps")).await;
        for step in steps["data"].as_array().unwrap() {
            let status = step["status"].as_str().unwrap();
            if matches!(status, "completed" | "skipped" | "failed") {
                let told = events.iter().any(|e| e["node"] == step["node"] && e["kind"] == format!("step.{status}"));
                assert!(told, "{id}: {step} without an event");
            }
        }
    }
}

/// *The story:* history and live calls carried the same id twice, and the page crashed with "duplicate key". Whatever a
/// client keys by — the position, or node, item and attempt of an update — comes once, over any number of connections.
#[tokio::test]
async fn nothing_that_a_client_keys_by_comes_twice() {
    let mut server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let input = json!({"busy_ms": 150, "updates": 15, "fail_node": "left", "fail_first": 1});
    let id = server.start_run("probe", input).await;
    let mut seen: Vec<Frame> = Vec::new();
    for connection in 0.. {
        let mut frames = server.follow(&id, seen.last().map(|last| last.id)).await;
        for _ in 0..17 {
            match frames.next().await {
                Some(frame) => seen.push(frame),
                None => break,
            }
        }
        if seen.last().is_some_and(|last| last.event == "run.completed") {
            break;
        }
        if connection == 2 {
            server.crash(); // attempts are taken up again, and publish nothing a second time
        }
    }
    let mut keys: Vec<String> = seen.iter().map(|frame| frame.id.to_string()).collect();
    keys.extend(seen.iter().filter(|frame| frame.data["topic"] == "update").map(|frame| {
        let data = &frame.data;
        format!("{} {} {} {}", data["node"], data["items"], data["attempt"], data["payload"]["n"])
    }));
    let count = keys.len();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), count);
}

/// *The story:* a workflow that waited for its own task was "suspended" like one that waits for a person. The page took
/// it for the end of the turn, left after three events, and never saw a token. Here a wait says what for, and it is no end:
/// the stream stays open until the one event that is.
#[tokio::test]
async fn an_inner_wait_says_what_it_is_for_and_does_not_end_the_stream() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"fail_node": "begin", "fail_first": 1, "retry_after_ms": 300})).await;
    let mut frames = server.follow(&id, None).await;
    loop {
        let frame = frames.next().await.unwrap();
        if frame.event == "run.suspended" {
            assert_eq!(frame.data["reason"], "retry", "a client must not take this for a question to a person");
            assert!(frame.data["until"].is_string());
            break;
        }
    }
    let rest = frames.rest().await;
    assert_eq!(rest.first().unwrap().event, "run.resumed");
    assert_eq!(rest.last().unwrap().event, "run.completed");
    assert!(rest.iter().any(|frame| frame.event == "step.update"));
}

/// The same story, from the other side: a page that ends its turn when the run waits for a person, and at nothing else,
/// sees everything that belongs to the turn; and what it says begins the next one.
#[tokio::test]
async fn a_turn_ends_when_the_run_waits_for_a_person_and_at_no_other_wait() {
    let server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let script = json!([{"sleep": 100}, {"publish": "one"}, {"sleep": 100}, {"publish": "two"},
                        {"signal": {"name": "go"}}, {"publish": "three"}]);
    let id = server.start_run("waits", script).await;
    let mut frames = server.follow(&id, None).await;
    let mut turn: Vec<Frame> = Vec::new();
    loop {
        let frame = frames.next().await.unwrap();
        let is_over = frame.event == "run.suspended" && frame.data["reason"] == "signal";
        turn.push(frame);
        if is_over {
            break;
        }
    }
    let waits = turn.iter().filter(|frame| frame.event == "run.suspended").map(|frame| &frame.data["reason"]);
    assert_eq!(waits.collect::<Vec<_>>(), ["timer", "timer", "signal"]);
    assert_eq!(turn.iter().filter(|frame| frame.event == "step.update").count(), 2, "all of the turn");
    let path = format!("/v1/runs/{id}/signals/go");
    let told = server.request(Method::POST, &path).json(&json!({"text": "go on"})).send().await.unwrap();
    assert_eq!(told.status(), StatusCode::ACCEPTED);
    // Nobody has to come back for the next turn, and nothing of it has to be skipped.
    let next = frames.rest().await;
    let kinds: Vec<&str> = next.iter().map(|frame| frame.event.as_str()).collect();
    assert_eq!(kinds[..2], ["signal.received", "run.resumed"], "{kinds:?}");
    assert_eq!(kinds.iter().filter(|kind| **kind == "step.update").count(), 1);
    assert_eq!(*kinds.last().unwrap(), "run.completed");
}

/// *The story:* the page was mounted again and again, and each time began a new session and threw the old one away before
/// its first event came. Whatever a page does, a subscription has no state in the server: each mount sees the same from
/// the beginning, or from where it was, and starting twice under one key is starting once.
#[tokio::test]
async fn a_page_that_is_mounted_again_and_again_sees_the_same_run_each_time() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let start = || {
        let request = server.post_run("probe", json!({"busy_ms": 150, "updates": 6}));
        request.header("idempotency-key", "one page, one run").send()
    };
    let mut ids = Vec::new();
    let mut mounts = Vec::new();
    for _ in 0..8 {
        let run: Value = start().await.unwrap().json().await.unwrap();
        let id = run["id"].as_str().unwrap().to_owned();
        let mut frames = server.follow(&id, None).await;
        // Some are torn down before anything has come.
        if mounts.len() % 2 == 0 {
            assert_eq!(frames.next().await.unwrap().id, 1, "a new mount begins at the beginning");
        }
        mounts.push(frames);
        if mounts.len() > 2 {
            drop(mounts.remove(0));
        }
        ids.push(id);
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "one run, however often the page was mounted");
    server.ended(&ids[0]).await;
    let last = server.follow(&ids[0], None).await.rest().await;
    assert_eq!(last, frames_of(&server.events(&ids[0]).await));
}

/// *The story:* `publish` gave back `null`, sometimes after it had worked and mostly after it had not, and threw nothing.
/// Here a step is told a position for each update, and there the update is.
#[tokio::test]
async fn every_publish_is_answered_with_the_place_where_the_update_is() {
    let mut server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let mut runs = Vec::new();
    for n in 0..10 {
        let input = json!({"updates": 10, "busy_ms": 40, "fail_node": "join", "fail_first": n % 2, "route": "both"});
        runs.push(server.start_run("probe", input).await);
    }
    server.event_when(&runs[0], |event| event["kind"] == "step.update").await;
    server.crash();
    for id in runs {
        let run = server.ended(&id).await;
        let events = server.events(&id).await;
        for node in ["begin", "left", "right", "join", "finish"] {
            let seen = &run["output"][node];
            let positions = seen["positions"].as_array().unwrap();
            assert_eq!(positions.len(), 10, "{node}: an answer for each");
            for (position, n) in positions.iter().zip(1..) {
                let event = &events[position.as_u64().unwrap() as usize - 1];
                let expected = json!({"node": node, "attempt": seen["attempt"], "n": n});
                assert_eq!((&event["seq"], &event["payload"]), (position, &expected));
            }
        }
    }
}

/// *The story:* a race. The page subscribed before there was anything to subscribe to, or after it had been said; messages
/// that came too early were gone. Here the first subscriber of a channel may come before the first workflow.
#[tokio::test]
async fn it_does_not_matter_whether_the_subscriber_or_the_publisher_comes_first() {
    let server = Server::start();
    let mut early = open(server.request(Method::GET, "/v1/channels/probes/events")).await;
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"updates": 2})).await;
    let at_once = server.follow(&id, None).await;
    server.ended(&id).await;
    let late = server.follow(&id, None).await;
    assert_eq!(at_once.rest().await, late.rest().await);
    let channel = server.get("/v1/channels/probes/events?limit=1000").await;
    for entry in channel["data"].as_array().unwrap() {
        assert_eq!(early.next().await.unwrap().data, *entry);
    }
}

/// *The story:* simple tasks showed their result because it came with the answer to the call; long ones showed nothing,
/// because what they published took another path, and that one failed. Here there is one path: what the run returns, what
/// the state says and what the stream says come from the same events.
#[tokio::test]
async fn the_result_and_the_files_of_a_run_come_by_the_same_way_as_its_updates() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    for (updates, busy_ms) in [(0, 0), (3, 0), (40, 300)] {
        let id = server.start_run("probe", json!({"updates": updates, "busy_ms": busy_ms, "files": 2})).await;
        let frames = server.follow(&id, None).await.rest().await;
        let run = server.get(&format!("/v1/runs/{id}")).await;
        assert_eq!(frames.last().unwrap().data["output"], run["output"]);
        let stored = frames.iter().filter(|frame| frame.event == "step.artifact");
        let stored: Vec<&Value> = stored.map(|frame| &frame.data["artifact"]).collect();
        assert_eq!(stored.len(), 10);
        for artifact in stored {
            let path = format!("/v1/artifacts/{}", artifact.as_str().unwrap());
            assert_eq!(server.request(Method::GET, &path).send().await.unwrap().status(), StatusCode::OK);
        }
        let published = frames.iter().filter(|frame| frame.data["topic"] == "update").count();
        assert_eq!(published, updates * 5);
    }
}

/// *The story:* tokens of subscriptions expired, or were not ready, and nothing said so: the page listened on. Here a
/// subscription without a valid token is refused when it is made, with a reason that a program can read.
#[tokio::test]
async fn a_subscription_that_is_not_allowed_is_refused_and_not_silent() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({})).await;
    for path in [format!("/v1/runs/{id}/events"), "/v1/channels/probes/events".to_owned()] {
        for (query, code) in [("", "unauthorized"), ("?token=", "invalid_token"), ("?token=sws_x.y", "invalid_token")] {
            let request =
                server.anonymous(Method::GET, &format!("{path}{query}")).header("accept", "text/event-stream");
            let answer = crate::support::problem(request.send().await.unwrap()).await;
            assert_eq!(answer, (401, code.to_owned()), "{path}{query}");
        }
    }
}

/// *The story:* a publish inside of a step lost its context, and its name. Here what a step has published is known by the
/// step, its attempt and its run, and by the channel and the caller's own id besides.
#[tokio::test]
async fn an_update_says_whose_it_is_wherever_it_is_read() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let response =
        server.post_run("probe", json!({"updates": 1})).header("stepwell-correlation", "task-1").send().await;
    let run: Value = response.unwrap().json().await.unwrap();
    let id = run["id"].as_str().unwrap();
    assert_eq!(run["correlation"], "task-1");
    server.ended(id).await;
    let page = server.get("/v1/channels/probes/events?correlation=task-1&limit=1000").await;
    let updates: Vec<&Value> =
        page["data"].as_array().unwrap().iter().filter(|entry| entry["topic"] == "update").collect();
    assert_eq!(updates.len(), 5);
    for update in updates {
        assert_eq!(
            (&update["run"], &update["correlation"], &update["workflow"]),
            (&json!(id), &json!("task-1"), &json!("probe"))
        );
        assert_eq!((&update["payload"]["node"], &update["payload"]["attempt"]), (&update["node"], &update["attempt"]));
    }
}
