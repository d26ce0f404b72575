//! jq expressions: all of a program's compiled together, and each run on its own.
//!
//! Owns: which filters there are ([`filters`] has those that are not jaq's own, [`updates`] the operators that are not),
//! and the rule that an expression has exactly one value.
//! Does not: know what an expression is evaluated on, or where it stands.
//! Invariant: the standard definitions are compiled once however many expressions there are. They are most of the work
//! and of the memory, and a program may have thousands of expressions.
//!
//! jaq compiles one term at a time and keeps to itself where in its table a term went. So the expressions become the
//! arguments of one generated term, `!entry(e0), !entry(e1), …`, which is run once: `!entry` is a native filter, is
//! handed the place of its argument, and writes it down. It is a syntax tree that is put together here, not a text, so
//! an expression cannot reach out of its place; and no expression can say `!entry`, which is no name in jq.

mod filters;
mod updates;

pub(crate) use filters::percent_encoded;

use std::cell::RefCell;

use jaq_core::compile::{TermId, Undefined};
use jaq_core::data::{DataT, HasLut};
use jaq_core::load::lex::Lexer;
use jaq_core::load::parse::{BinaryOp, Def, Parser, Term};
use jaq_core::load::{Arena, File, Loader};
use jaq_core::native::{Fun, run};
use jaq_core::{Bind, Compiler, Ctx, Lut, Vars};
use jaq_json::Val;

use crate::json;

/// The filter that writes down where its argument is.
const ENTRY: &str = "!entry";
/// The definition that holds all expressions.
const TABLE: &str = "!table";
/// What the main program calls, which must be a name. It is defined after the expressions, so they cannot call it.
const MAIN: &str = "table";

/// An expression of a program, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expression(pub(crate) usize);

/// The compiled expressions of a program.
pub(crate) struct Expressions {
    lut: Lut<Jq>,
    /// Where each expression is in the table.
    entries: Vec<TermId>,
}

/// Why an expression has no single value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoValue {
    /// It has none.
    Empty,
    /// It has more than one.
    Several,
    /// It fails; with jq's words.
    Failed(String),
}

/// Why an expression does not compile.
#[derive(Debug)]
pub(crate) struct Invalid {
    /// The expression, unless the fault is here.
    pub(crate) expression: Option<Expression>,
    pub(crate) message: String,
}

impl Expressions {
    /// Compiles expressions; the number of one is its place in the list.
    pub(crate) fn compile(codes: &[&str]) -> Result<Self, Vec<Invalid>> {
        let mut terms = Vec::with_capacity(codes.len());
        let mut invalid = Vec::new();
        for (number, code) in codes.iter().enumerate() {
            match parse(code) {
                Ok(mut term) => {
                    updates::rewrite(&mut term);
                    terms.push(Term::Call(ENTRY, vec![term]));
                }
                Err(message) => invalid.push(Invalid { expression: Some(Expression(number)), message }),
            }
        }
        if !invalid.is_empty() {
            return Err(invalid);
        }
        let Some(table) = all_of(terms) else {
            return Ok(Self { lut: jaq_core::Filter::default().lut, entries: vec![] });
        };

        let mut definitions = filters::definitions();
        definitions.push(Def { name: TABLE, args: Vec::new(), body: table });
        definitions.push(Def { name: MAIN, args: Vec::new(), body: Term::Call(TABLE, Vec::new()) });
        let arena = Arena::default();
        let modules = Loader::new(definitions).load(&arena, File { code: MAIN, path: () });
        let modules = modules.map_err(|_| vec![own_fault("the definitions do not load")])?;
        let filter = Compiler::default().with_funs(filters::natives().chain([entry()])).compile(modules);
        let filter = filter.map_err(|errors| {
            let undefined = errors.into_iter().flat_map(|(_, undefined)| undefined);
            undefined
                .map(|(name, what)| Invalid { expression: origin(codes, name), message: missing(name, &what) })
                .collect::<Vec<_>>()
        })?;

        let found = RefCell::new(Vec::with_capacity(codes.len()));
        let context = Ctx::<Jq>::new(Data { lut: &filter.lut, found: Some(&found) }, Vars::new([]));
        filter.id.run((context, Val::Null)).for_each(drop);
        let entries = found.into_inner();
        if entries.len() != codes.len() {
            return Err(vec![own_fault("the table of expressions is not complete")]);
        }
        Ok(Self { lut: filter.lut, entries })
    }

    /// The value of an expression on a context.
    pub(crate) fn value(&self, expression: Expression, context: &Val) -> Result<Val, NoValue> {
        let entry = self.entries.get(expression.0).ok_or_else(|| NoValue::Failed("it was not compiled".to_owned()))?;
        let own = Ctx::<Jq>::new(Data { lut: &self.lut, found: None }, Vars::new([]));
        let mut values = entry.run((own, context.clone())).map(|value| {
            value.map_err(|exception| match exception.get_err() {
                Ok(error) => NoValue::Failed(json::text(&error.into_val()).unwrap_or_else(str::to_owned)),
                // Labels cannot be left from outside of them, and there is no filter that ends the program.
                Err(_) => NoValue::Failed("it was left in the middle".to_owned()),
            })
        });
        let value = values.next().ok_or(NoValue::Empty)??;
        match values.next() {
            None => Ok(value),
            Some(Ok(_)) => Err(NoValue::Several),
            Some(Err(failed)) => Err(failed),
        }
    }
}

/// What the filters work on: values of JSON, and, while a program is loaded, the list that [`ENTRY`] writes to.
struct Jq;

impl DataT for Jq {
    type V<'a> = Val;
    type Data<'a> = Data<'a>;
}

#[derive(Clone, Copy)]
struct Data<'a> {
    lut: &'a Lut<Jq>,
    found: Option<&'a RefCell<Vec<TermId>>>,
}

impl<'a> HasLut<'a, Jq> for Data<'a> {
    fn lut(&self) -> &'a Lut<Jq> {
        self.lut
    }
}

fn entry() -> Fun<Jq> {
    run((ENTRY, [Bind::Fun(())].into(), |mut cv| {
        let (place, _) = cv.0.pop_fun();
        if let Some(found) = cv.0.data().found {
            found.borrow_mut().push(place);
        }
        Box::new(std::iter::empty())
    }))
}

/// `t0, t1, …`, as a tree that is as flat as can be: its depth is stack, when it is compiled and when it is run.
fn all_of(mut terms: Vec<Term<&str>>) -> Option<Term<&str>> {
    if terms.len() < 2 {
        return terms.pop();
    }
    let right = terms.split_off(terms.len() / 2);
    match (all_of(terms), all_of(right)) {
        (Some(left), Some(right)) => Some(Term::BinOp(Box::new(left), BinaryOp::Comma, Box::new(right))),
        (one, other) => one.or(other),
    }
}

fn parse(code: &str) -> Result<Term<&str>, String> {
    let tokens = Lexer::new(code).lex().map_err(|errors| match errors.into_iter().next() {
        Some((expected, found)) => unexpected(expected.as_str(), found),
        None => "is not jq".to_owned(),
    })?;
    Parser::new(&tokens).parse(|parser| parser.term()).map_err(|errors| match errors.into_iter().next() {
        Some((expected, found)) => unexpected(expected.as_str(), found.map_or("", |token| token.0)),
        None => "is not jq".to_owned(),
    })
}

fn unexpected(expected: &str, found: &str) -> String {
    let found: String = found.chars().take(20).collect();
    if found.is_empty() {
        format!("expected {expected} at the end")
    } else {
        format!("expected {expected} at `{found}`")
    }
}

fn missing(name: &str, what: &Undefined) -> String {
    match what {
        Undefined::Filter(arity) => format!("there is no filter {name}/{arity}"),
        what => format!("there is no {} {name}", what.as_str()),
    }
}

/// The expression that a name was read from. The compiler's errors name no place, but the name is a part of the code.
fn origin(codes: &[&str], name: &str) -> Option<Expression> {
    let number = codes.iter().position(|code| code.as_bytes().as_ptr_range().contains(&name.as_ptr()))?;
    Some(Expression(number))
}

fn own_fault(message: &str) -> Invalid {
    Invalid { expression: None, message: message.to_owned() }
}
