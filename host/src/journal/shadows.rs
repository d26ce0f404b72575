//! Runs that shadow others: what of a workflow is to be shadowed, which runs are, and what came of each pair.
//!
//! Owns: their tables, the choice ([`is_chosen`]), and the two hooks of the writer: [`enqueue`] and [`forget`].
//! Does not: start a shadow, or compare anything; `triggers/shadows.rs` does.
//! Keeps: that a run is to be shadowed, and under which id, is written in the transaction of its end. So a crash starts its
//! shadow neither twice nor not at all, and whatever goes wrong with a shadow goes wrong after the run is done.

use ::redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use stepwell_core::{Digest, RunId, RunKey, RunStatus, Seq, TenantId, Timestamp, WorkflowName};
use utoipa::ToSchema;

use super::due::{DueList, Lane};
use super::redb::{RedbJournal, parse, storage, to_json};
use super::writer::Bytes2Bytes;
use super::{JournalError, RunSummary, keys};

/// (tenant, workflow) → what is to be shadowed.
const SHADOW_SETTINGS: Bytes2Bytes = TableDefinition::new("shadow_settings");
/// (tenant, workflow, run) → the run's shadow, and what came of the two.
const SHADOW_PAIRS: Bytes2Bytes = TableDefinition::new("shadow_pairs");
/// Runs of each pair with something to do: start the shadow, or compare the two. A workflow has a lane.
const SHADOWS_DUE: DueList =
    DueList { entries: TableDefinition::new("shadows_due"), turns: TableDefinition::new("shadow_turns") };
/// tenant → how many of its pairs are due.
const SHADOW_COUNTS: Bytes2Bytes = TableDefinition::new("shadow_counts");

/// All of them.
pub(super) const TABLES: &[Bytes2Bytes] =
    &[SHADOW_SETTINGS, SHADOW_PAIRS, SHADOWS_DUE.entries, SHADOWS_DUE.turns, SHADOW_COUNTS];

/// Events of a run that can be shadowed. A shadow looks for its answers among them, and both runs are read whole to be
/// compared.
pub const SHADOWED_EVENTS_MAX: Seq = 100_000;
/// Pairs of a tenant that are due at once. Runs that end while there are more have no shadow: a tenant that starts more than its
/// shadows have room for would have more and more of them, and others would wait behind them.
const DUE_PER_TENANT_MAX: u64 = 1_000;
/// A share of all starts is counted in these.
pub const PARTS: u32 = 1_000_000;

/// What of a workflow is to be shadowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowRecord {
    /// The workflow.
    pub workflow: WorkflowName,
    /// The version that shadows run.
    pub version: Digest,
    /// How many of [`PARTS`] starts are shadowed.
    pub parts: u32,
    /// What becomes of calls that are not on record.
    pub outbound: ShadowOutbound,
    /// When it was set to this. Runs that are older are not shadowed.
    pub since: Timestamp,
}

/// What becomes of a shadow's requests and questions to models that are not on the record of the run that it shadows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ShadowOutbound {
    /// They are not made, and the step fails: `shadow_no_recording`.
    #[default]
    Replay,
    /// They are made, with everything that follows from them.
    Live,
}

/// A run and its shadow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowPair {
    /// The run.
    pub run: RunId,
    /// Its shadow, which may not have been started.
    pub shadow: RunId,
    /// The version that the shadow runs.
    pub version: Digest,
    /// Whether the shadow's calls are made that are not on record.
    #[serde(default, skip_serializing_if = "is_false")]
    pub live: bool,
    /// Why there is no shadow: a code and a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<(String, String)>,
    /// What came of the two, once both have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared: Option<Compared>,
}

/// What came of a run and its shadow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// The run.
    pub run: Side,
    /// Its shadow.
    pub shadow: Side,
    /// Where the outputs first differ, as a JSON pointer, if both have completed and they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub differs_at: Option<String>,
}

/// What came of one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// How it has ended.
    pub status: RunStatus,
    /// Why it has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_code: Option<String>,
    /// The node that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed_node: Option<String>,
    /// Metered instructions of all attempts.
    pub fuel_used: u64,
    /// From its first steps to its end.
    pub duration_ms: u64,
    /// What models read and wrote, and what that cost, where they say so.
    #[serde(default)]
    pub usage: Usage,
}

/// What models read and wrote for a run. A number is missing when no model has said it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ModelUsage)]
pub struct Usage {
    /// Tokens that they read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<u64>,
    /// Tokens that they wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<u64>,
    /// Millionths of a US dollar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_micros: Option<u64>,
}

impl Usage {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let sum = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (None, None) => None,
            (one, other) => Some(one.unwrap_or(0).saturating_add(other.unwrap_or(0))),
        };
        Self {
            input_tokens: sum(self.input_tokens, other.input_tokens),
            output_tokens: sum(self.output_tokens, other.output_tokens),
            cost_micros: sum(self.cost_micros, other.cost_micros),
        }
    }
}

/// What a pair comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ShadowVerdict)]
pub enum Verdict {
    /// Both completed with the same output, or failed with the same code.
    Equal,
    /// Both completed with different outputs, or failed with different codes.
    Different,
    /// The run failed and its shadow completed.
    PrimaryFailedOnly,
    /// The run completed and its shadow failed.
    ShadowFailedOnly,
    /// The shadow was cancelled, or never started: there is nothing to compare.
    NotCompared,
    /// The shadow has not ended.
    Pending,
}

impl ShadowPair {
    /// What it comes to.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        use RunStatus::{Completed, Failed};
        let Some(Compared { run, shadow, differs_at }) = &self.compared else {
            return if self.problem.is_some() { Verdict::NotCompared } else { Verdict::Pending };
        };
        match (run.status, shadow.status) {
            (Completed, Completed) if differs_at.is_none() => Verdict::Equal,
            (Failed, Failed) if run.failure_code == shadow.failure_code => Verdict::Equal,
            (Completed, Completed) | (Failed, Failed) => Verdict::Different,
            (Failed, Completed) => Verdict::PrimaryFailedOnly,
            (Completed, Failed) => Verdict::ShadowFailedOnly,
            _ => Verdict::NotCompared,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Whether a run is among the share that is shadowed: the first 8 bytes of the SHA-256 of its id as text, as a fraction of
/// all that 8 bytes can be, lie below the share. Anybody can tell, before and after.
#[must_use]
pub fn is_chosen(run: &RunId, parts: u32) -> bool {
    let hash: [u8; 32] = Sha256::digest(run.to_string()).into();
    let first = hash.first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    // Below PARTS, so that all of them choose every run.
    (u128::from(first) * u128::from(PARTS)) >> 64 < u128::from(parts)
}

fn pair_key(tenant: &TenantId, workflow: &WorkflowName, run: &RunId) -> Vec<u8> {
    [keys::workflow(tenant, workflow).as_slice(), run.as_bytes()].concat()
}

/// Writes down what is owed for the end of a run: a shadow of it, or, when it is one, a comparison. Called by the writer, within
/// the transaction of that end.
pub(super) fn enqueue(transaction: &WriteTransaction, key: &RunKey, summary: &[u8]) -> Result<(), JournalError> {
    let settings = transaction.open_table(SHADOW_SETTINGS).map_err(storage("open the shadows"))?;
    let mut pairs = transaction.open_table(SHADOW_PAIRS).map_err(storage("open the shadows"))?;
    let of_tenant = keys::of_tenant(&key.tenant);
    let has_any = |table: &::redb::Table<'_, &'static [u8], &'static [u8]>| {
        let mut range = table.range(of_tenant.start.as_slice()..of_tenant.end.as_slice())?;
        Ok::<_, ::redb::StorageError>(range.next().is_some())
    };
    // Tenants without shadows pay for two looks.
    if !has_any(&settings).map_err(storage("look for shadows"))?
        && !has_any(&pairs).map_err(storage("look for shadows"))?
    {
        return Ok(());
    }
    let summary: RunSummary = parse(summary, || format!("the summary of {key}"))?;
    // A moment later than the run's own end, if this is its shadow's: each is due by itself.
    let at = summary.ended_at.unwrap_or_default().plus_millis(u64::from(summary.shadow_of.is_some()));
    let is_due = match summary.shadow_of {
        Some(of) => {
            let pair = pairs.get(pair_key(&key.tenant, &summary.workflow, &of.run).as_slice());
            let pair = pair.map_err(storage("look for a shadow"))?;
            // One bad entry must not stop the journal.
            let pair = pair.and_then(|value| serde_json::from_slice::<ShadowPair>(value.value()).ok());
            pair.is_some_and(|pair| pair.shadow == key.run).then_some(of.run)
        }
        None => {
            let setting = settings.get(keys::workflow(&key.tenant, &summary.workflow).as_slice());
            let setting = setting.map_err(storage("look for a shadow"))?;
            let setting = setting.and_then(|value| serde_json::from_slice::<ShadowRecord>(value.value()).ok());
            let Some(setting) = setting.filter(|setting| wants(setting, &key.run, &summary)) else { return Ok(()) };
            let problem = problem_of(&summary, count_due(transaction, &key.tenant, 0)?);
            let pair = new_pair(&setting, key.run, problem);
            let value = to_json(&pair, "a shadow")?;
            let stored = pair_key(&key.tenant, &summary.workflow, &key.run);
            pairs.insert(stored.as_slice(), value.as_slice()).map_err(storage("write a shadow"))?;
            pair.problem.is_none().then_some(key.run)
        }
    };
    if let Some(run) = is_due {
        SHADOWS_DUE.change(transaction, &lane(&key.tenant, &summary.workflow), run.as_bytes(), None, Some(at))?;
        count_due(transaction, &key.tenant, 1)?;
    }
    Ok(())
}

/// Whether a run that has ended is to be shadowed: it was started from outside, since then, at another version, it has come to
/// an end of its own, and it is among the chosen.
fn wants(setting: &ShadowRecord, run: &RunId, summary: &RunSummary) -> bool {
    matches!(summary.status, RunStatus::Completed | RunStatus::Failed)
        && summary.parent.is_none()
        && summary.rerun_of.is_none()
        && summary.created_at >= setting.since
        && summary.version != setting.version
        && is_chosen(run, setting.parts)
}

/// Why a run has no shadow though it is wanted: a code and a sentence.
fn problem_of(summary: &RunSummary, due: u64) -> Option<(String, String)> {
    if summary.status_seq > SHADOWED_EVENTS_MAX {
        let message = format!("a run with more than {SHADOWED_EVENTS_MAX} events is not shadowed");
        return Some(("run_too_long".to_owned(), message));
    }
    (due >= DUE_PER_TENANT_MAX).then(|| {
        let message = format!("{DUE_PER_TENANT_MAX} shadows are still to be started");
        ("too_many_shadows".to_owned(), message)
    })
}

fn lane(tenant: &TenantId, workflow: &WorkflowName) -> Lane {
    Lane { tenant: tenant.clone(), name: workflow.to_string() }
}

fn new_pair(setting: &ShadowRecord, run: RunId, problem: Option<(String, String)>) -> ShadowPair {
    // The id is chosen here, so that whoever starts the shadow can see whether it is there.
    let shadow = crate::clock::run_id();
    let live = setting.outbound == ShadowOutbound::Live;
    ShadowPair { run, shadow, version: setting.version, live, problem, compared: None }
}

/// How many of a tenant's pairs are due, after a change of that number.
fn count_due(transaction: &WriteTransaction, tenant: &TenantId, change: i64) -> Result<u64, JournalError> {
    let mut counts = transaction.open_table(SHADOW_COUNTS).map_err(storage("open the shadows"))?;
    let key = tenant.as_str().as_bytes();
    let stored = counts.get(key).map_err(storage("count shadows"))?;
    let before = stored.and_then(|value| value.value().try_into().ok()).map_or(0, u64::from_be_bytes);
    let count = before.saturating_add_signed(change);
    if count != before {
        counts.insert(key, count.to_be_bytes().as_slice()).map_err(storage("count shadows"))?;
    }
    Ok(count)
}

/// Forgets a run that is deleted.
pub(super) fn forget(
    transaction: &WriteTransaction,
    key: &RunKey,
    workflow: &WorkflowName,
) -> Result<(), JournalError> {
    let mut pairs = transaction.open_table(SHADOW_PAIRS).map_err(storage("open the shadows"))?;
    pairs.remove(pair_key(&key.tenant, workflow, &key.run).as_slice()).map_err(storage("forget a shadow"))?;
    Ok(())
}

impl RedbJournal {
    /// Sets what of a workflow is shadowed.
    pub async fn put_shadow(&self, tenant: &TenantId, record: &ShadowRecord) -> Result<(), JournalError> {
        let key = keys::workflow(tenant, &record.workflow);
        let value = to_json(record, "a shadow")?;
        self.write(move |transaction| {
            let mut table = transaction.open_table(SHADOW_SETTINGS).map_err(storage("open the shadows"))?;
            table.insert(key.as_slice(), value.as_slice()).map_err(storage("write a shadow"))?;
            Ok(())
        })
        .await
    }

    /// What of a workflow is shadowed.
    pub fn shadow(&self, tenant: &TenantId, workflow: &WorkflowName) -> Result<Option<ShadowRecord>, JournalError> {
        self.one(SHADOW_SETTINGS, &keys::workflow(tenant, workflow))
    }

    /// Shadows nothing of a workflow any more. `false` when nothing was. What came of pairs so far stays.
    pub async fn delete_shadow(&self, tenant: &TenantId, workflow: &WorkflowName) -> Result<bool, JournalError> {
        self.delete(SHADOW_SETTINGS, keys::workflow(tenant, workflow)).await
    }

    /// A run's shadow.
    pub fn shadow_pair(
        &self,
        tenant: &TenantId,
        workflow: &WorkflowName,
        run: &RunId,
    ) -> Result<Option<ShadowPair>, JournalError> {
        self.one(SHADOW_PAIRS, &pair_key(tenant, workflow, run))
    }

    /// Shadowed runs of a workflow, newest first, older than `before`, at most `limit`.
    pub fn shadow_pairs(
        &self,
        tenant: &TenantId,
        workflow: &WorkflowName,
        before: Option<&RunId>,
        limit: usize,
    ) -> Result<Vec<ShadowPair>, JournalError> {
        let table = self.reader()?.open_table(SHADOW_PAIRS).map_err(storage("open the shadows"))?;
        let mut range = keys::starting_with(keys::workflow(tenant, workflow));
        if let Some(before) = before {
            range.end = pair_key(tenant, workflow, before);
        }
        let entries = table.range(range.start.as_slice()..range.end.as_slice()).map_err(storage("list shadows"))?;
        entries
            .rev()
            .take(limit)
            .map(|entry| {
                let (_, value) = entry.map_err(storage("list shadows"))?;
                parse(value.value(), || "a shadow".to_owned())
            })
            .collect()
    }

    /// Workflows that have pairs with something to do.
    pub fn shadow_lanes(&self, until: Timestamp) -> Result<Vec<Lane>, JournalError> {
        SHADOWS_DUE.lanes(self, until)
    }

    /// Runs of a workflow's pairs with something to do, those first that have waited longest, at most `limit`. What is due
    /// later than `until` is not among them.
    pub fn shadows_due(
        &self,
        lane: &Lane,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<(Timestamp, RunId)>, JournalError> {
        let due = SHADOWS_DUE.of_lane(self, lane, None, until, limit)?;
        let run = |what: Vec<u8>| Some(RunId::from_bytes(what.try_into().ok()?));
        Ok(due.into_iter().filter_map(|(at, what)| Some((at, run(what)?))).collect())
    }

    /// Nothing is to be done for a pair any more, for now. `changed` is how it stands, unless the run was deleted meanwhile.
    pub async fn settle_shadow(
        &self,
        run: &RunKey,
        workflow: &WorkflowName,
        due: Timestamp,
        changed: Option<ShadowPair>,
    ) -> Result<(), JournalError> {
        let (lane, key) = (lane(&run.tenant, workflow), pair_key(&run.tenant, workflow, &run.run));
        let run = run.run;
        let value = changed.map(|pair| to_json(&pair, "a shadow")).transpose()?;
        self.write(move |transaction| {
            if SHADOWS_DUE.take(transaction, &lane, run.as_bytes(), due)? {
                count_due(transaction, &lane.tenant, -1)?;
            }
            let mut pairs = transaction.open_table(SHADOW_PAIRS).map_err(storage("open the shadows"))?;
            let is_there = pairs.get(key.as_slice()).map_err(storage("look for a shadow"))?.is_some();
            if let Some(value) = value.filter(|_| is_there) {
                pairs.insert(key.as_slice(), value.as_slice()).map_err(storage("write a shadow"))?;
            }
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_chooses_its_part_of_all_runs_and_always_the_same() {
        let runs: Vec<RunId> = (0..10_000u32)
            .map(|n| {
                let mut bytes = [0; 16];
                bytes[12..].copy_from_slice(&n.to_be_bytes());
                RunId::from_bytes(bytes)
            })
            .collect();
        let chosen = |parts| runs.iter().filter(|run| is_chosen(run, parts)).count();
        assert_eq!((chosen(0), chosen(PARTS)), (0, runs.len()));
        let some = chosen(PARTS / 8);
        assert!((1_100..1_400).contains(&some), "{some}");
        // A larger share has all that a smaller one has.
        assert!(runs.iter().all(|run| !is_chosen(run, PARTS / 8) || is_chosen(run, PARTS / 4)));
    }
}
