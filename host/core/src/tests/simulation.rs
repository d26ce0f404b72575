//! Random graphs, outcomes, crashes and cancellations. A failing seed is printed and plays again the same.

use std::collections::{HashMap, HashSet};

use super::world::{Wait, World};
use super::*;
use crate::event::{RerunRef, SuspendReason};
use crate::failure::{INTERRUPTED, UNAVAILABLE};
use crate::graph::tests::LIMITS;
use crate::graph::{EdgeSpec, ItemFailure, Node, NodeIndex, NodeSpec, ScopeKind, SignalSpec};
use crate::rerun::Results;
use crate::retry::Exhausted;
use crate::run::{EVENTS_MAX, RunStatus};
use crate::scope::{OUTERMOST, ScopeIndex};

/// Seeds played in a test run; more by `STEPWELL_SEEDS=100000`, one by `STEPWELL_SEED=17`.
const SEEDS: u64 = 10_000;
/// Moves after which a story that has not ended will not end.
const MOVES_MAX: usize = 20_000;

/// A stream of random numbers (splitmix64).
pub(super) struct Dealer(u64);

impl Dealer {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bf0_3635)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A graph, and what each of its steps does.
pub(super) struct Plan {
    pub(super) graph: Arc<Graph>,
    seed: u64,
    /// The labels that a node chooses, in every one of its steps.
    labels: Vec<Vec<String>>,
}

pub(super) struct StepPlan {
    updates: usize,
    /// What each attempt waits for, one after the other, before it ends.
    pub(super) waits: Vec<Wait>,
    /// Failures before the attempt that brings a result.
    failures: u32,
    /// Whether what comes after the failures is one too, for good.
    fails_for_good: bool,
    /// Items of a fan-out, or iterations of a loop.
    count: u32,
}

/// Draws a graph: nodes with edges forward, some of them grown into scopes with nodes of their own.
struct Draft {
    spec: GraphSpec,
    names: usize,
}

impl Draft {
    /// Nodes and the edges among them. Returns for each where edges into it end and where edges out of it start.
    fn block(&mut self, dealer: &mut Dealer, most: usize, depth: usize) -> Vec<(String, String)> {
        let count = 1 + dealer.below(most);
        let mut ends: Vec<(String, String)> = Vec::new();
        for _ in 0..count {
            let id = format!("n{}", self.names);
            self.names += 1;
            let scope = depth < 3 && dealer.one_in(4);
            self.spec.nodes.push(NodeSpec { opens: scope.then(|| kind(dealer)), ..NodeSpec::new(&id, LIMITS) });
            let end = if scope { self.scope(dealer, &id, depth) } else { id.clone() };
            ends.push((id, end));
        }
        for target in 1..count {
            for source in 0..target {
                if dealer.one_in(count / 2 + 1) {
                    let label = [None, Some("x"), Some("y")][dealer.below(3)].map(str::to_owned);
                    let (source, target) = (ends[source].1.clone(), ends[target].0.clone());
                    self.spec.edges.push(EdgeSpec { source, target, label });
                }
            }
        }
        ends
    }

    /// What lies behind a node that opens a scope, up to the node that closes it.
    fn scope(&mut self, dealer: &mut Dealer, opener: &str, depth: usize) -> String {
        let closer = format!("{opener}e");
        let inside = self.block(dealer, 3, depth + 1);
        let edge = |source: &str, target: &str| EdgeSpec { source: source.into(), target: target.into(), label: None };
        for (id, end) in &inside {
            if !self.spec.edges.iter().any(|edge| edge.target == *id) {
                self.spec.edges.push(edge(opener, id));
            }
            if !self.spec.edges.iter().any(|edge| edge.source == *end) {
                self.spec.edges.push(edge(end, &closer));
            }
        }
        let needs = inside.iter().map(|(_, end)| end.clone()).chain([opener.to_owned()]).collect();
        self.spec.nodes.push(NodeSpec { closes: Some(opener.into()), needs, ..NodeSpec::new(&closer, LIMITS) });
        closer
    }
}

fn kind(dealer: &mut Dealer) -> ScopeKind {
    if dealer.one_in(3) {
        return ScopeKind::Repeat { max: 3 };
    }
    let on_failure = [ItemFailure::Cancel, ItemFailure::Finish, ItemFailure::Collect, ItemFailure::Collect];
    ScopeKind::Each { concurrency: 1 + dealer.below(3) as u32, on_failure: on_failure[dealer.below(4)] }
}

impl Plan {
    pub(super) fn random(dealer: &mut Dealer) -> Self {
        let mut draft = Draft { spec: GraphSpec { topics: vec!["update".into()], ..GraphSpec::default() }, names: 0 };
        let ends = draft.block(dealer, 7, 0);
        let mut spec = draft.spec;
        spec.output = dealer.one_in(2).then(|| ends[dealer.below(ends.len())].1.clone());
        for node in &mut spec.nodes {
            node.retry.jitter = 0.0;
            if dealer.one_in(6) {
                node.retry.max_attempts = 1 + dealer.below(2) as u32;
                node.retry.when_exhausted = Exhausted::Pause;
            }
        }
        spec.signals =
            ["go", "say"].map(|name| SignalSpec { name: name.to_owned(), schema: None }).into_iter().collect();
        let graph = Arc::new(Graph::check(spec).unwrap());
        let labels = |node: &Node| {
            let labels = ["x", "y"].into_iter().filter(|label| node.has_label(label) && dealer.one_in(2));
            labels.map(str::to_owned).collect()
        };
        let labels = graph.nodes().iter().map(labels).collect();
        Self { graph, seed: dealer.next(), labels }
    }

    fn index(&self, step: &StepId) -> NodeIndex {
        self.graph.index_of(&step.node).unwrap()
    }

    /// What a step does: a matter of its name, so that it does the same whenever it is asked.
    pub(super) fn of(&self, step: &StepId) -> StepPlan {
        let mut seed = self.seed ^ (self.index(step) as u64) << 32;
        for item in &step.items {
            seed = seed.wrapping_mul(31).wrapping_add(u64::from(*item) + 1);
        }
        let dealer = &mut Dealer::new(seed);
        let failures = if dealer.one_in(3) { dealer.below(3) as u32 } else { 0 };
        let waits = if dealer.one_in(3) { 1 + dealer.below(2) } else { 0 };
        StepPlan {
            updates: dealer.below(3),
            waits: (0..waits).map(|_| Wait::random(dealer)).collect(),
            failures,
            fails_for_good: dealer.one_in(30),
            count: dealer.below(4) as u32,
        }
    }

    fn closed_kind(&self, node: NodeIndex) -> Option<ScopeKind> {
        Some(self.graph.inner(self.graph.nodes()[node].closes?)?.kind)
    }

    fn opened_kind(&self, node: NodeIndex) -> Option<ScopeKind> {
        Some(self.graph.inner(self.graph.nodes()[node].opens?)?.kind)
    }

    /// Whether a step that opens or closes a loop wants one more iteration.
    fn wants_more(&self, step: &StepId) -> bool {
        let node = self.index(step);
        match (self.opened_kind(node), self.closed_kind(node)) {
            (Some(ScopeKind::Repeat { .. }), _) => self.of(step).count > 0,
            (_, Some(ScopeKind::Repeat { .. })) => {
                let (iteration, around) = step.items.split_last().unwrap();
                let inner = self.graph.inner(self.graph.nodes()[node].closes.unwrap()).unwrap();
                let opener = StepId { node: self.graph.nodes()[inner.opener].id.clone(), items: around.to_vec() };
                iteration + 1 < self.of(&opener).count
            }
            _ => false,
        }
    }

    /// Lets an attempt run to its end.
    pub(super) fn run_attempt(&self, play: &mut Play, step: &StepId, attempt: u32) {
        for _ in 0..self.of(step).updates {
            play.publish(&step.to_string(), attempt);
        }
        self.end_attempt(play, step, attempt);
    }

    /// Lets an attempt begin its next wait, or end when it has none left.
    fn go_on_once(&self, play: &mut Play, world: &mut World, step: &StepId, attempt: u32) {
        if !world.next_wait(play, self, step, attempt) {
            self.end_attempt(play, step, attempt);
        }
    }

    /// Lets an attempt go on as far as it can: to its end, or to where it waits.
    pub(super) fn go_on(&self, play: &mut Play, world: &mut World, step: &StepId, attempt: u32) {
        while world.next_wait(play, self, step, attempt) {
            if !play.running().contains(&(step.clone(), attempt)) {
                return;
            }
        }
        self.run_attempt(play, step, attempt);
    }

    fn end_attempt(&self, play: &mut Play, step: &StepId, attempt: u32) {
        let (plan, name, node) = (self.of(step), step.to_string(), self.index(step));
        let failed = play.history.iter().filter(|r| match &r.event {
            Event::StepFailed { step: failed, failure, .. } => failed == step && failure.code == "oops",
            _ => false,
        });
        if (failed.count() as u32) < plan.failures {
            play.fail(&name, attempt, FailureKind::Retryable);
        } else if plan.fails_for_good {
            play.fail(&name, attempt, FailureKind::Permanent);
        } else if let Some(ScopeKind::Each { .. }) = self.opened_kind(node) {
            play.hand_over(&name, "[]", Next::FanOut(plan.count));
        } else if self.wants_more(step) {
            play.hand_over(&name, "0", Next::Again);
        } else {
            let labels: Vec<&str> = self.labels[node].iter().map(String::as_str).collect();
            play.succeed(&name, attempt, &labels);
        }
    }

    /// What the rules alone say of a frame: the steps that complete, and whether it fails. Steps of items that fail are
    /// not among them, for how far those get is a matter of luck.
    fn frame(&self, scope: ScopeIndex, items: &[u32], entered: bool, done: &mut HashSet<StepId>) -> bool {
        let nodes = &self.graph.scopes()[scope].nodes;
        let mut reached: HashSet<NodeIndex> = HashSet::new();
        let mut open: HashMap<NodeIndex, usize> = HashMap::new();
        let mut ready: Vec<NodeIndex> = Vec::new();
        for node in nodes {
            let this = &self.graph.nodes()[*node];
            open.insert(*node, this.incoming - this.entries);
            if this.incoming == this.entries {
                ready.push(*node);
            }
            if entered && (this.entries > 0 || this.incoming == 0) {
                reached.insert(*node);
            }
        }
        let mut fails = false;
        while let Some(node) = ready.pop() {
            let this = &self.graph.nodes()[node];
            let runs = reached.contains(&node);
            if runs {
                fails |= self.step(node, items, done);
            }
            for edge in &this.outgoing {
                let taken = edge.label.as_ref().is_none_or(|label| self.labels[node].contains(label));
                if runs && taken {
                    reached.insert(edge.target);
                }
                let open = open.get_mut(&edge.target).unwrap();
                *open -= 1;
                if *open == 0 {
                    ready.push(edge.target);
                }
            }
        }
        fails
    }

    /// What the rules say of a step that runs, and of the scope behind it.
    fn step(&self, node: NodeIndex, items: &[u32], done: &mut HashSet<StepId>) -> bool {
        let this = &self.graph.nodes()[node];
        let id = |items: Vec<u32>| StepId { node: this.id.clone(), items };
        if let Some(ScopeKind::Repeat { .. }) = self.closed_kind(node) {
            return false; // told with the node that opens the loop
        }
        let step = id(items.to_vec());
        if self.of(&step).fails_for_good {
            return true;
        }
        done.insert(step.clone());
        let Some(inner) = this.opens.and_then(|scope| Some((scope, self.graph.inner(scope)?))) else { return false };
        let (scope, inner) = inner;
        let mut fails = false;
        match inner.kind {
            ScopeKind::Each { on_failure, .. } => {
                for item in 0..self.of(&step).count {
                    let mut of_item = HashSet::new();
                    let failed = self.frame(scope, &[items, &[item]].concat(), true, &mut of_item);
                    if !failed {
                        done.extend(of_item);
                    }
                    fails |= failed && on_failure != ItemFailure::Collect;
                }
            }
            ScopeKind::Repeat { .. } => {
                let closer = &self.graph.nodes()[inner.closer].id;
                for iteration in 0..self.of(&step).count.max(1) {
                    let path = [items, &[iteration]].concat();
                    if self.of(&step).count > 0 && self.frame(scope, &path, true, done) {
                        return true;
                    }
                    let closing = StepId { node: closer.clone(), items: path };
                    if self.of(&closing).fails_for_good {
                        return true;
                    }
                    done.insert(closing);
                }
            }
        }
        fails
    }
}

/// One random story: attempts run side by side and end in any order, hosts crash, timers come late, people cancel.
fn play(seed: u64) -> (Plan, Play, World) {
    let dealer = &mut Dealer::new(seed);
    let plan = Plan::random(dealer);
    let limited = dealer.one_in(12);
    let plan = Plan {
        graph: if limited {
            let timeout_ms = Some(1 + dealer.below(20_000) as u64);
            Arc::new(Graph::check(GraphSpec { timeout_ms, ..plan.graph.spec().clone() }).unwrap())
        } else {
            plan.graph
        },
        ..plan
    };
    let mut play = Play::new(&plan.graph);
    let mut world = World::new();
    let cancels = dealer.one_in(10);
    let chatters = dealer.one_in(200);
    for moves in 0.. {
        world.see_to_family(&mut play);
        if play.run.has_ended() && world.is_told(&play) {
            break;
        }
        assert!(moves < MOVES_MAX, "seed {seed}: the story does not end\n{}", play.text());
        // Now and then the clock jumps.
        let passes = if dealer.one_in(60) { 5_000 } else { 50 };
        play.now = play.now.plus_millis(dealer.below(passes) as u64);
        if play.run.has_ended() {
            continue;
        }
        if cancels && dealer.one_in(10) {
            play.tell(Input::Cancel { reason: None });
        } else if dealer.one_in(20) && play.run.status() != Some(RunStatus::Queued) {
            world.pause_or_resume(&mut play);
        } else if dealer.one_in(8) {
            world.send_signal(&mut play, dealer);
        } else if dealer.one_in(5) {
            world.end_child(&mut play, dealer);
        } else if dealer.one_in(15) {
            world.crash();
            let snapshot = play.run.snapshot(play.now).expect("a state can be written");
            let restored = Run::restore(Arc::clone(&plan.graph), &snapshot).expect("and read");
            play = Play { appends: play.appends, ..Play::recovered(&plan.graph, &play.history, play.now) };
            assert_eq!(restored, (play.run.clone(), play.now), "a run comes back from its snapshot as it was");
            if dealer.one_in(2) {
                play.lose_all_attempts();
            } else {
                play.resume_all_attempts();
            }
        } else if play.run.status() == Some(RunStatus::Queued) {
            play.tell(Input::Start);
        } else {
            let running = play.running();
            match running.get(dealer.below(running.len() + 1)) {
                Some((step, attempt)) if chatters => (0..100).for_each(|_| chat(&mut play, step, *attempt)),
                Some((step, attempt)) if dealer.one_in(40) => host_cannot_run(&mut play, step, *attempt),
                Some((step, attempt)) if dealer.one_in(2) => plan.go_on_once(&mut play, &mut world, step, *attempt),
                Some((step, attempt)) => play.publish(&step.to_string(), *attempt),
                None if play.run.status() == Some(RunStatus::Paused) => world.pause_or_resume(&mut play),
                None if play.run.owed().iter().any(|effect| matches!(effect, Effect::WakeAt { .. })) => play.wait(),
                None => {}
            }
        }
    }
    (plan, play, world)
}

/// Publishes while there is somebody to hear it.
fn chat(play: &mut Play, step: &StepId, attempt: u32) {
    if !play.run.has_ended() {
        play.publish(&step.to_string(), attempt);
    }
}

fn host_cannot_run(play: &mut Play, step: &StepId, attempt: u32) {
    let result = Err(Failure::platform(FailureKind::Retryable, UNAVAILABLE, "no room"));
    play.tell(Input::AttemptEnded { step: step.clone(), attempt, result, fuel_used: 0 });
}

type Property = fn(&Plan, &Play) -> bool;

fn ended_by_its_limit(play: &Play) -> bool {
    matches!(play.history.last().map(|r| &r.event), Some(Event::RunFailed { step: None, .. }))
}

fn ended_by(play: &Play, code: &str) -> bool {
    matches!(play.history.last().map(|r| &r.event), Some(Event::RunFailed { failure, .. }) if failure.code == code)
}

/// Whether a step's failure is one of the host's.
fn is_of_the_host(failure: &Failure) -> bool {
    let codes = [UNAVAILABLE, INTERRUPTED, "interrupted_too_often"];
    failure.source == FailureSource::Platform && codes.contains(&failure.code.as_str())
}

/// Whether a step failed for good because the host could not run it: what the rules say of the run does not hold then.
fn was_given_up(play: &Play) -> bool {
    play.history.iter().any(|r| match &r.event {
        Event::StepFailed { failure, will_retry: false, pauses: false, .. } => is_of_the_host(failure),
        _ => false,
    })
}

/// The properties, each over a whole history.
const PROPERTIES: &[(&str, Property)] = &[
    ("recovery folds to the same state", |plan, play| {
        Play::recovered(&plan.graph, &play.history, play.now).run == play.run
    }),
    ("nothing follows a terminal event", |_, play| {
        play.history.iter().position(|r| r.event.is_terminal()) == Some(play.history.len() - 1)
    }),
    ("AnEndedRunOwesNothingButToItsFamily", |_, play| {
        play.run.owed().iter().all(|effect| matches!(effect, Effect::CancelChild { .. } | Effect::TellParent { .. }))
    }),
    ("EverySuspensionIsFollowedByItsResumption", |_, play| {
        let mut suspended: HashSet<StepId> = HashSet::new();
        play.history.iter().all(|r| match &r.event {
            Event::StepSuspended { step, .. } => suspended.insert(step.clone()),
            Event::StepResumed { step, woke: None } if !suspended.contains(step) => true, // it was cut off
            Event::StepResumed { step, .. } => suspended.remove(step),
            Event::StepCancelled { step } => {
                suspended.remove(step);
                true
            }
            // The run's end, and what was rolled back before the wait began.
            Event::RunFailed { .. } | Event::StepRolledBack { .. } => true,
            event => event.step().is_none_or(|step| !suspended.contains(step)),
        }) && (play.run.status() != Some(RunStatus::Completed) || suspended.is_empty())
    }),
    ("NoWaitEndsBeforeItsTime", |_, play| {
        let mut until: HashMap<StepId, Option<Timestamp>> = HashMap::new();
        play.history.iter().all(|r| match &r.event {
            Event::StepSuspended { step, until: at, .. } => {
                until.insert(step.clone(), *at);
                true
            }
            Event::StepResumed { step, woke } => match woke.as_deref() {
                Some(Woke::Timer | Woke::TimedOut) => until[step].is_some_and(|at| at <= r.at),
                _ => true,
            },
            _ => true,
        })
    }),
    ("ASignalIsTakenOnceAndInItsTurn", |_, play| {
        let mut kept: HashMap<&str, Vec<(u64, &Payload)>> = HashMap::new();
        let mut waits_for: HashMap<&StepId, &str> = HashMap::new();
        play.history.iter().all(|r| match &r.event {
            Event::SignalReceived { name, payload, .. } => {
                kept.entry(name).or_default().push((r.seq, payload));
                true
            }
            Event::StepSuspended { step, call: Some(call), .. } => {
                if let Some(name) = &call.signal {
                    waits_for.insert(step, name);
                }
                true
            }
            Event::StepResumed { step, woke: Some(woke) } => match &**woke {
                Woke::Signal { seq, payload } => {
                    let kept = kept.get_mut(waits_for[step]).unwrap();
                    !kept.is_empty() && kept.remove(0) == (*seq, payload)
                }
                _ => true,
            },
            _ => true,
        })
    }),
    ("ASignalWithTheSameKeyIsRecordedOnce", |_, play| {
        let mut keys = HashSet::new();
        play.history.iter().all(|r| match &r.event {
            Event::SignalReceived { key: Some(key), .. } => keys.insert(*key),
            _ => true,
        })
    }),
    ("NothingBeginsInAPausedRun", |_, play| {
        let mut paused = false;
        play.history.iter().all(|r| {
            match &r.event {
                Event::RunPaused { .. } => paused = true,
                Event::RunResumed {} => paused = false,
                Event::StepStarted { .. } | Event::RunSuspended { .. } | Event::StepResumed { woke: Some(_), .. } => {
                    return !paused;
                }
                _ => {}
            }
            true
        })
    }),
    ("ARunThatWaitsSaysForWhat", |_, play| {
        let mut waiting: HashMap<&StepId, SuspendReason> = HashMap::new();
        play.history.iter().all(|r| {
            match &r.event {
                Event::StepSuspended { step, reason, .. } => drop(waiting.insert(step, *reason)),
                Event::StepResumed { step, .. } | Event::StepCancelled { step } => drop(waiting.remove(step)),
                Event::RunSuspended { reason, .. } => {
                    let has = |reason: &SuspendReason| waiting.values().any(|waiting| waiting == reason);
                    let by_weight = [
                        SuspendReason::Operator,
                        SuspendReason::Signal,
                        SuspendReason::Child,
                        SuspendReason::Timer,
                        SuspendReason::Retry,
                    ];
                    return by_weight.into_iter().find(has) == Some(*reason);
                }
                _ => {}
            }
            true
        })
    }),
    ("ARunFailsByItsLimitWhenItIsOverAndNotBefore", |_, play| {
        let deadline = play.history.iter().find_map(|r| match &r.event {
            Event::RunStarted { deadline } => *deadline,
            _ => None,
        });
        !ended_by(play, "run_timeout") || deadline.is_some_and(|deadline| play.history.last().unwrap().at >= deadline)
    }),
    ("ARunIsTooLongWhenItHasAsManyEventsAsItMayAndNotBefore", |_, play| {
        let is_short = |events: &usize| (*events as u64) < EVENTS_MAX;
        let (last, before) = play.appends.split_last().unwrap();
        before.iter().all(is_short) && (!ended_by(play, "run_too_long") || !is_short(last))
    }),
    ("ARunThatWasResumedPausesOnlyForWhatIsNew", |_, play| {
        let mut exhausted = false;
        play.history.iter().all(|r| {
            match &r.event {
                Event::StepFailed { pauses: true, .. } => exhausted = true,
                Event::RunResumed {} => exhausted = false,
                // A person's pause has no reason here.
                Event::RunPaused { reason: Some(_) } => return exhausted,
                _ => {}
            }
            true
        })
    }),
    ("AnOperatorIsWaitedForInPausedRunsOnly", |_, play| {
        let mut waiting: HashSet<&StepId> = HashSet::new();
        play.history.iter().all(|r| {
            match &r.event {
                Event::StepSuspended { step, reason: SuspendReason::Operator, .. } => drop(waiting.insert(step)),
                Event::StepResumed { step, .. } | Event::StepCancelled { step } => drop(waiting.remove(step)),
                Event::StepStarted { .. } | Event::RunSuspended { .. } => return waiting.is_empty(),
                _ => {}
            }
            true
        })
    }),
    ("NoWaitTimesOutWhileASignalIsThereForIt", |_, play| {
        let mut kept: HashMap<&str, usize> = HashMap::new();
        let mut waits_for: HashMap<&StepId, &str> = HashMap::new();
        play.history.iter().all(|r| match &r.event {
            Event::SignalReceived { name, .. } => {
                *kept.entry(name).or_default() += 1;
                true
            }
            Event::StepSuspended { step, call, .. } => {
                waits_for.remove(step);
                waits_for.extend(call.as_ref().and_then(|call| Some((step, call.signal.as_deref()?))));
                true
            }
            Event::StepResumed { step, woke: Some(woke) } => {
                let kept = waits_for.get(step).map(|name| kept.entry(name).or_default());
                match (&**woke, kept) {
                    (Woke::Signal { .. }, Some(kept)) => *kept -= 1,
                    (Woke::TimedOut, Some(kept)) => return *kept == 0,
                    _ => {}
                }
                true
            }
            _ => true,
        })
    }),
    ("WhatTheHostIsAtFaultForIsAnOperatorsCaseWhereThePolicySaysSo", |plan, play| {
        play.history.iter().all(|r| match &r.event {
            Event::StepFailed { step, failure, will_retry: false, pauses, .. } if is_of_the_host(failure) => {
                *pauses == (plan.graph.nodes()[plan.index(step)].retry.when_exhausted == Exhausted::Pause)
            }
            _ => true,
        })
    }),
    ("WhatIsHeldIsNotCutOff", |_, play| {
        let mut paused = false;
        let mut taken_up: HashSet<&StepId> = HashSet::new();
        play.history.iter().all(|r| {
            match &r.event {
                Event::RunPaused { .. } => paused = true,
                Event::RunResumed {} => {
                    paused = false;
                    taken_up.clear();
                }
                Event::StepResumed { step, woke: None } if paused => return taken_up.insert(step),
                _ => {}
            }
            true
        })
    }),
    ("a completed step never runs again", |_, play| {
        let mut done = HashSet::new();
        play.history.iter().all(|r| match &r.event {
            Event::StepCompleted { step, .. } => done.insert(step.clone()),
            Event::StepStarted { step, .. } | Event::StepUpdate { step, .. } => !done.contains(step),
            _ => true,
        })
    }),
    ("every attempt that starts ends, or the run does", |_, play| {
        let mut open = HashSet::new();
        for r in &play.history {
            match &r.event {
                Event::StepStarted { step, .. } => assert!(open.insert(step.clone())),
                Event::StepCompleted { step, .. } | Event::StepFailed { step, .. } => assert!(open.remove(step)),
                Event::StepCancelled { step } => drop(open.remove(step)),
                _ => {}
            }
        }
        open.is_empty() || play.run.status() != Some(RunStatus::Completed)
    }),
    ("each suspension is followed by its resumption before anything else moves", |_, play| {
        play.history.windows(2).all(|pair| match &pair[0].event {
            Event::RunSuspended { .. } => matches!(
                pair[1].event,
                Event::RunResumed {}
                    | Event::RunCancelled { .. }
                    | Event::RunPaused { .. }
                    | Event::SignalReceived { .. }
                    | Event::RunFailed { step: None, .. }
            ),
            _ => true,
        })
    }),
    ("a run is suspended exactly when nothing in it is under way", |plan, play| {
        let mut run = Run::new(Arc::clone(&plan.graph));
        let mut appends = play.appends.iter().copied().peekable();
        play.history.iter().enumerate().all(|(at, recorded)| {
            run.apply(&recorded.event).unwrap();
            while appends.next_if(|append| *append < at + 1).is_some() {}
            let idle = || !run.owed().iter().any(|effect| matches!(effect, Effect::RunStep { .. }));
            // Between the events of one append a run may be neither.
            appends.peek() != Some(&(at + 1))
                || match run.status() {
                    Some(RunStatus::Suspended) => idle(),
                    Some(RunStatus::Running) => !idle(),
                    _ => true,
                }
        })
    }),
    ("updates that count come from the attempt that completed", |_, play| {
        let mut counting: HashMap<StepId, HashSet<u32>> = HashMap::new();
        let mut completed: HashMap<StepId, u32> = HashMap::new();
        for r in &play.history {
            match &r.event {
                Event::StepUpdate { step, attempt, .. } => {
                    counting.entry(step.clone()).or_default().insert(*attempt);
                }
                Event::StepRolledBack { step, attempt, .. } => {
                    assert!(counting.entry(step.clone()).or_default().remove(attempt), "rolled back without updates");
                }
                Event::StepCompleted { step, attempt, .. } => {
                    completed.insert(step.clone(), *attempt);
                }
                _ => {}
            }
        }
        completed.iter().all(|(step, attempt)| counting.get(step).is_none_or(|by| by.iter().all(|a| a == attempt)))
    }),
    ("a completed run has done what the rules say, and no more", |plan, play| {
        let mut expected = HashSet::new();
        let fails = plan.frame(OUTERMOST, &[], true, &mut expected);
        let completed = play.history.iter().filter_map(|r| match &r.event {
            Event::StepCompleted { step, .. } => Some(step.clone()),
            _ => None,
        });
        let completed: HashSet<StepId> = completed.collect();
        let failed_items: Vec<&StepId> = play
            .history
            .iter()
            .filter_map(|r| match &r.event {
                Event::StepFailed { step, will_retry: false, pauses: false, .. } => Some(step),
                _ => None,
            })
            .collect();
        // What belongs to an item in which a step has failed may have completed before.
        let beside = |step: &&StepId| {
            failed_items.iter().all(|failed| step.items.is_empty() || step.items[0] != failed.items[0])
        };
        play.run.status() != Some(RunStatus::Completed)
            || was_given_up(play)
            || !fails && expected.is_subset(&completed) && completed.difference(&expected).all(|step| !beside(&step))
    }),
    ("a run that nobody cancels fails exactly when the rules say so", |plan, play| {
        let fails = plan.frame(OUTERMOST, &[], true, &mut HashSet::new());
        play.run.status() == Some(RunStatus::Cancelled)
            || ended_by_its_limit(play)
            || was_given_up(play)
            || (play.run.status() == Some(RunStatus::Failed)) == fails
    }),
    ("a fan-out never has more items under way than it may", |plan, play| {
        let mut run = Run::new(Arc::clone(&plan.graph));
        play.history.iter().all(|recorded| {
            run.apply(&recorded.event).unwrap();
            run.items_under_way().all(|(concurrency, under_way)| under_way <= concurrency)
        })
    }),
    ("what was started in an item that fails is cancelled, and nothing of it goes on", |_, play| {
        let mut cancelled = HashSet::new();
        play.history.iter().all(|r| match &r.event {
            Event::StepCancelled { step } => cancelled.insert(step.clone()),
            Event::StepRolledBack { .. } => true,
            event => event.step().is_none_or(|step| !cancelled.contains(step)),
        })
    }),
];

#[test]
fn random_runs_keep_every_promise() {
    let seeds = std::env::var("STEPWELL_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let mut ends: HashMap<RunStatus, u64> = HashMap::new();
    let one = std::env::var("STEPWELL_SEED").ok().and_then(|text| text.parse().ok());
    let mut seen: HashMap<&str, u64> = HashMap::new();
    for seed in one.map_or(0..seeds, |seed| seed..seed + 1) {
        let (plan, play, world) = play(seed);
        world.check(&play, seed);
        for recorded in &play.history {
            *seen.entry(moment(&recorded.event)).or_default() += 1;
        }
        for (name, holds) in PROPERTIES {
            assert!(holds(&plan, &play), "seed {seed}: {name}\n{}", play.text());
        }
        *ends.entry(play.run.status().unwrap()).or_default() += 1;
    }
    if one.is_some() {
        return;
    }
    // A simulation that never gets somewhere proves nothing about it.
    for status in [RunStatus::Completed, RunStatus::Failed, RunStatus::Cancelled] {
        assert!(ends.get(&status).is_some_and(|count| *count > seeds / 100), "{ends:?}");
    }
    let moments = ["timer", "timed_out", "signal", "child", "operator", "run.paused", "step.cancelled", "run_timeout"];
    for moment in moments {
        assert!(seen.get(moment).is_some_and(|count| *count > seeds / 200), "{moment}: {seen:?}");
    }
    for moment in ["run_too_long", "interrupted_too_often", "exhausted by the host"] {
        assert!(seen.get(moment).is_some_and(|count| *count > seeds / 2_000), "{moment}: {seen:?}");
    }
}

/// What a story must come by.
fn moment(event: &Event) -> &'static str {
    match event {
        Event::StepResumed { woke: Some(woke), .. } => match &**woke {
            Woke::Timer => "timer",
            Woke::TimedOut => "timed_out",
            Woke::Signal { .. } => "signal",
            Woke::Child(_) => "child",
            Woke::Operator => "operator",
        },
        Event::RunFailed { step: None, failure } if failure.code == "run_too_long" => "run_too_long",
        Event::RunFailed { step: None, .. } => "run_timeout",
        Event::StepFailed { failure, .. } if failure.code == "interrupted_too_often" => "interrupted_too_often",
        Event::StepFailed { failure, pauses: true, .. } if is_of_the_host(failure) => "exhausted by the host",
        event => event.kind(),
    }
}

/// Ended runs are repeated from each of their outermost steps: what is taken over does not run, the rest does, and the
/// end is the same.
#[test]
fn a_rerun_runs_what_comes_after_its_step_and_nothing_else() {
    let (mut taken_over, mut refused) = (0, 0);
    for seed in 0..500 {
        let (plan, first, _) = play(seed);
        let mut results = Results::default();
        first.history.iter().for_each(|recorded| results.see(recorded));
        for node in plan.graph.nodes() {
            let from: StepId = node.id.clone().into();
            let Ok(taken) = results.taken_over(&plan.graph, &from) else {
                refused += 1;
                continue;
            };
            let steps: HashSet<StepId> = taken.iter().map(|taken| taken.step.clone()).collect();
            assert_eq!(steps, to_take_over(&plan.graph, &first, &node.id), "seed {seed} from {from}\n{}", first.text());
            taken_over += steps.len();
            let mut play = Play { history: vec![], appends: vec![], ..Play::new(&plan.graph) };
            play.run = Run::new(Arc::clone(&plan.graph));
            play.tell(Input::Queue {
                workflow: "w".parse().unwrap(),
                version: Digest::from_bytes([0; 32]),
                input: payload("1"),
                parent: None,
                rerun_of: Some(RerunRef { run: first_run(), from_step: Some(from.clone()) }),
                shadow_of: None,
                taken_over: taken,
                place: None,
            });
            let mut world = World::new();
            super::prefixes::finish(&mut play, &plan, &mut world);
            let ran = |step: &StepId| {
                let started = |r: &Recorded| matches!(&r.event, Event::StepStarted { step: s, .. } if s == step);
                play.history.iter().any(started)
            };
            assert!(steps.iter().all(|step| !ran(step)), "seed {seed} from {from}\n{}", play.text());
            let was_reached = !ended_by_its_limit(&play) && play.run.status() == Some(RunStatus::Completed);
            assert!(!was_reached || ran(&from), "seed {seed} from {from}\n{}", play.text());
            assert_eq!(Play::recovered(&plan.graph, &play.history, play.now).run, play.run, "seed {seed} from {from}");
            let fails = plan.frame(OUTERMOST, &[], true, &mut HashSet::new());
            let ended = play.run.status();
            assert!(
                ended_by_its_limit(&play) || (ended == Some(RunStatus::Failed)) == fails,
                "seed {seed} from {from}\n{}",
                play.text()
            );
        }
    }
    assert!(taken_over > 1_000 && refused > 500, "{taken_over} {refused}");
}

/// What the rules say of a rerun: everything that has completed and does not come after the step. What opens a scope
/// counts when the scope is done; what lies within is not taken over by itself.
fn to_take_over(graph: &Graph, first: &Play, from: &NodeId) -> HashSet<StepId> {
    let mut completed: HashSet<&NodeId> = HashSet::new();
    for recorded in &first.history {
        let Event::StepCompleted { step, again, .. } = &recorded.event else { continue };
        let goes_on = *again && !step.items.is_empty();
        let _ = if goes_on { completed.remove(&step.node) } else { completed.insert(&step.node) };
    }
    let mut after: HashSet<NodeIndex> = graph.index_of(from).into_iter().collect();
    let mut ahead: Vec<NodeIndex> = after.iter().copied().collect();
    while let Some(node) = ahead.pop() {
        ahead
            .extend(graph.nodes()[node].outgoing.iter().map(|edge| edge.target).filter(|target| after.insert(*target)));
    }
    let node = |index: &NodeIndex| &graph.nodes()[*index];
    let is_done = |index: &&NodeIndex| {
        let inner = node(index).opens.and_then(|scope| graph.inner(scope));
        completed.contains(&node(index).id) && inner.is_none_or(|inner| completed.contains(&node(&inner.closer).id))
    };
    let outermost = graph.scopes()[OUTERMOST].nodes.iter();
    outermost
        .filter(|index| !after.contains(*index))
        .filter(is_done)
        .map(|index| node(index).id.clone().into())
        .collect()
}

fn first_run() -> crate::ids::RunId {
    crate::ids::RunId::from_bytes([7; 16])
}
