//! `transform`: makes a value out of others, and may publish it.

use stepwell_document as document;

use crate::bindings::stepwell::workflow::publish::PublishError;
use crate::bindings::stepwell::workflow::types::{Failure, Outcome};
use crate::failure::{permanent, retryable};
use crate::step::{Outside, Step};
use crate::template::{Template, Templates};

pub(crate) struct Transform {
    output: Template,
    topic: Option<String>,
}

impl Transform {
    pub(crate) fn compile(node: document::Transform, templates: &mut Templates) -> Self {
        Self { output: templates.value("output", &node.output), topic: node.topic }
    }

    pub(crate) fn run(&self, step: &Step, outside: &impl Outside) -> Result<Outcome, Failure> {
        let output = step.value("output", &self.output)?;
        let output = step.json("output", &output)?;
        if let Some(topic) = &self.topic {
            outside.publish(topic, &output).map_err(not_published)?;
        }
        Ok(Outcome::Output(output))
    }
}

/// A document has no words for what to do without an update, so nobody goes on as if there had been one.
fn not_published(error: PublishError) -> Failure {
    match error {
        PublishError::UnknownTopic => permanent("publish_unknown_topic", "the workflow has no such topic"),
        PublishError::TooLarge(most) => {
            permanent("publish_too_large", format!("an update has at most {most} bytes, and the output has more"))
        }
        PublishError::InvalidPayload(why) => permanent("publish_invalid", why),
        PublishError::RateLimited(None) => permanent("publish_quota", "this attempt has published as much as it may"),
        PublishError::RateLimited(wait_ms) => retryable("publish_rate_limited", "too many updates", wait_ms),
        PublishError::StepCancelled | PublishError::Unavailable => {
            retryable("publish_unavailable", "the update could not be recorded", None)
        }
    }
}
