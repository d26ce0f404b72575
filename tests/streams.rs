//! Whoever subscribes, whenever, sees the same events in the same order, and nothing but what is durable.

mod browsers;
mod channels;
mod oracle;
mod pages;
mod publishing;
mod revoked;
mod seeds;
mod stalls;
mod tokens;
mod wires;

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::{Frame, Frames, Server, check_history, problem};

/// A stream, whoever asks for it and however.
async fn open(request: reqwest::RequestBuilder) -> Frames {
    let response = request.header("accept", "text/event-stream").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    Frames::of(response)
}

/// A tenant of a server that is not for development, and its key.
fn tenant(server: &Server, id: &str) -> String {
    let data_dir = server.data_dir().display().to_string();
    let admin = |arguments: &[&str]| {
        let ran = server.cli(&[&["admin"], arguments, &["--data-dir", &data_dir]].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.stdout.trim().to_owned()
    };
    admin(&["tenant", "create", id]);
    admin(&["key", "create", id])
}

/// A header, as text.
fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

fn frames_of(events: &[Value]) -> Vec<Frame> {
    let frame = |event: &Value| Frame {
        id: event["seq"].as_u64().unwrap(),
        event: event["kind"].as_str().unwrap().to_owned(),
        data: event.clone(),
    };
    events.iter().map(frame).collect()
}

#[tokio::test]
async fn early_late_and_returning_subscribers_see_the_same() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let input = json!({"busy_ms": 100, "updates": 20, "fail_node": "right", "fail_first": 1});
    let id = server.start_run("probe", input).await;

    let early = server.follow(&id, None).await;
    let early = tokio::spawn(early.rest());
    server.event_when(&id, |event| event["kind"] == "step.update").await;
    let middle = server.follow(&id, Some(0)).await;
    let middle = tokio::spawn(middle.rest());
    // One that lets go after every third frame and comes back with what it saw last.
    let mut returning: Vec<Frame> = Vec::new();
    while returning.last().is_none_or(|last| last.event != "run.completed") {
        let mut frames = server.follow(&id, returning.last().map(|last| last.id)).await;
        for _ in 0..3 {
            match frames.next().await {
                Some(frame) => returning.push(frame),
                None => break,
            }
        }
    }
    let late = server.follow(&id, None).await.rest().await;

    let events = server.events(&id).await;
    check_history(&events);
    assert!(events.iter().any(|event| event["kind"] == "step.rolled_back"));
    let expected = frames_of(&events);
    assert_eq!(early.await.unwrap(), expected);
    assert_eq!(middle.await.unwrap(), expected);
    assert_eq!(returning, expected);
    assert_eq!(late, expected);
}

#[tokio::test]
async fn hundreds_of_subscribers_that_come_and_go_agree_with_the_journal() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"busy_ms": 200, "updates": 200})).await;
    let mut subscribers = Vec::new();
    for n in 0..200u64 {
        // Spread over the run: with a position to return to or without.
        let frames = server.follow(&id, (n % 3 == 0).then_some(n % 7)).await;
        subscribers.push((n, tokio::spawn(frames.rest())));
        if n % 20 == 0 {
            server.event_when(&id, |event| event["seq"].as_u64().unwrap() > n).await;
        }
    }
    let run = server.ended(&id).await;
    assert_eq!(run["status"], "completed");
    let expected = frames_of(&server.events(&id).await);
    for (n, frames) in subscribers {
        let after = if n % 3 == 0 { n % 7 } else { 0 };
        assert_eq!(frames.await.unwrap(), expected[after as usize..], "subscriber {n}");
    }
}

#[tokio::test]
async fn the_state_a_reader_sees_never_runs_ahead_of_or_behind_the_stream() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"busy_ms": 60, "fail_node": "join", "fail_first": 2})).await;
    let mut frames = server.follow(&id, None).await;
    let mut seen: Vec<String> = Vec::new();
    while let Some(frame) = frames.next().await {
        let status = match frame.event.as_str() {
            "run.queued" => "queued",
            "run.started" | "run.resumed" => "running",
            "run.suspended" => "suspended",
            "run.completed" => "completed",
            _ => continue,
        };
        seen.push(status.to_owned());
        // What is announced is already so: a reader finds this status or a later one.
        let now = server.get(&format!("/v1/runs/{id}")).await["status"].as_str().unwrap().to_owned();
        let order = ["queued", "running", "suspended", "completed"];
        let rank = |status: &str| order.iter().position(|known| *known == status).unwrap();
        assert!(rank(&now) >= rank(status) || status == "suspended", "announced {status}, found {now}");
    }
    assert_eq!(seen, ["queued", "running", "suspended", "running", "suspended", "running", "completed"]);
}

#[tokio::test]
async fn filters_leave_out_what_was_not_asked_for_but_never_the_end() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({})).await;
    server.ended(&id).await;
    let all = server.events(&id).await;
    let filtered = |query: &str| {
        let path = format!("/v1/runs/{id}/events?limit=1000&{query}");
        let server = &server;
        async move { server.get(&path).await["data"].as_array().unwrap().clone() }
    };
    let is = |event: &Value, kinds: &[&str]| kinds.contains(&event["kind"].as_str().unwrap());
    let wanted: Vec<Value> = all.iter().filter(|e| e["topic"] != "update").cloned().collect();
    assert_eq!(filtered("topics=status").await, wanted);
    let wanted: Vec<Value> =
        all.iter().filter(|e| is(e, &["step.completed", "step.skipped", "run.completed"])).cloned().collect();
    assert_eq!(filtered("kinds=step.completed,step.skipped").await, wanted);
    let wanted: Vec<Value> =
        all.iter().filter(|e| e["topic"] == "status" || is(e, &["run.completed"])).cloned().collect();
    assert_eq!(filtered("topics=status&kinds=step.update").await, wanted);
    assert_eq!(filtered("topics=status&kinds=step.skipped").await.len(), 1);

    let path = format!("/v1/runs/{id}/events?topics=status&kinds=step.update");
    let stream = server.request(Method::GET, &path).header("accept", "text/event-stream").send().await.unwrap();
    let text = stream.text().await.unwrap();
    assert_eq!(text.matches("event:step.update").count() + text.matches("event: step.update").count(), 2, "{text}");
    assert!(text.trim_end().lines().any(|line| line.contains("run.completed")));
}

#[tokio::test]
async fn pages_of_events_go_on_where_they_stopped() {
    let server = Server::start();
    server.deploy("noop", "stepwell_noop").await;
    let run = server.run("noop", json!(1)).await;
    let id = run["id"].as_str().unwrap();
    let (mut seqs, mut cursor) = (Vec::new(), "0".to_owned());
    loop {
        let page = server.get(&format!("/v1/runs/{id}/events?limit=7&cursor={cursor}")).await;
        let data = page["data"].as_array().unwrap();
        assert!(data.len() <= 7);
        seqs.extend(data.iter().map(|event| event["seq"].as_u64().unwrap()));
        cursor = page["page"]["cursor"].as_str().unwrap().to_owned();
        if page["page"]["has_more"] == false {
            break;
        }
    }
    assert_eq!(seqs, (1..=23).collect::<Vec<u64>>());
    let rest = server.get(&format!("/v1/runs/{id}/events?after=23")).await;
    assert_eq!((&rest["data"], &rest["page"]["has_more"]), (&json!([]), &json!(false)));
}

#[tokio::test]
async fn a_browser_that_comes_back_after_the_end_is_told_to_stop_asking() {
    let server = Server::start();
    server.deploy("noop", "stepwell_noop").await;
    let run = server.run("noop", json!(1)).await;
    let path = format!("/v1/runs/{}/events", run["id"].as_str().unwrap());
    let stream = |last: &str| {
        let request = server.request(Method::GET, &path).header("accept", "text/event-stream");
        request.header("last-event-id", last).send()
    };
    assert_eq!(stream("23").await.unwrap().status(), StatusCode::NO_CONTENT);
    assert_eq!(stream("99").await.unwrap().status(), StatusCode::NO_CONTENT);
    // A position that there never was ends with the run, and not never.
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"busy_ms": 50})).await;
    let beyond = server.follow(&id, Some(1_000_000)).await;
    assert_eq!(beyond.rest().await, []);
    let last = stream("22").await.unwrap();
    assert_eq!(last.headers()["x-accel-buffering"], "no");
    assert_eq!(last.text().await.unwrap().matches("data:").count(), 1);
    assert_eq!(problem(stream("x").await.unwrap()).await, (400, "invalid_query".to_owned()));
}

#[tokio::test]
async fn a_stream_survives_a_crash_of_the_server_without_a_gap_or_a_repetition() {
    let mut server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"busy_ms": 300, "updates": 50})).await;
    let mut seen: Vec<Frame> = Vec::new();
    for crash in 0.. {
        let mut frames = server.follow(&id, seen.last().map(|last| last.id)).await;
        let mut count = 0;
        while let Some(frame) = frames.next().await {
            seen.push(frame);
            count += 1;
            if crash < 3 && count == 20 {
                server.crash();
            }
        }
        if seen.last().is_some_and(|last| last.event == "run.completed") {
            break;
        }
        assert!(crash < 20, "the run does not end");
    }
    let events = server.events(&id).await;
    check_history(&events);
    assert_eq!(seen, frames_of(&events));
}

#[tokio::test]
async fn a_stopping_server_closes_its_streams_and_lets_steps_finish() {
    let mut server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"busy_ms": 400, "updates": 10})).await;
    let mut frames = server.follow(&id, None).await;
    while frames.next().await.unwrap().event != "step.update" {}
    assert_eq!(server.stop(), 0);
    let rest = frames.rest().await;
    assert!(!rest.iter().any(|frame| frame.event == "run.completed"), "the end of a stream is not the end of the run");
    server.start_again();
    server.ended(&id).await;
    let events = server.events(&id).await;
    check_history(&events);
    let begin: Vec<&Value> = events.iter().filter(|e| e["node"] == "begin" && e["kind"] == "step.started").collect();
    assert_eq!(begin.len(), 1, "the step that was under way has finished: {events:#?}");
}
