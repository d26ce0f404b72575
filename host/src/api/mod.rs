//! The HTTP API: who you are, whether it is allowed, and how things look from outside.
//!
//! Owns: routes, authentication, the JSON forms ([`wire`]), errors as responses ([`problem`]).
//! Does not: decide what follows from a request; that is the driver's and the core's.
//! Keeps: a handler that names a tenant's thing has a [`Tenant`](auth::Tenant), which only a valid key gives; what
//! another tenant owns is answered like what does not exist.

mod admin;
mod artifacts;
mod auth;
mod channels;
mod control;
mod events;
mod flow;
mod live;
mod openapi;
mod problem;
mod providers;
mod room;
mod runs;
mod secrets;
mod settings;
mod shadows;
mod sse;
mod stream_tokens;
mod tenants;
mod triggers;
mod viewer;
mod webhooks;
mod wire;
mod workflows;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use tokio_util::sync::CancellationToken;

use crate::access::Access;
use crate::cors::Origins;
use crate::driver::Driver;
use crate::journal::RedbJournal;
use crate::permits::Permits;
use crate::sandbox::Sandbox;
use crate::stream_tokens::StreamTokens;
use crate::triggers::Triggers;
use crate::vault::Vault;

pub use self::openapi::document;
pub(crate) use self::room::{PAGES_MAX, PAGES_PER_TENANT, STREAMS_MAX};
pub(crate) use self::tenants::RETENTION_DAYS_DEFAULT;

/// What handlers share.
#[derive(Debug, Clone)]
pub struct App {
    /// The journal, to read from.
    pub journal: Arc<RedbJournal>,
    /// The driver, for everything that changes a run.
    pub driver: Driver,
    /// The sandbox, to look at uploads.
    pub sandbox: Arc<Sandbox>,
    /// The keys.
    pub access: Arc<Access>,
    /// What seals secrets.
    pub vault: Arc<Vault>,
    /// What starts runs besides requests.
    pub triggers: Triggers,
    /// The pages that may read streams.
    pub origins: Arc<Origins>,
    /// What opens a stream for a browser.
    pub stream_tokens: Arc<StreamTokens>,
    /// Room for streams, and for pages that wait.
    pub(crate) streams: Arc<Permits>,
    /// Room for pages that are read and sent.
    pub(crate) pages: Arc<Permits>,
    /// Ends streams and waits when the host stops.
    pub stopping: CancellationToken,
}

/// All routes.
pub fn router(app: App) -> Router {
    let for_developers = if app.access.is_dev() { live::routes() } else { Router::new() };
    Router::new()
        .merge(for_developers)
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/openapi.json", get(openapi::get))
        .route("/v1/workflows", get(workflows::list))
        .route("/v1/workflows/{name}", get(workflows::get))
        .route("/v1/workflows/{name}/versions", get(workflows::versions).post(workflows::deploy))
        .route("/v1/workflows/{name}/promote", post(workflows::promote))
        .route("/v1/workflows/{name}/versions/{version}", get(workflows::version))
        .route("/v1/workflows/{name}/versions/{version}/document", get(workflows::document))
        .route("/v1/graphs/validate", post(workflows::validate))
        .route("/v1/schemas/graph.json", get(workflows::graph_schema))
        .route("/v1/workflows/{name}/runs", post(runs::start))
        .route("/v1/workflows/{name}/shadow", get(shadows::get).put(shadows::put).delete(shadows::delete))
        .route("/v1/workflows/{name}/shadow/report", get(shadows::report))
        .route("/v1/workflows/{name}/flow-control", get(flow::get).put(flow::put).delete(flow::delete))
        .route("/v1/workflows/{name}/flow-control/keys", get(flow::keys))
        .route("/v1/runs", get(runs::list))
        .route("/v1/runs/{id}", get(runs::get))
        .route("/v1/runs/{id}/steps", get(runs::steps))
        .route("/v1/runs/{id}/cancel", post(runs::cancel))
        .route("/v1/runs/{id}/pause", post(control::pause))
        .route("/v1/runs/{id}/resume", post(control::resume))
        .route("/v1/runs/{id}/rerun", post(control::rerun))
        .route("/v1/runs/{id}/signals", get(control::signals))
        .route("/v1/runs/{id}/signals/{name}", post(control::signal))
        .route("/v1/bulk/cancel", post(control::bulk_cancel))
        .route("/v1/bulk/rerun", post(control::bulk_rerun))
        .route("/v1/failures", get(control::failures))
        .route("/v1/runs/{id}/events", get(events::get).options(viewer::preflight))
        .route("/v1/runs/{id}/stream-tokens", post(stream_tokens::of_run))
        .route("/v1/channels/{name}/events", get(channels::get).options(viewer::preflight))
        .route("/v1/channels/{name}/stream-tokens", post(stream_tokens::of_channel))
        .route("/v1/stream-keys/rotate", post(settings::rotate))
        .route("/v1/settings/cors", get(settings::cors).put(settings::put_cors))
        .route("/v1/artifacts", get(artifacts::list))
        .route("/v1/artifacts/{id}", get(artifacts::get))
        .route("/v1/secrets", get(secrets::list))
        .route("/v1/secrets/{name}", put(secrets::put).delete(secrets::delete))
        .route("/v1/providers", get(providers::list))
        .route("/v1/providers/{name}", put(providers::put).delete(providers::delete))
        .route("/v1/triggers", get(triggers::list))
        .route("/v1/triggers/{name}", get(triggers::get).put(triggers::put).delete(triggers::delete))
        .route("/v1/hooks/{tenant}/{trigger}", post(triggers::hook))
        .route("/v1/events", post(triggers::send))
        .route("/v1/webhooks", get(webhooks::list))
        .route("/v1/webhooks/{name}", get(webhooks::get).put(webhooks::put).delete(webhooks::delete))
        .route("/v1/webhooks/{name}/deliveries", get(webhooks::deliveries))
        .route("/v1/webhooks/{name}/deliveries/{id}/retry", post(webhooks::retry))
        .route("/v1/usage", get(tenants::usage))
        .route("/v1/admin/tenants", get(tenants::list).post(tenants::create))
        .route("/v1/admin/tenants/{id}", get(tenants::get).patch(tenants::change))
        .route("/v1/admin/keys", get(admin::keys).post(admin::create_key))
        .route("/v1/admin/keys/{id}/revoke", post(admin::revoke_key))
        .fallback(|| async { problem::unknown_route() })
        .method_not_allowed_fallback(|| async { problem::method_not_allowed() })
        // Handlers take bodies through `problem::body`, which has a limit for each and says so in our words.
        .layer(DefaultBodyLimit::disable())
        .with_state(app)
}

/// The process is alive.
#[utoipa::path(get, path = "/healthz", tag = "health", responses((status = 200, description = "The process is alive.")))]
async fn healthz() -> &'static str {
    "ok\n"
}

/// Runs can be started.
#[utoipa::path(get, path = "/readyz", tag = "health", responses(
    (status = 200, description = "Runs can be started."),
    (status = 503, description = "The journal has failed, or the host is stopping."),
))]
async fn readyz(State(app): State<App>) -> Response {
    if app.journal.is_writable() && !app.stopping.is_cancelled() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response()
    }
}
