//! What leaves the host, seen from the other end of a real connection.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a panic is how a test says what is wrong; helpers outside of test functions say it too"
)]

mod egress;
mod http;
mod llm;
mod server;
