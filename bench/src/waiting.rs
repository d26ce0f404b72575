//! Runs that wait, and hosts that come back.
//!
//! # What is measured
//! *Many that wait*: runs of `waits` that were suspended for a signal, written into a journal as their loops would have
//! written them, and a server that is started on it. Its memory, less that of a server without them, divided by their
//! number; how long it takes to accept requests; and how long it takes from the signal for one of them, which is read from
//! disk then, to its end.
//!
//! *Recovery*: the same with runs that were in the middle of an attempt: from the start of the server until all have ended.
//!
//! *Cancellation*: a run whose guest computes, from the request to its answer, when the end is on disk.
//!
//! *Resuming a long record*: a step that has made 1,000 recorded calls and waits, from the signal to its end.
//!
//! Keeps: a figure counts only when the runs ended as they should.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use stepwell::clock;
use stepwell::journal::{Batch, Journal, RedbJournal, RunSummary, WakeChange};
use stepwell_core::event::{SuspendReason, WaitingCall};
use stepwell_core::{Digest, Event, Json, NodeId, Payload, RunId, RunKey, StepId, Timestamp};
use tokio::task::JoinSet;

use crate::http::Connection;
use crate::report;
use crate::server::Server;

/// Appends under way at once: enough to fill the journal's transactions.
const WRITERS: usize = 512;
/// Runs that are woken, cancelled or resumed, one after the other.
const TIMES: usize = 50;
/// Recorded calls of the step that is resumed.
pub(crate) const CALLS: u32 = 1_000;
/// How long anything here is waited for.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a journal full of waiting runs costs.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    pub(crate) start_ms: f64,
    pub(crate) bytes_each: f64,
    pub(crate) disk_bytes_each: f64,
    /// In order of size.
    pub(crate) woken_ms: Vec<f64>,
}

/// Where a run stands that is written into a journal.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stand {
    WaitsForSignal,
    InAnAttempt,
}

/// Many runs that wait.
pub(crate) async fn many(program: &Path, disk: &Path, component: &Bytes, count: usize) -> anyhow::Result<Waiting> {
    let server = Server::start(program, disk).await?;
    let version = server.deploy_version("waits", component).await?;
    let (server, _) = server.restart(program, async |_| Ok(())).await?;
    let empty = server.rss_bytes()?;
    let before = server.journal_bytes()?;
    let mut ids = Vec::new();
    let (server, start) = server
        .restart(program, async |path| {
            ids = write(path, version, count, Stand::WaitsForSignal).await?;
            Ok(())
        })
        .await?;
    let full = server.rss_bytes()?;
    let mut waiting = Waiting {
        start_ms: start.as_secs_f64() * 1e3,
        bytes_each: full.saturating_sub(empty) as f64 / count as f64,
        disk_bytes_each: server.journal_bytes()?.saturating_sub(before) as f64 / count as f64,
        woken_ms: Vec::new(),
    };
    let mut connection = server.connect().await?;
    for id in ids.iter().step_by((count / TIMES).max(1)).take(TIMES) {
        waiting.woken_ms.push(signalled(&mut connection, &id.to_string()).await?);
    }
    waiting.woken_ms.sort_by(f64::total_cmp);
    server.stop().await?;
    Ok(waiting)
}

/// Seconds until so many interrupted runs have ended after a start.
pub(crate) async fn recovery(program: &Path, disk: &Path, component: &Bytes, count: usize) -> anyhow::Result<f64> {
    let server = Server::start(program, disk).await?;
    let version = server.deploy_version("waits", component).await?;
    let started = std::cell::Cell::new(Instant::now());
    let (server, _) = server
        .restart(program, async |path| {
            drop(write(path, version, count, Stand::InAnAttempt).await?);
            started.set(Instant::now());
            Ok(())
        })
        .await?;
    let mut connection = server.connect().await?;
    for status in ["running", "queued", "suspended"] {
        loop {
            let path = format!("/v1/runs?status={status}&limit=1");
            let page = connection.send_for_json(Method::GET, &path, &[], Bytes::new(), StatusCode::OK).await?;
            let is_empty = page.pointer("/data").and_then(Value::as_array).is_some_and(Vec::is_empty);
            if is_empty && page.pointer("/page/has_more") == Some(&Value::Bool(false)) {
                break;
            }
            ensure!(started.get().elapsed() < PATIENCE, "runs are still {status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let seconds = started.get().elapsed().as_secs_f64();
    let failed = connection.send_for_json(Method::GET, "/v1/failures", &[], Bytes::new(), StatusCode::OK).await?;
    ensure!(failed.pointer("/data") == Some(&json!([])), "runs have failed: {failed}");
    server.stop().await?;
    Ok(seconds)
}

/// Milliseconds of cancellations and of resumptions of a long record, each in order of size.
pub(crate) async fn control(program: &Path, disk: &Path, component: &Bytes) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let server = Server::start(program, disk).await?;
    server.deploy_version("waits", component).await?;
    let mut connection = server.connect().await?;
    let (mut cancelled, mut resumed) = (Vec::new(), Vec::new());
    for _ in 0..TIMES {
        let id = start(&mut connection, &json!([{"publish": 1}, {"busy_ms": 60_000}])).await?;
        seen(&mut connection, &id, "step.update").await?;
        let asked = Instant::now();
        let path = format!("/v1/runs/{id}/cancel");
        let run = connection.send_for_json(Method::POST, &path, &[], Bytes::new(), StatusCode::OK).await?;
        cancelled.push(asked.elapsed().as_secs_f64() * 1e3);
        ensure!(run.pointer("/status") == Some(&json!("cancelled")), "not cancelled: {run}");
    }
    for _ in 0..TIMES / 10 {
        let id = start(&mut connection, &json!([{"calls": CALLS}, {"signal": {"name": "go"}}])).await?;
        seen(&mut connection, &id, "run.suspended").await?;
        resumed.push(signalled(&mut connection, &id).await?);
    }
    cancelled.sort_by(f64::total_cmp);
    resumed.sort_by(f64::total_cmp);
    server.stop().await?;
    Ok((cancelled, resumed))
}

async fn start(connection: &mut Connection, script: &Value) -> anyhow::Result<String> {
    let body = Bytes::from(json!({ "input": script }).to_string());
    let path = "/v1/workflows/waits/runs";
    let run = connection.send_for_json(Method::POST, path, &[], body, StatusCode::ACCEPTED).await?;
    Ok(run.pointer("/id").and_then(Value::as_str).context("the run has no id")?.to_owned())
}

/// Waits for an event of a kind.
async fn seen(connection: &mut Connection, id: &str, kind: &str) -> anyhow::Result<()> {
    let path = format!("/v1/runs/{id}/events?kinds={kind}&limit=1&wait=60");
    let page = connection.send_for_json(Method::GET, &path, &[], Bytes::new(), StatusCode::OK).await?;
    let first = page.pointer("/data/0/kind").and_then(Value::as_str);
    ensure!(first == Some(kind), "run {id} had no {kind}, but {first:?}");
    Ok(())
}

/// Sends the signal that a run waits for. Returns the milliseconds until the run has completed.
async fn signalled(connection: &mut Connection, id: &str) -> anyhow::Result<f64> {
    let sent = Instant::now();
    let path = format!("/v1/runs/{id}/signals/go");
    drop(connection.send_for_json(Method::POST, &path, &[], Bytes::new(), StatusCode::ACCEPTED).await?);
    seen(connection, id, "run.completed").await?;
    Ok(sent.elapsed().as_secs_f64() * 1e3)
}

/// Writes runs into a journal that no server has open.
async fn write(path: &Path, version: Digest, count: usize, stand: Stand) -> anyhow::Result<Vec<RunId>> {
    let journal = std::sync::Arc::new(RedbJournal::open(path)?);
    let mut ids = Vec::with_capacity(count);
    let mut writing = JoinSet::new();
    for number in 0..count {
        let key = RunKey { tenant: "dev".parse()?, run: clock::run_id() };
        ids.push(key.run);
        if writing.len() >= WRITERS
            && let Some(written) = writing.join_next().await
        {
            written??;
        }
        if number > 0 && number.is_multiple_of(100_000) {
            report::progress(&format!("{number} runs are written"));
        }
        let batch = batch(version, stand)?;
        let journal = std::sync::Arc::clone(&journal);
        writing.spawn(async move { journal.create(&key, batch, None).await.map(drop) });
    }
    while let Some(written) = writing.join_next().await {
        written??;
    }
    Ok(ids)
}

/// What the loop of such a run has written.
fn batch(version: Digest, stand: Stand) -> anyhow::Result<Batch> {
    let at = clock::now();
    let deadline = at.plus_millis(3_600_000);
    let script = match stand {
        Stand::WaitsForSignal => r#"[{"signal":{"name":"go"}}]"#,
        Stand::InAnAttempt => r#"[{"publish":1}]"#,
    };
    let step: StepId = "act".parse::<NodeId>()?.into();
    let mut events = vec![
        Event::RunQueued {
            workflow: "waits".parse()?,
            version,
            input: Payload::Inline(Json::parse(script.to_owned())?),
            parent: None,
            rerun_of: None,
            shadow_of: None,
            place: None,
        },
        Event::RunStarted { deadline: Some(deadline) },
        Event::StepStarted { step: step.clone(), attempt: 1 },
    ];
    if stand == Stand::WaitsForSignal {
        let arguments = Digest::from_bytes(Sha256::digest(br#"["go",null]"#).into());
        let call =
            WaitingCall { call: "wait.signal".to_owned(), arguments, signal: Some("go".to_owned()), child: None };
        let (reason, until) = (SuspendReason::Signal, None::<Timestamp>);
        events.push(Event::StepSuspended { step, reason, until, call: Some(Box::new(call)) });
        events.push(Event::RunSuspended { reason, until: Some(deadline) });
    }
    let mut summary = RunSummary::after(None, 1, at, &events).context("a run has a summary")?;
    summary.channel = Some("waits".to_owned());
    summary.parked = stand == Stand::WaitsForSignal;
    let wake = WakeChange { before: None, after: summary.waits_until };
    Ok(Batch {
        at,
        events,
        listed: Some(!summary.parked),
        wake: summary.parked.then_some(wake),
        channel: summary.channel.clone(),
        summary: Some(summary),
        ..Batch::default()
    })
}
