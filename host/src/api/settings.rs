//! What a tenant decides for its browsers: the origins of its pages, and the end of all stream tokens.

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::App;
use super::auth::Tenant;
use super::problem::{self, Problem, ProblemBody};
use crate::clock::rfc3339;
use crate::cors::{ORIGIN_BYTES_MAX, ORIGINS_MAX, is_origin};
use crate::journal::access::OriginsRecord;

/// Bytes of the request: all origins, and what is around them.
const BODY_BYTES_MAX: usize = ORIGINS_MAX * (ORIGIN_BYTES_MAX + 8) + 1024;

/// The pages that may read this tenant's streams.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CorsBody {
    /// Origins as browsers spell them, such as `https://app.example`, at most 64. No `*`.
    origins: Vec<String>,
}

/// When the tokens of before stopped working.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RotatedBody {
    /// The moment of the new key.
    rotated_at: String,
}

/// The pages that may read this tenant's streams.
#[utoipa::path(get, path = "/v1/settings/cors", tag = "settings", responses((status = 200, body = CorsBody)))]
pub(super) async fn cors(State(app): State<App>, tenant: Tenant) -> Answer<CorsBody> {
    Answer(CorsBody { origins: app.origins.of(&tenant.0) })
}

/// Sets the pages that may read this tenant's streams, in place of those of before.
#[utoipa::path(put, path = "/v1/settings/cors", tag = "settings",
    request_body = CorsBody,
    responses(
        (status = 200, body = CorsBody),
        (status = 413, description = "`too_large`", body = ProblemBody),
        (status = 422, description = "`invalid_json`, `invalid_body`, `invalid_origin`", body = ProblemBody),
    ))]
pub(super) async fn put_cors(
    State(app): State<App>,
    tenant: Tenant,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer<CorsBody>, Problem> {
    let body = problem::body(&headers, body, BODY_BYTES_MAX).await?;
    let CorsBody { origins } = problem::parse(&body)?;
    if origins.len() > ORIGINS_MAX {
        return Err(Problem::invalid("invalid_body", format!("a tenant has at most {ORIGINS_MAX} origins")));
    }
    if origins.iter().any(|origin| !is_origin(origin)) {
        let rule = "an origin is spelled as browsers do: http or https, `://`, a name or address in lower case, and the \
                    port unless it is the scheme's own; without a path, and without `*`";
        return Err(Problem::invalid("invalid_origin", rule));
    }
    app.origins.set(&app.journal, OriginsRecord { tenant: tenant.0.clone(), origins }).await?;
    tracing::info!(tenant = %tenant.0, "origins set");
    Ok(Answer(CorsBody { origins: app.origins.of(&tenant.0) }))
}

/// Replaces the key that this tenant's stream tokens are signed with. None of them opens anything any more, and what
/// they have opened is closed.
#[utoipa::path(post, path = "/v1/stream-keys/rotate", tag = "settings", responses((status = 200, body = RotatedBody)))]
pub(super) async fn rotate(State(app): State<App>, tenant: Tenant) -> Result<Answer<RotatedBody>, Problem> {
    let rotated_at = app.stream_tokens.rotate(&app.journal, &tenant.0).await?;
    tracing::info!(tenant = %tenant.0, "the key of stream tokens was replaced");
    Ok(Answer(RotatedBody { rotated_at: rfc3339(rotated_at) }))
}
