//! Deploying workflows, and looking at them.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json as Answer, http::HeaderValue};
use stepwell_core::{Digest, WorkflowName};

use super::App;
use super::auth::{Segments, Tenant};
use super::problem::{self, Problem, ProblemBody};
use super::wire::{Page, VersionBody, WorkflowBody};
use crate::clock;
use crate::journal::catalog::VersionRecord;
use crate::sandbox::limits::COMPONENT_BYTES_MAX;

fn unknown_workflow() -> Problem {
    Problem::not_found("unknown_workflow", "there is no such workflow")
}

/// The name in a path, where only a name that exists makes sense.
pub(super) fn name(text: &str) -> Result<WorkflowName, Problem> {
    text.parse().map_err(|_| unknown_workflow())
}

/// Stores a version of a workflow and makes it the one that new runs get.
#[utoipa::path(post, path = "/v1/workflows/{name}/versions", tag = "workflows",
    params(("name" = String, Path, description = "The workflow's name.")),
    request_body(content = Vec<u8>, content_type = "application/wasm", description = "A component, at most 16 MiB."),
    responses(
        (status = 201, description = "The version is stored.", body = VersionBody),
        (status = 413, description = "`too_large`", body = ProblemBody),
        (status = 422, description = "`not_a_component`, `core_module`, `invalid_component`, `forbidden_imports`, `wrong_exports`, `incompatible_component`, `describe_failed`, `invalid_graph`, `compile_limit`, `invalid_name`", body = ProblemBody),
    ))]
pub(super) async fn deploy(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let name: WorkflowName = name.parse().map_err(|error| Problem::invalid("invalid_name", format!("{error}")))?;
    let component = problem::body(&headers, body, COMPONENT_BYTES_MAX).await?;
    let inspection = app.sandbox.inspect(component.clone()).await?;
    let record = VersionRecord {
        version: inspection.version,
        created_at: clock::now(),
        size_bytes: inspection.size_bytes,
        imports: inspection.imports,
        graph: inspection.graph,
    };
    let record = app.journal.put_version(&tenant.0, &name, record, component).await?;
    tracing::info!(tenant = %tenant.0, workflow = %name, version = %record.version, "deployed");
    let location = format!("/v1/workflows/{name}/versions/{}", record.version);
    let mut response = (StatusCode::CREATED, Answer(VersionBody::of(name.as_str(), record))).into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// The tenant's workflows, by name.
#[utoipa::path(get, path = "/v1/workflows", tag = "workflows", responses((status = 200, body = Page<WorkflowBody>)))]
pub(super) async fn list(State(app): State<App>, tenant: Tenant) -> Result<Answer<Page<WorkflowBody>>, Problem> {
    let workflows = app.journal.workflows(&tenant.0)?;
    Ok(Answer(Page::whole(workflows.into_iter().map(WorkflowBody::from).collect())))
}

/// A workflow.
#[utoipa::path(get, path = "/v1/workflows/{name}", tag = "workflows",
    params(("name" = String, Path, description = "The workflow's name.")),
    responses((status = 200, body = WorkflowBody), (status = 404, description = "`unknown_workflow`", body = ProblemBody)))]
pub(super) async fn get(
    State(app): State<App>,
    tenant: Tenant,
    Segments(text): Segments<String>,
) -> Result<Answer<WorkflowBody>, Problem> {
    let record = app.journal.workflow(&tenant.0, &name(&text)?)?.ok_or_else(unknown_workflow)?;
    Ok(Answer(record.into()))
}

/// The versions of a workflow.
#[utoipa::path(get, path = "/v1/workflows/{name}/versions", tag = "workflows",
    params(("name" = String, Path, description = "The workflow's name.")),
    responses((status = 200, body = Page<VersionBody>), (status = 404, description = "`unknown_workflow`", body = ProblemBody)))]
pub(super) async fn versions(
    State(app): State<App>,
    tenant: Tenant,
    Segments(text): Segments<String>,
) -> Result<Answer<Page<VersionBody>>, Problem> {
    let name = name(&text)?;
    app.journal.workflow(&tenant.0, &name)?.ok_or_else(unknown_workflow)?;
    let mut versions = app.journal.versions(&tenant.0, &name)?;
    versions.sort_by_key(|record| std::cmp::Reverse(record.created_at));
    Ok(Answer(Page::whole(versions.into_iter().map(|record| VersionBody::of(&text, record)).collect())))
}

/// A version of a workflow.
#[utoipa::path(get, path = "/v1/workflows/{name}/versions/{version}", tag = "workflows",
    params(
        ("name" = String, Path, description = "The workflow's name."),
        ("version" = String, Path, description = "SHA-256 of the component, in lower-case hex."),
    ),
    responses((status = 200, body = VersionBody), (status = 404, description = "`unknown_version`", body = ProblemBody)))]
pub(super) async fn version(
    State(app): State<App>,
    tenant: Tenant,
    Segments((text, version)): Segments<(String, String)>,
) -> Result<Answer<VersionBody>, Problem> {
    let unknown = || Problem::not_found("unknown_version", "the workflow has no such version");
    let version: Digest = version.parse().map_err(|_| unknown())?;
    let record = app.journal.version(&tenant.0, &name(&text)?, &version)?.ok_or_else(unknown)?;
    Ok(Answer(VersionBody::of(&text, record)))
}
