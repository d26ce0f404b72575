//! What starts runs besides requests, and who is told when they end: times, signed requests, events, deliveries; through
//! crashes.

use std::collections::BTreeSet;
use std::time::SystemTime;

use hmac::{Hmac, Mac};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::outside::server::{Act, Scripted, response};
use crate::support::{Server, eventually, problem};

mod fair;
mod receivers;
mod signed;

const SECRET: &str = "hunter2-0123456789";

async fn put(server: &Server, path: &str, body: Value) -> Response {
    server.request(Method::PUT, path).json(&body).send().await.unwrap()
}

async fn set_up(server: &Server, path: &str, body: Value) -> Value {
    let response = put(server, path, body).await;
    let status = response.status();
    let body: Value = response.json().await.unwrap();
    assert_eq!(status, StatusCode::OK, "{body}");
    body
}

async fn with_secret(server: &Server) {
    let response = put(server, "/v1/secrets/HOOK", json!({ "value": SECRET })).await;
    assert_eq!(response.status(), StatusCode::OK);
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn mac(parts: &[&[u8]]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    parts.iter().for_each(|part| mac.update(part));
    hex::encode(mac.finalize().into_bytes())
}

fn signed(at: u64, body: &str) -> String {
    format!("t={at},v1={}", mac(&[at.to_string().as_bytes(), b".", body.as_bytes()]))
}

/// The inputs of all runs of a workflow.
async fn inputs(server: &Server, workflow: &str) -> Vec<Value> {
    let page = server.get(&format!("/v1/runs?limit=500&workflow={workflow}")).await;
    let mut inputs = Vec::new();
    for run in page["data"].as_array().unwrap() {
        inputs.push(server.get(&format!("/v1/runs/{}", run["id"].as_str().unwrap())).await["input"].clone());
    }
    inputs
}

/// The seconds for which a trigger has started runs, each of them once.
async fn fired(server: &Server, workflow: &str) -> BTreeSet<i64> {
    let inputs = inputs(server, workflow).await;
    let second =
        |input: &Value| input["scheduled_at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second();
    let seconds: BTreeSet<i64> = inputs.iter().map(second).collect();
    assert_eq!(seconds.len(), inputs.len(), "a time has started two runs: {inputs:?}");
    seconds
}

fn has_gap(seconds: &BTreeSet<i64>) -> bool {
    seconds.iter().zip(seconds.iter().skip(1)).any(|(one, next)| next - one != 1)
}

fn every_second(workflow: &str, missed: &str) -> Value {
    json!({ "kind": "cron", "workflow": workflow, "schedule": "* * * * * *", "missed": missed })
}

#[tokio::test]
async fn a_time_starts_one_run_however_often_the_host_is_killed() {
    let mut server = Server::start();
    server.deploy("ticks", "stepwell_noop").await;
    let trigger = set_up(&server, "/v1/triggers/each", every_second("ticks", "run_all")).await;
    assert_eq!(trigger["next_fire_times"].as_array().unwrap().len(), 5, "{trigger}");
    for at_least in [2, 4, 6] {
        eventually("more runs", || async { (fired(&server, "ticks").await.len() >= at_least).then_some(()) }).await;
        server.crash();
    }
    eventually("more runs", || async { (fired(&server, "ticks").await.len() >= 8).then_some(()) }).await;
    let seconds = fired(&server, "ticks").await;
    assert!(!has_gap(&seconds), "{seconds:?}");
    let trigger = server.get("/v1/triggers/each").await;
    assert!(trigger["last_run_id"].is_string() && trigger["last_problem"].is_null(), "{trigger}");

    assert_eq!(server.request(Method::DELETE, "/v1/triggers/each").send().await.unwrap().status(), 204);
    let gone = server.request(Method::GET, "/v1/triggers/each").send().await.unwrap();
    assert_eq!(problem(gone).await, (404, "unknown_trigger".to_owned()));
}

#[tokio::test]
async fn what_was_missed_is_made_up_for_only_where_the_trigger_says_so() {
    let mut server = Server::start();
    for missed in ["skip", "run_once", "run_all"] {
        server.deploy(missed, "stepwell_noop").await;
        set_up(&server, &format!("/v1/triggers/{missed}"), every_second(missed, missed)).await;
    }
    eventually("a run", || async { (fired(&server, "run_all").await.len() > 1).then_some(()) }).await;
    server.kill();
    let down_at = now_seconds();
    eventually("the clock", || async { (now_seconds() >= down_at + 12).then_some(()) }).await;
    server.start_again();
    let up_at = i64::try_from(now_seconds()).unwrap();
    for missed in ["skip", "run_once", "run_all"] {
        eventually("runs", || async {
            fired(&server, missed).await.last().is_some_and(|last| *last > up_at).then_some(())
        })
        .await;
    }
    let within = |seconds: BTreeSet<i64>| {
        let down_at = i64::try_from(down_at).unwrap();
        seconds.into_iter().filter(|second| (down_at + 2..down_at + 6).contains(second)).count()
    };
    assert_eq!(within(fired(&server, "skip").await), 0);
    assert!(within(fired(&server, "run_once").await) <= 1);
    assert_eq!(within(fired(&server, "run_all").await), 4);
    assert!(!has_gap(&fired(&server, "run_all").await));
    assert!(has_gap(&fired(&server, "run_once").await));
}

#[tokio::test]
async fn a_trigger_that_cannot_work_is_refused_and_leaves_nothing() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    with_secret(&server).await;
    let cron = |schedule: &str| json!({ "kind": "cron", "workflow": "w", "schedule": schedule });
    let event = |more: Value| {
        let mut body = json!({ "kind": "event", "event": "e", "workflow": "w" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (body, code) in [
        (cron("0 0 30 2 *"), "schedule_never_fires"),
        (cron("0 0 31 4,6,9,11 *"), "schedule_never_fires"),
        (cron("often"), "invalid_schedule"),
        (
            json!({"kind": "cron", "workflow": "w", "schedule": "0 9 * * *", "time_zone": "Mars/Base"}),
            "unknown_time_zone",
        ),
        (json!({"kind": "cron", "workflow": "nobody", "schedule": "0 9 * * *"}), "unknown_workflow"),
        (json!({"kind": "cron", "workflow": "w", "schedule": "0 9 * * *", "filter": "."}), "invalid_body"),
        (json!({"kind": "cron", "workflow": "w"}), "invalid_body"),
        (json!({"kind": "webhook", "workflow": "w", "secret": "NONE"}), "unknown_secret"),
        (event(json!({"filter": ".a ="})), "invalid_expression"),
        (event(json!({"filter": "nothing_like_it(1)"})), "invalid_expression"),
        (event(json!({"input": 5})), "invalid_body"),
        (event(json!({"signal": {"name": "go"}})), "invalid_body"),
        (event(json!({"version": "0".repeat(64)})), "unknown_version"),
    ] {
        let refused = put(&server, "/v1/triggers/t", body.clone()).await;
        assert_eq!(problem(refused).await, (422, code.to_owned()), "{body}");
    }
    assert_eq!(server.get("/v1/triggers").await["data"], json!([]));
}

#[tokio::test]
async fn a_signed_request_starts_a_run_once_and_others_change_nothing() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    with_secret(&server).await;
    let trigger = json!({ "kind": "webhook", "workflow": "w", "secret": "HOOK", "filter": ".body.kind != \"ping\"",
        "input": "{n: .body.n, from: .headers[\"x-from\"]}" });
    let trigger = set_up(&server, "/v1/triggers/in", trigger).await;
    let path = trigger["path"].as_str().unwrap().to_owned();
    let post = |path: &str, body: &str, header: Option<(&str, String)>| {
        let request = server.anonymous(Method::POST, path).header("x-from", "there").body(body.to_owned());
        let request = header.into_iter().fold(request, |request, (name, value)| request.header(name, value));
        async move { request.send().await.unwrap() }
    };
    let (body, now) = (r#"{"kind":"order","n":7}"#, now_seconds());
    let stepwell = |value: String| Some(("stepwell-signature", value));
    for (header, code) in [
        (None, "invalid_signature"),
        (stepwell(signed(now, "other")), "invalid_signature"),
        (stepwell("t=1,v1=zz".to_owned()), "invalid_signature"),
        (stepwell(signed(now - 301, body)), "expired_signature"),
        (stepwell(signed(now + 400, body)), "expired_signature"),
    ] {
        assert_eq!(problem(post(&path, body, header).await).await, (401, code.to_owned()));
    }
    let large = "x".repeat((1 << 20) + 1);
    assert_eq!(problem(post(&path, &large, stepwell(signed(now, &large))).await).await, (413, "too_large".to_owned()));
    assert_eq!(inputs(&server, "w").await, Vec::<Value>::new(), "nothing has happened so far");

    let taken = post(&path, body, stepwell(signed(now, body))).await;
    assert_eq!(taken.status(), StatusCode::ACCEPTED);
    let taken: Value = taken.json().await.unwrap();
    assert_eq!(taken["outcome"], "started", "{taken}");
    let run = server.ended(taken["run_id"].as_str().unwrap()).await;
    assert_eq!(run["input"], json!({"n": 7, "from": "there"}));
    let again = post(&path, body, stepwell(signed(now, body))).await;
    assert_eq!(problem(again).await, (409, "replayed_webhook".to_owned()));
    let ping = r#"{"kind":"ping"}"#;
    let filtered: Value = post(&path, ping, stepwell(signed(now, ping))).await.json().await.unwrap();
    assert_eq!(filtered["outcome"], "filtered");
    assert_eq!(inputs(&server, "w").await.len(), 1);

    let github = json!({ "kind": "webhook", "workflow": "w", "secret": "HOOK", "scheme": "github" });
    set_up(&server, "/v1/triggers/gh", github).await;
    let header = |text: &str| Some(("x-hub-signature-256", format!("sha256={}", mac(&[text.as_bytes()]))));
    let taken = post("/v1/hooks/dev/gh", "plain text", header("plain text")).await;
    assert_eq!(taken.status(), StatusCode::ACCEPTED);
    assert!(inputs(&server, "w").await.contains(&json!("plain text")));
    let refused = post("/v1/hooks/dev/gh", "plain text", header("other")).await;
    assert_eq!(problem(refused).await, (401, "invalid_signature".to_owned()));
}

#[tokio::test]
async fn an_event_starts_and_signals_what_its_filters_let_through() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    server.deploy("waits", "stepwell_waits").await;
    let on = |more: Value| {
        let mut body = json!({ "kind": "event", "event": "order.paid" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    set_up(&server, "/v1/triggers/a-all", on(json!({"workflow": "w"}))).await;
    set_up(&server, "/v1/triggers/b-large", on(json!({"workflow": "w", "filter": ".data.total > 100"}))).await;
    // It never ends by itself, and takes hardly any memory.
    let endless = "reduce range(1e15) as $i (0; . + 1)";
    set_up(&server, "/v1/triggers/c-endless", on(json!({"workflow": "w", "filter": endless}))).await;
    let signal = json!({"name": "go", "correlation": ".data.customer"});
    set_up(&server, "/v1/triggers/d-signal", on(json!({"signal": signal, "input": "{paid: .data.total}"}))).await;
    set_up(&server, "/v1/triggers/e-other", json!({"kind": "event", "event": "other", "workflow": "w"})).await;

    let script = json!({ "input": [{"signal": {"name": "go"}}] });
    let waiting = server.request(Method::POST, "/v1/workflows/waits/runs").header("stepwell-correlation", "c-1");
    let waiting: Value = waiting.json(&script).send().await.unwrap().json().await.unwrap();
    let waiting = waiting["id"].as_str().unwrap();
    server.run_when(waiting, |run| run["status"] == "suspended").await;

    let event = json!({"name": "order.paid", "id": "e-1", "data": {"total": 7, "customer": "c-1"}});
    let send = |event: &Value| {
        let request = server.request(Method::POST, "/v1/events").json(event);
        async move { request.send().await.unwrap() }
    };
    let first = send(&event).await;
    assert_eq!(first.status(), StatusCode::ACCEPTED);
    let first: Value = first.json().await.unwrap();
    let outcomes: Vec<(&str, &str)> = first["triggers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|acted| (acted["trigger"].as_str().unwrap(), acted["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(
        outcomes,
        [("a-all", "started"), ("b-large", "filtered"), ("c-endless", "failed"), ("d-signal", "signalled")],
        "{first}"
    );
    assert_eq!(first["triggers"][2]["problem"]["code"], "out_of_fuel", "{first}");
    assert_eq!(server.ended(waiting).await["status"], "completed");
    assert_eq!(inputs(&server, "w").await, [json!({"total": 7, "customer": "c-1"})]);

    let again = send(&event).await;
    assert_eq!(again.headers()["idempotent-replayed"], "true");
    assert_eq!(again.json::<Value>().await.unwrap(), first);
    assert_eq!(inputs(&server, "w").await.len(), 1);
    let changed = send(&json!({"name": "order.paid", "id": "e-1", "data": 1})).await;
    assert_eq!(problem(changed).await, (422, "idempotency_mismatch".to_owned()));
}

/// A body that a receiver was sent, and its id; checks the signature.
fn delivered(receiver: &Scripted, number: usize) -> (String, Value) {
    let request = receiver.requests()[number].clone();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
    let signature = header("stepwell-signature: ");
    let at = signature.strip_prefix("t=").unwrap().split_once(',').unwrap().0;
    assert_eq!(signature, signed(at.parse().unwrap(), body));
    (header("stepwell-delivery: "), serde_json::from_str(body).unwrap())
}

async fn told(receiver: &Scripted, times: usize) {
    eventually("a delivery", || async { (receiver.requests().len() >= times).then_some(()) }).await;
}

#[tokio::test]
async fn the_end_of_a_run_is_told_again_until_it_is_taken() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    server.deploy("other", "stepwell_noop").await;
    with_secret(&server).await;
    let busy = response("503 Service Unavailable", "", "later");
    let receiver = Scripted::start(vec![busy, response("204 No Content", "", "")]).await;
    let webhook = json!({ "url": receiver.url("/ended"), "secret": "HOOK", "workflows": ["w"], "on": ["completed"] });
    set_up(&server, "/v1/webhooks/out", webhook).await;
    server.run("other", json!(1)).await;
    let run = server.run("w", json!({"n": 1})).await;
    told(&receiver, 1).await;
    let pending = eventually("the first attempt", || async {
        let page = server.get("/v1/webhooks/out/deliveries?status=pending").await;
        (page["data"][0]["attempts"] == 1).then(|| page["data"][0].clone())
    })
    .await;
    assert_eq!((&pending["last_problem"]["code"], &pending["run_id"]), (&json!("bad_status"), &run["id"]));
    told(&receiver, 2).await;
    let ((id, first), (again, second)) = (delivered(&receiver, 0), delivered(&receiver, 1));
    assert_eq!(id, again, "the same delivery");
    assert_eq!((&first["type"], &first["data"]["id"]), (&json!("run.completed"), &run["id"]));
    assert_eq!((&second["data"]["output"], &second["attempt"]), (&run["output"], &json!(2)));
    eventually("an empty outbox", || async {
        (server.get("/v1/webhooks/out/deliveries").await["data"] == json!([])).then_some(())
    })
    .await;
    assert_eq!(receiver.requests().len(), 2, "runs of other workflows are not told");
}

#[tokio::test]
async fn a_crash_between_the_end_of_a_run_and_its_delivery_loses_nothing() {
    let mut server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    with_secret(&server).await;
    let receiver = Scripted::start(vec![vec![Act::Stall], response("200 OK", "", "")]).await;
    set_up(&server, "/v1/webhooks/out", json!({ "url": receiver.url("/"), "secret": "HOOK" })).await;
    let run = server.run("w", json!(null)).await;
    told(&receiver, 1).await;
    server.crash();
    told(&receiver, 2).await;
    let ((id, _), (again, body)) = (delivered(&receiver, 0), delivered(&receiver, 1));
    assert_eq!((id, &body["data"]["id"]), (again, &run["id"]));
}

#[tokio::test]
async fn what_is_given_up_is_listed_and_can_be_tried_again() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    with_secret(&server).await;
    let receiver = Scripted::start(vec![response("410 Gone", "", "moved"), response("200 OK", "", "")]).await;
    set_up(&server, "/v1/webhooks/out", json!({ "url": receiver.url("/"), "secret": "HOOK" })).await;
    server.run("w", json!(null)).await;
    let dead = eventually("a dead letter", || async {
        let page = server.get("/v1/webhooks/out/deliveries?status=dead").await;
        page["data"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!((&dead["attempts"], &dead["last_problem"]["message"]), (&json!(1), &json!("HTTP 410: moved")));
    let retry = |id: &str| {
        let path = format!("/v1/webhooks/out/deliveries/{id}/retry");
        server.request(Method::POST, &path).send()
    };
    assert_eq!(problem(retry("out.nothing").await.unwrap()).await, (404, "unknown_delivery".to_owned()));
    let id = dead["id"].as_str().unwrap();
    assert_eq!(retry(id).await.unwrap().status(), StatusCode::ACCEPTED);
    told(&receiver, 2).await;
    eventually("an empty outbox", || async {
        (server.get("/v1/webhooks/out/deliveries").await["data"] == json!([])).then_some(())
    })
    .await;
    assert_eq!(problem(retry(id).await.unwrap()).await, (404, "unknown_delivery".to_owned()));
    let denied = put(&server, "/v1/webhooks/x", json!({ "url": "ftp://x/", "secret": "HOOK" })).await;
    assert_eq!(problem(denied).await, (422, "invalid_url".to_owned()));
}

#[tokio::test]
async fn the_command_line_sets_up_lists_and_deletes_them() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    with_secret(&server).await;
    let file = server.data_dir().join("trigger.json");
    let file = file.to_str().unwrap();
    std::fs::write(file, json!({"kind": "event", "event": "e", "workflow": "w"}).to_string()).unwrap();
    assert_eq!(server.cli(&["trigger", "put", "t", file]).code, 0);
    assert!(server.cli(&["triggers"]).stdout.contains("event e"));
    let sent = server.cli(&["event", "e", "--data", "{\"n\": 1}"]);
    assert!(sent.code == 0 && sent.stdout.contains("started"), "{sent:?}");
    assert_eq!(inputs(&server, "w").await, [json!({"n": 1})]);
    assert_eq!(server.cli(&["trigger", "delete", "t"]).code, 0);
    assert_eq!(server.cli(&["trigger", "delete", "t"]).code, 2);
    std::fs::write(file, json!({"url": "http://127.0.0.1:9/", "secret": "HOOK"}).to_string()).unwrap();
    assert_eq!(server.cli(&["webhook", "put", "out", file]).code, 0);
    assert!(server.cli(&["webhooks"]).stdout.contains("http://127.0.0.1:9/"));
    assert_eq!(server.cli(&["webhook", "delete", "out"]).code, 0);
}

#[tokio::test]
async fn the_triggers_of_another_tenant_do_not_exist() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    with_secret(&server).await;
    set_up(&server, "/v1/triggers/t", json!({"kind": "event", "event": "e", "workflow": "w"})).await;
    set_up(&server, "/v1/webhooks/out", json!({"url": "http://127.0.0.1:9/", "secret": "HOOK"})).await;
    let data_dir = server.data_dir().display().to_string();
    let admin = |arguments: &[&str]| server.cli(&[&["admin"], arguments, &["--data-dir", &data_dir]].concat());
    assert_eq!(admin(&["tenant", "create", "rival"]).code, 0);
    let key = admin(&["key", "create", "rival"]).stdout.trim().to_owned();
    for (method, path) in [
        (Method::GET, "/v1/triggers/t"),
        (Method::DELETE, "/v1/triggers/t"),
        (Method::GET, "/v1/webhooks/out"),
        (Method::DELETE, "/v1/webhooks/out"),
        (Method::GET, "/v1/webhooks/out/deliveries"),
    ] {
        let response = server.request_as(&key, method, path).send().await.unwrap();
        assert_eq!(problem(response).await.0, 404, "{path}");
    }
    let sent = server.request_as(&key, Method::POST, "/v1/events").json(&json!({"name": "e"})).send().await.unwrap();
    assert_eq!(sent.json::<Value>().await.unwrap()["triggers"], json!([]));
    assert_eq!(inputs(&server, "w").await, Vec::<Value>::new());
}
