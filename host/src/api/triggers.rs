//! Triggers: set up, listed, deleted; and the two ways in which something outside sets one off: signed requests and events.

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use stepwell_core::ids::is_word;
use stepwell_core::json::InvalidJson;
use stepwell_core::{Digest, Json, RunId, TenantId, WorkflowName};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::auth::{Segments, Tenant};
use super::problem::{self, Problem, ProblemBody};
use super::runs::{LIMIT_MAX, idempotency_text, limit, query};
use super::secrets::checked_name;
use super::wire::{Page, PageInfo};
use crate::clock::{self, rfc3339};
use crate::journal::triggers::{
    Begun, Missed, Scheme, SignalAction, TRIGGERS_MAX, TRIGGERS_OF_EVENT_MAX, TooMany, TriggerAction, TriggerMark,
    TriggerOn, TriggerRecord, WEBHOOKS_MAX,
};
use crate::sandbox::EvaluateError;
use crate::sandbox::limits::EXPRESSION_BYTES_MAX;
use crate::triggers::schedule::{InvalidSchedule, Schedule};
use crate::triggers::signature::{self, BadSignature};
use crate::triggers::{ActError, Acted, Occurrence};

/// Bytes of a trigger: its expressions and the input of its runs.
const BODY_BYTES_MAX: usize = 256 << 10;
/// Bytes of a signed request, and of an event: a message, not a file.
const OCCURRENCE_BYTES_MAX: usize = 1 << 20;
/// Characters of an event's id.
const EVENT_ID_LEN_MAX: usize = 255;
/// Times that a trigger shows in advance.
const UPCOMING: usize = 5;
/// Triggers on a page when the client does not say.
const LIMIT_DEFAULT: usize = 100;

/// A trigger to be set up. Which fields it has depends on its kind.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTrigger<'a> {
    /// `cron`, `webhook` or `event`.
    kind: Kind,
    /// The workflow that it starts. For a signal with `correlation`, the only workflow whose runs it signals.
    #[schema(value_type = Option<String>)]
    workflow: Option<WorkflowName>,
    /// The version of the runs; the latest when it is left out.
    #[schema(value_type = Option<String>)]
    version: Option<Digest>,
    /// `cron`: five fields (minute, hour, day of the month, month, day of the week), or six with seconds first.
    schedule: Option<String>,
    /// `cron`: a name of the time zone database, such as `Europe/Berlin`; `UTC` when it is left out.
    time_zone: Option<String>,
    /// `cron`: what becomes of times at which the host did not run; `skip` when it is left out.
    missed: Option<Missed>,
    /// `webhook`: the name of the secret that requests are signed with.
    secret: Option<String>,
    /// `webhook`: the name of another secret that they may be signed with, while the sender changes over to a new one.
    previous_secret: Option<String>,
    /// `webhook`: how they are signed; `stepwell` when it is left out.
    scheme: Option<Scheme>,
    /// `event`: the event's name.
    event: Option<String>,
    /// `webhook` and `event`: a jq expression that must hold.
    filter: Option<String>,
    /// `cron`: the input of the runs, any JSON. Else a jq expression for it; the request's body or the event's data when it
    /// is left out.
    #[serde(borrow)]
    #[schema(value_type = Option<Object>)]
    input: Option<&'a RawValue>,
    /// `webhook` and `event`: a signal to send, in place of starting a run.
    signal: Option<SignalAction>,
    /// Whether it does anything; `true` when it is left out.
    enabled: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = TriggerKind)]
enum Kind {
    Cron,
    Webhook,
    Event,
}

/// A trigger.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Trigger)]
pub(super) struct TriggerBody {
    /// Its name.
    name: String,
    /// `cron`, `webhook` or `event`.
    kind: &'static str,
    /// Whether it does anything.
    enabled: bool,
    /// The workflow that it starts.
    #[schema(value_type = Option<String>)]
    workflow: Option<WorkflowName>,
    /// The version of the runs; the latest when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// When it fires.
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<String>,
    /// By which clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    time_zone: Option<String>,
    /// What becomes of times at which the host did not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    missed: Option<Missed>,
    /// The next times, at most five.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_fire_times: Option<Vec<String>>,
    /// The last time that it has fired for.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_fired_for: Option<String>,
    /// The run that it has started last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    last_run_id: Option<RunId>,
    /// Why it could not start its last run.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_problem: Option<TroubleBody>,
    /// The name of the secret that requests are signed with.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    /// The name of another that they may be signed with.
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_secret: Option<String>,
    /// How they are signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    scheme: Option<Scheme>,
    /// Where they go.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// The event's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<String>,
    /// An expression that must hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<String>,
    /// The input of its runs, or an expression for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    input: Option<Box<RawValue>>,
    /// The signal that it sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    signal: Option<SignalAction>,
    /// When it was first set up.
    created_at: String,
    /// When it was last changed.
    updated_at: String,
}

/// What did not work.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Trouble)]
pub(super) struct TroubleBody {
    /// A stable identifier.
    code: String,
    /// A sentence for people.
    message: String,
}

impl From<(String, String)> for TroubleBody {
    fn from((code, message): (String, String)) -> Self {
        Self { code, message }
    }
}

impl TriggerBody {
    fn of(tenant: &TenantId, record: TriggerRecord, mark: TriggerMark) -> Self {
        let TriggerAction { filter, workflow, version, input, signal } = record.action;
        let mut body = Self {
            kind: "",
            enabled: record.enabled,
            workflow,
            version: version.map(|version| version.to_string()),
            schedule: None,
            time_zone: None,
            missed: None,
            next_fire_times: None,
            last_fired_for: mark.last.map(rfc3339),
            last_run_id: mark.last_run,
            last_problem: mark.last_problem.map(TroubleBody::from),
            secret: None,
            previous_secret: None,
            scheme: None,
            path: None,
            event: None,
            filter,
            input,
            signal,
            created_at: rfc3339(record.created_at),
            updated_at: rfc3339(record.updated_at),
            name: record.name,
        };
        match record.on {
            TriggerOn::Cron { schedule, time_zone, missed } => {
                let first = mark.next.filter(|_| record.enabled);
                let times = first.zip(Schedule::parse(&schedule, &time_zone).ok()).map(|(first, schedule)| {
                    let later = schedule.upcoming(first, UPCOMING - 1);
                    std::iter::once(first).chain(later).map(rfc3339).collect()
                });
                body.kind = "cron";
                body.next_fire_times = Some(times.unwrap_or_default());
                (body.schedule, body.time_zone, body.missed) = (Some(schedule), Some(time_zone), Some(missed));
            }
            TriggerOn::Webhook { secret, previous_secret, scheme } => {
                body.kind = "webhook";
                body.path = Some(format!("/v1/hooks/{tenant}/{}", body.name));
                (body.secret, body.previous_secret, body.scheme) = (Some(secret), previous_secret, Some(scheme));
            }
            TriggerOn::Event { event } => (body.kind, body.event) = ("event", Some(event)),
        }
        body
    }
}

fn invalid(why: impl Into<String>) -> Problem {
    Problem::invalid("invalid_body", why)
}

/// Checks what can be checked before it happens, and reads the form into what is stored.
async fn read(app: &App, tenant: &TenantId, name: &str, new: NewTrigger<'_>) -> Result<TriggerRecord, Problem> {
    let kind = new.kind;
    let belongs = [
        ("schedule", new.schedule.is_some(), kind == Kind::Cron),
        ("time_zone", new.time_zone.is_some(), kind == Kind::Cron),
        ("missed", new.missed.is_some(), kind == Kind::Cron),
        ("secret", new.secret.is_some(), kind == Kind::Webhook),
        ("previous_secret", new.previous_secret.is_some(), kind == Kind::Webhook),
        ("scheme", new.scheme.is_some(), kind == Kind::Webhook),
        ("event", new.event.is_some(), kind == Kind::Event),
        ("filter", new.filter.is_some(), kind != Kind::Cron),
        ("signal", new.signal.is_some(), kind != Kind::Cron),
    ];
    if let Some((field, ..)) = belongs.iter().find(|(_, given, belongs)| *given && !belongs) {
        return Err(invalid(format!("a trigger of this kind has no `{field}`")));
    }
    let needed = |field: &str| invalid(format!("a trigger of this kind needs `{field}`"));
    let on = match kind {
        Kind::Cron => {
            let schedule = new.schedule.ok_or_else(|| needed("schedule"))?;
            let time_zone = new.time_zone.unwrap_or_else(|| "UTC".to_owned());
            TriggerOn::Cron { schedule, time_zone, missed: new.missed.unwrap_or_default() }
        }
        Kind::Webhook => {
            let secret = new.secret.ok_or_else(|| needed("secret"))?;
            let previous_secret = new.previous_secret;
            for secret in [Some(&secret), previous_secret.as_ref()].into_iter().flatten() {
                if app.triggers.secret(tenant, secret)?.is_none() {
                    return Err(Problem::invalid("unknown_secret", format!("there is no secret `{secret}`")));
                }
            }
            TriggerOn::Webhook { secret, previous_secret, scheme: new.scheme.unwrap_or_default() }
        }
        Kind::Event => {
            let event = new.event.ok_or_else(|| needed("event"))?;
            event_name(&event)?;
            TriggerOn::Event { event }
        }
    };
    let input = match (new.input, kind) {
        (None, _) => None,
        (Some(input), Kind::Cron) => {
            let input = Json::parse(input.get().to_owned());
            let input = input.map_err(|error| invalid(format!("the input is not usable: {error}")))?;
            Some(RawValue::from_string(input.as_str().to_owned()).map_err(|error| invalid(error.to_string()))?)
        }
        (Some(input), _) => {
            let expression: String =
                serde_json::from_str(input.get()).map_err(|_| invalid("`input` is a jq expression, as a string"))?;
            check_expression(app, tenant, "input", &expression).await?;
            Some(input.to_owned())
        }
    };
    if let Some(filter) = &new.filter {
        check_expression(app, tenant, "filter", filter).await?;
    }
    match (&new.signal, &new.workflow) {
        (None, None) => return Err(needed("workflow")),
        (Some(_), _) if new.version.is_some() => return Err(invalid("a signal has no `version`")),
        (Some(signal), _) => {
            let (field, expression) = match (&signal.run, &signal.correlation) {
                (Some(run), None) => ("signal.run", run),
                (None, Some(correlation)) => ("signal.correlation", correlation),
                _ => return Err(invalid("a signal has either `run` or `correlation`")),
            };
            if !is_word(&signal.name) {
                return Err(invalid("the signal's name is none that a workflow can have"));
            }
            check_expression(app, tenant, field, expression).await?;
        }
        (None, Some(_)) => {}
    }
    if let Some(workflow) = &new.workflow {
        let known = app.journal.workflow(tenant, workflow)?;
        let known =
            known.ok_or_else(|| Problem::invalid("unknown_workflow", format!("there is no workflow `{workflow}`")))?;
        let version = new.version.unwrap_or(known.latest);
        if app.journal.version(tenant, workflow, &version)?.is_none() {
            return Err(Problem::invalid("unknown_version", format!("the workflow has no version {version}")));
        }
    }
    let action =
        TriggerAction { filter: new.filter, workflow: new.workflow, version: new.version, input, signal: new.signal };
    let (enabled, now) = (new.enabled.unwrap_or(true), clock::now());
    Ok(TriggerRecord { name: name.to_owned(), enabled, on, action, created_at: now, updated_at: now })
}

pub(super) async fn check_expression(
    app: &App,
    tenant: &TenantId,
    field: &'static str,
    text: &str,
) -> Result<(), Problem> {
    if text.len() > EXPRESSION_BYTES_MAX {
        return Err(invalid(format!("`{field}` has more than {EXPRESSION_BYTES_MAX} bytes")));
    }
    let checked = app.sandbox.check_expression(tenant, text).await;
    checked.map_err(|source| ActError::Expression { field, source }.into())
}

impl From<TooMany> for Problem {
    fn from(which: TooMany) -> Self {
        let rule = match which {
            TooMany::Triggers => format!("a tenant has at most {TRIGGERS_MAX} triggers"),
            TooMany::OfEvent => format!("an event has at most {TRIGGERS_OF_EVENT_MAX} triggers"),
            TooMany::Webhooks => format!("a tenant has at most {WEBHOOKS_MAX} webhooks"),
        };
        Self::invalid("too_many", rule)
    }
}

impl From<ActError> for Problem {
    fn from(error: ActError) -> Self {
        let detail = error.to_string();
        match error {
            ActError::Expression { field, source: EvaluateError::Failed(failure) } => {
                let code =
                    if failure.code == "invalid_expression" { "invalid_expression" } else { "expression_failed" };
                Self::invalid(code, detail).with("field", field).with("cause", failure.code)
            }
            ActError::Expression { source, .. } => {
                tracing::error!(error = %source, "an expression could not be evaluated");
                Self::unavailable("expressions cannot be evaluated at present")
            }
            ActError::Value { field, .. } => Self::invalid("invalid_value", detail).with("field", field),
            ActError::Start(error) => error.into(),
            ActError::Signal(error) => error.into(),
        }
    }
}

/// Sets up a trigger, in place of one with the same name. One for times fires for those after now; when only other things
/// are changed, it goes on where it was.
#[utoipa::path(put, path = "/v1/triggers/{name}", tag = "triggers",
    params(("name" = String, Path, description = "The trigger's name: 1 to 64 characters out of A-Z, a-z, 0-9, _, . and -.")),
    request_body = NewTrigger,
    responses(
        (status = 200, description = "The trigger is set up.", body = TriggerBody),
        (status = 413, description = "`too_large`", body = ProblemBody),
        (status = 422, description = "`invalid_name`, `invalid_json`, `invalid_body`, `invalid_schedule`, `unknown_time_zone`, `schedule_never_fires`, `invalid_expression` (with `field`), `unknown_workflow`, `unknown_version`, `unknown_secret`, `too_many`", body = ProblemBody),
    ))]
pub(super) async fn put(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer<TriggerBody>, Problem> {
    checked_name(&name)?;
    let body = problem::body(&headers, body, BODY_BYTES_MAX).await?;
    let record = read(&app, &tenant.0, &name, problem::parse(&body)?).await?;
    let first = match &record.on {
        TriggerOn::Cron { schedule, time_zone, .. } => {
            let invalid = |error: InvalidSchedule| Problem::invalid(error.code(), error.to_string());
            let schedule = Schedule::parse(schedule, time_zone).map_err(invalid)?;
            Some(schedule.next_after(clock::now()).ok_or_else(|| invalid(InvalidSchedule::Never))?)
        }
        _ => None,
    };
    let (on, enabled) = (record.on.clone(), record.enabled);
    let next = move |before: Option<&TriggerRecord>| {
        let same = before.is_some_and(|before| before.enabled && same_times(&before.on, &on));
        if enabled && first.is_some() { (!same).then_some(first) } else { Some(None) }
    };
    let record = app.journal.put_trigger(&tenant.0, record, next).await?.map_err(Problem::from)?;
    tracing::info!(tenant = %tenant.0, trigger = record.name, "trigger set up");
    let mark = app.journal.trigger_mark(&tenant.0, &name)?;
    Ok(Answer(TriggerBody::of(&tenant.0, record, mark)))
}

/// Whether two triggers fire at the same times.
fn same_times(one: &TriggerOn, other: &TriggerOn) -> bool {
    match (one, other) {
        (
            TriggerOn::Cron { schedule, time_zone, .. },
            TriggerOn::Cron { schedule: other_schedule, time_zone: other_zone, .. },
        ) => schedule == other_schedule && time_zone == other_zone,
        _ => false,
    }
}

/// A trigger, and when it fires next.
#[utoipa::path(get, path = "/v1/triggers/{name}", tag = "triggers",
    params(("name" = String, Path, description = "The trigger's name.")),
    responses((status = 200, body = TriggerBody), (status = 404, description = "`unknown_trigger`", body = ProblemBody)))]
pub(super) async fn get(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
) -> Result<Answer<TriggerBody>, Problem> {
    let record = app.journal.trigger(&tenant.0, &name)?.ok_or_else(unknown_trigger)?;
    let mark = app.journal.trigger_mark(&tenant.0, &name)?;
    Ok(Answer(TriggerBody::of(&tenant.0, record, mark)))
}

/// Which triggers.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TriggersQuery {
    /// Where the last page ended.
    cursor: Option<String>,
    /// Triggers on the page, 1 to 500; 100 when it is left out. Large ones make a page shorter.
    limit: Option<usize>,
}

/// The tenant's triggers, by name.
#[utoipa::path(get, path = "/v1/triggers", tag = "triggers", params(TriggersQuery),
    responses((status = 200, body = Page<TriggerBody>), (status = 400, description = "`invalid_query`", body = ProblemBody)))]
pub(super) async fn list(
    State(app): State<App>,
    tenant: Tenant,
    asked: Result<Query<TriggersQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Answer<Page<TriggerBody>>, Problem> {
    let TriggersQuery { cursor, limit: asked } = query(asked)?;
    let limit = limit(asked, LIMIT_DEFAULT, LIMIT_MAX)?;
    let (triggers, has_more) = app.journal.triggers(&tenant.0, cursor.as_deref(), limit)?;
    let cursor = triggers.last().filter(|_| has_more).map(|last| last.name.clone());
    let data = triggers.into_iter().map(|record| {
        let mark = app.journal.trigger_mark(&tenant.0, &record.name)?;
        Ok(TriggerBody::of(&tenant.0, record, mark))
    });
    let data = data.collect::<Result<_, Problem>>()?;
    Ok(Answer(Page { data, page: PageInfo { cursor, has_more, limit } }))
}

/// Deletes a trigger. Runs that it has started go on.
#[utoipa::path(delete, path = "/v1/triggers/{name}", tag = "triggers",
    params(("name" = String, Path, description = "The trigger's name.")),
    responses(
        (status = 204, description = "The trigger is gone."),
        (status = 404, description = "`unknown_trigger`", body = ProblemBody),
    ))]
pub(super) async fn delete(
    State(app): State<App>,
    tenant: Tenant,
    Segments(name): Segments<String>,
) -> Result<StatusCode, Problem> {
    if !app.journal.delete_trigger(&tenant.0, &name).await? {
        return Err(unknown_trigger());
    }
    tracing::info!(tenant = %tenant.0, trigger = name, "trigger deleted");
    Ok(StatusCode::NO_CONTENT)
}

fn unknown_trigger() -> Problem {
    Problem::not_found("unknown_trigger", "there is no such trigger")
}

/// What a trigger did.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ActedBody {
    /// The trigger.
    trigger: String,
    /// `started`, `signalled`, `filtered` or `failed`.
    outcome: &'static str,
    /// The run that it started.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    run_id: Option<RunId>,
    /// The runs that it signalled.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<String>>)]
    signalled: Option<Vec<RunId>>,
    /// Why it did nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<TroubleBody>,
}

impl ActedBody {
    fn of(trigger: String, acted: Acted) -> Self {
        let (outcome, run_id, signalled) = match acted {
            Acted::Filtered => ("filtered", None, None),
            Acted::Started { run, .. } => ("started", Some(run), None),
            Acted::Signalled { runs, .. } => ("signalled", None, Some(runs)),
        };
        Self { trigger, outcome, run_id, signalled, problem: None }
    }

    fn failed(trigger: String, error: &ActError) -> Self {
        let problem = TroubleBody { code: error.code().to_owned(), message: error.to_string() };
        Self { trigger, outcome: "failed", run_id: None, signalled: None, problem: Some(problem) }
    }
}

/// Sets off a trigger of the kind `webhook`. The request carries no API key, and a signature over its body. The same request
/// again is refused, and changes nothing. Who has no valid signature does not learn whether there is such a
/// tenant or trigger.
#[utoipa::path(post, path = "/v1/hooks/{tenant}/{trigger}", tag = "triggers", security(()),
    params(
        ("tenant" = String, Path, description = "Whose trigger it is."),
        ("trigger" = String, Path, description = "The trigger's name."),
        ("Stepwell-Signature" = Option<String>, Header, description = "`t=SECONDS,v1=HEX`: HMAC-SHA256 over `SECONDS.BODY`, for the scheme `stepwell`."),
        ("Stripe-Signature" = Option<String>, Header, description = "The same, for the scheme `stripe`."),
        ("X-Hub-Signature-256" = Option<String>, Header, description = "`sha256=HEX`: HMAC-SHA256 over the body, for the scheme `github`."),
    ),
    request_body(content = Object, description = "At most 1 MiB. JSON is seen as such by the trigger's expressions, anything else as a string."),
    responses(
        (status = 202, description = "What the trigger did.", body = ActedBody),
        (status = 401, description = "`invalid_signature`, `expired_signature`", body = ProblemBody),
        (status = 403, description = "`journal_full`", body = ProblemBody),
        (status = 404, description = "`unknown_run`", body = ProblemBody),
        (status = 409, description = "`replayed_webhook`, `run_ended`", body = ProblemBody),
        (status = 413, description = "`too_large`", body = ProblemBody),
        (status = 422, description = "`expression_failed` (with `field` and `cause`), `invalid_value`, `invalid_input`", body = ProblemBody),
        (status = 429, description = "`too_many_runs`, `rate_limited`", body = ProblemBody),
    ))]
pub(super) async fn hook(
    State(app): State<App>,
    Segments((tenant, name)): Segments<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let tenant = tenant.parse::<TenantId>();
    let record = match &tenant {
        Ok(tenant) => app.journal.trigger(tenant, &name)?.filter(|record| record.enabled),
        Err(_) => None,
    };
    let body = problem::body(&headers, body, OCCURRENCE_BYTES_MAX).await?;
    let mut scheme = Scheme::default();
    let mut secrets = [None, None];
    if let (Ok(tenant), Some(TriggerOn::Webhook { secret, previous_secret, scheme: of })) =
        (&tenant, record.as_ref().map(|record| &record.on))
    {
        let previous = previous_secret.as_ref().map(|secret| app.triggers.secret(tenant, secret)).transpose()?;
        (secrets, scheme) = ([app.triggers.secret(tenant, secret)?, previous.flatten()], *of);
        if secrets.iter().all(Option::is_none) {
            tracing::warn!(%tenant, trigger = name, "the secret of a trigger is not there");
        }
    }
    // One answer and one way to it, whether the signature is wrong or there is nothing that it could be right for.
    let header = headers.get(scheme.header()).and_then(|value| value.to_str().ok());
    let id = signature::verify(scheme, &secrets, header, clock::now(), &body).map_err(|bad| {
        let code = match bad {
            BadSignature::Invalid => "invalid_signature",
            BadSignature::Expired => "expired_signature",
        };
        Problem::new(StatusCode::UNAUTHORIZED, code, bad.to_string())
    })?;
    let (Ok(tenant), Some(record)) = (tenant, record) else { return Err(Problem::internal()) }; // never: it had a secret

    let text = String::from_utf8_lossy(&body);
    let body = if text.trim().is_empty() { Ok(Json::null()) } else { Json::parse(text.clone().into_owned()) };
    let body = match body {
        Err(InvalidJson::Unreadable(why)) => return Err(invalid(format!("the body is not usable: {why}"))),
        // What is no JSON is text.
        body => body.or_else(|_| Json::of(&text)).map_err(|error| invalid(error.to_string()))?,
    };
    let seen = seen_headers(&headers);
    let value = Json::parse(format!(r#"{{"headers":{seen},"body":{}}}"#, body.as_str()));
    let value = value.map_err(|error| invalid(format!("the body is not usable: {error}")))?;
    let occurrence = Occurrence { value, default_input: body, id, time: None };
    let acted = app.triggers.act(&tenant, &record, &occurrence).await?;
    if matches!(acted, Acted::Started { replayed: true, .. } | Acted::Signalled { replayed: true, .. }) {
        let detail = "a request with this time and this body was taken before";
        return Err(Problem::new(StatusCode::CONFLICT, "replayed_webhook", detail));
    }
    Ok(accepted(ActedBody::of(name, acted), false))
}

/// What became of something, the first time or again.
fn accepted(what: impl Serialize, replayed: bool) -> Response {
    let mut response = (StatusCode::ACCEPTED, Answer(what)).into_response();
    if replayed {
        let header = HeaderName::from_static("idempotent-replayed");
        response.headers_mut().insert(header, HeaderValue::from_static("true"));
    }
    response
}

/// What is in the name of a header that proves who somebody is. Better one too many: a run's input is kept and shown.
const PROOFS: [&str; 10] = [
    "authorization",
    "x-auth",
    "cookie",
    "token",
    "secret",
    "signature",
    "password",
    "credential",
    "api-key",
    "apikey",
];

/// Headers as expressions see them: without what proves who somebody is.
fn seen_headers(headers: &HeaderMap) -> serde_json::Value {
    let is_proof = |name: &str| signature::HEADERS.contains(&name) || PROOFS.iter().any(|part| name.contains(part));
    let seen = headers.iter().filter(|(name, _)| !is_proof(name.as_str()));
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    seen.map(|(name, value)| (name.as_str().to_owned(), json!(text(value)))).collect::<serde_json::Map<_, _>>().into()
}

/// An event to be sent.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewEvent<'a> {
    /// The event's name: 1 to 64 characters out of A-Z, a-z, 0-9, _, . and -.
    name: String,
    /// Any JSON; `null` when it is left out.
    #[serde(borrow)]
    #[schema(value_type = Option<Object>)]
    data: Option<&'a RawValue>,
    /// The same id is the same event, for 24 hours. `Idempotency-Key` does the same.
    id: Option<String>,
}

/// What became of an event.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SentBody {
    /// The event's id.
    id: String,
    /// What each trigger of the event did.
    triggers: Vec<ActedBody>,
}

fn event_name(name: &str) -> Result<(), Problem> {
    if is_word(name) {
        return Ok(());
    }
    Err(invalid("the name of an event has 1 to 64 characters out of A-Z, a-z, 0-9, _, . and -"))
}

/// Sends an event: it sets off all triggers that wait for one of its name. When this answers, what they have started is on
/// disk. Without an answer, send it again with the same id: what was started before is not started again.
#[utoipa::path(post, path = "/v1/events", tag = "triggers",
    params(("Idempotency-Key" = Option<String>, Header, description = "The event's id, where the body has none.")),
    request_body = NewEvent,
    responses(
        (status = 202, description = "What the triggers of the event did.", body = SentBody),
        (status = 400, description = "`invalid_idempotency_key`", body = ProblemBody),
        (status = 403, description = "`journal_full`: some triggers may have done their work; send the event again when there is room", body = ProblemBody),
        (status = 413, description = "`too_large`", body = ProblemBody),
        (status = 422, description = "`invalid_json`, `invalid_body`, `idempotency_mismatch`", body = ProblemBody),
        (status = 429, description = "`too_many_runs`: the same", body = ProblemBody),
        (status = 503, description = "`unavailable`: some triggers may have done their work; send the event again", body = ProblemBody),
    ))]
pub(super) async fn send(
    State(app): State<App>,
    tenant: Tenant,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = problem::body(&headers, body, OCCURRENCE_BYTES_MAX).await?;
    let NewEvent { name, data, id } = problem::parse(&body)?;
    event_name(&name)?;
    if id.as_ref().is_some_and(|id| id.is_empty() || id.chars().count() > EVENT_ID_LEN_MAX) {
        return Err(invalid(format!("an id has 1 to {EVENT_ID_LEN_MAX} characters")));
    }
    let id = id.or(idempotency_text(&headers)?).unwrap_or_else(|| clock::run_id().to_string());
    let data = Json::parse(data.map_or("null", RawValue::get).to_owned());
    let data = data.map_err(|error| invalid(format!("the data is not usable: {error}")))?;

    let hash = |parts: &[&str]| {
        let parts = parts.iter().map(|part| Sha256::digest(part.as_bytes())).collect::<Vec<_>>().concat();
        Digest::from_bytes(Sha256::digest(parts).into())
    };
    let (id_hash, fingerprint) = (hash(&[&id]), hash(&[&name, data.as_str()]));
    let named = json!({ "id": id, "name": name }).to_string();
    let value = Json::parse(format!(r#"{},"data":{}}}"#, named.trim_end_matches('}'), data.as_str()));
    let value = value.map_err(|error| invalid(format!("the data is not usable: {error}")))?;
    if let Begun::Answered(answer) = app.journal.begin_event(&tenant.0, &id_hash, fingerprint, clock::now()).await? {
        return Ok(accepted(answer, true));
    }
    // By its hash: an id may have any characters.
    let occurrence = Occurrence { value, default_input: data, id: id_hash.to_string(), time: None };
    let mut triggers = Vec::new();
    for trigger in app.journal.triggers_of_event(&tenant.0, &name)? {
        let record = app.journal.trigger(&tenant.0, &trigger)?.filter(|record| record.enabled);
        let Some(record) = record else { continue };
        match app.triggers.act(&tenant.0, &record, &occurrence).await {
            Ok(acted) => triggers.push(ActedBody::of(trigger, acted)),
            // Nothing is answered for good, so whoever sends the event again starts what is missing.
            Err(error) if error.may_pass() || error.is_of_limits() => return Err(error.into()),
            Err(error) => triggers.push(ActedBody::failed(trigger, &error)),
        }
    }
    let answer = serde_json::value::to_raw_value(&SentBody { id, triggers }).map_err(|_| Problem::internal())?;
    let answer = app.journal.end_event(&tenant.0, &id_hash, answer, clock::now()).await?;
    Ok(accepted(answer, false))
}
