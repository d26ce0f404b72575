//! What the author of a Stepwell workflow uses: typed steps, updates, logs and artifacts.
//!
//! A workflow is a module, its steps are functions, and a step's parameters say what it waits for:
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use stepwell_guest::prelude::*;
//!
//! #[derive(Serialize, Deserialize)]
//! pub struct Document {
//!     pub text: String,
//! }
//!
//! #[workflow(topics = ["update"], output = "report")]
//! mod word_count {
//!     use super::*;
//!
//!     /// Splits the text into lines.
//!     #[step]
//!     pub fn split(input: Document) -> Result<Vec<String>, Failure> {
//!         Ok(input.text.lines().map(str::to_owned).collect())
//!     }
//!
//!     /// Counts the words.
//!     #[step(retry(max_attempts = 5, initial = "500ms"), timeout = "10s", memory = "32MiB")]
//!     pub fn count(ctx: &Ctx, split: Vec<String>) -> Result<usize, Failure> {
//!         let position = ctx.publish("update", &serde_json::json!({ "lines": split.len() }))?;
//!         ctx.log(format!("published at {position}"));
//!         Ok(split.iter().map(|line| line.split_whitespace().count()).sum())
//!     }
//!
//!     /// Says it in a sentence.
//!     #[step]
//!     pub fn report(input: Document, count: usize) -> Result<String, Failure> {
//!         Ok(format!("{count} words in {} bytes", input.text.len()))
//!     }
//! }
//! # fn main() {}
//! ```
//!
//! The crate compiles to one WebAssembly component. The host asks it for its graph once, and then calls it
//! for each attempt of each step, every time in a fresh instance.
//!
//! This crate owns the Rust side of `wit/` and nothing else: it does not schedule, retry or store, and it
//! knows nothing of how the host does. Its invariant: **a component imports only what its steps call**, so the
//! imports that the host shows are what the workflow can really do. The one import that every workflow has
//! is `log`, because a panic is reported through it.
//!
//! # Steps and edges
//!
//! * A parameter names what the step is handed: `input` is the run's input, any other name is a step of the
//!   same module and makes an edge from it. A leading underscore in a parameter's name is ignored.
//! * The first parameter may be `ctx: &Ctx`, the way to everything outside the step ([`Ctx`]).
//! * A step runs when all its incoming edges are resolved and at least one was taken. It is skipped when none
//!   was. A step without an edge runs when the run starts.
//! * `#[step(after = [a, b])]` waits for `a` and `b` without taking their outputs.
//! * A step chooses its way on by returning [`Routed`]. `#[step(when(classify = "big"))]` makes the edge from
//!   `classify` one that is taken only for the label `big`; `when(classify = ["big", "huge"])` makes one edge
//!   for each label.
//! * A parameter whose type is written `Option<T>` is `None` when that step was skipped. Any other type makes
//!   the attempt fail permanently then, with code `missing_input`.
//! * The run's output is the output of the step that `#[workflow(output = "…")]` names. Without it, it is that
//!   of the only step that has no outgoing edge.
//!
//! Mistakes in all this – an unknown name, a cycle, an output that could be two steps – are compile errors.
//! [`macro@workflow`] and [`macro@step`] list every key.
//!
//! # Retry and limits
//!
//! ```text
//! #[step(retry(max_attempts = 5, initial = "500ms", factor = 2.0, max = "10s", jitter = 0.2),
//!        timeout = "10s", fuel = 50_000_000, memory = "32MiB")]
//! ```
//!
//! What is left out has a default from [`defaults`]. Running out of fuel or memory is permanent, because the
//! same attempt would run out again; a timeout is retried.
//!
//! # Updates and artifacts
//!
//! [`Ctx::publish`] sends a JSON value to those who watch the run, on a topic that `#[workflow(topics = […])]`
//! declares. It answers with the update's final position or with an error, never with nothing.
//! [`Ctx::artifact`] stores a file. When an attempt fails, its updates and artifacts are rolled back: a step
//! that wants its error to be seen as an update completes with the error as its output, and lets a later
//! step deal with it.
//!
//! # Waiting
//!
//! [`Ctx::sleep`], [`Ctx::signal`] and [`Ctx::await_child`] wait: for a time, for somebody outside, for the end of a run
//! that [`Ctx::start_child`] has started. A step that waits ends there and holds nothing, for a second or for a year. When
//! what it waits for has come it is run again from its start, as the same attempt: everything it has done before is
//! answered from the record, and it goes on behind the wait. So the same rule holds as for an interruption: what a step
//! does must follow from what it is handed and told. Each time it has its full fuel and time again. Signals are
//! declared by `#[workflow(signals = ["…"])]`.
//!
//! # Failure
//!
//! A step returns [`Failure::retryable`] when the same attempt may succeed later and [`Failure::permanent`]
//! when it cannot. `?` turns the errors of [`Ctx`] and of `serde_json` into the right one of the two. A panic
//! is a failure too, but one without a code of its own: prefer a `Failure`.
//!
//! # Determinism
//!
//! Time and randomness come from [`Ctx::now_ms`] and [`Ctx::random_bytes`] only: in the sandbox `std::time` panics,
//! and a `HashMap` has the same seed every time. An attempt that was interrupted is run again from its
//! start, so what a step computes must follow from what it is handed.
//!
//! # Testing
//!
//! Off wasm32 the attribute exports nothing, so steps are plain functions. `Ctx::for_test` gives them a
//! context that records:
//!
//! ```
//! # use stepwell_guest::prelude::*;
//! # fn count(ctx: &Ctx, split: Vec<String>) -> Result<usize, Failure> {
//! #     ctx.publish("update", &split.len())?;
//! #     Ok(split.len())
//! # }
//! let ctx = Ctx::for_test();
//! assert_eq!(count(&ctx, vec!["one line".to_owned()])?, 1);
//! assert_eq!(ctx.recorded().updates[0].topic, "update");
//! # Ok::<(), Failure>(())
//! ```
//!
//! The module also holds a type `Workflow`, whose `describe()` and `run_step()` are what the host calls; see
//! the trait [`Workflow`].
//!
//! # Building
//!
//! The crate is a `cdylib`. `stepwell build PATH` compiles it for `wasm32-unknown-unknown`, makes it a
//! component and prints where that is; `stepwell deploy NAME COMPONENT` uploads it.

// Attributes of this crate name it by its own name, here as in the crates that use it.
extern crate self as stepwell_guest;

#[doc(hidden)]
pub mod bindings;
mod child;
mod context;
pub mod defaults;
mod errors;
mod failure;
#[cfg(target_arch = "wasm32")]
mod imports;
mod inputs;
mod outcome;
#[cfg(not(target_arch = "wasm32"))]
mod recorder;
mod workflow;

#[doc(inline)]
pub use bindings::stepwell::workflow::graph::{Edge, ErrorPolicy, Exhausted, Graph, Limits, Node, RetryPolicy, Signal};
pub use child::{Child, ChildRun};
pub use context::{Artifact, Ctx, Level, Position};
pub use errors::{ArtifactError, ChildError, PublishError, StartError, WaitError};
pub use failure::Failure;
pub use inputs::Inputs;
pub use outcome::{IntoOutcome, Outcome, Routed};
#[cfg(not(target_arch = "wasm32"))]
pub use recorder::{Recorded, RecordedArtifact, RecordedChild, RecordedUpdate};
pub use stepwell_guest_macros::{step, workflow};
pub use workflow::Workflow;

/// What a workflow module needs: `use stepwell_guest::prelude::*;`.
pub mod prelude {
    pub use crate::{
        Artifact, ArtifactError, Child, ChildError, ChildRun, Ctx, Failure, Level, Position, PublishError, Routed,
        StartError, WaitError, step, workflow,
    };
}

/// What the code that `#[workflow]` writes calls. Not part of the interface.
#[doc(hidden)]
pub mod private {
    pub use crate::workflow::{edge, error_policy, graph, node, unknown_node};
}
