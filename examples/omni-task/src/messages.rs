//! What is published, exactly as clients of the channel `tasks` expect it.
//!
//! Topic `update` carries `{"taskId", "message": {"type", …, "jobId", "ts"}}`, topic `status` carries
//! `{"taskId", "status", "sessionId"}`. Fields are in camel case there, and nowhere else in the workflow.

use serde::{Deserialize, Serialize};

use crate::Task;

/// A message on topic `update`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Update<'a> {
    task_id: &'a str,
    message: Message<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Message<'a> {
    #[serde(flatten)]
    body: Body,
    job_id: &'a str,
    /// Milliseconds since 1970.
    ts: u64,
}

impl<'a> Update<'a> {
    /// A message of this task.
    pub fn new(task: &'a Task, body: Body, now_ms: u64) -> Self {
        Self { task_id: &task.task_id, message: Message { body, job_id: &task.job_id, ts: now_ms } }
    }
}

/// What a message says.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum Body {
    /// What is going on.
    Log {
        /// A line for people.
        data: String,
    },
    /// The result.
    Result {
        /// Always `text`.
        format: &'static str,
        /// The text.
        data: String,
    },
    /// Why there is no result.
    Error {
        /// For programs.
        code: String,
        /// For people.
        message: String,
    },
    /// The end; no message follows.
    Done {
        /// 0 when there is a result.
        exit_code: u8,
    },
    /// A file can be fetched.
    FileCreated {
        /// Which one.
        file: File,
    },
}

/// A file that was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct File {
    /// Its name.
    pub name: String,
    /// Its media type.
    pub media_type: String,
    /// Of its content.
    pub size_bytes: u64,
    /// The artifact's id.
    pub artifact: String,
    /// Where it can be fetched, relative to the host's address.
    pub url: String,
}

/// A message on topic `status`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status<'a> {
    /// The task's id.
    pub task_id: &'a str,
    /// `IN_PROGRESS` or `DONE`. `MERGED` is said by whoever merges.
    pub status: &'static str,
    /// The session's id.
    pub session_id: &'a str,
}

impl<'a> Status<'a> {
    /// That of a task which has just begun.
    pub fn of(task: &'a Task) -> Self {
        Self { task_id: &task.task_id, status: "IN_PROGRESS", session_id: &task.session_id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_shape_that_clients_know() {
        let task = Task { task_id: "t".to_owned(), job_id: "j".to_owned(), ..Task::default() };
        let text = |body| serde_json::to_string(&Update::new(&task, body, 5)).unwrap();
        assert_eq!(
            text(Body::Log { data: "d".to_owned() }),
            r#"{"taskId":"t","message":{"type":"log","data":"d","jobId":"j","ts":5}}"#
        );
        assert_eq!(
            text(Body::Result { format: "text", data: "d".to_owned() }),
            r#"{"taskId":"t","message":{"type":"result","format":"text","data":"d","jobId":"j","ts":5}}"#
        );
        assert_eq!(
            text(Body::Error { code: "c".to_owned(), message: "m".to_owned() }),
            r#"{"taskId":"t","message":{"type":"error","code":"c","message":"m","jobId":"j","ts":5}}"#
        );
        assert_eq!(
            text(Body::Done { exit_code: 1 }),
            r#"{"taskId":"t","message":{"type":"done","exitCode":1,"jobId":"j","ts":5}}"#
        );
    }
}
