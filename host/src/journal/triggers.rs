//! What starts runs besides requests, and who is told when they end: triggers, the events that were sent, webhooks, and
//! the outbox of what is still to be delivered.
//!
//! Owns: their tables, and the one hook of the writer ([`enqueue`]).
//! Does not: evaluate, start, sign or deliver anything; `triggers/` does.
//! Keeps: what is owed for the end of a run is written in the transaction of that end, so a crash leaves both or neither.
//! A trigger's mark and the list of what is due change together.

use std::collections::BTreeSet;

use ::redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use stepwell_core::{Digest, RunId, RunKey, RunStatus, TenantId, Timestamp, WorkflowName};
use utoipa::ToSchema;

use super::due::{DueList, Lane};
use super::redb::{RedbJournal, parse, storage, to_json};
use super::writer::{Bytes2Bytes, Table};
use super::{IDEMPOTENCY_TTL_MS, JournalError, RunSummary, dead, keys};

/// (tenant, name) → a trigger's record.
pub(super) const TRIGGERS: Bytes2Bytes = TableDefinition::new("triggers");
/// (tenant, name) → how far a trigger has come.
pub(super) const TRIGGER_MARKS: Bytes2Bytes = TableDefinition::new("trigger_marks");
/// (tenant, event, name) of each trigger that waits for an event.
pub(super) const EVENT_TRIGGERS: Bytes2Bytes = TableDefinition::new("event_triggers");
/// The triggers that are to fire. A tenant's take turns with those of others, in one lane.
pub(super) const FIRING: DueList = DueList {
    entries: TableDefinition::new("triggers_to_fire"),
    turns: TableDefinition::new("triggers_to_fire_turns"),
};
/// (tenant, SHA-256 of the id) → what became of an event that was sent.
const EVENTS: Bytes2Bytes = TableDefinition::new("sent_events");
/// (time, key of the former), oldest first.
const EVENTS_BY_TIME: Bytes2Bytes = TableDefinition::new("sent_events_by_time");
/// (tenant, name) → a webhook's record.
pub(super) const WEBHOOKS: Bytes2Bytes = TableDefinition::new("webhooks");
/// (tenant, workflow or nothing for all of them, webhook) → the ends that it is told of, with spaces between. What the
/// writer looks at when a run ends: the records may be large, and all tenants wait for the writer.
const TOLD: Bytes2Bytes = TableDefinition::new("webhooks_of_workflows");
/// (tenant, webhook, run) → a delivery that has not succeeded.
pub(super) const OUTBOX: Bytes2Bytes = TableDefinition::new("outbox");
/// The deliveries that are to be tried. Each webhook has a lane, so one that answers slowly delays no other.
pub(super) const DELIVERING: DueList =
    DueList { entries: TableDefinition::new("outbox_to_try"), turns: TableDefinition::new("outbox_to_try_turns") };

/// All of them.
pub(super) const TABLES: &[Bytes2Bytes] = &[
    TRIGGERS,
    TRIGGER_MARKS,
    EVENT_TRIGGERS,
    FIRING.entries,
    FIRING.turns,
    EVENTS,
    EVENTS_BY_TIME,
    WEBHOOKS,
    TOLD,
    OUTBOX,
    DELIVERING.entries,
    DELIVERING.turns,
];

/// Triggers of one tenant.
pub const TRIGGERS_MAX: usize = 1_000;
/// Triggers of one event. Its sender waits for all of them.
pub const TRIGGERS_OF_EVENT_MAX: usize = 50;
/// Webhooks of one tenant: each may have to be told when a run ends.
pub const WEBHOOKS_MAX: usize = 50;
/// Bytes of the triggers on one page; one that is larger has a page of its own.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// Sent events forgotten in one transaction.
const EVENTS_DELETED_MAX: usize = 500;
/// Deliveries forgotten in one transaction, with their webhook.
const DELIVERIES_DELETED_MAX: usize = 500;

/// A trigger, as its tenant has set it up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TriggerRecord {
    /// Its name.
    pub name: String,
    /// Whether it does anything.
    pub enabled: bool,
    /// What it waits for.
    pub on: TriggerOn,
    /// What it does then.
    pub action: TriggerAction,
    /// When it was first set up.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// What a trigger waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TriggerOn {
    /// Times of a calendar.
    Cron {
        /// A cron expression of five fields, or six with seconds.
        schedule: String,
        /// A name of the time zone database.
        time_zone: String,
        /// What becomes of times at which the host did not run.
        missed: Missed,
    },
    /// A signed request from outside.
    Webhook {
        /// The name of the secret it is signed with.
        secret: String,
        /// The name of another that it may be signed with, while the sender changes over.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        previous_secret: Option<String>,
        /// How it is signed.
        scheme: Scheme,
    },
    /// An event that the tenant sends.
    Event {
        /// The event's name.
        event: String,
    },
}

/// What becomes of times at which the host did not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = MissedPolicy)]
pub enum Missed {
    /// Nothing.
    #[default]
    Skip,
    /// One run for the latest of them.
    RunOnce,
    /// A run for each of them, the latest 100 at most.
    RunAll,
}

/// How a request is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = SignatureScheme)]
pub enum Scheme {
    /// `Stepwell-Signature: t=SECONDS,v1=HEX`, HMAC-SHA256 over `SECONDS.BODY`.
    #[default]
    Stepwell,
    /// The same in the header `Stripe-Signature`.
    Stripe,
    /// `X-Hub-Signature-256: sha256=HEX`, HMAC-SHA256 over the body.
    Github,
}

/// What a trigger does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TriggerAction {
    /// An expression that must hold; without one it always does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// The workflow that it starts, or whose runs it signals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<WorkflowName>,
    /// The version of the runs; the latest when it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Digest>,
    /// An expression for the run's input or the signal's payload; for times, the input itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Box<RawValue>>,
    /// The signal that it sends, in place of starting a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<SignalAction>,
}

/// A signal that a trigger sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SignalAction {
    /// The signal's name.
    pub name: String,
    /// An expression for the id of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// An expression for what the runs were started with as `Stepwell-Correlation`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
}

/// How far a trigger has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerMark {
    /// The first time that it has not fired for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Timestamp>,
    /// The last time that it has fired for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<Timestamp>,
    /// The run that it has started last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<RunId>,
    /// Why it could not start its last one: a code and a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_problem: Option<(String, String)>,
}

/// What became of an event that was sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SentEvent {
    /// When it came.
    pub at: Timestamp,
    /// Hash of all that must be the same in a repetition.
    pub fingerprint: Digest,
    /// The answer; `None` while its triggers are at work, and when the host was killed meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<Box<RawValue>>,
}

/// What is to be done with an event.
#[derive(Debug)]
pub enum Begun {
    /// Its triggers are to do their work: it is new, or nobody knows whether they all have. What they have done before is
    /// found by its idempotency key.
    Now,
    /// Nothing: this became of it.
    Answered(Box<RawValue>),
}

/// Who is told when runs end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WebhookRecord {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// The name of the secret that deliveries are signed with.
    pub secret: String,
    /// The workflows whose runs it is told of; all when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflows: Option<BTreeSet<WorkflowName>>,
    /// The ends it is told of.
    pub on: Vec<RunStatus>,
    /// When it was first set up.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// What is still to be told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Delivery {
    /// The webhook.
    pub webhook: String,
    /// The run that has ended.
    pub run: RunId,
    /// How.
    pub status: RunStatus,
    /// When that was written down.
    pub created_at: Timestamp,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried next; `None` for one that is given up.
    pub next_at: Option<Timestamp>,
    /// Why the last try was none: a code and a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<(String, String)>,
}

impl Delivery {
    /// The same for all attempts, and never again.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}.{}", self.webhook, self.run)
    }
}

/// How many there may be is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMany {
    /// [`TRIGGERS_MAX`] of the tenant.
    Triggers,
    /// [`TRIGGERS_OF_EVENT_MAX`] of the event.
    OfEvent,
    /// [`WEBHOOKS_MAX`] of the tenant.
    Webhooks,
}

/// A time of a trigger, for which a run is to be started: when that is created, the trigger's mark moves on. What was
/// started for a time is thus remembered as long as the trigger stands, whatever becomes of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenTime {
    /// The trigger's name.
    pub trigger: String,
    /// Where its mark must stand.
    pub expected: Timestamp,
    /// The time that the run is for.
    pub at: Timestamp,
    /// Where its mark stands then.
    pub next: Option<Timestamp>,
}

pub(super) fn firing_lane(tenant: &TenantId) -> Lane {
    Lane { tenant: tenant.clone(), name: String::new() }
}

pub(super) fn delivering_lane(tenant: &TenantId, webhook: &str) -> Lane {
    Lane { tenant: tenant.clone(), name: webhook.to_owned() }
}

fn outbox_key(tenant: &TenantId, webhook: &str, run: &RunId) -> Vec<u8> {
    [keys::named(tenant, webhook).as_slice(), run.as_bytes()].concat()
}

/// Something that is known by the name of something else first.
pub(super) fn indexed(tenant: &TenantId, by: &str, name: &str) -> Vec<u8> {
    [keys::named(tenant, by).as_slice(), name.as_bytes(), &[0]].concat()
}

/// The name at the end of a key of [`indexed`].
pub(super) fn indexed_name(key: &[u8]) -> Option<String> {
    String::from_utf8(key.strip_suffix(&[0])?.rsplit(|byte| *byte == 0).next()?.to_vec()).ok()
}

/// Writes down what is owed for the end of a run. Called by the writer, within the transaction of that end.
pub(super) fn enqueue(transaction: &WriteTransaction, key: &RunKey, summary: &[u8]) -> Result<(), JournalError> {
    let told = transaction.open_table(TOLD).map_err(storage("open the webhooks"))?;
    let all = keys::of_tenant(&key.tenant);
    let mut of_tenant = told.range(all.start.as_slice()..all.end.as_slice()).map_err(storage("list webhooks"))?;
    if of_tenant.next().is_none() {
        return Ok(()); // most tenants have none
    }
    let summary: RunSummary = parse(summary, || format!("the summary of {key}"))?;
    if summary.shadow_of.is_some() {
        return Ok(()); // a shadow is nobody's business but that of whoever compares it
    }
    let mut webhooks = Vec::new();
    for workflow in ["", summary.workflow.as_str()] {
        let range = keys::starting_with(keys::named(&key.tenant, workflow));
        for entry in told.range(range.start.as_slice()..range.end.as_slice()).map_err(storage("list webhooks"))? {
            let (name, ends) = entry.map_err(storage("list webhooks"))?;
            if ends.value().split(|byte| *byte == b' ').any(|end| end == summary.status.as_str().as_bytes()) {
                webhooks.extend(indexed_name(name.value()));
            }
        }
    }
    let at = summary.ended_at.unwrap_or_default();
    for webhook in webhooks {
        let (run, status) = (key.run, summary.status);
        let delivery = Delivery { webhook, run, status, created_at: at, attempts: 0, next_at: Some(at), problem: None };
        put_delivery(transaction, &key.tenant, None, &delivery)?;
    }
    Ok(())
}

/// Forgets what was to be told of a run that is deleted: nobody could be told anything about it.
pub(super) fn forget_deliveries(transaction: &WriteTransaction, key: &RunKey) -> Result<(), JournalError> {
    let range = keys::of_tenant(&key.tenant);
    let webhooks: Vec<String> = {
        let webhooks = transaction.open_table(WEBHOOKS).map_err(storage("open the webhooks"))?;
        let entries = webhooks.range(range.start.as_slice()..range.end.as_slice()).map_err(storage("list webhooks"))?;
        entries
            .map(|entry| Ok(indexed_name(entry.map_err(storage("list webhooks"))?.0.value())))
            .filter_map(Result::transpose)
            .collect::<Result<_, JournalError>>()?
    };
    webhooks.iter().try_for_each(|webhook| remove_delivery(transaction, &key.tenant, webhook, &key.run))
}

/// Removes a delivery, wherever it is listed.
fn remove_delivery(
    transaction: &WriteTransaction,
    tenant: &TenantId,
    webhook: &str,
    run: &RunId,
) -> Result<(), JournalError> {
    let key = outbox_key(tenant, webhook, run);
    let next = {
        let mut outbox = transaction.open_table(OUTBOX).map_err(storage("open the outbox"))?;
        let stored = outbox.remove(key.as_slice()).map_err(storage("forget a delivery"))?;
        let Some(stored) = stored else { return Ok(()) };
        next_of(stored.value())
    };
    if next.is_none() {
        dead::moved(transaction, tenant, webhook, &key, false)?;
    }
    DELIVERING.change(transaction, &delivering_lane(tenant, webhook), run.as_bytes(), next, None)
}

/// When a stored delivery is tried next; `None` when it is given up.
fn next_of(stored: &[u8]) -> Option<Timestamp> {
    serde_json::from_slice::<Delivery>(stored).ok().and_then(|delivery| delivery.next_at)
}

/// Whether a trigger's mark still stands before a time. It stands elsewhere when a run was started for that time before,
/// or the trigger was set up anew or deleted.
pub(super) fn time_stands(
    transaction: &WriteTransaction,
    tenant: &TenantId,
    time: &TakenTime,
) -> Result<bool, JournalError> {
    mark(transaction, tenant, &time.trigger, |mark| mark.next == Some(time.expected))
}

/// Moves a trigger's mark past a time that [stands](time_stands) and for which a run is being created. Called by the
/// writer, within the transaction that creates the run.
pub(super) fn take_time(transaction: &WriteTransaction, run: &RunKey, time: &TakenTime) -> Result<(), JournalError> {
    mark(transaction, &run.tenant, &time.trigger, |mark| {
        *mark = TriggerMark { next: time.next, last: Some(time.at), last_run: Some(run.run), last_problem: None };
    })
}

fn put_delivery(
    transaction: &WriteTransaction,
    tenant: &TenantId,
    before: Option<Timestamp>,
    delivery: &Delivery,
) -> Result<(), JournalError> {
    let failed = || storage("write a delivery");
    let key = outbox_key(tenant, &delivery.webhook, &delivery.run);
    let value = to_json(delivery, "a delivery")?;
    let was_dead = {
        let mut outbox = transaction.open_table(OUTBOX).map_err(storage("open the outbox"))?;
        let stored = outbox.insert(key.as_slice(), value.as_slice()).map_err(failed())?;
        stored.is_some_and(|stored| next_of(stored.value()).is_none())
    };
    let is_dead = delivery.next_at.is_none();
    if was_dead != is_dead {
        let dropped = dead::moved(transaction, tenant, &delivery.webhook, &key, is_dead)?;
        let mut outbox = transaction.open_table(OUTBOX).map_err(storage("open the outbox"))?;
        for key in dropped {
            outbox.remove(key.as_slice()).map_err(failed())?;
        }
    }
    let lane = delivering_lane(tenant, &delivery.webhook);
    DELIVERING.change(transaction, &lane, delivery.run.as_bytes(), before, delivery.next_at)
}

impl RedbJournal {
    /// Sets up a trigger in place of one with the same name, unless there are too many. `next` is told the trigger that it
    /// takes the place of, and says when it fires first; with `None` its mark stays as it is.
    pub async fn put_trigger(
        &self,
        tenant: &TenantId,
        mut record: TriggerRecord,
        next: impl FnOnce(Option<&TriggerRecord>) -> Option<Option<Timestamp>> + Send + 'static,
    ) -> Result<Result<TriggerRecord, TooMany>, JournalError> {
        let tenant = tenant.clone();
        self.write(move |transaction| {
            let key = keys::named(&tenant, &record.name);
            let mut table = transaction.open_table(TRIGGERS).map_err(storage("open the triggers"))?;
            let known = table.get(key.as_slice()).map_err(storage("look for a trigger"))?;
            let known =
                known.map(|value| parse::<TriggerRecord>(value.value(), || "a trigger".to_owned())).transpose()?;
            // Each trigger has a mark, and marks are small.
            if known.is_none() && count(transaction, TRIGGER_MARKS, keys::of_tenant(&tenant))? >= TRIGGERS_MAX {
                return Ok(Err(TooMany::Triggers));
            }
            let mut index = transaction.open_table(EVENT_TRIGGERS).map_err(storage("open the triggers"))?;
            let entry = |on: &TriggerOn| match on {
                TriggerOn::Event { event } => Some(indexed(&tenant, event, &record.name)),
                _ => None,
            };
            let (before, after) = (known.as_ref().and_then(|known| entry(&known.on)), entry(&record.on));
            if let (true, TriggerOn::Event { event }) = (before != after, &record.on) {
                let others = keys::starting_with(keys::named(&tenant, event));
                let others = index.range(others.start.as_slice()..others.end.as_slice());
                if others.map_err(storage("list triggers"))?.count() >= TRIGGERS_OF_EVENT_MAX {
                    return Ok(Err(TooMany::OfEvent));
                }
            }
            if let Some(before) = before {
                index.remove(before.as_slice()).map_err(storage("write a trigger"))?;
            }
            if let Some(after) = after {
                index.insert(after.as_slice(), [].as_slice()).map_err(storage("write a trigger"))?;
            }
            if known.is_none() {
                let mut marks = transaction.open_table(TRIGGER_MARKS).map_err(storage("open the triggers"))?;
                let value = to_json(&TriggerMark::default(), "a trigger's mark")?;
                marks.insert(key.as_slice(), value.as_slice()).map_err(storage("write a trigger"))?;
            }
            let next = next(known.as_ref());
            if let Some(known) = known {
                record.created_at = known.created_at;
            }
            let value = to_json(&record, "a trigger")?;
            table.insert(key.as_slice(), value.as_slice()).map_err(storage("write a trigger"))?;
            if let Some(next) = next {
                mark(transaction, &tenant, &record.name, |mark| mark.next = next)?;
            }
            Ok(Ok(record))
        })
        .await
    }

    /// A trigger.
    pub fn trigger(&self, tenant: &TenantId, name: &str) -> Result<Option<TriggerRecord>, JournalError> {
        self.one(TRIGGERS, &keys::named(tenant, name))
    }

    /// A tenant's triggers by name, after one, at most `limit` and of bounded size, and whether there are more.
    pub fn triggers(
        &self,
        tenant: &TenantId,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<TriggerRecord>, bool), JournalError> {
        let table = self.reader()?.open_table(TRIGGERS).map_err(storage("open the triggers"))?;
        let mut range = keys::of_tenant(tenant);
        if let Some(after) = after {
            range.start = [keys::named(tenant, after).as_slice(), &[0]].concat();
        }
        let (mut found, mut size) = (Vec::new(), 0);
        for entry in table.range(range.start.as_slice()..range.end.as_slice()).map_err(storage("list triggers"))? {
            let (_, value) = entry.map_err(storage("list triggers"))?;
            size += value.value().len();
            if !found.is_empty() && (found.len() == limit || size > PAGE_BYTES_MAX) {
                return Ok((found, true));
            }
            found.push(parse(value.value(), || "a trigger".to_owned())?);
        }
        Ok((found, false))
    }

    /// The names of the triggers that wait for an event.
    pub fn triggers_of_event(&self, tenant: &TenantId, event: &str) -> Result<Vec<String>, JournalError> {
        let index = self.reader()?.open_table(EVENT_TRIGGERS).map_err(storage("open the triggers"))?;
        let range = keys::starting_with(keys::named(tenant, event));
        let mut names = Vec::new();
        for entry in index.range(range.start.as_slice()..range.end.as_slice()).map_err(storage("list triggers"))? {
            names.extend(indexed_name(entry.map_err(storage("list triggers"))?.0.value()));
        }
        Ok(names)
    }

    /// How far a trigger has come.
    pub fn trigger_mark(&self, tenant: &TenantId, name: &str) -> Result<TriggerMark, JournalError> {
        Ok(self.one(TRIGGER_MARKS, &keys::named(tenant, name))?.unwrap_or_default())
    }

    /// Moves a trigger's mark, unless it stands elsewhere than expected: then it was set up anew meanwhile.
    pub async fn move_trigger_mark(
        &self,
        tenant: &TenantId,
        name: &str,
        expected: Option<Timestamp>,
        moved: TriggerMark,
    ) -> Result<(), JournalError> {
        let (tenant, name) = (tenant.clone(), name.to_owned());
        self.write(move |transaction| {
            mark(transaction, &tenant, &name, |mark| {
                if mark.next == expected {
                    *mark = moved;
                }
            })
        })
        .await
    }

    /// Deletes a trigger. `false` when there is none. No run is started by it from here on.
    pub async fn delete_trigger(&self, tenant: &TenantId, name: &str) -> Result<bool, JournalError> {
        let (tenant, name) = (tenant.clone(), name.to_owned());
        self.write(move |transaction| {
            let failed = || storage("delete a trigger");
            let key = keys::named(&tenant, &name);
            let mut table = transaction.open_table(TRIGGERS).map_err(storage("open the triggers"))?;
            let known = table.remove(key.as_slice()).map_err(failed())?.map(|value| value.value().to_vec());
            let Some(known) = known else { return Ok(false) };
            let known = serde_json::from_slice::<TriggerRecord>(&known).map(|known| known.on);
            if let Ok(TriggerOn::Event { event }) = known {
                let mut index = transaction.open_table(EVENT_TRIGGERS).map_err(storage("open the triggers"))?;
                index.remove(indexed(&tenant, &event, &name).as_slice()).map_err(failed())?;
            }
            mark(transaction, &tenant, &name, |mark| mark.next = None)?;
            let mut marks = transaction.open_table(TRIGGER_MARKS).map_err(storage("open the triggers"))?;
            marks.remove(key.as_slice()).map_err(failed())?;
            Ok(true)
        })
        .await
    }

    /// The lanes that have triggers to fire at a time.
    pub fn lanes_to_fire(&self, until: Timestamp) -> Result<Vec<Lane>, JournalError> {
        FIRING.lanes(self, until)
    }

    /// A lane's triggers that are to fire up to `until`, in order of time, at most `limit`.
    pub fn triggers_due(
        &self,
        lane: &Lane,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<(Timestamp, String)>, JournalError> {
        let due = FIRING.of_lane(self, lane, None, until, limit)?;
        Ok(due.into_iter().filter_map(|(at, name)| Some((at, String::from_utf8(name).ok()?))).collect())
    }

    /// Begins with an event, or finds that it has begun before. From here on, for 24 hours, another event with this id is
    /// refused, whatever becomes of the host.
    pub async fn begin_event(
        &self,
        tenant: &TenantId,
        id: &Digest,
        fingerprint: Digest,
        now: Timestamp,
    ) -> Result<Begun, JournalError> {
        let key = keys::content(tenant, id);
        self.write(move |transaction| {
            let mut table = transaction.open_table(EVENTS).map_err(storage("open the events"))?;
            if let Some(event) = sent_event(&table, &key, now)? {
                return match event.answer {
                    _ if event.fingerprint != fingerprint => Err(JournalError::IdempotencyMismatch),
                    Some(answer) => Ok(Begun::Answered(answer)),
                    None => Ok(Begun::Now),
                };
            }
            let event = SentEvent { at: now, fingerprint, answer: None };
            table.insert(key.as_slice(), to_json(&event, "an event")?.as_slice()).map_err(storage("write an event"))?;
            let mut by_time = transaction.open_table(EVENTS_BY_TIME).map_err(storage("open the events"))?;
            let timed = [now.as_millis().to_be_bytes().as_slice(), &key].concat();
            by_time.insert(timed.as_slice(), [].as_slice()).map_err(storage("write an event"))?;
            Ok(Begun::Now)
        })
        .await
    }

    /// Writes down what became of an event that has begun. Returns the answer that its repetitions get: that of whoever
    /// was first.
    pub async fn end_event(
        &self,
        tenant: &TenantId,
        id: &Digest,
        answer: Box<RawValue>,
        now: Timestamp,
    ) -> Result<Box<RawValue>, JournalError> {
        let key = keys::content(tenant, id);
        self.write(move |transaction| {
            let mut table = transaction.open_table(EVENTS).map_err(storage("open the events"))?;
            // One that took a day to end is forgotten by now.
            let Some(event) = sent_event(&table, &key, now)? else { return Ok(answer) };
            if let Some(first) = event.answer {
                return Ok(first);
            }
            let event = SentEvent { answer: Some(answer.clone()), ..event };
            table.insert(key.as_slice(), to_json(&event, "an event")?.as_slice()).map_err(storage("write an event"))?;
            Ok(answer)
        })
        .await
    }

    /// Forgets events that no longer answer, a bounded number at a time. Returns how many.
    pub async fn delete_old_events(&self, now: Timestamp) -> Result<usize, JournalError> {
        let Some(cutoff) = now.as_millis().checked_sub(IDEMPOTENCY_TTL_MS) else { return Ok(0) };
        self.write(move |transaction| {
            let failed = || storage("forget events");
            let mut by_time = transaction.open_table(EVENTS_BY_TIME).map_err(storage("open the events"))?;
            let mut table = transaction.open_table(EVENTS).map_err(storage("open the events"))?;
            let until = cutoff.to_be_bytes();
            let old: Vec<Vec<u8>> = by_time
                .range(..until.as_slice())
                .map_err(failed())?
                .take(EVENTS_DELETED_MAX)
                .map(|entry| Ok(entry.map_err(storage("forget events"))?.0.value().to_vec()))
                .collect::<Result<_, JournalError>>()?;
            for timed in &old {
                by_time.remove(timed.as_slice()).map_err(failed())?;
                // The id may have been used again since.
                let key = timed.get(8..).unwrap_or_default();
                let stored = table.get(key).map_err(failed())?;
                let stored = stored.and_then(|value| serde_json::from_slice::<SentEvent>(value.value()).ok());
                if stored.is_none_or(|event| event.at.as_millis() < cutoff) {
                    table.remove(key).map_err(failed())?;
                }
            }
            Ok(old.len())
        })
        .await
    }

    /// Sets up a webhook in place of one with the same name, unless there are too many.
    pub async fn put_webhook(
        &self,
        tenant: &TenantId,
        mut record: WebhookRecord,
    ) -> Result<Result<WebhookRecord, TooMany>, JournalError> {
        let tenant = tenant.clone();
        self.write(move |transaction| {
            let key = keys::named(&tenant, &record.name);
            let mut table = transaction.open_table(WEBHOOKS).map_err(storage("open the webhooks"))?;
            let known = table.get(key.as_slice()).map_err(storage("look for a webhook"))?;
            let known =
                known.map(|value| parse::<WebhookRecord>(value.value(), || "a webhook".to_owned())).transpose()?;
            match known {
                Some(known) => {
                    record.created_at = known.created_at;
                    told(transaction, &tenant, &known, false)?;
                }
                None => {
                    let all = keys::of_tenant(&tenant);
                    let all = table.range(all.start.as_slice()..all.end.as_slice());
                    if all.map_err(storage("list webhooks"))?.count() >= WEBHOOKS_MAX {
                        return Ok(Err(TooMany::Webhooks));
                    }
                }
            }
            told(transaction, &tenant, &record, true)?;
            let value = to_json(&record, "a webhook")?;
            table.insert(key.as_slice(), value.as_slice()).map_err(storage("write a webhook"))?;
            Ok(Ok(record))
        })
        .await
    }

    /// A webhook.
    pub fn webhook(&self, tenant: &TenantId, name: &str) -> Result<Option<WebhookRecord>, JournalError> {
        self.one(WEBHOOKS, &keys::named(tenant, name))
    }

    /// A tenant's webhooks, by name.
    pub fn webhooks(&self, tenant: &TenantId) -> Result<Vec<WebhookRecord>, JournalError> {
        self.all(WEBHOOKS, keys::of_tenant(tenant))
    }

    /// Deletes a webhook and what is still owed to it. `false` when there is none.
    pub async fn delete_webhook(&self, tenant: &TenantId, name: &str) -> Result<bool, JournalError> {
        let (key, of) = (keys::named(tenant, name), tenant.clone());
        let found = self.write(move |transaction| {
            let mut table = transaction.open_table(WEBHOOKS).map_err(storage("open the webhooks"))?;
            let known = table.remove(key.as_slice()).map_err(storage("delete a webhook"))?;
            let Some(known) = known else { return Ok(false) };
            if let Ok(known) = serde_json::from_slice::<WebhookRecord>(known.value()) {
                told(transaction, &of, &known, false)?;
            }
            Ok(true)
        });
        if !found.await? {
            return Ok(false);
        }
        // In small writes, with room for others in between. What a crash leaves is dropped when its turn comes.
        loop {
            let (of, name) = (tenant.clone(), name.to_owned());
            let range = keys::starting_with(keys::named(tenant, &name));
            let lane = delivering_lane(tenant, &name);
            let deleted = self.write(move |transaction| {
                let failed = || storage("forget deliveries");
                let mut outbox = transaction.open_table(OUTBOX).map_err(storage("open the outbox"))?;
                let owed: Vec<(Vec<u8>, Option<Timestamp>)> = outbox
                    .range(range.start.as_slice()..range.end.as_slice())
                    .map_err(failed())?
                    .take(DELIVERIES_DELETED_MAX)
                    .map(|entry| {
                        let (key, value) = entry.map_err(storage("forget deliveries"))?;
                        Ok((key.value().to_vec(), next_of(value.value())))
                    })
                    .collect::<Result<_, JournalError>>()?;
                for (key, next) in &owed {
                    outbox.remove(key.as_slice()).map_err(failed())?;
                    if next.is_none() {
                        dead::moved(transaction, &of, &name, key, false)?;
                    }
                    if let Some(run) = key.last_chunk::<16>() {
                        DELIVERING.change(transaction, &lane, run, *next, None)?;
                    }
                }
                dead::forget(transaction, &range.start)?;
                Ok(owed.len())
            });
            if deleted.await? < DELIVERIES_DELETED_MAX {
                return Ok(true);
            }
        }
    }

    /// The lanes that have deliveries to be tried at a time: the name of each is its webhook's.
    pub fn lanes_to_deliver(&self, until: Timestamp) -> Result<Vec<Lane>, JournalError> {
        DELIVERING.lanes(self, until)
    }

    /// A lane's deliveries that are to be tried up to `until`, in order of time, at most `limit`.
    pub fn deliveries_due(
        &self,
        lane: &Lane,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<(Timestamp, RunId)>, JournalError> {
        let due = DELIVERING.of_lane(self, lane, None, until, limit)?;
        let run = |run: Vec<u8>| Some(RunId::from_bytes(run.try_into().ok()?));
        Ok(due.into_iter().filter_map(|(at, id)| Some((at, run(id)?))).collect())
    }

    /// A delivery that has not succeeded.
    pub fn delivery(&self, tenant: &TenantId, webhook: &str, run: &RunId) -> Result<Option<Delivery>, JournalError> {
        self.one(OUTBOX, &outbox_key(tenant, webhook, run))
    }

    /// Deliveries of a webhook that have not succeeded, oldest first, after a run, at most `limit`.
    pub fn deliveries(
        &self,
        tenant: &TenantId,
        webhook: &str,
        after: Option<&RunId>,
        dead: Option<bool>,
        limit: usize,
    ) -> Result<Vec<Delivery>, JournalError> {
        let table = self.reader()?.open_table(OUTBOX).map_err(storage("open the outbox"))?;
        let mut range = keys::starting_with(keys::named(tenant, webhook));
        if let Some(after) = after {
            range.start = [outbox_key(tenant, webhook, after).as_slice(), &[0]].concat();
        }
        let mut found = Vec::new();
        let entries = table.range(range.start.as_slice()..range.end.as_slice()).map_err(storage("list deliveries"))?;
        for entry in entries {
            let (_, value) = entry.map_err(storage("list deliveries"))?;
            let delivery: Delivery = parse(value.value(), || "a delivery".to_owned())?;
            if dead.is_none_or(|dead| dead == delivery.next_at.is_none()) {
                found.push(delivery);
            }
            if found.len() == limit {
                break;
            }
        }
        Ok(found)
    }

    /// Writes down how a delivery stands, unless it was forgotten meanwhile, with its run or its webhook. `before` is when it
    /// was to be tried.
    pub async fn put_delivery(
        &self,
        tenant: &TenantId,
        before: Option<Timestamp>,
        delivery: Delivery,
    ) -> Result<(), JournalError> {
        let tenant = tenant.clone();
        self.write(move |transaction| {
            let key = outbox_key(&tenant, &delivery.webhook, &delivery.run);
            let is_there = {
                let outbox = transaction.open_table(OUTBOX).map_err(storage("open the outbox"))?;
                outbox.get(key.as_slice()).map_err(storage("look for a delivery"))?.is_some()
            };
            if is_there { put_delivery(transaction, &tenant, before, &delivery) } else { Ok(()) }
        })
        .await
    }

    /// Forgets a delivery: it has succeeded, or there is nobody any more to tell.
    pub async fn delete_delivery(
        &self,
        tenant: &TenantId,
        before: Option<Timestamp>,
        webhook: &str,
        run: &RunId,
    ) -> Result<(), JournalError> {
        let (tenant, webhook, run) = (tenant.clone(), webhook.to_owned(), *run);
        self.write(move |transaction| {
            remove_delivery(transaction, &tenant, &webhook, &run)?;
            // What is due may have outlived what it names.
            DELIVERING.change(transaction, &delivering_lane(&tenant, &webhook), run.as_bytes(), before, None)
        })
        .await
    }
}

/// Changes a trigger's mark, and with it the list of what is due.
fn mark<T>(
    transaction: &WriteTransaction,
    tenant: &TenantId,
    name: &str,
    change: impl FnOnce(&mut TriggerMark) -> T,
) -> Result<T, JournalError> {
    let failed = || storage("write a trigger's mark");
    let key = keys::named(tenant, name);
    let mut marks = transaction.open_table(TRIGGER_MARKS).map_err(storage("open the triggers"))?;
    let known = marks.get(key.as_slice()).map_err(failed())?;
    let known = known.map(|value| parse::<TriggerMark>(value.value(), || "a trigger's mark".to_owned())).transpose()?;
    let before = known.unwrap_or_default();
    let mut mark = before.clone();
    let changed = change(&mut mark);
    // A trigger that is deleted has no mark, and gets none.
    if mark != before {
        marks.insert(key.as_slice(), to_json(&mark, "a trigger's mark")?.as_slice()).map_err(failed())?;
        FIRING.change(transaction, &firing_lane(tenant), name.as_bytes(), before.next, mark.next)?;
    }
    Ok(changed)
}

/// Enters a webhook where the writer looks for it, or takes it out.
pub(super) fn told(
    transaction: &WriteTransaction,
    tenant: &TenantId,
    webhook: &WebhookRecord,
    entered: bool,
) -> Result<(), JournalError> {
    let mut table = transaction.open_table(TOLD).map_err(storage("open the webhooks"))?;
    let ends: Vec<&str> = webhook.on.iter().map(|status| status.as_str()).collect();
    let ends = ends.join(" ");
    let workflows: Vec<&str> = match &webhook.workflows {
        None => vec![""],
        Some(workflows) => workflows.iter().map(WorkflowName::as_str).collect(),
    };
    for workflow in workflows {
        let key = indexed(tenant, workflow, &webhook.name);
        let written = if entered {
            table.insert(key.as_slice(), ends.as_bytes()).map(drop)
        } else {
            table.remove(key.as_slice()).map(drop)
        };
        written.map_err(storage("write a webhook"))?;
    }
    Ok(())
}

fn count(
    transaction: &WriteTransaction,
    table: Bytes2Bytes,
    range: std::ops::Range<Vec<u8>>,
) -> Result<usize, JournalError> {
    let table = transaction.open_table(table).map_err(storage("open a table"))?;
    let found = table.range(range.start.as_slice()..range.end.as_slice()).map_err(storage("count entries"))?;
    Ok(found.count())
}

/// An event that still answers.
fn sent_event(table: &Table<'_>, key: &[u8], now: Timestamp) -> Result<Option<SentEvent>, JournalError> {
    let found = table.get(key).map_err(storage("look for an event"))?;
    let found = found.map(|value| parse::<SentEvent>(value.value(), || "an event".to_owned())).transpose()?;
    Ok(found.filter(|event| now.millis_since(event.at) < IDEMPOTENCY_TTL_MS))
}

#[cfg(test)]
mod tests {
    use stepwell_core::Event;

    use super::*;
    use crate::journal::{Batch, Created, IdempotencyKey, Journal};

    const DAY_MS: u64 = 24 * 60 * 60 * 1000;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    fn tenant() -> TenantId {
        "a".parse().unwrap()
    }

    fn trigger(on: TriggerOn) -> TriggerRecord {
        let action = TriggerAction { filter: None, workflow: None, version: None, input: None, signal: None };
        TriggerRecord { name: "t".to_owned(), enabled: true, on, action, created_at: at(1), updated_at: at(1) }
    }

    fn cron() -> TriggerRecord {
        let (schedule, time_zone) = ("* * * * *".to_owned(), "UTC".to_owned());
        trigger(TriggerOn::Cron { schedule, time_zone, missed: Missed::Skip })
    }

    fn summary(status: RunStatus, now: Timestamp) -> RunSummary {
        serde_json::from_value(serde_json::json!({
            "workflow": "w", "version": "0".repeat(64), "status": status, "created_at": now, "ended_at": now, "status_seq": 1,
        }))
        .unwrap()
    }

    /// Creates a run for the time 1,000 of the trigger, at some time.
    async fn start(journal: &RedbJournal, run: u8, now: u64) -> Result<Created, JournalError> {
        let time = TakenTime { trigger: "t".to_owned(), expected: at(1_000), at: at(1_000), next: Some(at(2_000)) };
        let key = RunKey { tenant: tenant(), run: RunId::from_bytes([run; 16]) };
        let batch = Batch {
            at: at(now),
            events: vec![Event::RunStarted { deadline: None }],
            summary: Some(summary(RunStatus::Running, at(now))),
            ..Batch::default()
        };
        let fingerprint = Digest::from_bytes([0; 32]);
        journal.create(&key, batch, Some(IdempotencyKey { key: String::new(), fingerprint, time: Some(time) })).await
    }

    /// The mark was moved after the start, and what kept a crash in between from starting the time again was an idempotency
    /// key, which answers for a day: a host that came back later started it twice.
    #[tokio::test]
    async fn a_time_starts_one_run_even_when_the_host_comes_back_days_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("journal.redb");
        let journal = RedbJournal::open(&file).unwrap();
        journal.put_trigger(&tenant(), cron(), |_| Some(Some(at(1_000)))).await.unwrap().unwrap();
        assert_eq!(start(&journal, 1, 1_000).await.unwrap(), Created::New { superseded: None });
        drop(journal); // all that a crash right after the start leaves is what is on disk

        let journal = RedbJournal::open(&file).unwrap();
        let later = 1_000 + 3 * DAY_MS;
        journal.delete_old_idempotency_keys(at(later)).await.unwrap();
        let mark = journal.trigger_mark(&tenant(), "t").unwrap();
        let run = RunId::from_bytes([1; 16]);
        assert_eq!((mark.next, mark.last, mark.last_run), (Some(at(2_000)), Some(at(1_000)), Some(run)));
        assert!(matches!(start(&journal, 2, later).await, Err(JournalError::TimeTaken)));
        let second = RunKey { tenant: tenant(), run: RunId::from_bytes([2; 16]) };
        assert!(journal.summary(&second).unwrap().is_none() && journal.read(&second, 0, 1).unwrap().is_empty());
        let lane = Lane { tenant: tenant(), name: String::new() };
        let due = journal.triggers_due(&lane, at(later), 10).unwrap();
        assert_eq!(due, [(at(2_000), "t".to_owned())]);
    }

    #[tokio::test]
    async fn a_trigger_that_was_deleted_on_the_way_starts_nothing_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let journal = RedbJournal::open(&dir.path().join("journal.redb")).unwrap();
        journal.put_trigger(&tenant(), cron(), |_| Some(Some(at(1_000)))).await.unwrap().unwrap();
        assert!(journal.delete_trigger(&tenant(), "t").await.unwrap());
        assert!(!journal.delete_trigger(&tenant(), "t").await.unwrap());
        assert!(matches!(start(&journal, 1, 1_000).await, Err(JournalError::TimeTaken)));
        assert!(journal.lanes_to_fire(at(u64::MAX - 1)).unwrap().is_empty());
        let moved = TriggerMark { next: Some(at(5)), ..TriggerMark::default() };
        journal.move_trigger_mark(&tenant(), "t", Some(at(1_000)), moved).await.unwrap();
        assert_eq!(journal.trigger_mark(&tenant(), "t").unwrap(), TriggerMark::default());
    }

    #[tokio::test]
    async fn a_webhook_is_told_of_the_ends_and_workflows_that_it_names_and_no_longer_once_it_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        let journal = RedbJournal::open(&dir.path().join("journal.redb")).unwrap();
        let webhook = |name: &str, workflows: Option<&[&str]>, on: &[RunStatus]| WebhookRecord {
            name: name.to_owned(),
            url: "http://a/".to_owned(),
            secret: "S".to_owned(),
            workflows: workflows.map(|names| names.iter().map(|name| name.parse().unwrap()).collect()),
            on: on.to_vec(),
            created_at: at(1),
            updated_at: at(1),
        };
        let (completed, failed) = (RunStatus::Completed, RunStatus::Failed);
        let other: TenantId = "a-b".parse().unwrap();
        let ends = async |run: u8| {
            let key = RunKey { tenant: tenant(), run: RunId::from_bytes([run; 16]) };
            let value = to_json(&summary(completed, at(7)), "a summary").unwrap();
            journal.write(move |transaction| enqueue(transaction, &key, &value)).await.unwrap();
            let lanes = journal.lanes_to_deliver(at(7)).unwrap().into_iter();
            let due = lanes.filter(|lane| {
                let due = journal.deliveries_due(lane, at(7), 100).unwrap();
                due.contains(&(at(7), RunId::from_bytes([run; 16])))
            });
            due.map(|lane| lane.name).collect::<Vec<_>>()
        };
        assert_eq!(ends(0).await, [""; 0]);
        for record in [
            webhook("all", None, &[completed, failed]),
            webhook("failed", None, &[failed]),
            webhook("other-workflow", Some(&["v", "ww"]), &[completed]),
            webhook("this", Some(&["v", "w"]), &[completed]),
        ] {
            journal.put_webhook(&tenant(), record).await.unwrap().unwrap();
        }
        journal.put_webhook(&other, webhook("others", None, &[completed])).await.unwrap().unwrap();
        assert_eq!(ends(1).await, ["all", "this"]);
        journal.put_webhook(&tenant(), webhook("all", Some(&["v"]), &[completed])).await.unwrap().unwrap();
        journal.put_webhook(&tenant(), webhook("failed", None, &[completed])).await.unwrap().unwrap();
        assert_eq!(ends(2).await, ["failed", "this"]);
        assert!(journal.delete_webhook(&tenant(), "this").await.unwrap());
        assert_eq!(ends(3).await, ["failed"]);
        for number in 0..WEBHOOKS_MAX {
            let put = journal.put_webhook(&tenant(), webhook(&format!("x-{number}"), None, &[failed])).await.unwrap();
            assert_eq!(put.is_ok(), number < WEBHOOKS_MAX - 3, "{number}");
        }
    }

    #[tokio::test]
    async fn an_event_that_has_begun_is_the_only_one_with_its_id_for_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let journal = RedbJournal::open(&dir.path().join("journal.redb")).unwrap();
        let id = Digest::from_bytes([9; 32]);
        let begin = |fingerprint: u8, now: u64| {
            let (journal, tenant) = (&journal, tenant());
            async move { journal.begin_event(&tenant, &id, Digest::from_bytes([fingerprint; 32]), at(now)).await }
        };
        let answer = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        assert!(matches!(begin(1, 10).await, Ok(Begun::Now)));
        assert!(matches!(begin(2, 11).await, Err(JournalError::IdempotencyMismatch)), "though nothing came of it yet");
        assert!(matches!(begin(1, 12).await, Ok(Begun::Now)), "it goes on");
        assert_eq!(journal.end_event(&tenant(), &id, answer("1"), at(13)).await.unwrap().get(), "1");
        assert_eq!(
            journal.end_event(&tenant(), &id, answer("2"), at(14)).await.unwrap().get(),
            "1",
            "the first counts"
        );
        assert!(matches!(begin(1, 15).await, Ok(Begun::Answered(answer)) if answer.get() == "1"));
        assert!(matches!(begin(2, 16).await, Err(JournalError::IdempotencyMismatch)));

        // After a day the id may be used again, and what is swept then is the first use and not the second.
        assert!(matches!(begin(2, 10 + DAY_MS).await, Ok(Begun::Now)));
        assert_eq!(journal.delete_old_events(at(11 + DAY_MS)).await.unwrap(), 1);
        assert!(matches!(begin(1, 12 + DAY_MS).await, Err(JournalError::IdempotencyMismatch)));
        assert_eq!(journal.delete_old_events(at(11 + 2 * DAY_MS)).await.unwrap(), 1);
        assert!(matches!(begin(1, 12 + 2 * DAY_MS).await, Ok(Begun::Now)));
    }
}
