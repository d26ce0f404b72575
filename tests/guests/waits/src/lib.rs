//! `stepwell build tests/guests/waits`, then `stepwell deploy waits COMPONENT` and
//! `stepwell run waits --input '[{"sleep": 500}, {"signal": {"name": "go"}}]' --follow`.
//!
//! A workflow for tests: its one step does what its input lists, one thing after the other, and puts out what each
//! came to.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use stepwell_guest::prelude::*;

/// One thing to do.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// Sleeps for so many milliseconds.
    Sleep(u64),
    /// Waits for a signal.
    Signal {
        /// Its name.
        name: String,
        /// For so long at most.
        within_ms: Option<u64>,
    },
    /// Starts a child.
    Start {
        /// Its workflow.
        workflow: String,
        /// Its version.
        version: Option<String>,
        /// Its input.
        #[serde(default)]
        input: Value,
        /// Whether it goes on by itself.
        #[serde(default)]
        detached: bool,
    },
    /// Waits for the child that was started last, or for a run by its id.
    Await {
        /// The run.
        run: Option<String>,
        /// For so long at most.
        within_ms: Option<u64>,
    },
    /// Publishes a value.
    Publish(Value),
    /// Stores a file of so many bytes.
    File(usize),
    /// Publishes so many updates of so many bytes.
    Flood(u32, usize),
    /// Makes so many calls that are recorded.
    Calls(u32),
    /// Waits so many times for no time at all.
    Waits(u32),
    /// Computes for so many milliseconds.
    BusyMs(u64),
    /// Fails so many attempts, from the first on.
    Fail {
        /// How many.
        attempts: u32,
        /// With this code.
        code: String,
        /// For good.
        #[serde(default)]
        permanent: bool,
    },
}

/// `{"error": …}`, so that a test sees what a step sees.
fn told<T: Into<Value>>(result: Result<T, impl std::fmt::Debug>) -> Value {
    result.map_or_else(|error| json!({ "error": format!("{error:?}") }), Into::into)
}

#[workflow(topics = ["update"], channel = "waits", signals = ["go", "stop"], timeout = "1h", output = "act")]
mod waits {
    use super::*;

    /// Does what the input lists.
    #[step(
        retry(
            max_attempts = 3,
            initial = "20ms",
            max = "1s",
            when_exhausted = "pause",
            errors(hopeless(max_attempts = 1))
        ),
        timeout = "30s",
        fuel = 20_000_000_000
    )]
    pub fn act(ctx: &Ctx, input: Vec<Act>) -> Result<Vec<Value>, Failure> {
        let mut child: Option<ChildRun> = None;
        let mut done = Vec::new();
        for act in input {
            done.push(match act {
                Act::Sleep(ms) => told(ctx.sleep(Duration::from_millis(ms)).map(|()| Value::Null)),
                Act::Signal { name, within_ms: None } => told(ctx.signal::<Value>(&name)),
                Act::Signal { name, within_ms: Some(ms) } => {
                    told(ctx.signal_within::<Value>(&name, Duration::from_millis(ms)))
                }
                Act::Start { workflow, version, input, detached } => {
                    let mut wanted = Child::of(workflow).input(&input);
                    if let Some(version) = version {
                        wanted = wanted.version(version);
                    }
                    if detached {
                        wanted = wanted.detached();
                    }
                    let started = ctx.start_child(wanted);
                    child = started.as_ref().ok().cloned();
                    told(started.map(|run| run.id().to_owned()))
                }
                Act::Await { run, within_ms } => {
                    let run = run.map(ChildRun::from_id).or_else(|| child.clone());
                    let run = run.ok_or_else(|| Failure::permanent("no_child", "there is no child to wait for"))?;
                    match within_ms {
                        None => told(ctx.await_child::<Value>(&run)),
                        Some(ms) => told(ctx.await_child_within::<Value>(&run, Duration::from_millis(ms))),
                    }
                }
                Act::Publish(value) => ctx.publish("update", &value)?.get().into(),
                Act::File(bytes) => {
                    let stored = ctx.artifact(&format!("{bytes}.txt"), "text/plain", &vec![b'x'; bytes]);
                    told(stored.map(|artifact| artifact.id))
                }
                Act::Flood(count, bytes) => {
                    let text = "x".repeat(bytes);
                    (0..count).map(|_| told(ctx.publish("update", &text).map(|at| at.get()))).last().into()
                }
                Act::Calls(count) => (0..count).map(|_| ctx.now_ms()).last().into(),
                Act::Waits(count) => {
                    (0..count).map(|_| told(ctx.sleep(Duration::ZERO).map(|()| Value::Null))).last().into()
                }
                Act::BusyMs(ms) => {
                    let until = ctx.now_ms() + ms;
                    while ctx.now_ms() < until {
                        std::hint::black_box((0..200_000u64).fold(0, |sum, n| sum ^ n));
                    }
                    Value::Null
                }
                Act::Fail { attempts, code, permanent } if ctx.attempt() <= attempts => {
                    let message = "the input says so";
                    return Err(if permanent {
                        Failure::permanent(code, message)
                    } else {
                        Failure::retryable(code, message)
                    });
                }
                Act::Fail { .. } => Value::Null,
            });
        }
        Ok(done)
    }
}
