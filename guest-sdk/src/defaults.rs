//! What a step gets when its attribute does not say otherwise.
//!
//! `#[workflow]` refers to these constants by name, so that the numbers stand in one place.

/// About a second of computing. Enough for any step that mostly moves data, and a loop that does not end is
/// found quickly.
pub const FUEL: u64 = 1_000_000_000;

/// 30 s in milliseconds: longer than the fuel lasts, so that it ends waiting rather than computing.
pub const TIMEOUT_MS: u64 = 30_000;

/// 64 MiB in bytes: the largest input (4 MiB) as text, parsed and copied, with room to work.
pub const MEMORY_BYTES: u64 = 64 * 1024 * 1024;

/// Four attempts: with the waits below they span about seven seconds, which outlasts a restart.
pub const MAX_ATTEMPTS: u32 = 4;

/// 1 s in milliseconds: sooner would meet most passing troubles while they last.
pub const RETRY_INITIAL_MS: u64 = 1_000;

/// Each wait is twice the one before it.
pub const RETRY_FACTOR: f64 = 2.0;

/// 60 s in milliseconds. A step that asks for a longer first wait has that as its longest wait too.
pub const RETRY_MAX_MS: u64 = 60_000;

/// Waits move by up to a fifth, so that steps which failed together do not come back together.
pub const RETRY_JITTER: f64 = 0.2;
