//! What each node has to be handed, by what its expressions refer to.
//!
//! Owns: reading all expressions of a document, and which parts of the context they may refer to where they stand.
//! Does not: know how an expression refers to something ([`crate::references`]).
//! Invariant: an expression that is not complained about uses nothing that its node is not handed, but what a node that
//! may not be referred to would have been: that is not in the context, and reads as `null`.

use std::collections::BTreeSet;

use stepwell_core::graph::NEEDS_MAX;
use stepwell_document::template::{Part as Piece, Unclosed, has_parts, parts};
use stepwell_document::{Join, Kind};

use crate::expression::{self, Wrong, position};
use crate::filters::{Filters, filters};
use crate::problems::{Fault, Path, Place, Problems, clip, did_you_mean};
use crate::read::Draft;
use crate::references::{Missing, Part, Reference, Undefined, uses};
use crate::shape::{NodeIndex, Shape, name};
use crate::sites::{Form, visit};

/// What the context consists of, for suggestions.
const PARTS: [&str; 6] = ["input", "nodes", "item", "index", "failures", "run"];

/// What a node is handed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// The run's input.
    pub(crate) input: bool,
    /// Outputs of nodes, in the order of the document.
    pub(crate) nodes: BTreeSet<NodeIndex>,
}

impl Needs {
    fn count(&self) -> usize {
        self.nodes.len() + usize::from(self.input)
    }

    fn add(&mut self, other: &Self) {
        self.input |= other.input;
        self.nodes.extend(&other.nodes);
    }
}

/// The needs of all nodes.
pub(crate) fn of_nodes(draft: &Draft, shape: &Shape<'_>, problems: &mut Problems) -> Vec<Needs> {
    let mut all = vec![Needs::default(); draft.nodes.len()];
    // What is asked by a loop's condition is handed to its join too, which asks it again.
    let mut of_conditions: Vec<(NodeIndex, Needs)> = Vec::new();
    let mut total = 0;
    for (node, draft_node) in draft.nodes.iter().enumerate() {
        let Some(kind) = &draft_node.kind else { continue };
        let mut own = Finder { draft, shape, node, is_condition: false, needs: Needs::default(), problems };
        let mut condition = Needs::default();
        visit(kind, &mut |path, text, form| {
            own.is_condition = form == Form::Condition;
            own.read(path, text, form);
            if own.is_condition {
                condition = own.needs.clone();
            }
        });
        let mut needs = own.needs;
        if let (Kind::Loop(_), Some(join)) = (kind, shape.join_of(node)) {
            of_conditions.push((join, condition));
            // The join makes the next state, so it is always handed the last one.
            of_conditions.push((join, Needs { input: false, nodes: [node].into() }));
        }
        if let Kind::Join(Join { output: None, .. }) = kind {
            needs.nodes.extend(joined(shape, node));
        }
        total += needs.count();
        if let Some(place) = all.get_mut(node) {
            *place = needs;
        }
        if total > NEEDS_MAX {
            break; // what is kept is bounded
        }
    }
    for (join, condition) in of_conditions {
        if let Some(needs) = all.get_mut(join) {
            needs.add(&condition);
        }
    }
    let total: usize = all.iter().map(Needs::count).sum();
    if total > NEEDS_MAX {
        let message = format!("the nodes are handed more than {NEEDS_MAX} values in all");
        let hint =
            "an expression that uses all of its context, as in `.` or `.nodes | keys`, is handed all that comes before";
        problems.add(Fault::new(Place::Document, "nodes", "too_many", message).hint(hint));
    }
    all
}

/// The node whose output a join without `output` hands on: the only one with an edge to it.
pub(crate) fn joined(shape: &Shape<'_>, join: NodeIndex) -> Option<NodeIndex> {
    let mut sources = shape.incoming(join).iter().map(|link| link.source);
    let first = sources.next()?;
    sources.all(|source| source == first).then_some(first)
}

/// Reads the expressions of one node.
struct Finder<'a> {
    draft: &'a Draft,
    shape: &'a Shape<'a>,
    node: NodeIndex,
    /// Whether what is read is the condition of a loop. Its `.item` is the state, which it is handed by whoever asks.
    is_condition: bool,
    needs: Needs,
    problems: &'a mut Problems,
}

impl Finder<'_> {
    fn read(&mut self, path: Path<'_>, text: &str, form: Form) {
        if matches!(form, Form::Literal | Form::Key) {
            if has_parts(text) {
                let message = format!("there is an expression in `{}`, which is taken as it stands", clip(text));
                let hint = "an object with computed keys is one expression: `${ {(.input.key): 1} }`";
                let hint = (form == Form::Key).then(|| hint.to_owned());
                self.fault(path, "expression_not_allowed", message, hint);
            }
            return;
        }
        let pieces = match parts(text) {
            Ok(pieces) => pieces,
            Err(Unclosed { at }) => {
                let message = format!("the `${{` at {} is not closed", position(text, at));
                let hint = "`$${` stands for the characters `${`".to_owned();
                return self.fault(path, "unclosed_expression", message, Some(hint));
            }
        };
        if form != Form::Text && !matches!(pieces.as_slice(), [Piece::Expression { .. }]) {
            let message = "this must be one expression and nothing else";
            let hint = match text.trim() {
                "" => "write one, such as `${ .input.list }`".to_owned(),
                text if has_parts(text) => "move what stands around `${ … }` into it".to_owned(),
                text => format!("write `${{ {} }}`", clip(text)),
            };
            return self.fault(path, "not_an_expression", message.to_owned(), Some(hint));
        }
        for piece in pieces {
            if let Piece::Expression { code, at } = piece {
                self.expression(path, text, code, at);
            }
        }
    }

    fn expression(&mut self, path: Path<'_>, text: &str, code: &str, begin: usize) {
        let term = match expression::parse(code) {
            Ok(term) => term,
            Err(Wrong { code: id, at, message, hint }) => {
                // A position tells nothing where all of the expression is wrong.
                let message = match id {
                    "invalid_expression" => format!("at {}: {message}", position(text, begin + at)),
                    _ => message,
                };
                return self.fault(path, id, message, hint);
            }
        };
        let filters = filters();
        let uses = uses(code, &term, filters);
        for missing in &uses.missing {
            self.missing(path, text, begin, missing, &uses.defined, filters);
        }
        for reference in &uses.references {
            let place = position(text, begin + reference.at);
            self.reference(path, &place, reference);
        }
        if uses.everything && self.shape.has_scopes() {
            self.needs.input = true;
            self.needs.nodes.extend(self.shape.visible(self.node));
        }
    }

    fn missing(
        &mut self,
        path: Path<'_>,
        text: &str,
        begin: usize,
        missing: &Missing<'_>,
        own: &[&str],
        filters: &Filters,
    ) {
        let Missing { name, what, at } = *missing;
        let dashed = matches!(what, Undefined::Filter(_)).then(|| self.dashed(text, begin + at)).flatten();
        if dashed.is_some_and(|id| id.split('-').next().is_some_and(|start| self.shape.find(start).is_none())) {
            return; // what stands before the `-` is told to be no node, with the same hint
        }
        let place = position(text, begin + at);
        let name = clip(name);
        let (code, message) = match what {
            Undefined::Filter(0) => ("undefined_filter", format!("at {place}: there is no filter `{name}`")),
            Undefined::Filter(1) => {
                ("undefined_filter", format!("at {place}: there is no filter `{name}` with 1 argument"))
            }
            Undefined::Filter(count) => {
                ("undefined_filter", format!("at {place}: there is no filter `{name}` with {count} arguments"))
            }
            Undefined::Variable => ("undefined_variable", format!("at {place}: there is no variable `{name}`")),
            Undefined::Label => ("undefined_label", format!("at {place}: there is no label `{name}`")),
            Undefined::Module => ("undefined_filter", format!("at {place}: `{name}`: expressions have no modules")),
        };
        let hint = self.problems.if_kept(|| match what {
            Undefined::Filter(_) => dashed.map(dashed_path).or_else(|| filters.hint(name, own.iter().copied())),
            Undefined::Variable if matches!(name, "$ENV" | "$__prog_args") => filters.hint("env", []),
            Undefined::Variable => {
                let part = name.trim_start_matches('$');
                PARTS.contains(&part).then(|| format!("write `.{part}`"))
            }
            Undefined::Label | Undefined::Module => None,
        });
        self.fault(path, code, message, hint);
    }

    /// The id of a node that the name at a place belongs to, as in `.nodes.my-node`.
    fn dashed<'t>(&self, text: &'t str, at: usize) -> Option<&'t str> {
        let is_id = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let begin = text.get(..at)?.rfind(|c| !is_id(c))? + 1;
        let rest = text.get(begin..)?;
        let id = rest.get(..rest.find(|c| !is_id(c)).unwrap_or(rest.len()))?;
        let is_path = text.get(..begin)?.ends_with(".nodes.") && id.contains('-');
        (is_path && self.shape.find(id).is_some()).then_some(id)
    }

    fn reference(&mut self, path: Path<'_>, place: &str, reference: &Reference<'_>) {
        let is_certain = reference.is_certain;
        let item = self.shape.item_of(self.node);
        match &reference.part {
            Part::Input => self.needs.input = true,
            Part::Run => {}
            Part::Item | Part::Index if self.is_condition => {}
            Part::Item if item.is_some() => self.needs.nodes.extend(item),
            Part::Index if item.is_some() => {}
            Part::Failures if self.collects() => {}
            Part::Node(id) => self.node(path, place, id, is_certain),
            // Whether they are there cannot be told, or they may be parts of something else.
            _ if !is_certain => {}
            Part::Item | Part::Index if !self.shape.has_scopes() => {}
            Part::Item | Part::Index => {
                let part = if reference.part == Part::Item { "item" } else { "index" };
                let message = format!("at {place}: there is no `.{part}` here, outside of every map and loop");
                let hint = match self.shape.closed_by(self.node) {
                    Some(_) => "in the join of a map `.nodes.<id>` is the array of a node's outputs",
                    None => "only nodes between a map or loop and its join have one",
                };
                self.fault(path, "no_item", message, Some(hint.to_owned()));
            }
            Part::Failures if !self.shape.has_scopes() => {}
            Part::Failures => {
                let message = format!("at {place}: there is no `.failures` here");
                let hint = "only the join of a map has it".to_owned();
                self.fault(path, "unknown_reference", message, Some(hint));
            }
            Part::Unknown(key) => {
                let message = format!("at {place}: there is no `.{}` here", clip(key));
                let hint = if self.shape.find(key).is_some() {
                    node_path(key)
                } else {
                    did_you_mean(key, PARTS)
                        .unwrap_or_else(|| format!("a field of the run's input is `.input{}`", step(key)))
                };
                self.fault(path, "unknown_reference", message, Some(hint));
            }
        }
    }

    fn node(&mut self, path: Path<'_>, place: &str, id: &str, is_certain: bool) {
        let Some(other) = self.shape.find(id) else {
            if is_certain {
                let message = format!("at {place}: there is no node `{}`", clip(id));
                let hint = self.problems.if_kept(|| self.meant(id));
                self.fault(path, "unknown_reference", message, hint);
            }
            return;
        };
        if !self.shape.is_ordered() {
            return;
        }
        let shown = clip(id);
        if !self.shape.is_ancestor(other, self.node) {
            if is_certain {
                let message = if other == self.node {
                    format!("at {place}: a node has no output of its own while it runs")
                } else {
                    format!("at {place}: no path leads from `{shown}` to this node")
                };
                let hint = (other != self.node).then(|| format!("add edges from `{shown}` that lead here"));
                self.fault(path, "not_an_ancestor", message, hint);
            }
        } else if self.shape.is_visible(other, self.node) {
            self.needs.nodes.insert(other);
        } else if is_certain && self.shape.has_scopes() {
            let message =
                format!("at {place}: `{shown}` runs several times, in a map or loop that this node is outside of");
            let hint = self.shape.way_out(other, self.node).map(|join| {
                let join = name(self.draft, join);
                format!("the join has what comes out of it: {}", node_path(join))
            });
            self.fault(path, "inside_scope", message, hint);
        }
    }

    /// Which node may be meant by an unknown id.
    fn meant(&self, id: &str) -> Option<String> {
        let ids = || self.draft.nodes.iter().filter_map(|node| node.id.as_deref());
        let dashed = ids().find(|known| known.strip_prefix(id).is_some_and(|rest| rest.starts_with('-')));
        dashed.map(dashed_path).or_else(|| did_you_mean(id, ids()))
    }

    /// Whether this is the join of a map, or may be one.
    fn collects(&self) -> bool {
        let opener = self.shape.closed_by(self.node).and_then(|opener| self.draft.nodes.get(opener));
        opener.is_some_and(|opener| matches!(opener.kind, Some(Kind::Map(_))))
    }

    fn fault(&mut self, path: Path<'_>, code: &'static str, message: String, hint: Option<String>) {
        self.problems.add(Fault::new(Place::Node(self.node), path, code, message).maybe_hint(hint));
    }
}

fn dashed_path(id: &str) -> String {
    format!("a `-` is a minus: {}", node_path(id))
}

/// How a node is referred to.
fn node_path(id: &str) -> String {
    format!("write `.nodes{}`", step(id))
}

fn step(key: &str) -> String {
    let key = clip(key);
    let is_plain = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if is_plain { format!(".{key}") } else { format!("[{key:?}]") }
}
