//! The journal on storage that crashes at every sync, and what it refuses.

mod counts;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use redb::StorageBackend;
use sha2::{Digest as _, Sha256};
use stepwell::journal::channels::{ChannelFilter, ChannelKey};
use stepwell::journal::{
    Batch, Content, Created, IdempotencyKey, Journal, JournalError, RedbJournal, RunFilter, RunSummary,
};
use stepwell_core::json::ContentRef;
use stepwell_core::{Digest, Event, Json, NodeId, Payload, Recorded, RunId, RunKey, RunStatus, Seq, Timestamp};

/// Storage in memory that knows what would survive a power cut.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    image: Arc<Mutex<Image>>,
    released: Arc<Condvar>,
}

#[derive(Debug)]
pub(crate) struct Image {
    /// What a reader sees.
    live: Vec<u8>,
    /// What was there at the last sync.
    durable: Vec<u8>,
    /// What was written since.
    unsynced: Vec<(u64, Vec<u8>)>,
    syncs: u64,
    /// The sync at which the power goes.
    fails_at: u64,
    held: bool,
    /// Syncs that go through all the same.
    passes: u64,
    /// Whether a sync waits.
    waiting: bool,
    /// How long each sync takes.
    delay: Duration,
    /// How large it may become.
    capacity: u64,
}

/// What is wrong with a disk.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trouble {
    /// Nothing.
    None,
    /// Each sync takes so long.
    Slow(Duration),
    /// It does not become any larger.
    Full,
    /// It is gone after so many syncs.
    GoneAfter(u64),
}

impl Disk {
    pub(crate) fn new(durable: Vec<u8>, fails_at: u64) -> Self {
        let image = Image {
            live: durable.clone(),
            durable,
            unsynced: vec![],
            syncs: 0,
            fails_at,
            held: false,
            passes: 0,
            waiting: false,
            delay: Duration::ZERO,
            capacity: u64::MAX,
        };
        Self { image: Arc::new(Mutex::new(image)), released: Arc::default() }
    }

    fn with<T>(&self, what: impl FnOnce(&mut Image) -> T) -> T {
        what(&mut self.image.lock().unwrap())
    }

    /// Is in this trouble from now on, and in no other.
    pub(crate) fn trouble(&self, trouble: Trouble) {
        self.with(|image| {
            image.delay = if let Trouble::Slow(delay) = trouble { delay } else { Duration::ZERO };
            image.capacity = if let Trouble::Full = trouble { image.live.len() as u64 } else { u64::MAX };
            image.fails_at = if let Trouble::GoneAfter(syncs) = trouble { image.syncs + syncs + 1 } else { u64::MAX };
        });
    }

    /// Makes every sync wait for as long as what this returns lives.
    pub(crate) fn hold(&self) -> Held<'_> {
        self.with(|image| image.held = true);
        Held(self)
    }

    /// How often it was synced.
    pub(crate) fn syncs(&self) -> u64 {
        self.with(|image| image.syncs)
    }

    /// What is on the disk after the power cut: the last sync, and any of the writes after it. `torn` decides which.
    pub(crate) fn survivor(&self, torn: u64) -> Vec<u8> {
        self.with(|image| {
            let mut bytes = image.durable.clone();
            for (number, (offset, data)) in image.unsynced.iter().enumerate() {
                if torn >> (number % 64) & 1 == 1 {
                    let end = *offset as usize + data.len();
                    bytes.resize(bytes.len().max(end), 0);
                    bytes[*offset as usize..end].copy_from_slice(data);
                }
            }
            bytes
        })
    }
}

/// A disk that stands still.
pub(crate) struct Held<'a>(&'a Disk);

impl Held<'_> {
    /// Lets the sync through that waits, or else the next one.
    pub(crate) fn let_one_through(&self) {
        self.0.with(|image| {
            image.passes += 1;
            image.waiting = false;
        });
        self.0.released.notify_all();
    }

    /// Whether a sync waits.
    pub(crate) fn is_awaited(&self) -> bool {
        self.0.with(|image| image.waiting)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.with(|image| image.held = false);
        self.0.released.notify_all();
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.with(|image| image.live.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|image| out.copy_from_slice(&image.live[offset as usize..offset as usize + out.len()]));
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|image| {
            if len > image.capacity {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            image.live.resize(len as usize, 0);
            image.durable.resize(len as usize, 0);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut image = self.image.lock().unwrap();
        while image.held && image.passes == 0 {
            image.waiting = true;
            image = self.released.wait(image).unwrap();
        }
        image.waiting = false;
        image.passes = image.passes.saturating_sub(1);
        let delay = image.delay;
        drop(image);
        std::thread::sleep(delay);
        self.with(|image| {
            image.syncs += 1;
            if image.syncs >= image.fails_at {
                return Err(io::Error::other("the power is gone"));
            }
            image.durable.clone_from(&image.live);
            image.unsynced.clear();
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|image| {
            image.live[offset as usize..offset as usize + data.len()].copy_from_slice(data);
            image.unsynced.push((offset, data.to_vec()));
        });
        Ok(())
    }
}

fn key(n: u8) -> RunKey {
    RunKey { tenant: "acme".parse().unwrap(), run: RunId::from_bytes([n; 16]) }
}

fn json(text: &str) -> Payload {
    Payload::Inline(Json::parse(text.to_owned()).unwrap())
}

fn sha256_of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

fn batch(before: Option<&RunSummary>, first_seq: Seq, events: Vec<Event>, contents: Vec<Content>) -> Batch {
    let at = Timestamp::from_millis(1_000 + first_seq);
    let mut summary = RunSummary::after(before, first_seq, at, &events);
    let channel = Some(channel().channel);
    summary.iter_mut().for_each(|summary| summary.channel.clone_from(&channel));
    Batch { at, events, contents, summary, channel, ..Batch::default() }
}

fn channel() -> ChannelKey {
    ChannelKey { tenant: key(0).tenant, channel: "c".to_owned() }
}

fn first_events() -> Vec<Event> {
    let version = Digest::from_bytes([9; 32]);
    let step = "a".parse::<NodeId>().unwrap().into();
    vec![
        Event::RunQueued {
            workflow: "w".parse().unwrap(),
            version,
            input: json("1"),
            parent: None,
            rerun_of: None,
            shadow_of: None,
            place: None,
        },
        Event::RunStarted { deadline: None },
        Event::StepStarted { step, attempt: 1 },
    ]
}

fn update(n: u64) -> Event {
    let step = "a".parse::<NodeId>().unwrap().into();
    Event::StepUpdate { step, attempt: 1, topic: "t".into(), payload: json(&n.to_string()), within_call: false }
}

/// A batch for the nth append of a run: an update, sometimes with content that lives apart, at last the end.
fn nth_batch(run: u8, n: u64, last_seq: Seq, summary: &RunSummary) -> Batch {
    if n == 5 {
        return batch(Some(summary), last_seq + 1, vec![Event::RunCompleted { output: json("2") }], vec![]);
    }
    let bytes = vec![run ^ n as u8; 100_000];
    let sha256 = Digest::from_bytes(Sha256::digest(&bytes).into());
    let step = "a".parse::<NodeId>().unwrap().into();
    let content = ContentRef { sha256, size_bytes: bytes.len() as u64 };
    let file = Event::StepArtifact { step, attempt: 1, name: "f".into(), media_type: "a/b".into(), content };
    if n.is_multiple_of(2) {
        batch(Some(summary), last_seq + 1, vec![update(n), update(n + 100)], vec![])
    } else {
        batch(Some(summary), last_seq + 1, vec![file], vec![Content { sha256, bytes: bytes.into() }])
    }
}

/// Several runs at once, so that appends share transactions. Returns what was acknowledged, in order, for each run.
async fn work(journal: &Arc<RedbJournal>) -> BTreeMap<u8, Vec<Event>> {
    let runs = (1..=4u8).map(|run| {
        let journal = Arc::clone(journal);
        tokio::spawn(async move {
            let mut acknowledged = Vec::new();
            let first = batch(None, 1, first_events(), vec![]);
            let mut summary = first.summary.clone().unwrap();
            let wanted =
                IdempotencyKey { key: format!("k{run}"), fingerprint: Digest::from_bytes([run; 32]), time: None };
            if journal.create(&key(run), first.clone(), Some(wanted)).await.is_err() {
                return (run, acknowledged);
            }
            acknowledged.extend(first.events);
            for n in 0..=5 {
                let next = nth_batch(run, n, acknowledged.len() as Seq, &summary);
                if journal.append(&key(run), acknowledged.len() as Seq, next.clone()).await.is_err() {
                    break;
                }
                summary = next.summary.unwrap_or(summary);
                acknowledged.extend(next.events);
            }
            (run, acknowledged)
        })
    });
    let mut all = BTreeMap::new();
    for run in runs.collect::<Vec<_>>() {
        let (run, acknowledged) = run.await.unwrap();
        all.insert(run, acknowledged);
    }
    all
}

/// What must hold after any crash.
async fn check(journal: &RedbJournal, acknowledged: &BTreeMap<u8, Vec<Event>>, what: &str) {
    let tenant = key(0).tenant;
    let unfinished = journal.unfinished(&tenant, None, 100).unwrap();
    assert_eq!(journal.usage(&tenant).unwrap(), journal.recount(&tenant).unwrap(), "{what}: the counts are right");
    let entries = journal.channel(&channel(), &ChannelFilter::default(), 0, 1_000, usize::MAX).unwrap().entries;
    let cursors: Vec<u64> = entries.iter().map(|entry| entry.cursor).collect();
    assert_eq!(cursors, (1..=entries.len() as u64).collect::<Vec<u64>>(), "{what}: a channel has no gaps");
    assert_eq!(journal.channel_bounds(&channel()).unwrap(), (1, entries.len() as u64), "{what}");
    for (run, events) in acknowledged {
        let key = key(*run);
        let found = journal.read(&key, 0, usize::MAX).unwrap();
        for (Recorded { seq, .. }, expected) in found.iter().zip(1..) {
            assert_eq!(*seq, expected, "{what}: numbers have no gaps");
        }
        let found: Vec<Event> = found.into_iter().map(|recorded| recorded.event).collect();
        assert!(found.starts_with(events), "{what}: what was acknowledged of run {run} is there, in order");
        // At most the one append that nobody has heard of is there besides, and all of it.
        let more = found.len() - events.len();
        let whole = [0, 1, 2, if events.is_empty() { 3 } else { 0 }];
        assert!(whole.contains(&more), "{what}: run {run} has {more} more events");
        let summary = journal.summary(&key).unwrap();
        let status = found.iter().rev().find_map(RunStatus::after);
        assert_eq!(summary.map(|summary| summary.status), status, "{what}: the summary says what the events say");
        let open = status.is_some_and(|status| !status.is_terminal());
        assert_eq!(unfinished.contains(&key), open, "{what}: run {run} is unfinished exactly when it is");
        for content in found.iter().filter_map(Event::content) {
            let bytes =
                journal.content(&key.tenant, &content.sha256).unwrap().expect("content is there with its event");
            assert_eq!(Digest::from_bytes(Sha256::digest(&bytes).into()), content.sha256);
        }
        // The channel has of it what it should, in its order.
        let shown = |event: &&Event| event.is_terminal() || matches!(event, Event::StepUpdate { .. });
        let shown: Vec<&Event> = found.iter().filter(shown).collect();
        let entries = entries.iter().filter(|entry| entry.run == key.run);
        assert_eq!(entries.map(|entry| &entry.recorded.event).collect::<Vec<_>>(), shown, "{what}: run {run}");
        // And it goes on from there.
        if open {
            let next = batch(None, found.len() as Seq + 1, vec![update(7)], vec![]);
            journal.append(&key, found.len() as Seq, next).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_power_cut_at_any_sync_loses_nothing_that_was_acknowledged() {
    let whole = Disk::new(vec![], u64::MAX);
    let journal = Arc::new(RedbJournal::open_backend(whole.clone()).unwrap());
    let all = work(&journal).await;
    assert!(all.values().all(|events| matches!(events.last(), Some(Event::RunCompleted { .. }))));
    let syncs = whole.with(|image| image.syncs);
    assert!(syncs > 10, "{syncs} syncs");

    for fails_at in 1..=syncs + 2 {
        let disk = Disk::new(vec![], fails_at);
        let Ok(journal) = RedbJournal::open_backend(disk.clone()) else { continue };
        let journal = Arc::new(journal);
        let acknowledged = work(&journal).await;
        for torn in [0, u64::MAX, 0x5555_5555_5555_5555, 0x9e37_79b9_7f4a_7c15u64.rotate_left(fails_at as u32)] {
            let what = format!("power cut at sync {fails_at} of {syncs}, torn {torn:x}");
            let survivor = Disk::new(disk.survivor(torn), u64::MAX);
            let reopened = RedbJournal::open_backend(survivor).unwrap_or_else(|error| panic!("{what}: {error}"));
            check(&reopened, &acknowledged, &what).await;
        }
    }
}

#[tokio::test]
async fn a_journal_that_failed_once_accepts_nothing_any_more() {
    let disk = Disk::new(vec![], u64::MAX);
    let journal = Arc::new(RedbJournal::open_backend(disk.clone()).unwrap());
    disk.with(|image| image.fails_at = image.syncs + 1);
    let first = batch(None, 1, first_events(), vec![]);
    let failed = journal.create(&key(1), first.clone(), None).await;
    assert!(matches!(failed, Err(JournalError::Storage { .. })), "{failed:?}");
    tokio::time::timeout(crate::support::PATIENCE, journal.broken()).await.unwrap();
    disk.with(|image| image.fails_at = u64::MAX);
    let refused = journal.create(&key(2), first, None).await;
    assert!(matches!(refused, Err(JournalError::Closed)), "{refused:?}");
    assert!(!journal.is_writable());
}

#[tokio::test]
async fn of_two_writers_one_is_refused_and_nothing_of_it_is_kept() {
    let journal = RedbJournal::open_backend(Disk::new(vec![], u64::MAX)).unwrap();
    let first = batch(None, 1, first_events(), vec![]);
    assert_eq!(journal.create(&key(1), first.clone(), None).await.unwrap(), Created::New { superseded: None });
    let again = journal.create(&key(1), first, None).await;
    assert!(matches!(again, Err(JournalError::Fenced { found: 3, expected: 0, .. })), "{again:?}");
    let appends = (0..20).map(|n| journal.append(&key(1), 3, batch(None, 4, vec![update(n)], vec![])));
    let results = futures_util::future::join_all(appends).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for refused in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(matches!(refused, JournalError::Fenced { found: 4, expected: 3, .. }), "{refused:?}");
    }
    assert_eq!(journal.read(&key(1), 0, usize::MAX).unwrap().len(), 4);
    let ahead = journal.append(&key(1), 9, batch(None, 10, vec![update(1)], vec![])).await;
    assert!(matches!(ahead, Err(JournalError::Fenced { .. })), "{ahead:?}");
    let unknown = journal.append(&key(2), 3, batch(None, 4, vec![update(1)], vec![])).await;
    assert!(matches!(unknown, Err(JournalError::Fenced { found: 0, .. })), "{unknown:?}");
}

#[tokio::test]
async fn retention_deletes_a_run_with_all_that_only_it_refers_to() {
    let journal = Arc::new(RedbJournal::open_backend(Disk::new(vec![], u64::MAX)).unwrap());
    let tenant = key(1).tenant;
    let shared: Content = {
        let bytes = vec![1u8; 70_000];
        Content { sha256: Digest::from_bytes(Sha256::digest(&bytes).into()), bytes: bytes.into() }
    };
    let own: Content = {
        let bytes = vec![2u8; 70_000];
        Content { sha256: Digest::from_bytes(Sha256::digest(&bytes).into()), bytes: bytes.into() }
    };
    for run in 1..=3u8 {
        let first = batch(None, 1, first_events(), vec![shared.clone()]);
        let summary = first.summary.clone().unwrap();
        let wanted = IdempotencyKey { key: format!("k{run}"), fingerprint: Digest::from_bytes([run; 32]), time: None };
        journal.create(&key(run), first, Some(wanted)).await.unwrap();
        let contents = if run == 1 { vec![own.clone()] } else { vec![] };
        if run != 3 {
            let end = Event::RunCompleted { output: json("1") };
            journal.append(&key(run), 3, batch(Some(&summary), 4, vec![end], contents)).await.unwrap();
        }
    }
    let before = |ms| Timestamp::from_millis(ms);
    let delete = async |cutoff| journal.delete_runs_ended_before(&tenant, before(cutoff)).await.unwrap().runs;
    assert_eq!(delete(1_000).await, 0);
    assert_eq!(delete(2_000).await, 2);
    assert_eq!(delete(u64::MAX).await, 0, "an unfinished run stays");
    let listed = journal.runs(&tenant, &RunFilter::default(), 10).unwrap();
    assert_eq!(listed.runs.iter().map(|(run, _)| *run).collect::<Vec<_>>(), [key(3).run]);
    assert_eq!(journal.read(&key(1), 0, usize::MAX).unwrap(), []);
    assert_eq!(journal.read(&key(3), 0, usize::MAX).unwrap().len(), 3);
    assert!(journal.content(&tenant, &own.sha256).unwrap().is_none(), "nobody refers to it any more");
    assert!(journal.content(&tenant, &shared.sha256).unwrap().is_some(), "the third run does");

    // Their ends were the channel's first two entries. Their numbers are not given again.
    assert_eq!(journal.channel_bounds(&channel()).unwrap(), (3, 2));
    let read = |after| journal.channel(&channel(), &ChannelFilter::default(), after, 10, usize::MAX);
    assert!(matches!(read(1), Err(JournalError::Truncated { first_seq: 3 })));
    assert_eq!((read(2).unwrap().entries.len(), read(2).unwrap().cursor), (0, 2));
    journal.append(&key(3), 3, batch(None, 4, vec![update(1)], vec![])).await.unwrap();
    assert_eq!(read(2).unwrap().entries.iter().map(|entry| entry.cursor).collect::<Vec<_>>(), [3]);

    assert_eq!(journal.delete_old_idempotency_keys(before(2_000)).await.unwrap(), 0);
    let later = before(2_000 + stepwell::journal::IDEMPOTENCY_TTL_MS);
    assert_eq!(journal.delete_old_idempotency_keys(later).await.unwrap(), 3);
}

#[tokio::test]
async fn one_tenants_lists_hold_nothing_of_anothers() {
    let journal = RedbJournal::open_backend(Disk::new(vec![], u64::MAX)).unwrap();
    let mut owners: HashMap<&str, Vec<RunId>> = HashMap::new();
    // Names that are each other's beginnings.
    for (n, tenant) in ["a", "a-b", "ab", "a0", "b"].into_iter().enumerate() {
        for run in 0..3u8 {
            let key = RunKey { tenant: tenant.parse().unwrap(), run: RunId::from_bytes([n as u8 * 10 + run; 16]) };
            journal.create(&key, batch(None, 1, first_events(), vec![]), None).await.unwrap();
            owners.entry(tenant).or_default().insert(0, key.run);
        }
    }
    for (tenant, runs) in owners {
        let page = journal.runs(&tenant.parse().unwrap(), &RunFilter::default(), 100).unwrap();
        assert_eq!(page.runs.iter().map(|(run, _)| *run).collect::<Vec<_>>(), runs, "{tenant}");
    }
}

#[tokio::test]
async fn a_channel_is_read_in_parts_of_any_size_and_by_what_is_wanted_of_it() {
    let journal = Arc::new(RedbJournal::open_backend(Disk::new(vec![], u64::MAX)).unwrap());
    for run in 1..=3u8 {
        let mut first = batch(None, 1, first_events(), vec![]);
        first.summary.as_mut().unwrap().correlation = Some(format!("task-{}", run % 2));
        journal.create(&key(run), first, None).await.unwrap();
    }
    for n in 0..5u64 {
        for run in 1..=3u8 {
            let line = Event::StepLog {
                step: "a".parse::<NodeId>().unwrap().into(),
                attempt: 1,
                level: stepwell_core::event::LogLevel::Info,
                message: "not shown".to_owned(),
            };
            let events = vec![update(n), line, update(n + 100), update(n + 200)];
            journal.append(&key(run), 3 + n * 4, batch(None, 4 + n * 4, events, vec![])).await.unwrap();
        }
    }
    let all = |filter: ChannelFilter, entries_max, bytes_max| {
        let (mut cursor, mut found) = (0, Vec::new());
        loop {
            let page = journal.channel(&channel(), &filter, cursor, entries_max, bytes_max).unwrap();
            assert!(page.entries.len() <= entries_max && page.cursor >= cursor);
            cursor = page.cursor;
            found.extend(page.entries.into_iter().map(|entry| (entry.cursor, entry.run, entry.recorded.seq)));
            if !page.has_more {
                assert_eq!(cursor, 45);
                return found;
            }
        }
    };
    let whole = all(ChannelFilter::default(), usize::MAX, usize::MAX);
    assert_eq!(whole.iter().map(|(cursor, ..)| *cursor).collect::<Vec<_>>(), (1..=45).collect::<Vec<u64>>());
    for entries_max in 1..=7 {
        assert_eq!(all(ChannelFilter::default(), entries_max, usize::MAX), whole);
        assert_eq!(all(ChannelFilter::default(), entries_max, 0), whole);
    }
    let of = |wanted: &[u8]| {
        whole.iter().filter(|(_, run, _)| wanted.contains(&run.as_bytes()[0])).copied().collect::<Vec<_>>()
    };
    let filtered = |filter| all(filter, 4, usize::MAX);
    assert_eq!(filtered(ChannelFilter { run: Some(key(2).run), ..Default::default() }), of(&[2]));
    assert_eq!(filtered(ChannelFilter { correlation: Some("task-1".to_owned()), ..Default::default() }), of(&[1, 3]));
    assert_eq!(filtered(ChannelFilter { workflow: Some("w".parse().unwrap()), ..Default::default() }), whole);
    assert_eq!(filtered(ChannelFilter { workflow: Some("v".parse().unwrap()), ..Default::default() }), []);
    assert_eq!(filtered(ChannelFilter { topics: Some(["other".to_owned()].into()), ..Default::default() }), []);
    // A position within an append, and one beyond the end.
    let after = journal.channel(&channel(), &ChannelFilter::default(), 2, 2, usize::MAX).unwrap();
    assert_eq!(after.entries.iter().map(|entry| entry.cursor).collect::<Vec<_>>(), [3, 4]);
    let beyond = journal.channel(&channel(), &ChannelFilter::default(), 1_000, 2, usize::MAX).unwrap();
    assert_eq!((beyond.entries.len(), beyond.cursor, beyond.has_more), (0, 1_000, false));
}
