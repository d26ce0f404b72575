//! What must hold before the work is worth beginning.
//!
//! A sandboxed step has no workspace, no network and no keys to look for. What it can check is what it was
//! handed, and that the host gives it time and randomness.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

use crate::Task;

/// 1 MiB: a book. The work takes seconds then, well within its limits.
const INPUT_BYTES_MAX: usize = 1024 * 1024;

const ID_BYTES_MAX: usize = 128;
const MODEL_BYTES_MAX: usize = 128;

/// 2024-01-01 and 2100-01-01: a clock outside of these was never set.
const CLOCK_MS: std::ops::Range<u64> = 1_704_067_200_000..4_102_444_800_000;

/// One check and how it went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// What is wrong with it, if anything.
    pub problem: Option<Problem>,
}

/// Why the work cannot begin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}

impl Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.problem {
            None => write!(f, "Checked the {}: ok", self.name),
            Some(problem) => write!(f, "Checked the {}: {}", self.name, problem.message),
        }
    }
}

/// All checks, whether or not one before them passed.
pub fn checks(task: &Task, now_ms: u64, draws: &[Vec<u8>; 2]) -> Vec<Check> {
    vec![
        check("text", text(&task.input)),
        check("task's id", id("task", &task.task_id)),
        check("job's id", id("job", &task.job_id)),
        check("session's id", id("session", &task.session_id)),
        check("model's name", model(&task.model)),
        check("clock", clock(now_ms)),
        check("randomness", randomness(draws)),
    ]
}

/// The first problem there is.
pub fn problem(checks: &[Check]) -> Option<Problem> {
    checks.iter().find_map(|check| check.problem.clone())
}

fn check(name: &str, result: Result<(), Problem>) -> Check {
    Check { name: name.to_owned(), problem: result.err() }
}

fn text(text: &str) -> Result<(), Problem> {
    if text.trim().is_empty() {
        return Err(found("input_missing", "there is no text"));
    }
    if text.len() > INPUT_BYTES_MAX {
        return Err(found(
            "input_too_large",
            format!("the text has {} bytes, more than {INPUT_BYTES_MAX}", text.len()),
        ));
    }
    Ok(())
}

fn id(what: &str, id: &str) -> Result<(), Problem> {
    if id.trim().is_empty() {
        return Err(found("id_missing", format!("the {what} has no id")));
    }
    if id.len() > ID_BYTES_MAX || id.chars().any(char::is_control) {
        return Err(found(
            "id_invalid",
            format!("the {what}'s id is longer than {ID_BYTES_MAX} bytes or has control characters"),
        ));
    }
    Ok(())
}

/// Only the form: whether there is such a model, nobody in the sandbox knows.
fn model(name: &str) -> Result<(), Problem> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '/' | '-');
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins_well && name.len() <= MODEL_BYTES_MAX && name.chars().all(allowed) {
        return Ok(());
    }
    Err(found("model_invalid", "the model's name begins with a letter or digit and has A-Z a-z 0-9 . _ : / - only"))
}

fn clock(now_ms: u64) -> Result<(), Problem> {
    if CLOCK_MS.contains(&now_ms) {
        return Ok(());
    }
    Err(found("clock_implausible", format!("the clock says {now_ms} ms since 1970")))
}

fn randomness([first, second]: &[Vec<u8>; 2]) -> Result<(), Problem> {
    if !first.is_empty() && first.len() == second.len() && first != second {
        return Ok(());
    }
    Err(found("randomness_missing", "two draws of random bytes are the same"))
}

fn found(code: &str, message: impl Into<String>) -> Problem {
    Problem { code: code.to_owned(), message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> Task {
        let text = |text: &str| text.to_owned();
        Task {
            task_id: text("t"),
            job_id: text("j"),
            session_id: text("s"),
            input: text("Some text."),
            model: text("sonnet-4.5"),
        }
    }

    fn code(task: &Task, now_ms: u64, draws: [&[u8]; 2]) -> Option<String> {
        problem(&checks(task, now_ms, &draws.map(<[u8]>::to_vec))).map(|problem| problem.code)
    }

    #[test]
    fn each_check_finds_what_it_is_for() {
        let (now, draws): (u64, [&[u8]; 2]) = (1_767_225_600_000, [b"ab", b"cd"]);
        let with = |change: fn(&mut Task)| {
            let mut task = task();
            change(&mut task);
            code(&task, now, draws)
        };
        assert_eq!(with(|_| {}), None);
        assert_eq!(with(|task| task.input = " \n".to_owned()).as_deref(), Some("input_missing"));
        assert_eq!(with(|task| task.input = "x".repeat(1 << 21)).as_deref(), Some("input_too_large"));
        assert_eq!(with(|task| task.task_id.clear()).as_deref(), Some("id_missing"));
        assert_eq!(with(|task| task.job_id.push('\n')).as_deref(), Some("id_invalid"));
        assert_eq!(with(|task| task.session_id.clear()).as_deref(), Some("id_missing"));
        assert_eq!(with(|task| task.model = "--help".to_owned()).as_deref(), Some("model_invalid"));
        assert_eq!(with(|task| task.model = "a; rm".to_owned()).as_deref(), Some("model_invalid"));
        assert_eq!(code(&task(), 0, draws).as_deref(), Some("clock_implausible"));
        assert_eq!(code(&task(), now, [b"ab", b"ab"]).as_deref(), Some("randomness_missing"));
        assert_eq!(code(&task(), now, [b"", b""]).as_deref(), Some("randomness_missing"));
    }
}
