//! Deploying workflows, and looking at them.

use std::collections::{BTreeMap, BTreeSet};

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json as Answer, http::HeaderValue};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use stepwell_compiler::DOCUMENT_BYTES_MAX;
use stepwell_core::graph::{NodeSpec, PROBLEMS_MAX};
use stepwell_core::{Digest, GraphSpec, WorkflowName};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::auth::{Segments, Tenant};
use super::problem::{self, Problem, ProblemBody};
use super::runs;
use super::wire::{Page, VersionBody, WorkflowBody};
use crate::clock;
use crate::journal::catalog::VersionRecord;
use crate::sandbox::CompiledGraph;
use crate::sandbox::limits::COMPONENT_BYTES_MAX;

/// Versions that one graph may delegate to.
const DELEGATES_MAX: usize = 100;

pub(super) fn unknown_workflow() -> Problem {
    Problem::not_found("unknown_workflow", "there is no such workflow")
}

/// The name in a path, where only a name that exists makes sense.
pub(super) fn name(text: &str) -> Result<WorkflowName, Problem> {
    text.parse().map_err(|_| unknown_workflow())
}

/// The name in a path of a workflow that the tenant has.
pub(super) fn known(app: &App, tenant: &Tenant, text: &str) -> Result<WorkflowName, Problem> {
    let name = name(text)?;
    app.journal.workflow(&tenant.0, &name)?.ok_or_else(unknown_workflow)?;
    Ok(name)
}

/// How to deploy.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeployQuery {
    /// `false` stores the version and lets new runs get the one that they got before, until this one is promoted. A workflow's
    /// first version is the one that new runs get in any case.
    promote: Option<bool>,
}

/// Stores a version of a workflow and makes it the one that new runs get. A graph is compiled first; the version is the
/// component that came of it, so the same graph is the same version.
#[utoipa::path(post, path = "/v1/workflows/{name}/versions", tag = "workflows",
    params(("name" = String, Path, description = "The workflow's name."), DeployQuery),
    request_body(description = "A component, at most 16 MiB, or with `content-type: application/json` a graph document, at most 4 MiB (see `/v1/schemas/graph.json`).",
        content((Vec<u8> = "application/wasm"), (serde_json::Value = "application/json"))),
    responses(
        (status = 201, description = "The version is stored.", body = VersionBody),
        (status = 403, description = "`journal_full`: the tenant has as much in the journal as it may (`bytes_max`)", body = ProblemBody),
        (status = 413, description = "`too_large`", body = ProblemBody),
        (status = 422, description = "`not_a_component`, `core_module`, `invalid_component`, `forbidden_imports`, `wrong_exports`, `incompatible_component`, `describe_failed`, `invalid_graph` (with all `problems`), `compile_limit`, `invalid_name`, `unknown_delegate`, `too_many_delegates`", body = ProblemBody),
        (status = 400, description = "`invalid_query`", body = ProblemBody),
        (status = 503, description = "`unavailable`: it cannot be compiled at present.", body = ProblemBody),
    ))]
pub(super) async fn deploy(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
    asked: Result<Query<DeployQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let DeployQuery { promote } = runs::query(asked)?;
    let name: WorkflowName = name.parse().map_err(|error| Problem::invalid("invalid_name", format!("{error}")))?;
    let is_of_document = is_json(&headers);
    let (component, inspection) = if is_of_document {
        let document = problem::body(&headers, body, DOCUMENT_BYTES_MAX).await?;
        let CompiledGraph { component, inspection } = app.sandbox.compile_graph(&tenant.0, document).await?;
        (component, inspection)
    } else {
        let component = problem::body(&headers, body, COMPONENT_BYTES_MAX).await?;
        let inspection = app.sandbox.inspect(&tenant.0, component.clone()).await?;
        (component, inspection)
    };
    let mut imports = imports_of_delegates(&app, &tenant, &inspection.graph)?;
    imports.extend(inspection.imports);
    let record = VersionRecord {
        version: inspection.version,
        created_at: clock::now(),
        size_bytes: inspection.size_bytes,
        imports: imports.into_iter().collect(),
        graph: inspection.graph,
        is_of_document,
    };
    let record = app.journal.put_version(&tenant.0, &name, record, component, promote.unwrap_or(true)).await?;
    tracing::info!(tenant = %tenant.0, workflow = %name, version = %record.version, "deployed");
    let location = format!("/v1/workflows/{name}/versions/{}", record.version);
    let mut response = (StatusCode::CREATED, Answer(VersionBody::of(name.as_str(), record))).into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// What promotes a version.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PromoteBody {
    /// The version: one of the workflow's.
    version: String,
}

/// Makes a version the one that new runs get: cuts over to one that was only stored, or goes back to an older one. Runs under
/// way keep theirs.
#[utoipa::path(post, path = "/v1/workflows/{name}/promote", tag = "workflows",
    params(("name" = String, Path, description = "The workflow's name.")),
    request_body = PromoteBody,
    responses(
        (status = 200, description = "New runs get it.", body = WorkflowBody),
        (status = 404, description = "`unknown_workflow`, `unknown_version`", body = ProblemBody),
        (status = 422, description = "`invalid_body`, `invalid_json`", body = ProblemBody),
    ))]
pub(super) async fn promote(
    State(app): State<App>,
    tenant: Tenant,
    Segments(text): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer<WorkflowBody>, Problem> {
    let name = name(&text)?;
    app.journal.workflow(&tenant.0, &name)?.ok_or_else(unknown_workflow)?;
    let body = problem::body(&headers, body, runs::SMALL_BYTES_MAX).await?;
    let PromoteBody { version } = problem::parse(&body)?;
    let unknown = || Problem::not_found("unknown_version", "the workflow has no such version");
    let version: Digest = version.parse().map_err(|_| unknown())?;
    let record = app.journal.promote(&tenant.0, &name, version, clock::now()).await?.ok_or_else(unknown)?;
    tracing::info!(tenant = %tenant.0, workflow = %name, %version, "promoted");
    Ok(Answer(record.into()))
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json")
}

/// What the versions import whose nodes a graph delegates to. All of them are the tenant's and have these nodes.
fn imports_of_delegates(app: &App, tenant: &Tenant, graph: &GraphSpec) -> Result<BTreeSet<String>, Problem> {
    let mut imports = BTreeSet::new();
    // Each version is read once, and what is kept of it is little: a graph may name one of them ten thousand times.
    let mut nodes_of: BTreeMap<(&str, &str), BTreeMap<String, bool>> = BTreeMap::new();
    let mut problems = Vec::new();
    for node in &graph.nodes {
        let Some(delegate) = &node.delegates_to else { continue };
        let key = (delegate.workflow.as_str(), delegate.version.as_str());
        if !nodes_of.contains_key(&key) {
            if nodes_of.len() == DELEGATES_MAX {
                let message = format!("a graph delegates to at most {DELEGATES_MAX} versions");
                return Err(Problem::invalid("too_many_delegates", message));
            }
            let record = match (delegate.workflow.parse(), delegate.version.parse()) {
                (Ok(workflow), Ok(version)) => app.journal.version(&tenant.0, &workflow, &version)?,
                _ => None,
            };
            let mut nodes = BTreeMap::new();
            if let Some(record) = record {
                imports.extend(record.imports);
                let stands_alone =
                    |node: &NodeSpec| node.opens.is_none() && node.closes.is_none() && node.delegates_to.is_none();
                nodes.extend(record.graph.nodes.into_iter().map(|node| (node.id.clone(), stands_alone(&node))));
            }
            nodes_of.insert(key, nodes);
        }
        let nodes = nodes_of.get(&key);
        let message = match nodes.and_then(|nodes| nodes.get(&delegate.node)) {
            Some(true) => continue,
            Some(false) => {
                format!("the node `{}` opens, closes or delegates, and cannot stand for itself", delegate.node)
            }
            None if nodes.is_some_and(|nodes| !nodes.is_empty()) => {
                format!("the workflow `{}` has no node `{}`", delegate.workflow, delegate.node)
            }
            None => format!("there is no version {} of a workflow `{}`", delegate.version, delegate.workflow),
        };
        if problems.len() < PROBLEMS_MAX {
            problems
                .push(json!({ "node": node.id, "field": "workflow", "code": "unknown_delegate", "message": message }));
        }
    }
    if problems.is_empty() {
        return Ok(imports);
    }
    Err(Problem::invalid("unknown_delegate", "the graph delegates to what is not there").with("problems", problems))
}

/// What there is to say about a graph document.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ValidationBody {
    /// Whether nothing is wrong with it. Deploying it also looks for the workflows that it refers to.
    valid: bool,
    /// All that is wrong with it.
    problems: Vec<GraphProblemBody>,
}

/// One thing that is wrong with a graph.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = GraphProblem)]
pub(super) struct GraphProblemBody {
    /// The node it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// The field it is about: a path within the node, or within the document where there is no node.
    field: String,
    /// A stable identifier.
    code: String,
    /// A sentence for people.
    message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// Finds everything that is wrong with a graph document. Nothing is stored.
#[utoipa::path(post, path = "/v1/graphs/validate", tag = "workflows",
    request_body(content = serde_json::Value, description = "A graph document, at most 4 MiB."),
    responses(
        (status = 200, description = "Whether it can be deployed, and why not.", body = ValidationBody),
        (status = 413, description = "`too_large`", body = ProblemBody),
        (status = 422, description = "`compile_limit`", body = ProblemBody),
        (status = 503, description = "`unavailable`: it cannot be checked at present.", body = ProblemBody),
    ))]
pub(super) async fn validate(
    State(app): State<App>,
    tenant: Tenant,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer<ValidationBody>, Problem> {
    let document = problem::body(&headers, body, DOCUMENT_BYTES_MAX).await?;
    let problems = app.sandbox.check_graph(&tenant.0, document).await?;
    let problems: Vec<GraphProblemBody> = problems
        .into_iter()
        .map(|problem| GraphProblemBody {
            node: problem.node,
            field: problem.field,
            code: problem.code,
            message: problem.message,
            hint: problem.hint,
        })
        .collect();
    Ok(Answer(ValidationBody { valid: problems.is_empty(), problems }))
}

/// The JSON Schema of graph documents, for editors. It says less than `/v1/graphs/validate`.
#[utoipa::path(get, path = "/v1/schemas/graph.json", tag = "workflows", security(()),
    responses((status = 200, description = "A JSON Schema.", content_type = "application/schema+json")))]
pub(super) async fn graph_schema() -> Response {
    let mut response = Answer(stepwell_compiler::document_schema()).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/schema+json"));
    response
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

/// The graph document that a version was made of, in one spelling for all that mean the same.
#[utoipa::path(get, path = "/v1/workflows/{name}/versions/{version}/document", tag = "workflows",
    params(
        ("name" = String, Path, description = "The workflow's name."),
        ("version" = String, Path, description = "SHA-256 of the component, in lower-case hex."),
    ),
    responses(
        (status = 200, description = "The document.", body = serde_json::Value),
        (status = 404, description = "`unknown_version`, `no_document`: it was uploaded as a component.", body = ProblemBody),
    ))]
pub(super) async fn document(
    State(app): State<App>,
    tenant: Tenant,
    Segments((text, version)): Segments<(String, String)>,
) -> Result<Response, Problem> {
    let unknown = || Problem::not_found("unknown_version", "the workflow has no such version");
    let version: Digest = version.parse().map_err(|_| unknown())?;
    let record = app.journal.version(&tenant.0, &name(&text)?, &version)?.ok_or_else(unknown)?;
    let component = app.journal.component(&tenant.0, &version)?.ok_or_else(unknown)?;
    // A component that was uploaded may carry anything under that name.
    let document = stepwell_compiler::specialize::document_of(&component).filter(|_| record.is_of_document);
    let document = document.map(Bytes::copy_from_slice);
    let document =
        document.ok_or_else(|| Problem::not_found("no_document", "the version was uploaded as a component"))?;
    Ok(([(header::CONTENT_TYPE, "application/json")], document).into_response())
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
