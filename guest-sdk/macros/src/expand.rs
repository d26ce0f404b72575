//! The code for a checked workflow: a type `Workflow` in the module, and its export on wasm32.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Ident, parse_quote};

use crate::parse::{At, Step, Workflow};

pub(crate) fn expand(workflow: &Workflow, output: &str) -> TokenStream {
    let nodes = workflow.steps.iter().map(node);
    let edges = workflow.steps.iter().flat_map(edges);
    let arms = workflow.steps.iter().map(arm);
    let topics = workflow.topics.iter().map(|topic| &topic.value);
    let channel = option(workflow.channel.as_ref());
    let signals = workflow.signals.iter().map(|signal| &signal.value);
    let timeout_ms = match &workflow.timeout_ms {
        Some(At { value, .. }) => quote!(::core::option::Option::Some(#value)),
        None => quote!(::core::option::Option::None),
    };

    let mut module = workflow.module.clone();
    if let Some((_, items)) = &mut module.content {
        items.push(parse_quote! {
            /// This module's workflow.
            #[derive(Clone, Copy, Debug)]
            #[allow(dead_code, unreachable_pub, reason = "constructed nowhere, and exported on wasm32 only")]
            pub struct Workflow;
        });
        items.push(parse_quote! {
            #[automatically_derived]
            impl ::stepwell_guest::Workflow for Workflow {
                fn describe() -> ::stepwell_guest::Graph {
                    ::stepwell_guest::private::graph(
                        ::std::vec![#(#nodes),*],
                        ::std::vec![#(#edges),*],
                        #output,
                        &[#(#topics),*],
                        #channel,
                        &[#(#signals),*],
                        #timeout_ms,
                    )
                }

                fn run_step(
                    ctx: &::stepwell_guest::Ctx,
                    #[allow(unused_mut, unused_variables, reason = "a workflow's steps may take no input")]
                    mut inputs: ::stepwell_guest::Inputs,
                ) -> ::core::result::Result<::stepwell_guest::Outcome, ::stepwell_guest::Failure> {
                    match ctx.node() {
                        #(#arms)*
                        unknown => ::core::result::Result::Err(::stepwell_guest::private::unknown_node(unknown)),
                    }
                }
            }
        });
        items.push(parse_quote! {
            #[cfg(target_arch = "wasm32")]
            #[allow(unsafe_code, reason = "the exports of a component are raw functions")]
            const _: () = {
                ::stepwell_guest::bindings::export!(Workflow with_types_in ::stepwell_guest::bindings);
            };
        });
    }
    module.into_token_stream()
}

fn node(step: &Step) -> TokenStream {
    let id = &step.id.value;
    let description = option(step.description.as_ref());
    let needs = step.parameters.iter().map(|parameter| &parameter.need.value);

    let max_attempts = match &step.retry.max_attempts {
        Some(attempts) => {
            // Checked to be at most 100.
            let attempts = u32::try_from(attempts.value).unwrap_or(u32::MAX);
            quote!(#attempts)
        }
        None => default("MAX_ATTEMPTS"),
    };
    let initial_ms = or_default(step.retry.initial_ms.as_ref(), "RETRY_INITIAL_MS");
    let factor = or_default(step.retry.factor.as_ref(), "RETRY_FACTOR");
    let max_ms = match (&step.retry.max_ms, &step.retry.initial_ms) {
        (Some(max), _) => max.value.into_token_stream(),
        (None, None) => default("RETRY_MAX_MS"),
        (None, Some(initial)) => {
            let initial = initial.value;
            let max = default("RETRY_MAX_MS");
            quote!(::core::cmp::Ord::max(#max, #initial))
        }
    };
    let jitter = or_default(step.retry.jitter.as_ref(), "RETRY_JITTER");
    let when_exhausted = match step.retry.when_exhausted.as_ref().map(|word| word.value.as_str()) {
        Some("pause") => quote!(::stepwell_guest::Exhausted::Pause),
        _ => quote!(::stepwell_guest::Exhausted::Fail),
    };
    // What an error does not say is as for all others.
    let errors = step.retry.errors.iter().map(|(code, policy)| {
        let code = &code.value;
        let max_attempts = match &policy.max_attempts {
            Some(attempts) => u32::try_from(attempts.value).unwrap_or(u32::MAX).into_token_stream(),
            None => max_attempts.clone(),
        };
        let initial = policy.initial_ms.as_ref().map_or_else(|| initial_ms.clone(), |ms| ms.value.into_token_stream());
        let factor = policy.factor.as_ref().map_or_else(|| factor.clone(), |factor| factor.value.into_token_stream());
        let max = match &policy.max_ms {
            Some(max) => max.value.into_token_stream(),
            None => quote!(::core::cmp::Ord::max(#max_ms, #initial)),
        };
        quote!(::stepwell_guest::private::error_policy(#code, #max_attempts, #initial, #factor, #max))
    });
    let errors: Vec<TokenStream> = errors.collect();

    let fuel = or_default(step.fuel.as_ref(), "FUEL");
    let timeout_ms = or_default(step.timeout_ms.as_ref(), "TIMEOUT_MS");
    let memory_bytes = or_default(step.memory_bytes.as_ref(), "MEMORY_BYTES");
    quote! {
        ::stepwell_guest::private::node(
            #id,
            #description,
            &[#(#needs),*],
            ::stepwell_guest::RetryPolicy {
                max_attempts: #max_attempts,
                initial_ms: #initial_ms,
                factor: #factor,
                max_ms: #max_ms,
                jitter: #jitter,
                errors: ::std::vec![#(#errors),*],
                when_exhausted: #when_exhausted,
            },
            ::stepwell_guest::Limits {
                fuel: #fuel,
                timeout_ms: #timeout_ms,
                memory_bytes: #memory_bytes,
            },
        )
    }
}

/// Labelled edges where `when` names the source, else one without label for each need and each `after`.
fn edges(step: &Step) -> Vec<TokenStream> {
    let edge = |source: &str, label: Option<&At<String>>| {
        let (target, label) = (&step.id.value, option(label));
        quote!(::stepwell_guest::private::edge(#source, #target, #label))
    };
    let needs = step.parameters.iter().map(|parameter| &parameter.need.value);
    let unlabelled = needs
        .filter(|&need| need != "input" && step.when.iter().all(|when| when.source.value != *need))
        .chain(step.after.iter().map(|source| &source.value))
        .map(|source| edge(source, None));
    let labelled =
        step.when.iter().flat_map(|when| when.labels.iter().map(|label| edge(&when.source.value, Some(label))));
    unlabelled.chain(labelled).collect()
}

fn arm(step: &Step) -> TokenStream {
    let (id, function) = (&step.id.value, &step.function);
    let ctx = step.takes_ctx.then(|| quote!(ctx,));
    let inputs = step.parameters.iter().map(|parameter| {
        let need = &parameter.need.value;
        let method = if parameter.optional { "optional" } else { "required" };
        // With the type's place, so that a type that serde cannot read is reported there.
        let span = parameter.ty.span();
        let method = Ident::new(method, span);
        quote_spanned!(span=> inputs.#method(#need)?)
    });
    let span = function.span();
    let call = quote_spanned! {span=>
        let output: ::core::result::Result<_, ::stepwell_guest::Failure> = #function(#ctx #(#inputs),*);
        ::stepwell_guest::IntoOutcome::into_outcome(output?)
    };
    quote!(#id => { #call })
}

fn option(text: Option<&At<String>>) -> TokenStream {
    match text {
        Some(At { value, .. }) => quote!(::core::option::Option::Some(#value)),
        None => quote!(::core::option::Option::None),
    }
}

fn or_default<T: ToTokens>(given: Option<&At<T>>, name: &str) -> TokenStream {
    given.map_or_else(|| default(name), |given| given.value.to_token_stream())
}

fn default(name: &str) -> TokenStream {
    let name = Ident::new(name, Span::call_site());
    quote!(::stepwell_guest::defaults::#name)
}
