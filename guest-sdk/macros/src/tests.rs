//! Each mistake that an author can make, and what is said about it.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]

use proc_macro2::TokenStream;
use quote::quote;

use crate::expand_workflow;

/// The messages for a module with these steps, in order.
fn errors(attribute: TokenStream, steps: TokenStream) -> Vec<String> {
    match expand_workflow(attribute, quote!(mod flow { #steps })) {
        Ok(_) => Vec::new(),
        Err(error) => error.into_iter().map(|error| error.to_string()).collect(),
    }
}

fn assert_error(steps: TokenStream, expected: &str) {
    assert_eq!(errors(TokenStream::new(), steps), [expected]);
}

#[test]
fn a_correct_workflow_has_no_errors() {
    let steps = quote! {
        #[step] fn a(input: u8) -> Result<u8, Failure> {}
        #[stepwell_guest::step(when(a = "x"), retry(factor = 1))] fn b(ctx: &Ctx, _a: Option<u8>) -> Result<u8, Failure> {}
    };
    assert_eq!(errors(TokenStream::new(), steps), Vec::<String>::new());
}

#[test]
fn an_unknown_need_is_named_with_the_steps_there_are() {
    assert_error(
        quote!(
            #[step]
            fn split() -> R {}
            #[step]
            fn count(spilt: u8) -> R {}
        ),
        "`spilt` is no step of this workflow; other steps: `split`",
    );
    assert_error(
        quote!(
            #[step(after = [b])]
            fn a() -> R {}
        ),
        "`b` is no step of this workflow; other steps: none",
    );
    assert_error(
        quote!(
            #[step(when(input = "x"))]
            fn a() -> R {}
        ),
        "`input` is no step of this workflow; other steps: none",
    );
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let steps = quote! {
        #[step(timeout = "soon")] fn a() -> R {}
        #[step(speed = 1)] async fn b(self, x: &str) -> R {}
    };
    assert_eq!(
        errors(quote!(colour = "red"), steps),
        [
            "a time is a whole number with `ms`, `s`, `m` or `h`, like \"500ms\"",
            "a step cannot be async: it has its instance to itself",
            "a step is a function, not a method: it has no `self`",
            "a step owns its inputs: only `ctx: &Ctx` is a reference",
            "unknown key; a step has `after`, `when`, `retry`, `timeout`, `fuel` and `memory`",
            "unknown key; a workflow has `topics`, `channel`, `output`, `signals` and `timeout`",
        ]
    );
}

#[test]
fn a_step_is_a_plain_function() {
    assert_error(
        quote!(
            #[step]
            fn a<T>(input: T) -> R {}
        ),
        "a step cannot be generic: its inputs come as JSON and need a type",
    );
    assert_error(
        quote!(
            #[step]
            fn a() {}
        ),
        "a step returns `Result<_, Failure>`",
    );
    assert_error(
        quote!(
            #[step]
            #[cfg(test)]
            fn a() -> R {}
        ),
        "a step cannot be conditional: the graph names it",
    );
    assert_error(
        quote!(
            #[step]
            fn a(input: u8, ctx: &Ctx) -> R {}
        ),
        "`ctx: &Ctx` comes first",
    );
    assert_error(
        quote!(
            #[step]
            fn a(ctx: Ctx) -> R {}
        ),
        "the context is taken as `ctx: &Ctx`",
    );
    assert_error(
        quote!(
            #[step]
            fn a((x, y): (u8, u8)) -> R {}
        ),
        "a parameter's name says what the step needs",
    );
}

#[test]
fn names_are_unique_and_not_reserved() {
    assert_error(
        quote!(
            #[step]
            fn input() -> R {}
        ),
        "`input` is reserved and cannot be a step",
    );
    assert_error(
        quote!(
            #[step]
            fn a() -> R {}
            #[step]
            fn a() -> R {}
        ),
        "there are two steps `a`",
    );
    assert_error(
        quote!(
            #[step]
            fn _a() -> R {}
        ),
        "a step's name cannot start with `_`, which is ignored in parameters",
    );
    assert_error(
        quote!(
            #[step]
            fn grüßen() -> R {}
        ),
        "a step's name has at most 64 ASCII characters",
    );
    assert_error(
        quote!(
            #[step]
            fn a() -> R {}
            #[step]
            fn b(a: u8, _a: u8) -> R {}
        ),
        "`a` is taken twice",
    );
}

#[test]
fn a_cycle_is_spelt_out() {
    assert_error(
        quote! {
            #[step] fn start() -> R {}
            #[step] fn a(start: u8, c: u8) -> R {}
            #[step] fn b(a: u8) -> R {}
            #[step(after = [b])] fn c() -> R {}
            #[step] fn behind(c: u8) -> R {}
        },
        "steps wait for each other: a → b → c → a",
    );
    assert_error(
        quote!(
            #[step]
            fn a(a: u8) -> R {}
        ),
        "a step cannot wait for itself",
    );
}

#[test]
fn an_output_must_be_clear() {
    assert_error(
        quote!(
            #[step]
            fn a() -> R {}
            #[step]
            fn b() -> R {}
        ),
        "the run's output could be that of `a`, `b`: say which with `#[workflow(output = \"…\")]`",
    );
    assert_eq!(
        errors(
            quote!(output = "c"),
            quote!(
                #[step]
                fn a() -> R {}
            )
        ),
        ["`c` is no step of this workflow"]
    );
    assert_error(TokenStream::new(), "a workflow needs at least one `#[step]` function");
}

#[test]
fn an_edge_is_made_once() {
    assert_error(
        quote!(
            #[step]
            fn a() -> R {}
            #[step(after = [a])]
            fn b(a: u8) -> R {}
        ),
        "there is an edge from `a` already",
    );
    assert_error(
        quote!(
            #[step]
            fn a() -> R {}
            #[step(when(a = "x", a = "y"))]
            fn b() -> R {}
        ),
        "several labels of one step are written `a = [\"x\", \"y\"]`",
    );
    assert_error(
        quote!(
            #[step]
            fn a() -> R {}
            #[step(when(a = ["x", "x"]))]
            fn b() -> R {}
        ),
        "`x` is given twice",
    );
    assert_error(
        quote!(
            #[step]
            fn a() -> R {}
            #[step(when(a = ""))]
            fn b() -> R {}
        ),
        "a label has 1 to 64 of the characters A-Z a-z 0-9 _ . -",
    );
}

#[test]
fn numbers_keep_to_the_contract() {
    let cases = [
        (quote!(retry(max_attempts = 0)), "must be 1 to 100 attempts"),
        (quote!(retry(factor = 0.5)), "must be 1 to 10 times"),
        (quote!(retry(jitter = 2)), "must be 0 to 1 of a wait"),
        (quote!(retry(initial = "25h")), "must be 0 to 86400000 milliseconds"),
        (quote!(retry(when_exhausted = "wait")), "`when_exhausted` is \"fail\" or \"pause\""),
        (quote!(retry(errors(busy(max_attempts = 0)))), "must be 1 to 100 attempts"),
        (
            quote!(retry(errors(busy(jitter = 1)))),
            "unknown key; an error has `max_attempts`, `initial`, `factor` and `max`",
        ),
        (quote!(retry(errors(Busy(max = "1s")))), "a failure's code has 1 to 64 of the characters a-z 0-9 _"),
        (quote!(retry(max = "10ms")), "`max` is less than `initial`, which is 1000 ms"),
        (quote!(timeout = "0s"), "must be 1 to 3600000 milliseconds"),
        (quote!(fuel = 0), "must be 1 to 100000000000 instructions"),
        (quote!(memory = "1KiB"), "must be 1048576 to 268435456 bytes"),
        (quote!(fuel = 1, fuel = 2), "this is given twice"),
        (
            quote!(retry(patience = 3)),
            "unknown key; `retry` has `max_attempts`, `initial`, `factor`, `max`, `jitter`, `errors` and `when_exhausted`",
        ),
    ];
    for (key, expected) in cases {
        assert_error(
            quote!(
                #[step(#key)]
                fn a() -> R {}
            ),
            expected,
        );
    }
}

#[test]
fn topics_and_channels_have_names() {
    let step = quote!(
        #[step]
        fn a() -> R {}
    );
    assert_eq!(
        errors(quote!(topics = ["ok", "not ok", "ok"], channel = ""), step),
        [
            "a topic has 1 to 64 of the characters A-Z a-z 0-9 _ . -",
            "`ok` is given twice",
            "a channel has 1 to 64 of the characters A-Z a-z 0-9 _ . -",
        ]
    );
}

#[test]
fn only_an_inline_module_is_a_workflow() {
    let error = expand_workflow(
        TokenStream::new(),
        quote!(
            mod flow;
        ),
    )
    .unwrap_err();
    assert_eq!(error.to_string(), "`#[workflow]` needs the module's content here: `mod name { … }`");
    let error = expand_workflow(
        TokenStream::new(),
        quote!(
            fn flow() {}
        ),
    )
    .unwrap_err();
    assert_eq!(error.to_string(), "`#[workflow]` goes on an inline module: `mod name { … }`");
}
