//! `signal`: waits for somebody outside, without a sandbox.

use stepwell_document as document;
use stepwell_document::OnTimeout;
use stepwell_document::duration::parse_ms;

use super::sleep::not_waited;
use crate::bindings::stepwell::workflow::types::{Failure, Outcome};
use crate::bindings::stepwell::workflow::wait::WaitError;
use crate::failure::permanent;
use crate::step::{Outside, Step};

pub(crate) struct Signal {
    name: String,
    timeout_ms: Option<u64>,
    on_timeout: OnTimeout,
}

impl Signal {
    pub(crate) fn compile(node: document::Signal) -> Self {
        let timeout_ms = node.within.as_deref().and_then(parse_ms);
        Self { name: node.name, timeout_ms, on_timeout: node.on_timeout }
    }

    pub(crate) fn run(&self, _: &Step, outside: &impl Outside) -> Result<Outcome, Failure> {
        match outside.signal(&self.name, self.timeout_ms) {
            Ok(payload) => Ok(Outcome::Output(payload)),
            Err(WaitError::Timeout) if self.on_timeout == OnTimeout::Null => Ok(Outcome::Output("null".to_owned())),
            Err(WaitError::Timeout) => {
                let ms = self.timeout_ms.unwrap_or_default();
                Err(permanent("signal_timeout", format!("the signal `{}` has not come within {ms} ms", self.name)))
            }
            Err(error) => Err(not_waited(error)),
        }
    }
}
