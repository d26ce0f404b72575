//! What is deleted, and when: runs whose tenant keeps them no longer, with their events and the content that nobody
//! else refers to; before that, if the tenant wants it, their content alone; and idempotency keys that no longer answer.
//!
//! Keeps: a transaction deletes at most [`DELETED_MAX`] entries, whatever a run has. A run that has more is gone for
//! everybody with the first of them, and stays on the list of ended runs until the last.

use std::ops::Range;

use ::redb::{ReadableTable, WriteTransaction};
use stepwell_core::{Digest, RunKey, TenantId, Timestamp};

use super::ended::{ENDED, ENDED_CONTENTS, Listed, oldest};
use super::redb::{RedbJournal, parse, storage};
use super::usage::{self, Change, entry};
use super::writer::{
    Bytes2Bytes, CONTENT_RUNS, CONTENTS, IDEMPOTENCY, IDEMPOTENCY_BY_TIME, IdempotencyEntry, RECORDS, RUN_CONTENTS,
    RUNS, SNAPSHOTS, UNFINISHED,
};
use super::{IDEMPOTENCY_TTL_MS, JournalError, RunSummary, channels, keys, shadows, triggers};

/// Entries deleted in one transaction. Others wait for it, so it is what takes some milliseconds.
const DELETED_MAX: usize = 2_000;
/// Idempotency keys deleted in one transaction.
const KEYS_DELETED_MAX: usize = 500;

/// What one transaction has deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Runs of which nothing is left, or no content.
    pub runs: usize,
    /// Whether there may be more to delete.
    pub more: bool,
}

impl RedbJournal {
    /// Deletes runs of a tenant that ended before `cutoff`, those that ended first at first, a bounded number of entries at
    /// a time.
    pub async fn delete_runs_ended_before(
        &self,
        tenant: &TenantId,
        cutoff: Timestamp,
    ) -> Result<Deleted, JournalError> {
        self.delete_ended(ENDED, tenant, cutoff, delete_run).await
    }

    /// Deletes the content of a tenant's runs that ended before `cutoff`: files, and values that are stored apart from their
    /// events. The runs and their events stay.
    pub async fn delete_contents_ended_before(
        &self,
        tenant: &TenantId,
        cutoff: Timestamp,
    ) -> Result<Deleted, JournalError> {
        self.delete_ended(ENDED_CONTENTS, tenant, cutoff, |transaction, listed, batch| {
            delete_contents(transaction, &listed.run, batch)
        })
        .await
    }

    async fn delete_ended(
        &self,
        list: Bytes2Bytes,
        tenant: &TenantId,
        cutoff: Timestamp,
        delete: impl Fn(&WriteTransaction, &Listed, &mut Deletion) -> Result<(), JournalError> + Send + 'static,
    ) -> Result<Deleted, JournalError> {
        // Looked at without a write first: mostly there is nothing.
        let ended = self.reader()?.open_table(list).map_err(storage("open the ended runs"))?;
        if oldest(&ended, tenant, cutoff)?.is_none() {
            return Ok(Deleted::default());
        }
        let tenant = tenant.clone();
        self.write(move |transaction| {
            let mut deletion = Deletion { room: DELETED_MAX, bytes: 0 };
            let mut runs = 0;
            let more = loop {
                let listed = {
                    let ended = transaction.open_table(list).map_err(storage("open the ended runs"))?;
                    oldest(&ended, &tenant, cutoff)?
                };
                let Some(listed) = listed else { break false };
                delete(transaction, &listed, &mut deletion)?;
                if deletion.room == 0 {
                    break true; // something may be left of it
                }
                let mut ended = transaction.open_table(list).map_err(storage("open the ended runs"))?;
                ended.remove(listed.key.as_slice()).map_err(storage("delete an ended run"))?;
                runs += 1;
            };
            usage::add(transaction, &tenant, deletion.change())?;
            Ok(Deleted { runs, more })
        })
        .await
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

/// How much a transaction may still delete, and what it has freed.
pub(super) struct Deletion {
    /// Entries. 0 means that something may be left over.
    room: usize,
    bytes: i64,
}

impl Deletion {
    fn change(&self) -> Change {
        Change { bytes: -self.bytes, unfinished_runs: 0 }
    }

    /// Deletes entries of a table, as many as there is room for, and returns their keys.
    pub(super) fn drain(
        &mut self,
        transaction: &WriteTransaction,
        table: Bytes2Bytes,
        range: &Range<Vec<u8>>,
    ) -> Result<Vec<Vec<u8>>, JournalError> {
        let counts = usage::COUNTED.iter().any(|counted| same(counted, &table));
        let mut table = transaction.open_table(table).map_err(storage("open a table"))?;
        let mut found = Vec::new();
        for next in table.range(range.start.as_slice()..range.end.as_slice()).map_err(storage("delete entries"))? {
            if found.len() == self.room {
                break;
            }
            let (key, value) = next.map_err(storage("delete entries"))?;
            self.bytes += if counts { entry(key.value(), value.value()) } else { 0 };
            found.push(key.value().to_vec());
        }
        for key in &found {
            table.remove(key.as_slice()).map_err(storage("delete entries"))?;
        }
        self.room -= found.len();
        Ok(found)
    }

    /// Deletes one entry, which costs no room: there are few of them for each run.
    fn remove(&mut self, transaction: &WriteTransaction, table: Bytes2Bytes, key: &[u8]) -> Result<(), JournalError> {
        let counts = usage::COUNTED.iter().any(|counted| same(counted, &table));
        let mut table = transaction.open_table(table).map_err(storage("open a table"))?;
        let removed = table.remove(key).map_err(storage("delete an entry"))?;
        if let Some(value) = removed.filter(|_| counts) {
            self.bytes += entry(key, value.value());
        }
        Ok(())
    }
}

fn same(one: &Bytes2Bytes, other: &Bytes2Bytes) -> bool {
    use ::redb::TableHandle;
    one.name() == other.name()
}

/// Deletes a run, or as much of it as there is room for.
fn delete_run(transaction: &WriteTransaction, listed: &Listed, deletion: &mut Deletion) -> Result<(), JournalError> {
    let run = keys::run(&listed.run);
    deletion.room -= 1;
    forget_shadow(transaction, &listed.run)?;
    // First of all nobody finds it any more: a run with a part of its events is nothing to show.
    for table in [RUNS, UNFINISHED] {
        deletion.remove(transaction, table, &run)?;
    }
    deletion.drain(transaction, SNAPSHOTS, &keys::starting_with(run.clone()))?;
    triggers::forget_deliveries(transaction, &listed.run)?;
    if let Some(channel) = &listed.channel {
        channels::forget(transaction, &listed.run, channel, deletion)?;
    }
    deletion.drain(transaction, RECORDS, &keys::starting_with(run))?;
    delete_contents(transaction, &listed.run, deletion)?;
    if deletion.room > 0 {
        deletion.remove(transaction, ENDED_CONTENTS, &listed.key)?;
    }
    Ok(())
}

/// Deletes what came of a run and its shadow, if it has one.
fn forget_shadow(transaction: &WriteTransaction, key: &RunKey) -> Result<(), JournalError> {
    let summary = {
        let runs = transaction.open_table(RUNS).map_err(storage("open the runs"))?;
        let found = runs.get(keys::run(key).as_slice()).map_err(storage("look for a run"))?;
        found.map(|value| value.value().to_vec())
    };
    // Gone when a part of the run was deleted before.
    let Some(summary) = summary else { return Ok(()) };
    let summary: RunSummary = parse(&summary, || format!("the summary of {key}"))?;
    shadows::forget(transaction, key, &summary.workflow)
}

/// Deletes what a run refers to and nobody else does, or as much of it as there is room for.
fn delete_contents(transaction: &WriteTransaction, key: &RunKey, deletion: &mut Deletion) -> Result<(), JournalError> {
    let references = deletion.drain(transaction, RUN_CONTENTS, &keys::starting_with(keys::run(key)))?;
    for reference in references {
        let Some(sha256) = reference.last_chunk::<32>() else { continue };
        let sha256 = Digest::from_bytes(*sha256);
        let content = keys::content(&key.tenant, &sha256);
        let is_kept = {
            let mut referrers = transaction.open_table(CONTENT_RUNS).map_err(storage("open the references"))?;
            referrers.remove(keys::content_run(key, &sha256).as_slice()).map_err(storage("delete a reference"))?;
            let others = keys::starting_with(content.clone());
            let others = referrers.range(others.start.as_slice()..others.end.as_slice());
            others.map_err(storage("look for references"))?.next().is_some()
        };
        if !is_kept {
            deletion.remove(transaction, CONTENTS, &content)?;
        }
    }
    Ok(())
}
