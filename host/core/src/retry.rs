//! When a failed attempt is tried again.

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// The longest wait between two attempts that a policy or a guest can ask for: 24 hours.
pub const WAIT_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// The most attempts a policy may allow. A step that fails a hundred times wants a person.
pub const ATTEMPTS_MAX: u32 = 100;

/// How many attempts of one step may end through the host's fault before the step counts as what is at fault. They do
/// not use up the policy's attempts, so without this a step that takes the host down would do so for ever.
pub const INTERRUPTIONS_MAX: u32 = if cfg!(test) { 5 } else { 100 };

/// Codes that one policy may single out. Those who handle more do it in the step.
pub const ERRORS_MAX: usize = 32;

/// Exponential backoff with jitter. See `retry-policy` in `wit/graph.wit` for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Attempts in all; 1 means no retry.
    pub max_attempts: u32,
    /// The wait before the second attempt.
    pub initial_ms: u64,
    /// What each further wait is multiplied by.
    pub factor: f64,
    /// The longest wait.
    pub max_ms: u64,
    /// The share of itself by which a wait is moved at random, up or down.
    pub jitter: f64,
    /// What holds for failures with these codes instead; the first entry that names a code counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ErrorPolicy>,
    /// What happens when a step has failed for good.
    #[serde(default, skip_serializing_if = "Exhausted::is_fail")]
    pub when_exhausted: Exhausted,
}

/// How failures with one code are tried again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorPolicy {
    /// The failure's code.
    pub code: String,
    /// Attempts in all, those that failed with other codes included; 1 means no retry.
    pub max_attempts: u32,
    /// The wait before the second attempt.
    pub initial_ms: u64,
    /// What each further wait is multiplied by.
    pub factor: f64,
    /// The longest wait.
    pub max_ms: u64,
}

/// What happens when a step has failed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exhausted {
    /// Its item or its run fails.
    #[default]
    Fail,
    /// The run pauses. Whoever resumes it gives the step its attempts anew.
    Pause,
}

impl Exhausted {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
    fn is_fail(&self) -> bool {
        *self == Self::Fail
    }
}

impl Default for RetryPolicy {
    /// Four attempts over some seven seconds: long enough for a restart elsewhere, short enough to watch.
    fn default() -> Self {
        Self {
            max_attempts: 4,
            initial_ms: 1_000,
            factor: 2.0,
            max_ms: 60_000,
            jitter: 0.2,
            errors: Vec::new(),
            when_exhausted: Exhausted::Fail,
        }
    }
}

/// A random number that decides one thing. Handed in, so that the same run can be played again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dice(pub u64);

impl Dice {
    /// From 0 (included) to 1 (excluded).
    fn unit(self) -> f64 {
        // 53 bits are what an f64 holds exactly.
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

impl RetryPolicy {
    /// When the next attempt starts after one that failed with this code, or `None` when the policy allows no further one.
    ///
    /// `failures` counts the failed attempts so far, this one included. `retry_after_ms` is the least wait that
    /// the failure itself asked for; it may exceed the policy's longest wait, but not [`WAIT_MS_MAX`].
    #[must_use]
    pub fn next_attempt_at(
        &self,
        code: &str,
        failures: u32,
        retry_after_ms: Option<u64>,
        now: Timestamp,
        dice: Dice,
    ) -> Option<Timestamp> {
        let (max_attempts, initial_ms, factor, max_ms) = match self.errors.iter().find(|error| error.code == code) {
            Some(error) => (error.max_attempts, error.initial_ms, error.factor, error.max_ms),
            None => (self.max_attempts, self.initial_ms, self.factor, self.max_ms),
        };
        if failures >= max_attempts {
            return None;
        }
        let exponent = failures.saturating_sub(1).min(1_000) as i32;
        let wait = (initial_ms as f64 * factor.powi(exponent)).min(max_ms as f64);
        let moved = wait * (1.0 + self.jitter * (2.0 * dice.unit() - 1.0));
        // Saturating: a float cast of a negative or huge number lands at the ends of u64.
        let wait_ms = (moved.round() as u64).max(retry_after_ms.unwrap_or(0)).min(WAIT_MS_MAX);
        Some(now.plus_millis(wait_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);
    const MIDDLE: Dice = Dice(1 << 63);

    fn policy(max_attempts: u32, initial_ms: u64, factor: f64, max_ms: u64, jitter: f64) -> RetryPolicy {
        RetryPolicy { max_attempts, initial_ms, factor, max_ms, jitter, ..RetryPolicy::default() }
    }

    fn waits(policy: &RetryPolicy, dice: Dice) -> Vec<Option<u64>> {
        (1..=policy.max_attempts)
            .map(|n| policy.next_attempt_at("any", n, None, NOW, dice).map(|at| at.millis_since(NOW)))
            .collect()
    }

    #[test]
    fn waits_grow_by_the_factor_up_to_the_longest_and_then_end() {
        let policy = policy(5, 100, 3.0, 1_000, 0.0);
        assert_eq!(waits(&policy, MIDDLE), [Some(100), Some(300), Some(900), Some(1_000), None]);
    }

    #[test]
    fn jitter_moves_a_wait_by_its_share_and_no_further() {
        let policy = policy(2, 1_000, 1.0, 1_000, 0.2);
        assert_eq!(waits(&policy, Dice(0)), [Some(800), None]);
        assert_eq!(waits(&policy, MIDDLE), [Some(1_000), None]);
        assert_eq!(waits(&policy, Dice(u64::MAX)), [Some(1_200), None]);
    }

    #[test]
    fn a_guest_may_ask_for_a_longer_wait_but_not_for_ever() {
        let policy = RetryPolicy { max_attempts: 2, ..RetryPolicy::default() };
        let at = |ms| policy.next_attempt_at("any", 1, Some(ms), NOW, MIDDLE).unwrap().millis_since(NOW);
        assert_eq!(at(5), 1_000);
        assert_eq!(at(90_000), 90_000);
        assert_eq!(at(u64::MAX), WAIT_MS_MAX);
    }

    #[test]
    fn a_code_can_have_a_policy_of_its_own() {
        let error = |code: &str, max_attempts, initial_ms| ErrorPolicy {
            code: code.to_owned(),
            max_attempts,
            initial_ms,
            factor: 2.0,
            max_ms: 60_000,
        };
        let errors = vec![error("busy", 3, 5_000), error("wrong", 1, 0)];
        let policy = RetryPolicy { errors, ..policy(2, 100, 1.0, 100, 0.0) };
        let wait =
            |code, failures| policy.next_attempt_at(code, failures, None, NOW, MIDDLE).map(|at| at.millis_since(NOW));
        assert_eq!([wait("busy", 1), wait("busy", 2), wait("busy", 3)], [Some(5_000), Some(10_000), None]);
        assert_eq!([wait("wrong", 1), wait("other", 1), wait("other", 2)], [None, Some(100), None]);
    }

    #[test]
    fn extreme_policies_do_not_overflow() {
        let policy = policy(100, WAIT_MS_MAX, 10.0, WAIT_MS_MAX, 1.0);
        assert!(waits(&policy, Dice(u64::MAX)).iter().flatten().all(|ms| *ms <= WAIT_MS_MAX));
    }
}
