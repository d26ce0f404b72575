//! What surrounds a run in the stories: people who send signals and pause runs, and children that live and end.

use std::collections::{BTreeMap, BTreeSet};

use super::simulation::{Dealer, Plan};
use super::*;
use crate::event::{ChildRef, WaitingCall};
use crate::ids::RunId;
use crate::run::{CHILDREN_MAX, RunStatus, SIGNALS_KEPT_MAX};

/// What an attempt waits for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Wait {
    Sleep { ms: u64 },
    Signal { name: &'static str, within_ms: Option<u64> },
    Child { detached: bool, within_ms: Option<u64> },
}

impl Wait {
    pub(super) fn random(dealer: &mut Dealer) -> Self {
        let within_ms = dealer.one_in(2).then(|| dealer.below(3_000) as u64);
        match dealer.below(3) {
            0 => Self::Sleep { ms: dealer.below(3_000) as u64 },
            1 => Self::Signal { name: ["go", "say"][dealer.below(2)], within_ms },
            _ => Self::Child { detached: dealer.one_in(3), within_ms },
        }
    }
}

/// A child, as the world knows it.
#[derive(Debug, Clone, Default)]
struct Child {
    end: Option<ChildEnd>,
    /// The parent was told, and took notice or not.
    told: bool,
    /// Events that the parent had when it ended.
    ended_after: Option<usize>,
}

impl Child {
    fn end(&mut self, end: ChildEnd, play: &Play) -> &ChildEnd {
        self.ended_after.get_or_insert(play.history.len());
        self.end.get_or_insert(end)
    }
}

/// Everything outside of the run that a crash of the host does not touch.
#[derive(Debug, Clone, Default)]
pub(super) struct World {
    children: BTreeMap<RunId, Child>,
    /// What a shell has asked for already. A crash forgets it.
    asked: BTreeSet<(RunId, u64)>,
    signals: u64,
}

impl World {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// The world in which a history has come to be: the children are there, and run.
    pub(super) fn after(play: &Play) -> Self {
        let mut world = Self::new();
        for recorded in &play.history {
            if let Event::StepCall { child: Some(child), .. } = &recorded.event {
                world.children.insert(child.run, Child::default());
            }
        }
        world
    }

    pub(super) fn crash(&mut self) {
        self.asked.clear();
    }

    /// Waits that an attempt has behind it, and whether it has started the child that it waits for next.
    fn progress(play: &Play, step: &StepId) -> (usize, Option<RunId>) {
        let (mut waits, mut child) = (0, None);
        for recorded in &play.history {
            match &recorded.event {
                Event::StepStarted { step: s, .. } if s == step => (waits, child) = (0, None),
                Event::StepResumed { step: s, woke: Some(_) } if s == step => (waits, child) = (waits + 1, None),
                Event::StepCall { step: s, child: Some(started), .. } if s == step => child = Some(started.run),
                _ => {}
            }
        }
        (waits, child)
    }

    /// Lets an attempt wait for what it waits for next. `false` when there is nothing left.
    pub(super) fn next_wait(&mut self, play: &mut Play, plan: &Plan, step: &StepId, attempt: u32) -> bool {
        let (waits, child) = Self::progress(play, step);
        let Some(wait) = plan.of(step).waits.get(waits).cloned() else { return false };
        let arguments = Digest::from_bytes([1; 32]);
        let call = WaitingCall { call: "wait".to_owned(), arguments, signal: None, child: None };
        let (call, within_ms) = match wait {
            Wait::Sleep { ms } => (call, Some(ms)),
            Wait::Signal { name, within_ms } => (WaitingCall { signal: Some(name.to_owned()), ..call }, within_ms),
            Wait::Child { detached, within_ms } => match child {
                Some(run) => (WaitingCall { child: Some(run), ..call }, within_ms),
                None => {
                    if play.run.children.len() == CHILDREN_MAX {
                        assert_eq!(play.run.may_start_child(), Err(Refusal::TooManyChildren));
                        return false;
                    }
                    let run = RunId::from_bytes((play.history.len() as u128 + 1).to_be_bytes());
                    let (workflow, version) = ("w".parse().unwrap(), Digest::from_bytes([2; 32]));
                    let child = Box::new(ChildRef { run, workflow, version, input: payload("1"), detached });
                    let (call, result) = ("start".to_owned(), payload("2"));
                    play.tell(Input::StartChild { step: step.clone(), attempt, call, arguments, result, child });
                    return true;
                }
            },
        };
        let until = within_ms.map(|ms| play.now.plus_millis(ms));
        play.tell(Input::Wait { step: step.clone(), attempt, call, until });
        true
    }

    /// Does what is owed to children, as a shell would.
    pub(super) fn see_to_family(&mut self, play: &mut Play) {
        for effect in play.run.owed() {
            match effect {
                Effect::StartChild { child, .. } => drop(self.children.entry(child.run).or_default()),
                Effect::AskChild { run, since } if self.asked.insert((run, since)) => {
                    let end = match self.children.get(&run) {
                        Some(child) => child.end.clone(),
                        None => Some(ChildEnd::Cancelled),
                    };
                    if let Some(end) = end.filter(|_| !play.run.has_ended()) {
                        play.tell(Input::ChildEnded { run, end });
                    }
                }
                Effect::CancelChild { run, .. } => {
                    let child = self.children.entry(run).or_default();
                    child.end(ChildEnd::Cancelled, play);
                    child.told = true;
                }
                _ => {}
            }
        }
        if play.run.status() == Some(RunStatus::Paused) {
            // Whoever is resumed asks again.
            self.asked.clear();
        }
    }

    /// Nothing is left that the ended run owes.
    pub(super) fn is_told(&self, play: &Play) -> bool {
        play.run.owed().iter().all(|effect| match effect {
            Effect::CancelChild { run, .. } => self.children.get(run).is_some_and(|child| child.end.is_some()),
            _ => true,
        })
    }

    pub(super) fn end_child(&mut self, play: &mut Play, dealer: &mut Dealer) {
        let open: Vec<RunId> = self.children.iter().filter(|(_, child)| !child.told).map(|(run, _)| *run).collect();
        if open.is_empty() {
            return;
        }
        let run = open[dealer.below(open.len())];
        let end = match dealer.below(3) {
            0 => ChildEnd::Failed { code: "oops".to_owned(), message: "it failed".to_owned() },
            1 => ChildEnd::Cancelled,
            _ => ChildEnd::Completed { output: payload("3") },
        };
        self.end_and_tell(play, run, end);
    }

    fn end_and_tell(&mut self, play: &mut Play, run: RunId, end: ChildEnd) {
        let child = self.children.entry(run).or_default();
        let end = child.end(end, play).clone();
        child.told = true;
        if !play.run.has_ended() {
            play.tell(Input::ChildEnded { run, end });
        }
    }

    pub(super) fn end_all_children(&mut self, play: &mut Play) {
        let open: Vec<RunId> = self.children.iter().filter(|(_, child)| !child.told).map(|(run, _)| *run).collect();
        for run in open {
            self.end_and_tell(play, run, ChildEnd::Completed { output: payload("3") });
        }
    }

    pub(super) fn pause_or_resume(&mut self, play: &mut Play) {
        if play.run.status() == Some(RunStatus::Paused) {
            play.tell(Input::Resume);
            self.asked.clear();
        } else {
            play.tell(Input::Pause { reason: None });
        }
    }

    /// Somebody sends something, perhaps for the second time.
    pub(super) fn send_signal(&mut self, play: &mut Play, dealer: &mut Dealer) {
        let again = self.signals > 0 && dealer.one_in(4);
        self.signals += u64::from(!again);
        let name = ["go", "say"][dealer.below(2)];
        self.send(play, name, self.signals, again);
    }

    fn send(&self, play: &mut Play, name: &str, number: u64, again: bool) {
        let key = Some(Digest::from_bytes([number as u8; 32])).filter(|_| number < 200);
        let kept = play.run.signals_kept;
        let signal = Input::Signal { name: name.to_owned(), payload: payload(&number.to_string()), key };
        match play.try_tell(signal, Dice(0)) {
            Ok(()) => {}
            Err(Refusal::SignalRepeated(_)) => assert!(again, "a new key counts as an old one"),
            Err(Refusal::TooManySignals) => assert!(kept >= SIGNALS_KEPT_MAX),
            Err(refusal) => panic!("{refusal}\n{}", play.text()),
        }
    }

    /// Ends every wait for a signal.
    pub(super) fn send_what_is_waited_for(&mut self, play: &mut Play) {
        let mut waiting: BTreeMap<StepId, String> = BTreeMap::new();
        for recorded in &play.history {
            match &recorded.event {
                Event::StepSuspended { step, call: Some(call), .. } => {
                    if let Some(name) = &call.signal {
                        waiting.insert(step.clone(), name.clone());
                    }
                }
                Event::StepResumed { step, .. } | Event::StepCancelled { step } => drop(waiting.remove(step)),
                _ => {}
            }
        }
        for name in waiting.into_values() {
            self.signals += 1;
            self.send(play, &name, 1_000 + self.signals, false);
        }
    }

    /// What must be so at the end.
    pub(super) fn check(&self, play: &Play, seed: u64) {
        let mut waits_for: BTreeMap<&StepId, RunId> = BTreeMap::new();
        for (at, recorded) in play.history.iter().enumerate() {
            match &recorded.event {
                Event::StepSuspended { step, call, .. } => {
                    waits_for.remove(step);
                    waits_for.extend(call.as_ref().and_then(|call| Some((step, call.child?))));
                }
                Event::StepResumed { step, woke: Some(woke) } if **woke == Woke::TimedOut => {
                    let child = waits_for.get(step).and_then(|child| self.children.get(child));
                    let is_over = child.and_then(|child| child.ended_after).is_some_and(|ended| ended <= at);
                    assert!(!is_over, "seed {seed}: NoWaitTimesOutOnAChildThatHasEnded\n{}", play.text());
                }
                _ => {}
            }
        }
        for recorded in &play.history {
            let Event::StepCall { child: Some(child), .. } = &recorded.event else { continue };
            let here = self.children.get(&child.run);
            // A detached one whose attempt was cut off before it was made never came to be.
            assert!(here.is_some() || child.detached, "seed {seed}: a child was never made\n{}", play.text());
            let is_over = here.is_some_and(|child| child.end.is_some());
            assert!(child.detached || is_over, "seed {seed}: AChildDoesNotOutliveItsParent\n{}", play.text());
        }
    }
}
