//! One HTTP request of a step, and its whole response.
//!
//! It owns the rules of `wit/http.wit` that concern one request. How many requests an attempt may send and which secret
//! may go to which host is decided before.
//!
//! The invariants: a request that breaks a rule is never sent in part, and a response is either whole and within its
//! limits or an error. The secret is in the header that was asked for, and in no text that comes out of here.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use reqwest::{Method, Request, Response, Url};

use crate::egress::Denied;
use crate::trouble::Trouble;
use crate::{Outbound, Secret};

/// Of a request's and of a response's body. The same as for a step's output, where most of them come from or go to.
const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Fields of a request's head. More than any API asks for.
const HEADERS_MAX: usize = 100;
/// Names and values of a request's head together. Servers refuse more than 8 to 64 KiB.
const HEADER_BYTES_MAX: usize = 32 * 1024;
/// Names and values of a response's head together: twice what a request may have, for cookies and policies.
const RESPONSE_HEADER_BYTES_MAX: usize = 64 * 1024;
/// Servers commonly take 8 KiB; some signed URLs are longer.
const URL_BYTES_MAX: usize = 16 * 1024;
/// The longest registered method has 17.
const METHOD_BYTES_MAX: usize = 32;
/// Ten minutes for the whole exchange: what takes longer should be asked for and waited for in two steps.
const TIMEOUT_MS_MAX: u32 = 10 * 60 * 1000;

/// What a step wants sent.
#[derive(Clone)]
pub struct HttpRequest {
    /// An upper-case method such as `GET`.
    pub method: String,
    /// `http` or `https`, without user and password.
    pub url: String,
    /// In the order in which they are sent.
    pub headers: Vec<(String, String)>,
    /// Nothing is sent for `None`, and a length of 0 for an empty body.
    pub body: Option<Bytes>,
    /// For the whole exchange.
    pub timeout_ms: u32,
}

/// A header that the host adds: `<name>: <prefix><value>`.
#[derive(Clone)]
pub struct SecretHeader {
    /// Its name.
    pub name: String,
    /// What stands before the secret, such as `Bearer `.
    pub prefix: String,
    /// The secret.
    pub value: Secret,
}

/// A whole response, whatever its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpResponse {
    /// 100 to 599.
    pub status: u16,
    /// Names in lower case. What is not UTF-8 in a value is replaced.
    pub headers: Vec<(String, String)>,
    /// As it came: nothing is decoded.
    pub body: Vec<u8>,
}

/// Why there is no response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Nothing was sent: the request breaks a rule.
    #[error("invalid request: {0}")]
    InvalidRequest(String),
    /// Nothing was sent: the address may not be reached.
    #[error("denied: {0}")]
    Denied(String),
    /// No whole response within the time.
    #[error("no whole response within the time")]
    Timeout,
    /// The connection could not be made, or broke.
    #[error("{0}")]
    Connection(String),
    /// The head or the body of the response has more than this many bytes.
    #[error("the response has more than {0} bytes")]
    TooLarge(u64),
}

/// How a response begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAnswer {
    /// 100 to 599.
    pub status: u16,
    /// The first bytes of the body, for people.
    pub beginning: Vec<u8>,
}

impl Outbound {
    /// Sends a request and waits for the whole response.
    pub async fn send(&self, request: HttpRequest, secret: Option<SecretHeader>) -> Result<HttpResponse, HttpError> {
        let (request, time) = self.admit(request, secret)?;
        tokio::time::timeout(time, self.exchange(request)).await.unwrap_or(Err(HttpError::Timeout))
    }

    /// Sends a request and waits for how it is taken: a status within the time. Of the body it reads nothing after a
    /// success, and else no more than `bytes_max` and what comes within the time; then the connection is given up. So a
    /// server gains nothing by sending much, or slowly.
    pub async fn tell(&self, request: HttpRequest, bytes_max: usize) -> Result<HttpAnswer, HttpError> {
        let (request, time) = self.admit(request, None)?;
        let host = request.url().host_str().unwrap_or_default().to_owned();
        let deadline = tokio::time::Instant::now() + time;
        let response = tokio::time::timeout_at(deadline, self.client.execute(request)).await;
        let response = response.map_err(|_elapsed| HttpError::Timeout)?;
        let mut response = response.map_err(|error| HttpError::from(Trouble::of(&error, &host)))?;
        let mut beginning = Vec::new();
        while !response.status().is_success() && beginning.len() < bytes_max {
            match tokio::time::timeout_at(deadline, response.chunk()).await {
                Ok(Ok(Some(chunk))) => beginning.extend(chunk.into_iter().take(bytes_max - beginning.len())),
                _ => break,
            }
        }
        Ok(HttpAnswer { status: response.status().as_u16(), beginning })
    }

    /// Applies every rule that needs no network.
    fn admit(&self, request: HttpRequest, secret: Option<SecretHeader>) -> Result<(Request, Duration), HttpError> {
        if request.timeout_ms == 0 || request.timeout_ms > TIMEOUT_MS_MAX {
            return Err(invalid(format!("the timeout is not within 1 and {TIMEOUT_MS_MAX} ms")));
        }
        let time = Duration::from_millis(request.timeout_ms.into());
        let request = prepare(request, secret)?;
        self.egress.check_literal(request.url())?;
        Ok((request, time))
    }

    async fn exchange(&self, request: Request) -> Result<HttpResponse, HttpError> {
        let host = request.url().host_str().unwrap_or_default().to_owned();
        let broken = |error: reqwest::Error| HttpError::from(Trouble::of(&error, &host));
        let mut response = self.client.execute(request).await.map_err(broken)?;
        let headers = readable(response.headers())?;
        let mut body = Vec::with_capacity(announced(&response)?);
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if body.len() + chunk.len() > BODY_BYTES_MAX {
                return Err(too_large(BODY_BYTES_MAX));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(HttpResponse { status: response.status().as_u16(), headers, body })
    }
}

/// Applies every rule that does not depend on the operator's.
fn prepare(request: HttpRequest, secret: Option<SecretHeader>) -> Result<Request, HttpError> {
    let mut prepared = Request::new(method(&request.method)?, url(&request.url)?);
    *prepared.headers_mut() = headers(&request.headers, secret)?;
    if let Some(body) = request.body {
        if body.len() > BODY_BYTES_MAX {
            return Err(invalid(format!("the body has more than {BODY_BYTES_MAX} bytes")));
        }
        *prepared.body_mut() = Some(body.into());
    }
    Ok(prepared)
}

fn method(text: &str) -> Result<Method, HttpError> {
    let refused = |why: &str| Err(invalid(format!("the method {why}")));
    if text.len() > METHOD_BYTES_MAX {
        return refused("is too long");
    }
    if text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return refused("is not in upper case");
    }
    match Method::from_bytes(text.as_bytes()) {
        // They speak to a proxy; `TRACE` gives the headers back, and with them the secret.
        Ok(Method::CONNECT | Method::TRACE) => refused("may not be `CONNECT` or `TRACE`"),
        Ok(method) => Ok(method),
        Err(_) => refused("is not a token"),
    }
}

fn url(text: &str) -> Result<Url, HttpError> {
    let refused = |why: &str| Err(invalid(format!("the URL {why}")));
    if text.len() > URL_BYTES_MAX {
        return refused(&format!("has more than {URL_BYTES_MAX} bytes"));
    }
    // The parser would drop them silently, and something else would be sent than was read.
    if text.bytes().any(|byte| byte.is_ascii_control() || byte == b' ') {
        return refused("has spaces or control characters");
    }
    match Url::parse(text) {
        Ok(url) if !matches!(url.scheme(), "http" | "https") => refused("is neither `http` nor `https`"),
        Ok(url) if !url.username().is_empty() || url.password().is_some() => refused("has a user or a password"),
        Ok(url) => Ok(url),
        Err(error) => refused(&format!("cannot be read: {error}")),
    }
}

fn headers(given: &[(String, String)], secret: Option<SecretHeader>) -> Result<HeaderMap, HttpError> {
    if given.len() > HEADERS_MAX {
        return Err(invalid(format!("there are more than {HEADERS_MAX} headers")));
    }
    if given.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > HEADER_BYTES_MAX {
        return Err(invalid(format!("the headers have more than {HEADER_BYTES_MAX} bytes")));
    }
    let mut headers = HeaderMap::with_capacity(given.len() + 2);
    for (name, value) in given {
        let name = header_name(name)?;
        let value = HeaderValue::from_str(value)
            .map_err(|_| invalid(format!("the value of the header `{name}` has control characters")))?;
        headers.append(name, value);
    }
    if let Some(secret) = secret {
        let name = header_name(&secret.name)?;
        if headers.contains_key(&name) {
            return Err(invalid(format!("the header `{name}` is given twice, with a secret and without")));
        }
        let mut value = HeaderValue::from_str(&format!("{}{}", secret.prefix, secret.value.expose()))
            .map_err(|_| invalid(format!("the secret or its prefix cannot stand in the header `{name}`")))?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    // The body is handed on as it comes, so a server should not compress it for one who did not ask.
    headers.entry(ACCEPT_ENCODING).or_insert(HeaderValue::from_static("identity"));
    Ok(headers)
}

/// A name that a step may use.
fn header_name(text: &str) -> Result<HeaderName, HttpError> {
    let name = HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| invalid(format!("`{}` is not the name of a header", crate::text::excerpt(text, 100))))?;
    // They say where a message ends, whom it is for, or what becomes of the connection, which others use after it.
    let hosts = [HOST, CONTENT_LENGTH, CONNECTION, TRANSFER_ENCODING, UPGRADE, TE, TRAILER, EXPECT];
    if hosts.contains(&name) || matches!(name.as_str(), "keep-alive" | "http2-settings") || is_of_proxies(&name) {
        return Err(invalid(format!("the header `{name}` is the host's")));
    }
    Ok(name)
}

fn is_of_proxies(name: &HeaderName) -> bool {
    name.as_str().starts_with("proxy-")
}

fn readable(headers: &HeaderMap) -> Result<Vec<(String, String)>, HttpError> {
    if headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>() > RESPONSE_HEADER_BYTES_MAX
    {
        return Err(too_large(RESPONSE_HEADER_BYTES_MAX));
    }
    let readable = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    Ok(headers.iter().map(|(name, value)| (name.as_str().to_owned(), readable(value))).collect())
}

/// How many bytes the body will have, where the server says so, and 0 otherwise.
fn announced(response: &Response) -> Result<usize, HttpError> {
    let length = response.content_length().unwrap_or_default();
    usize::try_from(length).ok().filter(|length| *length <= BODY_BYTES_MAX).ok_or(too_large(BODY_BYTES_MAX))
}

fn invalid(why: String) -> HttpError {
    HttpError::InvalidRequest(why)
}

fn too_large(limit: usize) -> HttpError {
    HttpError::TooLarge(limit as u64)
}

impl From<Denied> for HttpError {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied.to_string())
    }
}

impl From<Trouble> for HttpError {
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
    use super::*;

    fn request() -> HttpRequest {
        HttpRequest {
            method: "GET".to_owned(),
            url: "https://a.example/".to_owned(),
            headers: Vec::new(),
            body: None,
            timeout_ms: 1000,
        }
    }

    fn secret(name: &str, prefix: &str, value: &str) -> SecretHeader {
        SecretHeader { name: name.to_owned(), prefix: prefix.to_owned(), value: Secret::new(value) }
    }

    fn refusal(request: HttpRequest, secret: Option<SecretHeader>) -> String {
        match prepare(request, secret) {
            Err(HttpError::InvalidRequest(why)) => why,
            Err(other) => panic!("{other:?}"),
            Ok(request) => panic!("passed: {request:?}"),
        }
    }

    #[test]
    fn only_methods_that_ask_a_server_something_pass() {
        for method in ["GET", "POST", "M-SEARCH", "X_1"] {
            assert!(prepare(HttpRequest { method: method.to_owned(), ..request() }, None).is_ok(), "{method}");
        }
        let long = "A".repeat(33);
        for method in ["", "get", "Get", "CONNECT", "TRACE", "G T", "GET\r\n", "GÉT", "GET/", &long] {
            refusal(HttpRequest { method: method.to_owned(), ..request() }, None);
        }
    }

    #[test]
    fn only_plain_urls_of_the_web_pass() {
        let long = format!("https://a.example/{}", "a".repeat(URL_BYTES_MAX));
        for url in [
            "",
            "/path",
            "ftp://a.example/",
            "file:///etc/passwd",
            "data:text/plain,a",
            "http://",
            "http://user@a.example/",
            "http://user:password@a.example/",
            "http://:password@a.example/",
            "http://a.example/\r\nx: y",
            "http://a.example/a b",
            " http://a.example/",
            "http://a.example:99999/",
            "http://[::1/",
            "http://a.example\t/",
            &long,
        ] {
            refusal(HttpRequest { url: url.to_owned(), ..request() }, None);
        }
    }

    #[test]
    fn the_headers_of_a_connection_are_the_hosts() {
        for name in [
            "Host",
            "content-length",
            "Connection",
            "transfer-encoding",
            "upgrade",
            "TE",
            "trailer",
            "keep-alive",
            "proxy-authorization",
            "Proxy-Connection",
            "proxy-anything",
            "expect",
            "http2-settings",
        ] {
            let given = HttpRequest { headers: vec![(name.to_owned(), "1".to_owned())], ..request() };
            assert!(refusal(given, None).contains("is the host's"), "{name}");
            assert!(refusal(request(), Some(secret(name, "", "s"))).contains("is the host's"), "{name}");
        }
    }

    #[test]
    fn a_header_cannot_bring_another_one_with_it() {
        for (name, value) in [
            ("x", "a\r\nhost: b"),
            ("x", "a\nb"),
            ("x", "a\0"),
            ("x\r\ny", "a"),
            ("x y", "a"),
            ("x:", "a"),
            ("", "a"),
            ("ü", "a"),
            ("x", "a\u{7f}"),
        ] {
            refusal(HttpRequest { headers: vec![(name.to_owned(), value.to_owned())], ..request() }, None);
        }
    }

    #[test]
    fn a_head_and_a_body_have_their_limits() {
        let header = ("x".to_owned(), "v".to_owned());
        let hundred = vec![header.clone(); 100];
        assert!(prepare(HttpRequest { headers: hundred.clone(), ..request() }, None).is_ok());
        refusal(HttpRequest { headers: [hundred, vec![header]].concat(), ..request() }, None);
        let just = ("x".to_owned(), "v".repeat(HEADER_BYTES_MAX - 1));
        let over = ("x".to_owned(), "v".repeat(HEADER_BYTES_MAX));
        assert!(prepare(HttpRequest { headers: vec![just], ..request() }, None).is_ok());
        refusal(HttpRequest { headers: vec![over], ..request() }, None);
        let body = |len: usize| Some(Bytes::from(vec![0; len]));
        assert!(prepare(HttpRequest { body: body(BODY_BYTES_MAX), ..request() }, None).is_ok());
        refusal(HttpRequest { body: body(BODY_BYTES_MAX + 1), ..request() }, None);
    }

    #[test]
    fn a_secret_is_in_its_header_and_in_nothing_that_can_be_read() {
        let prepared = prepare(request(), Some(secret("Authorization", "Bearer ", "hunter2"))).unwrap();
        assert_eq!(prepared.headers()["authorization"], "Bearer hunter2");
        assert!(!format!("{prepared:?}").contains("hunter2"));
        for header in [
            secret("authorization", "", "hunter2\n"),
            secret("a b", "", "hunter2"),
            secret("x-key", "", "hunter2"),
            secret("host", "", "hunter2"),
            secret("authorization", "\r\n", "hunter2"),
        ] {
            let given = HttpRequest { headers: vec![("x-key".to_owned(), "1".to_owned())], ..request() };
            assert!(!refusal(given, Some(header)).contains("hunter2"));
        }
    }
}
