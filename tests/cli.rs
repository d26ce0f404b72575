//! The command line, as scripts use it.

use serde_json::{Value, json};

use crate::support::{Server, guest_path, stepwell};

fn path(name: &str) -> String {
    guest_path(name).display().to_string()
}

#[tokio::test]
async fn a_workflow_is_deployed_run_followed_and_read() {
    let server = Server::start();
    let deployed = server.cli(&["deploy", "probe", &path("stepwell_probe")]);
    assert_eq!((deployed.code, deployed.stdout.trim().len()), (0, 64), "{deployed:?}");

    let ran = server.cli(&["run", "probe", "--input", r#"{"text": "hi"}"#, "--follow"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    for kind in ["run.queued", "step.update", "step.log", "run.completed"] {
        assert!(ran.stdout.contains(kind), "no {kind} in {}", ran.stdout);
    }
    let json = server.cli(&["run", "probe", "--input", "{}", "--follow", "--json"]);
    let lines: Vec<Value> = json.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let id = lines[0]["run_id"].as_str().unwrap();
    let seqs: Vec<u64> = lines[1..].iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
    assert_eq!(lines.last().unwrap()["kind"], "run.completed");

    let events = server.cli(&["events", id, "--json"]);
    assert_eq!(events.stdout.lines().count(), seqs.len());
    assert_eq!(server.cli(&["events", id, "--follow"]).code, 0);
    let info = server.cli(&["run-info", id]);
    assert!(info.stdout.contains("completed") && info.stdout.contains("finish"), "{info:?}");
    let info: Value = serde_json::from_str(&server.cli(&["run-info", id, "--json"]).stdout).unwrap();
    assert_eq!((&info["run"]["id"], info["steps"].as_array().unwrap().len()), (&json!(id), 5));
    let runs = server.cli(&["runs", "--workflow", "probe"]);
    assert_eq!(runs.stdout.lines().count(), 2);
    assert!(runs.stdout.lines().next().unwrap().starts_with(id), "newest first");
}

#[tokio::test]
async fn exit_codes_tell_scripts_what_happened() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let failing = r#"{"fail_node": "begin", "fail_first": 9, "permanent": true}"#;
    assert_eq!(server.cli(&["run", "probe", "--input", failing, "--follow"]).code, 1);
    assert_eq!(server.cli(&["run", "probe", "--input", failing]).code, 0, "without --follow it has only been started");
    let unknown = server.cli(&["run", "nope", "--follow"]);
    assert_eq!(unknown.code, 2);
    assert!(unknown.stderr.contains("unknown_workflow") && unknown.stdout.is_empty(), "{unknown:?}");
    for arguments in [
        &["run", "probe", "--input", "{"][..],
        &["run", "probe", "--input", "@/no/such/file"],
        &["run-info", "abc"],
        &["events", "abc", "--follow"],
        &["cancel", "abc"],
        &["deploy", "probe", "/no/such/file"],
        &["deploy", "probe", "Cargo.toml"],
        &["inspect", "/no/such/file"],
        &["build", "/no/such/folder"],
        &["no-such-command"],
        &[],
    ] {
        let ran = server.cli(arguments);
        assert_eq!(ran.code, 2, "{arguments:?}: {ran:?}");
        assert!(ran.stdout.is_empty() && !ran.stderr.is_empty(), "{arguments:?}: {ran:?}");
    }
    let wrong_key = stepwell().args(["runs", "--url", &server.url, "--api-key", "wrong"]).output().unwrap();
    assert_eq!(wrong_key.status.code(), Some(2));
    let nobody = stepwell().args(["runs", "--url", "http://127.0.0.1:1"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(2));
    assert!(String::from_utf8(nobody.stderr).unwrap().contains("cannot be reached"));
}

#[tokio::test]
async fn cancelling_ends_whoever_follows_with_1() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let started = server.cli(&["run", "probe", "--input", r#"{"busy_ms": 25000}"#]);
    let id = started.stdout.trim().to_owned();
    let follower =
        stepwell().args(["events", &id, "--follow", "--url", &server.url]).stdout(std::process::Stdio::null()).spawn();
    assert_eq!(server.cli(&["cancel", &id, "--reason", "enough"]).code, 0);
    let code = follower.unwrap().wait().unwrap().code();
    assert_eq!(code, Some(1));
    assert_eq!(server.cli(&["cancel", &id]).code, 2, "it has ended");
}

#[tokio::test]
async fn following_goes_on_through_a_restart_of_the_server() {
    let mut server = Server::start();
    // The follower must find the server again where it was: at a port that nobody is given by chance.
    let address = format!("127.0.0.1:{}", 10_000 + std::process::id() % 20_000);
    server.kill();
    server.start_again_at(&address);
    server.deploy("probe", "stepwell_probe").await;
    let id = server.start_run("probe", json!({"busy_ms": 500, "updates": 20})).await;
    let follower = stepwell()
        .args(["events", &id, "--follow", "--json", "--url", &server.url])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    server.event_when(&id, |event| event["kind"] == "step.update").await;
    server.kill();
    server.start_again_at(&address);
    let output = tokio::task::spawn_blocking(move || follower.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(0));
    let lines = String::from_utf8(output.stdout).unwrap();
    let seen: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(seen, server.events(&id).await);
}

#[test]
fn inspect_shows_what_a_component_may_do() {
    let output = stepwell().args(["inspect", &path("stepwell_probe"), "--json"]).output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["graph"]["nodes"][0]["id"], "begin");
    assert!(shown["imports"].as_array().unwrap().contains(&json!("stepwell:workflow/publish@0.1.0")));
    let output = stepwell().args(["inspect", &path("stepwell_noop")]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("stepwell:workflow/log@0.1.0") && !text.contains("publish"), "{text}");
    assert!(text.contains("node      s10"), "{text}");
}

#[test]
fn the_data_of_one_server_is_not_opened_by_another() {
    let server = Server::start();
    let second =
        stepwell().args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(server.data_dir()).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8(second.stderr).unwrap().contains("cannot open"));
}
