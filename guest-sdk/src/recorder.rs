//! The host's functions, off wasm32: everything a step does is recorded, so that a test can look at it.
//!
//! `imports.rs` has the same methods for wasm32. This is no host: it enforces no limit and knows no topics.

use std::cell::RefCell;
use std::collections::VecDeque;

use serde_json::Value;

use crate::{Artifact, ArtifactError, ChildError, Level, Position, PublishError, StartError, WaitError};

/// 2026-01-01T00:00:00Z: a time that looks like one in an assertion's output.
const CLOCK_START_MS: u64 = 1_767_225_600_000;
/// The longest sleep there is, as in `wit/wait.wit`.
const SLEEP_MS_MAX: u64 = 31_622_400_000;

/// What a step did through a test context.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recorded {
    /// In the order they were published.
    pub updates: Vec<RecordedUpdate>,
    /// In the order they were written.
    pub lines: Vec<(Level, String)>,
    /// In the order they were stored.
    pub artifacts: Vec<RecordedArtifact>,
    /// In the order they were started.
    pub children: Vec<RecordedChild>,
    /// How long the step has slept in all.
    pub slept_ms: u64,
}

/// One call of [`Ctx::start_child`](crate::Ctx::start_child).
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedChild {
    /// Its workflow.
    pub workflow: String,
    /// Its version, if one was named.
    pub version: Option<String>,
    /// Its input, parsed.
    pub input: Value,
    /// Whether it goes on by itself.
    pub detached: bool,
}

/// One call of [`Ctx::publish`](crate::Ctx::publish).
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedUpdate {
    /// The topic.
    pub topic: String,
    /// The payload, parsed.
    pub payload: Value,
}

/// One call of [`Ctx::artifact`](crate::Ctx::artifact).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedArtifact {
    /// The file's name.
    pub name: String,
    /// Its media type.
    pub media_type: String,
    /// Its content.
    pub content: Vec<u8>,
}

#[derive(Debug, Default)]
pub(crate) struct Imports {
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    recorded: Recorded,
    events: u64,
    clock_reads: u64,
    random_bytes: u8,
    signals: Vec<(String, String)>,
    child_outputs: VecDeque<String>,
}

impl State {
    fn next_position(&mut self) -> u64 {
        self.events += 1;
        self.events
    }
}

impl Imports {
    pub(crate) fn recorded(&self) -> Recorded {
        self.state.borrow().recorded.clone()
    }

    pub(crate) fn publish(&self, topic: &str, payload: &str) -> Result<u64, PublishError> {
        let payload = serde_json::from_str(payload)
            .map_err(|error: serde_json::Error| PublishError::InvalidPayload(error.to_string()))?;
        let mut state = self.state.borrow_mut();
        state.recorded.updates.push(RecordedUpdate { topic: topic.to_owned(), payload });
        Ok(state.next_position())
    }

    pub(crate) fn log(&self, level: Level, message: &str) {
        let mut state = self.state.borrow_mut();
        state.recorded.lines.push((level, message.to_owned()));
        state.next_position();
    }

    pub(crate) fn now_ms(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        state.clock_reads += 1;
        CLOCK_START_MS.saturating_add(state.clock_reads).saturating_add(state.recorded.slept_ms)
    }

    pub(crate) fn add_signal(&self, name: &str, payload: String) {
        self.state.borrow_mut().signals.push((name.to_owned(), payload));
    }

    pub(crate) fn add_child_output(&self, output: String) {
        self.state.borrow_mut().child_outputs.push_back(output);
    }

    pub(crate) fn sleep(&self, ms: u64) -> Result<(), WaitError> {
        let mut state = self.state.borrow_mut();
        // As the host takes it: an absurd wait is one of 366 days, and the clock still goes.
        state.recorded.slept_ms = state.recorded.slept_ms.saturating_add(ms.min(SLEEP_MS_MAX));
        Ok(())
    }

    pub(crate) fn signal(&self, name: &str, _timeout_ms: Option<u64>) -> Result<String, WaitError> {
        let mut state = self.state.borrow_mut();
        let place = state.signals.iter().position(|(of, _)| of == name).ok_or(WaitError::Timeout)?;
        Ok(state.signals.remove(place).1)
    }

    pub(crate) fn start_child(
        &self,
        workflow: String,
        version: Option<String>,
        input: String,
        detached: bool,
    ) -> Result<String, StartError> {
        let input = serde_json::from_str(&input)
            .map_err(|error: serde_json::Error| StartError::InvalidRequest(error.to_string()))?;
        let mut state = self.state.borrow_mut();
        state.recorded.children.push(RecordedChild { workflow, version, input, detached });
        Ok(format!("child-{}", state.recorded.children.len()))
    }

    pub(crate) fn await_child(&self, _run: &str, _timeout_ms: Option<u64>) -> Result<String, ChildError> {
        self.state.borrow_mut().child_outputs.pop_front().ok_or(ChildError::Cancelled)
    }

    pub(crate) fn random_bytes(&self, len: u32) -> Vec<u8> {
        let mut state = self.state.borrow_mut();
        // At most 4 KiB at once, like the host, so that a test meets the loop around it.
        (0..len.min(4096))
            .map(|_| {
                state.random_bytes = state.random_bytes.wrapping_mul(141).wrapping_add(3);
                state.random_bytes
            })
            .collect()
    }

    pub(crate) fn artifact(&self, name: &str, media_type: &str, content: &[u8]) -> Result<Artifact, ArtifactError> {
        let mut state = self.state.borrow_mut();
        let position = state.next_position();
        state.recorded.artifacts.push(RecordedArtifact {
            name: name.to_owned(),
            media_type: media_type.to_owned(),
            content: content.to_owned(),
        });
        Ok(Artifact {
            id: format!("artifact-{position}"),
            position: Position(position),
            size_bytes: content.len() as u64,
            sha256: "0".repeat(64),
        })
    }
}
