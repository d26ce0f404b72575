//! What Stepwell promises, from the outside: the real program, real guests, real disks, real crashes.
//!
//! Guests come from `make guests`. Each test starts what it needs on a port of its own and stops it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a panic is how a test says what is wrong; helpers outside of test functions say it too"
)]

mod api;
mod chaos;
mod cli;
mod control;
mod crash;
mod driver;
mod examples;
mod flow;
mod graphs;
mod hostile;
mod journal;
mod limits;
mod outside;
mod reference;
mod replay;
mod shadow;
mod streams;
mod support;
mod tenancy;
mod triggers;
mod uploads;
mod waits;
