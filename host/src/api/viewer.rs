//! Who reads a stream: a tenant with its API key, or a browser with a stream token. And which pages may see the answer.
//!
//! Keeps: an answer carries `Access-Control-Allow-Origin` only when the tenant that was recognised has named the
//! page's origin. Credentials in the browser's sense, that is cookies, are never allowed: there are none.

use std::collections::HashSet;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use stepwell_core::TenantId;
use tokio_util::sync::CancellationToken;

use super::App;
use super::auth::tenant_of;
use super::problem::Problem;
use crate::clock;
use crate::stream_tokens::{PREFIX, Target, TokenError, Verified};

/// What a page may send along, besides what every page may. `Last-Event-ID` is where it goes on.
const HEADERS_ALLOWED: &str = "authorization, last-event-id, cache-control";
/// Seconds that a browser need not ask again.
const PREFLIGHT_SECONDS: &str = "600";

/// Somebody who reads streams.
#[derive(Debug)]
pub(super) struct Viewer {
    pub(super) tenant: TenantId,
    /// `None` for a tenant with its API key.
    token: Option<Verified>,
}

/// Somebody who does not, and whose tenant is known all the same when an expired token says so.
#[derive(Debug)]
pub(super) struct Denied {
    pub(super) tenant: Option<TenantId>,
    pub(super) problem: Problem,
}

/// The token in a query string. Without `Debug`: it must not get into a log.
#[derive(Deserialize)]
struct Presented {
    token: Option<String>,
}

impl Viewer {
    /// Whoever sent this request. `Authorization` wins over `?token=`.
    pub(super) fn of(app: &App, headers: &HeaderMap, uri: &Uri) -> Result<Self, Denied> {
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = bearer.and_then(|text| text.split_once(' ')).map(|(_, token)| token.trim());
        let token = match bearer {
            Some(bearer) if bearer.starts_with(PREFIX) => Some(bearer.to_owned()),
            Some(_) => None,
            None if headers.contains_key(header::AUTHORIZATION) => None,
            None => Query::<Presented>::try_from_uri(uri).ok().and_then(|Query(presented)| presented.token),
        };
        let Some(token) = token else {
            let tenant = tenant_of(headers, app).map_err(|problem| Denied { tenant: None, problem })?;
            return Ok(Self { tenant, token: None });
        };
        match app.stream_tokens.verify(&token, clock::now()) {
            Ok(verified) => Ok(Self { tenant: verified.claims.tenant.clone(), token: Some(verified) }),
            Err(TokenError::Invalid) => {
                let detail = "this stream token is not valid";
                Err(Denied { tenant: None, problem: unauthorized("invalid_token", detail) })
            }
            Err(TokenError::Expired(tenant)) => {
                let detail = "this stream token has expired; ask for a new one";
                Err(Denied { tenant: Some(tenant), problem: unauthorized("expired_token", detail) })
            }
        }
    }

    /// Whether this is a stream for them. What a token was not made for does not exist.
    pub(super) fn may_open(&self, target: &Target) -> bool {
        self.token.as_ref().is_none_or(|token| token.claims.target == *target)
    }

    /// The topics that they are limited to.
    pub(super) fn topics(&self) -> Option<HashSet<String>> {
        let topics = self.token.as_ref()?.claims.topics.as_ref()?;
        Some(topics.iter().cloned().collect())
    }

    /// Refuses topics that are not among those.
    pub(super) fn check_topics(&self, wanted: Option<&HashSet<String>>) -> Result<(), Problem> {
        let (Some(wanted), Some(allowed)) = (wanted, self.topics()) else { return Ok(()) };
        if wanted.is_subset(&allowed) {
            return Ok(());
        }
        let detail = "this stream token is for other topics";
        Err(Problem::new(StatusCode::FORBIDDEN, "out_of_scope", detail))
    }

    /// When what they opened is to be closed.
    pub(super) fn revoked(&self) -> Option<CancellationToken> {
        self.token.as_ref().map(|token| token.rotated.clone())
    }
}

fn unauthorized(code: &'static str, detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, code, detail)
}

/// An answer to whoever reads a stream, as their browser wants it.
pub(super) fn finish(
    app: &App,
    headers: &HeaderMap,
    tenant: Option<&TenantId>,
    answer: Result<Response, Problem>,
) -> Response {
    let mut response = answer.unwrap_or_else(IntoResponse::into_response);
    let out = response.headers_mut();
    out.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    out.append(header::VARY, HeaderValue::from_static("origin"));
    let origin = headers.get(header::ORIGIN);
    let text = origin.and_then(|origin| origin.to_str().ok());
    if let (Some(origin), Some(text), Some(tenant)) = (origin, text, tenant)
        && app.origins.allows(tenant, text)
    {
        out.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
    response
}

/// What a browser asks before it sends a request of a page. It does not say for which tenant, so an origin will do that
/// any of them has named; whether the page may see the answer is decided with the answer.
pub(super) async fn preflight(State(app): State<App>, headers: HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let out = response.headers_mut();
    let vary = "origin, access-control-request-method, access-control-request-headers";
    out.insert(header::VARY, HeaderValue::from_static(vary));
    out.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    let Some(origin) = headers.get(header::ORIGIN) else { return response };
    let wanted = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD);
    let method_fits = wanted.is_none_or(|method| method.as_bytes() == Method::GET.as_str().as_bytes());
    if method_fits && origin.to_str().is_ok_and(|text| app.origins.is_known(text)) {
        let mut put = |name: HeaderName, value: &'static str| drop(out.insert(name, HeaderValue::from_static(value)));
        put(header::ACCESS_CONTROL_ALLOW_METHODS, "GET");
        put(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS_ALLOWED);
        put(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS);
        out.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    }
    response
}
