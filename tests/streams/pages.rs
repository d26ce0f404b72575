//! The same events as pages: what is refused, and pages that wait.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{PATIENCE, Server, problem};

#[tokio::test]
async fn what_there_is_not_is_refused_in_filters_and_positions() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({})).await;
    server.ended(&id).await;
    let refused = |query: &str, accept: &'static str, last: Option<&'static str>| {
        let mut request =
            server.request(Method::GET, &format!("/v1/runs/{id}/events?{query}")).header("accept", accept);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        async move { problem(request.send().await.unwrap()).await }
    };
    for accept in ["application/json", "text/event-stream"] {
        for query in ["topics=none", "topics=status,none", "topics=", "topics=status,", "topics=STATUS"] {
            assert_eq!(refused(query, accept, None).await, (422, "unknown_topic".to_owned()), "{query}");
        }
        for query in ["kinds=none", "kinds=step.update,none", "kinds=", "kinds=step_update"] {
            assert_eq!(refused(query, accept, None).await, (422, "unknown_kind".to_owned()), "{query}");
        }
        for last in ["x", "-1", "+1", "1.5", "0x1", "1,2", "18446744073709551616", ""] {
            assert_eq!(refused("", accept, Some(last)).await, (400, "invalid_query".to_owned()), "{last:?}");
        }
        for query in
            ["after=x", "after=-1", "after=%2B1", "after=", "cursor=1.5", "after=18446744073709551616", "nothing=1"]
        {
            assert_eq!(refused(query, accept, None).await, (400, "invalid_query".to_owned()), "{query}");
        }
        for query in ["wait=61", "wait=-1", "wait=x", "limit=0", "limit=-1"] {
            assert_eq!(refused(query, accept, None).await, (400, "invalid_query".to_owned()), "{query}");
        }
        // A stream keeps its filter for as long as it is open.
        for query in [format!("topics={}", "status,".repeat(64)), format!("kinds={}", "step.update,".repeat(64))] {
            assert_eq!(refused(&query, accept, None).await, (422, "too_many".to_owned()), "{query}");
        }
    }
    // The largest position there is lies beyond the end, like any other.
    let page = server.get(&format!("/v1/runs/{id}/events?after=18446744073709551615&wait=30")).await;
    assert_eq!(page, json!({"data": [], "page": {"cursor": "18446744073709551615", "has_more": false, "limit": 100}}));
}

#[tokio::test]
async fn a_page_that_waits_answers_with_the_first_event_that_is_wanted() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"busy_ms": 400, "updates": 4})).await;
    let (mut seen, mut after) = (Vec::new(), 0);
    loop {
        let page = server.get(&format!("/v1/runs/{id}/events?after={after}&wait=60&limit=3")).await;
        let data = page["data"].as_array().unwrap();
        assert!(!data.is_empty(), "there was more to come: {page}");
        seen.extend(data.iter().cloned());
        after = page["page"]["cursor"].as_str().unwrap().parse().unwrap();
        if seen.last().unwrap()["kind"] == "run.completed" {
            break;
        }
    }
    assert_eq!(seen, server.events(&id).await);
    // It waits for what its filter wants, and the end always is.
    let id = server.start_run("probe", json!({"busy_ms": 100, "updates": 1})).await;
    let page = server.get(&format!("/v1/runs/{id}/events?kinds=run.suspended&wait=60")).await;
    let kinds: Vec<&Value> = page["data"].as_array().unwrap().iter().map(|event| &event["kind"]).collect();
    assert_eq!(kinds, ["run.completed"]);
    // After the end there is nothing to wait for.
    let started = Instant::now();
    let cursor = page["page"]["cursor"].as_str().unwrap();
    let rest = server.get(&format!("/v1/runs/{id}/events?cursor={cursor}&wait=60")).await;
    assert_eq!(rest["data"], json!([]));
    assert!(started.elapsed() < PATIENCE / 2, "it waited for what cannot come");
}

#[tokio::test]
async fn a_page_that_waits_in_vain_is_empty_when_its_time_is_over() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"busy_ms": 20_000, "updates": 1})).await;
    let started = Instant::now();
    let page = server.get(&format!("/v1/runs/{id}/events?after=1000000&wait=1")).await;
    assert_eq!((&page["data"], &page["page"]["cursor"]), (&json!([]), &json!("1000000")));
    assert!(started.elapsed() >= Duration::from_secs(1), "it did not wait");
    let mut server = server;
    let waiting = server.request(Method::GET, &format!("/v1/runs/{id}/events?after=1000000&wait=60")).send();
    let waiting = tokio::spawn(waiting);
    server.cli(&["cancel", &id]);
    let page: Value = waiting.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(page["data"], json!([]), "the run has ended before that position");
    assert_eq!(server.stop(), 0);
}

#[tokio::test]
async fn a_stream_is_what_is_accepted_as_one_and_everything_else_gets_a_page() {
    let server = Server::start();
    server.deploy("noop", "stepwell_noop").await;
    let run = server.run("noop", json!(1)).await;
    let path = format!("/v1/runs/{}/events", run["id"].as_str().unwrap());
    let answered = |accept: &'static [&'static str]| {
        let request = accept.iter().fold(server.request(Method::GET, &path), |all, line| all.header("accept", *line));
        async move { request.send().await.unwrap().headers()["content-type"].to_str().unwrap().to_owned() }
    };
    let streams: [&[&str]; 5] = [
        &["text/event-stream"],
        &["Text/Event-Stream"],
        &["application/json", "text/event-stream"],
        &["application/json;q=0.5, text/event-stream;q=0.4"],
        &["text/event-stream; charset=utf-8"],
    ];
    for accept in streams {
        assert_eq!(answered(accept).await, "text/event-stream", "{accept:?}");
    }
    let pages: [&[&str]; 5] =
        [&[], &["*/*"], &["text/event-stream;q=0"], &["text/event-stream; Q=0.0, */*"], &["text/event-streams"]];
    for accept in pages {
        assert_eq!(answered(accept).await, "application/json", "{accept:?}");
    }
}
