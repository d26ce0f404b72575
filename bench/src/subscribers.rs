//! Many subscribers, and many updates.
//!
//! # What is measured
//! *Latency*: from `at` of an update, when the host ordered it, to the moment the subscriber has its frame; both by this
//! machine's clock. `at` is rounded down to a millisecond, which makes every latency up to one too long; and the events
//! of one append share the time of the last of them, which makes some of them shorter by less than an fsync takes.
//! The updates are the words of a made-up model, which writes one every 20 ms: a run publishes as a run with a real
//! model does, and no guest computes meanwhile.
//!
//! *Updates a second*: runs of `probe` that publish as fast as they are let, until all of them have ended. All their
//! updates are on disk then, and in their channel, where they are counted.
//!
//! *Memory*: what the process of the server holds with its subscribers, less what it held before, divided by their
//! number. Kernel buffers of sockets are not in it.
//!
//! Keeps: a figure counts only when every stream was whole: positions without a gap, and `run.completed` at the end.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderName};
use hyper::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::http::{Connection, Header};
use crate::report;
use crate::server::Server;

const JSON: Header = (CONTENT_TYPE, "application/json");
const STREAM: Header = (ACCEPT, "text/event-stream");
/// The run is waited for, for at most five minutes.
const WAIT: Header = (HeaderName::from_static("prefer"), "wait=300");

/// Questions to the model, one after the other, each answered with some fifty words in a second.
const QUESTIONS: usize = 6;
/// Runs that publish in a measurement of latency. The host hands on a model's words every 40 ms, so together these publish
/// a thousand updates a second.
pub(crate) const PUBLISHING_RUNS: usize = 44;
/// Updates of each step of a run that publishes as fast as it can. A step may publish 10,000.
const FLOOD_ONE: usize = 2_000;
/// The same for each of many runs.
const FLOOD_MANY: usize = 300;
/// Steps of a run of `probe`, and its updates besides those of its steps.
const PROBE: (usize, usize) = (5, 2);

/// What subscribers of publishing runs saw.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    /// In milliseconds, in order of size.
    pub(crate) latencies_ms: Vec<f64>,
    /// Updates that all subscribers together got in a second.
    pub(crate) deliveries_per_s: f64,
    /// Updates that the runs published in a second.
    pub(crate) updates_per_s: f64,
    /// Bytes of the server's memory for each subscriber.
    pub(crate) bytes_each: f64,
    /// What was wrong with a stream.
    pub(crate) failures: Vec<String>,
}

/// A graph whose runs publish words for some seconds.
fn words() -> Value {
    let prompt = "one two three four five six seven eight nine ten ".repeat(4);
    let node = |n| {
        json!({ "id": format!("ask{n}"), "kind": "llm", "provider": "mock", "model": "mock-slow", "topic": "words",
                "prompt": prompt })
    };
    let edge = |n: usize| json!({ "source": format!("ask{}", n - 1), "target": format!("ask{n}") });
    json!({
        "stepwell": 1, "topics": ["words"], "channel": "words",
        "nodes": (0..QUESTIONS).map(node).collect::<Vec<_>>(),
        "edges": (1..QUESTIONS).map(edge).collect::<Vec<_>>(),
    })
}

/// Deploys what the measurements run.
pub(crate) async fn prepare(server: &Server, probe: &Bytes) -> anyhow::Result<()> {
    server.deploy("probe", probe).await?;
    let mut connection = server.connect().await?;
    let body = Bytes::from(words().to_string());
    let path = "/v1/workflows/words/versions";
    connection.send_for_json(Method::POST, path, &[JSON], body, StatusCode::CREATED).await?;
    Ok(())
}

async fn start(connection: &mut Connection, workflow: &str, input: &Value) -> anyhow::Result<String> {
    let path = format!("/v1/workflows/{workflow}/runs");
    let body = Bytes::from(json!({ "input": input }).to_string());
    let run = connection.send_for_json(Method::POST, &path, &[JSON], body, StatusCode::ACCEPTED).await?;
    Ok(run.get("id").and_then(Value::as_str).context("an accepted run has no id")?.to_owned())
}

async fn open(connection: &mut Connection, path: &str) -> anyhow::Result<Response<Incoming>> {
    let response = connection.open_response(Method::GET, path, &[STREAM], Bytes::new()).await?;
    ensure!(response.status() == StatusCode::OK, "{path} was answered {}", response.status());
    Ok(response)
}

/// Lets `runs` runs publish, with `each` subscribers for each of them.
pub(crate) async fn follow(server: &Server, runs: usize, each: usize) -> anyhow::Result<Followed> {
    let count = runs * each;
    report::progress(&format!("{count} subscribers of {runs} runs that publish words"));
    let before = server.rss_bytes()?;
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        connections.push(server.connect().await?);
    }
    let mut starter = server.connect().await?;
    let started = Instant::now();
    let mut ids = Vec::with_capacity(runs);
    for _ in 0..runs {
        ids.push(start(&mut starter, "words", &Value::Null).await?);
    }
    let mut tasks = JoinSet::new();
    for (id, mut connection) in ids.iter().cycle().zip(connections) {
        let path = format!("/v1/runs/{id}/events");
        tasks.spawn(async move { watch(&mut connection, &path).await });
    }
    // In the middle, when everybody is busy.
    tokio::time::sleep(std::time::Duration::from_secs(QUESTIONS as u64 / 2)).await;
    let busy = server.rss_bytes()?;
    let mut followed = Followed::default();
    let mut updates = 0;
    while let Some(subscriber) = tasks.join_next().await {
        match subscriber.context("a subscriber panicked")? {
            Ok(seen) => {
                updates += seen.updates;
                followed.latencies_ms.extend(seen.latencies_ms);
            }
            Err(error) => followed.failures.push(format!("{error:#}")),
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    followed.latencies_ms.sort_by(f64::total_cmp);
    followed.deliveries_per_s = updates as f64 / seconds;
    followed.updates_per_s = followed.deliveries_per_s / each as f64;
    followed.bytes_each = busy.saturating_sub(before) as f64 / count as f64;
    Ok(followed)
}

/// What one subscriber saw.
#[derive(Debug, Default)]
struct Seen {
    updates: usize,
    latencies_ms: Vec<f64>,
    last_id: u64,
    last_event: String,
    rest: Vec<u8>,
}

async fn watch(connection: &mut Connection, path: &str) -> anyhow::Result<Seen> {
    let mut body = open(connection, path).await?.into_body();
    let connected = now_ms();
    let mut seen = Seen::default();
    while let Some(part) = body.frame().await {
        if let Some(bytes) = part.context("the stream broke")?.data_ref() {
            seen.received(bytes, connected, now_ms())?;
        }
    }
    ensure!(seen.last_event == "run.completed", "the stream ended with {}", seen.last_event);
    Ok(seen)
}

impl Seen {
    /// Takes what came at `now`, in milliseconds since 1970. It may end anywhere in a frame. What is older than the
    /// connection has no latency.
    fn received(&mut self, bytes: &[u8], connected: f64, now: f64) -> anyhow::Result<()> {
        self.rest.extend_from_slice(bytes);
        let mut taken = 0;
        while let Some(frame) = self.rest.get(taken..) {
            let Some(end) = frame.windows(2).position(|pair| pair == b"\n\n") else { break };
            let frame = String::from_utf8_lossy(frame.get(..end).unwrap_or_default()).into_owned();
            taken += end + 2;
            let field = |name: &str| frame.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let (Some(id), Some(event), Some(data)) = (field("id:"), field("event:"), field("data:")) else { continue };
            let id = id.parse().context("an id is no number")?;
            ensure!(id == self.last_id + 1, "event {id} came after event {}", self.last_id);
            self.last_id = id;
            event.clone_into(&mut self.last_event);
            if event == "step.update" {
                self.updates += 1;
                // The clients share the server's cores: no more is parsed than is needed.
                let at = data.split_once("\"at\":\"").and_then(|(_, rest)| rest.split_once('"'));
                let (at, _) = at.context("an update has no time")?;
                let at: jiff::Timestamp = at.parse().context("the time of an update cannot be read")?;
                let at = at.as_millisecond() as f64;
                if at >= connected {
                    self.latencies_ms.push(now - at);
                }
            }
        }
        self.rest.drain(..taken);
        Ok(())
    }
}

/// Updates a second of one run that publishes as fast as it is let, to a subscriber that has all of them.
pub(crate) async fn flood_one(server: &Server) -> anyhow::Result<f64> {
    let (mut starter, mut subscriber) = (server.connect().await?, server.connect().await?);
    let started = Instant::now();
    let id = start(&mut starter, "probe", &json!({ "updates": FLOOD_ONE })).await?;
    let seen = watch(&mut subscriber, &format!("/v1/runs/{id}/events")).await?;
    let updates = PROBE.0 * FLOOD_ONE + PROBE.1;
    ensure!(seen.updates == updates, "{} updates came of {updates}", seen.updates);
    Ok(updates as f64 / started.elapsed().as_secs_f64())
}

/// The same of many runs at once, until all have ended. `entries` is what their channel has before.
pub(crate) async fn flood_many(server: &Server, runs: usize, entries: usize) -> anyhow::Result<f64> {
    report::progress(&format!("{runs} runs that publish as fast as they are let"));
    let mut connections = Vec::with_capacity(runs);
    for _ in 0..runs {
        connections.push(server.connect().await?);
    }
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for mut connection in connections {
        tasks.spawn(async move {
            let body = Bytes::from(json!({ "input": { "updates": FLOOD_MANY } }).to_string());
            let path = "/v1/workflows/probe/runs";
            let run = connection.send_for_json(Method::POST, path, &[JSON, WAIT], body, StatusCode::OK).await?;
            ensure!(run.get("status").and_then(Value::as_str) == Some("completed"), "a run ended wrongly: {run}");
            Ok(())
        });
    }
    while let Some(run) = tasks.join_next().await {
        run.context("a client panicked")??;
    }
    let seconds = started.elapsed().as_secs_f64();
    let updates = runs * (PROBE.0 * FLOOD_MANY + PROBE.1);
    // Each update, and the end of each run, once: the last entry has this number, and nothing comes after it.
    let last = entries + updates + runs;
    let path = format!("/v1/channels/probes/events?after={}", last - 1);
    let mut connection = server.connect().await?;
    let page = connection.send_for_json(Method::GET, &path, &[], Bytes::new(), StatusCode::OK).await?;
    let cursors: Vec<u64> = page
        .get("data")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|e| e.get("cursor")?.as_u64())
        .collect();
    ensure!(cursors == [last as u64], "the channel should end at {last}: {cursors:?}");
    Ok(updates as f64 / seconds)
}

/// Entries in the channel of `probe` after [`flood_one`].
pub(crate) const ENTRIES_AFTER_ONE: usize = PROBE.0 * FLOOD_ONE + PROBE.1 + 1;

/// Bytes of the server's memory for each of `count` subscribers of a run in which nothing happens.
pub(crate) async fn idle(server: &Server, count: usize) -> anyhow::Result<f64> {
    report::progress(&format!("{count} subscribers to whom nothing happens"));
    let mut connection = server.connect().await?;
    // It waits for its second attempt, for longer than this takes.
    let input = json!({ "fail_node": "begin", "fail_first": 1, "retry_after_ms": 3_600_000, "updates": 0 });
    let id = start(&mut connection, "probe", &input).await?;
    let path = format!("/v1/runs/{id}/events?kinds=run.suspended&wait=60");
    let page = connection.send_for_json(Method::GET, &path, &[], Bytes::new(), StatusCode::OK).await?;
    let last = page.pointer("/data/0/seq").and_then(Value::as_u64).context("the run does not wait")?;
    let path = format!("/v1/runs/{id}/events?after={last}");
    let before = server.rss_bytes()?;
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = server.connect().await?;
        let mut body = open(&mut connection, &path).await?.into_body();
        let hello = body.frame().await.context("a stream ended before it began")??;
        ensure!(hello.data_ref().is_some_and(|bytes| bytes.starts_with(b"retry:")), "a stream began with {hello:?}");
        streams.push((connection, body));
    }
    let bytes = server.rss_bytes()?.saturating_sub(before) as f64 / count as f64;
    drop(streams);
    let path = format!("/v1/runs/{id}/cancel");
    connection.send_for_json(Method::POST, &path, &[JSON], Bytes::new(), StatusCode::OK).await?;
    Ok(bytes)
}

/// The clock of the host, finer: milliseconds since 1970.
fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMES: &str = "retry:1000\n\nid:1\nevent:run.started\ndata:{\"seq\":1}\n\n: keepalive\n\n\
        id:2\nevent:step.update\ndata:{\"seq\":2,\"at\":\"2026-01-02T03:04:05.000Z\"}\n\n";
    const AT_MS: f64 = 1_767_323_045_000.0;

    #[test]
    fn frames_are_put_together_from_pieces_of_any_size() {
        for size in 1..FRAMES.len() {
            let mut seen = Seen::default();
            for piece in FRAMES.as_bytes().chunks(size) {
                seen.received(piece, AT_MS, AT_MS + 3.0).unwrap();
            }
            assert_eq!((seen.last_id, seen.updates, seen.latencies_ms), (2, 1, vec![3.0]));
        }
    }

    #[test]
    fn a_gap_is_no_measurement_and_what_was_there_before_has_no_latency() {
        let mut seen = Seen { last_id: 1, ..Seen::default() };
        assert!(seen.received(FRAMES.as_bytes(), AT_MS, AT_MS).is_err());
        let mut seen = Seen::default();
        seen.received(FRAMES.as_bytes(), AT_MS + 1.0, AT_MS + 2.0).unwrap();
        assert_eq!((seen.updates, seen.latencies_ms), (1, vec![]));
    }
}
