//! What an attempt did before it was interrupted, and how a new instance goes through it again.
//!
//! A step is a function of its inputs and of what its calls are answered. So an attempt that was cut off is taken up
//! by running it from the start: each call that is on record is answered from it, in order, and nothing is done a
//! second time. Where the record ends, the attempt goes on as if nothing had happened.
//!
//! Keeps: a call that is not the one on record ends the attempt ([`Divergence`]), before anything is done or recorded.

use std::collections::VecDeque;

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

/// The record of an attempt, as far as it has not been gone through.
#[derive(Debug, Default)]
pub(super) struct Replay(VecDeque<Recorded>);

impl Replay {
    pub(super) fn new(recorded: Vec<Recorded>) -> Self {
        Self(recorded.into())
    }

    /// The position of an update that is on record; `None` when it is a new one.
    pub(super) fn update(&mut self, topic: &str, payload: &Json) -> Result<Option<Seq>, Divergence> {
        let same = |recorded: &Recorded| match recorded {
            Recorded::Update { topic: t, payload: p, within_call: false, seq } => {
                (t == topic && *p == sha256(payload.as_str())).then_some(*seq)
            }
            _ => None,
        };
        self.next(same, || format!("another update on `{topic}`"))
    }

    /// Whether a line is on record.
    pub(super) fn log(&mut self, level: LogLevel, message: &str) -> Result<bool, Divergence> {
        let same = |recorded: &Recorded| match recorded {
            Recorded::Log { level: l, message: m } => (*l == level && m == message).then_some(()),
            _ => None,
        };
        Ok(self.next(same, || "another log line".to_owned())?.is_some())
    }

    /// A file that is on record; `None` when it is a new one.
    pub(super) fn artifact(
        &mut self,
        name: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Option<StoredArtifact>, Divergence> {
        let same = |recorded: &Recorded| match recorded {
            Recorded::Artifact { name: n, media_type: m, stored } => {
                (n == name && m == media_type && stored.sha256 == sha256(bytes)).then(|| stored.clone())
            }
            _ => None,
        };
        self.next(same, || format!("another file `{name}`"))
    }

    /// What a call was answered that is on record; `None` when it is a new one.
    pub(super) fn call(&mut self, call: &str, arguments: Digest) -> Result<Option<Json>, Divergence> {
        // What the call itself has published lies before its end.
        while matches!(self.0.front(), Some(Recorded::Update { within_call: true, .. })) {
            self.0.pop_front();
        }
        let same = |recorded: &Recorded| match recorded {
            Recorded::Call { call: c, arguments: a, result } => (c == call && *a == arguments).then(|| result.clone()),
            _ => None,
        };
        self.next(same, || format!("another call of {call}"))
    }

    /// Whether a call of this kind is what comes next.
    pub(super) fn has_call(&self, call: &str) -> bool {
        matches!(self.0.front(), Some(Recorded::Call { call: c, .. }) if c == call)
    }

    fn next<T>(
        &mut self,
        same: impl FnOnce(&Recorded) -> Option<T>,
        found: impl FnOnce() -> String,
    ) -> Result<Option<T>, Divergence> {
        let Some(recorded) = self.0.pop_front() else { return Ok(None) };
        match same(&recorded) {
            Some(answer) => Ok(Some(answer)),
            None => Err(Divergence { expected: recorded.shown(), found: found() }),
        }
    }
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

    #[test]
    fn what_is_on_record_is_answered_in_order_and_the_rest_is_new() {
        let mut replay = Replay::new(vec![
            update("a", "1", false, 7),
            update("a", "2", true, 8),
            update("a", "3", true, 9),
            call("llm.complete", "x", "\"answer\""),
            Recorded::Log { level: LogLevel::Info, message: "m".to_owned() },
        ]);
        assert_eq!(replay.update("a", &json("1")), Ok(Some(7)));
        assert_eq!(replay.call("llm.complete", sha256("x")), Ok(Some(json("\"answer\""))));
        assert_eq!(replay.log(LogLevel::Info, "m"), Ok(true));
        assert_eq!(replay.log(LogLevel::Info, "m"), Ok(false));
        assert_eq!(replay.call("llm.complete", sha256("x")), Ok(None));
    }

    #[test]
    fn whatever_is_not_on_record_is_a_divergence() {
        let record = || Replay::new(vec![update("a", "1", false, 7)]);
        let expected = "an update on `a`".to_owned();
        let divergence = |found: &str| Err(Divergence { expected: expected.clone(), found: found.to_owned() });
        assert_eq!(record().update("a", &json("2")), divergence("another update on `a`").map(|()| None));
        assert_eq!(record().update("b", &json("1")), divergence("another update on `b`").map(|()| None));
        assert_eq!(record().log(LogLevel::Info, "1"), divergence("another log line").map(|()| false));
        assert_eq!(record().call("http.send", sha256("1")), divergence("another call of http.send").map(|()| None));
        assert!(record().artifact("a", "b/c", b"1").is_err());
        let mut other = Replay::new(vec![call("http.send", "x", "1")]);
        assert!(other.call("http.send", sha256("y")).is_err());
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
