//! Shadow runs: which runs have one, what it is answered, what of it nobody sees, and what the two came to.

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::graphs::{of, row};
use crate::outside::server::{Scripted, json_response, response};
use crate::support::{Server, check_history, eventually, guest, problem};
use crate::tenancy::create;

/// A graph of one node.
fn of_output(output: &str) -> Value {
    row(json!([{ "id": "out", "kind": "transform", "output": { "run": "${ .run.id }", "sum": output } }]))
}

/// Stores a version without promoting it.
async fn store(server: &Server, name: &str, document: &Value) -> String {
    let path = format!("/v1/workflows/{name}/versions?promote=false");
    let stored = server.request(Method::POST, &path).json(document).send().await.unwrap();
    assert_eq!(stored.status(), StatusCode::CREATED);
    stored.json::<Value>().await.unwrap()["version"].as_str().unwrap().to_owned()
}

/// Stores a guest as it is but for some bytes that mean nothing: another version that does the same.
async fn store_twin(server: &Server, name: &str, guest_name: &str) -> String {
    let mut component = guest(guest_name);
    component.extend([0, 5, 4, b't', b'w', b'i', b'n']); // a custom section, `twin`
    let path = format!("/v1/workflows/{name}/versions?promote=false");
    let stored = server.request(Method::POST, &path).body(component).send().await.unwrap();
    assert_eq!(stored.status(), StatusCode::CREATED);
    stored.json::<Value>().await.unwrap()["version"].as_str().unwrap().to_owned()
}

async fn put(server: &Server, name: &str, body: &Value) -> Response {
    server.request(Method::PUT, &format!("/v1/workflows/{name}/shadow")).json(body).send().await.unwrap()
}

async fn shadow(server: &Server, name: &str, version: &str, share: f64) -> Value {
    let set = put(server, name, &json!({ "version": version, "share": share })).await;
    assert_eq!(set.status(), StatusCode::OK);
    set.json().await.unwrap()
}

async fn report(server: &Server, name: &str) -> Value {
    server.get(&format!("/v1/workflows/{name}/shadow/report?limit=500")).await
}

/// The report, once no pair is pending.
async fn settled(server: &Server, name: &str, pairs: u64) -> Value {
    eventually("a report without pending pairs", || async {
        let report = report(server, name).await;
        let total = |name: &str| report["totals"][name].as_u64().unwrap();
        assert!(total("pairs") <= pairs, "{report}");
        (total("pairs") == pairs && total("pending") == 0).then_some(report)
    })
    .await
}

/// The pair of a run.
fn pair<'a>(report: &'a Value, run: &Value) -> &'a Value {
    let pairs = report["data"].as_array().unwrap();
    let found = pairs.iter().find(|pair| pair["run"]["id"] == run["id"]);
    found.unwrap_or_else(|| panic!("no pair of {run} in {report}"))
}

async fn ids(server: &Server, query: &str) -> Vec<String> {
    let page = server.get(&format!("/v1/runs?limit=500&{query}")).await;
    page["data"].as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_shadow_has_the_input_of_its_run_and_the_report_says_where_the_two_differ() {
    let server = Server::start_prepared(&["--dev"]);
    let first = server.deploy_graph("w", &of_output("${ .input.n + 1 }")).await;
    let second = store(&server, "w", &of_output("${ if .input.n > 5 then .input.n else .input.n + 1.0 end }")).await;
    assert_eq!(server.get("/v1/workflows/w").await["latest_version"], json!(first), "it was only stored");
    let set = shadow(&server, "w", &second, 100.0).await;
    assert_eq!((&set["share"], &set["outbound"], &set["warning"]), (&json!(100.0), &json!("replay"), &Value::Null));
    assert_eq!(server.get("/v1/workflows/w/shadow").await, set);

    let start = server.post_run("w", json!({"n": 1})).header("stepwell-correlation", "task-1");
    let start = start.header("idempotency-key", "once").send().await.unwrap();
    let started: Value = start.json().await.unwrap();
    let same = server.ended(started["id"].as_str().unwrap()).await;
    let differs = server.run("w", json!({"n": 9})).await;
    assert_eq!((&same["output"]["sum"], &same["version"]), (&json!(2), &json!(first)));

    let report = settled(&server, "w", 2).await;
    assert_eq!(report["version"], json!(second));
    let totals = &report["totals"];
    assert_eq!((&totals["compared"], &totals["equal"], &totals["different"]), (&json!(2), &json!(1), &json!(1)));
    assert!(totals["fuel_ratio"].as_f64().unwrap() > 0.5, "{totals}");
    let equal = pair(&report, &same);
    assert_eq!((&equal["verdict"], &equal["output_equal"]), (&json!("equal"), &json!(true)), "{equal}");
    for side in ["run", "shadow"] {
        assert_eq!(equal[side]["status"], "completed");
        assert!(equal[side]["fuel_used"].as_u64().unwrap() > 0 && equal[side]["duration_ms"].is_u64(), "{equal}");
    }
    let different = pair(&report, &differs);
    assert_eq!((&different["verdict"], &different["output_equal"]), (&json!("different"), &json!(false)));
    assert_eq!(different["differs_at"], "/sum");

    let shadow_id = equal["shadow"]["id"].as_str().unwrap();
    let shadow = server.get(&format!("/v1/runs/{shadow_id}")).await;
    assert_eq!((&shadow["shadow_of"], &shadow["version"]), (&same["id"], &json!(second)));
    assert_eq!((&shadow["input"], &shadow["correlation"]), (&same["input"], &Value::Null));
    assert_eq!(shadow["output"]["run"], same["id"], "a step is told the run that it stands in for");
    let events = server.events(shadow_id).await;
    check_history(&events);
    assert_eq!((&events[0]["shadow_of"], &events[0]["live"]), (&same["id"], &json!(false)));
    assert_eq!(server.events(same["id"].as_str().unwrap()).await[0]["shadow_of"], Value::Null);
    assert_eq!(server.get(&format!("/v1/runs/{shadow_id}/steps")).await["data"][0]["status"], "completed");

    let again = server.post_run("w", json!({"n": 1})).header("stepwell-correlation", "task-1");
    let again: Value = again.header("idempotency-key", "once").send().await.unwrap().json().await.unwrap();
    assert_eq!(again["id"], same["id"], "the key answers with the run");
    let runs = [&differs, &same].map(|run| run["id"].as_str().unwrap().to_owned());
    assert_eq!(ids(&server, "workflow=w").await, runs, "lists are about runs that were asked for");
    assert_eq!(ids(&server, "correlation=task-1").await, runs[1..]);
    assert_eq!(ids(&server, "shadows=true").await.len(), 4);
    assert_eq!(ids(&server, &format!("shadow_of={}", runs[1])).await, [shadow_id]);

    let page = server.get("/v1/workflows/w/shadow/report?limit=1").await;
    assert_eq!((&page["data"][0]["run"]["id"], &page["totals"]["pairs"]), (&differs["id"], &json!(2)));
    let cursor = page["page"]["cursor"].as_str().unwrap();
    let page = server.get(&format!("/v1/workflows/w/shadow/report?limit=1&cursor={cursor}")).await;
    assert_eq!((&page["data"][0]["run"]["id"], &page["page"]["has_more"]), (&same["id"], &json!(false)));
    let only = server.get("/v1/workflows/w/shadow/report?verdict=different").await;
    assert_eq!(only["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_share_is_chosen_by_the_runs_ids() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    let twin = store_twin(&server, "w", "stepwell_noop").await;
    let before = server.run("w", json!(0)).await;
    shadow(&server, "w", &twin, 37.5).await;
    let mut chosen = Vec::new();
    for n in 0..40 {
        let run = server.run("w", json!(n)).await;
        let id = run["id"].as_str().unwrap().to_owned();
        let hash = Sha256::digest(id.as_bytes());
        let first = u64::from_be_bytes(hash[..8].try_into().unwrap());
        if (first as f64) < 0.375 * 2f64.powi(64) {
            chosen.push(id);
        }
    }
    assert!((1..40).contains(&chosen.len()), "{chosen:?}");
    // Which run is shadowed is written with its end, so this is all there will ever be.
    let report = report(&server, "w").await;
    let mut shadowed: Vec<&str> =
        report["data"].as_array().unwrap().iter().map(|pair| pair["run"]["id"].as_str().unwrap()).collect();
    shadowed.reverse();
    assert_eq!(shadowed, chosen, "and none is older than the setting: {}", before["id"]);
    assert_eq!(settled(&server, "w", chosen.len() as u64).await["totals"]["equal"], json!(chosen.len()));
}

/// Whatever a step can ask for is answered from the record: waits, children, the clock, failed attempts.
#[tokio::test]
async fn a_shadow_waits_for_nobody_starts_no_children_and_reaches_no_channel() {
    let server = Server::start();
    let child = server.deploy("child", "stepwell_noop").await;
    server.deploy("waits", "stepwell_waits").await;
    let twin = store_twin(&server, "waits", "stepwell_waits").await;
    shadow(&server, "waits", &twin, 100.0).await;
    shadow(&server, "child", &child, 100.0).await;
    let script = json!([
        {"calls": 2},
        {"fail": {"attempts": 1, "code": "again"}},
        {"signal": {"name": "go"}},
        {"publish": {"n": 1}},
        {"start": {"workflow": "child", "input": {"n": 3}}},
        {"await": {}},
        {"sleep": 40},
        {"signal": {"name": "stop", "within_ms": 20}},
    ]);
    let id = server.start_run("waits", script).await;
    server.run_when(&id, |run| run["waits_for"] == "signal").await;
    let sent = server.request(Method::POST, &format!("/v1/runs/{id}/signals/go")).json(&json!({"by": "me"}));
    assert_eq!(sent.send().await.unwrap().status(), StatusCode::ACCEPTED);
    let run = server.ended(&id).await;
    assert_eq!(run["status"], "completed", "{run}");
    let report = settled(&server, "waits", 1).await;
    let both = pair(&report, &run);
    let shadow_id = both["shadow"]["id"].as_str().unwrap();
    // The position of its update is its own; all else is the same: time, child and signals.
    assert_eq!((&both["verdict"], &both["differs_at"]), (&json!("different"), &json!("/3")), "{both} {run}");
    let output_of = |run: &Value| {
        let mut output = run["output"].as_array().unwrap().clone();
        assert!(output.remove(3).is_u64(), "{run}");
        output
    };
    assert_eq!(output_of(&server.get(&format!("/v1/runs/{shadow_id}")).await), output_of(&run));
    let events = server.events(shadow_id).await;
    let calls: Vec<&str> = of(&events, "step.call", "act").iter().map(|call| call["call"].as_str().unwrap()).collect();
    let clock = "clock.now-ms";
    let (wait, children) = (["wait.signal", "wait.sleep"], ["children.start", "children.await"]);
    assert_eq!(calls, [clock, clock, clock, clock, wait[0], children[0], children[1], wait[1], wait[0]]);
    assert_eq!(of(&events, "step.failed", "act").len(), 1, "it fails where the run did");
    assert_eq!(of(&events, "step.update", "act").len(), 1, "what it publishes is its own");
    assert!(!events.iter().any(|event| event.get("child").is_some()), "{events:?}");
    assert_eq!(ids(&server, "workflow=child&shadows=true").await.len(), 1, "nor are children shadowed");

    let channel = server.get("/v1/channels/waits/events").await;
    let told: Vec<&str> =
        channel["data"].as_array().unwrap().iter().map(|entry| entry["run"].as_str().unwrap()).collect();
    assert_eq!(told, vec![id.as_str(); 2], "its update and its end: {channel}");
}

/// A graph that sends a request and tries again.
fn sending(url: &str) -> Value {
    let retry = json!({ "max_attempts": 3, "initial": "1ms", "jitter": 0 });
    row(json!([{ "id": "send", "kind": "http", "method": "POST", "url": url, "body": "${ .input }", "retry": retry }]))
}

#[tokio::test]
async fn requests_are_answered_from_the_record_and_others_are_not_sent_unless_live() {
    let server = Server::start_prepared(&["--dev"]);
    let there = Scripted::start(vec![response("503 Busy", "", "later"), json_response(&json!({"taken": true}))]).await;
    let first = sending(&there.url("/one"));
    server.deploy_graph("w", &first).await;
    let mut renamed = first.clone();
    renamed["channel"] = json!("elsewhere");
    let same = store(&server, "w", &renamed).await;
    let other = store(&server, "w", &sending(&there.url("/other"))).await;

    shadow(&server, "w", &same, 100.0).await;
    let run = server.run("w", json!({"n": 1})).await;
    assert_eq!((&run["status"], there.requests().len()), (&json!("completed"), 2), "{run}");
    let report = settled(&server, "w", 1).await;
    let both = pair(&report, &run);
    assert_eq!(both["verdict"], "equal", "{both}");
    let events = server.events(both["shadow"]["id"].as_str().unwrap()).await;
    assert_eq!(of(&events, "step.failed", "send")[0]["failure"]["code"], "http_status");
    assert_eq!(there.requests().len(), 2, "nothing was sent for the shadow");

    shadow(&server, "w", &other, 100.0).await;
    let run = server.run("w", json!({"n": 2})).await;
    assert_eq!((&run["status"], there.requests().len()), (&json!("completed"), 3), "{run}");
    let report = settled(&server, "w", 1).await;
    let both = pair(&report, &run);
    assert_eq!((&both["verdict"], &both["output_equal"]), (&json!("shadow_failed_only"), &Value::Null), "{both}");
    let failed = server.get(&format!("/v1/runs/{}", both["shadow"]["id"].as_str().unwrap())).await;
    let failure = &failed["failure"];
    assert_eq!((&failure["code"], &failure["kind"]), (&json!("shadow_no_recording"), &json!("permanent")));
    assert_eq!((&failure["details"]["call"], there.requests().len()), (&json!("http.send"), 3));

    let live = put(&server, "w", &json!({"version": other, "share": 100, "outbound": "live"})).await;
    assert!(live.json::<Value>().await.unwrap()["warning"].as_str().unwrap().starts_with("live"));
    let run = server.run("w", json!({"n": 3})).await;
    let report = settled(&server, "w", 2).await;
    let both = pair(&report, &run);
    assert_eq!(both["verdict"], "equal", "{both}");
    let paths: Vec<String> =
        there.requests().iter().map(|request| request.split(' ').nth(1).unwrap().to_owned()).collect();
    assert_eq!(paths, ["/one", "/one", "/one", "/one", "/other"]);
}

#[tokio::test]
async fn what_models_cost_is_in_the_report() {
    let server = Server::start_prepared(&["--dev"]);
    let ask = |prompt: &str, output: &str| {
        row(json!([
            { "id": "ask", "kind": "llm", "provider": "mock", "model": "mock-echo", "prompt": prompt },
            { "id": "out", "kind": "transform", "output": output },
        ]))
    };
    server.deploy_graph("w", &ask("hello ${ .input }", "${ .nodes.ask.text }")).await;
    let same = store(&server, "w", &ask("hello ${ .input }", "${ .nodes.ask.text | ascii_upcase }")).await;
    let other = store(&server, "w", &ask("hello to you, ${ .input }", "${ .nodes.ask.text }")).await;
    shadow(&server, "w", &same, 100.0).await;
    let run = server.run("w", json!("there")).await;
    let report = settled(&server, "w", 1).await;
    let both = pair(&report, &run);
    assert_eq!((&both["verdict"], &both["differs_at"]), (&json!("different"), &json!("")), "{both}");
    let tokens = both["run"]["output_tokens"].as_u64().unwrap();
    assert!(tokens > 0 && both["shadow"]["output_tokens"] == tokens, "the same answer: {both}");

    let live = put(&server, "w", &json!({"version": other, "share": 100, "outbound": "live"})).await;
    assert_eq!(live.status(), StatusCode::OK);
    let run = server.run("w", json!("there")).await;
    let report = settled(&server, "w", 1).await;
    let both = pair(&report, &run);
    let (before, after) = (&both["run"]["input_tokens"], &both["shadow"]["input_tokens"]);
    assert!(after.as_u64().unwrap() > before.as_u64().unwrap(), "it was asked something else: {both}");
    assert_eq!(report["totals"]["shadow_usage"]["input_tokens"], *after);
}

#[tokio::test]
async fn a_shadow_that_fails_is_nobodys_business_but_the_reports() {
    let server = Server::start_prepared(&["--dev"]);
    let secret = server.request(Method::PUT, "/v1/secrets/HOOK").json(&json!({"value": "hunter2"}));
    assert_eq!(secret.send().await.unwrap().status(), StatusCode::OK);
    let receiver = Scripted::start(vec![response("204 No Content", "", "")]).await;
    for (path, body) in [
        ("/v1/webhooks/out", json!({ "url": receiver.url("/ended"), "secret": "HOOK" })),
        ("/v1/triggers/t", json!({ "kind": "event", "event": "e", "workflow": "w" })),
    ] {
        let set_up = server.request(Method::PUT, path).json(&body).send().await.unwrap();
        let status = set_up.status();
        let said = set_up.text().await.unwrap();
        assert!(status == StatusCode::OK || said.contains("unknown_workflow"), "{said}");
    }
    server.deploy_graph("w", &of_output("${ .input.n }")).await;
    let trigger = json!({ "kind": "event", "event": "e", "workflow": "w" });
    let set_up = server.request(Method::PUT, "/v1/triggers/t").json(&trigger).send().await.unwrap();
    assert_eq!(set_up.status(), StatusCode::OK);
    let broken = store(&server, "w", &of_output("${ error(\"broken\") }")).await;
    shadow(&server, "w", &broken, 100.0).await;

    let sent = server.request(Method::POST, "/v1/events").json(&json!({"name": "e", "data": {"n": 1}}));
    let sent: Value = sent.send().await.unwrap().json().await.unwrap();
    let run = server.ended(sent["triggers"][0]["run_id"].as_str().unwrap()).await;
    assert_eq!((&run["status"], &run["output"]["sum"]), (&json!("completed"), &json!(1)));
    let report = settled(&server, "w", 1).await;
    let both = pair(&report, &run);
    assert_eq!(both["verdict"], "shadow_failed_only", "{both}");
    assert_eq!((&both["shadow"]["failed_node"], &report["totals"]["shadow_failed_only"]), (&json!("out"), &json!(1)));
    let shadow_id = both["shadow"]["id"].as_str().unwrap();

    assert_eq!(server.get("/v1/failures").await["data"], json!([]));
    assert_eq!(server.get("/v1/failures?shadows=true").await["data"][0]["last_run_id"], shadow_id);
    let bulk = async |path: &str, body: Value| -> Value {
        server.request(Method::POST, path).json(&body).send().await.unwrap().json().await.unwrap()
    };
    assert_eq!(bulk("/v1/bulk/rerun", json!({"workflow": "w"})).await["data"], json!([]));
    let named = bulk("/v1/bulk/rerun", json!({"runs": [shadow_id]})).await;
    assert_eq!(named["data"][0]["code"], "run_is_shadow", "{named}");
    let rerun = server.request(Method::POST, &format!("/v1/runs/{shadow_id}/rerun")).send().await.unwrap();
    assert_eq!(problem(rerun).await, (409, "run_is_shadow".to_owned()));

    eventually("the delivery of the run's end", || async { (!receiver.requests().is_empty()).then_some(()) }).await;
    eventually("an empty outbox", || async {
        (server.get("/v1/webhooks/out/deliveries").await["data"] == json!([])).then_some(())
    })
    .await;
    assert_eq!(receiver.requests().len(), 1, "the shadow's end, which was before, was told nobody");
    assert!(receiver.body(0)["data"]["id"] == run["id"], "{:?}", receiver.requests());
}

#[tokio::test]
async fn only_runs_that_were_started_from_outside_have_shadows_until_there_are_to_be_none() {
    let server = Server::start_prepared(&["--dev"]);
    let first = server.deploy_graph("w", &of_output("${ .input.n }")).await;
    let mut strict = of_output("${ .input.n }");
    strict["input"] = json!({ "type": "object", "required": ["must"] });
    let strict = store(&server, "w", &strict).await;
    let parent = json!([{ "id": "call", "kind": "workflow", "workflow": "w", "input": { "n": 1, "must": 1 } }]);
    server.deploy_graph("parent", &row(parent)).await;
    shadow(&server, "w", &strict, 100.0).await;

    let run = server.run("w", json!({"n": 1})).await;
    let without = settled(&server, "w", 1).await;
    let alone = pair(&without, &run);
    assert_eq!((&alone["verdict"], &alone["problem"]["code"]), (&json!("not_compared"), &json!("invalid_input")));
    assert_eq!((&alone["shadow"]["status"], &without["totals"]["not_compared"]), (&Value::Null, &json!(1)));

    assert_eq!(server.run("parent", json!(null)).await["status"], "completed");
    let rerun = server.request(Method::POST, &format!("/v1/runs/{}/rerun", run["id"].as_str().unwrap()));
    let rerun: Value = rerun.send().await.unwrap().json().await.unwrap();
    server.ended(rerun["id"].as_str().unwrap()).await;
    let pinned = server.request(Method::POST, "/v1/workflows/w/runs");
    let pinned = pinned.json(&json!({"version": strict, "input": {"must": 1}})).send().await.unwrap();
    server.ended(pinned.json::<Value>().await.unwrap()["id"].as_str().unwrap()).await;
    assert_eq!(report(&server, "w").await["totals"]["pairs"], json!(1), "children, reruns, and what has the version");

    // Promoted, the version is what a start uses anyway.
    assert_eq!(server.cli(&["promote", "w", &strict]).code, 0);
    server.run("w", json!({"n": 1, "must": 1})).await;
    assert_eq!(report(&server, "w").await["totals"]["pairs"], json!(1));
    shadow(&server, "w", &first, 100.0).await;
    server.run("w", json!({"n": 1, "must": 1})).await;
    assert_eq!(settled(&server, "w", 1).await["totals"]["equal"], json!(1));
    let off = || server.request(Method::DELETE, "/v1/workflows/w/shadow").send();
    assert_eq!(off().await.unwrap().status(), StatusCode::NO_CONTENT);
    server.run("w", json!({"n": 1, "must": 1})).await;
    assert_eq!(report(&server, "w").await["totals"]["pairs"], json!(1), "what there was stays, and no more comes");
    assert_eq!(problem(off().await.unwrap()).await, (404, "no_shadow".to_owned()));
    let get = server.request(Method::GET, "/v1/workflows/w/shadow").send().await.unwrap();
    assert_eq!(problem(get).await, (404, "no_shadow".to_owned()));
}

#[tokio::test]
async fn what_cannot_be_shadowed_is_refused_and_what_another_tenant_owns_does_not_exist() {
    let server = Server::start();
    let version = server.deploy("w", "stepwell_noop").await;
    let other = server.deploy("other", "stepwell_waits").await;
    for (name, body, status, code) in [
        ("w", json!({"version": version, "share": 0}), 422, "invalid_share"),
        ("w", json!({"version": version, "share": -1}), 422, "invalid_share"),
        ("w", json!({"version": version, "share": 100.0001}), 422, "invalid_share"),
        ("w", json!({"version": version, "share": 0.00001}), 422, "invalid_share"),
        ("w", json!({"version": version, "share": 33.33335}), 422, "invalid_share"),
        ("w", json!({"version": version, "share": "half"}), 422, "invalid_body"),
        ("w", json!({"version": version, "share": null}), 422, "invalid_body"),
        ("w", json!({"version": version}), 422, "invalid_body"),
        ("w", json!({"version": version, "share": 1, "outbound": "all"}), 422, "invalid_body"),
        ("w", json!({"version": other, "share": 1}), 404, "unknown_version"),
        ("w", json!({"version": "latest", "share": 1}), 404, "unknown_version"),
        ("nobody", json!({"version": version, "share": 1}), 404, "unknown_workflow"),
    ] {
        assert_eq!(problem(put(&server, name, &body).await).await, (status, code.to_owned()), "{body}");
    }
    let get = server.request(Method::GET, "/v1/workflows/w/shadow").send().await.unwrap();
    assert_eq!(problem(get).await, (404, "no_shadow".to_owned()), "nothing was set");
    assert_eq!(put(&server, "w", &json!({"version": version, "share": 0.0001})).await.status(), StatusCode::OK);
    let bad = server.request(Method::GET, "/v1/workflows/w/shadow/report?cursor=x").send().await.unwrap();
    assert_eq!(problem(bad).await, (400, "invalid_query".to_owned()));

    let rival = create(&server, "rival");
    for (method, path) in [
        (Method::GET, "/v1/workflows/w/shadow"),
        (Method::DELETE, "/v1/workflows/w/shadow"),
        (Method::GET, "/v1/workflows/w/shadow/report"),
        (Method::POST, "/v1/workflows/w/promote"),
    ] {
        let response = server.request_as(&rival.key, method.clone(), path).send().await.unwrap();
        assert_eq!(problem(response).await, (404, "unknown_workflow".to_owned()), "{method} {path}");
    }
    let set = server.request_as(&rival.key, Method::PUT, "/v1/workflows/w/shadow");
    let set = set.json(&json!({"version": version, "share": 100})).send().await.unwrap();
    assert_eq!(problem(set).await, (404, "unknown_workflow".to_owned()));
    // One of the same name has versions of its own.
    server.deploy_as(&rival.key, "w", "stepwell_waits").await;
    let set = server.request_as(&rival.key, Method::PUT, "/v1/workflows/w/shadow");
    let set = set.json(&json!({"version": version, "share": 100})).send().await.unwrap();
    assert_eq!(problem(set).await, (404, "unknown_version".to_owned()));
    assert_eq!(server.get("/v1/workflows/w/shadow").await["version"], json!(version), "it is as it was");
}

#[tokio::test]
async fn a_run_has_one_shadow_wherever_the_host_is_killed() {
    let mut server = Server::start();
    server.deploy("w", "stepwell_waits").await;
    let twin = store_twin(&server, "w", "stepwell_waits").await;
    shadow(&server, "w", &twin, 100.0).await;
    let mut runs = Vec::new();
    for round in 0..6u64 {
        for _ in 0..5 {
            runs.push(server.start_run("w", json!([{"busy_ms": 1}, {"calls": round}])).await);
        }
        // At the end of the last one, or when the first of the new shadows is there, or somewhere in between.
        match round % 3 {
            0 => drop(server.ended(&runs[runs.len() - 1]).await),
            1 => {
                let path = format!("shadow_of={}", runs[runs.len() - 5]);
                eventually("a shadow", || async { (!ids(&server, &path).await.is_empty()).then_some(()) }).await;
            }
            _ => {}
        }
        server.crash();
    }
    for run in &runs {
        assert_eq!(server.ended(run).await["status"], "completed");
    }
    let report = settled(&server, "w", runs.len() as u64).await;
    assert_eq!(report["totals"]["equal"], json!(runs.len()), "{report}");
    for run in &runs {
        assert_eq!(ids(&server, &format!("shadow_of={run}")).await.len(), 1, "{run}");
    }
    assert_eq!(ids(&server, "shadows=true").await.len(), 2 * runs.len());
}

#[tokio::test]
async fn the_command_line_sets_and_shows_it() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    let twin = store_twin(&server, "w", "stepwell_noop").await;
    let cli = |arguments: &[&str]| server.cli(&[&["shadow", "w"], arguments].concat());
    assert_eq!(cli(&[]).code, 2, "nothing is set");
    assert_eq!(cli(&["--version", &twin]).code, 2, "a share is missing");
    assert_eq!(cli(&["--version", &twin, "--share", "200"]).code, 2);
    assert_eq!(cli(&["--report"]).stdout, "nothing was shadowed\n");
    let set = cli(&["--version", &twin, "--share", "100", "--outbound", "live"]);
    assert_eq!(set.code, 0, "{set:?}");
    assert!(set.stderr.contains("live:"), "{set:?}");
    let expected = format!("100% of the runs of w are shadowed by {twin} (live)\n");
    assert_eq!((&set.stdout, &cli(&[]).stdout), (&expected, &expected));
    let run = server.run("w", json!({"n": 1})).await;
    settled(&server, "w", 1).await;
    let shown = cli(&["--report"]).stdout;
    for part in ["1 runs: 1 compared, 0 not compared, 0 pending", "1 equal, 0 different", run["id"].as_str().unwrap()] {
        assert!(shown.contains(part), "{shown}");
    }
    let json: Value = serde_json::from_str(&cli(&["--report", "--json"]).stdout).unwrap();
    assert_eq!(json["totals"]["equal"], json!(1));
    let id = json["data"][0]["shadow"]["id"].as_str().unwrap();
    assert!(server.cli(&["run-info", id]).stdout.contains("shadow_of"), "it says what it is");
    assert!(!server.cli(&["runs"]).stdout.contains(id));
    assert!(server.cli(&["runs", "--shadows"]).stdout.contains("  shadow of "));
    assert_eq!((cli(&["--off"]).code, cli(&["--off"]).code), (0, 2));
}
