//! What is deleted, and when: runs whose tenant keeps them no longer, with their events and the content that nobody
//! else refers to; and idempotency keys that no longer answer.

use ::redb::{ReadableTable, WriteTransaction};
use stepwell_core::{RunKey, TenantId, Timestamp};

use super::redb::{RedbJournal, parse, storage};
use super::writer::{
    CONTENT_RUNS, CONTENTS, IDEMPOTENCY, IDEMPOTENCY_BY_TIME, IdempotencyEntry, RECORDS, RUN_CONTENTS, RUNS, SNAPSHOTS,
};
use super::{IDEMPOTENCY_TTL_MS, JournalError, RunSummary, channels, keys, shadows};

/// Runs deleted in one transaction. Others wait for it, so it is few: an ordinary run takes microseconds, but one with
/// tens of thousands of updates takes tens of milliseconds.
const RUNS_DELETED_MAX: usize = 20;
/// Idempotency keys deleted in one transaction.
const KEYS_DELETED_MAX: usize = 500;

impl RedbJournal {
    /// Deletes runs of a tenant that ended before `cutoff`, oldest first, a bounded number at a time. Returns how
    /// many; less than the last call's could have been means that none is left for now.
    pub async fn delete_runs_ended_before(&self, tenant: &TenantId, cutoff: Timestamp) -> Result<usize, JournalError> {
        let expired = self.runs_ended_before(tenant, cutoff)?;
        let count = expired.len();
        if count > 0 {
            self.write(move |transaction| expired.iter().try_for_each(|key| delete_run(transaction, key))).await?;
        }
        Ok(count)
    }

    fn runs_ended_before(&self, tenant: &TenantId, cutoff: Timestamp) -> Result<Vec<RunKey>, JournalError> {
        let runs = self.reader()?.open_table(RUNS).map_err(storage("open the runs"))?;
        let range = keys::of_tenant(tenant);
        let mut expired = Vec::new();
        for entry in runs.range(range.start.as_slice()..range.end.as_slice()).map_err(storage("list runs"))? {
            let (key, value) = entry.map_err(storage("list runs"))?;
            let summary: RunSummary = parse(value.value(), || "a run's summary".to_owned())?;
            // Keys are in the order of creation, and no run ends before it is created.
            if summary.created_at >= cutoff || expired.len() == RUNS_DELETED_MAX {
                break;
            }
            if summary.ended_at.is_some_and(|ended| ended < cutoff) {
                expired.extend(keys::parse_run(key.value()));
            }
        }
        Ok(expired)
    }

    /// Deletes idempotency keys that no longer answer, a bounded number at a time. Returns how many.
    pub async fn delete_old_idempotency_keys(&self, now: Timestamp) -> Result<usize, JournalError> {
        let Some(cutoff) = now.as_millis().checked_sub(IDEMPOTENCY_TTL_MS) else { return Ok(0) };
        self.write(move |transaction| {
            let failed = || storage("delete idempotency keys");
            let open = |table| transaction.open_table(table).map_err(storage("open a table"));
            let mut by_time = open(IDEMPOTENCY_BY_TIME)?;
            let mut table = open(IDEMPOTENCY)?;
            let until = cutoff.to_be_bytes();
            let old = by_time.range(..until.as_slice()).map_err(storage("list idempotency keys"))?;
            let old: Vec<Vec<u8>> = old
                .take(KEYS_DELETED_MAX)
                .map(|entry| Ok(entry.map_err(storage("list idempotency keys"))?.0.value().to_vec()))
                .collect::<Result<_, JournalError>>()?;
            for timed in &old {
                by_time.remove(timed.as_slice()).map_err(failed())?;
                let key = timed.get(8..).unwrap_or_default();
                // The key may have been used again since.
                let stored =
                    table.get(key).map_err(failed())?.and_then(|value| IdempotencyEntry::decode(value.value()));
                if stored.is_some_and(|entry| entry.at.as_millis() < cutoff) {
                    table.remove(key).map_err(failed())?;
                }
            }
            Ok(old.len())
        })
        .await
    }
}

fn delete_run(transaction: &WriteTransaction, key: &RunKey) -> Result<(), JournalError> {
    let failed = || storage("delete a run");
    let run = keys::run(key);
    let open = |table| transaction.open_table(table).map_err(storage("open a table"));
    open(SNAPSHOTS)?.remove(run.as_slice()).map_err(failed())?;
    let summary = open(RUNS)?.remove(run.as_slice()).map_err(failed())?.map(|value| value.value().to_vec());
    let summary = summary.map(|value| parse::<RunSummary>(&value, || format!("the summary of {key}"))).transpose()?;
    if let Some(summary) = summary {
        if let Some(channel) = summary.channel {
            channels::forget(transaction, key, &channel)?;
        }
        shadows::forget(transaction, key, &summary.workflow)?;
    }
    let records = keys::record(key, 0)..keys::record(key, u64::MAX);
    open(RECORDS)?.retain_in(records.start.as_slice()..=records.end.as_slice(), |_, _| false).map_err(failed())?;

    let mut by_run = open(RUN_CONTENTS)?;
    let referred = keys::starting_with(run.clone());
    let referred: Vec<Vec<u8>> = by_run
        .range(referred.start.as_slice()..referred.end.as_slice())
        .map_err(failed())?
        .map(|entry| Ok(entry.map_err(storage("delete a run"))?.0.value().to_vec()))
        .collect::<Result<_, JournalError>>()?;
    for reference in referred {
        by_run.remove(reference.as_slice()).map_err(failed())?;
        let Some(sha256) = reference.last_chunk::<32>() else { continue };
        let sha256 = stepwell_core::Digest::from_bytes(*sha256);
        let mut referrers = open(CONTENT_RUNS)?;
        referrers.remove(keys::content_run(key, &sha256).as_slice()).map_err(failed())?;
        let content = keys::content(&key.tenant, &sha256);
        let others = keys::starting_with(content.clone());
        let kept = referrers.range(others.start.as_slice()..others.end.as_slice()).map_err(failed())?.next().is_some();
        if !kept {
            open(CONTENTS)?.remove(content.as_slice()).map_err(failed())?;
        }
    }
    Ok(())
}
