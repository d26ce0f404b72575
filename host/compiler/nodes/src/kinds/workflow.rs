//! `workflow`: starts a run of another workflow, and waits for its end without a sandbox.

use serde_json::{Value, json};
use stepwell_document as document;

use crate::bindings::stepwell::workflow::children::{AwaitError, Request, StartError};
use crate::bindings::stepwell::workflow::types::{Failure, Outcome};
use crate::failure::{permanent, with_details};
use crate::step::{Outside, Step};
use crate::template::{Template, Templates};

pub(crate) struct Workflow {
    workflow: String,
    version: Option<String>,
    input: Template,
    detached: bool,
}

impl Workflow {
    pub(crate) fn compile(node: document::Workflow, templates: &mut Templates) -> Self {
        let document::Workflow { workflow, version, input, detached } = node;
        Self { workflow, version, input: templates.value("input", &input.unwrap_or(Value::Null)), detached }
    }

    pub(crate) fn run(&self, step: &Step, outside: &impl Outside) -> Result<Outcome, Failure> {
        let input = step.value("input", &self.input)?;
        let request = Request {
            workflow: self.workflow.clone(),
            version: self.version.clone(),
            input: step.json("input", &input)?,
            detached: self.detached,
        };
        let run = outside.start_child(&request).map_err(|error| self.not_started(error))?;
        if self.detached {
            return Ok(Outcome::Output(json!({ "run_id": run }).to_string()));
        }
        outside.await_child(&run, None).map(Outcome::Output).map_err(|error| self.failed(&run, error))
    }

    fn not_started(&self, error: StartError) -> Failure {
        let name = &self.workflow;
        match error {
            StartError::InvalidRequest(why) => permanent("child_invalid", format!("`{name}` was not started: {why}")),
            StartError::UnknownWorkflow => {
                permanent("child_unknown_workflow", format!("there is no workflow `{name}`"))
            }
            StartError::UnknownVersion => {
                permanent("child_unknown_version", format!("the workflow `{name}` has no such version"))
            }
            StartError::InvalidInput(why) => {
                permanent("child_invalid_input", format!("`{name}` does not take this input: {why}"))
            }
            StartError::TooDeep => permanent("child_too_deep", "too many runs have started each other already"),
            StartError::QuotaExceeded => permanent("child_quota", "the run has as many children as it may"),
        }
    }

    fn failed(&self, run: &str, error: AwaitError) -> Failure {
        let name = &self.workflow;
        match error {
            AwaitError::Failed(child) => {
                let message = format!("the run of `{name}` has failed: {}", child.message);
                let details = json!({ "run_id": run, "code": child.code, "message": child.message });
                with_details(permanent("child_failed", message), &details)
            }
            AwaitError::Cancelled => {
                let message = format!("the run of `{name}` was cancelled");
                with_details(permanent("child_cancelled", message), &json!({ "run_id": run }))
            }
            // None of these can come of a child that was just started, waited for without a limit.
            AwaitError::Timeout | AwaitError::NotAChild | AwaitError::QuotaExceeded => {
                permanent("child_lost", format!("the run of `{name}` could not be waited for"))
            }
        }
    }
}
