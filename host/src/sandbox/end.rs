//! Every way an attempt can end, and what it is called. The codes are part of the API: see `docs/failures.md`.
//!
//! A failure is permanent where the same attempt would fail again (the sandbox is deterministic), and retryable where
//! it depends on the host: its load, its state.

use std::time::Duration;

use serde_json::value::RawValue;
use stepwell_core::decide::Next;
use stepwell_core::failure::{JOURNAL_FULL, UNAVAILABLE, is_code};
use stepwell_core::ids::is_word;
use stepwell_core::retry::WAIT_MS_MAX;
use stepwell_core::{Failure, FailureKind, FailureSource, Json};
use wasmtime::{Trap, WasmBacktrace};

use super::generated::exports::stepwell::workflow::steps::{self, Outcome};
use super::generated::stepwell::workflow::types::FailureKind as GuestFailureKind;
use super::imports::{NoRecording, NoRoom, NotRecorded, Suspended};
use super::limits::{
    FAILURE_DETAILS_BYTES_MAX, FAILURE_MESSAGE_BYTES_MAX, HOST_CALL_BYTES_MAX, LABELS_MAX, OUTPUT_BYTES_MAX,
};
use super::replay::{Divergence, Unreadable};
use super::{AttemptEnd, StepOutput};

/// What a call of the guest came to.
pub(super) type Called = Result<wasmtime::Result<Result<Outcome, steps::Failure>>, TimedOut>;

/// The call was cut off.
pub(super) struct TimedOut(pub(super) Duration);

impl AttemptEnd {
    /// The host could not run the attempt.
    pub(super) fn unavailable(message: &str) -> Self {
        Self { result: Err(unavailable(message)), fuel_used: 0 }
    }
}

/// The host could not run it.
pub(super) fn unavailable(message: &str) -> Failure {
    Failure::platform(FailureKind::Retryable, UNAVAILABLE, message)
}

/// The journal has no room for what it would write.
pub(crate) fn journal_full() -> Failure {
    let message = "the journal is full: the tenant has much more in it than it may";
    Failure::platform(FailureKind::Retryable, JOURNAL_FULL, message)
}

/// What a call means.
pub(super) fn classify(called: Called, memory_refused: bool, memory_bytes_max: u64) -> Result<Ended, Failure> {
    match called {
        Ok(Ok(Ok(Outcome::Output(output)))) => output_of(output, Vec::new(), Next::Done).map(Ended::With),
        Ok(Ok(Ok(Outcome::Route(routed)))) => output_of(routed.output, routed.labels, Next::Done).map(Ended::With),
        Ok(Ok(Ok(Outcome::FanOut(items)))) => fan_out_of(items).map(Ended::With),
        Ok(Ok(Ok(Outcome::Again(state)))) => output_of(state, Vec::new(), Next::Again).map(Ended::With),
        Ok(Ok(Ok(Outcome::Delegate(delegation)))) => Ok(Ended::Delegated(delegation.inputs)),
        Ok(Ok(Err(failure))) => Err(failure_of(failure)),
        Ok(Err(error)) => Err(failure_of_error(&error, memory_refused, memory_bytes_max)),
        Err(TimedOut(limit)) => {
            let message = format!("the attempt took longer than {} ms", limit.as_millis());
            Err(Failure::platform(FailureKind::Retryable, "timeout", message))
        }
    }
}

/// How a call ended well.
pub(super) enum Ended {
    /// With an output.
    With(StepOutput),
    /// With these inputs for another component.
    Delegated(Vec<(String, String)>),
}

pub(super) fn permanent(code: &str, message: impl Into<String>) -> Failure {
    Failure::platform(FailureKind::Permanent, code, message)
}

fn output_of(output: String, labels: Vec<String>, next: Next) -> Result<StepOutput, Failure> {
    if output.len() > OUTPUT_BYTES_MAX {
        let message = format!("the output has {} bytes, at most {OUTPUT_BYTES_MAX} are allowed", output.len());
        return Err(permanent("output_too_large", message));
    }
    if labels.len() > LABELS_MAX || !labels.iter().all(|label| is_word(label)) {
        return Err(permanent("unknown_route", "the outcome names labels that no edge can carry"));
    }
    let output =
        Json::parse(output).map_err(|error| permanent("invalid_output", format!("the output is not JSON: {error}")))?;
    Ok(StepOutput { output, labels, next })
}

/// The items of a fan-out: a JSON array that the core wants to know the length of.
fn fan_out_of(items: String) -> Result<StepOutput, Failure> {
    let output = output_of(items, Vec::new(), Next::Done)?;
    let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(output.output.as_str()) else {
        return Err(permanent("invalid_output", "the items of a fan-out are a JSON array"));
    };
    // An output has fewer bytes than a u32 counts.
    let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
    Ok(StepOutput { next: Next::FanOut(count), ..output })
}

/// A step's own failure, cut to what the journal takes.
fn failure_of(failure: steps::Failure) -> Failure {
    let kind = match failure.kind {
        GuestFailureKind::Retryable => FailureKind::Retryable,
        GuestFailureKind::Permanent => FailureKind::Permanent,
    };
    let mut message = failure.message;
    message.truncate(message.floor_char_boundary(FAILURE_MESSAGE_BYTES_MAX));
    let code = if is_code(&failure.code) { failure.code } else { "step_failed".to_owned() };
    let details = failure.details.filter(|details| details.len() <= FAILURE_DETAILS_BYTES_MAX);
    Failure {
        kind,
        source: FailureSource::Workflow,
        code,
        message,
        retry_after_ms: failure.retry_after_ms.filter(|_| kind == FailureKind::Retryable).map(|ms| ms.min(WAIT_MS_MAX)),
        details: details.and_then(|details| Json::parse(details).ok()),
    }
}

pub(super) fn failure_of_error(error: &wasmtime::Error, memory_refused: bool, memory_bytes_max: u64) -> Failure {
    let trap = error.downcast_ref::<Trap>().copied();
    match trap {
        Some(Trap::OutOfFuel) => permanent("out_of_fuel", "the attempt used up its fuel"),
        Some(Trap::StackOverflow) => permanent("stack_overflow", "the step called itself too deeply"),
        // Memory is refused by saying no; what a guest makes of it is mostly a panic somewhere else.
        _ if memory_refused => {
            permanent("out_of_memory", format!("the attempt wanted more than {memory_bytes_max} bytes of memory"))
        }
        _ if error.is::<Divergence>() => divergence(error),
        _ if error.is::<NoRecording>() => no_recording(error),
        Some(trap) => permanent("trap", with_backtrace(format!("the step trapped: {trap}"), error)),
        None if is_too_much_for_a_host_call(error) => {
            let message = format!("the step handed over more than {HOST_CALL_BYTES_MAX} bytes at once");
            permanent("output_too_large", message)
        }
        None if error.is::<Suspended>() => unavailable("the attempt waits"), // nobody asks
        None if error.is::<NoRoom>() => journal_full(),
        None if error.is::<Unreadable>() => unavailable("what the attempt did before could not be read"),
        None if error.is::<NotRecorded>() => unavailable("what the step did could not be recorded"),
        None if error.is::<wasmtime::PoolConcurrencyLimitError>() => {
            Failure::platform(FailureKind::Retryable, UNAVAILABLE, "there is no room for the attempt")
        }
        // What is left is data that does not follow the canonical ABI: bad UTF-8, pointers out of bounds, bad variants.
        None => permanent("invalid_data", clip(format!("the step handed over invalid data: {error:#}"))),
    }
}

/// A deterministic step comes with the same calls. One that does not has met another host, and starts clean.
fn divergence(error: &wasmtime::Error) -> Failure {
    let message = format!("{error:#}");
    let details = error.downcast_ref::<Divergence>().and_then(|Divergence { expected, found }| {
        Json::of(&serde_json::json!({ "expected": expected, "found": found })).ok()
    });
    Failure { details, ..Failure::platform(FailureKind::Retryable, "divergence", clip(message)) }
}

/// A shadow calls what the run that it shadows did not: another attempt would too.
fn no_recording(error: &wasmtime::Error) -> Failure {
    let NoRecording { call } = error.downcast_ref().unwrap_or(&NoRecording { call: "a call" });
    let message = NoRecording { call }.to_string();
    let details = Json::of(&serde_json::json!({ "call": call })).ok();
    Failure { details, ..permanent("shadow_no_recording", message) }
}

/// wasmtime's error for this has no public type. The version is pinned, and a test hands over too much.
fn is_too_much_for_a_host_call(error: &wasmtime::Error) -> bool {
    error.chain().any(|cause| cause.to_string().contains("fuel allocated for hostcalls has been exhausted"))
}

fn with_backtrace(mut message: String, error: &wasmtime::Error) -> String {
    let frames = error.downcast_ref::<WasmBacktrace>().map(|backtrace| backtrace.frames()).unwrap_or_default();
    for name in frames.iter().filter_map(|frame| frame.func_name()).take(8) {
        message.push_str("\n  in ");
        message.push_str(name);
    }
    clip(message)
}

fn clip(mut message: String) -> String {
    message.truncate(message.floor_char_boundary(FAILURE_MESSAGE_BYTES_MAX));
    message
}
