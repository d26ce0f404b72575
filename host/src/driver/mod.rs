//! Who does it: the one place where the journal, the sandbox and the core meet.
//!
//! Owns: a task for each run that is under way, which is the only writer of that run.
//! Does not: know HTTP, or decide anything; the core decides.
//! Keeps: **decide → apply → append durably → act, and tell.** No attempt starts, no timer is set and no caller is
//! answered on the strength of an event that is not on disk.
//!
//! ```text
//!   api ── start, cancel ──► Driver ──► registry: run → inbox
//!                                           │
//!                                           ▼
//!   sandbox ── ended, publish, log ──►   RunLoop   ──► append ──► journal ──► tail ──► streams
//!           ◄── attempt ────────────────  (one a run)
//! ```
//!
//! Runs share no lock but the registry's, which is split and held for a lookup. Read on: [`run_loop`], [`elements`] (the
//! items of an `each`), [`record`] (what an attempt did before it was cut off or suspended), [`trail`] (where that is),
//! [`reading`] (how much is read at once), [`family`] (children and parents), [`flow`] (how many of a workflow's runs go at
//! once), [`publish_rate`] (how fast a tenant may publish), [`fullness`] (whether it has room in the journal),
//! [`timers`] (runs that wait and have no loop), [`taking_up`] (runs that move and have none), [`rerun`] (runs that repeat
//! others), [`shadow`] (runs that shadow others), [`outside`] (requests, models, secrets).

mod elements;
mod family;
mod flow;
mod fullness;
mod outside;
mod placing;
mod publish_rate;
mod reading;
mod record;
mod registry;
mod rerun;
mod run_loop;
mod shadow;
mod step_host;
mod taking_up;
mod timers;
mod trail;

use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use lru::LruCache;
use sha2::{Digest as _, Sha256};
use stepwell_core::flow::FlowControl;
use stepwell_core::run::signal_key;
use stepwell_core::{Digest, Graph, Input, Json, Refusal, RunId, RunKey, Seq, TenantId, Timestamp, WorkflowName};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::elements::Elements;
use self::flow::Flow;
use self::fullness::Fullness;
pub use self::outside::Outside;
use self::placing::Origin;
use self::publish_rate::PublishRates;
pub use self::publish_rate::UPDATES_PER_SECOND_DEFAULT;
use self::reading::Readers;
use self::registry::{Inbox, Messages, Registry};
pub use self::rerun::{Rerun, RerunError};
use self::run_loop::{Beginning, Message, NewRun, RunLoop, payload_of};
pub(crate) use self::run_loop::{artifact_id, read_payload};
use crate::clock;
use crate::journal::{Content, Created, IdempotencyKey, Journal, JournalError, RedbJournal};
use crate::permits::Permits;
use crate::sandbox::{CheckInputError, EvaluateError, InputProblem, Sandbox};
use crate::whole::whole;

/// Graphs kept in memory for new runs; a run under way keeps its own alive.
const GRAPHS_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Shadows have room of their own, this part of what other runs have: they are in no hurry, and no other run is to be slower
/// for one.
const SHADOW_ROOM: usize = 8;

/// What the driver needs to know.
#[derive(Debug, Clone)]
pub struct DriverConfig {
    /// Runs that have steps under way at once. Further ones are accepted and stay queued until there is room; a run that
    /// waits for a timer makes room.
    pub active_runs_max: usize,
    /// The same for one tenant.
    pub active_runs_per_tenant: usize,
    /// Updates that one tenant may publish in a second; after a pause, those of two seconds at once.
    pub updates_per_second: u32,
    /// How long a stopping host waits for attempts that are under way. What is cut off runs again after the start.
    pub grace: Duration,
}

/// Drives all runs of this process.
#[derive(Clone, Debug)]
pub struct Driver {
    shared: Arc<Shared>,
}

/// What all run loops share.
#[derive(Debug)]
struct Shared {
    journal: Arc<RedbJournal>,
    sandbox: Arc<Sandbox>,
    outside: Outside,
    elements: Elements,
    registry: Registry,
    graphs: Mutex<LruCache<(TenantId, WorkflowName, Digest), Arc<Graph>>>,
    room: Permits,
    /// The room of shadows, which is their own: no other run waits for one.
    shadow_room: Permits,
    woken: Permits,
    flow: Arc<Flow>,
    publish_rates: PublishRates,
    fullness: Fullness,
    readers: Readers,
    stopping: CancellationToken,
    loops: TaskTracker,
    grace: Duration,
}

/// A run that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The run.
    pub run: RunId,
    /// Whether the same idempotency key had started it before.
    pub replayed: bool,
}

/// Why a run was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The tenant has no such workflow.
    #[error("there is no workflow `{0}`")]
    UnknownWorkflow(WorkflowName),
    /// The workflow has no such version.
    #[error("the workflow has no version {0}")]
    UnknownVersion(Digest),
    /// The host is on its way down.
    #[error("the host is stopping")]
    Stopping,
    /// The journal did not take it.
    #[error("{}", not_recorded(.0))]
    Journal(#[from] JournalError),
    /// The workflow says what is wrong with the input.
    #[error("the input has {} problem(s), the first: {}", .0.len(), .0.first().map(|p| p.message.as_str()).unwrap_or_default())]
    InvalidInput(Vec<InputProblem>),
    /// The workflow could not say whether the input is right.
    #[error(transparent)]
    CheckInput(#[from] CheckInputError),
    /// A stored graph is not valid.
    #[error("the graph of version {0} is damaged")]
    Graph(Digest),
    /// The tenant's inputs may have fewer bytes.
    #[error("an input has at most {bytes_max} bytes")]
    InputTooLarge {
        /// How many.
        bytes_max: u64,
    },
    /// An expression of the workflow's flow control has no usable value for this input.
    #[error("the `{field}` of the workflow's flow control: {source}")]
    Flow {
        /// Which.
        field: &'static str,
        /// Why.
        source: EvaluateError,
    },
    /// The value of such an expression is of another kind.
    #[error("the `{field}` of the workflow's flow control is not {wanted}")]
    FlowValue {
        /// Which.
        field: &'static str,
        /// What it must be.
        wanted: &'static str,
    },
}

/// What waits and executes of the runs of a workflow that have the same key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowKey {
    /// SHA-256 of the key.
    pub hash: Digest,
    /// The key.
    pub key: String,
    /// Runs that have not started.
    pub queued: u64,
    /// Steps that execute at this moment.
    pub executing: u32,
    /// When the next run starts, where that is a matter of time.
    pub next_start_at: Option<Timestamp>,
}

/// Why the journal did not take a run: whoever started it can do something about the limits, and nothing about the rest.
fn not_recorded(error: &JournalError) -> String {
    match error {
        JournalError::RateLimited { .. } | JournalError::Full { .. } | JournalError::TooManyRuns { .. } => {
            error.to_string()
        }
        _ => "the run could not be recorded".to_owned(),
    }
}

/// A signal that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signalled {
    /// Its event.
    pub seq: Seq,
    /// Whether the same idempotency key had brought it before.
    pub replayed: bool,
}

/// Why a run did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The tenant has no such run.
    #[error("there is no such run")]
    UnknownRun,
    /// It has ended, or it does not fit where it stands.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The host is on its way down, or the journal did not take it.
    #[error("the host does not accept this at present")]
    Unavailable,
    /// The journal could not be read.
    #[error("the run could not be read")]
    Journal(#[from] JournalError),
    /// The workflow says what is wrong with the signal.
    #[error("the signal has {} problem(s), the first: {}", .0.len(), .0.first().map(|p| p.message.as_str()).unwrap_or_default())]
    InvalidSignal(Vec<InputProblem>),
    /// The workflow could not say whether the signal is right.
    #[error(transparent)]
    CheckSignal(#[from] CheckInputError),
    /// The tenant's signals may have fewer bytes.
    #[error("a signal has at most {bytes_max} bytes")]
    SignalTooLarge {
        /// How many.
        bytes_max: u64,
    },
}

impl Driver {
    /// A driver that drives nothing yet: see [`recover`](Self::recover).
    #[must_use]
    pub fn new(journal: Arc<RedbJournal>, sandbox: Arc<Sandbox>, outside: Outside, config: &DriverConfig) -> Self {
        let shared = Shared {
            flow: Flow::new(Arc::clone(&journal)),
            journal,
            sandbox,
            outside,
            elements: Elements::default(),
            registry: Registry::default(),
            graphs: Mutex::new(LruCache::new(GRAPHS_MAX)),
            room: Permits::new(config.active_runs_max, config.active_runs_per_tenant),
            shadow_room: Permits::new(
                config.active_runs_max / SHADOW_ROOM,
                config.active_runs_per_tenant / SHADOW_ROOM,
            ),
            woken: Permits::new(timers::WOKEN_MAX, timers::WOKEN_PER_TENANT),
            publish_rates: PublishRates::new(config.updates_per_second),
            fullness: Fullness::default(),
            readers: Readers::default(),
            stopping: CancellationToken::new(),
            loops: TaskTracker::new(),
            grace: config.grace,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Takes up every run that has something to do, and from here on those that wait when their time has come. Runs can be
    /// started meanwhile. What cannot be read is tried again until the host stops. Returns how many had something to do.
    pub async fn recover(&self) -> usize {
        self.shared.loops.spawn(timers::wake_waiting(Arc::clone(&self.shared)));
        self.shared.loops.spawn(taking_up::look_again(Arc::clone(&self.shared)));
        self.shared.loops.spawn(flow::dispatch(Arc::clone(&self.shared)));
        self.shared.loops.spawn(flow::forget(Arc::clone(&self.shared)));
        taking_up::all(&self.shared).await
    }

    /// Starts a run of a workflow's latest version, or of the one given. When this returns, the run is on disk.
    pub async fn start(
        &self,
        tenant: &TenantId,
        workflow: &WorkflowName,
        version: Option<Digest>,
        input: Json,
        idempotency: Option<IdempotencyKey>,
    ) -> Result<Started, StartError> {
        self.start_correlated(tenant, workflow, version, input, idempotency, None).await
    }

    /// The same, for a run that is known by something of the caller's.
    pub async fn start_correlated(
        &self,
        tenant: &TenantId,
        workflow: &WorkflowName,
        version: Option<Digest>,
        input: Json,
        idempotency: Option<IdempotencyKey>,
        correlation: Option<String>,
    ) -> Result<Started, StartError> {
        let shared = &self.shared;
        if shared.stopping.is_cancelled() {
            return Err(StartError::Stopping);
        }
        // Before the request is looked at any closer: since the first one, a version may have come that refuses it.
        if let Some(started) = shared.started_before(tenant, workflow, idempotency.as_ref())? {
            return Ok(started);
        }
        let (version, graph) = shared.resolve(tenant, workflow, version)?;
        shared.check_input(tenant, version, &graph, &input).await?;
        let flow = shared.place(tenant, workflow, &input, Origin::Outside).await?;
        let key = RunKey { tenant: tenant.clone(), run: clock::run_id() };
        let workflow = workflow.clone();
        let new = NewRun {
            flow,
            graph,
            workflow,
            version,
            input,
            idempotency,
            parent: None,
            rerun_of: None,
            shadow_of: None,
            taken_over: Vec::new(),
            correlation,
        };
        shared.create(&key, new).await
    }

    /// Cancels a run. When this returns, that is on disk, and its attempts are being stopped.
    pub async fn cancel(&self, key: &RunKey, reason: Option<String>) -> Result<(), ControlError> {
        self.shared.cancel(key, reason).await
    }

    /// Holds a run: what is under way comes to its end, and nothing else begins until it is resumed.
    pub async fn pause(&self, key: &RunKey, reason: Option<String>) -> Result<(), ControlError> {
        self.shared.control(key, Input::Pause { reason }, None).await.map(drop)
    }

    /// Lets a paused run go on.
    pub async fn resume(&self, key: &RunKey) -> Result<(), ControlError> {
        self.shared.control(key, Input::Resume, None).await.map(drop)
    }

    /// Tells a run something. It is kept until a step takes it; the same idempotency key brings it once.
    pub async fn signal(
        &self,
        key: &RunKey,
        name: String,
        payload: Json,
        idempotency: Option<&str>,
    ) -> Result<Signalled, ControlError> {
        // Each name has keys of its own: one event may bring a run several signals.
        let hash = |key: &str| {
            let digest = |bytes: &[u8]| Digest::from_bytes(Sha256::digest(bytes).into());
            let sender = digest(&[key, &name].map(|part| Sha256::digest(part.as_bytes())).concat());
            signal_key(&sender, &digest(payload.as_str().as_bytes()))
        };
        let idempotency = idempotency.map(hash);
        self.shared.check_signal(key, &name, &payload, idempotency.is_some()).await?;
        let (payload, content) = payload_of(payload);
        match self.shared.control(key, Input::Signal { name, payload, key: idempotency }, content).await {
            Ok(seq) => Ok(Signalled { seq, replayed: false }),
            Err(ControlError::Refused(Refusal::SignalRepeated(seq))) => Ok(Signalled { seq, replayed: true }),
            Err(error) => Err(error),
        }
    }

    /// Stops all loops: nothing new starts, attempts under way get the grace period, everything decided is written.
    pub async fn stop(&self) {
        self.shared.stopping.cancel();
        self.shared.loops.close();
        self.shared.loops.wait().await;
    }

    /// A version's graph, checked.
    pub fn graph(&self, tenant: &TenantId, workflow: &WorkflowName, version: Digest) -> Result<Arc<Graph>, StartError> {
        self.shared.graph(tenant, workflow, version)
    }

    /// A workflow's flow control; `None` when there is none.
    pub fn flow_control(
        &self,
        tenant: &TenantId,
        workflow: &WorkflowName,
    ) -> Result<Option<FlowControl>, JournalError> {
        self.shared.journal.flow_control(tenant, workflow)
    }

    /// Sets a workflow's flow control, or with `None` lets its runs go without limits. Its numbers hold at once, for all
    /// runs that have a place; keys and priorities hold for runs that are accepted from here on. Is done whole, even when
    /// it is not waited for to the end.
    pub async fn set_flow_control(
        &self,
        tenant: &TenantId,
        workflow: &WorkflowName,
        control: Option<&FlowControl>,
    ) -> Result<(), JournalError> {
        let (shared, tenant, workflow, control) =
            (Arc::clone(&self.shared), tenant.clone(), workflow.clone(), control.cloned());
        whole(async move {
            let _configuring = shared.flow.configuring.lock().await;
            match &control {
                Some(control) => shared.journal.put_flow_control(&tenant, &workflow, control).await?,
                None => drop(shared.journal.delete_flow_control(&tenant, &workflow).await?),
            }
            shared.flow.configured(&tenant, &workflow, control.as_ref());
            Ok(())
        })
        .await
    }

    /// What waits and executes in a workflow, by key, after a key's hash in the order of hashes.
    pub fn flow_keys(
        &self,
        tenant: &TenantId,
        workflow: &WorkflowName,
        after: Option<Digest>,
        limit: usize,
    ) -> Result<Vec<FlowKey>, JournalError> {
        let counts = self.shared.flow.counts(tenant, workflow, after, limit)?;
        Ok(counts
            .into_iter()
            .map(|(id, count)| {
                let (executing, next_start_at) = self.shared.flow.executing(&id);
                let next_start_at = next_start_at.filter(|_| count.queued > 0);
                FlowKey { hash: id.key, key: count.key, queued: count.queued, executing, next_start_at }
            })
            .collect())
    }

    /// Runs that have a loop.
    #[must_use]
    pub fn runs_under_way(&self) -> usize {
        self.shared.registry.len()
    }
}

impl Shared {
    /// Waits, but not for longer than the host goes on.
    async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.stopping.cancelled() => {}
        }
    }

    /// The run that a request has started before, by its idempotency key.
    fn started_before(
        &self,
        tenant: &TenantId,
        workflow: &WorkflowName,
        idempotency: Option<&IdempotencyKey>,
    ) -> Result<Option<Started>, JournalError> {
        let Some(idempotency) = idempotency else { return Ok(None) };
        let run = self.journal.started_with(tenant, workflow, idempotency, clock::now())?;
        Ok(run.map(|run| Started { run, replayed: true }))
    }

    /// Where a run waits for room.
    fn room_of(&self, is_shadow: bool) -> &Permits {
        if is_shadow { &self.shadow_room } else { &self.room }
    }

    /// Makes a run and starts its loop. When this returns, the run is on disk.
    async fn create(self: &Arc<Self>, key: &RunKey, run: NewRun) -> Result<Started, StartError> {
        let (reply, answer) = oneshot::channel();
        let new = Beginning::New { run: Box::new(run), reply };
        // In the registry before it is on disk: from the first moment that somebody can name the run, it has its loop.
        // And a task of its own, so that a client who hangs up does not leave half a run.
        let (inbox, messages) = self.registry.enter(key);
        let messages = messages.ok_or(StartError::Stopping)?; // never: the id is new
        self.spawn_loop(key.clone(), inbox, messages, new);
        match answer.await.map_err(|_| StartError::Stopping)?? {
            Created::New { .. } => Ok(Started { run: key.run, replayed: false }),
            Created::Existing(run) => Ok(Started { run, replayed: true }),
        }
    }

    async fn cancel(self: &Arc<Self>, key: &RunKey, reason: Option<String>) -> Result<(), ControlError> {
        self.control(key, Input::Cancel { reason }, None).await.map(drop)
    }

    /// Tells a run that a later one has taken its place. Should this be lost, it learns so when its time comes.
    fn supersede(self: &Arc<Self>, tenant: &TenantId, run: RunId, by: RunId) {
        if let Some(inbox) = self.inbox_of(&RunKey { tenant: tenant.clone(), run }) {
            drop(inbox.send(Message::Superseded { by: Some(by) }));
        }
    }

    /// Has a run's loop decide on something. Returns the number of the first event that followed, once it is on disk.
    async fn control(
        self: &Arc<Self>,
        key: &RunKey,
        input: Input,
        content: Option<Content>,
    ) -> Result<Seq, ControlError> {
        // One that is being made has a loop before it has a summary.
        let is_made = self.registry.has(key);
        let status = self.journal.summary(key)?.map(|summary| summary.status);
        if status.is_none() && !is_made {
            return Err(ControlError::UnknownRun);
        }
        // Whether a signal has come before, the run alone can tell.
        let may_repeat = matches!(input, Input::Signal { key: Some(_), .. });
        if let Some(status) = status.filter(|status| status.is_terminal() && !may_repeat) {
            return Err(Refusal::Ended(status).into());
        }
        // A loop that is just leaving may let go of a message; the next one will not.
        for _ in 0..3 {
            let (reply, answer) = oneshot::channel();
            let Some(inbox) = self.inbox_of(key) else { break };
            let message = Message::Control { input: Box::new(input.clone()), content: content.clone(), reply };
            if inbox.send(message).is_ok()
                && let Ok(answer) = answer.await
            {
                return Ok(answer?);
            }
        }
        Err(ControlError::Unavailable)
    }

    /// The inbox of a run's loop, which is started when there is none. `None` when the host is stopping.
    fn inbox_of(self: &Arc<Self>, key: &RunKey) -> Option<Inbox> {
        if self.stopping.is_cancelled() {
            return None;
        }
        let (inbox, new) = self.registry.enter(key);
        if let Some(messages) = new {
            self.spawn_loop(key.clone(), inbox.clone(), messages, Beginning::Recovered);
        }
        Some(inbox)
    }

    fn spawn_loop(self: &Arc<Self>, key: RunKey, inbox: Inbox, messages: Messages, beginning: Beginning) {
        let shared = Arc::clone(self);
        self.loops.spawn(async move {
            let run = RunLoop::run(Arc::clone(&shared), key.clone(), inbox, messages, beginning);
            if AssertUnwindSafe(run).catch_unwind().await.is_err() {
                // A defect of ours. The run is on disk; the next message or the next start takes it up.
                tracing::error!(run = %key, "the loop of a run has panicked");
                shared.registry.remove(&key);
            }
        });
    }

    /// The version that a run of a workflow gets, and its graph.
    fn resolve(
        &self,
        tenant: &TenantId,
        workflow: &WorkflowName,
        version: Option<Digest>,
    ) -> Result<(Digest, Arc<Graph>), StartError> {
        let record = self.journal.workflow(tenant, workflow)?;
        let record = record.ok_or_else(|| StartError::UnknownWorkflow(workflow.clone()))?;
        let version = version.unwrap_or(record.latest);
        Ok((version, self.graph(tenant, workflow, version)?))
    }

    /// Whether an input is small enough, and its version can do something with it.
    async fn check_input(
        &self,
        tenant: &TenantId,
        version: Digest,
        graph: &Graph,
        input: &Json,
    ) -> Result<(), StartError> {
        let bytes_max = self.journal.limits(tenant).input_bytes;
        if input.len_bytes() as u64 > bytes_max {
            return Err(StartError::InputTooLarge { bytes_max });
        }
        if graph.spec().input_schema.is_none() {
            return Ok(());
        }
        let (journal, owner) = (Arc::clone(&self.journal), tenant.clone());
        let component = Box::new(move || journal.component(&owner, &version).ok().flatten());
        let problems = self.sandbox.check_input(tenant, version, component, input.clone()).await?;
        if problems.is_empty() { Ok(()) } else { Err(StartError::InvalidInput(problems)) }
    }

    /// Whether there is room for a signal, and its run's version can do something with it. A run that waits may go on for
    /// as long as its steps may. One that may have come before an ended run's end was looked at then.
    async fn check_signal(
        &self,
        key: &RunKey,
        name: &str,
        payload: &Json,
        may_repeat: bool,
    ) -> Result<(), ControlError> {
        let limits = self.journal.limits(&key.tenant);
        if payload.len_bytes() as u64 > limits.input_bytes {
            return Err(ControlError::SignalTooLarge { bytes_max: limits.input_bytes });
        }
        if fullness::look(&self.journal, &key.tenant)? {
            return Err(JournalError::Full { bytes_max: limits.journal_bytes }.into());
        }
        let summary = self.journal.summary(key)?.ok_or(ControlError::UnknownRun)?;
        if summary.status.is_terminal() {
            if may_repeat {
                return Ok(());
            }
            return Err(Refusal::Ended(summary.status).into());
        }
        let graph = self.graph(&key.tenant, &summary.workflow, summary.version).map_err(|error| match error {
            StartError::Journal(error) => ControlError::Journal(error),
            _ => ControlError::Unavailable,
        })?;
        let Some(signal) = graph.signal(name) else { return Err(Refusal::UnknownSignal.into()) };
        if signal.schema.is_none() {
            return Ok(());
        }
        let (journal, owner, version) = (Arc::clone(&self.journal), key.tenant.clone(), summary.version);
        let component = Box::new(move || journal.component(&owner, &version).ok().flatten());
        let checked = self.sandbox.check_signal(&key.tenant, version, component, name.to_owned(), payload.clone());
        let problems = checked.await?;
        if problems.is_empty() { Ok(()) } else { Err(ControlError::InvalidSignal(problems)) }
    }

    /// A version's graph.
    fn graph(&self, tenant: &TenantId, workflow: &WorkflowName, version: Digest) -> Result<Arc<Graph>, StartError> {
        let key = (tenant.clone(), workflow.clone(), version);
        let graphs = || self.graphs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(graph) = graphs().get(&key) {
            return Ok(Arc::clone(graph));
        }
        let record = self.journal.version(tenant, workflow, &version)?.ok_or(StartError::UnknownVersion(version))?;
        let graph = Arc::new(Graph::check(record.graph).map_err(|_| StartError::Graph(version))?);
        graphs().put(key, Arc::clone(&graph));
        Ok(graph)
    }
}
