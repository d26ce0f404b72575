//! What a step asks for, passed on to the loop of its run.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use stepwell_core::event::LogLevel;
use stepwell_core::event::WaitingCall;
use stepwell_core::{Digest, Graph, Json, RunId, Seq, StepId, TenantId};
use stepwell_outbound::{Completion, HttpError, HttpRequest, HttpResponse, LlmRequest};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::outside::Outside;
use super::publish_rate::PublishRate;
use super::registry::Inbox;
use super::run_loop::{Message, NewChild};
use super::shadow::Shadowing;
use super::{Shared, StartError};
use crate::journal::{JournalError, error_chain};
use crate::sandbox::{
    AttemptTime, Authorization, ChildError, ChildRequest, CompletionError, HostRefusal, StandIn, StepHost,
    StoredArtifact, Wait, Waited,
};

/// The host's side of one attempt.
pub(super) struct LoopHost {
    pub(super) inbox: Inbox,
    /// Whether the host is on its way down.
    pub(super) stopping: CancellationToken,
    pub(super) tenant: TenantId,
    pub(super) graph: Arc<Graph>,
    pub(super) step: StepId,
    pub(super) attempt: u32,
    pub(super) outside: Outside,
    /// What it takes to look at a child before it is started. Weak: an attempt that is cut off must not keep the driver.
    pub(super) shared: Weak<Shared>,
    pub(super) rate: PublishRate,
    /// What the attempt has. It stands still while the tenant's updates are not paid for.
    pub(super) time: Arc<AttemptTime>,
    /// The run that the step's run shadows.
    pub(super) shadow: Option<Arc<Shadowing>>,
}

impl LoopHost {
    async fn ask<T>(
        &self,
        message: Message,
        answer: oneshot::Receiver<Result<T, HostRefusal>>,
    ) -> Result<T, HostRefusal> {
        if self.inbox.send(message).is_ok()
            && let Ok(answer) = answer.await
        {
            return answer;
        }
        // The loop is gone. Either its run has ended, or the host is stopping and the attempt will be made again.
        Err(if self.stopping.is_cancelled() { HostRefusal::Unavailable } else { HostRefusal::Cancelled })
    }

    /// Whether the journal has no room for anything more of this tenant.
    fn is_beyond(&self) -> bool {
        let shared = self.shared.upgrade();
        shared.is_some_and(|shared| shared.fullness.is_beyond(&shared.journal, &self.tenant))
    }

    /// Whether the tenant may store a file of this size. What is refused here is on record, so it may depend on the time.
    fn may_store(&self, bytes: usize) -> Result<(), HostRefusal> {
        let shared = self.shared.upgrade().ok_or(HostRefusal::Unavailable)?;
        let limits = shared.journal.limits(&self.tenant);
        if bytes as u64 > limits.artifact_bytes {
            return Err(HostRefusal::TooLarge(limits.artifact_bytes));
        }
        let usage = shared.journal.usage(&self.tenant).map_err(|error| {
            tracing::error!(tenant = %self.tenant, error = error_chain(&error), "what a tenant has could not be read");
            HostRefusal::Unavailable
        })?;
        if usage.journal_bytes >= limits.journal_bytes { Err(HostRefusal::JournalFull) } else { Ok(()) }
    }

    /// The child that a request asks for, if there can be one.
    async fn child_of(&self, request: ChildRequest) -> Result<Result<NewChild, ChildError>, HostRefusal> {
        let ChildRequest { workflow, version, input, detached } = request;
        let shared = self.shared.upgrade().ok_or(HostRefusal::Unavailable)?;
        let resolved = shared.resolve(&self.tenant, &workflow, version);
        let checked = match &resolved {
            Ok((version, graph)) => shared.check_input(&self.tenant, *version, graph, &input).await,
            Err(_) => Ok(()),
        };
        Ok(match (resolved, checked) {
            (Ok((version, _)), Ok(())) => match shared.journal.may_start(&self.tenant) {
                // A child belongs to what was accepted before the journal was full; its steps meet the margin like others.
                Ok(()) | Err(JournalError::Full { .. }) => Ok(NewChild { workflow, version, input, detached }),
                Err(JournalError::TooManyRuns { .. }) => Err(ChildError::TooManyRuns),
                Err(error) => {
                    tracing::error!(tenant = %self.tenant, error = error_chain(&error), "a child could not be looked at");
                    return Err(HostRefusal::Unavailable);
                }
            },
            (Err(StartError::UnknownWorkflow(_)), _) => Err(ChildError::UnknownWorkflow),
            (Err(StartError::UnknownVersion(_)), _) => Err(ChildError::UnknownVersion),
            (
                Ok(_),
                Err(
                    error
                    @ (StartError::InvalidInput(_) | StartError::CheckInput(_) | StartError::InputTooLarge { .. }),
                ),
            ) => Err(ChildError::InvalidInput(error.to_string())),
            (Err(error), _) | (Ok(_), Err(error)) => {
                tracing::error!(tenant = %self.tenant, %error, "a child could not be looked at");
                return Err(HostRefusal::Unavailable);
            }
        })
    }
}

impl StepHost for LoopHost {
    fn has_topic(&self, topic: &str) -> bool {
        self.graph.has_topic(topic)
    }

    fn stand_in(
        &self,
        call: &'static str,
        arguments: Digest,
        nth: usize,
    ) -> BoxFuture<'_, Result<StandIn, HostRefusal>> {
        async move {
            let Some(shadow) = &self.shadow else { return Ok(StandIn::Make) };
            let shared = self.shared.upgrade().ok_or(HostRefusal::Unavailable)?;
            // What the shadowed run was answered is read meanwhile, at first all of it.
            let _held = self.time.hold();
            shadow.stand_in(shared, &self.step, self.attempt, call, arguments, nth).await
        }
        .boxed()
    }

    fn record(&self, call: &'static str, arguments: Digest, result: Json) -> BoxFuture<'_, Result<(), HostRefusal>> {
        if self.is_beyond() {
            return async { Err(HostRefusal::JournalFull) }.boxed();
        }
        let (reply, answer) = oneshot::channel();
        let (step, attempt) = (self.step.clone(), self.attempt);
        self.ask(Message::RecordCall { step, attempt, call, arguments, result, reply }, answer).boxed()
    }

    fn publish(&self, topic: String, payload: Json, within_call: bool) -> BoxFuture<'_, Result<Seq, HostRefusal>> {
        let (reply, answer) = oneshot::channel();
        let message =
            Message::Publish { step: self.step.clone(), attempt: self.attempt, topic, payload, within_call, reply };
        async move {
            {
                // Others of its tenant have published so much, not this step: it must not run out of time for that.
                let _held = self.time.hold();
                self.rate.turn().await;
            }
            if self.is_beyond() {
                return Err(HostRefusal::JournalFull);
            }
            self.ask(message, answer).await
        }
        .boxed()
    }

    fn log(&self, level: LogLevel, message: String) -> BoxFuture<'_, Result<(), HostRefusal>> {
        let (reply, answer) = oneshot::channel();
        let message = Message::Log { step: self.step.clone(), attempt: self.attempt, level, message, reply };
        self.ask(message, answer).boxed()
    }

    fn send(
        &self,
        request: HttpRequest,
        authorization: Option<Authorization>,
    ) -> BoxFuture<'_, Result<HttpResponse, HttpError>> {
        self.outside.send(&self.tenant, request, authorization).boxed()
    }

    fn complete(
        &self,
        provider: String,
        request: LlmRequest,
        topic: Option<String>,
    ) -> BoxFuture<'_, Result<Completion, CompletionError>> {
        async move { self.outside.complete(&self.tenant, self, &provider, &request, topic).await }.boxed()
    }

    fn has_signal(&self, name: &str) -> bool {
        self.graph.signal(name).is_some()
    }

    fn wait(&self, call: &'static str, arguments: Digest, wait: Wait) -> BoxFuture<'_, Result<Waited, HostRefusal>> {
        let (reply, answer) = oneshot::channel();
        let (step, attempt) = (self.step.clone(), self.attempt);
        let (signal, child, within_ms) = match wait {
            Wait::Timer { ms } => (None, None, Some(ms)),
            Wait::Signal { name, timeout_ms } => (Some(name), None, timeout_ms),
            Wait::Child { run, timeout_ms } => (None, Some(run), timeout_ms),
        };
        let call = WaitingCall { call: call.to_owned(), arguments, signal, child };
        self.ask(Message::Wait { step, attempt, call, within_ms, reply }, answer).boxed()
    }

    fn start_child(
        &self,
        call: &'static str,
        arguments: Digest,
        child: ChildRequest,
    ) -> BoxFuture<'_, Result<Result<RunId, ChildError>, HostRefusal>> {
        async move {
            let child = match self.child_of(child).await? {
                Ok(child) => child,
                Err(refused) => return Ok(Err(refused)),
            };
            let (reply, answer) = oneshot::channel();
            let (step, attempt) = (self.step.clone(), self.attempt);
            self.ask(Message::StartChild { step, attempt, call, arguments, child, reply }, answer).await
        }
        .boxed()
    }

    fn store_artifact(
        &self,
        name: String,
        media_type: String,
        bytes: Bytes,
    ) -> BoxFuture<'_, Result<StoredArtifact, HostRefusal>> {
        if let Err(refused) = self.may_store(bytes.len()) {
            return async move { Err(refused) }.boxed();
        }
        let (reply, answer) = oneshot::channel();
        let (step, attempt) = (self.step.clone(), self.attempt);
        self.ask(Message::StoreArtifact { step, attempt, name, media_type, bytes, reply }, answer).boxed()
    }
}
