//! The context of a step: who is running, and the way to everything outside the step.
//!
//! Owns the public face of the host's functions. It does not count or limit anything: the host does, and
//! its answer comes back as a typed error. Each method calls exactly one import, directly, so that a component
//! imports only what its steps use.

use std::fmt::{self, Display};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bindings::stepwell::workflow::types::StepContext;
#[cfg(target_arch = "wasm32")]
use crate::imports::Imports;
#[cfg(not(target_arch = "wasm32"))]
use crate::recorder::Imports;
use crate::{ArtifactError, Child, ChildError, ChildRun, PublishError, StartError, WaitError};

/// Who is running, and what a step may do besides computing. A step gets it as `ctx: &Ctx`.
#[derive(Debug)]
pub struct Ctx {
    step: StepContext,
    imports: Imports,
}

impl Ctx {
    /// The run's id: a UUID, version 7.
    pub fn run_id(&self) -> &str {
        &self.step.run_id
    }

    /// The workflow's name.
    pub fn workflow(&self) -> &str {
        &self.step.workflow
    }

    /// The version that the run is pinned to: the SHA-256 of the component, in lower-case hex.
    pub fn version(&self) -> &str {
        &self.step.version
    }

    /// The node that this step executes.
    pub fn node(&self) -> &str {
        &self.step.node
    }

    /// The item's path where the node stands inside a fan-out, outermost first. Empty elsewhere.
    pub fn items(&self) -> &[u32] {
        &self.step.items
    }

    /// 1 for the first attempt. An attempt number is never used twice for one step.
    pub fn attempt(&self) -> u32 {
        self.step.attempt
    }

    /// Publishes `value` as JSON on a topic of the run's stream and returns its position, which is final.
    ///
    /// Subscribers see the update once it is durable. When this attempt fails, its updates are marked as rolled
    /// back. A payload has at most 256 KiB; an attempt publishes at most 10,000 updates and 32 MiB.
    ///
    /// # Errors
    ///
    /// [`PublishError`] says why the update was not accepted. `?` turns it into the fitting [`Failure`](crate::Failure).
    pub fn publish(&self, topic: &str, value: &(impl Serialize + ?Sized)) -> Result<Position, PublishError> {
        let payload = serde_json::to_string(value).map_err(|error| PublishError::InvalidPayload(error.to_string()))?;
        self.imports.publish(topic, &payload).map(Position)
    }

    /// Writes a line at level [`Level::Info`] for the people who operate the workflow.
    ///
    /// It never fails: a message over 8 KiB is cut off, and lines beyond 1,000 or 1 MiB in an attempt are dropped.
    pub fn log(&self, message: impl Display) {
        self.log_at(Level::Info, message);
    }

    /// Like [`Ctx::log`], at a level of choice.
    pub fn log_at(&self, level: Level, message: impl Display) {
        self.imports.log(level, &message.to_string());
    }

    /// Milliseconds since 1970-01-01T00:00:00Z. The only clock in the sandbox.
    pub fn now_ms(&self) -> u64 {
        self.imports.now_ms()
    }

    /// `len` random bytes, good enough for keys.
    ///
    /// The host gives at most 4 KiB at once; this asks as often as it takes.
    pub fn random_bytes(&self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let missing = u32::try_from(len - bytes.len()).unwrap_or(u32::MAX);
            bytes.extend(self.imports.random_bytes(missing));
        }
        bytes.truncate(len);
        bytes
    }

    /// Stores a file and records it as an event of the run.
    ///
    /// It can be fetched once that event is durable. When this attempt fails, its artifacts are rolled back. A
    /// file has at most 16 MiB; an attempt stores at most 100 files and 64 MiB.
    ///
    /// # Errors
    ///
    /// [`ArtifactError`] says why the file was not stored. `?` turns it into the fitting [`Failure`](crate::Failure).
    pub fn artifact(&self, name: &str, media_type: &str, content: &[u8]) -> Result<Artifact, ArtifactError> {
        self.imports.artifact(name, media_type, content)
    }

    /// Waits for at least this long. The step ends here and holds nothing; it is run again from its start when the time
    /// is over. At most 366 days are taken.
    ///
    /// # Errors
    ///
    /// [`WaitError::QuotaExceeded`]: an attempt waits at most 1,000 times.
    pub fn sleep(&self, duration: Duration) -> Result<(), WaitError> {
        self.imports.sleep(milliseconds(duration))
    }

    /// Waits for a signal of the run and takes it: the oldest that no step has taken, or the next that comes. The step ends
    /// here and holds nothing meanwhile.
    ///
    /// # Errors
    ///
    /// [`WaitError::InvalidPayload`] when the payload is not a `T`: it is taken all the same.
    pub fn signal<T: DeserializeOwned>(&self, name: &str) -> Result<T, WaitError> {
        self.signal_raw(name, None)
    }

    /// The same, for so long at most.
    ///
    /// # Errors
    ///
    /// [`WaitError::Timeout`] when it has not come by then.
    pub fn signal_within<T: DeserializeOwned>(&self, name: &str, limit: Duration) -> Result<T, WaitError> {
        self.signal_raw(name, Some(milliseconds(limit)))
    }

    fn signal_raw<T: DeserializeOwned>(&self, name: &str, timeout_ms: Option<u64>) -> Result<T, WaitError> {
        let payload = self.imports.signal(name, timeout_ms)?;
        serde_json::from_str(&payload).map_err(|error| WaitError::InvalidPayload(error.to_string()))
    }

    /// Starts a run of a workflow of the same tenant. When this returns, the run exists.
    ///
    /// # Errors
    ///
    /// [`StartError`] says why there is none. `?` turns it into the fitting [`Failure`](crate::Failure).
    pub fn start_child(&self, child: Child) -> Result<ChildRun, StartError> {
        let Child { workflow, version, input, detached } = child;
        let input = input.map_err(StartError::InvalidRequest)?;
        self.imports.start_child(workflow, version, input, detached).map(ChildRun)
    }

    /// Waits for the end of a run that this run has started, and returns its output. The step ends here and holds nothing
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// [`ChildError`] says how it ended otherwise. `?` turns it into the fitting [`Failure`](crate::Failure).
    pub fn await_child<T: DeserializeOwned>(&self, child: &ChildRun) -> Result<T, ChildError> {
        self.await_child_raw(child, None)
    }

    /// The same, for so long at most. A child that has not ended goes on.
    ///
    /// # Errors
    ///
    /// [`ChildError::Timeout`] when it has not ended by then.
    pub fn await_child_within<T: DeserializeOwned>(&self, child: &ChildRun, limit: Duration) -> Result<T, ChildError> {
        self.await_child_raw(child, Some(milliseconds(limit)))
    }

    fn await_child_raw<T: DeserializeOwned>(&self, child: &ChildRun, timeout_ms: Option<u64>) -> Result<T, ChildError> {
        let output = self.imports.await_child(&child.0, timeout_ms)?;
        serde_json::from_str(&output).map_err(|error| ChildError::InvalidOutput(error.to_string()))
    }

    #[cfg(target_arch = "wasm32")]
    pub(crate) fn new(step: StepContext) -> Self {
        Self { step, imports: Imports }
    }
}

/// For tests. Not there on wasm32.
#[cfg(not(target_arch = "wasm32"))]
impl Ctx {
    /// A context for unit tests: node `test`, attempt 1, and everything a step does is recorded.
    ///
    /// Nothing is limited and no topic is unknown. The clock starts in 2026 and moves by a
    /// millisecond each time it is read; random bytes are the same in every test.
    pub fn for_test() -> Self {
        let step = StepContext {
            run_id: "01900000-0000-7000-8000-000000000000".to_owned(),
            workflow: "test".to_owned(),
            version: "0".repeat(64),
            node: "test".to_owned(),
            items: Vec::new(),
            attempt: 1,
        };
        Self { step, imports: Imports::default() }
    }

    /// The same context on another node.
    #[must_use]
    pub fn on_node(mut self, node: &str) -> Self {
        node.clone_into(&mut self.step.node);
        self
    }

    /// The same context in another attempt.
    #[must_use]
    pub fn at_attempt(mut self, attempt: u32) -> Self {
        self.step.attempt = attempt;
        self
    }

    /// The same context with a signal that has come: it is taken by whoever waits for one of its name. A wait for which
    /// none is there is over at once, with [`WaitError::Timeout`].
    #[must_use]
    pub fn with_signal(self, name: &str, payload: &(impl Serialize + ?Sized)) -> Self {
        self.imports.add_signal(name, serde_json::to_string(payload).unwrap_or_default());
        self
    }

    /// The same context with the output of the next child that is waited for. A child without one was cancelled.
    #[must_use]
    pub fn with_child_output(self, output: &(impl Serialize + ?Sized)) -> Self {
        self.imports.add_child_output(serde_json::to_string(output).unwrap_or_default());
        self
    }

    /// What was published, logged and stored through this context so far.
    pub fn recorded(&self) -> crate::Recorded {
        self.imports.recorded()
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The place of an event in its run's journal. Positions start at 1 and have no gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Position(pub(crate) u64);

impl Position {
    /// The position as a number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Only of interest while looking for a fault.
    Debug,
    /// What happened.
    Info,
    /// Something a person should look at, some time.
    Warn,
    /// Something that went wrong.
    Error,
}

/// A stored file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Artifact {
    /// What `GET /v1/artifacts/{id}` takes. Unique and final.
    pub id: String,
    /// The position of its `step.artifact` event.
    pub position: Position,
    /// Of the content.
    pub size_bytes: u64,
    /// Of the content, in lower-case hex.
    pub sha256: String,
}

impl Artifact {
    /// Where the file can be fetched, relative to the host's address: `/v1/artifacts/{id}`.
    pub fn url(&self) -> String {
        format!("/v1/artifacts/{}", self.id)
    }
}
