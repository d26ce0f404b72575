//! The rules of a run, as plain data and plain functions.
//!
//! # What is here
//! * [`event`] — what can be true: the facts a run's journal is made of.
//! * [`run`] — what it means: the fold of those facts into the state of a run.
//! * [`decide`] — what we do about it: given a state and something that just happened, the facts that follow.
//! * [`effect`] — what a shell owes the outside, derived from the state, so that a crash cannot lose it.
//! * `snapshot` — the state of a run as bytes.
//! * [`rerun`] — what of one run counts in another that repeats it.
//! * [`graph`] — the shape of a workflow and what makes one valid; [`scope`] — what of it runs several times.
//! * [`flow`] — how many of a workflow's runs go at once, and how fast they start.
//! * [`retry`], [`failure`], [`json`], [`ids`], [`time`] — the words the others are made of.
//! * [`view`] — how a history reads to a person: steps, attempts, artifacts.
//!
//! # What is not
//! No IO, no clock, no randomness, no threads: time, ids and dice are arguments. `Cargo.toml` keeps it so.
//!
//! # The one contract of whoever drives a run
//! ```text
//!   decide ──► apply ──► append durably ──► act, and tell
//!   (pure)     (fold)     (ordered, fenced)   (only what is on disk)
//! ```
//! Nothing acts and nobody is told before the event is on disk. Applying before the append is what lets a run
//! order many updates while one append is under way; it is safe because an applied event that is not durable
//! can be seen by nobody, and when an append fails the whole state is thrown away and read again.
//! Recovery is: read, apply everything, do what is [owed](run::Run::owed).

pub mod decide;
pub mod difference;
pub mod effect;
pub mod event;
pub mod failure;
pub mod flow;
pub mod graph;
pub mod ids;
pub mod json;
pub mod rerun;
pub mod retry;
pub mod run;
pub mod scope;
mod snapshot;
pub mod time;
pub mod view;

pub use decide::{Input, Refusal};
pub use effect::Effect;
pub use event::{Event, Recorded};
pub use failure::{Failure, FailureKind, FailureSource};
pub use graph::{Graph, GraphSpec};
pub use ids::{Digest, NodeId, RunId, RunKey, Seq, StepId, TenantId, WorkflowName};
pub use json::{Json, Payload};
pub use run::{IllegalEvent, Run, RunStatus, StepStatus};
pub use time::Timestamp;

#[cfg(test)]
mod tests;
