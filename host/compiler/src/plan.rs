//! What is handed on about a document without problems: a plan for each node, and the graph that the host stores.
//!
//! Owns: defaults, and the rules that are about the whole of the document.
//! Does not: find out what expressions need ([`crate::needs`]) and where nodes stand ([`crate::shape`]).
//! Invariant: the graph says the same as what the nodes guest describes when it is given the program.

use serde_json::Value;
use stepwell_core::Json;
use stepwell_core::graph::{
    DelegateSpec, EdgeSpec, GraphSpec, ItemFailure, Limits, NodeSpec, Problem, ScopeKind, SignalSpec,
};
use stepwell_core::retry::{ErrorPolicy, Exhausted, RetryPolicy};
use stepwell_document::duration::parse_ms;
use stepwell_document::{
    CONCURRENCY_DEFAULT, Document, ErrorPlan, FUEL_DEFAULT, JOIN_FUEL_DEFAULT, JOIN_MEMORY_BYTES, Kind, Llm,
    MEMORY_BYTES, Node, OnFailure, Plan, Program, Retry, RetryPlan, Signal, Transform, WhenExhausted,
};

use crate::Checked;
use crate::needs::{Needs, joined};
use crate::problems::{Fault, Place, Problems, clip, did_you_mean};
use crate::read::Draft;
use crate::shape::{NodeIndex, Shape, name};

/// How long an attempt may take that computes: far more than it ever should.
const TIMEOUT_MS: u64 = 30_000;
/// How long a request may take: as long as common servers let one take.
const TIMEOUT_HTTP_MS: u64 = 60_000;
/// How long an answer may take: a long one of a large model takes minutes.
const TIMEOUT_LLM_MS: u64 = 600_000;

/// Checks what nodes say about the document: topics, joins without output, the run's output.
pub(crate) fn check(draft: &Draft, shape: &Shape<'_>, problems: &mut Problems) {
    for (index, node) in draft.nodes.iter().enumerate() {
        match &node.kind {
            Some(Kind::Transform(Transform { topic: Some(topic), .. }) | Kind::Llm(Llm { topic: Some(topic), .. }))
                if !draft.topics.contains(topic) =>
            {
                let message = format!("`{}` is not among the document's topics", clip(topic));
                let known = draft.topics.iter().map(String::as_str);
                let hint =
                    did_you_mean(topic, known).unwrap_or_else(|| format!("add it to `topics`: {:?}", clip(topic)));
                problems.add(Fault::new(Place::Node(index), "topic", "unknown_topic", message).hint(hint));
            }
            Some(Kind::Signal(Signal { name, .. })) if node.is_sound("name") && !draft.signals.contains_key(name) => {
                let message = format!("`{}` is not among the document's signals", clip(name));
                let known = draft.signals.keys().map(String::as_str);
                let hint = did_you_mean(name, known)
                    .unwrap_or_else(|| format!("add it to `signals`: {{{:?}: true}} takes anything", clip(name)));
                problems.add(Fault::new(Place::Node(index), "name", "unknown_signal", message).hint(hint));
            }
            // Where nothing leads to it, or the wrong nodes do, that is told.
            Some(Kind::Join(join)) if join.output.is_none() && shape.has_scopes() && joined(shape, index).is_none() => {
                let message = "edges lead here from several nodes, so it must be said what comes out";
                let hint = "give `output`, such as `${ .nodes.<id> }`";
                problems.add(Fault::new(Place::Node(index), "output", "needs_output", message).hint(hint));
            }
            _ => {}
        }
    }
    if let Some(output) = &draft.output {
        check_output(draft, shape, output, problems);
    }
}

fn check_output(draft: &Draft, shape: &Shape<'_>, output: &str, problems: &mut Problems) {
    let fault = |code, message: String| Fault::new(Place::Output, "output", code, message);
    let shown = clip(output);
    let Some(node) = shape.find(output) else {
        let ids = draft.nodes.iter().filter_map(|node| node.id.as_deref());
        let hint = problems.if_kept(|| did_you_mean(output, ids));
        return problems.add(fault("unknown_node", format!("`{shown}` is no node")).maybe_hint(hint));
    };
    let join = |opener| shape.join_of(opener).map(|join| format!("name its join, `{}`", name(draft, join)));
    let kind = draft.nodes.get(node).and_then(|node| node.kind.as_ref());
    if let Some(kind @ (Kind::Map(_) | Kind::Loop(_))) = kind {
        let message = format!("`{shown}` is a {}, which puts out nothing of its own", kind.name());
        problems.add(fault("not_an_output", message).maybe_hint(join(node)));
    } else if shape.has_scopes() && !shape.is_outermost(node) {
        let message = format!("`{shown}` runs several times, so it has no single output");
        let outermost = shape.scopes(node).first().copied();
        problems.add(fault("inside_scope", message).maybe_hint(outermost.and_then(join)));
    }
}

/// The plans of all nodes.
pub(crate) fn plans(draft: &Draft, shape: &Shape<'_>, needs: Vec<Needs>) -> Vec<Plan> {
    let ids = |nodes: &mut dyn Iterator<Item = NodeIndex>| -> Vec<String> {
        nodes.filter_map(|node| draft.nodes.get(node)?.id.clone()).collect()
    };
    let nodes = draft.nodes.iter().enumerate().zip(needs);
    let plans = nodes.map(|((index, node), needs)| {
        let input = needs.input.then(|| "input".to_owned());
        let default_timeout_ms = match &node.kind {
            Some(Kind::Llm(_)) => TIMEOUT_LLM_MS,
            Some(Kind::Http(_)) => TIMEOUT_HTTP_MS,
            _ => TIMEOUT_MS,
        };
        let hands_on = matches!(&node.kind, Some(Kind::Join(join)) if join.output.is_none());
        let is_join = matches!(&node.kind, Some(Kind::Join(_)));
        Plan {
            needs: input.into_iter().chain(ids(&mut needs.nodes.into_iter())).collect(),
            scopes: ids(&mut shape.scopes(index).into_iter()),
            joins: ids(&mut joined(shape, index).filter(|_| hands_on).into_iter()).pop(),
            retry: retry(node.retry.as_ref()),
            timeout_ms: node.timeout.as_deref().and_then(parse_ms).unwrap_or(default_timeout_ms),
            fuel: node.fuel.unwrap_or(if is_join { JOIN_FUEL_DEFAULT } else { FUEL_DEFAULT }),
            memory_bytes: if is_join { JOIN_MEMORY_BYTES } else { MEMORY_BYTES },
        }
    });
    plans.collect()
}

fn retry(given: Option<&Retry>) -> RetryPlan {
    let defaults = RetryPolicy::default();
    let given = given.cloned().unwrap_or_default();
    let ms = |text: Option<String>, default| text.as_deref().and_then(parse_ms).unwrap_or(default);
    let initial_ms = ms(given.initial, defaults.initial_ms);
    let max_attempts = given.max_attempts.unwrap_or(defaults.max_attempts);
    let factor = given.factor.unwrap_or(defaults.factor);
    let max_ms = ms(given.max, defaults.max_ms.max(initial_ms));
    let errors = given.errors.into_iter().map(|(code, given)| {
        let initial_ms = ms(given.initial, initial_ms);
        ErrorPlan {
            code,
            max_attempts: given.max_attempts.unwrap_or(max_attempts),
            initial_ms,
            factor: given.factor.unwrap_or(factor),
            max_ms: ms(given.max, max_ms.max(initial_ms)),
        }
    });
    RetryPlan {
        max_attempts,
        initial_ms,
        factor,
        max_ms,
        jitter: given.jitter.unwrap_or(defaults.jitter),
        errors: errors.collect(),
        when_exhausted: given.when_exhausted,
    }
}

/// A JSON Schema as the host stores it.
fn schema_json(field: &str, schema: &Value) -> Result<Json, Vec<Problem>> {
    Json::of(schema).map_err(|error| {
        // A value of a document that was read as JSON is JSON.
        let message = format!("the schema cannot be written: {error}");
        vec![Problem { node: None, field: field.to_owned(), code: "invalid_schema".to_owned(), message, hint: None }]
    })
}

/// The program of a document without problems, and its graph.
pub(crate) fn assemble(document: Document, plans: Vec<Plan>) -> Result<Checked, Vec<Problem>> {
    let input_schema = document.input.as_ref().map(|schema| schema_json("input", schema)).transpose()?;
    let signal = |(name, schema): (&String, &Value)| {
        // `true` takes everything, so nobody need be asked.
        let schema = Some(schema).filter(|schema| **schema != Value::Bool(true));
        let schema = schema.map(|schema| schema_json("signals", schema)).transpose()?;
        Ok(SignalSpec { name: name.clone(), schema })
    };
    let signals = document.signals.iter().map(signal).collect::<Result<_, Vec<Problem>>>()?;
    let edges = document.edges.iter().map(|edge| EdgeSpec {
        source: edge.source.clone(),
        target: edge.target.clone(),
        label: edge.label.clone(),
    });
    let graph = GraphSpec {
        nodes: document.nodes.iter().zip(&plans).map(|(node, plan)| node_spec(node, plan)).collect(),
        edges: edges.collect(),
        output: document.output.clone(),
        topics: document.topics.clone(),
        channel: document.channel.clone(),
        input_schema,
        signals,
        timeout_ms: document.timeout.as_deref().and_then(parse_ms),
    };
    Ok(Checked { program: Program { document, plans }, graph })
}

fn node_spec(node: &Node, plan: &Plan) -> NodeSpec {
    let RetryPlan { max_attempts, initial_ms, factor, max_ms, jitter, errors, when_exhausted } = plan.retry.clone();
    let error = |ErrorPlan { code, max_attempts, initial_ms, factor, max_ms }| ErrorPolicy {
        code,
        max_attempts,
        initial_ms,
        factor,
        max_ms,
    };
    let errors = errors.into_iter().map(error).collect();
    let when_exhausted = match when_exhausted {
        WhenExhausted::Fail => Exhausted::Fail,
        WhenExhausted::Pause => Exhausted::Pause,
    };
    let opens = match &node.kind {
        Kind::Map(map) => Some(ScopeKind::Each {
            concurrency: map.concurrency.unwrap_or(CONCURRENCY_DEFAULT),
            on_failure: match map.on_failure {
                OnFailure::Cancel => ItemFailure::Cancel,
                OnFailure::Finish => ItemFailure::Finish,
                OnFailure::Collect => ItemFailure::Collect,
            },
        }),
        Kind::Loop(node) => Some(ScopeKind::Repeat { max: node.max }),
        _ => None,
    };
    NodeSpec {
        id: node.id.clone(),
        description: node.description.clone(),
        needs: plan.needs.clone(),
        retry: RetryPolicy { max_attempts, initial_ms, factor, max_ms, jitter, errors, when_exhausted },
        limits: Limits { fuel: plan.fuel, timeout_ms: plan.timeout_ms, memory_bytes: plan.memory_bytes },
        opens,
        closes: if let Kind::Join(join) = &node.kind { Some(join.of.clone()) } else { None },
        delegates_to: match &node.kind {
            Kind::Component(to) => {
                Some(DelegateSpec { workflow: to.workflow.clone(), version: to.version.clone(), node: to.node.clone() })
            }
            _ => None,
        },
    }
}
