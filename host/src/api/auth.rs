//! The two kinds of callers, as extractors: a handler that takes a [`Tenant`] cannot run without one. And what a path
//! names, refused in our words.

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;
use stepwell_core::{RunId, RunKey, TenantId};
use tokio_util::sync::CancellationToken;

use super::App;
use super::problem::Problem;
use crate::access::Caller;

/// The tenant whose key the request carries.
#[derive(Debug, Clone)]
pub(super) struct Tenant(pub(super) TenantId);

/// Proof that the request carries the operator's key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operator;

impl Tenant {
    /// A run of this tenant, if the text names one. Whether it exists is for the journal to say.
    pub(super) fn run(&self, id: &str) -> Result<RunKey, Problem> {
        let run: RunId = id.parse().map_err(|_| Problem::unknown_run())?;
        Ok(RunKey { tenant: self.0.clone(), run })
    }
}

/// The variable parts of a path.
#[derive(Debug)]
pub(super) struct Segments<T>(pub(super) T);

impl<T: DeserializeOwned + Send> FromRequestParts<App> for Segments<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let path = Path::<T>::from_request_parts(parts, app).await;
        path.map(|Path(parts)| Self(parts)).map_err(|error| Problem::bad_request("invalid_path", error.body_text()))
    }
}

fn caller(headers: &HeaderMap, app: &App) -> Result<Caller, Problem> {
    let unauthorized = |detail| Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail);
    let header = headers.get(header::AUTHORIZATION);
    let header = header.ok_or_else(|| unauthorized("this needs an API key: `Authorization: Bearer KEY`"))?;
    let text = header.to_str().unwrap_or_default();
    let key =
        text.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, key)| key.trim());
    key.and_then(|key| app.access.caller(key)).ok_or_else(|| unauthorized("this API key is not valid"))
}

/// The tenant whose key a request carries, and what says when the key is revoked.
pub(super) fn tenant_of(headers: &HeaderMap, app: &App) -> Result<(TenantId, CancellationToken), Problem> {
    match caller(headers, app)? {
        Caller::Tenant { tenant, revoked } => Ok((tenant, revoked)),
        Caller::Operator => Err(Problem::new(
            StatusCode::FORBIDDEN,
            "not_a_tenant",
            "the operator's key opens /v1/admin alone; make an API key for a tenant",
        )),
    }
}

impl FromRequestParts<App> for Tenant {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        tenant_of(&parts.headers, app).map(|(tenant, _)| Self(tenant))
    }
}

impl FromRequestParts<App> for Operator {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        match caller(&parts.headers, app)? {
            Caller::Operator => Ok(Self),
            Caller::Tenant { .. } => {
                Err(Problem::new(StatusCode::FORBIDDEN, "not_an_operator", "this is for the operator of this host"))
            }
        }
    }
}
