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
//! items of an `each`), [`interrupted`] (calls whose answer a crash took), [`outside`] (requests, models, secrets),
//! [`publish_rate`] (how fast a tenant may publish).

mod elements;
mod interrupted;
mod outside;
mod publish_rate;
mod registry;
mod run_loop;
mod step_host;

use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use lru::LruCache;
use stepwell_core::{Digest, Graph, Json, Refusal, RunId, RunKey, TenantId, WorkflowName};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::elements::Elements;
pub use self::outside::Outside;
use self::publish_rate::PublishRates;
pub use self::publish_rate::UPDATES_PER_SECOND_DEFAULT;
use self::registry::{Inbox, Messages, Registry};
use self::run_loop::{Beginning, Message, RunLoop};
pub(crate) use self::run_loop::{artifact_id, read_payload};
use crate::clock;
use crate::journal::{Created, IdempotencyKey, Journal, JournalError, RedbJournal};
use crate::permits::Permits;
use crate::sandbox::{CheckInputError, InputProblem, Sandbox};

/// Graphs kept in memory for new runs; a run under way keeps its own alive.
const GRAPHS_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Unfinished runs read at once in recovery.
const RECOVERY_PAGE: usize = 1_000;

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
    publish_rates: PublishRates,
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
    #[error("the run could not be recorded")]
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
}

/// Why a run was not cancelled.
#[derive(Debug, thiserror::Error)]
pub enum CancelError {
    /// The tenant has no such run.
    #[error("there is no such run")]
    UnknownRun,
    /// It has ended, or cannot be cancelled for another reason.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The host is on its way down, or the journal did not take it.
    #[error("the host does not accept this at present")]
    Unavailable,
    /// The journal could not be read.
    #[error("the run could not be read")]
    Journal(#[from] JournalError),
}

impl Driver {
    /// A driver that drives nothing yet: see [`recover`](Self::recover).
    #[must_use]
    pub fn new(journal: Arc<RedbJournal>, sandbox: Arc<Sandbox>, outside: Outside, config: &DriverConfig) -> Self {
        let shared = Shared {
            journal,
            sandbox,
            outside,
            elements: Elements::default(),
            registry: Registry::default(),
            graphs: Mutex::new(LruCache::new(GRAPHS_MAX)),
            room: Permits::new(config.active_runs_max, config.active_runs_per_tenant),
            publish_rates: PublishRates::new(config.updates_per_second),
            stopping: CancellationToken::new(),
            loops: TaskTracker::new(),
            grace: config.grace,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Takes up every run that has not ended. Runs can be started meanwhile. Returns how many there were.
    pub async fn recover(&self) -> Result<usize, JournalError> {
        let mut count = 0;
        let mut after = None;
        loop {
            let page = self.shared.journal.unfinished(after.as_ref(), RECOVERY_PAGE)?;
            let Some(last) = page.last() else { return Ok(count) };
            after = Some(last.clone());
            count += page.len();
            for key in &page {
                drop(self.shared.inbox_of(key));
            }
            tokio::task::yield_now().await;
        }
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
        let record = shared.journal.workflow(tenant, workflow)?;
        let record = record.ok_or_else(|| StartError::UnknownWorkflow(workflow.clone()))?;
        let version = version.unwrap_or(record.latest);
        let graph = shared.graph(tenant, workflow, version)?;
        if graph.spec().input_schema.is_some() {
            let (journal, owner) = (Arc::clone(&shared.journal), tenant.clone());
            let component = Box::new(move || journal.component(&owner, &version).ok().flatten());
            let problems = shared.sandbox.check_input(tenant, version, component, input.clone()).await?;
            if !problems.is_empty() {
                return Err(StartError::InvalidInput(problems));
            }
        }

        let key = RunKey { tenant: tenant.clone(), run: clock::run_id() };
        let (reply, answer) = oneshot::channel();
        let new = Beginning::New { graph, workflow: workflow.clone(), version, input, idempotency, correlation, reply };
        // In the registry before it is on disk: from the first moment that somebody can name the run, it has its loop.
        // And a task of its own, so that a client who hangs up does not leave half a run.
        let (inbox, messages) = shared.registry.enter(&key);
        let messages = messages.ok_or(StartError::Stopping)?; // never: the id is new
        shared.spawn_loop(key.clone(), inbox, messages, new);
        match answer.await.map_err(|_| StartError::Stopping)?? {
            Created::New => Ok(Started { run: key.run, replayed: false }),
            Created::Existing(run) => Ok(Started { run, replayed: true }),
        }
    }

    /// Cancels a run. When this returns, that is on disk, and its attempts are being stopped.
    pub async fn cancel(&self, key: &RunKey, reason: Option<String>) -> Result<(), CancelError> {
        let summary = self.shared.journal.summary(key)?.ok_or(CancelError::UnknownRun)?;
        if summary.status.is_terminal() {
            return Err(Refusal::Ended(summary.status).into());
        }
        // A loop that is just leaving may let go of a message; the next one will not.
        for _ in 0..3 {
            let (reply, answer) = oneshot::channel();
            let Some(inbox) = self.shared.inbox_of(key) else { break };
            let sent = inbox.send(Message::Cancel { reason: reason.clone(), reply });
            if sent.is_ok()
                && let Ok(answer) = answer.await
            {
                return Ok(answer?);
            }
        }
        Err(CancelError::Unavailable)
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

    /// Runs that have a loop.
    #[must_use]
    pub fn runs_under_way(&self) -> usize {
        self.shared.registry.len()
    }
}

impl Shared {
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
