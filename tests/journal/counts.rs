//! What tenants have is counted where it is written and deleted; here it is counted again.

use std::sync::Arc;

use bytes::Bytes;
use redb::{Database, ReadableTable, TableDefinition, TableHandle};
use stepwell::clock;
use stepwell::journal::catalog::{TenantRecord, VersionRecord};
use stepwell::journal::due::Lane;
use stepwell::journal::limits::SetLimits;
use stepwell::journal::retention::Deleted;
use stepwell::journal::triggers::{Delivery, Missed, TriggerAction, TriggerOn, TriggerRecord, WebhookRecord};
use stepwell::journal::usage::Usage;
use stepwell::journal::{
    Batch, Content, Created, DEAD_MAX, IdempotencyKey, Journal, JournalError, RedbJournal, RunFilter, RunSummary,
};
use stepwell::maintenance::Sweeper;
use stepwell_core::event::ParentRef;
use stepwell_core::json::ContentRef;
use stepwell_core::{Digest, Event, GraphSpec, NodeId, RunId, RunKey, RunStatus, Seq, StepId, TenantId, Timestamp};
use tokio_util::sync::CancellationToken;

use super::{Disk, channel, first_events, json, sha256_of, update};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

fn open(disk: &Disk) -> Arc<RedbJournal> {
    Arc::new(RedbJournal::open_backend(disk.clone()).unwrap())
}

fn memory() -> Arc<RedbJournal> {
    open(&Disk::new(vec![], u64::MAX))
}

fn run_of(tenant: &str, n: u64) -> RunKey {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&n.to_be_bytes());
    RunKey { tenant: tenant.parse().unwrap(), run: RunId::from_bytes(id) }
}

fn content(n: u64) -> Content {
    let bytes = Bytes::from(vec![n as u8; 70_000 + n as usize]);
    Content { sha256: sha256_of(&bytes), bytes }
}

fn file(content: &Content) -> Event {
    let step: StepId = "a".parse::<NodeId>().unwrap().into();
    let content = ContentRef { sha256: content.sha256, size_bytes: content.bytes.len() as u64 };
    Event::StepArtifact { step, attempt: 1, name: "f".into(), media_type: "a/b".into(), content }
}

/// A run as its writer knows it.
struct Writer {
    key: RunKey,
    summary: RunSummary,
    last_seq: Seq,
}

impl Writer {
    fn first(at: u64, contents: Vec<Content>) -> Batch {
        let at = Timestamp::from_millis(at);
        let events = first_events();
        let summary = RunSummary::after(None, 1, at, &events);
        Batch { at, events, contents, summary, channel: Some(channel().channel), ..Batch::default() }
    }

    async fn create(journal: &RedbJournal, key: RunKey, at: u64, contents: Vec<Content>) -> Self {
        let batch = Self::first(at, contents);
        let (summary, last_seq) = (batch.summary.clone().unwrap(), batch.events.len() as Seq);
        assert_eq!(journal.create(&key, batch, None).await.unwrap(), Created::New { superseded: None });
        Self { key, summary, last_seq }
    }

    async fn append(
        &mut self,
        journal: &RedbJournal,
        at: u64,
        events: Vec<Event>,
        contents: Vec<Content>,
        references: Vec<Digest>,
    ) -> Result<(), JournalError> {
        let at = Timestamp::from_millis(at);
        let summary = RunSummary::after(Some(&self.summary), self.last_seq + 1, at, &events);
        let (count, changed) = (events.len() as Seq, summary.clone());
        let channel = Some(channel().channel);
        let batch = Batch { at, events, contents, references, summary, channel, ..Batch::default() };
        journal.append(&self.key, self.last_seq, batch).await?;
        self.last_seq += count;
        self.summary = changed.unwrap_or_else(|| self.summary.clone());
        Ok(())
    }

    async fn end(&mut self, journal: &RedbJournal, at: u64) {
        let end = Event::RunCompleted { output: json("2") };
        self.append(journal, at, vec![end], vec![], vec![]).await.unwrap();
    }
}

fn version_of(content: &Content, at: u64) -> VersionRecord {
    VersionRecord {
        version: content.sha256,
        created_at: Timestamp::from_millis(at),
        size_bytes: content.bytes.len() as u64,
        imports: vec![],
        graph: GraphSpec::default(),
        is_of_document: false,
    }
}

/// A generator of numbers that are the same each time.
struct Dealer(u64);

impl Dealer {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[tokio::test]
async fn what_a_tenant_has_is_what_was_counted_whatever_happens() {
    const TENANTS: [&str; 2] = ["a", "a-b"];
    for seed in 1..=4u64 {
        let mut dealer = Dealer(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut disk = Disk::new(vec![], u64::MAX);
        let mut journal = open(&disk);
        let mut runs: Vec<Writer> = Vec::new();
        for now in 1..=400u64 {
            let tenant = TENANTS[dealer.below(2) as usize];
            let id: TenantId = tenant.parse().unwrap();
            let shared = content(dealer.below(4));
            let open_runs: Vec<usize> = (0..runs.len()).filter(|n| runs[*n].summary.ended_at.is_none()).collect();
            let pick = (!open_runs.is_empty()).then(|| open_runs[dealer.below(open_runs.len() as u64) as usize]);
            match (dealer.below(20), pick) {
                (0..=4, _) | (_, None) => {
                    let contents = if dealer.below(2) == 0 { vec![shared] } else { vec![] };
                    runs.push(Writer::create(&journal, run_of(tenant, now), now, contents).await);
                }
                (5..=7, Some(n)) => {
                    let events = (0..=dealer.below(3)).map(update).collect();
                    runs[n].append(&journal, now, events, vec![], vec![]).await.unwrap();
                }
                (8..=9, Some(n)) => {
                    let event = file(&shared);
                    runs[n].append(&journal, now, vec![event], vec![shared], vec![]).await.unwrap();
                }
                (10, Some(n)) => {
                    let refused = runs[n].append(&journal, now, vec![file(&shared)], vec![], vec![shared.sha256]).await;
                    assert!(matches!(refused, Ok(()) | Err(JournalError::ContentGone(_))), "{refused:?}");
                }
                (11..=13, Some(n)) => runs[n].end(&journal, now).await,
                (14, Some(n)) => {
                    let state = vec![0; dealer.below(2_000) as usize];
                    journal.put_snapshot(&runs[n].key, runs[n].last_seq, state).await.unwrap();
                }
                (15, _) => {
                    let record = version_of(&shared, now);
                    journal.put_version(&id, &"w".parse().unwrap(), record, shared.bytes, true).await.unwrap();
                }
                (16, _) => {
                    let cutoff = Timestamp::from_millis(dealer.below(now));
                    journal.delete_runs_ended_before(&id, cutoff).await.unwrap();
                }
                (17, _) => {
                    let cutoff = Timestamp::from_millis(dealer.below(now));
                    journal.delete_contents_ended_before(&id, cutoff).await.unwrap();
                }
                _ => {
                    drop(journal);
                    disk = Disk::new(disk.survivor(0), u64::MAX);
                    journal = open(&disk);
                }
            }
            for tenant in TENANTS {
                let id: TenantId = tenant.parse().unwrap();
                let (counted, again) = (journal.usage(&id).unwrap(), journal.recount(&id).unwrap());
                assert_eq!(counted, again, "{tenant} after step {now} with seed {seed}");
                let open = runs.iter().filter(|run| run.key.tenant == id && run.summary.ended_at.is_none()).count();
                assert_eq!(counted.unfinished_runs, open as u64, "{tenant} after step {now} with seed {seed}");
            }
        }
        // When everything is over and its time is too, nothing is left but the versions.
        for run in runs.iter_mut().filter(|run| run.summary.ended_at.is_none()) {
            run.end(&journal, 1_000).await;
        }
        for tenant in TENANTS {
            let id: TenantId = tenant.parse().unwrap();
            let later = Timestamp::from_millis(u64::MAX);
            while journal.delete_runs_ended_before(&id, later).await.unwrap().more {}
            assert_eq!(journal.runs(&id, &RunFilter::default(), 1).unwrap().runs, []);
            let versions = journal.versions(&id, &"w".parse().unwrap()).unwrap();
            let left = journal.usage(&id).unwrap();
            assert_eq!(left.journal_bytes == 0, versions.is_empty(), "{left:?}");
            assert!(left.journal_bytes <= versions.iter().map(|version| version.size_bytes + 1_000).sum::<u64>());
            assert_eq!((left, left.unfinished_runs), (journal.recount(&id).unwrap(), 0));
        }
    }
}

async fn make_tenant(journal: &RedbJournal, id: &str, limits: SetLimits, artifact_retention_days: Option<u32>) {
    let id = id.parse().unwrap();
    let created_at = Timestamp::from_millis(0);
    let record = TenantRecord { id, created_at, retention_days: 10, artifact_retention_days, limits };
    assert!(journal.create_tenant(record).await.unwrap());
}

#[tokio::test]
async fn a_tenant_with_too_much_starts_nothing_and_others_do() {
    let disk = Disk::new(vec![], u64::MAX);
    let journal = open(&disk);
    let limits = SetLimits { unfinished_runs: Some(2), journal_bytes: Some(200_000), ..SetLimits::default() };
    make_tenant(&journal, "a", limits, None).await;
    let create = |tenant: &str, n, contents, key: Option<&str>| {
        let wanted =
            key.map(|key| IdempotencyKey { key: key.to_owned(), fingerprint: Digest::from_bytes([1; 32]), time: None });
        let (journal, key, batch) = (Arc::clone(&journal), run_of(tenant, n), Writer::first(n, contents));
        async move { journal.create(&key, batch, wanted).await }
    };
    assert_eq!(create("a", 1, vec![], Some("k")).await.unwrap(), Created::New { superseded: None });
    // Two that come at once share a transaction, and there is room for one.
    let (one, other) =
        futures_util::future::join(create("a", 2, vec![], None), create("a", 3, vec![], Some("k3"))).await;
    assert_eq!(one.unwrap(), Created::New { superseded: None });
    for refused in [other, create("a", 4, vec![], None).await] {
        assert!(matches!(refused, Err(JournalError::TooManyRuns { runs_max: 2 })), "{refused:?}");
    }
    assert_eq!(create("a", 5, vec![], Some("k")).await.unwrap(), Created::Existing(run_of("a", 1).run));
    let mut child = Writer::first(6, vec![]);
    child.summary.as_mut().unwrap().parent = Some(run_of("a", 1).run);
    if let Some(Event::RunQueued { parent, .. }) = child.events.first_mut() {
        *parent = Some(ParentRef { run: run_of("a", 1).run, depth: 1 });
    }
    assert_eq!(
        journal.create(&run_of("a", 6), child, None).await.unwrap(),
        Created::New { superseded: None },
        "a child was accepted before"
    );
    assert_eq!(create("b", 1, vec![], None).await.unwrap(), Created::New { superseded: None });

    // What was refused has left no key behind, and the limit is another one from now on.
    let raise = |record: &mut TenantRecord| {
        record.limits.unfinished_runs = Some(10);
        Ok::<(), ()>(())
    };
    journal.change_tenant(&"a".parse().unwrap(), raise).await.unwrap().unwrap().unwrap();
    assert_eq!(
        create("a", 7, (0..3).map(content).collect(), Some("k3")).await.unwrap(),
        Created::New { superseded: None }
    );
    let full = create("a", 8, vec![], None).await;
    assert!(matches!(full, Err(JournalError::Full { bytes_max: 200_000 })), "{full:?}");
    let large = content(9);
    let put = async |tenant: &str| {
        let (id, record): (TenantId, _) = (tenant.parse().unwrap(), version_of(&large, 9));
        journal.put_version(&id, &"w".parse().unwrap(), record, large.bytes.clone(), true).await
    };
    assert!(matches!(put("a").await, Err(JournalError::Full { bytes_max: 200_000 })));
    assert!(put("b").await.is_ok());
    let before = journal.usage(&"a".parse().unwrap()).unwrap();
    drop(journal);
    let journal = open(&Disk::new(disk.survivor(0), u64::MAX));
    assert_eq!(journal.usage(&"a".parse().unwrap()).unwrap(), before);
    assert_eq!(journal.limits(&"a".parse().unwrap()).unfinished_runs, 10, "limits are read when the file is opened");
}

#[tokio::test]
async fn a_long_run_is_deleted_in_parts_and_is_gone_with_the_first() {
    let journal = memory();
    let tenant: TenantId = "a".parse().unwrap();
    let mut run = Writer::create(&journal, run_of("a", 1), 1, vec![content(1)]).await;
    for n in 0..5_000 {
        run.append(&journal, 2, vec![update(n)], vec![], vec![]).await.unwrap();
    }
    run.end(&journal, 3).await;
    let later = Timestamp::from_millis(4);
    assert_eq!(journal.delete_runs_ended_before(&tenant, Timestamp::from_millis(3)).await.unwrap(), Deleted::default());
    let mut parts = 0;
    loop {
        let deleted = journal.delete_runs_ended_before(&tenant, later).await.unwrap();
        parts += 1;
        assert_eq!(journal.summary(&run.key).unwrap(), None, "half a run is not shown");
        assert_eq!(journal.usage(&tenant).unwrap(), journal.recount(&tenant).unwrap());
        if !deleted.more {
            assert_eq!(deleted.runs, 1);
            break;
        }
        assert_eq!(deleted.runs, 0);
    }
    assert!(parts >= 5, "events and what the channel has of them are more than {parts} writes should delete");
    assert_eq!(journal.usage(&tenant).unwrap(), Usage::default());
    assert_eq!(journal.read(&run.key, 0, usize::MAX).unwrap(), []);
}

#[tokio::test]
async fn content_outlives_neither_its_own_retention_nor_the_last_run_that_refers_to_it() {
    let journal = memory();
    let tenant: TenantId = "a".parse().unwrap();
    let (own, shared) = (content(1), content(2));
    let mut first = Writer::create(&journal, run_of("a", 1), 1, vec![own.clone(), shared.clone()]).await;
    let mut second = Writer::create(&journal, run_of("a", 2), 2, vec![shared.clone()]).await;
    let _open = Writer::create(&journal, run_of("a", 3), 0, vec![content(3)]).await;
    first.append(&journal, 3, vec![file(&own), file(&shared)], vec![], vec![]).await.unwrap();
    first.end(&journal, 10).await;
    second.end(&journal, 20).await;
    let expire = |at| journal.delete_contents_ended_before(&tenant, Timestamp::from_millis(at));
    assert_eq!(expire(10).await.unwrap(), Deleted::default());
    assert_eq!(expire(11).await.unwrap(), Deleted { runs: 1, more: false });
    assert_eq!(expire(11).await.unwrap(), Deleted::default(), "it is not looked at again");
    assert!(journal.content(&tenant, &own.sha256).unwrap().is_none());
    assert!(journal.content(&tenant, &shared.sha256).unwrap().is_some(), "the second run refers to it");
    assert!(!journal.refers_to(&first.key, &shared.sha256).unwrap());
    assert!(journal.refers_to(&second.key, &shared.sha256).unwrap());
    assert_eq!(journal.read(&first.key, 0, usize::MAX).unwrap().len(), 6, "the run and its events stay");
    assert_eq!(journal.summary(&first.key).unwrap().unwrap().status, RunStatus::Completed);
    assert_eq!(expire(u64::MAX).await.unwrap().runs, 1);
    assert!(journal.content(&tenant, &shared.sha256).unwrap().is_none());
    assert!(journal.content(&tenant, &content(3).sha256).unwrap().is_some(), "a run that goes on keeps what it has");
    assert_eq!(journal.usage(&tenant).unwrap(), journal.recount(&tenant).unwrap());
    assert_eq!(journal.delete_runs_ended_before(&tenant, Timestamp::from_millis(u64::MAX)).await.unwrap().runs, 2);
}

#[tokio::test]
async fn tenants_take_turns_and_a_round_ends() {
    let journal = memory();
    for (tenant, artifact_days) in [("a", None), ("b", Some(1)), ("c", None)] {
        make_tenant(&journal, tenant, SetLimits::default(), artifact_days).await;
    }
    for n in 0..3 {
        let mut run = Writer::create(&journal, run_of("a", n), 1, vec![]).await;
        let events = |n| (0..10).map(|_| update(n)).collect();
        for n in 0..1_500 {
            run.append(&journal, 2, events(n), vec![], vec![]).await.unwrap();
        }
        run.end(&journal, 3 + n).await;
    }
    for tenant in ["b", "c"] {
        Writer::create(&journal, run_of(tenant, 1), 1, vec![content(1)]).await.end(&journal, 2).await;
        Writer::create(&journal, run_of(tenant, 2), 1, vec![]).await; // waits for ever
    }
    let stopping = CancellationToken::new();
    let runs = |tenant: &str| journal.runs(&tenant.parse().unwrap(), &RunFilter::default(), 10).unwrap().runs.len();
    let at = |days: u64| Timestamp::from_millis(days * DAY_MS + 1_000);
    let mut sweeper = Sweeper::with_turns(3);
    let swept = sweeper.round(&journal, at(2), &stopping).await.unwrap();
    assert_eq!((swept.runs, swept.contents, swept.more), (0, 1, false), "files of `b` alone go before their runs");
    assert_eq!((runs("a"), runs("b"), runs("c")), (3, 2, 2));
    // The one with much to delete is first, and everybody else has had a turn before it is done.
    let swept = sweeper.round(&journal, at(11), &stopping).await.unwrap();
    assert!(swept.more);
    assert_eq!((runs("b"), runs("c")), (1, 1));
    assert!(runs("a") > 0);
    let mut rounds = 1;
    while sweeper.round(&journal, at(11), &stopping).await.unwrap().more {
        rounds += 1;
    }
    assert!(rounds > 1);
    assert_eq!((runs("a"), runs("b"), runs("c")), (0, 1, 1), "runs that have not ended stay");
    assert_eq!(sweeper.round(&journal, at(100), &stopping).await.unwrap(), Default::default());
}

fn delivery(webhook: &str, n: u64, next_at: Option<u64>) -> Delivery {
    Delivery {
        webhook: webhook.to_owned(),
        run: run_of("a", n).run,
        status: RunStatus::Completed,
        created_at: Timestamp::from_millis(n),
        attempts: 1,
        next_at: next_at.map(Timestamp::from_millis),
        problem: None,
    }
}

async fn make_webhook(journal: &RedbJournal, name: &str) {
    let at = clock::now();
    let record = WebhookRecord {
        name: name.to_owned(),
        url: "http://127.0.0.1/".to_owned(),
        secret: "s".to_owned(),
        workflows: None,
        on: vec![RunStatus::Completed],
        created_at: at,
        updated_at: at,
    };
    journal.put_webhook(&"a".parse().unwrap(), record).await.unwrap().unwrap();
}

/// Ends so many runs, which puts a delivery for each into the outbox.
async fn end_runs(journal: &Arc<RedbJournal>, numbers: std::ops::RangeInclusive<u64>) {
    let runs = numbers.map(|n| async move {
        Writer::create(journal, run_of("a", n), n, vec![]).await.end(journal, n).await;
    });
    futures_util::future::join_all(runs).await;
}

#[tokio::test]
async fn of_deliveries_that_are_given_up_the_oldest_are_dropped_and_counted() {
    let journal = memory();
    let tenant: TenantId = "a".parse().unwrap();
    make_webhook(&journal, "w").await;
    let many = DEAD_MAX + 5;
    end_runs(&journal, 1..=many + 1).await;
    let give_up = |n| journal.put_delivery(&tenant, Some(Timestamp::from_millis(n)), delivery("w", n, None));
    futures_util::future::join_all((1..=many).rev().map(give_up)).await.into_iter().for_each(Result::unwrap);
    let counts = || journal.dead_deliveries(&tenant, "w").unwrap();
    assert_eq!((counts().kept, counts().dropped), (DEAD_MAX, 5));
    let first = journal.deliveries(&tenant, "w", None, Some(true), 1).unwrap().remove(0);
    assert_eq!(first.run, run_of("a", 6).run);
    assert!(journal.delivery(&tenant, "w", &run_of("a", 5).run).unwrap().is_none());
    let lane = Lane { tenant: tenant.clone(), name: "w".to_owned() };
    let due = || journal.deliveries_due(&lane, Timestamp::from_millis(u64::MAX - 1), 10).unwrap();
    assert_eq!(due().iter().map(|(_, run)| *run).collect::<Vec<_>>(), [run_of("a", many + 1).run]);

    // One that is tried again is not given up; one that is taken is nowhere.
    journal.put_delivery(&tenant, None, delivery("w", 6, Some(7))).await.unwrap();
    assert_eq!((counts().kept, counts().dropped), (DEAD_MAX - 1, 5));
    journal.delete_delivery(&tenant, Some(Timestamp::from_millis(7)), "w", &run_of("a", 6).run).await.unwrap();
    journal.delete_delivery(&tenant, None, "w", &run_of("a", 7).run).await.unwrap();
    assert_eq!(counts().kept, DEAD_MAX - 2);

    // With the run goes what was to be told of it, and an attempt that was under way then does not bring it back.
    let cutoff = Timestamp::from_millis(20);
    while journal.delete_runs_ended_before(&tenant, cutoff).await.unwrap().more {}
    assert_eq!(counts().kept, DEAD_MAX - 2 - 12);
    journal.put_delivery(&tenant, None, delivery("w", 8, Some(9))).await.unwrap();
    assert!(journal.delivery(&tenant, "w", &run_of("a", 8).run).unwrap().is_none());

    assert!(journal.delete_webhook(&tenant, "w").await.unwrap());
    assert_eq!((counts().kept, counts().dropped), (0, 0));
    assert_eq!(journal.deliveries(&tenant, "w", None, None, 10).unwrap().len(), 0);
    assert_eq!(due(), []);
}

async fn make_trigger(journal: &RedbJournal, name: &str, on: TriggerOn) {
    let is_cron = matches!(on, TriggerOn::Cron { .. });
    let at = clock::now();
    let action = TriggerAction { filter: None, workflow: None, version: None, input: None, signal: None };
    let record = TriggerRecord { name: name.to_owned(), enabled: true, on, action, created_at: at, updated_at: at };
    let next = move |_: Option<&TriggerRecord>| is_cron.then_some(Some(Timestamp::from_millis(77)));
    journal.put_trigger(&"a".parse().unwrap(), record, next).await.unwrap().unwrap();
}

/// Makes a file what it was before anything was counted.
fn age(disk: &Disk) {
    let database = Database::builder().create_with_backend(disk.clone()).unwrap();
    let transaction = database.begin_write().unwrap();
    let tables = ["usage", "ended_runs", "ended_contents", "outbox_dead", "outbox_counts", "outbox_to_try"];
    let lists = ["outbox_to_try_turns", "webhooks_of_workflows", "event_triggers"];
    let firing = ["triggers_to_fire", "triggers_to_fire_turns"];
    for table in tables.into_iter().chain(lists).chain(firing) {
        let table = TableDefinition::<&[u8], &[u8]>::new(table);
        assert!(transaction.delete_table(table).unwrap(), "{} is there", table.name());
    }
    {
        let meta = TableDefinition::<&str, &[u8]>::new("meta");
        let mut meta = transaction.open_table(meta).unwrap();
        assert!(meta.get("format").unwrap().is_some());
        assert!(meta.remove("projections").unwrap().is_some());
    }
    transaction.commit().unwrap();
}

#[tokio::test]
async fn a_file_of_before_is_counted_once_through_crashes_at_every_sync() {
    let disk = Disk::new(vec![], u64::MAX);
    let journal = open(&disk);
    let tenant: TenantId = "a".parse().unwrap();
    make_webhook(&journal, "w").await;
    end_runs(&journal, 1..=30).await;
    journal.put_delivery(&tenant, Some(Timestamp::from_millis(2)), delivery("w", 2, None)).await.unwrap();
    let mut with_content = Writer::create(&journal, run_of("a", 40), 40, vec![content(1), content(2)]).await;
    with_content.end(&journal, 41).await;
    let long = Writer::create(&journal, run_of("a", 50), 50, vec![content(2)]).await;
    journal.put_snapshot(&long.key, 3, vec![1; 100]).await.unwrap();
    Writer::create(&journal, run_of("b", 1), 1, vec![content(1)]).await;
    journal
        .put_version(&tenant, &"w".parse().unwrap(), version_of(&content(3), 3), content(3).bytes, true)
        .await
        .unwrap();
    let tenants: [TenantId; 2] = [tenant.clone(), "b".parse().unwrap()];
    let expected = tenants.each_ref().map(|tenant| journal.usage(tenant).unwrap());
    let dead = journal.dead_deliveries(&tenant, "w").unwrap();
    let (schedule, time_zone) = ("* * * * *".to_owned(), "UTC".to_owned());
    make_trigger(&journal, "times", TriggerOn::Cron { schedule, time_zone, missed: Missed::Skip }).await;
    make_trigger(&journal, "told", TriggerOn::Event { event: "e".to_owned() }).await;
    drop(journal);
    age(&disk);
    let old = disk.survivor(0);

    let check = async |journal: &RedbJournal, what: &str| {
        assert_eq!(tenants.each_ref().map(|tenant| journal.usage(tenant).unwrap()), expected, "{what}");
        assert_eq!(journal.dead_deliveries(&tenant, "w").unwrap(), dead, "{what}");
        let at = Timestamp::from_millis;
        let lane = |name: &str| Lane { tenant: tenant.clone(), name: name.to_owned() };
        assert_eq!(journal.lanes_to_deliver(at(100)).unwrap(), [lane("w")], "{what}");
        // The thirty but for the one that is given up, and the one with content.
        assert_eq!(journal.deliveries_due(&lane("w"), at(100), 100).unwrap().len(), 30, "{what}");
        assert_eq!(journal.triggers_due(&lane(""), at(100), 9).unwrap(), [(at(77), "times".to_owned())], "{what}");
        assert_eq!(journal.triggers_of_event(&tenant, "e").unwrap(), ["told"], "{what}");
        Writer::create(journal, run_of("a", 60), 60, vec![]).await.end(journal, 60).await;
        assert!(journal.delivery(&tenant, "w", &run_of("a", 60).run).unwrap().is_some(), "{what}: webhooks are told");
        assert_eq!(journal.delete_contents_ended_before(&tenant, at(u64::MAX)).await.unwrap().runs, 1, "{what}");
        assert_eq!(journal.delete_runs_ended_before(&tenant, at(11)).await.unwrap().runs, 10, "{what}");
        assert_eq!(journal.delete_runs_ended_before(&tenant, at(u64::MAX)).await.unwrap().runs, 22, "{what}");
        let after = |cursor| journal.channel(&channel_of("a"), &Default::default(), cursor, 100, usize::MAX);
        assert!(matches!(after(31), Err(JournalError::Truncated { first_seq: 33 })), "{what}: the rows go along");
        assert!(after(32).unwrap().entries.is_empty(), "{what}: a deleted run takes its rows along");
        assert_eq!(journal.usage(&tenant).unwrap(), journal.recount(&tenant).unwrap(), "{what}");
    };
    let whole = Disk::new(old.clone(), u64::MAX);
    check(&open(&whole), "without a crash").await;
    let syncs = whole.syncs();
    for fails_at in 1..=syncs {
        let disk = Disk::new(old.clone(), fails_at);
        if RedbJournal::open_backend(disk.clone()).is_ok() {
            break; // it is filled before anything else is written
        }
        for torn in [0, u64::MAX] {
            let survivor = Disk::new(disk.survivor(torn), u64::MAX);
            check(&open(&survivor), &format!("crash at sync {fails_at}, torn {torn:x}")).await;
        }
    }
}

fn channel_of(tenant: &str) -> stepwell::journal::channels::ChannelKey {
    stepwell::journal::channels::ChannelKey { tenant: tenant.parse().unwrap(), channel: channel().channel }
}
