//! Random programs on hosts that are killed and on disks that fail: at the end every accepted run has ended, each result is
//! what a model says, and no event is lost, doubled or out of order.
//!
//! A seed is printed; `STEPWELL_SEED=…` plays the same programs again, as far as the machine lets it. `STEPWELL_CHAOS=1000`
//! runs so many of them.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use stepwell::driver::{ControlError, StartError};
use stepwell::journal::{IdempotencyKey, Journal};
use stepwell_core::{Digest, Json, Refusal, RunKey, RunStatus};

use crate::crash::{next, seed};
use crate::driver::Host;
use crate::journal::Trouble;
use crate::support::{PATIENCE, Server, check_history, eventually};

/// How often the disk fails at least while the programs run.
const FAILURES: u32 = 5;

/// Programs of one test; `STEPWELL_CHAOS` says otherwise.
fn how_many(default: usize) -> usize {
    std::env::var("STEPWELL_CHAOS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A program, and what its model says of it.
#[derive(Debug, Clone)]
struct Program {
    script: Value,
    expected: Vec<Expected>,
    /// The signals that it waits for, in order of their names.
    signals: Vec<(&'static str, Value)>,
}

/// What one act comes to.
#[derive(Debug, Clone)]
enum Expected {
    Is(Value),
    /// A position, a time or an id: different each time.
    Some,
    /// A child's output.
    Child(Vec<Expected>),
}

impl Expected {
    fn holds(expected: &[Self], output: &Value) -> bool {
        let Some(output) = output.as_array().filter(|output| output.len() == expected.len()) else { return false };
        expected.iter().zip(output).all(|(expected, output)| match expected {
            Self::Is(value) => value == output,
            Self::Some => output.is_number() || output.is_string(),
            Self::Child(expected) => Self::holds(expected, output),
        })
    }
}

impl Program {
    fn random(random: &mut u64) -> Self {
        let mut program = Self::acts(random, true);
        // Behind the last failure: what a failed attempt has taken is not given out again.
        for _ in 0..next(random) % 3 {
            let name = ["go", "stop"][(next(random) % 2) as usize];
            let payload = json!({"of": name, "n": program.signals.iter().filter(|(of, _)| *of == name).count()});
            let script = program.script.as_array_mut().unwrap();
            script.push(json!({"signal": {"name": name}}));
            script.push(json!({"publish": payload}));
            program.expected.extend([Expected::Is(payload.clone()), Expected::Some]);
            program.signals.push((name, payload));
        }
        program
    }

    fn acts(random: &mut u64, may_have_children: bool) -> Self {
        let (mut script, mut expected) = (Vec::new(), Vec::new());
        for _ in 0..1 + next(random) % 4 {
            match next(random) % 6 {
                0 => {
                    script.push(json!({"sleep": next(random) % 300}));
                    expected.push(Expected::Is(Value::Null));
                }
                1 => {
                    script.push(json!({"calls": 1 + next(random) % 4}));
                    expected.push(Expected::Some);
                }
                2 => {
                    script.push(json!({"busy_ms": next(random) % 40}));
                    expected.push(Expected::Is(Value::Null));
                }
                3 => {
                    script.push(json!({"fail": {"attempts": next(random) % 3, "code": "busy"}}));
                    expected.push(Expected::Is(Value::Null));
                }
                4 if may_have_children => {
                    let child = Self::acts(random, false);
                    script.push(json!({"start": {"workflow": "waits", "input": child.script}}));
                    expected.push(Expected::Some);
                    // Often it has ended by the time that somebody waits for it.
                    if next(random).is_multiple_of(2) {
                        script.push(json!({"sleep": next(random) % 300}));
                        expected.push(Expected::Is(Value::Null));
                    }
                    script.push(json!({"await": {}}));
                    expected.push(Expected::Child(child.expected));
                }
                _ => {
                    script.push(json!({"publish": next(random)}));
                    expected.push(Expected::Some);
                }
            }
        }
        Self { script: Value::Array(script), expected, signals: Vec::new() }
    }
}

/// Starts a program and sends it what it waits for, as often as it takes, and returns its run.
async fn accompany(server: &Server, number: usize, program: &Program) -> String {
    let key = format!("program {number}");
    let id = eventually("an answer", || async {
        let response =
            server.post_run("waits", program.script.clone()).header("idempotency-key", &key).send().await.ok()?;
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        Some(response.json::<Value>().await.ok()?["id"].as_str()?.to_owned())
    })
    .await;
    for (at, (name, payload)) in program.signals.iter().enumerate() {
        let path = format!("/v1/runs/{id}/signals/{name}");
        eventually("an answer", || async {
            let request = server.request(Method::POST, &path).header("idempotency-key", format!("{at}"));
            let response = request.json(payload).send().await.ok()?;
            let status = response.status();
            let body = response.text().await.ok()?;
            // Told twice, the run may have ended by the second time.
            assert!(status == StatusCode::ACCEPTED || body.contains("run_ended"), "{status} {body}");
            Some(())
        })
        .await;
    }
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn random_programs_come_to_what_their_model_says_on_a_server_that_is_killed_again_and_again() {
    let seed = seed();
    println!("STEPWELL_SEED={seed}");
    let mut random = seed;
    let programs: Vec<Program> = (0..how_many(120)).map(|_| Program::random(&mut random)).collect();
    let mut server = Server::start();
    server.deploy("waits", "stepwell_waits").await;
    let mut runs: Vec<Option<String>> = vec![None; programs.len()];
    let mut kills = 0;
    while runs.iter().any(Option::is_none) {
        let pause = Duration::from_millis(150 + next(&mut random) % 400);
        let open: Vec<usize> = (0..programs.len()).filter(|at| runs[*at].is_none()).collect();
        let some = open.into_iter().take(programs.len() / 8 + 1);
        let accompanied = {
            let (server, programs) = (&server, &programs);
            let all = some.map(|at| async move {
                let told = accompany(server, at, &programs[at]);
                (at, tokio::time::timeout(pause, told).await.ok())
            });
            futures_util::future::join_all(all).await
        };
        for (at, id) in accompanied {
            runs[at] = runs[at].take().or(id);
        }
        server.crash();
        kills += 1;
    }
    assert!(kills >= 8, "{kills} crashes are few");
    for (id, program) in runs.iter().flatten().zip(&programs) {
        let run = server.ended(id).await;
        assert_eq!(run["status"], "completed", "{run}\n{}", program.script);
        assert!(Expected::holds(&program.expected, &run["output"]), "{}\n{}", program.script, run["output"]);
        check_history(&server.events(id).await);
    }
    // Children have ended too, and nobody is left behind.
    for status in ["queued", "running", "suspended", "paused", "failed"] {
        let page = server.get(&format!("/v1/runs?status={status}")).await;
        assert_eq!(page["data"], json!([]), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_programs_come_to_what_their_model_says_on_disks_that_are_slow_full_and_gone() {
    let seed = seed();
    println!("STEPWELL_SEED={seed}");
    let mut random = seed ^ 0x5bf0_3635;
    let mut programs: Vec<Program> = (0..how_many(60)).map(|_| Program::random(&mut random)).collect();
    let mut host = Host::with("waits", "stepwell_waits").await;
    let mut runs: Vec<Option<RunKey>> = vec![None; programs.len()];
    let mut sent: Vec<usize> = vec![0; programs.len()];
    let (mut failures, mut rounds) = (0, 0);
    let mut about_to_go = false;
    let ended = |host: &Host, key: &RunKey| {
        host.journal.summary(key).unwrap().is_some_and(|summary| summary.status.is_terminal())
    };
    while failures < FAILURES || !runs.iter().all(|run| run.as_ref().is_some_and(|key| ended(&host, key))) {
        rounds += 1;
        assert!(rounds < 400, "the programs do not come to an end");
        // A disk fails by what is written to it: there is always something to write until it has failed enough.
        if failures < FAILURES && runs.iter().all(Option::is_some) {
            programs.push(Program::random(&mut random));
            runs.push(None);
            sent.push(0);
        }
        // After a while the disk is left alone, so that there is an end. A disk that is about to go is
        // not helped: it goes, however few writes a slow machine gets done in a round.
        if !about_to_go {
            let trouble = match next(&mut random) % 4 {
                0 => Trouble::Slow(Duration::from_millis(next(&mut random) % 30)),
                1 => Trouble::Full,
                2 => Trouble::GoneAfter(next(&mut random) % 40),
                _ => Trouble::None,
            };
            let trouble = if rounds < 60 || failures < FAILURES { trouble } else { Trouble::None };
            about_to_go = matches!(trouble, Trouble::GoneAfter(_));
            host.disk.trouble(trouble);
        }
        for (at, program) in programs.iter().enumerate() {
            if runs[at].is_none() && next(&mut random).is_multiple_of(4) {
                let input = Json::parse(program.script.to_string()).unwrap();
                let key = IdempotencyKey {
                    key: format!("{at}"),
                    fingerprint: Digest::from_bytes([at as u8; 32]),
                    time: None,
                };
                match host.driver.start(&host.tenant, &host.workflow, None, input, Some(key)).await {
                    Ok(started) => runs[at] = Some(RunKey { tenant: host.tenant.clone(), run: started.run }),
                    Err(StartError::Journal(_) | StartError::Stopping) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            let (Some(key), Some((name, payload))) = (&runs[at], program.signals.get(sent[at])) else { continue };
            let payload = Json::parse(payload.to_string()).unwrap();
            match host.driver.signal(key, (*name).to_owned(), payload, Some(&format!("{}", sent[at]))).await {
                Ok(_) | Err(ControlError::Refused(Refusal::Ended(_))) => sent[at] += 1,
                Err(ControlError::Unavailable | ControlError::Journal(_)) => break,
                Err(error) => panic!("{error}"),
            }
        }
        let broken = tokio::time::timeout(Duration::from_millis(100), host.journal.broken()).await.is_ok();
        if broken {
            failures += 1;
            about_to_go = false;
            host = host.after_a_power_cut(next(&mut random)).await;
        }
    }
    host.disk.trouble(Trouble::None);
    for (key, program) in runs.iter().flatten().zip(&programs) {
        let summary = host.journal.summary(key).unwrap().unwrap();
        assert_eq!(summary.status, RunStatus::Completed, "{}", program.script);
        let output = host.output(key);
        assert!(Expected::holds(&program.expected, &output), "{}\n{output}", program.script);
        let seqs: Vec<u64> = host.journal.read(key, 0, usize::MAX).unwrap().iter().map(|event| event.seq).collect();
        assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
    }
    tokio::time::timeout(PATIENCE, host.driver.stop()).await.unwrap();
}
