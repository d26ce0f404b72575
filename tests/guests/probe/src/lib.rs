//! `stepwell build tests/guests/probe`, then `stepwell deploy probe COMPONENT` and
//! `stepwell run probe --input '{"updates": 3}' --follow`.
//!
//! A workflow for tests: it branches, joins, publishes, stores files, takes its time and fails as its input
//! says, and reports what each of its steps saw.
//!
//! ```text
//!           ┌─ left ──┐
//! begin ────┤         ├──── join ── finish
//!           └─ right ─┘
//! ```
//!
//! It checks one thing itself: the positions that an attempt gets for its updates rise.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use stepwell_guest::prelude::*;

/// What the run does. Everything has a default, so that `{}` is a valid input.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Input {
    /// How long each step is busy, spread between its updates.
    pub busy_ms: u64,
    /// How many updates each step publishes.
    pub updates: u32,
    /// How many attempts of `fail_node` fail.
    pub fail_first: u32,
    /// The step that fails.
    pub fail_node: Option<String>,
    /// Whether it fails for good.
    pub permanent: bool,
    /// Which way `begin` takes: `left`, `right` or `both`.
    pub route: Route,
    /// The wait that a failing attempt asks for.
    pub retry_after_ms: Option<u64>,
    /// The length of a string that `finish` adds to its output.
    pub payload_bytes: usize,
    /// Returned as it is.
    pub text: Option<String>,
    /// How many files each step stores.
    pub files: u32,
}

impl Default for Input {
    fn default() -> Self {
        Self {
            busy_ms: 0,
            updates: 3,
            fail_first: 0,
            fail_node: None,
            permanent: false,
            route: Route::Both,
            retry_after_ms: None,
            payload_bytes: 0,
            text: None,
            files: 0,
        }
    }
}

/// The edges that `begin` takes.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Route {
    /// Only to `left`.
    Left,
    /// Only to `right`.
    Right,
    /// To both.
    Both,
}

/// An update on topic `update`.
#[derive(Serialize)]
struct Progress<'a> {
    node: &'a str,
    attempt: u32,
    /// Counts from 1 within the attempt.
    n: u32,
}

/// What a step saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// The node, as the context says.
    pub node: String,
    /// The attempt that succeeded.
    pub attempt: u32,
    /// The positions of its updates.
    pub positions: Vec<u64>,
    /// The ids of its files.
    pub artifacts: Vec<String>,
}

/// What `join` was handed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Joined {
    /// What `join` itself saw.
    pub join: Seen,
    /// Absent when `left` was skipped.
    pub left: Option<Seen>,
    /// Absent when `right` was skipped.
    pub right: Option<Seen>,
}

/// The run's output.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// The run's id, as the context says.
    pub run_id: String,
    /// The workflow's name, as the context says.
    pub workflow: String,
    /// What `begin` saw.
    pub begin: Seen,
    /// What `left` saw, if it ran.
    pub left: Option<Seen>,
    /// What `right` saw, if it ran.
    pub right: Option<Seen>,
    /// What `join` saw.
    pub join: Seen,
    /// What `finish` saw.
    pub finish: Seen,
    /// The input's `text`.
    pub text: Option<String>,
    /// The input's `payload_bytes` times `x`.
    pub payload: String,
}

#[workflow(topics = ["update", "status"], channel = "probes", output = "finish")]
mod probe {
    use super::*;

    /// Chooses the way.
    #[step(
        retry(max_attempts = 4, initial = "20ms", factor = 2.0, max = "1s", jitter = 0.2),
        timeout = "30s",
        fuel = 20_000_000_000
    )]
    pub fn begin(ctx: &Ctx, input: Input) -> Result<Routed<Seen>, Failure> {
        ctx.publish("status", &serde_json::json!({ "status": "IN_PROGRESS" }))?;
        let seen = act(ctx, &input)?;
        Ok(match input.route {
            Route::Left => Routed::to("left", seen),
            Route::Right => Routed::to("right", seen),
            Route::Both => Routed::to_all(["left", "right"], seen),
        })
    }

    /// One branch.
    #[step(
        when(begin = "left"),
        retry(max_attempts = 4, initial = "20ms", factor = 2.0, max = "1s", jitter = 0.2),
        timeout = "30s",
        fuel = 20_000_000_000
    )]
    pub fn left(ctx: &Ctx, input: Input) -> Result<Seen, Failure> {
        act(ctx, &input)
    }

    /// The other branch.
    #[step(
        when(begin = "right"),
        retry(max_attempts = 4, initial = "20ms", factor = 2.0, max = "1s", jitter = 0.2),
        timeout = "30s",
        fuel = 20_000_000_000
    )]
    pub fn right(ctx: &Ctx, input: Input) -> Result<Seen, Failure> {
        act(ctx, &input)
    }

    /// Waits for the branches that were taken.
    #[step(
        retry(max_attempts = 4, initial = "20ms", factor = 2.0, max = "1s", jitter = 0.2),
        timeout = "30s",
        fuel = 20_000_000_000
    )]
    pub fn join(ctx: &Ctx, input: Input, left: Option<Seen>, right: Option<Seen>) -> Result<Joined, Failure> {
        Ok(Joined { join: act(ctx, &input)?, left, right })
    }

    /// Sums up what the steps saw.
    #[step(
        retry(max_attempts = 4, initial = "20ms", factor = 2.0, max = "1s", jitter = 0.2),
        timeout = "30s",
        fuel = 20_000_000_000
    )]
    pub fn finish(ctx: &Ctx, input: Input, begin: Seen, join: Joined) -> Result<Summary, Failure> {
        let finish = act(ctx, &input)?;
        ctx.publish("status", &serde_json::json!({ "status": "DONE" }))?;
        Ok(Summary {
            run_id: ctx.run_id().to_owned(),
            workflow: ctx.workflow().to_owned(),
            begin,
            left: join.left,
            right: join.right,
            join: join.join,
            finish,
            text: input.text,
            payload: "x".repeat(input.payload_bytes),
        })
    }
}

/// What every step does: publish, be busy, store, and fail where it is told to.
fn act(ctx: &Ctx, input: &Input) -> Result<Seen, Failure> {
    let node = ctx.node();
    let attempt = ctx.attempt();
    ctx.log(format_args!("{node} runs attempt {attempt}"));

    let mut positions: Vec<u64> = Vec::new();
    let pauses = u64::from(input.updates.max(1));
    for n in 1..=input.updates {
        let position = ctx.publish("update", &Progress { node, attempt, n })?.get();
        if let Some(&last) = positions.last().filter(|&&last| last >= position) {
            return Err(Failure::permanent(
                "position_order",
                format!("position {position} came after position {last}"),
            ));
        }
        positions.push(position);
        be_busy(ctx, input.busy_ms / pauses);
    }
    // What the division left over, and all of it when there are no updates.
    let rest_ms = if input.updates == 0 { input.busy_ms } else { input.busy_ms % pauses };
    be_busy(ctx, rest_ms);

    let artifacts = (1..=input.files)
        .map(|n| {
            let content = format!("file {n} of {node} in attempt {attempt}\n");
            Ok(ctx.artifact(&format!("{node}-{n}.txt"), "text/plain", content.as_bytes())?.id)
        })
        .collect::<Result<_, Failure>>()?;

    if input.fail_node.as_deref() == Some(node) && attempt <= input.fail_first {
        return Err(asked_to_fail(ctx, input));
    }
    Ok(Seen { node: node.to_owned(), attempt, positions, artifacts })
}

fn asked_to_fail(ctx: &Ctx, input: &Input) -> Failure {
    let message = format!("{} was asked to fail attempt {}", ctx.node(), ctx.attempt());
    let failure = if input.permanent {
        Failure::permanent("asked_to_fail", message)
    } else {
        Failure::retryable("asked_to_fail", message)
    };
    match input.retry_after_ms {
        Some(wait_ms) => failure.retry_after(Duration::from_millis(wait_ms)),
        None => failure,
    }
}

/// A sandbox cannot sleep: it reads the clock until the time has come.
fn be_busy(ctx: &Ctx, ms: u64) {
    if ms == 0 {
        return;
    }
    let start = ctx.now_ms();
    while ctx.now_ms().saturating_sub(start) < ms {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_publishes_stores_and_reports() {
        let ctx = Ctx::for_test().on_node("left");
        let input = Input { updates: 2, files: 1, busy_ms: 7, ..Input::default() };
        let seen = probe::left(&ctx, input).unwrap();
        assert_eq!(seen.node, "left");
        assert_eq!(seen.positions.len(), 2);
        let recorded = ctx.recorded();
        assert_eq!(recorded.updates[1].payload, serde_json::json!({ "node": "left", "attempt": 1, "n": 2 }));
        assert_eq!(recorded.artifacts[0].name, "left-1.txt");
    }

    #[test]
    fn a_step_fails_as_often_as_it_is_told() {
        let input = Input { fail_node: Some("join".to_owned()), fail_first: 2, ..Input::default() };
        for (attempt, fails) in [(1, true), (2, true), (3, false)] {
            let ctx = Ctx::for_test().on_node("join").at_attempt(attempt);
            let result = probe::join(&ctx, input.clone(), None, None);
            assert_eq!(result.is_err_and(|failure| failure.is_retryable()), fails);
        }
    }

    #[test]
    fn an_empty_input_has_defaults() {
        let input: Input = serde_json::from_str("{}").unwrap();
        assert_eq!(input.updates, 3);
    }
}
