//! What the kinds of nodes do. Each has two functions: `compile`, which takes the templates of the document apart, and
//! `run`, which is one attempt.

pub(crate) mod branch;
pub(crate) mod component;
pub(crate) mod http;
pub(crate) mod join;
pub(crate) mod llm;
pub(crate) mod looping;
pub(crate) mod map;
pub(crate) mod signal;
pub(crate) mod sleep;
pub(crate) mod transform;
pub(crate) mod workflow;
