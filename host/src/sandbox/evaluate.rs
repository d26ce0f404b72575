//! Expressions that belong to no graph: filters and inputs of triggers.
//!
//! Owns: the component that evaluates them, the nodes guest without a program and without imports. It is part of this
//! program, compiled once and kept like all code.
//! Does not: know what an expression is for.
//! Keeps: no expression is evaluated outside of the sandbox, and none takes more than [`EVALUATE_LIMITS`]. They have slots
//! of their own, few for each tenant, so a tenant with many waits for its own.

use std::sync::OnceLock;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use stepwell_compiler::specialize;
use stepwell_core::{Digest, Failure, FailureKind, FailureSource, Json, TenantId};

use super::Sandbox;
use super::attempt;
use super::code::CodeError;
use super::end::{Ended, permanent};
use super::limits::{EVALUATE_LIMITS, EXPRESSION_BYTES_MAX};

/// Why an expression has no value.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// It is no expression, has no single value, or took too much: the failure says which, in the words of a step's.
    #[error("{}", .0.message)]
    Failed(Failure),
    /// The evaluator could not be had.
    #[error("expressions cannot be evaluated at present")]
    Code(#[from] CodeError),
    /// The host could not evaluate it now: it lacked time or room. The expression and the input have nothing to do with it.
    #[error("expressions cannot be evaluated at present: {}", .0.message)]
    Host(Failure),
    /// The host is stopping.
    #[error("the host is stopping")]
    Gone,
}

impl Sandbox {
    /// The one value of an expression on an input.
    pub async fn evaluate(&self, tenant: &TenantId, expression: &str, input: &Json) -> Result<Json, EvaluateError> {
        self.evaluate_on(tenant, expression, Some(input)).await
    }

    /// Whether a text is an expression.
    pub async fn check_expression(&self, tenant: &TenantId, expression: &str) -> Result<(), EvaluateError> {
        self.evaluate_on(tenant, expression, None).await.map(drop)
    }

    async fn evaluate_on(
        &self,
        tenant: &TenantId,
        expression: &str,
        input: Option<&Json>,
    ) -> Result<Json, EvaluateError> {
        if expression.len() > EXPRESSION_BYTES_MAX {
            let message = format!("an expression has at most {EXPRESSION_BYTES_MAX} bytes");
            return Err(EvaluateError::Failed(permanent("invalid_expression", message)));
        }
        let component = || specialize::evaluator().ok().map(Bytes::from);
        let code = self.code.load(self, tenant, evaluator(), component).await?;
        let text = serde_json::Value::from(expression).to_string();
        let mut inputs = vec![("expression".to_owned(), text)];
        inputs.extend(input.map(|input| ("input".to_owned(), input.as_str().to_owned())));
        let _turn = self.evaluating.acquire(tenant).await;
        let engine = self.engine.clone();
        // On the guests' threads, like everything a guest does.
        let evaluated =
            self.guests.spawn(async move { attempt::detached(&engine, &code, EVALUATE_LIMITS, &inputs).await });
        match evaluated.await.map_err(|_| EvaluateError::Gone)? {
            Ok(Ended::With(output)) => Ok(output.output),
            Ok(Ended::Delegated(_)) => {
                Err(EvaluateError::Failed(permanent("unexpected_outcome", "no value came back")))
            }
            Err(failure) => Err(failed(failure)),
        }
    }
}

/// Whose failure it is. The fuel of an evaluation is used up in a small part of its time, so when the time is over, the host
/// was too slow.
fn failed(failure: Failure) -> EvaluateError {
    match (failure.source, failure.kind) {
        (FailureSource::Platform, FailureKind::Retryable) => EvaluateError::Host(failure),
        _ => EvaluateError::Failed(failure),
    }
}

/// The name of the evaluator's code: one for each build of the guest.
fn evaluator() -> Digest {
    static NAME: OnceLock<Digest> = OnceLock::new();
    *NAME.get_or_init(|| {
        let mut hash = Sha256::new();
        hash.update(b"stepwell evaluator 1");
        hash.update(specialize::GUEST);
        Digest::from_bytes(hash.finalize().into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_lacked_is_not_the_failure_of_an_expression() {
        let host = |failure| matches!(failed(failure), EvaluateError::Host(_));
        assert!(host(super::super::end::unavailable("no room")));
        assert!(host(Failure::platform(FailureKind::Retryable, "timeout", "")));
        assert!(!host(permanent("out_of_fuel", "")));
        let said = Failure { source: FailureSource::Workflow, ..super::super::end::unavailable("") };
        assert!(!host(said), "what the evaluator itself says is about the expression");
    }
}
