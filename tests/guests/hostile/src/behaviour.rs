//! What can go wrong in a step, or be tried by one.

use std::collections::BTreeMap;
use std::hint::black_box;

use serde::Deserialize;
use serde_json::json;

use crate::bindings::exports::stepwell::workflow::steps::{Failure, Outcome};
use crate::bindings::stepwell::workflow::artifacts::{self, ArtifactError};
use crate::bindings::stepwell::workflow::log::{self, Level};
use crate::bindings::stepwell::workflow::publish::{PublishError, publish};
use crate::bindings::stepwell::workflow::random;
use crate::bindings::stepwell::workflow::types::{FailureKind, Routed};
use crate::{permanent, secret};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// How often a flood tries when the input has no `n`: more often than its fuel lasts.
const FLOOD: u64 = 10_000_000;

/// Names of the input's `behaviour`, in snake case. Those that survive say what they return.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Behaviour {
    /// Never ends: fuel runs out first.
    Loop,
    /// Never ends, on a node with more fuel than time.
    SlowLoop,
    /// A busy loop of `n` rounds. Returns a checksum.
    Cpu,
    /// Allocates until it dies.
    Alloc,
    /// Grows its memory until it gets no more. Returns the number of pages that it got.
    MemoryGrow,
    /// Recurses without end.
    Recurse,
    /// Panics.
    Trap,
    /// Executes `unreachable`.
    Unreachable,

    /// An output that stops in the middle.
    NotJson,
    /// A string of 100 MB as output.
    HugeOutput,
    /// Valid JSON of 5 MiB, above what an output may have.
    BigOutput,
    /// 100,000 arrays inside each other.
    DeepJson,
    /// Returns a string that holds the character U+0000.
    Nul,
    /// A label that no edge carries.
    UnknownRoute,

    /// Publishes `n` updates, or ten million. Returns how many were taken, and the others by error.
    PublishFlood,
    /// Writes `n` log lines, or ten million. Returns that number.
    LogFlood,
    /// Returns the error's name.
    PublishUnknownTopic,
    /// Publishes 70 KiB on a topic that there is not, `n` times. Returns how many were refused for it.
    PublishUnknownTopicLarge,
    /// Publishes 1 MiB. Returns the error's name.
    PublishTooLarge,
    /// Needs more input than it has memory. Never runs.
    LargeInputs,
    /// Publishes what is not JSON, in several ways. Returns how many were refused, and of how many.
    PublishBadJson,
    /// Publishes three updates and panics.
    PublishThenTrap,

    /// Stores files under names that are none. Returns how many were refused, and of how many.
    ArtifactBadName,
    /// Stores `n` small files, or a thousand. Returns how many were taken, and the others by error.
    ArtifactFlood,
    /// Stores 20 MiB. Returns the error's name.
    ArtifactTooLarge,

    /// Asks for 4 GiB of randomness. Returns the number of bytes that it got.
    Random,

    /// Fails for good, with details.
    FailPermanent,
    /// Fails every attempt in a way that may pass.
    FailRetryable,
    /// Fails like `FailRetryable` until attempt `n`. Returns the attempt.
    FailUntil,
    /// Fails with a code that is none and a message of 100 KB.
    BadCode,
    /// Fails with details that are not JSON.
    BadDetails,

    /// Leaves a pattern in heap, stack and static memory. Returns what its own search finds.
    SecretWrite,
    /// Searches all memory for the pattern. Returns what it found.
    SecretRead,
}

impl Behaviour {
    /// The node that is fit for it.
    pub(crate) fn branch(self) -> &'static str {
        match self {
            Self::SlowLoop => "slow",
            Self::HugeOutput => "large",
            Self::LargeInputs => "hungry",
            Self::FailRetryable | Self::FailUntil => "retry",
            _ => "act",
        }
    }

    pub(crate) fn act(self, attempt: u32, n: u64) -> Result<Outcome, Failure> {
        match self {
            Self::Loop | Self::SlowLoop => loop {
                black_box(());
            },
            Self::Cpu => {
                let sum = (0..n).fold(0_u64, |sum, round| black_box(sum.rotate_left(5) ^ round));
                output(json!(sum))
            }
            Self::Alloc => {
                let mut kept = Vec::new();
                loop {
                    kept.push(black_box(vec![1_u8; 256 * KIB]));
                }
            }
            Self::MemoryGrow => {
                let mut pages = 0_u32;
                while core::arch::wasm32::memory_grow::<0>(1) != usize::MAX {
                    pages += 1;
                }
                output(json!(pages))
            }
            Self::Recurse => output(json!(recurse(0))),
            Self::Trap => panic!("asked to panic"),
            Self::Unreachable => core::arch::wasm32::unreachable(),

            Self::NotJson => Ok(Outcome::Output(r#"{"a":"#.to_owned())),
            Self::HugeOutput => Ok(Outcome::Output(string_of(100_000_000))),
            Self::BigOutput => Ok(Outcome::Output(string_of(5 * MIB))),
            Self::DeepJson => {
                let depth = 100_000;
                Ok(Outcome::Output("[".repeat(depth) + &"]".repeat(depth)))
            }
            Self::Nul => output(json!("before\u{0}after")),
            Self::UnknownRoute => {
                let labels = vec!["nowhere".to_owned()];
                Ok(Outcome::Route(Routed { output: "null".to_owned(), labels }))
            }

            Self::PublishFlood => {
                output(count((0..n_or(n, FLOOD)).map(|_| publish("update", "1").map_err(publish_error))))
            }
            Self::LogFlood => {
                let lines = n_or(n, FLOOD);
                for _ in 0..lines {
                    log::log(Level::Info, "the same line again");
                }
                output(json!(lines))
            }
            Self::PublishUnknownTopic => error_name(publish("nobody", "1").map_err(publish_error)),
            Self::PublishUnknownTopicLarge => {
                let payload = string_of(70 * 1024);
                let refused = (0..n).filter(|_| matches!(publish("nobody", &payload), Err(PublishError::UnknownTopic)));
                output(json!({ "unknown_topic": refused.count() }))
            }
            Self::LargeInputs => output(json!("it has run")),
            Self::PublishTooLarge => error_name(publish("update", &string_of(MIB)).map_err(publish_error)),
            Self::PublishBadJson => {
                let payloads =
                    ["", " ", r#"{"a":"#, "[1,]", "nul", "NaN", "01", "'a'", "1 2", "\"\u{0}\"", "\u{feff}1"];
                refused(payloads.map(|payload| publish("update", payload).is_err()))
            }
            Self::PublishThenTrap => {
                for n in 1..=3 {
                    publish("update", &n.to_string()).map_err(|error| permanent("publish", publish_error(error)))?;
                }
                panic!("asked to panic after publishing")
            }

            Self::ArtifactBadName => {
                let too_long = "x".repeat(256);
                let names = [
                    "",
                    ".",
                    "..",
                    "../up",
                    "a/../b",
                    "/etc/passwd",
                    "dir/",
                    "a//b",
                    "a/./b",
                    "back\\slash",
                    "nul\u{0}",
                    "line\nbreak",
                    "tab\t",
                    "del\u{7f}",
                    &too_long,
                ];
                refused(names.map(|name| artifacts::create(name, "text/plain", b"x").is_err()))
            }
            Self::ArtifactFlood => output(count(
                (0..n_or(n, 1_000))
                    .map(|n| artifacts::create(&format!("{n}.txt"), "text/plain", b"x").map_err(artifact_error)),
            )),
            Self::ArtifactTooLarge => error_name(
                artifacts::create("large.bin", "application/octet-stream", &vec![1; 20 * MIB]).map_err(artifact_error),
            ),

            Self::Random => output(json!(random::bytes(u32::MAX).len())),

            Self::FailPermanent => Err(Failure {
                details: Some(json!({ "attempt": attempt }).to_string()),
                ..permanent("asked_to_fail", "asked to fail for good")
            }),
            Self::FailUntil if u64::from(attempt) >= n => output(json!(attempt)),
            Self::FailRetryable | Self::FailUntil => {
                Err(Failure { kind: FailureKind::Retryable, ..permanent("asked_to_fail", "asked to fail") })
            }
            Self::BadCode => Err(permanent("Has Spaces!", &"é".repeat(50_000))),
            Self::BadDetails => Err(Failure {
                details: Some("{not json".to_owned()),
                ..permanent("asked_to_fail", "asked to fail with bad details")
            }),

            Self::SecretWrite => output(secret::write()),
            Self::SecretRead => output(secret::read()),
        }
    }
}

/// `n`, where the input has one.
fn n_or(n: u64, default: u64) -> u64 {
    if n == 0 { default } else { n }
}

fn output(value: serde_json::Value) -> Result<Outcome, Failure> {
    Ok(Outcome::Output(value.to_string()))
}

/// A JSON string of `len` bytes, quotes included.
fn string_of(len: usize) -> String {
    let mut text = String::with_capacity(len);
    text.push('"');
    text.extend(std::iter::repeat_n('x', len - 2));
    text.push('"');
    text
}

/// Each frame takes its part of the stack; what comes after the call keeps it from being a loop. It would end,
/// so that the compiler does not cut it off, but not before the stack does.
fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 16]);
    if frame[0] == u64::MAX {
        return 0;
    }
    recurse(depth + 1) + frame[1]
}

/// How often it went well, and how often each error came: `{"ok": 10000, "rate_limited": 9990000}`.
fn count<T>(results: impl Iterator<Item = Result<T, &'static str>>) -> serde_json::Value {
    let mut counts = BTreeMap::new();
    for result in results {
        *counts.entry(result.err().unwrap_or("ok")).or_insert(0_u32) += 1;
    }
    json!(counts)
}

fn error_name<T>(result: Result<T, &'static str>) -> Result<Outcome, Failure> {
    output(json!(result.err().unwrap_or("ok")))
}

fn refused<const N: usize>(refused: [bool; N]) -> Result<Outcome, Failure> {
    let count = refused.iter().filter(|&&refused| refused).count();
    output(json!({ "refused": count, "of": N }))
}

fn publish_error(error: PublishError) -> &'static str {
    match error {
        PublishError::UnknownTopic => "unknown_topic",
        PublishError::TooLarge(_) => "too_large",
        PublishError::InvalidPayload(_) => "invalid_payload",
        PublishError::RateLimited(Some(_)) => "rate_limited",
        PublishError::RateLimited(None) => "quota_exceeded",
        PublishError::StepCancelled => "step_cancelled",
        PublishError::Unavailable => "unavailable",
    }
}

fn artifact_error(error: ArtifactError) -> &'static str {
    match error {
        ArtifactError::InvalidName(_) => "invalid_name",
        ArtifactError::TooLarge(_) => "too_large",
        ArtifactError::QuotaExceeded => "quota_exceeded",
        ArtifactError::StepCancelled => "step_cancelled",
        ArtifactError::Unavailable => "unavailable",
    }
}
