//! Stream tokens: what they open, for how long, and that nothing else does.

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::wires::ask_over_http2;
use super::{frames_of, header, open, tenant};
use crate::support::{Frames, PATIENCE, Server, eventually, problem};

async fn make(server: &Server, key: &str, path: &str, body: Value) -> Response {
    server.request_as(key, Method::POST, &format!("{path}/stream-tokens")).json(&body).send().await.unwrap()
}

async fn token(server: &Server, path: &str, body: Value) -> String {
    let response = make(server, "dev", path, body).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let body: Value = response.json().await.unwrap();
    let token = body["token"].as_str().unwrap();
    assert!(token.starts_with("sws_"));
    token.to_owned()
}

/// Shows a token in both ways; both are answered the same.
async fn refused(server: &Server, path: &str, token: &str) -> (u16, String) {
    let separator = if path.contains('?') { '&' } else { '?' };
    let by_query = server.anonymous(Method::GET, &format!("{path}{separator}token={token}")).send().await.unwrap();
    let by_header = server.request_as(token, Method::GET, path).send().await.unwrap();
    let answers = (problem(by_query).await, problem(by_header).await);
    assert_eq!(answers.0, answers.1);
    answers.0
}

#[tokio::test]
async fn a_token_opens_its_run_in_every_way_that_a_browser_has() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"busy_ms": 50})).await;
    let (run, path) = (format!("/v1/runs/{id}"), format!("/v1/runs/{id}/events"));
    let before = jiff::Timestamp::now();
    let made: Value = make(&server, "dev", &run, json!({})).await.json().await.unwrap();
    let expires: jiff::Timestamp = made["expires_at"].as_str().unwrap().parse().unwrap();
    let seconds = expires.as_second() - before.as_second();
    assert!((599..=602).contains(&seconds), "ten minutes when nothing is said: {seconds}");
    let token = made["token"].as_str().unwrap();

    // `EventSource` cannot send headers of its own, but comes back with `Last-Event-ID`.
    let as_query = open(server.anonymous(Method::GET, &format!("{path}?token={token}"))).await.rest().await;
    let events = server.events(&id).await;
    assert_eq!(as_query, frames_of(&events));
    let again = server.anonymous(Method::GET, &format!("{path}?token={token}")).header("last-event-id", "3");
    assert_eq!(open(again).await.rest().await, frames_of(&events)[3..]);
    // `fetch` can.
    assert_eq!(open(server.request_as(token, Method::GET, &path)).await.rest().await, frames_of(&events));
    let page = server.request_as(token, Method::GET, &format!("{path}?limit=1000"));
    let page: Value = page.send().await.unwrap().json().await.unwrap();
    assert_eq!(page["data"], json!(events));
    let (status, text) = ask_over_http2(&server, &format!("{path}?token={token}"), None).await;
    assert_eq!((status, super::wires::parse(&text)), (200, frames_of(&events)));
}

#[tokio::test]
async fn a_token_opens_nothing_else() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({})).await;
    let other = server.start_run("probe", json!({})).await;
    server.ended(&id).await;
    let (run, path) = (format!("/v1/runs/{id}"), format!("/v1/runs/{id}/events"));
    let run_token = token(&server, &run, json!({})).await;
    let channel_token = token(&server, "/v1/channels/probes", json!({})).await;

    // Another run, a channel, and what there is not, look the same.
    for other in [&other, "01234567-89ab-7def-8123-456789abcdef", "x"] {
        let path = format!("/v1/runs/{other}/events");
        assert_eq!(refused(&server, &path, &run_token).await, (404, "unknown_run".to_owned()));
        assert_eq!(refused(&server, &path, &channel_token).await, (404, "unknown_run".to_owned()));
    }
    assert_eq!(refused(&server, &path, &channel_token).await, (404, "unknown_run".to_owned()));
    for channel in ["/v1/channels/others/events", "/v1/channels/a%20b/events"] {
        assert_eq!(refused(&server, channel, &channel_token).await, (404, "unknown_channel".to_owned()));
        assert_eq!(refused(&server, channel, &run_token).await, (404, "unknown_channel".to_owned()));
    }
    assert_eq!(refused(&server, "/v1/channels/probes/events", &run_token).await, (404, "unknown_channel".to_owned()));

    // It is no API key, on no other route, in neither way.
    let rest = [
        (Method::GET, run.clone()),
        (Method::GET, format!("{run}/steps")),
        (Method::POST, format!("{run}/cancel")),
        (Method::POST, format!("{run}/stream-tokens")),
        (Method::GET, "/v1/runs".to_owned()),
        (Method::GET, "/v1/settings/cors".to_owned()),
        (Method::POST, "/v1/stream-keys/rotate".to_owned()),
        (Method::POST, "/v1/workflows/probe/runs".to_owned()),
        (Method::GET, "/v1/admin/tenants".to_owned()),
    ];
    for (method, path) in rest {
        let by_header = server.request_as(&run_token, method.clone(), &path).send().await.unwrap();
        assert_eq!(problem(by_header).await, (401, "unauthorized".to_owned()), "{method} {path}");
        let by_query = server.anonymous(method.clone(), &format!("{path}?token={run_token}")).send().await.unwrap();
        assert_eq!(problem(by_query).await, (401, "unauthorized".to_owned()), "{method} {path}");
    }
    // And an API key is no token.
    assert_eq!(problem(server.anonymous(Method::GET, &format!("{path}?token=dev")).send().await.unwrap()).await.0, 401);
}

#[tokio::test]
async fn a_token_that_is_not_ours_gets_one_answer_whatever_is_wrong_with_it() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({})).await;
    server.ended(&id).await;
    let (run, path) = (format!("/v1/runs/{id}"), format!("/v1/runs/{id}/events"));
    let good = token(&server, &run, json!({})).await;
    let (claims, mac) = good.split_once('.').unwrap();
    let other_server = Server::start();
    other_server.deploy("probe", "stepwell_probe").await;
    let others_run = other_server.start_run("probe", json!({})).await;
    let others = token(&other_server, &format!("/v1/runs/{others_run}"), json!({})).await;
    let mut texts = Vec::new();
    for bad in [
        "sws_".to_owned(),
        "sws_.".to_owned(),
        claims.to_owned(),
        format!("{claims}."),
        format!("{claims}.{}", "A".repeat(mac.len())),
        format!("{claims}.{}", mac.chars().rev().collect::<String>()),
        format!("{}x.{mac}", claims),
        others.clone(),
        format!("{claims}.{}", others.split_once('.').unwrap().1),
        format!("sws_{}", "a".repeat(20_000)),
    ] {
        let response = server.request_as(&bad, Method::GET, &path).send().await.unwrap();
        assert_eq!(header(&response, "www-authenticate"), Some("Bearer"));
        texts.push(response.text().await.unwrap());
        assert_eq!(refused(&server, &path, &bad).await, (401, "invalid_token".to_owned()), "{bad}");
    }
    // Rotated: the same answer, to the byte.
    let rotated = server.request(Method::POST, "/v1/stream-keys/rotate").send().await.unwrap();
    assert_eq!(rotated.status(), StatusCode::OK);
    assert_eq!(refused(&server, &path, &good).await, (401, "invalid_token".to_owned()));
    texts.push(server.request_as(&good, Method::GET, &path).send().await.unwrap().text().await.unwrap());
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:#?}");
}

#[tokio::test]
async fn a_token_expires_and_its_page_is_told_so() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"busy_ms": 2_000, "updates": 2})).await;
    let (run, path) = (format!("/v1/runs/{id}"), format!("/v1/runs/{id}/events"));
    let origins = json!({"origins": ["https://app.example"]});
    server.request(Method::PUT, "/v1/settings/cors").json(&origins).send().await.unwrap();
    let short = token(&server, &run, json!({"ttl_seconds": 1})).await;
    let opened = open(server.anonymous(Method::GET, &format!("{path}?token={short}"))).await;
    eventually("the token to expire", || async {
        let response = server.request_as(&short, Method::GET, &path).send().await.unwrap();
        (response.status() == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    assert_eq!(refused(&server, &path, &short).await, (401, "expired_token".to_owned()));
    let request = server.request_as(&short, Method::GET, &path).header("origin", "https://app.example");
    let response = request.send().await.unwrap();
    assert_eq!(header(&response, "access-control-allow-origin"), Some("https://app.example"));
    // It is looked at when somebody connects: what is open stays open to the run's end.
    assert_eq!(opened.rest().await.last().unwrap().event, "run.completed");
}

/// A channel has no end that would close what a token has opened.
#[tokio::test]
async fn a_stream_of_a_channel_ends_with_its_token_s_time() {
    let server = Server::start();
    let path = "/v1/channels/probes/events";
    let short = token(&server, "/v1/channels/probes", json!({"ttl_seconds": 1})).await;
    let request = server.request_as(&short, Method::GET, path).header("accept", "text/event-stream");
    let opened = request.send().await.unwrap();
    assert_eq!(opened.status(), StatusCode::OK);
    let text = tokio::time::timeout(PATIENCE / 2, opened.text()).await.expect("it stays open").unwrap();
    assert_eq!(text.matches("retry").count(), 2, "it says when to come back: {text}");
    assert_eq!(refused(&server, path, &short).await, (401, "expired_token".to_owned()));
}

#[tokio::test]
async fn a_token_of_a_channel_can_be_for_some_of_its_runs() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    server.deploy("second", "stepwell_probe").await;
    let mut runs = Vec::new();
    for (workflow, correlation) in [("probe", "ours"), ("second", "ours"), ("probe", "theirs")] {
        let request = server.post_run(workflow, json!({"updates": 1})).header("stepwell-correlation", correlation);
        let run: Value = request.send().await.unwrap().json().await.unwrap();
        runs.push(run["id"].as_str().unwrap().to_owned());
        server.ended(&runs[runs.len() - 1]).await;
    }
    let (channel, path) = ("/v1/channels/probes", "/v1/channels/probes/events");
    let shown = |token: String, query: &'static str| {
        let request = server.request_as(&token, Method::GET, &format!("{path}?limit=1000&{query}"));
        async move {
            let page: Value = request.send().await.unwrap().json().await.unwrap();
            let runs = page["data"].as_array().unwrap().iter().map(|entry| entry["run"].as_str().unwrap().to_owned());
            runs.collect::<std::collections::BTreeSet<String>>()
        }
    };
    let these = |which: &[usize]| which.iter().map(|n| runs[*n].clone()).collect::<std::collections::BTreeSet<_>>();
    let cases = [
        (json!({"correlation": "ours"}), these(&[0, 1])),
        (json!({"workflow": "probe"}), these(&[0, 2])),
        (json!({"run": runs[1]}), these(&[1])),
        (json!({"workflow": "probe", "correlation": "ours"}), these(&[0])),
        (json!({"workflow": "second", "correlation": "theirs"}), these(&[])),
        (json!({}), these(&[0, 1, 2])),
    ];
    for (asked, expected) in cases {
        assert_eq!(shown(token(&server, channel, asked.clone()).await, "").await, expected, "{asked}");
    }
    // Narrower goes, and other is refused, in pages and streams.
    let ours = token(&server, channel, json!({"correlation": "ours"})).await;
    assert_eq!(shown(ours.clone(), "correlation=ours&workflow=second").await, these(&[1]));
    assert_eq!(shown(ours.clone(), "workflow=probe").await, these(&[0]));
    assert_eq!(refused(&server, &format!("{path}?correlation=theirs"), &ours).await, (403, "out_of_scope".to_owned()));
    let request = server.request_as(&ours, Method::GET, &format!("{path}?correlation=theirs"));
    let stream = request.header("accept", "text/event-stream").send().await.unwrap();
    assert_eq!(problem(stream).await, (403, "out_of_scope".to_owned()));
    let mut followed = open(server.request_as(&ours, Method::GET, path)).await;
    let seen = followed.next().await.unwrap();
    assert_eq!(seen.data["run"], *runs[0]);
    let one = token(&server, channel, json!({"run": runs[1]})).await;
    assert_eq!(refused(&server, &format!("{path}?run={}", runs[0]), &one).await, (403, "out_of_scope".to_owned()));
    // A run's token is for that run.
    let run = format!("/v1/runs/{}", runs[0]);
    for asked in [json!({"run": runs[0]}), json!({"workflow": "probe"}), json!({"correlation": "ours"})] {
        let response = make(&server, "dev", &run, asked.clone()).await;
        assert_eq!(problem(response).await, (422, "invalid_body".to_owned()), "{asked}");
    }
    let long = make(&server, "dev", channel, json!({"correlation": "x".repeat(257)})).await;
    assert_eq!(problem(long).await, (422, "invalid_correlation".to_owned()));
}

#[tokio::test]
async fn a_rotation_closes_what_tokens_have_opened_and_survives_a_crash() {
    let mut server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"busy_ms": 20_000, "updates": 1})).await;
    let (run, path) = (format!("/v1/runs/{id}"), format!("/v1/runs/{id}/events"));
    let old = token(&server, &run, json!({})).await;
    let on_channel = token(&server, "/v1/channels/probes", json!({})).await;
    server.crash();
    let opened = open(server.request_as(&old, Method::GET, &path)).await;
    let channel = open(server.request_as(&on_channel, Method::GET, "/v1/channels/probes/events")).await;
    let with_key = server.follow(&id, None).await;
    server.request(Method::POST, "/v1/stream-keys/rotate").send().await.unwrap();
    // Both close, long before the run ends; the tenant's own stream goes on.
    for frames in [opened, channel] {
        let rest = tokio::time::timeout(PATIENCE, frames.rest()).await.unwrap();
        assert!(rest.iter().all(|frame| !frame.event.starts_with("run.c")));
    }
    for _ in 0..2 {
        assert_eq!(refused(&server, &path, &old).await, (401, "invalid_token".to_owned()));
        let new = token(&server, &run, json!({})).await;
        assert_eq!(server.request_as(&new, Method::GET, &path).send().await.unwrap().status(), StatusCode::OK);
        server.crash();
    }
    server.cli(&["cancel", &id]);
    drop(with_key);
}

/// Events as they are shown to whoever may not see inputs, outputs and details of failures.
fn without_values(events: &mut [Value]) {
    for event in events {
        let event = event.as_object_mut().unwrap();
        event.remove("input");
        event.remove("output");
        if let Some(failure) = event.get_mut("failure") {
            failure.as_object_mut().unwrap().remove("details");
        }
    }
}

#[tokio::test]
async fn a_token_with_topics_shows_their_updates_and_what_happens_to_the_run() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let input = json!({"updates": 2, "files": 1, "fail_node": "left", "fail_first": 1});
    let id = server.start_run("probe", input).await;
    let (run, path) = (format!("/v1/runs/{id}"), format!("/v1/runs/{id}/events"));
    let status = token(&server, &run, json!({"topics": ["status"]})).await;
    let frames = open(server.anonymous(Method::GET, &format!("{path}?token={status}"))).await.rest().await;
    let mut events = server.events(&id).await;
    let hidden = ["step.log", "step.call", "step.artifact"];
    events.retain(|event| {
        let kind = event["kind"].as_str().unwrap();
        !hidden.contains(&kind) && (kind != "step.update" || event["topic"] == "status")
    });
    // With them where the tenant says so; else a hidden topic's updates could be read in an output.
    let with_outputs = token(&server, &run, json!({"topics": ["status"], "outputs": true})).await;
    let seen = open(server.anonymous(Method::GET, &format!("{path}?token={with_outputs}"))).await.rest().await;
    assert_eq!(seen, frames_of(&events));
    let has = |field: &str| events.iter().any(|event| event.get(field).is_some());
    assert!(has("input") && has("output"), "there is something to hide");
    without_values(&mut events);
    assert_eq!(frames, frames_of(&events));
    let (_, text) = ask_over_http2(&server, &format!("{path}?token={status}"), None).await;
    assert_eq!(super::wires::parse(&text), frames_of(&events));
    let page = server.request_as(&status, Method::GET, &format!("{path}?limit=1000"));
    assert_eq!(page.send().await.unwrap().json::<Value>().await.unwrap()["data"], json!(events));
    assert!(events.iter().any(|event| event["kind"] == "step.rolled_back"));
    // And the other way round: everything but that.
    let without = token(&server, &run, json!({"outputs": false})).await;
    let page = server.request_as(&without, Method::GET, &format!("{path}?limit=1000"));
    let mut all = server.events(&id).await;
    without_values(&mut all);
    assert_eq!(page.send().await.unwrap().json::<Value>().await.unwrap()["data"], json!(all));
    let asked = |query: &'static str| {
        let request = server.request_as(&status, Method::GET, &format!("{path}?limit=1000&{query}"));
        async move { request.send().await.unwrap() }
    };
    for query in ["topics=update", "topics=status,update"] {
        assert_eq!(problem(asked(query).await).await, (403, "out_of_scope".to_owned()), "{query}");
    }
    let page: Value = asked("topics=status&kinds=step.update,step.log").await.json().await.unwrap();
    let kinds: Vec<&str> = page["data"].as_array().unwrap().iter().map(|e| e["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["step.update", "step.update", "run.completed"]);

    let on_channel = token(&server, "/v1/channels/probes", json!({"topics": ["status"]})).await;
    let request = server.request_as(&on_channel, Method::GET, "/v1/channels/probes/events?limit=1000");
    let page: Value = request.send().await.unwrap().json().await.unwrap();
    let entries = page["data"].as_array().unwrap();
    assert_eq!(entries.iter().filter(|entry| entry["topic"] == "status").count(), 2);
    assert!(entries.iter().all(|entry| entry["topic"] != "update"));
    let end = entries.last().unwrap();
    assert_eq!((&end["kind"], end.get("output")), (&json!("run.completed"), None));
    let whole = token(&server, "/v1/channels/probes", json!({})).await;
    let request = server.request_as(&whole, Method::GET, "/v1/channels/probes/events?limit=1000");
    let page: Value = request.send().await.unwrap().json().await.unwrap();
    assert!(page["data"].as_array().unwrap().last().unwrap()["output"].is_object());
    let path = "/v1/channels/probes/events?topics=update";
    assert_eq!(refused(&server, path, &on_channel).await, (403, "out_of_scope".to_owned()));
}

/// What a person told a run is not for everybody who may see its progress.
#[tokio::test]
async fn a_token_with_topics_does_not_show_what_a_run_was_told() {
    let server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let id = server.start_run("waits", json!([{"signal": {"name": "go"}}, {"publish": 1}])).await;
    let version = server.get("/v1/workflows/waits/versions").await;
    let topics = version["data"][0]["graph"]["topics"].clone();
    let limited = token(&server, &format!("/v1/runs/{id}"), json!({"topics": topics})).await;
    let following = open(server.request_as(&limited, Method::GET, &format!("/v1/runs/{id}/events"))).await;
    let path = format!("/v1/runs/{id}/signals/go");
    let told = server.request(Method::POST, &path).json(&json!({"secret": "of a person"})).send().await.unwrap();
    assert_eq!(told.status(), StatusCode::ACCEPTED);
    let seen = following.rest().await;
    assert!(seen.iter().any(|frame| frame.event == "step.update") && seen.last().unwrap().event == "run.completed");
    assert!(!seen.iter().any(|frame| frame.event == "signal.received"), "{seen:?}");
    assert!(server.events(&id).await.iter().any(|event| event["kind"] == "signal.received"));
}

#[tokio::test]
async fn what_cannot_be_permitted_is_refused() {
    let server = Server::start_with(&[]);
    let (acme, rival) = (tenant(&server, "acme"), tenant(&server, "rival"));
    server.deploy_as(&acme, "probe", "stepwell_probe").await;
    let request = server.request_as(&acme, Method::POST, "/v1/workflows/probe/runs").json(&json!({"input": {}}));
    let run: Value = request.send().await.unwrap().json().await.unwrap();
    let run = format!("/v1/runs/{}", run["id"].as_str().unwrap());
    let cases = [
        (json!({"ttl_seconds": 3_601}), "invalid_ttl"),
        (json!({"ttl_seconds": 0}), "invalid_ttl"),
        (json!({"ttl_seconds": -1}), "invalid_body"),
        (json!({"ttl_seconds": "600"}), "invalid_body"),
        (json!({"topics": []}), "invalid_body"),
        (json!({"topics": ["status", "none"]}), "unknown_topic"),
        (json!({"scope": "all"}), "invalid_body"),
    ];
    for (body, code) in cases {
        assert_eq!(problem(make(&server, &acme, &run, body.clone()).await).await, (422, code.to_owned()), "{body}");
    }
    let body = json!({"topics": ["a b"]});
    assert_eq!(problem(make(&server, &acme, "/v1/channels/c", body).await).await, (422, "unknown_topic".to_owned()));
    let bad_name = make(&server, &acme, "/v1/channels/a%20b", json!({})).await;
    assert_eq!(problem(bad_name).await, (404, "unknown_channel".to_owned()));
    assert_eq!(make(&server, &acme, &run, json!({"ttl_seconds": 3_600})).await.status(), StatusCode::CREATED);
    // What another tenant owns does not exist.
    assert_eq!(problem(make(&server, &rival, &run, json!({})).await).await, (404, "unknown_run".to_owned()));
    // A rotation is one's own.
    let made: Value = make(&server, &acme, &run, json!({})).await.json().await.unwrap();
    let token = made["token"].as_str().unwrap();
    server.request_as(&rival, Method::POST, "/v1/stream-keys/rotate").send().await.unwrap();
    let path = format!("{run}/events");
    assert_eq!(server.request_as(token, Method::GET, &path).send().await.unwrap().status(), StatusCode::OK);
    // The same channel of two tenants is two channels.
    let theirs: Value = make(&server, &rival, "/v1/channels/probes", json!({})).await.json().await.unwrap();
    let request = server.request_as(theirs["token"].as_str().unwrap(), Method::GET, "/v1/channels/probes/events");
    let page: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(page["data"], json!([]));
}

/// Logs are kept, copied and read by many. At the finest level there is, over both protocols, good and bad.
#[tokio::test]
async fn a_token_is_in_no_log() {
    let mut server = Server::start_with(&["--dev", "--log", "trace"]);
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({})).await;
    server.ended(&id).await;
    let (run, path) = (format!("/v1/runs/{id}"), format!("/v1/runs/{id}/events"));
    let good = token(&server, &run, json!({})).await;
    let on_channel = token(&server, "/v1/channels/probes", json!({})).await;
    let bad = format!("{good}AAAA");
    for token in [&good, &bad] {
        for path in [
            format!("{path}?token={token}"),
            format!("{path}?nothing=1&token={token}"),
            format!("/v1/runs/{token}/events?token={token}"),
        ] {
            let response =
                server.anonymous(Method::GET, &path).header("accept", "text/event-stream").send().await.unwrap();
            drop(response.text().await);
            ask_over_http2(&server, &path, None).await;
        }
        drop(server.request_as(token, Method::GET, &path).send().await.unwrap().text().await);
        ask_over_http2(&server, &path, Some(&format!("Bearer {token}"))).await;
    }
    let response =
        server.anonymous(Method::GET, &format!("/v1/channels/probes/events?token={on_channel}")).send().await;
    drop(response.unwrap().text().await);
    let following = server.anonymous(Method::GET, &format!("/v1/channels/probes/events?token={on_channel}"));
    let following: Frames = open(following).await;
    assert_eq!(server.stop(), 0);
    drop(following);
    let log = server.log();
    assert!(log.contains("TRACE") || log.contains("DEBUG"), "this test must see the finest log: {log}");
    for token in [&good, &on_channel] {
        let (claims, mac) = token.split_once('.').unwrap();
        for part in [token.as_str(), claims, mac, &claims[..40], &mac[..20]] {
            assert!(!log.contains(part), "{part} is in the log");
        }
    }
}
