//! A page that shows runs live, for `serve --dev`: `examples/live`, as it is in this repository.
//!
//! It uses the dev key, so it is of no use elsewhere and is not served there.

use axum::Router;
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Redirect};
use axum::routing::get;

use super::App;

const PAGE: &str = include_str!("../../../examples/live/index.html");
/// The page is all there is: nothing of it comes from, or goes to, another place.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page's routes.
pub(super) fn routes() -> Router<App> {
    Router::new().route("/live", get(|| async { Redirect::permanent("/live/") })).route("/live/", get(page))
}

async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("content-security-policy"), POLICY),
        (HeaderName::from_static("referrer-policy"), "no-referrer"),
    ];
    (headers, PAGE)
}
