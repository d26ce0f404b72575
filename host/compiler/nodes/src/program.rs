//! The program that this guest was specialised with: nodes whose templates are taken apart and whose expressions are
//! compiled.
//!
//! Owns: the way from the compiler's `Program` to [`Program`]. Nothing of the document is kept but what a step or
//! `describe` reads, because all of it is in the memory of every instance.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use stepwell_document as document;
use stepwell_document::duration::parse_ms;
use stepwell_document::{Edge, Kind, Plan};

use crate::jq::Expressions;
use crate::kinds::branch::Branch;
use crate::kinds::component::Component;
use crate::kinds::http::Http;
use crate::kinds::join::Join;
use crate::kinds::llm::Llm;
use crate::kinds::looping::Loop;
use crate::kinds::map::Map;
use crate::kinds::signal::Signal;
use crate::kinds::sleep::Sleep;
use crate::kinds::transform::Transform;
use crate::kinds::workflow::Workflow;
use crate::template::{Problem, Templates};

/// A workflow that can be run.
pub(crate) struct Program {
    pub(crate) nodes: Vec<Node>,
    pub(crate) edges: Vec<Edge>,
    pub(crate) output: Option<String>,
    pub(crate) topics: Vec<String>,
    pub(crate) channel: Option<String>,
    /// The JSON Schema of the run's input.
    pub(crate) input: Option<Value>,
    /// The signals, each with the JSON Schema of its payload.
    pub(crate) signals: BTreeMap<String, Value>,
    /// Within which a run must have ended.
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) expressions: Expressions,
}

/// A node of it.
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) description: Option<String>,
    pub(crate) plan: Plan,
    pub(crate) work: Work,
}

/// What a node does.
pub(crate) enum Work {
    Transform(Transform),
    Branch(Branch),
    Map(Map),
    Loop(Loop),
    Join(Join),
    Llm(Llm),
    Http(Http),
    Component(Component),
    Sleep(Sleep),
    Signal(Signal),
    Workflow(Workflow),
}

impl Program {
    /// Reads and compiles what the compiler hands over.
    pub(crate) fn load(json: &[u8]) -> Result<Self, Vec<Problem>> {
        let program: document::Program = serde_json::from_slice(json).map_err(|error| {
            let message = format!("the program cannot be read: {error}");
            vec![Problem { node: String::new(), field: String::new(), at: 0, expression: String::new(), message }]
        })?;
        let document::Program { document, plans } = program;
        let mut templates = Templates::default();
        let nodes = document.nodes.into_iter().zip(plans);
        let nodes = nodes.map(|(node, plan)| Node::compile(node, plan, &mut templates)).collect();
        Ok(Self {
            nodes,
            edges: document.edges,
            output: document.output,
            topics: document.topics,
            channel: document.channel,
            input: document.input,
            signals: document.signals,
            timeout_ms: document.timeout.as_deref().and_then(parse_ms),
            expressions: templates.finish()?,
        })
    }

    pub(crate) fn node(&self, id: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// The loop with this id.
    pub(crate) fn looping(&self, id: &str) -> Option<&Loop> {
        match &self.node(id)?.work {
            Work::Loop(found) => Some(found),
            _ => None,
        }
    }
}

impl Node {
    fn compile(node: document::Node, plan: Plan, templates: &mut Templates) -> Self {
        templates.enter(&node.id);
        let work = match node.kind {
            Kind::Transform(kind) => Work::Transform(Transform::compile(kind, templates)),
            Kind::Branch(kind) => Work::Branch(Branch::compile(kind, templates)),
            Kind::Map(kind) => Work::Map(Map::compile(&kind, templates)),
            Kind::Loop(kind) => Work::Loop(Loop::compile(&kind, templates)),
            Kind::Join(kind) => Work::Join(Join::compile(kind, templates)),
            Kind::Llm(kind) => Work::Llm(Llm::compile(kind, templates)),
            Kind::Http(kind) => Work::Http(Http::compile(kind, templates)),
            Kind::Component(kind) => Work::Component(Component::compile(kind, templates)),
            Kind::Sleep(kind) => Work::Sleep(Sleep::compile(&kind, templates)),
            Kind::Signal(kind) => Work::Signal(Signal::compile(kind)),
            Kind::Workflow(kind) => Work::Workflow(Workflow::compile(kind, templates)),
        };
        Self { id: node.id, description: node.description, plan, work }
    }
}

/// The problems of a program, as the compiler reads them.
pub(crate) fn problems_json(problems: &[Problem]) -> String {
    let problems = problems.iter().map(|problem| {
        json!({
            "node": Some(&problem.node).filter(|node| !node.is_empty()),
            "field": problem.field,
            "code": "invalid_expression",
            "at": problem.at,
            "expression": problem.expression,
            "message": problem.message,
        })
    });
    Value::Array(problems.collect()).to_string()
}
