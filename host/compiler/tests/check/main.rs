//! Documents, and what the compiler says about them.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a panic is how a test says what is wrong; helpers outside of test functions say it too"
)]

mod bad;
mod good;
mod hostile;
mod schema;

use serde_json::Value;
use stepwell_compiler::{Checked, check};
use stepwell_core::graph::Problem;

/// Checks a document whose schemas are all fine.
pub(crate) fn checked(text: &str) -> Result<Checked, Vec<Problem>> {
    check(text.as_bytes())
}

/// `node field code: message (hint)`, a line for each problem.
pub(crate) fn shown(problems: &[Problem]) -> String {
    let line = |problem: &Problem| {
        let node = problem.node.as_deref().unwrap_or("-");
        let field = if problem.field.is_empty() { "-" } else { &problem.field };
        let hint = problem.hint.as_ref().map_or(String::new(), |hint| format!(" ({hint})"));
        format!("{node} {field} {}: {}{hint}\n", problem.code, problem.message)
    };
    problems.iter().map(line).collect()
}

/// A document out of nodes and edges. Nodes are objects, edges lines like `a -> b; b -yes-> c`.
pub(crate) fn document(nodes: Value, edges: &str) -> Value {
    let edges = edges.split(';').map(str::trim).filter(|line| !line.is_empty()).map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [source, arrow, target] = words[..] else { panic!("not an edge: {line}") };
        let label = arrow.trim_end_matches("->").trim_start_matches('-');
        let mut edge = serde_json::json!({ "source": source, "target": target });
        if !label.is_empty() {
            edge["label"] = label.into();
        }
        edge
    });
    serde_json::json!({ "stepwell": 1, "nodes": nodes, "edges": edges.collect::<Vec<_>>() })
}

/// A node that puts out what a text stands for.
pub(crate) fn transform(id: &str, output: &str) -> Value {
    serde_json::json!({ "id": id, "kind": "transform", "output": output })
}
