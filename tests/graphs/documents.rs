//! `docs/graphs.md` says what is so: every document in it is deployed and run.
//!
//! A block ```` ```json graph ```` is a document. The blocks after it are about it: `input` starts a run, and `output`,
//! `updates`, `failure` and `refused` say what becomes of that run; `problems` says what is wrong with the document.
//! `response` is what the server of its `http` node answers, and `request` the first line of what that was asked.

use serde_json::{Value, json};

use super::{check_history_of_items, events};
use crate::outside::server::{Scripted, json_response};
use crate::support::Server;

const PAGE: &str = include_str!("../../docs/graphs.md");
/// Where the page says that the server of orders is.
const ORDERS: &str = "127.0.0.1:9000";
/// The version of `invoice`, on the page.
const INVOICE: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The blocks of the page: what they are called, and the JSON in them.
fn blocks() -> Vec<(&'static str, Value)> {
    let mut blocks = Vec::new();
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        let Some(title) = line.strip_prefix("```") else { continue };
        let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if let Some(name) = title.strip_prefix("json") {
            let json = serde_json::from_str(&text.join("\n"));
            blocks.push((name.trim(), json.unwrap_or_else(|error| panic!("{error} in\n{}", text.join("\n")))));
        }
    }
    blocks
}

fn replaced(document: &Value, what: &str, with: &str) -> Value {
    serde_json::from_str(&document.to_string().replace(what, with)).unwrap()
}

#[tokio::test]
async fn every_document_on_the_page_does_what_is_written_below_it() {
    let server = Server::start_prepared(&["--dev"]);
    let mut orders = None;
    let mut invoice = INVOICE.to_owned();
    let mut document = Value::Null;
    let mut started: Option<reqwest::Response> = None;
    let mut run = Value::Null;
    let mut kinds = std::collections::BTreeSet::new();
    let mut seen = 0;

    for (name, block) in blocks() {
        seen += 1;
        match name {
            "graph" => {
                document = replaced(&block, INVOICE, &invoice);
                let nodes = block["nodes"].as_array().unwrap().iter();
                kinds.extend(nodes.map(|node| node["kind"].as_str().unwrap().to_owned()));
            }
            "response" => {
                let scripted = Scripted::start(vec![json_response(&block)]).await;
                document = replaced(&document, ORDERS, &scripted.address().to_string());
                orders = Some(scripted);
            }
            "request" => {
                let requests = orders.as_ref().unwrap().requests();
                assert_eq!(requests[0].lines().next(), block.as_str());
            }
            "problems" => {
                let response = server.request(reqwest::Method::POST, "/v1/graphs/validate").json(&document).send();
                let told: Value = response.await.unwrap().json().await.unwrap();
                assert_eq!(told, json!({"valid": false, "problems": block}), "{document}");
            }
            "input" => {
                let title = document["name"].as_str().unwrap_or("page").to_owned();
                let version = server.deploy_graph(&title, &document).await;
                if title == "invoice" {
                    invoice = version;
                }
                let response = server.post_run(&title, block).send().await.unwrap();
                if response.status() == reqwest::StatusCode::ACCEPTED {
                    let accepted: Value = response.json().await.unwrap();
                    run = server.ended(accepted["id"].as_str().unwrap()).await;
                } else {
                    started = Some(response);
                }
            }
            "output" => {
                assert_eq!((&run["status"], &run["output"]), (&json!("completed"), &block), "{run}");
                check_history_of_items(&events(&server, &run).await);
            }
            "updates" => {
                let updates = check_history_of_items(&events(&server, &run).await);
                let update = |update: &Value| json!({"topic": update["topic"], "payload": update["payload"]});
                assert_eq!(Value::from_iter(updates.iter().map(update)), block);
            }
            "failure" => {
                let failure = &run["failure"];
                let told = json!({"node": run["failed_node"], "kind": failure["kind"], "code": failure["code"]});
                assert_eq!(told, block, "{run}");
            }
            "refused" => {
                let refused = started.take().unwrap();
                assert_eq!(refused.status(), 422);
                let refused: Value = refused.json().await.unwrap();
                assert_eq!((&refused["code"], &refused["problems"]), (&json!("invalid_input"), &block));
            }
            // A part of a document, such as the defaults of `retry`.
            "" => seen -= 1,
            other => panic!("what is `{other}`?"),
        }
    }
    assert!(seen > 30, "the page has lost its examples: {seen}");
    let all = ["branch", "component", "http", "join", "llm", "loop", "map", "signal", "sleep", "transform", "workflow"];
    assert_eq!(kinds.iter().map(String::as_str).collect::<Vec<_>>(), all);
}
