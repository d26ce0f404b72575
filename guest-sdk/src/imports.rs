//! The host's functions, on wasm32: each method calls one import and converts its types.
//!
//! `recorder.rs` has the same methods for every other target.

use std::time::Duration;

use crate::bindings::stepwell::workflow::{artifacts, clock, log, publish, random};
use crate::{Artifact, ArtifactError, Level, Position, PublishError};

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

fn wit_level(level: Level) -> log::Level {
    match level {
        Level::Debug => log::Level::Debug,
        Level::Info => log::Level::Info,
        Level::Warn => log::Level::Warn,
        Level::Error => log::Level::Error,
    }
}
