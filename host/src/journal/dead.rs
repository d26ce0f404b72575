//! Deliveries that are given up: which they are, how many a webhook has, and how many it had too many of.
//!
//! Owns: their list and the counts.
//! Does not: hold the deliveries themselves; the outbox does ([`super::triggers`]).
//! Keeps: the list says what the outbox says, and changes with it; a webhook has at most [`DEAD_MAX`] of them.

use ::redb::{ReadableTable, TableDefinition, WriteTransaction};
use stepwell_core::TenantId;

use super::redb::{RedbJournal, storage};
use super::writer::Bytes2Bytes;
use super::{JournalError, keys};

/// (tenant, webhook, run) of each delivery that is given up: its key in the outbox.
const DEAD: Bytes2Bytes = TableDefinition::new("outbox_dead");
/// (tenant, webhook) → how many are given up (8), how many of them were dropped (8).
const COUNTS: Bytes2Bytes = TableDefinition::new("outbox_counts");

/// All of them.
pub(super) const TABLES: &[Bytes2Bytes] = &[DEAD, COUNTS];

/// Deliveries of one webhook that are kept after they were given up. Whoever comes to look has time to see what went
/// wrong, and nobody looks through more of them one by one.
pub const DEAD_MAX: u64 = 10_000;
/// Deliveries dropped at once, so that whoever has many too many holds up nobody.
const DROPPED_AT_ONCE: u64 = 100;

/// How many deliveries of a webhook are given up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeadCounts {
    /// Those that are kept.
    pub kept: u64,
    /// Those that were dropped because there were more than [`DEAD_MAX`].
    pub dropped: u64,
}

impl DeadCounts {
    fn encode(self) -> Vec<u8> {
        [self.kept.to_be_bytes(), self.dropped.to_be_bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (kept, dropped) = bytes.split_first_chunk::<8>()?;
        Some(Self { kept: u64::from_be_bytes(*kept), dropped: u64::from_be_bytes(dropped.try_into().ok()?) })
    }
}

/// A delivery is given up, or is not any more. Returns the outbox's keys of those that are dropped for it, the oldest
/// runs' first; they are off the list already.
pub(super) fn moved(
    transaction: &WriteTransaction,
    tenant: &TenantId,
    webhook: &str,
    key: &[u8],
    is_dead: bool,
) -> Result<Vec<Vec<u8>>, JournalError> {
    change(transaction, tenant, webhook, key, is_dead, true)
}

/// Lists a delivery that was given up before there was a list. Nothing is dropped for it.
pub(super) fn list(
    transaction: &WriteTransaction,
    tenant: &TenantId,
    webhook: &str,
    key: &[u8],
) -> Result<(), JournalError> {
    change(transaction, tenant, webhook, key, true, false).map(drop)
}

fn change(
    transaction: &WriteTransaction,
    tenant: &TenantId,
    webhook: &str,
    key: &[u8],
    is_dead: bool,
    drops: bool,
) -> Result<Vec<Vec<u8>>, JournalError> {
    let failed = || storage("list a delivery that is given up");
    let open = |table| transaction.open_table(table).map_err(storage("open the counts of deliveries"));
    let (mut dead, mut table) = (open(DEAD)?, open(COUNTS)?);
    let name = keys::named(tenant, webhook);
    let stored = table.get(name.as_slice()).map_err(failed())?.and_then(|value| DeadCounts::decode(value.value()));
    let mut counts = stored.unwrap_or_default();
    let was_dead = if is_dead {
        dead.insert(key, [].as_slice()).map_err(failed())?.is_some()
    } else {
        dead.remove(key).map_err(failed())?.is_some()
    };
    match (was_dead, is_dead) {
        (false, true) => counts.kept += 1,
        (true, false) => counts.kept = counts.kept.saturating_sub(1),
        _ => return Ok(Vec::new()),
    }
    let surplus = if drops { counts.kept.saturating_sub(DEAD_MAX).min(DROPPED_AT_ONCE) } else { 0 };
    let range = keys::starting_with(name.clone());
    let dropped: Vec<Vec<u8>> = dead
        .range(range.start.as_slice()..range.end.as_slice())
        .map_err(failed())?
        .take(surplus as usize)
        .map(|entry| Ok(entry.map_err(storage("list deliveries"))?.0.value().to_vec()))
        .collect::<Result<_, JournalError>>()?;
    for key in &dropped {
        dead.remove(key.as_slice()).map_err(failed())?;
    }
    counts.kept -= dropped.len() as u64;
    counts.dropped += dropped.len() as u64;
    table.insert(name.as_slice(), counts.encode().as_slice()).map_err(failed())?;
    Ok(dropped)
}

/// Forgets the counts of a webhook that is gone.
pub(super) fn forget(transaction: &WriteTransaction, name: &[u8]) -> Result<(), JournalError> {
    let mut table = transaction.open_table(COUNTS).map_err(storage("open the counts of deliveries"))?;
    table.remove(name).map_err(storage("forget the counts of deliveries"))?;
    Ok(())
}

impl RedbJournal {
    /// How many deliveries of a webhook are given up.
    pub fn dead_deliveries(&self, tenant: &TenantId, webhook: &str) -> Result<DeadCounts, JournalError> {
        let table = self.reader()?.open_table(COUNTS).map_err(storage("open the counts of deliveries"))?;
        let name = keys::named(tenant, webhook);
        let found = table.get(name.as_slice()).map_err(storage("read the counts of deliveries"))?;
        Ok(found.and_then(|value| DeadCounts::decode(value.value())).unwrap_or_default())
    }
}
