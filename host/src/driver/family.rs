//! What a run owes to its children and to its parent.
//!
//! Owns: starting and cancelling children, seeing how one has ended, telling a parent.
//! Does not: decide any of it; the core says what is owed, and a run's loop begins each once.
//! Keeps: everything here can be done twice. A child that exists is not made again, one that has ended is not cancelled,
//! and a parent that does not wait any more takes no notice. So a crash in the middle of it costs a repetition.

use std::sync::Arc;
use std::time::Duration;

use stepwell_core::event::{ChildEnd, ChildRef, ParentRef};
use stepwell_core::{Event, Payload, RunId, RunKey, RunStatus, Seq, TenantId};
use tokio::sync::oneshot;

use super::placing::Origin;
use super::run_loop::{Message, NewRun, read_payload};
use super::{ControlError, Shared, StartError};
use crate::journal::{Journal, JournalError, error_chain};
use crate::sandbox::EvaluateError;

/// Something that was done for the family.
pub(super) enum Errand {
    /// A child is there, or could not be made.
    ChildStarted { run: RunId, started: bool },
    /// A child was told to stop, or the parent of the end; or could not be.
    Told { told: bool },
    /// A child is to be asked after again.
    AskAgain { run: RunId, since: Seq },
    /// The run's state was kept, for when it is taken up again.
    Snapshotted(Result<(), JournalError>),
    /// The list of unfinished runs was written.
    Settled(Result<(), JournalError>),
}

/// The wait before what the host could not do for a child is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// Stored bytes that hold a run's last event: its last record may be long.
const LAST_READ_BYTES: usize = 1;

/// How a run has ended; `None` while it has not. One that is gone counts as cancelled: nobody can tell any more.
pub(super) fn end_of(shared: &Shared, tenant: &TenantId, run: RunId) -> Result<Option<ChildEnd>, JournalError> {
    let key = RunKey { tenant: tenant.clone(), run };
    let Some(summary) = shared.journal.summary(&key)? else { return Ok(Some(ChildEnd::Cancelled)) };
    if !summary.status.is_terminal() {
        return Ok(None);
    }
    let last = shared.journal.read(&key, summary.status_seq.saturating_sub(1), LAST_READ_BYTES)?.pop();
    Ok(Some(match last.map(|last| last.event) {
        // Its parent would refer to it from then on, and cannot when its time is over.
        Some(Event::RunCompleted { output }) if is_gone(shared, tenant, &output)? => {
            let message = "the child's output has outlived its retention".to_owned();
            ChildEnd::Failed { code: "output_expired".to_owned(), message }
        }
        Some(Event::RunCompleted { output }) => ChildEnd::Completed { output },
        Some(Event::RunFailed { failure, .. }) => ChildEnd::Failed { code: failure.code, message: failure.message },
        _ => ChildEnd::Cancelled,
    }))
}

fn is_gone(shared: &Shared, tenant: &TenantId, output: &Payload) -> Result<bool, JournalError> {
    let Some(content) = output.stored() else { return Ok(false) };
    Ok(!shared.journal.has_content(tenant, &content.sha256)?)
}

/// Makes the run of a child, unless it is there.
pub(super) async fn start_child(shared: Arc<Shared>, tenant: TenantId, child: ChildRef, parent: ParentRef) -> Errand {
    let ChildRef { run, workflow, version, input, .. } = child;
    let key = RunKey { tenant, run };
    let failed = |why: String| {
        tracing::error!(run = %key, why, "a child could not be started");
        Errand::ChildStarted { run, started: false }
    };
    match shared.journal.summary(&key) {
        Ok(Some(summary)) => {
            // It was made before a crash. The recovery may have passed it by while this was looking for it.
            if !summary.status.is_terminal() && !summary.parked {
                drop(shared.inbox_of(&key));
            }
            return Errand::ChildStarted { run, started: true };
        }
        Ok(None) => {}
        Err(error) => return failed(error_chain(&error)),
    }
    let graph = match shared.graph(&key.tenant, &workflow, version) {
        Ok(graph) => graph,
        Err(error) => return failed(error.to_string()),
    };
    let input = match read_payload(&*shared.journal, &key, input) {
        Ok(input) => input,
        Err(why) => return failed(why),
    };
    // A child belongs to what its parent belongs to.
    let parent_key = RunKey { tenant: key.tenant.clone(), run: parent.run };
    let correlation = match shared.journal.summary(&parent_key) {
        Ok(summary) => summary.and_then(|summary| summary.correlation),
        Err(error) => return failed(error_chain(&error)),
    };
    let flow = loop {
        match shared.place(&key.tenant, &workflow, &input, Origin::Inside).await {
            Ok(flow) => break flow,
            // The child is on record, and is not to be missing because the host was busy.
            Err(StartError::Flow { source: EvaluateError::Host(_) | EvaluateError::Code(_), .. })
                if !shared.stopping.is_cancelled() =>
            {
                shared.pause(PAUSE).await;
            }
            Err(error) => return failed(error.to_string()),
        }
    };
    let new = NewRun {
        flow,
        graph,
        workflow,
        version,
        input,
        idempotency: None,
        parent: Some(parent),
        rerun_of: None,
        shadow_of: None,
        taken_over: Vec::new(),
        correlation,
    };
    match shared.create(&key, new).await {
        Ok(_) => Errand::ChildStarted { run, started: true },
        Err(error) => failed(error.to_string()),
    }
}

/// Has a child asked after again that could not be read.
pub(super) async fn ask_again(shared: Arc<Shared>, run: RunId, since: Seq) -> Errand {
    shared.pause(PAUSE).await;
    Errand::AskAgain { run, since }
}

/// Cancels a child. One that has ended, or never came to be, is left alone.
pub(super) async fn cancel_child(shared: Arc<Shared>, child: RunKey) -> Errand {
    let reason = Some("the run that started it has ended".to_owned());
    let told = match shared.cancel(&child, reason).await {
        Ok(()) | Err(ControlError::Refused(_) | ControlError::UnknownRun) => true,
        Err(_) => false,
    };
    Errand::Told { told }
}

/// Tells a parent how a child has ended. One that has ended itself has no use for it.
pub(super) async fn tell_parent(shared: Arc<Shared>, parent: RunKey, child: RunId, end: ChildEnd) -> Errand {
    // A loop that is just leaving may let go of a message; the next one will not.
    for _ in 0..3 {
        let status = shared.journal.summary(&parent).map(|summary| summary.map(|summary| summary.status));
        match status {
            Ok(Some(status)) if !RunStatus::is_terminal(status) => {}
            Ok(_) => return Errand::Told { told: true },
            Err(_) => break,
        }
        let Some(inbox) = shared.inbox_of(&parent) else { break };
        let (reply, answer) = oneshot::channel();
        if inbox.send(Message::ChildEnded { run: child, end: end.clone(), reply }).is_ok() && answer.await.is_ok() {
            return Errand::Told { told: true };
        }
    }
    Errand::Told { told: false }
}
