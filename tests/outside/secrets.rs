//! The secrets and providers of tenants.

use reqwest::Method;
use serde_json::{Value, json};

use super::server::{Scripted, openai};
use super::{KEY, failed, put, put_secret};
use crate::graphs::row;
use crate::support::{Server, problem};

#[tokio::test]
async fn secrets_are_set_listed_by_name_and_deleted_and_never_shown() {
    let server = Server::start_prepared(&["--dev"]);
    let set = |name: String, body: Value| {
        let request = server.request(Method::PUT, &format!("/v1/secrets/{name}")).json(&body);
        async move { request.send().await.unwrap() }
    };
    let first: Value =
        set("A.b-1".to_owned(), json!({"value": KEY, "hosts": ["api.example.com"]})).await.json().await.unwrap();
    let again: Value =
        set("A.b-1".to_owned(), json!({"value": "new", "hosts": ["*.example.com"]})).await.json().await.unwrap();
    assert_eq!(first["created_at"], again["created_at"]);
    let most = json!({"value": "x".repeat(16 << 10), "hosts": vec!["a.b"; 32]});
    assert_eq!(set("m".repeat(64), most).await.status(), 200);
    let listed = server.get("/v1/secrets").await;
    assert!(!listed.to_string().contains("hunter2") && !listed.to_string().contains("value"), "{listed}");
    let named: Vec<(&Value, &Value)> =
        listed["data"].as_array().unwrap().iter().map(|s| (&s["name"], &s["hosts"])).collect();
    assert_eq!(named[0], (&json!("A.b-1"), &json!(["*.example.com"])));
    assert_eq!(named.len(), 2);
    let one = server.request(Method::GET, "/v1/secrets/A.b-1").send().await.unwrap();
    assert_eq!(problem(one).await, (405, "method_not_allowed".to_owned()), "there is no way to read one");

    for (name, body, status, code) in [
        ("a%20b", json!({"value": "x"}), 422, "invalid_name"),
        ("%C3%BC", json!({"value": "x"}), 422, "invalid_name"),
        (&"n".repeat(65), json!({"value": "x"}), 422, "invalid_name"),
        ("a", json!({"value": ""}), 422, "invalid_body"),
        ("a", json!({"value": "x".repeat((16 << 10) + 1)}), 422, "invalid_body"),
        ("a", json!({"value": "x".repeat(200_000)}), 413, "too_large"),
        ("a", json!({"value": "x", "hosts": vec!["a.b"; 33]}), 422, "invalid_body"),
        ("a", json!({"value": "x", "hosts": ["https://a.b/"]}), 422, "invalid_body"),
        ("a", json!({"value": "x", "hosts": [""]}), 422, "invalid_body"),
        ("a", json!({"value": "x", "hosts": ["api.example.com:443"]}), 422, "invalid_body"),
        ("a", json!({"value": 5}), 422, "invalid_body"),
        ("a", json!({"value": "x", "extra": 1}), 422, "invalid_body"),
        ("a", json!({}), 422, "invalid_body"),
    ] {
        let response = set(name.to_owned(), body).await;
        assert_eq!(problem(response).await, (status, code.to_owned()), "{name}");
    }
    let delete = || server.request(Method::DELETE, "/v1/secrets/A.b-1").send();
    assert_eq!(delete().await.unwrap().status(), 204);
    assert_eq!(problem(delete().await.unwrap()).await, (404, "unknown_secret".to_owned()));

    for (name, body, code) in [
        ("mock", json!({"kind": "mock"}), "invalid_name"),
        ("a b", json!({"kind": "openai"}), "invalid_name"),
        ("a", json!({"kind": "other"}), "invalid_body"),
        ("a", json!({"kind": "openai", "base_url": "ftp://x"}), "invalid_body"),
        ("a", json!({"kind": "openai", "base_url": "http://user:pass@x/"}), "invalid_body"),
        ("a", json!({"kind": "openai", "secret": "a b"}), "invalid_body"),
        (
            "a",
            json!({"kind": "openai", "prices": {"m": {"input_usd_per_mtok": -1, "output_usd_per_mtok": 1}}}),
            "invalid_body",
        ),
    ] {
        let response = server.request(Method::PUT, &format!("/v1/providers/{name}")).json(&body).send().await.unwrap();
        assert_eq!(problem(response).await, (422, code.to_owned()), "{body}");
    }
    assert_eq!(server.get("/v1/providers").await["data"], json!([]));
}

#[tokio::test]
async fn the_secrets_and_providers_of_another_tenant_do_not_exist() {
    let server = Server::start_prepared(&["--dev"]);
    let data_dir = server.data_dir().display().to_string();
    let admin = |arguments: &[&str]| server.cli(&[&["admin"], arguments, &["--data-dir", &data_dir]].concat());
    assert_eq!(admin(&["tenant", "create", "rival"]).code, 0);
    let rival = admin(&["key", "create", "rival"]).stdout.trim().to_owned();
    let scripted = Scripted::start(vec![openai(&["hello"])]).await;
    put_secret(&server, "KEY", &["127.0.0.1"]).await;
    put(&server, "/v1/providers/there", &json!({"kind": "openai", "base_url": scripted.url("/v1"), "secret": "KEY"}))
        .await;

    for path in ["/v1/secrets", "/v1/providers"] {
        let response = server.request_as(&rival, Method::GET, path).send().await.unwrap();
        assert_eq!(response.json::<Value>().await.unwrap()["data"], json!([]), "{path}");
        assert_eq!(server.anonymous(Method::GET, path).send().await.unwrap().status(), 401);
    }
    for (path, code) in [("/v1/secrets/KEY", "unknown_secret"), ("/v1/providers/there", "unknown_provider")] {
        let response = server.request_as(&rival, Method::DELETE, path).send().await.unwrap();
        assert_eq!(problem(response).await, (404, code.to_owned()));
    }
    let run_as = async |key: &str, node: Value| {
        let path = "/v1/workflows/theirs/versions";
        let deployed = server.request_as(key, Method::POST, path).json(&row(json!([node]))).send().await.unwrap();
        assert_eq!(deployed.status(), 201);
        let request = server.request_as(key, Method::POST, "/v1/workflows/theirs/runs").header("prefer", "wait=60");
        request.json(&json!({"input": null})).send().await.unwrap().json::<Value>().await.unwrap()
    };
    let ask = json!({"id": "ask", "kind": "llm", "provider": "there", "model": "m", "prompt": "p"});
    let get = json!({"id": "get", "kind": "http", "url": scripted.url("/"), "authorization": {"secret": "KEY"}});
    assert_eq!(failed(&run_as(&rival, ask.clone()).await), "permanent workflow llm_unknown_provider");
    assert_eq!(failed(&run_as(&rival, get).await), "permanent workflow http_denied");
    // One of the same name is the tenant's own.
    let body = json!({"kind": "openai", "base_url": scripted.url("/v1"), "secret": "KEY"});
    let own = server.request_as(&rival, Method::PUT, "/v1/providers/there").json(&body).send().await.unwrap();
    assert_eq!(own.status(), 200);
    assert_eq!(failed(&run_as(&rival, ask.clone()).await), "permanent workflow llm_missing_secret");
    assert!(scripted.requests().is_empty());
    assert_eq!(run_as("dev", ask).await["output"]["text"], "hello");
    assert!(scripted.requests()[0].contains(KEY));
}

#[tokio::test]
async fn the_command_line_sets_secrets_and_providers() {
    use std::io::Write;
    use std::process::Stdio;

    let server = Server::start_prepared(&["--dev"]);
    let mut command = crate::support::stepwell();
    command
        .args(["secret", "set", "KEY", "--host", "api.example.com", "--host", "127.0.0.1"])
        .env("STEPWELL_URL", &server.url);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{KEY}").unwrap();
    assert!(child.wait().unwrap().success());
    let listed = server.cli(&["secret", "list"]);
    assert!(listed.stdout.contains("KEY") && listed.stdout.contains("api.example.com"), "{listed:?}");
    assert!(!listed.stdout.contains("hunter2"));

    let scripted = Scripted::start(vec![openai(&["hello"])]).await;
    let base_url = scripted.url("/v1");
    let set = server.cli(&["provider", "set", "there", "--kind", "openai", "--base-url", &base_url, "--secret", "KEY"]);
    assert_eq!(set.code, 0, "{set:?}");
    assert!(server.cli(&["provider", "list"]).stdout.contains(&base_url));
    let ask = row(json!([{"id": "ask", "kind": "llm", "provider": "there", "model": "m", "prompt": "p"}]));
    server.deploy_graph("asking", &ask).await;
    let run = server.run("asking", Value::Null).await;
    assert_eq!(run["output"]["text"], "hello", "{run}");
    let bearer = format!("authorization: Bearer {KEY}\r\n");
    assert!(scripted.requests()[0].contains(&bearer), "without the line break at its end");

    assert_eq!(server.cli(&["provider", "delete", "there"]).code, 0);
    assert_eq!(server.cli(&["secret", "delete", "KEY"]).code, 0);
    assert_eq!(server.cli(&["secret", "delete", "KEY"]).code, 2);
    assert_eq!(failed(&server.run("asking", Value::Null).await), "permanent workflow llm_unknown_provider");
}
