//! The one writer: a thread that drains the queue of writes into one transaction and one fsync, then acknowledges
//! them all. Under low load a write commits at once; under load everything that came during the last fsync shares
//! the next one.
//!
//! After a failed transaction it writes nothing any more: what is on disk is then unknown, and only opening the
//! file again can tell. Every request is answered with [`JournalError::Closed`] from there on.

use std::collections::HashMap;
use std::sync::Arc;

use ::redb::{Database, ReadableTable, TableDefinition, WriteTransaction};
use bytes::Bytes;
use stepwell_core::{Digest, RunId, RunKey, Seq, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};

use super::channels::{ChannelKey, ChannelTables, Projection};
use super::ended::EndedTables;
use super::flow::{self, Admit, FlowChange};
use super::limits::Limits;
use super::redb::storage;
use super::tails::{TailState, Tails};
use super::usage::{Change, Changes, entry};
use super::{
    Content, Created, IDEMPOTENCY_TTL_MS, IdempotencyKey, JournalError, WakeChange, error_chain, keys, waking,
};

/// Writes waiting for the writer before senders wait for room. More than any sensible number of runs moving at once,
/// so
/// that it bounds their number without shaping the load.
pub(super) const QUEUE_LEN: usize = 8 * 1024;
/// Bytes after which a transaction takes no further write: keeps one fsync short (a few milliseconds).
const TRANSACTION_BYTES_MAX: usize = 4 << 20;
/// Runs whose last event the writer remembers. It asks the table for the others.
const HEADS_MAX: usize = 64 * 1024;

pub(super) type Bytes2Bytes = TableDefinition<'static, &'static [u8], &'static [u8]>;
/// (tenant, run, last seq) → record.
pub(super) const RECORDS: Bytes2Bytes = TableDefinition::new("records");
/// (tenant, run) → summary.
pub(super) const RUNS: Bytes2Bytes = TableDefinition::new("runs");
/// (tenant, run) of each run that has not ended.
pub(super) const UNFINISHED: Bytes2Bytes = TableDefinition::new("unfinished");
/// (tenant, run, seq, number) → a piece of the state after that event.
pub(super) const SNAPSHOTS: Bytes2Bytes = TableDefinition::new("snapshots");
/// (tenant, workflow, SHA-256 of the key) → time, run, fingerprint.
pub(super) const IDEMPOTENCY: Bytes2Bytes = TableDefinition::new("idempotency");
/// (time, idempotency key) of each entry of the former, oldest first.
pub(super) const IDEMPOTENCY_BY_TIME: Bytes2Bytes = TableDefinition::new("idempotency_by_time");
/// (tenant, SHA-256) → content.
pub(super) const CONTENTS: Bytes2Bytes = TableDefinition::new("contents");
/// (tenant, SHA-256, run): a run refers to content.
pub(super) const CONTENT_RUNS: Bytes2Bytes = TableDefinition::new("content_runs");
/// (tenant, run, SHA-256): the same, by run.
pub(super) const RUN_CONTENTS: Bytes2Bytes = TableDefinition::new("run_contents");

/// All of them.
pub(super) const TABLES: &[Bytes2Bytes] = &[
    RECORDS,
    RUNS,
    UNFINISHED,
    SNAPSHOTS,
    waking::WAKING.entries,
    waking::WAKING.turns,
    IDEMPOTENCY,
    IDEMPOTENCY_BY_TIME,
    CONTENTS,
    CONTENT_RUNS,
    RUN_CONTENTS,
];

/// An append, encoded by whoever asks for it, so that the writer only writes.
pub(super) struct Append {
    pub(super) key: RunKey,
    pub(super) last_seq: Seq,
    pub(super) events: u64,
    pub(super) record: Vec<u8>,
    pub(super) contents: Vec<Content>,
    pub(super) references: Vec<Digest>,
    pub(super) summary: Option<Vec<u8>>,
    pub(super) ended: bool,
    /// When its events were decided.
    pub(super) at: Timestamp,
    /// The run's channel.
    pub(super) channel_name: Option<String>,
    /// What its tenant may have; `None` for what is taken in any case.
    pub(super) limits: Option<Limits>,
    /// Whether the run is among the unfinished afterwards; `None` leaves that to whether it begins or ends here.
    pub(super) listed: Option<bool>,
    pub(super) wake: Option<WakeChange>,
    pub(super) channel: Option<Projection>,
    pub(super) flow: Option<FlowChange>,
}

/// Something else to write, which then says what to do once it is, or is not, on disk. An error means that the
/// storage has failed and ends the journal; a refusal of any other kind is part of what it settles with.
pub(super) type Work = Box<dyn FnOnce(&WriteTransaction) -> Result<Settle, JournalError> + Send>;
pub(super) type Settle = Box<dyn FnOnce(Result<(), JournalError>) + Send>;

pub(super) enum Request {
    Append {
        append: Append,
        reply: oneshot::Sender<Result<(), JournalError>>,
    },
    Create {
        append: Append,
        at: Timestamp,
        idempotency: Option<Box<Idempotency>>,
        admit: Option<Box<Admit>>,
        reply: oneshot::Sender<Result<Created, JournalError>>,
    },
    Work(Work),
}

/// An idempotency key as it is stored.
pub(super) struct Idempotency {
    pub(super) key: Vec<u8>,
    pub(super) wanted: IdempotencyKey,
}

pub(super) struct Writer {
    database: Arc<Database>,
    tails: Arc<Tails>,
    channel_tails: Arc<Tails<ChannelKey>>,
    heads: HashMap<RunKey, Seq>,
    broken: watch::Sender<bool>,
}

impl Writer {
    pub(super) fn new(
        database: Arc<Database>,
        tails: Arc<Tails>,
        channel_tails: Arc<Tails<ChannelKey>>,
        broken: watch::Sender<bool>,
    ) -> Self {
        Self { database, tails, channel_tails, heads: HashMap::new(), broken }
    }

    /// Writes until every sender is gone.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        // Set on the way out, so that a panic counts as a failure too.
        let mut failed = FailedUnless { ended: false, broken: self.broken.clone() };
        while let Some(first) = requests.blocking_recv() {
            if let Err(error) = self.transact(first, &mut requests) {
                tracing::error!(error = error_chain(&error), "the journal has failed and accepts no writes any more");
                // Dropping the queue answers everyone who waits in it.
                return;
            }
        }
        failed.ended = true;
    }

    fn transact(&mut self, first: Request, requests: &mut mpsc::Receiver<Request>) -> Result<(), JournalError> {
        let mut settled = Vec::new();
        let mut channels = HashMap::new();
        let result = self.write_all(first, requests, &mut settled, &mut channels);
        if result.is_ok() {
            for (channel, last_seq) in channels {
                self.channel_tails.moved(&channel, TailState { last_seq, ended: false });
            }
        }
        for settle in settled {
            settle.finish(&self.tails, result.clone());
        }
        result
    }

    fn write_all(
        &mut self,
        first: Request,
        requests: &mut mpsc::Receiver<Request>,
        settled: &mut Vec<Settled>,
        channels: &mut Channels,
    ) -> Result<(), JournalError> {
        let transaction = self.database.begin_write().map_err(storage("begin a write"))?;
        let mut next = Some(first);
        let mut size = 0;
        let mut tables = None;
        let mut changes = Changes::default();
        while let Some(request) = next.take() {
            match request {
                Request::Append { append, reply } => {
                    size += append.size();
                    let tables = RunTables::once(&mut tables, &transaction)?;
                    match self.append(tables, &append, channels, &mut changes)? {
                        Ok(()) => settled.push(Settled::Append { tail: append.tail(), key: append.key, reply }),
                        Err(refused) => drop(reply.send(Err(refused))),
                    }
                }
                Request::Create { append, at, idempotency, admit, reply } => {
                    size += append.size();
                    if let Err(refused) = self.fence(RunTables::once(&mut tables, &transaction)?, &append)? {
                        drop(reply.send(Err(refused)));
                        next = requests.try_recv().ok();
                        continue;
                    }
                    let room = changes.admit(&transaction, &append.key.tenant, append.limits.as_ref())?;
                    match reserve(&transaction, &append.key, at, idempotency, room, admit)? {
                        Ok(Created::New { superseded }) => {
                            let tables = RunTables::once(&mut tables, &transaction)?;
                            match self.append(tables, &append, channels, &mut changes)? {
                                Ok(()) => {
                                    let (tail, key) = (append.tail(), append.key);
                                    settled.push(Settled::Create { tail, key, superseded, reply });
                                }
                                Err(refused) => drop(reply.send(Err(refused))),
                            }
                        }
                        Ok(existing) => settled.push(Settled::Existing { existing, reply }),
                        Err(refused) => drop(reply.send(Err(refused))),
                    }
                }
                Request::Work(work) => {
                    tables = None; // a table can be open only once, and this may open any
                    // It may read the counts, and take from them what was only just written.
                    std::mem::take(&mut changes).write(&transaction)?;
                    settled.push(Settled::Work(work(&transaction)?));
                }
            }
            if size < TRANSACTION_BYTES_MAX {
                next = requests.try_recv().ok();
            }
        }
        drop(tables);
        changes.write(&transaction)?;
        transaction.commit().map_err(storage("commit"))
    }

    /// The last event of a run, if it is the one that the append knows of. The inner error refuses this append alone.
    fn fence(&self, tables: &RunTables<'_>, append: &Append) -> Result<Result<Seq, JournalError>, JournalError> {
        let found = match self.heads.get(&append.key) {
            Some(head) => *head,
            None => tables.head(&append.key)?,
        };
        let expected = append.last_seq;
        if found != expected {
            return Ok(Err(JournalError::Fenced { run: append.key.clone(), expected, found }));
        }
        // Looked at before anything is written, like the order: what is refused leaves no trace.
        for sha256 in &append.references {
            let own = |content: &Content| content.sha256 == *sha256;
            if !append.contents.iter().any(own) && !tables.has_content(&append.key, sha256)? {
                return Ok(Err(JournalError::ContentGone(*sha256)));
            }
        }
        Ok(Ok(found))
    }

    /// Writes what the fence lets through.
    fn append(
        &mut self,
        tables: &mut RunTables<'_>,
        append: &Append,
        channels: &mut Channels,
        changes: &mut Changes,
    ) -> Result<Result<(), JournalError>, JournalError> {
        let found = match self.fence(tables, append)? {
            Ok(found) => found,
            Err(refused) => return Ok(Err(refused)),
        };
        let last_seq = found + append.events;
        let change = tables.write(append, found == 0, last_seq, channels)?;
        changes.add(&append.key.tenant, change);
        if append.ended {
            self.heads.remove(&append.key);
        } else {
            if self.heads.len() >= HEADS_MAX {
                self.heads.clear();
            }
            self.heads.insert(append.key.clone(), last_seq);
        }
        Ok(Ok(()))
    }
}

/// Says that the journal has failed, unless its queue has ended.
struct FailedUnless {
    ended: bool,
    broken: watch::Sender<bool>,
}

impl Drop for FailedUnless {
    fn drop(&mut self) {
        if !self.ended {
            self.broken.send_replace(true);
        }
    }
}

impl Append {
    fn size(&self) -> usize {
        self.record.len() + self.contents.iter().map(|content| content.bytes.len()).sum::<usize>()
    }

    fn tail(&self) -> TailState {
        TailState { last_seq: self.last_seq + self.events, ended: self.ended }
    }
}

/// What to tell whom once the transaction is on disk.
enum Settled {
    Append {
        key: RunKey,
        tail: TailState,
        reply: oneshot::Sender<Result<(), JournalError>>,
    },
    Create {
        key: RunKey,
        tail: TailState,
        superseded: Option<RunId>,
        reply: oneshot::Sender<Result<Created, JournalError>>,
    },
    Existing {
        existing: Created,
        reply: oneshot::Sender<Result<Created, JournalError>>,
    },
    Work(Settle),
}

impl Settled {
    fn finish(self, tails: &Tails, result: Result<(), JournalError>) {
        // A receiver that is gone has lost interest; what was written stays written.
        match self {
            Self::Append { key, tail, reply } => {
                if result.is_ok() {
                    tails.moved(&key, tail);
                }
                drop(reply.send(result));
            }
            Self::Create { key, tail, superseded, reply } => {
                if result.is_ok() {
                    tails.moved(&key, tail);
                }
                drop(reply.send(result.map(|()| Created::New { superseded })));
            }
            Self::Existing { existing, reply } => drop(reply.send(result.map(|()| existing))),
            Self::Work(settle) => settle(result),
        }
    }
}

/// How far the channels go that a transaction writes to.
type Channels = HashMap<ChannelKey, u64>;

pub(super) type Table<'t> = ::redb::Table<'t, &'static [u8], &'static [u8]>;

/// The tables that appends write to.
struct RunTables<'t> {
    transaction: &'t WriteTransaction,
    records: Table<'t>,
    runs: Table<'t>,
    unfinished: Table<'t>,
    channels: Option<ChannelTables<'t>>,
    ended: Option<EndedTables<'t>>,
}

impl<'t> RunTables<'t> {
    /// Opens the tables for the first append of a transaction; the others share them.
    fn once<'a>(slot: &'a mut Option<Self>, transaction: &'t WriteTransaction) -> Result<&'a mut Self, JournalError> {
        match slot {
            Some(tables) => Ok(tables),
            None => Ok(slot.insert(Self {
                transaction,
                records: transaction.open_table(RECORDS).map_err(storage("open the records"))?,
                runs: transaction.open_table(RUNS).map_err(storage("open the runs"))?,
                unfinished: transaction.open_table(UNFINISHED).map_err(storage("open the unfinished runs"))?,
                channels: None,
                ended: None,
            })),
        }
    }

    fn head(&self, key: &RunKey) -> Result<Seq, JournalError> {
        head(&self.records, key)
    }

    fn has_content(&self, key: &RunKey, sha256: &Digest) -> Result<bool, JournalError> {
        let contents = self.transaction.open_table(CONTENTS).map_err(storage("open the contents"))?;
        let content = keys::content(&key.tenant, sha256);
        Ok(contents.get(content.as_slice()).map_err(storage("look for content"))?.is_some())
    }

    fn write(
        &mut self,
        append: &Append,
        first: bool,
        last_seq: Seq,
        channels: &mut Channels,
    ) -> Result<Change, JournalError> {
        let key = &append.key;
        let run = keys::run(key);
        let record = keys::record(key, last_seq);
        self.records.insert(record.as_slice(), append.record.as_slice()).map_err(storage("write a record"))?;
        let mut change = Change { bytes: entry(&record, &append.record), unfinished_runs: first.into() };
        if let Some(summary) = &append.summary {
            let before = self.runs.insert(run.as_slice(), summary.as_slice()).map_err(storage("write a run"))?;
            change.bytes += entry(&run, summary) - before.map_or(0, |before| entry(&run, before.value()));
        }
        let listed = append.listed.or((first || append.ended).then_some(!append.ended));
        match listed {
            Some(true) => {
                self.unfinished.insert(run.as_slice(), [].as_slice()).map_err(storage("write an unfinished run"))?;
            }
            Some(false) => {
                self.unfinished.remove(run.as_slice()).map_err(storage("remove an unfinished run"))?;
            }
            None => {}
        }
        if let Some(change) = append.wake {
            waking::write(self.transaction, key, change)?;
        }
        if let Some(change) = &append.flow {
            flow::write(self.transaction, key, append.at, change)?;
        }
        if let Some(summary) = append.summary.as_ref().filter(|_| append.ended) {
            super::triggers::enqueue(self.transaction, key, summary)?;
            super::shadows::enqueue(self.transaction, key, summary)?;
        }
        if let Some(projection) = &append.channel {
            let tables = match &mut self.channels {
                Some(tables) => tables,
                None => self.channels.insert(ChannelTables::open(self.transaction)?),
            };
            let last = tables.write(key, projection)?;
            let channel = ChannelKey { tenant: key.tenant.clone(), channel: projection.channel.clone() };
            channels.insert(channel, last);
        }
        for content in &append.contents {
            self.refer(key, &content.sha256)?;
            let by = keys::content_run(key, &content.sha256);
            let stored = keys::content(&key.tenant, &content.sha256);
            change.bytes += put_content(self.transaction, &stored, &by, &content.bytes)?;
        }
        for sha256 in &append.references {
            self.refer(key, sha256)?;
            let mut referrers = self.transaction.open_table(CONTENT_RUNS).map_err(storage("open the references"))?;
            let by = keys::content_run(key, sha256);
            referrers.insert(by.as_slice(), [].as_slice()).map_err(storage("write a reference"))?;
        }
        if append.ended {
            let tables = match &mut self.ended {
                Some(tables) => tables,
                None => self.ended.insert(EndedTables::open(self.transaction)?),
            };
            let ended = tables.write(self.transaction, key, append.at, append.channel_name.as_deref())?;
            change.bytes += ended.bytes;
            change.unfinished_runs += ended.unfinished_runs;
        }
        Ok(change)
    }

    /// Notes that a run refers to content, for when the run is deleted.
    fn refer(&self, key: &RunKey, sha256: &Digest) -> Result<(), JournalError> {
        let mut table = self.transaction.open_table(RUN_CONTENTS).map_err(storage("open the references"))?;
        table.insert(keys::run_content(key, sha256).as_slice(), [].as_slice()).map_err(storage("write a reference"))?;
        Ok(())
    }
}

/// Stores content once, and who refers to it. Returns the bytes that this takes.
pub(super) fn put_content(
    transaction: &WriteTransaction,
    key: &[u8],
    referrer: &[u8],
    bytes: &Bytes,
) -> Result<i64, JournalError> {
    let mut contents = transaction.open_table(CONTENTS).map_err(storage("open the contents"))?;
    let known = contents.get(key).map_err(storage("look for content"))?.is_some();
    if !known {
        contents.insert(key, bytes.as_ref()).map_err(storage("write content"))?;
    }
    let mut referrers = transaction.open_table(CONTENT_RUNS).map_err(storage("open the references"))?;
    referrers.insert(referrer, [].as_slice()).map_err(storage("write a reference"))?;
    Ok(if known { 0 } else { entry(key, bytes) })
}

/// The last event of a run; 0 when it has none.
pub(super) fn head(
    records: &impl ReadableTable<&'static [u8], &'static [u8]>,
    key: &RunKey,
) -> Result<Seq, JournalError> {
    let (first, last) = (keys::record(key, 0), keys::record(key, Seq::MAX));
    let mut range = records.range(first.as_slice()..=last.as_slice()).map_err(storage("look for a run's end"))?;
    let Some(entry) = range.next_back() else { return Ok(0) };
    let (found, _) = entry.map_err(storage("look for a run's end"))?;
    seq_of(found.value())
}

/// The number at the end of a record's key.
pub(super) fn seq_of(record_key: &[u8]) -> Result<Seq, JournalError> {
    let bytes = record_key.last_chunk::<8>();
    bytes.map(|bytes| Seq::from_be_bytes(*bytes)).ok_or_else(|| JournalError::Damaged {
        what: "the key of a record".to_owned(),
        reason: "it is too short".to_owned(),
    })
}

/// Looks an idempotency key up, and when it is free and there is room for the run reserves it for this run and counts the
/// run. A repetition is not counted, and finds what was started whether there is room for another or not.
fn reserve(
    transaction: &WriteTransaction,
    run: &RunKey,
    at: Timestamp,
    idempotency: Option<Box<Idempotency>>,
    room: Result<(), JournalError>,
    admit: Option<Box<Admit>>,
) -> Result<Result<Created, JournalError>, JournalError> {
    let admitted = || -> Result<Result<Created, JournalError>, JournalError> {
        if let Err(refused) = &room {
            return Ok(Err(refused.clone()));
        }
        let Some(admit) = &admit else { return Ok(Ok(Created::New { superseded: None })) };
        Ok(match flow::admit(transaction, &run.run, at, admit)? {
            Ok(superseded) => Ok(Created::New { superseded }),
            Err(from) => Err(JournalError::RateLimited { from }),
        })
    };
    let Some(idempotency) = idempotency else { return admitted() };
    let Idempotency { key, wanted } = *idempotency;
    if let Some(time) = &wanted.time {
        // Neither the mark nor the count may change for a run that the other refuses.
        if !super::triggers::time_stands(transaction, &run.tenant, time)? {
            return Ok(Err(JournalError::TimeTaken));
        }
        let created = admitted()?;
        if created.is_ok() {
            super::triggers::take_time(transaction, run, time)?;
        }
        return Ok(created);
    }
    let mut table = transaction.open_table(IDEMPOTENCY).map_err(storage("open the idempotency keys"))?;
    let stored = table.get(key.as_slice()).map_err(storage("look for an idempotency key"))?;
    let stored = stored.and_then(|value| IdempotencyEntry::decode(value.value()));
    match stored.map_or(Ok(None), |entry| entry.answer(at, &wanted.fingerprint)) {
        Ok(None) => {}
        Ok(Some(run)) => return Ok(Ok(Created::Existing(run))),
        Err(mismatch) => return Ok(Err(mismatch)),
    }
    let created = match admitted()? {
        Ok(created) => created,
        Err(refused) => return Ok(Err(refused)),
    };
    let entry = IdempotencyEntry { at, run: run.run, fingerprint: *wanted.fingerprint.as_bytes() };
    table.insert(key.as_slice(), entry.encode().as_slice()).map_err(storage("write an idempotency key"))?;
    let mut by_time = transaction.open_table(IDEMPOTENCY_BY_TIME).map_err(storage("open the idempotency keys"))?;
    let timed = [at.as_millis().to_be_bytes().as_slice(), &key].concat();
    by_time.insert(timed.as_slice(), [].as_slice()).map_err(storage("write an idempotency key"))?;
    Ok(Ok(created))
}

/// What an idempotency key answers with.
pub(super) struct IdempotencyEntry {
    pub(super) at: Timestamp,
    run: RunId,
    fingerprint: [u8; 32],
}

impl IdempotencyEntry {
    fn encode(&self) -> Vec<u8> {
        [self.at.as_millis().to_be_bytes().as_slice(), self.run.as_bytes(), &self.fingerprint].concat()
    }

    /// What it says to a request at this time: the run, or nothing any more.
    pub(super) fn answer(&self, now: Timestamp, fingerprint: &Digest) -> Result<Option<RunId>, JournalError> {
        if now.millis_since(self.at) >= IDEMPOTENCY_TTL_MS {
            return Ok(None);
        }
        let same = self.fingerprint == *fingerprint.as_bytes();
        if same { Ok(Some(self.run)) } else { Err(JournalError::IdempotencyMismatch) }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (at, rest) = bytes.split_first_chunk::<8>()?;
        let (run, fingerprint) = rest.split_first_chunk::<16>()?;
        Some(Self {
            at: Timestamp::from_millis(u64::from_be_bytes(*at)),
            run: RunId::from_bytes(*run),
            fingerprint: fingerprint.try_into().ok()?,
        })
    }
}
