//! What a guest may use and hand over. The limits on time and memory of one attempt are its node's
//! ([`stepwell_core::graph::Limits`]); these hold for every attempt.

use stepwell_core::graph::Limits;
use wasmtime::ResourceLimiter;

/// Bytes of an uploaded component. A Rust guest with a jq interpreter has 1.4 MB; this leaves room for an interpreter
/// of a larger language.
pub const COMPONENT_BYTES_MAX: usize = 16 << 20;
/// Bytes of a step's output, and of a run's input. What Inngest allows a step, in the middle of what others do.
pub const OUTPUT_BYTES_MAX: usize = 4 << 20;
/// Bytes of one update: larger things are artifacts.
pub const UPDATE_BYTES_MAX: usize = 256 << 10;
/// Updates of one attempt.
pub const UPDATES_MAX: u32 = 10_000;
/// Bytes of all updates of one attempt.
pub const UPDATES_BYTES_MAX: usize = 32 << 20;
/// Bytes of a log line before it is cut off.
pub const LOG_LINE_BYTES_MAX: usize = 8 << 10;
/// Log lines of one attempt before further ones are dropped.
pub const LOG_LINES_MAX: u32 = 1_000;
/// Bytes of all log lines of one attempt.
pub const LOG_BYTES_MAX: usize = 1 << 20;
/// Bytes of a file.
pub const ARTIFACT_BYTES_MAX: usize = 16 << 20;
/// Files of one attempt.
pub const ARTIFACTS_MAX: u32 = 100;
/// Bytes of all files of one attempt.
pub const ARTIFACTS_BYTES_MAX: usize = 64 << 20;
/// Bytes of a file's name.
pub const ARTIFACT_NAME_BYTES_MAX: usize = 255;
/// Bytes of a media type.
pub const MEDIA_TYPE_BYTES_MAX: usize = 255;
/// Bytes of a failure's message before it is cut off.
pub const FAILURE_MESSAGE_BYTES_MAX: usize = 4 << 10;
/// Bytes of a failure's details before they are dropped.
pub const FAILURE_DETAILS_BYTES_MAX: usize = 64 << 10;
/// Random bytes given in one call.
pub const RANDOM_BYTES_MAX: u32 = 4 << 10;
/// HTTP requests of one attempt. A step that sends more is a workflow of its own.
pub const REQUESTS_MAX: u32 = 100;
/// Bytes of all bodies of an attempt's requests.
pub const REQUESTS_BYTES_MAX: usize = 64 << 20;
/// Completions that one attempt may ask for.
pub const COMPLETIONS_MAX: u32 = 100;
/// Bytes of all prompts of one attempt.
pub const COMPLETIONS_BYTES_MAX: usize = 64 << 20;
/// Times that an attempt may read the clock; afterwards it stands still. Each is an event, and none takes less than a
/// millisecond.
pub const CLOCK_READS_MAX: u32 = 10_000;
/// Times that one attempt may wait. Each time it is taken up again it goes through all of them, so a step that waits
/// without end is better a loop.
pub const WAITS_MAX: u32 = 1_000;
/// Bytes of the inputs of all children that one attempt starts.
pub const CHILDREN_BYTES_MAX: usize = 64 << 20;
/// Labels that one outcome may name: more than a node can have edges to choose from sensibly.
pub const LABELS_MAX: usize = 1_000;

/// Fuel that each host call costs, so that a loop of calls ends like any other loop. Roughly what the host computes
/// for one, in instructions.
pub const HOST_CALL_FUEL: u64 = 500;
/// Bytes that may cross from the guest to the host in one call, lists of lists and all. Twice the largest artifact, so
/// that a step with a file that is too large is told so; one that hands over more has its attempt ended before a byte
/// is copied. Texts and files are copied only when their own limit allows.
pub const HOST_CALL_BYTES_MAX: usize = 2 * ARTIFACT_BYTES_MAX;
/// What `describe` and `check-input` may use.
pub const DESCRIBE_LIMITS: Limits = Limits { fuel: 100_000_000, timeout_ms: 5_000, memory_bytes: 128 << 20 };
/// What evaluating an expression that belongs to no graph may use: a hundred times what compiling one and a filter over
/// a large event take.
pub const EVALUATE_LIMITS: Limits = Limits { fuel: 500_000_000, timeout_ms: 10_000, memory_bytes: 128 << 20 };
/// Bytes of such an expression. What is longer is a workflow.
pub const EXPRESSION_BYTES_MAX: usize = 16 << 10;
/// Problems of an input that are passed on.
pub const INPUT_PROBLEMS_MAX: usize = 20;

/// Memory of a store, all memories and tables together. wasmtime's own limiter counts each of them apart.
#[derive(Debug)]
pub(super) struct MemoryLimiter {
    bytes_max: usize,
    bytes: usize,
    /// Whether the guest was ever refused memory: a guest then usually panics, and this tells why.
    pub(super) refused: bool,
}

impl MemoryLimiter {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX), bytes: 0, refused: false }
    }

    fn grow(&mut self, current: usize, desired: usize) -> bool {
        let wanted = self.bytes.saturating_sub(current).saturating_add(desired);
        let allowed = wanted <= self.bytes_max;
        if allowed {
            self.bytes = wanted;
        } else {
            self.refused = true;
        }
        allowed
    }
}

/// Bytes that one element of a table takes.
const TABLE_ELEMENT_BYTES: usize = size_of::<usize>();

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        Ok(self.grow(current, desired))
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let bytes = |elements: usize| elements.saturating_mul(TABLE_ELEMENT_BYTES);
        Ok(self.grow(bytes(current), bytes(desired)))
    }
}

/// A counter of what is left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    count: u32,
    bytes: usize,
}

impl Allowance {
    pub(super) const fn new(count: u32, bytes: usize) -> Self {
        Self { count, bytes }
    }

    /// Takes one thing of this size; `false` when that is more than there is left.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        match (self.count.checked_sub(1), self.bytes.checked_sub(bytes)) {
            (Some(count), Some(bytes)) => {
                *self = Self { count, bytes };
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_and_tables_share_one_limit() {
        let mut limiter = MemoryLimiter::new(1 << 20);
        assert!(limiter.memory_growing(0, 600 << 10, None).unwrap());
        assert!(!limiter.memory_growing(0, 600 << 10, None).unwrap(), "a second memory");
        assert!(limiter.refused);
        assert!(limiter.memory_growing(600 << 10, 700 << 10, None).unwrap(), "the first one grows");
        assert!(!limiter.table_growing(0, 100 << 10, None).unwrap(), "a table of 800 KiB");
    }

    #[test]
    fn an_allowance_runs_out_by_count_and_by_size() {
        let mut allowance = Allowance::new(2, 10);
        assert!(!allowance.take(11));
        assert!(allowance.take(5) && allowance.take(5));
        assert!(!allowance.take(0));
    }
}
