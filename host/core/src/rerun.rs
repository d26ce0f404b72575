//! What of one run counts in another that repeats it.
//!
//! A rerun from a step takes over the results of everything that does not come after that step; the rest is done anew.
//! What a fan-out or a loop did is taken over as a whole or not at all: its items have no meaning without each other.

use std::collections::{BTreeMap, BTreeSet};

use crate::event::{Event, Recorded};
use crate::graph::{Graph, NodeIndex};
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
    completed: BTreeMap<NodeId, (Payload, Vec<String>)>,
    skipped: BTreeSet<NodeId>,
    ran: BTreeSet<NodeId>,
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
            Event::StepCompleted { step, output, labels, .. } | Event::StepTakenOver { step, output, labels } => {
                self.ran.insert(step.node.clone());
                self.completed.insert(step.node.clone(), (output.clone(), labels.clone()));
            }
            Event::StepSkipped { step } if step.items.is_empty() => drop(self.skipped.insert(step.node.clone())),
            _ => {}
        }
    }

    /// What a rerun from `step` takes over. `graph` is the one of the version that will run, which may be another than the
    /// one that ran: what stands behind a node that is new there is done anew.
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
        // A node is taken over when all that leads to it is; so the step itself is what everything behind it lacks.
        let mut settled: BTreeSet<NodeIndex> = BTreeSet::new();
        let mut taken_over = Vec::new();
        let mut ways_in: BTreeMap<NodeIndex, Vec<NodeIndex>> = BTreeMap::new();
        let nodes = graph.scopes().get(OUTERMOST).map(|scope| scope.nodes.as_slice()).unwrap_or_default();
        for source in nodes {
            for edge in graph.node(*source).into_iter().flat_map(|node| &node.outgoing) {
                ways_in.entry(edge.target).or_default().push(*source);
            }
        }
        loop {
            let before = settled.len();
            for index in nodes {
                let Some(node) = graph.node(*index).filter(|_| !settled.contains(index) && *index != from) else {
                    continue;
                };
                // What closes a scope is settled with the node that opens it.
                if node.closes.is_some()
                    || !ways_in.get(index).is_none_or(|ways| ways.iter().all(|w| settled.contains(w)))
                {
                    continue;
                }
                let result = |index: NodeIndex| {
                    let node = graph.node(index)?;
                    let (output, labels) = self.completed.get(&node.id)?;
                    let known = labels.iter().all(|label| node.has_label(label));
                    let (step, output, labels) = (node.id.clone().into(), output.clone(), labels.clone());
                    known.then_some(TakenOver { step, output, labels })
                };
                if self.skipped.contains(&node.id) {
                    settled.insert(*index);
                    continue;
                }
                let Some(opener) = result(*index) else { continue };
                let closer = node.opens.and_then(|scope| graph.inner(scope)).map(|inner| inner.closer);
                match closer {
                    None => {}
                    Some(closer) => match result(closer) {
                        Some(closed) => {
                            settled.insert(closer);
                            taken_over.push(closed);
                        }
                        None => continue,
                    },
                }
                settled.insert(*index);
                taken_over.push(opener);
            }
            if settled.len() == before {
                return Ok(taken_over);
            }
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
