//! What a tenant may use, what happens to whoever uses more, and that nobody else notices; what is deleted with time.

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use stepwell::journal::RedbJournal;
use stepwell_core::{TenantId, Timestamp};

use crate::support::{Server, check_history, eventually, problem};
use crate::tenancy::create;

const MIB: u64 = 1 << 20;

fn operator(server: &Server) -> String {
    std::fs::read_to_string(server.data_dir().join("operator.key")).unwrap().trim().to_owned()
}

async fn patch(server: &Server, tenant: &str, body: Value) -> Response {
    let path = format!("/v1/admin/tenants/{tenant}");
    server.request_as(&operator(server), Method::PATCH, &path).json(&body).send().await.unwrap()
}

/// Sets limits of a tenant.
async fn limit(server: &Server, tenant: &str, limits: Value) {
    let response = patch(server, tenant, json!({ "limits": limits })).await;
    let status = response.status();
    assert_eq!(status, StatusCode::OK, "{}", response.text().await.unwrap());
}

async fn json_of(request: RequestBuilder) -> Value {
    let response = request.send().await.unwrap();
    let status = response.status();
    let body: Value = response.json().await.unwrap();
    assert!(status.is_success(), "{status}: {body}");
    body
}

async fn usage(server: &Server) -> Value {
    server.get("/v1/usage").await["usage"].clone()
}

/// Starts a run of the guest `waits`, and expects it to be refused.
async fn refused(server: &Server, input: Value) -> (u16, String) {
    problem(server.post_run("waits", input).send().await.unwrap()).await
}

async fn signal(server: &Server, id: &str, payload: Value) -> Response {
    server.request(Method::POST, &format!("/v1/runs/{id}/signals/go")).json(&payload).send().await.unwrap()
}

/// A run that waits for the signal `go` and does something then.
async fn waiting(server: &Server, then: Value) -> String {
    let id = server.start_run("waits", json!([{"signal": {"name": "go"}}, then])).await;
    server.run_when(&id, |run| run["waits_for"] == "signal").await;
    id
}

#[tokio::test]
async fn the_operator_sets_what_a_tenant_may_use_and_both_see_it() {
    let server = Server::start_with(&[]);
    let acme = create(&server, "acme");
    let (key, path) = (operator(&server), "/v1/admin/tenants/acme");
    let as_operator = |method| server.request_as(&key, method, path);
    let defaults = json!({
        "journal_bytes": 64 * 1024 * MIB, "unfinished_runs": 1_000_000, "run_events": 10_000_000,
        "input_bytes": 4 * MIB, "artifact_bytes": 16 * MIB,
    });
    let body = json_of(as_operator(Method::GET)).await;
    assert_eq!(
        (&body["id"], &body["limits"], &body["artifact_retention_days"]),
        (&json!("acme"), &defaults, &Value::Null)
    );
    assert_eq!(body["usage"], json!({"journal_bytes": 0, "unfinished_runs": 0}));

    let changes = json!({"artifact_retention_days": 3, "limits": {"unfinished_runs": 7, "input_bytes": 100}});
    let body = json_of(as_operator(Method::PATCH).json(&changes)).await;
    assert_eq!((&body["retention_days"], &body["artifact_retention_days"]), (&json!(30), &json!(3)));
    // What is left out stays, and null is the default.
    let body = json_of(as_operator(Method::PATCH).json(&json!({"limits": {"input_bytes": null}}))).await;
    let mut expected = defaults.clone();
    expected["unfinished_runs"] = json!(7);
    assert_eq!((&body["limits"], &body["artifact_retention_days"]), (&expected, &json!(3)));
    let own = json_of(server.request_as(&acme.key, Method::GET, "/v1/usage")).await;
    assert_eq!((&own["limits"], &own["retention_days"]), (&expected, &json!(30)));

    for bad in [
        json!({"retention_days": 0}),
        json!({"retention_days": 2}), // shorter than the files'
        json!({"artifact_retention_days": 31}),
        json!({"artifact_retention_days": 0}),
        json!({"limits": {"journal_bytes": 0}}),
        json!({"limits": {"unfinished_runs": 100_000_001u64}}),
        json!({"limits": {"run_events": 10_000_001}}),
        json!({"limits": {"input_bytes": 4 * MIB + 1}}),
        json!({"limits": {"artifact_bytes": 16 * MIB + 1}}),
        json!({"limits": {"artifact_bytes": -1}}),
        json!({"limits": {"speed": 1}}),
    ] {
        let response = as_operator(Method::PATCH).json(&bad).send().await.unwrap();
        assert_eq!(problem(response).await, (422, "invalid_body".to_owned()), "{bad}");
    }
    assert_eq!(json_of(as_operator(Method::GET)).await["limits"], expected, "what is refused changes nothing");
    for method in [Method::GET, Method::PATCH] {
        let response = server.request_as(&acme.key, method.clone(), path).json(&json!({})).send().await.unwrap();
        assert_eq!(problem(response).await, (403, "not_an_operator".to_owned()), "a tenant does not set its own");
        let unknown =
            server.request_as(&key, method, "/v1/admin/tenants/nobody").json(&json!({})).send().await.unwrap();
        assert_eq!(problem(unknown).await, (404, "unknown_tenant".to_owned()));
    }
    let response = server.request_as(&key, Method::GET, "/v1/usage").send().await.unwrap();
    assert_eq!(problem(response).await, (403, "not_a_tenant".to_owned()));

    // The command line does the same.
    let data_dir = server.data_dir().display().to_string();
    let set = ["admin", "tenant", "set", "acme", "--run-events", "500", "--unfinished-runs", "default"];
    let ran = server.cli(&[&set[..], &["--data-dir", &data_dir]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = server.cli(&["usage", "--api-key", &acme.key]);
    let own: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&own["limits"]["run_events"], &own["limits"]["unfinished_runs"]), (&json!(500), &json!(1_000_000)));
    let ran = server.cli(&["admin", "tenant", "show", "acme", "--data-dir", &data_dir]);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap()["limits"], own["limits"]);
    assert_eq!(server.cli(&["admin", "tenant", "set", "acme", "--data-dir", &data_dir]).code, 2, "nothing to set");
}

#[tokio::test]
async fn a_full_journal_takes_nothing_new_and_lets_what_is_under_way_end() {
    let mut server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let id = waiting(&server, json!({"file": 10})).await;
    let publishes = waiting(&server, json!({"publish": 1})).await;
    let parent = waiting(&server, json!({"start": {"workflow": "waits", "input": [{"publish": "child"}]}})).await;
    let with_key = || server.post_run("waits", json!([])).header("idempotency-key", "k");
    let first = json_of(with_key()).await;
    server.ended(first["id"].as_str().unwrap()).await;
    limit(&server, "dev", json!({"journal_bytes": 1})).await;

    assert_eq!(refused(&server, json!([])).await, (403, "journal_full".to_owned()));
    let body: Value = server.post_run("waits", json!([])).send().await.unwrap().json().await.unwrap();
    assert_eq!(body["bytes_max"], 1);
    let rerun = server.request(Method::POST, &format!("/v1/runs/{}/rerun", first["id"].as_str().unwrap()));
    assert_eq!(problem(rerun.send().await.unwrap()).await, (403, "journal_full".to_owned()));
    let upload = |name: &str, guest: &str| {
        let path = format!("/v1/workflows/{name}/versions");
        server.request(Method::POST, &path).body(crate::support::guest(guest)).send()
    };
    assert_eq!(problem(upload("new", "stepwell_noop").await.unwrap()).await, (403, "journal_full".to_owned()));
    assert_eq!(upload("waits", "stepwell_waits").await.unwrap().status(), StatusCode::CREATED, "it is there already");
    // What was accepted before is found, not started.
    assert_eq!(json_of(with_key()).await["id"], first["id"]);

    // Runs under way go on: they are told what they wait for, publish, start children, and end.
    for id in [&id, &publishes, &parent] {
        assert_eq!(signal(&server, id, json!(1)).await.status(), StatusCode::ACCEPTED);
    }
    let run = server.ended(&id).await;
    assert_eq!((&run["status"], &run["output"][1]), (&json!("completed"), &json!({"error": "QuotaExceeded"})), "{run}");
    assert_eq!(server.ended(&publishes).await["status"], "completed");
    let run = server.ended(&parent).await;
    assert_eq!(server.ended(run["output"][1].as_str().unwrap()).await["status"], "completed");

    server.crash();
    assert_eq!(refused(&server, json!([])).await, (403, "journal_full".to_owned()), "a restart changes nothing");
    limit(&server, "dev", json!({"journal_bytes": null})).await;
    assert_eq!(server.run("waits", json!([{"file": 10}])).await["status"], "completed");
}

/// A refusal that depends on what the tenant has would be another one the next time, and the attempt another attempt.
#[tokio::test]
async fn a_step_that_was_refused_a_file_is_refused_it_again_when_it_is_taken_up() {
    let mut server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let acts = json!([{"signal": {"name": "go"}}, {"file": 10}, {"file": 2000}, {"publish": 1}, {"signal": {"name": "go"}}, {"file": 10}]);
    let id = server.start_run("waits", acts).await;
    server.run_when(&id, |run| run["waits_for"] == "signal").await;
    limit(&server, "dev", json!({"journal_bytes": 1, "artifact_bytes": 1_000})).await;
    signal(&server, &id, json!(1)).await;
    server.event_when(&id, |event| event["kind"] == "step.update").await;
    server.run_when(&id, |run| run["waits_for"] == "signal").await;
    server.crash();
    limit(&server, "dev", json!({"journal_bytes": null, "artifact_bytes": null})).await;
    signal(&server, &id, json!(2)).await;
    let run = server.ended(&id).await;
    assert_eq!(run["status"], "completed", "{run}");
    let output = &run["output"];
    assert_eq!(
        (&output[1], &output[2]),
        (&json!({"error": "QuotaExceeded"}), &json!({"error": "TooLarge { limit_bytes: 1000 }"}))
    );
    assert!(output[5].is_string(), "there is room by now: {run}");
    let events = server.events(&id).await;
    check_history(&events);
    let refusals = events.iter().filter(|event| event["call"] == "artifacts.create").count();
    assert_eq!((refusals, events.iter().filter(|event| event["kind"] == "step.artifact").count()), (2, 1));
}

#[tokio::test]
async fn beyond_the_margin_steps_wait_until_there_is_room() {
    let server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let sleeper = server.start_run("waits", json!([{"sleep": 2_000}, {"publish": 1}])).await;
    let signalled = waiting(&server, json!({"publish": 1})).await;
    // Five inputs of almost four mebibytes: more than the margin of sixteen.
    for n in 0..5 {
        server.start_run("waits", json!([{"publish": format!("{n}{}", "x".repeat(4_000_000))}, {"sleep": 1}])).await;
    }
    limit(&server, "dev", json!({"journal_bytes": 1})).await;
    eventually("more than the margin", || async {
        (usage(&server).await["journal_bytes"].as_u64().unwrap() > 17 * MIB).then_some(())
    })
    .await;
    let response = signal(&server, &signalled, json!(1)).await;
    assert_eq!(problem(response).await, (403, "journal_full".to_owned()));
    let failed = server.event_when(&sleeper, |event| event["kind"] == "step.failed").await;
    assert_eq!((&failed["failure"]["code"], &failed["will_retry"]), (&json!("journal_full"), &json!(true)), "{failed}");
    limit(&server, "dev", json!({"journal_bytes": null})).await;
    assert_eq!(server.ended(&sleeper).await["status"], "completed", "it was held, not lost");
    assert_eq!(signal(&server, &signalled, json!(1)).await.status(), StatusCode::ACCEPTED);
    assert_eq!(server.ended(&signalled).await["status"], "completed");
}

/// A tenant that does nothing but fill its journal is stopped at its limit and the margin, while others go on.
#[tokio::test]
async fn a_tenant_that_fills_its_journal_stops_itself_and_nobody_else() {
    let server = Server::start();
    let rival = create(&server, "rival");
    server.deploy("waits", "stepwell_waits").await;
    server.deploy_as(&rival.key, "waits", "stepwell_waits").await;
    limit(&server, "dev", json!({"journal_bytes": 2 * MIB})).await;
    // Each would write 31 MiB of updates, and files on top.
    let mut floods = Vec::new();
    for n in 0..6 {
        // Small enough to be in their events: larger values that are the same are stored once.
        let flood = json!({"flood": [520, 60_000 + n]});
        let input = json!([flood, {"file": 1_000_000}, {"sleep": 1}, flood]);
        let response = server.post_run("waits", input).send().await.unwrap();
        if response.status() == StatusCode::ACCEPTED {
            floods.push(response.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned());
        } else {
            assert_eq!(problem(response).await, (403, "journal_full".to_owned()));
        }
    }
    assert!(!floods.is_empty());
    let full = server.event_when(&floods[0], |event| event["failure"]["code"] == "journal_full").await;
    assert_eq!(full["failure"]["source"], "platform", "{full}");
    // The other tenant starts, publishes, stores and deploys as ever.
    for n in 0..20 {
        let request =
            server.request_as(&rival.key, Method::POST, "/v1/workflows/waits/runs").header("prefer", "wait=30");
        let run = json_of(request.json(&json!({"input": [{"publish": n}, {"file": 100 + n}]}))).await;
        assert_eq!(run["status"], "completed", "{run}");
        assert!(run["output"][1].is_string(), "{run}");
    }
    server.deploy_as(&rival.key, "noop", "stepwell_noop").await;
    // Limit, margin, and what six attempts had under way.
    let used = usage(&server).await["journal_bytes"].as_u64().unwrap();
    assert!(used > 18 * MIB && used < 60 * MIB, "{used} bytes");
    for id in &floods {
        server.request(Method::POST, &format!("/v1/runs/{id}/cancel")).send().await.unwrap();
    }
    assert_eq!(refused(&server, json!([])).await, (403, "journal_full".to_owned()));
}

#[tokio::test]
async fn a_tenant_has_so_many_runs_that_have_not_ended_and_children_count() {
    let server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    limit(&server, "dev", json!({"unfinished_runs": 2})).await;
    let child = json!({"start": {"workflow": "waits", "input": [{"signal": {"name": "go"}}]}});
    let parent = server.start_run("waits", json!([{"signal": {"name": "go"}}, child])).await;
    let other = waiting(&server, json!({"publish": 1})).await;
    let response = server.post_run("waits", json!([])).send().await.unwrap();
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(problem(response).await, (429, "too_many_runs".to_owned()));
    // The child is one too many. The step is told, and nobody waits for what never began.
    server.run_when(&parent, |run| run["waits_for"] == "signal").await;
    signal(&server, &parent, json!(1)).await;
    let run = server.ended(&parent).await;
    assert_eq!((&run["status"], &run["output"][1]), (&json!("completed"), &json!({"error": "QuotaExceeded"})), "{run}");
    assert_eq!(server.get(&format!("/v1/runs?parent={parent}")).await["data"], json!([]));

    // Now there is room for one: a parent, whose child is one too many again, until the other run is gone.
    assert_eq!(usage(&server).await["unfinished_runs"], 1);
    server.request(Method::POST, &format!("/v1/runs/{other}/pause")).send().await.unwrap();
    assert_eq!(usage(&server).await["unfinished_runs"], 1, "a paused run has not ended");
    assert_eq!(server.run("waits", json!([child])).await["output"][0], json!({"error": "QuotaExceeded"}));
    server.request(Method::POST, &format!("/v1/runs/{other}/cancel")).send().await.unwrap();
    let run = server.run("waits", json!([{"start": {"workflow": "waits", "input": [], "detached": true}}])).await;
    server.ended(run["output"][0].as_str().unwrap()).await;
    assert_eq!(usage(&server).await["unfinished_runs"], 0);
}

#[tokio::test]
async fn runs_inputs_signals_and_files_are_as_large_as_their_tenant_may_have_them() {
    let server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    limit(&server, "dev", json!({"run_events": 100, "input_bytes": 200, "artifact_bytes": 1_000})).await;
    let run = server.run("waits", json!([{"flood": [200, 1]}])).await;
    assert_eq!((&run["status"], &run["failure"]["code"]), (&json!("failed"), &json!("run_too_long")), "{run}");
    assert_eq!(run["failure"]["message"], "the run has 100 events, and no more are allowed");
    assert_eq!(server.events(run["id"].as_str().unwrap()).await.len(), 101);

    let long = json!([{"publish": "x".repeat(200)}]);
    let response = server.post_run("waits", long.clone()).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(response.json::<Value>().await.unwrap()["bytes_max"], 200);
    let id = waiting(&server, json!({"file": 1_000})).await;
    assert_eq!(problem(signal(&server, &id, json!("x".repeat(200))).await).await, (413, "too_large".to_owned()));
    signal(&server, &id, json!("x")).await;
    assert!(server.ended(&id).await["output"][1].is_string());
    let rerun = server.request(Method::POST, &format!("/v1/runs/{id}/rerun")).json(&json!({"input": long}));
    assert_eq!(problem(rerun.send().await.unwrap()).await, (413, "too_large".to_owned()));
    let run = server.run("waits", json!([{"file": 1_001}])).await;
    assert_eq!(run["output"][0], json!({"error": "TooLarge { limit_bytes: 1000 }"}), "{run}");
    let child = json!([{"calls": 1}, {"start": {"workflow": "waits", "input": []}}]);
    assert!(server.run("waits", child).await["output"][1].is_string());
}

#[tokio::test]
async fn files_and_large_values_expire_before_their_run_and_everything_else_still_lists() {
    let mut server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    server.deploy("waits", "stepwell_waits").await;
    let text = "y".repeat(100_000);
    let run = server.run("probe", json!({"files": 1, "updates": 1, "payload_bytes": 100_000, "text": text})).await;
    let open = waiting(&server, json!({"file": 10})).await;
    let id = run["id"].as_str().unwrap().to_owned();
    let artifacts = server.get(&format!("/v1/artifacts?run_id={id}")).await;
    let artifact = artifacts["data"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(artifacts["data"][0]["expired"], Value::Null);
    let before = server.events(&id).await;
    // As if its days were over.
    assert_eq!(server.stop(), 0);
    {
        let journal = RedbJournal::open(&server.data_dir().join("journal.redb")).unwrap();
        let dev: TenantId = "dev".parse().unwrap();
        assert_eq!(journal.delete_contents_ended_before(&dev, Timestamp::from_millis(u64::MAX)).await.unwrap().runs, 1);
        assert_eq!(journal.usage(&dev).unwrap(), journal.recount(&dev).unwrap());
    }
    server.start_again();
    let response = server.request(Method::GET, &format!("/v1/artifacts/{artifact}")).send().await.unwrap();
    assert_eq!(problem(response).await, (410, "artifact_expired".to_owned()));
    let unknown = server.request(Method::GET, &format!("/v1/artifacts/{id}-9999")).send().await.unwrap();
    assert_eq!(problem(unknown).await, (404, "unknown_artifact".to_owned()));
    let artifacts = server.get(&format!("/v1/artifacts?run_id={id}")).await;
    assert_eq!(artifacts["data"][0]["expired"], true);
    let run = server.get(&format!("/v1/runs/{id}")).await;
    assert_eq!((&run["status"], &run["expired"]), (&json!("completed"), &json!(true)));
    assert!(run.get("output").is_none() && run.get("input").is_none(), "{run}");

    let after = server.events(&id).await;
    assert_eq!(after.len(), before.len());
    check_history(&after);
    let last = after.last().unwrap();
    assert_eq!((&last["output"], &last["expired"]), (&Value::Null, &json!(true)), "{last}");
    assert!(last["size_bytes"].as_u64().unwrap() > 100_000 && last["sha256"].is_string(), "{last}");
    let large = |event: &Value| event.get("expired").is_some();
    for (before, after) in before.iter().zip(&after).filter(|(_, after)| !large(after)) {
        assert_eq!(before, after, "what was small is as it was");
    }
    let mut stream = server.follow(&id, None).await;
    let mut streamed = Vec::new();
    while let Some(frame) = stream.next().await {
        streamed.push(frame.data);
    }
    assert_eq!(streamed, after);
    let rerun = server.request(Method::POST, &format!("/v1/runs/{id}/rerun"));
    assert_eq!(problem(rerun.send().await.unwrap()).await, (410, "content_expired".to_owned()));
    let rerun = server.request(Method::POST, &format!("/v1/runs/{id}/rerun")).json(&json!({"input": {}}));
    assert_eq!(rerun.send().await.unwrap().status(), StatusCode::ACCEPTED, "with another input it can be repeated");
    signal(&server, &open, json!(1)).await;
    assert!(server.ended(&open).await["output"][1].is_string(), "a run that had not ended has lost nothing");
}

/// A parent that asks late gets an answer, even when what the child brought is not there any more.
#[tokio::test]
async fn a_parent_that_waits_for_a_child_whose_output_has_expired_is_told() {
    let mut server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let child = json!([{"start": {"workflow": "waits", "input": [{"signal": {"name": "go"}}]}}, {"signal": {"name": "go"}}, {"await": {}}]);
    let id = server.start_run("waits", child).await;
    server.run_when(&id, |run| run["waits_for"] == "signal").await;
    let children = server.get(&format!("/v1/runs?parent={id}")).await;
    let child = children["data"][0]["id"].as_str().unwrap().to_owned();
    server.run_when(&child, |run| run["waits_for"] == "signal").await;
    signal(&server, &child, json!("z".repeat(100_000))).await;
    server.ended(&child).await;
    assert_eq!(server.stop(), 0);
    {
        let journal = RedbJournal::open(&server.data_dir().join("journal.redb")).unwrap();
        let dev: TenantId = "dev".parse().unwrap();
        assert_eq!(journal.delete_contents_ended_before(&dev, Timestamp::from_millis(u64::MAX)).await.unwrap().runs, 1);
    }
    server.start_again();
    signal(&server, &id, json!(1)).await;
    let run = server.ended(&id).await;
    assert_eq!(run["status"], "completed", "{run}");
    assert!(run["output"][2]["error"].as_str().unwrap().contains("output_expired"), "{run}");
}

#[tokio::test]
async fn the_counts_are_right_after_crashes_in_the_middle_of_everything() {
    let mut server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    server.deploy("waits", "stepwell_waits").await;
    let mut ids = Vec::new();
    for round in 0..3 {
        for n in 0..20 {
            let input =
                json!({"files": 1, "updates": 20, "payload_bytes": 70_000 * (n % 2), "text": round.to_string()});
            ids.push(server.start_run("probe", input).await);
        }
        waiting(&server, json!({"publish": 1})).await;
        server.crash();
    }
    for id in &ids {
        assert_eq!(server.ended(id).await["status"], "completed");
    }
    assert_eq!(usage(&server).await["unfinished_runs"], 3);
    server.kill();
    let journal = RedbJournal::open(&server.data_dir().join("journal.redb")).unwrap();
    let dev: TenantId = "dev".parse().unwrap();
    let counted = journal.usage(&dev).unwrap();
    assert_eq!(counted, journal.recount(&dev).unwrap());
    assert!(counted.journal_bytes > 500_000, "{counted:?}");
}
