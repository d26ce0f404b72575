//! Small stories with every event written down.

use expect_test::{Expect, expect};

use super::*;
use crate::retry::INTERRUPTIONS_MAX;
use crate::run::Value;

pub(super) fn check(play: &Play, expected: Expect) {
    expected.assert_eq(&play.text());
    let recovered = Play::recovered(play.run.graph(), &play.history, play.now);
    assert_eq!(recovered.run, play.run, "recovery folds to the same state");
}

#[test]
fn steps_in_a_row_run_one_after_the_other() {
    let mut play = Play::started("a -> b", |spec| spec.output = Some("b".into()));
    play.succeed("a", 1, &[]);
    play.succeed("b", 1, &[]);
    check(
        &play,
        expect![[r#"
            1 run.queued
            2 run.started
            3 step.started a 1
            4 step.completed a 1
            5 step.started b 1
            6 step.completed b 1
            7 run.completed "b"
        "#]],
    );
}

#[test]
fn branches_run_side_by_side_and_a_join_waits_for_all() {
    let mut play = Play::started("a -> b; a -> c; b -> d; c -> d", |_| {});
    play.succeed("a", 1, &[]);
    play.succeed("c", 1, &[]);
    play.publish("b", 1);
    play.succeed("b", 1, &[]);
    play.succeed("d", 1, &[]);
    check(
        &play,
        expect![[r#"
            1 run.queued
            2 run.started
            3 step.started a 1
            4 step.completed a 1
            5 step.started b 1
            6 step.started c 1
            7 step.completed c 1
            8 step.update b 1
            9 step.completed b 1
            10 step.started d 1
            11 step.completed d 1
            12 run.completed null
        "#]],
    );
}

#[test]
fn a_branch_that_is_not_taken_is_skipped_to_where_branches_meet_again() {
    let mut play =
        Play::started("a -yes-> b; a -no-> c; c -> d; b -> e; d -> e", |spec| spec.output = Some("e".into()));
    play.succeed("a", 1, &["yes"]);
    play.succeed("b", 1, &[]);
    play.succeed("e", 1, &[]);
    check(
        &play,
        expect![[r#"
            1 run.queued
            2 run.started
            3 step.started a 1
            4 step.completed a 1 yes
            5 step.skipped c
            6 step.skipped d
            7 step.started b 1
            8 step.completed b 1
            9 step.started e 1
            10 step.completed e 1
            11 run.completed "e"
        "#]],
    );
}

#[test]
fn a_run_whose_last_steps_are_all_skipped_completes_without_output() {
    let mut play = Play::started("a -yes-> b; b -> c", |spec| spec.output = Some("c".into()));
    play.succeed("a", 1, &[]);
    check(
        &play,
        expect![[r#"
            1 run.queued
            2 run.started
            3 step.started a 1
            4 step.completed a 1
            5 step.skipped b
            6 step.skipped c
            7 run.completed null
        "#]],
    );
}

#[test]
fn a_skipped_ancestor_is_left_out_of_the_inputs() {
    let mut play = Play::started("a -yes-> b; a -no-> c; b -> d; c -> d", |spec| {
        spec.nodes.iter_mut().find(|node| node.id == "d").unwrap().needs = vec!["c".into(), "input".into(), "b".into()];
    });
    play.succeed("a", 1, &["yes"]);
    play.succeed("b", 1, &[]);
    let one = |name: &str, text| (name.to_owned(), Value::One(payload(text)));
    assert_eq!(play.run.inputs_of(&step("d")), [one("input", "1"), one("b", "\"b\"")]);
}

#[test]
fn a_retryable_failure_rolls_back_waits_longer_each_time_and_gives_up() {
    let mut play = Play::started("a", |spec| spec.nodes[0].retry.max_attempts = 3);
    play.publish("a", 1);
    play.publish("a", 1);
    play.fail("a", 1, FailureKind::Retryable);
    play.wait();
    play.fail("a", 2, FailureKind::Retryable);
    play.wait();
    play.publish("a", 3);
    play.fail("a", 3, FailureKind::Retryable);
    check(
        &play,
        expect![[r#"
            1 run.queued
            2 run.started
            3 step.started a 1
            4 step.update a 1
            5 step.update a 1
            6 step.failed a 1 oops, will retry
            7 step.rolled_back a 1 from 4 to 5
            8 step.suspended a Retry until 2000
            9 run.suspended Retry until 2000
            10 run.resumed
            11 step.resumed a
            12 step.started a 2
            13 step.failed a 2 oops, will retry
            14 step.suspended a Retry until 4000
            15 run.suspended Retry until 4000
            16 run.resumed
            17 step.resumed a
            18 step.started a 3
            19 step.update a 3
            20 step.failed a 3 oops
            21 step.rolled_back a 3 from 19 to 19
            22 run.failed a oops
        "#]],
    );
}

#[test]
fn a_run_is_suspended_only_when_nothing_else_moves() {
    let mut play = Play::started("a; b; c", |_| {});
    play.fail("a", 1, FailureKind::Retryable);
    play.fail("b", 1, FailureKind::Retryable);
    play.succeed("c", 1, &[]);
    play.wait();
    play.succeed("a", 2, &[]);
    play.succeed("b", 2, &[]);
    check(
        &play,
        expect![[r#"
            1 run.queued
            2 run.started
            3 step.started a 1
            4 step.started b 1
            5 step.started c 1
            6 step.failed a 1 oops, will retry
            7 step.suspended a Retry until 2000
            8 step.failed b 1 oops, will retry
            9 step.suspended b Retry until 2000
            10 step.completed c 1
            11 run.suspended Retry until 2000
            12 run.resumed
            13 step.resumed a
            14 step.resumed b
            15 step.started a 2
            16 step.started b 2
            17 step.completed a 2
            18 step.completed b 2
            19 run.completed null
        "#]],
    );
}

#[test]
fn a_permanent_failure_ends_the_run_and_its_neighbours() {
    let mut play = Play::started("a; b", |_| {});
    play.publish("b", 1);
    play.fail("a", 1, FailureKind::Permanent);
    check(
        &play,
        expect![[r#"
            1 run.queued
            2 run.started
            3 step.started a 1
            4 step.started b 1
            5 step.update b 1
            6 step.failed a 1 oops
            7 run.failed a oops
        "#]],
    );
    assert!(play.run.owed().is_empty());
    let late = Input::Publish {
        step: step("b"),
        attempt: 1,
        topic: "update".into(),
        payload: payload("1"),
        within_call: false,
    };
    assert_eq!(play.try_tell(late, Dice(0)), Err(Refusal::Ended(crate::RunStatus::Failed)));
}

#[test]
fn a_label_that_no_edge_carries_fails_the_step_instead_of_skipping_the_rest() {
    let mut play = Play::started("a -yes-> b", |_| {});
    play.succeed("a", 1, &["Yes"]);
    check(
        &play,
        expect![[r#"
            1 run.queued
            2 run.started
            3 step.started a 1
            4 step.failed a 1 unknown_route
            5 run.failed a unknown_route
        "#]],
    );
}

#[test]
fn an_attempt_lost_in_a_crash_is_rolled_back_and_does_not_count() {
    let mut play = Play::started("a", |spec| spec.nodes[0].retry.max_attempts = 1);
    play.publish("a", 1);
    play.lose_all_attempts();
    play.publish("a", 2);
    play.succeed("a", 2, &[]);
    check(
        &play,
        expect![[r#"
            1 run.queued
            2 run.started
            3 step.started a 1
            4 step.update a 1
            5 step.failed a 1 interrupted, will retry
            6 step.rolled_back a 1 from 4 to 4
            7 step.started a 2
            8 step.update a 2
            9 step.completed a 2
            10 run.completed null
        "#]],
    );
}

#[test]
fn a_step_that_takes_the_host_down_every_time_is_given_up() {
    let mut play = Play::started("a", |_| {});
    for _ in 0..=INTERRUPTIONS_MAX {
        play.lose_all_attempts();
    }
    let last = play.history.last().unwrap();
    assert!(
        matches!(&last.event, Event::RunFailed { failure, .. } if failure.code == "interrupted_too_often"),
        "{last:?}"
    );
}

/// A step that called its failure `interrupted` was once retried for ever: interruptions do not use up attempts.
#[test]
fn a_step_cannot_pass_its_own_failure_off_as_an_interruption() {
    let mut play = Play::started("a", |spec| spec.nodes[0].retry.max_attempts = 2);
    for attempt in 1..=2 {
        let result = Err(failure(FailureKind::Retryable, crate::failure::INTERRUPTED));
        play.tell(Input::AttemptEnded { step: step("a"), attempt, result, fuel_used: 1 });
        if attempt == 1 {
            play.wait();
        }
    }
    assert_eq!(play.run.status(), Some(crate::RunStatus::Failed));
}

/// Recovery once read the list of lost attempts and stumbled over the end of the run in the middle of it.
#[test]
fn steps_side_by_side_that_take_the_host_down_end_the_run_once() {
    let mut play = Play::started("a; b", |_| {});
    for _ in 0..INTERRUPTIONS_MAX {
        play.lose_all_attempts();
    }
    let running = play.running();
    play.tell(Input::AttemptLost { step: running[0].0.clone(), attempt: running[0].1, can_resume: false });
    let second = Input::AttemptLost { step: running[1].0.clone(), attempt: running[1].1, can_resume: false };
    assert_eq!(play.try_tell(second, Dice(0)), Err(Refusal::Ended(crate::RunStatus::Failed)));
}

#[test]
fn an_attempt_that_the_host_could_not_run_waits_and_does_not_count() {
    let mut play = Play::started("a", |spec| spec.nodes[0].retry.max_attempts = 1);
    let failure = Failure::platform(FailureKind::Retryable, crate::failure::UNAVAILABLE, "no room");
    play.tell(Input::AttemptEnded { step: step("a"), attempt: 1, result: Err(failure), fuel_used: 0 });
    play.wait();
    play.succeed("a", 2, &[]);
    check(
        &play,
        expect![[r#"
            1 run.queued
            2 run.started
            3 step.started a 1
            4 step.failed a 1 sandbox_unavailable, will retry
            5 step.suspended a Retry until 2000
            6 run.suspended Retry until 2000
            7 run.resumed
            8 step.resumed a
            9 step.started a 2
            10 step.completed a 2
            11 run.completed null
        "#]],
    );
}

#[test]
fn a_run_can_be_cancelled_wherever_it_stands_and_only_once() {
    let graph = Arc::new(Graph::check(spec("a")).unwrap());
    let queued = Play::new(&graph);
    let mut running = queued.clone();
    running.tell(Input::Start);
    let mut suspended = running.clone();
    suspended.fail("a", 1, FailureKind::Retryable);
    for mut play in [queued, running, suspended] {
        play.tell(Input::Cancel { reason: Some("enough".into()) });
        assert_eq!(play.run.owed(), []);
        let again = play.try_tell(Input::Cancel { reason: None }, Dice(0));
        assert_eq!(again, Err(Refusal::Ended(crate::RunStatus::Cancelled)));
    }
}

#[test]
fn what_an_older_attempt_or_an_unknown_step_says_is_refused() {
    let mut play = Play::started("a -> b", |_| {});
    play.fail("a", 1, FailureKind::Retryable);
    play.wait();
    let publish = |id: &str, attempt, topic: &str| Input::Publish {
        within_call: false,
        step: step(id),
        attempt,
        topic: topic.into(),
        payload: payload("1"),
    };
    let refused = |id: &str, attempt| Err(Refusal::NotUnderWay { step: step(id), attempt });
    assert_eq!(play.try_tell(publish("a", 1, "update"), Dice(0)), refused("a", 1));
    assert_eq!(play.try_tell(publish("a", 3, "update"), Dice(0)), refused("a", 3));
    assert_eq!(play.try_tell(publish("b", 1, "update"), Dice(0)), refused("b", 1));
    assert_eq!(play.try_tell(publish("x", 1, "update"), Dice(0)), refused("x", 1));
    assert_eq!(play.try_tell(publish("a", 2, "other"), Dice(0)), Err(Refusal::UnknownTopic));
    assert_eq!(play.try_tell(publish("a", 2, "update"), Dice(0)), Ok(()));
    let item = StepId { items: vec![0], ..step("a") };
    let lost = play.try_tell(Input::AttemptLost { step: item.clone(), attempt: 2, can_resume: true }, Dice(0));
    assert_eq!(lost, Err(Refusal::NotUnderWay { step: item, attempt: 2 }));
}

#[test]
fn a_snapshot_of_another_fold_is_not_taken() {
    let play = Play::started("a", |_| {});
    let snapshot = String::from_utf8(play.run.snapshot(play.now).unwrap()).unwrap();
    assert!(Run::restore(Arc::clone(play.run.graph()), snapshot.as_bytes()).is_some());
    let other = snapshot.replacen(&format!("\"version\":{}", crate::snapshot::VERSION), "\"version\":0", 1);
    assert_ne!(other, snapshot);
    assert!(Run::restore(Arc::clone(play.run.graph()), other.as_bytes()).is_none());
    assert!(Run::restore(Arc::clone(play.run.graph()), &snapshot.as_bytes()[..snapshot.len() - 1]).is_none());
}

#[test]
fn a_timer_that_comes_early_changes_nothing() {
    let mut play = Play::started("a", |_| {});
    play.fail("a", 1, FailureKind::Retryable);
    let before = play.text();
    play.tell(Input::TimerDue);
    assert_eq!(play.text(), before);
}

#[test]
fn events_that_cannot_follow_are_refused_and_change_nothing() {
    let play = Play::started("a -> b; a -no-> c", |_| {});
    let mut after_a = play.clone();
    after_a.succeed("a", 1, &[]);
    let mut done = after_a.clone();
    done.succeed("b", 1, &[]);
    let completed = |id, attempt| Event::StepCompleted {
        fan_out: None,
        again: false,
        step: step(id),
        attempt,
        output: payload("1"),
        labels: vec![],
        fuel_used: 0,
    };
    let refused = [
        (&play, Event::RunStarted { deadline: None }),
        (&play, Event::RunResumed {}),
        (&play, Event::RunSuspended { reason: crate::event::SuspendReason::Retry, until: None }),
        (&play, Event::RunCompleted { output: payload("1") }),
        (&play, Event::StepStarted { step: step("a"), attempt: 2 }),
        (&play, Event::StepStarted { step: step("b"), attempt: 1 }),
        (&play, Event::StepSkipped { step: step("b") }),
        (&play, completed("a", 2)),
        (&play, completed("b", 1)),
        (&play, Event::StepResumed { step: step("b"), woke: None }),
        (&play, Event::StepRolledBack { step: step("a"), attempt: 1, first_seq: 1, last_seq: 1 }),
        (&play, Event::RunFailed { step: Some(step("a")), failure: failure(FailureKind::Permanent, "x") }),
        (&after_a, completed("a", 1)),
        (&after_a, Event::StepStarted { step: step("c"), attempt: 1 }),
        (&after_a, Event::StepStarted { step: step("a"), attempt: 2 }),
        (&done, Event::RunCancelled { reason: None }),
        (
            &done,
            Event::StepLog { step: step("a"), attempt: 1, level: crate::event::LogLevel::Info, message: String::new() },
        ),
    ];
    for (play, event) in refused {
        let mut run = play.run.clone();
        assert!(run.apply(&event).is_err(), "{event:?}");
        assert_eq!(run, play.run, "{event:?}");
    }
}

#[test]
fn a_fan_out_keeps_to_its_concurrency_and_its_join_sees_items_in_order() {
    let mut play = Play::started("each m 2 cancel; m -> a; a -> b; b -> j; j closes m; j -> z", |spec| {
        spec.nodes.iter_mut().find(|node| node.id == "b").unwrap().needs.push("m".into());
        spec.nodes.iter_mut().find(|node| node.id == "j").unwrap().needs.push("m".into());
        spec.output = Some("j".into());
    });
    play.hand_over("m", "[10, 11, 12]", Next::FanOut(3));
    play.succeed("a[1]", 1, &[]);
    let element = Value::Element { of: payload("[10, 11, 12]"), index: 1 };
    let a = Value::One(payload("\"a[1]\""));
    assert_eq!(play.run.inputs_of(&step("b[1]")), [("a".to_owned(), a), ("m".to_owned(), element)]);
    play.succeed("b[1]", 1, &[]);
    play.succeed("a[2]", 1, &[]);
    play.succeed("b[2]", 1, &[]);
    play.succeed("a[0]", 1, &[]);
    play.succeed("b[0]", 1, &[]);
    let outputs = ["\"b[0]\"", "\"b[1]\"", "\"b[2]\""].map(|text| Some(payload(text)));
    let expected = [
        ("b".to_owned(), Value::Many(outputs.to_vec())),
        ("m".to_owned(), Value::One(payload("[10, 11, 12]"))),
        ("failures".to_owned(), Value::One(payload("[]"))),
    ];
    assert_eq!(play.run.inputs_of(&step("j")), expected);
    play.succeed("j", 1, &[]);
    play.succeed("z", 1, &[]);
    check(
        &play,
        expect![[r#"
        1 run.queued
        2 run.started
        3 step.started m 1
        4 step.completed m 1 3 items
        5 step.started a[0] 1
        6 step.started a[1] 1
        7 step.completed a[1] 1
        8 step.started b[1] 1
        9 step.completed b[1] 1
        10 step.started a[2] 1
        11 step.completed a[2] 1
        12 step.started b[2] 1
        13 step.completed b[2] 1
        14 step.completed a[0] 1
        15 step.started b[0] 1
        16 step.completed b[0] 1
        17 step.started j 1
        18 step.completed j 1
        19 step.started z 1
        20 step.completed z 1
        21 run.completed "j"
    "#]],
    );
}

#[test]
fn an_empty_fan_out_goes_straight_to_its_join() {
    let mut play = Play::started("each m 1 cancel; m -> a; a -> j; j closes m", |_| {});
    play.hand_over("m", "[]", Next::FanOut(0));
    play.succeed("j", 1, &[]);
    check(
        &play,
        expect![[r#"
        1 run.queued
        2 run.started
        3 step.started m 1
        4 step.completed m 1 0 items
        5 step.started j 1
        6 step.completed j 1
        7 run.completed null
    "#]],
    );
}

#[test]
fn a_skipped_fan_out_is_skipped_with_its_join() {
    let mut play = Play::started("x -yes-> m; each m 1 cancel; m -> a; a -> j; j closes m; j -> z", |_| {});
    play.succeed("x", 1, &[]);
    check(
        &play,
        expect![[r#"
        1 run.queued
        2 run.started
        3 step.started x 1
        4 step.completed x 1
        5 step.skipped m
        6 step.skipped j
        7 step.skipped z
        8 run.completed null
    "#]],
    );
}

#[test]
fn an_item_that_fails_takes_the_run_with_it_unless_the_fan_out_collects() {
    let story = |on_failure: &str| {
        let mut play =
            Play::started(&format!("each m 3 {on_failure}; m -> a; m -> b; a -> j; b -> j; j closes m"), |_| {});
        play.hand_over("m", "[1, 2]", Next::FanOut(2));
        play.publish("b[0]", 1);
        play.publish("a[0]", 1);
        play.fail("a[0]", 1, FailureKind::Permanent);
        for name in ["a[1]", "b[1]", "j"] {
            if !play.run.has_ended() && play.run.step(&step(name)).is_some() {
                play.succeed(name, 1, &[]);
            }
        }
        play
    };
    check(
        &story("cancel"),
        expect![[r#"
        1 run.queued
        2 run.started
        3 step.started m 1
        4 step.completed m 1 2 items
        5 step.started a[0] 1
        6 step.started b[0] 1
        7 step.started a[1] 1
        8 step.started b[1] 1
        9 step.update b[0] 1
        10 step.update a[0] 1
        11 step.failed a[0] 1 oops
        12 step.rolled_back a[0] 1 from 10 to 10
        13 run.failed a[0] oops
    "#]],
    );
    check(
        &story("finish"),
        expect![[r#"
        1 run.queued
        2 run.started
        3 step.started m 1
        4 step.completed m 1 2 items
        5 step.started a[0] 1
        6 step.started b[0] 1
        7 step.started a[1] 1
        8 step.started b[1] 1
        9 step.update b[0] 1
        10 step.update a[0] 1
        11 step.failed a[0] 1 oops
        12 step.rolled_back a[0] 1 from 10 to 10
        13 step.cancelled b[0]
        14 step.rolled_back b[0] 1 from 9 to 9
        15 step.completed a[1] 1
        16 step.completed b[1] 1
        17 run.failed a[0] oops
    "#]],
    );
    check(
        &story("collect"),
        expect![[r#"
        1 run.queued
        2 run.started
        3 step.started m 1
        4 step.completed m 1 2 items
        5 step.started a[0] 1
        6 step.started b[0] 1
        7 step.started a[1] 1
        8 step.started b[1] 1
        9 step.update b[0] 1
        10 step.update a[0] 1
        11 step.failed a[0] 1 oops
        12 step.rolled_back a[0] 1 from 10 to 10
        13 step.cancelled b[0]
        14 step.rolled_back b[0] 1 from 9 to 9
        15 step.completed a[1] 1
        16 step.completed b[1] 1
        17 step.started j 1
        18 step.completed j 1
        19 run.completed null
    "#]],
    );
}

#[test]
fn what_failed_is_told_to_the_join() {
    let mut play = Play::started("each m 3 collect; m -> a; a -> j; j closes m", |_| {});
    play.hand_over("m", "[1, 2]", Next::FanOut(2));
    play.succeed("a[1]", 1, &[]);
    play.fail("a[0]", 1, FailureKind::Permanent);
    let failures = r#"[{"code":"oops","index":0,"message":"it failed","node":"a"}]"#;
    let expected = [
        ("a".to_owned(), Value::Many(vec![None, Some(payload("\"a[1]\""))])),
        ("failures".to_owned(), Value::One(payload(failures))),
    ];
    assert_eq!(play.run.inputs_of(&step("j")), expected);
}

#[test]
fn a_loop_runs_until_its_join_has_enough() {
    let mut play = Play::started("repeat l 3; l -> a; a -> j; j closes l; j -> z", |spec| {
        spec.nodes.iter_mut().find(|node| node.id == "j").unwrap().needs.push("l".into());
    });
    play.hand_over("l", "0", Next::Again);
    play.succeed("a[0]", 1, &[]);
    play.hand_over("j[0]", "1", Next::Again);
    play.fail("a[1]", 1, FailureKind::Retryable);
    play.wait();
    play.succeed("a[1]", 2, &[]);
    let expected = [("a".to_owned(), Value::One(payload("\"a[1]\""))), ("l".to_owned(), Value::One(payload("1")))];
    assert_eq!(play.run.inputs_of(&step("j[1]")), expected);
    play.hand_over("j[1]", "2", Next::Done);
    play.succeed("z", 1, &[]);
    check(
        &play,
        expect![[r#"
        1 run.queued
        2 run.started
        3 step.started l 1
        4 step.completed l 1 again
        5 step.started a[0] 1
        6 step.completed a[0] 1
        7 step.started j[0] 1
        8 step.completed j[0] 1 again
        9 step.started a[1] 1
        10 step.failed a[1] 1 oops, will retry
        11 step.suspended a[1] Retry until 2000
        12 run.suspended Retry until 2000
        13 run.resumed
        14 step.resumed a[1]
        15 step.started a[1] 2
        16 step.completed a[1] 2
        17 step.started j[1] 1
        18 step.completed j[1] 1
        19 step.started z 1
        20 step.completed z 1
        21 run.completed null
    "#]],
    );
}

#[test]
fn a_loop_that_never_begins_goes_to_its_join_and_one_that_never_ends_fails() {
    let mut play = Play::started("repeat l 2; l -> a; a -> j; j closes l", |_| {});
    play.hand_over("l", "0", Next::Done);
    play.succeed("j[0]", 1, &[]);
    check(
        &play,
        expect![[r#"
        1 run.queued
        2 run.started
        3 step.started l 1
        4 step.completed l 1
        5 step.started j[0] 1
        6 step.completed j[0] 1
        7 run.completed null
    "#]],
    );

    let mut play = Play::started("repeat l 1; l -> a; a -> j; j closes l", |_| {});
    play.hand_over("l", "0", Next::Again);
    play.succeed("a[0]", 1, &[]);
    play.hand_over("j[0]", "1", Next::Again);
    check(
        &play,
        expect![[r#"
        1 run.queued
        2 run.started
        3 step.started l 1
        4 step.completed l 1 again
        5 step.started a[0] 1
        6 step.completed a[0] 1
        7 step.started j[0] 1
        8 step.failed j[0] 1 loop_limit
        9 run.failed j[0] loop_limit
    "#]],
    );
}

#[test]
fn an_outcome_that_does_not_fit_its_node_fails_the_step() {
    let refused = |lines: &str, id: &str, next: Next| {
        let mut play = Play::started(lines, |_| {});
        play.hand_over(id, "[]", next);
        let Event::RunFailed { failure, .. } = &play.history.last().unwrap().event else { panic!("{}", play.text()) };
        failure.code.clone()
    };
    let each = "each m 1 cancel; m -> a; a -> j; j closes m";
    assert_eq!(refused("a", "a", Next::FanOut(1)), "unexpected_outcome");
    assert_eq!(refused("a", "a", Next::Again), "unexpected_outcome");
    assert_eq!(refused(each, "m", Next::Done), "unexpected_outcome");
    assert_eq!(refused(each, "m", Next::Again), "unexpected_outcome");
    assert_eq!(refused(each, "m", Next::FanOut(10_001)), "too_many_items");
    assert_eq!(refused("repeat l 1; l -> a; a -> j; j closes l", "l", Next::FanOut(1)), "unexpected_outcome");
}

#[test]
fn a_failure_deep_inside_ends_what_it_is_part_of_and_no_more() {
    let lines = "each m 2 collect; m -> l; repeat l 9; l -> n; each n 2 cancel; n -> a; a -> nj; nj closes n; \
                 nj -> lj; lj closes l; lj -> mj; mj closes m";
    let lines = lines.replace("; ", "\n");
    let mut play = Play::started(&lines, |_| {});
    play.hand_over("m", "[1, 2]", Next::FanOut(2));
    play.hand_over("l[0]", "0", Next::Again);
    play.hand_over("l[1]", "0", Next::Again);
    play.hand_over("n[0][0]", "[1, 2]", Next::FanOut(2));
    play.hand_over("n[1][0]", "[]", Next::FanOut(0));
    play.publish("a[0][0][1]", 1);
    play.fail("a[0][0][0]", 1, FailureKind::Permanent);
    play.succeed("nj[1][0]", 1, &[]);
    play.hand_over("lj[1][0]", "7", Next::Done);
    play.succeed("mj", 1, &[]);
    check(
        &play,
        expect![[r#"
        1 run.queued
        2 run.started
        3 step.started m 1
        4 step.completed m 1 2 items
        5 step.started l[0] 1
        6 step.started l[1] 1
        7 step.completed l[0] 1 again
        8 step.started n[0][0] 1
        9 step.completed l[1] 1 again
        10 step.started n[1][0] 1
        11 step.completed n[0][0] 1 2 items
        12 step.started a[0][0][0] 1
        13 step.started a[0][0][1] 1
        14 step.completed n[1][0] 1 0 items
        15 step.started nj[1][0] 1
        16 step.update a[0][0][1] 1
        17 step.failed a[0][0][0] 1 oops
        18 step.cancelled a[0][0][1]
        19 step.rolled_back a[0][0][1] 1 from 16 to 16
        20 step.completed nj[1][0] 1
        21 step.started lj[1][0] 1
        22 step.completed lj[1][0] 1
        23 step.started mj 1
        24 step.completed mj 1
        25 run.completed null
    "#]],
    );
}

#[test]
fn an_interrupted_attempt_goes_on_as_the_same_attempt_with_what_it_had_published() {
    let mut play = Play::started("a -> b", |_| {});
    play.publish("a", 1);
    let call = Input::RecordCall {
        step: step("a"),
        attempt: 1,
        call: "http.send".to_owned(),
        arguments: Digest::from_bytes([1; 32]),
        result: payload("{}"),
    };
    play.tell(call);
    play.resume_all_attempts();
    assert_eq!(play.running(), [(step("a"), 1)]);
    play.resume_all_attempts();
    play.publish("a", 1);
    play.succeed("a", 1, &[]);
    check(
        &play,
        expect![[r#"
        1 run.queued
        2 run.started
        3 step.started a 1
        4 step.update a 1
        5 step.call a 1
        6 step.resumed a
        7 step.resumed a
        8 step.update a 1
        9 step.completed a 1
        10 step.started b 1
    "#]],
    );
}

#[test]
fn an_attempt_that_is_interrupted_for_ever_is_given_up() {
    let mut play = Play::started("a", |_| {});
    for _ in 0..INTERRUPTIONS_MAX {
        play.resume_all_attempts();
    }
    assert!(!play.run.has_ended());
    play.resume_all_attempts();
    let Event::RunFailed { failure, .. } = &play.history.last().unwrap().event else { panic!("{}", play.text()) };
    assert_eq!(failure.code, "interrupted_too_often");
}

/// Whoever sends a signal again that was taken was once told that the run has ended, and could not know whether the signal
/// had come before that.
#[test]
fn a_signal_that_has_come_is_known_also_after_the_runs_end() {
    let mut play = Play::started("a", |spec| {
        spec.signals.push(crate::graph::SignalSpec { name: "go".to_owned(), schema: None });
    });
    let signal_of = |sender: u8, content: u8| {
        let mut key = [sender; 32];
        key[16..].fill(content);
        Input::Signal { name: "go".to_owned(), payload: payload("1"), key: Some(Digest::from_bytes(key)) }
    };
    let signal = |sender| signal_of(sender, 0);
    play.tell(signal(1));
    let seq = play.run.last_seq();
    assert_eq!(play.try_tell(signal(1), Dice(0)), Err(Refusal::SignalRepeated(seq)));
    assert_eq!(play.try_tell(signal_of(1, 1), Dice(0)), Err(Refusal::SignalMismatch), "it says something else");
    play.succeed("a", 1, &[]);
    assert!(play.run.has_ended());
    assert_eq!(play.try_tell(signal(1), Dice(0)), Err(Refusal::SignalRepeated(seq)));
    assert_eq!(play.try_tell(signal_of(1, 1), Dice(0)), Err(Refusal::SignalMismatch));
    assert_eq!(play.try_tell(signal(2), Dice(0)), Err(Refusal::Ended(crate::RunStatus::Completed)));
}
