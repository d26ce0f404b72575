//! Webhooks: who is told when runs end, and what could not be told.

use std::collections::BTreeSet;

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use stepwell_core::{RunId, RunStatus, WorkflowName};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::auth::{Segments, Tenant};
use super::problem::{self, Problem, ProblemBody};
use super::runs::{LIMIT_MAX, SMALL_BYTES_MAX, limit, query};
use super::secrets::checked_name;
use super::triggers::TroubleBody;
use super::wire::{Page, PageInfo};
use crate::clock::{self, rfc3339};
use crate::journal::triggers::{Delivery, WebhookRecord};

/// Workflows that a webhook names.
const WORKFLOWS_MAX: usize = 500;
/// Bytes of a URL.
const URL_BYTES_MAX: usize = 2048;
/// Deliveries on a page when the client does not say.
const DELIVERIES_DEFAULT: usize = 100;

/// A webhook to be set up.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewWebhook {
    /// Where it is: `http` or `https`.
    url: String,
    /// The name of the secret that deliveries are signed with.
    secret: String,
    /// The workflows whose runs it is told of; all when it is left out.
    #[schema(value_type = Option<Vec<String>>)]
    workflows: Option<BTreeSet<WorkflowName>>,
    /// The ends it is told of, out of `completed`, `failed` and `cancelled`; all when it is left out.
    #[schema(value_type = Option<Vec<String>>)]
    on: Option<Vec<RunStatus>>,
}

/// A webhook.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Webhook)]
pub(super) struct WebhookBody {
    /// Its name.
    name: String,
    /// Where it is.
    url: String,
    /// The name of the secret that deliveries are signed with.
    secret: String,
    /// The workflows whose runs it is told of; all when there is none.
    #[schema(value_type = Option<Vec<String>>)]
    workflows: Option<BTreeSet<WorkflowName>>,
    /// The ends it is told of.
    on: Vec<&'static str>,
    /// When it was first set up.
    created_at: String,
    /// When it was last changed.
    updated_at: String,
    /// Deliveries that are given up and kept, at most 10,000.
    dead: u64,
    /// Deliveries that were given up and are not kept any more, because there were more: those of the oldest runs.
    dead_dropped: u64,
}

impl WebhookBody {
    fn of(app: &App, tenant: &Tenant, record: WebhookRecord) -> Result<Self, Problem> {
        let dead = app.journal.dead_deliveries(&tenant.0, &record.name)?;
        Ok(Self {
            name: record.name,
            url: record.url,
            secret: record.secret,
            workflows: record.workflows,
            on: record.on.into_iter().map(RunStatus::as_str).collect(),
            created_at: rfc3339(record.created_at),
            updated_at: rfc3339(record.updated_at),
            dead: dead.kept,
            dead_dropped: dead.dropped,
        })
    }
}

/// Something that a webhook was not told yet.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Delivery)]
pub(super) struct DeliveryBody {
    /// Its id: the receiver sees it as `Stepwell-Delivery`, the same in each attempt.
    id: String,
    /// `pending`, or `dead` when it is given up.
    status: &'static str,
    /// The run that has ended.
    #[schema(value_type = String)]
    run_id: RunId,
    /// How it has ended.
    run_status: &'static str,
    /// When it ended.
    created_at: String,
    /// How often it was tried.
    attempts: u32,
    /// When it is tried next.
    next_attempt_at: Option<String>,
    /// Why the last try was none.
    last_problem: Option<TroubleBody>,
}

impl From<Delivery> for DeliveryBody {
    fn from(delivery: Delivery) -> Self {
        Self {
            id: delivery.id(),
            status: if delivery.next_at.is_some() { "pending" } else { "dead" },
            run_id: delivery.run,
            run_status: delivery.status.as_str(),
            created_at: rfc3339(delivery.created_at),
            attempts: delivery.attempts,
            next_attempt_at: delivery.next_at.map(rfc3339),
            last_problem: delivery.problem.map(TroubleBody::from),
        }
    }
}

fn unknown_webhook() -> Problem {
    Problem::not_found("unknown_webhook", "there is no such webhook")
}

/// Sets up a webhook, in place of one with the same name. It is told of runs that end from now on.
#[utoipa::path(put, path = "/v1/webhooks/{name}", tag = "webhooks",
    params(("name" = String, Path, description = "The webhook's name: 1 to 64 characters out of A-Z, a-z, 0-9, _, . and -.")),
    request_body = NewWebhook,
    responses(
        (status = 200, description = "The webhook is set up.", body = WebhookBody),
        (status = 413, description = "`too_large`", body = ProblemBody),
        (status = 422, description = "`invalid_name`, `invalid_json`, `invalid_body`, `invalid_url`, `unknown_secret`, `too_many`", body = ProblemBody),
    ))]
pub(super) async fn put(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer<WebhookBody>, Problem> {
    checked_name(&name)?;
    let body = problem::body(&headers, body, SMALL_BYTES_MAX).await?;
    let NewWebhook { url, secret, workflows, on } = problem::parse(&body)?;
    let is_url = url.len() <= URL_BYTES_MAX
        && reqwest::Url::parse(&url).is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none()
        });
    if !is_url {
        let rule = format!("a URL is http or https, without user and password, of at most {URL_BYTES_MAX} bytes");
        return Err(Problem::invalid("invalid_url", rule));
    }
    let on = on.unwrap_or_else(|| vec![RunStatus::Completed, RunStatus::Failed, RunStatus::Cancelled]);
    if on.is_empty() || on.len() > 3 || !on.iter().all(|status| status.is_terminal()) {
        return Err(Problem::invalid("invalid_body", "`on` has some of `completed`, `failed` and `cancelled`"));
    }
    if workflows.as_ref().is_some_and(|workflows| workflows.is_empty() || workflows.len() > WORKFLOWS_MAX) {
        return Err(Problem::invalid("invalid_body", format!("`workflows` has 1 to {WORKFLOWS_MAX} names")));
    }
    if app.triggers.secret(&tenant.0, &secret)?.is_none() {
        return Err(Problem::invalid("unknown_secret", format!("there is no secret `{secret}`")));
    }
    let now = clock::now();
    let record = WebhookRecord { name, url, secret, workflows, on, created_at: now, updated_at: now };
    let record = app.journal.put_webhook(&tenant.0, record).await?.map_err(Problem::from)?;
    tracing::info!(tenant = %tenant.0, webhook = record.name, "webhook set up");
    WebhookBody::of(&app, &tenant, record).map(Answer)
}

/// A webhook.
#[utoipa::path(get, path = "/v1/webhooks/{name}", tag = "webhooks",
    params(("name" = String, Path, description = "The webhook's name.")),
    responses((status = 200, body = WebhookBody), (status = 404, description = "`unknown_webhook`", body = ProblemBody)))]
pub(super) async fn get(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
) -> Result<Answer<WebhookBody>, Problem> {
    let record = app.journal.webhook(&tenant.0, &name)?.ok_or_else(unknown_webhook)?;
    WebhookBody::of(&app, &tenant, record).map(Answer)
}

/// The tenant's webhooks, by name.
#[utoipa::path(get, path = "/v1/webhooks", tag = "webhooks", responses((status = 200, body = Page<WebhookBody>)))]
pub(super) async fn list(State(app): State<App>, tenant: Tenant) -> Result<Answer<Page<WebhookBody>>, Problem> {
    let webhooks = app.journal.webhooks(&tenant.0)?;
    let webhooks = webhooks.into_iter().map(|record| WebhookBody::of(&app, &tenant, record));
    Ok(Answer(Page::whole(webhooks.collect::<Result<_, _>>()?)))
}

/// Deletes a webhook. What it was not told yet, it is not told any more.
#[utoipa::path(delete, path = "/v1/webhooks/{name}", tag = "webhooks",
    params(("name" = String, Path, description = "The webhook's name.")),
    responses(
        (status = 204, description = "The webhook is gone."),
        (status = 404, description = "`unknown_webhook`", body = ProblemBody),
    ))]
pub(super) async fn delete(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
) -> Result<StatusCode, Problem> {
    if !app.journal.delete_webhook(&tenant.0, &name).await? {
        return Err(unknown_webhook());
    }
    tracing::info!(tenant = %tenant.0, webhook = name, "webhook deleted");
    Ok(StatusCode::NO_CONTENT)
}

/// Which deliveries.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeliveriesQuery {
    /// Only those that are `pending` or `dead`.
    #[param(inline)]
    status: Option<DeliveryStatus>,
    /// Where the last page ended.
    #[param(value_type = Option<String>)]
    cursor: Option<RunId>,
    /// Deliveries on the page, 1 to 500; 100 when it is left out.
    limit: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum DeliveryStatus {
    Pending,
    Dead,
}

/// What a webhook was not told yet, oldest first. What it has taken is not kept.
#[utoipa::path(get, path = "/v1/webhooks/{name}/deliveries", tag = "webhooks",
    params(("name" = String, Path, description = "The webhook's name."), DeliveriesQuery),
    responses((status = 200, body = Page<DeliveryBody>), (status = 404, description = "`unknown_webhook`", body = ProblemBody)))]
pub(super) async fn deliveries(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
    asked: Result<Query<DeliveriesQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Answer<Page<DeliveryBody>>, Problem> {
    let DeliveriesQuery { status, cursor, limit: asked } = query(asked)?;
    let limit = limit(asked, DELIVERIES_DEFAULT, LIMIT_MAX)?;
    app.journal.webhook(&tenant.0, &name)?.ok_or_else(unknown_webhook)?;
    let dead = status.map(|status| status == DeliveryStatus::Dead);
    let found = app.journal.deliveries(&tenant.0, &name, cursor.as_ref(), dead, limit)?;
    let cursor = found.last().filter(|_| found.len() == limit).map(|last| last.run.to_string());
    let data = found.into_iter().map(DeliveryBody::from).collect();
    Ok(Answer(Page { data, page: PageInfo { has_more: cursor.is_some(), cursor, limit } }))
}

/// Tries a delivery again that was given up, with all its attempts.
#[utoipa::path(post, path = "/v1/webhooks/{name}/deliveries/{id}/retry", tag = "webhooks",
    params(
        ("name" = String, Path, description = "The webhook's name."),
        ("id" = String, Path, description = "The delivery's id."),
    ),
    responses(
        (status = 202, description = "It is tried again.", body = DeliveryBody),
        (status = 404, description = "`unknown_webhook`, `unknown_delivery`", body = ProblemBody),
        (status = 409, description = "`delivery_pending`: it is not given up", body = ProblemBody),
    ))]
pub(super) async fn retry(
    State(app): State<App>,
    tenant: Tenant,
    Segments((name, id)): Segments<(String, String)>,
) -> Result<(StatusCode, Answer<DeliveryBody>), Problem> {
    app.journal.webhook(&tenant.0, &name)?.ok_or_else(unknown_webhook)?;
    let unknown = || Problem::not_found("unknown_delivery", "there is no such delivery; what was taken is not kept");
    let run = id.strip_prefix(&name).and_then(|rest| rest.strip_prefix('.')).and_then(|run| run.parse().ok());
    let run: RunId = run.ok_or_else(unknown)?;
    let mut delivery = app.journal.delivery(&tenant.0, &name, &run)?.ok_or_else(unknown)?;
    if delivery.next_at.is_some() {
        let detail = "the delivery is still being tried";
        return Err(Problem::new(StatusCode::CONFLICT, "delivery_pending", detail));
    }
    (delivery.attempts, delivery.next_at) = (0, Some(clock::now()));
    app.journal.put_delivery(&tenant.0, None, delivery.clone()).await?;
    Ok((StatusCode::ACCEPTED, Answer(delivery.into())))
}
