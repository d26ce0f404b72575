//! Channels: many runs in one order.

use std::collections::{BTreeMap, HashMap};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use stepwell::journal::RedbJournal;
use stepwell_core::Timestamp;

use super::{open, tenant};
use crate::support::{Frame, PATIENCE, Server, eventually, problem};

const PATH: &str = "/v1/channels/probes/events";

/// Starts a run that is known by something.
async fn start(server: &Server, workflow: &str, correlation: Option<&str>, input: Value) -> String {
    let mut request = server.post_run(workflow, input);
    if let Some(correlation) = correlation {
        request = request.header("stepwell-correlation", correlation);
    }
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    response.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
}

/// All entries, page by page.
async fn entries(server: &Server, query: &str) -> Vec<Value> {
    let (mut found, mut cursor) = (Vec::new(), 0);
    loop {
        let page = server.get(&format!("{PATH}?after={cursor}&limit=7&{query}")).await;
        let data = page["data"].as_array().unwrap();
        assert!(data.len() <= 7);
        found.extend(data.iter().cloned());
        cursor = page["page"]["cursor"].as_str().unwrap().parse().unwrap();
        if page["page"]["has_more"] == false {
            return found;
        }
    }
}

/// What a channel has of a run: that, and in this order.
fn shown(events: &[Value]) -> Vec<Value> {
    let kinds = ["step.update", "step.rolled_back", "run.completed", "run.failed", "run.cancelled"];
    events.iter().filter(|event| kinds.contains(&event["kind"].as_str().unwrap())).cloned().collect()
}

/// An entry as its run's own stream has it.
fn bare(entry: &Value) -> Value {
    let mut event = entry.as_object().unwrap().clone();
    for field in ["cursor", "run", "workflow", "correlation"] {
        event.remove(field);
    }
    Value::Object(event)
}

fn of_frames(frames: &[Frame]) -> Vec<Value> {
    for frame in frames {
        assert_eq!((frame.data["cursor"].as_u64(), &frame.data["kind"]), (Some(frame.id), &json!(frame.event)));
    }
    frames.iter().map(|frame| frame.data.clone()).collect()
}

#[tokio::test]
async fn a_channel_has_the_updates_rollbacks_and_ends_of_all_its_runs_in_one_order() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    server.deploy("second", "stepwell_probe").await;
    server.deploy("noop", "stepwell_noop").await; // names no channel
    let mut follower = open(server.request(Method::GET, PATH)).await; // before there is anything
    let mut runs = BTreeMap::new();
    for n in 0..6 {
        let workflow = if n % 2 == 0 { "probe" } else { "second" };
        let correlation = (n < 4).then(|| format!("task {}", n % 3));
        let input =
            json!({"busy_ms": 20, "updates": 3, "fail_node": "join", "fail_first": n % 2, "payload_bytes": n * 50_000});
        let id = start(&server, workflow, correlation.as_deref(), input).await;
        runs.insert(id, (workflow, correlation));
    }
    server.run("noop", json!(1)).await;
    let cancelled = start(&server, "probe", None, json!({"busy_ms": 20_000, "updates": 1})).await;
    server.event_when(&cancelled, |event| event["kind"] == "step.update").await;
    server.cli(&["cancel", &cancelled]);
    runs.insert(cancelled, ("probe", None));
    let mut histories = HashMap::new();
    for (id, (_, correlation)) in &runs {
        let run = server.ended(id).await;
        assert_eq!(run.get("correlation").and_then(Value::as_str), correlation.as_deref());
        histories.insert(id.clone(), server.events(id).await);
    }

    let all = entries(&server, "").await;
    assert!(all.iter().zip(1..).all(|(entry, cursor)| entry["cursor"] == cursor), "numbered without gaps");
    for (id, (workflow, correlation)) in &runs {
        let of_run: Vec<&Value> = all.iter().filter(|entry| entry["run"] == **id).collect();
        let events: Vec<Value> = of_run.iter().map(|entry| bare(entry)).collect();
        assert_eq!(events, shown(&histories[id]), "{id}");
        for entry in of_run {
            assert_eq!(entry["workflow"], *workflow);
            assert_eq!(entry.get("correlation").and_then(Value::as_str), correlation.as_deref());
        }
    }
    assert_eq!(all.len(), histories.values().map(|events| shown(events).len()).sum::<usize>());
    assert!(all.iter().any(|entry| entry["kind"] == "step.rolled_back"));
    let mut followed = Vec::new();
    while followed.len() < all.len() {
        followed.push(follower.next().await.unwrap());
    }
    assert_eq!(of_frames(&followed), all);

    // Filters: the same order, with less in it.
    let by = |wanted: &dyn Fn(&Value) -> bool| all.iter().filter(|entry| wanted(entry)).cloned().collect::<Vec<_>>();
    let first = runs.keys().next().unwrap();
    assert_eq!(entries(&server, &format!("run={first}")).await, by(&|e| e["run"] == *first));
    assert_eq!(entries(&server, "workflow=second").await, by(&|e| e["workflow"] == "second"));
    assert_eq!(entries(&server, "correlation=task%200").await, by(&|e| e["correlation"] == "task 0"));
    let topic = |e: &Value| e["kind"] != "step.update" || e["topic"] == "status";
    assert_eq!(entries(&server, "topics=status").await, by(&topic));
    let both = |e: &Value| e["workflow"] == "probe" && e["correlation"] == "task 1" && topic(e);
    assert_eq!(entries(&server, "workflow=probe&correlation=task%201&topics=status").await, by(&both));
    assert_eq!(entries(&server, "topics=nobody.has.it&workflow=none").await, Vec::<Value>::new());
    // The list of runs knows it too.
    let listed = server.get("/v1/runs?correlation=task%200").await;
    let listed: Vec<&str> = listed["data"].as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap()).collect();
    let mut wanted: Vec<&str> =
        runs.iter().filter(|(_, (_, c))| c.as_deref() == Some("task 0")).map(|(id, _)| id.as_str()).collect();
    wanted.reverse();
    assert_eq!(listed, wanted);
}

#[tokio::test]
async fn a_follower_comes_back_to_its_place_through_crashes_and_restarts() {
    let mut server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let mut runs = Vec::new();
    let mut seen: Vec<Frame> = Vec::new();
    for round in 0..5 {
        for n in 0..4 {
            let input = json!({"busy_ms": 60, "updates": 5, "fail_node": "left", "fail_first": n % 2});
            runs.push(start(&server, "probe", None, input).await);
        }
        let mut request = server.request(Method::GET, PATH);
        if let Some(last) = seen.last() {
            request = request.header("last-event-id", last.id);
        }
        let mut frames = open(request).await;
        for _ in 0..20 {
            seen.push(frames.next().await.unwrap());
        }
        if round % 2 == 0 { server.crash() } else { drop(frames) }
    }
    for id in &runs {
        server.ended(id).await;
    }
    let all = entries(&server, "").await;
    let mut rest = open(server.request(Method::GET, PATH).header("last-event-id", seen.last().unwrap().id)).await;
    while seen.len() < all.len() {
        seen.push(rest.next().await.unwrap());
    }
    assert_eq!(of_frames(&seen), all, "each entry once, in order");
    for id in &runs {
        let events: Vec<Value> = all.iter().filter(|entry| entry["run"] == **id).map(bare).collect();
        assert_eq!(events, shown(&server.events(id).await));
    }
}

#[tokio::test]
async fn a_page_of_a_channel_waits_for_what_is_wanted_of_it() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let empty = server.get(&format!("{PATH}?wait=1")).await;
    assert_eq!(empty, json!({"data": [], "page": {"cursor": "0", "has_more": false, "limit": 100}}));
    let waiting = server.request(Method::GET, &format!("{PATH}?correlation=mine&wait=60")).send();
    let waiting = tokio::spawn(waiting);
    start(&server, "probe", Some("others"), json!({"updates": 1})).await;
    let id = start(&server, "probe", Some("mine"), json!({"updates": 1})).await;
    let page: Value = waiting.await.unwrap().unwrap().json().await.unwrap();
    let data = page["data"].as_array().unwrap();
    assert!(!data.is_empty() && data.iter().all(|entry| entry["run"] == id), "{page}");
    // A position beyond the end waits, in a page and in a stream.
    let beyond = server.get(&format!("{PATH}?after=1000000&wait=1")).await;
    assert_eq!((&beyond["data"], &beyond["page"]["cursor"]), (&json!([]), &json!("1000000")));
}

#[tokio::test]
async fn what_is_wrong_with_a_question_to_a_channel_is_told() {
    let server = Server::start();
    let asked = |path: &str, last: Option<&'static str>| {
        let mut request = server.request(Method::GET, path);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        async move { problem(request.send().await.unwrap()).await }
    };
    let query = (400, "invalid_query".to_owned());
    for bad in ["after=x", "after=%2B1", "run=x", "workflow=a%20b", "wait=61", "limit=0", "kinds=step.update"] {
        assert_eq!(asked(&format!("{PATH}?{bad}"), None).await, query, "{bad}");
    }
    assert_eq!(asked(PATH, Some("one")).await, query);
    assert_eq!(asked(&format!("{PATH}?topics=a,"), None).await, (422, "unknown_topic".to_owned()));
    // A follower's filter is kept for as long as it follows.
    let many = format!("{PATH}?topics={}a", "a,".repeat(64));
    assert_eq!(asked(&many, None).await, (422, "too_many".to_owned()));
    let long = format!("{PATH}?correlation={}", "x".repeat(257));
    assert_eq!(asked(&long, None).await, (422, "invalid_correlation".to_owned()));
    assert_eq!(asked("/v1/channels/a%20b/events", None).await, (404, "unknown_channel".to_owned()));
    let nobody = server.anonymous(Method::GET, PATH).send().await.unwrap();
    assert_eq!(problem(nobody).await, (401, "unauthorized".to_owned()));
    // What a run can be known by.
    server.deploy("noop", "stepwell_noop").await;
    for bad in [String::new(), "x".repeat(257), "a\tb".to_owned()] {
        let response = server.post_run("noop", json!(1)).header("stepwell-correlation", &bad).send().await.unwrap();
        assert_eq!(problem(response).await, (422, "invalid_correlation".to_owned()), "{bad:?}");
    }
    // It is part of what is repeated under an idempotency key.
    let again = |correlation: &'static str| {
        let request = server.post_run("noop", json!(1)).header("idempotency-key", "k");
        request.header("stepwell-correlation", correlation).send()
    };
    assert_eq!(again("a").await.unwrap().status(), StatusCode::ACCEPTED);
    assert_eq!(again("a").await.unwrap().headers()["idempotent-replayed"], "true");
    assert_eq!(problem(again("b").await.unwrap()).await, (422, "idempotency_mismatch".to_owned()));
}

#[tokio::test]
async fn a_channel_of_another_tenant_is_another_channel() {
    let server = Server::start_with(&[]);
    let (acme, rival) = (tenant(&server, "acme"), tenant(&server, "acme-2"));
    for key in [&acme, &rival] {
        server.deploy_as(key, "probe", "stepwell_probe").await;
        let request = server.request_as(key, Method::POST, "/v1/workflows/probe/runs").header("prefer", "wait=30");
        request.json(&json!({"input": {"updates": 1}})).send().await.unwrap();
    }
    let mut runs = Vec::new();
    for key in [&acme, &rival] {
        let page: Value = server.request_as(key, Method::GET, PATH).send().await.unwrap().json().await.unwrap();
        let data = page["data"].as_array().unwrap();
        assert!(data.iter().zip(1..).all(|(entry, cursor)| entry["cursor"] == cursor));
        assert!(data.iter().all(|entry| entry["run"] == data[0]["run"]), "one tenant's run alone");
        runs.push(data[0]["run"].as_str().unwrap().to_owned());
    }
    assert_ne!(runs[0], runs[1]);
    let theirs = server.request_as(&acme, Method::GET, &format!("{PATH}?run={}", runs[1])).send().await.unwrap();
    assert_eq!(theirs.json::<Value>().await.unwrap()["data"], json!([]));
}

/// A follower whose place was deleted with its run is told where the rest begins, and not shown less in silence.
#[tokio::test]
async fn who_comes_back_after_its_place_was_deleted_is_told_where_the_rest_begins() {
    let mut server = Server::start_with(&[]);
    let key = tenant(&server, "acme");
    server.deploy_as(&key, "probe", "stepwell_probe").await;
    let request = server.request_as(&key, Method::POST, "/v1/workflows/probe/runs").header("prefer", "wait=30");
    request.json(&json!({"input": {"updates": 1}})).send().await.unwrap();
    let before = server.request_as(&key, Method::GET, PATH).send().await.unwrap().json::<Value>().await.unwrap();
    let count = before["data"].as_array().unwrap().len() as u64;
    assert!(count > 2);
    // As if its days were over.
    assert_eq!(server.stop(), 0);
    let journal = RedbJournal::open(&server.data_dir().join("journal.redb")).unwrap();
    let later = Timestamp::from_millis(u64::MAX);
    assert_eq!(journal.delete_runs_ended_before(&"acme".parse().unwrap(), later).await.unwrap().runs, 1);
    drop(journal);
    server.start_again();
    let response = server.request_as(&key, Method::GET, &format!("{PATH}?after=1")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::GONE);
    let body: Value = response.json().await.unwrap();
    assert_eq!((&body["code"], &body["first_seq"]), (&json!("history_truncated"), &json!(count + 1)));
    let stream = server.request_as(&key, Method::GET, PATH).header("accept", "text/event-stream");
    let refused = stream.header("last-event-id", "1").send().await.unwrap();
    assert_eq!(problem(refused).await, (410, "history_truncated".to_owned()));
    // From where it was told, and without a position, it goes on; numbers are not given twice.
    let mut follower = open(server.request_as(&key, Method::GET, PATH)).await;
    server.request_as(&key, Method::POST, "/v1/workflows/probe/runs").json(&json!({"input": {}})).send().await.unwrap();
    assert_eq!(follower.next().await.unwrap().id, count + 1);
    let request = server.request_as(&key, Method::GET, &format!("{PATH}?after={count}&wait=30"));
    let page: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(page["data"][0]["cursor"], count + 1);
}

/// *The story:* of a channel's beginning only its first entry was looked at. An old run that had not ended kept that one,
/// while those of a hundred others after it were deleted, and whoever came back to them was shown what was left.
#[tokio::test]
async fn who_comes_back_before_what_was_deleted_in_the_middle_is_told_so() {
    let mut server = Server::start_with(&[]);
    let key = tenant(&server, "acme");
    server.deploy_as(&key, "probe", "stepwell_probe").await;
    let begin = async |input: Value| {
        let request = server.request_as(&key, Method::POST, "/v1/workflows/probe/runs");
        let run: Value = request.json(&json!({"input": input})).send().await.unwrap().json().await.unwrap();
        run["id"].as_str().unwrap().to_owned()
    };
    let page = async |server: &Server, query: &str| {
        let request = server.request_as(&key, Method::GET, &format!("{PATH}?limit=1000&{query}"));
        request.send().await.unwrap().json::<Value>().await.unwrap()["data"].as_array().unwrap().clone()
    };
    let old = begin(json!({"busy_ms": 3_000, "updates": 1})).await;
    eventually("the old run's update", || async { (!page(&server, "").await.is_empty()).then_some(()) }).await;
    let ended = begin(json!({"updates": 3})).await;
    eventually("the end", || async {
        page(&server, "").await.iter().any(|e| e["kind"] == "run.completed").then_some(())
    })
    .await;
    let before = page(&server, "").await;
    assert_eq!(before[0]["run"], *old);
    let last =
        before.iter().filter(|entry| entry["run"] == *ended).map(|e| e["cursor"].as_u64().unwrap()).max().unwrap();
    assert_eq!(server.stop(), 0);
    let journal = RedbJournal::open(&server.data_dir().join("journal.redb")).unwrap();
    let later = Timestamp::from_millis(u64::MAX);
    assert_eq!(journal.delete_runs_ended_before(&"acme".parse().unwrap(), later).await.unwrap().runs, 1);
    drop(journal);
    server.start_again();
    for after in 0..last {
        for accept in ["application/json", "text/event-stream"] {
            let request =
                server.request_as(&key, Method::GET, &format!("{PATH}?after={after}")).header("accept", accept);
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), StatusCode::GONE, "after {after} of {last}");
            let body: Value = response.json().await.unwrap();
            assert_eq!((&body["code"], &body["first_seq"]), (&json!("history_truncated"), &json!(last + 1)));
        }
    }
    // From there on, and without a position, there is the rest of the old run.
    let mut follower = open(server.request_as(&key, Method::GET, PATH).header("last-event-id", last)).await;
    let first = follower.next().await.unwrap();
    assert_eq!((first.id, &first.data["run"]), (last + 1, &json!(old)));
    assert_eq!(page(&server, "").await[0]["cursor"], last + 1);
}

/// *The story:* a follower that wanted little of a channel had no position for hours. It came back to the one from hours
/// ago, and that was deleted, or everything since was read again.
#[tokio::test]
async fn a_follower_that_wants_nothing_of_what_comes_is_told_how_far_it_was_looked_at() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let path = format!("{PATH}?correlation=mine");
    let mut stream = server.request(Method::GET, &path).header("accept", "text/event-stream").send().await.unwrap();
    for _ in 0..4 {
        let id = start(&server, "probe", Some("others"), json!({"updates": 100})).await;
        server.ended(&id).await;
    }
    let id = start(&server, "probe", Some("mine"), json!({"updates": 1})).await;
    let mut text = String::new();
    while !text.contains("run.completed") {
        let chunk = tokio::time::timeout(PATIENCE, stream.chunk()).await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    let frames: Vec<&str> = text.split("\n\n").filter(|frame| frame.starts_with("id:")).collect();
    let (told, seen): (Vec<&str>, Vec<&str>) = frames.iter().partition(|frame| !frame.contains("data:"));
    let number = |frame: &str| frame.lines().next().unwrap()[3..].trim().parse::<u64>().unwrap();
    let (first_seen, all) = (number(seen[0]), entries(&server, "").await);
    assert!(seen.iter().all(|frame| frame.contains(&id)));
    assert!(!told.is_empty() && told.len() < 10, "now and then: {}", told.len());
    assert!(told.iter().all(|frame| number(frame) < first_seen && !frame.contains("event")), "{told:?}");
    let numbers: Vec<u64> = frames.iter().map(|frame| number(frame)).collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
    // Whoever comes back to it misses nothing.
    let again = server.request(Method::GET, &path).header("last-event-id", number(told[told.len() - 1]));
    let wanted = all.iter().find(|entry| entry["run"] == *id).unwrap();
    assert_eq!(open(again).await.next().await.unwrap().data, *wanted);
}
