//! The guest that interprets the nodes of a graph document.
//!
//! The compiler makes a component of it for each graph: it instantiates this module, hands it the document and what it
//! found out about it (a `Program`), and keeps the memory as it is then. Each attempt of a step begins with that
//! memory, in which every expression is parsed and every template taken apart.
//!
//! Owns: what the kinds of nodes do, and how expressions and templates are evaluated.
//! Does not: check a document. What the compiler let through is valid; what is not is still an error and never a trap.
//! Invariant: **loading asks nothing of the host, and a step depends on its inputs and what it calls only.** There is
//! no clock, no environment and no randomness in an expression, so an attempt can be repeated.
//!
//! Where to read next: `program` (what is loaded), `step` (what every kind has in common), `kinds` (what they do).
//!
//! # How the compiler specialises it
//!
//! Four functions are exported besides those of the component, and are of no use after that (see `specialize`):
//!
//! 1. `program_buffer(length) -> pointer`: room for the program, as JSON.
//! 2. `load_program() -> 0` when all is well, else the number of problems. It may be called once for each buffer.
//! 3. `program_error() -> pointer` and `program_error_len() -> bytes`: the problems, as a JSON array of `{node, field,
//!    code, message, at, expression}`; `at` is where the expression begins in the field's text, in bytes.

// Compiled for a machine, this crate is there for its tests.
#![cfg_attr(not(any(test, target_arch = "wasm32")), allow(dead_code))]

mod bindings;
mod context;
mod describe;
mod evaluate;
mod failure;
mod jq;
mod json;
mod kinds;
mod program;
mod step;
mod template;

#[cfg(target_arch = "wasm32")]
mod export;
#[cfg(target_arch = "wasm32")]
mod specialize;
#[cfg(target_arch = "wasm32")]
mod tidy;

#[cfg(test)]
mod tests;
