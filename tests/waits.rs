//! Steps that wait: for a time, for somebody outside, for children; through crashes, and for longer than any of them.

use std::time::Duration;

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::{Server, check_history, problem};

async fn signal(server: &Server, id: &str, name: &str, payload: Value) -> Response {
    let path = format!("/v1/runs/{id}/signals/{name}");
    server.request(Method::POST, &path).json(&payload).send().await.unwrap()
}

async fn send(server: &Server, id: &str, name: &str, payload: Value) {
    let response = signal(server, id, name, payload).await;
    let status = response.status();
    assert_eq!(status, StatusCode::ACCEPTED, "{}", response.text().await.unwrap());
}

fn count(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|event| event["kind"] == kind).count()
}

fn find<'a>(events: &'a [Value], kind: &str) -> &'a Value {
    events.iter().find(|event| event["kind"] == kind).unwrap_or_else(|| panic!("no {kind}: {events:?}"))
}

async fn waiting_for(server: &Server, id: &str, reason: &str) -> Value {
    server.run_when(id, |run| run["status"] == "suspended" && run["waits_for"] == reason).await
}

#[tokio::test]
async fn a_step_that_sleeps_goes_on_where_it_was_and_says_so() {
    let server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let run = server.run("waits", json!([{"publish": 1}, {"sleep": 300}, {"publish": 2}, {"sleep": 0}])).await;
    assert_eq!(run["status"], "completed", "{run}");
    let events = server.events(run["id"].as_str().unwrap()).await;
    assert_eq!(check_history(&events).len(), 2, "what was published before the wait is published once");
    let (suspended, resumed) = (find(&events, "step.suspended"), find(&events, "step.resumed"));
    assert_eq!((&suspended["reason"], &suspended["call"]), (&json!("timer"), &json!("wait.sleep")));
    assert_eq!(resumed["woke"], "timer");
    assert!(resumed["at"].as_str() >= suspended["until"].as_str(), "not before its time");
    let of_run: Vec<(&str, &Value)> = events
        .iter()
        .filter_map(|event| Some((event["kind"].as_str()?, &event["reason"])))
        .filter(|(kind, _)| kind.starts_with("run."))
        .collect();
    // The second wait is over at once, so nobody is told of a suspension.
    let reason = json!("timer");
    let null = Value::Null;
    let expected = [
        ("run.queued", &null),
        ("run.started", &null),
        ("run.suspended", &reason),
        ("run.resumed", &null),
        ("run.completed", &null),
    ];
    assert_eq!(of_run, expected);
    assert_eq!((count(&events, "step.started"), count(&events, "step.suspended")), (1, 2));
}

#[tokio::test]
async fn a_run_waits_for_a_person_through_crashes_and_tells_what_it_waits_for() {
    let mut server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let script = json!([{"calls": 3}, {"signal": {"name": "go"}}, {"publish": "between"}, {"signal": {"name": "go"}}]);
    let id = server.start_run("waits", script).await;
    waiting_for(&server, &id, "signal").await;
    let suspended = server.event_when(&id, |event| event["kind"] == "step.suspended").await;
    assert_eq!((&suspended["signal"], &suspended["until"]), (&json!("go"), &Value::Null));
    server.crash();
    send(&server, &id, "go", json!({"n": 1})).await;
    server.event_when(&id, |event| event["kind"] == "step.update").await;
    waiting_for(&server, &id, "signal").await;
    server.crash();
    send(&server, &id, "go", json!({"n": 2})).await;
    let run = server.ended(&id).await;
    assert_eq!(run["status"], "completed", "{run}");
    assert_eq!((&run["output"][1], &run["output"][3]), (&json!({"n": 1}), &json!({"n": 2})));
    let events = server.events(&id).await;
    check_history(&events);
    assert_eq!(count(&events, "step.call"), 3, "what is on record is not done again");
    assert_eq!(count(&events, "step.started"), 1, "it is the same attempt all along");
    let signals = server.get(&format!("/v1/runs/{id}/signals")).await;
    let taken: Vec<(&Value, &Value)> = signals["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|signal| (&signal["payload"]["n"], &signal["taken_by"]))
        .collect();
    assert_eq!(taken, [(&json!(1), &json!("act")), (&json!(2), &json!("act"))]);
}

#[tokio::test]
async fn a_signal_that_comes_early_is_kept_and_one_with_the_same_key_comes_once() {
    let server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let go = json!({"signal": {"name": "go", "within_ms": 60_000}});
    let id = server.start_run("waits", json!([{"signal": {"name": "stop"}}, go, go])).await;
    let path = format!("/v1/runs/{id}/signals/go");
    let with_key = |payload: Value| server.request(Method::POST, &path).header("idempotency-key", "k").json(&payload);
    let first: Value = with_key(json!(1)).send().await.unwrap().json().await.unwrap();
    let again = with_key(json!(1)).send().await.unwrap();
    assert_eq!(
        (again.status(), &again.headers()["idempotent-replayed"]),
        (StatusCode::ACCEPTED, &"true".parse().unwrap())
    );
    assert_eq!(again.json::<Value>().await.unwrap()["seq"], first["seq"]);
    let other = with_key(json!(3)).send().await.unwrap();
    assert_eq!(problem(other).await, (422, "idempotency_mismatch".to_owned()), "it would be taken twice");
    send(&server, &id, "go", json!(2)).await;
    let listed = server.get(&format!("/v1/runs/{id}/signals?limit=1")).await;
    assert_eq!((&listed["data"][0]["payload"], &listed["page"]["has_more"]), (&json!(1), &json!(true)));
    assert!(listed["data"][0]["taken_by"].is_null());
    send(&server, &id, "stop", json!(null)).await;
    let run = server.ended(&id).await;
    assert_eq!(run["output"], json!([null, 1, 2]), "{run}");
    let events = server.events(&id).await;
    check_history(&events);
    assert_eq!(count(&events, "signal.received"), 3);
}

#[tokio::test]
async fn a_signal_that_does_not_come_is_an_answer_too() {
    let server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let script = json!([
        {"signal": {"name": "go", "within_ms": 200}},
        {"signal": {"name": "unheard"}},
        {"await": {"run": "01890000-0000-7000-8000-000000000000"}},
        {"await": {"run": "no id"}},
    ]);
    let run = server.run("waits", script).await;
    let expected = json!([
        {"error": "Timeout"}, {"error": "UnknownSignal(\"unheard\")"}, {"error": "NotAChild"}, {"error": "NotAChild"}
    ]);
    assert_eq!(run["output"], expected, "{run}");
    let events = server.events(run["id"].as_str().unwrap()).await;
    assert_eq!(find(&events, "step.resumed")["woke"], "timed_out");
}

#[tokio::test]
async fn signals_that_cannot_be_taken_change_nothing() {
    let server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let id = server.start_run("waits", json!([{"signal": {"name": "go"}}])).await;
    waiting_for(&server, &id, "signal").await;
    let before = server.events(&id).await.len();
    assert_eq!(problem(signal(&server, &id, "unheard", json!(1)).await).await, (422, "unknown_signal".to_owned()));
    let large = json!("x".repeat(300_000));
    assert_eq!(problem(signal(&server, &id, "go", large).await).await, (413, "too_large".to_owned()));
    let path = format!("/v1/runs/{id}/signals/go");
    // The last ones are JSON, and no step could read them.
    for body in [b"{".as_slice(), b"\"\xff\"", br#""\ud800""#, b"1e400"] {
        let broken = server.request(Method::POST, &path).body(body).send().await.unwrap();
        assert_eq!(problem(broken).await, (422, "invalid_json".to_owned()), "{body:?}");
    }
    assert_eq!(server.events(&id).await.len(), before);
    send(&server, &id, "go", json!(1)).await;
    server.ended(&id).await;
    assert_eq!(problem(signal(&server, &id, "go", json!(1)).await).await, (409, "run_ended".to_owned()));
    let unknown = signal(&server, "01890000-0000-7000-8000-000000000000", "go", json!(1)).await;
    assert_eq!(problem(unknown).await, (404, "unknown_run".to_owned()));
}

#[tokio::test]
async fn waiting_runs_are_cancelled_and_paused_like_any_others() {
    let server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let ids = [
        server.start_run("waits", json!([{"sleep": 3_600_000}])).await,
        server.start_run("waits", json!([{"signal": {"name": "go"}}])).await,
    ];
    waiting_for(&server, &ids[0], "timer").await;
    waiting_for(&server, &ids[1], "signal").await;
    let cancelled = server.request(Method::POST, &format!("/v1/runs/{}/cancel", ids[0])).send().await.unwrap();
    assert_eq!(cancelled.json::<Value>().await.unwrap()["status"], "cancelled");

    let pause = server.request(Method::POST, &format!("/v1/runs/{}/pause", ids[1])).send().await.unwrap();
    assert_eq!(pause.status(), StatusCode::OK);
    send(&server, &ids[1], "go", json!("held")).await;
    let events = server.events(&ids[1]).await;
    assert_eq!(events.last().unwrap()["kind"], "signal.received", "what comes to a paused run is kept");
    let resume = server.request(Method::POST, &format!("/v1/runs/{}/resume", ids[1])).send().await.unwrap();
    assert_eq!(resume.status(), StatusCode::OK);
    assert_eq!(server.ended(&ids[1]).await["output"], json!(["held"]));
    check_history(&server.events(&ids[1]).await);
}

#[tokio::test]
async fn a_step_whose_attempts_are_used_up_waits_for_an_operator() {
    let mut server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let id = server.start_run("waits", json!([{"publish": 1}, {"fail": {"attempts": 3, "code": "busy"}}])).await;
    server.run_when(&id, |run| run["status"] == "paused").await;
    let events = server.events(&id).await;
    let last = events.iter().rfind(|event| event["kind"] == "step.failed").unwrap();
    assert_eq!((&last["attempt"], &last["pauses"], &last["will_retry"]), (&json!(3), &json!(true), &json!(false)));
    let paused = find(&events, "run.paused");
    assert!(paused["reason"].as_str().unwrap().contains("busy"), "{paused}");
    server.crash();
    let resume = server.request(Method::POST, &format!("/v1/runs/{id}/resume")).send().await.unwrap();
    assert_eq!(resume.status(), StatusCode::OK);
    let run = server.ended(&id).await;
    assert_eq!(run["status"], "completed", "{run}");
    let events = server.events(&id).await;
    assert_eq!(check_history(&events).len(), 1);
    assert_eq!(events.iter().rfind(|event| event["kind"] == "step.resumed").unwrap()["woke"], "operator");

    // A code with a policy of its own, and a failure for good: neither waits for anybody in vain.
    let id = server.start_run("waits", json!([{"fail": {"attempts": 1, "code": "hopeless"}}])).await;
    server.run_when(&id, |run| run["status"] == "paused").await;
    assert_eq!(count(&server.events(&id).await, "step.started"), 1);
    let run = server.run("waits", json!([{"fail": {"attempts": 9, "code": "broken", "permanent": true}}])).await;
    assert_eq!((&run["status"], &run["failure_code"]), (&json!("failed"), &json!("broken")));
}

#[tokio::test]
async fn children_bring_their_output_their_failure_or_their_cancellation() {
    let mut server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let start = |input: Value| json!({"start": {"workflow": "waits", "input": input}});
    let script = json!([
        start(json!([{"sleep": 400}, {"publish": "child"}])), {"await": {}},
        start(json!([{"fail": {"attempts": 9, "code": "broken", "permanent": true}}])), {"await": {}},
        start(json!([{"signal": {"name": "go"}}])), {"await": {"within_ms": 300}},
    ]);
    let id = server.start_run("waits", script).await;
    waiting_for(&server, &id, "child").await;
    server.crash();
    let run = server.ended(&id).await;
    assert_eq!(run["status"], "completed", "{run}");
    let output = &run["output"];
    assert_eq!(output[1][0], Value::Null);
    assert!(output[3]["error"].as_str().unwrap().starts_with("Failed { code: \"broken\""), "{output}");
    assert_eq!(output[5], json!({"error": "Timeout"}));
    let children = server.get(&format!("/v1/runs?parent={id}")).await;
    let children = children["data"].as_array().unwrap();
    assert_eq!(children.len(), 3);
    // The last one was not done when its parent was: it is cancelled.
    let last = server.ended(output[4].as_str().unwrap()).await;
    assert_eq!((&last["status"], &last["parent"]), (&json!("cancelled"), &json!(id)));
    let events = server.events(&id).await;
    check_history(&events);
    let called = events.iter().filter(|event| event["call"] == "children.start").collect::<Vec<_>>();
    assert_eq!((called.len(), &called[0]["child"]), (3, &output[0]));
    let woke: Vec<&Value> =
        events.iter().filter(|event| event["woke"] == "child").map(|event| &event["child_status"]).collect();
    assert_eq!(woke, ["completed", "failed"]);
}

#[tokio::test]
async fn children_end_with_what_started_them_unless_they_are_detached() {
    let server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let long = json!([{"signal": {"name": "go"}}]);
    let start = |detached: bool| json!({"start": {"workflow": "waits", "input": long, "detached": detached}});
    let id = server.start_run("waits", json!([start(false), start(true), {"signal": {"name": "go"}}])).await;
    waiting_for(&server, &id, "signal").await;
    let children = server.get(&format!("/v1/runs?parent={id}")).await;
    let ids: Vec<String> =
        children["data"].as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect();
    let [detached, attached] = &ids[..] else { panic!("{children}") };
    waiting_for(&server, attached, "signal").await;
    waiting_for(&server, detached, "signal").await;
    server.request(Method::POST, &format!("/v1/runs/{id}/cancel")).send().await.unwrap();
    assert_eq!(server.ended(attached).await["status"], "cancelled");
    send(&server, detached, "go", json!(1)).await;
    assert_eq!(server.ended(detached).await["status"], "completed");

    // An attempt that fails takes its children with it; the next one starts its own.
    let script = json!([start(false), {"fail": {"attempts": 1, "code": "busy"}}, {"sleep": 0}]);
    let run = server.run("waits", script).await;
    let children = server.get(&format!("/v1/runs?parent={}", run["id"].as_str().unwrap())).await;
    let children = children["data"].as_array().unwrap();
    assert_eq!(children.len(), 2);
    for child in children {
        assert_eq!(server.ended(child["id"].as_str().unwrap()).await["status"], "cancelled");
    }
}

/// What followed from the answer was once decided and not written until something else happened, which could be never.
#[tokio::test]
async fn a_child_that_ends_before_it_is_waited_for_is_an_answer_at_once() {
    let server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let start = |input: Value| json!({"start": {"workflow": "waits", "input": input}});
    let run = server.run("waits", json!([start(json!([{"publish": 1}])), {"sleep": 300}, {"await": {}}])).await;
    assert_eq!(run["status"], "completed", "{run}");
    let events = server.events(run["id"].as_str().unwrap()).await;
    check_history(&events);
    let at = |kind: &str| {
        let event = events.iter().rfind(|event| event["kind"] == kind).unwrap();
        event["at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond()
    };
    assert!(at("step.resumed") - at("step.suspended") < 5_000, "{events:?}");

    // Without a time limit there is nothing else that could happen.
    let fast =
        json!({"stepwell": 1, "nodes": [{"id": "a", "kind": "transform", "output": "${ .input }"}], "output": "a"});
    server.deploy_graph("fast", &fast).await;
    let nap = json!({"stepwell": 1, "nodes": [{"id": "nap", "kind": "sleep", "for": "300ms"}]});
    server.deploy_graph("nap", &nap).await;
    for child in ["fast", "nap"] {
        let node = json!({"id": "c", "kind": "workflow", "workflow": child, "input": "${ .input }"});
        server.deploy_graph(&format!("of-{child}"), &json!({"stepwell": 1, "nodes": [node], "output": "c"})).await;
    }
    let starts = (0..100).map(|n| server.start_run("of-fast", json!(n)));
    for (n, id) in futures_util::future::join_all(starts).await.iter().enumerate() {
        let run = server.ended(id).await;
        assert_eq!((&run["status"], &run["output"]), (&json!("completed"), &json!(n)), "{run}");
    }
    let id = server.start_run("of-nap", json!(null)).await;
    waiting_for(&server, &id, "child").await;
    let control = |what: &str| server.request(Method::POST, &format!("/v1/runs/{id}/{what}")).send();
    assert_eq!(control("pause").await.unwrap().status(), StatusCode::OK);
    let children = server.get(&format!("/v1/runs?parent={id}")).await;
    server.ended(children["data"][0]["id"].as_str().unwrap()).await;
    assert_eq!(control("resume").await.unwrap().status(), StatusCode::OK);
    assert_eq!(server.ended(&id).await["status"], "completed");
}

#[tokio::test]
async fn children_that_cannot_be_are_an_answer_and_go_no_deeper_than_eight() {
    let server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let version = "0".repeat(64);
    let script = json!([
        {"start": {"workflow": "nobody"}},
        {"start": {"workflow": "waits", "version": version}},
        {"start": {"workflow": "waits", "version": "latest"}},
        {"start": {"workflow": "no such name"}},
    ]);
    let run = server.run("waits", script).await;
    let errors: Vec<&str> =
        run["output"].as_array().unwrap().iter().map(|out| out["error"].as_str().unwrap()).collect();
    assert_eq!(errors[..2], ["UnknownWorkflow", "UnknownVersion"]);
    assert!(errors[2..].iter().all(|error| error.starts_with("InvalidRequest")), "{errors:?}");

    let mut input = json!([{"start": {"workflow": "waits", "input": []}}]);
    for _ in 0..8 {
        input = json!([{"start": {"workflow": "waits", "input": input}}, {"await": {}}]);
    }
    let run = server.run("waits", input).await;
    let mut output = &run["output"];
    for _ in 0..8 {
        output = &output[1];
    }
    assert_eq!(*output, json!([{"error": "TooDeep"}]), "{run}");
}

#[tokio::test]
async fn an_absurd_sleep_is_one_of_a_year_and_can_be_cancelled() {
    let server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let id = server.start_run("waits", json!([{"sleep": u64::MAX}])).await;
    let run = waiting_for(&server, &id, "timer").await;
    let suspended = server.event_when(&id, |event| event["kind"] == "step.suspended").await;
    assert!(run["waits_until"].as_str() < suspended["until"].as_str(), "the run's own time is over long before");
    let at = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond();
    let days = (at(&suspended["until"]) - at(&suspended["at"])) as f64 / 86_400_000.0;
    assert!((365.9..366.1).contains(&days), "{days} days");
    let cancelled = server.request(Method::POST, &format!("/v1/runs/{id}/cancel")).send().await.unwrap();
    assert_eq!(cancelled.json::<Value>().await.unwrap()["status"], "cancelled");
    check_history(&server.events(&id).await);
}

#[tokio::test]
async fn only_children_of_the_run_itself_can_be_waited_for() {
    let server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let foreign = server.start_run("waits", json!([{"signal": {"name": "go"}}])).await;
    waiting_for(&server, &foreign, "signal").await;
    // Neither another run of the tenant, nor one that has ended with something to read.
    let ended = server.run("waits", json!([{"publish": "secret"}])).await["id"].clone();
    let run = server.run("waits", json!([{"await": {"run": foreign}}, {"await": {"run": ended}}])).await;
    assert_eq!(run["output"], json!([{"error": "NotAChild"}, {"error": "NotAChild"}]), "{run}");
    let events = server.events(run["id"].as_str().unwrap()).await;
    assert_eq!(count(&events, "step.suspended"), 0);
}

#[tokio::test]
async fn an_attempt_waits_a_thousand_times_and_no_more() {
    let server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let run = server.run("waits", json!([{"waits": 1000}, {"sleep": 0}, {"signal": {"name": "go"}}])).await;
    assert_eq!(run["output"], json!([null, {"error": "QuotaExceeded"}, {"error": "QuotaExceeded"}]), "{run}");
}

#[tokio::test]
async fn a_run_that_takes_too_long_fails_whatever_it_waits_for() {
    let server = Server::start();
    let graph = json!({
        "stepwell": 1, "signals": {"go": true}, "timeout": "700ms",
        "nodes": [{"id": "wait", "kind": "signal", "name": "go"}],
    });
    server.deploy_graph("limited", &graph).await;
    let run = server.run("limited", json!(null)).await;
    assert_eq!((&run["status"], &run["failure"]["code"]), (&json!("failed"), &json!("run_timeout")), "{run}");
    let events = server.events(run["id"].as_str().unwrap()).await;
    check_history(&events);
    let (started, suspended) = (find(&events, "run.started"), find(&events, "run.suspended"));
    assert_eq!(suspended["until"], started["deadline"], "the run says when its wait is over at the latest");
    assert!(events.last().unwrap()["at"].as_str() >= started["deadline"].as_str());
}

#[tokio::test]
async fn graphs_sleep_wait_for_signals_and_run_other_workflows() {
    let server = Server::start();
    let child = json!({
        "stepwell": 1,
        "nodes": [{"id": "double", "kind": "transform", "output": "${ .input * 2 }"}], "output": "double",
    });
    server.deploy_graph("double", &child).await;
    let graph = json!({
        "stepwell": 1,
        "signals": {"approve": {"type": "object", "required": ["by"], "properties": {"by": {"type": "string"}}}},
        "nodes": [
            {"id": "rest", "kind": "sleep", "for": "${ .input.ms }"},
            {"id": "approval", "kind": "signal", "name": "approve", "within": "1h"},
            {"id": "late", "kind": "signal", "name": "approve", "within": "100ms", "on_timeout": "null"},
            {"id": "run", "kind": "workflow", "workflow": "double", "input": "${ .input.n }"},
            {"id": "all", "kind": "transform", "output": {
                "by": "${ .nodes.approval.by }", "late": "${ .nodes.late }", "n": "${ .nodes.run }"
            }},
        ],
        "edges": [
            {"source": "rest", "target": "approval"}, {"source": "approval", "target": "late"},
            {"source": "late", "target": "run"}, {"source": "run", "target": "all"},
        ],
        "output": "all",
    });
    server.deploy_graph("waiting", &graph).await;
    let id = server.start_run("waiting", json!({"ms": 200, "n": 21})).await;
    waiting_for(&server, &id, "signal").await;
    let wrong = signal(&server, &id, "approve", json!({"by": 7})).await;
    assert_eq!(problem(wrong).await, (422, "invalid_signal".to_owned()));
    send(&server, &id, "approve", json!({"by": "Ada"})).await;
    let run = server.ended(&id).await;
    assert_eq!(run["output"], json!({"by": "Ada", "late": null, "n": 42}), "{run}");
    check_history(&server.events(&id).await);

    let failing = json!({
        "stepwell": 1, "signals": {"go": true},
        "nodes": [{"id": "wait", "kind": "signal", "name": "go", "within": "50ms"}],
    });
    server.deploy_graph("failing", &failing).await;
    let run = server.run("failing", json!(null)).await;
    assert_eq!(run["failure"]["code"], "signal_timeout", "{run}");
    let parent = json!({
        "stepwell": 1, "nodes": [{"id": "child", "kind": "workflow", "workflow": "failing"}], "output": "child",
    });
    server.deploy_graph("parent", &parent).await;
    let run = server.run("parent", json!(null)).await;
    assert_eq!(run["failure"]["code"], "child_failed", "{run}");
    assert_eq!(run["failure"]["details"]["code"], "signal_timeout", "{run}");
}

#[tokio::test]
async fn timers_that_were_due_while_the_host_was_down_fire_late_rather_than_never() {
    let mut server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    // Far enough ahead that the run leaves memory before: the list of wakes brings it back.
    let id = server.start_run("waits", json!([{"sleep": 6_500}])).await;
    let until = waiting_for(&server, &id, "timer").await["waits_until"].as_str().unwrap().to_owned();
    server.kill();
    // What must have passed is the machine's clock.
    while stepwell::clock::rfc3339(stepwell::clock::now()) < until {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.start_again();
    let run = server.ended(&id).await;
    assert_eq!(run["status"], "completed", "{run}");
    check_history(&server.events(&id).await);
}

#[tokio::test]
async fn a_run_that_left_memory_is_woken_on_time() {
    let server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let id = server.start_run("waits", json!([{"sleep": 7_000}])).await;
    let run = server.ended(&id).await;
    assert_eq!(run["status"], "completed", "{run}");
    let events = server.events(&id).await;
    let (until, resumed) = (&find(&events, "step.suspended")["until"], &find(&events, "step.resumed")["at"]);
    let millis = |at: &Value| at.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond();
    let late = millis(resumed) - millis(until);
    assert!(late < 5_000, "{late} ms late");
}
