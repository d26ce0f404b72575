//! Errors as responses: `application/problem+json` (RFC 9457) with a stable `code`. The client gets the code and a plain
//! sentence; the cause goes to the log.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Serialize;
use serde_json::{Map, Value, json};
use stepwell_core::Refusal;
use stepwell_core::rerun::CannotRerun;
use utoipa::ToSchema;

use crate::clock;
use crate::driver::{ControlError, RerunError, StartError};
use crate::journal::{JournalError, error_chain};
use crate::sandbox::{CheckInputError, EvaluateError, InputProblem, UploadError};

/// How long a body may be silent. Whoever says what it will send and does not send it holds a connection.
const BODY_WAIT: Duration = Duration::from_secs(30);
/// Bytes over the limit that are read, and forgotten, so that the answer gets through.
const DISCARDED_BYTES_MAX: usize = 64 << 20;

/// A refused or failed request. Boxed, because it travels in the error of every handler.
#[derive(Debug, Clone)]
pub(super) struct Problem(Box<ProblemBody>);

/// The seconds after which whoever is refused may try again, when nothing better is known.
const RETRY_AFTER_SECONDS: u64 = 1;

/// What the client is told.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemBody {
    /// `urn:stepwell:problem:` and the code.
    #[serde(rename = "type")]
    kind: String,
    /// The status in words.
    title: &'static str,
    /// The HTTP status.
    #[serde(serialize_with = "status_number")]
    #[schema(value_type = u16)]
    status: StatusCode,
    /// A sentence for people.
    detail: String,
    /// A stable identifier for programs.
    code: &'static str,
    /// Whose fault an execution failure is; requests fail on the platform.
    source: &'static str,
    /// More, depending on the code.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    more: Map<String, Value>,
}

fn status_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self(Box::new(ProblemBody {
            kind: format!("urn:stepwell:problem:{code}"),
            title: status.canonical_reason().unwrap_or("Error"),
            status,
            detail: detail.into(),
            code,
            source: "platform",
            more: Map::new(),
        }))
    }

    pub(super) fn code(&self) -> &'static str {
        self.0.code
    }

    /// Whether the fault is on our side, so that another request would fare no better.
    pub(super) fn is_ours(&self) -> bool {
        self.0.status.is_server_error()
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.more.insert(name.to_owned(), value.into());
        self
    }

    pub(super) fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    pub(super) fn invalid(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }

    pub(super) fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    pub(super) fn unknown_run() -> Self {
        Self::not_found("unknown_run", "there is no such run")
    }

    pub(super) fn unknown_channel() -> Self {
        Self::not_found("unknown_channel", "there is no such channel")
    }

    /// Something broke on our side; the log has it.
    pub(super) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "something went wrong on our side")
    }

    pub(super) fn unavailable(detail: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
    }

    fn too_large(bytes_max: usize) -> Self {
        let detail = format!("the request has more than {bytes_max} bytes");
        Self::payload_too_large(detail, bytes_max as u64)
    }

    fn payload_too_large(detail: String, bytes_max: u64) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail).with("bytes_max", bytes_max)
    }

    /// Something that was kept for as long as its tenant wants it.
    pub(super) fn expired(code: &'static str, detail: &str) -> Self {
        Self::new(StatusCode::GONE, code, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.0.status;
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::SERVICE_UNAVAILABLE || status == StatusCode::TOO_MANY_REQUESTS {
            let seconds = self.0.more.get("retry_after_seconds").and_then(Value::as_u64);
            headers.insert(header::RETRY_AFTER, seconds.unwrap_or(RETRY_AFTER_SECONDS).into());
        }
        response
    }
}

pub(super) fn unknown_route() -> Problem {
    Problem::not_found("unknown_route", "there is nothing at this path")
}

pub(super) fn method_not_allowed() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path has no such method")
}

impl From<JournalError> for Problem {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::IdempotencyMismatch => Self::invalid(
                "idempotency_mismatch",
                "this idempotency key was used for another request in the last 24 hours",
            ),
            JournalError::RateLimited { from } => {
                let seconds = from.millis_since(clock::now()).div_ceil(1_000).max(1);
                let detail = "the workflow's flow control takes no further run with this key at present";
                Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail).with("retry_after_seconds", seconds)
            }
            JournalError::ContentGone(_) => {
                Self::new(StatusCode::CONFLICT, "run_deleted", "the run is being deleted: its results are gone")
            }
            JournalError::Truncated { first_seq } => Self::new(
                StatusCode::GONE,
                "history_truncated",
                format!("what was asked for has been deleted; the first that exists is {first_seq}"),
            )
            .with("first_seq", first_seq),
            JournalError::Full { bytes_max } => {
                Self::new(StatusCode::FORBIDDEN, "journal_full", error.to_string()).with("bytes_max", bytes_max)
            }
            JournalError::TooManyRuns { runs_max } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_runs", error.to_string()).with("runs_max", runs_max)
            }
            JournalError::Closed => Self::unavailable("the host does not accept writes at present"),
            JournalError::Fenced { .. }
            | JournalError::TimeTaken // no request starts a run for a time
            | JournalError::Damaged { .. }
            | JournalError::UnknownFormat { .. }
            | JournalError::Storage { .. } => {
                tracing::error!(error = error_chain(&error), "the journal failed a request");
                Self::internal()
            }
        }
    }
}

impl From<StartError> for Problem {
    fn from(error: StartError) -> Self {
        let detail = error.to_string();
        match error {
            StartError::UnknownWorkflow(_) => Self::not_found("unknown_workflow", detail),
            StartError::UnknownVersion(_) => Self::not_found("unknown_version", detail),
            StartError::Stopping => Self::unavailable("the host is stopping"),
            StartError::Journal(error) => error.into(),
            StartError::InvalidInput(problems) => {
                Self::invalid("invalid_input", detail).with("problems", problems_json(&problems))
            }
            StartError::CheckInput(CheckInputError::Guest(_)) => Self::invalid("input_not_checked", detail),
            StartError::InputTooLarge { bytes_max } => Self::payload_too_large(detail, bytes_max),
            StartError::CheckInput(error) => {
                tracing::error!(%error, "an input could not be checked");
                Self::unavailable("the input cannot be checked at present")
            }
            StartError::Flow { field, source: EvaluateError::Failed(failure) } => {
                Self::invalid("flow_control_failed", detail).with("field", field).with("cause", failure.code)
            }
            StartError::Flow { source, .. } => {
                tracing::error!(error = %source, "an expression of flow control could not be evaluated");
                Self::unavailable("expressions cannot be evaluated at present")
            }
            StartError::FlowValue { field, .. } => Self::invalid("flow_control_failed", detail).with("field", field),
            StartError::Graph(version) => {
                tracing::error!(%version, "a stored graph is damaged");
                Self::internal()
            }
        }
    }
}

impl From<ControlError> for Problem {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::UnknownRun => Self::unknown_run(),
            ControlError::Refused(refusal) => refusal.into(),
            ControlError::Unavailable => Self::unavailable("the host does not accept this at present"),
            ControlError::Journal(error) => error.into(),
            ControlError::InvalidSignal(ref problems) => {
                let detail = error.to_string();
                Self::invalid("invalid_signal", detail).with("problems", problems_json(problems))
            }
            ControlError::SignalTooLarge { bytes_max } => Self::payload_too_large(error.to_string(), bytes_max),
            ControlError::CheckSignal(CheckInputError::Guest(_)) => {
                Self::invalid("signal_not_checked", error.to_string())
            }
            ControlError::CheckSignal(error) => {
                tracing::error!(%error, "a signal could not be checked");
                Self::unavailable("the signal cannot be checked at present")
            }
        }
    }
}

/// What a workflow says of what it was to be handed.
fn problems_json(problems: &[InputProblem]) -> Vec<Value> {
    problems.iter().map(|problem| json!({ "pointer": problem.pointer, "message": problem.message })).collect()
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        let conflict = |code| Self::new(StatusCode::CONFLICT, code, detail.clone());
        match refusal {
            Refusal::Ended(status) => conflict("run_ended").with("run_status", status.as_str()),
            Refusal::UnknownSignal => Self::invalid("unknown_signal", detail),
            Refusal::SignalMismatch => Self::invalid("idempotency_mismatch", detail),
            Refusal::TooManySignals => Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_signals", detail),
            Refusal::NotStarted => conflict("run_not_started"),
            Refusal::Paused => conflict("run_paused"),
            Refusal::NotPaused => conflict("run_not_paused"),
            // What only steps ask for.
            Refusal::SignalRepeated(_)
            | Refusal::NotUnderWay { .. }
            | Refusal::UnknownTopic
            | Refusal::NotAChild
            | Refusal::TooManyChildren
            | Refusal::TooDeep
            | Refusal::OutOfPlace => conflict("refused"),
        }
    }
}

impl From<RerunError> for Problem {
    fn from(error: RerunError) -> Self {
        let detail = error.to_string();
        match error {
            RerunError::UnknownRun => Self::unknown_run(),
            RerunError::Shadow => Self::new(StatusCode::CONFLICT, "run_is_shadow", detail),
            RerunError::Start(error) => error.into(),
            RerunError::Expired => Self::expired("content_expired", &detail),
            RerunError::Step(CannotRerun::UnknownStep(_)) => Self::invalid("unknown_step", detail),
            RerunError::Step(CannotRerun::DidNotRun(_)) => Self::invalid("step_did_not_run", detail),
            RerunError::Step(CannotRerun::WithinScope { opener, .. }) => {
                Self::invalid("step_in_scope", detail).with("opener", opener.to_string())
            }
        }
    }
}

impl From<UploadError> for Problem {
    fn from(error: UploadError) -> Self {
        let detail = error.to_string();
        match error {
            UploadError::TooLarge(_) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail),
            UploadError::NotAComponent(_) => Self::invalid("not_a_component", detail),
            UploadError::CoreModule => Self::invalid("core_module", detail),
            UploadError::Invalid(_) => Self::invalid("invalid_component", detail),
            UploadError::ForbiddenImports(names) => Self::invalid("forbidden_imports", detail).with("imports", names),
            UploadError::WrongExports(names) => Self::invalid("wrong_exports", detail).with("exports", names),
            UploadError::DoesNotFit(_) => Self::invalid("incompatible_component", detail),
            UploadError::Describe(_) => Self::invalid("describe_failed", detail),
            UploadError::Graph(problems) => Self::invalid("invalid_graph", detail).with("problems", json!(problems)),
            UploadError::GraphTooMuch(_) => Self::invalid("compile_limit", detail),
            UploadError::CompilerExceeded => Self::invalid("compile_limit", detail),
            UploadError::CompilerUnavailable(why) => {
                tracing::error!(why, "the compiler could not be run");
                Self::unavailable("components cannot be compiled at present")
            }
        }
    }
}

/// The whole body, if it has at most so many bytes.
pub(super) async fn body(headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Bytes, Problem> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let mut bytes = Vec::with_capacity(declared.unwrap_or(0).min(bytes_max as u64) as usize);
    let mut seen = 0usize;
    let mut frames = body.into_data_stream();
    let late = |_| Problem::bad_request("unreadable_body", "the request's body did not come in time");
    while let Some(frame) = tokio::time::timeout(BODY_WAIT, frames.next()).await.map_err(late)? {
        let frame =
            frame.map_err(|_| Problem::bad_request("unreadable_body", "the request's body could not be read"))?;
        seen = seen.saturating_add(frame.len());
        if seen <= bytes_max {
            bytes.extend_from_slice(&frame);
        } else if seen > bytes_max.saturating_add(DISCARDED_BYTES_MAX) {
            break;
        }
        // In between, the rest is read and forgotten: a client that is cut off while it sends rarely sees the answer.
    }
    if seen > bytes_max { Err(Problem::too_large(bytes_max)) } else { Ok(bytes.into()) }
}

/// A JSON body; an empty one reads like `{}`.
pub(super) fn parse<'de, T: serde::Deserialize<'de>>(body: &'de [u8]) -> Result<T, Problem> {
    let body = if body.trim_ascii().is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| {
        let (code, what) = match error.classify() {
            serde_json::error::Category::Data => ("invalid_body", "the body does not have the right form"),
            _ => ("invalid_json", "the body is not JSON"),
        };
        Problem::invalid(code, format!("{what}: {error}"))
    })
}
