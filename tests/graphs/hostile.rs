//! Documents that nobody would draw, and compiling processes that die.

use std::fs;
use std::process::Command;
use std::time::Instant;

use reqwest::{Method, Response};
use serde_json::{Value, json};

use super::{output, row};
use crate::support::{PATIENCE, Server, eventually, problem};

async fn upload(server: &Server, text: Vec<u8>) -> reqwest::Result<Response> {
    let request = server.request(Method::POST, "/v1/workflows/bad/versions").header("content-type", "application/json");
    request.body(text).send().await
}

/// The codes of what is wrong with a text.
async fn told(server: &Server, text: impl Into<Vec<u8>>) -> Vec<String> {
    let response = upload(server, text.into()).await.unwrap();
    assert_eq!(response.status(), 422);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["code"], "invalid_graph", "{body}");
    body["problems"].as_array().unwrap().iter().map(|p| p["code"].as_str().unwrap().to_owned()).collect()
}

fn transform(id: &str, output: Value) -> Value {
    json!({"id": id, "kind": "transform", "output": output})
}

#[tokio::test]
async fn texts_that_are_no_documents_are_refused_with_what_is_wrong() {
    let server = Server::start_prepared(&["--dev"]);
    let with = |nodes: Value| json!({"stepwell": 1, "nodes": nodes}).to_string();
    for (text, expected) in [
        (String::new(), &["invalid_json"][..]),
        ("nope".to_owned(), &["invalid_json"]),
        ("[1]".to_owned(), &["wrong_type"]),
        ("\"text\"".to_owned(), &["wrong_type"]),
        ("[".repeat(10_000), &["too_deep"]),
        (
            with(transform("a", Value::Null)).replace("null", &format!("{}{}", "[".repeat(10_000), "]".repeat(10_000))),
            &["too_deep"],
        ),
        (with(json!([transform("zwölf", json!(1))])), &["invalid_id"]),
        (with(json!([transform("𝒶", json!(1))])), &["invalid_id"]),
        (with(json!([transform("a\u{0}", json!(1))])), &["invalid_id"]),
        (with(json!([transform("input", json!(1))])), &["invalid_id"]),
        (with(json!([transform("a", json!(1)), transform("a", json!(2))])), &["duplicate_id"]),
        (with(json!([])), &["no_nodes"]),
        ("{\"stepwell\": 1, \"nodes\": [], \"nodes\": []}".to_owned(), &["duplicate_key", "no_nodes"]),
        (
            with(json!([transform("a", json!(format!("${{ {}1{} }}", "[".repeat(200), "]".repeat(200))))])),
            &["too_deep"],
        ),
        (with(json!([transform("a", json!(format!("${{ {} }}", "1+".repeat(10_000))))])), &["too_large"]),
    ] {
        assert_eq!(told(&server, text.clone()).await, expected, "{:.100}", text);
    }
    assert_eq!(told(&server, *b"\xff\xfe{}").await, ["invalid_json"]);
    let many: Vec<Value> = (0..10_001).map(|n| transform(&format!("n{n}"), json!(n))).collect();
    assert_eq!(told(&server, with(Value::from(many))).await, ["too_many"]);
    let cycle = json!({"stepwell": 1, "nodes": [transform("a", json!(1)), transform("b", json!(1))],
        "edges": [{"source": "a", "target": "b"}, {"source": "b", "target": "a"}]});
    assert_eq!(told(&server, cycle.to_string()).await, ["cycle"]);

    let spaces = |bytes: usize| [with(json!([transform("a", json!(1))])).into_bytes(), vec![b' '; bytes]].concat();
    let just_over = upload(&server, spaces(4 << 20)).await.unwrap();
    assert_eq!(problem(just_over).await, (413, "too_large".to_owned()));
    let far_over = upload(&server, spaces(50_000_000)).await.unwrap();
    assert_eq!(problem(far_over).await, (413, "too_large".to_owned()));
    // Of what is larger still, the server does not read all, and a client that is cut off may not see why. On a
    // connection of its own: what is cut off must not meet the next request.
    let alone = reqwest::Client::new().post(format!("{}/v1/workflows/bad/versions", server.url)).bearer_auth("dev");
    let cut_off = alone.header("content-type", "application/json").body(spaces(80_000_000)).send().await;
    if let Ok(response) = cut_off {
        assert_eq!(problem(response).await, (413, "too_large".to_owned()));
    }
    assert_eq!(server.get("/v1/workflows").await["data"], json!([]));
    assert_eq!(output(&server, &row(json!([transform("a", json!("${ .input }"))])), json!(1)).await, 1);
}

#[tokio::test]
async fn the_largest_graph_compiles_and_runs() {
    const NODES: usize = 10_000;
    let server = Server::start_prepared(&["--dev"]);
    let mut nodes = vec![transform("n0", json!("${ .input }"))];
    nodes.extend((1..NODES).map(|n| transform(&format!("n{n}"), json!(format!("${{ .nodes.n{} + 1 }}", n - 1)))));
    let began = Instant::now();
    server.deploy_graph("largest", &row(Value::from(nodes))).await;
    let compiled = began.elapsed();
    let run = server.run("largest", json!(0)).await;
    assert_eq!((&run["status"], &run["output"]), (&json!("completed"), &json!(NODES - 1)), "{run}");
    println!("{NODES} nodes in a row: compiled in {compiled:?}, ran in {:?}", began.elapsed() - compiled);
}

/// The compiling process of a server, while there is one.
fn compiling(server: &Server) -> Option<u32> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    processes.into_iter().find(|pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name is in parentheses and may have any character in it; behind it come the state and the parent.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        parent == Some(server.pid().to_string().as_str()) && line.contains("compile-graph")
    })
}

/// Above a size, wasmtime once copied a large graph's memory for every step instead of mapping it: 10,000 steps took a
/// minute.
#[tokio::test]
async fn the_widest_graph_runs_as_fast_as_a_long_one() {
    let server = Server::start_prepared(&["--dev"]);
    let nodes: Vec<Value> =
        (0..10_000).map(|n| transform(&format!("n{n}"), json!(format!("${{ .input + {n} }}")))).collect();
    server.deploy_graph("wide", &json!({"stepwell": 1, "nodes": nodes, "output": "n9999"})).await;
    let began = Instant::now();
    assert_eq!(server.run("wide", json!(0)).await["output"], 9_999);
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_compiling_process_that_is_killed_costs_one_upload() {
    let server = Server::start();
    server.deploy("noop", "stepwell_noop").await;
    let small = row(json!([transform("a", json!("${ .input }"))]));
    let large: Vec<Value> =
        (0..5_000).map(|n| transform(&format!("n{n}"), json!(format!("${{ .input + {n} }}")))).collect();
    let large = json!({"stepwell": 1, "nodes": large});
    // The first of all graphs, for which it prepares what all others need; then one that takes a while by itself.
    for (document, next) in [(&small, &small), (&large, &small)] {
        let uploading = tokio::spawn(server.post_graph("killed", document).send());
        let child = eventually("a compiling process", || async { compiling(&server) }).await;
        assert_eq!(server.run("noop", json!(1)).await["output"], 1, "others go on meanwhile");
        let killed = Command::new("kill").args(["-KILL", &child.to_string()]).status().unwrap();
        assert!(killed.success(), "it has ended before");
        let refused = tokio::time::timeout(PATIENCE, uploading).await.unwrap().unwrap().unwrap();
        assert_eq!(problem(refused).await, (422, "compile_limit".to_owned()));
        let known = server.request(Method::GET, "/v1/workflows/killed").send().await.unwrap();
        assert_eq!(problem(known).await, (404, "unknown_workflow".to_owned()));
        assert_eq!(output(&server, next, json!(2)).await, 2, "the next upload is none the worse");
    }
    assert!(compiling(&server).is_none(), "no process is left behind");
}
