//! What a tenant may use: what its operator has set, and what holds where nothing was set.
//!
//! Each limit has a default and a bound that is the platform's own: an operator can give a tenant less than the platform
//! allows, and never more.

use serde::{Deserialize, Serialize};

const GIB: u64 = 1 << 30;

/// One limit: its name in the API, the least and the most that can be set, and what holds when nothing is.
#[derive(Debug, Clone, Copy)]
pub struct LimitRule {
    /// The field.
    pub name: &'static str,
    /// The least that can be set.
    pub least: u64,
    /// What holds when nothing is set.
    pub default: u64,
    /// The most that can be set.
    pub most: u64,
}

/// Bytes of what a tenant has in the journal. The default is what a disk of today has room for several times.
pub const JOURNAL_BYTES: LimitRule =
    LimitRule { name: "journal_bytes", least: 1, default: 64 * GIB, most: 16 * 1024 * GIB };
/// Runs that have not ended. Each takes a few kilobytes of the journal and none of memory while it waits.
pub const UNFINISHED_RUNS: LimitRule =
    LimitRule { name: "unfinished_runs", least: 1, default: 1_000_000, most: 100_000_000 };
/// Events of one run. Fewer than a hundred are no workflow.
pub const RUN_EVENTS: LimitRule = LimitRule {
    name: "run_events",
    least: 100,
    default: stepwell_core::run::EVENTS_MAX,
    most: stepwell_core::run::EVENTS_MAX,
};
/// Bytes of a run's input and of a signal's payload.
pub const INPUT_BYTES: LimitRule =
    LimitRule { name: "input_bytes", least: 1, default: OUTPUT_BYTES_MAX, most: OUTPUT_BYTES_MAX };
/// Bytes of one file.
pub const ARTIFACT_BYTES: LimitRule =
    LimitRule { name: "artifact_bytes", least: 1, default: ARTIFACT_BYTES_MAX, most: ARTIFACT_BYTES_MAX };

/// The sandbox's limits, which the journal does not know the sandbox for; a test compares them.
const OUTPUT_BYTES_MAX: u64 = 4 << 20;
const ARTIFACT_BYTES_MAX: u64 = 16 << 20;

/// What may be written beyond `journal_bytes` so that runs under way can come to their end: an eighth of it, and at
/// least so many bytes.
const MARGIN_BYTES_MIN: u64 = 16 << 20;

/// What an operator has set for a tenant; `None` is the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetLimits {
    /// See [`JOURNAL_BYTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal_bytes: Option<u64>,
    /// See [`UNFINISHED_RUNS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished_runs: Option<u64>,
    /// See [`RUN_EVENTS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_events: Option<u64>,
    /// See [`INPUT_BYTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_bytes: Option<u64>,
    /// See [`ARTIFACT_BYTES`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_bytes: Option<u64>,
}

/// What holds for a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes in the journal at which nothing new is taken.
    pub journal_bytes: u64,
    /// Runs that have not ended at which none is started.
    pub unfinished_runs: u64,
    /// Events of one run.
    pub run_events: u64,
    /// Bytes of an input or a signal.
    pub input_bytes: u64,
    /// Bytes of one file.
    pub artifact_bytes: u64,
}

/// What is set is out of bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is {} to {}", .0.name, .0.least, .0.most)]
pub struct OutOfBounds(pub LimitRule);

impl PartialEq for LimitRule {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for LimitRule {}

impl SetLimits {
    /// Whether each that is set can be.
    pub fn check(&self) -> Result<(), OutOfBounds> {
        let Self { journal_bytes, unfinished_runs, run_events, input_bytes, artifact_bytes } = *self;
        let set = [
            (journal_bytes, JOURNAL_BYTES),
            (unfinished_runs, UNFINISHED_RUNS),
            (run_events, RUN_EVENTS),
            (input_bytes, INPUT_BYTES),
            (artifact_bytes, ARTIFACT_BYTES),
        ];
        let bad = set.into_iter().find(|(value, rule)| value.is_some_and(|v| !(rule.least..=rule.most).contains(&v)));
        bad.map_or(Ok(()), |(_, rule)| Err(OutOfBounds(rule)))
    }

    /// What holds.
    #[must_use]
    pub fn effective(&self) -> Limits {
        // What an earlier program has stored may be beyond what this one allows.
        let of = |value: Option<u64>, rule: LimitRule| value.unwrap_or(rule.default).clamp(rule.least, rule.most);
        Limits {
            journal_bytes: of(self.journal_bytes, JOURNAL_BYTES),
            unfinished_runs: of(self.unfinished_runs, UNFINISHED_RUNS),
            run_events: of(self.run_events, RUN_EVENTS),
            input_bytes: of(self.input_bytes, INPUT_BYTES),
            artifact_bytes: of(self.artifact_bytes, ARTIFACT_BYTES),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        SetLimits::default().effective()
    }
}

impl Limits {
    /// Bytes in the journal at which steps of runs under way are not run any more either.
    #[must_use]
    pub fn journal_bytes_hard(&self) -> u64 {
        self.journal_bytes.saturating_add((self.journal_bytes / 8).max(MARGIN_BYTES_MIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::limits;

    #[test]
    fn the_platforms_bounds_are_the_sandboxs() {
        assert_eq!(INPUT_BYTES.most, limits::OUTPUT_BYTES_MAX as u64);
        assert_eq!(ARTIFACT_BYTES.most, limits::ARTIFACT_BYTES_MAX as u64);
    }

    #[test]
    fn a_limit_is_within_its_bounds_or_refused_by_name() {
        let set = |journal_bytes, run_events| SetLimits {
            journal_bytes: Some(journal_bytes),
            run_events: Some(run_events),
            ..SetLimits::default()
        };
        assert_eq!(SetLimits::default().check(), Ok(()));
        assert_eq!(set(1, 100).check(), Ok(()));
        assert_eq!(set(0, 100).check().unwrap_err().0.name, "journal_bytes");
        assert_eq!(set(1, 99).check().unwrap_err().to_string(), "run_events is 100 to 10000000");
        assert_eq!(set(1, RUN_EVENTS.most + 1).check().unwrap_err().0.name, "run_events");
        assert_eq!(set(7, 100).effective(), Limits { journal_bytes: 7, run_events: 100, ..Limits::default() });
    }

    #[test]
    fn the_margin_is_an_eighth_and_at_least_sixteen_mebibytes() {
        let of = |journal_bytes| Limits { journal_bytes, ..Limits::default() }.journal_bytes_hard();
        assert_eq!((of(1), of(1 << 30)), (1 + (16 << 20), (1 << 30) + (128 << 20)));
        assert_eq!(of(u64::MAX), u64::MAX);
    }
}
