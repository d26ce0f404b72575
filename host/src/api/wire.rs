//! How things look from outside. Separate from the stored forms, and converted by hand, so that neither can change the
//! other by accident.

use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use stepwell_core::event::{ChildEnd, SuspendReason, Woke};
use stepwell_core::json::ContentRef;
use stepwell_core::view::{ArtifactView, AttemptView, SignalView, StepView};
use stepwell_core::{
    Event, Failure, GraphSpec, Json, Payload, Recorded, RunId, RunKey, StepId, StepStatus, TenantId, Timestamp,
};
use utoipa::ToSchema;

use super::problem::Problem;
use crate::clock::rfc3339;
use crate::driver::{artifact_id, read_payload};
use crate::journal::catalog::{ApiKeyRecord, VersionRecord, WorkflowRecord};
use crate::journal::channels::ChannelEntry;
use crate::journal::{Journal, JournalError, RedbJournal, RunSummary};

/// A list, or a part of one.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page<T> {
    /// The entries.
    pub(super) data: Vec<T>,
    /// Where it goes on.
    pub(super) page: PageInfo,
}

/// Where a list goes on.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageInfo {
    /// What `cursor` takes for the next page.
    pub(super) cursor: Option<String>,
    /// Whether there is one. A page may be short, or empty, though more follow.
    pub(super) has_more: bool,
    /// The most entries that a page has.
    pub(super) limit: usize,
}

impl<T> Page<T> {
    pub(super) fn whole(data: Vec<T>) -> Self {
        let limit = data.len();
        Self { data, page: PageInfo { cursor: None, has_more: false, limit } }
    }
}

/// A run.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RunBody {
    /// Its id, a UUID.
    #[schema(value_type = String)]
    id: RunId,
    /// The workflow's name.
    workflow: String,
    /// The version it is pinned to: SHA-256 of the component.
    version: String,
    /// Where it stands.
    #[schema(value_type = String, example = "running")]
    status: &'static str,
    /// What whoever started it knows it by.
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation: Option<String>,
    /// When it was accepted.
    created_at: String,
    /// When its first steps became due.
    started_at: Option<String>,
    /// When it ended.
    ended_at: Option<String>,
    /// Its input. Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    input: Option<Json>,
    /// Its output, once it has completed. Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    output: Option<Json>,
    /// Its input or its output had more than 64 KiB and has outlived its retention, so it is not here.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    expired: bool,
    /// Why it failed. Not in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<FailureBody>,
    /// The code of the failure, for a run that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_code: Option<String>,
    /// The step that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    failed_node: Option<String>,
    /// What a suspended run waits for: `signal` (somebody outside), `child`, `timer` or `retry`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    waits_for: Option<SuspendReason>,
    /// When something happens to a suspended run at the latest: a timer, the end of a wait, or the end of the run's own time, with
    /// which it fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_until: Option<String>,
    /// The run that started it as a child.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    parent: Option<RunId>,
    /// The run that it repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    rerun_of: Option<RunId>,
    /// The run that it shadows: it has the same input and another version, and is not in lists unless they ask for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    shadow_of: Option<RunId>,
    /// Its key in its workflow's flow control.
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_key: Option<String>,
    /// Its priority there.
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<i32>,
    /// It waits until then for a later run to take its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_before: Option<String>,
}

impl RunBody {
    pub(super) fn of_summary(id: RunId, summary: &RunSummary) -> Self {
        Self {
            id,
            workflow: summary.workflow.to_string(),
            version: summary.version.to_string(),
            status: summary.status.as_str(),
            correlation: summary.correlation.clone(),
            created_at: rfc3339(summary.created_at),
            started_at: summary.started_at.map(rfc3339),
            ended_at: summary.ended_at.map(rfc3339),
            input: None,
            output: None,
            expired: false,
            failure: None,
            failure_code: summary.failure.as_ref().map(|failure| failure.code.clone()),
            failed_node: summary.failure.as_ref().and_then(|failure| Some(failure.step.as_ref()?.node.to_string())),
            waits_for: summary.waits_for,
            waits_until: summary.waits_until.filter(|_| summary.waits_for.is_some()).map(rfc3339),
            parent: summary.parent,
            rerun_of: summary.rerun_of,
            shadow_of: summary.shadow_of.map(|shadow| shadow.run),
            flow_key: summary.place.as_ref().map(|place| place.key.clone()),
            priority: summary.place.as_ref().map(|place| place.priority),
            not_before: summary.place.as_ref().and_then(|place| place.not_before).map(rfc3339),
        }
    }

    /// The run with what its first and its last event say.
    pub(super) fn whole(journal: &impl Journal, key: &RunKey) -> Result<Self, Problem> {
        let summary = journal.summary(key)?.ok_or_else(Problem::unknown_run)?;
        let mut body = Self::of_summary(key.run, &summary);
        let read = |after| match journal.read(key, after, 1) {
            Ok(page) => Ok(page.into_iter().next().map(|recorded| recorded.event)),
            Err(JournalError::Truncated { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        if let Some(Event::RunQueued { input, .. }) = read(0)? {
            body.input = resolve(journal, key, &input)?;
            body.expired |= body.input.is_none();
        }
        if summary.status.is_terminal() {
            match read(summary.status_seq.saturating_sub(1))? {
                Some(Event::RunCompleted { output }) => {
                    body.output = resolve(journal, key, &output)?;
                    body.expired |= body.output.is_none();
                }
                Some(Event::RunFailed { step, failure }) => {
                    body.failed_node = step.map(|step| step.node.to_string());
                    body.failure = Some(FailureBody::from(&failure));
                }
                _ => {}
            }
        }
        Ok(body)
    }
}

/// Why something failed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FailureBody {
    /// `retryable` or `permanent`.
    #[schema(value_type = String)]
    kind: stepwell_core::FailureKind,
    /// `workflow` when the step said so, `platform` when the host ended it.
    #[schema(value_type = String)]
    source: stepwell_core::FailureSource,
    /// A stable identifier for programs.
    code: String,
    /// A sentence for people.
    message: String,
    /// Anything else that the step said.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    details: Option<Json>,
}

impl From<&Failure> for FailureBody {
    fn from(failure: &Failure) -> Self {
        Self {
            kind: failure.kind,
            source: failure.source,
            code: failure.code.clone(),
            message: failure.message.clone(),
            details: failure.details.clone(),
        }
    }
}

/// A signal that a run was sent.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SignalBody {
    /// Its name.
    name: String,
    /// The number of its event.
    seq: u64,
    /// When it came.
    received_at: String,
    /// The step that took it; missing while it waits to be taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    taken_by: Option<String>,
    /// What it says; `null` when it had more than 64 KiB and has outlived its retention.
    #[schema(value_type = Object)]
    payload: Option<Json>,
}

impl SignalBody {
    pub(super) fn of(journal: &impl Journal, key: &RunKey, view: SignalView) -> Result<Self, Problem> {
        Ok(Self {
            name: view.name,
            seq: view.seq,
            received_at: rfc3339(view.at),
            taken_by: view.taken_by.map(|step| step.to_string()),
            payload: resolve(journal, key, &view.payload)?,
        })
    }
}

/// A step of a run.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StepBody {
    /// Its node.
    node: String,
    /// Inside fan-outs and loops: the numbers of the item or iteration, outermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    items: Vec<u32>,
    /// Where it stands.
    #[schema(value_type = String, example = "completed")]
    status: StepStatus,
    /// What a suspended step waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    waits_for: Option<SuspendReason>,
    /// When a suspended step goes on; for a failed attempt, when the next one starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    /// Its attempts, oldest first.
    attempts: Vec<AttemptBody>,
    /// Its result, if it has at most 64 KiB. A larger one is in the step's `step.completed` event.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    output: Option<Json>,
    /// Bytes of its result.
    #[serde(skip_serializing_if = "Option::is_none")]
    output_size_bytes: Option<u64>,
    /// Labels of the edges that its result took, besides the unlabelled ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    labels: Vec<String>,
}

/// An attempt of a step.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AttemptBody {
    /// Its number, from 1.
    attempt: u32,
    /// When it became due.
    started_at: String,
    /// When its end was recorded.
    ended_at: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<FailureBody>,
    /// Metered instructions it used.
    #[serde(skip_serializing_if = "Option::is_none")]
    fuel_used: Option<u64>,
}

impl StepBody {
    pub(super) fn of(view: StepView) -> Self {
        let attempt = |view: &AttemptView| AttemptBody {
            attempt: view.attempt,
            started_at: rfc3339(view.started_at),
            ended_at: view.ended_at.map(rfc3339),
            failure: view.failure.as_ref().map(FailureBody::from),
            fuel_used: view.fuel_used,
        };
        Self {
            node: view.step.node.to_string(),
            items: view.step.items,
            status: view.status,
            waits_for: view.waits_for.map(|(reason, _)| reason),
            until: view.waits_for.and_then(|(_, until)| until).map(rfc3339),
            attempts: view.attempts.iter().map(attempt).collect(),
            output_size_bytes: view.output.as_ref().map(Payload::size_bytes),
            output: view.output.and_then(|output| match output {
                Payload::Inline(json) => Some(json),
                Payload::Stored(_) => None,
            }),
            labels: view.labels,
        }
    }
}

/// A file that a step has stored.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ArtifactBody {
    /// What `GET /v1/artifacts/{id}` takes.
    id: String,
    /// Where its content is.
    url: String,
    /// The run that stored it.
    #[schema(value_type = String)]
    run_id: RunId,
    /// The step that stored it.
    node: String,
    /// Its attempt.
    attempt: u32,
    /// Its name, as the step chose it.
    name: String,
    /// Its media type.
    media_type: String,
    /// Bytes of its content.
    size_bytes: u64,
    /// SHA-256 of its content.
    sha256: String,
    /// When it was stored.
    created_at: String,
    /// It has outlived its retention: its content is gone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    expired: bool,
}

impl ArtifactBody {
    pub(super) fn of(journal: &RedbJournal, key: &RunKey, view: ArtifactView) -> Result<Self, JournalError> {
        let id = artifact_id(key, view.seq);
        Ok(Self {
            expired: !journal.refers_to(key, &view.content.sha256)?,
            url: format!("/v1/artifacts/{id}"),
            id,
            run_id: key.run,
            node: view.step.node.to_string(),
            attempt: view.attempt,
            name: view.name,
            media_type: view.media_type,
            size_bytes: view.content.size_bytes,
            sha256: view.content.sha256.to_string(),
            created_at: rfc3339(view.at),
        })
    }
}

/// A workflow.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WorkflowBody {
    /// Its name.
    name: String,
    /// The version that new runs get.
    latest_version: String,
    /// When its first version was deployed.
    created_at: String,
    /// When its latest version was deployed.
    updated_at: String,
}

impl From<WorkflowRecord> for WorkflowBody {
    fn from(record: WorkflowRecord) -> Self {
        Self {
            name: record.name.to_string(),
            latest_version: record.latest.to_string(),
            created_at: rfc3339(record.created_at),
            updated_at: rfc3339(record.updated_at),
        }
    }
}

/// A version of a workflow.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VersionBody {
    /// The workflow's name.
    workflow: String,
    /// SHA-256 of the component.
    version: String,
    /// When it was first deployed.
    created_at: String,
    /// Bytes of the component.
    size_bytes: u64,
    /// What the component may ask the host for.
    imports: Vec<String>,
    /// Its graph.
    #[schema(value_type = Object)]
    graph: GraphSpec,
}

impl VersionBody {
    pub(super) fn of(workflow: &str, record: VersionRecord) -> Self {
        Self {
            workflow: workflow.to_owned(),
            version: record.version.to_string(),
            created_at: rfc3339(record.created_at),
            size_bytes: record.size_bytes,
            imports: record.imports,
            graph: record.graph,
        }
    }
}

/// An API key, without the key.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ApiKeyBody {
    /// The public part of the key.
    id: String,
    /// Whose it is.
    tenant: String,
    /// When it was created.
    created_at: String,
    /// When it stopped working.
    revoked_at: Option<String>,
}

impl From<ApiKeyRecord> for ApiKeyBody {
    fn from(record: ApiKeyRecord) -> Self {
        Self {
            id: record.id,
            tenant: record.tenant.to_string(),
            created_at: rfc3339(record.created_at),
            revoked_at: record.revoked_at.map(rfc3339),
        }
    }
}

/// What creates an API key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewKey {
    /// Whose it is to be.
    #[schema(value_type = String)]
    pub(super) tenant: TenantId,
}

/// A new API key. The key is shown this once.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NewKeyBody {
    /// The key.
    pub(super) key: String,
    /// What is kept of it.
    #[serde(flatten)]
    pub(super) record: ApiKeyBody,
}

/// An event of a run.
#[derive(Debug)]
pub(super) struct EventBody<'a> {
    run: &'a RunKey,
    recorded: &'a Recorded,
    /// The event's value, resolved where it is stored apart.
    value: Option<Json>,
    /// What it was, where it has outlived its retention.
    expired: Option<ContentRef>,
    /// Whether inputs, outputs and details are shown.
    shows_values: bool,
}

/// An event of a run: `seq`, `at`, `kind`, and what belongs to the kind.
#[derive(ToSchema)]
#[schema(as = Event)]
#[expect(dead_code, reason = "describes what EventBody writes; a test compares the two")]
pub(super) struct EventSchema {
    /// Its number in the run, from 1, without gaps.
    seq: u64,
    /// When it was decided (RFC 3339).
    at: String,
    /// What happened: `run.queued`, `run.started`, `run.suspended`, `run.resumed`, `run.paused`, `run.completed`, `run.failed`,
    /// `run.cancelled`, `signal.received`, `step.taken_over`, `step.started`, `step.update`, `step.log`, `step.artifact`, `step.call`, `step.suspended`, `step.resumed`,
    /// `step.completed`, `step.failed`, `step.rolled_back`, `step.skipped`, `step.cancelled`.
    kind: String,
    /// The step's node, for events of steps and for `run.failed`.
    node: Option<String>,
    /// Inside fan-outs and loops: the numbers of the item or iteration, from 0, outermost first.
    items: Option<Vec<u32>>,
    /// The step's attempt.
    attempt: Option<u32>,
    /// `run.queued`: the workflow.
    workflow: Option<String>,
    /// `run.queued`: the version.
    version: Option<String>,
    /// `run.queued`: the run's input. Not for tokens without `outputs`.
    #[schema(value_type = Option<Object>)]
    input: Option<Json>,
    /// `run.queued`: the run that started it as a child.
    parent: Option<String>,
    /// `run.queued`: the run that it repeats.
    rerun_of: Option<String>,
    /// `run.queued`: the step that it is repeated from.
    from_step: Option<String>,
    /// `run.queued`: the run that it shadows.
    shadow_of: Option<String>,
    /// `run.queued` of a shadow: whether it makes calls that are not on record.
    live: Option<bool>,
    /// `run.started`: when the run fails if it has not ended by then.
    deadline: Option<String>,
    /// `step.call`, `step.suspended`, `step.resumed`: the child that was started, is waited for, or has ended.
    child: Option<String>,
    /// `step.suspended`: the signal that is waited for.
    signal: Option<String>,
    /// `step.resumed`: what has ended the wait: `timer`, `timed_out`, `signal`, `child` or `operator`. Missing for a retry whose time
    /// has come, and for an attempt that was cut off and goes on.
    woke: Option<String>,
    /// `step.resumed` by a signal: the number of the signal's event.
    signal_seq: Option<u64>,
    /// `step.resumed` by a child: how it has ended (`completed`, `failed` or `cancelled`).
    child_status: Option<String>,
    /// `step.failed`: the attempts are used up, and the run is paused for an operator.
    pauses: Option<bool>,
    /// `run.completed`, `step.completed`, `step.taken_over`: the result. Not for tokens without `outputs`.
    #[schema(value_type = Option<Object>)]
    output: Option<Json>,
    /// `step.completed`: labels of the edges taken besides the unlabelled ones.
    labels: Option<Vec<String>>,
    /// `step.completed` of a node that opens a fan-out: how many items the result has.
    fan_out: Option<u32>,
    /// `step.completed` of a node that opens or closes a loop: there is one more iteration.
    again: Option<bool>,
    /// `step.completed`, `step.failed`: metered instructions used.
    fuel_used: Option<u64>,
    /// `step.update`: the topic.
    topic: Option<String>,
    /// `step.update`: what was published. `signal.received`: what it says; not for tokens without `outputs`.
    #[schema(value_type = Option<Object>)]
    payload: Option<Json>,
    /// `step.log`: `debug`, `info`, `warn` or `error`.
    level: Option<String>,
    /// `step.log`: the line.
    message: Option<String>,
    /// `step.artifact`: what `GET /v1/artifacts/{id}` takes.
    artifact: Option<String>,
    /// `step.artifact`: the file's name. `signal.received`: the signal's.
    name: Option<String>,
    /// `step.artifact`: its media type.
    media_type: Option<String>,
    /// `step.call`: what was called outside, such as `http.send`.
    call: Option<String>,
    /// `step.artifact`, `step.call`: bytes of its content, or of its answer. With `expired`, bytes of the value.
    size_bytes: Option<u64>,
    /// `step.artifact`: SHA-256 of its content. With `expired`, of the value.
    sha256: Option<String>,
    /// The value had more than 64 KiB and has outlived its retention: `input`, `output` or `payload` is `null`.
    expired: Option<bool>,
    /// `run.failed`, `step.failed`: why. Without `details` for tokens without `outputs`.
    failure: Option<FailureBody>,
    /// `step.failed`: whether another attempt follows.
    will_retry: Option<bool>,
    /// `step.failed`: when it starts.
    next_attempt_at: Option<String>,
    /// `run.suspended`, `step.suspended`: what it waits for (`signal`, `child`, `timer`, `retry`, `operator`). `run.cancelled`, `run.paused`: what
    /// was said.
    reason: Option<String>,
    /// `run.suspended`, `step.suspended`: when a timer ends the wait.
    until: Option<String>,
    /// `step.rolled_back`: the attempt's first update or artifact that does not count any more.
    first_seq: Option<u64>,
    /// `step.rolled_back`: the last one.
    last_seq: Option<u64>,
}

impl<'a> EventBody<'a> {
    /// `shows_values`: with inputs, outputs and details of failures; updates have theirs in any case.
    pub(super) fn of(
        journal: &impl Journal,
        run: &'a RunKey,
        recorded: &'a Recorded,
        shows_values: bool,
    ) -> Result<Self, Problem> {
        let payload = match &recorded.event {
            Event::StepUpdate { payload, .. } => Some(payload),
            _ if !shows_values => None,
            Event::RunQueued { input: payload, .. }
            | Event::RunCompleted { output: payload }
            | Event::SignalReceived { payload, .. }
            | Event::StepTakenOver { output: payload, .. }
            | Event::StepCompleted { output: payload, .. } => Some(payload),
            _ => None,
        };
        let value = payload.map(|payload| resolve(journal, run, payload)).transpose()?.flatten();
        let expired = payload.filter(|_| value.is_none()).and_then(Payload::stored).copied();
        Ok(Self { run, recorded, value, expired, shows_values })
    }

    fn failure(&self, failure: &Failure) -> FailureBody {
        let mut body = FailureBody::from(failure);
        body.details = body.details.filter(|_| self.shows_values);
        body
    }
}

impl Serialize for EventBody<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Recorded { seq, at, event } = self.recorded;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("seq", seq)?;
        map.serialize_entry("at", &rfc3339(*at))?;
        map.serialize_entry("kind", event.kind())?;
        if let Some(StepId { node, items }) = event.step() {
            map.serialize_entry("node", node)?;
            if !items.is_empty() {
                map.serialize_entry("items", items)?;
            }
        }
        match event {
            Event::RunQueued { workflow, version, parent, rerun_of, shadow_of, place, .. } => {
                map.serialize_entry("workflow", workflow)?;
                map.serialize_entry("version", version)?;
                optional(&mut map, "input", self.value.as_ref())?;
                optional(&mut map, "parent", parent.as_ref().map(|parent| parent.run))?;
                optional(&mut map, "rerun_of", rerun_of.as_ref().map(|rerun| rerun.run))?;
                let from_step = rerun_of.as_ref().and_then(|rerun| rerun.from_step.as_ref());
                optional(&mut map, "from_step", from_step.map(ToString::to_string))?;
                optional(&mut map, "shadow_of", shadow_of.as_ref().map(|shadow| shadow.run))?;
                optional(&mut map, "live", shadow_of.as_ref().map(|shadow| shadow.live))?;
                // Key and priority are computed from the input.
                let told = place.as_ref().filter(|_| self.shows_values);
                optional(&mut map, "flow_key", told.map(|place| &place.key))?;
                optional(&mut map, "priority", told.map(|place| place.priority))?;
                optional_time(&mut map, "not_before", place.as_ref().and_then(|place| place.not_before))?;
            }
            Event::RunStarted { deadline } => optional_time(&mut map, "deadline", *deadline)?,
            Event::RunResumed {} | Event::StepSkipped { .. } | Event::StepCancelled { .. } => {}
            Event::RunSuspended { reason, until } => {
                map.serialize_entry("reason", reason)?;
                optional_time(&mut map, "until", *until)?;
            }
            Event::StepSuspended { reason, until, call, .. } => {
                map.serialize_entry("reason", reason)?;
                optional_time(&mut map, "until", *until)?;
                if let Some(call) = call {
                    map.serialize_entry("call", &call.call)?;
                    optional(&mut map, "signal", call.signal.as_ref())?;
                    optional(&mut map, "child", call.child)?;
                }
            }
            Event::StepResumed { woke, .. } => match woke.as_deref() {
                None => {}
                Some(Woke::Timer) => map.serialize_entry("woke", "timer")?,
                Some(Woke::TimedOut) => map.serialize_entry("woke", "timed_out")?,
                Some(Woke::Operator) => map.serialize_entry("woke", "operator")?,
                Some(Woke::Signal { seq, .. }) => {
                    map.serialize_entry("woke", "signal")?;
                    map.serialize_entry("signal_seq", seq)?;
                }
                Some(Woke::Child(end)) => {
                    map.serialize_entry("woke", "child")?;
                    let status = match end {
                        ChildEnd::Completed { .. } => "completed",
                        ChildEnd::Failed { .. } => "failed",
                        ChildEnd::Cancelled => "cancelled",
                    };
                    map.serialize_entry("child_status", status)?;
                }
            },
            Event::SignalReceived { name, .. } => {
                map.serialize_entry("name", name)?;
                optional(&mut map, "payload", self.value.as_ref())?;
            }
            Event::StepTakenOver { labels, .. } => {
                optional(&mut map, "output", self.value.as_ref())?;
                if !labels.is_empty() {
                    map.serialize_entry("labels", labels)?;
                }
            }
            Event::RunCompleted { .. } => optional(&mut map, "output", self.value.as_ref())?,
            Event::RunFailed { failure, .. } => map.serialize_entry("failure", &self.failure(failure))?,
            Event::RunCancelled { reason } | Event::RunPaused { reason } => map.serialize_entry("reason", reason)?,
            Event::StepStarted { attempt, .. } => map.serialize_entry("attempt", attempt)?,
            Event::StepUpdate { attempt, topic, .. } => {
                map.serialize_entry("attempt", attempt)?;
                map.serialize_entry("topic", topic)?;
                map.serialize_entry("payload", &self.value)?;
            }
            Event::StepLog { attempt, level, message, .. } => {
                map.serialize_entry("attempt", attempt)?;
                map.serialize_entry("level", level)?;
                map.serialize_entry("message", message)?;
            }
            // What came of it is between the host and the step; the step's result tells what matters of it.
            Event::StepCall { attempt, call, result, child, .. } => {
                map.serialize_entry("attempt", attempt)?;
                map.serialize_entry("call", call)?;
                optional(&mut map, "child", child.as_ref().map(|child| child.run))?;
                map.serialize_entry("size_bytes", &result.size_bytes())?;
            }
            Event::StepArtifact { attempt, name, media_type, content, .. } => {
                map.serialize_entry("attempt", attempt)?;
                map.serialize_entry("artifact", &artifact_id(self.run, *seq))?;
                map.serialize_entry("name", name)?;
                map.serialize_entry("media_type", media_type)?;
                map.serialize_entry("size_bytes", &content.size_bytes)?;
                map.serialize_entry("sha256", &content.sha256)?;
            }
            Event::StepCompleted { attempt, labels, fan_out, again, fuel_used, .. } => {
                map.serialize_entry("attempt", attempt)?;
                optional(&mut map, "output", self.value.as_ref())?;
                if let Some(count) = fan_out {
                    map.serialize_entry("fan_out", count)?;
                }
                if *again {
                    map.serialize_entry("again", again)?;
                }
                if !labels.is_empty() {
                    map.serialize_entry("labels", labels)?;
                }
                map.serialize_entry("fuel_used", fuel_used)?;
            }
            Event::StepFailed { attempt, failure, will_retry, next_attempt_at, pauses, fuel_used, .. } => {
                map.serialize_entry("attempt", attempt)?;
                map.serialize_entry("failure", &self.failure(failure))?;
                map.serialize_entry("will_retry", will_retry)?;
                optional_time(&mut map, "next_attempt_at", *next_attempt_at)?;
                optional(&mut map, "pauses", pauses.then_some(true))?;
                map.serialize_entry("fuel_used", fuel_used)?;
            }
            Event::StepRolledBack { attempt, first_seq, last_seq, .. } => {
                map.serialize_entry("attempt", attempt)?;
                map.serialize_entry("first_seq", first_seq)?;
                map.serialize_entry("last_seq", last_seq)?;
            }
        }
        if let Some(ContentRef { sha256, size_bytes }) = &self.expired {
            map.serialize_entry("expired", &true)?;
            map.serialize_entry("size_bytes", size_bytes)?;
            map.serialize_entry("sha256", sha256)?;
        }
        map.end()
    }
}

fn optional<M: SerializeMap>(map: &mut M, name: &'static str, value: Option<impl Serialize>) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| map.serialize_entry(name, &value))
}

/// An event in a channel: where it is there, whose it is, and the event.
#[derive(Debug, Serialize)]
pub(super) struct ChannelEventBody<'a> {
    cursor: u64,
    run: RunId,
    workflow: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation: Option<&'a str>,
    #[serde(flatten)]
    event: EventBody<'a>,
}

/// An event in a channel: an update, a rollback, or the end of a run.
#[derive(ToSchema)]
#[schema(as = ChannelEvent)]
#[expect(dead_code, reason = "describes what ChannelEventBody writes")]
pub(super) struct ChannelEventSchema {
    /// Its number in the channel, from 1: what `after` and `Last-Event-ID` take.
    cursor: u64,
    /// The run.
    run: String,
    /// The run's workflow.
    workflow: String,
    /// What whoever started the run knows it by.
    correlation: Option<String>,
    /// The event's number in its run.
    seq: u64,
    /// When it was decided (RFC 3339).
    at: String,
    /// What happened: `step.update`, `step.rolled_back`, `run.completed`, `run.failed`, `run.cancelled`.
    kind: String,
    /// The step's node, for events of steps and for `run.failed`.
    node: Option<String>,
    /// Inside fan-outs and loops: the numbers of the item or iteration, from 0, outermost first.
    items: Option<Vec<u32>>,
    /// The step's attempt.
    attempt: Option<u32>,
    /// `step.update`: the topic.
    topic: Option<String>,
    /// `step.update`: what was published.
    #[schema(value_type = Option<Object>)]
    payload: Option<Json>,
    /// `step.rolled_back`: the run's seq of the attempt's first update that does not count any more.
    first_seq: Option<u64>,
    /// `step.rolled_back`: the last one.
    last_seq: Option<u64>,
    /// `run.completed`: the result. Not for tokens without `outputs`.
    #[schema(value_type = Option<Object>)]
    output: Option<Json>,
    /// `run.failed`: why. Without `details` for tokens without `outputs`.
    failure: Option<FailureBody>,
    /// `run.cancelled`: what was said.
    reason: Option<String>,
}

impl<'a> ChannelEventBody<'a> {
    pub(super) fn of(
        journal: &impl Journal,
        run: &'a RunKey,
        entry: &'a ChannelEntry,
        shows_values: bool,
    ) -> Result<Self, Problem> {
        Ok(Self {
            cursor: entry.cursor,
            run: entry.run,
            workflow: entry.summary.workflow.as_str(),
            correlation: entry.summary.correlation.as_deref(),
            event: EventBody::of(journal, run, &entry.recorded, shows_values)?,
        })
    }
}

fn optional_time<M: SerializeMap>(map: &mut M, name: &'static str, at: Option<Timestamp>) -> Result<(), M::Error> {
    optional(map, name, at.map(rfc3339))
}

/// A value, wherever it is; `None` for one that has outlived its retention.
fn resolve(journal: &impl Journal, key: &RunKey, payload: &Payload) -> Result<Option<Json>, Problem> {
    // Values go with their run, and the event may have been read before.
    let is_deleted = || Ok::<_, Problem>(journal.summary(key)?.is_none());
    if let Some(content) = payload.stored()
        && journal.content(&key.tenant, &content.sha256)?.is_none()
    {
        return if is_deleted()? { Err(Problem::unknown_run()) } else { Ok(None) };
    }
    read_payload(journal, key, payload.clone()).map(Some).map_err(|why| {
        if let Ok(true) = is_deleted() {
            return Problem::unknown_run();
        }
        tracing::error!(run = %key, why, "a stored value could not be read");
        Problem::internal()
    })
}
