//! Receivers of deliveries that are where they must not be, or do what they should not.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{SECRET, set_up, told, with_secret};
use crate::outside::server::{Act, Scripted, response};
use crate::support::{Server, eventually};

/// The first delivery of a webhook, once it was tried.
async fn tried(server: &Server) -> Value {
    eventually("an attempt", || async {
        let page = server.get("/v1/webhooks/out/deliveries").await;
        page["data"].as_array().unwrap().first().filter(|delivery| delivery["attempts"] != 0).cloned()
    })
    .await
}

async fn taken(server: &Server) {
    eventually("an empty outbox", || async {
        (server.get("/v1/webhooks/out/deliveries").await["data"] == json!([])).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_webhook_reaches_no_address_that_a_step_could_not() {
    for egress in ["nothing", "public"] {
        let server = Server::start_with(&["--dev", "--egress", egress]);
        server.deploy("w", "stepwell_noop").await;
        with_secret(&server).await;
        let inside = Scripted::start(vec![response("200 OK", "", "")]).await;
        let localhost = inside.url("/").replace("127.0.0.1", "localhost");
        let mapped = inside.url("/").replace("127.0.0.1", "[::ffff:127.0.0.1]");
        for url in [inside.url("/"), localhost, mapped, "http://169.254.169.254/latest/meta-data/".to_owned()] {
            set_up(&server, "/v1/webhooks/out", json!({ "url": url, "secret": "HOOK" })).await;
            server.run("w", json!(null)).await;
            let dead = tried(&server).await;
            assert_eq!((&dead["status"], &dead["last_problem"]["code"]), (&json!("dead"), &json!("denied")), "{url}");
            let deleted = server.request(Method::DELETE, "/v1/webhooks/out").send().await.unwrap();
            assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
        }
        assert_eq!(inside.connections(), 0);
    }
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_not_followed() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    with_secret(&server).await;
    let target = Scripted::start(vec![response("200 OK", "", "")]).await;
    let elsewhere = format!("location: {}\r\n", target.url("/"));
    let receiver = Scripted::start(vec![response("307 Temporary Redirect", &elsewhere, "over there")]).await;
    set_up(&server, "/v1/webhooks/out", json!({ "url": receiver.url("/"), "secret": "HOOK" })).await;
    server.run("w", json!(null)).await;
    let tried = tried(&server).await;
    let problem = json!({ "code": "bad_status", "message": "HTTP 307: over there" });
    assert_eq!((&tried["last_problem"], &tried["status"]), (&problem, &json!("pending")));
    assert_eq!(target.connections(), 0);
}

/// A body that did not come to its end within the time, or was too large, made a delivery fail that had been taken.
#[tokio::test]
async fn what_was_taken_is_taken_however_slow_or_large_the_rest_of_the_answer_is() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    with_secret(&server).await;
    let head = |length: usize| Act::Send(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\nx").into_bytes());
    let endless = Act::Send(vec![b'x'; 8 << 20]);
    let receiver = Scripted::start(vec![vec![head(1_000), Act::Stall], vec![head(1 << 40), endless, Act::Stall]]).await;
    set_up(&server, "/v1/webhooks/out", json!({ "url": receiver.url("/"), "secret": "HOOK" })).await;
    for times in [1, 2] {
        server.run("w", json!(null)).await;
        told(&receiver, times).await;
        taken(&server).await;
    }
    assert_eq!(receiver.requests().len(), 2, "none was told twice");
}

#[tokio::test]
async fn of_a_refusal_little_is_read_and_kept() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    with_secret(&server).await;
    let head = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 99999999999\r\n\r\n".to_vec();
    let receiver =
        Scripted::start(vec![vec![Act::Send(head), Act::Send("\u{1f980}x".repeat(1 << 20).into_bytes()), Act::Stall]])
            .await;
    set_up(&server, "/v1/webhooks/out", json!({ "url": receiver.url("/?token=t0ken"), "secret": "HOOK" })).await;
    server.run("w", json!(null)).await;
    let tried = tried(&server).await;
    let message = tried["last_problem"]["message"].as_str().unwrap();
    assert!(message.starts_with("HTTP 500: \u{1f980}x") && message.len() < 600, "{message}");
    let log = server.log();
    assert!(!log.contains(SECRET) && !log.contains("t0ken") && log.contains("a delivery was not taken"), "{log}");
}
