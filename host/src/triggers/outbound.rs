//! Telling others that a run has ended.
//!
//! Owns: what a delivery says, how it is signed, when it is tried again and when it is given up.
//! Does not: write the outbox's entries; the journal does, in the transaction of the run's end.
//! Keeps: an entry leaves the outbox when the receiver has said yes, or with its webhook. Until then it is tried, or stands
//! among the dead for somebody to look at. A receiver may be told twice, with the same delivery id.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use stepwell_core::{Event, Payload, RunId, RunKey, TenantId, Timestamp};
use stepwell_outbound::{HttpError, HttpRequest};

use super::work::{Owed, Width};
use super::{Triggers, signature};
use crate::clock::{self, rfc3339};
use crate::driver::read_payload;
use crate::journal::due::Lane;
use crate::journal::triggers::Delivery;
use crate::journal::{Journal, JournalError, error_chain};

/// For one attempt. A receiver should write down what it is told and work on it later.
const TIMEOUT_MS: u32 = 15_000;
/// Waits between attempts: eight attempts within a day, the first soon, because most trouble is a restart.
const WAITS_MS: [u64; 7] = [5_000, 60_000, 300_000, 1_800_000, 7_200_000, 21_600_000, 54_000_000];
/// The share of a wait that is added at random, so that receivers that were down are not told everything at once.
const JITTER: f64 = 0.1;
/// Bytes of an output that are part of a delivery; of a larger one it says so, and the receiver asks for the run.
const OUTPUT_BYTES_MAX: u64 = 256 << 10;
/// Bytes of what is kept of a receiver's answer.
const ANSWER_BYTES_MAX: usize = 500;
/// After trouble of our own.
const PAUSE: Duration = Duration::from_secs(1);

/// Deliveries that are to be tried.
#[derive(Clone)]
pub(super) struct Delivering(pub(super) Triggers);

impl Owed for Delivering {
    type Key = RunId;
    /// They wait for receivers most of the time; a tenant with a slow one holds up nobody else.
    const WIDTH: Width = Width { all: 64, per_tenant: 8 };

    fn lanes(&self, now: Timestamp) -> Result<Vec<Lane>, JournalError> {
        self.0.journal.lanes_to_deliver(now)
    }

    fn due(&self, lane: &Lane, now: Timestamp, limit: usize) -> Result<Vec<(Timestamp, RunId)>, JournalError> {
        self.0.journal.deliveries_due(lane, now, limit)
    }

    async fn carry_out(&self, Lane { tenant, name: webhook }: Lane, at: Timestamp, run: RunId) {
        let run = RunKey { tenant, run };
        if let Err(error) = self.0.deliver(&run, &webhook, at).await {
            tracing::error!(%run, webhook, error = error_chain(&error), "a delivery could not be made");
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// How an attempt ended that did not succeed.
struct Missed {
    code: &'static str,
    message: String,
    /// Whether there is no use in trying again.
    for_good: bool,
}

impl Triggers {
    /// Makes one attempt, and writes down what came of it.
    async fn deliver(&self, run: &RunKey, webhook: &str, due: Timestamp) -> Result<(), JournalError> {
        let RunKey { tenant, run: id } = run;
        let delivery = self.journal.delivery(tenant, webhook, id)?;
        let record = self.journal.webhook(tenant, webhook)?;
        let (Some(mut delivery), Some(record)) = (delivery, record) else {
            return self.journal.delete_delivery(tenant, Some(due), webhook, id).await;
        };
        let Some(body) = self.body(run, &delivery)? else {
            // The run is deleted: nobody could be told anything about it.
            return self.journal.delete_delivery(tenant, Some(due), webhook, id).await;
        };
        delivery.attempts += 1;
        let missed = match self.send(tenant, &record.url, &record.secret, &delivery, body).await? {
            Ok(()) => return self.journal.delete_delivery(tenant, Some(due), webhook, id).await,
            Err(missed) => missed,
        };
        tracing::info!(%run, webhook, attempt = delivery.attempts, code = missed.code, "a delivery was not taken");
        let wait = WAITS_MS.get(delivery.attempts as usize - 1).filter(|_| !missed.for_good);
        delivery.next_at = wait.map(|wait| {
            let jitter = f64::from(clock::dice().0 as u32) / f64::from(u32::MAX) * JITTER;
            clock::now().plus_millis(wait + (*wait as f64 * jitter) as u64)
        });
        delivery.problem = Some((missed.code.to_owned(), missed.message));
        self.journal.put_delivery(tenant, Some(due), delivery).await
    }

    async fn send(
        &self,
        tenant: &TenantId,
        url: &str,
        secret: &str,
        delivery: &Delivery,
        body: Bytes,
    ) -> Result<Result<(), Missed>, JournalError> {
        let Some(secret_value) = self.secret(tenant, secret)? else {
            let message = format!("there is no secret `{secret}`");
            return Ok(Err(Missed { code: "unknown_secret", message, for_good: false }));
        };
        let header = |name: &str, value: String| (name.to_owned(), value);
        let request = HttpRequest {
            method: "POST".to_owned(),
            url: url.to_owned(),
            headers: vec![
                header("content-type", "application/json".to_owned()),
                header("stepwell-delivery", delivery.id()),
                header("stepwell-signature", signature::sign(&secret_value, clock::now(), &body)),
            ],
            body: Some(body),
            timeout_ms: TIMEOUT_MS,
        };
        let missed = |code, message, for_good| Err(Missed { code, message, for_good });
        Ok(match self.outbound.tell(request, ANSWER_BYTES_MAX).await {
            Ok(answer) if (200..300).contains(&answer.status) => Ok(()),
            Ok(answer) => {
                let message = format!("HTTP {}: {}", answer.status, String::from_utf8_lossy(&answer.beginning));
                // Gone: the receiver says that nobody will ever be there again.
                missed("bad_status", message, answer.status == 410)
            }
            Err(error) => {
                let (code, for_good) = match &error {
                    HttpError::Denied(_) => ("denied", true),
                    HttpError::InvalidRequest(_) => ("invalid_request", true),
                    HttpError::Timeout => ("timeout", false),
                    HttpError::Connection(_) => ("connection", false),
                    // Never: nothing is read that could be too large.
                    HttpError::TooLarge(_) => ("too_large", false),
                };
                missed(code, error.to_string(), for_good)
            }
        })
    }

    /// What a delivery says. `None` when the run is not there any more.
    fn body(&self, run: &RunKey, delivery: &Delivery) -> Result<Option<Bytes>, JournalError> {
        let Some(summary) = self.journal.summary(run)? else { return Ok(None) };
        let last = self.journal.read(run, summary.status_seq.saturating_sub(1), 1)?.into_iter().next();
        let mut data = json!({
            "id": run.run,
            "workflow": summary.workflow,
            "version": summary.version,
            "status": delivery.status.as_str(),
            "created_at": rfc3339(summary.created_at),
            "started_at": summary.started_at.map(rfc3339),
            "ended_at": summary.ended_at.map(rfc3339),
            "correlation": summary.correlation,
        });
        let mut whole_output = None;
        match last.map(|recorded| recorded.event) {
            Some(Event::RunCompleted { output }) => {
                let size = match &output {
                    Payload::Inline(json) => json.len_bytes() as u64,
                    Payload::Stored(content) => content.size_bytes,
                };
                let json = (size <= OUTPUT_BYTES_MAX).then(|| read_payload(&*self.journal, run, output).ok()).flatten();
                if json.is_none() {
                    set(&mut data, "output_omitted", Value::Bool(true));
                }
                whole_output = json;
            }
            Some(Event::RunFailed { step, failure }) => {
                set(&mut data, "failed_node", json!(step.map(|step| step.node)));
                set(
                    &mut data,
                    "failure",
                    json!({ "kind": failure.kind, "source": failure.source, "code": failure.code, "message": failure.message }),
                );
            }
            _ => {}
        }
        let head = json!({
            "id": delivery.id(),
            "type": format!("run.{}", delivery.status.as_str()),
            "attempt": delivery.attempts + 1,
        });
        // The output as it is written in the journal: numbers keep their digits.
        let mut data = data.to_string();
        if let Some(output) = whole_output {
            data.pop();
            data = format!(r#"{data},"output":{}}}"#, output.as_str());
        }
        let mut body = head.to_string();
        body.pop();
        Ok(Some(Bytes::from(format!(r#"{body},"data":{data}}}"#))))
    }
}

fn set(data: &mut Value, name: &str, value: Value) {
    if let Some(fields) = data.as_object_mut() {
        fields.insert(name.to_owned(), value);
    }
}
