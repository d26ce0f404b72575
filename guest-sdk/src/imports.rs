//! The host's functions, on wasm32: each method calls one import and converts its types.
//!
//! `recorder.rs` has the same methods for every other target.

use std::time::Duration;

use crate::bindings::stepwell::workflow::{artifacts, children, clock, log, publish, random, wait};
use crate::{Artifact, ArtifactError, ChildError, Level, Position, PublishError, StartError, WaitError};

/// Has no state: the host knows which step is calling.
#[derive(Debug)]
pub(crate) struct Imports;

impl Imports {
    pub(crate) fn publish(&self, topic: &str, payload: &str) -> Result<u64, PublishError> {
        use publish::PublishError as Wit;
        publish::publish(topic, payload).map_err(|error| match error {
            Wit::UnknownTopic => PublishError::UnknownTopic(topic.to_owned()),
            Wit::TooLarge(limit_bytes) => PublishError::TooLarge { limit_bytes },
            Wit::InvalidPayload(reason) => PublishError::InvalidPayload(reason),
            Wit::RateLimited(Some(wait_ms)) => PublishError::RateLimited(Duration::from_millis(wait_ms)),
            Wit::RateLimited(None) => PublishError::QuotaExceeded,
            Wit::StepCancelled => PublishError::StepCancelled,
            Wit::Unavailable => PublishError::Unavailable,
        })
    }

    pub(crate) fn log(&self, level: Level, message: &str) {
        log::log(wit_level(level), message);
    }

    pub(crate) fn now_ms(&self) -> u64 {
        clock::now_ms()
    }

    pub(crate) fn random_bytes(&self, len: u32) -> Vec<u8> {
        random::bytes(len)
    }

    pub(crate) fn artifact(&self, name: &str, media_type: &str, content: &[u8]) -> Result<Artifact, ArtifactError> {
        use artifacts::ArtifactError as Wit;
        match artifacts::create(name, media_type, content) {
            Ok(artifact) => Ok(Artifact {
                id: artifact.id,
                position: Position(artifact.position),
                size_bytes: artifact.size_bytes,
                sha256: artifact.sha256,
            }),
            Err(Wit::InvalidName(reason)) => Err(ArtifactError::InvalidName(reason)),
            Err(Wit::TooLarge(limit_bytes)) => Err(ArtifactError::TooLarge { limit_bytes }),
            Err(Wit::QuotaExceeded) => Err(ArtifactError::QuotaExceeded),
            Err(Wit::StepCancelled) => Err(ArtifactError::StepCancelled),
            Err(Wit::Unavailable) => Err(ArtifactError::Unavailable),
        }
    }
}

impl Imports {
    pub(crate) fn sleep(&self, ms: u64) -> Result<(), WaitError> {
        wait::sleep(ms).map_err(|error| wait_error("", error))
    }

    pub(crate) fn signal(&self, name: &str, timeout_ms: Option<u64>) -> Result<String, WaitError> {
        wait::signal(name, timeout_ms).map_err(|error| wait_error(name, error))
    }

    pub(crate) fn start_child(
        &self,
        workflow: String,
        version: Option<String>,
        input: String,
        detached: bool,
    ) -> Result<String, StartError> {
        use children::StartError as Wit;
        children::start(&children::Request { workflow, version, input, detached }).map_err(|error| match error {
            Wit::InvalidRequest(reason) => StartError::InvalidRequest(reason),
            Wit::UnknownWorkflow => StartError::UnknownWorkflow,
            Wit::UnknownVersion => StartError::UnknownVersion,
            Wit::InvalidInput(reason) => StartError::InvalidInput(reason),
            Wit::TooDeep => StartError::TooDeep,
            Wit::QuotaExceeded => StartError::QuotaExceeded,
        })
    }

    pub(crate) fn await_child(&self, run: &str, timeout_ms: Option<u64>) -> Result<String, ChildError> {
        use children::AwaitError as Wit;
        children::await_(run, timeout_ms).map_err(|error| match error {
            Wit::Failed(children::ChildFailure { code, message }) => ChildError::Failed { code, message },
            Wit::Cancelled => ChildError::Cancelled,
            Wit::Timeout => ChildError::Timeout,
            Wit::NotAChild => ChildError::NotAChild,
            Wit::QuotaExceeded => ChildError::QuotaExceeded,
        })
    }
}

fn wait_error(name: &str, error: wait::WaitError) -> WaitError {
    match error {
        wait::WaitError::UnknownSignal => WaitError::UnknownSignal(name.to_owned()),
        wait::WaitError::Timeout => WaitError::Timeout,
        wait::WaitError::QuotaExceeded => WaitError::QuotaExceeded,
    }
}

fn wit_level(level: Level) -> log::Level {
    match level {
        Level::Debug => log::Level::Debug,
        Level::Info => log::Level::Info,
        Level::Warn => log::Level::Warn,
        Level::Error => log::Level::Error,
    }
}
