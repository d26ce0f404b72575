//! What pages of other origins may ask for, and see.

use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::{header, tenant};
use crate::support::{Server, problem};

const APP: &str = "https://app.example";
const OTHER: &str = "https://other.example";

async fn set_origins(server: &Server, key: &str, origins: Value) -> Response {
    let request = server.request_as(key, Method::PUT, "/v1/settings/cors");
    request.json(&json!({ "origins": origins })).send().await.unwrap()
}

async fn preflight(server: &Server, path: &str, origin: &str, method: &str) -> Response {
    let request = server.anonymous(Method::OPTIONS, path).header("origin", origin);
    let request = request.header("access-control-request-method", method);
    request.header("access-control-request-headers", "authorization, last-event-id").send().await.unwrap()
}

/// The head of an answer to a preflight, but for when it was given. Every page may ask, and may see nothing by that.
fn answer_to_all(response: &Response) -> Vec<(String, String)> {
    assert_eq!(response.status(), 204);
    assert_eq!(header(response, "access-control-allow-origin"), Some("*"));
    assert_eq!(header(response, "access-control-allow-methods"), Some("GET"));
    assert!(header(response, "access-control-allow-headers").unwrap().contains("authorization, last-event-id"));
    assert_eq!(header(response, "access-control-allow-credentials"), None);
    let headers = response.headers().iter().filter(|(name, _)| *name != "date");
    headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect()
}

#[tokio::test]
async fn a_page_sees_the_streams_of_those_who_have_named_its_origin_and_of_nobody_else() {
    let mut server = Server::start_with(&[]);
    let (acme, rival) = (tenant(&server, "acme"), tenant(&server, "rival"));
    let mut runs = Vec::new();
    for key in [&acme, &rival] {
        server.deploy_as(key, "probe", "stepwell_probe").await;
        let request = server.request_as(key, Method::POST, "/v1/workflows/probe/runs").header("prefer", "wait=30");
        let run: Value = request.json(&json!({"input": {}})).send().await.unwrap().json().await.unwrap();
        runs.push(run["id"].as_str().unwrap().to_owned());
    }
    let [run, rivals] = [&runs[0], &runs[1]];
    let path = format!("/v1/runs/{run}/events");
    // Nobody has named anything.
    let response = preflight(&server, &path, APP, "GET").await;
    let unnamed = answer_to_all(&response);

    let set = set_origins(&server, &acme, json!([APP, "http://localhost:5173", APP])).await;
    assert_eq!(set.json::<Value>().await.unwrap(), json!({"origins": ["http://localhost:5173", APP]}));
    set_origins(&server, &rival, json!([OTHER])).await;
    for _ in 0..2 {
        for path in [&path, "/v1/channels/probes/events"] {
            // Whoever asks gets the same: whether anybody has named an origin is not told here.
            for (origin, method) in [(APP, "GET"), (OTHER, "GET"), ("https://evil.example", "GET"), (APP, "POST")] {
                assert_eq!(
                    answer_to_all(&preflight(&server, path, origin, method).await),
                    unnamed,
                    "{origin} {method}"
                );
            }
        }
        let ask = |key: &str, path: &str, origin: &str, accept: &str| {
            let request = server.request_as(key, Method::GET, path).header("origin", origin).header("accept", accept);
            request.send()
        };
        let theirs = format!("/v1/runs/{rivals}/events");
        for accept in ["application/json", "text/event-stream"] {
            let response = ask(&acme, &path, APP, accept).await.unwrap();
            assert_eq!(header(&response, "access-control-allow-origin"), Some(APP));
            assert_eq!(header(&response, "access-control-allow-credentials"), None);
            assert_eq!(header(&response, "access-control-expose-headers"), Some("retry-after"));
            assert!(header(&response, "vary").unwrap().contains("origin"));
            // The other tenant's page, with this tenant's key; and the other way round.
            assert_eq!(header(&ask(&acme, &path, OTHER, accept).await.unwrap(), "access-control-allow-origin"), None);
            assert_eq!(header(&ask(&rival, &theirs, APP, accept).await.unwrap(), "access-control-allow-origin"), None);
            // A page sees why it was refused, too: `fetch` would otherwise call it a network error.
            let refused = ask(&acme, &theirs, APP, accept).await.unwrap();
            assert_eq!(header(&refused, "access-control-allow-origin"), Some(APP));
            assert_eq!(problem(refused).await, (404, "unknown_run".to_owned()));
            let nobody = ask("sw_no_key", &path, APP, accept).await.unwrap();
            assert_eq!(header(&nobody, "access-control-allow-origin"), None);
        }
        // It is on disk.
        server.crash();
    }
    // What was named and is not any more.
    set_origins(&server, &acme, json!([])).await;
    assert_eq!(answer_to_all(&preflight(&server, &path, APP, "GET").await), unnamed);
    let request = server.request_as(&acme, Method::GET, &path).header("origin", APP);
    assert_eq!(header(&request.send().await.unwrap(), "access-control-allow-origin"), None);
    let got = server.request_as(&acme, Method::GET, "/v1/settings/cors").send().await.unwrap();
    assert_eq!(got.json::<Value>().await.unwrap(), json!({"origins": []}));
}

#[tokio::test]
async fn what_is_no_origin_is_refused_and_changes_nothing() {
    let server = Server::start();
    assert_eq!(set_origins(&server, "dev", json!([APP])).await.status(), 200);
    for bad in ["*", "null", "https://app.example/", "app.example", "https://*.example", "HTTPS://app.example"] {
        let response = set_origins(&server, "dev", json!([OTHER, bad])).await;
        assert_eq!(problem(response).await, (422, "invalid_origin".to_owned()), "{bad}");
    }
    let many: Vec<String> = (0..65).map(|n| format!("https://{n}.example")).collect();
    assert_eq!(problem(set_origins(&server, "dev", json!(many)).await).await, (422, "invalid_body".to_owned()));
    let body = server.request(Method::PUT, "/v1/settings/cors").json(&json!({"origin": APP})).send().await.unwrap();
    assert_eq!(problem(body).await, (422, "invalid_body".to_owned()));
    assert_eq!(server.get("/v1/settings/cors").await, json!({"origins": [APP]}));
    let nobody = server.anonymous(Method::GET, "/v1/settings/cors").send().await.unwrap();
    assert_eq!(problem(nobody).await, (401, "unauthorized".to_owned()));
}
