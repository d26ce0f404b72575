//! The graph of the workflow, as `wit/graph.wit` has it.

use serde_json::Value;
use stepwell_document::{CONCURRENCY_DEFAULT, Edge as DocumentEdge, ErrorPlan, OnFailure, WhenExhausted};

use crate::bindings::stepwell::workflow::graph::{
    Delegate, Each, Edge, ErrorPolicy, Exhausted, Graph, ItemFailure, Limits, Node as GraphNode, Repeat, RetryPolicy,
    Scope, Signal,
};
use crate::program::{Node, Program, Work};

pub(crate) fn describe(program: &Program) -> Graph {
    Graph {
        nodes: program.nodes.iter().map(node).collect(),
        edges: program.edges.iter().map(edge).collect(),
        output: program.output.clone(),
        topics: program.topics.clone(),
        channel: program.channel.clone(),
        input_schema: program.input.as_ref().map(ToString::to_string),
        signals: program.signals.iter().map(signal).collect(),
        timeout_ms: program.timeout_ms,
    }
}

fn signal((name, schema): (&String, &Value)) -> Signal {
    // `true` takes everything, so nobody need be asked.
    let schema = Some(schema).filter(|schema| **schema != Value::Bool(true)).map(ToString::to_string);
    Signal { name: name.clone(), schema }
}

fn error_policy(policy: &ErrorPlan) -> ErrorPolicy {
    let ErrorPlan { code, max_attempts, initial_ms, factor, max_ms } = policy.clone();
    ErrorPolicy { code, max_attempts, initial_ms, factor, max_ms }
}

fn node(node: &Node) -> GraphNode {
    let retry = &node.plan.retry;
    GraphNode {
        id: node.id.clone(),
        description: node.description.clone(),
        needs: node.plan.needs.clone(),
        retry: RetryPolicy {
            max_attempts: retry.max_attempts,
            initial_ms: retry.initial_ms,
            factor: retry.factor,
            max_ms: retry.max_ms,
            jitter: retry.jitter,
            errors: retry.errors.iter().map(error_policy).collect(),
            when_exhausted: match retry.when_exhausted {
                WhenExhausted::Fail => Exhausted::Fail,
                WhenExhausted::Pause => Exhausted::Pause,
            },
        },
        limits: Limits { fuel: node.plan.fuel, timeout_ms: node.plan.timeout_ms, memory_bytes: node.plan.memory_bytes },
        opens: opens(&node.work),
        closes: match &node.work {
            Work::Join(join) => Some(join.of.clone()),
            _ => None,
        },
        delegates_to: match &node.work {
            Work::Component(to) => {
                Some(Delegate { workflow: to.workflow.clone(), version: to.version.clone(), node: to.node.clone() })
            }
            _ => None,
        },
    }
}

fn opens(work: &Work) -> Option<Scope> {
    match work {
        Work::Map(map) => Some(Scope::Each(Each {
            concurrency: map.concurrency.unwrap_or(CONCURRENCY_DEFAULT),
            on_failure: match map.on_failure {
                OnFailure::Cancel => ItemFailure::Cancel,
                OnFailure::Finish => ItemFailure::Finish,
                OnFailure::Collect => ItemFailure::Collect,
            },
        })),
        Work::Loop(looping) => Some(Scope::Repeat(Repeat { max: looping.max })),
        _ => None,
    }
}

fn edge(edge: &DocumentEdge) -> Edge {
    Edge { source: edge.source.clone(), target: edge.target.clone(), label: edge.label.clone() }
}
