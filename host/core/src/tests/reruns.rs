//! What a rerun takes over of the run that it repeats, told as small stories.

use super::*;
use crate::rerun::{CannotRerun, Results, TakenOver};

fn results(play: &Play) -> Results {
    let mut results = Results::default();
    play.history.iter().for_each(|recorded| results.see(recorded));
    results
}

/// The steps that a rerun takes over, in the order of their names.
fn taken_over(play: &Play, graph: &Graph, from: &str) -> Result<Vec<String>, CannotRerun> {
    let taken = results(play).taken_over(graph, &step(from))?;
    let mut names: Vec<String> = taken.iter().map(|taken| taken.step.to_string()).collect();
    names.sort();
    Ok(names)
}

/// A run that repeats another from a step, and has been started.
pub(super) fn rerun(of: &Play, from: &str) -> Play {
    let mut play = Play::new(of.run.graph());
    for TakenOver { step, output, labels } in results(of).taken_over(of.run.graph(), &step(from)).unwrap() {
        let event = Event::StepTakenOver { step, output, labels };
        play.run.apply(&event).unwrap();
        play.history.push(Recorded { seq: play.run.last_seq(), at: play.now, event });
    }
    play.tell(Input::Start);
    play
}

fn graph(lines: &str) -> Arc<Graph> {
    Arc::new(Graph::check(spec(lines)).unwrap())
}

/// What a skipped scope's last node leads to was once done again by every rerun, though nothing before it was: the node
/// that closes a scope was settled with the node that opens it, but not when that was skipped.
#[test]
fn what_stands_behind_a_skipped_scope_is_taken_over() {
    for scope in ["each m 1 cancel", "repeat m 3"] {
        let lines = format!(
            "branch -x-> m; {scope}; m -> a; a -> j; j closes m; j -> t; branch -y-> u; u -> t; t -> e; e -> v"
        );
        let mut play = Play::started(&lines, |_| {});
        play.succeed("branch", 1, &["y"]);
        for name in ["u", "t", "e", "v"] {
            play.succeed(name, 1, &[]);
        }
        assert_eq!(play.run.status(), Some(crate::RunStatus::Completed));
        let graph = play.run.graph();
        assert_eq!(taken_over(&play, graph, "v").unwrap(), ["branch", "e", "t", "u"], "{scope}");
        assert_eq!(taken_over(&play, graph, "t").unwrap(), ["branch", "u"]);
        let mut again = rerun(&play, "v");
        assert_eq!(again.running(), [(step("v"), 1)]);
        again.succeed("v", 1, &[]);
        assert_eq!(again.run.status(), Some(crate::RunStatus::Completed));
        assert_eq!(taken_over(&play, graph, "branch").unwrap(), [""; 0]);
        assert_eq!(taken_over(&play, graph, "m"), Err(CannotRerun::DidNotRun(step("m"))));
        let (from, opener) = (step("j"), "m".parse().unwrap());
        assert_eq!(taken_over(&play, graph, "j"), Err(CannotRerun::WithinScope { step: from, opener }));
    }
}

/// With another version a branch can lead elsewhere. A node that was skipped and now is not has no result, and a node that
/// had one and now is skipped is no part of what the ones behind it get.
#[test]
fn what_another_version_reaches_otherwise_is_done_anew() {
    let mut play = Play::started("a -yes-> b; a -no-> c; b -> d; c -> d; d -> e", |_| {});
    play.succeed("a", 1, &["yes"]);
    for name in ["b", "d", "e"] {
        play.succeed(name, 1, &[]);
    }
    let same = "a -yes-> b; a -no-> c; b -> d; c -> d; d -> e";
    assert_eq!(taken_over(&play, &graph(same), "e").unwrap(), ["a", "b", "d"]);
    let reaches_c = "a -yes-> b; a -no-> c; a -yes-> c; b -> d; c -> d; d -> e";
    assert_eq!(taken_over(&play, &graph(reaches_c), "e").unwrap(), ["a", "b"]);
    let adds_a_way_not_taken = "a -yes-> b; a -no-> c; a -no-> x; b -> d; c -> d; x -> d; d -> e";
    assert_eq!(taken_over(&play, &graph(adds_a_way_not_taken), "e").unwrap(), ["a", "b", "d"]);
    let skips_b = "a -no-> b; a -yes-> x; x -> d; a -no-> c; b -> d; c -> d; d -> e";
    assert_eq!(taken_over(&play, &graph(skips_b), "e").unwrap(), ["a"]);
}

/// The result of one item is not the result of a node that runs once.
#[test]
fn what_ran_for_each_item_is_not_taken_over_by_a_version_in_which_it_runs_once() {
    let mut play = Play::started("each m 1 cancel; m -> a; a -> j; j closes m; j -> z", |_| {});
    play.hand_over("m", "[1]", Next::FanOut(1));
    for name in ["a[0]", "j", "z"] {
        play.succeed(name, 1, &[]);
    }
    assert_eq!(taken_over(&play, play.run.graph(), "z").unwrap(), ["j", "m"]);
    assert_eq!(taken_over(&play, &graph("m -> a; a -> j; j -> z"), "z").unwrap(), ["m"]);
}
