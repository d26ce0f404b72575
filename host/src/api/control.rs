//! What is said to runs that exist: signals, pause and resume, reruns, and the same for many at once.

use std::collections::{HashMap, HashSet};

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use stepwell_core::{Digest, Json, NodeId, RunId, RunKey, RunStatus, Seq, StepId, WorkflowName, view};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::auth::{Segments, Tenant};
use super::problem::{self, Problem, ProblemBody};
use super::runs::{LIMIT_MAX, REASON_BYTES_MAX, SMALL_BYTES_MAX, idempotency_text, limit, query, shown};
use super::wire::{Page, PageInfo, RunBody, SignalBody};
use crate::clock;
use crate::driver::{ControlError, Rerun};
use crate::journal::{IdempotencyKey, Journal, JournalError, RunFilter, RunSummary};
use crate::sandbox::limits::OUTPUT_BYTES_MAX;

/// Bytes of a signal's payload: a message, not a file. What is larger is better stored elsewhere and named.
const SIGNAL_BYTES_MAX: usize = 256 << 10;
/// Bytes of the body that repeats a run: an edited input and what goes around it.
const RERUN_BYTES_MAX: usize = OUTPUT_BYTES_MAX + 1024;
/// Signals on a page when the client does not say.
const SIGNALS_DEFAULT: usize = 100;
/// Runs that one request for many changes at most: it answers within seconds, and says where to go on.
const BULK_MAX: usize = 500;
/// Pages of summaries that one request for many looks at.
const BULK_PAGES_MAX: usize = 10;
/// Groups of failures that are told.
const FAILURE_GROUPS_MAX: usize = 200;
/// Pages of summaries that are looked at for them.
const FAILURE_PAGES_MAX: usize = 10;

/// A signal was taken.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SignalledBody {
    /// The number of its event in the run.
    #[schema(value_type = u64)]
    seq: Seq,
}

/// Sends a signal to a run. When this answers, the signal is on disk; it is kept until a step takes it. The body is the
/// payload.
#[utoipa::path(post, path = "/v1/runs/{id}/signals/{name}", tag = "runs",
    params(
        ("id" = String, Path, description = "The run's id."),
        ("name" = String, Path, description = "One of the workflow's signals."),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key brings a signal of this name once; with another payload it is refused."),
    ),
    request_body(content = Object, description = "Any JSON of at most 256 KiB; `null` when it is left out."),
    responses(
        (status = 202, description = "The signal is taken.", body = SignalledBody),
        (status = 403, description = "`journal_full`: the tenant has so much in the journal that its steps are not run", body = ProblemBody),
        (status = 404, description = "`unknown_run`", body = ProblemBody),
        (status = 409, description = "`run_ended`", body = ProblemBody),
        (status = 413, description = "`too_large`", body = ProblemBody),
        (status = 422, description = "`unknown_signal`, `invalid_json`, `invalid_signal` (with `problems`, where the signal has a schema), `signal_not_checked`, `idempotency_mismatch`", body = ProblemBody),
        (status = 429, description = "`too_many_signals`: steps have not taken the ones before", body = ProblemBody),
    ))]
pub(super) async fn signal(
    State(app): State<App>,
    tenant: Tenant,
    Segments((id, name)): Segments<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let key = tenant.run(&id)?;
    let body = problem::body(&headers, body, SIGNAL_BYTES_MAX).await?;
    let unusable = |why: String| Problem::invalid("invalid_json", format!("the payload is not usable: {why}"));
    let body = if body.trim_ascii().is_empty() { b"null" } else { &*body };
    let text = std::str::from_utf8(body).map_err(|error| unusable(error.to_string()))?;
    let payload = Json::parse(text.to_owned()).map_err(|error| unusable(error.to_string()))?;
    let idempotency = idempotency_text(&headers)?;
    let signalled = app.driver.signal(&key, name, payload, idempotency.as_deref()).await?;
    let mut response = (StatusCode::ACCEPTED, Answer(SignalledBody { seq: signalled.seq })).into_response();
    if signalled.replayed {
        let replayed = HeaderName::from_static("idempotent-replayed");
        response.headers_mut().insert(replayed, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// Which signals.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct SignalsQuery {
    /// Where the last page ended.
    #[param(value_type = Option<u64>)]
    cursor: Option<Seq>,
    /// Signals on the page, 1 to 500; 100 when it is left out.
    limit: Option<usize>,
}

/// The signals that a run was sent, oldest first, and who has taken them.
#[utoipa::path(get, path = "/v1/runs/{id}/signals", tag = "runs",
    params(("id" = String, Path, description = "The run's id."), SignalsQuery),
    responses((status = 200, body = Page<SignalBody>), (status = 404, description = "`unknown_run`", body = ProblemBody)))]
pub(super) async fn signals(
    State(app): State<App>,
    tenant: Tenant,
    Segments(id): Segments<String>,
    asked: Result<Query<SignalsQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Answer<Page<SignalBody>>, Problem> {
    let key = tenant.run(&id)?;
    let SignalsQuery { cursor, limit: asked } = query(asked)?;
    let limit = limit(asked, SIGNALS_DEFAULT, LIMIT_MAX)?;
    app.journal.summary(&key)?.ok_or_else(Problem::unknown_run)?;
    let signals = view::Signals::new(cursor.unwrap_or(0), limit);
    let found = super::events::fold(&app, &key, signals, view::Signals::see).await?.finish();
    let cursor = found.last().filter(|_| found.len() == limit).map(|last| last.seq.to_string());
    let data = found.into_iter().map(|view| SignalBody::of(&*app.journal, &key, view)).collect::<Result<_, _>>()?;
    Ok(Answer(Page { data, page: PageInfo { has_more: cursor.is_some(), cursor, limit } }))
}

/// What pauses a run.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PauseBody {
    /// For whoever asks later; at most 1 KiB.
    reason: Option<String>,
}

fn reason(reason: Option<String>) -> Result<Option<String>, Problem> {
    match reason {
        Some(reason) if reason.len() > REASON_BYTES_MAX => {
            Err(Problem::invalid("invalid_body", format!("a reason has at most {REASON_BYTES_MAX} bytes")))
        }
        reason => Ok(reason),
    }
}

/// Holds a run: attempts under way come to their end, and nothing else begins until it is resumed. Its time limit goes on.
#[utoipa::path(post, path = "/v1/runs/{id}/pause", tag = "runs",
    params(("id" = String, Path, description = "The run's id.")),
    request_body = PauseBody,
    responses(
        (status = 200, description = "The run is paused.", body = RunBody),
        (status = 404, description = "`unknown_run`", body = ProblemBody),
        (status = 409, description = "`run_ended`, `run_paused`, `run_not_started`", body = ProblemBody),
    ))]
pub(super) async fn pause(
    State(app): State<App>,
    tenant: Tenant,
    Segments(id): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer<RunBody>, Problem> {
    let key = tenant.run(&id)?;
    let body = problem::body(&headers, body, SMALL_BYTES_MAX).await?;
    let PauseBody { reason: said } = problem::parse(&body)?;
    app.driver.pause(&key, reason(said)?).await?;
    Ok(Answer(RunBody::whole(&*app.journal, &key)?))
}

/// Lets a paused run go on. Steps whose attempts were used up get them anew.
#[utoipa::path(post, path = "/v1/runs/{id}/resume", tag = "runs",
    params(("id" = String, Path, description = "The run's id.")),
    responses(
        (status = 200, description = "The run goes on.", body = RunBody),
        (status = 404, description = "`unknown_run`", body = ProblemBody),
        (status = 409, description = "`run_ended`, `run_not_paused`", body = ProblemBody),
    ))]
pub(super) async fn resume(
    State(app): State<App>,
    tenant: Tenant,
    Segments(id): Segments<String>,
) -> Result<Answer<RunBody>, Problem> {
    let key = tenant.run(&id)?;
    app.driver.resume(&key).await?;
    Ok(Answer(RunBody::whole(&*app.journal, &key)?))
}

/// What repeats a run.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RerunBody<'a> {
    /// The node to begin at: results of what does not come after it are taken over. From the start when it is left out.
    #[schema(value_type = Option<String>)]
    from_step: Option<NodeId>,
    /// Another input, `null` too; the run's own when it is left out.
    #[serde(borrow, default, deserialize_with = "given")]
    #[schema(value_type = Option<Object>)]
    input: Option<&'a RawValue>,
    /// Another version; the run's own when it is left out. `latest` is the latest.
    version: Option<String>,
}

/// What is there, be it `null`: only what is left out is not there.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Starts a new run that repeats this one, from the start or from a step. The run itself stays as it is.
#[utoipa::path(post, path = "/v1/runs/{id}/rerun", tag = "runs",
    params(
        ("id" = String, Path, description = "The run's id."),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key starts the same run, for 24 hours."),
    ),
    request_body = RerunBody,
    responses(
        (status = 202, description = "The new run is accepted.", body = RunBody),
        (status = 403, description = "`journal_full`: the tenant has as much in the journal as it may (`bytes_max`)", body = ProblemBody),
        (status = 404, description = "`unknown_run`, `unknown_version`", body = ProblemBody),
        (status = 409, description = "`run_deleted`, `run_is_shadow`", body = ProblemBody),
        (status = 410, description = "`content_expired`: its input, or a result that would be taken over, has outlived its retention", body = ProblemBody),
        (status = 413, description = "`too_large`", body = ProblemBody),
        (status = 422, description = "`unknown_step`, `step_did_not_run`, `step_in_scope` (with `opener`), `invalid_input`, `invalid_body`, `idempotency_mismatch`", body = ProblemBody),
        (status = 429, description = "`too_many_runs`", body = ProblemBody),
    ))]
pub(super) async fn rerun(
    State(app): State<App>,
    tenant: Tenant,
    Segments(id): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let key = tenant.run(&id)?;
    let body = problem::body(&headers, body, RERUN_BYTES_MAX).await?;
    let RerunBody { from_step, input, version } = problem::parse(&body)?;
    let input = input.map(|input| Json::parse(input.get().to_owned())).transpose();
    let input =
        input.map_err(|error| Problem::invalid("invalid_input", format!("the input is not usable: {error}")))?;
    let idempotency = idempotency_text(&headers)?.map(|text| {
        // What was asked for, not what it means: the latest version is another one after a deployment.
        let from_step = from_step.as_ref().map(ToString::to_string);
        let asked = [from_step.as_deref(), version.as_deref(), input.as_ref().map(Json::as_str)];
        IdempotencyKey { key: text, fingerprint: fingerprint(&key, &asked), time: None }
    });
    let version = version_of(&app, &key, version)?;
    let rerun = Rerun { from_step: from_step.map(StepId::from), input, version, idempotency };
    let started = app.driver.rerun(&key, rerun).await?;
    let new = RunKey { tenant: key.tenant, run: started.run };
    let mut response = (StatusCode::ACCEPTED, Answer(RunBody::whole(&*app.journal, &new)?)).into_response();
    if let Ok(location) = HeaderValue::from_str(&format!("/v1/runs/{}", new.run)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    if started.replayed {
        let replayed = HeaderName::from_static("idempotent-replayed");
        response.headers_mut().insert(replayed, HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// What must be the same in a repeated request about a run. What was left out is something else than what is empty.
fn fingerprint(key: &RunKey, asked: &[Option<&str>]) -> Digest {
    let mut hash = Sha256::new();
    hash.update(key.run.as_bytes());
    for part in asked {
        hash.update([u8::from(part.is_some())]);
        hash.update(Sha256::digest(part.unwrap_or_default()));
    }
    Digest::from_bytes(hash.finalize().into())
}

/// The version that a rerun asks for.
fn version_of(app: &App, key: &RunKey, version: Option<String>) -> Result<Option<Digest>, Problem> {
    match version.as_deref() {
        None => Ok(None),
        Some("latest") => {
            let summary = app.journal.summary(key)?.ok_or_else(Problem::unknown_run)?;
            Ok(app.journal.workflow(&key.tenant, &summary.workflow)?.map(|workflow| workflow.latest))
        }
        Some(text) => {
            let invalid = || Problem::invalid("invalid_body", "a version is a SHA-256 in hex, or `latest`");
            Ok(Some(text.parse().map_err(|_| invalid())?))
        }
    }
}

/// Which runs a request for many is about: those that are named, or those that fit all that is given. Not both.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BulkBody {
    /// These runs, at most 500, each once however often it is named.
    #[schema(value_type = Option<Vec<String>>)]
    runs: Option<Vec<RunId>>,
    /// Runs of this workflow.
    #[schema(value_type = Option<String>)]
    workflow: Option<WorkflowName>,
    /// Runs of this version.
    #[schema(value_type = Option<String>)]
    version: Option<Digest>,
    /// Runs with this status.
    #[schema(value_type = Option<String>)]
    status: Option<RunStatus>,
    /// Runs that failed with this code.
    failure_code: Option<String>,
    /// Runs that failed at this node.
    #[schema(value_type = Option<String>)]
    failed_node: Option<NodeId>,
    /// Whether shadows are among them; they are not when it is left out, unless they are named.
    shadows: Option<bool>,
    /// Where the last request ended.
    cursor: Option<String>,
    /// Runs that are changed at most, 1 to 500; 500 when it is left out.
    limit: Option<usize>,
    /// For cancellations: why; at most 1 KiB.
    reason: Option<String>,
    /// For reruns: the version of the new runs, `latest` or a SHA-256; that of the old ones when it is left out.
    rerun_version: Option<String>,
}

/// What became of many runs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BulkAnswer {
    /// What became of each, in no order.
    data: Vec<BulkEntry>,
    /// Where it goes on. Runs that were named have no cursor: name those again that are missing in `data`.
    page: PageInfo,
    /// Why the request has ended before its last run, where it has: the code of the problem. All that it has done is in
    /// `data`.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped_by: Option<&'static str>,
}

impl BulkAnswer {
    /// Ends before the last run. What was done must be told; when nothing was, the problem is the whole answer.
    fn stop(mut self, problem: Problem, named: bool) -> Result<Answer<Self>, Problem> {
        let Some(last) = self.data.last() else { return Err(problem) };
        self.page.cursor = (!named).then(|| last.run_id.to_string());
        self.page.has_more = true;
        self.stopped_by = Some(problem.code());
        Ok(Answer(self))
    }
}

/// What became of a run.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BulkEntry {
    /// The run.
    #[schema(value_type = String)]
    run_id: RunId,
    /// For reruns: the new run.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    new_run_id: Option<RunId>,
    /// Why nothing was done: the code that a request for this run alone would have got.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'static str>,
}

/// The runs that a request for many is about, and where the next request goes on.
fn select(
    app: &App,
    tenant: &Tenant,
    body: &BulkBody,
    wants: impl Fn(RunId, &RunSummary) -> Result<bool, Problem>,
) -> Result<(Vec<RunId>, PageInfo), Problem> {
    let invalid = |detail: &str| Problem::invalid("invalid_body", detail);
    let limit = body.limit.unwrap_or(BULK_MAX);
    if !(1..=BULK_MAX).contains(&limit) {
        return Err(invalid(&format!("`limit` is a number from 1 to {BULK_MAX}")));
    }
    let BulkBody { workflow, version, status, failure_code, failed_node, .. } = body;
    let failed = failure_code.is_some() || failed_node.is_some();
    let filters = workflow.is_some() || version.is_some() || status.is_some() || failed;
    if let Some(runs) = &body.runs {
        if runs.len() > BULK_MAX {
            return Err(invalid(&format!("at most {BULK_MAX} runs are named at once")));
        }
        if filters || body.cursor.is_some() {
            return Err(invalid("say which runs by `runs` or by what they are like, and not by both"));
        }
        let mut seen = HashSet::new();
        let runs = runs.iter().copied().filter(|run| seen.insert(*run)).collect();
        return Ok((runs, PageInfo { cursor: None, has_more: false, limit }));
    }
    if !filters {
        return Err(invalid("say which runs: nothing would be all of them"));
    }
    let before = body.cursor.as_deref().map(str::parse).transpose();
    let before = before.map_err(|_| invalid("the cursor is not one of ours"))?;
    let mut filter = RunFilter {
        workflow: workflow.clone(),
        version: *version,
        status: *status,
        failure_code: failure_code.clone(),
        failed_node: failed_node.clone(),
        before,
        shadows: shown(body.shadows),
        ..RunFilter::default()
    };
    let mut found = Vec::new();
    for _ in 0..BULK_PAGES_MAX {
        let page = app.journal.runs(&tenant.0, &filter, limit - found.len())?;
        for (run, summary) in page.runs {
            if wants(run, &summary)? {
                found.push(run);
            }
        }
        filter.before = page.next;
        if page.next.is_none() || found.len() == limit {
            break;
        }
    }
    let cursor = filter.before.map(|run| run.to_string());
    Ok((found, PageInfo { has_more: cursor.is_some(), cursor, limit }))
}

/// Cancels many runs. Each is cancelled as it would be alone; this answers when all are.
#[utoipa::path(post, path = "/v1/bulk/cancel", tag = "runs", request_body = BulkBody,
    responses(
        (status = 200, body = BulkAnswer),
        (status = 422, description = "`invalid_body`, `invalid_json`", body = ProblemBody),
    ))]
pub(super) async fn bulk_cancel(
    State(app): State<App>,
    tenant: Tenant,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer<BulkAnswer>, Problem> {
    let body = problem::body(&headers, body, SMALL_BYTES_MAX).await?;
    let body: BulkBody = problem::parse(&body)?;
    let said = reason(body.reason.clone())?;
    let (runs, page) = select(&app, &tenant, &body, |_, summary| Ok(!summary.status.is_terminal()))?;
    let mut answer = BulkAnswer { data: Vec::with_capacity(runs.len()), page, stopped_by: None };
    for run in runs {
        let key = RunKey { tenant: tenant.0.clone(), run };
        let code = match app.driver.cancel(&key, said.clone()).await {
            Ok(()) => None,
            // The others would not fare better.
            Err(error @ (ControlError::Unavailable | ControlError::Journal(_))) => {
                return answer.stop(error.into(), body.runs.is_some());
            }
            Err(error) => Some(Problem::from(error).code()),
        };
        answer.data.push(BulkEntry { run_id: run, new_run_id: None, code });
    }
    Ok(Answer(answer))
}

/// What makes the rerun of one run, of a request for many, the same as that of the request before. No client can send such a
/// key: no header has this byte.
fn bulk_key(key: &RunKey, text: &str, version: Option<&str>) -> IdempotencyKey {
    IdempotencyKey {
        key: format!("\u{2}bulk {} {text}", key.run),
        fingerprint: fingerprint(key, &[version]),
        time: None,
    }
}

/// Repeats many runs from the start, those that failed unless the request says otherwise. With an `Idempotency-Key` each is
/// repeated once, however often the request is sent: what has failed meanwhile is repeated too, but not what this
/// request has started.
#[utoipa::path(post, path = "/v1/bulk/rerun", tag = "runs", request_body = BulkBody,
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key repeats each run once, for 24 hours.")),
    responses(
        (status = 200, body = BulkAnswer),
        (status = 422, description = "`invalid_body`, `invalid_json`", body = ProblemBody),
    ))]
pub(super) async fn bulk_rerun(
    State(app): State<App>,
    tenant: Tenant,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer<BulkAnswer>, Problem> {
    let body = problem::body(&headers, body, SMALL_BYTES_MAX).await?;
    let body: BulkBody = problem::parse(&body)?;
    let wanted = body.status.unwrap_or(RunStatus::Failed);
    let idempotency = idempotency_text(&headers)?;
    let version = body.rerun_version.as_deref();
    let idempotency_of = |run| {
        let key = RunKey { tenant: tenant.0.clone(), run };
        idempotency.as_ref().map(|text| bulk_key(&key, text, version))
    };
    let is_own = |run, summary: &RunSummary| {
        let Some(idempotency) = summary.rerun_of.and_then(idempotency_of) else { return Ok(false) };
        let started = app.journal.started_with(&tenant.0, &summary.workflow, &idempotency, clock::now());
        match started {
            Ok(started) => Ok(started == Some(run)),
            // The same key with another version: that is told where the old run is repeated.
            Err(JournalError::IdempotencyMismatch) => Ok(false),
            Err(error) => Err(Problem::from(error)),
        }
    };
    let (runs, page) =
        select(&app, &tenant, &body, |run, summary| Ok(summary.status == wanted && !is_own(run, summary)?))?;
    let mut answer = BulkAnswer { data: Vec::with_capacity(runs.len()), page, stopped_by: None };
    for run in runs {
        let key = RunKey { tenant: tenant.0.clone(), run };
        let started = match version_of(&app, &key, body.rerun_version.clone()) {
            Ok(version) => {
                let rerun = Rerun { version, idempotency: idempotency_of(run), ..Rerun::default() };
                app.driver.rerun(&key, rerun).await.map_err(Problem::from)
            }
            Err(problem) => Err(problem),
        };
        answer.data.push(match started {
            Ok(started) => BulkEntry { run_id: run, new_run_id: Some(started.run), code: None },
            Err(problem) if problem.is_ours() => return answer.stop(problem, body.runs.is_some()),
            Err(problem) => BulkEntry { run_id: run, new_run_id: None, code: Some(problem.code()) },
        });
    }
    Ok(Answer(answer))
}

/// Runs that failed in the same way.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FailureGroup {
    /// Their workflow.
    workflow: String,
    /// The node that failed; missing when no single step did.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// The failure's code.
    code: String,
    /// How many they are.
    runs: u64,
    /// The last of them.
    #[schema(value_type = String)]
    last_run_id: RunId,
    /// When that one ended.
    last_failed_at: Option<String>,
}

/// Which failures.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct FailuresQuery {
    /// Only those of this workflow.
    #[param(value_type = Option<String>)]
    workflow: Option<WorkflowName>,
    /// Whether shadows count; they do not when it is left out.
    shadows: Option<bool>,
}

/// The tenant's failed runs, grouped by workflow, node and code, the latest first: of the last 100,000 runs, at most 200
/// groups. `GET /v1/runs?status=failed&failure_code=…` lists the runs of a group, `POST /v1/bulk/rerun` repeats them.
#[utoipa::path(get, path = "/v1/failures", tag = "runs", params(FailuresQuery),
    responses((status = 200, body = Page<FailureGroup>)))]
pub(super) async fn failures(
    State(app): State<App>,
    tenant: Tenant,
    asked: Result<Query<FailuresQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Answer<Page<FailureGroup>>, Problem> {
    let FailuresQuery { workflow, shadows } = query(asked)?;
    let gather = move || {
        let shadows = shown(shadows);
        let mut filter = RunFilter { workflow, status: Some(RunStatus::Failed), shadows, ..RunFilter::default() };
        let mut order = Vec::new();
        // Newest first, so that a group stands where its latest run does.
        let mut groups: HashMap<_, FailureGroup> = HashMap::new();
        for _ in 0..FAILURE_PAGES_MAX {
            let page = app.journal.runs(&tenant.0, &filter, usize::MAX)?;
            for (run, summary) in page.runs {
                let Some(failure) = summary.failure else { continue };
                let node = failure.step.map(|step| step.node.to_string());
                let name = (summary.workflow.to_string(), node.clone(), failure.code.clone());
                if let Some(group) = groups.get_mut(&name) {
                    group.runs += 1;
                } else if groups.len() < FAILURE_GROUPS_MAX {
                    order.push(name.clone());
                    let last_failed_at = summary.ended_at.map(clock::rfc3339);
                    let (workflow, code) = (name.0.clone(), failure.code);
                    groups
                        .insert(name, FailureGroup { workflow, node, code, runs: 1, last_run_id: run, last_failed_at });
                }
            }
            filter.before = page.next;
            if page.next.is_none() {
                break;
            }
        }
        Ok::<_, Problem>(order.into_iter().filter_map(|name| groups.remove(&name)).collect())
    };
    // Many summaries take a while to read.
    let found = tokio::task::spawn_blocking(gather).await.map_err(|_| Problem::internal())??;
    Ok(Answer(Page::whole(found)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(done: u8) -> BulkAnswer {
        let entry = |n| BulkEntry { run_id: RunId::from_bytes([n; 16]), new_run_id: None, code: None };
        let page = PageInfo { cursor: None, has_more: false, limit: 500 };
        BulkAnswer { data: (1..=done).map(entry).collect(), page, stopped_by: None }
    }

    /// When the journal failed after the two hundredth of five hundred runs, nobody was told of the two hundred.
    #[test]
    fn what_was_done_before_a_fault_is_told_with_where_to_go_on() {
        let Ok(Answer(stopped)) = answer(2).stop(Problem::internal(), false) else { panic!("it says nothing") };
        assert_eq!(stopped.data.len(), 2);
        assert_eq!(stopped.page.cursor, Some(RunId::from_bytes([2; 16]).to_string()));
        assert!(stopped.page.has_more && stopped.stopped_by == Some("internal"));
        let Ok(Answer(named)) = answer(1).stop(Problem::internal(), true) else { panic!("it says nothing") };
        assert_eq!((named.page.cursor, named.stopped_by), (None, Some("internal")));
        assert!(answer(0).stop(Problem::internal(), false).is_err(), "nothing was done, and the fault is the answer");
    }

    #[test]
    fn what_is_left_out_is_another_request_than_what_is_empty() {
        let key = RunKey { tenant: "a".parse().unwrap(), run: RunId::from_bytes([1; 16]) };
        let prints =
            [&[None, None][..], &[Some(""), None], &[None, Some("")], &[Some("a"), Some("b")], &[Some("ab"), None]]
                .map(|asked| *fingerprint(&key, asked).as_bytes());
        let distinct: std::collections::HashSet<_> = prints.iter().collect();
        assert_eq!(distinct.len(), prints.len());
    }
}
