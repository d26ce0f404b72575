//! The examples do what they say, on the input that comes with them.

use reqwest::Method;
use serde_json::{Value, json};

use crate::outside::server::{Scripted, json_response};
use crate::support::{Server, check_history};

fn input(example: &str) -> Value {
    let path = format!("{}/../examples/{example}/input.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

async fn file(server: &Server, url: &Value) -> String {
    server.request(Method::GET, url.as_str().unwrap()).send().await.unwrap().text().await.unwrap()
}

#[tokio::test]
async fn document_digest_reads_a_text_in_four_parts_and_writes_a_report() {
    let server = Server::start();
    server.deploy("digest", "document_digest").await;
    // Long enough for work in each part; with markup that must not reach the report as such.
    let paragraph = "# The well\n\nSteps lead down to the water. <script>alert(1)</script> Water & stone.\n\n";
    let text = paragraph.repeat(3_000);
    let run = server.run("digest", json!({"title": "A <b>well</b>", "text": text})).await;
    assert_eq!(run["status"], "completed", "{run}");
    assert_eq!(run["output"]["characters"], text.chars().count());
    let id = run["id"].as_str().unwrap();
    let updates = check_history(&server.events(id).await);
    for part in 1..=4 {
        let progress: Vec<&Value> = updates.iter().map(|u| &u["payload"]).filter(|p| p["part"] == part).collect();
        assert!(progress.len() > 1, "part {part}: {progress:?}");
        let last = progress.last().unwrap();
        assert_eq!(last["done"], last["of"]);
    }
    let created = updates.iter().map(|u| &u["payload"]).find(|p| p["type"] == "file_created").unwrap();
    let report = file(&server, &created["url"]).await;
    assert!(report.starts_with("<!doctype html>") || report.starts_with("<!DOCTYPE html>"), "{report:.100}");
    assert!(!report.contains("<script>alert") && !report.contains("<b>well"), "what a text says is shown, not done");

    for input in [input("document-digest"), json!({"title": "", "text": ""})] {
        assert_eq!(server.run("digest", input).await["status"], "completed");
    }
}

#[tokio::test]
async fn omni_task_tells_its_story_in_messages() {
    let server = Server::start();
    server.deploy("omni-task", "omni_task").await;
    let input = input("omni-task");
    let run = server.run("omni-task", input.clone()).await;
    assert_eq!((&run["status"], &run["output"]["exitCode"]), (&json!("completed"), &json!(0)), "{run}");
    let updates = check_history(&server.events(run["id"].as_str().unwrap()).await);
    let on = |topic: &'static str| updates.iter().filter(move |u| u["topic"] == topic).map(|u| u["payload"].clone());
    let statuses: Vec<Value> = on("status").collect();
    for (status, value) in statuses.iter().zip(["IN_PROGRESS", "DONE"]) {
        let expected = json!({"taskId": input["taskId"], "status": value, "sessionId": input["sessionId"]});
        assert_eq!(*status, expected);
    }
    assert_eq!(statuses.len(), 2);
    let messages: Vec<Value> = on("update")
        .map(|update| {
            assert_eq!(update["taskId"], input["taskId"]);
            let message = update["message"].clone();
            assert!(message["jobId"] == input["jobId"] && message["ts"].is_u64(), "{message}");
            message
        })
        .collect();
    let of = |kind: &str| messages.iter().filter(|message| message["type"] == kind).collect::<Vec<_>>();
    assert!(!of("log").is_empty() && of("error").is_empty());
    assert!(of("log").iter().all(|message| message["data"].is_string()));
    let [result] = of("result")[..] else { panic!("one result: {messages:?}") };
    assert!(result["format"] == "text" && result["data"].is_string(), "{result}");
    assert_eq!(of("done").iter().map(|done| &done["exitCode"]).collect::<Vec<_>>(), [&json!(0)]);
    assert_eq!(messages.last().unwrap()["type"], "done");
    let files = of("file_created");
    assert_eq!(files.len(), 2);
    for message in files {
        let content = file(&server, &message["file"]["url"]).await;
        assert_eq!(content.len() as u64, message["file"]["sizeBytes"].as_u64().unwrap());
    }
}

#[tokio::test]
async fn omni_task_reports_an_error_and_is_done() {
    let server = Server::start();
    server.deploy("omni-task", "omni_task").await;
    let mut bad = input("omni-task");
    bad["input"] = json!("");
    let run = server.run("omni-task", bad).await;
    assert_eq!((&run["status"], &run["output"]["exitCode"]), (&json!("completed"), &json!(1)), "{run}");
    let updates = check_history(&server.events(run["id"].as_str().unwrap()).await);
    let kinds: Vec<&str> = updates.iter().filter_map(|u| u["payload"]["message"]["type"].as_str()).collect();
    let place = |kind: &str| kinds.iter().position(|known| *known == kind);
    assert!(place("error").is_some() && place("error") < place("done") && place("result").is_none(), "{kinds:?}");
    let error = updates.iter().map(|u| &u["payload"]["message"]).find(|m| m["type"] == "error").unwrap();
    assert!(error["code"].is_string() && error["message"].is_string());
}

fn graph(example: &str) -> Value {
    let path = format!("{}/../examples/{example}/graph.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[tokio::test]
async fn inferpipe_summarises_side_by_side_and_delivers_when_asked() {
    let server = Server::start();
    server.deploy_graph("inferpipe", &graph("inferpipe")).await;
    let run = server.run("inferpipe", input("inferpipe")).await;
    assert_eq!(run["status"], "completed", "{run}");
    assert_eq!(run["output"]["briefing"]["documents"], 3);
    assert_eq!(run["output"]["delivered"], false);
    let updates = check_history(&server.events(run["id"].as_str().unwrap()).await);
    let of = |topic: &str| updates.iter().filter(|update| update["topic"] == topic).count();
    assert!(of("summaries") >= 3 && of("briefing") >= 1 && of("progress") == 2, "{updates:?}");

    // One document takes the other branch, and a webhook the other end.
    let mailbox = Scripted::start(vec![json_response(&Value::Null)]).await;
    let documents = json!([{ "title": "T", "text": "a  b\n c" }]);
    let one = server.run("inferpipe", json!({ "documents": documents, "webhook": mailbox.url("/briefings") })).await;
    assert_eq!((&one["status"], &one["output"]["delivered"]), (&json!("completed"), &json!(200)), "{one}");
    assert_eq!(mailbox.body(0)["headline"], "T");
    assert!(mailbox.requests()[0].contains(&format!("x-run: {}", one["id"].as_str().unwrap())), "{one}");
    let refused = server.post_run("inferpipe", json!({ "documents": [] })).send().await.unwrap();
    assert_eq!(refused.status(), 422);
}

#[tokio::test]
async fn agent_squad_tells_every_status_and_hands_the_work_on() {
    let server = Server::start();
    server.deploy_graph("agent-squad", &graph("agent-squad")).await;
    let run = server.run("agent-squad", input("agent-squad")).await;
    assert_eq!((&run["status"], &run["output"]["status"]), (&json!("completed"), &json!("completed")), "{run}");
    assert!(run["output"]["tokens"].as_u64().unwrap() > 0);
    let updates = check_history(&server.events(run["id"].as_str().unwrap()).await);
    let statuses: Vec<&Value> = updates.iter().filter(|u| u["topic"] == "status").map(|u| &u["payload"]).collect();
    let told: Vec<&str> = statuses.iter().map(|s| s["agent"].as_str().or(s["status"].as_str()).unwrap()).collect();
    assert_eq!(told, ["pm", "backend", "qa", "completed"]);
    assert!(statuses.iter().all(|status| status["execution"] == "exec-2207"), "{statuses:?}");
    // Two retries each, as squads of this kind are run.
    let versions = server.get("/v1/workflows/agent-squad/versions").await;
    let nodes = versions["data"][0]["graph"]["nodes"].as_array().unwrap();
    let attempts = |id: &str| nodes.iter().find(|node| node["id"] == id).unwrap()["retry"]["max_attempts"].clone();
    assert_eq!(["pm", "backend", "qa"].map(attempts), [3, 3, 3]);
}

#[tokio::test]
async fn chat_answers_as_often_as_it_is_spoken_to_and_forgets_nothing_in_between() {
    let mut server = Server::start();
    server.deploy_graph("chat", &graph("chat")).await;
    let id = server.start_run("chat", input("chat")).await;
    for (turn, text) in ["What is a stepwell?", "How deep is it?", "Thank you"].into_iter().enumerate() {
        server.run_when(&id, |run| run["status"] == "suspended" && run["waits_for"] == "signal").await;
        if turn == 1 {
            // A conversation waits through a crash like through a night.
            server.crash();
        }
        say(&server, &id, json!({ "text": text })).await;
        server
            .event_when(&id, |event| {
                event["kind"] == "step.completed" && event["node"] == "answer" && event["items"] == json!([turn])
            })
            .await;
    }
    // What comes before its turn is kept.
    say(&server, &id, json!({ "text": "One more" })).await;
    say(&server, &id, json!({ "end": true })).await;
    let run = server.ended(&id).await;
    assert_eq!(run["status"], "completed", "{run}");
    let messages = run["output"]["messages"].as_array().unwrap();
    let of = |role: &str| messages.iter().filter(|m| m["role"] == role).map(|m| m["text"].clone()).collect::<Vec<_>>();
    assert_eq!(of("user"), ["What is a stepwell?", "How deep is it?", "Thank you", "One more"]);
    let answers = of("assistant");
    assert_eq!(answers.len(), 4);
    assert!(answers[1].as_str().unwrap().contains("What is a stepwell?"), "it knows what was said: {}", answers[1]);
    let updates = check_history(&server.events(&id).await);
    for (turn, answer) in answers.iter().enumerate() {
        let streamed: String = updates
            .iter()
            .filter(|update| update["topic"] == "tokens" && update["items"] == json!([turn]))
            .map(|update| update["payload"]["delta"].as_str().unwrap())
            .collect();
        assert_eq!(streamed, answer.as_str().unwrap(), "turn {turn}");
    }
}

async fn say(server: &Server, id: &str, message: Value) {
    let path = format!("/v1/runs/{id}/signals/message");
    let response = server.request(Method::POST, &path).json(&message).send().await.unwrap();
    assert_eq!(response.status(), 202);
}
