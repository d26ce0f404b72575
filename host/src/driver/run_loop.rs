//! The loop of one run: the only writer of its journal.
//!
//! Everything that can wake it is one of [`Wake`]; one place waits ([`RunLoop::wait`]) and one handles. Events that
//! were decided are *staged*: folded into the state, in order, seen by nobody. One append at a time takes all that is
//! staged to disk; meanwhile further events are staged. Only what is durable is acted on: each [`Effect`] names the
//! event that made it due.
//!
//! When an append fails, the loop forgets everything and reads the run anew; its attempts are cut off as in a crash.

use std::collections::{HashMap, HashSet};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use hmac::{Hmac, Mac};
use sha2::{Digest as _, Sha256};
use stepwell_core::decide::Success;
use stepwell_core::event::{ChildEnd, ChildRef, LogLevel, ParentRef, RerunRef, ShadowRef, WaitingCall};
use stepwell_core::flow::FlowPlace;
use stepwell_core::graph::Delegate;
use stepwell_core::json::INLINE_BYTES_MAX;
use stepwell_core::rerun::TakenOver;
use stepwell_core::run::Value;
use stepwell_core::{
    Digest, Effect, Event, Failure, FailureKind, Graph, Input, Json, Payload, Refusal, Run, RunId, RunKey, RunStatus,
    Seq, StepId, Timestamp, WorkflowName,
};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Shared;
use super::elements::Elements;
use super::family::{self, Errand};
use super::flow::{Grant, Slot, SlotWait};
use super::placing::Placed;
use super::reading;
use super::record::{self, AttemptRecord, Page};
use super::registry::{Inbox, Messages};
use super::shadow::Shadowing;
use super::step_host::LoopHost;
use super::trail::Trails;
use crate::clock;
use crate::journal::flow::FlowId;
use crate::journal::{
    Batch, Content, Created, FlowChange, IdempotencyKey, Journal, JournalError, RunSummary, WakeChange, error_chain,
};
use crate::permits::Permit;
use crate::sandbox::{
    Attempt, AttemptEnd, AttemptTime, ChildError, Delegation, HostRefusal, Job, Record, StepOutput, StoredArtifact,
    Waited, journal_full,
};

/// Bytes of staged events after which the loop takes no message until they are on disk. Steps wait for their answers
/// meanwhile, so this is what slows down a step that publishes faster than the disk writes.
const STAGED_BYTES_MAX: usize = 1 << 20;
/// Stored bytes read at once when a run is taken up again, and how often before others get a turn.
const READ_BYTES: usize = 2 << 20;
const READS_MAX: usize = 2;
/// Results up to this many bytes are part of their event even in a run that keeps much in memory: a reference would
/// hardly be smaller.
const LITTLE_BYTES_MAX: usize = 128;
/// The longest sleep for a timer. The machine's clock may be set while we sleep.
const SLEEP_MAX: Duration = Duration::from_secs(30);
/// How long a run that waits is kept in memory: whoever talks to it often is answered without reading it again.
const LINGER: Duration = Duration::from_secs(1);
/// One that took long to read is kept for so many times as long, up to a limit: reading takes up a small part of the time
/// then, however often somebody talks to it.
const LINGER_FACTOR: u32 = 10;
const LINGER_MAX: Duration = Duration::from_secs(20);
// Else a run with a far timer would stay: each look at the clock begins the wait anew.
const _: () = assert!(LINGER_MAX.as_secs() < SLEEP_MAX.as_secs());
/// A run whose timer is due within this time stays in memory until then.
const SOON_MS: u64 = 5_000;
/// Events after which the state is kept: folding so many takes some milliseconds.
const SNAPSHOT_EVENTS: Seq = 2_000;
/// A large state is kept less often: after one event for so many of its bytes. Then what is written for it is not more
/// than a few times what the events themselves take.
const SNAPSHOT_BYTES_PER_EVENT: usize = 512;
/// A state of more bytes is not kept. What a run keeps in memory is far less, unless its signals pile up.
const SNAPSHOT_BYTES_MAX: usize = 64 << 20;

/// How a loop comes to its run.
pub(super) enum Beginning {
    /// Somebody asked for it.
    New { run: Box<NewRun>, reply: oneshot::Sender<Result<Created, JournalError>> },
    /// It is in the journal.
    Recovered,
}

/// A run that somebody asked for.
pub(super) struct NewRun {
    /// Its place in its workflow's flow control.
    pub(super) flow: Option<Placed>,
    pub(super) graph: Arc<Graph>,
    pub(super) workflow: WorkflowName,
    pub(super) version: Digest,
    pub(super) input: Json,
    pub(super) idempotency: Option<IdempotencyKey>,
    pub(super) parent: Option<ParentRef>,
    pub(super) rerun_of: Option<RerunRef>,
    pub(super) shadow_of: Option<ShadowRef>,
    pub(super) taken_over: Vec<TakenOver>,
    /// What whoever started it knows it by.
    pub(super) correlation: Option<String>,
}

/// Tells a step that its child is there, or why it is not.
type ChildReply = oneshot::Sender<Result<Result<RunId, ChildError>, HostRefusal>>;

/// A child that a step wants to start.
pub(super) struct NewChild {
    pub(super) workflow: WorkflowName,
    pub(super) version: Digest,
    pub(super) input: Json,
    pub(super) detached: bool,
}

/// What others tell a loop.
pub(super) enum Message {
    Publish {
        step: StepId,
        attempt: u32,
        topic: String,
        payload: Json,
        within_call: bool,
        reply: oneshot::Sender<Result<Seq, HostRefusal>>,
    },
    RecordCall {
        step: StepId,
        attempt: u32,
        call: &'static str,
        arguments: Digest,
        result: Json,
        /// Answered once it is on disk.
        reply: oneshot::Sender<Result<(), HostRefusal>>,
    },
    Log {
        step: StepId,
        attempt: u32,
        level: LogLevel,
        message: String,
        reply: oneshot::Sender<Result<(), HostRefusal>>,
    },
    StoreArtifact {
        step: StepId,
        attempt: u32,
        name: String,
        media_type: String,
        bytes: Bytes,
        reply: oneshot::Sender<Result<StoredArtifact, HostRefusal>>,
    },
    AttemptEnded {
        step: StepId,
        attempt: u32,
        /// Which instance of the attempt it was.
        spawn: u64,
        end: AttemptEnd,
    },
    Wait {
        step: StepId,
        attempt: u32,
        call: WaitingCall,
        /// How long at most.
        within_ms: Option<u64>,
        reply: oneshot::Sender<Result<Waited, HostRefusal>>,
    },
    StartChild {
        step: StepId,
        attempt: u32,
        call: &'static str,
        arguments: Digest,
        child: NewChild,
        reply: ChildReply,
    },
    ChildEnded {
        run: RunId,
        end: ChildEnd,
        /// Answered once what follows from it is on disk.
        reply: oneshot::Sender<()>,
    },
    /// Its time has come, and it may be in memory for that.
    Woken(Permit),
    /// The run's turn has come in its workflow's flow control.
    Granted(Grant),
    /// A later run has taken this one's place; without one, none is known.
    Superseded {
        by: Option<RunId>,
    },
    /// Something that somebody outside wants. Answered with the number of the first event that follows, once it is on
    /// disk.
    Control {
        input: Box<Input>,
        content: Option<Content>,
        reply: oneshot::Sender<Result<Seq, Refusal>>,
    },
}

/// All that can wake a loop.
enum Wake {
    Message(Message),
    Appended(Result<(), JournalError>),
    Room(Permit),
    Slot(Slot),
    TimerDue,
    Errand(Errand),
    Idle,
    Stopping,
    GraceOver,
}

/// Why a loop begins anew or ends.
enum Over {
    /// The run has ended or waits, and the loop has left the registry.
    Left,
    /// The host is stopping.
    Stopped,
    /// The journal refused an append: what is in memory may not be what is on disk.
    Lost(JournalError),
}

/// The loop of one run.
pub(super) struct RunLoop {
    shared: Arc<Shared>,
    key: RunKey,
    inbox: Inbox,
    run: Run,
    summary: Option<RunSummary>,
    /// The run that this one shadows.
    shadow: Option<Arc<Shadowing>>,
    /// The last event that is on disk.
    durable: Seq,
    /// The time of the last staged event. A run's time never goes back, whatever the machine's clock does.
    last_at: Timestamp,
    staged: Staged,
    appending: Option<Appending>,
    attempts: HashMap<StepId, UnderWay>,
    /// Attempts that were under way when the run was read, and on which nothing was decided yet.
    lost: Vec<(StepId, u32)>,
    /// Instances started so far. Each has its number, so that what an earlier one says of its end is not taken for a later
    /// one's.
    spawns: u64,
    /// Steps that were cancelled, by the number of the event: their attempts are stopped once it is on disk.
    cancelled: Vec<(Seq, StepId)>,
    /// What is being done for children and the parent.
    errands: FuturesUnordered<BoxFuture<'static, Errand>>,
    /// What was begun of it in this process, each by the run that it is about and the event that made it due.
    begun: HashSet<(RunId, Seq)>,
    /// Children that a wait has asked after. Whoever is resumed asks again: what was told while the run was paused was not
    /// heard.
    asked: HashSet<(RunId, Seq)>,
    /// Children that are being made, and by which step. An attempt that is taken up again goes on when they are there: what it
    /// does next says that they are.
    starting: HashMap<RunId, StepId>,
    /// Steps that wait for a child to be there.
    child_replies: HashMap<RunId, ChildReply>,
    /// Somebody could not be told. The next start tries again.
    family_failed: bool,
    settled: bool,
    /// The event that the state stands after which was kept last, and after how many further ones it is kept again.
    snapshot: Seq,
    snapshot_every: Seq,
    /// Where the events of attempts under way are.
    trails: Trails,
    /// How long the run stays in memory when it waits.
    linger: Duration,
    /// Leave to run steps. Given back while the run waits.
    room: Option<Permit>,
    /// The wait for it, kept from one look to the next: it is a place in a line.
    room_wait: Option<BoxFuture<'static, Permit>>,
    /// Leave to be in memory for a timer, until there is room.
    woken: Option<Permit>,
    /// What the run counts together with in its workflow's flow control.
    flow: Option<FlowId>,
    /// Leave to start, in flow control.
    grant: Option<Grant>,
    /// Leave to execute steps, in flow control: of steps that have ended, until it shows that no others are due.
    slots: Vec<Slot>,
    slot_wait: Option<SlotWait>,
    phase: Phase,
    /// The last event of those by which the run went on after it was paused.
    resumed: Seq,
    /// Whether something has changed that `act` looks at.
    look: bool,
    /// When to wake up for a timer, as `act` has found.
    wake_at: Option<Timestamp>,
    /// The state in memory is not to be trusted: nothing more is written.
    damaged: bool,
}

/// How far a loop is on its way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Driving,
    /// Nothing starts any more; what runs may end until then.
    Ending(Instant),
    /// What still ran was cut off.
    CutOff,
}

/// Decided, folded, and not yet given to the journal.
#[derive(Default)]
struct Staged {
    events: Vec<Event>,
    contents: Vec<Content>,
    bytes: usize,
    /// Content that the events refer to and that is stored already.
    references: Vec<Digest>,
    /// Who is to be told once it is on disk.
    told: Vec<Tell>,
}

/// Tells somebody that something is on disk.
type Tell = Box<dyn FnOnce() + Send>;

/// An attempt under way.
struct UnderWay {
    spawn: u64,
    slot: Option<Slot>,
    _attempt: Attempt,
}

impl Staged {
    fn stage(&mut self, events: Vec<Event>, content: Option<Content>) {
        self.bytes += events.iter().map(size_of_event).sum::<usize>();
        self.bytes += content.as_ref().map_or(0, |content| content.bytes.len());
        self.events.extend(events);
        self.contents.extend(content);
    }
}

struct Appending {
    done: BoxFuture<'static, Result<(), JournalError>>,
    last_seq: Seq,
    told: Vec<Tell>,
}

impl RunLoop {
    /// Drives a run to its end, or until the host stops.
    pub(super) async fn run(
        shared: Arc<Shared>,
        key: RunKey,
        mut inbox: Inbox,
        mut messages: Messages,
        beginning: Beginning,
    ) {
        let mut begun = Self::begin(&shared, &key, &inbox, beginning).await;
        loop {
            let mut this = match begun {
                Ok(Some(this)) => this,
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(run = %key, error = error_chain(&error), "a run cannot be taken up");
                    break;
                }
            };
            match this.drive(&mut messages).await {
                // Another loop may have entered by now: its entry is not ours to remove.
                Over::Left => return,
                Over::Stopped => break,
                // Content of another run that has outlived its retention in this moment: whoever looks again sees that.
                Over::Lost(error @ (JournalError::Fenced { .. } | JournalError::ContentGone(_))) => {
                    tracing::warn!(run = %key, %error, "a run is taken up anew");
                    drop(this);
                    // What its attempts so far have to say is of no use to those that follow.
                    (inbox, messages) = shared.registry.renew(&key);
                    begun = Self::recover(&shared, &key, &inbox).await;
                }
                Over::Lost(error) => {
                    // The journal is closed; the next start takes the run up.
                    tracing::error!(run = %key, error = error_chain(&error), "a run could not be recorded any further");
                    break;
                }
            }
        }
        shared.registry.remove(&key);
    }

    /// The loop of a run that is on disk; `None` when there is nothing to drive.
    async fn begin(
        shared: &Arc<Shared>,
        key: &RunKey,
        inbox: &Inbox,
        beginning: Beginning,
    ) -> Result<Option<Self>, JournalError> {
        match beginning {
            Beginning::Recovered => Self::recover(shared, key, inbox).await,
            Beginning::New { run, reply } => {
                let NewRun {
                    flow,
                    graph,
                    workflow,
                    version,
                    input,
                    idempotency,
                    parent,
                    rerun_of,
                    shadow_of,
                    taken_over,
                    correlation,
                } = *run;
                let mut this = Self::new(shared, key, inbox, graph);
                this.shadow = shadow_of.map(|of| Shadowing::new(key, of));
                this.run.limit_events(shared.journal.limits(&key.tenant).run_events);
                let (place, admission) = match flow {
                    None => (None, None),
                    Some(Placed { id, place, admission }) => {
                        // An error here costs the run its quick start and nothing else: the journal tells when it is created.
                        this.grant = shared.flow.try_grant(&id, &place, key.run).unwrap_or_default();
                        this.flow = Some(id);
                        (Some(place), Some(admission))
                    }
                };
                // Whoever follows a channel follows what was asked for.
                let channel = this.run.graph().spec().channel.clone().filter(|_| shadow_of.is_none());
                let (input, content) = payload_of(input);
                let results = taken_over.iter().map(|result| &result.output);
                this.staged.references = results.filter_map(Payload::stored).map(|content| content.sha256).collect();
                let queue = Input::Queue { workflow, version, input, parent, rerun_of, shadow_of, taken_over, place };
                let queued = this.decide(queue, content).and_then(|()| {
                    let may_start = this.flow.is_none() || this.grant.is_some();
                    this.room =
                        if may_start { shared.room_of(shadow_of.is_some()).try_acquire(&key.tenant) } else { None };
                    // With room at hand the first steps are due in the same write, unless it has failed already.
                    let is_queued = this.run.status() == Some(RunStatus::Queued);
                    if is_queued && this.room.is_some() && this.may_begin() {
                        this.decide(Input::Start, None)
                    } else {
                        Ok(())
                    }
                });
                if let Err(refusal) = queued {
                    tracing::error!(run = %key, %refusal, "a new run was refused"); // the core refuses no first event
                    return Ok(None);
                }
                let (mut batch, last_seq) = this.take_staged();
                for summary in [&mut this.summary, &mut batch.summary].into_iter().flatten() {
                    (summary.channel, summary.correlation) = (channel.clone(), correlation.clone());
                }
                batch.channel = channel;
                batch.admission = admission;
                let created = shared.journal.create(key, batch, idempotency).await;
                this.durable = last_seq;
                let is_new = matches!(created, Ok(Created::New { .. }));
                // Here, where no client can hang up: the run whose place this one takes would wait for nothing.
                if let Ok(Created::New { superseded: Some(superseded) }) = &created {
                    shared.supersede(&key.tenant, *superseded, key.run);
                }
                if is_new {
                    this.flow_recorded();
                }
                // Nobody may be waiting any more; the run is there all the same.
                drop(reply.send(created));
                Ok(is_new.then_some(this))
            }
        }
    }

    /// Reads a run and folds it, in turns with others. Attempts that were under way are lost with the host that ran them.
    async fn recover(shared: &Arc<Shared>, key: &RunKey, inbox: &Inbox) -> Result<Option<Self>, JournalError> {
        let (of, this_key, inbox) = (Arc::clone(shared), key.clone(), inbox.clone());
        let restored = shared.readers.read(&key.tenant, move || {
            let began = Instant::now();
            let Some(mut this) = Self::restore(&of, &this_key, &inbox)? else { return Ok(None) };
            let is_whole = this.fold_further()?;
            Ok(Some((this, is_whole, began.elapsed())))
        });
        let closed = |_stopping| JournalError::Closed;
        let Some((mut this, mut is_whole, mut reading)) = restored.await.map_err(closed)?? else { return Ok(None) };
        while !is_whole {
            if shared.stopping.is_cancelled() {
                return Ok(None);
            }
            let folded = shared.readers.read(&key.tenant, move || {
                let began = Instant::now();
                let is_whole = this.fold_further()?;
                Ok((this, is_whole, reading + began.elapsed()))
            });
            (this, is_whole, reading) = folded.await.map_err(closed)??;
        }
        this.linger = (reading * LINGER_FACTOR).clamp(LINGER, LINGER_MAX);
        this.durable = this.run.last_seq();
        let damaged = |reason: String| JournalError::Damaged { what: format!("run {key}"), reason };
        for effect in this.run.owed() {
            if let Effect::RunStep { step, attempt, .. } = effect
                && this.run.has_begun(&step)
            {
                this.lost.push((step, attempt));
            }
        }
        // In a paused run nothing goes on, and so nothing says that it does.
        if this.run.status() != Some(RunStatus::Paused) {
            this.take_up_lost().map_err(|refusal| damaged(refusal.to_string()))?;
        }
        Ok(Some(this))
    }

    /// Decides on the attempts that were lost, once.
    fn take_up_lost(&mut self) -> Result<(), Refusal> {
        for (step, attempt) in std::mem::take(&mut self.lost) {
            let can_resume = self.run.can_resume(&step);
            match self.decide(Input::AttemptLost { step, attempt, can_resume }, None) {
                Ok(()) => {}
                // One of them was lost once too often: the run has failed, and the others end with it.
                Err(Refusal::Ended(_)) => break,
                // Or its item has, and this one was cancelled with it.
                Err(Refusal::NotUnderWay { .. }) => {}
                Err(refusal) => return Err(refusal),
            }
        }
        Ok(())
    }

    /// The loop of a run as its last state says that was kept; or at its very beginning.
    fn restore(shared: &Arc<Shared>, key: &RunKey, inbox: &Inbox) -> Result<Option<Self>, JournalError> {
        let Some(summary) = shared.journal.summary(key)? else { return Ok(None) };
        let graph = shared.graph(&key.tenant, &summary.workflow, summary.version);
        let graph =
            graph.map_err(|error| JournalError::Damaged { what: format!("run {key}"), reason: error.to_string() })?;
        let mut this = Self::new(shared, key, inbox, graph);
        this.shadow = summary.shadow_of.map(|of| Shadowing::new(key, of));
        this.flow = summary.place.as_ref().map(|place| FlowId::new(&key.tenant, &summary.workflow, place));
        this.summary = Some(summary);
        if let Some((seq, bytes)) = shared.journal.snapshot(key)? {
            let restored = Run::restore(Arc::clone(this.run.graph()), &bytes);
            // It is a copy: the events say the same, and take longer to.
            if let Some((run, at)) = restored.filter(|(run, _)| run.last_seq() == seq) {
                (this.run, this.last_at, this.snapshot) = (run, at, seq);
                this.snapshot_every = snapshot_every(bytes.len());
            }
        }
        this.run.limit_events(shared.journal.limits(&key.tenant).run_events);
        Ok(Some(this))
    }

    /// Folds some of the events that are on disk, and says whether that were all.
    fn fold_further(&mut self) -> Result<bool, JournalError> {
        let damaged = |reason: String| JournalError::Damaged { what: format!("run {}", self.key), reason };
        for _ in 0..READS_MAX {
            let page = self.shared.journal.read(&self.key, self.run.last_seq(), READ_BYTES)?;
            if page.is_empty() {
                return Ok(true);
            }
            for recorded in page {
                if recorded.seq != self.run.last_seq() + 1 {
                    return Err(damaged(format!("event {} follows event {}", recorded.seq, self.run.last_seq())));
                }
                self.run.apply(&recorded.event).map_err(|error| damaged(error.to_string()))?;
                self.trails.see(&self.run, recorded.seq, &recorded.event);
                self.last_at = recorded.at;
            }
        }
        Ok(false)
    }

    fn new(shared: &Arc<Shared>, key: &RunKey, inbox: &Inbox, graph: Arc<Graph>) -> Self {
        Self {
            shared: Arc::clone(shared),
            key: key.clone(),
            inbox: inbox.clone(),
            run: Run::new(graph),
            summary: None,
            shadow: None,
            durable: 0,
            last_at: Timestamp::default(),
            staged: Staged::default(),
            appending: None,
            attempts: HashMap::new(),
            cancelled: Vec::new(),
            lost: Vec::new(),
            spawns: 0,
            errands: FuturesUnordered::new(),
            begun: HashSet::new(),
            asked: HashSet::new(),
            starting: HashMap::new(),
            child_replies: HashMap::new(),
            family_failed: false,
            settled: false,
            snapshot: 0,
            snapshot_every: SNAPSHOT_EVENTS,
            trails: Trails::default(),
            linger: LINGER,
            room: None,
            room_wait: None,
            woken: None,
            flow: None,
            grant: None,
            slots: Vec::new(),
            slot_wait: None,
            phase: Phase::Driving,
            resumed: 0,
            look: true,
            wake_at: None,
            damaged: false,
        }
    }

    async fn drive(&mut self, messages: &mut Messages) -> Over {
        loop {
            if self.damaged {
                let reason = "a decision could not be folded".to_owned();
                return Over::Lost(JournalError::Damaged { what: format!("run {}", self.key), reason });
            }
            self.append_staged();
            if std::mem::take(&mut self.look) {
                self.act();
                // A child that was asked after may have ended, and then something follows.
                self.append_staged();
            }
            if self.is_done() {
                if self.phase != Phase::Driving {
                    return Over::Stopped;
                }
                if !self.is_settled() {
                    self.settle();
                } else if self.shared.registry.leave(&self.key, messages) {
                    return Over::Left;
                }
            }
            match self.wait(messages).await {
                Wake::Message(message) => self.handle(message),
                Wake::Appended(Ok(())) => self.appended(),
                Wake::Appended(Err(error)) => return Over::Lost(error),
                Wake::Room(permit) => {
                    self.room = Some(permit);
                    (self.room_wait, self.woken) = (None, None);
                    self.look = true;
                    if self.run.status() == Some(RunStatus::Queued) && self.may_begin() {
                        self.expect(Input::Start, None);
                    }
                }
                Wake::Slot(slot) => {
                    self.slot_wait = None;
                    self.slots.push(slot);
                    self.look = true;
                }
                Wake::TimerDue => {
                    self.look = true; // for the next timer, if this one was early
                    self.expect(Input::TimerDue, None);
                }
                Wake::Errand(errand) => self.errand_done(errand),
                Wake::Idle => {
                    if self.shared.registry.leave(&self.key, messages) {
                        return Over::Left;
                    }
                }
                Wake::Stopping => {
                    self.phase = Phase::Ending(Instant::now() + self.shared.grace);
                    self.room_wait = None;
                }
                Wake::GraceOver => {
                    // What is cut off here is owed after the next start.
                    self.phase = Phase::CutOff;
                    self.attempts.clear();
                }
            }
        }
    }

    /// Nothing is left to write, and nothing to wait for: the run has ended, or the host is stopping.
    fn is_done(&self) -> bool {
        let idle = self.is_idle() && (self.errands.is_empty() || self.phase != Phase::Driving);
        idle && (self.run.has_ended() || self.phase != Phase::Driving)
    }

    fn is_idle(&self) -> bool {
        self.appending.is_none() && self.staged.events.is_empty() && self.attempts.is_empty()
    }

    /// Whether the run can be let go of: it waits, and whoever it waits for, the clock included, will find it.
    fn can_leave(&self) -> bool {
        let Some(summary) = &self.summary else { return false };
        // On disk stands when to wake it, and it is not so soon that reading it again would be a waste.
        let waits = matches!(summary.status, RunStatus::Suspended | RunStatus::Paused)
            && summary.waits_until == self.wake_at
            && self.wake_at.is_none_or(|at| at.millis_since(clock::now()) > SOON_MS);
        // Whoever has a grant is about to start.
        let queues = self.is_in_queue() && self.grant.is_none();
        (waits || queues)
            && self.is_idle()
            && self.errands.is_empty()
            // What a paused run owes it does when it is resumed.
            && (summary.status == RunStatus::Paused
                || !self.run.owed().iter().any(|effect| matches!(effect, Effect::RunStep { .. })))
    }

    /// Whether the run is in the journal's queue, from which it is taken up when its turn has come.
    fn is_in_queue(&self) -> bool {
        self.flow.is_some() && self.summary.as_ref().is_some_and(|summary| summary.status == RunStatus::Queued)
    }

    /// Whether the list of unfinished runs says what is true.
    fn is_settled(&self) -> bool {
        self.settled || self.family_failed || self.run.owed().is_empty()
    }

    fn settle(&mut self) {
        let (journal, key) = (Arc::clone(&self.shared.journal), self.key.clone());
        self.errands.push(Box::pin(async move { Errand::Settled(journal.settle(&key).await) }));
    }

    /// The one place that waits.
    async fn wait(&mut self, messages: &mut Messages) -> Wake {
        let can_leave = self.phase == Phase::Driving && self.can_leave();
        let Self { shared, appending, staged, phase, room_wait, wake_at, errands, linger, slot_wait, .. } = self;
        // More is taken in while an append is under way, up to a limit; without one the limit could not be left again.
        let listens = appending.is_none() || staged.bytes < STAGED_BYTES_MAX;
        let appended = async {
            match appending {
                Some(append) => (&mut append.done).await,
                None => pending().await,
            }
        };
        let driving = *phase == Phase::Driving;
        let timer = async {
            match *wake_at {
                Some(at) => {
                    tokio::time::sleep(Duration::from_millis(at.millis_since(clock::now())).min(SLEEP_MAX)).await;
                }
                None => pending().await,
            }
        };
        let room = async {
            match room_wait {
                Some(wait) => wait.await,
                None => pending().await,
            }
        };
        let slot = async {
            match slot_wait {
                Some(wait) => wait.slot().await,
                None => pending().await,
            }
        };
        let grace = async {
            match *phase {
                Phase::Ending(at) => tokio::time::sleep_until(at).await,
                Phase::Driving | Phase::CutOff => pending().await,
            }
        };
        tokio::select! {
            biased; // what is done comes before what is new
            result = appended => Wake::Appended(result),
            Some(message) = messages.recv(), if listens => Wake::Message(message),
            Some(errand) = errands.next(), if !errands.is_empty() => Wake::Errand(errand),
            () = timer, if driving => Wake::TimerDue,
            permit = room, if driving => Wake::Room(permit),
            slot = slot, if driving => Wake::Slot(slot),
            () = shared.stopping.cancelled(), if driving => Wake::Stopping,
            () = tokio::time::sleep(*linger), if can_leave => Wake::Idle,
            () = grace => Wake::GraceOver,
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Publish { step, attempt, topic, payload, within_call, reply } => {
                let (payload, content) = payload_of(payload);
                let decided = self.decide(Input::Publish { step, attempt, topic, payload, within_call }, content);
                // The order is fixed now, and with it the position; a step need not wait for the disk.
                let _ = reply.send(decided.map(|()| self.run.last_seq()).map_err(refusal_for_guest));
            }
            Message::RecordCall { step, attempt, call, arguments, result, reply } => {
                let (result, content) = payload_of(result);
                let call = call.to_owned();
                match self.decide(Input::RecordCall { step, attempt, call, arguments, result }, content) {
                    Ok(()) => self.staged.told.push(Box::new(move || {
                        let _ = reply.send(Ok(()));
                    })),
                    Err(refusal) => drop(reply.send(Err(refusal_for_guest(refusal)))),
                }
            }
            Message::Wait { step, attempt, call, within_ms, reply } => {
                let until = within_ms.map(|ms| clock::now().plus_millis(ms));
                match self.decide(Input::Wait { step: step.clone(), attempt, call, until }, None) {
                    Ok(()) => self.suspended(&step, reply),
                    Err(refusal) => drop(reply.send(Err(refusal_for_guest(refusal)))),
                }
            }
            Message::StartChild { step, attempt, call, arguments, child, reply } => {
                let NewChild { workflow, version, input, detached } = child;
                let run = clock::run_id();
                let (input, content) = payload_of(input);
                let child = Box::new(ChildRef { run, workflow, version, input, detached });
                let result = Payload::Inline(record::started(run));
                let input = Input::StartChild { step, attempt, call: call.to_owned(), arguments, result, child };
                match self.decide(input, content) {
                    Ok(()) => drop(self.child_replies.insert(run, reply)),
                    Err(Refusal::TooDeep) => drop(reply.send(Ok(Err(ChildError::TooDeep)))),
                    Err(Refusal::TooManyChildren) => drop(reply.send(Ok(Err(ChildError::TooMany)))),
                    Err(refusal) => drop(reply.send(Err(refusal_for_guest(refusal)))),
                }
            }
            Message::ChildEnded { run, end, reply } => {
                self.child_ended(run, end);
                self.staged.told.push(Box::new(move || {
                    let _ = reply.send(());
                }));
                self.tell_if_durable();
            }
            Message::Woken(permit) => {
                self.woken = Some(permit);
                self.look = true;
            }
            Message::Granted(grant) => self.granted(grant),
            Message::Superseded { by } => self.superseded(by),
            Message::Control { input, content, reply } => {
                let first = self.run.last_seq() + 1;
                match self.decide(*input, content) {
                    Ok(()) => self.staged.told.push(Box::new(move || drop(reply.send(Ok(first))))),
                    // What it is refused for may be on its way to disk still.
                    Err(refusal) => {
                        self.staged.told.push(Box::new(move || drop(reply.send(Err(refusal)))));
                        self.tell_if_durable();
                    }
                }
            }
            Message::Log { step, attempt, level, message, reply } => {
                let decided = self.decide(Input::Log { step, attempt, level, message }, None);
                let _ = reply.send(decided.map_err(refusal_for_guest));
            }
            Message::StoreArtifact { step, attempt, name, media_type, bytes, reply } => {
                let content = content_of(bytes);
                let reference = content.reference();
                let input = Input::StoreArtifact { step, attempt, name, media_type, content: reference };
                let decided = self.decide(input, Some(content));
                let seq = self.run.last_seq();
                let stored = StoredArtifact { id: artifact_id(&self.key, seq), seq, sha256: reference.sha256 };
                drop(reply.send(decided.map(|()| stored).map_err(refusal_for_guest)));
            }
            Message::AttemptEnded { step, attempt, spawn, end } => {
                // Another instance, or none, may stand there by now: this one was suspended or cancelled.
                if self.attempts.get(&step).is_none_or(|under_way| under_way.spawn != spawn) {
                    return;
                }
                // The next step of this run may take it.
                self.slots.extend(self.attempts.remove(&step).and_then(|under_way| under_way.slot));
                let (result, content) = match end.result {
                    Ok(StepOutput { output, labels, next }) => {
                        let inline = if self.run.keeps_much() { LITTLE_BYTES_MAX } else { INLINE_BYTES_MAX };
                        let (output, content) = payload_within(output, inline);
                        (Ok(Success { output, labels, next }), content)
                    }
                    Err(failure) => (Err(failure), None),
                };
                self.expect(Input::AttemptEnded { step, attempt, result, fuel_used: end.fuel_used }, content);
            }
        }
    }

    /// A step has begun to wait. If what it waits for had come already, it goes on at once, in the instance that it has;
    /// otherwise that instance ends here.
    fn suspended(&mut self, step: &StepId, reply: oneshot::Sender<Result<Waited, HostRefusal>>) {
        let resumed = self.staged.events.iter().rev().find_map(|event| match event {
            Event::StepResumed { step: resumed, woke } if resumed == step => Some(woke.clone()),
            Event::StepSuspended { step: suspended, .. } if suspended == step => Some(None),
            _ => None,
        });
        let Some(woke) = resumed.flatten() else {
            self.attempts.remove(step);
            drop(reply.send(Ok(Waited::Suspended)));
            return;
        };
        let (journal, key) = (Arc::clone(&self.shared.journal), self.key.clone());
        let (tenant, run) = (key.tenant.clone(), key.clone());
        let is_large = record::is_large(&woke);
        let read = move || record::of_wait(&*journal, &key, *woke);
        let tell = move |answer: Result<Json, String>| {
            drop(reply.send(answer.map(Waited::Answered).map_err(|why| {
                tracing::error!(%run, why, "what ended a wait could not be read");
                HostRefusal::Unavailable
            })));
        };
        let readers = self.shared.readers.clone();
        self.staged.told.push(Box::new(move || {
            if is_large {
                let read =
                    async move { readers.read(&tenant, read).await.unwrap_or_else(|gone| Err(gone.to_string())) };
                drop(tokio::spawn(async move { tell(read.await) }));
            } else {
                tell(read());
            }
        }));
    }

    /// A child has ended. Its output becomes this run's too.
    fn child_ended(&mut self, run: RunId, end: ChildEnd) {
        let content = match &end {
            ChildEnd::Completed { output } => output.stored().map(|content| content.sha256),
            ChildEnd::Failed { .. } | ChildEnd::Cancelled => None,
        };
        let before = self.run.last_seq();
        self.expect(Input::ChildEnded { run, end }, None);
        self.staged.references.extend(content.filter(|_| self.run.last_seq() > before));
    }

    /// Tells whoever waits for the disk, when everything is on it.
    fn tell_if_durable(&mut self) {
        if self.appending.is_none() && self.staged.events.is_empty() {
            self.staged.told.drain(..).for_each(|tell| tell());
        }
    }

    fn errand_done(&mut self, errand: Errand) {
        self.look = true;
        match errand {
            Errand::ChildStarted { run, started } => {
                self.starting.remove(&run);
                if let Some(reply) = self.child_replies.remove(&run) {
                    // One that is not there shows in the wait for it.
                    drop(reply.send(if started { Ok(Ok(run)) } else { Err(HostRefusal::Unavailable) }));
                }
            }
            // Whoever asks next is the host that comes after this one, when this one stops.
            Errand::AskAgain { run, since } => {
                if !self.shared.stopping.is_cancelled() {
                    self.asked.remove(&(run, since));
                }
            }
            Errand::Told { told } => self.family_failed |= !told,
            Errand::Snapshotted(Ok(())) => {}
            Errand::Snapshotted(Err(error)) => {
                tracing::warn!(run = %self.key, error = error_chain(&error), "the state of a run could not be kept");
            }
            Errand::Settled(Ok(())) => self.settled = true,
            Errand::Settled(Err(error)) => {
                tracing::warn!(run = %self.key, error = error_chain(&error), "an ended run is still listed");
                self.family_failed = true;
            }
        }
    }

    /// Decides on something that comes from the host itself. A refusal means that the run has moved on, for instance
    /// that it was cancelled just before.
    fn expect(&mut self, input: Input, content: Option<Content>) {
        if let Err(refusal) = self.decide(input, content) {
            tracing::debug!(run = %self.key, %refusal, "nothing followed");
        }
    }

    /// Decides, folds and stages. `content` is what the input refers to; it is staged only when something follows.
    fn decide(&mut self, input: Input, content: Option<Content>) -> Result<(), Refusal> {
        let now = clock::now();
        let was_paused = self.run.status() == Some(RunStatus::Paused);
        let decided = self.run.decide(input, now, clock::dice())?;
        let events = self.run.follow(decided).map_err(|error| {
            // The core does not decide what it cannot fold; its tests say so for every history they know. What is
            // in memory is not to be trusted any more, and nothing of it may reach the disk.
            tracing::error!(run = %self.key, %error, "a decided event could not be folded");
            self.damaged = true;
            Refusal::OutOfPlace
        })?;
        for (event, seq) in events.iter().rev().zip((1..=self.run.last_seq()).rev()) {
            if let Event::StepCancelled { step } = event {
                self.cancelled.push((seq, step.clone()));
            }
        }
        let first = self.run.last_seq() + 1 - events.len() as u64;
        for (seq, event) in (first..).zip(&events) {
            self.trails.see(&self.run, seq, event);
        }
        self.staged.stage(events, content);
        // Timers go by the machine's clock; the run's own time never goes back.
        self.last_at = self.last_at.max(now);
        if was_paused && self.run.status() != Some(RunStatus::Paused) {
            self.resumed = self.run.last_seq();
            self.asked.clear();
            if let Err(refusal) = self.take_up_lost() {
                tracing::error!(run = %self.key, %refusal, "an attempt that was cut off cannot be taken up again");
            }
        }
        Ok(())
    }

    /// All that is staged, as one batch, and the number of its last event.
    fn take_staged(&mut self) -> (Batch, Seq) {
        let Staged { events, contents, references, .. } = std::mem::take(&mut self.staged);
        let last_seq = self.run.last_seq();
        let first_seq = last_seq + 1 - events.len() as u64;
        let mut batch = Batch { at: self.last_at, events, contents, references, ..Batch::default() };
        let after = RunSummary::after(self.summary.as_ref(), first_seq, self.last_at, &batch.events);
        // In a paused run a step may end whose children are to be cancelled, and no state of the run tells.
        let paused = || self.summary.clone().filter(|summary| summary.status == RunStatus::Paused);
        if let Some(mut summary) = after.or_else(paused) {
            let owed = self.run.owed();
            let has_family =
                owed.iter().any(|effect| !matches!(effect, Effect::WakeAt { .. } | Effect::RunStep { .. }));
            let moves = has_family || owed.iter().any(|effect| matches!(effect, Effect::RunStep { .. }));
            summary.parked = match summary.status {
                RunStatus::Suspended => !moves,
                // What it owes otherwise it does when it is resumed; attempts under way end in the loop that it has.
                RunStatus::Paused => !has_family,
                RunStatus::Queued => summary.place.is_some(),
                _ => false,
            };
            if summary.status == RunStatus::Paused {
                // Only its time limit goes on.
                let wakes = owed
                    .iter()
                    .filter_map(|effect| if let Effect::WakeAt { at, .. } = effect { Some(*at) } else { None });
                summary.waits_until = wakes.min();
            }
            let before = self.summary.as_ref();
            let was_parked = before.is_some_and(|before| before.parked);
            let is_new = before.is_none();
            batch.listed = match summary.status.is_terminal() {
                true => Some(has_family),
                false => (summary.parked != was_parked || is_new).then_some(!summary.parked),
            };
            let wake = WakeChange { before: before.and_then(|before| before.waits_until), after: summary.waits_until };
            batch.wake = (wake.before != wake.after).then_some(wake);
            batch.flow = flow_change(before, &summary, self.grant.as_ref());
            if before != Some(&summary) {
                self.summary = Some(summary.clone());
                batch.summary = Some(summary);
            }
        }
        batch.channel = self.summary.as_ref().and_then(|summary| summary.channel.clone());
        (batch, last_seq)
    }

    fn append_staged(&mut self) {
        if self.damaged || self.appending.is_some() || self.staged.events.is_empty() {
            return;
        }
        let told = std::mem::take(&mut self.staged.told);
        let (batch, last_seq) = self.take_staged();
        let (journal, key, durable) = (Arc::clone(&self.shared.journal), self.key.clone(), self.durable);
        let done = Box::pin(async move { journal.append(&key, durable, batch).await });
        self.appending = Some(Appending { done, last_seq, told });
    }

    fn appended(&mut self) {
        if let Some(append) = self.appending.take() {
            self.durable = append.last_seq;
            self.look = true;
            append.told.into_iter().for_each(|tell| tell());
            // Those who came meanwhile and of whom nothing followed.
            self.tell_if_durable();
            self.flow_recorded();
            self.keep_state();
        }
    }

    /// Keeps the state of a long run, where it is what is on disk and nothing more.
    fn keep_state(&mut self) {
        let is_durable = self.staged.events.is_empty() && self.durable == self.run.last_seq();
        if !is_durable || self.run.has_ended() || self.durable < self.snapshot + self.snapshot_every {
            return;
        }
        let Some(_turn) = self.shared.readers.try_turn(&self.key.tenant) else { return };
        let Some(bytes) = reading::in_place(|| self.run.snapshot(self.last_at)) else { return };
        // If it is too large now, it is tried again so many events later.
        (self.snapshot, self.snapshot_every) = (self.durable, snapshot_every(bytes.len()));
        if bytes.len() > SNAPSHOT_BYTES_MAX {
            let size_bytes = bytes.len();
            tracing::warn!(run = %self.key, size_bytes, "the state of a run is too large to be kept; going on will take long");
            return;
        }
        let (journal, key, seq) = (Arc::clone(&self.shared.journal), self.key.clone(), self.durable);
        self.errands.push(Box::pin(async move { Errand::Snapshotted(journal.put_snapshot(&key, seq, bytes).await) }));
    }

    /// Does what is owed and durable, and stops what is not owed any more.
    fn act(&mut self) {
        if self.run.has_ended() && self.durable == self.run.last_seq() {
            // What still runs belongs to a run that failed or was cancelled: it stops at its next yield.
            self.attempts.clear();
        }
        let (durable, attempts) = (self.durable, &mut self.attempts);
        self.cancelled.retain(|(seq, step)| {
            let is_due = *seq <= durable;
            if is_due {
                attempts.remove(step);
            }
            !is_due
        });
        self.wake_at = None;
        // What was due before the run was paused is held until it is on disk that the run goes on.
        let is_held = self.run.status() == Some(RunStatus::Paused) || self.resumed > self.durable;
        // Whether the run needs its room, whether it has something to do as soon as there is room, whether it waits for leave to
        // execute a step, and for how many steps it has use for such leave, those included that begin when what was decided is
        // on disk.
        let (mut moves, mut wants_room, mut lacks_slot, mut to_execute) = (false, false, false, 0);
        for effect in self.run.owed() {
            match effect {
                // The contract: nothing acts on what is not on disk. `appended` makes us look again.
                _ if effect.since() > self.durable => {
                    moves |= matches!(effect, Effect::RunStep { .. } | Effect::StartRun { .. });
                    to_execute += usize::from(matches!(effect, Effect::RunStep { .. }));
                }
                Effect::RunStep { step, node, attempt, since } => {
                    if self.attempts.contains_key(&step) {
                        moves = true;
                    } else if self.phase != Phase::Driving || is_held || self.starting.values().any(|by| *by == step) {
                        // Not now.
                    } else if !self.has_slot() {
                        // Its room is not kept meanwhile: whoever has the slot may wait for just that.
                        lacks_slot = true;
                    } else {
                        moves = true;
                        if self.room.is_some() {
                            self.start_attempt(step, node, attempt, since);
                        } else {
                            wants_room = true;
                            to_execute += 1;
                        }
                    }
                }
                Effect::WakeAt { at, .. } => {
                    self.wake_at = Some(self.wake_at.map_or(at, |earliest| earliest.min(at)));
                }
                Effect::StartRun { .. } => {
                    let may_start = self.flow.is_none() || self.grant.is_some();
                    wants_room |= may_start;
                    moves |= may_start;
                }
                Effect::StartChild { .. }
                | Effect::AskChild { .. }
                | Effect::CancelChild { .. }
                | Effect::TellParent { .. } => self.see_to_family(effect),
            }
        }
        if !moves {
            // A run that waits holds up nobody.
            self.room = None;
        }
        if !lacks_slot {
            self.slot_wait = None;
        }
        if !wants_room {
            self.room_wait = None;
        } else if self.room_wait.is_none() {
            let (shared, tenant, is_shadow) =
                (Arc::clone(&self.shared), self.key.tenant.clone(), self.shadow.is_some());
            self.room_wait = Some(Box::pin(async move { shared.room_of(is_shadow).acquire(&tenant).await }));
        }
        // The slot of a step that has ended is for the one that follows it, if one does; else it is others'. Whoever waits for
        // room keeps one.
        self.slots.truncate(if self.room.is_some() { to_execute } else { to_execute.min(1) });
    }

    /// Whether there is leave to execute one more step. If there is not, the run waits for it from here on.
    fn has_slot(&mut self) -> bool {
        let Some(id) = &self.flow else { return true };
        if self.slots.is_empty() && self.slot_wait.is_none() {
            let place = self.summary.as_ref().and_then(|summary| summary.place.as_ref());
            match self.shared.flow.slot_or_wait(id, place.map_or(0, |place| place.priority), self.key.run) {
                Ok(slot) => self.slots.push(slot),
                Err(wait) => self.slot_wait = Some(wait),
            }
        }
        !self.slots.is_empty()
    }

    /// The run's turn has come, unless it has moved on: then the grant is another's.
    fn granted(&mut self, grant: Grant) {
        if self.run.status() != Some(RunStatus::Queued) || self.grant.is_some() {
            return;
        }
        let place = self.summary.as_ref().and_then(|summary| summary.place.as_ref());
        if let Some((id, FlowPlace { not_before: Some(_), .. })) = self.flow.as_ref().zip(place) {
            match self.shared.flow.is_latest(id, self.key.run) {
                Ok(true) => {}
                Ok(false) => return self.superseded(None),
                Err(error) => {
                    tracing::error!(run = %self.key, error = error_chain(&error), "a place in the queue could not be read");
                    return;
                }
            }
        }
        self.grant = Some(grant);
        self.look = true;
    }

    /// Whether a run with room may start at this moment: others with the same key may have started since it was granted
    /// that. Then it goes back to the queue.
    fn may_begin(&mut self) -> bool {
        let may = self.grant.as_mut().is_none_or(|grant| grant.begin(clock::now()));
        if !may {
            (self.grant, self.room) = (None, None);
        }
        may
    }

    /// A later run has taken this one's place, unless it has started.
    fn superseded(&mut self, by: Option<RunId>) {
        if self.run.status() == Some(RunStatus::Queued) {
            let by = by.map_or_else(|| "a later run".to_owned(), |run| run.to_string());
            self.expect(Input::Cancel { reason: Some(format!("superseded by {by}")) }, None);
        }
    }

    /// What was appended is on disk: a run that has started has used its grant, and one in the queue is to be looked at.
    fn flow_recorded(&mut self) {
        if self.is_in_queue() {
            self.flow.iter().for_each(|id| self.shared.flow.touch(id.clone()));
        } else if let Some(grant) = self.grant.take()
            && self.summary.as_ref().is_some_and(|summary| summary.started_at.is_some())
        {
            self.slots.extend(grant.used());
        }
    }

    /// Begins what is owed to a child or the parent, once.
    fn see_to_family(&mut self, effect: Effect) {
        let (run, since) = match &effect {
            Effect::StartChild { child, since, .. } => (child.run, *since),
            // One that is being started is cancelled, or asked after, when it is there.
            Effect::CancelChild { run, .. } | Effect::AskChild { run, .. } if self.starting.contains_key(run) => return,
            Effect::AskChild { run, since } | Effect::CancelChild { run, since } => (*run, *since),
            Effect::TellParent { parent, since, .. } => (*parent, *since),
            Effect::StartRun { .. } | Effect::RunStep { .. } | Effect::WakeAt { .. } => return,
        };
        let begun = if matches!(effect, Effect::AskChild { .. }) { &mut self.asked } else { &mut self.begun };
        if self.phase != Phase::Driving || !begun.insert((run, since)) {
            return;
        }
        match effect {
            Effect::AskChild { run, .. } => match family::end_of(&self.shared, &self.key.tenant, run) {
                Ok(Some(end)) => self.child_ended(run, end),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(run = %self.key, child = %run, error = error_chain(&error), "a child could not be read");
                    self.errands.push(Box::pin(family::ask_again(Arc::clone(&self.shared), run, since)));
                }
            },
            Effect::StartChild { step, child, .. } => {
                self.starting.insert(child.run, step);
                let parent = ParentRef { run: self.key.run, depth: self.run.depth() + 1 };
                let start = family::start_child(Arc::clone(&self.shared), self.key.tenant.clone(), *child, parent);
                self.errands.push(Box::pin(start));
            }
            Effect::CancelChild { run, .. } => {
                let child = RunKey { tenant: self.key.tenant.clone(), run };
                self.errands.push(Box::pin(family::cancel_child(Arc::clone(&self.shared), child)));
            }
            Effect::TellParent { parent, end, .. } => {
                let parent = RunKey { tenant: self.key.tenant.clone(), run: parent };
                let tell = family::tell_parent(Arc::clone(&self.shared), parent, self.key.run, end);
                self.errands.push(Box::pin(tell));
            }
            Effect::StartRun { .. } | Effect::RunStep { .. } | Effect::WakeAt { .. } => {}
        }
    }

    /// Ends an attempt that was not begun.
    fn not_run(&mut self, step: StepId, attempt: u32, spawn: u64, failure: Failure) {
        let end = AttemptEnd { result: Err(failure), fuel_used: 0 };
        drop(self.inbox.send(Message::AttemptEnded { step: step.clone(), attempt, spawn, end }));
        self.attempts.insert(step, UnderWay { spawn, slot: self.slots.pop(), _attempt: Attempt::over() });
    }

    fn start_attempt(&mut self, step: StepId, node: usize, attempt: u32, since: Seq) {
        let (Some(limits), Some(summary)) = (self.run.graph().node(node).map(|node| node.limits), &self.summary) else {
            return;
        };
        let (workflow, version) = (summary.workflow.clone(), summary.version);
        self.spawns += 1;
        let spawn = self.spawns;
        let inputs = self.run.inputs_of(&step);
        let size: u64 = inputs.iter().map(|(_, value)| value.size_bytes()).sum();
        if size > limits.memory_bytes {
            // Found out before anything is read: the host would need the memory first.
            let message =
                format!("the step needs {size} bytes of input and has {} bytes of memory", limits.memory_bytes);
            let failure = Failure::platform(FailureKind::Permanent, "input_too_large", message);
            return self.not_run(step, attempt, spawn, failure);
        }
        if self.shared.fullness.is_beyond(&self.shared.journal, &self.key.tenant) {
            return self.not_run(step, attempt, spawn, journal_full());
        }
        let (inbox, stopping) = (self.inbox.clone(), self.shared.stopping.clone());
        let time = Arc::new(AttemptTime::default());
        let host = Arc::new(LoopHost {
            graph: Arc::clone(self.run.graph()),
            inbox,
            stopping,
            tenant: self.key.tenant.clone(),
            step: step.clone(),
            attempt,
            outside: self.shared.outside.clone(),
            shared: Arc::downgrade(&self.shared),
            rate: self.shared.publish_rates.of(&self.key.tenant),
            time: Arc::clone(&time),
            shadow: self.shadow.clone(),
        });
        let (key, journal) = (self.key.clone(), Arc::clone(&self.shared.journal));
        // One that has just been started has nothing on record.
        let started = self.run.attempt_started(&step).filter(|started| *started != since);
        let spans = started.map(|started| self.trails.of(&step, started, self.durable));
        let told = self.shadow.as_ref().map_or(&self.key, |shadow| shadow.of());
        let (told_run, seed) = (told.run, seed_of(self.shared.journal.secret(), told, &step, attempt));
        let job = {
            let (key, journal, step) = (key.clone(), Arc::clone(&journal), step.clone());
            let (shared, readers) = (Arc::clone(&self.shared), self.shared.readers.clone());
            move || {
                let value = |(name, value)| Ok((name, read_value(&*journal, &shared.elements, &key, value)?));
                let inputs = inputs.into_iter().map(value).collect::<Result<_, String>>()?;
                let record = spans.map(|spans| {
                    let (time, step, page) = (Arc::clone(&time), step.clone(), Page::new());
                    let spans = spans.into();
                    Box::new(AttemptRecord { readers, journal, key, step, spans, time, page, waiting: None })
                        as Box<dyn Record>
                });
                Ok(Job { run: told_run, workflow, version, step, attempt, limits, inputs, host, record, time, seed })
            }
        };
        let component = |version: Digest| {
            let (journal, tenant) = (Arc::clone(&journal), key.tenant.clone());
            Box::new(move || journal.component(&tenant, &version).ok().flatten())
        };
        let delegation = self.run.graph().node(node).and_then(|node| node.delegates_to.clone()).map(|delegate| {
            let Delegate { workflow, version, node } = delegate;
            Delegation { workflow, version, node, component: component(version) }
        });
        let (inbox, ended) = (self.inbox.clone(), step.clone());
        let on_end = move |end| {
            // The loop is gone when the host has stopped waiting for this attempt.
            drop(inbox.send(Message::AttemptEnded { step: ended, attempt, spawn, end }));
        };
        let running = self.shared.sandbox.spawn(&key.tenant, version, component(version), delegation, job, on_end);
        self.attempts.insert(step, UnderWay { spawn, slot: self.slots.pop(), _attempt: running });
    }
}

/// After how many events a state of so many bytes is kept again.
fn snapshot_every(bytes: usize) -> Seq {
    SNAPSHOT_EVENTS.max((bytes / SNAPSHOT_BYTES_PER_EVENT) as Seq)
}

/// What a change of a run's summary means for the queue of its workflow.
fn flow_change(before: Option<&RunSummary>, after: &RunSummary, grant: Option<&Grant>) -> Option<FlowChange> {
    let place = after.place.clone()?;
    let is_queued = |summary: &RunSummary| summary.status == RunStatus::Queued;
    let (waited, waits) = (before.is_some_and(is_queued), is_queued(after));
    if before.is_some() && waited == waits {
        return None;
    }
    // One that was cancelled in the queue has not used its turn.
    let throttle = grant.filter(|_| after.started_at.is_some()).and_then(Grant::throttle);
    Some(FlowChange { workflow: after.workflow.clone(), place, waited, waits, throttle })
}

/// What an attempt's random numbers are made of. Nobody outside of this installation can make it.
fn seed_of(secret: &[u8; 32], key: &RunKey, step: &StepId, attempt: u32) -> [u8; 32] {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    // A node's id has no brackets and no spaces, so no two attempts have the same name.
    mac.update(format!("stepwell random numbers 1 {key} {step} {attempt}").as_bytes());
    mac.finalize().into_bytes().into()
}

/// The id of the artifact that an event of a run has stored.
pub(crate) fn artifact_id(key: &RunKey, seq: Seq) -> String {
    format!("{}-{seq}", key.run)
}

/// The JSON of a value, wherever it is.
pub(crate) fn read_payload(journal: &impl Journal, key: &RunKey, payload: Payload) -> Result<Json, String> {
    match payload {
        Payload::Inline(json) => Ok(json),
        Payload::Stored(content) => {
            let bytes = journal.content(&key.tenant, &content.sha256).map_err(|error| error.to_string())?;
            let bytes = bytes.ok_or_else(|| format!("content {} is gone", content.sha256))?;
            let text = String::from_utf8(bytes.into()).map_err(|error| error.to_string())?;
            Json::stored(text).map_err(|error| error.to_string())
        }
    }
}

/// The JSON of what a step is handed.
fn read_value(journal: &impl Journal, elements: &Elements, key: &RunKey, value: Value) -> Result<Json, String> {
    match value {
        Value::One(payload) => read_payload(journal, key, payload),
        Value::Element { of, index } => elements.get(journal, key, of, index),
        Value::Many(values) => {
            let value =
                |payload: Option<Payload>| payload.map(|payload| read_payload(journal, key, payload)).transpose();
            Ok(Json::array(&values.into_iter().map(value).collect::<Result<Vec<_>, String>>()?))
        }
    }
}

/// A value in the form that an event takes, and its bytes where they are stored apart.
pub(super) fn payload_of(json: Json) -> (Payload, Option<Content>) {
    payload_within(json, INLINE_BYTES_MAX)
}

fn payload_within(json: Json, inline_bytes_max: usize) -> (Payload, Option<Content>) {
    if json.len_bytes() <= inline_bytes_max {
        return (Payload::Inline(json), None);
    }
    let content = content_of(Bytes::copy_from_slice(json.as_str().as_bytes()));
    (Payload::Stored(content.reference()), Some(content))
}

fn content_of(bytes: Bytes) -> Content {
    Content { sha256: Digest::from_bytes(Sha256::digest(&bytes).into()), bytes }
}

fn refusal_for_guest(refusal: Refusal) -> HostRefusal {
    match refusal {
        Refusal::UnknownTopic => HostRefusal::UnknownTopic,
        Refusal::NotAChild => HostRefusal::NotAChild,
        // The others are no answers to what a step asks for.
        Refusal::Ended(_)
        | Refusal::NotUnderWay { .. }
        | Refusal::UnknownSignal
        | Refusal::SignalRepeated(_)
        | Refusal::SignalMismatch
        | Refusal::TooManySignals
        | Refusal::TooManyChildren
        | Refusal::TooDeep
        | Refusal::NotStarted
        | Refusal::Paused
        | Refusal::NotPaused
        | Refusal::OutOfPlace => HostRefusal::Cancelled,
    }
}

/// Roughly what an event takes on its way to disk.
fn size_of_event(event: &Event) -> usize {
    const OVERHEAD_BYTES: usize = 128;
    let payload = |payload: &Payload| match payload {
        Payload::Inline(json) => json.len_bytes(),
        Payload::Stored(_) => 0, // counted when it was staged
    };
    let message = match event {
        Event::StepLog { message, .. } => message.len(),
        _ => 0,
    };
    OVERHEAD_BYTES + message + event.payload().map_or(0, payload)
}
