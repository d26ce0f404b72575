//! What an attempt did before it was interrupted, and how a new instance goes through it again.
//!
//! A step is a function of its inputs and of what its calls are answered. So an attempt that was cut off is taken up
//! by running it from the start: each call that is on record is answered from it, in order, and nothing is done a
//! second time. Where the record ends, the attempt goes on as if nothing had happened.
//!
//! Keeps: a call that is not the one on record ends the attempt ([`Divergence`]), before anything is done or recorded; and
//! of the record no more is in memory than what the attempt has come to: all that a step was ever answered can be
//! gigabytes.

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use stepwell_core::event::LogLevel;
use stepwell_core::{Digest, Json, RunId, Seq};
use stepwell_outbound::{Completion, HttpError, HttpResponse, LlmError};

use super::{ChildError, CompletionError, StoredArtifact};

/// Something that an attempt did and that is in the journal.
#[derive(Debug, Clone)]
pub enum Recorded {
    /// It published.
    Update {
        /// The topic.
        topic: String,
        /// SHA-256 of the payload's text.
        payload: Digest,
        /// Whether a call published it, see [`stepwell_core::Event::StepUpdate`].
        within_call: bool,
        /// The position.
        seq: Seq,
    },
    /// It wrote a line.
    Log {
        /// How much it matters.
        level: LogLevel,
        /// The line.
        message: String,
    },
    /// It stored a file.
    Artifact {
        /// The file's name.
        name: String,
        /// Its media type.
        media_type: String,
        /// What it was answered.
        stored: StoredArtifact,
    },
    /// It called something outside.
    Call {
        /// What.
        call: String,
        /// SHA-256 of the arguments.
        arguments: Digest,
        /// What it was answered.
        result: Json,
    },
}

/// What an attempt did before it was interrupted, read as it is gone through.
pub trait Record: Send + Sync + 'static {
    /// The next thing that it did; `None` where the record ends. An error is a sentence for the log: what is on record
    /// cannot be read at present.
    fn next(&mut self) -> BoxFuture<'_, Result<Option<Recorded>, String>>;
}

impl Recorded {
    fn shown(&self) -> String {
        match self {
            Self::Update { topic, .. } => format!("an update on `{topic}`"),
            Self::Log { .. } => "a log line".to_owned(),
            Self::Artifact { name, .. } => format!("the file `{name}`"),
            Self::Call { call, .. } => format!("a call of {call}"),
        }
    }
}

/// An attempt that was taken up again did something else than on record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the attempt was taken up again and came with {found} where {expected} is on record")]
pub(super) struct Divergence {
    /// What is on record.
    pub(super) expected: String,
    /// What came.
    pub(super) found: String,
}

/// The record of an attempt could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what the attempt did before could not be read")]
pub(super) struct Unreadable;

/// The record of an attempt, as far as it has not been gone through.
#[derive(Default)]
pub(super) struct Replay {
    record: Option<Box<dyn Record>>,
    /// What was looked at and not gone through.
    ahead: Option<Recorded>,
}

impl Replay {
    pub(super) fn new(record: Option<Box<dyn Record>>) -> Self {
        Self { record, ahead: None }
    }

    /// The position of an update that is on record; `None` when it is a new one.
    pub(super) async fn update(&mut self, topic: &str, payload: &Json) -> wasmtime::Result<Option<Seq>> {
        let Some(recorded) = self.next().await? else { return Ok(None) };
        match &recorded {
            Recorded::Update { topic: t, payload: p, within_call: false, seq }
                if t == topic && *p == sha256(payload.as_str()) =>
            {
                Ok(Some(*seq))
            }
            _ => diverged(&recorded, format!("another update on `{topic}`")),
        }
    }

    /// Whether a line is on record.
    pub(super) async fn log(&mut self, level: LogLevel, message: &str) -> wasmtime::Result<bool> {
        let Some(recorded) = self.next().await? else { return Ok(false) };
        match &recorded {
            Recorded::Log { level: l, message: m } if *l == level && m == message => Ok(true),
            _ => diverged(&recorded, "another log line".to_owned()),
        }
    }

    /// A file that is on record; `None` when it is a new one.
    pub(super) async fn artifact(
        &mut self,
        name: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> wasmtime::Result<Option<StoredArtifact>> {
        match self.next().await? {
            None => Ok(None),
            Some(Recorded::Artifact { name: n, media_type: m, stored })
                if n == name && m == media_type && stored.sha256 == sha256(bytes) =>
            {
                Ok(Some(stored))
            }
            Some(recorded) => diverged(&recorded, format!("another file `{name}`")),
        }
    }

    /// What a call was answered that is on record; `None` when it is a new one.
    pub(super) async fn call(&mut self, call: &str, arguments: Digest) -> wasmtime::Result<Option<Json>> {
        loop {
            match self.next().await? {
                None => return Ok(None),
                // What the call itself has published lies before its end.
                Some(Recorded::Update { within_call: true, .. }) => {}
                Some(Recorded::Call { call: c, arguments: a, result }) if c == call && a == arguments => {
                    return Ok(Some(result));
                }
                Some(recorded) => return diverged(&recorded, format!("another call of {call}")),
            }
        }
    }

    /// Whether a call of this kind is what comes next.
    pub(super) async fn has_call(&mut self, call: &str) -> Result<bool, Unreadable> {
        if self.ahead.is_none() {
            self.ahead = self.read().await?;
        }
        Ok(matches!(&self.ahead, Some(Recorded::Call { call: c, .. }) if c == call))
    }

    async fn next(&mut self) -> Result<Option<Recorded>, Unreadable> {
        match self.ahead.take() {
            Some(recorded) => Ok(Some(recorded)),
            None => self.read().await,
        }
    }

    async fn read(&mut self) -> Result<Option<Recorded>, Unreadable> {
        let Some(record) = &mut self.record else { return Ok(None) };
        let next = record.next().await.map_err(|why| {
            tracing::error!(why, "the record of an attempt could not be read");
            Unreadable
        })?;
        if next.is_none() {
            self.record = None;
        }
        Ok(next)
    }
}

fn diverged<T>(recorded: &Recorded, found: String) -> wasmtime::Result<T> {
    Err(Divergence { expected: recorded.shown(), found }.into())
}

/// The name of a value.
pub(crate) fn sha256(bytes: impl AsRef<[u8]>) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

/// What came of a request, in the form that is recorded. Part of the stored format: see `docs/journal.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SentRecord {
    Response { status: u16, headers: Vec<(String, String)>, body: BodyRecord },
    InvalidRequest(String),
    Denied(String),
    Timeout,
    Connection(String),
    TooLarge(u64),
}

/// What came of starting a child. Part of the stored format, like the one above.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StartRecord {
    Started(RunId),
    Refused(ChildError),
}

/// Why a file was not stored, where that depends on the tenant's limits. Part of the stored format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FileRefused {
    JournalFull,
    TooLarge(u64),
}

/// Bytes in JSON: as text where they are text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BodyRecord {
    Text(String),
    Hex(String),
}

impl SentRecord {
    pub(super) fn of(sent: Result<HttpResponse, HttpError>) -> Self {
        match sent {
            Ok(HttpResponse { status, headers, body }) => {
                let body = match String::from_utf8(body) {
                    Ok(text) => BodyRecord::Text(text),
                    Err(error) => BodyRecord::Hex(hex::encode(error.into_bytes())),
                };
                Self::Response { status, headers, body }
            }
            Err(HttpError::InvalidRequest(why)) => Self::InvalidRequest(why),
            Err(HttpError::Denied(why)) => Self::Denied(why),
            Err(HttpError::Timeout) => Self::Timeout,
            Err(HttpError::Connection(why)) => Self::Connection(why),
            Err(HttpError::TooLarge(most)) => Self::TooLarge(most),
        }
    }

    pub(super) fn into_result(self) -> Result<HttpResponse, HttpError> {
        Err(match self {
            Self::Response { status, headers, body } => {
                let body = match body {
                    BodyRecord::Text(text) => text.into_bytes(),
                    // Written by `of`. What else it could be reads as nothing.
                    BodyRecord::Hex(text) => hex::decode(text).unwrap_or_default(),
                };
                return Ok(HttpResponse { status, headers, body });
            }
            Self::InvalidRequest(why) => HttpError::InvalidRequest(why),
            Self::Denied(why) => HttpError::Denied(why),
            Self::Timeout => HttpError::Timeout,
            Self::Connection(why) => HttpError::Connection(why),
            Self::TooLarge(most) => HttpError::TooLarge(most),
        })
    }
}

/// What came of a question to a model, in the form that is recorded. Part of the stored format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CompletionRecord {
    Completion {
        text: String,
        model: String,
        stop_reason: String,
        input_tokens: Option<u64>,
        output_tokens: Option<u64>,
        cost_micros: Option<u64>,
    },
    UnknownProvider,
    MissingSecret(String),
    InvalidRequest(String),
    Denied(String),
    Refused(String),
    Overloaded(Option<u64>),
    Timeout,
    Connection(String),
    TooLarge,
}

/// What models read and wrote for an answer of `llm.complete` that is on record, and what it cost: input tokens, output tokens and
/// millionths of a US dollar, where the provider says so.
#[must_use]
pub fn usage_of(result: &Json) -> [Option<u64>; 3] {
    match serde_json::from_str(result.as_str()) {
        Ok(CompletionRecord::Completion { input_tokens, output_tokens, cost_micros, .. }) => {
            [input_tokens, output_tokens, cost_micros]
        }
        _ => [None; 3],
    }
}

impl CompletionRecord {
    /// `None` for a question that was abandoned: its attempt does not count any more.
    pub(super) fn of(answer: Result<Completion, CompletionError>) -> Option<Self> {
        Some(match answer {
            Ok(Completion { text, model, stop_reason, input_tokens, output_tokens, cost_micros }) => {
                Self::Completion { text, model, stop_reason, input_tokens, output_tokens, cost_micros }
            }
            Err(CompletionError::UnknownProvider) => Self::UnknownProvider,
            Err(CompletionError::MissingSecret(name)) => Self::MissingSecret(name),
            Err(CompletionError::Llm(error)) => match error {
                LlmError::InvalidRequest(why) => Self::InvalidRequest(why),
                LlmError::Denied(why) => Self::Denied(why),
                LlmError::Refused(why) => Self::Refused(why),
                LlmError::Overloaded(wait_ms) => Self::Overloaded(wait_ms),
                LlmError::Timeout => Self::Timeout,
                LlmError::Connection(why) => Self::Connection(why),
                LlmError::TooLarge => Self::TooLarge,
                LlmError::Cancelled => return None,
            },
        })
    }

    pub(super) fn into_result(self) -> Result<Completion, CompletionError> {
        Err(match self {
            Self::Completion { text, model, stop_reason, input_tokens, output_tokens, cost_micros } => {
                return Ok(Completion { text, model, stop_reason, input_tokens, output_tokens, cost_micros });
            }
            Self::UnknownProvider => CompletionError::UnknownProvider,
            Self::MissingSecret(name) => CompletionError::MissingSecret(name),
            Self::InvalidRequest(why) => LlmError::InvalidRequest(why).into(),
            Self::Denied(why) => LlmError::Denied(why).into(),
            Self::Refused(why) => LlmError::Refused(why).into(),
            Self::Overloaded(wait_ms) => LlmError::Overloaded(wait_ms).into(),
            Self::Timeout => LlmError::Timeout.into(),
            Self::Connection(why) => LlmError::Connection(why).into(),
            Self::TooLarge => LlmError::TooLarge.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::InMemory;
    use super::*;

    fn json(text: &str) -> Json {
        Json::parse(text.to_owned()).unwrap()
    }

    fn update(topic: &str, payload: &str, within_call: bool, seq: Seq) -> Recorded {
        Recorded::Update { topic: topic.to_owned(), payload: sha256(payload), within_call, seq }
    }

    fn call(name: &str, arguments: &str, result: &str) -> Recorded {
        Recorded::Call { call: name.to_owned(), arguments: sha256(arguments), result: json(result) }
    }

    fn replay(recorded: Vec<Recorded>) -> Replay {
        Replay::new(Some(Box::new(InMemory(recorded.into()))))
    }

    #[tokio::test]
    async fn what_is_on_record_is_answered_in_order_and_the_rest_is_new() {
        let mut replay = replay(vec![
            update("a", "1", false, 7),
            update("a", "2", true, 8),
            update("a", "3", true, 9),
            call("llm.complete", "x", "\"answer\""),
            Recorded::Log { level: LogLevel::Info, message: "m".to_owned() },
        ]);
        assert_eq!(replay.update("a", &json("1")).await.unwrap(), Some(7));
        assert_eq!(replay.call("llm.complete", sha256("x")).await.unwrap(), Some(json("\"answer\"")));
        assert!(replay.log(LogLevel::Info, "m").await.unwrap());
        assert!(!replay.log(LogLevel::Info, "m").await.unwrap());
        assert_eq!(replay.call("llm.complete", sha256("x")).await.unwrap(), None);
    }

    #[tokio::test]
    async fn whatever_is_not_on_record_is_a_divergence() {
        let record = || replay(vec![update("a", "1", false, 7)]);
        let expected = "an update on `a`".to_owned();
        let check = |error: wasmtime::Error, found: &str| {
            let divergence = Divergence { expected: expected.clone(), found: found.to_owned() };
            assert_eq!(error.downcast_ref(), Some(&divergence));
        };
        check(record().update("a", &json("2")).await.unwrap_err(), "another update on `a`");
        check(record().update("b", &json("1")).await.unwrap_err(), "another update on `b`");
        check(record().log(LogLevel::Info, "1").await.unwrap_err(), "another log line");
        check(record().call("http.send", sha256("1")).await.unwrap_err(), "another call of http.send");
        check(record().artifact("a", "b/c", b"1").await.unwrap_err(), "another file `a`");
        assert!(replay(vec![call("http.send", "x", "1")]).call("http.send", sha256("y")).await.is_err());
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_read_is_no_divergence_and_no_end() {
        struct Broken;
        impl Record for Broken {
            fn next(&mut self) -> BoxFuture<'_, Result<Option<Recorded>, String>> {
                Box::pin(async { Err("the disk is gone".to_owned()) })
            }
        }
        let mut replay = Replay::new(Some(Box::new(Broken)));
        for _ in 0..2 {
            assert!(replay.call("http.send", sha256("x")).await.unwrap_err().is::<Unreadable>());
        }
    }

    #[test]
    fn answers_read_back_as_they_were() {
        for body in [b"text".to_vec(), vec![0xff, 0]] {
            let response = HttpResponse { status: 200, headers: vec![("a".into(), "b".into())], body };
            let written = serde_json::to_string(&SentRecord::of(Ok(response.clone()))).unwrap();
            let read: SentRecord = serde_json::from_str(&written).unwrap();
            let read = read.into_result().unwrap();
            assert_eq!((read.status, read.headers, read.body), (response.status, response.headers, response.body));
        }
        let answer = Completion {
            text: String::new(),
            model: "m".into(),
            stop_reason: "end".into(),
            input_tokens: Some(3),
            output_tokens: Some(5),
            cost_micros: None,
        };
        let record = Json::of(&CompletionRecord::of(Ok(answer))).unwrap();
        assert_eq!(usage_of(&record), [Some(3), Some(5), None]);
        assert_eq!(usage_of(&json("\"timeout\"")), [None; 3]);
        let errors = [LlmError::Timeout, LlmError::Overloaded(Some(3)), LlmError::Refused("no".into())];
        for error in errors.map(CompletionError::Llm).into_iter().chain([CompletionError::UnknownProvider]) {
            let record = CompletionRecord::of(Err(error.clone())).unwrap();
            let written = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<CompletionRecord>(&written).unwrap().into_result(), Err(error));
        }
    }
}
