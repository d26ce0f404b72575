//! The HTTP client behind the command line.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// How long a follower tries to get back to a server that is gone.
const RECONNECT_FOR: Duration = Duration::from_secs(30);
/// What it waits between two tries.
const RECONNECT_EVERY: Duration = Duration::from_millis(500);
/// A stream that says nothing for this long is dead: the server sends a comment every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// A server, and the key to use there.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    url: String,
}

/// Why there is no answer to use.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server could not be reached, or the connection broke.
    #[error("{url} cannot be reached")]
    Connection {
        /// Where it was looked for.
        url: String,
        /// What went wrong.
        #[source]
        source: reqwest::Error,
    },
    /// The server refused.
    #[error("{}", .0.text())]
    Problem(Box<ProblemBody>),
    /// The server answered something that this client does not understand.
    #[error("the server's answer cannot be understood: {0}")]
    Answer(String),
    /// The URL or the key cannot be used.
    #[error("{0}")]
    Setup(String),
}

/// What a server says when it refuses.
#[derive(Debug, Clone, Deserialize)]
pub struct ProblemBody {
    /// The HTTP status.
    pub status: u16,
    /// A stable identifier.
    pub code: String,
    /// A sentence.
    pub detail: String,
    /// Each thing that is wrong, where there is a list.
    #[serde(default)]
    pub problems: Vec<Value>,
}

impl ProblemBody {
    fn text(&self) -> String {
        let mut text = format!("{} ({}, HTTP {})", self.detail, self.code, self.status);
        for problem in &self.problems {
            let field = |name: &str| problem.get(name).and_then(Value::as_str).unwrap_or_default();
            let (node, at) = (field("node"), field("field"));
            text.push_str(&format!("\n  {node}{}{at}: {}", if node.is_empty() { "" } else { " " }, field("message")));
        }
        text
    }
}

/// An event as it came.
#[derive(Debug, Clone)]
pub struct EventLine {
    /// Its number.
    pub seq: u64,
    /// Its kind.
    pub kind: String,
    /// All of it, on one line.
    pub json: String,
}

impl EventLine {
    /// Whether nothing follows.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        matches!(self.kind.as_str(), "run.completed" | "run.failed" | "run.cancelled")
    }
}

#[derive(Deserialize)]
struct EventPage {
    data: Vec<Box<RawValue>>,
    page: PageInfo,
}

#[derive(Deserialize)]
struct PageInfo {
    cursor: Option<String>,
    has_more: bool,
}

#[derive(Deserialize)]
struct EventHead {
    seq: u64,
    kind: String,
}

impl Client {
    /// A client for a server.
    pub fn new(url: &str, key: &str) -> Result<Self, ClientError> {
        let setup = |error: String| ClientError::Setup(error);
        // `ring` rather than a library of C that takes minutes to compile. Fails only when another one was chosen before.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut headers = HeaderMap::new();
        let mut bearer = HeaderValue::try_from(format!("Bearer {key}"))
            .map_err(|_| setup("the API key has characters that no key has".to_owned()))?;
        bearer.set_sensitive(true);
        headers.insert(AUTHORIZATION, bearer);
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .connect_timeout(Duration::from_secs(10))
            .tcp_nodelay(true)
            .build()
            .map_err(|error| setup(error.to_string()))?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned() })
    }

    /// A request that gives JSON, or nothing, which reads like `null`.
    pub async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = self.send(request).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(Value::Null);
        }
        self.read(response).await
    }

    /// Posts JSON that is to arrive as it is.
    pub async fn post(&self, path: &str, body: String, idempotency_key: Option<&str>) -> Result<Value, ClientError> {
        let mut request = self.request(Method::POST, path);
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let request = request.header(CONTENT_TYPE, "application/json").body(body);
        self.read(self.send(request).await?).await
    }

    /// An upload that gives JSON.
    pub async fn upload(&self, path: &str, content_type: &str, bytes: Bytes) -> Result<Value, ClientError> {
        let request = self.request(Method::POST, path).header(CONTENT_TYPE, content_type).body(bytes);
        self.read(self.send(request).await?).await
    }

    /// All events of a run that there are now.
    pub async fn events(&self, run: &str, mut on_event: impl FnMut(EventLine)) -> Result<(), ClientError> {
        let mut cursor = "0".to_owned();
        loop {
            let path = format!("/v1/runs/{run}/events?limit=1000&after={cursor}");
            let page: EventPage = self.read(self.send(self.request(Method::GET, &path)).await?).await?;
            for event in page.data {
                on_event(event_line(event.get())?);
            }
            match page.page.cursor {
                Some(next) if page.page.has_more => cursor = next,
                _ => return Ok(()),
            }
        }
    }

    /// Follows a run to its end, through interruptions: each event once, in order. Returns the terminal event.
    pub async fn follow(&self, run: &str, mut on_event: impl FnMut(&EventLine)) -> Result<EventLine, ClientError> {
        let mut last_seq = 0;
        let mut terminal = None;
        let mut lost_at: Option<Instant> = None;
        loop {
            let before = last_seq;
            let followed = self.follow_once(run, last_seq, |event| {
                last_seq = event.seq;
                on_event(&event);
                if event.is_terminal() {
                    terminal = Some(event);
                }
            });
            let error = match followed.await {
                Ok(()) => None,
                // Refusals do not go away, unless the server is on its way up or down.
                Err(ClientError::Problem(problem)) if problem.status < 500 => {
                    return Err(ClientError::Problem(problem));
                }
                Err(error) => Some(error),
            };
            if let Some(event) = terminal {
                return Ok(event);
            }
            if last_seq > before {
                lost_at = None;
            }
            let since = *lost_at.get_or_insert_with(Instant::now);
            if since.elapsed() > RECONNECT_FOR {
                return Err(
                    error.unwrap_or_else(|| ClientError::Answer("the stream ended before the run did".to_owned()))
                );
            }
            tokio::time::sleep(RECONNECT_EVERY).await;
        }
    }

    async fn follow_once(&self, run: &str, after: u64, mut on_event: impl FnMut(EventLine)) -> Result<(), ClientError> {
        let request = self.request(Method::GET, &format!("/v1/runs/{run}/events"));
        let request = request.header(ACCEPT, "text/event-stream").header("last-event-id", after);
        let mut response = self.send(request).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Err(ClientError::Answer("the run has no events after the last one seen".to_owned()));
        }
        let mut frames = Frames::default();
        loop {
            let chunk = tokio::time::timeout(SILENCE_MAX, response.chunk()).await;
            let chunk = chunk.map_err(|_| ClientError::Answer("the stream has gone silent".to_owned()))?;
            let Some(chunk) = chunk.map_err(|source| self.broken(source))? else { return Ok(()) };
            for data in frames.push(&chunk) {
                on_event(event_line(&data)?);
            }
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|source| self.broken(source))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let body = response.bytes().await.map_err(|source| self.broken(source))?;
        Err(match serde_json::from_slice::<ProblemBody>(&body) {
            Ok(problem) => ClientError::Problem(Box::new(problem)),
            Err(_) => ClientError::Answer(format!("HTTP {status} without an explanation")),
        })
    }

    async fn read<T: serde::de::DeserializeOwned>(&self, response: Response) -> Result<T, ClientError> {
        let body = response.bytes().await.map_err(|source| self.broken(source))?;
        serde_json::from_slice(&body).map_err(|error| ClientError::Answer(error.to_string()))
    }

    fn broken(&self, source: reqwest::Error) -> ClientError {
        ClientError::Connection { url: self.url.clone(), source }
    }
}

fn event_line(json: &str) -> Result<EventLine, ClientError> {
    let EventHead { seq, kind } = serde_json::from_str(json).map_err(|error| ClientError::Answer(error.to_string()))?;
    Ok(EventLine { seq, kind, json: json.to_owned() })
}

/// Takes a stream apart into the data of its frames. Knows as much of SSE as our server speaks: lines end in LF, and
/// everything that matters is in `data`.
#[derive(Debug, Default)]
struct Frames {
    unread: Vec<u8>,
}

impl Frames {
    fn push(&mut self, chunk: &[u8]) -> Vec<String> {
        self.unread.extend_from_slice(chunk);
        let mut found = Vec::new();
        while let Some(end) = self.unread.windows(2).position(|pair| pair == b"\n\n") {
            let frame: Vec<u8> = self.unread.drain(..end + 2).collect();
            let frame = String::from_utf8_lossy(&frame);
            let data: Vec<&str> =
                frame.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim_start).collect();
            if !data.is_empty() {
                found.push(data.join("\n"));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_apart_wherever_the_network_cuts_them() {
        let stream =
            "retry:1000\n\n:keepalive\n\nid: 1\nevent: run.queued\ndata: {\"seq\":1,\"ü\":2}\n\ndata: a\ndata: b\n\n";
        for size in 1..stream.len() {
            let mut frames = Frames::default();
            let found: Vec<String> = stream.as_bytes().chunks(size).flat_map(|chunk| frames.push(chunk)).collect();
            assert_eq!(found, ["{\"seq\":1,\"ü\":2}", "a\nb"], "in pieces of {size}");
        }
    }
}
