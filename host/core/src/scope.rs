//! Which nodes of a graph run several times: the scopes of fan-outs and loops.
//!
//! A scope lies between a node that opens it and the one that closes it. Every way into it leads through the first, every
//! way out through the second, and scopes nest like brackets. So each node stands in exactly one scope, and what a
//! scope does to the rest of the graph is the same as one edge from its opening to its closing node.

use std::collections::HashMap;

use crate::graph::{GraphSpec, Need, NodeIndex, Outgoing, ScopeKind};

/// Scopes within scopes. A step's items have one number for each; more than a few is a slip, not a plan.
pub const SCOPE_DEPTH_MAX: usize = 8;
/// Items of one fan-out.
pub const ITEMS_MAX: u32 = 10_000;
/// Items of one fan-out under way at once.
pub const CONCURRENCY_MAX: u32 = 1_000;
/// Iterations of one loop.
pub const ITERATIONS_MAX: u32 = 1_000_000;

/// The place of a scope in its graph's list. 0 is the outermost, which every graph has.
pub type ScopeIndex = usize;

/// The outermost scope: what runs once.
pub const OUTERMOST: ScopeIndex = 0;

/// Nodes that run together, once or several times.
#[derive(Debug, Clone, PartialEq)]
pub struct Scope {
    /// How often its nodes run, and between which nodes it lies; `None` for the outermost.
    pub inner: Option<Inner>,
    /// How many scopes it stands in: the length of its steps' items.
    pub depth: usize,
    /// Its nodes. The node that opens it and the one that closes it belong to the scope around it.
    pub nodes: Vec<NodeIndex>,
}

/// What a scope other than the outermost is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    /// How often its nodes run.
    pub kind: ScopeKind,
    /// The node that opens it.
    pub opener: NodeIndex,
    /// The node that closes it.
    pub closer: NodeIndex,
    /// The scope it stands in.
    pub parent: ScopeIndex,
}

/// A fault, before it is put into the words of a problem.
pub(crate) struct Fault {
    pub(crate) node: NodeIndex,
    pub(crate) field: &'static str,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

/// Where everything stands.
pub(crate) struct Scopes {
    pub(crate) scopes: Vec<Scope>,
    /// The scope of each node.
    pub(crate) of_node: Vec<ScopeIndex>,
    /// The scope that a node opens.
    pub(crate) opened_by: HashMap<NodeIndex, ScopeIndex>,
    /// The scope that a node closes.
    closed: HashMap<NodeIndex, ScopeIndex>,
}

impl Scopes {
    /// Finds the scopes of a graph without cycles, in one pass along its edges.
    pub(crate) fn find(
        spec: &GraphSpec,
        by_id: &HashMap<&str, NodeIndex>,
        outgoing: &[Vec<Outgoing>],
        sources: &[Vec<NodeIndex>],
        order: &[NodeIndex],
    ) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut fault = |node: NodeIndex, field: &'static str, code: &'static str, message: String| {
            faults.push(Fault { node, field, code, message });
        };
        let mut this = Self {
            scopes: vec![Scope { inner: None, depth: 0, nodes: Vec::new() }],
            of_node: vec![OUTERMOST; spec.nodes.len()],
            opened_by: HashMap::new(),
            closed: HashMap::new(),
        };
        // `closer` is not known when a scope is opened; it is filled in when its closing node is met.
        let mut closed: HashMap<ScopeIndex, NodeIndex> = HashMap::new();
        for index in order.iter().copied() {
            let Some(node) = spec.nodes.get(index) else { continue };
            let sources = sources.get(index).map(Vec::as_slice).unwrap_or_default();
            // The scope that one has got to behind a source.
            let mut behind = sources.iter().map(|source| {
                let around = this.of_node.get(*source).copied().unwrap_or(OUTERMOST);
                this.opened_by.get(source).copied().unwrap_or(around)
            });
            let came_from = behind.next().unwrap_or(OUTERMOST);
            if behind.any(|other| other != came_from) {
                let message = "edges lead here out of different fan-outs or loops".to_owned();
                fault(index, "edges", "crosses_scopes", message);
            }
            let mut scope = came_from;
            if let Some(name) = &node.closes {
                let opener = by_id.get(name.as_str()).copied();
                let opened = opener.and_then(|opener| this.opened_by.get(&opener).copied());
                match opened {
                    Some(opened) if opened == came_from && !closed.contains_key(&opened) => {
                        closed.insert(opened, index);
                        this.closed.insert(index, opened);
                        scope = this.parent(opened);
                        if opener.is_some_and(|opener| sources.contains(&opener)) {
                            let message = format!("an edge leads here straight from `{name}`, past the nodes between");
                            fault(index, "edges", "empty_scope", message);
                        }
                    }
                    Some(opened) if closed.contains_key(&opened) => {
                        fault(index, "closes", "closed_twice", format!("`{name}` is closed by another node too"));
                    }
                    Some(_) => {
                        let message = format!("the edges to this node do not come from between it and `{name}`");
                        fault(index, "closes", "not_between", message);
                    }
                    None => {
                        let message = format!("`{name}` opens nothing, or no path leads from it to this node");
                        fault(index, "closes", "opens_nothing", message);
                    }
                }
            }
            if let Some(of_node) = this.of_node.get_mut(index) {
                *of_node = scope;
            }
            let depth = this.scopes.get(scope).map_or(0, |scope| scope.depth);
            if let Some(scope) = this.scopes.get_mut(scope) {
                scope.nodes.push(index);
            }
            let Some(kind) = node.opens else { continue };
            if node.closes.is_some() {
                fault(index, "opens", "opens_and_closes", "a node opens a scope or closes one, not both".to_owned());
            }
            if depth == SCOPE_DEPTH_MAX {
                let message = format!("fan-outs and loops stand at most {SCOPE_DEPTH_MAX} deep in each other");
                fault(index, "opens", "too_deep", message);
            }
            if outgoing.get(index).into_iter().flatten().any(|edge| edge.label.is_some()) {
                let message = "the edges out of a node that opens a scope carry no labels".to_owned();
                fault(index, "edges", "label_into_scope", message);
            }
            let inner = Inner { kind, opener: index, closer: index, parent: scope };
            this.opened_by.insert(index, this.scopes.len());
            this.scopes.push(Scope { inner: Some(inner), depth: depth + 1, nodes: Vec::new() });
        }
        for (index, scope) in this.scopes.iter_mut().enumerate() {
            let Some(inner) = &mut scope.inner else { continue };
            match closed.get(&index) {
                Some(closer) => inner.closer = *closer,
                None => fault(inner.opener, "opens", "not_closed", "no node closes what this one opens".to_owned()),
            }
            // Topological order is one of many; that of the graph's list is the one people know.
            scope.nodes.sort_unstable();
        }
        if let Some(outermost) = this.scopes.first_mut() {
            outermost.nodes.sort_unstable();
        }
        if faults.is_empty() { Ok(this) } else { Err(faults) }
    }

    /// What a node is handed when it needs another one, which is an ancestor of it. `None` when that stands in a scope
    /// which the node is outside of.
    pub(crate) fn need(&self, node: NodeIndex, other: NodeIndex) -> Option<Need> {
        let of = |node: NodeIndex| self.of_node.get(node).copied().unwrap_or(OUTERMOST);
        let closes = self.closed_by(node);
        if let Some(opened) = self.opened_by.get(&other).copied() {
            let repeats = |inner: Inner| matches!(inner.kind, ScopeKind::Repeat { .. });
            if self.is_within(of(node), opened) || (closes == Some(opened) && self.inner(opened).is_some_and(repeats)) {
                return Some(Need::Item(other));
            }
        }
        if self.is_within(of(node), of(other)) {
            return Some(Need::Output(other));
        }
        let closed = closes.filter(|closed| *closed == of(other))?;
        Some(match self.inner(closed)?.kind {
            ScopeKind::Each { .. } => Need::EachOutput(other),
            ScopeKind::Repeat { .. } => Need::LastOutput(other),
        })
    }

    pub(crate) fn inner(&self, scope: ScopeIndex) -> Option<Inner> {
        self.scopes.get(scope)?.inner
    }

    fn closed_by(&self, node: NodeIndex) -> Option<ScopeIndex> {
        self.closed.get(&node).copied()
    }

    fn is_within(&self, mut scope: ScopeIndex, other: ScopeIndex) -> bool {
        while scope != other {
            let Some(inner) = self.inner(scope) else { return false };
            scope = inner.parent;
        }
        true
    }

    fn parent(&self, scope: ScopeIndex) -> ScopeIndex {
        self.scopes.get(scope).and_then(|scope| scope.inner).map_or(OUTERMOST, |inner| inner.parent)
    }
}
