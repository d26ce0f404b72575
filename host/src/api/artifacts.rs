//! Files that steps have stored.

use axum::Json as Answer;
use axum::extract::{Query, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use stepwell_core::{Event, RunId, Seq, view};
use utoipa::IntoParams;

use super::App;
use super::auth::{Segments, Tenant};
use super::problem::{Problem, ProblemBody};
use super::runs::query;
use super::wire::{ArtifactBody, Page};
use crate::journal::Journal;

/// Whose artifacts to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// The run that stored them.
    run_id: String,
}

/// The files that a run has stored and not rolled back, oldest first.
#[utoipa::path(get, path = "/v1/artifacts", tag = "artifacts", params(ListQuery),
    responses((status = 200, body = Page<ArtifactBody>), (status = 404, description = "`unknown_run`", body = ProblemBody)))]
pub(super) async fn list(
    State(app): State<App>,
    tenant: Tenant,
    asked: Result<Query<ListQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Answer<Page<ArtifactBody>>, Problem> {
    let key = tenant.run(&query(asked)?.run_id)?;
    app.journal.summary(&key)?.ok_or_else(Problem::unknown_run)?;
    let artifacts = super::events::fold(&app, &key, view::Artifacts::default(), view::Artifacts::see).await?;
    let artifacts = artifacts.finish().into_iter().map(|artifact| ArtifactBody::of(&app.journal, &key, artifact));
    Ok(Answer(Page::whole(artifacts.collect::<Result<_, _>>()?)))
}

/// A file. It stays as it is: it may be cached for ever. A rolled back file can still be fetched by its id.
#[utoipa::path(get, path = "/v1/artifacts/{id}", tag = "artifacts",
    params(("id" = String, Path, description = "The artifact's id.")),
    responses(
        (status = 200, description = "The file, with the media type that its step gave it."),
        (status = 404, description = "`unknown_artifact`", body = ProblemBody),
        (status = 410, description = "`artifact_expired`: it has outlived its retention.", body = ProblemBody),
    ))]
pub(super) async fn get(
    State(app): State<App>,
    tenant: Tenant,
    Segments(id): Segments<String>,
) -> Result<Response, Problem> {
    let unknown = || Problem::not_found("unknown_artifact", "there is no such artifact");
    let (run, seq) = id.rsplit_once('-').ok_or_else(unknown)?;
    let run: RunId = run.parse().map_err(|_| unknown())?;
    let seq: Seq = seq.parse().map_err(|_| unknown())?;
    let key = stepwell_core::RunKey { tenant: tenant.0, run };
    let event = app.journal.read(&key, seq.saturating_sub(1), 1)?.into_iter().next();
    let event = event.filter(|recorded| recorded.seq == seq).map(|recorded| recorded.event);
    let Some(Event::StepArtifact { name, media_type, content, .. }) = event else { return Err(unknown()) };
    // Its own reference counts: that another run has stored the same bytes later is nobody's business.
    let bytes = match app.journal.refers_to(&key, &content.sha256)? {
        true => app.journal.content(&key.tenant, &content.sha256)?,
        false => None,
    };
    let expired =
        || Problem::expired("artifact_expired", "the file has outlived its retention; its run is still there");
    let bytes = bytes.ok_or_else(expired)?;

    let file_name = name.rsplit('/').next().unwrap_or_default();
    let mut response = bytes.into_response();
    let headers = response.headers_mut();
    let mut put = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    put(header::CONTENT_TYPE, &media_type);
    put(header::CONTENT_DISPOSITION, &format!("inline; filename*=UTF-8''{}", percent_encode(file_name)));
    put(header::ETAG, &format!("\"{}\"", content.sha256));
    put(header::CACHE_CONTROL, "private, max-age=31536000, immutable");
    // A tenant's guest wrote it. In a browser it gets an origin of its own, runs no scripts and is what it says it is.
    put(header::CONTENT_SECURITY_POLICY, "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:");
    put(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    Ok(response)
}

/// A file name as RFC 8187 wants it in a header.
fn percent_encode(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
