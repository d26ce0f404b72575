//! The stored form of one append: a version byte and JSON. Described in `docs/journal.md`.

use serde::{Deserialize, Serialize};
use stepwell_core::{Event, Recorded, Seq, Timestamp};

use super::{Batch, JournalError};

/// The version of a record that this program writes. It reads this one and all before it.
const RECORD_VERSION: u8 = 1;

#[derive(Serialize)]
struct Written<'a> {
    at: Timestamp,
    events: &'a [Event],
}

#[derive(Deserialize)]
struct Read {
    at: Timestamp,
    events: Vec<Event>,
}

/// The bytes of a record.
pub(super) fn encode(batch: &Batch) -> Result<Vec<u8>, JournalError> {
    let mut bytes = Vec::with_capacity(256);
    bytes.push(RECORD_VERSION);
    serde_json::to_writer(&mut bytes, &Written { at: batch.at, events: &batch.events })
        .map_err(|error| JournalError::Damaged { what: "a batch".to_owned(), reason: error.to_string() })?;
    Ok(bytes)
}

/// The events of the record whose last event has the number `last_seq`.
pub(super) fn decode(bytes: &[u8], last_seq: Seq) -> Result<Vec<Recorded>, JournalError> {
    let damaged = |reason| JournalError::Damaged { what: format!("the record that ends at event {last_seq}"), reason };
    let (version, json) = bytes.split_first().ok_or_else(|| damaged("it is empty".to_owned()))?;
    if *version != RECORD_VERSION {
        return Err(damaged(format!("it has version {version}")));
    }
    let Read { at, events } = serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
    let before = last_seq.checked_sub(events.len() as u64);
    let before = before.ok_or_else(|| damaged(format!("it holds {} events", events.len())))?;
    Ok((before + 1..).zip(events).map(|(seq, event)| Recorded { seq, at, event }).collect())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use stepwell_core::{Failure, FailureKind, Json, NodeId, Payload, StepId};

    use super::*;

    fn batch(events: Vec<Event>) -> Batch {
        Batch { at: Timestamp::from_millis(1_700_000_000_000), events, contents: vec![], summary: None, channel: None }
    }

    /// The stored format is a promise: when this changes, records already written must still read.
    #[test]
    fn a_record_is_written_as_the_format_page_says() {
        let step: StepId = "a".parse::<NodeId>().unwrap().into();
        let output = Payload::Inline(Json::parse(r#"{"n": 1.50}"#.to_owned()).unwrap());
        let events = vec![
            Event::StepCompleted {
                step: step.clone(),
                attempt: 1,
                output,
                labels: vec!["yes".to_owned()],
                fan_out: None,
                again: false,
                fuel_used: 7,
            },
            Event::StepSkipped { step: step.clone() },
            Event::StepFailed {
                step,
                attempt: 2,
                failure: Failure::platform(FailureKind::Permanent, "trap", "it trapped"),
                will_retry: false,
                next_attempt_at: None,
                fuel_used: 9,
            },
            Event::RunStarted {},
        ];
        let bytes = encode(&batch(events.clone())).unwrap();
        expect![[r#"
            {"at":1700000000000,"events":[{"step.completed":{"step":{"node":"a"},"attempt":1,"output":{"inline":{"n": 1.50}},"labels":["yes"],"fuel_used":7}},{"step.skipped":{"step":{"node":"a"}}},{"step.failed":{"step":{"node":"a"},"attempt":2,"failure":{"kind":"permanent","source":"platform","code":"trap","message":"it trapped"},"will_retry":false,"fuel_used":9}},{"run.started":{}}]}"#]]
        .assert_eq(std::str::from_utf8(&bytes[1..]).unwrap());
        let read = decode(&bytes, 12).unwrap();
        assert_eq!(read.iter().map(|r| r.seq).collect::<Vec<_>>(), [9, 10, 11, 12]);
        assert_eq!(read.into_iter().map(|r| r.event).collect::<Vec<_>>(), events);
    }

    #[test]
    fn damage_is_told_and_not_guessed_at() {
        let good = encode(&batch(vec![Event::RunStarted {}, Event::RunResumed {}])).unwrap();
        assert!(decode(&[], 1).is_err());
        assert!(decode(&good, 1).is_err(), "two events cannot end at event 1");
        assert!(decode(&[&[2], &good[1..]].concat(), 2).is_err());
        for cut in 1..good.len() {
            assert!(decode(&good[..cut], 2).is_err(), "cut at {cut}");
        }
    }
}
