//! Channels: what happens in many runs of a tenant, in one order with numbers of its own.
//!
//! Owns: the order of a channel's entries, and which events are among them: updates, rollbacks and ends.
//! Does not: hold what happened. An entry refers to an event, which is read where it is.
//! Keeps: entries are written in the transaction of the events they refer to, so a crash leaves both or neither; they
//! are numbered from 1 without gaps, and no number is given twice. When a run is deleted, the channel begins after the last
//! of its entries: what is read of a channel has no gaps, and whoever was before its beginning is told.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ::redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};
use stepwell_core::{Event, Recorded, RunId, RunKey, Seq, TenantId, WorkflowName};

use super::redb::{RedbJournal, parse, storage};
use super::retention::Deletion;
use super::tails::{Tail, TailState};
use super::writer::{self, Bytes2Bytes, RECORDS, RUNS, Table};
use super::{JournalError, RunSummary, keys, record};

/// (tenant, channel, last cursor) → run, and for each stretch of its events the first seq and how many.
///
/// One row holds what one append has for the channel.
const CHANNEL_ROWS: Bytes2Bytes = TableDefinition::new("channel_rows");
/// (tenant, channel) → the last cursor that was ever given.
const CHANNEL_HEADS: Bytes2Bytes = TableDefinition::new("channel_heads");
/// (tenant, run, last cursor): the rows of a run, for when it is deleted.
const RUN_CHANNEL_ROWS: Bytes2Bytes = TableDefinition::new("run_channel_rows");
/// (tenant, channel) → the last cursor that was deleted. Entries of other runs before it are not looked at any more.
const CHANNEL_BEGINNINGS: Bytes2Bytes = TableDefinition::new("channel_beginnings");

/// All of them.
pub(super) const TABLES: &[Bytes2Bytes] = &[CHANNEL_ROWS, CHANNEL_HEADS, RUN_CHANNEL_ROWS, CHANNEL_BEGINNINGS];

/// Rows that one reading looks at, whatever its filter matches.
const ROWS_SCANNED_MAX: usize = 4_096;

/// A channel of a tenant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ChannelKey {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its name.
    pub channel: String,
}

/// Which entries of a channel to read.
#[derive(Debug, Clone, Default)]
pub struct ChannelFilter {
    /// Only this run's.
    pub run: Option<RunId>,
    /// Only those of runs of this workflow.
    pub workflow: Option<WorkflowName>,
    /// Only those of runs that were started with this.
    pub correlation: Option<String>,
    /// Only updates on these topics; rollbacks and ends in any case.
    pub topics: Option<HashSet<String>>,
}

impl ChannelFilter {
    fn wants_run(&self, summary: &RunSummary) -> bool {
        self.workflow.as_ref().is_none_or(|workflow| *workflow == summary.workflow)
            && self.correlation.as_ref().is_none_or(|wanted| summary.correlation.as_ref() == Some(wanted))
    }

    fn wants(&self, event: &Event) -> bool {
        match (event, &self.topics) {
            (Event::StepUpdate { topic, .. }, Some(topics)) => topics.contains(topic),
            _ => true,
        }
    }
}

/// Something that happened in one of a channel's runs.
#[derive(Debug, Clone)]
pub struct ChannelEntry {
    /// Its number in the channel.
    pub cursor: u64,
    /// The run.
    pub run: RunId,
    /// What is known of the run.
    pub summary: Arc<RunSummary>,
    /// The event.
    pub recorded: Recorded,
}

/// A part of a channel.
#[derive(Debug, Clone)]
pub struct ChannelPage {
    /// What is wanted of it.
    pub entries: Vec<ChannelEntry>,
    /// How far it goes.
    pub cursor: u64,
    /// Whether there may be more.
    pub has_more: bool,
}

/// What an append has for its run's channel.
pub(super) struct Projection {
    pub(super) channel: String,
    /// The first seq of each stretch of events, and how many.
    stretches: Vec<(Seq, u32)>,
}

/// Whether an event is among a channel's entries.
fn is_shown(event: &Event) -> bool {
    event.is_terminal() || matches!(event, Event::StepUpdate { .. } | Event::StepRolledBack { .. })
}

impl Projection {
    /// What there is to show of the events after `last_seq`.
    pub(super) fn of(channel: Option<String>, last_seq: Seq, events: &[Event]) -> Option<Self> {
        let channel = channel?;
        let mut stretches: Vec<(Seq, u32)> = Vec::new();
        for (seq, _) in (last_seq + 1..).zip(events).filter(|(_, event)| is_shown(event)) {
            match stretches.last_mut() {
                Some((first, count)) if *first + Seq::from(*count) == seq => *count += 1,
                _ => stretches.push((seq, 1)),
            }
        }
        (!stretches.is_empty()).then_some(Self { channel, stretches })
    }
}

/// A row as it is stored.
struct Row {
    run: RunId,
    stretches: Vec<(Seq, u32)>,
}

impl Row {
    fn encode(run: RunId, stretches: &[(Seq, u32)]) -> Vec<u8> {
        let mut bytes = run.as_bytes().to_vec();
        for (first, count) in stretches {
            bytes.extend_from_slice(&first.to_be_bytes());
            bytes.extend_from_slice(&count.to_be_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (run, mut rest) = bytes.split_first_chunk::<16>()?;
        let mut stretches = Vec::with_capacity(rest.len() / 12);
        while let Some((first, after)) = rest.split_first_chunk::<8>() {
            let (count, after) = after.split_first_chunk::<4>()?;
            stretches.push((Seq::from_be_bytes(*first), u32::from_be_bytes(*count)));
            rest = after;
        }
        rest.is_empty().then_some(Self { run: RunId::from_bytes(*run), stretches })
    }

    fn count(&self) -> u64 {
        self.stretches.iter().map(|(_, count)| u64::from(*count)).sum()
    }
}

fn damaged(what: &str) -> JournalError {
    JournalError::Damaged { what: what.to_owned(), reason: "it has not the length that it should".to_owned() }
}

fn number(bytes: &[u8]) -> Result<u64, JournalError> {
    bytes.last_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes)).ok_or_else(|| damaged("a channel's number"))
}

/// The tables that appends of runs with a channel write to.
pub(super) struct ChannelTables<'t> {
    rows: Table<'t>,
    heads: Table<'t>,
    by_run: Table<'t>,
}

impl<'t> ChannelTables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, JournalError> {
        let open = |table| transaction.open_table(table).map_err(storage("open the channels"));
        Ok(Self { rows: open(CHANNEL_ROWS)?, heads: open(CHANNEL_HEADS)?, by_run: open(RUN_CHANNEL_ROWS)? })
    }

    /// Writes what an append has for its channel, and says how far the channel goes then.
    pub(super) fn write(&mut self, key: &RunKey, projection: &Projection) -> Result<u64, JournalError> {
        let failed = || storage("write to a channel");
        let channel = keys::named(&key.tenant, &projection.channel);
        let head = self.heads.get(channel.as_slice()).map_err(failed())?;
        let head = head.map(|head| number(head.value())).transpose()?.unwrap_or(0);
        let row = Row { run: key.run, stretches: projection.stretches.clone() };
        let last = head + row.count();
        self.heads.insert(channel.as_slice(), last.to_be_bytes().as_slice()).map_err(failed())?;
        let value = Row::encode(row.run, &row.stretches);
        self.rows.insert(keys::numbered(channel, last).as_slice(), value.as_slice()).map_err(failed())?;
        let by_run = keys::numbered(keys::run(key), last);
        self.by_run.insert(by_run.as_slice(), [].as_slice()).map_err(failed())?;
        Ok(last)
    }
}

/// Deletes the entries of a run, or as many as there is room for. The channel begins after the last of them.
pub(super) fn forget(
    transaction: &WriteTransaction,
    key: &RunKey,
    channel: &str,
    deletion: &mut Deletion,
) -> Result<(), JournalError> {
    let failed = || storage("delete from a channel");
    let found = deletion.drain(transaction, RUN_CHANNEL_ROWS, &keys::starting_with(keys::run(key)))?;
    let found: Vec<u64> = found.iter().filter_map(|row| number(row).ok()).collect();
    let channel = keys::named(&key.tenant, channel);
    let mut rows = transaction.open_table(CHANNEL_ROWS).map_err(storage("open the channels"))?;
    for cursor in &found {
        rows.remove(keys::numbered(channel.clone(), *cursor).as_slice()).map_err(failed())?;
    }
    let mut beginnings = transaction.open_table(CHANNEL_BEGINNINGS).map_err(storage("open the channels"))?;
    let deleted = found.last().copied().unwrap_or(0);
    let before = beginnings.get(channel.as_slice()).map_err(failed())?;
    let before = before.map(|before| number(before.value())).transpose()?.unwrap_or(0);
    if deleted > before {
        beginnings.insert(channel.as_slice(), deleted.to_be_bytes().as_slice()).map_err(failed())?;
    }
    Ok(())
}

impl RedbJournal {
    /// Follows how far a channel goes, as [`tail`](super::Journal::tail) does for a run. A channel does not end.
    pub fn channel_tail(&self, key: &ChannelKey) -> Result<Tail<ChannelKey>, JournalError> {
        self.channel_tails.follow(key, || Ok(TailState { last_seq: self.channel_bounds(key)?.1, ended: false }))
    }

    /// The first entry of a channel, which is the next one when there is none, and the last that was ever written. It begins
    /// after the last entry that was deleted; entries before that one can be read in their runs.
    pub fn channel_bounds(&self, key: &ChannelKey) -> Result<(u64, u64), JournalError> {
        bounds(&self.reader()?, key)
    }

    /// The wanted entries of a channel after `after`, in order, until there are `entries_max` of them or they make
    /// `bytes_max` of stored events. [`JournalError::Truncated`] when some of those after it were deleted.
    pub fn channel(
        &self,
        key: &ChannelKey,
        filter: &ChannelFilter,
        after: u64,
        entries_max: usize,
        bytes_max: usize,
    ) -> Result<ChannelPage, JournalError> {
        let transaction = self.reader()?;
        let open = |table| transaction.open_table(table).map_err(storage("open the channels"));
        let (rows, records, runs) = (open(CHANNEL_ROWS)?, open(RECORDS)?, open(RUNS)?);
        let (first_seq, _) = bounds(&transaction, key)?;
        if after.saturating_add(1) < first_seq {
            return Err(JournalError::Truncated { first_seq });
        }
        let channel = keys::named(&key.tenant, &key.channel);
        let from = keys::numbered(channel.clone(), after.saturating_add(1));
        let until = keys::numbered(channel, u64::MAX);
        let mut summaries: HashMap<RunId, Option<Arc<RunSummary>>> = HashMap::new();
        let mut page = ChannelPage { entries: Vec::new(), cursor: after, has_more: false };
        let (mut size, mut scanned) = (0, 0);
        for entry in rows.range(from.as_slice()..=until.as_slice()).map_err(storage("read a channel"))? {
            if page.entries.len() >= entries_max || size > bytes_max || scanned == ROWS_SCANNED_MAX {
                page.has_more = true;
                return Ok(page);
            }
            scanned += 1;
            let (row_key, value) = entry.map_err(storage("read a channel"))?;
            let last = number(row_key.value())?;
            let row = Row::decode(value.value()).ok_or_else(|| damaged("a row of a channel"))?;
            let run = RunKey { tenant: key.tenant.clone(), run: row.run };
            let summary = match summaries.get(&row.run) {
                Some(known) => known.clone(),
                None if filter.run.is_some_and(|wanted| wanted != row.run) => None,
                None => {
                    let stored = runs.get(keys::run(&run).as_slice()).map_err(storage("read a run"))?;
                    let summary = stored.map(|value| parse(value.value(), || format!("the summary of {run}")));
                    let summary = summary.transpose()?.filter(|summary| filter.wants_run(summary)).map(Arc::new);
                    summaries.insert(row.run, summary.clone());
                    summary
                }
            };
            if let Some(summary) = summary {
                let read = events_of(&records, &run, &row, &mut size)?;
                let first = last + 1 - row.count();
                for (cursor, recorded) in (first..).zip(read) {
                    if cursor <= after {
                        continue;
                    }
                    if page.entries.len() == entries_max {
                        page.has_more = true;
                        return Ok(page);
                    }
                    page.cursor = cursor;
                    if filter.wants(&recorded.event) {
                        let summary = Arc::clone(&summary);
                        page.entries.push(ChannelEntry { cursor, run: row.run, summary, recorded });
                    }
                }
            }
            page.cursor = last;
        }
        Ok(page)
    }
}

fn bounds(transaction: &ReadTransaction, key: &ChannelKey) -> Result<(u64, u64), JournalError> {
    let channel = keys::named(&key.tenant, &key.channel);
    let stored = |table| {
        let table = transaction.open_table(table).map_err(storage("open the channels"))?;
        let found = table.get(channel.as_slice()).map_err(storage("read a channel"))?;
        Ok::<u64, JournalError>(found.map(|found| number(found.value())).transpose()?.unwrap_or(0))
    };
    // Numbers have no gaps, and nothing after the last that was deleted is missing.
    Ok((stored(CHANNEL_BEGINNINGS)? + 1, stored(CHANNEL_HEADS)?))
}

/// The events that a row refers to. They are one append, so one record.
fn events_of(
    records: &impl ReadableTable<&'static [u8], &'static [u8]>,
    run: &RunKey,
    row: &Row,
    size: &mut usize,
) -> Result<Vec<Recorded>, JournalError> {
    let first = row.stretches.first().map_or(0, |(first, _)| *first);
    let (from, until) = (keys::record(run, first), keys::record(run, Seq::MAX));
    let gone = || JournalError::Damaged {
        what: format!("a row of the channel of {run}"),
        reason: format!("there is no event {first}"),
    };
    let mut range = records.range(from.as_slice()..=until.as_slice()).map_err(storage("read a run"))?;
    let (key, value) = range.next().ok_or_else(gone)?.map_err(storage("read a run"))?;
    *size += value.value().len();
    let decoded = record::decode(value.value(), writer::seq_of(key.value())?)?;
    let within =
        |seq: Seq| row.stretches.iter().any(|(first, count)| (*first..*first + Seq::from(*count)).contains(&seq));
    let found: Vec<Recorded> = decoded.into_iter().filter(|recorded| within(recorded.seq)).collect();
    if found.len() as u64 == row.count() { Ok(found) } else { Err(gone()) }
}
