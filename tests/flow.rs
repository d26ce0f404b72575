//! Flow control: how many steps of a workflow execute at once, how fast its runs start, and in which order.

use std::time::Duration;

use redb::{ReadableTable, TableDefinition};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use stepwell_core::RunId;

use crate::driver::Host;
use crate::support::{Server, check_history, eventually, problem};

const SETTINGS: &str = "/v1/workflows/waits/flow-control";

/// A server on which the workflow `waits` has this flow control. The key is what a run publishes first.
async fn server_with(control: Value) -> Server {
    let server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    set(&server, control).await;
    server
}

async fn put(server: &Server, control: &Value) -> Response {
    server.request(Method::PUT, SETTINGS).json(control).send().await.unwrap()
}

async fn set(server: &Server, control: Value) {
    let response = put(server, &control).await;
    let status = response.status();
    assert_eq!(status, StatusCode::OK, "{}", response.text().await.unwrap());
}

/// A run with a key that computes for so long.
fn busy(key: &str, ms: u64) -> Value {
    json!([{ "publish": key }, { "busy_ms": ms }])
}

async fn key(server: &Server, key: &str) -> Value {
    let page = server.get(&format!("{SETTINGS}/keys")).await;
    page["data"].as_array().unwrap().iter().find(|found| found["key"] == key).cloned().unwrap_or_default()
}

/// When a run's event of a kind was, in milliseconds.
async fn at(server: &Server, id: &str, kind: &str) -> i64 {
    let events = server.events(id).await;
    let event = events.iter().find(|event| event["kind"] == kind).unwrap_or_else(|| panic!("no {kind}: {events:?}"));
    let at: jiff::Timestamp = event["at"].as_str().unwrap().parse().unwrap();
    at.as_millisecond()
}

/// Makes some entries of a table unreadable, while the server is down. Returns how many.
fn damage(server: &Server, table: &str, is_it: impl Fn(&[u8], &[u8]) -> bool) -> usize {
    let journal = redb::Database::create(server.data_dir().join("journal.redb")).unwrap();
    let transaction = journal.begin_write().unwrap();
    let mut table = transaction.open_table(TableDefinition::<&[u8], &[u8]>::new(table)).unwrap();
    let entries = table.iter().unwrap().map(Result::unwrap);
    let found = entries.filter(|(key, value)| is_it(key.value(), value.value()));
    let found: Vec<Vec<u8>> = found.map(|(key, _)| key.value().to_vec()).collect();
    for key in &found {
        table.insert(key.as_slice(), b"{".as_slice()).unwrap();
    }
    drop(table);
    transaction.commit().unwrap();
    found.len()
}

/// Waits for the end of runs, and checks that they completed and what their history says.
async fn completed(server: &Server, runs: &[String]) {
    for id in runs {
        let run = server.ended(id).await;
        assert_eq!(run["status"], "completed", "{run}");
        check_history(&server.events(id).await);
    }
}

#[tokio::test]
async fn no_more_steps_execute_at_once_than_the_limit_and_keys_do_not_wait_for_each_other() {
    let server = server_with(json!({ "key": ".[0].publish", "concurrency": 2 })).await;
    let mut runs = Vec::new();
    for _ in 0..6 {
        runs.push(server.start_run("waits", busy("a", 150)).await);
    }
    let other = server.start_run("waits", busy("b", 1)).await;
    let crowded = eventually("two that run and some that wait", || async {
        let found = key(&server, "a").await;
        assert!(found["running"].as_u64() <= Some(2), "{found}");
        (found["running"] == 2 && found["queued"].as_u64() >= Some(1)).then_some(found)
    })
    .await;
    assert_eq!(crowded["next_start_at"], Value::Null, "it is not a matter of time");
    completed(&server, std::slice::from_ref(&other)).await;
    completed(&server, &runs).await;
    let mut spans = Vec::new();
    for id in &runs {
        spans.push((at(&server, id, "step.started").await, at(&server, id, "step.completed").await));
    }
    let most = spans.iter().map(|(start, _)| spans.iter().filter(|(s, e)| s <= start && start < e).count()).max();
    assert_eq!(most, Some(2), "{spans:?}");
    assert!(at(&server, &other, "run.completed").await < spans.iter().map(|(_, end)| *end).max().unwrap());
    let idle = key(&server, "a").await;
    assert_eq!((&idle["running"], &idle["queued"]), (&json!(0), &json!(0)));
}

/// The limit is on steps that execute, and not on runs: one that fans out, and one that comes back from a wait, has as few of
/// them as any other.
#[tokio::test]
async fn the_steps_of_one_run_share_the_slots_too() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let control = json!({ "concurrency": 1 });
    let put = server.request(Method::PUT, "/v1/workflows/probe/flow-control").json(&control).send().await.unwrap();
    assert_eq!(put.status(), StatusCode::OK);
    let run = server.run("probe", json!({ "busy_ms": 300, "updates": 20 })).await;
    let events = server.events(run["id"].as_str().unwrap()).await;
    let mut nodes: Vec<&str> = events
        .iter()
        .filter(|event| event["kind"] == "step.update")
        .map(|event| event["node"].as_str().unwrap())
        .filter(|node| ["left", "right"].contains(node))
        .collect();
    assert_eq!(nodes.len(), 40, "{events:?}");
    nodes.dedup();
    assert_eq!(nodes.len(), 2, "one of the two came after the other: {nodes:?}");
}

#[tokio::test]
async fn a_branch_that_has_ended_leaves_its_slot_to_others_however_busy_its_sibling_is() {
    let server = Server::start();
    let waits = server.deploy("waits", "stepwell_waits").await;
    let branch = |id: &str| {
        let inputs = json!({ "input": format!("${{ .input.{id} }}") });
        json!({ "id": id, "kind": "component", "workflow": "waits", "version": waits, "node": "act", "inputs": inputs })
    };
    let graph =
        json!({ "stepwell": 1, "topics": ["update"], "nodes": [branch("a"), branch("b")], "edges": [], "output": "b" });
    server.deploy_graph("graph", &graph).await;
    let control = json!({ "concurrency": 2 });
    let put = server.request(Method::PUT, "/v1/workflows/graph/flow-control").json(&control).send().await.unwrap();
    assert_eq!(put.status(), StatusCode::OK);
    let busy = server.start_run("graph", json!({ "a": [], "b": [{ "flood": [1_000_000, 10] }] })).await;
    eventually("one branch to end", || async {
        let ended = server.get(&format!("/v1/runs/{busy}/events?kinds=step.completed")).await;
        ended["data"].as_array().unwrap().iter().any(|event| event["node"] == "a").then_some(())
    })
    .await;
    let other = server.start_run("graph", json!({ "a": [], "b": [] })).await;
    completed(&server, std::slice::from_ref(&other)).await;
    assert_eq!(server.get(&format!("/v1/runs/{busy}")).await["status"], "running");
    let path = format!("/v1/runs/{busy}/cancel");
    assert_eq!(server.request(Method::POST, &path).send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(server.ended(&busy).await["status"], "cancelled");
}

#[tokio::test]
async fn the_queue_goes_by_priority_and_then_by_age_and_survives_a_crash() {
    let control = json!({ "priority": "(.[1].publish // 0)", "concurrency": 1 });
    let mut server = server_with(control).await;
    let first = server.start_run("waits", busy("x", 700)).await;
    server.run_when(&first, |run| run["status"] == "running").await;
    let mut runs = Vec::new();
    for priority in [0, -5, 7, 0, 1000] {
        runs.push(server.start_run("waits", json!([{ "publish": "x" }, { "publish": priority }])).await);
    }
    let waiting = server.get(&format!("/v1/runs/{}", runs[4])).await;
    assert_eq!(
        (&waiting["status"], &waiting["priority"], &waiting["flow_key"]),
        (&json!("queued"), &json!(1000), &json!(""))
    );
    server.crash();
    completed(&server, &[first]).await;
    completed(&server, &runs).await;
    let mut started = Vec::new();
    for (index, id) in runs.iter().enumerate() {
        started.push((at(&server, id, "run.started").await, index));
    }
    started.sort_unstable();
    let order: Vec<usize> = started.into_iter().map(|(_, index)| index).collect();
    assert_eq!(order, [4, 2, 0, 3, 1]);
}

#[tokio::test]
async fn a_throttle_spreads_starts_through_a_crash_and_lets_a_cancelled_run_go() {
    let mut server = server_with(json!({ "throttle": { "limit": 2, "period_seconds": 1, "burst": 1 } })).await;
    let mut runs = Vec::new();
    for _ in 0..5 {
        runs.push(server.start_run("waits", json!([])).await);
    }
    let queued = key(&server, "").await;
    assert!(queued["queued"].as_u64() >= Some(3) && queued["next_start_at"].is_string(), "{queued}");
    let cancelled = runs.pop().unwrap();
    let path = format!("/v1/runs/{cancelled}/cancel");
    assert_eq!(server.request(Method::POST, &path).send().await.unwrap().status(), StatusCode::OK);
    server.crash();
    completed(&server, &runs).await;
    let mut starts = Vec::new();
    for id in &runs {
        starts.push(at(&server, id, "run.started").await);
    }
    assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= 495), "{starts:?}");
    let kinds: Vec<Value> = server.events(&cancelled).await.into_iter().map(|event| event["kind"].clone()).collect();
    assert_eq!(kinds, ["run.queued", "run.cancelled"]);
    assert_eq!(key(&server, "").await["queued"], 0);
}

/// Turns were taken when a start was granted: those who then waited for room all started at once when there was some.
#[tokio::test]
async fn a_throttle_holds_for_starts_that_something_else_has_held_up() {
    let server = Server::start_with(&["--dev", "--active-runs", "1"]);
    server.deploy("waits", "stepwell_waits").await;
    server.deploy("probe", "stepwell_probe").await;
    set(&server, json!({ "throttle": { "limit": 4, "period_seconds": 1, "burst": 1 } })).await;
    let blocker = server.start_run("probe", json!({ "busy_ms": 500, "updates": 1 })).await;
    server.run_when(&blocker, |run| run["status"] == "running").await;
    let mut runs = Vec::new();
    for _ in 0..5 {
        runs.push(server.start_run("waits", json!([])).await);
    }
    completed(&server, &[blocker]).await;
    completed(&server, &runs).await;
    let mut started = Vec::new();
    for id in &runs {
        started.push(at(&server, id, "run.started").await);
    }
    started.sort_unstable();
    assert!(started.windows(2).all(|pair| pair[1] - pair[0] >= 249), "{started:?}");
}

#[tokio::test]
async fn a_rate_limit_refuses_by_key_and_not_what_was_accepted_before() {
    let limit = json!({ "key": ".[0].publish", "rate_limit": { "limit": 2, "period_seconds": 60 } });
    let mut server = server_with(limit).await;
    let post = |server: &Server, key: &str, idempotency: Option<&str>| {
        let request = server.post_run("waits", json!([{ "publish": key }]));
        idempotency.map_or_else(
            || request.try_clone().unwrap(),
            |value| request.try_clone().unwrap().header("idempotency-key", value),
        )
    };
    for _ in 0..2 {
        let accepted = post(&server, "a", Some("once")).send().await.unwrap();
        assert_eq!(accepted.status(), StatusCode::ACCEPTED, "a repetition is not counted");
    }
    assert_eq!(post(&server, "a", None).send().await.unwrap().status(), StatusCode::ACCEPTED);
    for _ in 0..2 {
        let refused = post(&server, "a", Some("new")).send().await.unwrap();
        let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((25..=31).contains(&wait), "{wait}");
        assert_eq!(problem(refused).await, (429, "rate_limited".to_owned()));
        server.crash();
    }
    assert_eq!(post(&server, "b", None).send().await.unwrap().status(), StatusCode::ACCEPTED);
    let replayed = post(&server, "a", Some("once")).send().await.unwrap();
    assert_eq!(
        (replayed.status(), &replayed.headers()["idempotent-replayed"]),
        (StatusCode::ACCEPTED, &"true".parse().unwrap())
    );
    assert_eq!(server.get("/v1/runs").await["data"].as_array().unwrap().len(), 3, "what was refused is not there");
    // The key of the refused one is free once there is room.
    assert_eq!(server.request(Method::DELETE, SETTINGS).send().await.unwrap().status(), StatusCode::NO_CONTENT);
    assert_eq!(post(&server, "a", Some("new")).send().await.unwrap().status(), StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_limit_that_is_made_faster_holds_for_what_waits_for_the_old_one() {
    let pace = |limit: u32, seconds: u32| json!({ "limit": limit, "period_seconds": seconds });
    let mut server = server_with(json!({ "throttle": pace(1, 86_400) })).await;
    let mut runs = Vec::new();
    for _ in 0..3 {
        runs.push(server.start_run("waits", json!([])).await);
    }
    completed(&server, &runs[..1]).await;
    set(&server, json!({ "throttle": pace(5, 1) })).await;
    completed(&server, &runs).await;
    // What the old one has left on disk is gone too: nothing waits for longer than the new one says.
    server.crash();
    let begun = at(&server, &runs[2], "run.started").await;
    let next = server.start_run("waits", json!([])).await;
    completed(&server, std::slice::from_ref(&next)).await;
    let (queued, started) = (at(&server, &next, "run.queued").await, at(&server, &next, "run.started").await);
    assert!(started - queued.max(begun + 200) < 2_000, "{begun} {queued} {started}");

    set(&server, json!({ "rate_limit": pace(1, 86_400) })).await;
    let post = || async { server.post_run("waits", json!([])).send().await.unwrap().status() };
    assert_eq!((post().await, post().await), (StatusCode::ACCEPTED, StatusCode::TOO_MANY_REQUESTS));
    set(&server, json!({ "rate_limit": pace(2, 1) })).await;
    eventually("a run to be accepted by the new limit", || async {
        (post().await == StatusCode::ACCEPTED).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_start_that_is_refused_takes_nobodys_turn() {
    let throttle = json!({ "limit": 1, "period_seconds": 600, "burst": 3 });
    let once = json!({ "limit": 1, "period_seconds": 86_400, "burst": 1 });
    let server = server_with(json!({ "throttle": throttle, "rate_limit": once })).await;
    let busy = server.start_run("waits", json!([{ "busy_ms": 3_000 }])).await; // it keeps what is known of its key in memory
    for _ in 0..3 {
        let refused = server.post_run("waits", json!([])).send().await.unwrap();
        assert_eq!(problem(refused).await, (429, "rate_limited".to_owned()));
    }
    set(&server, json!({ "throttle": throttle })).await;
    let next = server.start_run("waits", json!([])).await;
    completed(&server, &[next, busy]).await;
}

/// The queue's count of one key and the summary of one run, for which another one waits, do not parse.
#[tokio::test]
async fn what_is_damaged_of_one_holds_up_no_other() {
    let mut server = server_with(json!({ "key": ".[0].publish", "concurrency": 1 })).await;
    let start = json!({ "workflow": "waits", "input": [{ "publish": "c" }, { "signal": { "name": "go" } }] });
    let parent = server.start_run("waits", json!([{ "start": start }, { "await": {} }])).await;
    server.run_when(&parent, |run| run["waits_for"] == "child").await;
    let children = server.get(&format!("/v1/runs?parent={parent}")).await;
    let unreadable = children["data"][0]["id"].as_str().unwrap().to_owned();
    server.run_when(&unreadable, |run| run["status"] == "suspended").await;
    for _ in 0..2 {
        server.start_run("waits", busy("a", 20_000)).await;
    }
    let mut runs = vec![server.start_run("waits", busy("b", 2_000)).await];
    for _ in 0..15 {
        runs.push(server.start_run("waits", busy("b", 1)).await);
    }
    assert!(key(&server, "b").await["queued"].as_u64() >= Some(10));
    server.kill();
    let run: RunId = unreadable.parse().unwrap();
    let damaged = damage(&server, "flow_counts", |_, value| String::from_utf8_lossy(value).contains(r#""key":"a""#))
        + damage(&server, "runs", |key, _| key.ends_with(run.as_bytes()));
    assert_eq!(damaged, 2);
    server.start_again();
    completed(&server, &runs).await;
    let (mut first, mut last) = (i64::MAX, 0);
    for id in &runs[1..] {
        let started = at(&server, id, "run.started").await;
        (first, last) = (first.min(started), last.max(started));
    }
    assert!(last - first < 8_000, "they took {} ms, one after the other", last - first);
    let answer = server.request(Method::GET, &format!("/v1/runs/{unreadable}")).send().await.unwrap();
    assert_eq!(problem(answer).await.0, 500, "it says so itself");
    // Whoever asks after it asks again and again, and that is no reason not to stop.
    let told = server.request(Method::POST, &format!("/v1/runs/{parent}/signals/go")).json(&json!(1)).send().await;
    assert_eq!(told.unwrap().status(), StatusCode::ACCEPTED);
    assert_eq!(server.get(&format!("/v1/runs/{parent}")).await["status"], "suspended");
    assert_eq!(server.stop(), 0);
}

#[tokio::test]
async fn of_runs_that_come_close_together_only_the_last_one_starts() {
    let control = json!({ "key": ".[0].publish", "debounce": { "seconds": 1, "at_most_seconds": 60 } });
    let mut server = server_with(control).await;
    let mut runs = Vec::new();
    for n in 0..3 {
        runs.push(server.start_run("waits", json!([{ "publish": "a" }, { "publish": n }])).await);
    }
    let other = server.start_run("waits", json!([{ "publish": "b" }])).await;
    let last = runs.pop().unwrap();
    assert!(server.get(&format!("/v1/runs/{last}")).await["not_before"].is_string());
    server.crash();
    for id in &runs {
        let run = server.ended(id).await;
        assert_eq!(run["status"], "cancelled");
        let events = server.events(id).await;
        let reason = events.last().unwrap()["reason"].as_str().unwrap();
        assert!(reason.starts_with("superseded by "), "{reason}");
        assert_eq!(events.len(), 2, "it never started: {events:?}");
    }
    completed(&server, &[last.clone(), other]).await;
    let waited = at(&server, &last, "run.started").await - at(&server, &last, "run.queued").await;
    assert!((1_000..20_000).contains(&waited), "{waited}");
    // One that has started is nobody's to replace.
    let next = server.start_run("waits", json!([{ "publish": "a" }])).await;
    completed(&server, &[next]).await;
}

#[tokio::test]
async fn steps_that_wait_hold_no_slot_so_children_of_the_same_workflow_get_through() {
    let server = server_with(json!({ "concurrency": 1 })).await;
    let child = json!([{ "busy_ms": 20 }, { "publish": "child" }]);
    let parent = json!([{ "start": { "workflow": "waits", "input": child } }, { "await": {} }, { "sleep": 20 }, { "publish": "parent" }]);
    let mut runs = Vec::new();
    for _ in 0..3 {
        runs.push(server.start_run("waits", parent.clone()).await);
    }
    completed(&server, &runs).await;
    assert_eq!(server.get("/v1/runs?workflow=waits&status=completed").await["data"].as_array().unwrap().len(), 6);
}

#[tokio::test]
async fn whoever_waits_for_a_slot_holds_up_nobody_who_needs_room() {
    // Room for one run at a time, and a limit of one: what has a slot may wait for room, and never the other way round.
    let server = Server::start_with(&["--dev", "--active-runs", "1", "--active-runs-per-tenant", "1"]);
    server.deploy("waits", "stepwell_waits").await;
    server.deploy("probe", "stepwell_probe").await;
    let settings = json!({ "concurrency": 1 });
    set(&server, settings.clone()).await;
    let probe = server.request(Method::PUT, "/v1/workflows/probe/flow-control").json(&settings).send().await.unwrap();
    assert_eq!(probe.status(), StatusCode::OK);
    let mut runs = Vec::new();
    for _ in 0..4 {
        runs.push(server.start_run("probe", json!({})).await);
        runs.push(server.start_run("waits", json!([{ "sleep": 5 }, { "busy_ms": 5 }, { "sleep": 5 }])).await);
    }
    completed(&server, &runs).await;
}

#[tokio::test]
async fn runs_in_the_queue_take_no_memory_and_start_when_the_limit_goes() {
    let server = server_with(json!({ "concurrency": 1, "throttle": { "limit": 1, "period_seconds": 86400 } })).await;
    let first = server.start_run("waits", json!([])).await;
    completed(&server, &[first]).await;
    let mut runs = Vec::new();
    for _ in 0..10 {
        runs.push(server.start_run("waits", json!([])).await);
    }
    let deleted = server.request(Method::DELETE, SETTINGS).send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    completed(&server, &runs).await;
    assert_eq!(server.get(SETTINGS).await, json!({}));
}

#[tokio::test]
async fn a_run_in_the_queue_has_no_loop() {
    let host = Host::with("waits", "stepwell_waits").await;
    let pace = stepwell_core::flow::Pace { limit: 1, period_seconds: 3_600, burst: 1 };
    let control = stepwell_core::flow::FlowControl { throttle: Some(pace), ..Default::default() };
    host.driver.set_flow_control(&host.tenant, &host.workflow, Some(&control)).await.unwrap();
    host.driver.recover().await;
    for _ in 0..50 {
        let input = stepwell_core::Json::parse("[]".to_owned()).unwrap();
        host.driver.start(&host.tenant, &host.workflow, None, input, None).await.unwrap();
    }
    eventually("no run has a loop", || async { (host.driver.runs_under_way() == 0).then_some(()) }).await;
    let keys = host.driver.flow_keys(&host.tenant, &host.workflow, None, 10).unwrap();
    assert_eq!((keys.len(), keys[0].queued, keys[0].executing), (1, 49, 0));
    assert!(keys[0].next_start_at.unwrap() > stepwell::clock::now().plus_millis(3_000_000));
    tokio::time::timeout(Duration::from_secs(10), host.driver.stop()).await.unwrap();
}

#[tokio::test]
async fn what_is_no_flow_control_is_refused_and_nothing_changes() {
    let server = server_with(json!({ "concurrency": 3 })).await;
    for (control, code, field) in [
        (json!({ "concurrency": 0 }), "invalid_body", "concurrency"),
        (json!({ "throttle": { "limit": 1, "period_seconds": 0 } }), "invalid_body", "throttle.period_seconds"),
        (json!({ "rate_limit": { "limit": 0, "period_seconds": 1 } }), "invalid_body", "rate_limit.limit"),
        (json!({ "debounce": { "seconds": 9, "at_most_seconds": 8 } }), "invalid_body", "debounce.at_most_seconds"),
        (json!({ "key": ".[" }), "invalid_expression", "key"),
        (json!({ "priority": "no_such_function" }), "invalid_expression", "priority"),
    ] {
        let response = put(&server, &control).await;
        assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY, "{control}");
        let body: Value = response.json().await.unwrap();
        assert_eq!((&body["code"], &body["field"]), (&json!(code), &json!(field)), "{body}");
    }
    for body in [json!({ "concurency": 1 }), json!({ "concurrency": "1" }), json!([])] {
        assert_eq!(problem(put(&server, &body).await).await.0, 422, "{body}");
    }
    let empty = server.request(Method::PUT, SETTINGS).send().await.unwrap();
    assert_eq!(problem(empty).await, (422, "invalid_body".to_owned()));
    assert_eq!(server.get(SETTINGS).await, json!({ "concurrency": 3 }));
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        let foreign = server.request(method, "/v1/workflows/other/flow-control").json(&json!({})).send().await.unwrap();
        assert_eq!(problem(foreign).await, (404, "unknown_workflow".to_owned()));
    }
    let keys = server.request(Method::GET, "/v1/workflows/other/flow-control/keys").send().await.unwrap();
    assert_eq!(problem(keys).await, (404, "unknown_workflow".to_owned()));

    // An expression that has no value for an input refuses the start, and says which.
    for control in
        [json!({ "key": ".account" }), json!({ "priority": ".[0].publish" }), json!({ "key": "(\"x\" * 300)" })]
    {
        set(&server, control.clone()).await;
        let response = server.post_run("waits", json!([{ "publish": "p" }])).send().await.unwrap();
        assert_eq!(problem(response).await, (422, "flow_control_failed".to_owned()), "{control}");
    }
    assert_eq!(server.get("/v1/runs").await["data"], json!([]), "nothing was started");
}
