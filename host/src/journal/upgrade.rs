//! Files of format 1 that were written before runs were listed by their end, before anything was counted, and before what
//! is due was listed by tenants and webhooks, the runs to be woken last of all.
//!
//! Owns: filling what such a file lacks, once, before anything else is done with it.
//! Does not: change what is there; every table that this fills says what others say.
//! Keeps: each transaction is bounded, and says how far it has come, so a crash in the middle costs one of them.

use ::redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableError, WriteTransaction};
use serde::de::DeserializeOwned;
use stepwell_core::{TenantId, Timestamp};

use super::ended::{ENDED, ENDED_CONTENTS, refers_to_content};
use super::redb::{META, parse, storage};
use super::triggers::{
    self, DELIVERING, Delivery, EVENT_TRIGGERS, FIRING, OUTBOX, TRIGGER_MARKS, TRIGGERS, TriggerMark, TriggerOn,
    TriggerRecord, WEBHOOKS, WebhookRecord,
};
use super::usage::{COUNTED, Change, Changes, entry};
use super::writer::Bytes2Bytes;
use super::{JournalError, RunSummary, WakeChange, dead, error_chain, keys, waking};

/// Lists an entry of a table where a file of before does not.
type List = fn(&WriteTransaction, &TenantId, &[u8], &[u8]) -> Result<(), JournalError>;

/// Tables whose entries are listed elsewhere too, looked at after those that count.
const LISTED: [(Bytes2Bytes, List); 4] =
    [(OUTBOX, see_delivery), (WEBHOOKS, see_webhook), (TRIGGERS, see_trigger), (TRIGGER_MARKS, see_mark)];

/// (time, tenant, run) of the runs to be woken, in a file of before. What is moved from here is deleted, so it needs no mark.
const WAKES: Bytes2Bytes = TableDefinition::new("wakes");

/// In the file's facts: how far it is filled. One byte, and the last key that was looked at.
const MARK: &str = "projections";
/// What stands there when all of it is. Lower numbers are tables on the way.
const DONE: u8 = u8::MAX;
/// Entries looked at in one transaction.
const ENTRIES_MAX: usize = 10_000;
/// Bytes of them, which have to be read to be counted.
const BYTES_MAX: i64 = 128 << 20;

/// Says that nothing is to be filled.
pub(super) fn mark_done(meta: &mut ::redb::Table<'_, &'static str, &'static [u8]>) -> Result<(), JournalError> {
    meta.insert(MARK, [DONE].as_slice()).map_err(storage("prepare its file"))?;
    Ok(())
}

/// Fills what the file lacks.
pub(super) fn fill(database: &Database) -> Result<(), JournalError> {
    move_wakes(database)?;
    let mut is_first = true;
    loop {
        let transaction = database.begin_write().map_err(storage("begin a write"))?;
        let (number, after) = mark_of(&transaction)?;
        if number == DONE {
            return transaction.abort().map_err(storage("end an upgrade"));
        }
        if std::mem::take(&mut is_first) {
            tracing::info!("the journal is of an earlier build: what tenants have in it is counted now, once");
        }
        let next = step(&transaction, number, after)?;
        {
            let mut meta = transaction.open_table(META).map_err(storage("upgrade its file"))?;
            meta.insert(MARK, next.as_slice()).map_err(storage("upgrade its file"))?;
        }
        transaction.commit().map_err(storage("commit"))?;
    }
}

/// Moves the runs to be woken to the list that has each tenant's by itself.
fn move_wakes(database: &Database) -> Result<(), JournalError> {
    let failed = || storage("upgrade its file");
    match database.begin_read().map_err(storage("begin a read"))?.open_table(WAKES) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        found => drop(found.map_err(storage("upgrade its file"))?),
    }
    loop {
        let transaction = database.begin_write().map_err(storage("begin a write"))?;
        let moved = {
            let mut wakes = transaction.open_table(WAKES).map_err(storage("upgrade its file"))?;
            let mut moved = 0;
            while moved < ENTRIES_MAX
                && let Some((entry, _)) = wakes.pop_first().map_err(failed())?
            {
                moved += 1;
                let Some((at, run)) = entry.value().split_first_chunk::<8>() else { continue };
                let Some(key) = keys::parse_run(run) else { continue };
                let after = Some(Timestamp::from_millis(u64::from_be_bytes(*at)));
                waking::write(&transaction, &key, WakeChange { before: None, after })?;
            }
            moved
        };
        if moved == 0 {
            transaction.delete_table(WAKES).map_err(storage("upgrade its file"))?;
        }
        transaction.commit().map_err(storage("commit"))?;
        if moved == 0 {
            return Ok(());
        }
    }
}

fn mark_of(transaction: &WriteTransaction) -> Result<(u8, Vec<u8>), JournalError> {
    let meta = transaction.open_table(META).map_err(storage("upgrade its file"))?;
    let mark = meta.get(MARK).map_err(storage("upgrade its file"))?;
    let mark = mark.as_ref().and_then(|mark| mark.value().split_first()).map(|(table, key)| (*table, key.to_vec()));
    Ok(mark.unwrap_or_default())
}

/// One transaction's work on one table. Returns the next mark.
fn step(transaction: &WriteTransaction, number: u8, after: Vec<u8>) -> Result<Vec<u8>, JournalError> {
    let listed = usize::from(number).checked_sub(COUNTED.len());
    let table = match listed {
        None => COUNTED.get(usize::from(number)).copied(),
        Some(listed) => LISTED.get(listed).map(|(table, _)| *table),
    };
    let Some(table) = table else { return Ok(vec![DONE]) };
    let list = listed.and_then(|listed| LISTED.get(listed)).map(|(_, list)| list);
    let table = transaction.open_table(table).map_err(storage("upgrade its file"))?;
    let mut changes = Changes::default();
    let (mut bytes, mut last) = (0, None);
    let mut start = after;
    if !start.is_empty() {
        start.push(0); // the next key there can be
    }
    for (looked_at, found) in table.range(start.as_slice()..).map_err(storage("upgrade its file"))?.enumerate() {
        if looked_at == ENTRIES_MAX || bytes > BYTES_MAX {
            break;
        }
        let (key, value) = found.map_err(storage("upgrade its file"))?;
        let (key, value) = (key.value(), value.value());
        last = Some([&[number], key].concat());
        bytes += entry(key, value);
        let Some(tenant) = keys::tenant_of(key) else { continue };
        match list {
            None => {
                let unfinished_runs = if number == 0 { see_run(transaction, key, value)? } else { 0 };
                changes.add(&tenant, Change { bytes: entry(key, value), unfinished_runs });
            }
            Some(list) => list(transaction, &tenant, key, value)?,
        }
    }
    drop(table);
    changes.write(transaction)?;
    Ok(last.unwrap_or_else(|| vec![number + 1]))
}

/// Lists a run, if it has ended. Returns 1 for one that has not.
fn see_run(transaction: &WriteTransaction, key: &[u8], summary: &[u8]) -> Result<i64, JournalError> {
    let Some(key) = keys::parse_run(key) else { return Ok(0) };
    let Some(summary) = read::<RunSummary>(summary, "a run's summary") else { return Ok(0) };
    let Some(at) = summary.ended_at.filter(|_| summary.status.is_terminal()) else { return Ok(1) };
    let listed = keys::ended(at, &key);
    let mut ended = transaction.open_table(ENDED).map_err(storage("upgrade its file"))?;
    let channel = summary.channel.unwrap_or_default();
    ended.insert(listed.as_slice(), channel.as_bytes()).map_err(storage("upgrade its file"))?;
    if refers_to_content(transaction, &key)? {
        let mut contents = transaction.open_table(ENDED_CONTENTS).map_err(storage("upgrade its file"))?;
        contents.insert(listed.as_slice(), [].as_slice()).map_err(storage("upgrade its file"))?;
    }
    Ok(0)
}

/// Lists a delivery: with those that are to be tried, or those that are given up. Of the latter, those that are too many
/// go when the next one is.
fn see_delivery(
    transaction: &WriteTransaction,
    tenant: &TenantId,
    key: &[u8],
    delivery: &[u8],
) -> Result<(), JournalError> {
    let Some(Delivery { webhook, run, next_at, .. }) = read(delivery, "a delivery") else { return Ok(()) };
    if next_at.is_none() {
        dead::list(transaction, tenant, &webhook, key)?;
    }
    DELIVERING.change(transaction, &triggers::delivering_lane(tenant, &webhook), run.as_bytes(), None, next_at)
}

/// Enters a webhook where the writer looks for it.
fn see_webhook(
    transaction: &WriteTransaction,
    tenant: &TenantId,
    _: &[u8],
    webhook: &[u8],
) -> Result<(), JournalError> {
    let webhook: Option<WebhookRecord> = read(webhook, "a webhook");
    webhook.map_or(Ok(()), |webhook| triggers::told(transaction, tenant, &webhook, true))
}

/// Lists a trigger by its event.
fn see_trigger(
    transaction: &WriteTransaction,
    tenant: &TenantId,
    _: &[u8],
    trigger: &[u8],
) -> Result<(), JournalError> {
    let trigger: Option<TriggerRecord> = read(trigger, "a trigger");
    let Some(TriggerRecord { name, on: TriggerOn::Event { event }, .. }) = trigger else { return Ok(()) };
    let mut index = transaction.open_table(EVENT_TRIGGERS).map_err(storage("upgrade its file"))?;
    let key = triggers::indexed(tenant, &event, &name);
    index.insert(key.as_slice(), [].as_slice()).map_err(storage("upgrade its file"))?;
    Ok(())
}

/// Lists when a trigger fires next.
fn see_mark(transaction: &WriteTransaction, tenant: &TenantId, key: &[u8], mark: &[u8]) -> Result<(), JournalError> {
    let (Some(mark), Some(name)) = (read::<TriggerMark>(mark, "a trigger's mark"), triggers::indexed_name(key)) else {
        return Ok(());
    };
    FIRING.change(transaction, &triggers::firing_lane(tenant), name.as_bytes(), None, mark.next)
}

/// Reads an entry. One that is damaged must not keep a host from starting: it is told of, and is where it was.
fn read<T: DeserializeOwned>(value: &[u8], what: &str) -> Option<T> {
    let read = parse(value, || what.to_owned());
    read.inspect_err(|error| tracing::error!(error = error_chain(error), "an entry of the journal is left out")).ok()
}

#[cfg(test)]
mod tests {
    use stepwell_core::{RunId, RunKey};

    use super::*;
    use crate::journal::RedbJournal;

    #[tokio::test]
    async fn runs_to_be_woken_are_moved_to_the_list_by_tenant() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.redb");
        let key = |tenant: &str, run| RunKey { tenant: tenant.parse().unwrap(), run: RunId::from_bytes([run; 16]) };
        let wakes = [(30_u64, key("a", 1)), (10, key("b", 2)), (20, key("a", 3))];
        let before: Vec<Vec<u8>> =
            wakes.iter().map(|(at, key)| [at.to_be_bytes().as_slice(), &keys::run(key)].concat()).collect();
        let journal = RedbJournal::open(&path).unwrap();
        journal
            .write(move |transaction| {
                let mut table = transaction.open_table(WAKES).unwrap();
                before.iter().for_each(|entry| drop(table.insert(entry.as_slice(), [].as_slice()).unwrap()));
                table.insert([1, 2].as_slice(), [].as_slice()).unwrap(); // damage keeps nobody from starting
                Ok(())
            })
            .await
            .unwrap();
        drop(journal);
        for _ in 0..2 {
            let journal = RedbJournal::open(&path).unwrap();
            let at = Timestamp::from_millis;
            assert_eq!(journal.tenants_to_wake(at(99)).unwrap(), [key("b", 0).tenant, key("a", 0).tenant]);
            let of_a = journal.wakes(&key("a", 0).tenant, None, at(99), 9).unwrap();
            assert_eq!(of_a, [(at(20), key("a", 3).run), (at(30), key("a", 1).run)]);
        }
    }
}
