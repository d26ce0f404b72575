//! The shape of a workflow: a directed graph without cycles, checked once.
//!
//! [`GraphSpec`] is what a component describes and what is stored with its version. [`Graph`] is a checked spec
//! with the answers a run needs at hand; it cannot be made from a spec that has a problem. Checking finds all
//! problems at once, because whoever repairs a graph wants the list and not the first entry.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, NodeId, WorkflowName, is_word};
use crate::json::Json;
use crate::retry::{ATTEMPTS_MAX, ERRORS_MAX, RetryPolicy, WAIT_MS_MAX};
use crate::scope::{CONCURRENCY_MAX, ITERATIONS_MAX, Inner, OUTERMOST, Scope, ScopeIndex, Scopes};

/// Nodes in a graph. Large enough for generated graphs, small enough to check in milliseconds.
pub const NODES_MAX: usize = 10_000;
/// Edges in a graph: five a node on average in the largest one.
pub const EDGES_MAX: usize = 50_000;
/// Needs of all nodes together: as many as there can be edges.
pub const NEEDS_MAX: usize = EDGES_MAX;
/// Topics of a workflow.
pub const TOPICS_MAX: usize = 64;
/// Signals that a workflow can wait for.
pub const SIGNALS_MAX: usize = 64;
/// The longest that a run may take, and that a step may wait: a year. Whatever waits longer waits for nobody.
pub const RUN_MS_MAX: u64 = 366 * 24 * 60 * 60 * 1000;
/// Bytes of a node's description.
pub const DESCRIPTION_BYTES_MAX: usize = 1024;
/// Metered instructions of one attempt: about a minute of one core.
pub const FUEL_MAX: u64 = 100_000_000_000;
/// Wall-clock time of one attempt: an hour.
pub const TIMEOUT_MS_MAX: u64 = 60 * 60 * 1000;
/// The least memory an attempt can be limited to. A Rust guest's stack and data alone take one MiB.
pub const MEMORY_BYTES_MIN: u64 = 1 << 20;
/// The most memory an attempt can be given.
pub const MEMORY_BYTES_MAX: u64 = 256 << 20;
/// Problems reported for one graph; beyond it the list says how many more there are.
pub const PROBLEMS_MAX: usize = 200;

/// A graph as somebody wrote it: nothing in it is checked yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GraphSpec {
    /// The nodes.
    pub nodes: Vec<NodeSpec>,
    /// The edges.
    pub edges: Vec<EdgeSpec>,
    /// The node whose output is the run's output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Topics that steps may publish on.
    #[serde(default)]
    pub topics: Vec<String>,
    /// The channel that updates reach besides their run's stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// A JSON Schema of the run's input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_schema: Option<Json>,
    /// Signals that steps may wait for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signals: Vec<SignalSpec>,
    /// How long a run may take from its start to its end, waiting included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// A signal as somebody wrote it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SignalSpec {
    /// Its name.
    pub name: String,
    /// A JSON Schema of its payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Json>,
}

/// A node as somebody wrote it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Unique in the graph.
    pub id: String,
    /// One sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What the step is handed: `input`, or ids of ancestors.
    #[serde(default)]
    pub needs: Vec<String>,
    /// When a failed attempt is tried again.
    pub retry: RetryPolicy,
    /// What one attempt may use.
    pub limits: Limits,
    /// The nodes from here to the one that closes this one run several times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opens: Option<ScopeKind>,
    /// The node that this one closes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closes: Option<String>,
    /// Where the step's work is done when it delegates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegates_to: Option<DelegateSpec>,
}

impl NodeSpec {
    /// A node that needs nothing, is retried by default and opens and closes nothing.
    #[must_use]
    pub fn new(id: impl Into<String>, limits: Limits) -> Self {
        Self {
            id: id.into(),
            description: None,
            needs: Vec::new(),
            retry: RetryPolicy::default(),
            limits,
            opens: None,
            closes: None,
            delegates_to: None,
        }
    }
}

/// How often the nodes of a scope run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScopeKind {
    /// Once for each element of the array that the opening node hands over.
    Each {
        /// Items under way at once.
        concurrency: u32,
        /// What becomes of the others when a step of one item has failed for good.
        on_failure: ItemFailure,
    },
    /// Again and again, until the closing node says that it is enough.
    Repeat {
        /// Iterations.
        max: u32,
    },
}

/// What becomes of a fan-out when a step of one item has failed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ItemFailure {
    /// The fan-out has failed, and with it what it is part of; other items are cancelled.
    Cancel,
    /// The other items are brought to their end; then the fan-out has failed.
    Finish,
    /// The other items are brought to their end; the closing node decides what the failures mean.
    Collect,
}

/// A node of another workflow of the same tenant, as somebody wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelegateSpec {
    /// The workflow's name.
    pub workflow: String,
    /// The version: the SHA-256 of the component, in lower-case hex.
    pub version: String,
    /// The node.
    pub node: String,
}

/// What one attempt of a step may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Metered instructions.
    pub fuel: u64,
    /// Wall-clock milliseconds.
    pub timeout_ms: u64,
    /// Bytes of linear memory and tables together.
    pub memory_bytes: u64,
}

/// An edge as somebody wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeSpec {
    /// Where it starts.
    pub source: String,
    /// Where it ends.
    pub target: String,
    /// Taken only when the source's outcome names this label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// One thing that is wrong with a graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The node it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The field it is about.
    pub field: String,
    /// A stable identifier.
    pub code: String,
    /// A sentence for people.
    pub message: String,
    /// What to do about it, where that can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The place of a node in its graph's list.
pub type NodeIndex = usize;

/// A checked graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    nodes: Vec<Node>,
    scopes: Vec<Scope>,
    by_id: HashMap<NodeId, NodeIndex>,
    output: Option<NodeIndex>,
    spec: GraphSpec,
}

/// A checked node.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// What the step is handed.
    pub needs: Vec<Need>,
    /// When a failed attempt is tried again.
    pub retry: RetryPolicy,
    /// What one attempt may use.
    pub limits: Limits,
    /// The scope it stands in.
    pub scope: ScopeIndex,
    /// Its place among the nodes of its scope.
    pub place: usize,
    /// The scope that it opens.
    pub opens: Option<ScopeIndex>,
    /// The scope that it closes.
    pub closes: Option<ScopeIndex>,
    /// Where the step's work is done when it delegates.
    pub delegates_to: Option<Delegate>,
    /// Edges from here to nodes of the same scope. A scope within counts as one edge from the node that opens it to the
    /// one that closes it.
    pub outgoing: Vec<Outgoing>,
    /// How many edges lead here, counted in the same way, and those from the node that opens the scope.
    pub incoming: usize,
    /// How many of them come from the node that opens the scope: they are taken when the scope is entered.
    pub entries: usize,
    labels: HashSet<String>,
}

/// A node of another workflow of the same tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegate {
    /// The workflow's name.
    pub workflow: WorkflowName,
    /// The version.
    pub version: Digest,
    /// The node.
    pub node: NodeId,
}

/// A value that a step is handed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Need {
    /// The run's input.
    Input,
    /// An ancestor's output: one of the same scope or of one around it.
    Output(NodeIndex),
    /// The item or state that the step works on, of the scope that this node opens.
    Item(NodeIndex),
    /// For the node that closes a fan-out: the outputs of a node between, one for each item.
    EachOutput(NodeIndex),
    /// For the node that closes a loop: the output of a node between, in this iteration.
    LastOutput(NodeIndex),
}

impl Need {
    /// The node it names.
    #[must_use]
    pub const fn node(&self) -> Option<NodeIndex> {
        match self {
            Self::Input => None,
            Self::Output(node) | Self::Item(node) | Self::EachOutput(node) | Self::LastOutput(node) => Some(*node),
        }
    }
}

/// A checked edge, seen from its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Where it ends.
    pub target: NodeIndex,
    /// Taken only when the source's outcome names this label.
    pub label: Option<String>,
}

impl Graph {
    /// Checks a spec. On failure all its problems, at most [`PROBLEMS_MAX`] of them.
    pub fn check(spec: GraphSpec) -> Result<Self, Vec<Problem>> {
        Checker::default().check(spec)
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node at an index.
    #[must_use]
    pub fn node(&self, index: NodeIndex) -> Option<&Node> {
        self.nodes.get(index)
    }

    /// All scopes, the outermost first.
    #[must_use]
    pub fn scopes(&self) -> &[Scope] {
        &self.scopes
    }

    /// What a scope other than the outermost is.
    #[must_use]
    pub fn inner(&self, scope: ScopeIndex) -> Option<Inner> {
        self.scopes.get(scope)?.inner
    }

    /// How many numbers the items of a scope's steps have.
    #[must_use]
    pub fn depth(&self, scope: ScopeIndex) -> usize {
        self.scopes.get(scope).map_or(0, |scope| scope.depth)
    }

    /// Whether a scope is another one or stands in it.
    #[must_use]
    pub fn is_within(&self, mut scope: ScopeIndex, other: ScopeIndex) -> bool {
        while scope != other {
            let Some(inner) = self.inner(scope) else { return false };
            scope = inner.parent;
        }
        true
    }

    /// Where a node is.
    #[must_use]
    pub fn index_of(&self, id: &NodeId) -> Option<NodeIndex> {
        self.by_id.get(id).copied()
    }

    /// The node whose output is the run's output.
    #[must_use]
    pub fn output(&self) -> Option<NodeIndex> {
        self.output
    }

    /// Whether steps may publish on this topic.
    #[must_use]
    pub fn has_topic(&self, topic: &str) -> bool {
        self.spec.topics.iter().any(|known| known == topic)
    }

    /// A signal that steps may wait for.
    #[must_use]
    pub fn signal(&self, name: &str) -> Option<&SignalSpec> {
        self.spec.signals.iter().find(|signal| signal.name == name)
    }

    /// What was checked.
    #[must_use]
    pub fn spec(&self) -> &GraphSpec {
        &self.spec
    }
}

impl Node {
    /// Whether some edge out of this node carries the label.
    #[must_use]
    pub fn has_label(&self, label: &str) -> bool {
        self.labels.contains(label)
    }
}

#[derive(Default)]
struct Checker {
    problems: Vec<Problem>,
    unreported: usize,
}

impl Checker {
    fn problem(&mut self, node: Option<&str>, field: &str, code: &str, message: String) {
        if self.problems.len() == PROBLEMS_MAX {
            self.unreported += 1;
            return;
        }
        // Names come from a guest: what is shown of one is bounded.
        let node = node.map(|id| clip(id).to_owned());
        self.problems.push(Problem { node, field: field.to_owned(), code: code.to_owned(), message, hint: None });
    }

    fn check(mut self, spec: GraphSpec) -> Result<Graph, Vec<Problem>> {
        if spec.nodes.is_empty() {
            self.problem(None, "nodes", "no_nodes", "a graph has at least one node".to_owned());
        }
        let counts = [
            ("nodes", spec.nodes.len(), NODES_MAX),
            ("edges", spec.edges.len(), EDGES_MAX),
            ("topics", spec.topics.len(), TOPICS_MAX),
            ("signals", spec.signals.len(), SIGNALS_MAX),
            ("needs", spec.nodes.iter().map(|node| node.needs.len()).sum(), NEEDS_MAX),
        ];
        for (field, count, most) in counts {
            if count > most {
                self.problem(None, field, "too_many", format!("{count} {field}, at most {most} are allowed"));
            }
        }
        if !self.problems.is_empty() {
            return Err(self.problems); // what follows would be work that the limits are there to spare
        }
        self.check_words(&spec);
        let by_id = self.check_nodes(&spec);
        let (outgoing, sources) = self.check_edges(&spec, &by_id);
        let order = self.check_cycles(&spec, &outgoing);
        let scopes = self.check_scopes(&spec, &by_id, &outgoing, &sources, &order);
        let needs = self.check_needs(&spec, &by_id, &sources, &order, scopes.as_ref());
        let output = self.check_output(&spec, &by_id, scopes.as_ref());

        if self.unreported > 0 {
            let message = format!("{} more problems are not listed", self.unreported);
            let code = "more_problems".to_owned();
            self.problems.push(Problem { node: None, field: String::new(), code, message, hint: None });
        }
        match scopes {
            Some(scopes) if self.problems.is_empty() => assemble(spec, needs, &outgoing, &scopes, output),
            _ => Err(self.problems),
        }
    }

    fn check_words(&mut self, spec: &GraphSpec) {
        let rule = "consists of 1 to 64 characters out of A-Z, a-z, 0-9, _, . and -";
        let mut seen = HashSet::new();
        for topic in &spec.topics {
            if !is_word(topic) {
                self.problem(
                    None,
                    "topics",
                    "invalid_topic",
                    format!("the topic `{}` is not valid: a topic {rule}", clip(topic)),
                );
            }
            if !seen.insert(topic) {
                self.problem(None, "topics", "duplicate_topic", format!("the topic `{}` is named twice", clip(topic)));
            }
        }
        let mut seen = HashSet::new();
        for SignalSpec { name, .. } in &spec.signals {
            if !is_word(name) {
                let message = format!("the signal `{}` is not valid: a signal {rule}", clip(name));
                self.problem(None, "signals", "invalid_signal", message);
            }
            if !seen.insert(name) {
                let message = format!("the signal `{}` is named twice", clip(name));
                self.problem(None, "signals", "duplicate_signal", message);
            }
        }
        if let Some(ms) = spec.timeout_ms.filter(|ms| !(1..=RUN_MS_MAX).contains(ms)) {
            self.problem(None, "timeout_ms", "out_of_range", format!("{ms} is not between 1 and {RUN_MS_MAX}"));
        }
        if let Some(channel) = spec.channel.as_ref().filter(|channel| !is_word(channel)) {
            self.problem(
                None,
                "channel",
                "invalid_channel",
                format!("the channel `{}` is not valid: a channel {rule}", clip(channel)),
            );
        }
    }

    fn check_nodes<'a>(&mut self, spec: &'a GraphSpec) -> HashMap<&'a str, NodeIndex> {
        let mut by_id = HashMap::with_capacity(spec.nodes.len());
        for (index, node) in spec.nodes.iter().enumerate() {
            if let Err(reason) = node.id.parse::<NodeId>() {
                self.problem(Some(&node.id), "id", "invalid_id", format!("{reason}"));
            }
            if by_id.insert(node.id.as_str(), index).is_some() {
                self.problem(
                    Some(&node.id),
                    "id",
                    "duplicate_id",
                    format!("two nodes are called `{}`", clip(&node.id)),
                );
            }
            if node.description.as_ref().is_some_and(|text| text.len() > DESCRIPTION_BYTES_MAX) {
                self.problem(
                    Some(&node.id),
                    "description",
                    "too_large",
                    format!("a description has at most {DESCRIPTION_BYTES_MAX} bytes"),
                );
            }
            self.check_ranges(node);
            self.check_delegate(node);
        }
        by_id
    }

    fn check_delegate(&mut self, node: &NodeSpec) {
        let Some(DelegateSpec { workflow, version, node: target }) = &node.delegates_to else { return };
        let names = [
            ("delegates_to.workflow", workflow.parse::<WorkflowName>().err()),
            ("delegates_to.version", version.parse::<Digest>().err()),
            ("delegates_to.node", target.parse::<NodeId>().err()),
        ];
        for (field, error) in names {
            if let Some(error) = error {
                self.problem(Some(&node.id), field, "invalid_name", error.to_string());
            }
        }
    }

    fn check_ranges(&mut self, node: &NodeSpec) {
        let (retry, limits) = (&node.retry, &node.limits);
        let scope = match node.opens {
            Some(ScopeKind::Each { concurrency, .. }) => Some(("opens.concurrency", concurrency, CONCURRENCY_MAX)),
            Some(ScopeKind::Repeat { max }) => Some(("opens.max", max, ITERATIONS_MAX)),
            None => None,
        };
        let scope = scope.map(|(field, value, most)| (field, value.into(), 1, most.into()));
        if retry.errors.len() > ERRORS_MAX {
            let message = format!("{} error codes, at most {ERRORS_MAX} are allowed", retry.errors.len());
            self.problem(Some(&node.id), "retry.errors", "too_many", message);
        }
        let errors = retry.errors.iter().take(ERRORS_MAX).flat_map(|error| {
            [
                ("retry.errors.max_attempts", error.max_attempts.into(), 1, ATTEMPTS_MAX.into()),
                ("retry.errors.initial_ms", error.initial_ms, 0, WAIT_MS_MAX),
                ("retry.errors.max_ms", error.max_ms, error.initial_ms.min(WAIT_MS_MAX), WAIT_MS_MAX),
            ]
        });
        let whole = [
            ("limits.fuel", limits.fuel, 1, FUEL_MAX),
            ("limits.timeout_ms", limits.timeout_ms, 1, TIMEOUT_MS_MAX),
            ("limits.memory_bytes", limits.memory_bytes, MEMORY_BYTES_MIN, MEMORY_BYTES_MAX),
            ("retry.max_attempts", retry.max_attempts.into(), 1, ATTEMPTS_MAX.into()),
            ("retry.initial_ms", retry.initial_ms, 0, WAIT_MS_MAX),
            ("retry.max_ms", retry.max_ms, retry.initial_ms.min(WAIT_MS_MAX), WAIT_MS_MAX),
        ];
        for (field, value, least, most) in whole.into_iter().chain(errors).chain(scope) {
            if !(least..=most).contains(&value) {
                self.problem(
                    Some(&node.id),
                    field,
                    "out_of_range",
                    format!("{value} is not between {least} and {most}"),
                );
            }
        }
        let factors =
            retry.errors.iter().take(ERRORS_MAX).map(|error| ("retry.errors.factor", error.factor, 1.0, 10.0));
        for (field, value, least, most) in
            [("retry.factor", retry.factor, 1.0, 10.0), ("retry.jitter", retry.jitter, 0.0, 1.0)]
                .into_iter()
                .chain(factors)
        {
            // Written so that a NaN is out of range.
            if !(least..=most).contains(&value) {
                self.problem(
                    Some(&node.id),
                    field,
                    "out_of_range",
                    format!("{value} is not between {least} and {most}"),
                );
            }
        }
    }

    /// Outgoing edges and sources of each node; edges with a problem are left out.
    fn check_edges(
        &mut self,
        spec: &GraphSpec,
        by_id: &HashMap<&str, NodeIndex>,
    ) -> (Vec<Vec<Outgoing>>, Vec<Vec<NodeIndex>>) {
        let mut outgoing = vec![Vec::new(); spec.nodes.len()];
        let mut sources = vec![Vec::new(); spec.nodes.len()];
        let mut seen = HashSet::new();
        for edge in &spec.edges {
            if let Some(label) = edge.label.as_ref().filter(|label| !is_word(label)) {
                self.problem(
                    Some(&edge.source),
                    "edges",
                    "invalid_label",
                    format!("`{}` is not a valid label", clip(label)),
                );
            }
            if !seen.insert((&edge.source, &edge.target, &edge.label)) {
                let message =
                    format!("two edges from `{}` to `{}` are the same", clip(&edge.source), clip(&edge.target));
                self.problem(Some(&edge.source), "edges", "duplicate_edge", message);
                continue;
            }
            let mut end = |end: &str, other: &str| {
                let index = by_id.get(end).copied();
                if index.is_none() {
                    let message = format!("an edge names `{}`, which is no node", clip(end));
                    self.problem(Some(other), "edges", "unknown_node", message);
                }
                index
            };
            if let (Some(source), Some(target)) = (end(&edge.source, &edge.target), end(&edge.target, &edge.source)) {
                if let Some(edges) = outgoing.get_mut(source) {
                    edges.push(Outgoing { target, label: edge.label.clone() });
                }
                if let Some(nodes) = sources.get_mut(target) {
                    nodes.push(source);
                }
            }
        }
        (outgoing, sources)
    }

    /// Takes away nodes that nothing leads to until none is left; what cannot be taken away is on, or behind, a cycle.
    /// Returns the nodes in an order in which every edge leads forward; incomplete when there is a cycle.
    fn check_cycles(&mut self, spec: &GraphSpec, outgoing: &[Vec<Outgoing>]) -> Vec<NodeIndex> {
        let mut incoming = vec![0usize; spec.nodes.len()];
        for target in outgoing.iter().flatten().map(|edge| edge.target) {
            if let Some(count) = incoming.get_mut(target) {
                *count += 1;
            }
        }
        let mut free: Vec<NodeIndex> = (0..spec.nodes.len()).filter(|index| incoming.get(*index) == Some(&0)).collect();
        let mut left: BTreeSet<NodeIndex> = (0..spec.nodes.len()).collect();
        let mut order = Vec::with_capacity(spec.nodes.len());
        while let Some(index) = free.pop() {
            left.remove(&index);
            order.push(index);
            for edge in outgoing.get(index).into_iter().flatten() {
                if let Some(count) = incoming.get_mut(edge.target) {
                    *count -= 1;
                    if *count == 0 {
                        free.push(edge.target);
                    }
                }
            }
        }
        // Only nodes that lead on to another stuck node can be on the cycle itself.
        let leads_on =
            |index: &NodeIndex| outgoing.get(*index).into_iter().flatten().any(|edge| left.contains(&edge.target));
        let stuck = left.iter().filter(|index| leads_on(index)).filter_map(|index| spec.nodes.get(*index));
        let stuck: Vec<&str> = stuck.map(|node| clip(&node.id)).collect();
        if !stuck.is_empty() {
            let shown = stuck.get(..10).unwrap_or(&stuck).join("`, `");
            let more = if stuck.len() > 10 { ", …" } else { "" };
            self.problem(None, "edges", "cycle", format!("the edges between `{shown}`{more} form a cycle"));
        }
        order
    }

    /// Where every node stands. `None` when that cannot be told.
    fn check_scopes(
        &mut self,
        spec: &GraphSpec,
        by_id: &HashMap<&str, NodeIndex>,
        outgoing: &[Vec<Outgoing>],
        sources: &[Vec<NodeIndex>],
        order: &[NodeIndex],
    ) -> Option<Scopes> {
        if order.len() < spec.nodes.len() {
            return None; // a cycle, which has been told
        }
        match Scopes::find(spec, by_id, outgoing, sources, order) {
            Ok(scopes) => Some(scopes),
            Err(faults) => {
                for fault in faults {
                    let id = spec.nodes.get(fault.node).map(|node| node.id.as_str());
                    self.problem(id, fault.field, fault.code, fault.message);
                }
                None
            }
        }
    }

    fn check_needs(
        &mut self,
        spec: &GraphSpec,
        by_id: &HashMap<&str, NodeIndex>,
        sources: &[Vec<NodeIndex>],
        order: &[NodeIndex],
        scopes: Option<&Scopes>,
    ) -> Vec<Vec<Need>> {
        // Where there is a cycle, what leads to what is told with it.
        let ancestors = (order.len() == spec.nodes.len()).then(|| Ancestors::of(spec.nodes.len(), sources, order));
        let mut all = Vec::with_capacity(spec.nodes.len());
        for (index, node) in spec.nodes.iter().enumerate() {
            let mut needs: Vec<Need> = Vec::with_capacity(node.needs.len());
            let mut seen = HashSet::new();
            for name in &node.needs {
                let need = if name == "input" {
                    Need::Input
                } else if let Some(found) = by_id.get(name.as_str()).copied() {
                    if ancestors.as_ref().is_some_and(|ancestors| !ancestors.contain(index, found)) {
                        let message = format!("no path leads from `{}` to this node", clip(name));
                        self.problem(Some(&node.id), "needs", "not_an_ancestor", message);
                    }
                    match scopes.map_or(Some(Need::Output(found)), |scopes| scopes.need(index, found)) {
                        Some(need) => need,
                        None => {
                            let message =
                                format!("`{}` stands in a fan-out or loop that this node is outside of", clip(name));
                            self.problem(Some(&node.id), "needs", "inside_scope", message);
                            continue;
                        }
                    }
                } else {
                    self.problem(Some(&node.id), "needs", "unknown_node", format!("`{}` is no node", clip(name)));
                    continue;
                };
                if !seen.insert(need) {
                    let message = format!("`{}` is needed twice", clip(name));
                    self.problem(Some(&node.id), "needs", "duplicate_need", message);
                }
                needs.push(need);
            }
            all.push(needs);
        }
        all
    }

    fn check_output(
        &mut self,
        spec: &GraphSpec,
        by_id: &HashMap<&str, NodeIndex>,
        scopes: Option<&Scopes>,
    ) -> Option<NodeIndex> {
        let name = spec.output.as_ref()?;
        let found = by_id.get(name.as_str()).copied();
        let Some(index) = found else {
            self.problem(None, "output", "unknown_node", format!("`{}` is no node", clip(name)));
            return None;
        };
        if scopes.is_some_and(|scopes| scopes.of_node.get(index) != Some(&OUTERMOST)) {
            let message = format!("`{}` stands in a fan-out or loop, so it has no single output", clip(name));
            self.problem(None, "output", "inside_scope", message);
        }
        found
    }
}

/// A graph out of a spec that has no problems.
fn assemble(
    spec: GraphSpec,
    needs: Vec<Vec<Need>>,
    edges: &[Vec<Outgoing>],
    scopes: &Scopes,
    output: Option<NodeIndex>,
) -> Result<Graph, Vec<Problem>> {
    // Everything here was checked before; what it could still complain about is told rather than assumed.
    let impossible = |what: &str| {
        let message = format!("{what} could not be understood");
        vec![Problem { node: None, field: String::new(), code: "invalid_graph".to_owned(), message, hint: None }]
    };
    let mut nodes = Vec::with_capacity(spec.nodes.len());
    for (index, (node, needs)) in spec.nodes.iter().zip(needs).enumerate() {
        let scope = scopes.of_node.get(index).copied().unwrap_or(OUTERMOST);
        let place = scopes.scopes.get(scope).and_then(|scope| scope.nodes.binary_search(&index).ok());
        let edges = edges.get(index).map(Vec::as_slice).unwrap_or_default();
        let opens = scopes.opened_by.get(&index).copied();
        // Edges into the node that closes this scope, and from a node into the scope that it opens, belong to the scope
        // and not to what happens around it.
        let outgoing = match opens.and_then(|scope| scopes.inner(scope)) {
            Some(inner) => vec![Outgoing { target: inner.closer, label: None }],
            None => edges.iter().filter(|edge| scopes.of_node.get(edge.target) == Some(&scope)).cloned().collect(),
        };
        let delegate = |delegate: &DelegateSpec| {
            let (workflow, version) = (delegate.workflow.parse().ok()?, delegate.version.parse().ok()?);
            Some(Delegate { workflow, version, node: delegate.node.parse().ok()? })
        };
        nodes.push(Node {
            id: node.id.parse().map_err(|_| impossible("an id"))?,
            needs,
            retry: node.retry.clone(),
            limits: node.limits,
            scope,
            place: place.ok_or_else(|| impossible("a scope"))?,
            opens,
            closes: None,
            delegates_to: node.delegates_to.as_ref().and_then(delegate),
            outgoing,
            incoming: 0,
            entries: 0,
            labels: edges.iter().filter_map(|edge| edge.label.clone()).collect(),
        });
    }
    for index in 0..nodes.len() {
        let (opens, targets) = match nodes.get(index) {
            Some(node) => (node.opens, node.outgoing.iter().map(|edge| edge.target).collect::<Vec<_>>()),
            None => continue,
        };
        for target in targets {
            if let Some(target) = nodes.get_mut(target) {
                target.incoming += 1;
            }
        }
        let Some(opens) = opens else { continue };
        for entered in edges.get(index).into_iter().flatten() {
            if let Some(entered) = nodes.get_mut(entered.target) {
                entered.incoming += 1;
                entered.entries += 1;
            }
        }
        if let Some(closer) = scopes.inner(opens).and_then(|inner| nodes.get_mut(inner.closer)) {
            closer.closes = Some(opens);
        }
    }
    let by_id = nodes.iter().enumerate().map(|(index, node)| (node.id.clone(), index)).collect();
    Ok(Graph { nodes, scopes: scopes.scopes.clone(), by_id, output, spec })
}

/// The ancestors of every node, a bit for each: 12.5 MB for the largest graph, and one pass over its edges.
struct Ancestors {
    words: usize,
    bits: Vec<u64>,
}

impl Ancestors {
    fn of(nodes: usize, sources: &[Vec<NodeIndex>], order: &[NodeIndex]) -> Self {
        let words = nodes.div_ceil(64);
        let mut this = Self { words, bits: vec![0; words * nodes] };
        for index in order.iter().copied() {
            for source in sources.get(index).into_iter().flatten().copied() {
                // Ancestors of the source first: they come before it in the order, so they are complete.
                for word in 0..words {
                    let inherited = this.bits.get(source * words + word).copied().unwrap_or(0);
                    if let Some(bits) = this.bits.get_mut(index * words + word) {
                        *bits |= inherited;
                    }
                }
                if let Some(bits) = this.bits.get_mut(index * words + source / 64) {
                    *bits |= 1 << (source % 64);
                }
            }
        }
        this
    }

    fn contain(&self, index: NodeIndex, ancestor: NodeIndex) -> bool {
        self.bits.get(index * self.words + ancestor / 64).is_some_and(|bits| bits >> (ancestor % 64) & 1 == 1)
    }
}

/// The start of a name, for a message.
fn clip(text: &str) -> &str {
    text.get(..text.floor_char_boundary(80)).unwrap_or(text)
}

#[cfg(test)]
pub(crate) mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    pub(crate) const LIMITS: Limits = Limits { fuel: 1_000_000, timeout_ms: 1_000, memory_bytes: 1 << 24 };

    /// A graph out of lines like `a -> b`, `a -yes-> b`, `c`, `each m 2 cancel`, `repeat l 5` and `j closes m`; every
    /// node needs its sources.
    pub(crate) fn spec(lines: &str) -> GraphSpec {
        let mut spec = GraphSpec { topics: vec!["update".into()], ..GraphSpec::default() };
        let node = |spec: &mut GraphSpec, id: &str| {
            if !spec.nodes.iter().any(|node| node.id == id) {
                let retry = RetryPolicy { jitter: 0.0, ..RetryPolicy::default() };
                spec.nodes.push(NodeSpec { retry, ..NodeSpec::new(id, LIMITS) });
            }
        };
        for line in lines.split(['\n', ';']).map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [id] => node(&mut spec, id),
                ["each", id, concurrency, on_failure] => {
                    node(&mut spec, id);
                    let on_failure = match on_failure {
                        "cancel" => ItemFailure::Cancel,
                        "finish" => ItemFailure::Finish,
                        _ => ItemFailure::Collect,
                    };
                    let kind = ScopeKind::Each { concurrency: concurrency.parse().unwrap(), on_failure };
                    spec.nodes.iter_mut().find(|node| node.id == id).unwrap().opens = Some(kind);
                }
                ["repeat", id, max] => {
                    node(&mut spec, id);
                    let kind = ScopeKind::Repeat { max: max.parse().unwrap() };
                    spec.nodes.iter_mut().find(|node| node.id == id).unwrap().opens = Some(kind);
                }
                [id, "closes", opener] => {
                    node(&mut spec, id);
                    spec.nodes.iter_mut().find(|node| node.id == id).unwrap().closes = Some(opener.into());
                }
                [source, arrow, target] => {
                    node(&mut spec, source);
                    node(&mut spec, target);
                    let label = arrow.trim_matches(['-', '>']);
                    let label = (!label.is_empty()).then(|| label.to_owned());
                    spec.edges.push(EdgeSpec { source: source.into(), target: target.into(), label });
                    let needs = &mut spec.nodes.iter_mut().find(|node| node.id == target).unwrap().needs;
                    if !needs.iter().any(|need| need == source) {
                        needs.push(source.into());
                    }
                }
                _ => panic!("not a line of a graph: {line}"),
            }
        }
        spec
    }

    fn check(spec: GraphSpec, expected: Expect) {
        let shown = match Graph::check(spec) {
            Ok(graph) => format!("{} nodes\n", graph.nodes().len()),
            Err(problems) => problems
                .iter()
                .map(|p| format!("{} {} {}: {}\n", p.node.as_deref().unwrap_or("-"), p.field, p.code, p.message))
                .collect(),
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn a_diamond_is_fine() {
        check(
            spec("a -> b; a -> c; b -> d; c -> d"),
            expect![[r#"
            4 nodes
        "#]],
        );
    }

    #[test]
    fn a_cycle_names_its_nodes_and_not_what_hangs_behind_it() {
        check(
            spec("r -> a; a -> b; b -> c; c -> a; c -> z"),
            expect![[r#"
            - edges cycle: the edges between `a`, `b`, `c` form a cycle
        "#]],
        );
        check(
            spec("a -> a"),
            expect![[r#"
            - edges cycle: the edges between `a` form a cycle
        "#]],
        );
    }

    #[test]
    fn every_problem_is_found_in_one_go() {
        let mut bad = spec("a -> b; a -> b; c");
        bad.nodes.push(bad.nodes[2].clone());
        bad.nodes[0].id = "1 2".into();
        bad.nodes[1].needs = vec!["c".into(), "nobody".into(), "input".into(), "input".into()];
        bad.nodes[1].retry = RetryPolicy {
            max_attempts: 0,
            initial_ms: 10,
            factor: f64::NAN,
            max_ms: 5,
            jitter: 2.0,
            ..RetryPolicy::default()
        };
        bad.nodes[2].limits = Limits { fuel: 0, timeout_ms: u64::MAX, memory_bytes: 1 };
        bad.output = Some("nobody".into());
        bad.topics.extend(["update".into(), "a b".into()]);
        bad.channel = Some(String::new());
        check(
            bad,
            expect![[r#"
            - topics duplicate_topic: the topic `update` is named twice
            - topics invalid_topic: the topic `a b` is not valid: a topic consists of 1 to 64 characters out of A-Z, a-z, 0-9, _, . and -
            - channel invalid_channel: the channel `` is not valid: a channel consists of 1 to 64 characters out of A-Z, a-z, 0-9, _, . and -
            1 2 id invalid_id: a node id consists of A-Z, a-z, 0-9, _ and - and starts with a letter or _
            b retry.max_attempts out_of_range: 0 is not between 1 and 100
            b retry.max_ms out_of_range: 5 is not between 10 and 86400000
            b retry.factor out_of_range: NaN is not between 1 and 10
            b retry.jitter out_of_range: 2 is not between 0 and 1
            c limits.fuel out_of_range: 0 is not between 1 and 100000000000
            c limits.timeout_ms out_of_range: 18446744073709551615 is not between 1 and 3600000
            c limits.memory_bytes out_of_range: 1 is not between 1048576 and 268435456
            c id duplicate_id: two nodes are called `c`
            b edges unknown_node: an edge names `a`, which is no node
            a edges duplicate_edge: two edges from `a` to `b` are the same
            b needs not_an_ancestor: no path leads from `c` to this node
            b needs unknown_node: `nobody` is no node
            b needs duplicate_need: `input` is needed twice
            - output unknown_node: `nobody` is no node
        "#]],
        );
    }

    #[test]
    fn scopes_nest_and_needs_look_outward() {
        let lines =
            "each m 2 cancel\nm -> a\nrepeat l 3\na -> l\nl -> b\nb -> lj\nlj closes l\nlj -> j\nj closes m\nj -> z";
        let mut nested = spec(lines);
        let needs = |id: &str| match id {
            "b" => vec!["l", "a", "m"],
            "lj" => vec!["l", "b", "m"],
            "j" => vec!["a", "lj", "m", "l"],
            "z" => vec!["m", "j"],
            _ => vec![],
        };
        for node in &mut nested.nodes {
            node.needs = needs(&node.id).into_iter().map(str::to_owned).collect();
        }
        let graph = Graph::check(nested).unwrap();
        let shown = graph.nodes().iter().map(|node| {
            let name = |index: NodeIndex| graph.nodes()[index].id.to_string();
            let needs = node.needs.iter().map(|need| {
                format!("{:?}", need).replace(
                    &need.node().map_or(String::new(), |n| n.to_string()),
                    &need.node().map_or(String::new(), name),
                )
            });
            format!("{} in {}: {}\n", node.id, node.scope, needs.collect::<Vec<_>>().join(" "))
        });
        expect![[r#"
            m in 0: 
            a in 1: 
            l in 1: 
            b in 2: Item(l) Output(a) Item(m)
            lj in 1: Item(l) LastOutput(b) Item(m)
            j in 0: EachOutput(a) EachOutput(lj) Output(m) EachOutput(l)
            z in 0: Output(m) Output(j)
        "#]]
        .assert_eq(&shown.collect::<String>());
    }

    #[test]
    fn what_does_not_nest_is_refused() {
        check(
            spec("each m 1 cancel\nm -> a"),
            expect![[r#"
            m opens not_closed: no node closes what this one opens
        "#]],
        );
        check(
            spec("a -> j\nj closes a"),
            expect![[r#"
            j closes opens_nothing: `a` opens nothing, or no path leads from it to this node
        "#]],
        );
        check(
            spec("each m 1 cancel\nm -> a\na -> j\nj closes m\na -> z\nx -> a"),
            expect![[r#"
            a edges crosses_scopes: edges lead here out of different fan-outs or loops
        "#]],
        );
        check(
            spec("each m 1 cancel\nm -> j\nj closes m"),
            expect![[r#"
            j edges empty_scope: an edge leads here straight from `m`, past the nodes between
        "#]],
        );
        check(
            spec("each m 1 cancel\nm -> a\na -> j\na -> k\nj closes m\nk closes m"),
            expect![[r#"
            j closes closed_twice: `m` is closed by another node too
        "#]],
        );
        check(
            spec("each m 0 cancel\nm -x-> a\na -> j\nj closes m\nrepeat l 2000000\nl -> b\nb -> k\nk closes l"),
            expect![[r#"
                m opens.concurrency out_of_range: 0 is not between 1 and 1000
                l opens.max out_of_range: 2000000 is not between 1 and 1000000
                m edges label_into_scope: the edges out of a node that opens a scope carry no labels
            "#]],
        );
        check(
            spec("each m 1 cancel\neach n 1 cancel\nm -> n\nn -> a\na -> j\nj closes m\nj -> k\nk closes n"),
            expect![[r#"
                j closes not_between: the edges to this node do not come from between it and `m`
                m opens not_closed: no node closes what this one opens
            "#]],
        );
        let mut inside = spec("each m 1 cancel\nm -> a\na -> j\nj closes m\nj -> z");
        inside.nodes.last_mut().unwrap().needs = vec!["a".into()];
        inside.output = Some("a".into());
        inside.nodes[0].delegates_to =
            Some(DelegateSpec { workflow: "..".into(), version: "1".into(), node: "input".into() });
        check(
            inside,
            expect![[r#"
            m delegates_to.workflow invalid_name: a workflow name starts with a letter or a digit
            m delegates_to.version invalid_name: a digest has 64 digits out of 0-9 and a-f
            m delegates_to.node invalid_name: a node id is not `input`, which names the run's input
            z needs inside_scope: `a` stands in a fan-out or loop that this node is outside of
            - output inside_scope: `a` stands in a fan-out or loop, so it has no single output
        "#]],
        );
        let deep = (0..9).map(|n| format!("each m{n} 1 cancel\nm{n} -> m{}\n", n + 1));
        let closed = (0..9).rev().map(|n| {
            format!("{} -> j{n}\nj{n} closes m{n}\n", if n == 8 { "m9".to_owned() } else { format!("j{}", n + 1) })
        });
        check(
            spec(&deep.chain(closed).collect::<String>()),
            expect![[r#"
            m8 opens too_deep: fan-outs and loops stand at most 8 deep in each other
        "#]],
        );
    }

    #[test]
    fn a_list_of_problems_ends_somewhere() {
        let mut bad = spec("a");
        bad.edges = (0..1_000).map(|n| EdgeSpec { source: "a".into(), target: format!("n{n}"), label: None }).collect();
        let problems = Graph::check(bad).unwrap_err();
        assert_eq!(problems.len(), PROBLEMS_MAX + 1);
        assert_eq!(problems[PROBLEMS_MAX].message, "800 more problems are not listed");
    }

    #[test]
    fn the_largest_graph_is_checked_and_a_larger_one_refused() {
        let mut chain = spec("n0");
        let first = chain.nodes[0].clone();
        chain.nodes = (0..NODES_MAX).map(|n| NodeSpec { id: format!("n{n}"), ..first.clone() }).collect();
        chain.edges = (1..NODES_MAX)
            .map(|n| EdgeSpec { source: format!("n{}", n - 1), target: format!("n{n}"), label: None })
            .collect();
        assert!(Graph::check(chain.clone()).is_ok());
        chain.nodes.push(NodeSpec { id: "more".into(), ..first });
        check(
            chain,
            expect![[r#"
            - nodes too_many: 10001 nodes, at most 10000 are allowed
        "#]],
        );
    }
}
