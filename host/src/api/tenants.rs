//! Tenants and what they may use: what the operator sets, and what a tenant sees of it.

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer, Serialize};
use stepwell_core::TenantId;
use utoipa::ToSchema;

use super::App;
use super::auth::{Operator, Segments, Tenant};
use super::problem::{self, Problem, ProblemBody};
use super::runs::SMALL_BYTES_MAX;
use super::wire::Page;
use crate::clock::{self, rfc3339};
use crate::journal::catalog::TenantRecord;
use crate::journal::limits::{Limits, OutOfBounds, SetLimits};
use crate::journal::usage::Usage;
use crate::journal::{JournalError, RedbJournal};

/// Days after its end that a run is deleted, when nothing else is said.
pub(crate) const RETENTION_DAYS_DEFAULT: u32 = 30;
/// The longest retention: ten years.
const RETENTION_DAYS_MAX: u32 = 3650;

/// A tenant.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TenantBody {
    /// Its id.
    id: String,
    /// When it was created.
    created_at: String,
    #[serde(flatten)]
    account: AccountBody,
}

/// What a tenant uses, and what it may use.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Account)]
pub(super) struct AccountBody {
    /// Days after its end that a run is deleted, with its events and files.
    retention_days: u32,
    /// Days after its end that a run's files, and its values of more than 64 KiB, are deleted; `null` keeps them as long as
    /// the run.
    artifact_retention_days: Option<u32>,
    /// What it may use.
    limits: LimitsBody,
    /// What it uses.
    usage: UsageBody,
}

/// What a tenant may use.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Limits)]
pub(super) struct LimitsBody {
    /// Bytes of what it has in the journal: events, files, large values, components. Beyond it nothing new is taken
    /// (`journal_full`).
    journal_bytes: u64,
    /// Runs that have not ended, whatever they do. Beyond it none is started (`too_many_runs`).
    unfinished_runs: u64,
    /// Events of one run. One with more fails (`run_too_long`).
    run_events: u64,
    /// Bytes of a run's input, and of a signal.
    input_bytes: u64,
    /// Bytes of one file.
    artifact_bytes: u64,
}

/// What a tenant uses.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Usage)]
pub(super) struct UsageBody {
    /// Bytes of what it has in the journal.
    journal_bytes: u64,
    /// Runs that have not ended.
    unfinished_runs: u64,
}

impl From<Limits> for LimitsBody {
    fn from(limits: Limits) -> Self {
        let Limits { journal_bytes, unfinished_runs, run_events, input_bytes, artifact_bytes } = limits;
        Self { journal_bytes, unfinished_runs, run_events, input_bytes, artifact_bytes }
    }
}

impl AccountBody {
    fn of(journal: &RedbJournal, record: &TenantRecord) -> Result<Self, JournalError> {
        let Usage { journal_bytes, unfinished_runs } = journal.usage(&record.id)?;
        Ok(Self {
            retention_days: record.retention_days,
            artifact_retention_days: record.artifact_retention_days,
            limits: record.limits.effective().into(),
            usage: UsageBody { journal_bytes, unfinished_runs },
        })
    }
}

impl TenantBody {
    fn of(journal: &RedbJournal, record: &TenantRecord) -> Result<Self, JournalError> {
        let account = AccountBody::of(journal, record)?;
        Ok(Self { id: record.id.to_string(), created_at: rfc3339(record.created_at), account })
    }
}

/// What creates a tenant.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewTenant {
    /// `[a-z0-9-]`, 1 to 40 characters.
    #[schema(value_type = String)]
    id: TenantId,
    /// Days after its end that a run is deleted, 1 to 3,650; 30 when it is left out.
    retention_days: Option<u32>,
    /// Days after its end that a run's files, and its values of more than 64 KiB, are deleted: at most `retention_days`. With
    /// the run when it is left out.
    artifact_retention_days: Option<u32>,
    /// What it may use; defaults for all that is left out.
    #[serde(default)]
    limits: NewLimits,
}

/// What changes a tenant. What is left out stays as it is; `null` sets the default.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangedTenant {
    /// Days after its end that a run is deleted, 1 to 3,650.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>)]
    retention_days: Option<Option<u32>>,
    /// Days after its end that a run's files, and its values of more than 64 KiB, are deleted: at most `retention_days`.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>)]
    artifact_retention_days: Option<Option<u32>>,
    /// What it may use.
    #[serde(default)]
    limits: NewLimits,
}

/// What a tenant may use. What is left out stays as it is; `null` sets the default.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewLimits {
    /// 1 to 17,592,186,044,416 (16 TiB); 68,719,476,736 (64 GiB) by default.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    journal_bytes: Option<Option<u64>>,
    /// 1 to 100,000,000; 1,000,000 by default.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    unfinished_runs: Option<Option<u64>>,
    /// 100 to 10,000,000, which is the default. A run that waits meets another limit when it goes on.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    run_events: Option<Option<u64>>,
    /// 1 to 4,194,304 (4 MiB), which is the default.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    input_bytes: Option<Option<u64>>,
    /// 1 to 16,777,216 (16 MiB), which is the default.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>)]
    artifact_bytes: Option<Option<u64>>,
}

/// A field that is there, `null` or not; one that is not there is its default.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl NewLimits {
    fn change(self, limits: &mut SetLimits) {
        let Self { journal_bytes, unfinished_runs, run_events, input_bytes, artifact_bytes } = self;
        let set = |limit: &mut Option<u64>, new: Option<Option<u64>>| *limit = new.unwrap_or(*limit);
        set(&mut limits.journal_bytes, journal_bytes);
        set(&mut limits.unfinished_runs, unfinished_runs);
        set(&mut limits.run_events, run_events);
        set(&mut limits.input_bytes, input_bytes);
        set(&mut limits.artifact_bytes, artifact_bytes);
    }
}

impl ChangedTenant {
    fn change(self, record: &mut TenantRecord) -> Result<(), String> {
        let Self { retention_days, artifact_retention_days, limits } = self;
        if let Some(days) = retention_days {
            record.retention_days = days.unwrap_or(RETENTION_DAYS_DEFAULT);
        }
        if let Some(days) = artifact_retention_days {
            record.artifact_retention_days = days;
        }
        limits.change(&mut record.limits);
        check(record)
    }
}

/// Whether a tenant can be as it is described; otherwise a sentence that says what is wrong.
fn check(record: &TenantRecord) -> Result<(), String> {
    if !(1..=RETENTION_DAYS_MAX).contains(&record.retention_days) {
        return Err(format!("retention_days is 1 to {RETENTION_DAYS_MAX}"));
    }
    if record.artifact_retention_days.is_some_and(|days| !(1..=record.retention_days).contains(&days)) {
        return Err(format!("artifact_retention_days is 1 to retention_days, which is {}", record.retention_days));
    }
    record.limits.check().map_err(|error: OutOfBounds| error.to_string())
}

fn invalid(why: String) -> Problem {
    Problem::invalid("invalid_body", why)
}

fn unknown_tenant() -> Problem {
    Problem::not_found("unknown_tenant", "there is no such tenant")
}

/// Creates a tenant.
#[utoipa::path(post, path = "/v1/admin/tenants", tag = "admin", request_body = NewTenant,
    responses(
        (status = 201, body = TenantBody),
        (status = 409, description = "`tenant_exists`", body = ProblemBody),
        (status = 422, description = "`invalid_json`, `invalid_body`", body = ProblemBody),
    ))]
pub(super) async fn create(
    State(app): State<App>,
    _: Operator,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = problem::body(&headers, body, SMALL_BYTES_MAX).await?;
    let NewTenant { id, retention_days, artifact_retention_days, limits } = problem::parse(&body)?;
    let retention_days = retention_days.unwrap_or(RETENTION_DAYS_DEFAULT);
    let mut set = SetLimits::default();
    limits.change(&mut set);
    let record = TenantRecord { id, created_at: clock::now(), retention_days, artifact_retention_days, limits: set };
    check(&record).map_err(invalid)?;
    if !app.journal.create_tenant(record.clone()).await? {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "tenant_exists",
            format!("there is a tenant `{}` already", record.id),
        ));
    }
    tracing::info!(tenant = %record.id, "tenant created");
    Ok((StatusCode::CREATED, Answer(TenantBody::of(&app.journal, &record)?)).into_response())
}

/// Changes how long a tenant's runs are kept and what it may use. Holds for whatever comes next; nothing that was accepted
/// is undone, but for what is older than a shorter retention.
#[utoipa::path(patch, path = "/v1/admin/tenants/{id}", tag = "admin", request_body = ChangedTenant,
    params(("id" = String, Path, description = "The tenant's id.")),
    responses(
        (status = 200, body = TenantBody),
        (status = 404, description = "`unknown_tenant`", body = ProblemBody),
        (status = 422, description = "`invalid_json`, `invalid_body`", body = ProblemBody),
    ))]
pub(super) async fn change(
    State(app): State<App>,
    _: Operator,
    Segments(id): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer<TenantBody>, Problem> {
    let id: TenantId = id.parse().map_err(|_| unknown_tenant())?;
    let body = problem::body(&headers, body, SMALL_BYTES_MAX).await?;
    let changed: ChangedTenant = problem::parse(&body)?;
    let record = app.journal.change_tenant(&id, move |record| changed.change(record)).await?;
    let record = record.ok_or_else(unknown_tenant)?.map_err(invalid)?;
    tracing::info!(tenant = %id, "tenant changed");
    Ok(Answer(TenantBody::of(&app.journal, &record)?))
}

/// A tenant, with what it uses.
#[utoipa::path(get, path = "/v1/admin/tenants/{id}", tag = "admin",
    params(("id" = String, Path, description = "The tenant's id.")),
    responses((status = 200, body = TenantBody), (status = 404, description = "`unknown_tenant`", body = ProblemBody)))]
pub(super) async fn get(
    State(app): State<App>,
    _: Operator,
    Segments(id): Segments<String>,
) -> Result<Answer<TenantBody>, Problem> {
    let id: TenantId = id.parse().map_err(|_| unknown_tenant())?;
    let record = app.journal.tenant(&id)?.ok_or_else(unknown_tenant)?;
    Ok(Answer(TenantBody::of(&app.journal, &record)?))
}

/// All tenants.
#[utoipa::path(get, path = "/v1/admin/tenants", tag = "admin", responses((status = 200, body = Page<TenantBody>)))]
pub(super) async fn list(State(app): State<App>, _: Operator) -> Result<Answer<Page<TenantBody>>, Problem> {
    let tenants = app.journal.tenants()?;
    let tenants = tenants.iter().map(|record| TenantBody::of(&app.journal, record));
    Ok(Answer(Page::whole(tenants.collect::<Result<_, _>>()?)))
}

/// What this tenant uses, what it may use, and how long its runs are kept.
#[utoipa::path(get, path = "/v1/usage", tag = "usage", responses((status = 200, body = AccountBody)))]
pub(super) async fn usage(State(app): State<App>, tenant: Tenant) -> Result<Answer<AccountBody>, Problem> {
    let record = app.journal.tenant(&tenant.0)?.ok_or_else(unknown_tenant)?;
    Ok(Answer(AccountBody::of(&app.journal, &record)?))
}
