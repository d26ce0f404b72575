//! Clients that start runs of `noop`, each on a connection of its own, one run after the other.
//!
//! Keeps: an answer counts only when it is right, and only when it came within the measured window. A client stops at
//! its first wrong answer, so a broken server cannot look fast.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName};
use hyper::{Method, StatusCode};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::http::{Connection, Header};
use crate::report;
use crate::server::Server;

const RUNS: &str = "/v1/workflows/noop/runs";
const BODY: &str = r#"{"input":{"n":1}}"#;
const JSON: Header = (CONTENT_TYPE, "application/json");
/// The run is waited for, for at most 30 seconds.
const WAIT: Header = (HeaderName::from_static("prefer"), "wait=30");

/// How often something that takes long says where it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);
/// How often it is looked whether the backlog is gone. A look reads all runs, so not too often.
const DRAIN_POLL: Duration = Duration::from_millis(500);
/// How long a backlog may take. It takes seconds; a run that hangs takes for ever.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(300);

/// What a client asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ask {
    /// A run from start to end: 200 when it has completed.
    WholeRun,
    /// A run that is on disk: 202.
    Acceptance,
}

/// A measurement under load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Level {
    /// Clients at once.
    pub(crate) clients: usize,
    /// Load before the measured window.
    pub(crate) warm_up: Duration,
    /// The measured window.
    pub(crate) measured: Duration,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// One for each right answer within the window: milliseconds from request to answer, in order of size.
    pub(crate) latencies_ms: Vec<f64>,
    /// What was wrong.
    pub(crate) failures: Vec<String>,
    window: Duration,
}

impl Measured {
    /// Right answers per second.
    pub(crate) fn per_second(&self) -> anyhow::Result<f64> {
        let first = self.failures.first().map_or("the server is very slow", String::as_str);
        ensure!(!self.latencies_ms.is_empty(), "no run ended within {:?}: {first}", self.window);
        Ok(self.latencies_ms.len() as f64 / self.window.as_secs_f64())
    }
}

/// Puts a level of load on the server and measures a window of it. Nothing is under way when this returns.
pub(crate) async fn measure(server: &Server, level: Level, ask: Ask) -> anyhow::Result<Measured> {
    let Level { clients, warm_up, measured } = level;
    report::progress(&format!("{clients} clients, {:.1} s", (warm_up + measured).as_secs_f64()));
    let connections = connect(server, clients).await?;
    let from = Instant::now() + warm_up;
    let until = from + measured;
    let mut tasks = JoinSet::new();
    for mut connection in connections {
        tasks.spawn(async move {
            let mut latencies_ms = Vec::new();
            loop {
                let started = Instant::now();
                if started >= until {
                    return (latencies_ms, None);
                }
                if let Err(error) = run(&mut connection, ask).await {
                    return (latencies_ms, Some(format!("{error:#}")));
                }
                let ended = Instant::now();
                if (from..until).contains(&ended) {
                    latencies_ms.push((ended - started).as_secs_f64() * 1e3);
                }
            }
        });
    }
    let mut all = Measured { window: measured, ..Measured::default() };
    while let Some(client) = tasks.join_next().await {
        let (latencies_ms, failure) = client.context("a client panicked")?;
        all.latencies_ms.extend(latencies_ms);
        all.failures.extend(failure);
    }
    all.latencies_ms.sort_by(f64::total_cmp);
    Ok(all)
}

/// Lets `clients` complete `runs` runs together, and returns what was wrong.
pub(crate) async fn drive(server: &Server, clients: usize, runs: u64) -> anyhow::Result<Vec<String>> {
    report::progress(&format!("{clients} clients until {runs} runs have ended"));
    let started = Instant::now();
    let (begun, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for mut connection in connect(server, clients).await? {
        let (begun, ended) = (Arc::clone(&begun), Arc::clone(&ended));
        tasks.spawn(async move {
            while begun.fetch_add(1, Ordering::Relaxed) < runs {
                run(&mut connection, Ask::WholeRun).await?;
                ended.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    let mut every = tokio::time::interval_at(tokio::time::Instant::now() + PROGRESS_EVERY, PROGRESS_EVERY);
    let mut failures = Vec::new();
    loop {
        tokio::select! {
            client = tasks.join_next() => match client {
                Some(client) => failures.extend(client.context("a client panicked")?.err().map(|error| format!("{error:#}"))),
                None => return Ok(failures),
            },
            _ = every.tick() => {
                let seconds = started.elapsed().as_secs();
                report::progress(&format!("{} of {runs} runs, {seconds} s", ended.load(Ordering::Relaxed)));
            }
        }
    }
}

/// Waits until every run has ended, and returns what was wrong with one.
pub(crate) async fn drain(server: &Server) -> anyhow::Result<Vec<String>> {
    let started = Instant::now();
    let mut said = started;
    let mut connection = server.connect().await?;
    for status in ["queued", "running"] {
        while any_run(&mut connection, status).await?.is_some() {
            ensure!(started.elapsed() < DRAIN_TIMEOUT, "runs are still {status} after {DRAIN_TIMEOUT:?}");
            if said.elapsed() >= PROGRESS_EVERY {
                said = Instant::now();
                report::progress(&format!("the accepted runs are being run, {} s", started.elapsed().as_secs()));
            }
            tokio::time::sleep(DRAIN_POLL).await;
        }
    }
    let failed = any_run(&mut connection, "failed").await?;
    Ok(failed.into_iter().map(|run| format!("an accepted run has failed: {run}")).collect())
}

/// A run with this status, if there is one. A page can be empty though more follow, so all of them are read.
async fn any_run(connection: &mut Connection, status: &str) -> anyhow::Result<Option<Value>> {
    let first = format!("/v1/runs?status={status}&limit=1");
    let mut path = first.clone();
    loop {
        let page = connection.send_for_json(Method::GET, &path, &[], Bytes::new(), StatusCode::OK).await?;
        if let Some(run) = page.pointer("/data/0") {
            return Ok(Some(run.clone()));
        }
        match page.pointer("/page/cursor").and_then(Value::as_str) {
            Some(cursor) => path = format!("{first}&cursor={cursor}"),
            None => return Ok(None),
        }
    }
}

async fn connect(server: &Server, clients: usize) -> anyhow::Result<Vec<Connection>> {
    let mut connections = Vec::with_capacity(clients);
    for _ in 0..clients {
        connections.push(server.connect().await?);
    }
    Ok(connections)
}

/// Starts one run and checks the answer.
async fn run(connection: &mut Connection, ask: Ask) -> anyhow::Result<()> {
    let body = Bytes::from_static(BODY.as_bytes());
    match ask {
        Ask::WholeRun => {
            let run = connection.send_for_json(Method::POST, RUNS, &[JSON, WAIT], body, StatusCode::OK).await?;
            let completed = run.get("status").and_then(Value::as_str) == Some("completed");
            // The steps hand on the input, so an output that differs was mixed up with another run's.
            ensure!(completed && run.get("output") == run.get("input"), "a run ended wrongly: {run}");
        }
        Ask::Acceptance => {
            let (status, answer) = connection.send(Method::POST, RUNS, &[JSON], body).await?;
            let answer = String::from_utf8_lossy(&answer);
            ensure!(status == StatusCode::ACCEPTED, "{RUNS} was answered {status}: {answer}");
        }
    }
    Ok(())
}
