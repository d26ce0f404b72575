//! Random graphs, outcomes, crashes and cancellations. A failing seed is printed and plays again the same.

use std::collections::{HashMap, HashSet};

use super::*;
use crate::graph::{EdgeSpec, NodeIndex};
use crate::run::RunStatus;

/// Seeds played in a test run; more by `STEPWELL_SEEDS=100000`.
const SEEDS: u64 = 5_000;

/// A stream of random numbers (splitmix64).
pub(super) struct Dealer(u64);

impl Dealer {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bf0_3635)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A graph, and what each of its steps does.
pub(super) struct Plan {
    pub(super) graph: Arc<Graph>,
    steps: Vec<StepPlan>,
}

struct StepPlan {
    updates: usize,
    /// Failures before the attempt that brings a result.
    failures: u32,
    /// Whether what comes after the failures is one too, for good.
    fails_for_good: bool,
    labels: Vec<String>,
}

impl Plan {
    pub(super) fn random(dealer: &mut Dealer) -> Self {
        let count = 1 + dealer.below(8);
        let mut spec = spec(&(0..count).map(|n| format!("n{n};")).collect::<String>());
        for target in 1..count {
            for source in 0..target {
                if dealer.one_in(count / 2 + 1) {
                    let label = [None, Some("x"), Some("y")][dealer.below(3)].map(str::to_owned);
                    spec.edges.push(EdgeSpec { source: format!("n{source}"), target: format!("n{target}"), label });
                }
            }
        }
        spec.output = dealer.one_in(2).then(|| format!("n{}", dealer.below(count)));
        let graph = Arc::new(Graph::check(spec).unwrap());
        let steps = graph.nodes().iter().map(|node| {
            let labels = ["x", "y"].into_iter().filter(|label| node.has_label(label) && dealer.one_in(2));
            let labels = labels.map(str::to_owned).collect();
            let failures = if dealer.one_in(3) { dealer.below(3) as u32 } else { 0 };
            StepPlan { updates: dealer.below(3), failures, fails_for_good: dealer.one_in(20), labels }
        });
        let steps = steps.collect();
        Self { graph, steps }
    }

    fn plan(&self, step: &StepId) -> (NodeIndex, &StepPlan) {
        let index = self.graph.index_of(&step.node).unwrap();
        (index, &self.steps[index])
    }

    /// Lets an attempt run to its end.
    pub(super) fn run_attempt(&self, play: &mut Play, step: &StepId, attempt: u32) {
        for _ in 0..self.plan(step).1.updates {
            play.publish(&step.to_string(), attempt);
        }
        self.end_attempt(play, step, attempt);
    }

    fn end_attempt(&self, play: &mut Play, step: &StepId, attempt: u32) {
        let (index, plan) = self.plan(step);
        if play.run.steps[index].failures < plan.failures {
            play.fail(&step.to_string(), attempt, FailureKind::Retryable);
        } else if plan.fails_for_good {
            play.fail(&step.to_string(), attempt, FailureKind::Permanent);
        } else {
            let labels: Vec<&str> = plan.labels.iter().map(String::as_str).collect();
            play.succeed(&step.to_string(), attempt, &labels);
        }
    }

    /// What becomes of each step, by the rules alone, for a run in which no step fails for good: a node runs when an
    /// edge to it was taken, or when it has none.
    fn expected(&self) -> Vec<bool> {
        let mut runs: Vec<bool> = Vec::new();
        // Edges lead from lower to higher numbers only, so sources are decided first.
        for (target, node) in self.graph.nodes().iter().enumerate() {
            let taken = |source: NodeIndex| {
                let edges = self.graph.nodes()[source].outgoing.iter().filter(|edge| edge.target == target);
                edges.map(|edge| &edge.label).any(|l| l.as_ref().is_none_or(|l| self.steps[source].labels.contains(l)))
            };
            let reached = (0..target).any(|source| runs[source] && taken(source));
            runs.push(node.incoming == 0 || reached);
        }
        runs
    }
}

/// One random story: attempts run side by side and end in any order, hosts crash, timers come late, people cancel.
fn play(seed: u64) -> (Plan, Play) {
    let dealer = &mut Dealer::new(seed);
    let plan = Plan::random(dealer);
    let mut play = Play::new(&plan.graph);
    let cancels = dealer.one_in(10);
    while !play.run.has_ended() {
        play.now = play.now.plus_millis(dealer.below(50) as u64);
        if cancels && dealer.one_in(10) {
            play.tell(Input::Cancel { reason: None });
        } else if dealer.one_in(15) {
            play = Play { appends: play.appends, ..Play::recovered(&plan.graph, &play.history, play.now) };
            play.lose_all_attempts();
        } else if play.run.status() == Some(RunStatus::Queued) {
            play.tell(Input::Start);
        } else {
            let running = play.running();
            match running.get(dealer.below(running.len() + 1)) {
                Some((step, attempt)) if dealer.one_in(2) => plan.end_attempt(&mut play, step, *attempt),
                Some((step, attempt)) => play.publish(&step.to_string(), *attempt),
                None if play.run.owed().iter().any(|effect| matches!(effect, Effect::WakeAt { .. })) => play.wait(),
                None => {}
            }
        }
    }
    (plan, play)
}

type Property = fn(&Plan, &Play) -> bool;

/// The properties, each over a whole history.
const PROPERTIES: &[(&str, Property)] = &[
    ("recovery folds to the same state", |plan, play| {
        Play::recovered(&plan.graph, &play.history, play.now).run == play.run
    }),
    ("nothing follows a terminal event", |_, play| {
        play.history.iter().position(|r| r.event.is_terminal()) == Some(play.history.len() - 1)
    }),
    ("an ended run owes nothing", |_, play| play.run.owed().is_empty()),
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
                _ => {}
            }
        }
        open.is_empty() || play.run.status() != Some(RunStatus::Completed)
    }),
    ("each suspension is followed by its resumption before anything else moves", |_, play| {
        play.history.windows(2).all(|pair| match &pair[0].event {
            Event::RunSuspended { .. } => matches!(pair[1].event, Event::RunResumed {} | Event::RunCancelled { .. }),
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
        let completed = |index: NodeIndex| play.run.steps[index].state.is_completed();
        play.run.status() != Some(RunStatus::Completed)
            || plan.expected().into_iter().enumerate().all(|(index, runs)| runs == completed(index))
    }),
    ("a run fails only when a step does for good", |plan, play| {
        let worst = plan.steps.iter().any(|step| step.fails_for_good || step.failures >= 4);
        play.run.status() != Some(RunStatus::Failed) || worst
    }),
];

impl crate::run::StepState {
    fn is_completed(&self) -> bool {
        matches!(self, Self::Completed { .. })
    }
}

#[test]
fn random_runs_keep_every_promise() {
    let seeds = std::env::var("STEPWELL_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let mut ends: HashMap<RunStatus, u64> = HashMap::new();
    for seed in 0..seeds {
        let (plan, play) = play(seed);
        for (name, holds) in PROPERTIES {
            assert!(holds(&plan, &play), "seed {seed}: {name}\n{}", play.text());
        }
        *ends.entry(play.run.status().unwrap()).or_default() += 1;
    }
    // A simulation that never gets somewhere proves nothing about it.
    for status in [RunStatus::Completed, RunStatus::Failed, RunStatus::Cancelled] {
        assert!(ends.get(&status).is_some_and(|count| *count > seeds / 100), "{ends:?}");
    }
}
