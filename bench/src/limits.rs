//! Sandbox and journal by themselves, through their public API, in this process and with the server's allocator.
//!
//! What is built on them can come close to these figures and not surpass them: a durable step is at least one
//! sandboxed step and its share of one commit.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use stepwell::clock;
use stepwell::journal::{Batch, Journal, RedbJournal, RunSummary};
use stepwell::sandbox::{
    Attempt, AttemptEnd, Authorization, ChildError, ChildRequest, CompletionError, HostRefusal, Job, Sandbox,
    SandboxConfig, StepHost, StoredArtifact, Wait, Waited,
};
use stepwell_core::event::LogLevel;
use stepwell_core::graph::Limits;
use stepwell_core::{Digest, Event, Json, Payload, RunId, RunKey, Seq, StepId, TenantId, WorkflowName};
use stepwell_outbound::{Completion, HttpError, HttpRequest, HttpResponse, LlmRequest};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::report;
use crate::server::scratch_dir;

/// Attempts in flight at once: enough that no core waits for one.
const ATTEMPTS: usize = 64;
/// Runs that append at once.
const RUNS: usize = 100;
/// The part of a measurement's time that is spent before, uncounted.
const WARM_UP_PART: u32 = 4;

/// What the sandbox does by itself.
#[derive(Debug)]
pub(crate) struct StepFigures {
    /// Microseconds of one attempt, one after the other on one thread.
    pub(crate) step_us: f64,
    /// Attempts per second, with [`ATTEMPTS`] in flight on a thread for each core.
    pub(crate) per_second: f64,
}

/// What the journal does by itself.
#[derive(Debug)]
pub(crate) struct CommitFigures {
    /// Microseconds of one append, one after the other: a mean.
    pub(crate) mean_us: f64,
    /// The same: a median.
    pub(crate) p50_us: f64,
    /// Appends per second of [`RUNS`] runs at once.
    pub(crate) per_second: f64,
}

/// What the steps are of.
#[derive(Debug)]
pub(crate) enum Workflow {
    /// A component.
    Component(Bytes),
    /// A graph document.
    Graph(Bytes),
}

/// Measures attempts of the first step of a workflow. `compiler` is the server program, which compiles.
pub(crate) async fn steps(
    compiler: &Path,
    disk: &Path,
    workflow: &Workflow,
    duration: Duration,
) -> anyhow::Result<StepFigures> {
    report::progress("steps without a journal");
    let dir = scratch_dir(disk)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut figures = StepFigures { step_us: 0.0, per_second: 0.0 };
    for (in_flight, threads) in [(1, 1), (ATTEMPTS, cores)] {
        let slots = u32::try_from(in_flight)?;
        let sandbox = Sandbox::new(SandboxConfig {
            slots,
            slots_per_tenant: slots,
            threads,
            code_dir: dir.path().to_path_buf(),
            secret: clock::random_bytes(),
            compiler: compiler.to_path_buf(),
        })?;
        let sandbox = Arc::new(sandbox);
        let step = Step::first(&sandbox, workflow).await?;
        attempts(&sandbox, &step, in_flight, duration / WARM_UP_PART).await?;
        let (count, elapsed) = attempts(&sandbox, &step, in_flight, duration).await?;
        let per_second = count as f64 / elapsed.as_secs_f64();
        match in_flight {
            1 => figures.step_us = 1e6 / per_second,
            _ => figures.per_second = per_second,
        }
    }
    Ok(figures)
}

/// Measures appends to a new journal.
pub(crate) async fn commits(disk: &Path, duration: Duration) -> anyhow::Result<CommitFigures> {
    report::progress("commits without steps");
    let dir = scratch_dir(disk)?;
    let journal = Arc::new(RedbJournal::open(&dir.path().join("journal.redb"))?);
    append_for(&journal, duration / WARM_UP_PART).await?;

    let mut alone = append_for(&journal, duration).await?;
    alone.sort_by(f64::total_cmp);
    let mean_us = alone.iter().sum::<f64>() / alone.len() as f64;
    let p50_us = report::percentile(&alone, 50.0).context("nothing was appended")?;

    let started = Instant::now();
    let mut runs = JoinSet::new();
    for _ in 0..RUNS {
        let journal = Arc::clone(&journal);
        runs.spawn(async move { append_for(&journal, duration).await });
    }
    let mut appends = 0;
    while let Some(run) = runs.join_next().await {
        appends += run.context("a run panicked")??.len();
    }
    Ok(CommitFigures { mean_us, p50_us, per_second: appends as f64 / started.elapsed().as_secs_f64() })
}

/// Creates a run and appends to it, each time what a run appends between two steps. Returns the microseconds of each.
async fn append_for(journal: &RedbJournal, duration: Duration) -> anyhow::Result<Vec<f64>> {
    let key = RunKey { tenant: tenant()?, run: clock::run_id() };
    let at = clock::now();
    let input = Payload::Inline(Json::parse(r#"{"n":1}"#.to_owned())?);
    let queued = vec![Event::RunQueued {
        workflow: workflow()?,
        version: Digest::from_bytes([1; 32]),
        input: input.clone(),
        parent: None,
        rerun_of: None,
        shadow_of: None,
        place: None,
    }];
    let summary = RunSummary::after(None, 1, at, &queued);
    journal.create(&key, Batch { at, events: queued, summary, ..Batch::default() }, None).await?;

    let step: StepId = "s1".parse().map(stepwell_core::NodeId::into)?;
    let events = vec![
        Event::StepCompleted {
            step: step.clone(),
            attempt: 1,
            output: input,
            labels: Vec::new(),
            fan_out: None,
            again: false,
            fuel_used: 10_000,
        },
        Event::StepStarted { step, attempt: 1 },
    ];
    let (mut last_seq, mut times) = (1, Vec::new());
    let until = Instant::now() + duration;
    loop {
        let started = Instant::now();
        if started >= until {
            return Ok(times);
        }
        let batch = Batch { at: clock::now(), events: events.clone(), ..Batch::default() };
        journal.append(&key, last_seq, batch).await?;
        last_seq += events.len() as Seq;
        times.push(started.elapsed().as_secs_f64() * 1e6);
    }
}

/// Runs attempts for a while and says how many there were and how long it took.
async fn attempts(
    sandbox: &Arc<Sandbox>,
    step: &Step,
    in_flight: usize,
    duration: Duration,
) -> anyhow::Result<(u64, Duration)> {
    let (done, mut ended) = mpsc::channel(in_flight);
    let started = Instant::now();
    let count = Arc::new(AtomicU64::new(0));
    let chains: Vec<Arc<Chain>> = (0..in_flight)
        .map(|_| {
            let chain = Arc::new(Chain {
                sandbox: Arc::clone(sandbox),
                step: step.clone(),
                until: started + duration,
                count: Arc::clone(&count),
                done: done.clone(),
                current: Mutex::new(None),
            });
            chain.next();
            chain
        })
        .collect();
    drop(done);
    for _ in &chains {
        ended.recv().await.context("an attempt was lost")??;
    }
    Ok((count.load(Ordering::Relaxed), started.elapsed()))
}

/// The step whose attempts are run.
#[derive(Debug, Clone)]
struct Step {
    tenant: TenantId,
    workflow: WorkflowName,
    run: RunId,
    version: Digest,
    step: StepId,
    limits: Limits,
    inputs: Vec<(String, Json)>,
}

impl Step {
    /// The first step of a workflow, with an input. Leaves its compiled code where the sandbox finds it.
    async fn first(sandbox: &Sandbox, what: &Workflow) -> anyhow::Result<Self> {
        let inspection = match what {
            Workflow::Component(component) => sandbox.inspect(&tenant()?, component.clone()).await?,
            Workflow::Graph(document) => sandbox.compile_graph(&tenant()?, document.clone()).await?.inspection,
        };
        let node = inspection.graph.nodes.into_iter().next().context("the component has no steps")?;
        Ok(Self {
            tenant: tenant()?,
            workflow: workflow()?,
            run: clock::run_id(),
            version: inspection.version,
            step: node.id.parse().map(stepwell_core::NodeId::into)?,
            limits: node.limits,
            inputs: vec![("input".to_owned(), Json::parse(r#"{"n":1}"#.to_owned())?)],
        })
    }

    fn job(&self) -> Job {
        Job {
            run: self.run,
            workflow: self.workflow.clone(),
            version: self.version,
            step: self.step.clone(),
            attempt: 1,
            limits: self.limits,
            inputs: self.inputs.clone(),
            host: Arc::new(NoHost),
            record: None,
            time: Arc::default(),
            seed: [0; 32],
        }
    }
}

/// Attempts one after the other. The end of each starts the next, on the guests' own threads: were it started from
/// here, half of what is measured would be two threads that wake each other up.
struct Chain {
    sandbox: Arc<Sandbox>,
    step: Step,
    until: Instant,
    count: Arc<AtomicU64>,
    done: mpsc::Sender<anyhow::Result<()>>,
    /// Dropping an attempt ends it, so the one under way is kept.
    current: Mutex<Option<Attempt>>,
}

impl Chain {
    fn next(self: &Arc<Self>) {
        let (step, chain) = (self.step.clone(), Arc::clone(self));
        // Held over `spawn`: with several threads the attempt may have ended, and put its successor here, before
        // `spawn` returns.
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let attempt = self.sandbox.spawn(
            &self.step.tenant,
            self.step.version,
            Box::new(|| None),
            None,
            move || Ok(step.job()),
            move |end| chain.ended(end),
        );
        *current = Some(attempt);
    }

    fn ended(self: &Arc<Self>, end: AttemptEnd) {
        let result = match end.result {
            Ok(_) if Instant::now() < self.until => {
                self.count.fetch_add(1, Ordering::Relaxed);
                return self.next();
            }
            Ok(_) => Ok(()),
            Err(failure) => Err(anyhow::format_err!("a step failed: {}: {}", failure.code, failure.message)),
        };
        // There is room for one from each chain; and when nobody listens any more, nobody wants to know.
        drop(self.done.try_send(result));
    }
}

fn tenant() -> anyhow::Result<TenantId> {
    Ok("bench".parse()?)
}

fn workflow() -> anyhow::Result<WorkflowName> {
    Ok("noop".parse()?)
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
type Refused<'a, T> = Answer<'a, Result<T, HostRefusal>>;

/// Refuses everything: `noop` asks for nothing, and if it did, its attempts would fail and the figures with them.
struct NoHost;

impl StepHost for NoHost {
    fn send(
        &self,
        _request: HttpRequest,
        _authorization: Option<Authorization>,
    ) -> Answer<'_, Result<HttpResponse, HttpError>> {
        Box::pin(std::future::ready(Err(HttpError::Timeout)))
    }

    fn complete(
        &self,
        _provider: String,
        _request: LlmRequest,
        _topic: Option<String>,
    ) -> Answer<'_, Result<Completion, CompletionError>> {
        Box::pin(std::future::ready(Err(CompletionError::UnknownProvider)))
    }

    fn has_topic(&self, _topic: &str) -> bool {
        false
    }

    fn has_signal(&self, _name: &str) -> bool {
        false
    }

    fn wait(&self, _call: &'static str, _arguments: Digest, _wait: Wait) -> Refused<'_, Waited> {
        Box::pin(std::future::ready(Err(HostRefusal::Unavailable)))
    }

    fn start_child(
        &self,
        _call: &'static str,
        _arguments: Digest,
        _child: ChildRequest,
    ) -> Refused<'_, Result<RunId, ChildError>> {
        Box::pin(std::future::ready(Err(HostRefusal::Unavailable)))
    }

    fn record(&self, _call: &'static str, _arguments: Digest, _result: Json) -> Refused<'_, ()> {
        Box::pin(std::future::ready(Err(HostRefusal::Unavailable)))
    }

    fn publish(&self, _topic: String, _payload: Json, _within_call: bool) -> Refused<'_, Seq> {
        Box::pin(std::future::ready(Err(HostRefusal::Unavailable)))
    }

    fn log(&self, _level: LogLevel, _message: String) -> Refused<'_, ()> {
        Box::pin(std::future::ready(Err(HostRefusal::Unavailable)))
    }

    fn store_artifact(&self, _name: String, _media_type: String, _bytes: Bytes) -> Refused<'_, StoredArtifact> {
        Box::pin(std::future::ready(Err(HostRefusal::Unavailable)))
    }
}
