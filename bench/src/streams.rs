//! A client that follows runs of `probe`, one after the other.
//!
//! # What is measured
//! From `at` of an update, when the host ordered it, to the moment the subscriber has its frame; both by this
//! machine's clock. In between are the durable append and the way out. `at` has a resolution of one millisecond and
//! is rounded down, so by itself it would make every latency up to a millisecond too long. But a probe reads the clock
//! between its updates until the next millisecond comes, and publishes then: all updates but the first of a step are
//! ordered right behind a tick. The first ones are left out.
//!
//! The probe computes while it waits, on one core or, in its two branches, on two. So on a machine with few cores the
//! high percentiles say how long a thread of the host, or of this client, waits for a core that a guest is on.
//!
//! Keeps: a latency counts only when the stream is whole: positions without a gap, and `run.completed` at the end.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::{Method, StatusCode};
use serde_json::Value;

use crate::http::Connection;
use crate::report;
use crate::server::Server;

/// Each step publishes 20 updates, one every 2 ms, and takes 50 ms with what is left over.
const BODY: &str = r#"{"input":{"busy_ms":50,"updates":20}}"#;

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Followed {
    /// One for each update that counts, in milliseconds, in order of size.
    pub(crate) latencies_ms: Vec<f64>,
    /// What was wrong with a stream.
    pub(crate) failures: Vec<String>,
}

/// Starts and follows runs, one at a time.
pub(crate) async fn follow(server: &Server, runs: u32) -> anyhow::Result<Followed> {
    report::progress(&format!("following {runs} runs, one at a time"));
    let mut followed = Followed::default();
    // Two connections, open before the run starts, so that the subscriber is there from its first events on.
    let (mut starter, mut subscriber) = (server.connect().await?, server.connect().await?);
    for number in 0..=runs {
        let body = Bytes::from_static(BODY.as_bytes());
        let headers = [(CONTENT_TYPE, "application/json")];
        let path = "/v1/workflows/probe/runs";
        let run = starter.send_for_json(Method::POST, path, &headers, body, StatusCode::ACCEPTED).await?;
        let run = run.get("id").and_then(Value::as_str).context("an accepted run has no id")?;
        match follow_run(&mut subscriber, run).await {
            Ok(_) if number == 0 => {} // loads the code and warms everything up
            Ok(latencies_ms) => followed.latencies_ms.extend(latencies_ms),
            Err(error) => {
                followed.failures.push(format!("run {run}: {error:#}"));
                subscriber = server.connect().await?; // the old one may have an answer half read
            }
        }
    }
    followed.latencies_ms.sort_by(f64::total_cmp);
    Ok(followed)
}

async fn follow_run(connection: &mut Connection, run: &str) -> anyhow::Result<Vec<f64>> {
    let path = format!("/v1/runs/{run}/events");
    let headers = [(ACCEPT, "text/event-stream")];
    let response = connection.open_response(Method::GET, &path, &headers, Bytes::new()).await?;
    ensure!(response.status() == StatusCode::OK, "{path} was answered {}", response.status());
    let mut body = response.into_body();
    let mut stream = Stream::default();
    while let Some(part) = body.frame().await {
        let part = part.context("the stream broke")?;
        if let Some(bytes) = part.data_ref() {
            stream.received(bytes, now_ms())?;
        }
    }
    ensure!(stream.last_kind == "run.completed", "the stream ended with {}", stream.last_kind);
    Ok(stream.latencies_ms)
}

/// What has come of a stream so far.
#[derive(Debug, Default)]
struct Stream {
    /// The beginning of a frame whose end has not come.
    rest: Vec<u8>,
    last_seq: u64,
    last_kind: String,
    latencies_ms: Vec<f64>,
}

impl Stream {
    /// Takes what came at `now`, in milliseconds since 1970. It may end anywhere in a frame.
    fn received(&mut self, bytes: &[u8], now: f64) -> anyhow::Result<()> {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.windows(2).position(|pair| pair == b"\n\n") {
            let frame: Vec<u8> = self.rest.drain(..end + 2).collect();
            let mut lines = frame.split(|byte| *byte == b'\n');
            // Frames without data say how to connect again, or keep the connection alive.
            if let Some(data) = lines.find_map(|line| line.strip_prefix(b"data:")) {
                let event = serde_json::from_slice(data).context("an event is not JSON")?;
                self.event(&event, now)?;
            }
        }
        Ok(())
    }

    fn event(&mut self, event: &Value, now: f64) -> anyhow::Result<()> {
        let seq = event.get("seq").and_then(Value::as_u64).context("an event has no position")?;
        ensure!(seq == self.last_seq + 1, "event {seq} came after event {}", self.last_seq);
        self.last_seq = seq;
        let kind = event.get("kind").and_then(Value::as_str).context("an event has no kind")?;
        kind.clone_into(&mut self.last_kind);
        let update = event.pointer("/payload/n").and_then(Value::as_u64);
        if kind == "step.update" && update.is_some_and(|n| n > 1) {
            let at = event.get("at").and_then(Value::as_str).context("an update has no time")?;
            let at: jiff::Timestamp = at.parse().context("the time of an update cannot be read")?;
            self.latencies_ms.push(now - at.as_millisecond() as f64);
        }
        Ok(())
    }
}

/// The clock of the host, finer: milliseconds since 1970.
fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMES: &str = "retry:1000\n\n\
        id:1\nevent:run.started\ndata:{\"seq\":1,\"kind\":\"run.started\",\"at\":\"2026-01-02T03:04:05.000Z\"}\n\n\
        id:2\nevent:step.update\ndata:{\"seq\":2,\"kind\":\"step.update\",\"at\":\"2026-01-02T03:04:05.000Z\",\
        \"payload\":{\"n\":2}}\n\n";
    const AT_MS: f64 = 1_767_323_045_000.0;

    #[test]
    fn frames_are_put_together_from_pieces_of_any_size() {
        for size in 1..FRAMES.len() {
            let mut stream = Stream::default();
            for piece in FRAMES.as_bytes().chunks(size) {
                stream.received(piece, AT_MS + 3.0).unwrap();
            }
            assert_eq!((stream.last_seq, stream.latencies_ms), (2, vec![3.0]));
        }
    }

    #[test]
    fn a_gap_in_a_stream_is_no_measurement() {
        let mut stream = Stream { last_seq: 1, ..Stream::default() };
        assert!(stream.received(FRAMES.as_bytes(), AT_MS).is_err());
    }
}
