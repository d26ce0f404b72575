//! Pauses: what they hold back, what goes on after them, and what a step may count on that waits through one.

use expect_test::expect;

use super::histories::check;
use super::*;
use crate::event::{ChildRef, WaitingCall};
use crate::failure::{INTERRUPTED, UNAVAILABLE};
use crate::graph::SignalSpec;
use crate::ids::RunId;
use crate::retry::{Exhausted, INTERRUPTIONS_MAX};
use crate::run::RunStatus;

/// All steps have one attempt, and then an operator is asked.
fn one_attempt_then_pause(spec: &mut GraphSpec) {
    for node in &mut spec.nodes {
        node.retry.max_attempts = 1;
        node.retry.when_exhausted = Exhausted::Pause;
    }
}

fn with_signal(spec: &mut GraphSpec) {
    spec.signals.push(SignalSpec { name: "go".to_owned(), schema: None });
}

const CHILD: RunId = RunId::from_bytes([9; 16]);

impl Play {
    fn pause(&mut self) {
        self.tell(Input::Pause { reason: None });
    }

    fn signal(&mut self) {
        self.tell(Input::Signal { name: "go".to_owned(), payload: payload("1"), key: None });
    }

    /// Begins a wait for a signal, or for the child.
    fn wait_within(&mut self, id: &str, signal: Option<&str>, within_ms: u64) {
        let child = signal.is_none().then_some(CHILD);
        let (call, arguments) = ("wait".to_owned(), Digest::from_bytes([1; 32]));
        let call = WaitingCall { call, arguments, signal: signal.map(str::to_owned), child };
        let until = Some(self.now.plus_millis(within_ms));
        self.tell(Input::Wait { step: step(id), attempt: 1, call, until });
    }

    fn start_child(&mut self, id: &str) {
        let (call, arguments) = ("start".to_owned(), Digest::from_bytes([1; 32]));
        let (workflow, version) = ("w".parse().unwrap(), Digest::from_bytes([2; 32]));
        let child = Box::new(ChildRef { run: CHILD, workflow, version, input: payload("1"), detached: false });
        self.tell(Input::StartChild { step: step(id), attempt: 1, call, arguments, result: payload("2"), child });
    }

    fn host_cannot_run(&mut self, id: &str) {
        let attempt = self.run.step(&step(id)).unwrap().1.attempts;
        let result = Err(Failure::platform(FailureKind::Retryable, UNAVAILABLE, "no room"));
        self.tell(Input::AttemptEnded { step: step(id), attempt, result, fuel_used: 0 });
    }

    fn pass(&mut self, ms: u64) {
        self.now = self.now.plus_millis(ms);
    }
}

/// The second step to use up its attempts did so in a run that was paused already. The pause that it was due was once made
/// up for as soon as somebody resumed the run, before either step had its next attempt.
#[test]
fn whoever_resumes_a_run_gives_every_exhausted_step_its_attempts_anew() {
    let mut play = Play::started("a; b", one_attempt_then_pause);
    play.fail("a", 1, FailureKind::Retryable);
    play.fail("b", 1, FailureKind::Retryable);
    play.tell(Input::Resume);
    play.succeed("a", 2, &[]);
    play.fail("b", 2, FailureKind::Retryable);
    check(
        &play,
        expect![[r#"
            1 run.queued
            2 run.started
            3 step.started a 1
            4 step.started b 1
            5 step.failed a 1 oops, pauses
            6 step.suspended a Operator until 0
            7 run.paused `a` has used up its attempts (oops)
            8 step.failed b 1 oops, pauses
            9 step.suspended b Operator until 0
            10 run.resumed
            11 step.resumed a by Operator
            12 step.resumed b by Operator
            13 step.started a 2
            14 step.started b 2
            15 step.completed a 2
            16 step.failed b 2 oops, pauses
            17 step.suspended b Operator until 0
            18 run.paused `b` has used up its attempts (oops)
        "#]],
    );
}

/// A signal that came in time, while the run was paused, was once ignored when the wait's time was over too by the time
/// somebody resumed the run.
#[test]
fn a_signal_that_came_in_time_ends_the_wait_of_a_run_that_was_paused_past_it() {
    let mut play = Play::started("a", with_signal);
    play.wait_within("a", Some("go"), 100);
    play.pause();
    play.pass(50);
    play.signal();
    play.pass(100);
    play.tell(Input::TimerDue);
    play.tell(Input::Resume);
    play.tell(Input::TimerDue);
    check(
        &play,
        expect![[r#"
            1 run.queued
            2 run.started
            3 step.started a 1
            4 step.suspended a Signal until 1100
            5 run.suspended Signal until 1100
            6 run.paused
            7 signal.received go
            8 run.resumed
            9 step.resumed a by signal 7
        "#]],
    );
}

#[test]
fn one_signal_ends_one_wait_and_the_other_times_out() {
    let mut play = Play::started("a; b", with_signal);
    play.wait_within("a", Some("go"), 100);
    play.wait_within("b", Some("go"), 100);
    play.pause();
    play.signal();
    play.pass(200);
    play.tell(Input::Resume);
    play.wait();
    check(
        &play,
        expect![[r#"
            1 run.queued
            2 run.started
            3 step.started a 1
            4 step.started b 1
            5 step.suspended a Signal until 1100
            6 step.suspended b Signal until 1100
            7 run.suspended Signal until 1100
            8 run.paused
            9 signal.received go
            10 run.resumed
            11 step.resumed a by signal 9
            12 step.resumed b by TimedOut
        "#]],
    );
}

/// Between two appends no signal is kept that a step waits for, unless the run is paused. So a timer that comes late, because
/// the host was down, finds nothing that it could overtake.
#[test]
fn a_timer_that_comes_late_does_not_overtake_a_signal() {
    let mut early = Play::started("a", with_signal);
    early.signal();
    early.wait_within("a", Some("go"), 0);
    let mut late = Play::started("a", with_signal);
    late.wait_within("a", Some("go"), 100);
    late.signal();
    for (mut play, by) in [(early, "by signal 4"), (late, "by signal 6")] {
        play.pass(1_000);
        let recovered = Play::recovered(play.run.graph(), &play.history, play.now);
        for play in [&mut play, &mut Play { appends: vec![], ..recovered }] {
            play.tell(Input::TimerDue);
            assert!(play.text().contains(by) && !play.text().contains("TimedOut"), "{}", play.text());
        }
    }
}

/// What is told to a paused run of its children is not heard. Whoever resumes it asks again, and that must come before the
/// time that is over by then.
#[test]
fn a_child_that_ended_in_time_ends_the_wait_of_a_run_that_was_paused_past_it() {
    let mut play = Play::started("a", |_| {});
    play.start_child("a");
    play.wait_within("a", None, 100);
    play.pause();
    let ended = Input::ChildEnded { run: CHILD, end: ChildEnd::Completed { output: payload("3") } };
    play.tell(ended.clone());
    play.pass(200);
    play.tell(Input::Resume);
    assert!(matches!(play.run.owed()[..], [Effect::AskChild { .. }, Effect::WakeAt { .. }]), "{:?}", play.run.owed());
    let mut without_end = play.clone();
    play.tell(ended);
    play.tell(Input::TimerDue);
    check(
        &play,
        expect![[r#"
            1 run.queued
            2 run.started
            3 step.started a 1
            4 step.call a 1
            5 step.suspended a Child until 1100
            6 run.suspended Child until 1100
            7 run.paused
            8 run.resumed
            9 run.suspended Child until 1100
            10 run.resumed
            11 step.resumed a by a child that completed
        "#]],
    );
    without_end.wait();
    assert!(without_end.text().ends_with("11 step.resumed a by TimedOut\n"), "{}", without_end.text());
}

/// A host that fails a hundred times once failed a step for good whose workflow wanted an operator to be asked.
#[test]
fn an_operator_is_asked_about_the_hosts_failures_too() {
    let mut unavailable = Play::started("a", one_attempt_then_pause);
    let mut interrupted = unavailable.clone();
    let mut cut_off = unavailable.clone();
    while unavailable.run.status() != Some(RunStatus::Paused) {
        unavailable.host_cannot_run("a");
        if unavailable.run.status() == Some(RunStatus::Suspended) {
            unavailable.wait();
        }
    }
    for _ in 0..=INTERRUPTIONS_MAX {
        interrupted.resume_all_attempts();
        cut_off.lose_all_attempts();
    }
    for (mut play, code) in
        [(unavailable, UNAVAILABLE), (interrupted, "interrupted_too_often"), (cut_off, "interrupted_too_often")]
    {
        assert_eq!(play.run.status(), Some(RunStatus::Paused), "{}", play.text());
        assert_eq!(play.run.owed(), []);
        let failed = play.history.iter().rev().find_map(|r| match &r.event {
            Event::StepFailed { failure, pauses: true, .. } => Some(failure.clone()),
            _ => None,
        });
        assert_eq!(failed.map(|failure| (failure.code, failure.kind)), Some((code.to_owned(), FailureKind::Retryable)));
        // The host has all its chances again.
        play.tell(Input::Resume);
        play.resume_all_attempts();
        play.host_cannot_run("a");
        play.wait();
        let attempt = play.running()[0].1;
        play.succeed("a", attempt, &[]);
        assert_eq!(play.run.status(), Some(RunStatus::Completed), "{}", play.text());
    }
}

#[test]
fn without_an_operator_the_hosts_failures_end_a_run_as_before() {
    let mut play = Play::started("a", |_| {});
    while !play.run.has_ended() {
        play.host_cannot_run("a");
        if !play.run.has_ended() {
            play.wait();
        }
    }
    let Event::RunFailed { failure, .. } = &play.history.last().unwrap().event else { panic!("{}", play.text()) };
    assert_eq!(failure.code, UNAVAILABLE);
}

/// Nothing is begun in a paused run. An attempt that was taken up again in one has not run since, however often the host
/// is stopped and started meanwhile; each of these once counted as one more time that the step had taken the host down.
#[test]
fn a_host_that_restarts_beside_a_paused_run_does_not_count_against_its_steps() {
    let mut play = Play::started("a", |_| {});
    play.pause();
    for _ in 0..=INTERRUPTIONS_MAX {
        play = Play::recovered(play.run.graph(), &play.history, play.now);
        play.resume_all_attempts();
    }
    play.tell(Input::Resume);
    play.resume_all_attempts();
    check(
        &play,
        expect![[r#"
            1 run.queued
            2 run.started
            3 step.started a 1
            4 run.paused
            5 step.resumed a
            6 run.resumed
            7 step.resumed a
        "#]],
    );
    assert_eq!(play.run.step(&step("a")).unwrap().1.interruptions, 2);
}

/// The same where the attempt could not be taken up again: then there is none until the run is resumed.
#[test]
fn an_attempt_that_was_lost_while_its_run_was_paused_is_begun_anew_by_the_resumption() {
    let mut play = Play::started("a", |_| {});
    play.pause();
    play.lose_all_attempts();
    assert_eq!(play.running(), []);
    play.tell(Input::Resume);
    assert_eq!(play.running(), [(step("a"), 2)]);
    assert!(play.text().contains(&format!("step.failed a 1 {INTERRUPTED}, will retry")), "{}", play.text());
}
