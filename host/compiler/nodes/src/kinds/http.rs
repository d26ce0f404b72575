//! `http`: sends a request, and tells by the status what becomes of the step.
//!
//! Messages name a URL without its query, which may hold what should not be written down.

use std::collections::BTreeMap;

use jaq_json::Val;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use stepwell_document as document;
use stepwell_document::StatusRule;

use crate::bindings::stepwell::workflow::http::{Authorization, HttpError, Request, Response};
use crate::bindings::stepwell::workflow::types::{Failure, Outcome};
use crate::failure::{permanent, quoted, retryable, with_details};
use crate::jq::percent_encoded;
use crate::json;
use crate::step::{Outside, Step};
use crate::template::{Template, Templates};

/// Ten minutes, as in `wit/http.wit`.
const TIMEOUT_MS_MAX: u32 = 600_000;

pub(crate) struct Http {
    method: String,
    url: Template,
    /// By name.
    query: Vec<(String, Template)>,
    /// By name.
    headers: Vec<(String, Template)>,
    body: Option<Template>,
    authorization: Option<Authorization>,
    ok: Vec<StatusRule>,
    retry: Vec<StatusRule>,
}

impl Http {
    pub(crate) fn compile(node: document::Http, templates: &mut Templates) -> Self {
        let url = templates.text("url", &node.url);
        let query = node.query.into_iter().map(|(name, value)| {
            let template = templates.value(&query_field(&name), &value);
            (name, template)
        });
        let query = query.collect();
        let headers = node.headers.into_iter().map(|(name, value)| {
            let template = templates.text(&header_field(&name), &value);
            (name, template)
        });
        let headers = headers.collect();
        let body = node.body.map(|body| templates.value("body", &body));
        let default = if body.is_some() { "POST" } else { "GET" };
        let (ok, retry) = node.status.map_or((None, None), |rules| (rules.ok, rules.retry));
        Self {
            method: node.method.map_or_else(|| default.to_owned(), |method| method.to_ascii_uppercase()),
            url,
            query,
            headers,
            body,
            authorization: node.authorization.map(authorization),
            ok: ok.unwrap_or_else(|| vec![StatusRule::Class("2xx".to_owned())]),
            retry: retry.unwrap_or_else(|| {
                let codes = [408, 425, 429].map(StatusRule::Code);
                codes.into_iter().chain([StatusRule::Class("5xx".to_owned())]).collect()
            }),
        }
    }

    pub(crate) fn run(&self, step: &Step, outside: &impl Outside) -> Result<Outcome, Failure> {
        let request = self.request(step)?;
        let what = format!("{} {}", request.method, without_query(&request.url));
        let response = outside.send(&request).map_err(|error| failed(&what, error))?;
        let status = response.status;
        let any = |rules: &[StatusRule]| rules.iter().any(|rule| rule.matches(status));
        if any(&self.ok) {
            return Ok(Outcome::Output(output(&response)));
        }
        let message = format!("{what} answered {status}");
        let failure = if any(&self.retry) {
            retryable("http_status", message, retry_after_ms(&response))
        } else {
            permanent("http_status", message)
        };
        let body = String::from_utf8_lossy(&response.body);
        Err(with_details(failure, &json!({ "status": status, "body": quoted(&body) })))
    }

    fn request(&self, step: &Step) -> Result<Request, Failure> {
        let url = step.text_with("url", &self.url, |value| percent_encoded(value.as_bytes()))?;
        let mut headers = Vec::with_capacity(self.headers.len() + 1);
        for (name, value) in &self.headers {
            headers.push((name.clone(), step.text(&header_field(name), value)?));
        }
        let body = self.body.as_ref().map(|body| step.value("body", body)).transpose()?;
        let is_json = body.as_ref().is_some_and(|body| !matches!(body, Val::TStr(_)));
        if is_json && !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            headers.push(("content-type".to_owned(), "application/json".to_owned()));
        }
        let body = body.map(|body| match body {
            Val::TStr(text) => Ok(text.to_vec()),
            body => Ok(step.json("body", &body)?.into_bytes()),
        });
        Ok(Request {
            method: self.method.clone(),
            url: with_query(url, &self.query(step)?),
            headers,
            body: body.transpose()?,
            authorization: self.authorization.clone(),
            timeout_ms: u32::try_from(step.node.plan.timeout_ms).unwrap_or(TIMEOUT_MS_MAX).min(TIMEOUT_MS_MAX),
        })
    }

    /// `name=value&…`, percent-encoded.
    fn query(&self, step: &Step) -> Result<String, Failure> {
        let mut pairs = Vec::with_capacity(self.query.len());
        for (name, template) in &self.query {
            let field = query_field(name);
            let value = match step.value(&field, template)? {
                Val::Null => continue,
                value @ (Val::Arr(_) | Val::Obj(_)) => {
                    let message = format!("must be a text, a number, a boolean or null and is {}", json::kind(&value));
                    return Err(step.fail(&field, "http_invalid_request", &message));
                }
                Val::TStr(text) => percent_encoded(&text),
                value => percent_encoded(step.json(&field, &value)?.as_bytes()),
            };
            pairs.push(format!("{}={value}", percent_encoded(name.as_bytes())));
        }
        Ok(pairs.join("&"))
    }
}

fn query_field(name: &str) -> String {
    format!("query.{name}")
}

fn header_field(name: &str) -> String {
    format!("headers.{name}")
}

fn authorization(authorization: document::Authorization) -> Authorization {
    Authorization {
        secret: authorization.secret,
        header: authorization.header.unwrap_or_else(|| "authorization".to_owned()),
        prefix: authorization.prefix.unwrap_or_else(|| "Bearer ".to_owned()),
    }
}

/// A URL with more in its query. A fragment is not sent, so it is left out.
fn with_query(url: String, query: &str) -> String {
    if query.is_empty() {
        return url;
    }
    let url = url.split('#').next().unwrap_or_default();
    let sign = match url.split_once('?') {
        None => "?",
        Some((_, there)) if there.is_empty() || there.ends_with('&') => "",
        Some(_) => "&",
    };
    format!("{url}{sign}{query}")
}

fn without_query(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

/// `{status, headers, body}`.
fn output(response: &Response) -> String {
    let mut headers = BTreeMap::<&str, String>::new();
    for (name, value) in &response.headers {
        headers.entry(name).and_modify(|there| *there = format!("{there}, {value}")).or_insert_with(|| value.clone());
    }
    let is_json = headers.get("content-type").is_some_and(|found| is_json(found));
    let text = String::from_utf8_lossy(&response.body);
    // JSON is taken over as it is, so that no digit is lost.
    let body = if is_json && serde_json::from_str::<IgnoredAny>(&text).is_ok() {
        text.into_owned()
    } else {
        Value::from(text).to_string()
    };
    format!(r#"{{"status":{},"headers":{},"body":{body}}}"#, response.status, json!(headers))
}

fn is_json(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || essence.ends_with("+json")
}

/// The wait that a response asks for. It may also be a date, but there is no clock here to compare it with.
fn retry_after_ms(response: &Response) -> Option<u64> {
    let (_, value) = response.headers.iter().find(|(name, _)| name == "retry-after")?;
    value.trim().parse::<u64>().ok()?.checked_mul(1_000)
}

fn failed(what: &str, error: HttpError) -> Failure {
    match error {
        HttpError::InvalidRequest(why) => permanent("http_invalid_request", format!("{what} was not sent: {why}")),
        HttpError::Denied(why) => permanent("http_denied", format!("{what} was not sent: {why}")),
        HttpError::Timeout => retryable("http_timeout", format!("{what}: no whole response within the time"), None),
        HttpError::Connection(why) => retryable("http_connection", format!("{what}: {why}"), None),
        HttpError::TooLarge(most) => {
            permanent("http_too_large", format!("{what}: the response has more than {most} bytes"))
        }
        HttpError::QuotaExceeded => permanent("http_quota", "this attempt has sent as many requests as it may"),
    }
}
