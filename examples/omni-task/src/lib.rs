//! `stepwell build examples/omni-task`, then `stepwell deploy omni-task COMPONENT` and
//! `stepwell run omni-task --input @examples/omni-task/input.json --follow`.
//!
//! A task as a user interface starts it: checked first, then done, and followed live on the channel `tasks`.
//!
//! ```text
//!               ┌─ ok ─────── process ── result ─┐
//! preflight ────┤                                ├── done
//!               └─ failed ─── report_error ──────┘
//! ```
//!
//! The work is a summary of the text and a list of what is to be done about it. **No language model is
//! called**, whatever `model` says: the summary consists of sentences of the text, picked by the frequency of their
//! words, and its first line says so.
//!
//! Whoever watches the task sees [`messages`] on the topics `update` and `status`. A failed attempt's updates are
//! rolled back, so a check that does not pass must not fail its step: it completes, and takes the edge to
//! `report_error`. What does fail – an input that is no task at all, say – fails the run.
//!
//! This file owns the workflow. [`preflight`], [`summary`] and [`actions`] are pure and know nothing of it.

pub mod actions;
pub mod messages;
pub mod preflight;
pub mod summary;
mod text;

use messages::{Body, File, Status, Update};
use preflight::{Check, Problem};
use serde::{Deserialize, Serialize};
use stepwell_guest::prelude::*;

/// The run's input. What is missing is empty, and found so by the preflight.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Task {
    /// Which task in the user interface the messages belong to.
    pub task_id: String,
    /// Which job of that task.
    pub job_id: String,
    /// Which session of the user.
    pub session_id: String,
    /// The text to work on.
    pub input: String,
    /// Checked for its form only.
    pub model: String,
}

/// What `process` made.
#[derive(Debug, Serialize, Deserialize)]
pub struct Work {
    /// For a person to read.
    pub text: String,
    /// The files with it in full.
    pub files: Vec<File>,
}

/// The run's output.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ended {
    /// The task's id.
    pub task_id: String,
    /// 0 when the work was done, 1 when a check did not pass.
    pub exit_code: u8,
    /// The result, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// What did not pass, if something did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Problem>,
    /// The files that were made.
    pub files: Vec<File>,
}

#[workflow(topics = ["update", "status"], channel = "tasks", output = "done")]
mod task {
    use super::*;

    /// Says that the task has begun and checks what the work depends on.
    #[step]
    pub fn preflight(ctx: &Ctx, input: Task) -> Result<Routed<Vec<Check>>, Failure> {
        ctx.publish("status", &Status { status: "IN_PROGRESS", ..Status::of(&input) })?;
        let draws = [ctx.random_bytes(16), ctx.random_bytes(16)];
        let checks = preflight::checks(&input, ctx.now_ms(), &draws);
        for check in &checks {
            say(ctx, &input, Body::Log { data: check.to_string() })?;
        }
        let label = if preflight::problem(&checks).is_none() { "ok" } else { "failed" };
        Ok(Routed::to(label, checks))
    }

    /// Summarises the text and looks for action items.
    #[step(when(preflight = "ok"), fuel = 10_000_000_000, memory = "128MiB")]
    pub fn process(ctx: &Ctx, input: Task) -> Result<Work, Failure> {
        say(ctx, &input, Body::Log { data: "Summarising without a language model".to_owned() })?;
        let summary = summary::summarise(&input.input);
        let actions = actions::find(&input.input);
        let found = format!(
            "Picked {} of {} sentences, found {} action items",
            summary.picked.len(),
            summary.sentences,
            actions.len()
        );
        say(ctx, &input, Body::Log { data: found })?;

        let page = summary::markdown(&summary, &actions);
        let list = serde_json::to_string_pretty(&actions)?;
        let files = vec![
            store(ctx, &input, "summary.md", "text/markdown; charset=utf-8", page.as_bytes())?,
            store(ctx, &input, "actions.json", "application/json", list.as_bytes())?,
        ];
        Ok(Work { text: summary::plain(&summary, &actions), files })
    }

    /// Publishes the result.
    #[step]
    pub fn result(ctx: &Ctx, input: Task, process: Work) -> Result<Work, Failure> {
        say(ctx, &input, Body::Result { format: "text", data: process.text.clone() })?;
        Ok(process)
    }

    /// Publishes the first check that did not pass.
    #[step(when(preflight = "failed"))]
    pub fn report_error(ctx: &Ctx, input: Task, preflight: Vec<Check>) -> Result<Problem, Failure> {
        let problem = preflight::problem(&preflight)
            .ok_or_else(|| Failure::permanent("no_problem", "every check passed, so there is nothing to report"))?;
        say(ctx, &input, Body::Error { code: problem.code.clone(), message: problem.message.clone() })?;
        Ok(problem)
    }

    /// Says that the task has ended.
    #[step]
    pub fn done(ctx: &Ctx, input: Task, result: Option<Work>, report_error: Option<Problem>) -> Result<Ended, Failure> {
        let exit_code = u8::from(result.is_none());
        say(ctx, &input, Body::Done { exit_code })?;
        ctx.publish("status", &Status { status: "DONE", ..Status::of(&input) })?;
        let (result, files) = result.map(|work| (work.text, work.files)).unzip();
        Ok(Ended { task_id: input.task_id, exit_code, result, error: report_error, files: files.unwrap_or_default() })
    }
}

fn say(ctx: &Ctx, task: &Task, body: Body) -> Result<(), Failure> {
    ctx.publish("update", &Update::new(task, body, ctx.now_ms()))?;
    Ok(())
}

/// Stores a file and announces it.
fn store(ctx: &Ctx, task: &Task, name: &str, media_type: &str, content: &[u8]) -> Result<File, Failure> {
    let artifact = ctx.artifact(name, media_type, content)?;
    let file = File {
        name: name.to_owned(),
        media_type: media_type.to_owned(),
        size_bytes: artifact.size_bytes,
        url: artifact.url(),
        artifact: artifact.id,
    };
    say(ctx, task, Body::FileCreated { file: file.clone() })?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn task() -> Task {
        serde_json::from_str(include_str!("../input.json")).unwrap()
    }

    /// The messages without their times, which differ.
    fn published(ctx: &Ctx) -> Vec<(String, Value)> {
        ctx.recorded()
            .updates
            .into_iter()
            .map(|mut update| {
                if let Some(message) = update.payload.get_mut("message") {
                    message.as_object_mut().unwrap().remove("ts").expect("every message has a time");
                }
                (update.topic, update.payload)
            })
            .collect()
    }

    #[test]
    fn a_good_task_is_done_with_a_result_and_two_files() {
        let ctx = Ctx::for_test();
        assert_eq!(task::preflight(&ctx, task()).unwrap().labels, ["ok"]);
        let work = task::process(&ctx, task()).unwrap();
        let work = task::result(&ctx, task(), work).unwrap();
        let ended = task::done(&ctx, task(), Some(work), None).unwrap();
        assert_eq!((ended.exit_code, ended.files.len()), (0, 2));
        assert!(ended.result.unwrap().starts_with("Summary"));

        let published = published(&ctx);
        let status = |status| {
            ("status".to_owned(), json!({ "taskId": "task-4821", "status": status, "sessionId": "session-77" }))
        };
        assert_eq!(published.first(), Some(&status("IN_PROGRESS")));
        assert_eq!(published.last(), Some(&status("DONE")));
        let done = json!({ "taskId": "task-4821", "message": { "type": "done", "exitCode": 0, "jobId": "job-1" } });
        assert!(published.contains(&("update".to_owned(), done)));
        let files = published.iter().filter(|(_, payload)| payload["message"]["type"] == "file_created");
        assert_eq!(
            files.map(|(_, payload)| payload["message"]["file"]["name"].clone()).collect::<Vec<_>>(),
            ["summary.md", "actions.json"]
        );
    }

    #[test]
    fn a_task_without_text_ends_with_an_error_and_exit_code_1() {
        let ctx = Ctx::for_test();
        let empty = Task { input: "  ".to_owned(), ..task() };
        let checked = task::preflight(&ctx, empty.clone()).unwrap();
        assert_eq!(checked.labels, ["failed"]);
        let problem = task::report_error(&ctx, empty.clone(), checked.output).unwrap();
        let ended = task::done(&ctx, empty, None, Some(problem)).unwrap();

        assert_eq!(ended.exit_code, 1);
        assert_eq!(ended.error.unwrap().code, "input_missing");
        let error = json!({
            "taskId": "task-4821",
            "message": { "type": "error", "code": "input_missing", "message": "there is no text", "jobId": "job-1" },
        });
        assert!(published(&ctx).contains(&("update".to_owned(), error)));
    }

    #[test]
    fn what_the_work_says_about_itself_is_true() {
        let ctx = Ctx::for_test();
        let work = task::process(&ctx, task()).unwrap();
        assert!(work.text.contains("no language model"));
        for file in ctx.recorded().artifacts {
            assert!(!file.content.is_empty(), "{}", file.name);
        }
    }
}
