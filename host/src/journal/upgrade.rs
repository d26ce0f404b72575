//! Files of format 1 that were written before runs were listed by their end, before anything was counted, and before what
//! is due was listed by tenants and webhooks.
//!
//! Owns: filling what such a file lacks, once, before anything else is done with it.
//! Does not: change what is there; every table that this fills says what others say.
//! Keeps: each transaction is bounded, and says how far it has come, so a crash in the middle costs one of them.

use ::redb::{Database, ReadableTable, WriteTransaction};
use serde::de::DeserializeOwned;
use stepwell_core::TenantId;

use super::ended::{ENDED, ENDED_CONTENTS, refers_to_content};
use super::redb::{META, parse, storage};
use super::triggers::{
    self, DELIVERING, Delivery, EVENT_TRIGGERS, FIRING, OUTBOX, TRIGGER_MARKS, TRIGGERS, TriggerMark, TriggerOn,
    TriggerRecord, WEBHOOKS, WebhookRecord,
};
use super::usage::{COUNTED, Change, Changes, entry};
use super::writer::Bytes2Bytes;
use super::{JournalError, RunSummary, dead, error_chain, keys};

/// Lists an entry of a table where a file of before does not.
type List = fn(&WriteTransaction, &TenantId, &[u8], &[u8]) -> Result<(), JournalError>;

/// Tables whose entries are listed elsewhere too, looked at after those that count.
const LISTED: [(Bytes2Bytes, List); 4] =
    [(OUTBOX, see_delivery), (WEBHOOKS, see_webhook), (TRIGGERS, see_trigger), (TRIGGER_MARKS, see_mark)];

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
