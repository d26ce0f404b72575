//! The API's description, made from the handlers.

use axum::Json as Answer;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;

use super::{admin, artifacts, events, runs, wire, workflows};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Stepwell",
        description = "Runs workflows for many tenants, each step in a sandbox of its own.\n\nEvery request carries an API key: `Authorization: Bearer KEY`. Errors are `application/problem+json` with a stable `code`."
    ),
    paths(
        super::healthz,
        super::readyz,
        workflows::list,
        workflows::get,
        workflows::versions,
        workflows::version,
        workflows::deploy,
        runs::start,
        runs::list,
        runs::get,
        runs::steps,
        runs::cancel,
        events::get,
        artifacts::list,
        artifacts::get,
        admin::tenants,
        admin::create_tenant,
        admin::keys,
        admin::create_key,
        admin::revoke_key,
    ),
    components(schemas(wire::EventBody))
)]
struct Api;

/// The description as a document.
#[must_use]
pub fn document() -> Document {
    Api::openapi()
}

/// `GET /openapi.json`.
pub(super) async fn get() -> Answer<Document> {
    Answer(document())
}
