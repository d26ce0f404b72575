//! What the operator does: the keys of tenants. Tenants themselves are in [`super::tenants`].

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

use super::App;
use super::auth::{Operator, Segments};
use super::problem::{self, Problem, ProblemBody};
use super::wire::{ApiKeyBody, NewKey, NewKeyBody, Page};

/// Bytes of a body that has only a few small fields.
const SMALL_BYTES_MAX: usize = 64 << 10;
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
