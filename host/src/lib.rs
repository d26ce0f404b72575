//! Stepwell runs workflows for many tenants, each step in a WebAssembly sandbox of its own, and never loses or
//! invents an update.
//!
//! # Layout
//! * [`journal`] — where events live: one file, one writer, one fsync for all that waits.
//! * [`sandbox`] — where guests run: compiled apart, metered, limited, in a fresh instance each time.
//! * [`driver`] — who does it: a loop for each run, where journal, sandbox and core meet.
//! * [`triggers`] — what starts runs besides requests, and who is told when they end.
//! * [`streams`] — a run's journal as a stream; [`stream_tokens`] and [`cors`] — which browsers may read it.
//! * [`api`] — HTTP; [`connections`] — what it goes over; [`access`] — who is asking.
//! * [`cli`] — the command line; [`client`] — the HTTP client behind it.
//! * [`maintenance`] — what is deleted, and when; [`clock`] — where time, ids and randomness enter.
//!
//! The rules of a run are in the crate [`stepwell_core`]. Journal, sandbox and api do not know each other's insides.

pub mod access;
pub mod api;
pub mod cli;
pub mod client;
pub mod clock;
pub mod connections;
pub mod cors;
pub mod driver;
pub mod journal;
pub mod maintenance;
mod permits;
pub mod sandbox;
pub mod stream_tokens;
pub mod streams;
pub mod triggers;
pub mod vault;
mod whole;
