//! How histories read to people: pages of steps.

use super::*;
use crate::view::{StepView, Steps};

fn steps(play: &Play, wanted: std::ops::Range<usize>) -> (Vec<StepView>, usize) {
    let mut steps = Steps::new(Arc::clone(play.run.graph()), wanted);
    play.history.iter().for_each(|recorded| steps.see(recorded));
    let count = steps.count();
    (steps.finish(), count)
}

/// A loop whose second iteration is retried, with a fan-out in it, a skipped branch, and a rerun of it all.
fn stories() -> Vec<Play> {
    let lines = "x -> l; repeat l 5; l -> m; each m 2 collect; m -> a; a -no-> b; a -> j; b -> j; j closes m; j -> k; \
                 k closes l; k -> z";
    let mut play = Play::started(lines, |_| {});
    play.succeed("x", 1, &[]);
    play.hand_over("l", "0", Next::Again);
    for iteration in 0..3 {
        let items = if iteration == 1 { 0 } else { 3 };
        play.hand_over(&format!("m[{iteration}]"), "[1, 2, 3]", Next::FanOut(items));
        for item in 0..items {
            let name = format!("a[{iteration}][{item}]");
            if item == 1 {
                play.fail(&name, 1, FailureKind::Retryable);
            } else {
                play.succeed(&name, 1, if item == 2 { &["no"] } else { &[] });
            }
        }
        if items > 0 {
            play.succeed(&format!("b[{iteration}][2]"), 1, &[]);
            play.wait();
            play.fail(&format!("a[{iteration}][1]"), 2, FailureKind::Permanent);
        }
        play.succeed(&format!("j[{iteration}]"), 1, &[]);
        play.hand_over(&format!("k[{iteration}]"), "1", if iteration < 2 { Next::Again } else { Next::Done });
    }
    let rerun = super::reruns::rerun(&play, "z");
    let mut skipped = Play::started("s -no-> l; repeat l 5; l -> a; a -> k; k closes l; k -> z; s -> q", |_| {});
    skipped.succeed("s", 1, &[]);
    vec![play, rerun, skipped]
}

#[test]
fn steps_come_in_the_order_of_the_graph_and_then_of_their_beginning() {
    let [play, rerun, skipped] = stories().try_into().unwrap();
    let names = |play: &Play| -> String {
        let (views, _) = steps(play, 0..1_000);
        views.iter().map(|view| format!("{} {:?} {}\n", view.step, view.status, view.attempts.len())).collect()
    };
    expect_test::expect![[r#"
        x Completed 1
        l Completed 1
        z Running 1
        m[0] Completed 1
        a[0][0] Completed 1
        a[0][1] Failed 2
        b[0][0] Skipped 0
        a[0][2] Completed 1
        b[0][2] Completed 1
        j[0] Completed 1
        k[0] Completed 1
        m[1] Completed 1
        j[1] Completed 1
        k[1] Completed 1
        m[2] Completed 1
        a[2][0] Completed 1
        a[2][1] Failed 2
        b[2][0] Skipped 0
        a[2][2] Completed 1
        b[2][2] Completed 1
        j[2] Completed 1
        k[2] Completed 1
    "#]]
    .assert_eq(&names(&play));
    expect_test::expect![[r#"
        x Completed 0
        l Completed 0
        z Running 1
        k Completed 0
    "#]]
    .assert_eq(&names(&rerun));
    expect_test::expect![[r#"
        s Completed 1
        l Skipped 0
        z Skipped 0
        q Running 1
        k Skipped 0
    "#]]
    .assert_eq(&names(&skipped));
}

#[test]
fn pages_of_steps_are_the_whole_cut_up() {
    for play in stories() {
        let (whole, count) = steps(&play, 0..1_000);
        assert_eq!(whole.len(), count);
        for limit in [1, 2, 3, 7] {
            let pages = (0..count + 3).step_by(limit).flat_map(|start| {
                let (page, counted) = steps(&play, start..start + limit);
                assert_eq!(counted, count);
                page
            });
            assert_eq!(pages.collect::<Vec<_>>(), whole, "{limit} a page");
        }
    }
}

/// A page once kept the name of every step of every iteration: hundreds of megabytes for a loop of a million.
#[test]
fn a_page_of_steps_keeps_what_is_on_it_and_counts_the_rest() {
    let play = stories().remove(0);
    for wanted in [0..1, 2..3, 6..9, 0..3, 500..501] {
        let most = wanted.len();
        let mut steps = Steps::new(Arc::clone(play.run.graph()), wanted);
        for recorded in &play.history {
            steps.see(recorded);
            assert!(steps.kept() <= most);
        }
        assert!(steps.count() > 20);
    }
}
