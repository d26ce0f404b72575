//! The journal in one file on this machine.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;

use ::redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, WriteTransaction,
};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use stepwell_core::{Digest, Recorded, RunId, RunKey, Seq, TenantId, Timestamp, WorkflowName};
use tokio::sync::{mpsc, oneshot, watch};

use super::channels::{ChannelKey, Projection};
use super::flow::{Admit, FlowId};
use super::limits::Limits;
use super::tails::{Tail, TailState, Tails};
use super::writer::{
    self, Append, Bytes2Bytes, CONTENTS, Idempotency, IdempotencyEntry, RECORDS, RUN_CONTENTS, RUNS, Request,
    UNFINISHED, Writer,
};
use super::{
    Batch, Created, IdempotencyKey, Journal, JournalError, RunFilter, RunPage, RunSummary, keys, record, snapshots,
    upgrade,
};

/// Pages of the file that are kept in memory. What is not in here is most likely in the system's own cache.
const CACHE_BYTES: usize = 256 << 20;
/// The format of the file; see `docs/journal.md`.
const FORMAT: u64 = 1;
/// Run summaries that one listing reads at most, whatever its filter matches.
const RUNS_SCANNED_MAX: usize = 10_000;

/// "format" → [`FORMAT`], and other facts about the file itself.
pub(super) const META: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("meta");

/// The journal in a redb file. Dropping it waits until what was accepted is written.
#[derive(Debug)]
pub struct RedbJournal {
    database: Arc<Database>,
    tails: Arc<Tails>,
    pub(super) channel_tails: Arc<Tails<ChannelKey>>,
    // Both are taken on drop: the writer stops when the last sender is gone.
    requests: Option<mpsc::Sender<Request>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    broken: watch::Receiver<bool>,
    secret: [u8; 32],
    /// What each tenant may have, as the table says.
    pub(super) limits: RwLock<HashMap<TenantId, Limits>>,
}

/// Wraps what the storage said with what was attempted.
pub(super) fn storage<E: Into<::redb::Error>>(operation: &'static str) -> impl FnOnce(E) -> JournalError {
    move |error| JournalError::Storage { operation, source: Arc::new(error.into()) }
}

impl RedbJournal {
    /// Opens the file, or makes it. A file is made under another name first: one that a crash has left half made would
    /// not open.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let builder = || {
            let mut builder = Database::builder();
            builder.set_cache_size(CACHE_BYTES);
            builder
        };
        let io = |operation| move |error| storage(operation)(::redb::Error::Io(error));
        if !path.exists() {
            let new = path.with_extension("new");
            match std::fs::remove_file(&new) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io("make its file")(error)),
                _ => {}
            }
            prepare(&builder().create(&new).map_err(storage("make its file"))?)?;
            std::fs::rename(&new, path).map_err(io("make its file"))?;
            let dir = path.parent().map(std::fs::File::open).transpose().map_err(io("make its file"))?;
            dir.map(|dir| dir.sync_all()).transpose().map_err(io("make its file"))?;
        }
        Self::start(builder().open(path).map_err(storage("open its file"))?)
    }

    /// Opens a journal on other storage. For tests that break it.
    pub fn open_backend(backend: impl StorageBackend) -> Result<Self, JournalError> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend);
        Self::start(database.map_err(storage("open its storage"))?)
    }

    fn start(database: Database) -> Result<Self, JournalError> {
        let secret = prepare(&database)?;
        upgrade::fill(&database)?;
        let database = Arc::new(database);
        let (tails, channel_tails) = (Tails::new(), Tails::new());
        let (requests, queue) = mpsc::channel(writer::QUEUE_LEN);
        let (broken_sender, broken) = watch::channel(false);
        let writer = Writer::new(Arc::clone(&database), Arc::clone(&tails), Arc::clone(&channel_tails), broken_sender);
        let thread = std::thread::Builder::new().name("journal".to_owned()).spawn(move || writer.run(queue));
        let thread = thread.map_err(|error| storage("start its writer")(::redb::Error::Io(error)))?;
        let this = Self {
            database,
            tails,
            channel_tails,
            requests: Some(requests),
            thread: Mutex::new(Some(thread)),
            broken,
            secret,
            limits: RwLock::default(),
        };
        this.read_limits()?;
        Ok(this)
    }

    /// A secret of this installation, made with the file: what the host signs its own files with.
    #[must_use]
    pub fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// Waits until the journal has failed for good. The process should then end and be started anew.
    pub async fn broken(&self) {
        let mut broken = self.broken.clone();
        if broken.wait_for(|broken| *broken).await.is_err() {
            // The writer has stopped without failing: the journal is on its way down.
            std::future::pending::<()>().await;
        }
    }

    /// Whether the journal accepts writes.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        !*self.broken.borrow()
    }

    pub(super) fn reader(&self) -> Result<ReadTransaction, JournalError> {
        self.database.begin_read().map_err(storage("begin a read"))
    }

    /// Writes something that is no run, in the order of all other writes. An error of `work` that is not the storage's
    /// must come before its first write: what it has written by then is written.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, JournalError> {
        let (reply, answer) = oneshot::channel();
        let work = Box::new(move |transaction: &WriteTransaction| {
            let value = match work(transaction) {
                Err(failed @ JournalError::Storage { .. }) => return Err(failed),
                other => other,
            };
            let settle = Box::new(move |result: Result<(), JournalError>| drop(reply.send(result.and(value))));
            Ok(settle as writer::Settle)
        });
        self.send(Request::Work(work), answer).await
    }

    /// The tenants that have an entry in a table whose keys begin with one. Reads one entry of each.
    pub(super) fn tenants_in(&self, table: Bytes2Bytes) -> Result<BTreeSet<TenantId>, JournalError> {
        let failed = || storage("list the tenants of a table");
        let table = self.reader()?.open_table(table).map_err(storage("list the tenants of a table"))?;
        let (mut tenants, mut start) = (BTreeSet::new(), Vec::new());
        while let Some(entry) = table.range(start.as_slice()..).map_err(failed())?.next() {
            let (key, _) = entry.map_err(failed())?;
            match keys::tenant_of(key.value()) {
                Some(tenant) => {
                    start = keys::of_tenant(&tenant).end;
                    tenants.insert(tenant);
                }
                None => {
                    tracing::error!(entry = hex::encode(key.value()), "an entry of the journal names no tenant");
                    start = key.value().to_vec();
                    start.push(0); // the next key there can be
                }
            }
        }
        Ok(tenants)
    }

    async fn send<T>(
        &self,
        request: Request,
        answer: oneshot::Receiver<Result<T, JournalError>>,
    ) -> Result<T, JournalError> {
        let requests = self.requests.as_ref().ok_or(JournalError::Closed)?;
        requests.send(request).await.map_err(|_| JournalError::Closed)?;
        answer.await.map_err(|_| JournalError::Closed)?
    }
}

impl Drop for RedbJournal {
    fn drop(&mut self) {
        self.requests = None;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the journal's writer panicked");
        }
    }
}

/// Checks the format, or writes it into a new file together with all tables and a secret.
fn prepare(database: &Database) -> Result<[u8; 32], JournalError> {
    let failed = || storage("prepare its file");
    let transaction = database.begin_write().map_err(storage("begin a write"))?;
    let secret = {
        let mut meta = transaction.open_table(META).map_err(storage("prepare its file"))?;
        let number = |value: &[u8]| value.try_into().map(u64::from_be_bytes).unwrap_or(0);
        let found = meta.get("format").map_err(failed())?.map(|value| number(value.value()));
        if let Some(found) = found.filter(|found| *found != FORMAT) {
            return Err(JournalError::UnknownFormat { found, known: FORMAT });
        }
        meta.insert("format", FORMAT.to_be_bytes().as_slice()).map_err(failed())?;
        if found.is_none() {
            upgrade::mark_done(&mut meta)?; // a new file has nothing to fill them with
        }
        let stored = meta.get("secret").map_err(failed())?.and_then(|value| <[u8; 32]>::try_from(value.value()).ok());
        match stored {
            Some(secret) => secret,
            None => {
                let secret = crate::clock::random_bytes::<32>();
                meta.insert("secret", secret.as_slice()).map_err(failed())?;
                secret
            }
        }
    };
    // A table that exists can be read without asking whether it does.
    let tables = [
        super::catalog::TABLES,
        super::access::TABLES,
        super::channels::TABLES,
        super::triggers::TABLES,
        super::shadows::TABLES,
        super::dead::TABLES,
        super::ended::TABLES,
        super::usage::TABLES,
        super::flow::TABLES,
    ];
    for table in tables.into_iter().flatten().chain(writer::TABLES) {
        transaction.open_table(*table).map_err(storage("prepare its file"))?;
    }
    transaction.commit().map_err(storage("prepare its file"))?;
    Ok(secret)
}

impl Journal for RedbJournal {
    fn create(
        &self,
        key: &RunKey,
        batch: Batch,
        idempotency: Option<IdempotencyKey>,
    ) -> BoxFuture<'_, Result<Created, JournalError>> {
        let at = batch.at;
        let is_child = batch.summary.as_ref().is_some_and(|summary| summary.parent.is_some());
        let admit = batch.flow.as_ref().zip(batch.admission).map(|(change, admission)| {
            let id = FlowId::new(&key.tenant, &change.workflow, &change.place);
            Box::new(Admit { id, key: change.place.key.clone(), admission })
        });
        let append = encode(key.clone(), 0, batch);
        let tenant = key.tenant.clone();
        async move {
            let (mut append, workflow) = append?;
            append.limits = (!is_child).then(|| self.limits(&tenant));
            let idempotency = idempotency.zip(workflow).map(|(wanted, workflow)| {
                Box::new(Idempotency { key: keys::idempotency(&tenant, &workflow, &wanted.key), wanted })
            });
            let (reply, answer) = oneshot::channel();
            self.send(Request::Create { append, at, idempotency, admit, reply }, answer).await
        }
        .boxed()
    }

    fn append(&self, key: &RunKey, last_seq: Seq, batch: Batch) -> BoxFuture<'_, Result<(), JournalError>> {
        let append = encode(key.clone(), last_seq, batch);
        async move {
            let (reply, answer) = oneshot::channel();
            self.send(Request::Append { append: append?.0, reply }, answer).await
        }
        .boxed()
    }

    fn started_with(
        &self,
        tenant: &TenantId,
        workflow: &WorkflowName,
        idempotency: &IdempotencyKey,
        now: Timestamp,
    ) -> Result<Option<RunId>, JournalError> {
        let key = keys::idempotency(tenant, workflow, &idempotency.key);
        let table = self.reader()?.open_table(writer::IDEMPOTENCY).map_err(storage("open the idempotency keys"))?;
        let stored = table.get(key.as_slice()).map_err(storage("look for an idempotency key"))?;
        let entry = stored.and_then(|value| IdempotencyEntry::decode(value.value()));
        entry.map_or(Ok(None), |entry| entry.answer(now, &idempotency.fingerprint))
    }

    fn read_until(
        &self,
        key: &RunKey,
        after: Seq,
        until: Seq,
        bytes_max: usize,
    ) -> Result<Vec<Recorded>, JournalError> {
        let records = self.reader()?.open_table(RECORDS).map_err(storage("open the records"))?;
        let (first, last) = (keys::record(key, after.saturating_add(1)), keys::record(key, Seq::MAX));
        let range = records.range(first.as_slice()..=last.as_slice()).map_err(storage("read a run"))?;
        let mut found = Vec::new();
        let mut size = 0;
        for entry in range {
            let (key, value) = entry.map_err(storage("read a run"))?;
            size += value.value().len();
            let recorded = record::decode(value.value(), writer::seq_of(key.value())?)?;
            let is_last = recorded.last().is_some_and(|last| last.seq >= until);
            found.extend(recorded.into_iter().filter(|recorded| recorded.seq > after && recorded.seq <= until));
            if size > bytes_max || is_last {
                break;
            }
        }
        match found.first() {
            Some(Recorded { seq: first_seq, .. }) if *first_seq > after.saturating_add(1) => {
                Err(JournalError::Truncated { first_seq: *first_seq })
            }
            _ => Ok(found),
        }
    }

    fn tail(&self, key: &RunKey) -> Result<Tail, JournalError> {
        self.tails.follow(key, || {
            let records = self.reader()?.open_table(RECORDS).map_err(storage("open the records"))?;
            let last_seq = writer::head(&records, key)?;
            let ended = self.summary(key)?.is_some_and(|s| s.status.is_terminal() && s.status_seq <= last_seq);
            Ok(TailState { last_seq, ended })
        })
    }

    fn summary(&self, key: &RunKey) -> Result<Option<RunSummary>, JournalError> {
        let runs = self.reader()?.open_table(RUNS).map_err(storage("open the runs"))?;
        let found = runs.get(keys::run(key).as_slice()).map_err(storage("read a run's summary"))?;
        found.map(|value| parse(value.value(), || format!("the summary of {key}"))).transpose()
    }

    fn runs(&self, tenant: &TenantId, filter: &RunFilter, limit: usize) -> Result<RunPage, JournalError> {
        let runs = self.reader()?.open_table(RUNS).map_err(storage("open the runs"))?;
        let mut range = keys::of_tenant(tenant);
        if let Some(before) = filter.before {
            range.end = keys::run(&RunKey { tenant: tenant.clone(), run: before });
        }
        let mut page = RunPage { runs: Vec::new(), next: None };
        let entries = runs.range(range.start.as_slice()..range.end.as_slice()).map_err(storage("list runs"))?;
        let mut last: Option<RunId> = None;
        for (scanned, entry) in entries.rev().enumerate() {
            let (key, value) = entry.map_err(storage("list runs"))?;
            if scanned == RUNS_SCANNED_MAX || page.runs.len() == limit {
                page.next = last;
                break;
            }
            let Some(RunKey { run, .. }) = keys::parse_run(key.value()) else { continue };
            last = Some(run);
            let summary: RunSummary = parse(value.value(), || format!("the summary of {tenant}/{run}"))?;
            if filter.matches(&summary) {
                page.runs.push((run, summary));
            }
        }
        Ok(page)
    }

    fn tenants_with_unfinished(&self) -> Result<BTreeSet<TenantId>, JournalError> {
        self.tenants_in(UNFINISHED)
    }

    fn unfinished(&self, tenant: &TenantId, after: Option<RunId>, limit: usize) -> Result<Vec<RunKey>, JournalError> {
        let unfinished = self.reader()?.open_table(UNFINISHED).map_err(storage("open the unfinished runs"))?;
        let mut range = keys::of_tenant(tenant);
        if let Some(run) = after {
            range.start = keys::run(&RunKey { tenant: tenant.clone(), run });
            range.start.push(0); // the next key there can be
        }
        let range = unfinished.range(range.start.as_slice()..range.end.as_slice());
        let mut keys = Vec::new();
        for entry in range.map_err(storage("list unfinished runs"))? {
            let (key, _) = entry.map_err(storage("list unfinished runs"))?;
            match keys::parse_run(key.value()) {
                Some(key) => keys.push(key),
                // One bad entry must not keep all others from being taken up.
                None => {
                    tracing::error!(entry = hex::encode(key.value()), "an entry of the unfinished runs names no run")
                }
            }
            if keys.len() == limit {
                break;
            }
        }
        Ok(keys)
    }

    fn settle(&self, key: &RunKey) -> BoxFuture<'_, Result<(), JournalError>> {
        let run = keys::run(key);
        self.write(move |transaction| {
            let mut unfinished = transaction.open_table(UNFINISHED).map_err(storage("open the unfinished runs"))?;
            unfinished.remove(run.as_slice()).map_err(storage("remove an unfinished run"))?;
            Ok(())
        })
        .boxed()
    }

    fn put_snapshot(&self, key: &RunKey, seq: Seq, bytes: Vec<u8>) -> BoxFuture<'_, Result<(), JournalError>> {
        let key = key.clone();
        async move { snapshots::put(self, &key, seq, bytes).await }.boxed()
    }

    fn snapshot(&self, key: &RunKey) -> Result<Option<(Seq, Vec<u8>)>, JournalError> {
        snapshots::get(self, key)
    }

    fn content(&self, tenant: &TenantId, sha256: &Digest) -> Result<Option<Bytes>, JournalError> {
        let contents = self.reader()?.open_table(CONTENTS).map_err(storage("open the contents"))?;
        let found = contents.get(keys::content(tenant, sha256).as_slice()).map_err(storage("read content"))?;
        Ok(found.map(|value| Bytes::copy_from_slice(value.value())))
    }
}

impl RedbJournal {
    /// Whether some event of the tenant refers to content. What [`content`](Journal::content) reads, without reading it.
    pub fn has_content(&self, tenant: &TenantId, sha256: &Digest) -> Result<bool, JournalError> {
        let contents = self.reader()?.open_table(CONTENTS).map_err(storage("open the contents"))?;
        Ok(contents.get(keys::content(tenant, sha256).as_slice()).map_err(storage("look for content"))?.is_some())
    }

    /// Whether a run still refers to content. It does not any more when its content has outlived its retention, even where
    /// another run of the tenant has the same.
    pub fn refers_to(&self, key: &RunKey, sha256: &Digest) -> Result<bool, JournalError> {
        let references = self.reader()?.open_table(RUN_CONTENTS).map_err(storage("open the references"))?;
        let found = references.get(keys::run_content(key, sha256).as_slice());
        Ok(found.map_err(storage("look for a reference"))?.is_some())
    }
}

/// A batch in the form the writer takes, and the workflow of a new run.
fn encode(key: RunKey, last_seq: Seq, batch: Batch) -> Result<(Append, Option<WorkflowName>), JournalError> {
    let record = record::encode(&batch)?;
    let ended = batch.events.last().is_some_and(stepwell_core::Event::is_terminal);
    let workflow = batch.summary.as_ref().map(|summary| summary.workflow.clone());
    let summary = batch.summary.as_ref().map(|summary| to_json(summary, "a run's summary")).transpose()?;
    let events = batch.events.len() as u64;
    let Batch { at, contents, references, listed, wake, channel: channel_name, flow, events: of, .. } = batch;
    let channel = Projection::of(channel_name.clone(), last_seq, &of);
    let limits = None;
    Ok((
        Append {
            key,
            last_seq,
            events,
            record,
            contents,
            references,
            summary,
            ended,
            at,
            channel_name,
            limits,
            listed,
            wake,
            channel,
            flow,
        },
        workflow,
    ))
}

/// A stored value as JSON.
pub(super) fn to_json(value: &impl serde::Serialize, what: &str) -> Result<Vec<u8>, JournalError> {
    let damaged = |error: serde_json::Error| JournalError::Damaged { what: what.to_owned(), reason: error.to_string() };
    serde_json::to_vec(value).map_err(damaged)
}

/// Reads back what [`to_json`] has written.
pub(super) fn parse<T: serde::de::DeserializeOwned>(
    bytes: &[u8],
    what: impl FnOnce() -> String,
) -> Result<T, JournalError> {
    serde_json::from_slice(bytes).map_err(|error| JournalError::Damaged { what: what(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use stepwell_core::{Event, Timestamp};

    use super::*;

    /// Today runs are deleted whole, so nobody sees this. The day a part of a run is deleted, whoever reads over the
    /// gap must be told.
    #[tokio::test]
    async fn a_reader_is_told_when_history_begins_after_where_it_wants_to_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(RedbJournal::open(&dir.path().join("journal.redb")).unwrap());
        let key = RunKey { tenant: "a".parse().unwrap(), run: RunId::from_bytes([1; 16]) };
        let batch = |events| Batch { at: Timestamp::from_millis(1), events, ..Batch::default() };
        journal.create(&key, batch(vec![Event::RunStarted { deadline: None }; 2]), None).await.unwrap();
        journal.append(&key, 2, batch(vec![Event::RunResumed {}; 3])).await.unwrap();
        let removed = keys::record(&key, 2);
        let remove = move |transaction: &WriteTransaction| {
            let mut records = transaction.open_table(RECORDS).map_err(storage("open the records"))?;
            let found = records.remove(removed.as_slice()).map_err(storage("delete a record"))?;
            Ok(found.is_some())
        };
        assert!(journal.write(remove).await.unwrap());

        for after in [0, 1] {
            let read = journal.read(&key, after, usize::MAX);
            assert!(matches!(read, Err(JournalError::Truncated { first_seq: 3 })), "{read:?}");
            let stream = crate::streams::RunStream::new(Arc::clone(&journal), key.clone(), after);
            assert!(matches!(stream.err(), Some(JournalError::Truncated { first_seq: 3 })));
        }
        let seqs = |after| journal.read(&key, after, usize::MAX).unwrap().iter().map(|r| r.seq).collect::<Vec<_>>();
        assert_eq!((seqs(2), seqs(3), seqs(5), seqs(9)), (vec![3, 4, 5], vec![4, 5], vec![], vec![]));
    }
}
