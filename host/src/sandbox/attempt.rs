//! One attempt: a fresh store, a fresh instance, one call, and everything dropped.

use std::sync::Arc;
use std::time::Duration;

use stepwell_core::graph::Limits;
use wasmtime::{Engine, Store, UpdateDeadline};

use super::code::Loaded;
use super::end::{TimedOut, classify};
use super::generated::exports::stepwell::workflow::steps::{Graph, StepContext};
use super::limits::{
    ARTIFACTS_BYTES_MAX, ARTIFACTS_MAX, Allowance, HOST_CALL_BYTES_MAX, LOG_BYTES_MAX, LOG_LINES_MAX, MemoryLimiter,
    UPDATES_BYTES_MAX, UPDATES_MAX,
};
use super::{AttemptEnd, Job, StepHost};

/// What a store knows of the attempt it is for.
pub(super) struct AttemptState {
    pub(super) host: Arc<dyn StepHost>,
    pub(super) memory: MemoryLimiter,
    pub(super) updates: Allowance,
    pub(super) logs: Allowance,
    /// Whether the line that says that lines were dropped has been written.
    pub(super) logs_ended: bool,
    pub(super) artifacts: Allowance,
}

/// Runs an attempt to its end, whatever that is.
pub(super) async fn run(engine: &Engine, code: &Loaded, job: Job) -> AttemptEnd {
    let limits = job.limits;
    let context = StepContext {
        run_id: job.run.to_string(),
        workflow: job.workflow.to_string(),
        version: job.version.to_string(),
        node: job.step.node.to_string(),
        items: job.step.items,
        attempt: job.attempt,
    };
    let inputs: Vec<(String, String)> =
        job.inputs.into_iter().map(|(name, value)| (name, value.as_str().to_owned())).collect();
    let mut store = match store(engine, job.host, limits) {
        Ok(store) => store,
        Err(error) => {
            tracing::error!(%error, "a store could not be made");
            return AttemptEnd::unavailable("no sandbox could be made");
        }
    };
    let timeout = Duration::from_millis(limits.timeout_ms);
    let call = async {
        let instance = code.instantiate_async(&mut store).await?;
        instance.stepwell_workflow_steps().call_run_step(&mut store, &context, &inputs).await
    };
    let called = tokio::time::timeout(timeout, call).await.map_err(|_elapsed| TimedOut(timeout));
    // After an error the store cannot be entered again, but its counters can be read.
    let fuel_used = limits.fuel.saturating_sub(store.get_fuel().unwrap_or(0));
    let result = classify(called, store.data().memory.refused, limits.memory_bytes);
    AttemptEnd { result, fuel_used }
}

/// Asks a component for its graph.
pub(super) async fn describe(
    engine: &Engine,
    code: &Loaded,
    host: Arc<dyn StepHost>,
    limits: Limits,
) -> wasmtime::Result<Graph> {
    let mut store = store(engine, host, limits)?;
    let call = async {
        let instance = code.instantiate_async(&mut store).await?;
        instance.stepwell_workflow_steps().call_describe(&mut store).await
    };
    match tokio::time::timeout(Duration::from_millis(limits.timeout_ms), call).await {
        Ok(result) => result,
        Err(_elapsed) => Err(wasmtime::Error::msg(format!("it took longer than {} ms", limits.timeout_ms))),
    }
}

fn store(engine: &Engine, host: Arc<dyn StepHost>, limits: Limits) -> wasmtime::Result<Store<AttemptState>> {
    let state = AttemptState {
        host,
        memory: MemoryLimiter::new(limits.memory_bytes),
        updates: Allowance::new(UPDATES_MAX, UPDATES_BYTES_MAX),
        logs: Allowance::new(LOG_LINES_MAX, LOG_BYTES_MAX),
        logs_ended: false,
        artifacts: Allowance::new(ARTIFACTS_MAX, ARTIFACTS_BYTES_MAX),
    };
    let mut store = Store::new(engine, state);
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
    Ok(store)
}

/// Handles to host resources that a guest may hold. No import hands out any so far.
const HANDLES_MAX: usize = 16;
