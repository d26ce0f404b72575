//! Who reads a stream: a tenant with its API key, or a browser with a stream token. And which pages may see the answer.
//!
//! Keeps: an answer carries `Access-Control-Allow-Origin` only when the tenant that was recognised has named the
//! page's origin. Credentials in the browser's sense, that is cookies, are never allowed: there are none.

use std::collections::HashSet;
use std::time::Duration;

use axum::extract::Query;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use stepwell_core::TenantId;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::App;
use super::auth::tenant_of;
use super::problem::Problem;
use super::sse::Ends;
use crate::clock;
use crate::journal::channels::ChannelFilter;
use crate::stream_tokens::{Claims, PREFIX, Target, TokenError, Verified};

/// What a page may send along, besides what every page may. `Last-Event-ID` is where it goes on.
const HEADERS_ALLOWED: &str = "authorization, last-event-id, cache-control";
/// What a page may read of an answer's head, besides what every page may: when to come back.
const HEADERS_EXPOSED: &str = "retry-after";
/// Seconds that a browser need not ask again.
const PREFLIGHT_SECONDS: &str = "600";

/// Somebody who reads streams.
#[derive(Debug)]
pub(super) struct Viewer {
    pub(super) tenant: TenantId,
    /// `None` for a tenant with its API key.
    claims: Option<Claims>,
    /// Cancelled when the key or token is not valid any more.
    revoked: CancellationToken,
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
            let (tenant, revoked) = tenant_of(headers, app).map_err(|problem| Denied { tenant: None, problem })?;
            return Ok(Self { tenant, claims: None, revoked });
        };
        match app.stream_tokens.verify(&token, clock::now()) {
            Ok(Verified { claims, rotated }) => {
                Ok(Self { tenant: claims.tenant.clone(), claims: Some(claims), revoked: rotated })
            }
            Err(TokenError::Invalid) => Err(Denied { tenant: None, problem: invalid_token() }),
            Err(TokenError::Expired(tenant)) => {
                let detail = "this stream token has expired; ask for a new one";
                Err(Denied { tenant: Some(tenant), problem: unauthorized("expired_token", detail) })
            }
        }
    }

    /// Whether this is a stream for them. What a token was not made for does not exist.
    pub(super) fn may_open(&self, target: &Target) -> bool {
        self.claims.as_ref().is_none_or(|claims| claims.target == *target)
    }

    /// The topics that they are limited to.
    pub(super) fn topics(&self) -> Option<HashSet<String>> {
        let topics = self.claims.as_ref()?.topics.as_ref()?;
        Some(topics.iter().cloned().collect())
    }

    /// Refuses topics that are not among those.
    pub(super) fn check_topics(&self, wanted: Option<&HashSet<String>>) -> Result<(), Problem> {
        let (Some(wanted), Some(allowed)) = (wanted, self.topics()) else { return Ok(()) };
        if wanted.is_subset(&allowed) { Ok(()) } else { Err(out_of_scope("topics")) }
    }

    /// Whether inputs, outputs and details of failures are shown to them.
    pub(super) fn sees_values(&self) -> bool {
        self.claims.as_ref().is_none_or(|claims| claims.outputs)
    }

    /// Narrows what is wanted of a channel to the runs that they are limited to. Refuses others.
    pub(super) fn narrow(&self, filter: &mut ChannelFilter) -> Result<(), Problem> {
        let Some(claims) = &self.claims else { return Ok(()) };
        let fits = narrowed(&mut filter.run, claims.of.run.as_ref())
            && narrowed(&mut filter.workflow, claims.of.workflow.as_ref())
            && narrowed(&mut filter.correlation, claims.of.correlation.as_ref());
        if fits { Ok(()) } else { Err(out_of_scope("runs")) }
    }

    /// What ends a stream of theirs that has an end of its own.
    pub(super) fn ends(&self, app: &App) -> Ends {
        Ends { stopping: app.stopping.clone(), revoked: self.revoked.clone(), at: None }
    }

    /// The same for one that has none: it ends with its token's time.
    pub(super) fn ends_with_token(&self, app: &App) -> Ends {
        let left = |claims: &Claims| Duration::from_millis(claims.expires_at.millis_since(clock::now()));
        Ends { at: self.claims.as_ref().map(|claims| Instant::now() + left(claims)), ..self.ends(app) }
    }

    /// When what they opened is to be closed.
    pub(super) const fn revoked(&self) -> &CancellationToken {
        &self.revoked
    }

    /// Refuses those whose key or token has become invalid since they came.
    pub(super) fn check_still(&self) -> Result<(), Problem> {
        match &self.claims {
            _ if !self.revoked.is_cancelled() => Ok(()),
            Some(_) => Err(invalid_token()),
            None => Err(unauthorized("unauthorized", "this API key is not valid")),
        }
    }
}

/// What is wanted, if it is what is allowed; what is allowed, if nothing was wanted.
fn narrowed<T: Clone + PartialEq>(wanted: &mut Option<T>, allowed: Option<&T>) -> bool {
    let Some(allowed) = allowed else { return true };
    wanted.get_or_insert_with(|| allowed.clone()) == allowed
}

fn out_of_scope(what: &str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "out_of_scope", format!("this stream token is for other {what}"))
}

fn invalid_token() -> Problem {
    unauthorized("invalid_token", "this stream token is not valid")
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
        out.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(HEADERS_EXPOSED));
    }
    response
}

/// What a browser asks before it sends a request of a page. It does not say for which tenant, so every page may ask, and
/// learns nothing from that; whether it may see the answer is decided with the answer.
pub(super) async fn preflight() -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let out = response.headers_mut();
    let mut put = |name: HeaderName, value: &'static str| drop(out.insert(name, HeaderValue::from_static(value)));
    put(header::ALLOW, "GET, HEAD, OPTIONS");
    put(header::ACCESS_CONTROL_ALLOW_ORIGIN, "*");
    put(header::ACCESS_CONTROL_ALLOW_METHODS, "GET");
    put(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS_ALLOWED);
    put(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS);
    response
}
