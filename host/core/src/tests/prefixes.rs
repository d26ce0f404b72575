//! Every story cut off after every append, as a crash would, then recovered and finished: the end is the same.

use super::simulation::{Dealer, Plan};
use super::world::World;
use super::*;
use crate::RunStatus;

/// Drives a run to its end; each step does what the plan says, however often it was interrupted.
pub(super) fn finish(play: &mut Play, plan: &Plan, world: &mut World) {
    while !play.run.has_ended() {
        world.see_to_family(play);
        if play.run.status() == Some(RunStatus::Queued) {
            play.tell(Input::Start);
            continue;
        }
        match play.running().into_iter().next() {
            Some((step, attempt)) => plan.go_on(play, world, &step, attempt),
            None if play.run.status() == Some(RunStatus::Paused) => play.tell(Input::Resume),
            None => {
                world.end_all_children(play);
                world.send_what_is_waited_for(play);
                if play.run.status() == Some(RunStatus::Suspended) {
                    play.wait();
                }
            }
        }
    }
}

/// What must be the same: how the run ended, what became of each step, and the updates that count.
fn outcome(play: &Play) -> (Option<RunStatus>, Vec<String>, Vec<String>) {
    let mut steps: Vec<String> = Vec::new();
    let mut updates: Vec<(StepId, u32)> = Vec::new();
    for Recorded { event, .. } in &play.history {
        match event {
            Event::StepCompleted { step, labels, .. } => steps.push(format!("{step} {labels:?}")),
            Event::StepSkipped { step } => steps.push(format!("{step} skipped")),
            Event::StepUpdate { step, attempt, .. } => updates.push((step.clone(), *attempt)),
            Event::StepRolledBack { step, attempt, .. } => updates.retain(|u| *u != (step.clone(), *attempt)),
            _ => {}
        }
    }
    steps.sort();
    let mut updates: Vec<String> = updates.into_iter().map(|(step, _)| step.to_string()).collect();
    updates.sort();
    let fails = |r: &Recorded| matches!(r.event, Event::StepFailed { will_retry: false, pauses: false, .. });
    if play.history.iter().any(fails) {
        // How far the neighbours of a step get that fails is a matter of who is first.
        return (play.run.status(), vec![], vec![]);
    }
    (play.run.status(), steps, updates)
}

#[test]
fn a_run_cut_off_after_any_append_ends_as_if_it_had_not_been() {
    for seed in 0..300 {
        let plan = Plan::random(&mut Dealer::new(seed));
        let mut whole = Play::new(&plan.graph);
        let mut world = World::new();
        finish(&mut whole, &plan, &mut world);
        for cut in whole.appends.iter().copied().filter(|cut| *cut < whole.history.len()) {
            let mut play = Play::recovered(&plan.graph, &whole.history[..cut], whole.history[cut - 1].at);
            play.lose_all_attempts();
            let mut world = World::after(&play);
            finish(&mut play, &plan, &mut world);
            assert_eq!(outcome(&play), outcome(&whole), "seed {seed}, cut after event {cut}\n{}", play.text());
        }
    }
}
