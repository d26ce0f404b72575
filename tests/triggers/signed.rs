//! Signed requests, and what somebody without the secret learns from their refusals: nothing.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{SECRET, inputs, mac, now_seconds, put, set_up, signed, with_secret};
use crate::support::{Server, problem};

/// A refusal as it is seen from outside: status, headers that could say something, and body.
async fn seen(server: &Server, path: &str, body: &str, headers: &[(&str, String)]) -> (StatusCode, Vec<String>, Value) {
    let request = server.anonymous(Method::POST, path).body(body.to_owned());
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
    let answer = request.send().await.unwrap();
    let mut names: Vec<String> = answer.headers().keys().map(ToString::to_string).collect();
    names.sort();
    (answer.status(), names, answer.json().await.unwrap())
}

#[tokio::test]
async fn whoever_guesses_names_is_answered_the_same_whether_there_is_something_or_not() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    with_secret(&server).await;
    set_up(&server, "/v1/triggers/there", json!({ "kind": "webhook", "workflow": "w", "secret": "HOOK" })).await;
    let off = json!({ "kind": "webhook", "workflow": "w", "secret": "HOOK", "enabled": false });
    set_up(&server, "/v1/triggers/off", off).await;
    let github = json!({ "kind": "webhook", "workflow": "w", "secret": "HOOK", "scheme": "github" });
    set_up(&server, "/v1/triggers/github", github).await;
    set_up(&server, "/v1/triggers/event", json!({ "kind": "event", "event": "e", "workflow": "w" })).await;
    let now = now_seconds();
    let large = "x".repeat((1 << 20) + 1);
    let stepwell = |value: &str| vec![("stepwell-signature", value.to_owned())];
    let guesses = [
        ("{}", vec![]),
        ("{}", stepwell(&format!("t={now},v1={}", "0".repeat(64)))),
        ("{}", stepwell(&format!("t={},v1={}", now - 1_000, "0".repeat(64)))),
        ("{}", stepwell("nonsense")),
        ("not json", stepwell(&format!("t=,v1={}", "f".repeat(9_000)))),
        ("{}", vec![("x-hub-signature-256", format!("sha256={}", "0".repeat(64)))]),
        ("{}", vec![("stripe-signature", "t=1,v1=zz".to_owned()), ("stepwell-signature", "=,=,=".to_owned())]),
        (large.as_str(), stepwell("t=1,v1=00")),
    ];
    for (body, headers) in &guesses {
        let there = seen(&server, "/v1/hooks/dev/there", body, headers).await;
        let code = if body.len() > 1 << 20 { "too_large" } else { "invalid_signature" };
        assert_eq!(there.2["code"], code, "{headers:?}");
        for path in
            ["dev/none", "dev/github", "dev/event", "nobody/there", "Not-A-Tenant!/there", "dev/%00", "dev/a%2Fb"]
        {
            assert_eq!(seen(&server, &format!("/v1/hooks/{path}"), body, headers).await, there, "{path} {headers:?}");
        }
    }
    // Not even the right signature finds one that is switched off, or of another tenant.
    for path in ["dev/off", "dev/event", "nobody/there"] {
        let refused = seen(&server, &format!("/v1/hooks/{path}"), "{}", &stepwell(&signed(now, "{}"))).await;
        assert_eq!((refused.0.as_u16(), &refused.2["code"]), (401, &json!("invalid_signature")), "{path}");
    }
    assert_eq!(inputs(&server, "w").await, Vec::<Value>::new());
    assert!(!server.log().contains(SECRET));
}

#[tokio::test]
async fn a_request_that_comes_again_is_refused_whichever_signature_it_carries() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    with_secret(&server).await;
    let old = put(&server, "/v1/secrets/OLD", json!({ "value": "the one before" })).await;
    assert_eq!(old.status(), StatusCode::OK);
    let mut trigger = json!({ "kind": "webhook", "workflow": "w", "secret": "HOOK", "previous_secret": "NONE" });
    let refused = put(&server, "/v1/triggers/in", trigger.clone()).await;
    assert_eq!(problem(refused).await, (422, "unknown_secret".to_owned()));
    trigger["previous_secret"] = json!("OLD");
    assert_eq!(set_up(&server, "/v1/triggers/in", trigger.clone()).await["previous_secret"], "OLD");

    let (at, body) = (now_seconds(), r#"{"n":1}"#);
    let by_new = signed(at, body);
    let old_mac = {
        use hmac::{Hmac, Mac};
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(b"the one before").unwrap();
        [at.to_string().as_bytes(), b".", body.as_bytes()].iter().for_each(|part| mac.update(part));
        hex::encode(mac.finalize().into_bytes())
    };
    let by_old = format!("t={at},v1={old_mac}");
    let by_both = format!("{by_new},v1={old_mac}");
    let post = |signature: &str| {
        let request = server.anonymous(Method::POST, "/v1/hooks/dev/in").header("stepwell-signature", signature);
        let request = request.body(body);
        async move { request.send().await.unwrap() }
    };
    let first = post(&by_both).await;
    assert_eq!(first.status(), StatusCode::ACCEPTED);
    // As it was, and with either signature left out: it is the same request.
    for again in [&by_both, &by_new, &by_old] {
        assert_eq!(problem(post(again).await).await, (409, "replayed_webhook".to_owned()));
    }
    assert_eq!(inputs(&server, "w").await, [json!({"n": 1})]);

    // The sender has changed over: the old secret opens nothing any more.
    trigger.as_object_mut().unwrap().remove("previous_secret");
    set_up(&server, "/v1/triggers/in", trigger).await;
    assert_eq!(problem(post(&by_old).await).await, (401, "invalid_signature".to_owned()));
    assert_eq!(problem(post(&by_new).await).await, (409, "replayed_webhook".to_owned()));
    assert_eq!(inputs(&server, "w").await.len(), 1);
}

#[tokio::test]
async fn expressions_see_no_signature_and_no_credential() {
    let server = Server::start();
    server.deploy("w", "stepwell_noop").await;
    with_secret(&server).await;
    let trigger =
        json!({ "kind": "webhook", "workflow": "w", "secret": "HOOK", "scheme": "github", "input": ".headers" });
    set_up(&server, "/v1/triggers/in", trigger).await;
    let proof = [
        ("x-hub-signature-256", format!("sha256={}", mac(&[b"{}"]))),
        ("x-hub-signature", "sha1=5e6e".to_owned()),
        ("stepwell-signature", "t=1,v1=5e6e".to_owned()),
        ("stripe-signature", "t=1,v1=5e6e".to_owned()),
        ("authorization", "Bearer 5e6e".to_owned()),
        ("cookie", "a=5e6e".to_owned()),
        ("x-api-key", "5e6e".to_owned()),
        ("x-gitlab-token", "5e6e".to_owned()),
    ];
    let request = server.anonymous(Method::POST, "/v1/hooks/dev/in").header("x-github-event", "push").body("{}");
    let request = proof.iter().fold(request, |request, (name, value)| request.header(*name, value));
    assert_eq!(request.send().await.unwrap().status(), StatusCode::ACCEPTED);
    // JSON that no step could read is not taken for text.
    let signature = format!("sha256={}", mac(&[b"1e400"]));
    let request = server.anonymous(Method::POST, "/v1/hooks/dev/in").header("x-hub-signature-256", signature);
    assert_eq!(request.body("1e400").send().await.unwrap().status(), StatusCode::UNPROCESSABLE_ENTITY);
    let seen = &inputs(&server, "w").await[0];
    assert_eq!(seen["x-github-event"], "push");
    assert!(!seen.to_string().contains("5e6e") && seen.get("x-hub-signature-256").is_none(), "{seen}");
}
