//! What steps ask of the world outside, all the way: a real server, a real connection, somebody at the other end.

mod http;
mod llm;
mod secrets;
pub(crate) mod server;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::Server;

/// A key that no other text here holds.
const KEY: &str = "sk-hunter2-0123456789";

async fn put(server: &Server, path: &str, body: &Value) {
    let response = server.request(Method::PUT, path).json(body).send().await.unwrap();
    let status = response.status();
    assert!(status.is_success(), "{path}: {status} {}", response.text().await.unwrap());
}

/// Keeps [`KEY`] under a name.
async fn put_secret(server: &Server, name: &str, hosts: &[&str]) {
    put(server, &format!("/v1/secrets/{name}"), &json!({"value": KEY, "hosts": hosts})).await;
}

/// How a run has failed: `kind source code`.
fn failed(run: &Value) -> String {
    assert_eq!(run["status"], "failed", "{run}");
    ["kind", "source", "code"].map(|name| run["failure"][name].as_str().unwrap()).join(" ")
}

/// Milliseconds from one time to another.
fn ms_between(from: &Value, to: &Value) -> i64 {
    let time = |text: &Value| text.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_millisecond();
    time(to) - time(from)
}
