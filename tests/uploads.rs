//! What an upload must look like, and what anything else gets.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Server, guest, problem};

async fn upload(server: &Server, bytes: Vec<u8>) -> reqwest::Response {
    server.request(Method::POST, "/v1/workflows/new/versions").body(bytes).send().await.unwrap()
}

fn component(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

#[tokio::test]
async fn a_component_is_stored_under_its_digest_and_shows_what_it_may_do() {
    let server = Server::start();
    let version = server.deploy("probe", "stepwell_probe").await;
    assert_eq!(server.deploy("probe", "stepwell_probe").await, version, "the same bytes are the same version");
    let versions = server.get("/v1/workflows/probe/versions").await;
    assert_eq!(versions["data"].as_array().unwrap().len(), 1);
    let shown = server.get(&format!("/v1/workflows/probe/versions/{version}")).await;
    let imports: Vec<&str> = shown["imports"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    assert_eq!(
        imports,
        ["artifacts", "clock", "log", "publish"].map(|name| format!("stepwell:workflow/{name}@0.1.0")).to_vec(),
        "and not `random`, which it does not use"
    );
    assert_eq!(shown["graph"]["channel"], "probes");
    let begin = &shown["graph"]["nodes"][0];
    assert_eq!((&begin["id"], &begin["retry"]["max_attempts"]), (&json!("begin"), &json!(4)));

    // A second version becomes the one that new runs get; the first can still be asked for.
    let second = server.deploy("probe", "stepwell_noop").await;
    assert_eq!(server.get("/v1/workflows/probe").await["latest_version"], second);
    let run = server.run("probe", json!(1)).await;
    assert_eq!(run["version"], second);
    let old = server.request(Method::POST, "/v1/workflows/probe/runs").json(&json!({"version": version, "input": {}}));
    assert_eq!(old.send().await.unwrap().json::<Value>().await.unwrap()["version"], version);
}

#[tokio::test]
async fn what_is_no_workflow_is_refused_by_name_and_nothing_is_stored() {
    let server = Server::start();
    let steps = "stepwell:workflow/steps@0.1.0";
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"hello".to_vec(), "not_a_component"),
        (vec![], "not_a_component"),
        (b"\x7fELF and more".to_vec(), "not_a_component"),
        (component("(module)"), "core_module"),
        (component("(component)"), "wrong_exports"),
        (
            component("(component (component $c) (instance $i (instantiate $c)) (export \"a:b/c\" (instance $i)))"),
            "wrong_exports",
        ),
        (
            component(&format!(
                "(component (component $c) (instance $i (instantiate $c)) (export \"{steps}\" (instance $i)))"
            )),
            "incompatible_component",
        ),
        (component("(component (import \"wasi:clocks/wall-clock@0.2.0\" (instance)))"), "forbidden_imports"),
        (component("(component (import \"stepwell:workflow/log@0.2.0\" (instance)))"), "forbidden_imports"),
        (component("(component (import \"stepwell:workflow/log@0.1.0\" (func)))"), "forbidden_imports"),
        (component("(component (core module (memory 1) (memory 1)))"), "invalid_component"),
        (component("(component (core module (memory i64 1)))"), "invalid_component"),
        (component("(component (core module (memory 1 1 shared)))"), "invalid_component"),
        (component("(component (core module (type (struct))))"), "invalid_component"),
        (component("(component (core module (func return_call 0)))"), "invalid_component"),
        (
            component("(component (core module (type $f (func)) (func (param (ref $f)) local.get 0 call_ref $f)))"),
            "invalid_component",
        ),
        (guest("stepwell_noop")[..5000].to_vec(), "invalid_component"),
    ];
    for (number, (bytes, code)) in cases.into_iter().enumerate() {
        assert_eq!(problem(upload(&server, bytes).await).await, (422, code.to_owned()), "case {number}");
    }
    let mut broken = guest("stepwell_noop");
    let middle = broken.len() / 2;
    broken[middle..middle + 64].fill(0xff);
    assert_eq!(problem(upload(&server, broken).await).await, (422, "invalid_component".to_owned()));
    assert_eq!(problem(upload(&server, vec![0; (16 << 20) + 1]).await).await, (413, "too_large".to_owned()));
    let path = "/v1/workflows/a%20b/versions";
    let bad_name = server.request(Method::POST, path).body(guest("stepwell_noop")).send().await.unwrap();
    assert_eq!(problem(bad_name).await, (422, "invalid_name".to_owned()));
    assert_eq!(server.get("/v1/workflows").await["data"], json!([]), "nothing was stored");
    let code = std::fs::read_dir(server.data_dir().join("code")).unwrap();
    let left = code.flat_map(|dir| std::fs::read_dir(dir.unwrap().path()).unwrap()).count();
    assert_eq!(left, 0, "nor the code of what was refused");
}

#[tokio::test]
async fn forbidden_imports_are_named() {
    let server = Server::start();
    let bytes = component("(component (import \"wasi:cli/environment@0.2.0\" (instance)) (import \"evil\" (func)))");
    let body: Value = upload(&server, bytes).await.json().await.unwrap();
    assert_eq!(body["imports"], json!(["wasi:cli/environment@0.2.0", "evil"]));
}

/// A component with this `describe`, whose graph is given as wave text would be too much to write by hand: it is
/// taken from the probe by changing bytes that are only in its graph.
#[tokio::test]
async fn a_graph_with_problems_lists_them_all() {
    let server = Server::start();
    let mut bytes = guest("stepwell_probe");
    let mut replace = |from: &[u8], to: &[u8]| {
        assert_eq!(from.len(), to.len());
        let places: Vec<usize> =
            bytes.windows(from.len()).enumerate().filter(|(_, w)| *w == from).map(|(at, _)| at).collect();
        for at in places {
            bytes[at..at + to.len()].copy_from_slice(to);
        }
    };
    replace(b"probes", b"pro es");
    replace(b"begin", b"be in");
    let response = upload(&server, bytes).await;
    assert_eq!(response.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["code"], "invalid_graph", "{body}");
    let codes: Vec<&str> = body["problems"].as_array().unwrap().iter().map(|p| p["code"].as_str().unwrap()).collect();
    assert!(codes.contains(&"invalid_channel") && codes.contains(&"invalid_id"), "{body}");
}

#[tokio::test]
async fn compiled_code_that_was_touched_is_compiled_anew() {
    let mut server = Server::start();
    server.deploy("noop", "stepwell_noop").await;
    server.kill();
    let code = server.data_dir().join("code");
    let files = || std::fs::read_dir(&code).unwrap().flat_map(|dir| std::fs::read_dir(dir.unwrap().path()).unwrap());
    let file = files().next().unwrap().unwrap().path();
    let good = std::fs::read(&file).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    // Changed, cut off, and without a signature: machine code from who knows where.
    for bytes in [&bad[..], &good[..100], &good[..0], &good[32..]] {
        std::fs::write(&file, bytes).unwrap();
        server.start_again();
        assert_eq!(server.run("noop", json!(1)).await["status"], "completed");
        assert_eq!(std::fs::read(&file).unwrap().len(), good.len(), "it is there again, whole");
        server.kill();
    }
    std::fs::remove_file(&file).unwrap();
    server.start_again();
    assert_eq!(server.run("noop", json!(1)).await["status"], "completed");
    assert_eq!(server.log().matches("does not carry this host's signature").count(), 4);
}
