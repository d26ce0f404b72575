//! Runs that shadow others: the same input, another version, and nothing of it reaches the world.
//!
//! Owns: starting a shadow, and what its calls are answered with: what the run that it shadows was answered.
//! Does not: say which runs are shadowed or compare them (`journal/shadows.rs`, `triggers/shadows.rs`).
//! Keeps: a shadow starts when its run has ended, so everything that could be on record is. A call of the same step with the
//! same arguments gets the same answer; what it was answered is then on its own record, like any other call. So a shadow
//! sends nothing, starts no children and waits for nobody, unless it is live, when it may send what is not on record.

use std::collections::HashMap;
use std::sync::Arc;

use stepwell_core::event::{ShadowRef, WaitingCall};
use stepwell_core::{Digest, Event, Json, RunKey, Seq, StepId};
use tokio::sync::OnceCell;

use super::run_loop::{NewRun, read_payload};
use super::{Driver, Shared, StartError, record};
use crate::journal::shadows::{SHADOWED_EVENTS_MAX, ShadowPair};
use crate::journal::{Journal, JournalError, RedbJournal, RunSummary, history};
use crate::sandbox::{HostRefusal, StandIn};

/// Stored bytes that hold one event: its record may be long, and is read whole in any case.
const ONE_EVENT: usize = 1;

/// Calls of a run that its shadow can be answered: some megabytes while the shadow is in memory. Of later ones it is not known
/// whether they are on record, so no shadow sends them.
const CALLS_MAX: usize = 20_000;

impl Driver {
    /// Starts a run's shadow, unless it is there. `summary` is that of the run. When this returns `true`, it is on disk; `false`
    /// when there is no room for it at present: a shadow that waited for it in memory would be one of any number.
    pub async fn start_shadow(&self, of: &RunKey, summary: &RunSummary, pair: &ShadowPair) -> Result<bool, StartError> {
        let shared = &self.shared;
        if shared.stopping.is_cancelled() {
            return Err(StartError::Stopping);
        }
        let key = RunKey { tenant: of.tenant.clone(), run: pair.shadow };
        if shared.journal.summary(&key)?.is_some() {
            // It was started before a crash, and the recovery takes it up.
            return Ok(true);
        }
        if !shared.shadow_room.has_room(&of.tenant) {
            return Ok(false);
        }
        let graph = shared.graph(&of.tenant, &summary.workflow, pair.version)?;
        let input = input_of(&shared.journal, of)?;
        shared.check_input(&of.tenant, pair.version, &graph, &input).await?;
        let new = NewRun {
            // It has room of its own, and takes no slot and no turn of those whom the limits are for.
            flow: None,
            graph,
            workflow: summary.workflow.clone(),
            version: pair.version,
            input,
            idempotency: None,
            parent: None,
            rerun_of: None,
            shadow_of: Some(ShadowRef { run: of.run, live: pair.live }),
            taken_over: Vec::new(),
            // Who looks for a run by what it is known by means the run.
            correlation: None,
        };
        shared.create(&key, new).await.map(|_| true)
    }
}

/// What a run was started with.
fn input_of(journal: &RedbJournal, key: &RunKey) -> Result<Json, JournalError> {
    let damaged = |reason: String| JournalError::Damaged { what: format!("the input of {key}"), reason };
    match journal.read(key, 0, ONE_EVENT)?.into_iter().next().map(|first| first.event) {
        Some(Event::RunQueued { input, .. }) => read_payload(journal, key, input).map_err(damaged),
        _ => Err(damaged("its first event is gone".to_owned())),
    }
}

/// What a shadow knows of the run that it shadows.
pub(super) struct Shadowing {
    /// That run.
    of: RunKey,
    live: bool,
    recording: OnceCell<Recording>,
}

impl Shadowing {
    pub(super) fn new(shadow: &RunKey, ShadowRef { run, live }: ShadowRef) -> Arc<Self> {
        let of = RunKey { tenant: shadow.tenant.clone(), run };
        Arc::new(Self { of, live, recording: OnceCell::new() })
    }

    /// The run that a step is told it belongs to, and whose random numbers it gets. What it makes of them is the same then,
    /// and so are the calls that it puts them in.
    pub(super) const fn of(&self) -> &RunKey {
        &self.of
    }

    /// What becomes of a call: the `nth` one, from 0, that the attempt has made with these arguments.
    pub(super) async fn stand_in(
        &self,
        shared: Arc<Shared>,
        step: &StepId,
        attempt: u32,
        call: &'static str,
        arguments: Digest,
        nth: usize,
    ) -> Result<StandIn, HostRefusal> {
        let failed = |why: String| {
            tracing::error!(run = %self.of, why, "what a shadow is to be answered could not be read");
            HostRefusal::Unavailable
        };
        let journal = Arc::clone(&shared.journal);
        let recording = self.recording.get_or_try_init(|| async {
            let (journal, of) = (Arc::clone(&journal), self.of.clone());
            // A long run takes a while to read.
            let read = tokio::task::spawn_blocking(move || Recording::read(&*journal, &of));
            read.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
        });
        let recording = recording.await.map_err(failed)?;
        match recording.find(step, attempt, call, arguments, nth) {
            Some(seq) => {
                let of = self.of.clone();
                let read = tokio::task::spawn_blocking(move || answer_at(&journal, &of, seq));
                let answer = read.await.map_err(|error| failed(error.to_string()))?.map_err(failed)?;
                Ok(answer.map_or(StandIn::Nothing, StandIn::Answer))
            }
            None => Ok(if self.may_make(call, recording.is_whole) { StandIn::Make } else { StandIn::Nothing }),
        }
    }

    /// Whether a call is made that was not found on record, of which that is all there is or not.
    fn may_make(&self, call: &str, is_whole: bool) -> bool {
        match call {
            // Nobody outside notices.
            "clock.now-ms" | "wait.sleep" => true,
            // What was not found in a part of the record may have been sent by the run, and would be sent twice.
            "http.send" | "llm.complete" => self.live && is_whole,
            // A shadow has no children, and nobody knows that it waits.
            _ => false,
        }
    }
}

/// What a call that is on record was answered. `None` when it is gone: its run was deleted.
fn answer_at(journal: &RedbJournal, of: &RunKey, seq: Seq) -> Result<Option<Json>, String> {
    let page = match journal.read(of, seq.saturating_sub(1), ONE_EVENT) {
        Err(JournalError::Truncated { .. }) => return Ok(None),
        page => page.map_err(|error| error.to_string())?,
    };
    match page.into_iter().next().map(|recorded| recorded.event) {
        Some(Event::StepCall { result, .. }) => read_payload(journal, of, result).map(Some),
        Some(Event::StepResumed { woke: Some(woke), .. }) => record::of_wait(journal, of, *woke).map(Some),
        _ => Ok(None),
    }
}

/// Where the answers are that the steps of a run were given.
#[derive(Debug, Default)]
struct Recording {
    /// How many there are.
    count: usize,
    /// Whether these are all: the run was read to its end, and none was left out.
    is_whole: bool,
    /// By step and attempt.
    attempts: HashMap<(StepId, u32), Calls>,
    /// The last attempt of each step.
    last: HashMap<StepId, u32>,
}

/// The events that have the answers, by call and arguments, in order.
type Calls = HashMap<(String, Digest), Vec<Seq>>;

impl Recording {
    /// Reads a run's events, as far as a run may go that is shadowed. Of a run that is deleted there is nothing, and of one that
    /// is being deleted a part.
    fn read(journal: &impl Journal, of: &RunKey) -> Result<Self, JournalError> {
        let mut recording = Self::default();
        let mut waiting: HashMap<StepId, WaitingCall> = HashMap::new();
        for page in history(journal, of, SHADOWED_EVENTS_MAX) {
            let page = match page {
                Err(JournalError::Truncated { .. }) => break,
                page => page?,
            };
            for found in page {
                recording.see(found.seq, found.event, &mut waiting);
            }
        }
        Ok(recording)
    }

    fn see(&mut self, seq: Seq, event: Event, waiting: &mut HashMap<StepId, WaitingCall>) {
        match event {
            Event::StepStarted { step, attempt } => drop(self.last.insert(step, attempt)),
            Event::StepCall { step, attempt, call, arguments, .. } => self.note(step, attempt, call, arguments, seq),
            // A wait is on record as two events.
            Event::StepSuspended { step, call: Some(call), .. } => drop(waiting.insert(step, *call)),
            Event::StepResumed { step, woke: Some(_) } => {
                if let Some(WaitingCall { call, arguments, .. }) = waiting.remove(&step)
                    && let Some(attempt) = self.last.get(&step).copied()
                {
                    self.note(step, attempt, call, arguments, seq);
                }
            }
            // The run has ended, and everything before was seen: a page never leaves a gap.
            Event::RunCompleted { .. } | Event::RunFailed { .. } => self.is_whole = self.count < CALLS_MAX,
            _ => {}
        }
    }

    fn note(&mut self, step: StepId, attempt: u32, call: String, arguments: Digest, seq: Seq) {
        if self.count == CALLS_MAX {
            return;
        }
        self.count += 1;
        self.attempts.entry((step, attempt)).or_default().entry((call, arguments)).or_default().push(seq);
    }

    /// The event with a call's answer: of the same attempt, so that what failed first and then succeeded does so again;
    /// else of the last one, for attempts of which one of the two has more.
    fn find(&self, step: &StepId, attempt: u32, call: &str, arguments: Digest, nth: usize) -> Option<Seq> {
        let of = |attempt: u32| {
            let calls = self.attempts.get(&(step.clone(), attempt))?;
            calls.get(&(call.to_owned(), arguments))?.get(nth).copied()
        };
        of(attempt).or_else(|| of(*self.last.get(step)?))
    }
}

#[cfg(test)]
mod tests {
    use stepwell_core::event::{SuspendReason, Woke};
    use stepwell_core::{NodeId, Payload, RunId};

    use super::*;

    fn step(node: &str, items: &[u32]) -> StepId {
        StepId { node: node.parse::<NodeId>().unwrap(), items: items.to_vec() }
    }

    fn digest(n: u8) -> Digest {
        Digest::from_bytes([n; 32])
    }

    fn call(step: &StepId, attempt: u32, arguments: u8) -> Event {
        let (call, result) = ("http.send".to_owned(), Payload::Inline(Json::null()));
        Event::StepCall { step: step.clone(), attempt, call, arguments: digest(arguments), result, child: None }
    }

    /// A live shadow of a run that was deleted meanwhile, or had too many calls, would otherwise send again what is on record.
    #[test]
    fn a_live_shadow_sends_what_is_not_on_record_only_where_the_record_is_whole() {
        let a = step("a", &[]);
        let ended = || Event::RunCompleted { output: Payload::Inline(Json::null()) };
        let read = |calls: usize, events: Vec<Event>| {
            let (mut recording, mut waiting) = (Recording::default(), HashMap::new());
            recording.see(1, Event::StepStarted { step: a.clone(), attempt: 1 }, &mut waiting);
            for (seq, event) in (2..).zip((0..calls).map(|_| call(&a, 1, 1)).chain(events)) {
                recording.see(seq, event, &mut waiting);
            }
            recording.is_whole
        };
        assert!(read(3, vec![ended()]));
        assert!(!read(3, Vec::new()), "its end is not there");
        assert!(!read(CALLS_MAX + 1, vec![ended()]), "some were left out");
        assert!(!Recording::default().is_whole, "nothing is left of it");

        let of = RunKey { tenant: "t".parse().unwrap(), run: RunId::from_bytes([1; 16]) };
        let shadow = |live| Shadowing { of: of.clone(), live, recording: OnceCell::new() };
        for outside in ["http.send", "llm.complete"] {
            assert!(shadow(true).may_make(outside, true));
            assert!(!shadow(true).may_make(outside, false), "{outside}");
            assert!(!shadow(false).may_make(outside, true) && !shadow(false).may_make(outside, false), "{outside}");
        }
        for never in ["children.start", "children.await", "wait.signal", "something.new"] {
            assert!(!shadow(true).may_make(never, true), "{never}");
        }
        assert!(shadow(false).may_make("clock.now-ms", false) && shadow(false).may_make("wait.sleep", false));
    }

    #[test]
    fn a_call_finds_the_answer_of_the_same_step_attempt_and_turn() {
        let (one, other) = (step("a", &[0]), step("a", &[1]));
        let started = |step: &StepId, attempt| Event::StepStarted { step: step.clone(), attempt };
        let waits = WaitingCall { call: "wait.signal".to_owned(), arguments: digest(9), signal: None, child: None };
        let events = [
            started(&one, 1),
            call(&one, 1, 1), // 2
            call(&one, 1, 1), // 3
            started(&other, 1),
            call(&other, 1, 1), // 5
            started(&one, 2),
            call(&one, 2, 1), // 7
            Event::StepSuspended {
                step: one.clone(),
                reason: SuspendReason::Signal,
                until: None,
                call: Some(Box::new(waits)),
            },
            Event::StepResumed { step: one.clone(), woke: Some(Box::new(Woke::TimedOut)) }, // 9
        ];
        let (mut recording, mut waiting) = (Recording::default(), HashMap::new());
        for (seq, event) in (1..).zip(events) {
            recording.see(seq, event, &mut waiting);
        }
        let find = |step, attempt, arguments, nth| recording.find(step, attempt, "http.send", digest(arguments), nth);
        assert_eq!((find(&one, 1, 1, 0), find(&one, 1, 1, 1)), (Some(2), Some(3)));
        assert_eq!((find(&other, 1, 1, 0), find(&other, 1, 1, 1)), (Some(5), None));
        assert_eq!((find(&one, 2, 1, 0), find(&one, 2, 1, 1)), (Some(7), None));
        assert_eq!(find(&one, 3, 1, 0), Some(7), "an attempt that the run did not need has its last one's");
        assert_eq!((find(&one, 1, 2, 0), find(&step("b", &[]), 1, 1, 0)), (None, None));
        assert_eq!(recording.find(&one, 2, "wait.signal", digest(9), 0), Some(9));
        assert_eq!(recording.find(&one, 2, "wait.sleep", digest(9), 0), None);
    }
}
