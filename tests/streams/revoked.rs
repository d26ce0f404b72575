//! What is open when a key or a token stops being valid: it is closed, and whoever waits is told.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{open, tenant};
use crate::support::{PATIENCE, Server, problem};

const CHANNEL: &str = "/v1/channels/probes/events";

/// A tenant's server, its key, and a run that takes a while. It has published all that it does at first.
async fn busy(server: &Server) -> (String, String) {
    let key = tenant(server, "acme");
    server.deploy_as(&key, "probe", "stepwell_probe").await;
    let request = server.request_as(&key, Method::POST, "/v1/workflows/probe/runs");
    let request = request.json(&json!({"input": {"busy_ms": 20_000, "updates": 1}}));
    let run: Value = request.send().await.unwrap().json().await.unwrap();
    (key, run["id"].as_str().unwrap().to_owned())
}

/// *The story:* a page that waited did not look again at the token it was asked with, and showed what came after the token
/// was taken back.
#[tokio::test]
async fn a_page_that_waits_is_refused_when_its_token_s_key_is_replaced() {
    let server = Server::start_with(&[]);
    let (key, id) = busy(&server).await;
    let mut waiting = Vec::new();
    for (of, path) in
        [(format!("/v1/runs/{id}"), format!("/v1/runs/{id}/events")), ("/v1/channels/probes".into(), CHANNEL.into())]
    {
        let request = server.request_as(&key, Method::POST, &format!("{of}/stream-tokens")).json(&json!({}));
        let made: Value = request.send().await.unwrap().json().await.unwrap();
        let token = made["token"].as_str().unwrap();
        let request = server.request_as(token, Method::GET, &format!("{path}?after=1000000&wait=60"));
        waiting.push(tokio::spawn(request.send()));
        // It is there when its listener is: another one of the same token is answered after it.
        let at_once = server.request_as(token, Method::GET, &format!("{path}?wait=1")).send().await.unwrap();
        assert_eq!(at_once.status(), StatusCode::OK);
    }
    let with_key = server.request_as(&key, Method::GET, &format!("{CHANNEL}?after=1000000&wait=3")).send();
    let with_key = tokio::spawn(with_key);
    server.request_as(&key, Method::POST, "/v1/stream-keys/rotate").send().await.unwrap();
    for page in waiting {
        let page = tokio::time::timeout(PATIENCE / 2, page).await.expect("it waits on").unwrap().unwrap();
        assert_eq!(problem(page).await, (401, "invalid_token".to_owned()));
    }
    assert_eq!(with_key.await.unwrap().unwrap().status(), StatusCode::OK, "the tenant's own key is another one");
}

/// *The story:* a stream of a channel, once open, was open for ever, whatever became of the key that had opened it.
#[tokio::test]
async fn a_revoked_key_s_streams_are_closed_and_its_pages_refused() {
    let server = Server::start_with(&[]);
    let (key, id) = busy(&server).await;
    let data_dir = server.data_dir().display().to_string();
    let other = server.cli(&["admin", "key", "create", "acme", "--data-dir", &data_dir]).stdout.trim().to_owned();
    let run = open(server.request_as(&key, Method::GET, &format!("/v1/runs/{id}/events"))).await;
    let channel = open(server.request_as(&key, Method::GET, CHANNEL)).await;
    let page = server.request_as(&key, Method::GET, &format!("{CHANNEL}?after=1000000&wait=60")).send();
    let page = tokio::spawn(page);
    let others_page = server.request_as(&other, Method::GET, &format!("{CHANNEL}?after=1000000&wait=3")).send();
    let others_page = tokio::spawn(others_page);
    let key_id = key.split('_').nth(1).unwrap();
    let revoked = server.cli(&["admin", "key", "revoke", key_id, "--data-dir", &data_dir]);
    assert_eq!(revoked.code, 0, "{revoked:?}");
    for frames in [run, channel] {
        let rest = tokio::time::timeout(PATIENCE / 2, frames.rest()).await.expect("it stays open");
        assert!(rest.iter().all(|frame| !frame.event.starts_with("run.c")));
    }
    // It may have been asked for just before or just after; it shows nothing in either case.
    let page = tokio::time::timeout(PATIENCE / 2, page).await.expect("it waits on").unwrap().unwrap();
    assert_eq!(problem(page).await, (401, "unauthorized".to_owned()));
    assert_eq!(others_page.await.unwrap().unwrap().status(), StatusCode::OK);
}
