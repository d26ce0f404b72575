//! Runs that have ended, by the time of their end: what retention goes by, so that it never looks at a run that it has
//! nothing to do with.
//!
//! Owns: the two lists, and what the writer does at the end of a run ([`EndedTables::write`]).
//! Does not: delete runs; [`super::retention`] does.
//! Keeps: a run is listed in the transaction of its end and leaves the lists when all of it is deleted, so a deletion that
//! was interrupted is found again.

use ::redb::{ReadableTable, TableDefinition, WriteTransaction};
use stepwell_core::{RunKey, TenantId, Timestamp};

use super::redb::storage;
use super::usage::Change;
use super::writer::{Bytes2Bytes, RUN_CONTENTS, SNAPSHOTS, Table};
use super::{JournalError, keys, snapshots};

/// (tenant, time of the end, run) → the channel that it wrote to, or nothing.
pub(super) const ENDED: Bytes2Bytes = TableDefinition::new("ended_runs");
/// (tenant, time of the end, run) of each run that has ended and still refers to content.
pub(super) const ENDED_CONTENTS: Bytes2Bytes = TableDefinition::new("ended_contents");

/// All of them.
pub(super) const TABLES: &[Bytes2Bytes] = &[ENDED, ENDED_CONTENTS];

/// The tables that the end of a run writes to.
pub(super) struct EndedTables<'t> {
    ended: Table<'t>,
    contents: Table<'t>,
    snapshots: Table<'t>,
}

impl<'t> EndedTables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, JournalError> {
        let open = |table| transaction.open_table(table).map_err(storage("open the ended runs"));
        Ok(Self { ended: open(ENDED)?, contents: open(ENDED_CONTENTS)?, snapshots: open(SNAPSHOTS)? })
    }

    /// Lists a run that has ended, when all that it refers to is written. Its kept state is of no use any more.
    pub(super) fn write(
        &mut self,
        transaction: &WriteTransaction,
        key: &RunKey,
        at: Timestamp,
        channel: Option<&str>,
    ) -> Result<Change, JournalError> {
        let failed = || storage("list an ended run");
        let listed = keys::ended(at, key);
        self.ended.insert(listed.as_slice(), channel.unwrap_or_default().as_bytes()).map_err(failed())?;
        if refers_to_content(transaction, key)? {
            self.contents.insert(listed.as_slice(), [].as_slice()).map_err(failed())?;
        }
        Ok(Change { bytes: -snapshots::delete(&mut self.snapshots, key)?, unfinished_runs: -1 })
    }
}

/// Whether a run refers to anything that is stored apart from its events.
pub(super) fn refers_to_content(transaction: &WriteTransaction, key: &RunKey) -> Result<bool, JournalError> {
    let by_run = transaction.open_table(RUN_CONTENTS).map_err(storage("open the references"))?;
    let range = keys::starting_with(keys::run(key));
    let first = by_run.range(range.start.as_slice()..range.end.as_slice()).map_err(storage("look for references"))?;
    Ok(first.map(|entry| entry.map_err(storage("look for references"))).next().transpose()?.is_some())
}

/// A run on one of the lists.
pub(super) struct Listed {
    pub(super) key: Vec<u8>,
    pub(super) run: RunKey,
    pub(super) channel: Option<String>,
}

/// The run of a tenant that ended first, if it ended before `cutoff`.
pub(super) fn oldest(
    list: &impl ReadableTable<&'static [u8], &'static [u8]>,
    tenant: &TenantId,
    cutoff: Timestamp,
) -> Result<Option<Listed>, JournalError> {
    let failed = || storage("list ended runs");
    let range = keys::of_tenant(tenant);
    let end = keys::ended_before(tenant, cutoff);
    for found in list.range(range.start.as_slice()..end.as_slice()).map_err(failed())? {
        let (key, channel) = found.map_err(failed())?;
        let channel = String::from_utf8(channel.value().to_vec()).ok().filter(|channel| !channel.is_empty());
        match keys::parse_ended(key.value()) {
            Some(run) => return Ok(Some(Listed { key: key.value().to_vec(), run, channel })),
            // One bad entry must not keep all others from being deleted.
            None => tracing::error!(entry = hex::encode(key.value()), "an entry of the ended runs names no run"),
        }
    }
    Ok(None)
}
