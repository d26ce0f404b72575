//! Where a run has as many events as it may.

use super::*;
use crate::event::{LogLevel, WaitingCall};
use crate::graph::SignalSpec;
use crate::json::ContentRef;
use crate::run::{EVENTS_MAX, RunStatus};

/// A run with room for one more event.
fn almost_too_long() -> Play {
    let mut play = Play::started("a -> b; c", |spec| {
        spec.signals.push(SignalSpec { name: "go".to_owned(), schema: None });
    });
    while play.run.last_seq() < EVENTS_MAX - 1 {
        play.publish("a", 1);
    }
    assert_eq!(play.run.status(), Some(RunStatus::Running));
    play
}

#[test]
fn a_run_that_does_not_end_is_ended() {
    let mut play = Play::started("a", |_| {});
    while !play.run.has_ended() {
        play.publish("a", 1);
    }
    let last = play.history.last().unwrap();
    assert!(matches!(&last.event, Event::RunFailed { failure, .. } if failure.code == "run_too_long"), "{last:?}");
    assert_eq!(last.seq, EVENTS_MAX + 1);
}

/// Whoever told a run something when it had as many events as it may was once told that it was on record, when all that was
/// recorded was the run's end.
#[test]
fn what_is_accepted_is_on_record_also_where_a_run_becomes_too_long() {
    let a = || step("a");
    let call = || WaitingCall {
        call: "wait".to_owned(),
        arguments: Digest::from_bytes([1; 32]),
        signal: Some("go".to_owned()),
        child: None,
    };
    let success = Success { output: payload("1"), labels: vec![], next: Next::Done };
    let content = ContentRef { sha256: Digest::from_bytes([3; 32]), size_bytes: 1 };
    let inputs = [
        Input::Signal { name: "go".to_owned(), payload: payload("1"), key: None },
        Input::Pause { reason: None },
        Input::Publish { step: a(), attempt: 1, topic: "update".into(), payload: payload("1"), within_call: false },
        Input::Log { step: a(), attempt: 1, level: LogLevel::Info, message: "line".into() },
        Input::RecordCall {
            step: a(),
            attempt: 1,
            call: "http.send".into(),
            arguments: Digest::from_bytes([1; 32]),
            result: payload("1"),
        },
        Input::Wait { step: a(), attempt: 1, call: call(), until: None },
        Input::StoreArtifact { step: a(), attempt: 1, name: "f".into(), media_type: "text/plain".into(), content },
        Input::AttemptEnded { step: a(), attempt: 1, result: Ok(success), fuel_used: 1 },
        Input::AttemptLost { step: a(), attempt: 1, can_resume: true },
    ];
    for input in inputs {
        let mut play = almost_too_long();
        let before = play.history.len();
        // `try_tell` sees to it that what was accepted is recorded.
        play.try_tell(input.clone(), Dice(0)).unwrap();
        assert_eq!(play.history[before].seq, EVENTS_MAX);
        let last = play.history.last().unwrap();
        let Event::RunFailed { step: None, failure } = &last.event else { panic!("{input:?}: {last:?}") };
        assert_eq!(failure.code, "run_too_long", "{input:?}");
        assert_eq!(play.try_tell(input, Dice(0)), Err(Refusal::Ended(RunStatus::Failed)));
        assert_eq!(Play::recovered(play.run.graph(), &play.history, play.now).run, play.run);
    }
}

#[test]
fn an_attempt_that_fails_with_the_last_event_is_rolled_back_first() {
    let mut play = almost_too_long();
    play.fail("a", 1, FailureKind::Permanent);
    let kinds: Vec<&str> = play.history.iter().rev().take(3).map(|r| r.event.kind()).collect();
    assert_eq!(kinds, ["run.failed", "step.rolled_back", "step.failed"]);
    let Event::RunFailed { failure, .. } = &play.history.last().unwrap().event else { panic!("{}", play.text()) };
    assert_eq!(failure.code, "oops");
}

#[test]
fn a_run_that_completes_with_the_last_event_has_completed() {
    let mut play = Play::started("a", |_| {});
    while play.run.last_seq() < EVENTS_MAX - 1 {
        play.publish("a", 1);
    }
    play.succeed("a", 1, &[]);
    assert_eq!(play.run.status(), Some(RunStatus::Completed));
}

#[test]
fn a_run_that_is_too_long_can_be_cancelled_by_its_last_event() {
    let mut play = almost_too_long();
    play.tell(Input::Cancel { reason: None });
    assert_eq!(play.run.status(), Some(RunStatus::Cancelled));
}

#[test]
fn a_run_may_have_fewer_events_and_never_more() {
    for (asked, allowed) in [(20, 20), (u64::MAX, EVENTS_MAX)] {
        let mut play = Play::started("a", |_| {});
        play.run.limit_events(asked);
        while !play.run.has_ended() {
            play.publish("a", 1);
        }
        let last = play.history.last().unwrap();
        assert_eq!(last.seq, allowed + 1);
        let Event::RunFailed { failure, .. } = &last.event else { panic!("{last:?}") };
        assert_eq!(failure.message, format!("the run has {allowed} events, and no more are allowed"));
    }
    let mut play = Play::started("a", |_| {});
    play.run.limit_events(1);
    play.tell(Input::Cancel { reason: None });
    assert_eq!(play.run.status(), Some(RunStatus::Cancelled), "a run beyond its limit can still be cancelled");
}
