//! What a graph does with an input: the reference that the server is compared with.
//!
//! Owns: the rules about paths, items, iterations and failures, written down once more, as plainly as they can be. Nodes
//! are executed one after the other; nothing is stored, scheduled or cancelled.
//!
//! What runs side by side can fail side by side, and the first failure ends the rest. So this plays everything that
//! *could* run, and says of each step whether it *must* have: that is uncertain for what a failure elsewhere may come
//! before. Only in one place does a race become a value, when an item of a `collect` has several nodes that could fail
//! it; there, [`Witness`] tells which it was.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::graph::{From, Graph, Join, Kind, Link, Node, OnFailure, OnMax, Scope};
use super::language::{Raised, Template, holds};

/// A node, and the numbers of the items and iterations that it stands in.
pub(super) type Step = (String, Vec<u32>);

/// What becomes of a step.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Fate {
    Completed { output: Value, topic: Option<&'static str> },
    Skipped,
    Failed { code: &'static str },
}

#[derive(Debug)]
pub(super) struct Expected {
    pub(super) fate: Fate,
    /// Whether it must have come to this. Otherwise it may also have been cut off, or never have begun.
    pub(super) certain: bool,
}

pub(super) type Steps = BTreeMap<Step, Expected>;

/// What becomes of a run.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) steps: Steps,
    /// The output, or the steps of which one fails the run.
    pub(super) end: Result<Value, BTreeSet<Step>>,
}

/// Which of these steps has failed in the run that is looked at; `None` if none has.
pub(super) type Witness<'a> = &'a dyn Fn(&BTreeSet<Step>) -> Option<Step>;

pub(super) fn play(graph: &Graph, workflow: &str, input: &Value, witness: Witness<'_>) -> Outcome {
    let run = Run { workflow, input, witness };
    let played = run.scope(&graph.scope, &Around::default());
    let output = |id: &String| played.outputs.get(id).cloned().unwrap_or_default();
    let end = if played.failures.is_empty() {
        Ok(graph.output.as_ref().map(output).unwrap_or_default())
    } else {
        Err(played.failures)
    };
    Outcome { steps: played.steps, end }
}

struct Run<'a> {
    workflow: &'a str,
    input: &'a Value,
    witness: Witness<'a>,
}

/// What a step sees besides the input.
#[derive(Debug, Clone, Default)]
struct Around {
    items: Vec<u32>,
    item: Option<Value>,
    index: Option<u32>,
    nodes: Map<String, Value>,
    failures: Option<Value>,
}

/// What became of a node, with all that lies between it and its join, or of the nodes of a scope.
#[derive(Default)]
struct Played {
    steps: Steps,
    /// By the ids under which they are seen from behind.
    outputs: Map<String, Value>,
    /// What failed it: one of these steps.
    failures: BTreeSet<Step>,
}

impl Run<'_> {
    /// Plays the nodes of a scope once.
    fn scope(&self, scope: &Scope, around: &Around) -> Played {
        let mut seen = around.clone();
        let mut played = Played::default();
        // Of each node: what became of it. `None` where it never gets its turn.
        let mut nodes: Vec<Option<Played>> = Vec::new();
        for node in &scope.nodes {
            let came_through = |link: &Link| match link.from {
                From::Opener => true,
                From::Node(from) => nodes[from].as_ref().is_some_and(|before| before.failures.is_empty()),
            };
            if !node.links.iter().all(came_through) {
                nodes.push(None);
                continue;
            }
            let is_taken = |link: &Link| match link.from {
                From::Opener => true,
                From::Node(from) => match seen.nodes.get(scope.nodes[from].last_id()) {
                    None => false, // skipped
                    Some(output) => link.label.is_none_or(|label| output == label),
                },
            };
            let result = match node.links.is_empty() || node.links.iter().any(is_taken) {
                true => self.node(node, &seen),
                false => skipped(node, &seen),
            };
            seen.nodes.extend(result.outputs.clone());
            played.outputs.extend(result.outputs.clone());
            nodes.push(Some(result));
        }
        // Whichever failure comes first: what leads to all of them has happened before.
        let failed: Vec<usize> =
            (0..nodes.len()).filter(|n| nodes[*n].as_ref().is_some_and(|played| !played.failures.is_empty())).collect();
        for (place, result) in nodes.into_iter().enumerate() {
            let Some(mut result) = result else { continue };
            let leads_to = |other: &usize| place == *other || scope.before(&scope.nodes[*other].links).contains(&place);
            if !failed.iter().all(leads_to) {
                doubt(&mut result.steps);
            }
            played.steps.extend(result.steps);
            played.failures.extend(result.failures);
        }
        played
    }

    fn node(&self, node: &Node, around: &Around) -> Played {
        let step = (node.id.clone(), around.items.clone());
        match &node.kind {
            Kind::Transform { output, topic } => {
                let output = output.value(&self.context(&node.id, around));
                done(step, output.map_err(|Raised| "expression_failed"), *topic)
            }
            Kind::Branch { cases, otherwise } => {
                let context = self.context(&node.id, around);
                let mut label = *otherwise;
                for (when, chosen) in cases {
                    match when.value(&context) {
                        Ok(value) if holds(&value) => {
                            label = Some(chosen);
                            break;
                        }
                        Ok(_) => {}
                        Err(Raised) => return done(step, Err("expression_failed"), None),
                    }
                }
                done(step, Ok(json!(label)), None)
            }
            Kind::Map { items, .. } => {
                let items = match items.value(&self.context(&node.id, around)) {
                    Ok(Value::Array(items)) => items,
                    Ok(_) => return done(step, Err("not_an_array"), None),
                    Err(Raised) => return done(step, Err("expression_failed"), None),
                };
                let opened = done(step, Ok(items.clone().into()), None);
                self.map(node, &items, around, opened)
            }
            Kind::Loop { initial, .. } => {
                let state = initial.value(&self.context(&node.id, around));
                let going = state.and_then(|state| Ok((self.goes_on(node, &state, 0, around)?, state)));
                match going {
                    Ok((going, state)) => {
                        let opened = done(step, Ok(state.clone()), None);
                        self.repeat(node, state, going, around, opened)
                    }
                    Err(Raised) => done(step, Err("expression_failed"), None),
                }
            }
        }
    }

    fn map(&self, node: &Node, items: &[Value], around: &Around, mut played: Played) -> Played {
        let Kind::Map { concurrency, on_failure, inside, join, .. } = &node.kind else {
            unreachable!("only maps have items")
        };
        let mut done_items: Vec<Played> = Vec::new();
        let mut failed: Vec<usize> = Vec::new();
        for (index, item) in (0..).zip(items) {
            // Items may be slow to fail. As long as there is room beside those that will, others can begin.
            if *on_failure == OnFailure::Cancel && failed.len() >= *concurrency {
                break;
            }
            let frame = self.scope(inside, &around.within(&node.id, index, item));
            if !frame.failures.is_empty() {
                failed.push(done_items.len());
            }
            done_items.push(frame);
        }
        if *on_failure == OnFailure::Cancel && !failed.is_empty() {
            for (index, frame) in done_items.iter_mut().enumerate() {
                // One after the other: what comes before the failure is done by then.
                let comes_before = *concurrency == 1 && index < failed[0];
                if !comes_before && failed != [index] {
                    doubt(&mut frame.steps);
                }
            }
        }
        let mut seen = around.clone();
        seen.nodes.extend(played.outputs.clone());
        for id in inside.nodes.iter().flat_map(Node::ids) {
            // An item that has failed has no outputs, whatever some of its nodes did.
            let outputs = done_items.iter().map(|frame| match frame.failures.is_empty() {
                true => frame.outputs.get(id).cloned().unwrap_or_default(),
                false => Value::Null,
            });
            seen.nodes.insert(id.to_owned(), outputs.collect());
        }
        let failures = failed.iter().map(|index| {
            let could = &done_items[*index].failures;
            let step = (self.witness)(could).unwrap_or_else(|| could.first().unwrap().clone());
            let Some(Expected { fate: Fate::Failed { code }, .. }) = done_items[*index].steps.get(&step) else {
                unreachable!("what fails an item is a step of it that fails")
            };
            json!({ "index": index, "node": step.0, "code": code })
        });
        seen.failures = Some(failures.collect());
        for frame in done_items {
            played.steps.extend(frame.steps);
            if *on_failure != OnFailure::Collect {
                played.failures.extend(frame.failures);
            }
        }
        if played.failures.is_empty() {
            let output = self.joined(inside, join, &seen);
            played.then(done((join.id.clone(), around.items.clone()), output, None));
        }
        played
    }

    fn repeat(&self, node: &Node, mut state: Value, mut going: bool, around: &Around, mut played: Played) -> Played {
        let Kind::Loop { max, on_max, inside, join, .. } = &node.kind else { unreachable!("only loops repeat") };
        if !going {
            // The join runs all the same: it is what the nodes behind it are behind of.
            let items = [around.items.as_slice(), &[0]].concat();
            played.then(done((join.id.clone(), items), Ok(state), None));
            return played;
        }
        for index in 0.. {
            let mut seen = around.within(&node.id, index, &state);
            let frame = self.scope(inside, &seen);
            let failed = !frame.failures.is_empty();
            played.steps.extend(frame.steps);
            played.failures.extend(frame.failures);
            if failed {
                break;
            }
            seen.nodes.extend(frame.outputs);
            let next = self.joined(inside, join, &seen).and_then(|next| {
                going = self.goes_on(node, &next, index + 1, around).map_err(|Raised| "expression_failed")?;
                let limit = going && index + 1 == *max;
                going &= !limit;
                if limit && *on_max == OnMax::Fail { Err("loop_limit") } else { Ok(next) }
            });
            state = next.clone().unwrap_or_default();
            let joined = done((join.id.clone(), seen.items), next, None);
            let failed = !joined.failures.is_empty();
            played.then(joined);
            if failed || !going {
                break;
            }
        }
        played
    }

    /// Whether a loop's condition holds for a state.
    fn goes_on(&self, node: &Node, state: &Value, index: u32, around: &Around) -> Result<bool, Raised> {
        let Kind::Loop { condition, .. } = &node.kind else { unreachable!("only loops have a condition") };
        Ok(holds(&condition.value(&self.context(&node.id, &around.within(&node.id, index, state)))?))
    }

    fn joined(&self, inside: &Scope, join: &Join, seen: &Around) -> Result<Value, &'static str> {
        let template =
            |output: &Template| output.value(&self.context(&join.id, seen)).map_err(|Raised| "expression_failed");
        match &join.output {
            Some(output) => template(output),
            None => Ok(seen.nodes.get(inside.only_exit().unwrap().last_id()).cloned().unwrap_or_default()),
        }
    }

    /// What expressions are evaluated on.
    fn context(&self, node: &str, around: &Around) -> Value {
        let run = json!({ "workflow": self.workflow, "node": node, "attempt": 1, "items": around.items });
        json!({
            "run": run, "input": self.input, "nodes": around.nodes,
            "item": around.item, "index": around.index, "failures": around.failures,
        })
    }
}

impl Around {
    /// What the nodes of one item or iteration see.
    fn within(&self, opener: &str, index: u32, item: &Value) -> Self {
        let mut inside = self.clone();
        inside.items.push(index);
        (inside.index, inside.item) = (Some(index), Some(item.clone()));
        inside.nodes.insert(opener.to_owned(), item.clone());
        inside
    }
}

impl Played {
    /// Another step of the same scope, behind what is there.
    fn then(&mut self, next: Self) {
        self.steps.extend(next.steps);
        self.outputs.extend(next.outputs);
        self.failures.extend(next.failures);
    }
}

fn done(step: Step, output: Result<Value, &'static str>, topic: Option<&'static str>) -> Played {
    let mut played = Played::default();
    let fate = match output {
        Ok(output) => {
            played.outputs.insert(step.0.clone(), output.clone());
            Fate::Completed { output, topic }
        }
        Err(code) => {
            played.failures.insert(step.clone());
            Fate::Failed { code }
        }
    };
    played.steps.insert(step, Expected { fate, certain: true });
    played
}

/// A node that no path leads to, with its join. What lies between is not there at all.
fn skipped(node: &Node, around: &Around) -> Played {
    let steps =
        node.ids().map(|id| ((id.to_owned(), around.items.clone()), Expected { fate: Fate::Skipped, certain: true }));
    Played { steps: steps.collect(), ..Played::default() }
}

fn doubt(steps: &mut Steps) {
    steps.values_mut().for_each(|step| step.certain = false);
}
