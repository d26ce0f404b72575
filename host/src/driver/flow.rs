//! What of a workflow runs at once, and how fast its runs start.
//!
//! Owns: what counts against a workflow's limits at this moment, by key, and who is next.
//! Does not: evaluate keys (the sandbox does), keep the queue or the marks of a pace (the journal does), or start a run: it
//! grants a start, and the run's loop makes it.
//! Keeps: no more steps execute at once than the limit says, because each has a [`Slot`]. What has begun comes before what has
//! not: a slot that becomes free goes to the steps of started runs first, and only then to the queue. A run in the queue
//! has no loop and takes no memory, and neither does a key of which nothing waits or executes. Tenants take turns: however
//! many queues of one have changed, another's is looked at after one of them.
//!
//! ```text
//!   queue (journal) ── dispatch ──► Grant = slot + its turn in the pace ──► run.started ──► Slot ──► attempt
//! ```
//! A crash loses grants and slots, and nothing else: who was granted a start and has not made it is in the queue still.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stepwell_core::flow::{FlowControl, FlowPlace, Mark, Pace};
use stepwell_core::{Digest, RunId, RunKey, TenantId, Timestamp, WorkflowName};
use tokio::sync::{Notify, oneshot};

use super::Shared;
use super::run_loop::Message;
use crate::clock;
use crate::journal::flow::{FlowCount, FlowId};
use crate::journal::{JournalError, RedbJournal, error_chain};

/// The longest until the next look at what waits for its time, so that a clock that is set forward is noticed.
const LOOK_MAX: Duration = Duration::from_secs(30);
/// How long a run gets no start that has given one back.
const RETURNED_MS: u64 = 500;
/// Queues that are looked at in one go.
const BREATH: usize = 32;
/// Timers that are looked at in one go.
const TIMERS_PAGE: usize = 64;
/// When a queue that could not be read is looked at again: it may pass.
const TROUBLE_MS: u64 = 1_000;
/// Runs at the head of a queue that are looked at for one that may start: those before it wait to be replaced, or were
/// granted a start and are about to make it.
const HEADS: usize = 64;
/// Queues found at once after a start of the host.
const QUEUES_PAGE: usize = 1_000;
/// How often the counts on disk are gone through for those that say nothing any more: so many at once, with a pause between.
const FORGET_EVERY: Duration = Duration::from_secs(60);
const FORGET_PAGE: usize = 1_000;
const FORGET_PAUSE: Duration = Duration::from_secs(1);

/// What counts against all limits of this process.
#[derive(Debug)]
pub(super) struct Flow {
    journal: Arc<RedbJournal>,
    state: Mutex<State>,
    changed: Notify,
    /// Held over a write of settings, so that memory and disk see them in the same order.
    pub(super) configuring: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// In the order of ids: those of a workflow are together.
    keys: BTreeMap<FlowId, Key>,
    /// What the dispatcher is to look at.
    dirty: Dirty,
    /// What it is to look at later.
    timers: BTreeSet<(Timestamp, FlowId)>,
}

/// Queues to be looked at. Tenants take turns, and so do the queues of each.
#[derive(Debug, Default)]
struct Dirty {
    all: HashSet<FlowId>,
    /// The same, each tenant's in the order in which they came.
    of_tenants: HashMap<TenantId, VecDeque<FlowId>>,
    /// Those who have any, the next first.
    turns: VecDeque<TenantId>,
}

impl Dirty {
    fn insert(&mut self, id: FlowId) {
        if !self.all.insert(id.clone()) {
            return;
        }
        let ids = self.of_tenants.entry(id.tenant.clone()).or_default();
        if ids.is_empty() {
            self.turns.push_back(id.tenant.clone());
        }
        ids.push_back(id);
    }

    fn next(&mut self) -> Option<FlowId> {
        let tenant = self.turns.pop_front()?;
        let ids = self.of_tenants.get_mut(&tenant)?; // who has a turn has some
        let next = ids.pop_front()?;
        if ids.is_empty() {
            self.of_tenants.remove(&tenant);
        } else {
            self.turns.push_back(tenant);
        }
        self.all.remove(&next);
        Some(next)
    }
}

/// The runs of a workflow with one key. There is one as long as something waits or executes.
#[derive(Debug, Default)]
struct Key {
    /// Whether the limits and the mark were read.
    is_known: bool,
    concurrency: Option<u32>,
    throttle: Option<Pace>,
    /// Where the throttle stands, starts that were granted included.
    mark: Option<Mark>,
    /// Where it stands for those that were made. A grant may have waited for room for long.
    started: Option<Mark>,
    executing: u32,
    /// Started runs that wait for a slot, the first of them first.
    waiting: BTreeMap<Place, oneshot::Sender<Slot>>,
    /// Runs that were granted a start and have not made it.
    granted: HashSet<RunId>,
    /// Runs that have given a start back, and until when they get none: one that cannot be taken up must not keep others
    /// from theirs.
    returned: HashMap<RunId, Timestamp>,
    timer: Option<Timestamp>,
    /// Whether there was something in the queue when it was last looked at.
    has_queue: bool,
}

type Place = (Reverse<i32>, RunId);

impl Key {
    fn set(&mut self, control: Option<FlowControl>) {
        let control = control.unwrap_or_default();
        self.is_known = true;
        (self.concurrency, self.throttle) = (control.concurrency, control.throttle);
    }

    fn has_slot(&self) -> bool {
        self.is_known && self.concurrency.is_none_or(|limit| self.executing < limit)
    }

    /// Sees to it that the queue is looked at then.
    fn look_at(&mut self, at: Timestamp) {
        self.timer = Some(self.timer.map_or(at, |timer| timer.min(at)));
    }

    /// Whether nothing is known of it that is not on disk: where its throttle stands is, with the last start.
    fn is_idle(&self) -> bool {
        self.executing == 0
            && self.waiting.is_empty()
            && self.granted.is_empty()
            && self.timer.is_none()
            && !self.has_queue
    }
}

/// Leave to execute a step; given back on drop.
#[derive(Debug)]
pub(super) struct Slot {
    flow: Arc<Flow>,
    id: FlowId,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.flow.give_back(&self.id);
    }
}

/// Leave to start a run: a slot for its first step, and its turn in the pace. When it is dropped unused, both are another
/// run's.
#[derive(Debug)]
pub(super) struct Grant {
    flow: Arc<Flow>,
    id: FlowId,
    run: RunId,
    slot: Option<Slot>,
    throttle: Option<(Mark, Pace)>,
    /// Whether it has taken that turn among the starts that are made.
    has_begun: bool,
    /// Whether the run is to wait a moment when it gives this back: it could not be taken up.
    is_unwanted: bool,
}

impl Grant {
    /// Whether the start may be made now, when there is room for the run. It takes its turn in the pace here: it may have waited
    /// for room for long, and so may others.
    pub(super) fn begin(&mut self, now: Timestamp) -> bool {
        let mut state = self.flow.state();
        let Some(key) = state.keys.get_mut(&self.id) else { return true }; // never: it has a slot of it
        // As it is now: the settings may be others than when this was granted.
        let begun = key.throttle.map(|pace| pace.take(&mut key.started, now).map(|()| pace)).transpose();
        key.mark = key.mark.max(key.started);
        self.throttle = begun.ok().flatten().and_then(|pace| Some((key.started?, pace)));
        drop(state);
        self.has_begun = begun.is_ok();
        self.is_unwanted = begun.is_ok(); // else the pace says when it is its turn again
        begun.is_ok()
    }

    /// Where the throttle stands after the start, and its pace.
    pub(super) fn throttle(&self) -> Option<(Mark, Pace)> {
        self.throttle
    }

    /// The run has started, and that is on disk.
    pub(super) fn used(mut self) -> Option<Slot> {
        (self.throttle, self.is_unwanted) = (None, false);
        self.slot.take()
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let mut state = self.flow.state();
        if let Some(key) = state.keys.get_mut(&self.id) {
            key.granted.remove(&self.run);
            if self.is_unwanted {
                key.returned.insert(self.run, clock::now().plus_millis(RETURNED_MS));
            }
            // What it has taken is there again by itself once its mark is over.
            if let Some((_, pace)) = self.throttle.filter(|(mark, _)| !mark.is_full(clock::now())) {
                key.mark = key.mark.map(|mark| pace.give_back(mark));
                key.started = key.started.map(|mark| if self.has_begun { pace.give_back(mark) } else { mark });
            }
        }
        state.dirty.insert(self.id.clone());
        drop(state); // the slot, which goes next, takes it again
        self.flow.changed.notify_one();
    }
}

/// A run that waits for a slot. When it is dropped it does not wait any more.
#[derive(Debug)]
pub(super) struct SlotWait {
    flow: Arc<Flow>,
    id: FlowId,
    place: Place,
    slot: oneshot::Receiver<Slot>,
}

impl SlotWait {
    /// The slot, when there is one.
    pub(super) async fn slot(&mut self) -> Slot {
        match (&mut self.slot).await {
            Ok(slot) => slot,
            // Never: who waits is let go of with a slot only.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for SlotWait {
    fn drop(&mut self) {
        let mut state = self.flow.state();
        if let Some(key) = state.keys.get_mut(&self.id) {
            key.waiting.remove(&self.place);
        }
        state.forget_idle(&self.id);
    }
}

impl State {
    /// Puts a key's timer in the place of the one before.
    fn set_timer(&mut self, id: &FlowId, before: Option<Timestamp>, timer: Option<Timestamp>) {
        if let Some(before) = before {
            self.timers.remove(&(before, id.clone()));
        }
        self.timers.extend(timer.map(|timer| (timer, id.clone())));
    }

    /// Forgets a key of which nothing waits or executes.
    fn forget_idle(&mut self, id: &FlowId) {
        if self.keys.get(id).is_some_and(Key::is_idle) {
            self.keys.remove(id);
        }
    }
}

impl Flow {
    pub(super) fn new(journal: Arc<RedbJournal>) -> Arc<Self> {
        Arc::new(Self {
            journal,
            state: Mutex::default(),
            changed: Notify::new(),
            configuring: tokio::sync::Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What counts by this key. What cannot be read of it now, the dispatcher reads later; until then there is no leave.
    fn key<'a>(&self, state: &'a mut State, id: &FlowId) -> &'a mut Key {
        let State { keys, dirty, .. } = state;
        let key = keys.entry(id.clone()).or_default();
        if self.learn(key, id).is_err() {
            dirty.insert(id.clone());
            self.changed.notify_one();
        }
        key
    }

    /// Reads what is not known of a key.
    fn learn(&self, key: &mut Key, id: &FlowId) -> Result<(), JournalError> {
        if !key.is_known {
            let control = self.journal.flow_control(&id.tenant, &id.workflow)?;
            key.mark = self.journal.flow_count(id)?.and_then(|count| count.throttle);
            key.started = key.mark;
            key.set(control);
        }
        Ok(())
    }

    /// A start for a new run, when nobody is before it.
    pub(super) fn try_grant(
        self: &Arc<Self>,
        id: &FlowId,
        place: &FlowPlace,
        run: RunId,
    ) -> Result<Option<Grant>, JournalError> {
        let queued = self.journal.flow_count(id)?.is_some_and(|count| count.queued > 0);
        if queued || place.not_before.is_some() {
            return Ok(None);
        }
        let mut state = self.state();
        let key = self.key(&mut state, id);
        let grant = if key.waiting.is_empty() { self.grant(key, id, run, clock::now()).ok() } else { None };
        state.forget_idle(id);
        Ok(grant)
    }

    /// A start for a run; else from when on there is one, if time is all it takes.
    fn grant(
        self: &Arc<Self>,
        key: &mut Key,
        id: &FlowId,
        run: RunId,
        now: Timestamp,
    ) -> Result<Grant, Option<Timestamp>> {
        if !key.has_slot() {
            return Err(None);
        }
        let mut throttle = None;
        if let Some(pace) = key.throttle {
            pace.settle(&mut key.started, now);
            pace.take(&mut key.mark, now).map_err(Some)?;
            throttle = key.mark.map(|mark| (mark, pace));
        }
        key.granted.insert(run);
        let slot = Some(self.slot(key, id));
        Ok(Grant { flow: Arc::clone(self), id: id.clone(), run, slot, throttle, has_begun: false, is_unwanted: true })
    }

    fn slot(self: &Arc<Self>, key: &mut Key, id: &FlowId) -> Slot {
        key.executing += 1;
        Slot { flow: Arc::clone(self), id: id.clone() }
    }

    /// A slot for a step of a started run, or a place among those who wait for one.
    pub(super) fn slot_or_wait(self: &Arc<Self>, id: &FlowId, priority: i32, run: RunId) -> Result<Slot, SlotWait> {
        let mut state = self.state();
        let key = self.key(&mut state, id);
        let place = (Reverse(priority), run);
        if key.has_slot() && key.waiting.first_key_value().is_none_or(|(first, _)| place < *first) {
            return Ok(self.slot(key, id));
        }
        let (sender, slot) = oneshot::channel();
        key.waiting.insert(place, sender);
        Err(SlotWait { flow: Arc::clone(self), id: id.clone(), place, slot })
    }

    /// A slot has become free.
    fn give_back(self: &Arc<Self>, id: &FlowId) {
        let mut state = self.state();
        let Some(key) = state.keys.get_mut(id) else { return };
        key.executing = key.executing.saturating_sub(1);
        let unwanted = self.serve_waiting(key, id);
        if key.has_queue {
            state.dirty.insert(id.clone());
            self.changed.notify_one();
        }
        state.forget_idle(id);
        drop(state);
        drop(unwanted);
    }

    /// Gives what is free to started runs. Returns slots that nobody has taken, to be dropped without the lock.
    fn serve_waiting(self: &Arc<Self>, key: &mut Key, id: &FlowId) -> Vec<Slot> {
        let mut unwanted = Vec::new();
        while key.has_slot()
            && let Some((_, waiting)) = key.waiting.pop_first()
        {
            let slot = self.slot(key, id);
            unwanted.extend(waiting.send(slot).err());
        }
        unwanted
    }

    /// Has the dispatcher look at a key: a run has entered its queue.
    pub(super) fn touch(&self, id: FlowId) {
        self.state().dirty.insert(id);
        self.changed.notify_one();
    }

    /// A workflow's settings are others now.
    pub(super) fn configured(&self, tenant: &TenantId, workflow: &WorkflowName, control: Option<&FlowControl>) {
        let mut state = self.state();
        let State { keys, dirty, .. } = &mut *state;
        let first = FlowId { tenant: tenant.clone(), workflow: workflow.clone(), key: Digest::from_bytes([0; 32]) };
        let of_workflow = |id: &FlowId| id.tenant == *tenant && id.workflow == *workflow;
        for (id, key) in keys.range_mut(first..).take_while(|(id, _)| of_workflow(id)) {
            key.set(control.cloned());
            dirty.insert(id.clone());
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Steps that execute by this key at this moment, and from when on the next run may start, if that is a matter of time.
    pub(super) fn executing(&self, id: &FlowId) -> (u32, Option<Timestamp>) {
        self.state().keys.get(id).map_or((0, None), |key| (key.executing, key.timer))
    }

    /// Starts what may start of one key. Returns whom to tell.
    fn advance(self: &Arc<Self>, id: &FlowId) -> Result<Vec<Grant>, JournalError> {
        let heads = self.journal.queued(id, HEADS)?;
        let now = clock::now();
        let mut granted = Vec::new();
        let mut state = self.state();
        let key = state.keys.entry(id.clone()).or_default();
        self.learn(key, id)?;
        let unwanted = self.serve_waiting(key, id);
        let before = key.timer.take();
        key.has_queue = !heads.is_empty();
        let not_before = heads.iter().filter_map(|head| head.not_before).filter(|at| *at > now).min();
        key.returned.retain(|_, until| *until > now);
        key.timer = not_before;
        let due = heads.iter().filter(|head| head.not_before.is_none_or(|at| at <= now));
        for head in due {
            if key.granted.contains(&head.run) {
                continue;
            }
            if let Some(until) = key.returned.get(&head.run) {
                let until = *until;
                key.look_at(until);
                continue;
            }
            match self.grant(key, id, head.run, now) {
                Ok(grant) => granted.push(grant),
                Err(Some(from)) => {
                    key.look_at(from);
                    break;
                }
                Err(None) => break,
            }
        }
        // There may be more behind those that were read: they are looked at when one of these has started.
        let timer = key.timer;
        state.set_timer(id, before, timer);
        state.forget_idle(id);
        drop(state);
        drop(unwanted);
        Ok(granted)
    }

    /// Has the dispatcher look at a key then, and not at the time that was set before.
    fn look_later(&self, id: &FlowId, at: Timestamp) {
        let mut state = self.state();
        let before = state.keys.entry(id.clone()).or_default().timer.replace(at);
        state.set_timer(id, before, Some(at));
    }

    /// What the dispatcher is to look at next.
    fn next(&self, now: Timestamp) -> Option<FlowId> {
        let mut state = self.state();
        for _ in 0..TIMERS_PAGE {
            if state.timers.first().is_none_or(|(at, _)| *at > now) {
                break;
            }
            let Some((at, id)) = state.timers.pop_first() else { break };
            // The clock may be a little short of it when it is looked at; what is too early gets its timer again.
            if let Some(key) = state.keys.get_mut(&id).filter(|key| key.timer == Some(at)) {
                key.timer = None;
            }
            state.dirty.insert(id);
        }
        state.dirty.next()
    }

    /// How long nothing is due.
    fn until_next(&self, now: Timestamp) -> Duration {
        let next = self.state().timers.first().map(|(at, _)| Duration::from_millis(at.millis_since(now)));
        next.unwrap_or(LOOK_MAX).min(LOOK_MAX)
    }

    /// Finds what of a tenant was in the queues when the host started.
    pub(super) async fn recover(&self, tenant: &TenantId) -> Result<(), JournalError> {
        let mut after = None;
        loop {
            let page = self.journal.queues(tenant, after.as_ref(), QUEUES_PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.clone());
            {
                let mut state = self.state();
                page.into_iter().for_each(|id| state.dirty.insert(id));
            }
            self.changed.notify_one();
            tokio::task::yield_now().await;
        }
    }

    /// Whether a run with a `not_before` is the one that starts: no later one has taken its place.
    pub(super) fn is_latest(&self, id: &FlowId, run: RunId) -> Result<bool, JournalError> {
        let count = self.journal.flow_count(id)?;
        Ok(count.and_then(|count| count.debounced).is_some_and(|debounced| debounced.run == run))
    }

    /// What is counted by key in a workflow.
    pub(super) fn counts(
        &self,
        tenant: &TenantId,
        workflow: &WorkflowName,
        after: Option<Digest>,
        limit: usize,
    ) -> Result<Vec<(FlowId, FlowCount)>, JournalError> {
        let found = self.journal.flow_counts(tenant, workflow, after, limit)?;
        let id = |key| FlowId { tenant: tenant.clone(), workflow: workflow.clone(), key };
        Ok(found.into_iter().map(|(key, count)| (id(key), count)).collect())
    }
}

/// Starts what may start, until the host stops.
pub(super) async fn dispatch(shared: Arc<Shared>) {
    let mut looks: usize = 0;
    while !shared.stopping.is_cancelled() {
        let Some(id) = shared.flow.next(clock::now()) else {
            tokio::select! {
                () = shared.flow.changed.notified() => {}
                () = tokio::time::sleep(shared.flow.until_next(clock::now())) => {}
                () = shared.stopping.cancelled() => {}
            }
            continue;
        };
        match shared.flow.advance(&id) {
            Ok(grants) => grants.into_iter().for_each(|grant| tell(&shared, grant)),
            Err(error) => {
                tracing::error!(error = error_chain(&error), "a queue could not be read");
                // At a time of its own: it may be damaged for good, and others are not to wait for it.
                shared.flow.look_later(&id, clock::now().plus_millis(TROUBLE_MS));
            }
        }
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(BREATH) {
            tokio::task::yield_now().await; // there may be very many, and others on this thread
        }
    }
}

/// Forgets counts on disk that say nothing any more, until the host stops.
pub(super) async fn forget(shared: Arc<Shared>) {
    let mut last = None;
    while !shared.stopping.is_cancelled() {
        shared.pause(if last.is_some() { FORGET_PAUSE } else { FORGET_EVERY }).await;
        last = shared.journal.forget_idle_flow(last, clock::now(), FORGET_PAGE).await.unwrap_or_else(|error| {
            tracing::warn!(error = error_chain(&error), "idle counts of flow control could not be forgotten");
            None
        });
    }
}

/// Tells a run that it may start. When its loop is just leaving, the grant comes back and another look follows.
fn tell(shared: &Arc<Shared>, grant: Grant) {
    let key = RunKey { tenant: grant.id.tenant.clone(), run: grant.run };
    if let Some(inbox) = shared.inbox_of(&key) {
        drop(inbox.send(Message::Granted(grant)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_take_turns_and_so_do_the_queues_of_each() {
        let id = |tenant: &str, key: u8| FlowId {
            tenant: tenant.parse().unwrap(),
            workflow: "w".parse().unwrap(),
            key: Digest::from_bytes([key; 32]),
        };
        let mut dirty = Dirty::default();
        for key in (0..100).rev() {
            dirty.insert(id("a", key));
        }
        dirty.insert(id("a", 7)); // is there
        dirty.insert(id("b", 1));
        let next = |dirty: &mut Dirty| dirty.next().map(|id| format!("{}{}", id.tenant, id.key.as_bytes()[0]));
        assert_eq!([(); 3].map(|()| next(&mut dirty)), ["a99", "b1", "a98"].map(|id| Some(id.to_owned())));
        // What has had its turn is behind what has not, however often it changes.
        dirty.insert(id("a", 99));
        dirty.insert(id("b", 2));
        assert_eq!([(); 3].map(|()| next(&mut dirty)), ["a97", "b2", "a96"].map(|id| Some(id.to_owned())));
        let rest: Vec<String> = std::iter::from_fn(|| next(&mut dirty)).collect();
        assert_eq!((rest.len(), rest.last().map(String::as_str)), (97, Some("a99")));
        assert!(dirty.all.is_empty() && dirty.of_tenants.is_empty() && dirty.turns.is_empty());
    }
}
