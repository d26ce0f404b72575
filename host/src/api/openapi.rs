//! The API's description, made from the handlers.

use axum::Json as Answer;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{
    admin, artifacts, channels, control, events, flow, providers, runs, secrets, settings, shadows, stream_tokens,
    tenants, triggers, webhooks, wire, workflows,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Stepwell",
        description = "Runs workflows for many tenants, each step in a sandbox of its own.\n\nEvery request but `/healthz`, `/readyz` and `/openapi.json` carries an API key: `Authorization: Bearer KEY`; without a valid one it gets 401, with one of the wrong kind 403, and 503 when the host is stopping. Errors are `application/problem+json` with a stable `code`."
    ),
    paths(
        super::healthz,
        super::readyz,
        workflows::list,
        workflows::get,
        workflows::versions,
        workflows::version,
        workflows::deploy,
        workflows::promote,
        workflows::document,
        workflows::validate,
        workflows::graph_schema,
        flow::get,
        flow::put,
        flow::delete,
        flow::keys,
        shadows::put,
        shadows::get,
        shadows::delete,
        shadows::report,
        runs::start,
        runs::list,
        runs::get,
        runs::steps,
        runs::cancel,
        control::pause,
        control::resume,
        control::rerun,
        control::signal,
        control::signals,
        control::bulk_cancel,
        control::bulk_rerun,
        control::failures,
        events::get,
        channels::get,
        stream_tokens::of_run,
        stream_tokens::of_channel,
        settings::rotate,
        settings::cors,
        settings::put_cors,
        artifacts::list,
        artifacts::get,
        secrets::list,
        secrets::put,
        secrets::delete,
        providers::list,
        providers::put,
        providers::delete,
        triggers::list,
        triggers::get,
        triggers::put,
        triggers::delete,
        triggers::hook,
        triggers::send,
        webhooks::list,
        webhooks::get,
        webhooks::put,
        webhooks::delete,
        webhooks::deliveries,
        webhooks::retry,
        tenants::usage,
        tenants::list,
        tenants::create,
        tenants::get,
        tenants::change,
        admin::keys,
        admin::create_key,
        admin::revoke_key,
    ),
    components(schemas(wire::EventSchema, wire::ChannelEventSchema)),
    modifiers(&ApiKey, &Names),
)]
struct Api;

/// How requests are authenticated.
struct ApiKey;

impl Modify for ApiKey {
    fn modify(&self, document: &mut Document) {
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        document.components.get_or_insert_default().add_security_scheme("api_key", scheme);
        document.security = Some(vec![SecurityRequirement::new("api_key", [""; 0])]);
    }
}

/// What operations are called: by their method and path, because the handlers' own names are not unique.
struct Names;

impl Modify for Names {
    fn modify(&self, document: &mut Document) {
        for (path, item) in &mut document.paths.paths {
            let operations = [
                ("get", &mut item.get),
                ("put", &mut item.put),
                ("patch", &mut item.patch),
                ("post", &mut item.post),
                ("delete", &mut item.delete),
            ];
            for (method, operation) in operations {
                if let Some(operation) = operation {
                    operation.operation_id = Some(name(method, path));
                }
            }
        }
    }
}

/// `post_runs_id_cancel` for `POST /v1/runs/{id}/cancel`.
fn name(method: &str, path: &str) -> String {
    let words = path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty() && *word != "v1");
    words.fold(method.to_owned(), |name, word| format!("{name}_{word}"))
}

/// The description as a document.
#[must_use]
pub fn document() -> Document {
    Api::openapi()
}

/// `GET /openapi.json`.
pub(super) async fn get() -> Answer<Document> {
    Answer(document())
}
