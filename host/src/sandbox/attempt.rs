//! One attempt: a fresh store, a fresh instance, one call, and everything dropped.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use stepwell_core::graph::Limits;
use stepwell_core::{Digest, Failure, Json, NodeId, WorkflowName};
use wasmtime::{Engine, Store, UpdateDeadline};

use super::code::Loaded;
use super::end::{Ended, TimedOut, classify, permanent, unavailable};
use super::generated::exports::stepwell::workflow::steps::{self, Graph, StepContext};
use super::limits::{
    ARTIFACTS_BYTES_MAX, ARTIFACTS_MAX, Allowance, CHILDREN_BYTES_MAX, CLOCK_READS_MAX, COMPLETIONS_BYTES_MAX,
    COMPLETIONS_MAX, DESCRIBE_LIMITS, FAILURE_MESSAGE_BYTES_MAX, HOST_CALL_BYTES_MAX, INPUT_PROBLEMS_MAX,
    LOG_BYTES_MAX, LOG_LINES_MAX, MemoryLimiter, REQUESTS_BYTES_MAX, REQUESTS_MAX, UPDATES_BYTES_MAX, UPDATES_MAX,
    WAITS_MAX,
};
use super::random::Random;
use super::replay::{Record, Replay};
use super::time::AttemptTime;
use super::upload::Denied;
use super::{AttemptEnd, InputProblem, Job, StepHost};

/// What a store knows of the attempt it is for.
pub(super) struct AttemptState {
    pub(super) host: Arc<dyn StepHost>,
    pub(super) memory: MemoryLimiter,
    pub(super) updates: Allowance,
    pub(super) logs: Allowance,
    /// Whether the line that says that lines were dropped has been written.
    pub(super) logs_ended: bool,
    pub(super) artifacts: Allowance,
    pub(super) requests: Allowance,
    pub(super) completions: Allowance,
    pub(super) clock_reads: Allowance,
    pub(super) waits: Allowance,
    pub(super) children: Allowance,
    /// The last time that the attempt was told.
    pub(super) clock_ms: u64,
    pub(super) random: Random,
    pub(super) replay: Replay,
    time: Arc<AttemptTime>,
    /// How often each call was made, by its name and arguments.
    pub(super) calls: HashMap<(&'static str, Digest), usize>,
}

/// Where the work of a step is done that delegates.
pub(super) struct Delegate {
    pub(super) workflow: WorkflowName,
    pub(super) version: Digest,
    pub(super) node: NodeId,
    pub(super) code: Loaded,
}

/// Runs an attempt to its end, whatever that is.
pub(super) async fn run(engine: &Engine, code: &Loaded, delegate: Option<Delegate>, job: Job) -> AttemptEnd {
    let limits = job.limits;
    job.time.begin(Duration::from_millis(limits.timeout_ms));
    let mut context = StepContext {
        run_id: job.run.to_string(),
        workflow: job.workflow.to_string(),
        version: job.version.to_string(),
        node: job.step.node.to_string(),
        items: job.step.items,
        attempt: job.attempt,
    };
    let inputs: Vec<(String, String)> =
        job.inputs.into_iter().map(|(name, value)| (name, value.as_str().to_owned())).collect();
    let state = AttemptState::new(job.host, job.record, job.seed, job.time);
    let (ended, mut fuel_used, state) = call(engine, code, state, limits, &context, &inputs).await;
    let result = match (ended, delegate) {
        (Ok(Ended::With(output)), _) => Ok(output),
        (Err(failure), _) => Err(failure),
        (Ok(Ended::Delegated(_)), None) => {
            Err(permanent("unexpected_outcome", "the step delegates, but its node names nobody to delegate to"))
        }
        (Ok(Ended::Delegated(inputs)), Some(Delegate { workflow, version, node, code })) => {
            // The first instance is gone: the second one takes its place and has what is left, of everything.
            (context.workflow, context.version) = (workflow.to_string(), version.to_string());
            context.node = node.to_string();
            let left = Limits { fuel: limits.fuel - fuel_used.min(limits.fuel), ..limits };
            let (ended, used) = match inputs.iter().find_map(|(_, value)| Json::stored(value.clone()).err()) {
                Some(error) => (Err(permanent("invalid_output", format!("what is delegated is not JSON: {error}"))), 0),
                None => {
                    let (ended, used, _) = call(engine, &code, state, left, &context, &inputs).await;
                    (ended, used)
                }
            };
            fuel_used += used;
            match ended {
                Ok(Ended::With(output)) => Ok(output),
                Err(failure) => Err(failure),
                Ok(Ended::Delegated(_)) => {
                    Err(permanent("unexpected_outcome", "a step that was delegated cannot be delegated again"))
                }
            }
        }
    };
    AttemptEnd { result, fuel_used }
}

/// One call of `run-step` in an instance of its own, and the fuel it used. The attempt's time has begun.
async fn call(
    engine: &Engine,
    code: &Loaded,
    state: AttemptState,
    limits: Limits,
    context: &StepContext,
    inputs: &[(String, String)],
) -> (Result<Ended, Failure>, u64, AttemptState) {
    let mut store = Store::new(engine, state);
    if let Err(error) = set_limits(&mut store, limits) {
        tracing::error!(%error, "a store could not be made");
        return (Err(unavailable("no sandbox could be made")), 0, store.into_data());
    }
    let time = Arc::clone(&store.data().time);
    let call = async {
        let instance = code.instantiate_async(&mut store).await?;
        instance.stepwell_workflow_steps().call_run_step(&mut store, context, inputs).await
    };
    let called = tokio::select! {
        biased;
        called = call => Ok(called),
        // Looked at each time, also when the guest has used up its task's turn with calls.
        () = tokio::task::unconstrained(time.over()) => Err(TimedOut(Duration::from_millis(limits.timeout_ms))),
    };
    // After an error the store cannot be entered again, but its counters can be read.
    let fuel_used = limits.fuel.saturating_sub(store.get_fuel().unwrap_or(0));
    let ended = classify(called, store.data().memory.refused, limits.memory_bytes);
    (ended, fuel_used, store.into_data())
}

/// A call of `run-step` that belongs to no run: nothing it asks for is done.
pub(super) async fn detached(
    engine: &Engine,
    code: &Loaded,
    limits: Limits,
    inputs: &[(String, String)],
) -> Result<Ended, Failure> {
    let nowhere = StepContext {
        run_id: String::new(),
        workflow: String::new(),
        version: String::new(),
        node: String::new(),
        items: Vec::new(),
        attempt: 1,
    };
    let time = Arc::new(AttemptTime::default());
    time.begin(Duration::from_millis(limits.timeout_ms));
    let state = AttemptState::new(Arc::new(Denied), None, [0; 32], time);
    call(engine, code, state, limits, &nowhere, inputs).await.0
}

/// Asks a component for its graph.
pub(super) async fn describe(engine: &Engine, code: &Loaded) -> wasmtime::Result<Graph> {
    let mut store = denied(engine)?;
    within(async {
        let instance = code.instantiate_async(&mut store).await?;
        instance.stepwell_workflow_steps().call_describe(&mut store).await
    })
    .await
}

/// What is handed to a workflow, and that it is asked about before.
#[derive(Debug, Clone)]
pub(super) enum Handed {
    /// A run's input.
    Input(Json),
    /// A signal, by its name.
    Signal(String, Json),
}

/// Asks a component what is wrong with what it is to be handed.
pub(super) async fn check(engine: &Engine, code: &Loaded, handed: &Handed) -> wasmtime::Result<Vec<InputProblem>> {
    let mut store = denied(engine)?;
    let problems = within(async {
        let instance = code.instantiate_async(&mut store).await?;
        let steps = instance.stepwell_workflow_steps();
        match handed {
            Handed::Input(input) => steps.call_check_input(&mut store, &input.as_str().to_owned()).await,
            Handed::Signal(name, payload) => {
                steps.call_check_signal(&mut store, name, &payload.as_str().to_owned()).await
            }
        }
    })
    .await?;
    let problem = |problem: steps::InputProblem| {
        let (mut pointer, mut message) = (problem.pointer, problem.message);
        pointer.truncate(pointer.floor_char_boundary(FAILURE_MESSAGE_BYTES_MAX));
        message.truncate(message.floor_char_boundary(FAILURE_MESSAGE_BYTES_MAX));
        InputProblem { pointer, message }
    };
    Ok(problems.into_iter().take(INPUT_PROBLEMS_MAX).map(problem).collect())
}

/// A call for which nobody waits long.
async fn within<T>(call: impl Future<Output = wasmtime::Result<T>>) -> wasmtime::Result<T> {
    let timeout_ms = DESCRIBE_LIMITS.timeout_ms;
    match tokio::time::timeout(Duration::from_millis(timeout_ms), call).await {
        Ok(result) => result,
        Err(_elapsed) => Err(wasmtime::Error::msg(format!("it took longer than {timeout_ms} ms"))),
    }
}

impl AttemptState {
    pub(super) fn new(
        host: Arc<dyn StepHost>,
        record: Option<Box<dyn Record>>,
        seed: [u8; 32],
        time: Arc<AttemptTime>,
    ) -> Self {
        Self {
            host,
            memory: MemoryLimiter::new(0), // set with the other limits
            updates: Allowance::new(UPDATES_MAX, UPDATES_BYTES_MAX),
            logs: Allowance::new(LOG_LINES_MAX, LOG_BYTES_MAX),
            logs_ended: false,
            artifacts: Allowance::new(ARTIFACTS_MAX, ARTIFACTS_BYTES_MAX),
            requests: Allowance::new(REQUESTS_MAX, REQUESTS_BYTES_MAX),
            completions: Allowance::new(COMPLETIONS_MAX, COMPLETIONS_BYTES_MAX),
            clock_reads: Allowance::new(CLOCK_READS_MAX, 0),
            waits: Allowance::new(WAITS_MAX, 0),
            // How many there are is counted by the run.
            children: Allowance::new(u32::MAX, CHILDREN_BYTES_MAX),
            clock_ms: 0,
            random: Random::new(seed),
            replay: Replay::new(record),
            time,
            calls: HashMap::new(),
        }
    }
}

/// A store for what belongs to no run: nothing it asks for is done.
fn denied(engine: &Engine) -> wasmtime::Result<Store<AttemptState>> {
    let mut store = Store::new(engine, AttemptState::new(Arc::new(Denied), None, [0; 32], Arc::default()));
    set_limits(&mut store, DESCRIBE_LIMITS)?;
    Ok(store)
}

fn set_limits(store: &mut Store<AttemptState>, limits: Limits) -> wasmtime::Result<()> {
    store.data_mut().memory = MemoryLimiter::new(limits.memory_bytes);
    store.limiter(|state| &mut state.memory);
    // A store starts without fuel, and with a deadline that has passed.
    store.set_fuel(limits.fuel)?;
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|_| {
        // To the back of the queue: a plain yield would be polled again before anyone else.
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
    });
    store.set_hostcall_fuel(HOST_CALL_BYTES_MAX);
    store.set_max_component_handles(HANDLES_MAX);
    Ok(())
}

/// Handles to host resources that a guest may hold. No import hands out any so far.
const HANDLES_MAX: usize = 16;
