//! The `#[workflow]` attribute of `stepwell-guest`.
//!
//! Owns the step from a module of functions to a graph and a dispatch: `parse` reads what is written,
//! `check` holds it against the rules of the contract, `expand` writes the code. It knows the contract's
//! rules but not its bindings: the code it writes calls `stepwell_guest` only.
//!
//! Its invariant: **what compiles is a graph that the host accepts**. Every mistake that can be seen in the
//! source is an error at the place where it was made, and all of them are reported at once.

mod check;
mod expand;
mod parse;
#[cfg(test)]
mod tests;
mod units;

use proc_macro::TokenStream;

/// Makes an inline module a workflow: each function with [`macro@step`] in it is a step.
///
/// ```text
/// #[workflow(topics = ["update"], channel = "tasks", output = "report")]
/// mod word_count { … }
/// ```
///
/// | key | meaning |
/// |---|---|
/// | `topics = ["…"]` | The topics that steps may publish on, at most 64. Default: none. |
/// | `channel = "…"` | The channel that updates of all runs reach besides their own run's stream. |
/// | `output = "…"` | The step whose output is the run's. Default: the only step without outgoing edges. |
/// | `signals = ["…"]` | The signals that steps may wait for, at most 64. Default: none. |
/// | `timeout = "24h"` | How long a run may take from its start to its end, at most 366 days. Default: no limit. |
///
/// Topics, channels, signals and labels have 1 to 64 of `A-Z a-z 0-9 _ . -`. The module gets a public type `Workflow`, which
/// implements `stepwell_guest::Workflow`; on wasm32 it is exported as the component. A crate holds one
/// workflow.
#[proc_macro_attribute]
pub fn workflow(attribute: TokenStream, item: TokenStream) -> TokenStream {
    match expand_workflow(attribute.into(), item.into()) {
        Ok(tokens) => tokens.into(),
        Err(error) => error.into_compile_error().into(),
    }
}

/// Makes a function in a [`macro@workflow`] module a step. The first paragraph of its documentation is the
/// node's description.
///
/// | key | meaning |
/// |---|---|
/// | `after = [a, b]` | Edges from `a` and `b` without their outputs. |
/// | `when(a = "label")` | The edge from `a` is taken for this label only; `["x", "y"]` makes one edge each. |
/// | `retry(…)` | `max_attempts` 1 to 100; `initial` and `max`, waits up to 24 h; `factor` 1.0 to 10.0; `jitter` 0.0 to 1.0; `errors(CODE(…))` says otherwise for failures with one code; `when_exhausted = "pause"` pauses the run for an operator instead of failing. |
/// | `timeout = "10s"` | Wall-clock time of an attempt, 1 ms to 1 h. |
/// | `fuel = 50_000_000` | Metered instructions of an attempt, 1 to 100,000,000,000. |
/// | `memory = "32MiB"` | Linear memory of an attempt, 1 MiB to 256 MiB. |
///
/// Times are whole numbers with `ms`, `s`, `m` or `h`; sizes with `KiB` or `MiB`.
#[proc_macro_attribute]
pub fn step(_attribute: TokenStream, item: TokenStream) -> TokenStream {
    // `#[workflow]` removes the attribute from its module's functions, so this is only reached elsewhere.
    let item = proc_macro2::TokenStream::from(item);
    quote::quote! {
        ::core::compile_error!("`#[step]` marks functions directly inside a `#[workflow]` module");
        #item
    }
    .into()
}

fn expand_workflow(
    attribute: proc_macro2::TokenStream,
    item: proc_macro2::TokenStream,
) -> syn::Result<proc_macro2::TokenStream> {
    let workflow = parse::workflow(attribute, item)?;
    let output = check::check(&workflow)?;
    Ok(expand::expand(&workflow, &output))
}

/// Collects errors, so that an author sees all mistakes at once.
#[derive(Default)]
struct Errors(Option<syn::Error>);

impl Errors {
    fn push(&mut self, error: syn::Error) {
        match &mut self.0 {
            Some(first) => first.combine(error),
            None => self.0 = Some(error),
        }
    }

    /// Keeps the error and goes on without the value.
    fn ok<T>(&mut self, result: syn::Result<T>) -> Option<T> {
        result.map_err(|error| self.push(error)).ok()
    }

    fn finish(self) -> syn::Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}
