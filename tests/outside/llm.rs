//! `llm` nodes, and a provider that says what a script has it say.

use std::time::Duration;

use serde_json::{Value, json};

use super::server::{Act, Script, Scripted, anthropic, openai, openai_end, openai_piece, response, stream_head};
use super::{KEY, failed, ms_between, put, put_secret};
use crate::graphs::{events, interfaces, of, row};
use crate::support::{Server, check_history, eventually};

/// A graph of one node that asks the provider `there` and publishes the answer on `said`.
fn asking(more: &Value) -> Value {
    let mut document = row(json!([{
        "id": "ask", "kind": "llm", "provider": "there", "model": "model", "prompt": "say ${ .input }", "topic": "said",
        "retry": {"max_attempts": 3, "initial": "1ms", "jitter": 0},
    }]));
    document["topics"] = json!(["said"]);
    document["nodes"][0].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    document
}

async fn provider(server: &Server, kind: &str, base_url: &str) {
    put_secret(server, "THEIR_KEY", &[]).await;
    let prices = json!({"model": {"input_usd_per_mtok": 3, "output_usd_per_mtok": 15}});
    let body = json!({"kind": kind, "base_url": base_url, "secret": "THEIR_KEY", "prices": prices});
    put(server, "/v1/providers/there", &body).await;
}

/// Runs a graph against a provider with these scripts.
async fn ask(server: &Server, scripts: Vec<Script>, more: &Value) -> (Value, Vec<Value>, Scripted) {
    let scripted = Scripted::start(scripts).await;
    provider(server, "openai", &scripted.url("/v1")).await;
    server.deploy_graph("asking", &asking(more)).await;
    let run = server.run("asking", json!("hello")).await;
    let history = events(server, &run).await;
    (run, history, scripted)
}

/// The updates that count, put together.
fn told(history: &[Value]) -> String {
    let updates = check_history(history);
    assert!(updates.iter().all(|update| update["topic"] == "said"), "{updates:?}");
    updates.iter().map(|update| update["payload"]["delta"].as_str().unwrap()).collect()
}

/// Text that is handed on as soon as it is there, without waiting for more.
fn long(word: &str) -> String {
    format!("{word} ").repeat(400)
}

#[tokio::test]
async fn an_answer_arrives_as_updates_and_whole_and_its_key_nowhere_but_there() {
    let mut server = Server::start_prepared(&["--dev"]);
    let pieces = [long("steps"), "lead ".to_owned(), "to the ".to_owned(), long("water 🦀"), "\"}\n".to_owned()];
    let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
    let mut said = Vec::new();
    for (kind, path, header, script) in [
        ("openai", "POST /v1/chat/completions ", format!("authorization: Bearer {KEY}\r\n"), openai(&pieces)),
        ("anthropic", "POST /v1/messages ", format!("x-api-key: {KEY}\r\n"), anthropic(&pieces)),
    ] {
        let scripted = Scripted::start(vec![script]).await;
        let base_url = if kind == "openai" { scripted.url("/v1") } else { scripted.url("") };
        provider(&server, kind, &base_url).await;
        let version = server.deploy_graph("asking", &asking(&json!({"system": "be brief", "max_tokens": 77}))).await;
        let run = server.run("asking", json!("hello")).await;
        let usage = json!({"input_tokens": 1000, "output_tokens": 200, "cost_usd": 0.006});
        let text = pieces.concat();
        let expected =
            json!({"text": text, "model": "model-7", "provider": "there", "stop_reason": "stop", "usage": usage});
        assert_eq!(run["output"], expected, "{kind}: {run}");
        let history = events(&server, &run).await;
        assert_eq!(told(&history), text, "{kind}");
        assert!(of(&history, "step.update", "ask").len() > 1, "{kind}: it came piece by piece");

        let requests = scripted.requests();
        assert_eq!(requests.len(), 1);
        assert!(requests[0].starts_with(path) && requests[0].contains(&header), "{}", requests[0]);
        assert_eq!(requests[0].matches(KEY).count(), 1, "{}", requests[0]);
        let body = scripted.body(0);
        assert_eq!((&body["model"], &body["stream"]), (&json!("model"), &json!(true)), "{body}");
        assert!(body.to_string().contains("say hello") && body.to_string().contains("be brief"), "{body}");

        let id = run["id"].as_str().unwrap();
        for path in [
            format!("/v1/runs/{id}"),
            format!("/v1/runs/{id}/events?limit=1000"),
            format!("/v1/runs/{id}/steps"),
            format!("/v1/workflows/asking/versions/{version}"),
            "/v1/providers".to_owned(),
            "/v1/secrets".to_owned(),
        ] {
            said.push(server.get(&path).await.to_string());
        }
        let stored = server.get(&format!("/v1/workflows/asking/versions/{version}")).await;
        assert_eq!(interfaces(&stored["imports"]), ["llm"]);
    }
    // A provider that repeats a key which it does not accept, and one that repeats it in another refusal.
    for status in ["401 Unauthorized", "400 Bad Request"] {
        let complaint = json!({"error": {"message": format!("what is {KEY}?")}}).to_string();
        let (run, history, _) = ask(&server, vec![response(status, "", complaint)], &json!({})).await;
        assert_eq!(failed(&run), "permanent workflow llm_refused");
        said.extend([run.to_string(), Value::from(history).to_string()]);
    }
    assert!(said.iter().all(|text| !text.contains("hunter2")), "{said:#?}");
    assert_eq!(server.stop(), 0);
    assert!(!server.log().contains("hunter2"), "{}", server.log());
    let mut files = 0;
    let mut folders = vec![server.data_dir().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            files += 1;
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes.windows(7).any(|window| window == b"hunter2" || window == b"68756e7");
            assert!(!found, "the key is in {}", path.display());
        }
    }
    assert!(files >= 3, "the journal, the keys and code");
}

#[tokio::test]
async fn an_answer_that_does_not_follow_the_schema_is_sent_back_once() {
    let server = Server::start_prepared(&["--dev"]);
    let schema = json!({"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}});
    let more = json!({"schema": schema, "retry": {"max_attempts": 1}});
    let scripts = vec![openai(&["{\"n\": \"one\"}"]), openai(&["```json\n{\"n\": 1.0}\n```"])];
    let (run, history, scripted) = ask(&server, scripts, &more).await;
    assert_eq!(run["output"]["json"], json!({"n": 1.0}), "{run}");
    let usage = json!({"input_tokens": 2000, "output_tokens": 400, "cost_usd": 0.012});
    assert_eq!(run["output"]["usage"], usage, "both count");
    assert_eq!(told(&history), "{\"n\": \"one\"}```json\n{\"n\": 1.0}\n```");
    let messages = scripted.body(1)["messages"].clone();
    let roles: Vec<&str> = messages.as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user"], "{messages}");
    assert!(messages[3]["content"].as_str().unwrap().contains("/n must be of type integer"), "{messages}");

    let (run, history, scripted) = ask(&server, vec![openai(&["nothing"])], &more).await;
    assert_eq!(failed(&run), "retryable workflow llm_invalid_answer");
    assert_eq!(run["failure"]["details"]["text"], "nothing");
    assert_eq!((told(&history), scripted.requests().len()), (String::new(), 2), "a failed attempt has said nothing");
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_may_not_is_not() {
    let server = Server::start_prepared(&["--dev"]);
    let busy = |headers: &str| response("429 Too Many Requests", headers, "{\"error\": {\"message\": \"slow down\"}}");
    let (run, history, _) = ask(&server, vec![busy("retry-after: 1\r\n"), openai(&["ok"])], &json!({})).await;
    assert_eq!(run["output"]["text"], "ok", "{run}");
    let failure = of(&history, "step.failed", "ask")[0];
    assert_eq!((&failure["failure"]["code"], &failure["will_retry"]), (&json!("llm_overloaded"), &json!(true)));
    assert!(ms_between(&failure["at"], &failure["next_attempt_at"]) >= 1_000, "{failure}");
    let second = of(&history, "step.started", "ask")[1];
    assert!(ms_between(&failure["next_attempt_at"], &second["at"]) >= 0, "{second}");

    // Cut off in the middle of an answer, and not an answer at all.
    let cut = || vec![stream_head(), openai_piece(&long("half"))];
    let odd = response("200 OK", "content-type: text/html\r\n", "<html>");
    let (run, history, scripted) = ask(&server, vec![cut(), odd, openai(&["whole"])], &json!({})).await;
    assert_eq!((&run["output"]["text"], told(&history)), (&json!("whole"), "whole".to_owned()), "{run}");
    let failures = of(&history, "step.failed", "ask");
    assert!(failures.iter().all(|event| event["failure"]["code"] == "llm_connection"), "{failures:?}");
    assert_eq!((failures.len(), scripted.requests().len()), (2, 3));
    let rolled_back = of(&history, "step.rolled_back", "ask");
    assert_eq!(rolled_back.len(), 1, "the half that was told does not count");

    for (scripts, requests, expected) in [
        (vec![response("500 Oops", "", "")], 3, "retryable workflow llm_overloaded"),
        (vec![response("529 Overloaded", "", "")], 3, "retryable workflow llm_overloaded"),
        (vec![response("401 Unauthorized", "", "")], 1, "permanent workflow llm_refused"),
        (vec![response("404 Not Found", "", "{\"error\": \"no model\"}")], 1, "permanent workflow llm_refused"),
        (vec![response("302 Found", "location: /elsewhere\r\n", "")], 1, "permanent workflow llm_refused"),
    ] {
        let (run, _, scripted) = ask(&server, scripts, &json!({})).await;
        assert_eq!((failed(&run).as_str(), scripted.requests().len()), (expected, requests), "{run}");
    }

    // Silence in the middle of an answer, and from the start.
    for script in [vec![stream_head(), openai_piece(&long("half")), Act::Stall], vec![Act::Stall]] {
        let more = json!({"timeout": "300ms"});
        let (run, history, _) = ask(&server, vec![script, openai(&["whole"])], &more).await;
        assert_eq!((&run["output"]["text"], told(&history)), (&json!("whole"), "whole".to_owned()), "{run}");
        let code = of(&history, "step.failed", "ask")[0]["failure"]["code"].as_str().unwrap();
        assert!(matches!(code, "timeout" | "llm_timeout"), "{code}");
    }

    // Nothing to ask.
    for (more, expected) in [
        (json!({"provider": "nobody"}), "permanent workflow llm_unknown_provider"),
        (json!({"provider": "openai"}), "permanent workflow llm_missing_secret"),
    ] {
        let (run, _, scripted) = ask(&server, vec![openai(&["?"])], &more).await;
        assert_eq!((failed(&run).as_str(), scripted.requests().len()), (expected, 0), "{run}");
    }
    let scripted = Scripted::start(vec![openai(&["?"])]).await;
    provider(&server, "openai", &scripted.url("/v1")).await;
    put_secret(&server, "THEIR_KEY", &["api.example.com"]).await;
    server.deploy_graph("asking", &asking(&json!({}))).await;
    assert_eq!(failed(&server.run("asking", json!(1)).await), "permanent workflow llm_denied", "not one of its hosts");
    assert!(scripted.requests().is_empty());
    put(&server, "/v1/providers/there", &json!({"kind": "openai", "base_url": "http://127.0.0.1:1/v1"})).await;
    assert_eq!(failed(&server.run("asking", json!(1)).await), "retryable workflow llm_connection");
}

#[tokio::test]
async fn an_answer_that_a_crash_has_cut_off_is_asked_for_again() {
    let mut server = Server::start_prepared(&["--dev"]);
    let begun = vec![stream_head(), openai_piece(&long("begun")), Act::Stall];
    // So that the second answer is seen to come in pieces as well.
    let pause = Act::Pause(Duration::from_millis(50));
    let again = vec![stream_head(), openai_piece("anew"), pause, openai_piece(" and whole"), openai_end()];
    let scripted = Scripted::start(vec![begun, again]).await;
    provider(&server, "openai", &scripted.url("/v1")).await;
    server.deploy_graph("asking", &asking(&json!({}))).await;
    let id = server.start_run("asking", json!("hello")).await;
    server.event_when(&id, |event| event["kind"] == "step.update").await;
    server.crash();
    let run = server.ended(&id).await;
    assert_eq!(run["output"]["text"], "anew and whole", "{run}");
    let history = events(&server, &run).await;
    assert_eq!(told(&history), "anew and whole");
    let interrupted = of(&history, "step.failed", "ask")[0];
    assert_eq!(interrupted["failure"]["code"], "interrupted", "{interrupted}");
    assert_eq!(scripted.requests().len(), 2);

    // Where nothing was published, what has been answered is not asked again: only the second question is.
    let schema = json!({"type": "object", "required": ["n"]});
    let mut document = asking(&json!({"schema": schema}));
    document["nodes"][0].as_object_mut().unwrap().remove("topic");
    let scripts = vec![openai(&["wrong"]), vec![stream_head(), Act::Stall], openai(&["{\"n\": 1}"])];
    let scripted = Scripted::start(scripts).await;
    provider(&server, "openai", &scripted.url("/v1")).await;
    server.deploy_graph("asking", &document).await;
    let id = server.start_run("asking", json!("hello")).await;
    eventually("the second question", || async { (scripted.requests().len() == 2).then_some(()) }).await;
    server.crash();
    let run = server.ended(&id).await;
    assert_eq!(run["output"]["json"], json!({"n": 1}), "{run}");
    assert_eq!(scripted.requests().len(), 3);
    assert_eq!(scripted.body(1), scripted.body(2));
}
