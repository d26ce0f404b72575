//! Starting, listing, reading and cancelling runs.

use std::time::Duration;

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use stepwell_core::{Digest, Json, NodeId, RunId, RunKey, RunStatus, WorkflowName, view};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::auth::{Segments, Tenant};
use super::problem::{self, Problem, ProblemBody};
use super::wire::{Page, PageInfo, RunBody, StepBody};
use super::workflows;
use crate::journal::{IdempotencyKey, Journal, RunFilter, Shadows};
use crate::sandbox::limits::OUTPUT_BYTES_MAX;

/// Bytes of the body that starts a run: the input and what goes around it.
const START_BYTES_MAX: usize = OUTPUT_BYTES_MAX + 1024;
/// Bytes of a body that has only a few small fields.
pub(super) const SMALL_BYTES_MAX: usize = 64 << 10;
/// Characters of an idempotency key.
const IDEMPOTENCY_KEY_LEN_MAX: usize = 255;
/// Bytes of what a run is known by.
const CORRELATION_BYTES_MAX: usize = 256;
/// Characters of the reason for a cancellation.
pub(super) const REASON_BYTES_MAX: usize = 1024;
/// The longest that a start waits for the end of its run.
const WAIT_SECONDS_MAX: u64 = 300;
/// Runs on a page when the client does not say.
const LIMIT_DEFAULT: usize = 50;
/// Runs on a page at most.
pub(super) const LIMIT_MAX: usize = 500;
/// Steps on a page when the client does not say.
const STEPS_DEFAULT: usize = 200;

/// What starts a run.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct StartBody<'a> {
    /// The run's input, any JSON of at most 4 MiB and 100 levels; `null` when it is left out.
    #[serde(borrow)]
    #[schema(value_type = Object)]
    input: Option<&'a RawValue>,
    /// The version to run; the latest when it is left out.
    #[schema(value_type = Option<String>)]
    version: Option<Digest>,
}

/// Starts a run. When this answers, the run is on disk.
#[utoipa::path(post, path = "/v1/workflows/{name}/runs", tag = "runs",
    params(
        ("name" = String, Path, description = "The workflow's name."),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key starts the same run, for 24 hours."),
        ("Stepwell-Correlation" = Option<String>, Header, description = "What the caller knows the run by, such as the id of its own task: 1 to 256 printable ASCII characters. Shown with the run, and a filter in lists and channels."),
        ("Prefer" = Option<String>, Header, description = "`wait=30` waits up to 30 seconds (at most 300) for the run's end."),
    ),
    request_body = StartBody,
    responses(
        (status = 202, description = "The run is accepted.", body = RunBody),
        (status = 200, description = "With `Prefer: wait`: the run has ended.", body = RunBody),
        (status = 403, description = "`journal_full`: the tenant has as much in the journal as it may (`bytes_max`)", body = ProblemBody),
        (status = 404, description = "`unknown_workflow`, `unknown_version`", body = ProblemBody),
        (status = 413, description = "`too_large`", body = ProblemBody),
        (status = 422, description = "`invalid_json`, `invalid_body`, `invalid_input` (with `problems` where the workflow has a schema), `input_not_checked`, `idempotency_mismatch`, `invalid_correlation`, `flow_control_failed` (an expression of the workflow's flow control has no usable value for the input)", body = ProblemBody),
        (status = 429, description = "`rate_limited`: by the workflow's flow control; `Retry-After` says for how long. `too_many_runs`: the tenant has as many that have not ended as it may (`runs_max`)", body = ProblemBody),
        (status = 503, description = "`unavailable`", body = ProblemBody),
    ))]
pub(super) async fn start(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let name = workflows::name(&name)?;
    let body = problem::body(&headers, body, START_BYTES_MAX).await?;
    let StartBody { input, version } = problem::parse(&body)?;
    let input = Json::parse(input.map_or("null", RawValue::get).to_owned());
    let input =
        input.map_err(|error| Problem::invalid("invalid_input", format!("the input is not usable: {error}")))?;
    if input.len_bytes() > OUTPUT_BYTES_MAX {
        return Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            format!("an input has at most {OUTPUT_BYTES_MAX} bytes"),
        ));
    }
    let correlation = correlation(&headers)?;
    let idempotency = idempotency_key(&headers, version, &input, correlation.as_deref())?;
    let wait = wait_preference(&headers);

    let started = app.driver.start_correlated(&tenant.0, &name, version, input, idempotency, correlation).await?;
    let key = RunKey { tenant: tenant.0, run: started.run };
    let ended = match wait {
        Some(wait) => wait_for_end(&app, &key, wait).await?,
        None => false,
    };
    let run = RunBody::whole(&*app.journal, &key)?;
    let status = if ended { StatusCode::OK } else { StatusCode::ACCEPTED };
    let mut response = (status, Answer(run)).into_response();
    let mut put = |name: HeaderName, value: String| {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    };
    put(header::LOCATION, format!("/v1/runs/{}", key.run));
    if started.replayed {
        put(HeaderName::from_static("idempotent-replayed"), "true".to_owned());
    }
    if let Some(wait) = wait {
        put(HeaderName::from_static("preference-applied"), format!("wait={}", wait.as_secs()));
    }
    Ok(response)
}

async fn wait_for_end(app: &App, key: &RunKey, wait: Duration) -> Result<bool, Problem> {
    let mut tail = app.journal.tail(key)?;
    Ok(tokio::select! {
        _ = tail.ended() => true,
        () = tokio::time::sleep(wait) => false,
        () = app.stopping.cancelled() => false,
    })
}

fn correlation(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("stepwell-correlation") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default(); // which is none either
    checked_correlation(text)?;
    Ok(Some(text.to_owned()))
}

/// Refuses what no run can be known by.
pub(super) fn checked_correlation(text: &str) -> Result<(), Problem> {
    if (1..=CORRELATION_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        return Ok(());
    }
    let rule = format!("a correlation has 1 to {CORRELATION_BYTES_MAX} printable ASCII characters");
    Err(Problem::invalid("invalid_correlation", rule))
}

fn idempotency_key(
    headers: &HeaderMap,
    version: Option<Digest>,
    input: &Json,
    correlation: Option<&str>,
) -> Result<Option<IdempotencyKey>, Problem> {
    let Some(key) = idempotency_text(headers)? else { return Ok(None) };
    let mut hash = Sha256::new();
    hash.update(version.map(|version| *version.as_bytes()).unwrap_or_default());
    hash.update(input.as_str());
    // A JSON text has no zero byte, so this is no other input.
    correlation.iter().for_each(|text| hash.update([b"\0", text.as_bytes()].concat()));
    Ok(Some(IdempotencyKey { key, fingerprint: Digest::from_bytes(hash.finalize().into()), time: None }))
}

/// The client's idempotency key.
pub(super) fn idempotency_text(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let rule = format!("an idempotency key has 1 to {IDEMPOTENCY_KEY_LEN_MAX} printable ASCII characters");
    let key =
        value.to_str().map(str::trim).map_err(|_| Problem::bad_request("invalid_idempotency_key", rule.clone()))?;
    if key.is_empty() || key.len() > IDEMPOTENCY_KEY_LEN_MAX {
        return Err(Problem::bad_request("invalid_idempotency_key", rule));
    }
    Ok(Some(key.to_owned()))
}

/// `Prefer: wait=30` (RFC 7240). A preference that cannot be read is not one.
fn wait_preference(headers: &HeaderMap) -> Option<Duration> {
    let preferences = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut preferences = preferences.flat_map(|value| value.split(','));
    let seconds = preferences.find_map(|preference| {
        let (name, value) = preference.split_once('=')?;
        let value = value.trim().trim_matches('"');
        if name.trim().eq_ignore_ascii_case("wait") { value.parse::<u64>().ok() } else { None }
    })?;
    Some(Duration::from_secs(seconds.min(WAIT_SECONDS_MAX)))
}

/// Which runs to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Only runs of this workflow.
    #[param(value_type = Option<String>)]
    workflow: Option<WorkflowName>,
    /// Only runs with this status.
    #[param(value_type = Option<String>)]
    status: Option<RunStatus>,
    /// Only runs of this version.
    #[param(value_type = Option<String>)]
    version: Option<Digest>,
    /// Only children of this run.
    #[param(value_type = Option<String>)]
    parent: Option<RunId>,
    /// Only runs that repeat this one.
    #[param(value_type = Option<String>)]
    rerun_of: Option<RunId>,
    /// Only shadows of this run.
    #[param(value_type = Option<String>)]
    shadow_of: Option<RunId>,
    /// Whether shadows are among the runs; they are not when it is left out.
    shadows: Option<bool>,
    /// Only runs that failed with this code.
    failure_code: Option<String>,
    /// Only runs that failed at this node.
    #[param(value_type = Option<String>)]
    failed_node: Option<NodeId>,
    /// Only runs that were started with this `Stepwell-Correlation`.
    correlation: Option<String>,
    /// Where the last page ended.
    cursor: Option<String>,
    /// Runs on the page, 1 to 500; 50 when it is left out.
    limit: Option<usize>,
}

/// A query string in the form that a handler wants.
pub(super) fn query<T>(query: Result<Query<T>, axum::extract::rejection::QueryRejection>) -> Result<T, Problem> {
    query.map(|Query(query)| query).map_err(|error| Problem::bad_request("invalid_query", error.body_text()))
}

/// A number of entries within its limits.
pub(super) fn limit(asked: Option<usize>, default: usize, most: usize) -> Result<usize, Problem> {
    match asked.unwrap_or(default) {
        0 => Err(Problem::bad_request("invalid_query", "limit is at least 1")),
        limit => Ok(limit.min(most)),
    }
}

/// Whether shadows are among the runs of a list, when the client says something or nothing about it.
pub(super) fn shown(shadows: Option<bool>) -> Shadows {
    if shadows == Some(true) { Shadows::Shown } else { Shadows::Hidden }
}

/// The tenant's runs, newest first; shadows only when they are asked for.
#[utoipa::path(get, path = "/v1/runs", tag = "runs", params(ListQuery),
    responses((status = 200, body = Page<RunBody>), (status = 400, description = "`invalid_query`", body = ProblemBody)))]
pub(super) async fn list(
    State(app): State<App>,
    tenant: Tenant,
    asked: Result<Query<ListQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Answer<Page<RunBody>>, Problem> {
    let ListQuery {
        workflow,
        status,
        version,
        parent,
        rerun_of,
        shadow_of,
        shadows,
        failure_code,
        failed_node,
        correlation,
        cursor,
        limit: asked,
    } = query(asked)?;
    let limit = limit(asked, LIMIT_DEFAULT, LIMIT_MAX)?;
    let before = cursor.map(|cursor| cursor.parse()).transpose();
    let before = before.map_err(|_| Problem::bad_request("invalid_query", "the cursor is not one of ours"))?;
    let shadows = shadow_of.map_or_else(|| shown(shadows), Shadows::Of);
    let filter = RunFilter {
        workflow,
        status,
        before,
        version,
        parent,
        rerun_of,
        failure_code,
        failed_node,
        correlation,
        shadows,
    };
    let page = app.journal.runs(&tenant.0, &filter, limit)?;
    let data = page.runs.iter().map(|(run, summary)| RunBody::of_summary(*run, summary)).collect();
    let cursor = page.next.map(|run| run.to_string());
    Ok(Answer(Page { data, page: PageInfo { has_more: cursor.is_some(), cursor, limit } }))
}

/// A run, with its input and its output or failure.
#[utoipa::path(get, path = "/v1/runs/{id}", tag = "runs",
    params(("id" = String, Path, description = "The run's id.")),
    responses((status = 200, body = RunBody), (status = 404, description = "`unknown_run`", body = ProblemBody)))]
pub(super) async fn get(
    State(app): State<App>,
    tenant: Tenant,
    Segments(id): Segments<String>,
) -> Result<Answer<RunBody>, Problem> {
    Ok(Answer(RunBody::whole(&*app.journal, &tenant.run(&id)?)?))
}

/// Which steps.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StepsQuery {
    /// Where the last page ended.
    cursor: Option<usize>,
    /// Steps on the page, 1 to 500; 200 when it is left out.
    limit: Option<usize>,
}

/// The steps of a run with their attempts: those that run once in the order of the graph's nodes, then those of items and
/// iterations in the order in which they began.
#[utoipa::path(get, path = "/v1/runs/{id}/steps", tag = "runs",
    params(("id" = String, Path, description = "The run's id."), StepsQuery),
    responses((status = 200, body = Page<StepBody>), (status = 404, description = "`unknown_run`", body = ProblemBody)))]
pub(super) async fn steps(
    State(app): State<App>,
    tenant: Tenant,
    Segments(id): Segments<String>,
    asked: Result<Query<StepsQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Answer<Page<StepBody>>, Problem> {
    let key = tenant.run(&id)?;
    let asked = query(asked)?;
    let limit = limit(asked.limit, STEPS_DEFAULT, LIMIT_MAX)?;
    let summary = app.journal.summary(&key)?.ok_or_else(Problem::unknown_run)?;
    let graph = app.driver.graph(&key.tenant, &summary.workflow, summary.version)?;
    let start = asked.cursor.unwrap_or(0);
    let end = start.saturating_add(limit);
    let steps = view::Steps::new(graph, start..end);
    let steps = super::events::fold(&app, &key, steps, view::Steps::see).await?;
    let cursor = (end < steps.count()).then(|| end.to_string());
    let data = steps.finish().into_iter().map(StepBody::of).collect();
    Ok(Answer(Page { data, page: PageInfo { has_more: cursor.is_some(), cursor, limit } }))
}

/// What cancels a run.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CancelBody {
    /// For whoever asks later; at most 1 KiB.
    reason: Option<String>,
}

/// Cancels a run. When this answers, the cancellation is on disk and its attempts are being stopped.
#[utoipa::path(post, path = "/v1/runs/{id}/cancel", tag = "runs",
    params(("id" = String, Path, description = "The run's id.")),
    request_body = CancelBody,
    responses(
        (status = 200, description = "The run is cancelled.", body = RunBody),
        (status = 404, description = "`unknown_run`", body = ProblemBody),
        (status = 409, description = "`run_ended`", body = ProblemBody),
    ))]
pub(super) async fn cancel(
    State(app): State<App>,
    tenant: Tenant,
    Segments(id): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer<RunBody>, Problem> {
    let key = tenant.run(&id)?;
    let body = problem::body(&headers, body, SMALL_BYTES_MAX).await?;
    let CancelBody { reason } = problem::parse(&body)?;
    if reason.as_ref().is_some_and(|reason| reason.len() > REASON_BYTES_MAX) {
        return Err(Problem::invalid("invalid_body", format!("a reason has at most {REASON_BYTES_MAX} bytes")));
    }
    app.driver.cancel(&key, reason).await?;
    Ok(Answer(RunBody::whole(&*app.journal, &key)?))
}
