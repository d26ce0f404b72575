//! The oracle: whatever subscribers and the server do, each subscriber ends up with the journal.
//!
//! Runs that publish, fail and are rolled back; subscribers that connect when they like, let go, come back to their
//! place and read in pauses; a server that is killed in the middle, several times. What each subscriber has received must
//! be what the journal has; and once rolled back updates are folded away, what the steps were told. Connections that are
//! full are `stalls.rs`'s.
//!
//! `STEPWELL_ORACLE=200x1000` makes it larger. `STEPWELL_SEED` plays the same decisions again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::frames_of;
use crate::support::{Frame, Frames, PATIENCE, Server, check_history};

/// What the gate plays: a few seconds.
const RUNS: usize = 24;
const SUBSCRIBERS: usize = 120;
const CRASHES: usize = 5;

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

fn seed() -> u64 {
    let given = std::env::var("STEPWELL_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| jiff::Timestamp::now().subsec_nanosecond().unsigned_abs().into())
}

fn size() -> (usize, usize) {
    let text = std::env::var("STEPWELL_ORACLE").unwrap_or_default();
    let parsed =
        text.split_once('x').and_then(|(runs, subscribers)| Some((runs.parse().ok()?, subscribers.parse().ok()?)));
    parsed.unwrap_or((RUNS, SUBSCRIBERS))
}

/// Updates that count, as a client folds them: a rollback takes away what its attempt had published.
fn folded(events: impl Iterator<Item = Value>) -> Vec<Value> {
    let mut updates: Vec<Value> = Vec::new();
    for event in events {
        match event["kind"].as_str().unwrap() {
            "step.update" => updates.push(event),
            "step.rolled_back" => {
                let range = event["first_seq"].as_u64().unwrap()..=event["last_seq"].as_u64().unwrap();
                let of = |update: &Value| (update["run"].clone(), update["node"].clone(), update["items"].clone());
                updates.retain(|update| of(update) != of(&event) || !range.contains(&update["seq"].as_u64().unwrap()));
            }
            _ => {}
        }
    }
    updates
}

/// The positions of each step's updates that count, as a client has them.
fn positions_of(updates: &[Value]) -> BTreeMap<String, Vec<u64>> {
    let mut positions: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for update in updates.iter().filter(|update| update["topic"] == "update") {
        let of_node = positions.entry(update["node"].as_str().unwrap().to_owned()).or_default();
        of_node.push(update["seq"].as_u64().unwrap());
    }
    positions
}

/// The positions that each step was told when it published: its successful attempt's own account, in the run's output.
fn positions_told(events: &[Value]) -> BTreeMap<String, Vec<u64>> {
    let output = &events.last().unwrap()["output"];
    let nodes = ["begin", "left", "right", "join", "finish"].iter().filter(|node| output[**node].is_object());
    let told = |node: &str| output[node]["positions"].as_array().unwrap().iter().map(|seq| seq.as_u64().unwrap());
    nodes.map(|node| ((*node).to_owned(), told(node).collect())).collect()
}

/// A subscriber: what it follows, and what it has received.
struct Subscriber {
    http: reqwest::Client,
    url: String,
    random: u64,
    /// Frames after which it has let go of a connection, at the latest.
    stays_max: u64,
    received: Vec<Frame>,
}

impl Subscriber {
    /// Connects; `None` while the server is away. `Some(None)` when it is told that nothing follows.
    async fn connect(&self) -> Option<Option<Frames>> {
        let mut request = self.http.get(&self.url).bearer_auth("dev").header("accept", "text/event-stream");
        if let Some(last) = self.received.last() {
            request = request.header("last-event-id", last.id);
        }
        let response = request.send().await.ok()?;
        match response.status() {
            StatusCode::OK => Some(Some(Frames::of(response))),
            StatusCode::NO_CONTENT => Some(None),
            status => panic!("{status}: {}", self.url),
        }
    }

    /// Follows until `is_over`, in as many connections as it takes.
    async fn follow(mut self, is_over: impl Fn(&[Frame]) -> bool) -> Vec<Frame> {
        let started = Instant::now();
        while !is_over(&self.received) {
            assert!(started.elapsed() < 3 * PATIENCE, "{} frames of {}", self.received.len(), self.url);
            let frames = match self.connect().await {
                Some(Some(frames)) => frames,
                Some(None) => panic!("nothing follows after {:?} of {}", self.received.last(), self.url),
                None => {
                    tokio::time::sleep(Duration::from_millis(5)).await; // the server is away
                    continue;
                }
            };
            let (mut frames, stays) = (frames, random(&mut self.random) % self.stays_max);
            let pauses = random(&mut self.random).is_multiple_of(4);
            for _ in 0..stays {
                let Some(frame) = frames.next().await else { break };
                self.received.push(frame);
                if is_over(&self.received) {
                    break;
                }
                if pauses && random(&mut self.random).is_multiple_of(8) {
                    // Frames pile up meanwhile, and come many at once.
                    tokio::time::sleep(Duration::from_millis(random(&mut self.random) % 40)).await;
                }
            }
        }
        self.received
    }
}

fn is_end(frame: &Frame) -> bool {
    matches!(frame.event.as_str(), "run.completed" | "run.failed" | "run.cancelled")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_subscriber_ends_up_with_the_journal_whatever_it_and_the_server_do() {
    let mut state = seed();
    println!("STEPWELL_SEED={state}");
    let (runs, subscribers) = size();
    let mut server = Server::start();
    server.deploy("probe", "stepwell_probe").await;
    let url = server.url.clone();
    let address = url.strip_prefix("http://").unwrap().to_owned();
    let http = reqwest::Client::new();

    let mut ids = Vec::new();
    for _ in 0..runs {
        let node = ["begin", "left", "right", "join", "finish"][random(&mut state) as usize % 5];
        let input = json!({
            "busy_ms": random(&mut state) % 120, "updates": random(&mut state) % 20 + 1, "fail_node": node,
            // At most three of four attempts fail; with a fourth the run does.
            "fail_first": random(&mut state) % 5, "retry_after_ms": random(&mut state) % 50,
        });
        ids.push(server.start_run("probe", input).await);
    }
    let target = Arc::new(AtomicU64::new(u64::MAX));
    let mut following = Vec::new();
    for n in 0..subscribers {
        // One in ten follows the channel of all runs.
        let run = (n % 10 != 0).then(|| ids[random(&mut state) as usize % ids.len()].clone());
        let path = run.as_ref().map_or("/v1/channels/probes/events".to_owned(), |id| format!("/v1/runs/{id}/events"));
        let (http, random_state) = (http.clone(), random(&mut state) | 1);
        // A channel has the frames of all runs, and whoever comes back to it reads a page.
        let stays_max = if run.is_some() { 60 } else { 20 * runs as u64 };
        let subscriber =
            Subscriber { http, url: format!("{url}{path}"), random: random_state, stays_max, received: Vec::new() };
        let (late, target) = (random(&mut state) % 1_500, Arc::clone(&target));
        following.push((
            run.clone(),
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(late)).await; // they do not all come at once
                match run {
                    Some(_) => subscriber.follow(|received| received.last().is_some_and(is_end)).await,
                    None => {
                        let is_over = |received: &[Frame]| {
                            received.last().is_some_and(|last| last.id >= target.load(Ordering::Relaxed))
                        };
                        subscriber.follow(is_over).await
                    }
                }
            }),
        ));
    }
    for _ in 0..CRASHES {
        // The moment of the crash is the point of this test.
        tokio::time::sleep(Duration::from_millis(100 + random(&mut state) % 400)).await;
        server.kill();
        server.start_again_at(&address);
    }
    let mut histories = std::collections::HashMap::new();
    for id in &ids {
        server.ended(id).await;
        let events = server.events(id).await;
        check_history(&events);
        histories.insert(id.clone(), events);
    }
    let channel = whole_channel(&server).await;
    target.store(channel.len() as u64, Ordering::Relaxed);
    let shown = |event: &&Value| {
        let kind = event["kind"].as_str().unwrap();
        matches!(kind, "step.update" | "step.rolled_back" | "run.completed" | "run.failed" | "run.cancelled")
    };
    assert_eq!(channel.len(), histories.values().map(|events| events.iter().filter(shown).count()).sum::<usize>());
    let last_word = server.start_run("probe", json!({"updates": 1})).await;
    let (mut rolled_back, mut completed) = (0, 0);
    for (run, task) in following {
        let received = task.await.unwrap();
        match run {
            Some(id) => {
                let events = &histories[&id];
                assert_eq!(received, frames_of(events), "run {id}");
                let counted = folded(received.into_iter().map(|frame| frame.data));
                if events.last().unwrap()["kind"] == "run.completed" {
                    assert_eq!(positions_of(&counted), positions_told(events), "run {id}");
                    completed += 1;
                }
                rolled_back += usize::from(events.iter().any(|event| event["kind"] == "step.rolled_back"));
            }
            None => {
                let received: Vec<Value> = received.into_iter().map(|frame| frame.data).take(channel.len()).collect();
                assert_eq!(received, channel);
                for id in &ids {
                    let of_run = received.iter().filter(|entry| entry["run"] == **id).cloned();
                    let seqs: Vec<Value> = folded(of_run).iter().map(|update| update["seq"].clone()).collect();
                    let expected: Vec<Value> = check_history(&histories[id]).iter().map(|u| u["seq"].clone()).collect();
                    assert_eq!(seqs, expected, "run {id} in its channel");
                }
            }
        }
    }
    assert!(rolled_back > 0 && completed > 0, "nothing was rolled back: this has tested less than it should");
    server.ended(&last_word).await;
}

async fn whole_channel(server: &Server) -> Vec<Value> {
    let (mut entries, mut cursor) = (Vec::new(), "0".to_owned());
    loop {
        let page = server.get(&format!("/v1/channels/probes/events?limit=1000&after={cursor}")).await;
        entries.extend(page["data"].as_array().unwrap().iter().cloned());
        page["page"]["cursor"].as_str().unwrap().clone_into(&mut cursor);
        if page["page"]["has_more"] == false {
            return entries;
        }
    }
}

/// The moment when a run ends is the one at which others have lost the last events, or waited for ever.
#[tokio::test(flavor = "multi_thread")]
async fn subscribers_that_connect_in_the_moment_of_completion_see_the_end_once() {
    let server = Server::start();
    server.deploy("noop", "stepwell_noop").await;
    for _ in 0..10 {
        let id = server.start_run("noop", json!(1)).await;
        let connect = |after: u64| {
            let request = server.request(reqwest::Method::GET, &format!("/v1/runs/{id}/events?after={after}"));
            tokio::spawn(request.header("accept", "text/event-stream").send())
        };
        // The run has 23 events and takes a few milliseconds: these come while it ends, and right after.
        let subscribers: Vec<_> = (0..25).map(|n| (n, connect(n))).collect();
        let mut answers = Vec::new();
        for (after, subscriber) in subscribers {
            answers.push((after, subscriber.await.unwrap().unwrap()));
        }
        server.ended(&id).await;
        let expected = frames_of(&server.events(&id).await);
        assert_eq!(expected.len(), 23);
        for (after, response) in answers {
            match response.status() {
                StatusCode::OK => {
                    let frames = Frames::of(response).rest().await;
                    assert_eq!(frames, expected[(after as usize).min(23)..], "after {after}");
                }
                status => assert_eq!((status, after >= 23), (StatusCode::NO_CONTENT, true), "after {after}"),
            }
        }
    }
}
