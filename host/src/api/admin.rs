//! What the operator does: tenants and their keys.

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use super::App;
use super::auth::{Operator, Segments};
use super::problem::{self, Problem, ProblemBody};
use super::wire::{ApiKeyBody, NewKey, NewKeyBody, NewTenant, Page, TenantBody};
use crate::clock;
use crate::journal::catalog::TenantRecord;

/// Bytes of a body that has only a few small fields.
const SMALL_BYTES_MAX: usize = 64 << 10;
/// Days after its end that a run is deleted, when nothing else is said.
pub(crate) const RETENTION_DAYS_DEFAULT: u32 = 30;
/// The longest retention: ten years.
const RETENTION_DAYS_MAX: u32 = 3650;

/// Creates a tenant.
#[utoipa::path(post, path = "/v1/admin/tenants", tag = "admin", request_body = NewTenant,
    responses(
        (status = 201, body = TenantBody),
        (status = 409, description = "`tenant_exists`", body = ProblemBody),
        (status = 422, description = "`invalid_body`", body = ProblemBody),
    ))]
pub(super) async fn create_tenant(
    State(app): State<App>,
    _: Operator,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = problem::body(&headers, body, SMALL_BYTES_MAX).await?;
    let NewTenant { id, retention_days } = problem::parse(&body)?;
    let retention_days = retention_days.unwrap_or(RETENTION_DAYS_DEFAULT);
    if !(1..=RETENTION_DAYS_MAX).contains(&retention_days) {
        return Err(Problem::invalid("invalid_body", format!("retention_days is 1 to {RETENTION_DAYS_MAX}")));
    }
    let record = TenantRecord { id, created_at: clock::now(), retention_days };
    if !app.journal.create_tenant(record.clone()).await? {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "tenant_exists",
            format!("there is a tenant `{}` already", record.id),
        ));
    }
    tracing::info!(tenant = %record.id, "tenant created");
    Ok((StatusCode::CREATED, Answer(TenantBody::from(record))).into_response())
}

/// All tenants.
#[utoipa::path(get, path = "/v1/admin/tenants", tag = "admin", responses((status = 200, body = Page<TenantBody>)))]
pub(super) async fn tenants(State(app): State<App>, _: Operator) -> Result<Answer<Page<TenantBody>>, Problem> {
    Ok(Answer(Page::whole(app.journal.tenants()?.into_iter().map(TenantBody::from).collect())))
}

/// Creates an API key for a tenant. The answer is the only one that shows it.
#[utoipa::path(post, path = "/v1/admin/keys", tag = "admin", request_body = NewKey,
    responses((status = 201, body = NewKeyBody), (status = 404, description = "`unknown_tenant`", body = ProblemBody)))]
pub(super) async fn create_key(
    State(app): State<App>,
    _: Operator,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = problem::body(&headers, body, SMALL_BYTES_MAX).await?;
    let NewKey { tenant } = problem::parse(&body)?;
    let created = app.access.create_key(&app.journal, tenant).await?;
    let created = created.ok_or_else(|| Problem::not_found("unknown_tenant", "there is no such tenant"))?;
    tracing::info!(tenant = %created.record.tenant, key = created.record.id, "API key created");
    Ok((StatusCode::CREATED, Answer(NewKeyBody { key: created.key, record: created.record.into() })).into_response())
}

/// All API keys ever created, without the keys.
#[utoipa::path(get, path = "/v1/admin/keys", tag = "admin", responses((status = 200, body = Page<ApiKeyBody>)))]
pub(super) async fn keys(State(app): State<App>, _: Operator) -> Result<Answer<Page<ApiKeyBody>>, Problem> {
    Ok(Answer(Page::whole(app.journal.api_keys()?.into_iter().map(ApiKeyBody::from).collect())))
}

/// Stops accepting an API key, from the next request on.
#[utoipa::path(post, path = "/v1/admin/keys/{id}/revoke", tag = "admin",
    params(("id" = String, Path, description = "The key's id: the middle part of the key.")),
    responses((status = 200, body = ApiKeyBody), (status = 404, description = "`unknown_key`", body = ProblemBody)))]
pub(super) async fn revoke_key(
    State(app): State<App>,
    _: Operator,
    Segments(id): Segments<String>,
) -> Result<Answer<ApiKeyBody>, Problem> {
    let record = app.access.revoke_key(&app.journal, &id).await?;
    let record = record.ok_or_else(|| Problem::not_found("unknown_key", "there is no such API key"))?;
    tracing::info!(tenant = %record.tenant, key = record.id, "API key revoked");
    Ok(Answer(record.into()))
}
