//! Where guests run: each attempt in a fresh instance, with fuel, a deadline and a memory limit, and with nothing
//! to reach but the imports of `wit/`.
//!
//! Owns: the engine, compiled code, the slots that attempts run in.
//! Does not: know runs, journals or tenants' data. What a guest asks for goes through [`StepHost`], which the driver
//! implements.
//! Keeps: whatever a guest does, its attempt ends in a typed way ([`AttemptEnd`]), its slot is given back, and
//! nothing of its memory reaches the next one.
//!
//! Read on: [`engine`] (what wasm is allowed to be), [`compile`] (a process of its own), [`code`] (the cache of
//! compiled code), [`upload`] (what a component must look like), [`imports`] (what a guest can ask for),
//! [`attempt`] (one attempt), [`replay`] (what it did before, told to it again), [`time`] (how long it has), [`random`] (its random bytes),
//! [`evaluate`] (expressions that belong to no graph), [`end`] (every way it can end), [`graph`] (components that hold a compiled graph).

mod attempt;
mod code;
pub mod compile;
mod end;
mod engine;
mod evaluate;
mod generated;
mod graph;
mod imports;
pub mod limits;
mod random;
mod replay;
#[cfg(test)]
mod tests;
mod time;
mod upload;
mod wait;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use stepwell_core::decide::Next;
use stepwell_core::event::LogLevel;
use stepwell_core::graph::Limits;
use stepwell_core::{Digest, Failure, Json, NodeId, RunId, Seq, StepId, TenantId, WorkflowName};
use stepwell_outbound::{Completion, HttpError, HttpRequest, HttpResponse, LlmError, LlmRequest};
use tokio::runtime::{Handle, Runtime};

pub use self::code::CodeError;
pub(crate) use self::end::journal_full;
pub use self::evaluate::EvaluateError;
pub use self::graph::CompiledGraph;
pub(crate) use self::replay::sha256;
pub use self::replay::{Record, Recorded, usage_of};
pub use self::time::{AttemptTime, HELD_MAX, Held};
pub use self::upload::{Inspection, UploadError};
pub use self::wait::{ChildError, ChildRequest, Wait, WaitRecord, Waited};
use crate::permits::Permits;

/// What the sandbox needs to know of its surroundings.
#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// Attempts that run at once. Each has a slot of the pool: 4 GiB of address space, memory only as it is used.
    pub slots: u32,
    /// Attempts of one tenant that run at once.
    pub slots_per_tenant: u32,
    /// Threads that guests run on.
    pub threads: usize,
    /// Where compiled code is kept. Only this host writes there; what does not carry its signature is not loaded.
    pub code_dir: PathBuf,
    /// What compiled code is signed with.
    pub secret: [u8; 32],
    /// The program that compiles: this one, called as `PROGRAM compile-component`.
    pub compiler: PathBuf,
}

/// One attempt of a step.
pub struct Job {
    /// The run.
    pub run: RunId,
    /// The workflow's name.
    pub workflow: WorkflowName,
    /// The version.
    pub version: Digest,
    /// The step.
    pub step: StepId,
    /// The attempt.
    pub attempt: u32,
    /// What it may use.
    pub limits: Limits,
    /// What it is handed.
    pub inputs: Vec<(String, Json)>,
    /// Who answers what it asks for.
    pub host: Arc<dyn StepHost>,
    /// What the attempt did before it was interrupted; `None` for a new one.
    pub record: Option<Box<dyn Record>>,
    /// How long it has. Whoever answers what it asks for can hold it.
    pub time: Arc<AttemptTime>,
    /// What the attempt's random numbers are made of: the same whenever it is taken up again, and known to nobody else.
    pub seed: [u8; 32],
}

/// How an attempt ended.
#[derive(Debug, Clone)]
pub struct AttemptEnd {
    /// Its output, or why there is none.
    pub result: Result<StepOutput, Failure>,
    /// Metered instructions it used; inexact after a trap.
    pub fuel_used: u64,
}

/// What a successful attempt handed over.
#[derive(Debug, Clone)]
pub struct StepOutput {
    /// Its output.
    pub output: Json,
    /// Labels of the edges to take.
    pub labels: Vec<String>,
    /// What it wants to happen behind its step.
    pub next: Next,
}

/// Where the work of a step is done that delegates: a node of another version of the same tenant.
pub struct Delegation {
    /// The other workflow's name.
    pub workflow: WorkflowName,
    /// The other version.
    pub version: Digest,
    /// The other node.
    pub node: NodeId,
    /// Its component, for when its code is not at hand.
    pub component: Component,
}

/// Fetches the bytes of a component, when its code is not at hand.
pub type Component = Box<dyn FnOnce() -> Option<Bytes> + Send>;

/// One thing that is wrong with a run's input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputProblem {
    /// Where, as an RFC 6901 JSON pointer.
    pub pointer: String,
    /// A sentence for people.
    pub message: String,
}

/// Why something a guest asked for was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostRefusal {
    /// The graph names no such topic.
    UnknownTopic,
    /// The run is no child of this one.
    NotAChild,
    /// The attempt does not count any more.
    Cancelled,
    /// The host cannot record anything at present.
    Unavailable,
    /// The tenant has as much in the journal as it may.
    JournalFull,
    /// It has more than these bytes.
    TooLarge(u64),
}

/// A stored file.
#[derive(Debug, Clone)]
pub struct StoredArtifact {
    /// Its id.
    pub id: String,
    /// The number of its event.
    pub seq: Seq,
    /// SHA-256 of its bytes.
    pub sha256: Digest,
}

/// A header that the host adds to a request, with a secret in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// The secret's name.
    pub secret: String,
    /// The header.
    pub header: String,
    /// What stands before the secret.
    pub prefix: String,
}

/// Why there is no completion.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompletionError {
    /// The tenant has no such provider.
    #[error("there is no such provider")]
    UnknownProvider,
    /// The provider's key is not there.
    #[error("there is no secret `{0}`")]
    MissingSecret(String),
    /// The provider was asked, or was not to be.
    #[error(transparent)]
    Llm(#[from] LlmError),
}

/// What becomes of a call outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StandIn {
    /// It is made.
    Make,
    /// It is answered with this, as if it had been made.
    Answer(Json),
    /// It must not be made, and there is nothing to answer it with: the attempt ends.
    Nothing,
}

/// Who answers what a step asks for. Limits have been checked before a call reaches it.
pub trait StepHost: Send + Sync + 'static {
    /// Whether the workflow has a topic.
    fn has_topic(&self, topic: &str) -> bool;
    /// Orders an update and says where it stands. It is final; it need not be durable yet. `within_call` says that it
    /// belongs to a call that has not ended.
    fn publish(&self, topic: String, payload: Json, within_call: bool) -> BoxFuture<'_, Result<Seq, HostRefusal>>;
    /// What becomes of a call that is not on the attempt's record: the `nth` one, from 0, with these arguments.
    fn stand_in(
        &self,
        _call: &'static str,
        _arguments: Digest,
        _nth: usize,
    ) -> BoxFuture<'_, Result<StandIn, HostRefusal>> {
        std::future::ready(Ok(StandIn::Make)).boxed()
    }
    /// Records what a call was answered. When this returns it is durable, so that whatever the step does next outside
    /// comes after it.
    fn record(&self, call: &'static str, arguments: Digest, result: Json) -> BoxFuture<'_, Result<(), HostRefusal>>;
    /// Records a line.
    fn log(&self, level: LogLevel, message: String) -> BoxFuture<'_, Result<(), HostRefusal>>;
    /// Sends a request.
    fn send(
        &self,
        request: HttpRequest,
        authorization: Option<Authorization>,
    ) -> BoxFuture<'_, Result<HttpResponse, HttpError>>;
    /// Asks a provider's model. With a topic, the answer is published on it while it comes.
    fn complete(
        &self,
        provider: String,
        request: LlmRequest,
        topic: Option<String>,
    ) -> BoxFuture<'_, Result<Completion, CompletionError>>;
    /// Whether the workflow has a signal.
    fn has_signal(&self, name: &str) -> bool;
    /// Waits. Either what it waits for has come already, which is then on record as the answer of this call, or the
    /// attempt is to end here and is taken up again later, with the answer on record.
    fn wait(&self, call: &'static str, arguments: Digest, wait: Wait) -> BoxFuture<'_, Result<Waited, HostRefusal>>;
    /// Starts a child, and records the call with `{"started": RUN_ID}` as its answer.
    fn start_child(
        &self,
        call: &'static str,
        arguments: Digest,
        child: ChildRequest,
    ) -> BoxFuture<'_, Result<Result<RunId, ChildError>, HostRefusal>>;
    /// Stores a file.
    fn store_artifact(
        &self,
        name: String,
        media_type: String,
        bytes: Bytes,
    ) -> BoxFuture<'_, Result<StoredArtifact, HostRefusal>>;
}

/// Components that describe themselves, or check an input, at once; half of them of one tenant. Each takes milliseconds; the slots are there even when runs use all of
/// theirs.
const DESCRIBING_MAX: u32 = 4;

/// Expressions of triggers that are evaluated at once. A tenant has few of them: each may compute for its whole limit, and
/// those of others wait behind what it has, never behind what it wants.
const EVALUATING_MAX: u32 = 8;
/// The same for one tenant.
const EVALUATING_PER_TENANT_MAX: u32 = 2;

/// Where guests run.
pub struct Sandbox {
    engine: wasmtime::Engine,
    code: code::Code,
    compiler: compile::Compiler,
    kit: graph::Kit,
    slots: Permits,
    /// For `describe`, which has slots of its own: it belongs to no run and waits for none.
    describing: Permits,
    /// For expressions, which have slots of their own too: one that computes for long keeps no run from being started.
    evaluating: Permits,
    guests: Handle,
    // Taken on drop: guests have threads of their own, so that however many of them compute, the host's answer
    // requests and write the journal.
    runtime: Option<Runtime>,
}

/// Why an input was not checked.
#[derive(Debug, thiserror::Error)]
pub enum CheckInputError {
    /// The version's code is not at hand.
    #[error("the code of this version could not be loaded")]
    Code(#[from] CodeError),
    /// The guest did not come to an answer.
    #[error("the workflow could not check what it is to be handed: {0}")]
    Guest(String),
    /// The host is stopping.
    #[error("the host is stopping")]
    Gone,
}

/// The sandbox could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// wasmtime refused the configuration, or this machine cannot run it.
    #[error("the WebAssembly engine could not be set up")]
    Engine(#[source] anyhow::Error),
    /// Threads or folders could not be had.
    #[error("the sandbox could not be set up")]
    Io(#[from] std::io::Error),
}

/// An attempt under way. Dropping it ends the attempt at the next tick of the epoch, without an [`AttemptEnd`].
#[derive(Debug)]
pub struct Attempt(Option<tokio::task::AbortHandle>);

impl Attempt {
    /// An attempt that has ended before it began.
    #[must_use]
    pub fn over() -> Self {
        Self(None)
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

impl Sandbox {
    /// Sets up the engine, its pool and its threads.
    pub fn new(config: SandboxConfig) -> Result<Self, SandboxError> {
        let engine = engine::runtime(config.slots.saturating_add(DESCRIBING_MAX + EVALUATING_MAX))
            .map_err(SandboxError::Engine)?;
        let compiler = compile::Compiler::new(config.compiler);
        let code = code::Code::new(&engine, config.code_dir, config.secret)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.threads.max(1))
            .thread_name("guest")
            .enable_all()
            .build()?;
        Ok(Self {
            code,
            compiler,
            kit: graph::Kit::new(),
            slots: Permits::new(config.slots as usize, config.slots_per_tenant as usize),
            describing: Permits::new(DESCRIBING_MAX as usize, DESCRIBING_MAX as usize / 2),
            evaluating: Permits::new(EVALUATING_MAX as usize, EVALUATING_PER_TENANT_MAX as usize),
            guests: runtime.handle().clone(),
            runtime: Some(runtime),
            engine,
        })
    }

    /// Compiles an uploaded component and checks all that can be checked without running a step.
    pub async fn inspect(&self, tenant: &TenantId, component: Bytes) -> Result<Inspection, UploadError> {
        upload::inspect(self, tenant, component).await
    }

    /// Asks a version whether it can do something with an input.
    pub async fn check_input(
        &self,
        tenant: &TenantId,
        version: Digest,
        component: Component,
        input: Json,
    ) -> Result<Vec<InputProblem>, CheckInputError> {
        self.check(tenant, version, component, attempt::Handed::Input(input)).await
    }

    /// Asks a version whether it can do something with a signal.
    pub async fn check_signal(
        &self,
        tenant: &TenantId,
        version: Digest,
        component: Component,
        name: String,
        payload: Json,
    ) -> Result<Vec<InputProblem>, CheckInputError> {
        self.check(tenant, version, component, attempt::Handed::Signal(name, payload)).await
    }

    async fn check(
        &self,
        tenant: &TenantId,
        version: Digest,
        component: Component,
        handed: attempt::Handed,
    ) -> Result<Vec<InputProblem>, CheckInputError> {
        let code = self.code.load(self, tenant, version, component).await?;
        let _turn = self.describing.acquire(tenant).await;
        let engine = self.engine.clone();
        // On the guests' threads, like everything a guest does.
        let checked = self.guests.spawn(async move { attempt::check(&engine, &code, &handed).await });
        checked.await.map_err(|_| CheckInputError::Gone)?.map_err(|error| {
            CheckInputError::Guest(end::failure_of_error(&error, false, limits::DESCRIBE_LIMITS.memory_bytes).message)
        })
    }

    /// Runs an attempt once there is a slot for it. `job` is called then, on a thread of the guests, because it may
    /// have large inputs to read; `on_end` once, unless the [`Attempt`] is dropped before.
    pub fn spawn(
        self: &Arc<Self>,
        tenant: &TenantId,
        version: Digest,
        component: Component,
        delegation: Option<Delegation>,
        job: impl FnOnce() -> Result<Job, String> + Send + 'static,
        on_end: impl FnOnce(AttemptEnd) + Send + 'static,
    ) -> Attempt {
        let sandbox = Arc::clone(self);
        let tenant = tenant.clone();
        let task = self.guests.spawn(async move {
            let run = AssertUnwindSafe(sandbox.run(&tenant, version, component, delegation, job)).catch_unwind();
            // A panic of ours must not leave a run waiting for an attempt that is gone.
            on_end(
                run.await.unwrap_or_else(|_panic| AttemptEnd::unavailable("the host failed while it ran the attempt")),
            );
        });
        Attempt(Some(task.abort_handle()))
    }

    async fn run(
        &self,
        tenant: &TenantId,
        version: Digest,
        component: Component,
        delegation: Option<Delegation>,
        job: impl FnOnce() -> Result<Job, String> + Send,
    ) -> AttemptEnd {
        // Code first, then a slot: an attempt whose code is being compiled holds up nobody who could run.
        let load = async |version, component| {
            self.code.load(self, tenant, version, component).await.inspect_err(|error| {
                tracing::error!(%version, %error, "the code of a version could not be loaded");
            })
        };
        let Ok(code) = load(version, component).await else {
            return AttemptEnd::unavailable("the code of this version could not be loaded");
        };
        let delegate = match delegation {
            None => None,
            Some(Delegation { workflow, version, node, component }) => match load(version, component).await {
                Ok(code) => Some(attempt::Delegate { workflow, version, node, code }),
                Err(_) => return AttemptEnd::unavailable("the code that the step delegates to could not be loaded"),
            },
        };
        let _slot = self.slots.acquire(tenant).await;
        match job() {
            Ok(job) => attempt::run(&self.engine, &code, delegate, job).await,
            Err(why) => {
                tracing::error!(why, "an attempt could not be prepared");
                AttemptEnd::unavailable("the inputs of the attempt could not be read")
            }
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // In the background: a runtime must not be waited for inside another.
            runtime.shutdown_background();
        }
    }
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox").field("free_slots", &self.slots.free()).finish_non_exhaustive()
    }
}

/// How often the epoch moves: a guest that computes yields this often. Short enough that a cancelled guest is gone
/// at once and that neighbours hardly notice; long enough to cost nothing.
pub(crate) const EPOCH_TICK: Duration = Duration::from_millis(5);
