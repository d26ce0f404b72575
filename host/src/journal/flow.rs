//! Flow control on disk: each workflow's settings, the queue of runs that have not started, and what is counted by key.
//!
//! Owns: their tables, and what the writer does about them within the transaction of a run's events.
//! Does not: decide which run starts, or when; the driver does.
//! Keeps: a run is in the queue exactly as long as it is queued, because both change in one write. A start and where the
//! throttle stands after it are one write too, and so are an acceptance and where the rate limit stands.

use std::collections::BTreeSet;

use ::redb::{ReadableTable, Table, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use stepwell_core::flow::{FlowControl, FlowPlace, Mark, Pace};
use stepwell_core::{Digest, RunId, RunKey, TenantId, Timestamp, WorkflowName};

use super::redb::{RedbJournal, parse, storage, to_json};
use super::writer::Bytes2Bytes;
use super::{JournalError, keys};

/// (tenant, workflow) → its settings.
const CONTROLS: Bytes2Bytes = TableDefinition::new("flow_controls");
/// (tenant, workflow, SHA-256 of the key, priority, run) → the time before which it does not start, or nothing.
const QUEUE: Bytes2Bytes = TableDefinition::new("flow_queue");
/// (tenant, workflow, SHA-256 of the key) → what is counted.
const COUNTS: Bytes2Bytes = TableDefinition::new("flow_counts");

/// All of them.
pub(super) const TABLES: &[Bytes2Bytes] = &[CONTROLS, QUEUE, COUNTS];

/// What counts together: the runs of a workflow with one key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId {
    /// Whose it is.
    pub tenant: TenantId,
    /// The workflow.
    pub workflow: WorkflowName,
    /// SHA-256 of the key, whose length and characters are the tenant's business.
    pub key: Digest,
}

impl FlowId {
    /// What a run with this place counts together with.
    #[must_use]
    pub fn new(tenant: &TenantId, workflow: &WorkflowName, place: &FlowPlace) -> Self {
        let key = Digest::from_bytes(Sha256::digest(place.key.as_bytes()).into());
        Self { tenant: tenant.clone(), workflow: workflow.clone(), key }
    }

    fn to_key(&self) -> Vec<u8> {
        keys::version(&self.tenant, &self.workflow, &self.key)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut parts = bytes.splitn(3, |byte| *byte == 0);
        let mut text = || std::str::from_utf8(parts.next()?).ok();
        let (tenant, workflow) = (text()?.parse().ok()?, text()?.parse().ok()?);
        let key = parts.next()?.first_chunk::<32>()?;
        Some(Self { tenant, workflow, key: Digest::from_bytes(*key) })
    }
}

/// What is counted of the runs with one key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowCount {
    /// The key.
    pub key: String,
    /// Runs in the queue.
    pub queued: u64,
    /// Where the throttle stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle: Option<Mark>,
    /// Where the rate limit stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<Mark>,
    /// The run that waits for a later one to take its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub debounced: Option<Debounced>,
}

/// A run that waits for a later one to take its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Debounced {
    /// The run.
    pub run: RunId,
    /// When the first one came of those whose place it has taken.
    pub since: Timestamp,
}

impl FlowCount {
    /// Whether nothing would be lost if it were forgotten.
    fn is_idle(&self, now: Timestamp) -> bool {
        let is_full = |mark: Option<Mark>| mark.is_none_or(|mark| mark.is_full(now));
        self.queued == 0 && self.debounced.is_none() && is_full(self.throttle) && is_full(self.rate_limit)
    }
}

/// A run in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queued {
    /// The run.
    pub run: RunId,
    /// It does not start before.
    pub not_before: Option<Timestamp>,
}

/// What a batch changes in the flow control of its run.
#[derive(Debug, Clone)]
pub struct FlowChange {
    /// The run's workflow.
    pub workflow: WorkflowName,
    /// The run's place.
    pub place: FlowPlace,
    /// Whether it was in the queue before.
    pub waited: bool,
    /// Whether it is in the queue from here on.
    pub waits: bool,
    /// Where the throttle stands now that the run starts, by the pace it has.
    pub throttle: Option<(Mark, Pace)>,
}

/// On what condition a run is accepted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Admission {
    /// It counts against this, and is refused when there is no room.
    pub rate_limit: Option<Pace>,
    /// It takes the place of a run that waits for that, and waits for it itself.
    pub debounced: bool,
}

/// The admission of a run in the form that the writer takes.
pub(super) struct Admit {
    pub(super) id: FlowId,
    pub(super) key: String,
    pub(super) admission: Admission,
}

/// Where a run stands in the queue: higher priorities first, then older runs.
fn queue_key(id: &FlowId, priority: i32, run: &RunId) -> Vec<u8> {
    // Byte order is numeric order once the sign is flipped; and the higher one is to be first.
    let rank = !(priority.cast_unsigned() ^ (1 << 31));
    [id.to_key().as_slice(), rank.to_be_bytes().as_slice(), run.as_bytes()].concat()
}

fn read_count(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    id: &FlowId,
) -> Result<Option<FlowCount>, JournalError> {
    let found = table.get(id.to_key().as_slice()).map_err(storage("read a count of flow control"))?;
    found.map(|value| parse(value.value(), || "a count of flow control".to_owned())).transpose()
}

fn put_count(
    table: &mut Table<'_, &'static [u8], &'static [u8]>,
    id: &FlowId,
    count: &FlowCount,
) -> Result<(), JournalError> {
    let value = to_json(count, "a count of flow control")?;
    table.insert(id.to_key().as_slice(), value.as_slice()).map_err(storage("write a count of flow control"))?;
    Ok(())
}

/// Counts a run that is about to be created. Returns the run whose place it takes, or, with nothing counted, from when on
/// it could be accepted.
pub(super) fn admit(
    transaction: &WriteTransaction,
    run: &RunId,
    at: Timestamp,
    admit: &Admit,
) -> Result<Result<Option<RunId>, Timestamp>, JournalError> {
    let Admit { id, key, admission } = admit;
    let mut counts = transaction.open_table(COUNTS).map_err(storage("open the counts of flow control"))?;
    let mut count = read_count(&counts, id)?.unwrap_or_else(|| FlowCount { key: key.clone(), ..FlowCount::default() });
    let stood = count.rate_limit;
    let taken = admission.rate_limit.map_or(Ok(()), |pace| pace.take(&mut count.rate_limit, at));
    if let Err(from) = taken {
        if count.rate_limit != stood {
            put_count(&mut counts, id, &count)?;
        }
        return Ok(Err(from));
    }
    let before = count.debounced.filter(|_| admission.debounced);
    if admission.debounced {
        count.debounced = Some(Debounced { run: *run, since: before.map_or(at, |before| before.since) });
    }
    put_count(&mut counts, id, &count)?;
    Ok(Ok(before.map(|before| before.run)))
}

/// Does what a batch changes.
pub(super) fn write(
    transaction: &WriteTransaction,
    run: &RunKey,
    at: Timestamp,
    change: &FlowChange,
) -> Result<(), JournalError> {
    let id = FlowId::new(&run.tenant, &change.workflow, &change.place);
    let mut counts = transaction.open_table(COUNTS).map_err(storage("open the counts of flow control"))?;
    let mut count = read_count(&counts, &id)?
        .unwrap_or_else(|| FlowCount { key: change.place.key.clone(), ..FlowCount::default() });
    if change.waits != change.waited {
        let mut queue = transaction.open_table(QUEUE).map_err(storage("open the queue"))?;
        let entry = queue_key(&id, change.place.priority, &run.run);
        if change.waits {
            let not_before = change.place.not_before.map(|at| at.as_millis().to_be_bytes());
            let value = not_before.as_ref().map_or([].as_slice(), |bytes| bytes.as_slice());
            let known = queue.insert(entry.as_slice(), value).map_err(storage("write to the queue"))?.is_some();
            count.queued += u64::from(!known);
        } else {
            let known = queue.remove(entry.as_slice()).map_err(storage("remove from the queue"))?.is_some();
            count.queued = count.queued.saturating_sub(u64::from(known));
        }
    }
    if let Some((mark, pace)) = change.throttle {
        // Starts are not written in the order of their marks. But what a slower pace has left is not to outlast it.
        pace.settle(&mut count.throttle, at);
        count.throttle = count.throttle.max(Some(mark));
    }
    if !change.waits && count.debounced.is_some_and(|debounced| debounced.run == run.run) {
        count.debounced = None;
    }
    put_count(&mut counts, &id, &count)
}

impl RedbJournal {
    /// Sets a workflow's flow control, in place of what was set before.
    pub async fn put_flow_control(
        &self,
        tenant: &TenantId,
        workflow: &WorkflowName,
        control: &FlowControl,
    ) -> Result<(), JournalError> {
        let key = keys::workflow(tenant, workflow);
        let value = to_json(control, "a flow control")?;
        self.write(move |transaction| {
            let mut table = transaction.open_table(CONTROLS).map_err(storage("open the flow controls"))?;
            table.insert(key.as_slice(), value.as_slice()).map_err(storage("write a flow control"))?;
            Ok(())
        })
        .await
    }

    /// A workflow's flow control.
    pub fn flow_control(
        &self,
        tenant: &TenantId,
        workflow: &WorkflowName,
    ) -> Result<Option<FlowControl>, JournalError> {
        self.one(CONTROLS, &keys::workflow(tenant, workflow))
    }

    /// Lets a workflow's runs go without limits again. `false` when they did.
    pub async fn delete_flow_control(&self, tenant: &TenantId, workflow: &WorkflowName) -> Result<bool, JournalError> {
        self.delete(CONTROLS, keys::workflow(tenant, workflow)).await
    }

    /// What is counted of the runs with one key.
    pub fn flow_count(&self, id: &FlowId) -> Result<Option<FlowCount>, JournalError> {
        read_count(&self.reader()?.open_table(COUNTS).map_err(storage("open the counts of flow control"))?, id)
    }

    /// What is counted by key in a workflow, at most `limit`, after a key's hash in the order of hashes.
    pub fn flow_counts(
        &self,
        tenant: &TenantId,
        workflow: &WorkflowName,
        after: Option<Digest>,
        limit: usize,
    ) -> Result<Vec<(Digest, FlowCount)>, JournalError> {
        let counts = self.reader()?.open_table(COUNTS).map_err(storage("open the counts of flow control"))?;
        let mut range = keys::starting_with(keys::workflow(tenant, workflow));
        if let Some(after) = after {
            range.start = keys::version(tenant, workflow, &after);
            range.start.push(0); // the next key there can be
        }
        let entries = counts.range(range.start.as_slice()..range.end.as_slice());
        let entries = entries.map_err(storage("list the counts of flow control"))?;
        let mut found = Vec::new();
        for entry in entries.take(limit) {
            let (key, value) = entry.map_err(storage("list the counts of flow control"))?;
            let Some(id) = FlowId::parse(key.value()) else { continue };
            found.push((id.key, parse(value.value(), || "a count of flow control".to_owned())?));
        }
        Ok(found)
    }

    /// The first runs in a queue, at most `limit`.
    pub fn queued(&self, id: &FlowId, limit: usize) -> Result<Vec<Queued>, JournalError> {
        let queue = self.reader()?.open_table(QUEUE).map_err(storage("open the queue"))?;
        let range = keys::starting_with(id.to_key());
        let entries = queue.range(range.start.as_slice()..range.end.as_slice()).map_err(storage("read the queue"))?;
        let mut found = Vec::new();
        for entry in entries.take(limit) {
            let (key, value) = entry.map_err(storage("read the queue"))?;
            let Some(run) = key.value().last_chunk::<16>() else { continue };
            let not_before = value.value().try_into().ok().map(u64::from_be_bytes).map(Timestamp::from_millis);
            found.push(Queued { run: RunId::from_bytes(*run), not_before });
        }
        Ok(found)
    }

    /// Whose runs are in a queue.
    pub fn tenants_with_queues(&self) -> Result<BTreeSet<TenantId>, JournalError> {
        self.tenants_in(QUEUE)
    }

    /// What of a tenant has a queue, at most `limit`, after `after` in the order of keys.
    pub fn queues(&self, tenant: &TenantId, after: Option<&FlowId>, limit: usize) -> Result<Vec<FlowId>, JournalError> {
        let queue = self.reader()?.open_table(QUEUE).map_err(storage("open the queue"))?;
        let past = |id: &FlowId| keys::starting_with(id.to_key()).end;
        let of_tenant = keys::of_tenant(tenant);
        let mut start = after.map_or(of_tenant.start, past);
        let mut found = Vec::new();
        while found.len() < limit {
            let mut rest =
                queue.range(start.as_slice()..of_tenant.end.as_slice()).map_err(storage("list the queues"))?;
            let Some(entry) = rest.next() else { break };
            let (key, _) = entry.map_err(storage("list the queues"))?;
            match FlowId::parse(key.value()) {
                Some(id) => {
                    start = past(&id);
                    found.push(id);
                }
                None => {
                    tracing::error!(entry = hex::encode(key.value()), "an entry of the queue names no run");
                    start = key.value().to_vec();
                    start.push(0);
                }
            }
        }
        Ok(found)
    }

    /// Forgets counts that say nothing any more, out of `limit` after `after`. Returns the last one looked at; `None` at the
    /// end.
    pub async fn forget_idle_flow(
        &self,
        after: Option<FlowId>,
        now: Timestamp,
        limit: usize,
    ) -> Result<Option<FlowId>, JournalError> {
        let (idle, last) = {
            let counts = self.reader()?.open_table(COUNTS).map_err(storage("open the counts of flow control"))?;
            let mut start = after.map(|id| id.to_key()).unwrap_or_default();
            start.push(0); // the next key there can be; no key is empty
            let (mut idle, mut last) = (Vec::new(), None);
            for entry in
                counts.range(start.as_slice()..).map_err(storage("list the counts of flow control"))?.take(limit)
            {
                let (key, value) = entry.map_err(storage("list the counts of flow control"))?;
                let count = serde_json::from_slice::<FlowCount>(value.value()).ok();
                last = FlowId::parse(key.value()).or(last);
                idle.extend(count.filter(|count| count.is_idle(now)).map(|_| key.value().to_vec()));
            }
            (idle, last)
        };
        if !idle.is_empty() {
            self.write(move |transaction| {
                let mut counts = transaction.open_table(COUNTS).map_err(storage("open the counts of flow control"))?;
                for key in idle {
                    // Something may have come meanwhile.
                    let found = counts.get(key.as_slice()).map_err(storage("read a count of flow control"))?;
                    let count = found.and_then(|value| serde_json::from_slice::<FlowCount>(value.value()).ok());
                    if count.is_some_and(|count| count.is_idle(now)) {
                        counts.remove(key.as_slice()).map_err(storage("forget a count of flow control"))?;
                    }
                }
                Ok(())
            })
            .await?;
        }
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use stepwell_core::Event;

    use super::*;
    use crate::journal::{Batch, Journal};

    #[test]
    fn a_queue_is_in_the_order_of_priority_and_then_of_age() {
        let id = FlowId::new(
            &"a".parse().unwrap(),
            &"w".parse().unwrap(),
            &FlowPlace { key: "k\0".to_owned(), priority: 0, not_before: None },
        );
        let run = |byte| RunId::from_bytes([byte; 16]);
        let order = [(1_000, 9), (1, 3), (0, 1), (0, 2), (-1, 0), (-1_000, 0)];
        let keys: Vec<_> = order.iter().map(|(priority, age)| queue_key(&id, *priority, &run(*age))).collect();
        assert!(keys.is_sorted());
        assert!(keys.iter().all(|key| FlowId::parse(key).as_ref() == Some(&id)));
        let range = keys::starting_with(id.to_key());
        assert!(keys.iter().all(|key| range.contains(key)));
        assert_eq!((FlowId::parse(b"a\0w\0short"), FlowId::parse(b""), FlowId::parse(b"A\0w")), (None, None, None));
    }

    #[tokio::test]
    async fn what_a_slower_pace_has_left_does_not_outlast_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let journal = RedbJournal::open(&dir.path().join("journal.redb")).unwrap();
        let key = |run| RunKey { tenant: "a".parse().unwrap(), run: RunId::from_bytes([run; 16]) };
        let workflow: WorkflowName = "w".parse().unwrap();
        let place = FlowPlace { key: String::new(), priority: 0, not_before: None };
        let id = FlowId::new(&key(0).tenant, &workflow, &place);
        let start = async |run, at, pace: Pace, mark: Mark| {
            let (workflow, place) = (workflow.clone(), place.clone());
            let flow = FlowChange { workflow, place, waited: true, waits: false, throttle: Some((mark, pace)) };
            let batch = Batch { at, events: vec![Event::RunResumed {}], flow: Some(flow), ..Batch::default() };
            journal.append(&key(run), 0, batch).await.unwrap();
            journal.flow_count(&id).unwrap().unwrap().throttle.unwrap()
        };
        let at = |seconds: u64| Timestamp::from_millis(1_000_000 + seconds * 1_000);
        let (hourly, fast) = [3_600, 1].map(|period_seconds| Pace { limit: 1, period_seconds, burst: 1 }).into();
        let taken = |pace: Pace, mark: &mut Option<Mark>, at| {
            pace.take(mark, at).unwrap();
            mark.unwrap()
        };
        let slow = taken(hourly, &mut None, at(0));
        assert_eq!(start(1, at(0), hourly, slow).await, slow);
        let mut mark = None;
        let [second, third] = [at(10), at(11)].map(|at| taken(fast, &mut mark, at));
        let after = start(3, at(11), fast, third).await;
        assert!(!after.is_full(at(12)) && after.is_full(at(13)), "{after:?}");
        assert_eq!(start(2, at(11), fast, second).await, after, "they are not written in their order");
    }
}
