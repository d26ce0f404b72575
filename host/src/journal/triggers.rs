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

use super::redb::{RedbJournal, parse, storage, to_json};
use super::writer::Bytes2Bytes;
use super::{IDEMPOTENCY_TTL_MS, JournalError, RunSummary, keys};

/// (tenant, name) → a trigger's record.
const TRIGGERS: Bytes2Bytes = TableDefinition::new("triggers");
/// (tenant, name) → how far a trigger has come.
const TRIGGER_MARKS: Bytes2Bytes = TableDefinition::new("trigger_marks");
/// (time, tenant, name) of each trigger that is to fire.
const TRIGGERS_DUE: Bytes2Bytes = TableDefinition::new("triggers_due");
/// (tenant, SHA-256 of the id) → what became of an event that was sent.
const EVENTS: Bytes2Bytes = TableDefinition::new("sent_events");
/// (time, key of the former), oldest first.
const EVENTS_BY_TIME: Bytes2Bytes = TableDefinition::new("sent_events_by_time");
/// (tenant, name) → a webhook's record.
const WEBHOOKS: Bytes2Bytes = TableDefinition::new("webhooks");
/// (tenant, webhook, run) → a delivery that has not succeeded.
const OUTBOX: Bytes2Bytes = TableDefinition::new("outbox");
/// (time, tenant, webhook, run) of each delivery that is to be tried.
const OUTBOX_DUE: Bytes2Bytes = TableDefinition::new("outbox_due");

/// All of them.
pub(super) const TABLES: &[Bytes2Bytes] =
    &[TRIGGERS, TRIGGER_MARKS, TRIGGERS_DUE, EVENTS, EVENTS_BY_TIME, WEBHOOKS, OUTBOX, OUTBOX_DUE];

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
    /// The answer.
    pub answer: Box<RawValue>,
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

fn due_key(at: Timestamp, key: &[u8]) -> Vec<u8> {
    [at.as_millis().to_be_bytes().as_slice(), key].concat()
}

fn outbox_key(tenant: &TenantId, webhook: &str, run: &RunId) -> Vec<u8> {
    [keys::named(tenant, webhook).as_slice(), run.as_bytes()].concat()
}

/// The tenant that a key begins with.
fn tenant_of(key: &[u8]) -> Option<TenantId> {
    let end = key.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(key.get(..end)?).ok()?.parse().ok()
}

/// Writes down what is owed for the end of a run. Called by the writer, within the transaction of that end.
pub(super) fn enqueue(transaction: &WriteTransaction, key: &RunKey, summary: &[u8]) -> Result<(), JournalError> {
    let webhooks = transaction.open_table(WEBHOOKS).map_err(storage("open the webhooks"))?;
    let range = keys::of_tenant(&key.tenant);
    let entries = webhooks.range(range.start.as_slice()..range.end.as_slice()).map_err(storage("list webhooks"))?;
    let mut ended: Option<RunSummary> = None;
    for entry in entries {
        let (_, value) = entry.map_err(storage("list webhooks"))?;
        // One bad entry must not stop the journal.
        let Ok(webhook) = serde_json::from_slice::<WebhookRecord>(value.value()) else { continue };
        let summary = match &ended {
            Some(summary) => summary,
            None => ended.insert(parse(summary, || format!("the summary of {key}"))?),
        };
        let is_meant = webhook.workflows.as_ref().is_none_or(|workflows| workflows.contains(&summary.workflow));
        if !is_meant || !webhook.on.contains(&summary.status) {
            continue;
        }
        let at = summary.ended_at.unwrap_or_default();
        let (webhook, run, status) = (webhook.name, key.run, summary.status);
        let delivery = Delivery { webhook, run, status, created_at: at, attempts: 0, next_at: Some(at), problem: None };
        put_delivery(transaction, &key.tenant, None, &delivery)?;
    }
    Ok(())
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
    let mut outbox = transaction.open_table(OUTBOX).map_err(storage("open the outbox"))?;
    outbox.insert(key.as_slice(), value.as_slice()).map_err(failed())?;
    let mut due = transaction.open_table(OUTBOX_DUE).map_err(storage("open the outbox"))?;
    if let Some(before) = before {
        due.remove(due_key(before, &key).as_slice()).map_err(failed())?;
    }
    if let Some(next) = delivery.next_at {
        due.insert(due_key(next, &key).as_slice(), [].as_slice()).map_err(failed())?;
    }
    Ok(())
}

impl RedbJournal {
    /// Sets up a trigger in place of one with the same name. `next` is when it fires first; with `None` for the outer
    /// option its mark stays as it is.
    pub async fn put_trigger(
        &self,
        tenant: &TenantId,
        mut record: TriggerRecord,
        next: Option<Option<Timestamp>>,
    ) -> Result<TriggerRecord, JournalError> {
        let key = keys::named(tenant, &record.name);
        self.write(move |transaction| {
            let mut table = transaction.open_table(TRIGGERS).map_err(storage("open the triggers"))?;
            let known = table.get(key.as_slice()).map_err(storage("look for a trigger"))?;
            let known =
                known.map(|value| parse::<TriggerRecord>(value.value(), || "a trigger".to_owned())).transpose()?;
            if let Some(known) = known {
                record.created_at = known.created_at;
            }
            let value = to_json(&record, "a trigger")?;
            table.insert(key.as_slice(), value.as_slice()).map_err(storage("write a trigger"))?;
            if let Some(next) = next {
                mark(transaction, &key, |mark| mark.next = next)?;
            }
            Ok(record)
        })
        .await
    }

    /// A trigger.
    pub fn trigger(&self, tenant: &TenantId, name: &str) -> Result<Option<TriggerRecord>, JournalError> {
        self.one(TRIGGERS, &keys::named(tenant, name))
    }

    /// A tenant's triggers, by name.
    pub fn triggers(&self, tenant: &TenantId) -> Result<Vec<TriggerRecord>, JournalError> {
        self.all(TRIGGERS, keys::of_tenant(tenant))
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
        let key = keys::named(tenant, name);
        self.write(move |transaction| {
            mark(transaction, &key, |mark| {
                if mark.next == expected {
                    *mark = moved;
                }
            })
        })
        .await
    }

    /// Deletes a trigger. `false` when there is none.
    pub async fn delete_trigger(&self, tenant: &TenantId, name: &str) -> Result<bool, JournalError> {
        let key = keys::named(tenant, name);
        self.write(move |transaction| {
            let found = {
                let mut table = transaction.open_table(TRIGGERS).map_err(storage("open the triggers"))?;
                table.remove(key.as_slice()).map_err(storage("delete a trigger"))?.is_some()
            };
            mark(transaction, &key, |mark| mark.next = None)?;
            let mut marks = transaction.open_table(TRIGGER_MARKS).map_err(storage("open the triggers"))?;
            marks.remove(key.as_slice()).map_err(storage("delete a trigger"))?;
            Ok(found)
        })
        .await
    }

    /// Triggers that are to fire up to `until`, in order of time, at most `limit`.
    pub fn triggers_due(
        &self,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<(Timestamp, TenantId, String)>, JournalError> {
        let table = self.reader()?.open_table(TRIGGERS_DUE).map_err(storage("open the triggers"))?;
        let mut found = Vec::new();
        let end = due_key(until.plus_millis(1), &[]);
        for entry in table.range(..end.as_slice()).map_err(storage("list triggers"))?.take(limit) {
            let (key, _) = entry.map_err(storage("list triggers"))?;
            found.extend(parse_due(key.value()));
        }
        Ok(found)
    }

    /// What became of an event with this id, if it came less than a day ago.
    pub fn sent_event(
        &self,
        tenant: &TenantId,
        id: &Digest,
        now: Timestamp,
    ) -> Result<Option<SentEvent>, JournalError> {
        let found: Option<SentEvent> = self.one(EVENTS, &keys::content(tenant, id))?;
        Ok(found.filter(|event| now.millis_since(event.at) < IDEMPOTENCY_TTL_MS))
    }

    /// Writes down what became of an event.
    pub async fn put_sent_event(&self, tenant: &TenantId, id: &Digest, event: &SentEvent) -> Result<(), JournalError> {
        let (key, value) = (keys::content(tenant, id), to_json(event, "an event")?);
        let timed = due_key(event.at, &key);
        self.write(move |transaction| {
            let mut table = transaction.open_table(EVENTS).map_err(storage("open the events"))?;
            table.insert(key.as_slice(), value.as_slice()).map_err(storage("write an event"))?;
            let mut by_time = transaction.open_table(EVENTS_BY_TIME).map_err(storage("open the events"))?;
            by_time.insert(timed.as_slice(), [].as_slice()).map_err(storage("write an event"))?;
            Ok(())
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
                table.remove(timed.get(8..).unwrap_or_default()).map_err(failed())?;
            }
            Ok(old.len())
        })
        .await
    }

    /// Sets up a webhook in place of one with the same name.
    pub async fn put_webhook(
        &self,
        tenant: &TenantId,
        mut record: WebhookRecord,
    ) -> Result<WebhookRecord, JournalError> {
        let key = keys::named(tenant, &record.name);
        self.write(move |transaction| {
            let mut table = transaction.open_table(WEBHOOKS).map_err(storage("open the webhooks"))?;
            let known = table.get(key.as_slice()).map_err(storage("look for a webhook"))?;
            let known =
                known.map(|value| parse::<WebhookRecord>(value.value(), || "a webhook".to_owned())).transpose()?;
            if let Some(known) = known {
                record.created_at = known.created_at;
            }
            let value = to_json(&record, "a webhook")?;
            table.insert(key.as_slice(), value.as_slice()).map_err(storage("write a webhook"))?;
            Ok(record)
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
        if !self.delete(WEBHOOKS, keys::named(tenant, name)).await? {
            return Ok(false);
        }
        // In small writes, with room for others in between. What a crash leaves is dropped when its turn comes.
        loop {
            let range = keys::starting_with(keys::named(tenant, name));
            let deleted = self.write(move |transaction| {
                let failed = || storage("forget deliveries");
                let mut outbox = transaction.open_table(OUTBOX).map_err(storage("open the outbox"))?;
                let mut due = transaction.open_table(OUTBOX_DUE).map_err(storage("open the outbox"))?;
                let owed: Vec<(Vec<u8>, Vec<u8>)> = outbox
                    .range(range.start.as_slice()..range.end.as_slice())
                    .map_err(failed())?
                    .take(DELIVERIES_DELETED_MAX)
                    .map(|entry| {
                        let (key, value) = entry.map_err(storage("forget deliveries"))?;
                        Ok((key.value().to_vec(), value.value().to_vec()))
                    })
                    .collect::<Result<_, JournalError>>()?;
                for (key, value) in &owed {
                    outbox.remove(key.as_slice()).map_err(failed())?;
                    let next = serde_json::from_slice::<Delivery>(value).ok().and_then(|delivery| delivery.next_at);
                    if let Some(next) = next {
                        due.remove(due_key(next, key).as_slice()).map_err(failed())?;
                    }
                }
                Ok(owed.len())
            });
            if deleted.await? < DELIVERIES_DELETED_MAX {
                return Ok(true);
            }
        }
    }

    /// Deliveries that are to be tried up to `until`, in order of time, at most `limit`.
    pub fn deliveries_due(
        &self,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<(Timestamp, RunKey, String)>, JournalError> {
        let table = self.reader()?.open_table(OUTBOX_DUE).map_err(storage("open the outbox"))?;
        let mut found = Vec::new();
        let end = due_key(until.plus_millis(1), &[]);
        for entry in table.range(..end.as_slice()).map_err(storage("list deliveries"))?.take(limit) {
            let (key, _) = entry.map_err(storage("list deliveries"))?;
            found.extend(parse_delivery(key.value()));
        }
        Ok(found)
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

    /// Writes down how a delivery stands. `before` is when it was to be tried.
    pub async fn put_delivery(
        &self,
        tenant: &TenantId,
        before: Option<Timestamp>,
        delivery: Delivery,
    ) -> Result<(), JournalError> {
        let tenant = tenant.clone();
        self.write(move |transaction| put_delivery(transaction, &tenant, before, &delivery)).await
    }

    /// Forgets a delivery: it has succeeded, or there is nobody any more to tell.
    pub async fn delete_delivery(
        &self,
        tenant: &TenantId,
        before: Option<Timestamp>,
        webhook: &str,
        run: &RunId,
    ) -> Result<(), JournalError> {
        let key = outbox_key(tenant, webhook, run);
        self.write(move |transaction| {
            let failed = || storage("forget a delivery");
            let mut outbox = transaction.open_table(OUTBOX).map_err(storage("open the outbox"))?;
            outbox.remove(key.as_slice()).map_err(failed())?;
            let mut due = transaction.open_table(OUTBOX_DUE).map_err(storage("open the outbox"))?;
            if let Some(before) = before {
                due.remove(due_key(before, &key).as_slice()).map_err(failed())?;
            }
            Ok(())
        })
        .await
    }
}

/// Changes a trigger's mark, and with it the list of what is due.
fn mark(transaction: &WriteTransaction, key: &[u8], change: impl FnOnce(&mut TriggerMark)) -> Result<(), JournalError> {
    let failed = || storage("write a trigger's mark");
    let mut marks = transaction.open_table(TRIGGER_MARKS).map_err(storage("open the triggers"))?;
    let known = marks.get(key).map_err(failed())?;
    let known = known.map(|value| parse::<TriggerMark>(value.value(), || "a trigger's mark".to_owned())).transpose()?;
    let mut mark = known.unwrap_or_default();
    let before = mark.next;
    change(&mut mark);
    marks.insert(key, to_json(&mark, "a trigger's mark")?.as_slice()).map_err(failed())?;
    let mut due = transaction.open_table(TRIGGERS_DUE).map_err(storage("open the triggers"))?;
    if let Some(before) = before {
        due.remove(due_key(before, key).as_slice()).map_err(failed())?;
    }
    if let Some(next) = mark.next {
        due.insert(due_key(next, key).as_slice(), [].as_slice()).map_err(failed())?;
    }
    Ok(())
}

fn parse_due(key: &[u8]) -> Option<(Timestamp, TenantId, String)> {
    let (at, key) = key.split_first_chunk::<8>()?;
    let tenant = tenant_of(key)?;
    let name = key.get(tenant.as_str().len() + 1..key.len().checked_sub(1)?)?;
    Some((Timestamp::from_millis(u64::from_be_bytes(*at)), tenant, String::from_utf8(name.to_vec()).ok()?))
}

fn parse_delivery(key: &[u8]) -> Option<(Timestamp, RunKey, String)> {
    let (rest, run) = key.split_last_chunk::<16>()?;
    let (at, tenant, webhook) = parse_due(rest)?;
    Some((at, RunKey { tenant, run: RunId::from_bytes(*run) }, webhook))
}
