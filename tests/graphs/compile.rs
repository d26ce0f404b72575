//! What a document becomes: the same component each time, which asks for what its nodes use.

use std::path::Path;

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{interfaces, row};
use crate::support::{Server, problem, stepwell};

fn llm() -> Value {
    json!({"id": "ask", "kind": "llm", "provider": "mock", "model": "mock", "prompt": "p", "topic": "said"})
}

fn http() -> Value {
    json!({"id": "get", "kind": "http", "url": "http://127.0.0.1:1/"})
}

fn document(nodes: Value) -> Value {
    let mut document = row(nodes);
    document["topics"] = json!(["said"]);
    document
}

#[tokio::test]
async fn a_version_imports_what_its_nodes_use_and_nothing_else() {
    let server = Server::start_prepared(&["--dev"]);
    let plain = json!({"id": "make", "kind": "transform", "output": "${ .input }"});
    let published = json!({"id": "say", "kind": "transform", "output": 1, "topic": "said"});
    let scopes = [
        json!({"id": "each", "kind": "map", "items": []}),
        json!({"id": "again", "kind": "loop", "initial": 0, "while": "${ false }", "max": 1}),
        plain.clone(),
        json!({"id": "done", "kind": "join", "of": "again"}),
        json!({"id": "all", "kind": "join", "of": "each"}),
        json!({"id": "way", "kind": "branch", "cases": [{"when": "${ true }", "label": "a"}]}),
        json!({"id": "end", "kind": "transform", "output": null}),
    ];
    let mut branching = document(Value::from(scopes.to_vec()));
    branching["edges"][5]["label"] = json!("a");
    for (document, expected) in [
        (document(json!([plain])), &[][..]),
        (branching, &[]),
        (document(json!([plain, published])), &["publish"]),
        // The host publishes an answer while it comes.
        (document(json!([llm()])), &["llm"]),
        (document(json!([http()])), &["http"]),
        (document(json!([plain, llm(), published, http()])), &["http", "llm", "publish"]),
    ] {
        let version = server.deploy_graph("graph", &document).await;
        let stored = server.get(&format!("/v1/workflows/graph/versions/{version}")).await;
        assert_eq!(interfaces(&stored["imports"]), expected, "{document}");
    }
}

#[tokio::test]
async fn the_same_document_is_the_same_version_and_another_one_is_another() {
    let server = Server::start_prepared(&["--dev"]);
    let document = document(json!([{"id": "a", "kind": "transform", "output": {"x": "${ .input }", "b": 1}}, llm()]));
    let version = server.deploy_graph("one", &document).await;
    assert_eq!(server.deploy_graph("one", &document).await, version);
    assert_eq!(server.deploy_graph("two", &document).await, version, "whatever it is called");
    let mut others = vec![document.clone(), document.clone(), document.clone(), document.clone()];
    others[0]["nodes"][0]["output"]["b"] = json!(2);
    others[1]["nodes"][0]["timeout"] = json!("31s");
    others[2]["nodes"][1]["description"] = json!("another");
    others[3]["edges"] = json!([]);
    let mut versions = vec![version.clone()];
    for other in &others {
        versions.push(server.deploy_graph("one", other).await);
    }
    versions.sort();
    versions.dedup();
    assert_eq!(versions.len(), 5);

    // Another process on another day makes the same bytes, and they say the same about themselves.
    let folder = TempDir::new().unwrap();
    let (source, made) = (folder.path().join("graph.json"), folder.path().join("graph.wasm"));
    std::fs::write(&source, document.to_string()).unwrap();
    let compiled = server.cli(&["compile", text(&source), "-o", text(&made)]);
    assert_eq!((compiled.code, compiled.stdout.trim()), (0, text(&made)), "{compiled:?}");
    let inspected = server.cli(&["inspect", text(&made), "--json"]);
    let inspected: Value = serde_json::from_str(&inspected.stdout).unwrap();
    let stored = server.get(&format!("/v1/workflows/one/versions/{version}")).await;
    for field in ["version", "size_bytes", "imports", "graph"] {
        assert_eq!(inspected[field], stored[field], "{field}");
    }
    assert_eq!(interfaces(&inspected["imports"]), ["llm"]);
    let component = std::fs::read(&made).unwrap();
    let upload = server.request(Method::POST, "/v1/workflows/bytes/versions").body(component).send().await.unwrap();
    assert_eq!(upload.json::<Value>().await.unwrap()["version"], version, "and can be uploaded as a component");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Wrong in more than twenty places.
fn wrong() -> Value {
    json!({
        "stepwell": 1,
        "titel": "x",
        "topics": ["a b", "said", "said"],
        "channel": "",
        "input": {"type": "objekt", "propertys": {}},
        "nodes": [
            {"id": "1st", "kind": "transform"},
            {"id": "zwölf", "kind": "transform", "output": "${"},
            {"id": "two", "kind": "transfrom", "output": 1},
            {"id": "two", "kind": "transform", "output": "${ .nodes.late } ${ nope }"},
            {"id": "late", "kind": "http", "url": "ftp://x", "method": "get", "timeout": "2h"},
            {"id": "way", "kind": "branch", "cases": []},
            {"id": "each", "kind": "map", "items": 5, "concurrency": 0},
            {"id": "again", "kind": "loop", "initial": 0, "while": "yes", "max": 0},
            {"id": "ask", "kind": "llm", "provider": "p", "prompt": "${ .item }", "topic": "sad"},
            {"id": "call", "kind": "component", "workflow": "w", "version": "AB", "node": "n"},
        ],
        "edges": [
            {"source": "two", "target": "lat"},
            {"source": "two", "target": "way", "label": "x"},
        ],
        "output": "nothing",
    })
}

#[tokio::test]
async fn all_that_is_wrong_with_a_document_is_told_at_once_and_nothing_is_stored() {
    let server = Server::start_prepared(&["--dev"]);
    let validate = |document: Value| {
        let request = server.request(Method::POST, "/v1/graphs/validate").json(&document);
        async move { request.send().await.unwrap().json::<Value>().await.unwrap() }
    };
    let told = validate(wrong()).await;
    assert_eq!(told["valid"], false);
    let problems = told["problems"].as_array().unwrap();
    let codes: Vec<&str> = problems.iter().map(|problem| problem["code"].as_str().unwrap()).collect();
    assert!(problems.len() >= 20, "{}: {codes:?}", problems.len());
    for code in [
        "unknown_field",
        "invalid_topic",
        "duplicate_topic",
        "invalid_id",
        "missing_field",
        "unknown_kind",
        "duplicate_id",
        "undefined_filter",
        "unclosed_expression",
        "unknown_topic",
        "unknown_node",
        "invalid_url",
        "no_cases",
        "out_of_range",
    ] {
        assert!(codes.contains(&code), "no {code} in {codes:#?}");
    }
    for problem in problems {
        assert!(!problem["message"].as_str().unwrap().is_empty() && problem["field"].is_string(), "{problem}");
    }
    let refused = server.post_graph("wrong", &wrong()).send().await.unwrap();
    assert_eq!(refused.status(), 422);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!((&refused["code"], &refused["problems"]), (&json!("invalid_graph"), &told["problems"]));

    let good = document(json!([llm(), http()]));
    assert_eq!(validate(good).await, json!({"valid": true, "problems": []}));
    assert_eq!(server.get("/v1/workflows").await["data"], json!([]), "looking at documents stores nothing");
    // Of another format nothing else is known.
    let future = validate(json!({"stepwell": 2, "nodes": [{"id": 5}]})).await;
    assert_eq!(future["problems"][0]["code"], "unsupported_format", "{future}");
    assert_eq!(future["problems"].as_array().unwrap().len(), 1, "{future}");
    let anonymous = server.anonymous(Method::POST, "/v1/graphs/validate").json(&wrong()).send().await.unwrap();
    assert_eq!(problem(anonymous).await, (401, "unauthorized".to_owned()));

    // The command line tells the same, one line each, and ends with 2.
    let folder = TempDir::new().unwrap();
    let (bad, fine, made) =
        (folder.path().join("bad.json"), folder.path().join("good.json"), folder.path().join("graph.wasm"));
    std::fs::write(&bad, wrong().to_string()).unwrap();
    std::fs::write(&fine, document(json!([llm()])).to_string()).unwrap();
    let compiled = stepwell().args(["compile", text(&bad), "-o", text(&made)]).output().unwrap();
    let stderr = String::from_utf8(compiled.stderr).unwrap();
    assert_eq!((compiled.status.code(), compiled.stdout.is_empty(), made.exists()), (Some(2), true, false), "{stderr}");
    for found in problems {
        let message = found["message"].as_str().unwrap();
        assert!(stderr.contains(message), "{message} is not in {stderr}");
    }
    let refused = server.cli(&["deploy", "wrong", text(&bad)]);
    assert_eq!((refused.code, refused.stdout.is_empty()), (2, true), "{refused:?}");
    assert!(refused.stderr.contains("invalid_graph"), "{refused:?}");

    let deployed = server.cli(&["deploy", "asking", text(&fine)]);
    assert_eq!((deployed.code, deployed.stdout.trim().len()), (0, 64), "{deployed:?}");
    let ran = server.cli(&["run", "asking", "--follow"]);
    assert!(ran.code == 0 && ran.stdout.contains("run.completed"), "{ran:?}");
}
