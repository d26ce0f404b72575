//! Where expressions stand in a node.
//!
//! Owns: which fields of which kinds are texts with expressions in them, which are one expression, and which are taken
//! as they stand.
//! Does not: read the expressions.
//! Invariant: every string of a node is visited once. The nodes guest evaluates exactly those that are visited as
//! [`Form::Text`] and [`Form::Expression`].

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use stepwell_document::Kind;

use crate::problems::Path;

/// What a string is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A text, with expressions in it or without.
    Text,
    /// One expression and nothing else.
    Expression,
    /// A loop's condition: one expression, which is evaluated on the loop's state.
    Condition,
    /// As it stands.
    Literal,
    /// A key of an object, as it stands.
    Key,
}

/// Visits the strings of a node, in the order of its fields.
pub(crate) fn visit<'d>(kind: &'d Kind, visit: &mut impl FnMut(Path<'_>, &'d str, Form)) {
    let field = Path::Field;
    match kind {
        Kind::Transform(transform) => value(field("output"), &transform.output, visit),
        Kind::Branch(branch) => {
            for (index, case) in branch.cases.iter().enumerate() {
                visit(Path::Key(&Path::Index(&field("cases"), index), "when"), &case.when, Form::Expression);
            }
        }
        Kind::Map(map) => match &map.items {
            Value::String(items) => visit(field("items"), items, Form::Expression),
            items => value(field("items"), items, visit),
        },
        Kind::Loop(node) => {
            value(field("initial"), &node.initial, visit);
            visit(field("while"), &node.condition, Form::Condition);
        }
        Kind::Join(join) => join.output.iter().for_each(|output| value(field("output"), output, visit)),
        Kind::Llm(llm) => {
            visit(field("model"), &llm.model, Form::Text);
            llm.system.iter().for_each(|system| visit(field("system"), system, Form::Text));
            visit(field("prompt"), &llm.prompt, Form::Text);
        }
        Kind::Http(http) => {
            visit(field("url"), &http.url, Form::Text);
            values(field("query"), &http.query, visit);
            for (name, header) in &http.headers {
                visit(Path::Key(&field("headers"), name), header, Form::Text);
            }
            http.body.iter().for_each(|body| value(field("body"), body, visit));
            if let Some(authorization) = &http.authorization {
                let path = field("authorization");
                authorization.prefix.iter().for_each(|prefix| visit(Path::Key(&path, "prefix"), prefix, Form::Literal));
            }
        }
        Kind::Component(component) => values(field("inputs"), &component.inputs, visit),
        Kind::Sleep(sleep) => value(field("for"), &sleep.duration, visit),
        Kind::Signal(signal) => visit(field("name"), &signal.name, Form::Literal),
        Kind::Workflow(workflow) => {
            workflow.input.iter().for_each(|input| value(field("input"), input, visit));
        }
    }
}

/// Any JSON: texts in all its strings. Keys are taken as they stand.
fn value<'d>(path: Path<'_>, given: &'d Value, visit: &mut impl FnMut(Path<'_>, &'d str, Form)) {
    match given {
        Value::String(text) => visit(path, text, Form::Text),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                value(Path::Index(&path, index), item, visit);
            }
        }
        Value::Object(fields) => {
            for (key, field) in sorted(fields) {
                visit(Path::Key(&path, key), key, Form::Key);
                value(Path::Key(&path, key), field, visit);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn values<'d>(path: Path<'_>, given: &'d BTreeMap<String, Value>, visit: &mut impl FnMut(Path<'_>, &'d str, Form)) {
    given.iter().for_each(|(key, field)| value(Path::Key(&path, key), field, visit));
}

/// In the same order whatever the features of serde_json are.
fn sorted(fields: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut fields: Vec<_> = fields.iter().collect();
    fields.sort_unstable_by_key(|(key, _)| *key);
    fields
}
