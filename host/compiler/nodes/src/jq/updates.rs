//! Assignments and division as jq's manual has them.
//!
//! jaq walks down to what is to be changed and changes it there, so in `.a.b = 1` it finds no `.b` in a missing `.a` and
//! fails. jq takes the paths first, and makes what a path needs. Graphs count and collect in objects that begin empty, so
//! here `=`, `|=`, `+=` and their like become calls of two filters that do it jq's way. And jaq divides by zero, which
//! ends as a `null` that nobody has asked for, and makes `5.0` of `10 / 2`, which is no index and looks odd in a text.
//!
//! Only expressions are rewritten. jaq's own definitions were written for its own assignments, and what they do stays.

use std::cell::Cell;

use jaq_core::box_iter::box_once;
use jaq_core::load::lex::StrPart;
use jaq_core::load::parse::{BinaryOp, Pattern, Term};
use jaq_core::native::{Filter, v};
use jaq_core::ops::Math;
use jaq_core::path::{Opt, Part};
use jaq_core::{Bind, Cv, Exn, RunPtr, ValT as _};
use jaq_json::{Error, Map, Num, Rc, Val, ValR, ValX};
use jaq_std::ValT as _;

use super::Jq;

/// `paths = values`.
const ASSIGN: &str = "!assign";
/// `paths |= filter`.
const MODIFY: &str = "!modify";
/// `dividend / divisor`.
const DIVIDE: &str = "!divide";
/// The operand of `+=` and its like. No variable of an expression is called so.
const OPERAND: &str = "$!operand";
/// An index beyond this is a mistake: the array would be filled up with `null` to there.
const INDEX_MAX: usize = 1_000_000;

/// Up to here a float tells whole numbers apart.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// Makes calls of the assignments and divisions in a term.
pub(super) fn rewrite(term: &mut Term<&str>) {
    match term {
        Term::Id | Term::Recurse | Term::Num(_) | Term::Break(_) | Term::Var(_) | Term::Arr(None) => {}
        Term::Str(_, parts) => {
            for part in parts {
                if let StrPart::Term(term) = part {
                    rewrite(term);
                }
            }
        }
        Term::Arr(Some(term)) | Term::Neg(term) | Term::Label(_, term) => rewrite(term),
        Term::Obj(fields) => {
            for (name, value) in fields {
                rewrite(name);
                value.iter_mut().for_each(rewrite);
            }
        }
        Term::BinOp(left, operator, right) => {
            rewrite(left);
            rewrite(right);
            if let Some(call) = call(left, operator, right) {
                *term = call;
            }
        }
        Term::Fold(_, values, _, steps) => {
            rewrite(values);
            steps.iter_mut().for_each(rewrite);
        }
        Term::TryCatch(term, otherwise) => {
            rewrite(term);
            otherwise.iter_mut().for_each(|term| rewrite(term));
        }
        Term::IfThenElse(cases, otherwise) => {
            for (condition, then) in cases {
                rewrite(condition);
                rewrite(then);
            }
            otherwise.iter_mut().for_each(|term| rewrite(term));
        }
        Term::Def(definitions, term) => {
            definitions.iter_mut().for_each(|definition| rewrite(&mut definition.body));
            rewrite(term);
        }
        Term::Call(_, arguments) => arguments.iter_mut().for_each(rewrite),
        Term::Path(term, path) => {
            rewrite(term);
            for (part, _) in &mut path.0 {
                match part {
                    Part::Index(index) => rewrite(index),
                    Part::Range(from, to) => from.iter_mut().chain(to).for_each(rewrite),
                }
            }
        }
    }
}

/// The call that an operation becomes.
fn call<'a>(
    left: &mut Term<&'a str>,
    operator: &mut BinaryOp<&'a str>,
    right: &mut Term<&'a str>,
) -> Option<Term<&'a str>> {
    let mut take = || vec![std::mem::take(left), std::mem::take(right)];
    let new = match operator {
        BinaryOp::Assign => return Some(Term::Call(ASSIGN, take())),
        BinaryOp::Update => return Some(Term::Call(MODIFY, take())),
        BinaryOp::Math(Math::Div) => return Some(Term::Call(DIVIDE, take())),
        BinaryOp::UpdateMath(Math::Div) => Term::Call(DIVIDE, vec![Term::Id, Term::Var(OPERAND)]),
        BinaryOp::UpdateMath(operator) => of_operand(BinaryOp::Math(*operator)),
        BinaryOp::UpdateAlt => of_operand(BinaryOp::Alt),
        _ => return None,
    };
    // `l += r` is `r as $x | l |= . + $x`.
    let modify = Term::Call(MODIFY, vec![std::mem::take(left), new]);
    let operand = BinaryOp::Pipe(Some(Pattern::Var(OPERAND)));
    Some(Term::BinOp(Box::new(std::mem::take(right)), operand, Box::new(modify)))
}

fn of_operand(operator: BinaryOp<&str>) -> Term<&str> {
    Term::BinOp(Box::new(Term::Id), operator, Box::new(Term::Var(OPERAND)))
}

/// The filters that the calls are of, and those of jq that do the same with paths as values.
pub(super) fn natives() -> [Filter<RunPtr<Jq>>; 5] {
    let fun = || Bind::Fun(());
    [
        (ASSIGN, [fun(), Bind::Var(())].into(), |mut cv| {
            let value = cv.0.pop_var();
            box_once(paths(&mut cv).and_then(|paths| {
                paths.iter().try_fold(cv.1, |whole, path| update(whole, path, &|_| Ok(value.clone())))
            }))
        }),
        (MODIFY, [fun(), fun()].into(), |mut cv| {
            let (filter, context) = cv.0.pop_fun();
            let new = move |old| filter.run((context.clone(), old)).next().transpose();
            box_once(paths(&mut cv).and_then(|paths| modify(cv.1, paths, &new)))
        }),
        (DIVIDE, v(2), |mut cv| {
            let (divisor, dividend) = (cv.0.pop_var(), cv.0.pop_var());
            box_once(divide(dividend, divisor).map_err(Exn::from))
        }),
        ("setpath", v(2), |mut cv| {
            let (value, path) = (cv.0.pop_var(), cv.0.pop_var());
            box_once(elements(path).and_then(|path| update(cv.1, &path, &|_| Ok(value.clone()))))
        }),
        ("delpaths", v(1), |mut cv| {
            let paths = elements(cv.0.pop_var()).and_then(|paths| paths.into_iter().map(elements).collect());
            box_once(paths.and_then(|paths| delete(cv.1, paths)))
        }),
    ]
}

fn divide(dividend: Val, divisor: Val) -> ValR {
    if let (Some(_), Some(0.0)) = (dividend.as_f64(), divisor.as_f64()) {
        return Err(Error::str(format_args!("cannot divide {dividend} by zero")));
    }
    Ok(match dividend / divisor {
        Ok(Val::Num(Num::Float(float))) => number(float),
        other => return other,
    })
}

/// A number as jq has it, where a whole one is whole however it came about.
pub(super) fn number(float: f64) -> Val {
    if float.fract() == 0.0 && float.abs() < WHOLE_MAX {
        // As text, because machine integers of the sandbox have 32 bits.
        Val::from_num(&format!("{float:.0}")).unwrap_or_else(|_| Val::from(float))
    } else {
        Val::from(float)
    }
}

/// The paths that a filter leads to. The filter is the last argument that is left.
fn paths<'a>(cv: &mut Cv<'a, Jq>) -> Result<Vec<Vec<Val>>, Exn<'a, Val>> {
    let (filter, context) = cv.0.pop_fun();
    let found = filter.paths((context, (cv.1.clone(), Default::default()))).map(|found| {
        let (_, path) = found?;
        let mut path: Vec<_> = path.iter().cloned().collect();
        path.reverse();
        Ok(path)
    });
    found.collect()
}

/// Puts what `new` makes of each value in its place, and deletes those of which it makes nothing.
fn modify<'a>(
    mut whole: Val,
    paths: Vec<Vec<Val>>,
    new: &dyn Fn(Val) -> Result<Option<Val>, Exn<'a, Val>>,
) -> ValX<'a> {
    let mut gone = Vec::new();
    for path in paths {
        let is_gone = Cell::new(false);
        whole = update(whole, &path, &|old| {
            let made = new(old)?;
            is_gone.set(made.is_none());
            Ok(made.unwrap_or_default())
        })?;
        if is_gone.get() {
            gone.push(path);
        }
    }
    delete(whole, gone)
}

/// Changes the value at a path. Where there is `null` or nothing, objects and arrays come into being.
fn update<'a>(value: Val, path: &[Val], new: &dyn Fn(Val) -> ValX<'a>) -> ValX<'a> {
    let Some((key, rest)) = path.split_first() else { return new(value) };
    let mut value = match (value, key) {
        (Val::Null, Val::TStr(_)) => Val::obj(Map::default()),
        (Val::Null, Val::Num(_) | Val::Obj(_)) => Val::Arr(Rc::default()),
        (value, _) => value,
    };
    if let (Val::Arr(items), Some(index)) = (&mut value, key.as_isize().and_then(|index| usize::try_from(index).ok()))
        && index >= items.len()
    {
        if index > INDEX_MAX {
            return Err(Error::str(format_args!("an array cannot be made so long that it has an index {index}")).into());
        }
        Rc::make_mut(items).resize(index + 1, Val::Null);
    }
    value.map_index(key, Opt::Essential, |old| std::iter::once(update(old, rest, new)))
}

/// Deletes what is at paths, from the end, so that what is still to be deleted stays where it is.
fn delete<'a>(value: Val, mut paths: Vec<Vec<Val>>) -> ValX<'a> {
    paths.sort();
    paths.dedup();
    paths.iter().rev().try_fold(value, |value, path| delete_one(value, path))
}

fn delete_one<'a>(value: Val, path: &[Val]) -> ValX<'a> {
    let Some((key, rest)) = path.split_first() else { return Ok(Val::Null) };
    let is_there = match (&value, key) {
        (Val::Null, _) => false,
        (Val::Obj(fields), key) => fields.contains_key(key),
        (Val::Arr(items), Val::Num(_)) => {
            let index = key.as_isize().unwrap_or(isize::MAX);
            if index < 0 { index.unsigned_abs() <= items.len() } else { index.unsigned_abs() < items.len() }
        }
        _ => true,
    };
    if !is_there {
        return Ok(value);
    }
    value.map_index(key, Opt::Essential, |old| (!rest.is_empty()).then(|| delete_one(old, rest)).into_iter())
}

fn elements<'a>(array: Val) -> Result<Vec<Val>, Exn<'a, Val>> {
    array.into_seq().map_err(|value| Error::typ(value, "array").into())
}
