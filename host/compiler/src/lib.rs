//! Graph documents to components.
//!
//! [`check`] takes the text of a document and gives back either a [`Program`], which the nodes guest can run as it is, or
//! everything that is wrong with the text at once: whoever repairs a document wants the list and not its first entry.
//!
//! The way of a text, each station a module and none knowing the later ones:
//!
//! 1. `json`: text to JSON, with its size, depth and keys.
//! 2. `read`: JSON to a draft of the document, field by field.
//! 3. `shape`: ids, edges, labels, and what stands inside of what.
//! 4. `needs`: what the expressions refer to. `sites` says where they stand, `expression` reads one, `references` finds
//!    what it uses, `filters` has the names.
//! 5. `plan`: defaults, and the graph as the host stores it.
//!
//! Nothing in here asks for anything outside or remembers anything: the same text has the same answer. No text, however
//! hostile, takes more than the limits allow: what is read is bounded by [`DOCUMENT_BYTES_MAX`], every pass is linear or
//! has a bound of its own, and nothing recurses deeper than a constant.

mod expression;
mod filters;
mod json;
mod needs;
mod plan;
mod problems;
mod read;
mod references;
mod schema;
mod shape;
mod sites;
pub mod specialize;

use stepwell_core::graph::{Graph, GraphSpec, Problem};
use stepwell_document::Program;

pub use schema::document_schema;

/// Bytes of a document. As much as a step may hand over; the largest graphs that people draw have a tenth of it.
pub const DOCUMENT_BYTES_MAX: usize = 4 << 20;

/// A document without problems.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// What the nodes guest is given.
    pub program: Program,
    /// The graph that the guest describes. [`Graph::check`] accepts it.
    pub graph: GraphSpec,
}

/// Checks a document. On failure all its problems, in the document's order, at most
/// [`stepwell_core::graph::PROBLEMS_MAX`] of them and one more that says how many are not listed.
pub fn check(text: &[u8]) -> Result<Checked, Vec<Problem>> {
    let mut problems = problems::Problems::default();
    let draft = json::parse(text, &mut problems).and_then(|value| read::read(value, &mut problems));
    let Some(draft) = draft else { return Err(problems.finish(|_| None)) };
    let shape = shape::Shape::of(&draft, &mut problems);
    let needs = needs::of_nodes(&draft, &shape, &mut problems);
    plan::check(&draft, &shape, &mut problems);
    if !problems.is_empty() {
        return Err(problems.finish(|node| draft.nodes.get(node)?.id.as_deref()));
    }
    let plans = plan::plans(&draft, &shape, needs);
    drop(shape);
    let Some(document) = draft.into_document() else {
        // Whatever can be missing is told where it is read. If it were not, no problem at all would be worse.
        problems.add(problems::Fault::new(problems::Place::Document, "", "incomplete", "the document is not complete"));
        return Err(problems.finish(|_| None));
    };
    let checked = plan::assemble(document, plans)?;
    // The host's own rules are the same, in words about components. What they find here is still better than a graph
    // that is refused later.
    Graph::check(checked.graph.clone()).map(|_| checked)
}
