//! A workflow's flow control: what is set, and what waits and executes by key.

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use stepwell_core::Digest;
use stepwell_core::flow::{Debounce, FlowControl, Pace};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::auth::{Segments, Tenant};
use super::problem::{self, Problem, ProblemBody};
use super::runs::{self, SMALL_BYTES_MAX};
use super::triggers::check_expression;
use super::wire::{Page, PageInfo};
use super::workflows;
use crate::clock::rfc3339;

/// Keys on a page when the client does not say.
const KEYS_DEFAULT: usize = 100;

/// What of a workflow runs at once, and how fast its runs start. All of it holds for each key by itself; what is left out
/// is without limit.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = FlowControl)]
pub(super) struct FlowControlBody {
    /// A jq expression on a run's input, such as `.account`. Runs with the same value count together; without one all runs
    /// of the workflow do.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// A jq expression on a run's input for its priority, an integer from -1000 to 1000. Of the queued runs with a key, those
    /// with the highest start first, and of these the oldest. Without one it is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<String>,
    /// Steps that execute at once, 1 to 1,000,000. A step that is suspended does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    concurrency: Option<u32>,
    /// How fast runs start. What is faster stays queued.
    #[serde(skip_serializing_if = "Option::is_none")]
    throttle: Option<PaceBody>,
    /// How fast runs are accepted. What is faster is refused with `rate_limited`.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_limit: Option<PaceBody>,
    /// How long a run waits for a later one with the same key to take its place; the earlier one is then cancelled.
    #[serde(skip_serializing_if = "Option::is_none")]
    debounce: Option<DebounceBody>,
}

/// So many in a period.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Pace)]
pub(super) struct PaceBody {
    /// How many in a period, 1 to 1,000,000, spread evenly.
    limit: u32,
    /// The period, 1 second to 7 days.
    period_seconds: u32,
    /// How many at once after a pause; when it is left out 1 for `throttle`, and `limit` for `rate_limit`.
    burst: Option<u32>,
}

/// How long a run waits for a later one.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Debounce)]
pub(super) struct DebounceBody {
    /// Each run waits so long, 1 second to 7 days.
    seconds: u32,
    /// From the first run on, no later one is put off for longer than this. Without it, there is no end to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    at_most_seconds: Option<u32>,
}

/// What waits and executes of the runs with one key.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FlowKey)]
pub(super) struct FlowKeyBody {
    /// The key.
    key: String,
    /// Runs that have not started.
    queued: u64,
    /// Steps that execute at this moment.
    running: u32,
    /// When the next run starts, where that is a matter of time and not of a step's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_start_at: Option<String>,
}

impl PaceBody {
    fn of(pace: Pace) -> Self {
        Self { limit: pace.limit, period_seconds: pace.period_seconds, burst: Some(pace.burst) }
    }

    fn read(&self, burst: u32) -> Pace {
        Pace { limit: self.limit, period_seconds: self.period_seconds, burst: self.burst.unwrap_or(burst) }
    }
}

impl FlowControlBody {
    fn of(control: FlowControl) -> Self {
        let FlowControl { key, priority, concurrency, throttle, rate_limit, debounce } = control;
        let debounce = debounce.map(|Debounce { seconds, at_most_seconds }| DebounceBody { seconds, at_most_seconds });
        let (throttle, rate_limit) = (throttle.map(PaceBody::of), rate_limit.map(PaceBody::of));
        Self { key, priority, concurrency, throttle, rate_limit, debounce }
    }

    fn read(self) -> FlowControl {
        let debounce = self
            .debounce
            .map(|debounce| Debounce { seconds: debounce.seconds, at_most_seconds: debounce.at_most_seconds });
        FlowControl {
            throttle: self.throttle.map(|pace| pace.read(1)),
            rate_limit: self.rate_limit.map(|pace| pace.read(pace.limit)),
            debounce,
            key: self.key,
            priority: self.priority,
            concurrency: self.concurrency,
        }
    }
}

/// A workflow's flow control. Empty when its runs go without limits.
#[utoipa::path(get, path = "/v1/workflows/{name}/flow-control", tag = "workflows",
    params(("name" = String, Path, description = "The workflow's name.")),
    responses((status = 200, body = FlowControlBody), (status = 404, description = "`unknown_workflow`", body = ProblemBody)))]
pub(super) async fn get(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
) -> Result<Answer<FlowControlBody>, Problem> {
    let name = workflows::known(&app, &tenant, &name)?;
    let control = app.driver.flow_control(&tenant.0, &name)?.unwrap_or_default();
    Ok(Answer(FlowControlBody::of(control)))
}

/// Sets a workflow's flow control, in place of what was set before. The numbers hold at once, for all runs that were
/// accepted under a flow control; keys and priorities hold for runs that are accepted from here on. It belongs to the
/// workflow and not to a version: a deployment leaves it as it is.
#[utoipa::path(put, path = "/v1/workflows/{name}/flow-control", tag = "workflows",
    params(("name" = String, Path, description = "The workflow's name.")),
    request_body = FlowControlBody,
    responses(
        (status = 200, body = FlowControlBody),
        (status = 404, description = "`unknown_workflow`", body = ProblemBody),
        (status = 422, description = "`invalid_json`, `invalid_body`, `invalid_expression`", body = ProblemBody),
    ))]
pub(super) async fn put(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer<FlowControlBody>, Problem> {
    let name = workflows::known(&app, &tenant, &name)?;
    let body = problem::body(&headers, body, SMALL_BYTES_MAX).await?;
    if body.trim_ascii().is_empty() {
        return Err(Problem::invalid(
            "invalid_body",
            "without a body there are no settings; `{}` is those without limits",
        ));
    }
    let control = problem::parse::<FlowControlBody>(&body)?.read();
    if let Err((field, rule)) = control.check() {
        return Err(Problem::invalid("invalid_body", format!("`{field}` {rule}")).with("field", field));
    }
    for (field, expression) in [("key", &control.key), ("priority", &control.priority)] {
        if let Some(expression) = expression {
            check_expression(&app, &tenant.0, field, expression).await?;
        }
    }
    app.driver.set_flow_control(&tenant.0, &name, Some(&control)).await?;
    tracing::info!(tenant = %tenant.0, workflow = %name, "flow control set");
    Ok(Answer(FlowControlBody::of(control)))
}

/// Lets a workflow's runs go without limits. Those in its queue start.
#[utoipa::path(delete, path = "/v1/workflows/{name}/flow-control", tag = "workflows",
    params(("name" = String, Path, description = "The workflow's name.")),
    responses(
        (status = 204, description = "There is none any more."),
        (status = 404, description = "`unknown_workflow`", body = ProblemBody),
    ))]
pub(super) async fn delete(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
) -> Result<StatusCode, Problem> {
    let name = workflows::known(&app, &tenant, &name)?;
    app.driver.set_flow_control(&tenant.0, &name, None).await?;
    tracing::info!(tenant = %tenant.0, workflow = %name, "flow control deleted");
    Ok(StatusCode::NO_CONTENT)
}

/// Which keys.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct KeysQuery {
    /// Where the last page ended.
    #[param(value_type = Option<String>)]
    cursor: Option<Digest>,
    /// Keys on the page, 1 to 500; 100 when it is left out.
    limit: Option<usize>,
}

/// What waits and executes of a workflow's runs, by key. Keys of which nothing does disappear after a while.
#[utoipa::path(get, path = "/v1/workflows/{name}/flow-control/keys", tag = "workflows",
    params(("name" = String, Path, description = "The workflow's name."), KeysQuery),
    responses(
        (status = 200, body = Page<FlowKeyBody>),
        (status = 404, description = "`unknown_workflow`", body = ProblemBody),
    ))]
pub(super) async fn keys(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
    asked: Result<Query<KeysQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Answer<Page<FlowKeyBody>>, Problem> {
    let name = workflows::known(&app, &tenant, &name)?;
    let KeysQuery { cursor, limit } = runs::query(asked)?;
    let limit = runs::limit(limit, KEYS_DEFAULT, runs::LIMIT_MAX)?;
    let found = app.driver.flow_keys(&tenant.0, &name, cursor, limit)?;
    let cursor = found.last().filter(|_| found.len() == limit).map(|key| key.hash.to_string());
    let data = found
        .into_iter()
        .map(|key| FlowKeyBody {
            key: key.key,
            queued: key.queued,
            running: key.executing,
            next_start_at: key.next_start_at.map(rfc3339),
        })
        .collect();
    Ok(Answer(Page { data, page: PageInfo { has_more: cursor.is_some(), cursor, limit } }))
}
