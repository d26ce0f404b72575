//! What is written in a `#[workflow]` module, as data.
//!
//! Owns the syntax: which keys there are, and what a step's signature may look like. Rules that need more than
//! one step, and the contract's ranges, are in `check.rs`.

use std::fmt::Display;

use proc_macro2::{Span, TokenStream};
use syn::ext::IdentExt;
use syn::meta::ParseNestedMeta;
use syn::parse::{Parse, Parser};
use syn::spanned::Spanned;
use syn::{
    Attribute, Expr, ExprLit, FnArg, Ident, Item, ItemFn, ItemMod, Lit, LitFloat, LitInt, LitStr, Meta, Pat,
    PathArguments, ReturnType, Token, Type, bracketed,
};

use crate::{Errors, units};

/// A value and where it was written.
#[derive(Clone)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) span: Span,
}

impl<T> At<T> {
    fn new(value: T, span: Span) -> Self {
        Self { value, span }
    }

    pub(crate) fn error(&self, message: impl Display) -> syn::Error {
        syn::Error::new(self.span, message)
    }
}

pub(crate) struct Workflow {
    /// The module, with the `#[step]` attributes taken off.
    pub(crate) module: ItemMod,
    pub(crate) topics: Vec<At<String>>,
    pub(crate) channel: Option<At<String>>,
    pub(crate) output: Option<At<String>>,
    pub(crate) signals: Vec<At<String>>,
    pub(crate) timeout_ms: Option<At<u64>>,
    pub(crate) steps: Vec<Step>,
}

pub(crate) struct Step {
    pub(crate) function: Ident,
    /// The node's id: the function's name.
    pub(crate) id: At<String>,
    pub(crate) description: Option<At<String>>,
    pub(crate) takes_ctx: bool,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) after: Vec<At<String>>,
    pub(crate) when: Vec<When>,
    pub(crate) retry: Retry,
    pub(crate) timeout_ms: Option<At<u64>>,
    pub(crate) fuel: Option<At<u64>>,
    pub(crate) memory_bytes: Option<At<u64>>,
}

pub(crate) struct Parameter {
    /// `input` or a step, without leading underscores.
    pub(crate) need: At<String>,
    pub(crate) ty: Type,
    /// Its type is written `Option<…>`.
    pub(crate) optional: bool,
}

pub(crate) struct When {
    pub(crate) source: At<String>,
    pub(crate) labels: Vec<At<String>>,
}

#[derive(Default)]
pub(crate) struct Retry {
    pub(crate) max_attempts: Option<At<u64>>,
    pub(crate) initial_ms: Option<At<u64>>,
    pub(crate) factor: Option<At<f64>>,
    pub(crate) max_ms: Option<At<u64>>,
    pub(crate) jitter: Option<At<f64>>,
    pub(crate) when_exhausted: Option<At<String>>,
    /// By code.
    pub(crate) errors: Vec<(At<String>, Retry)>,
}

pub(crate) fn workflow(attribute: TokenStream, item: TokenStream) -> syn::Result<Workflow> {
    let mut module: ItemMod = syn::parse2(item)
        .map_err(|error| syn::Error::new(error.span(), "`#[workflow]` goes on an inline module: `mod name { … }`"))?;
    let Some((_, items)) = &mut module.content else {
        return Err(syn::Error::new(module.span(), "`#[workflow]` needs the module's content here: `mod name { … }`"));
    };

    let mut errors = Errors::default();
    let mut steps = Vec::new();
    for item in items {
        let Item::Fn(function) = item else { continue };
        if let Some(attribute) = take_step_attribute(function) {
            steps.extend(step(&attribute, function, &mut errors));
        }
    }

    let (mut topics, mut channel, mut output) = (Vec::new(), None, None);
    let (mut signals, mut timeout_ms) = (Vec::new(), None);
    let keys = syn::meta::parser(|meta| {
        if meta.path.is_ident("topics") {
            topics = strings(&meta)?;
            Ok(())
        } else if meta.path.is_ident("channel") {
            once(&meta, &mut channel, string)
        } else if meta.path.is_ident("output") {
            once(&meta, &mut output, string)
        } else if meta.path.is_ident("signals") {
            signals = strings(&meta)?;
            Ok(())
        } else if meta.path.is_ident("timeout") {
            once(&meta, &mut timeout_ms, time)
        } else {
            Err(meta.error("unknown key; a workflow has `topics`, `channel`, `output`, `signals` and `timeout`"))
        }
    });
    errors.ok(keys.parse2(attribute));
    errors.finish()?;
    Ok(Workflow { module, topics, channel, output, signals, timeout_ms, steps })
}

fn take_step_attribute(function: &mut ItemFn) -> Option<Attribute> {
    let is_step =
        |attribute: &Attribute| attribute.path().segments.last().is_some_and(|segment| segment.ident == "step");
    let place = function.attrs.iter().position(is_step)?;
    Some(function.attrs.remove(place))
}

fn step(attribute: &Attribute, function: &ItemFn, errors: &mut Errors) -> Option<Step> {
    let signature = &function.sig;
    if let Some(asyncness) = &signature.asyncness {
        errors.push(syn::Error::new(asyncness.span(), "a step cannot be async: it has its instance to itself"));
    }
    if !signature.generics.params.is_empty() {
        errors.push(syn::Error::new(
            signature.generics.span(),
            "a step cannot be generic: its inputs come as JSON and need a type",
        ));
    }
    if matches!(signature.output, ReturnType::Default) {
        errors.push(syn::Error::new(signature.ident.span(), "a step returns `Result<_, Failure>`"));
    }
    for attribute in &function.attrs {
        if attribute.path().is_ident("cfg") || attribute.path().is_ident("cfg_attr") {
            errors.push(syn::Error::new(attribute.span(), "a step cannot be conditional: the graph names it"));
        }
    }

    let mut takes_ctx = false;
    let mut parameters = Vec::new();
    for (place, argument) in signature.inputs.iter().enumerate() {
        match errors.ok(parameter(argument)) {
            Some(Argument::Ctx) if place == 0 => takes_ctx = true,
            Some(Argument::Ctx) => {
                errors.push(syn::Error::new(argument.span(), "`ctx: &Ctx` comes first"));
            }
            Some(Argument::Need(parameter)) => parameters.push(*parameter),
            None => {}
        }
    }

    let mut step = Step {
        function: signature.ident.clone(),
        id: At::new(signature.ident.unraw().to_string(), signature.ident.span()),
        description: description(&function.attrs),
        takes_ctx,
        parameters,
        after: Vec::new(),
        when: Vec::new(),
        retry: Retry::default(),
        timeout_ms: None,
        fuel: None,
        memory_bytes: None,
    };
    if !matches!(attribute.meta, Meta::Path(_)) {
        errors.ok(attribute.parse_nested_meta(|meta| step_key(&mut step, &meta)))?;
    }
    Some(step)
}

fn step_key(step: &mut Step, meta: &ParseNestedMeta<'_>) -> syn::Result<()> {
    if meta.path.is_ident("after") {
        step.after.extend(names(meta)?);
        Ok(())
    } else if meta.path.is_ident("when") {
        meta.parse_nested_meta(|meta| {
            let source = meta.path.require_ident()?;
            let source = At::new(source.unraw().to_string(), source.span());
            step.when.push(When { source, labels: strings(&meta)? });
            Ok(())
        })
    } else if meta.path.is_ident("retry") {
        meta.parse_nested_meta(|meta| retry_key(&mut step.retry, &meta))
    } else if meta.path.is_ident("timeout") {
        once(meta, &mut step.timeout_ms, time)
    } else if meta.path.is_ident("fuel") {
        once(meta, &mut step.fuel, integer)
    } else if meta.path.is_ident("memory") {
        once(meta, &mut step.memory_bytes, size)
    } else {
        Err(meta.error("unknown key; a step has `after`, `when`, `retry`, `timeout`, `fuel` and `memory`"))
    }
}

fn retry_key(retry: &mut Retry, meta: &ParseNestedMeta<'_>) -> syn::Result<()> {
    if meta.path.is_ident("max_attempts") {
        once(meta, &mut retry.max_attempts, integer)
    } else if meta.path.is_ident("initial") {
        once(meta, &mut retry.initial_ms, time)
    } else if meta.path.is_ident("factor") {
        once(meta, &mut retry.factor, number)
    } else if meta.path.is_ident("max") {
        once(meta, &mut retry.max_ms, time)
    } else if meta.path.is_ident("jitter") {
        once(meta, &mut retry.jitter, number)
    } else if meta.path.is_ident("when_exhausted") {
        once(meta, &mut retry.when_exhausted, string)
    } else if meta.path.is_ident("errors") {
        meta.parse_nested_meta(|meta| {
            let code = meta.path.require_ident()?;
            let code = At::new(code.unraw().to_string(), code.span());
            let mut policy = Retry::default();
            meta.parse_nested_meta(|meta| error_key(&mut policy, &meta))?;
            retry.errors.push((code, policy));
            Ok(())
        })
    } else {
        Err(meta.error(
            "unknown key; `retry` has `max_attempts`, `initial`, `factor`, `max`, `jitter`, `errors` and `when_exhausted`",
        ))
    }
}

/// What can be said of failures with one code.
fn error_key(retry: &mut Retry, meta: &ParseNestedMeta<'_>) -> syn::Result<()> {
    if ["max_attempts", "initial", "factor", "max"].iter().any(|key| meta.path.is_ident(key)) {
        retry_key(retry, meta)
    } else {
        Err(meta.error("unknown key; an error has `max_attempts`, `initial`, `factor` and `max`"))
    }
}

enum Argument {
    Ctx,
    Need(Box<Parameter>),
}

fn parameter(argument: &FnArg) -> syn::Result<Argument> {
    let FnArg::Typed(argument) = argument else {
        return Err(syn::Error::new(argument.span(), "a step is a function, not a method: it has no `self`"));
    };
    if let Type::Reference(reference) = &*argument.ty {
        if last_segment(&reference.elem).is_some_and(|segment| segment.ident == "Ctx") {
            return Ok(Argument::Ctx);
        }
        return Err(syn::Error::new(argument.ty.span(), "a step owns its inputs: only `ctx: &Ctx` is a reference"));
    }
    let Pat::Ident(name) = &*argument.pat else {
        return Err(syn::Error::new(argument.pat.span(), "a parameter's name says what the step needs"));
    };
    let need = name.ident.unraw().to_string();
    let need = At::new(need.trim_start_matches('_').to_owned(), name.ident.span());
    if need.value == "ctx" {
        return Err(need.error("the context is taken as `ctx: &Ctx`"));
    }
    let optional = last_segment(&argument.ty).is_some_and(|segment| {
        segment.ident == "Option" && matches!(segment.arguments, PathArguments::AngleBracketed(_))
    });
    Ok(Argument::Need(Box::new(Parameter { need, ty: (*argument.ty).clone(), optional })))
}

fn last_segment(ty: &Type) -> Option<&syn::PathSegment> {
    match ty {
        Type::Path(path) => path.path.segments.last(),
        _ => None,
    }
}

/// The first paragraph of the documentation, on one line.
fn description(attributes: &[Attribute]) -> Option<At<String>> {
    let mut lines = Vec::new();
    let mut span = None;
    for attribute in attributes {
        let Meta::NameValue(meta) = &attribute.meta else { continue };
        let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = &meta.value else { continue };
        if !meta.path.is_ident("doc") {
            continue;
        }
        span.get_or_insert(text.span());
        lines.extend(text.value().lines().map(|line| line.trim().to_owned()));
        if text.value().is_empty() {
            lines.push(String::new());
        }
    }
    let paragraph: Vec<String> =
        lines.into_iter().skip_while(String::is_empty).take_while(|line| !line.is_empty()).collect();
    span.filter(|_| !paragraph.is_empty()).map(|span| At::new(paragraph.join(" "), span))
}

/// Parses `key = value` into its place, which must be empty.
fn once<T>(
    meta: &ParseNestedMeta<'_>,
    place: &mut Option<T>,
    parse: impl FnOnce(&ParseNestedMeta<'_>) -> syn::Result<T>,
) -> syn::Result<()> {
    if place.is_some() {
        return Err(meta.error("this is given twice"));
    }
    *place = Some(parse(meta)?);
    Ok(())
}

fn string(meta: &ParseNestedMeta<'_>) -> syn::Result<At<String>> {
    let literal: LitStr = meta.value()?.parse()?;
    Ok(At::new(literal.value(), literal.span()))
}

/// `= "a"` or `= ["a", "b"]`.
fn strings(meta: &ParseNestedMeta<'_>) -> syn::Result<Vec<At<String>>> {
    let value = meta.value()?;
    if !value.peek(syn::token::Bracket) {
        let literal: LitStr = value.parse()?;
        return Ok(vec![At::new(literal.value(), literal.span())]);
    }
    let content;
    bracketed!(content in value);
    let literals = content.parse_terminated(<LitStr as Parse>::parse, Token![,])?;
    Ok(literals.iter().map(|literal| At::new(literal.value(), literal.span())).collect())
}

/// `= a` or `= [a, b]`.
fn names(meta: &ParseNestedMeta<'_>) -> syn::Result<Vec<At<String>>> {
    let value = meta.value()?;
    let name = |ident: &Ident| At::new(ident.unraw().to_string(), ident.span());
    if !value.peek(syn::token::Bracket) {
        return Ok(vec![name(&value.parse()?)]);
    }
    let content;
    bracketed!(content in value);
    let idents = content.parse_terminated(Ident::parse, Token![,])?;
    Ok(idents.iter().map(name).collect())
}

fn time(meta: &ParseNestedMeta<'_>) -> syn::Result<At<u64>> {
    let literal: LitStr = meta.value()?.parse()?;
    Ok(At::new(units::milliseconds(&literal)?, literal.span()))
}

fn size(meta: &ParseNestedMeta<'_>) -> syn::Result<At<u64>> {
    let literal: LitStr = meta.value()?.parse()?;
    Ok(At::new(units::bytes(&literal)?, literal.span()))
}

fn integer(meta: &ParseNestedMeta<'_>) -> syn::Result<At<u64>> {
    let literal: LitInt = meta.value()?.parse()?;
    Ok(At::new(literal.base10_parse()?, literal.span()))
}

fn number(meta: &ParseNestedMeta<'_>) -> syn::Result<At<f64>> {
    let value = meta.value()?;
    if value.peek(LitInt) {
        let literal: LitInt = value.parse()?;
        return Ok(At::new(literal.base10_parse()?, literal.span()));
    }
    let literal: LitFloat = value.parse()?;
    Ok(At::new(literal.base10_parse()?, literal.span()))
}
