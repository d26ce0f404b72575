//! What wasm is allowed to be, and how it is run. One function configures code generation for the process that
//! compiles and for the one that runs; the two must agree, and a test loads what the one made into the other.

use std::num::NonZeroUsize;
use std::sync::Arc;

use wasmtime::{
    CacheStore, Config, Enabled, Engine, InstanceAllocationStrategy, ModuleVersionStrategy, OperatorCost, OptLevel,
    PoolingAllocationConfig, VariableOperatorCost, WasmFeatures,
};

use super::EPOCH_TICK;
use stepwell_core::graph::MEMORY_BYTES_MAX;

/// Core instances that one component may consist of: what the component encoder makes of a module is three or four.
const CORE_INSTANCES_PER_COMPONENT: u32 = 8;
/// Elements of one table. Rust guests have a few thousand functions in theirs; interpreters of other languages need
/// more than ten thousand.
const TABLE_ELEMENTS_MAX: usize = 20_000;
/// Memory of a slot that stays with it for the next attempt instead of being given back and faulted in again.
const KEEP_RESIDENT_BYTES: usize = 2 << 20;

/// The engine that guests run on.
pub(super) fn runtime(slots: u32) -> anyhow::Result<Engine> {
    let mut config = code_generation();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(slots)));
    let engine = match Engine::new(&config) {
        Ok(engine) => engine,
        Err(error) => {
            // A container with little address space. Slower, and just as isolated.
            tracing::warn!(%error, slots, "no pool of sandboxes can be had; each attempt allocates its own memory");
            config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
            Engine::new(&config)?
        }
    };
    tick(&engine)?;
    Ok(engine)
}

/// The engine that compiles. Compiled functions may be taken from a cache, and are put there.
pub(super) fn compiler(functions: Option<Arc<dyn CacheStore>>) -> anyhow::Result<Engine> {
    let mut config = code_generation();
    if let Some(functions) = functions {
        config.enable_incremental_compilation(functions)?;
    }
    Ok(Engine::new(&config)?)
}

fn code_generation() -> Config {
    let mut config = Config::new();
    // The same inputs give the same outputs, to the bit.
    config.cranelift_opt_level(OptLevel::Speed).cranelift_nan_canonicalization(true);
    // Registering unwind information is slow with many versions loaded; backtraces do not need it.
    config.native_unwind_info(false);
    config.wasm_backtrace_max_frames(NonZeroUsize::new(16));

    // Fuel is the budget, epochs are what makes a guest yield; wall-clock time is the caller's.
    config.consume_fuel(true).epoch_interruption(true);
    // Growing memory costs the host zeroed pages, so it costs fuel.
    let variable = VariableOperatorCost { memory_grow_per_page: u8::MAX, ..VariableOperatorCost::default() };
    config.operator_cost(OperatorCost { variable, ..OperatorCost::default() });

    // Host functions run on what the guest leaves of the stack: 1.5 MiB at the least.
    config.max_wasm_stack(512 << 10).async_stack_size(2 << 20);
    // Stacks are pooled: the next attempt finds zeros. A second wall, behind the one that no guest reads its stack past.
    config.async_stack_zeroing(true);

    // What rustc emits, and no more. Tail calls, typed function references, memory64 and several memories have each
    // had a hole in fuel or in the sandbox, and no guest of ours needs them. GC, threads, exceptions and component-model
    // async are not compiled in.
    config.wasm_features(WasmFeatures::FUNCTION_REFERENCES, false);
    config.wasm_tail_call(false).wasm_memory64(false).wasm_multi_memory(false).wasm_relaxed_simd(false);
    config.wasm_wide_arithmetic(false).wasm_custom_page_sizes(false).wasm_stack_switching(false);

    // The memory of a large graph is an image of some tens of megabytes, half of it zeros. Above this size wasmtime would
    // copy such an image for each instance instead of mapping it: a hundred times the cost of a step.
    config.memory_guaranteed_dense_image_size(stepwell_compiler::specialize::LOAD_MEMORY_BYTES as u64);

    // By default code of any 48.x loads; layouts have changed between patches.
    let version = concat!("wasmtime 48.0.8, stepwell ", env!("CARGO_PKG_VERSION"));
    // The error is for a version that is too long; this one has forty bytes.
    if let Err(error) = config.module_version(ModuleVersionStrategy::Custom(version.to_owned())) {
        tracing::error!(%error, "the version of compiled code cannot be set");
    }
    config
}

fn pool(slots: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_core_instances(slots.saturating_mul(CORE_INSTANCES_PER_COMPONENT))
        .total_memories(slots)
        .total_tables(slots.saturating_mul(2))
        .total_stacks(slots)
        .max_core_instances_per_component(CORE_INSTANCES_PER_COMPONENT)
        .max_memories_per_component(1)
        .max_tables_per_component(2)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_memory_size(MEMORY_BYTES_MAX as usize)
        .max_unused_warm_slots(slots)
        .decommit_batch_size(16)
        .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
        .table_keep_resident(TABLE_ELEMENTS_MAX * size_of::<usize>())
        .async_stack_keep_resident(64 << 10);
    // Resetting only the pages that were written is several times faster, but it leaves pages that were swapped out
    // as they were (wasmtime issue 14357), for the next tenant to read.
    if !PoolingAllocationConfig::is_pagemap_scan_available() {
        tracing::info!("this kernel cannot tell written pages; resetting sandboxes is slower");
    } else if swap_is_on() {
        tracing::warn!("swap is on, so sandboxes are reset page by page, which is slower");
    } else {
        pool.pagemap_scan(Enabled::Yes);
    }
    pool
}

/// Whether memory may be swapped out. When it cannot be told, it may.
fn swap_is_on() -> bool {
    match std::fs::read_to_string("/proc/swaps") {
        Ok(swaps) => swaps.lines().count() > 1, // the first line is a heading
        Err(_) => true,
    }
}

/// Moves the epoch for as long as the engine lives. A thread of its own, because a task would wait for the very
/// guests that it is there to interrupt.
fn tick(engine: &Engine) -> std::io::Result<()> {
    let engine = engine.weak();
    let ticker = move || {
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(EPOCH_TICK);
        }
    };
    std::thread::Builder::new().name("epoch".to_owned()).spawn(ticker).map(drop)
}
