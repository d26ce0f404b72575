//! Stream tokens: made by a tenant's server, for a tenant's pages.

use std::time::Duration;

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use stepwell_core::ids::is_word;
use stepwell_core::{RunId, Timestamp, WorkflowName};
use utoipa::ToSchema;

use super::App;
use super::auth::{Segments, Tenant};
use super::events::unknown_topic;
use super::problem::{self, Problem, ProblemBody};
use super::runs::checked_correlation;
use crate::clock::{self, rfc3339};
use crate::journal::Journal;
use crate::stream_tokens::{Claims, RunsClaim, Target};

/// How long a token is good for when nothing is said.
const TTL_SECONDS_DEFAULT: u64 = 10 * 60;
/// How long it may be good for. A page asks its server for the next one.
const TTL_SECONDS_MAX: u64 = 60 * 60;
/// Topics of a token: as many as a workflow has.
const TOPICS_MAX: usize = 64;
/// Bytes of the request: all topics, and what is around them.
const BODY_BYTES_MAX: usize = 16 << 10;

/// What a token is to permit.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewToken {
    /// Only updates on these topics, at most 64, and what happens to the run and its steps. Without it, everything.
    topics: Option<Vec<String>>,
    /// Whether it shows the run's input, outputs of steps and runs, and details of failures. What a topic does not show can
    /// be in them, so false when there are topics, else true.
    outputs: Option<bool>,
    /// For a channel: only what happens in this run.
    #[schema(value_type = Option<String>)]
    run: Option<RunId>,
    /// For a channel: only what happens in runs of this workflow.
    #[schema(value_type = Option<String>)]
    workflow: Option<WorkflowName>,
    /// For a channel: only what happens in runs that were started with this `Stepwell-Correlation`.
    correlation: Option<String>,
    /// Seconds that it is good for, at most 3,600; 600 when it is left out.
    ttl_seconds: Option<u64>,
}

/// A token. It is shown this once.
#[derive(Serialize, ToSchema)]
pub(super) struct TokenBody {
    /// For `?token=` or `Authorization: Bearer`.
    token: String,
    /// When it stops working.
    expires_at: String,
}

type Made = Result<(StatusCode, Answer<TokenBody>), Problem>;

/// Makes a token that reads one run's events.
#[utoipa::path(post, path = "/v1/runs/{id}/stream-tokens", tag = "streams",
    params(("id" = String, Path, description = "The run's id.")),
    request_body = NewToken,
    responses(
        (status = 201, body = TokenBody),
        (status = 404, description = "`unknown_run`", body = ProblemBody),
        (status = 422, description = "`invalid_json`, `invalid_body`, `invalid_ttl`, `unknown_topic`", body = ProblemBody),
    ))]
pub(super) async fn of_run(
    State(app): State<App>,
    tenant: Tenant,
    Segments(id): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Made {
    let key = tenant.run(&id)?;
    let summary = app.journal.summary(&key)?.ok_or_else(Problem::unknown_run)?;
    let asked = asked(&headers, body).await?;
    if asked.run.is_some() || asked.workflow.is_some() || asked.correlation.is_some() {
        let rule = "`run`, `workflow` and `correlation` are for tokens of channels; this one is for one run";
        return Err(Problem::invalid("invalid_body", rule));
    }
    if let Some(topics) = &asked.topics {
        let graph = app.driver.graph(&key.tenant, &summary.workflow, summary.version)?;
        topics.iter().find(|topic| !graph.has_topic(topic)).map_or(Ok(()), |topic| Err(unknown_topic(topic)))?;
    }
    make(&app, tenant, Target::Run(key.run), asked).await
}

/// Makes a token that reads one channel.
#[utoipa::path(post, path = "/v1/channels/{name}/stream-tokens", tag = "streams",
    params(("name" = String, Path, description = "The channel's name.")),
    request_body = NewToken,
    responses(
        (status = 201, body = TokenBody),
        (status = 404, description = "`unknown_channel`", body = ProblemBody),
        (status = 422, description = "`invalid_json`, `invalid_body`, `invalid_ttl`, `invalid_correlation`, `unknown_topic`", body = ProblemBody),
    ))]
pub(super) async fn of_channel(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Made {
    if !is_word(&name) {
        return Err(Problem::unknown_channel());
    }
    let asked = asked(&headers, body).await?;
    if let Some(topic) = asked.topics.iter().flatten().find(|topic| !is_word(topic)) {
        return Err(unknown_topic(topic)); // nobody can have it
    }
    make(&app, tenant, Target::Channel(name), asked).await
}

async fn asked(headers: &HeaderMap, body: Body) -> Result<NewToken, Problem> {
    let body = problem::body(headers, body, BODY_BYTES_MAX).await?;
    let asked: NewToken = problem::parse(&body)?;
    if asked.topics.as_ref().is_some_and(|topics| topics.is_empty() || topics.len() > TOPICS_MAX) {
        let rule = format!("a token has 1 to {TOPICS_MAX} topics, or is for all of them when they are left out");
        return Err(Problem::invalid("invalid_body", rule));
    }
    asked.correlation.as_deref().map_or(Ok(()), checked_correlation)?;
    if asked.ttl_seconds.is_some_and(|seconds| seconds == 0 || seconds > TTL_SECONDS_MAX) {
        return Err(Problem::invalid("invalid_ttl", format!("a token is good for 1 to {TTL_SECONDS_MAX} seconds")));
    }
    Ok(asked)
}

async fn make(app: &App, tenant: Tenant, target: Target, asked: NewToken) -> Made {
    let ttl = Duration::from_secs(asked.ttl_seconds.unwrap_or(TTL_SECONDS_DEFAULT));
    let until = clock::now().as_millis().saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    let expires_at = Timestamp::from_millis(until);
    let NewToken { topics, outputs, run, workflow, correlation, .. } = asked;
    let (outputs, of) = (outputs.unwrap_or(topics.is_none()), RunsClaim { run, workflow, correlation });
    let claims = Claims { tenant: tenant.0, target, topics, outputs, of, expires_at };
    let token = app.stream_tokens.sign(&app.journal, &claims).await?;
    Ok((StatusCode::CREATED, Answer(TokenBody { token, expires_at: rfc3339(expires_at) })))
}
