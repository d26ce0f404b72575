//! Asks a provider over HTTP and reads its answer to the end.
//!
//! It owns what all providers have in common: the request, the time between two bytes, the limits of a stream, and what
//! a refusal means. What the bytes say is for a [`Dialect`].
//!
//! The invariant: nothing that a provider sends reaches the caller unlimited, and its key reaches nobody: texts that it
//! sends back are cleared of it.

use bytes::Bytes;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Request, Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::relay::Relay;
use super::{Heard, LlmError, LlmRequest, Provider, sse};
use crate::egress::Denied;
use crate::text::excerpt;
use crate::trouble::Trouble;
use crate::{Outbound, Secret};

/// Of all events of an answer. A million tokens with a kilobyte of JSON around each.
const STREAM_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// Of an answer that says why there is none. Only the message in it is used.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;
/// Of the provider's message that the guest gets to see.
const MESSAGE_BYTES_MAX: usize = 500;
/// The longest that a provider may have somebody wait: as long as a question may take.
const RETRY_AFTER_MS_MAX: u64 = 60 * 60 * 1000;

/// How to speak to one kind of provider.
pub(super) trait Dialect {
    /// What comes after the base URL.
    const PATH: &'static str;
    /// The name of the header with the key, in lower case, and what stands before the key in it.
    const KEY_HEADER: (&'static str, &'static str);
    /// Further headers.
    const HEADERS: &'static [(&'static str, &'static str)];

    /// The question.
    fn body(request: &LlmRequest, url: &Url) -> Result<Vec<u8>, LlmError>;
    /// What an event says.
    fn read(event: &sse::Event, heard: &mut Heard) -> Result<Said, NotUnderstood>;
    /// Whether an answer after which the connection ended was whole.
    fn may_end(heard: &Heard) -> bool;
}

/// An event, understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// Nothing that concerns the text.
    Nothing,
    /// More of the answer.
    Text(String),
    /// There will not be more.
    Failed(Complaint),
    /// The answer is whole.
    End,
}

/// An event is not what the provider's documentation says.
#[derive(Debug, thiserror::Error)]
#[error("an event is not understood: {0}")]
pub(super) struct NotUnderstood(#[from] serde_json::Error);

/// A provider's words on why there is no answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Complaint {
    /// Words for programs: the fields `type` and `code`.
    kinds: Vec<String>,
    /// Some gateways give the status of the provider behind them as the code.
    status: Option<u16>,
    message: String,
}

impl Complaint {
    /// Reads what comes under `error`. Providers agree on no more than that there is a message in it.
    pub(super) fn read(error: &Value) -> Self {
        let text = |name: &str| error.get(name).and_then(Value::as_str);
        Self {
            kinds: [text("type"), text("code")].into_iter().flatten().map(str::to_owned).collect(),
            status: error.get("code").and_then(Value::as_u64).and_then(|code| code.try_into().ok()),
            message: text("message").or(error.as_str()).unwrap_or_default().to_owned(),
        }
    }

    fn says(&self, kinds: &[&str]) -> bool {
        self.kinds.iter().any(|kind| kinds.contains(&kind.as_str()))
    }
}

impl Outbound {
    /// Asks, and tells the relay the answer.
    pub(super) async fn ask<D: Dialect>(
        &self,
        provider: &Provider,
        request: &LlmRequest,
        relay: &mut Relay<'_>,
    ) -> Result<Heard, LlmError> {
        let call = call::<D>(provider, request)?;
        self.egress.check_literal(call.url())?;
        let host = call.url().host_str().unwrap_or_default().to_owned();
        let response = self.client.execute(call).await.map_err(|error| Trouble::of(&error, &host))?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response, provider.key.as_ref()).await);
        }
        if !is_event_stream(response.headers()) {
            return Err(LlmError::Connection(format!("{host} answered with something that is no event stream")));
        }
        self.listen::<D>(response, &host, provider, relay).await
    }

    async fn listen<D: Dialect>(
        &self,
        mut response: Response,
        host: &str,
        provider: &Provider,
        relay: &mut Relay<'_>,
    ) -> Result<Heard, LlmError> {
        let mut heard = Heard::default();
        let mut parser = sse::Parser::default();
        let mut bytes_left = STREAM_BYTES_MAX;
        let not_an_answer =
            |why: String| LlmError::Connection(format!("{host} sent something else than an answer: {why}"));
        while let Some(bytes) = self.next_bytes(&mut response, host, relay).await? {
            bytes_left = bytes_left.checked_sub(bytes.len()).ok_or(LlmError::TooLarge)?;
            for event in parser.push(&bytes).map_err(|error| not_an_answer(error.to_string()))? {
                match D::read(&event, &mut heard).map_err(|error| not_an_answer(error.to_string()))? {
                    Said::Nothing => {}
                    Said::Text(text) => relay.push(&text, Instant::now()).await?,
                    Said::Failed(complaint) => return Err(meaning(None, &complaint, None, provider.key.as_ref())),
                    Said::End => return Ok(heard),
                }
            }
        }
        if D::may_end(&heard) { Ok(heard) } else { Err(LlmError::Connection(format!("{host} cut the answer off"))) }
    }

    /// The next bytes of the stream, and `None` at its end. Meanwhile it hands on what waits in the relay.
    ///
    /// Before its first word a model may think for as long as the caller waits, and some providers are silent over
    /// that. A peer that is gone is noticed by the keep-alive of the connection.
    async fn next_bytes(
        &self,
        response: &mut Response,
        host: &str,
        relay: &mut Relay<'_>,
    ) -> Result<Option<Bytes>, LlmError> {
        loop {
            let stalled_at = relay.has_text().then(|| Instant::now() + self.stall);
            let wake_at = [relay.due(), stalled_at].into_iter().flatten().min();
            let chunk = match wake_at {
                Some(at) => timeout_at(at, response.chunk()).await,
                None => Ok(response.chunk().await),
            };
            match chunk {
                Ok(Ok(bytes)) => return Ok(bytes),
                Ok(Err(error)) => return Err(Trouble::of(&error, host).into()),
                Err(_) if relay.due().is_some() => relay.flush().await?,
                Err(_) => return Err(LlmError::Timeout),
            }
        }
    }
}

fn call<D: Dialect>(provider: &Provider, request: &LlmRequest) -> Result<Request, LlmError> {
    let url = endpoint(&provider.base_url, D::PATH)?;
    let body = D::body(request, &url)?;
    let mut call = Request::new(Method::POST, url);
    *call.body_mut() = Some(body.into());
    let headers = call.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    for (name, value) in D::HEADERS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if let Some(key) = &provider.key {
        let (name, prefix) = D::KEY_HEADER;
        let mut value = HeaderValue::from_str(&format!("{prefix}{}", key.expose())).map_err(|_| {
            LlmError::InvalidRequest("the provider's key has characters that cannot stand in a header".to_owned())
        })?;
        value.set_sensitive(true);
        headers.insert(HeaderName::from_static(name), value);
    }
    Ok(call)
}

fn endpoint(base_url: &str, path: &str) -> Result<Url, LlmError> {
    let refused = || LlmError::InvalidRequest("the provider's base URL cannot be used".to_owned());
    let url = Url::parse(&format!("{}{path}", base_url.trim_end_matches('/'))).map_err(|_| refused())?;
    let is_plain = matches!(url.scheme(), "http" | "https")
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    if is_plain { Ok(url) } else { Err(refused()) }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let essence = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()?.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("text/event-stream"))
}

/// What an answer with another status than 200 means.
async fn refusal(mut response: Response, key: Option<&Secret>) -> LlmError {
    let (status, wait_ms) = (response.status(), retry_after_ms(response.headers()));
    let mut body = Vec::new();
    // A body that breaks off still has its status.
    while let Ok(Some(bytes)) = response.chunk().await {
        let room = REFUSAL_BYTES_MAX.saturating_sub(body.len());
        body.extend(bytes.iter().take(room));
        if bytes.len() >= room {
            break;
        }
    }
    meaning(Some(status), &complaint(&body), wait_ms, key)
}

fn complaint(body: &[u8]) -> Complaint {
    match serde_json::from_slice::<Value>(body) {
        Ok(value) => Complaint::read(value.get("error").unwrap_or(&value)),
        Err(_) => Complaint { message: String::from_utf8_lossy(body).into_owned(), ..Complaint::default() },
    }
}

/// What a complaint means for the caller: whether to ask again. Without a status it came in the middle of an answer.
fn meaning(status: Option<StatusCode>, complaint: &Complaint, wait_ms: Option<u64>, key: Option<&Secret>) -> LlmError {
    let status = status.or_else(|| StatusCode::from_u16(complaint.status?).ok());
    let may_pass = match status {
        // The same status as for a minute's limit, but it passes only when somebody pays.
        Some(StatusCode::TOO_MANY_REQUESTS) => !complaint.says(&["insufficient_quota"]),
        Some(StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT) => true,
        Some(status) => status.is_server_error(),
        None => complaint.says(&[
            "api_error",
            "overloaded",
            "overloaded_error",
            "rate_limit_error",
            "rate_limit_exceeded",
            "server_error",
            "timeout_error",
        ]),
    };
    if may_pass {
        return LlmError::Overloaded(wait_ms);
    }
    // Providers repeat a key that they do not know, and leave some of its characters in.
    if status == Some(StatusCode::UNAUTHORIZED) {
        return LlmError::Refused("HTTP 401: the provider does not accept the key".to_owned());
    }
    let message = key.map_or_else(|| complaint.message.clone(), |key| key.erase_from(&complaint.message));
    let message = excerpt(&message, MESSAGE_BYTES_MAX);
    LlmError::Refused(match status {
        Some(status) if message.is_empty() => format!("HTTP {}", status.as_u16()),
        Some(status) => format!("HTTP {}: {message}", status.as_u16()),
        None => message,
    })
}

/// Milliseconds to wait. A date, which the header may hold as well, is ignored: no provider sends one.
fn retry_after_ms(headers: &HeaderMap) -> Option<u64> {
    let number = |name: &HeaderName| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let ms = number(&HeaderName::from_static("retry-after-ms")).or_else(|| Some(number(&RETRY_AFTER)? * 1000.0))?;
    // The conversion saturates. What is negative or no number says nothing.
    (ms >= 0.0).then(|| (ms.ceil() as u64).min(RETRY_AFTER_MS_MAX))
}

/// Reads an event's JSON.
pub(super) fn read_json<'a, T: Deserialize<'a>>(event: &'a sse::Event) -> Result<T, NotUnderstood> {
    Ok(serde_json::from_str(&event.data)?)
}

impl From<Denied> for LlmError {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied.to_string())
    }
}

impl From<Trouble> for LlmError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Request(why) => Self::InvalidRequest(why),
            Trouble::Denied(denied) => denied.into(),
            Trouble::Connection(what) => Self::Connection(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(status: u16, body: &Value) -> LlmError {
        let key = Secret::new("sk-hunter2");
        let complaint = complaint(body.to_string().as_bytes());
        meaning(Some(StatusCode::from_u16(status).unwrap()), &complaint, Some(7), Some(&key))
    }

    #[test]
    fn a_status_says_whether_to_ask_again() {
        let body = json!({"error": {"message": "because", "type": "some_error"}});
        for status in [400, 402, 403, 404, 413, 422, 302, 204] {
            assert_eq!(of(status, &body), LlmError::Refused(format!("HTTP {status}: because")));
        }
        for status in [408, 409, 429, 500, 502, 503, 504, 529] {
            assert_eq!(of(status, &body), LlmError::Overloaded(Some(7)), "{status}");
        }
        let unpaid = json!({"error": {"message": "pay", "type": "insufficient_quota", "code": "insufficient_quota"}});
        assert_eq!(of(429, &unpaid), LlmError::Refused("HTTP 429: pay".to_owned()));
    }

    #[test]
    fn a_refusal_is_short_and_never_has_the_key() {
        let body = json!({"error": {"message": format!("no {} {}", "sk-hunter2", "x".repeat(1000))}});
        let LlmError::Refused(text) = of(400, &body) else { panic!() };
        assert!(text.starts_with("HTTP 400: no [secret] xxx"));
        assert_eq!(text.len(), "HTTP 400: ".len() + MESSAGE_BYTES_MAX);
        let LlmError::Refused(text) = of(401, &json!({"error": {"message": "Incorrect key sk-hu****r2"}})) else {
            panic!()
        };
        assert!(!text.contains("sk-hu"), "{text}");
    }

    #[test]
    fn a_refusal_is_understood_in_every_form() {
        let refused = |text: &str| LlmError::Refused(text.to_owned());
        assert_eq!(of(400, &json!({"error": "just text"})), refused("HTTP 400: just text"));
        assert_eq!(of(400, &json!({"object": "error", "message": "flat"})), refused("HTTP 400: flat"));
        assert_eq!(of(400, &json!({"error": {"code": 7}})), refused("HTTP 400"));
        assert_eq!(of(400, &json!(null)), refused("HTTP 400"));
        assert_eq!(complaint(b"<html>\xff").message, "<html>\u{fffd}");
    }

    #[test]
    fn a_complaint_in_the_middle_of_an_answer_is_understood_by_its_kind() {
        let of = |error: Value| meaning(None, &Complaint::read(&error), None, None);
        let overloaded = [
            json!({"type": "overloaded_error", "message": "Overloaded"}),
            json!({"type": "api_error", "message": "oops"}),
            json!({"type": null, "code": "rate_limit_exceeded", "message": "slow"}),
            json!({"code": 503, "message": "upstream"}),
        ];
        for error in overloaded {
            assert_eq!(of(error), LlmError::Overloaded(None));
        }
        assert_eq!(of(json!({"type": "invalid_request_error", "message": "no"})), LlmError::Refused("no".to_owned()));
        assert_eq!(of(json!({"code": 400, "message": "no"})), LlmError::Refused("HTTP 400: no".to_owned()));
    }

    #[test]
    fn the_time_to_wait_is_read_from_either_header() {
        let wait = |name: &'static str, value: &'static str| {
            let headers = [(HeaderName::from_static(name), HeaderValue::from_static(value))];
            retry_after_ms(&headers.into_iter().collect())
        };
        assert_eq!(wait("retry-after", "2"), Some(2000));
        assert_eq!(wait("retry-after", "0.25"), Some(250));
        assert_eq!(wait("retry-after-ms", "1500"), Some(1500));
        assert_eq!(wait("retry-after", "99999999999999999999"), Some(RETRY_AFTER_MS_MAX));
        assert_eq!(wait("retry-after", "-1"), None);
        assert_eq!(wait("retry-after", "nan"), None);
        assert_eq!(wait("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"), None);
        assert_eq!(retry_after_ms(&HeaderMap::new()), None);
    }

    #[test]
    fn a_base_url_is_taken_with_and_without_a_slash_and_nothing_else_in_it() {
        for base in ["https://a.example/v1", "https://a.example/v1/", "https://a.example/v1//"] {
            assert_eq!(endpoint(base, "/x").unwrap().as_str(), "https://a.example/v1/x");
        }
        for base in
            ["", "a.example", "ftp://a.example", "https://user@a.example", "https://a.example/?a=", "https://a#"]
        {
            assert!(matches!(endpoint(base, "/x"), Err(LlmError::InvalidRequest(_))), "{base}");
        }
    }
}
