//! A graph as the reference has it: scopes within scopes, so that nothing has to be found out about edges.
//!
//! Owns: the types, and how a graph is printed as a document. There it is flat, and its nodes and edges are shuffled:
//! their order means nothing.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::dealer::Dealer;
use super::language::{Expr, Template, whole};

#[derive(Debug)]
pub(super) struct Graph {
    pub(super) scope: Scope,
    pub(super) output: Option<String>,
}

/// What runs together: the whole graph, or what lies between a `map` or `loop` and its join.
#[derive(Debug, Default)]
pub(super) struct Scope {
    /// Edges lead from earlier ones to later ones.
    pub(super) nodes: Vec<Node>,
    /// Edges to the join.
    pub(super) exits: Vec<Link>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: String,
    pub(super) links: Vec<Link>,
    pub(super) max_attempts: Option<u32>,
    pub(super) kind: Kind,
}

/// An edge, at its target.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Link {
    pub(super) from: From,
    pub(super) label: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum From {
    /// The `map` or `loop` that the scope belongs to.
    Opener,
    /// A node of the same scope. The edge comes out of its join, where it has one.
    Node(usize),
}

#[derive(Debug)]
pub(super) enum Kind {
    Transform { output: Template, topic: Option<&'static str> },
    Branch { cases: Vec<(Expr, &'static str)>, otherwise: Option<&'static str> },
    Map { items: Template, concurrency: usize, on_failure: OnFailure, inside: Scope, join: Join },
    Loop { initial: Template, condition: Expr, max: u32, on_max: OnMax, inside: Scope, join: Join },
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum OnFailure {
    Cancel,
    Finish,
    Collect,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum OnMax {
    Fail,
    Stop,
}

#[derive(Debug)]
pub(super) struct Join {
    pub(super) id: String,
    /// Without one, what the only node with an edge to the join has put out.
    pub(super) output: Option<Template>,
}

impl Node {
    /// The id under which edges lead on and outputs are found: the join's, where there is one.
    pub(super) fn last_id(&self) -> &str {
        match &self.kind {
            Kind::Map { join, .. } | Kind::Loop { join, .. } => &join.id,
            Kind::Transform { .. } | Kind::Branch { .. } => &self.id,
        }
    }

    /// The ids that stand in the same scope: its own, and its join's.
    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        let last = self.last_id();
        std::iter::once(self.id.as_str()).chain((last != self.id).then_some(last))
    }

    pub(super) fn labels(&self) -> Vec<&'static str> {
        match &self.kind {
            Kind::Branch { cases, otherwise } => cases.iter().map(|(_, label)| *label).chain(*otherwise).collect(),
            _ => Vec::new(),
        }
    }
}

impl Scope {
    /// The nodes from which paths lead to where these edges end.
    pub(super) fn before(&self, links: &[Link]) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        for link in links {
            if let From::Node(node) = link.from {
                found.insert(node);
                found.extend(self.before(&self.nodes[node].links));
            }
        }
        found
    }

    /// The only node with an edge to the join.
    pub(super) fn only_exit(&self) -> Option<&Node> {
        let first = self.exits.first()?.from;
        let From::Node(node) = first else { return None };
        self.exits.iter().all(|link| link.from == first).then(|| &self.nodes[node])
    }
}

impl Graph {
    /// As a document.
    pub(super) fn document(&self, dealer: &mut Dealer) -> Value {
        let mut printed = Printed::default();
        printed.scope(&self.scope, None);
        dealer.shuffle(&mut printed.nodes);
        dealer.shuffle(&mut printed.edges);
        let mut document = json!({ "stepwell": 1, "nodes": printed.nodes, "edges": printed.edges });
        if !printed.topics.is_empty() {
            document["topics"] = json!(printed.topics);
        }
        if let Some(output) = &self.output {
            document["output"] = json!(output);
        }
        document
    }
}

#[derive(Default)]
struct Printed {
    nodes: Vec<Value>,
    edges: Vec<Value>,
    topics: BTreeSet<&'static str>,
}

impl Printed {
    /// A scope, and the ids of what opens it and what closes it.
    fn scope(&mut self, scope: &Scope, ends: Option<(&str, &str)>) {
        for node in &scope.nodes {
            self.edges(scope, &node.links, &node.id, ends);
            self.node(node);
        }
        if let Some((_, join)) = ends {
            self.edges(scope, &scope.exits, join, ends);
        }
    }

    fn edges(&mut self, scope: &Scope, links: &[Link], target: &str, ends: Option<(&str, &str)>) {
        for link in links {
            let source = match link.from {
                From::Opener => ends.unwrap().0,
                From::Node(node) => scope.nodes[node].last_id(),
            };
            let mut edge = json!({ "source": source, "target": target });
            if let Some(label) = link.label {
                edge["label"] = json!(label);
            }
            self.edges.push(edge);
        }
    }

    fn node(&mut self, node: &Node) {
        let mut printed = match &node.kind {
            Kind::Transform { output, topic } => {
                self.topics.extend(topic);
                json!({ "kind": "transform", "output": output.document(), "topic": topic })
            }
            Kind::Branch { cases, otherwise } => {
                let cases: Vec<_> =
                    cases.iter().map(|(when, label)| json!({ "when": whole(when), "label": label })).collect();
                json!({ "kind": "branch", "cases": cases, "else": otherwise })
            }
            Kind::Map { items, concurrency, on_failure, inside, join } => {
                self.scope(inside, Some((&node.id, &join.id)));
                self.join(join, &node.id);
                let on_failure = match on_failure {
                    OnFailure::Cancel => "cancel",
                    OnFailure::Finish => "finish",
                    OnFailure::Collect => "collect",
                };
                let items = items.document();
                json!({ "kind": "map", "items": items, "concurrency": concurrency, "on_failure": on_failure })
            }
            Kind::Loop { initial, condition, max, on_max, inside, join } => {
                self.scope(inside, Some((&node.id, &join.id)));
                self.join(join, &node.id);
                let on_max = match on_max {
                    OnMax::Fail => "fail",
                    OnMax::Stop => "stop",
                };
                let (initial, condition) = (initial.document(), whole(condition));
                json!({ "kind": "loop", "initial": initial, "while": condition, "max": max, "on_max": on_max })
            }
        };
        printed["id"] = json!(node.id);
        if let Some(attempts) = node.max_attempts {
            printed["retry"] = json!({ "max_attempts": attempts, "initial": "1ms" });
        }
        // What is not there is left out, not `null`.
        printed
            .as_object_mut()
            .unwrap()
            .retain(|name, value| !matches!(name.as_str(), "topic" | "else") || !value.is_null());
        self.nodes.push(printed);
    }

    fn join(&mut self, join: &Join, of: &str) {
        let mut printed = json!({ "id": join.id, "kind": "join", "of": of });
        if let Some(output) = &join.output {
            printed["output"] = output.document();
        }
        self.nodes.push(printed);
    }
}
