//! Shadow runs: what of a workflow is shadowed, and what came of it.

use axum::Json as Answer;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use stepwell_core::{Digest, RunId, RunKey};
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::auth::{Segments, Tenant};
use super::problem::{self, Problem, ProblemBody};
use super::runs::{LIMIT_MAX, SMALL_BYTES_MAX, limit, query};
use super::wire::PageInfo;
use super::workflows;
use crate::clock::{self, rfc3339};
use crate::journal::shadows::{PARTS, ShadowOutbound, ShadowPair, ShadowRecord, Side, Usage, Verdict};
use crate::journal::{Journal, JournalError, RedbJournal};

/// Pairs on a page when the client does not say.
const LIMIT_DEFAULT: usize = 50;
/// Pairs that one report counts: reading them takes tens of milliseconds.
const COUNTED_MAX: usize = 10_000;
/// Said with every setting that lets calls out.
const LIVE_WARNING: &str = "live: requests and questions to models that are not on the record of a run are made by its shadow \
                            too, with everything that follows from them";

/// What sets up shadow runs.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewShadow {
    /// The version that shadows run: one of the workflow's.
    version: String,
    /// Percent of starts that are shadowed: above 0, at most 100, in steps of 0.0001.
    share: f64,
    /// What becomes of a shadow's requests and questions to models that are not on record; `replay` when it is left out.
    #[serde(default)]
    outbound: ShadowOutbound,
}

/// What of a workflow is shadowed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ShadowBody {
    /// The workflow.
    workflow: String,
    /// The version that shadows run.
    version: String,
    /// Percent of starts that are shadowed.
    share: f64,
    /// What becomes of a shadow's requests and questions to models that are not on record.
    outbound: ShadowOutbound,
    /// When it was set to this. Runs that were started before are not shadowed.
    since: String,
    /// What to know about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<&'static str>,
}

impl From<ShadowRecord> for ShadowBody {
    fn from(record: ShadowRecord) -> Self {
        Self {
            workflow: record.workflow.to_string(),
            version: record.version.to_string(),
            share: f64::from(record.parts) * 100.0 / f64::from(PARTS),
            outbound: record.outbound,
            since: rfc3339(record.since),
            warning: (record.outbound == ShadowOutbound::Live).then_some(LIVE_WARNING),
        }
    }
}

fn no_shadow() -> Problem {
    Problem::not_found("no_shadow", "nothing of this workflow is shadowed")
}

/// A share in percent as a number of parts.
fn parts_of(share: f64) -> Result<u32, Problem> {
    let invalid = || {
        Problem::invalid("invalid_share", "a share is a number of percent above 0 and up to 100, in steps of 0.0001")
    };
    let exact = share * f64::from(PARTS) / 100.0;
    let parts = exact.round();
    // Decimals are hardly ever exact in binary; half a step is another matter.
    if !(share.is_finite() && share <= 100.0 && parts >= 1.0 && (exact - parts).abs() < 1e-6) {
        return Err(invalid());
    }
    // Between 1 and PARTS, as was just seen.
    Ok(parts as u32)
}

/// Has a share of a workflow's starts shadowed: when such a run has ended, another version is run with the same input, and the
/// two are compared. Runs that were started before are not shadowed, nor are children, reruns, cancelled runs, and runs that
/// had this version anyway.
#[utoipa::path(put, path = "/v1/workflows/{name}/shadow", tag = "shadows",
    params(("name" = String, Path, description = "The workflow's name.")),
    request_body = NewShadow,
    responses(
        (status = 200, description = "From now on.", body = ShadowBody),
        (status = 404, description = "`unknown_workflow`, `unknown_version`", body = ProblemBody),
        (status = 413, description = "`too_large`", body = ProblemBody),
        (status = 422, description = "`invalid_share`, `invalid_body`, `invalid_json`", body = ProblemBody),
    ))]
pub(super) async fn put(
    State(app): State<App>,
    tenant: Tenant,
    Segments(text): Segments<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Answer<ShadowBody>, Problem> {
    let workflow = workflows::known(&app, &tenant, &text)?;
    let body = problem::body(&headers, body, SMALL_BYTES_MAX).await?;
    let NewShadow { version, share, outbound } = problem::parse(&body)?;
    let parts = parts_of(share)?;
    let unknown = || Problem::not_found("unknown_version", "the workflow has no such version");
    let version: Digest = version.parse().map_err(|_| unknown())?;
    app.journal.version(&tenant.0, &workflow, &version)?.ok_or_else(unknown)?;
    let record = ShadowRecord { workflow, version, parts, outbound, since: clock::now() };
    app.journal.put_shadow(&tenant.0, &record).await?;
    tracing::info!(tenant = %tenant.0, workflow = %record.workflow, %version, share, ?outbound, "shadow set");
    Ok(Answer(record.into()))
}

/// What of a workflow is shadowed.
#[utoipa::path(get, path = "/v1/workflows/{name}/shadow", tag = "shadows",
    params(("name" = String, Path, description = "The workflow's name.")),
    responses(
        (status = 200, body = ShadowBody),
        (status = 404, description = "`unknown_workflow`, `no_shadow`", body = ProblemBody),
    ))]
pub(super) async fn get(
    State(app): State<App>,
    tenant: Tenant,
    Segments(text): Segments<String>,
) -> Result<Answer<ShadowBody>, Problem> {
    let workflow = workflows::known(&app, &tenant, &text)?;
    Ok(Answer(app.journal.shadow(&tenant.0, &workflow)?.ok_or_else(no_shadow)?.into()))
}

/// Shadows nothing of a workflow any more. Shadows under way go on, and the report stays.
#[utoipa::path(delete, path = "/v1/workflows/{name}/shadow", tag = "shadows",
    params(("name" = String, Path, description = "The workflow's name.")),
    responses(
        (status = 204, description = "Nothing is shadowed."),
        (status = 404, description = "`unknown_workflow`, `no_shadow`", body = ProblemBody),
    ))]
pub(super) async fn delete(
    State(app): State<App>,
    tenant: Tenant,
    Segments(text): Segments<String>,
) -> Result<StatusCode, Problem> {
    let workflow = workflows::known(&app, &tenant, &text)?;
    if !app.journal.delete_shadow(&tenant.0, &workflow).await? {
        return Err(no_shadow());
    }
    tracing::info!(tenant = %tenant.0, %workflow, "shadow deleted");
    Ok(StatusCode::NO_CONTENT)
}

/// Which part of a report.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ReportQuery {
    /// The version of the shadows; that of the setting when it is left out, and without one that of the latest shadow.
    #[param(value_type = Option<String>)]
    version: Option<Digest>,
    /// Only pairs that come to this.
    verdict: Option<Verdict>,
    /// Where the last page ended.
    cursor: Option<String>,
    /// Pairs on the page, 1 to 500; 50 when it is left out.
    limit: Option<usize>,
}

/// Runs and their shadows, the latest run first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ShadowReport {
    /// The workflow.
    workflow: String,
    /// The version that the shadows run; missing when nothing was ever shadowed.
    version: Option<String>,
    /// All pairs of this version in numbers.
    totals: Totals,
    /// The pairs of this page.
    data: Vec<PairBody>,
    /// Where it goes on.
    page: PageInfo,
}

/// Many pairs in numbers.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = ShadowTotals)]
pub(super) struct Totals {
    /// All of them.
    pairs: u64,
    /// Those of which both have ended and say something: the next four together.
    compared: u64,
    /// Both completed with the same output, or failed with the same code.
    equal: u64,
    /// Both completed with different outputs, or failed with different codes.
    different: u64,
    /// The run failed and its shadow completed.
    primary_failed_only: u64,
    /// The run completed and its shadow failed.
    shadow_failed_only: u64,
    /// The shadow was cancelled, or never started.
    not_compared: u64,
    /// The shadow has not ended.
    pending: u64,
    /// Of the pairs that were compared: instructions of the shadows for each one of the runs.
    fuel_ratio: Option<f64>,
    /// Of the pairs that were compared: what models did for the runs.
    primary_usage: Usage,
    /// The same for the shadows.
    shadow_usage: Usage,
    /// There are more: the latest 10,000 are counted.
    truncated: bool,
}

/// A run and its shadow.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ShadowPair)]
pub(super) struct PairBody {
    /// What it comes to.
    verdict: Verdict,
    /// The run.
    run: SideBody,
    /// Its shadow.
    shadow: SideBody,
    /// Whether the outputs are the same JSON, if both have completed: numbers by value, keys in any order.
    output_equal: Option<bool>,
    /// Where they first differ, as a JSON pointer; empty for the whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    differs_at: Option<String>,
    /// Why there is no shadow, or no comparison.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<PairProblem>,
}

/// Why there is no shadow.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ShadowProblem)]
pub(super) struct PairProblem {
    /// A stable identifier.
    code: String,
    /// A sentence for people.
    message: String,
}

/// One of the two.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = ShadowSide)]
pub(super) struct SideBody {
    /// The run's id. That of a shadow is there before the shadow is.
    id: String,
    /// Where it stands; missing while it is not there.
    #[schema(value_type = Option<String>)]
    status: Option<&'static str>,
    /// Why it has failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_code: Option<String>,
    /// The node that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed_node: Option<String>,
    /// Metered instructions of all attempts, once they were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    fuel_used: Option<u64>,
    /// From its first steps to its end. A shadow is answered from the record, so it waits for nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<u64>,
    /// What models did for it. Answers from the record count as they did in the run.
    #[serde(flatten)]
    usage: Usage,
}

impl SideBody {
    fn of(id: RunId, side: &Side) -> Self {
        Self {
            id: id.to_string(),
            status: Some(side.status.as_str()),
            failure_code: side.failure_code.clone(),
            failed_node: side.failed_node.clone(),
            fuel_used: Some(side.fuel_used),
            duration_ms: Some(side.duration_ms),
            usage: side.usage,
        }
    }

    /// Of a pair that was not compared.
    fn of_run(journal: &RedbJournal, key: &RunKey) -> Result<Self, JournalError> {
        let summary = journal.summary(key)?;
        let failure = summary.as_ref().and_then(|summary| summary.failure.as_ref());
        Ok(Self {
            id: key.run.to_string(),
            status: summary.as_ref().map(|summary| summary.status.as_str()),
            failure_code: failure.map(|failure| failure.code.clone()),
            failed_node: failure.and_then(|failure| failure.step.as_ref()).map(|step| step.node.to_string()),
            ..Self::default()
        })
    }
}

impl PairBody {
    fn of(journal: &RedbJournal, tenant: &Tenant, pair: ShadowPair) -> Result<Self, JournalError> {
        let verdict = pair.verdict();
        let key = |run| RunKey { tenant: tenant.0.clone(), run };
        let (run, shadow) = match &pair.compared {
            Some(compared) => (SideBody::of(pair.run, &compared.run), SideBody::of(pair.shadow, &compared.shadow)),
            None => (SideBody::of_run(journal, &key(pair.run))?, SideBody::of_run(journal, &key(pair.shadow))?),
        };
        let both = run.status == Some("completed") && shadow.status == Some("completed");
        let differs_at = pair.compared.as_ref().and_then(|compared| compared.differs_at.clone());
        let problem = pair.problem.map(|(code, message)| PairProblem { code, message });
        let output_equal = (both && pair.compared.is_some()).then_some(differs_at.is_none());
        Ok(Self { verdict, run, shadow, output_equal, differs_at, problem })
    }
}

impl Totals {
    fn of(pairs: &[ShadowPair]) -> Self {
        let mut totals = Self::default();
        let (mut fuel, mut shadow_fuel) = (0u64, 0u64);
        for pair in pairs {
            totals.pairs += 1;
            let count = match pair.verdict() {
                Verdict::Equal => &mut totals.equal,
                Verdict::Different => &mut totals.different,
                Verdict::PrimaryFailedOnly => &mut totals.primary_failed_only,
                Verdict::ShadowFailedOnly => &mut totals.shadow_failed_only,
                Verdict::NotCompared => {
                    totals.not_compared += 1;
                    continue;
                }
                Verdict::Pending => {
                    totals.pending += 1;
                    continue;
                }
            };
            *count += 1;
            totals.compared += 1;
            if let Some(compared) = &pair.compared {
                fuel = fuel.saturating_add(compared.run.fuel_used);
                shadow_fuel = shadow_fuel.saturating_add(compared.shadow.fuel_used);
                totals.primary_usage = totals.primary_usage.plus(compared.run.usage);
                totals.shadow_usage = totals.shadow_usage.plus(compared.shadow.usage);
            }
        }
        totals.fuel_ratio = (fuel > 0).then(|| shadow_fuel as f64 / fuel as f64);
        totals
    }
}

/// Runs of a workflow and their shadows, the latest run first, and all of them in numbers. What was compared stays as long as
/// the run does.
#[utoipa::path(get, path = "/v1/workflows/{name}/shadow/report", tag = "shadows",
    params(("name" = String, Path, description = "The workflow's name."), ReportQuery),
    responses(
        (status = 200, body = ShadowReport),
        (status = 400, description = "`invalid_query`", body = ProblemBody),
        (status = 404, description = "`unknown_workflow`", body = ProblemBody),
    ))]
pub(super) async fn report(
    State(app): State<App>,
    tenant: Tenant,
    Segments(text): Segments<String>,
    asked: Result<Query<ReportQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Answer<ShadowReport>, Problem> {
    let workflow = workflows::known(&app, &tenant, &text)?;
    let ReportQuery { version, verdict, cursor, limit: asked } = query(asked)?;
    let limit = limit(asked, LIMIT_DEFAULT, LIMIT_MAX)?;
    let before = cursor.map(|cursor| cursor.parse::<RunId>()).transpose();
    let before = before.map_err(|_| Problem::bad_request("invalid_query", "the cursor is not one of ours"))?;
    let report = move || {
        let mut pairs = app.journal.shadow_pairs(&tenant.0, &workflow, None, COUNTED_MAX + 1)?;
        let truncated = pairs.len() > COUNTED_MAX;
        pairs.truncate(COUNTED_MAX);
        let setting = app.journal.shadow(&tenant.0, &workflow)?.map(|setting| setting.version);
        let version = version.or(setting).or_else(|| pairs.first().map(|pair| pair.version));
        pairs.retain(|pair| Some(pair.version) == version);
        let totals = Totals { truncated, ..Totals::of(&pairs) };
        let mut rest = pairs.into_iter().filter(|pair| {
            before.is_none_or(|before| pair.run < before) && verdict.is_none_or(|verdict| pair.verdict() == verdict)
        });
        let page: Vec<ShadowPair> = rest.by_ref().take(limit).collect();
        let last = page.last().map(|pair| pair.run.to_string());
        let cursor = last.filter(|_| rest.next().is_some());
        let data = page.into_iter().map(|pair| PairBody::of(&app.journal, &tenant, pair));
        Ok::<_, JournalError>(ShadowReport {
            workflow: workflow.to_string(),
            version: version.map(|version| version.to_string()),
            totals,
            data: data.collect::<Result<_, _>>()?,
            page: PageInfo { has_more: cursor.is_some(), cursor, limit },
        })
    };
    // Many pairs take a while to read.
    let report = tokio::task::spawn_blocking(report).await.map_err(|_| Problem::internal())??;
    Ok(Answer(report))
}
