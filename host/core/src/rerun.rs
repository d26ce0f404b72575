//! What of one run counts in another that repeats it.
//!
//! A rerun from a step takes over the results of everything that does not come after that step; the rest is done anew.
//! What a fan-out or a loop did is taken over as a whole or not at all: its items have no meaning without each other.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::event::{Event, Recorded};
use crate::graph::{Graph, Node, NodeIndex, Outgoing, ScopeKind};
use crate::ids::{NodeId, StepId};
use crate::json::Payload;
use crate::scope::OUTERMOST;

/// A result of another run that counts.
#[derive(Debug, Clone, PartialEq)]
pub struct TakenOver {
    /// The step.
    pub step: StepId,
    /// Its result.
    pub output: Payload,
    /// Labels of the edges taken besides the unlabelled ones.
    pub labels: Vec<String>,
}

/// Why a run cannot be repeated from a step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotRerun {
    /// The workflow has no such node.
    #[error("the workflow has no node `{0}`")]
    UnknownStep(NodeId),
    /// The step never ran.
    #[error("`{0}` did not run")]
    DidNotRun(StepId),
    /// The step belongs to an item or an iteration.
    #[error("`{step}` belongs to what `{opener}` runs several times; rerun from `{opener}`")]
    WithinScope {
        /// The step.
        step: StepId,
        /// The outermost node that opens the scope.
        opener: NodeId,
    },
}

/// The results of a run, gathered from its events one after the other.
#[derive(Debug, Default)]
pub struct Results {
    completed: BTreeMap<NodeId, Completed>,
    ran: BTreeSet<NodeId>,
}

#[derive(Debug)]
struct Completed {
    output: Payload,
    labels: Vec<String>,
    /// How many items the step's name had: 0 for what runs once, 1 for what closes an outermost loop.
    depth: usize,
}

/// What became of a node without its being done again.
enum Settled {
    Completed(Vec<String>),
    Skipped,
}

impl Results {
    /// Takes in the next event.
    pub fn see(&mut self, Recorded { event, .. }: &Recorded) {
        match event {
            Event::StepStarted { step, .. } => drop(self.ran.insert(step.node.clone())),
            // A loop's closing node that goes on has not closed it. (The opening node has no items here.)
            Event::StepCompleted { step, again: true, .. } if !step.items.is_empty() => {
                self.completed.remove(&step.node);
            }
            // Steps within items are gathered too, and never asked for.
            Event::StepCompleted { step, output, labels, .. } => {
                let (output, labels) = (output.clone(), labels.clone());
                let completed = Completed { output, labels, depth: step.items.len() };
                self.completed.insert(step.node.clone(), completed);
            }
            // A loop's closing node that is taken over has lost its items.
            Event::StepTakenOver { step, output, labels } => {
                self.ran.insert(step.node.clone());
                let (output, labels) = (output.clone(), labels.clone());
                self.completed.insert(step.node.clone(), Completed { output, labels, depth: 0 });
            }
            // Nothing came of a result that was taken over for it.
            Event::StepSkipped { step } if step.items.is_empty() => drop(self.completed.remove(&step.node)),
            _ => {}
        }
    }

    /// What a rerun from `step` takes over. `graph` is the one of the version that will run, which may be another than the
    /// one that ran: what stands behind a node that runs there and did not, or the other way round, is done anew.
    pub fn taken_over(&self, graph: &Graph, step: &StepId) -> Result<Vec<TakenOver>, CannotRerun> {
        let from = graph.index_of(&step.node).ok_or_else(|| CannotRerun::UnknownStep(step.node.clone()))?;
        let node = graph.node(from).ok_or_else(|| CannotRerun::UnknownStep(step.node.clone()))?;
        if node.scope != OUTERMOST || node.closes.is_some() || !step.items.is_empty() {
            let opener = outermost_opener(graph, from).unwrap_or_else(|| step.node.clone());
            return Err(CannotRerun::WithinScope { step: step.clone(), opener });
        }
        if !self.ran.contains(&step.node) {
            return Err(CannotRerun::DidNotRun(step.clone()));
        }
        // A node is settled when all that leads to it is; so the step itself is what everything behind it lacks.
        let mut ways_in: HashMap<NodeIndex, WaysIn> = HashMap::new();
        let nodes = graph.scopes().get(OUTERMOST).map(|scope| scope.nodes.as_slice()).unwrap_or_default();
        let begins = |index: &NodeIndex| graph.node(*index).is_some_and(|node| node.incoming == 0);
        let mut ready: VecDeque<(NodeIndex, bool)> =
            nodes.iter().copied().filter(begins).map(|index| (index, true)).collect();
        let mut taken_over = Vec::new();
        while let Some((index, is_reached)) = ready.pop_front() {
            let Some(node) = graph.node(index).filter(|_| index != from) else { continue };
            let inner = node.opens.and_then(|scope| graph.inner(scope));
            // What closes a scope is settled with the node that opens it, and the ways on lead from there.
            let Some(last) = inner.map_or(Some(node), |inner| graph.node(inner.closer)) else { continue };
            let Some(settled) = self.settle(graph, node, last, is_reached, &mut taken_over) else { continue };
            for edge in &last.outgoing {
                let ways = ways_in.entry(edge.target).or_default();
                ways.settled += 1;
                ways.is_reached |= settled.takes(edge);
                if graph.node(edge.target).is_some_and(|target| target.incoming == ways.settled) {
                    ready.push_back((edge.target, ways.is_reached));
                }
            }
        }
        Ok(taken_over)
    }

    /// What becomes of a node, and of the scope behind it, whose ways in are settled. `None` when it is to be done anew, or
    /// is skipped now and was not: then what stands behind it lacks what it was handed.
    fn settle(
        &self,
        graph: &Graph,
        first: &Node,
        last: &Node,
        is_reached: bool,
        taken_over: &mut Vec<TakenOver>,
    ) -> Option<Settled> {
        if !is_reached {
            let brought_nothing = |node: &Node| !self.completed.contains_key(&node.id);
            return (brought_nothing(first) && brought_nothing(last)).then_some(Settled::Skipped);
        }
        let closed = self.result_of(graph, last)?;
        let labels = closed.labels.clone();
        if first.id != last.id {
            taken_over.push(self.result_of(graph, first)?);
        }
        taken_over.push(closed);
        Some(Settled::Completed(labels))
    }

    /// The result of a node of the outermost scope that is one in this graph too.
    fn result_of(&self, graph: &Graph, node: &Node) -> Option<TakenOver> {
        let Completed { output, labels, depth } = self.completed.get(&node.id)?;
        let closed = node.closes.and_then(|scope| graph.inner(scope));
        let closes_loop = closed.is_some_and(|inner| matches!(inner.kind, ScopeKind::Repeat { .. }));
        let is_the_same = *depth == 0 || *depth == 1 && closes_loop;
        let is_known = labels.iter().all(|label| node.has_label(label));
        (is_the_same && is_known).then(|| TakenOver {
            step: node.id.clone().into(),
            output: output.clone(),
            labels: labels.clone(),
        })
    }
}

/// How many of a node's ways in are settled, and whether one of them is taken.
#[derive(Default)]
struct WaysIn {
    settled: usize,
    is_reached: bool,
}

impl Settled {
    fn takes(&self, edge: &Outgoing) -> bool {
        match (self, &edge.label) {
            (Self::Skipped, _) => false,
            (Self::Completed(_), None) => true,
            (Self::Completed(labels), Some(label)) => labels.contains(label),
        }
    }
}

/// The node of the outermost scope that opens what a node lies in or closes.
fn outermost_opener(graph: &Graph, index: NodeIndex) -> Option<NodeId> {
    let node = graph.node(index)?;
    let mut scope = if node.scope == OUTERMOST { node.closes? } else { node.scope };
    loop {
        let inner = graph.inner(scope)?;
        if inner.parent == OUTERMOST {
            return Some(graph.node(inner.opener)?.id.clone());
        }
        scope = inner.parent;
    }
}
