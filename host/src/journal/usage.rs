//! What each tenant has in the journal, counted where it is written and deleted and never by looking.
//!
//! Owns: the table of the counts, and what is refused when a tenant has too much.
//! Does not: know limits; whoever asks brings them ([`Limits`]).
//! Keeps: a count changes in the transaction of what it counts, so a crash leaves both or neither. What is counted is every
//! byte of keys and values in [`COUNTED`]; a test counts again and compares. The other tables hold a few bytes for each
//! entry of these, or have limits of their own.

use std::collections::HashMap;

use ::redb::{ReadableTable, TableDefinition, WriteTransaction};
use stepwell_core::TenantId;

use super::catalog::VERSIONS;
use super::limits::Limits;
use super::redb::{RedbJournal, parse, storage};
use super::writer::{Bytes2Bytes, CONTENTS, RECORDS, RUNS, SNAPSHOTS};
use super::{JournalError, RunSummary, keys};

/// tenant → bytes (8), unfinished runs (8).
const USAGE: Bytes2Bytes = TableDefinition::new("usage");

/// All of them.
pub(super) const TABLES: &[Bytes2Bytes] = &[USAGE];
/// The tables whose entries count.
pub(super) const COUNTED: [Bytes2Bytes; 5] = [RUNS, RECORDS, SNAPSHOTS, CONTENTS, VERSIONS];

/// What a tenant has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of its runs' events, of what they refer to (files, large values), and of its components.
    pub journal_bytes: u64,
    /// Runs that have not ended, whatever they do.
    pub unfinished_runs: u64,
}

/// By how much a count changes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Change {
    pub(super) bytes: i64,
    pub(super) unfinished_runs: i64,
}

/// The bytes of an entry.
pub(super) fn entry(key: &[u8], value: &[u8]) -> i64 {
    // Neither is ever near the end of an i64.
    i64::try_from(key.len() + value.len()).unwrap_or(i64::MAX)
}

impl Usage {
    fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let (first, second) = bytes.split_at_mut(8);
        first.copy_from_slice(&self.journal_bytes.to_be_bytes());
        second.copy_from_slice(&self.unfinished_runs.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (journal_bytes, rest) = bytes.split_first_chunk::<8>()?;
        let unfinished_runs = rest.try_into().ok()?;
        Some(Self {
            journal_bytes: u64::from_be_bytes(*journal_bytes),
            unfinished_runs: u64::from_be_bytes(unfinished_runs),
        })
    }

    fn after(self, change: Change) -> Self {
        Self {
            journal_bytes: self.journal_bytes.saturating_add_signed(change.bytes),
            unfinished_runs: self.unfinished_runs.saturating_add_signed(change.unfinished_runs),
        }
    }

    /// Why nothing new is taken from a tenant that has this, if so.
    pub fn admits(self, limits: &Limits) -> Result<(), JournalError> {
        if self.journal_bytes >= limits.journal_bytes {
            return Err(JournalError::Full { bytes_max: limits.journal_bytes });
        }
        if self.unfinished_runs >= limits.unfinished_runs {
            return Err(JournalError::TooManyRuns { runs_max: limits.unfinished_runs });
        }
        Ok(())
    }
}

/// What a tenant has, as of a transaction.
pub(super) fn of(transaction: &WriteTransaction, tenant: &TenantId) -> Result<Usage, JournalError> {
    let table = transaction.open_table(USAGE).map_err(storage("open the counts"))?;
    let found = table.get(tenant.as_str().as_bytes()).map_err(storage("read a count"))?;
    Ok(found.and_then(|value| Usage::decode(value.value())).unwrap_or_default())
}

/// Changes a count.
pub(super) fn add(transaction: &WriteTransaction, tenant: &TenantId, change: Change) -> Result<(), JournalError> {
    let usage = of(transaction, tenant)?.after(change);
    let mut table = transaction.open_table(USAGE).map_err(storage("open the counts"))?;
    table.insert(tenant.as_str().as_bytes(), usage.encode().as_slice()).map_err(storage("write a count"))?;
    Ok(())
}

/// What the appends of a transaction change, written once for each tenant at its end.
#[derive(Debug, Default)]
pub(super) struct Changes(HashMap<TenantId, Change>);

impl Changes {
    /// Takes a change in.
    pub(super) fn add(&mut self, tenant: &TenantId, change: Change) {
        match self.0.get_mut(tenant) {
            Some(sum) => {
                sum.bytes += change.bytes;
                sum.unfinished_runs += change.unfinished_runs;
            }
            None => drop(self.0.insert(tenant.clone(), change)),
        }
    }

    /// Whether a new run is taken, with what this transaction has changed so far. The inner error refuses that run alone.
    pub(super) fn admit(
        &self,
        transaction: &WriteTransaction,
        tenant: &TenantId,
        limits: Option<&Limits>,
    ) -> Result<Result<(), JournalError>, JournalError> {
        let Some(limits) = limits else { return Ok(Ok(())) };
        let pending = self.0.get(tenant).copied().unwrap_or_default();
        Ok(of(transaction, tenant)?.after(pending).admits(limits))
    }

    /// Writes them.
    pub(super) fn write(self, transaction: &WriteTransaction) -> Result<(), JournalError> {
        self.0.iter().try_for_each(|(tenant, change)| add(transaction, tenant, *change))
    }
}

impl RedbJournal {
    /// What a tenant has.
    pub fn usage(&self, tenant: &TenantId) -> Result<Usage, JournalError> {
        let table = self.reader()?.open_table(USAGE).map_err(storage("open the counts"))?;
        let found = table.get(tenant.as_str().as_bytes()).map_err(storage("read a count"))?;
        Ok(found.and_then(|value| Usage::decode(value.value())).unwrap_or_default())
    }

    /// What a tenant has, counted again by reading all of it. For tests, and for whoever doubts the other.
    pub fn recount(&self, tenant: &TenantId) -> Result<Usage, JournalError> {
        let transaction = self.reader()?;
        let range = keys::of_tenant(tenant);
        let mut bytes = 0;
        for table in COUNTED {
            let table = transaction.open_table(table).map_err(storage("open a table"))?;
            for found in table.range(range.start.as_slice()..range.end.as_slice()).map_err(storage("count"))? {
                let (key, value) = found.map_err(storage("count"))?;
                bytes += entry(key.value(), value.value());
            }
        }
        let mut unfinished_runs = 0;
        let runs = transaction.open_table(RUNS).map_err(storage("open the runs"))?;
        for found in runs.range(range.start.as_slice()..range.end.as_slice()).map_err(storage("count"))? {
            let summary: RunSummary =
                parse(found.map_err(storage("count"))?.1.value(), || "a run's summary".to_owned())?;
            unfinished_runs += i64::from(!summary.status.is_terminal());
        }
        Ok(Usage::default().after(Change { bytes, unfinished_runs }))
    }
}
