//! How the nodes of a document hang together: who comes before whom, and what runs several times.
//!
//! Owns: the rules about ids, edges, labels, and about what lies between a `map` or `loop` and its `join`.
//! Does not: know expressions, or what nodes do besides choosing labels and opening and closing scopes.
//! Invariant: every pass is linear in nodes and edges, but for [`Ancestors`], which takes a 64th of their product. What
//! hangs on a part that is already wrong is not told as well: an edge with an unknown end counts as no edge, and nothing
//! is said about scopes as long as there is a cycle.

use std::collections::{HashMap, HashSet};

use stepwell_core::ids::is_word;
use stepwell_core::scope::SCOPE_DEPTH_MAX;
use stepwell_document::{Branch, Kind};

use crate::problems::{Fault, Place, Problems, clip, did_you_mean, listed};
use crate::read::{Draft, DraftNode};

/// Nodes of a cycle that are named in its problem.
const CYCLE_SHOWN_MAX: usize = 10;

/// The place of a node in its document.
pub(crate) type NodeIndex = usize;

/// An edge whose ends are known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) source: NodeIndex,
    pub(crate) target: NodeIndex,
    /// The place of the edge in its document.
    pub(crate) edge: usize,
}

/// How the nodes hang together.
#[derive(Debug)]
pub(crate) struct Shape<'d> {
    ids: HashMap<&'d str, NodeIndex>,
    /// Edges that end at each node.
    incoming: Vec<Vec<Link>>,
    /// `None` where there is a cycle.
    order: Option<Order>,
}

/// What is known of a graph without cycles.
#[derive(Debug)]
struct Order {
    ancestors: Ancestors,
    scopes: Scopes,
}

impl<'d> Shape<'d> {
    /// Finds out about a document's shape, and tells what is wrong with it.
    pub(crate) fn of(draft: &'d Draft, problems: &mut Problems) -> Self {
        let ids = check_ids(draft, problems);
        let links = check_edges(draft, &ids, problems);
        check_labels(draft, &links, problems);
        let mut incoming = vec![Vec::new(); draft.nodes.len()];
        let mut outgoing = vec![Vec::new(); draft.nodes.len()];
        for link in &links {
            push(&mut incoming, link.target, *link);
            push(&mut outgoing, link.source, *link);
        }
        let closers = Closers::of(draft, &ids, problems);
        let order = match sort(&outgoing, &incoming) {
            Ok(order) => {
                let ancestors = Ancestors::of(&incoming, &order);
                let scopes = Scopes::of(draft, closers, &incoming, &order, &ancestors, problems);
                Some(Order { ancestors, scopes })
            }
            Err(cycle) => {
                problems.add(cycle_fault(draft, &cycle));
                None
            }
        };
        Self { ids, incoming, order }
    }

    /// The node of an id.
    pub(crate) fn find(&self, id: &str) -> Option<NodeIndex> {
        self.ids.get(id).copied()
    }

    /// Edges that end at a node.
    pub(crate) fn incoming(&self, node: NodeIndex) -> &[Link] {
        self.incoming.get(node).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether it is known what comes before what.
    pub(crate) fn is_ordered(&self) -> bool {
        self.order.is_some()
    }

    /// Whether nodes can be told to stand in scopes or outside of them.
    pub(crate) fn has_scopes(&self) -> bool {
        self.order.as_ref().is_some_and(|order| order.scopes.are_sound)
    }

    /// Whether a path leads from the one to the other.
    pub(crate) fn is_ancestor(&self, ancestor: NodeIndex, node: NodeIndex) -> bool {
        self.order.as_ref().is_some_and(|order| order.ancestors.contain(node, ancestor))
    }

    /// All ancestors of a node that it can see, in the document's order.
    pub(crate) fn visible(&self, node: NodeIndex) -> impl Iterator<Item = NodeIndex> + '_ {
        let ancestors = self.order.as_ref().into_iter().flat_map(move |order| order.ancestors.of_node(node));
        ancestors.filter(move |ancestor| self.is_visible(*ancestor, node))
    }

    /// Whether an ancestor stands in the same scope or in one around it, or in the one that the node closes.
    pub(crate) fn is_visible(&self, ancestor: NodeIndex, node: NodeIndex) -> bool {
        let Some(Order { scopes, .. }) = &self.order else { return false };
        let stands = scopes.behind(ancestor, false);
        scopes.is_within(scopes.of_node(node), stands) || (stands.is_some() && stands == scopes.closed_by(node))
    }

    /// The `map` or `loop` whose item or state a node sees.
    pub(crate) fn item_of(&self, node: NodeIndex) -> Option<NodeIndex> {
        self.order.as_ref().and_then(|order| order.scopes.of_node(node))
    }

    /// The `map`s and `loop`s that a node stands in, outermost first.
    pub(crate) fn scopes(&self, node: NodeIndex) -> Vec<NodeIndex> {
        let Some(Order { scopes, .. }) = &self.order else { return Vec::new() };
        let mut found = Vec::new();
        let mut next = scopes.of_node(node);
        while let Some(opener) = next.filter(|_| found.len() < SCOPE_DEPTH_MAX) {
            found.push(opener);
            next = scopes.of_node(opener);
        }
        found.reverse();
        found
    }

    /// Whether a node runs once in a run, and its output is there behind everything that runs several times.
    pub(crate) fn is_outermost(&self, node: NodeIndex) -> bool {
        self.order.as_ref().is_none_or(|order| order.scopes.behind(node, false).is_none())
    }

    /// The join of a `map` or `loop`.
    pub(crate) fn join_of(&self, opener: NodeIndex) -> Option<NodeIndex> {
        self.order.as_ref().and_then(|order| order.scopes.join_of(opener))
    }

    /// The `map` or `loop` that a join closes.
    pub(crate) fn closed_by(&self, join: NodeIndex) -> Option<NodeIndex> {
        self.order.as_ref().and_then(|order| order.scopes.closed_by(join))
    }

    /// The join behind which the output of a node can be seen by another one that stands outside.
    pub(crate) fn way_out(&self, inside: NodeIndex, outside: NodeIndex) -> Option<NodeIndex> {
        let Order { scopes, .. } = self.order.as_ref()?;
        let around = scopes.of_node(outside);
        let mut opener = scopes.behind(inside, false)?;
        while let Some(next) = scopes.of_node(opener).filter(|next| !scopes.is_within(around, Some(*next))) {
            opener = next;
        }
        scopes.join_of(opener)
    }
}

fn push<T>(lists: &mut [Vec<T>], at: usize, item: T) {
    if let Some(list) = lists.get_mut(at) {
        list.push(item);
    }
}

/// What a node is called in a message.
pub(crate) fn name(draft: &Draft, node: NodeIndex) -> &str {
    draft.nodes.get(node).and_then(|node| node.id.as_deref()).map_or("?", clip)
}

fn check_ids<'d>(draft: &'d Draft, problems: &mut Problems) -> HashMap<&'d str, NodeIndex> {
    let mut ids = HashMap::with_capacity(draft.nodes.len());
    for (index, node) in draft.nodes.iter().enumerate() {
        let Some(id) = node.id.as_deref() else { continue };
        match ids.get(id) {
            None => drop(ids.insert(id, index)),
            Some(first) => {
                let message = format!("`nodes[{first}]` is called `{}` as well", clip(id));
                problems.add(Fault::new(Place::Node(index), "id", "duplicate_id", message));
            }
        }
    }
    ids
}

fn check_edges(draft: &Draft, ids: &HashMap<&str, NodeIndex>, problems: &mut Problems) -> Vec<Link> {
    let mut links = Vec::with_capacity(draft.edges.len());
    let mut seen = HashSet::with_capacity(draft.edges.len());
    for (index, edge) in draft.edges.iter().enumerate() {
        let mut end = |field: &str, id: &Option<String>| {
            let id = id.as_deref()?;
            let node = ids.get(id).copied();
            if node.is_none() {
                let message = format!("`{}` is no node", clip(id));
                let ids = draft.nodes.iter().filter_map(|node| node.id.as_deref());
                let hint = problems.if_kept(|| did_you_mean(id, ids));
                problems.add(Fault::new(Place::Edge(index), field, "unknown_node", message).maybe_hint(hint));
            }
            node
        };
        let (source, target) = (end("source", &edge.source), end("target", &edge.target));
        let (Some(source), Some(target)) = (source, target) else { continue };
        if !seen.insert((source, target, edge.label.as_deref())) {
            let (from, to) = (name(draft, source), name(draft, target));
            let message = format!("there is an edge from `{from}` to `{to}` already");
            problems.add(Fault::new(Place::Edge(index), "", "duplicate_edge", message));
            continue;
        }
        links.push(Link { source, target, edge: index });
    }
    links
}

/// Labels connect the ways that a branch names with the edges that are those ways.
fn check_labels(draft: &Draft, links: &[Link], problems: &mut Problems) {
    // The labels of each branch, as far as they are known.
    let mut ways: HashMap<NodeIndex, HashSet<&str>> = HashMap::new();
    for (index, node) in draft.nodes.iter().enumerate() {
        if let Some(Kind::Branch(branch)) =
            node.kind.as_ref().filter(|_| node.is_sound("cases") && node.is_sound("else"))
        {
            ways.insert(index, labels(branch).map(|(_, label)| label).collect());
        }
    }
    let mut used: HashSet<(NodeIndex, &str)> = HashSet::new();
    for link in links {
        let Some(label) = draft.edges.get(link.edge).and_then(|edge| edge.label.as_deref()) else { continue };
        used.insert((link.source, label));
        if !is_word(label) {
            continue; // which is told
        }
        let Some(node) = draft.nodes.get(link.source) else { continue };
        let source = name(draft, link.source);
        match &node.kind {
            None => {}
            Some(Kind::Branch(branch)) if ways.get(&link.source).is_some_and(|ways| !ways.contains(label)) => {
                let message = format!("the branch `{source}` never chooses `{}`", clip(label));
                let labels = || labels(branch).map(|(_, label)| label);
                let hint = problems.if_kept(|| {
                    did_you_mean(label, labels()).or_else(|| Some(format!("its labels are {}", listed(labels()))))
                });
                problems.add(Fault::new(Place::Edge(link.edge), "label", "unknown_label", message).maybe_hint(hint));
            }
            Some(Kind::Branch(_)) => {}
            Some(kind) => {
                let message = format!("`{source}` is of kind `{}`: only a branch chooses among labels", kind.name());
                let hint = "leave the label out, or put a branch in between";
                problems.add(Fault::new(Place::Edge(link.edge), "label", "label_without_branch", message).hint(hint));
            }
        }
    }
    for (index, node) in draft.nodes.iter().enumerate() {
        let Some(Kind::Branch(branch)) = &node.kind else { continue };
        let mut told = HashSet::new();
        for (case, label) in labels(branch).filter(|_| ways.contains_key(&index)) {
            if !used.contains(&(index, label)) && told.insert(label) {
                let field = case.map_or("else".to_owned(), |case| format!("cases[{case}].label"));
                let message = format!("no edge out of this branch has the label `{}`", clip(label));
                let hint = "add an edge with it: without one the run would silently go no further";
                problems.add(Fault::new(Place::Node(index), field, "unused_label", message).hint(hint));
            }
        }
    }
}

/// The labels of a branch, with the numbers of their cases.
fn labels(branch: &Branch) -> impl Iterator<Item = (Option<usize>, &str)> {
    let cases = branch.cases.iter().enumerate().map(|(case, way)| (Some(case), way.label.as_str()));
    cases.chain(branch.otherwise.as_deref().map(|label| (None, label)))
}

/// The nodes in an order in which every edge leads forward, or the nodes of a cycle.
fn sort(outgoing: &[Vec<Link>], incoming: &[Vec<Link>]) -> Result<Vec<NodeIndex>, Vec<NodeIndex>> {
    let mut open: Vec<usize> = incoming.iter().map(Vec::len).collect();
    let mut free: Vec<NodeIndex> = (0..open.len()).rev().filter(|node| open.get(*node) == Some(&0)).collect();
    let mut order = Vec::with_capacity(open.len());
    while let Some(node) = free.pop() {
        order.push(node);
        for link in outgoing.get(node).into_iter().flatten() {
            if let Some(count) = open.get_mut(link.target) {
                *count -= 1;
                if *count == 0 {
                    free.push(link.target);
                }
            }
        }
    }
    if order.len() == open.len() {
        return Ok(order);
    }
    // Every node that is left has an edge from one that is left. Going back along those ends up in a circle.
    let is_left = |node: NodeIndex| open.get(node).is_some_and(|count| *count > 0);
    let mut way = Vec::new();
    let mut passed: HashMap<NodeIndex, usize> = HashMap::new();
    let mut next = (0..open.len()).find(|node| is_left(*node));
    while let Some(node) = next {
        if let Some(begin) = passed.insert(node, way.len()) {
            way.drain(..begin);
            break;
        }
        way.push(node);
        next = incoming.get(node).into_iter().flatten().map(|link| link.source).find(|source| is_left(*source));
    }
    way.reverse();
    Err(way)
}

fn cycle_fault(draft: &Draft, cycle: &[NodeIndex]) -> Fault {
    // Begin with the node that comes first in the document.
    let first = cycle.iter().enumerate().min_by_key(|(_, node)| **node).map_or(0, |(place, _)| place);
    let mut names: Vec<&str> =
        cycle.iter().cycle().skip(first).take(cycle.len()).map(|node| name(draft, *node)).collect();
    let hidden = names.len().saturating_sub(CYCLE_SHOWN_MAX);
    let closing = names.first().copied().unwrap_or_default();
    names.truncate(CYCLE_SHOWN_MAX);
    if hidden > 0 {
        names.push("…");
    }
    names.push(closing);
    let message = format!("edges lead in a circle: `{}`", names.join("` → `"));
    Fault::new(Place::Document, "edges", "cycle", message)
        .hint("what is to run again and again stands between a loop and its join")
}

/// The ancestors of every node, a bit for each: 12.5 MB for the largest graph.
#[derive(Debug)]
struct Ancestors {
    /// Words for each node.
    words: usize,
    bits: Vec<u64>,
}

impl Ancestors {
    fn of(incoming: &[Vec<Link>], order: &[NodeIndex]) -> Self {
        let words = incoming.len().div_ceil(64);
        let mut this = Self { words, bits: vec![0; words * incoming.len()] };
        let mut row = vec![0; words];
        for node in order.iter().copied() {
            row.fill(0);
            for Link { source, .. } in incoming.get(node).into_iter().flatten() {
                // A source's own ancestors are complete: it comes before in the order.
                row.iter_mut().zip(this.row(*source)).for_each(|(mine, its)| *mine |= its);
                if let Some(word) = row.get_mut(source / 64) {
                    *word |= 1 << (source % 64);
                }
            }
            if let Some(place) = this.bits.get_mut(node * words..(node + 1) * words) {
                place.copy_from_slice(&row);
            }
        }
        this
    }

    fn row(&self, node: NodeIndex) -> &[u64] {
        self.bits.get(node * self.words..(node + 1) * self.words).unwrap_or_default()
    }

    fn contain(&self, node: NodeIndex, ancestor: NodeIndex) -> bool {
        self.row(node).get(ancestor / 64).is_some_and(|word| word >> (ancestor % 64) & 1 == 1)
    }

    fn of_node(&self, node: NodeIndex) -> impl Iterator<Item = NodeIndex> + '_ {
        self.row(node).iter().enumerate().flat_map(|(place, word)| {
            let set = std::iter::successors(Some(*word), |word| Some(word & word.wrapping_sub(1)));
            set.take_while(|word| *word != 0).map(move |word| place * 64 + word.trailing_zeros() as usize)
        })
    }
}

/// Which join closes what.
#[derive(Debug)]
struct Closers {
    join_of: HashMap<NodeIndex, NodeIndex>,
    opener_of: HashMap<NodeIndex, NodeIndex>,
    are_sound: bool,
}

fn opens(node: &DraftNode) -> bool {
    matches!(node.kind, Some(Kind::Map(_) | Kind::Loop(_)))
}

impl Closers {
    /// Matches joins with what they name.
    fn of(draft: &Draft, ids: &HashMap<&str, NodeIndex>, problems: &mut Problems) -> Self {
        let mut this = Self { join_of: HashMap::new(), opener_of: HashMap::new(), are_sound: true };
        // Whether some join, as far as can be told, belongs to an opener that has none.
        let mut is_astray = false;
        for (index, node) in draft.nodes.iter().enumerate() {
            is_astray |= node.kind.is_none();
            let Some(Kind::Join(join)) = &node.kind else { continue };
            if !node.is_sound("of") {
                is_astray = true;
                continue;
            }
            let fault = |code, message: String| Fault::new(Place::Node(index), "of", code, message);
            match ids.get(join.of.as_str()).copied() {
                None => {
                    is_astray = true;
                    let openers = draft.nodes.iter().filter(|node| opens(node)).filter_map(|node| node.id.as_deref());
                    let hint = problems.if_kept(|| did_you_mean(&join.of, openers));
                    problems.add(fault("unknown_node", format!("`{}` is no node", clip(&join.of))).maybe_hint(hint));
                }
                Some(opener) => match draft.nodes.get(opener).map(|node| (opens(node), &node.kind)) {
                    Some((true, _)) => match this.join_of.get(&opener) {
                        None => {
                            this.join_of.insert(opener, index);
                            this.opener_of.insert(index, opener);
                        }
                        Some(first) => {
                            let message =
                                format!("`{}` is closed by `{}` already", clip(&join.of), name(draft, *first));
                            problems.add(fault("duplicate_join", message));
                            this.are_sound = false;
                        }
                    },
                    Some((false, Some(kind))) => {
                        is_astray = true;
                        let message =
                            format!("`{}` is of kind `{}`: a join closes a map or a loop", clip(&join.of), kind.name());
                        problems.add(fault("not_a_scope", message));
                    }
                    _ => is_astray = true,
                },
            }
        }
        this.are_sound &= !is_astray;
        for (index, node) in draft.nodes.iter().enumerate().filter(|(_, node)| opens(node)) {
            if this.join_of.contains_key(&index) {
                continue;
            }
            this.are_sound = false;
            if is_astray {
                continue; // it may be meant by what is told about the join
            }
            let (code, kind) = if matches!(node.kind, Some(Kind::Map(_))) {
                ("unmatched_map", "map")
            } else {
                ("unmatched_loop", "loop")
            };
            let id = name(draft, index);
            let hint = format!("add a node of kind `join` with `\"of\": \"{id}\"` behind the nodes that belong to it");
            problems.add(Fault::new(Place::Node(index), "", code, format!("no join closes this {kind}")).hint(hint));
        }
        this
    }

    /// Takes a `map` or `loop` for one that opens nothing, and its join for one that closes nothing.
    fn part(&mut self, opener: NodeIndex) {
        if let Some(join) = self.join_of.remove(&opener) {
            self.opener_of.remove(&join);
        }
    }
}

/// Where each node stands.
#[derive(Debug)]
struct Scopes {
    closers: Closers,
    /// The innermost `map` or `loop` that each node stands in. A `map`'s join stands outside, a `loop`'s join inside.
    within: Vec<Option<NodeIndex>>,
    /// How many scopes a node stands in.
    depth: Vec<usize>,
    /// Whether all of this can be relied on.
    are_sound: bool,
}

impl Scopes {
    fn of(
        draft: &Draft,
        closers: Closers,
        incoming: &[Vec<Link>],
        order: &[NodeIndex],
        ancestors: &Ancestors,
        problems: &mut Problems,
    ) -> Self {
        let are_sound = closers.are_sound;
        let count = draft.nodes.len();
        let mut this = Self { closers, within: vec![None; count], depth: vec![0; count], are_sound };
        let before = problems.count();
        this.match_joins(draft, ancestors, problems);
        for node in order.iter().copied() {
            let links = incoming.get(node).map(Vec::as_slice).unwrap_or_default();
            let within = match this.closers.opener_of.get(&node).copied() {
                Some(opener) => this.check_join(draft, opener, links, problems),
                None => this.check_node(draft, node, links, ancestors, problems),
            };
            this.place(node, within, problems);
        }
        this.are_sound &= problems.count() == before;
        this
    }

    /// A join that cannot be reached from what it closes closes nothing.
    fn match_joins(&mut self, draft: &Draft, ancestors: &Ancestors, problems: &mut Problems) {
        let mut apart: Vec<_> = self.closers.opener_of.iter().map(|(join, opener)| (*join, *opener)).collect();
        apart.retain(|(join, opener)| !ancestors.contain(*join, *opener));
        apart.sort_unstable();
        for (join, opener) in apart {
            let message = format!("no path leads from `{}` to this join", name(draft, opener));
            problems.add(Fault::new(Place::Node(join), "of", "unmatched_join", message));
            self.closers.part(opener);
        }
    }

    /// All edges to a join come out of what it closes. Returns where the join stands.
    fn check_join(
        &self,
        draft: &Draft,
        opener: NodeIndex,
        links: &[Link],
        problems: &mut Problems,
    ) -> Option<NodeIndex> {
        for link in links {
            if link.source == opener {
                let message = format!("the edge leads from `{}` straight to its join", name(draft, opener));
                let hint = "at least one node stands between them, and nothing passes it by";
                problems.add(Fault::new(Place::Edge(link.edge), "", "empty_scope", message).hint(hint));
                continue;
            }
            let behind = self.behind(link.source, true);
            if behind != Some(opener) {
                problems.add(self.crossing(draft, link, behind, Some(opener)));
            }
        }
        let is_loop = draft.nodes.get(opener).is_some_and(|node| matches!(node.kind, Some(Kind::Loop(_))));
        if is_loop { Some(opener) } else { self.of_node(opener) }
    }

    /// All edges to a node come out of the scope that it stands in. Which that is, where they do not, is said by where
    /// the node leads: what has a join ahead of it stands in its scope.
    fn check_node(
        &self,
        draft: &Draft,
        node: NodeIndex,
        links: &[Link],
        ancestors: &Ancestors,
        problems: &mut Problems,
    ) -> Option<NodeIndex> {
        let mut behind = links.iter().map(|link| self.behind(link.source, true));
        let first = behind.next().flatten();
        if behind.all(|other| other == first) {
            return first;
        }
        let leads_to_join = |scope: &Option<NodeIndex>| match scope {
            None => true,
            Some(opener) => self.join_of(*opener).is_some_and(|join| ancestors.contain(join, node)),
        };
        let candidates = links.iter().map(|link| self.behind(link.source, true)).filter(leads_to_join);
        let within = candidates.max_by_key(|scope| self.depth_behind(*scope)).unwrap_or(first);
        for link in links {
            let behind = self.behind(link.source, true);
            if behind != within {
                problems.add(self.crossing(draft, link, behind, within));
            }
        }
        within
    }

    /// An edge from one scope to another.
    fn crossing(&self, draft: &Draft, link: &Link, from: Option<NodeIndex>, to: Option<NodeIndex>) -> Fault {
        let (source, target) = (name(draft, link.source), name(draft, link.target));
        // The outermost scope that is left, or else the one that is entered.
        let outermost = |mut scope: NodeIndex, other: Option<NodeIndex>| {
            while let Some(around) = self.of_node(scope).filter(|around| !self.is_within(other, Some(*around))) {
                scope = around;
            }
            scope
        };
        if let Some(from) = from.filter(|from| !self.is_within(to, Some(*from))) {
            let left = outermost(from, to);
            let message =
                format!("the edge leads from `{source}` inside of `{}` to `{target}` outside", name(draft, left));
            let hint = match self.join_of(left) {
                Some(join) => format!("lead it to the join `{}`, and on from there", name(draft, join)),
                None => format!("lead it to a join of `{}`, and on from there", name(draft, left)),
            };
            return Fault::new(Place::Edge(link.edge), "", "leaves_scope", message).hint(hint);
        }
        let entered = to.map_or("?", |to| name(draft, outermost(to, from)));
        let message = format!("the edge leads from `{source}` into `{entered}`, where `{target}` stands");
        let hint = format!("lead it to `{entered}`: nodes inside may refer to all that comes before it");
        Fault::new(Place::Edge(link.edge), "", "enters_scope", message).hint(hint)
    }

    fn place(&mut self, node: NodeIndex, within: Option<NodeIndex>, problems: &mut Problems) {
        let depth = self.depth_behind(within);
        if let (Some(place), Some(deep)) = (self.within.get_mut(node), self.depth.get_mut(node)) {
            (*place, *deep) = (within, depth);
        }
        if depth >= SCOPE_DEPTH_MAX && self.join_of(node).is_some() {
            let message = format!("maps and loops stand at most {SCOPE_DEPTH_MAX} deep in each other");
            problems.add(Fault::new(Place::Node(node), "", "too_deep", message));
            // Whoever goes from scope to scope has a way that is short.
            self.closers.part(node);
        }
    }

    /// The depth of what stands in a scope.
    fn depth_behind(&self, scope: Option<NodeIndex>) -> usize {
        scope.map_or(0, |opener| self.depth.get(opener).map_or(0, |depth| depth + 1))
    }

    fn of_node(&self, node: NodeIndex) -> Option<NodeIndex> {
        self.within.get(node).copied().flatten()
    }

    fn join_of(&self, opener: NodeIndex) -> Option<NodeIndex> {
        self.closers.join_of.get(&opener).copied()
    }

    fn closed_by(&self, join: NodeIndex) -> Option<NodeIndex> {
        self.closers.opener_of.get(&join).copied()
    }

    /// The scope that one has got to behind a node. `entering`: behind a `map` or `loop` that is what it opens, if
    /// somebody closes it.
    fn behind(&self, node: NodeIndex, entering: bool) -> Option<NodeIndex> {
        if entering && self.closers.join_of.contains_key(&node) {
            return Some(node);
        }
        match self.closed_by(node) {
            Some(opener) => self.of_node(opener),
            None => self.of_node(node),
        }
    }

    /// Whether a scope is another one or stands in it. `None` is the outermost.
    fn is_within(&self, scope: Option<NodeIndex>, other: Option<NodeIndex>) -> bool {
        let mut scope = scope;
        while scope != other {
            let Some(opener) = scope else { return false };
            scope = self.of_node(opener);
        }
        true
    }
}
