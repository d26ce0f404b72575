//! Tenants do not see each other, and nobody is let in without a key.

use std::process::Command;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Server, eventually, problem};

pub(crate) struct Tenant {
    pub(crate) key: String,
}

fn admin(server: &Server, arguments: &[&str]) -> (i32, String) {
    let data_dir = server.data_dir().display().to_string();
    let ran = server.cli(&[&["admin"], arguments, &["--data-dir", &data_dir]].concat());
    (ran.code, ran.stdout.trim().to_owned())
}

/// Another tenant, with a key.
pub(crate) fn create(server: &Server, id: &str) -> Tenant {
    assert_eq!(admin(server, &["tenant", "create", id]), (0, id.to_owned()));
    let (code, key) = admin(server, &["key", "create", id]);
    assert_eq!(code, 0);
    Tenant { key }
}

#[tokio::test]
async fn without_a_valid_key_nothing_is_answered() {
    let server = Server::start_with(&[]);
    let acme = create(&server, "acme");
    let (id, secret) = acme.key.strip_prefix("sw_").unwrap().split_once('_').unwrap();
    let wrong = [
        String::new(),
        "dev".to_owned(), // only `--dev` accepts it
        acme.key[..acme.key.len() - 1].to_owned(),
        format!("{}0", acme.key),
        format!("sw_{id}_{}", "0".repeat(secret.len())),
        format!("sw_dev_{secret}"),
        format!("sw_{id}"),
        acme.key.to_uppercase(),
    ];
    for path in ["/v1/runs", "/v1/workflows", "/v1/admin/tenants", "/v1/artifacts?run_id=x"] {
        let response = server.anonymous(Method::GET, path).send().await.unwrap();
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        assert_eq!(problem(response).await, (401, "unauthorized".to_owned()), "{path}");
        for key in &wrong {
            let response = server.request_as(key, Method::GET, path).send().await.unwrap();
            assert_eq!(problem(response).await, (401, "unauthorized".to_owned()), "{path} with {key:?}");
        }
        let basic = server.anonymous(Method::GET, path).basic_auth("acme", Some(&acme.key)).send().await.unwrap();
        assert_eq!(problem(basic).await, (401, "unauthorized".to_owned()), "{path}");
    }
    let right = server.request_as(&acme.key, Method::GET, "/v1/runs").send().await.unwrap();
    assert_eq!(right.status(), StatusCode::OK);
}

#[tokio::test]
async fn what_another_tenant_owns_does_not_exist() {
    let server = Server::start_with(&[]);
    let (acme, rival) = (create(&server, "acme"), create(&server, "acme-2"));
    let version = server.deploy_as(&acme.key, "probe", "stepwell_probe").await;
    let start = |tenant: &Tenant| {
        let request = server.request_as(&tenant.key, Method::POST, "/v1/workflows/probe/runs");
        request.header("prefer", "wait=30").json(&json!({"input": {"files": 1}})).send()
    };
    let run: Value = start(&acme).await.unwrap().json().await.unwrap();
    assert_eq!(run["status"], "completed", "{run}");
    let id = run["id"].as_str().unwrap();
    let list = server.request_as(&acme.key, Method::GET, &format!("/v1/artifacts?run_id={id}")).send().await.unwrap();
    let artifact = list.json::<Value>().await.unwrap()["data"][0]["id"].as_str().unwrap().to_owned();

    let paths = [
        (Method::GET, format!("/v1/runs/{id}"), "unknown_run"),
        (Method::GET, format!("/v1/runs/{id}/steps"), "unknown_run"),
        (Method::GET, format!("/v1/runs/{id}/events"), "unknown_run"),
        (Method::POST, format!("/v1/runs/{id}/cancel"), "unknown_run"),
        (Method::GET, format!("/v1/artifacts?run_id={id}"), "unknown_run"),
        (Method::GET, format!("/v1/artifacts/{artifact}"), "unknown_artifact"),
        (Method::GET, "/v1/workflows/probe".to_owned(), "unknown_workflow"),
        (Method::GET, "/v1/workflows/probe/versions".to_owned(), "unknown_workflow"),
        (Method::GET, format!("/v1/workflows/probe/versions/{version}"), "unknown_version"),
        (Method::POST, "/v1/workflows/probe/runs".to_owned(), "unknown_workflow"),
    ];
    for (method, path, code) in paths {
        let owner = server.request_as(&acme.key, method.clone(), &path).send().await.unwrap().status();
        assert!(owner.is_success() || owner == StatusCode::CONFLICT, "{path}: the owner gets {owner}");
        for accept in ["application/json", "text/event-stream"] {
            let request = server.request_as(&rival.key, method.clone(), &path).header("accept", accept);
            assert_eq!(problem(request.send().await.unwrap()).await, (404, code.to_owned()), "{path}");
        }
    }
    for path in ["/v1/runs", "/v1/workflows"] {
        let list = server.request_as(&rival.key, Method::GET, path).send().await.unwrap();
        assert_eq!(list.json::<Value>().await.unwrap()["data"], json!([]), "{path}");
    }

    // The same names and the same idempotency key are other things for another tenant.
    server.deploy_as(&rival.key, "probe", "stepwell_probe").await;
    let with_key = |tenant: &Tenant| {
        let request = server.request_as(&tenant.key, Method::POST, "/v1/workflows/probe/runs");
        request.header("idempotency-key", "same").json(&json!({})).send()
    };
    let (one, two) = (with_key(&acme).await.unwrap(), with_key(&rival).await.unwrap());
    assert!(!two.headers().contains_key("idempotent-replayed"));
    assert_ne!(one.json::<Value>().await.unwrap()["id"], two.json::<Value>().await.unwrap()["id"]);
}

#[tokio::test]
async fn tenants_are_no_operators_and_the_operator_is_no_tenant() {
    let server = Server::start_with(&[]);
    let acme = create(&server, "acme");
    for (method, path) in [
        (Method::GET, "/v1/admin/tenants"),
        (Method::POST, "/v1/admin/tenants"),
        (Method::GET, "/v1/admin/keys"),
        (Method::POST, "/v1/admin/keys"),
        (Method::POST, "/v1/admin/keys/abc/revoke"),
    ] {
        let response = server.request_as(&acme.key, method, path).json(&json!({"id": "mine"})).send().await.unwrap();
        assert_eq!(problem(response).await, (403, "not_an_operator".to_owned()), "{path}");
    }
    let operator = std::fs::read_to_string(server.data_dir().join("operator.key")).unwrap();
    let response = server.request_as(operator.trim(), Method::GET, "/v1/runs").send().await.unwrap();
    assert_eq!(problem(response).await, (403, "not_a_tenant".to_owned()));
}

#[tokio::test]
async fn keys_work_until_revoked_and_are_kept_nowhere() {
    let mut server = Server::start_with(&[]);
    let acme = create(&server, "acme");
    let (_, second) = admin(&server, &["key", "create", "acme"]);
    assert_eq!(admin(&server, &["tenant", "create", "acme"]).0, 2, "there is one already");
    assert_eq!(admin(&server, &["tenant", "create", "Acme/x"]).0, 2, "no such name");
    assert_eq!(admin(&server, &["key", "create", "nobody"]).0, 2, "no such tenant");
    assert!(admin(&server, &["tenant", "list"]).1.starts_with("acme "));

    let status = |server: &Server, key: &str| server.request_as(key, Method::GET, "/v1/runs").send();
    let id = acme.key.split('_').nth(1).unwrap();
    assert_eq!(admin(&server, &["key", "revoke", id]).0, 0);
    assert_eq!(admin(&server, &["key", "revoke", "feedfeedfeed"]).0, 2);
    for _ in 0..2 {
        assert_eq!(status(&server, &acme.key).await.unwrap().status(), StatusCode::UNAUTHORIZED);
        assert_eq!(status(&server, &second).await.unwrap().status(), StatusCode::OK);
        server.crash(); // both hold after a start
    }
    let secret = second.rsplit('_').next().unwrap();
    let found = Command::new("grep").args(["-r", "-l", secret]).arg(server.data_dir()).output().unwrap();
    assert_eq!(String::from_utf8(found.stdout).unwrap(), "", "the key is on disk");
    assert!(!server.log().contains(secret), "the key is in the log");
    assert!(admin(&server, &["key", "list"]).1.contains("revoked"));
}

/// Timers and queues of one tenant come due by the hundred while the host is down, those of another one by one and later.
#[tokio::test]
async fn a_backlog_after_a_restart_holds_up_its_own_tenant_only() {
    const EACH: usize = 150;
    let mut server = Server::start_with(&["--active-runs", "4"]);
    let (many, one) = (create(&server, "many"), create(&server, "one"));
    for tenant in [&many, &one] {
        for name in ["sleeps", "queues"] {
            server.deploy_as(&tenant.key, name, "stepwell_waits").await;
        }
        let control = json!({ "key": ".[0].publish", "debounce": { "seconds": 7 } });
        let put = server.request_as(&tenant.key, Method::PUT, "/v1/workflows/queues/flow-control").json(&control);
        assert_eq!(put.send().await.unwrap().status(), StatusCode::OK);
    }
    let server_now = &server;
    let start = async |tenant: &Tenant, workflow: &str, acts: Value| {
        let path = format!("/v1/workflows/{workflow}/runs");
        let started = server_now.request_as(&tenant.key, Method::POST, &path).json(&json!({ "input": acts }));
        assert_eq!(started.send().await.unwrap().status(), StatusCode::ACCEPTED);
    };
    for (tenant, count) in [(&many, EACH), (&one, 1)] {
        for n in 0..count {
            start(tenant, "sleeps", json!([{ "sleep": 7_000 }, { "busy_ms": 15 }])).await;
            start(tenant, "queues", json!([{ "publish": n.to_string() }, { "busy_ms": 15 }])).await;
        }
    }
    let runs = async |server: &Server, tenant: &Tenant, status: &str| {
        let path = format!("/v1/runs?limit=500&status={status}");
        let page: Value =
            server.request_as(&tenant.key, Method::GET, &path).send().await.unwrap().json().await.unwrap();
        page["data"].as_array().unwrap().clone()
    };
    eventually("all to wait", || async {
        let waiting = runs(&server, &many, "queued").await.len() + runs(&server, &many, "suspended").await.len();
        (waiting == 2 * EACH).then_some(())
    })
    .await;
    let due = stepwell::clock::now().plus_millis(7_500);
    server.kill();
    eventually("all to be due", || async { (stepwell::clock::now() > due).then_some(()) }).await;
    server.start_again();
    let mut ended = Vec::new();
    for (tenant, count) in [(&one, 1), (&many, EACH)] {
        let runs = eventually("all to end", || async {
            Some(runs(&server, tenant, "completed").await).filter(|runs| runs.len() == 2 * count)
        });
        let times = runs.await.into_iter().map(|run| run["ended_at"].as_str().unwrap().to_owned());
        let mut times: Vec<_> = times.collect();
        times.sort_unstable();
        ended.push(times);
    }
    let before = ended[1].iter().filter(|time| **time < ended[0][1]).count();
    assert!(before < EACH / 3, "{before} of {} came first", 2 * EACH);
}

#[test]
fn the_development_key_stays_on_loopback() {
    let data = tempfile::tempdir().unwrap();
    let output = crate::support::stepwell()
        .args(["serve", "--dev", "--listen", "0.0.0.0:0", "--data-dir"])
        .arg(data.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("loopback"));
}
