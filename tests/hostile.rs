//! Guests that misbehave: each ends its own step in a typed way, and nobody else notices.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::Server;

async fn failure_of(server: &Server, behaviour: &str, n: u64) -> Value {
    let run = server.run("hostile", json!({"behaviour": behaviour, "n": n})).await;
    assert_eq!(run["status"], "failed", "{behaviour}: {run}");
    run["failure"].clone()
}

async fn output_of(server: &Server, behaviour: &str, n: u64) -> Value {
    let run = server.run("hostile", json!({"behaviour": behaviour, "n": n})).await;
    assert_eq!(run["status"], "completed", "{behaviour}: {run}");
    run["output"].clone()
}

#[tokio::test]
async fn every_way_to_misbehave_has_its_own_end() {
    let server = Server::start();
    server.deploy("hostile", "stepwell_hostile").await;
    let cases = [
        ("loop", "out_of_fuel"),
        ("alloc", "out_of_memory"),
        ("trap", "trap"),
        ("unreachable", "trap"),
        ("recurse", "trap"),
        ("not_json", "invalid_output"),
        ("huge_output", "output_too_large"),
        ("big_output", "output_too_large"),
        ("deep_json", "invalid_output"),
        ("publish_flood", "out_of_fuel"),
        ("log_flood", "out_of_fuel"),
        ("publish_then_trap", "trap"),
        ("unknown_route", "unknown_route"),
        ("slow_loop", "timeout"),
    ];
    for (behaviour, code) in cases {
        let failure = failure_of(&server, behaviour, 0).await;
        assert_eq!(
            (&failure["code"], &failure["source"]),
            (&json!(code), &json!("platform")),
            "{behaviour}: {failure}"
        );
        assert!(!failure["message"].as_str().unwrap().is_empty());
    }
}

#[tokio::test]
async fn permanent_failures_are_not_tried_again_and_retryable_ones_are() {
    let server = Server::start();
    server.deploy("hostile", "stepwell_hostile").await;
    let attempts = |run: Value| {
        let server = &server;
        async move {
            let events = server.events(run["id"].as_str().unwrap()).await;
            let failed: Vec<Value> = events.into_iter().filter(|event| event["kind"] == "step.failed").collect();
            (failed.len(), failed.last().map(|last| last["failure"]["code"].clone()))
        }
    };
    for (behaviour, n, expected) in [
        ("loop", 0, (1, "out_of_fuel")),
        ("trap", 0, (1, "trap")),
        ("fail_permanent", 0, (1, "")),
        ("fail_retryable", 0, (3, "")),
        ("fail_until", 3, (2, "")),
    ] {
        let run = server.run("hostile", json!({"behaviour": behaviour, "n": n})).await;
        let (count, code) = attempts(run).await;
        assert_eq!(count, expected.0, "{behaviour}");
        assert!(expected.1.is_empty() || code == Some(json!(expected.1)), "{behaviour}: {code:?}");
    }
}

#[tokio::test]
async fn what_a_step_says_is_cut_to_what_the_journal_takes() {
    let server = Server::start();
    server.deploy("hostile", "stepwell_hostile").await;
    let failure = failure_of(&server, "bad_code", 0).await;
    assert_eq!((&failure["code"], &failure["source"]), (&json!("step_failed"), &json!("workflow")));
    assert!(failure["message"].as_str().unwrap().len() <= 4096);
    let failure = failure_of(&server, "bad_details", 0).await;
    assert_eq!(failure.get("details"), None);

    // Refusals that a step is told of, and survives.
    let refused = output_of(&server, "publish_bad_json", 0).await;
    assert_eq!(refused["refused"], refused["of"], "{refused}");
    let refused = output_of(&server, "artifact_bad_name", 0).await;
    assert_eq!(refused["refused"], refused["of"], "{refused}");
    for behaviour in ["publish_unknown_topic", "publish_too_large", "artifact_too_large", "nul"] {
        output_of(&server, behaviour, 0).await;
    }
    let run = server.run("hostile", json!({"behaviour": "log_flood", "n": 2_000})).await;
    let events = server.events(run["id"].as_str().unwrap()).await;
    let lines: Vec<&Value> = events.iter().filter(|event| event["kind"] == "step.log").collect();
    assert_eq!(lines.len(), 1_001, "{}", run["status"]);
    assert!(lines.last().unwrap()["message"].as_str().unwrap().contains("dropped"));
    let run = server.run("hostile", json!({"behaviour": "publish_flood", "n": 12_000})).await;
    let events = server.events(run["id"].as_str().unwrap()).await;
    assert_eq!(events.iter().filter(|event| event["kind"] == "step.update").count(), 10_000);
    let run = server.run("hostile", json!({"behaviour": "artifact_flood", "n": 150})).await;
    let id = run["id"].as_str().unwrap();
    let files = server.get(&format!("/v1/artifacts?run_id={id}")).await;
    assert_eq!(files["data"].as_array().unwrap().len(), 100);
}

#[tokio::test]
async fn memory_is_counted_as_a_whole_and_randomness_is_given_in_pieces() {
    let server = Server::start();
    server.deploy("hostile", "stepwell_hostile").await;
    let pages = output_of(&server, "memory_grow", 0).await;
    let pages = pages.as_u64().or_else(|| pages["pages"].as_u64()).unwrap_or_else(|| panic!("{pages}"));
    assert!((100..=512).contains(&pages), "{pages} pages of 64 KiB in 32 MiB");
    let bytes = output_of(&server, "random", 0).await;
    let bytes = bytes.as_u64().or_else(|| bytes["bytes"].as_u64()).unwrap_or_else(|| panic!("{bytes}"));
    assert_eq!(bytes, 4096);
}

#[tokio::test]
async fn nothing_of_one_instance_reaches_the_next() {
    // One slot: each attempt gets the memory of the one before.
    let server = Server::start_with(&["--dev", "--slots", "1"]);
    server.deploy("hostile", "stepwell_hostile").await;
    for round in 0..20 {
        let written = output_of(&server, "secret_write", 0).await;
        assert!(written["hits"].as_u64().unwrap() > 1_000, "the search finds what is there: {written}");
        let found = output_of(&server, "secret_read", 0).await;
        assert_eq!((&found["hits"], &found["dirty_bytes"]), (&json!(0), &json!(0)), "round {round}: {found}");
    }
}

#[tokio::test]
async fn neighbours_go_on_at_their_pace() {
    let server = Server::start();
    server.deploy("hostile", "stepwell_hostile").await;
    server.deploy("noop", "stepwell_noop").await;
    let pace = || async {
        let mut times = Vec::new();
        for n in 0..30 {
            let started = Instant::now();
            let run = server.post_run("noop", json!(n)).header("prefer", "wait=60").send().await.unwrap();
            assert_eq!(run.json::<Value>().await.unwrap()["status"], "completed");
            times.push(started.elapsed());
        }
        times.sort();
        times[times.len() / 2]
    };
    let alone = pace().await;
    let mut bad = Vec::new();
    for behaviour in ["slow_loop", "alloc", "publish_flood", "trap", "recurse", "log_flood", "huge_output"] {
        for _ in 0..4 {
            bad.push(server.start_run("hostile", json!({"behaviour": behaviour})).await);
        }
    }
    let beside = pace().await;
    for id in bad {
        let run = server.ended(&id).await;
        assert_eq!(run["status"], "failed", "{run}");
    }
    // Ten steps share two cores with guests that compute without end: each waits its turn. The bound is generous for a slow
    // machine, so this finds a host that stands still and not one that is slow.
    assert!(beside < alone + Duration::from_secs(3), "alone {alone:?}, beside hostile guests {beside:?}");
}

#[tokio::test]
async fn files_of_guests_are_harmless_in_a_browser() {
    let server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let run = server.run("probe", json!({"files": 2, "route": "left", "fail_node": "left", "fail_first": 1})).await;
    let id = run["id"].as_str().unwrap();
    let files = server.get(&format!("/v1/artifacts?run_id={id}")).await;
    let files = files["data"].as_array().unwrap();
    let from_left: Vec<&Value> = files.iter().filter(|file| file["node"] == "left").collect();
    assert!(
        from_left.len() == 2 && from_left.iter().all(|file| file["attempt"] == 2),
        "rolled back files are left out"
    );
    for file in files {
        let response = server.request(Method::GET, file["url"].as_str().unwrap()).send().await.unwrap();
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-type"), file["media_type"].as_str().unwrap());
        assert!(header("content-security-policy").starts_with("sandbox;"));
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert!(header("content-disposition").contains(file["name"].as_str().unwrap()));
        assert_eq!(response.bytes().await.unwrap().len() as u64, file["size_bytes"].as_u64().unwrap());
    }
}
