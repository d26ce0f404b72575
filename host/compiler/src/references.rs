//! What an expression refers to: parts of the context it is evaluated on, and names that have to be defined.
//!
//! The context is an object `{input, nodes: {<id>: …}, item, index, failures, run}`. A path such as `.nodes.a.title`
//! refers to one part of it, and only as long as `.` still is the context: behind `.input |` it is something else. So
//! the walk keeps for every term whether its input is the context, and learns from each what it puts out.
//!
//! Owns: that analysis. It looks at an expression alone.
//! Does not: know which nodes there are, and which of them may be referred to.
//! Invariant: an expression uses no part of the context that is not among its [`Uses`]. Where the context is used as a
//! value, be it that it is handed to a filter, bound to a variable or put out, [`Uses::everything`] is set, and nothing
//! that happens to that value has to be followed. Each term is walked once, so the work is linear.

use std::borrow::Cow;
use std::collections::HashMap;

use jaq_core::load::lex::StrPart;
use jaq_core::load::parse::{BinaryOp, Def, Pattern, Term};
use jaq_core::path::{Part as PathPart, Path};

use crate::expression::offset;
use crate::filters::Filters;

/// A part of the context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part<'c> {
    /// The run's input.
    Input,
    /// A node's output.
    Node(Cow<'c, str>),
    /// The item or state.
    Item,
    /// The number of the item or iteration.
    Index,
    /// What failed in a fan-out.
    Failures,
    /// What is known about the run.
    Run,
    /// A key that the context does not have.
    Unknown(Cow<'c, str>),
}

/// A path on the context, or on what may be the context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference<'c> {
    pub(crate) part: Part<'c>,
    /// Where it stands, in bytes.
    pub(crate) at: usize,
    /// Whether it is known to be a path on the context. Elsewhere it may be about other data.
    pub(crate) is_certain: bool,
}

/// What a name was taken for that is not defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Undefined {
    /// A filter with so many arguments.
    Filter(usize),
    Variable,
    Label,
    Module,
}

/// A name that is not defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Missing<'c> {
    pub(crate) name: &'c str,
    pub(crate) what: Undefined,
    pub(crate) at: usize,
}

/// What an expression refers to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Uses<'c> {
    pub(crate) references: Vec<Reference<'c>>,
    /// It uses the context, or something that cannot be told of it, as a value.
    pub(crate) everything: bool,
    pub(crate) missing: Vec<Missing<'c>>,
    /// Names of filters that the expression defines.
    pub(crate) defined: Vec<&'c str>,
}

/// What an expression refers to.
pub(crate) fn uses<'c>(code: &'c str, term: &Term<&'c str>, filters: &Filters) -> Uses<'c> {
    let mut walk = Walk::new(code, filters);
    let output = walk.term(term, Is::Context);
    walk.as_value(output);
    walk.uses
}

/// Whether all names in a definition are defined.
pub(crate) fn is_defined(definition: &Def<&'static str>, filters: &Filters) -> bool {
    let mut walk = Walk::new("", filters);
    walk.definition(definition);
    walk.uses.missing.is_empty()
}

/// Whether a value is the context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Context,
    Perhaps,
    Other,
}

impl Is {
    /// Of a value that is one or the other.
    fn or(self, other: Self) -> Self {
        if self == other { self } else { Self::Perhaps }
    }

    /// Of what is called with a value like this one or with something else.
    fn perhaps(self) -> Self {
        self.or(Self::Other)
    }
}

/// What a name with a number of arguments stands for.
#[derive(Debug, Clone, Copy)]
enum Local {
    /// An argument of the definition around. What it was called with is walked where that is called.
    Argument,
    /// A definition, by its place in [`Walk::reads_all`].
    Definition(usize),
}

struct Walk<'c, 'f> {
    code: &'c str,
    filters: &'f Filters,
    uses: Uses<'c>,
    filters_here: HashMap<(&'c str, usize), Vec<Local>>,
    variables: HashMap<&'c str, usize>,
    labels: HashMap<&'c str, usize>,
    /// Of each definition: whether a call on the context uses everything.
    reads_all: Vec<bool>,
}

impl<'c, 'f> Walk<'c, 'f> {
    fn new(code: &'c str, filters: &'f Filters) -> Self {
        Self {
            code,
            filters,
            uses: Uses::default(),
            filters_here: HashMap::new(),
            variables: HashMap::new(),
            labels: HashMap::new(),
            reads_all: Vec::new(),
        }
    }

    /// A value is used, for whatever.
    fn as_value(&mut self, value: Is) {
        self.uses.everything |= value != Is::Other;
    }

    /// A term whose outputs are used as values.
    fn value(&mut self, term: &Term<&'c str>, input: Is) {
        let output = self.term(term, input);
        self.as_value(output);
    }

    /// Walks a term. Returns what it puts out.
    fn term(&mut self, term: &Term<&'c str>, input: Is) -> Is {
        match term {
            Term::Id => input,
            Term::Recurse => {
                self.as_value(input);
                Is::Other
            }
            Term::Num(_) => Is::Other,
            Term::Str(format, parts) => {
                if let Some(format) = format {
                    self.resolve(format, 0);
                }
                for part in parts {
                    if let StrPart::Term(term) = part {
                        self.value(term, input);
                    }
                }
                Is::Other
            }
            Term::Arr(items) => {
                if let Some(items) = items {
                    self.value(items, input);
                }
                Is::Other
            }
            Term::Obj(entries) => {
                for (key, value) in entries {
                    match value {
                        Some(value) => {
                            self.value(key, input);
                            self.value(value, input);
                        }
                        // `{$x}` is the variable, `{title}` is `{title: .title}`.
                        None if matches!(key, Term::Var(_)) => self.value(key, input),
                        None => drop(self.path(input, input, &[PathPart::Index(key)])),
                    }
                }
                Is::Other
            }
            Term::Neg(term) => {
                self.value(term, input);
                Is::Other
            }
            Term::BinOp(left, operator, right) => self.operation(left, operator, right, input),
            Term::Label(name, term) => {
                *self.labels.entry(name).or_default() += 1;
                let output = self.term(term, input);
                leave(&mut self.labels, name);
                output
            }
            Term::Break(name) => {
                if !self.labels.contains_key(name) {
                    self.miss(name, Undefined::Label);
                }
                Is::Other
            }
            Term::Fold(name, items, pattern, arguments) => self.fold(name, items, pattern, arguments, input),
            Term::TryCatch(tried, caught) => {
                let output = self.term(tried, input);
                match caught {
                    // It works on the error, which is no context: `error(.)` uses that as a value.
                    Some(caught) => output.or(self.term(caught, Is::Other)),
                    None => output,
                }
            }
            Term::IfThenElse(branches, otherwise) => {
                let mut outputs = Vec::with_capacity(branches.len() + 1);
                for (condition, then) in branches {
                    self.value(condition, input);
                    outputs.push(self.term(then, input));
                }
                outputs.push(otherwise.as_ref().map_or(input, |otherwise| self.term(otherwise, input)));
                outputs.into_iter().reduce(Is::or).unwrap_or(Is::Other)
            }
            Term::Def(definitions, term) => {
                definitions.iter().for_each(|definition| self.definition(definition));
                let output = self.term(term, input);
                for definition in definitions {
                    self.forget(definition.name, definition.args.len());
                }
                output
            }
            Term::Call(name, arguments) => self.call(name, arguments, input),
            Term::Var(name) => {
                if !self.variables.contains_key(name) {
                    self.miss(name, Undefined::Variable);
                }
                Is::Other
            }
            Term::Path(term, Path(parts)) => {
                let base = self.term(term, input);
                let parts: Vec<_> = parts.iter().map(|(part, _)| part_of(part)).collect();
                self.path(base, input, &parts)
            }
        }
    }

    fn operation(
        &mut self,
        left: &Term<&'c str>,
        operator: &BinaryOp<&'c str>,
        right: &Term<&'c str>,
        input: Is,
    ) -> Is {
        match operator {
            BinaryOp::Pipe(None) => {
                let between = self.term(left, input);
                self.term(right, between)
            }
            BinaryOp::Pipe(Some(pattern)) => {
                self.value(left, input);
                self.pattern(pattern, input);
                let bound = self.bind(pattern);
                let output = self.term(right, input);
                self.unbind(&bound);
                output
            }
            BinaryOp::Comma | BinaryOp::Alt => {
                let left = self.term(left, input);
                left.or(self.term(right, input))
            }
            BinaryOp::Or | BinaryOp::And | BinaryOp::Math(_) | BinaryOp::Cmp(_) => {
                self.value(left, input);
                self.value(right, input);
                Is::Other
            }
            // What is put out is the input with something changed in it, so all of it is used. What is on the right of
            // `|=` works on what the left leads to, which is the context itself in `. |= …`.
            BinaryOp::Assign | BinaryOp::Update | BinaryOp::UpdateMath(_) | BinaryOp::UpdateAlt => {
                self.as_value(input);
                self.value(left, input);
                let right_input = if matches!(operator, BinaryOp::Update) { input.perhaps() } else { input };
                self.value(right, right_input);
                Is::Other
            }
        }
    }

    fn fold(
        &mut self,
        name: &'c str,
        items: &Term<&'c str>,
        pattern: &Pattern<&'c str>,
        arguments: &[Term<&'c str>],
        input: Is,
    ) -> Is {
        let (initial, rest) = match arguments {
            [initial, rest @ ..] if rest.len() == 1 || (rest.len() == 2 && name == "foreach") => (initial, rest),
            _ => {
                self.miss(name, Undefined::Filter(arguments.len()));
                return Is::Other;
            }
        };
        self.value(items, input);
        self.pattern(pattern, input);
        let initial = self.term(initial, input);
        // The state is the initial value at first, and then whatever came of it.
        let state = initial.perhaps();
        let bound = self.bind(pattern);
        let mut output = state;
        for step in rest {
            // `foreach`'s projection works on what the update puts out.
            let next = self.term(step, output);
            output = if output == Is::Other { Is::Other } else { next.or(state) };
        }
        self.unbind(&bound);
        output
    }

    /// Keys in a pattern are terms too.
    fn pattern(&mut self, pattern: &Pattern<&'c str>, input: Is) {
        match pattern {
            Pattern::Var(_) => {}
            Pattern::Arr(patterns) => patterns.iter().for_each(|pattern| self.pattern(pattern, input)),
            Pattern::Obj(entries) => {
                for (key, pattern) in entries {
                    self.value(key, input.perhaps());
                    self.pattern(pattern, input);
                }
            }
        }
    }

    fn bind(&mut self, pattern: &Pattern<&'c str>) -> Vec<&'c str> {
        let mut names = Vec::new();
        collect(pattern, &mut names);
        names.iter().for_each(|name| *self.variables.entry(name).or_default() += 1);
        names
    }

    fn unbind(&mut self, names: &[&'c str]) {
        names.iter().for_each(|name| leave(&mut self.variables, name));
    }

    /// A definition, known from here on until it is forgotten. Its body is walked once, as if it were called on the
    /// context or on something else. References in it count where it stands; whether it uses everything only counts
    /// where it is called on the context.
    fn definition(&mut self, definition: &Def<&'c str>) {
        let place = self.reads_all.len();
        self.reads_all.push(false);
        let key = (definition.name, definition.args.len());
        let everything = std::mem::take(&mut self.uses.everything);
        for name in &definition.args {
            match name.starts_with('$') {
                true => *self.variables.entry(name).or_default() += 1,
                false => self.filters_here.entry((name, 0)).or_default().push(Local::Argument),
            }
        }
        // A call to itself adds nothing to what the body does.
        self.filters_here.entry(key).or_default().push(Local::Definition(place));
        self.value(&definition.body, Is::Perhaps);
        self.forget(key.0, key.1);
        for name in &definition.args {
            match name.starts_with('$') {
                true => leave(&mut self.variables, name),
                false => self.forget(name, 0),
            }
        }
        let reads_all = std::mem::replace(&mut self.uses.everything, everything);
        if let Some(known) = self.reads_all.get_mut(place) {
            *known = reads_all;
        }
        self.filters_here.entry(key).or_default().push(Local::Definition(place));
        self.uses.defined.push(definition.name);
    }

    fn forget(&mut self, name: &'c str, arguments: usize) {
        if let Some(known) = self.filters_here.get_mut(&(name, arguments)) {
            known.pop();
        }
    }

    fn local(&self, name: &'c str, arguments: usize) -> Option<Local> {
        self.filters_here.get(&(name, arguments))?.last().copied()
    }

    /// A call. Returns what it puts out.
    fn call(&mut self, name: &'c str, arguments: &[Term<&'c str>], input: Is) -> Is {
        match self.local(name, arguments.len()) {
            // Its outputs were used as values where it was handed over.
            Some(Local::Argument) => Is::Other,
            Some(Local::Definition(place)) => {
                let reads_all = self.reads_all.get(place).copied().unwrap_or(true);
                self.uses.everything |= reads_all && input != Is::Other;
                // The definition may call them with its input or with something else.
                arguments.iter().for_each(|argument| self.value(argument, input.perhaps()));
                Is::Other
            }
            None if !self.resolve(name, arguments.len()) => {
                arguments.iter().for_each(|argument| self.value(argument, input));
                Is::Other
            }
            None => self.call_known(name, arguments, input),
        }
    }

    /// A call to a filter that every expression has. Most of them read their input. Those that do not are named here,
    /// by what jq's definitions of them say; for one that is not named, too much is taken to be used.
    fn call_known(&mut self, name: &'c str, arguments: &[Term<&'c str>], input: Is) -> Is {
        match (name, arguments) {
            ("null" | "true" | "false" | "empty" | "nan" | "infinite", [])
            | ("error" | "first" | "last" | "isempty" | "add" | "range", [_])
            | ("limit" | "skip" | "nth" | "range", [_, _])
            | ("range" | "fma", [_, _, _])
            | ("pow" | "atan2" | "fmin" | "fmax" | "fmod" | "hypot" | "ldexp", [_, _]) => {
                arguments.iter().for_each(|argument| self.value(argument, input));
                Is::Other
            }
            ("select", [condition]) => {
                self.value(condition, input);
                input
            }
            ("any" | "all", [items, condition]) => {
                let item = self.term(items, input);
                self.value(condition, item);
                Is::Other
            }
            _ => {
                self.as_value(input);
                arguments.iter().for_each(|argument| self.value(argument, input.perhaps()));
                Is::Other
            }
        }
    }

    /// Whether a name is that of a filter; tells it where it is not.
    fn resolve(&mut self, name: &'c str, arguments: usize) -> bool {
        if self.local(name, arguments).is_some() || self.filters.has(name, arguments) {
            return true;
        }
        let what = if name.contains("::") { Undefined::Module } else { Undefined::Filter(arguments) };
        self.miss(name, what);
        false
    }

    fn miss(&mut self, name: &'c str, what: Undefined) {
        let at = offset(self.code, name);
        self.uses.missing.push(Missing { name, what, at });
    }

    /// A path on `base`, whose computed keys are evaluated on `input`. What it leads to is never the context.
    fn path(&mut self, base: Is, input: Is, parts: &[PathPart<&Term<&'c str>>]) -> Is {
        let constant = |part: Option<&PathPart<&Term<&'c str>>>| match part {
            Some(PathPart::Index(key)) => constant_key(key),
            _ => None,
        };
        for part in parts {
            match part {
                PathPart::Index(key) if constant_key(key).is_some() => {}
                PathPart::Index(key) => self.value(key, input),
                PathPart::Range(from, to) => [from, to].into_iter().flatten().for_each(|term| self.value(term, input)),
            }
        }
        if base == Is::Other {
            return Is::Other;
        }
        let part = match constant(parts.first()) {
            None => None,
            Some((key, at)) => match (&*key, constant(parts.get(1))) {
                ("nodes", None) => None,
                ("nodes", Some((id, at))) => Some((Part::Node(id), at)),
                ("input", _) => Some((Part::Input, at)),
                ("item", _) => Some((Part::Item, at)),
                ("index", _) => Some((Part::Index, at)),
                ("failures", _) => Some((Part::Failures, at)),
                ("run", _) => Some((Part::Run, at)),
                _ => Some((Part::Unknown(key), at)),
            },
        };
        match part {
            Some((part, place)) => {
                let (at, is_certain) = (offset(self.code, place), base == Is::Context);
                self.uses.references.push(Reference { part, at, is_certain });
            }
            // The context's values, all nodes, or something that is only known when the step runs.
            None => self.uses.everything = true,
        }
        Is::Other
    }
}

/// A part of a path, borrowed.
fn part_of<'t, 'c>(part: &'t PathPart<Term<&'c str>>) -> PathPart<&'t Term<&'c str>> {
    match part {
        PathPart::Index(key) => PathPart::Index(key),
        PathPart::Range(from, to) => PathPart::Range(from.as_ref(), to.as_ref()),
    }
}

/// A key that is the same in every evaluation, and where it stands.
fn constant_key<'c>(key: &Term<&'c str>) -> Option<(Cow<'c, str>, &'c str)> {
    let Term::Str(None, parts) = key else { return None };
    if let [StrPart::Str(text)] = parts.as_slice() {
        return Some((Cow::Borrowed(text), text));
    }
    let (mut key, mut place) = (String::new(), "");
    for part in parts {
        match part {
            StrPart::Str(text) => {
                key.push_str(text);
                place = if place.is_empty() { text } else { place };
            }
            StrPart::Char(character) => key.push(*character),
            StrPart::Term(_) => return None,
        }
    }
    Some((Cow::Owned(key), place))
}

fn collect<'c>(pattern: &Pattern<&'c str>, names: &mut Vec<&'c str>) {
    match pattern {
        Pattern::Var(name) => names.push(name),
        Pattern::Arr(patterns) => patterns.iter().for_each(|pattern| collect(pattern, names)),
        Pattern::Obj(entries) => entries.iter().for_each(|(_, pattern)| collect(pattern, names)),
    }
}

/// Takes a name back that was counted.
fn leave(counts: &mut HashMap<&str, usize>, name: &str) {
    if let Some(count) = counts.get_mut(name) {
        *count -= 1;
        if *count == 0 {
            counts.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expression::parse;
    use crate::filters::filters;
    use crate::filters::tests::{evaluated, undefined_by_jaq};

    fn shown(code: &str) -> String {
        let term = parse(code).unwrap();
        let uses = uses(code, &term, filters());
        let mut shown: Vec<String> = uses
            .references
            .iter()
            .map(|reference| {
                let part = match &reference.part {
                    Part::Input => "input".to_owned(),
                    Part::Node(id) => format!("#{id}"),
                    Part::Item => "item".to_owned(),
                    Part::Index => "index".to_owned(),
                    Part::Failures => "failures".to_owned(),
                    Part::Run => "run".to_owned(),
                    Part::Unknown(key) => format!("!{key}"),
                };
                if reference.is_certain { part } else { format!("{part}?") }
            })
            .collect();
        shown.extend(uses.everything.then(|| "all".to_owned()));
        shown.extend(uses.missing.iter().map(|missing| format!("-{}", missing.name)));
        shown.join(" ")
    }

    fn check(table: &[(&str, &str)]) {
        for (code, expected) in table {
            assert_eq!(shown(code), *expected, "{code}");
        }
    }

    #[test]
    fn paths_on_the_context_refer_to_its_parts() {
        check(&[
            (".input", "input"),
            (".input.title | ascii_downcase", "input"),
            (".nodes.a", "#a"),
            (".nodes.a.title, .nodes.b[0]", "#a #b"),
            (".nodes[\"my-node\"].x", "#my-node"),
            (".nodes.\"a b\"?", "#a b"),
            (".[\"nodes\"][\"a\"]", "#a"),
            (".\"no\\u0064es\".a", "#a"),
            (".nodes.a?.b", "#a"),
            (".item.x + .index", "item index"),
            (".run.id", "run"),
            (".failures | length", "failures"),
            (".title", "!title"),
            (".nodez.a", "!nodez"),
            ("1, \"x\", null, true, [], {}", ""),
            ("$__loc__", "-$__loc__"),
        ]);
    }

    #[test]
    fn behind_a_path_the_input_is_something_else() {
        check(&[
            (".input | .nodes.a", "input"),
            (".input | .", "input"),
            (".input | keys", "input"),
            (".nodes.a | .title, .input", "#a"),
            (".nodes.a | map(.x | .y) | to_entries", "#a"),
            ("[.nodes.a, .nodes.b] | map(.title)", "#a #b"),
            ("{a: .nodes.a} | .a.x", "#a"),
            ("\"\\(.nodes.a)\" | .b", "#a"),
            ("-(.nodes.a) | .b", "#a"),
            ("(.nodes.a + 1) | .b", "#a"),
            (". | .input", "input"),
            ("(., .) | .input", "input"),
            ("select(.input.ok) | .nodes.a", "input #a"),
            ("select(.input.ok).nodes.a", "input #a"),
            ("if .input.ok then . else . end | .nodes.a", "input #a"),
            ("if .input.ok then . else .nodes.b end | .nodes.a, .title", "input #b #a? !title?"),
            ("if .input.ok then .nodes.a end", "input #a all"),
            ("(. // .input) | .nodes.a", "input #a?"),
            ("try . catch .x | .nodes.a", "#a?"),
            ("try (. | .nodes.a) catch .x", "#a"),
            ("label $out | .nodes.a, break $out", "#a"),
            ("error(.nodes.a)", "#a"),
        ]);
    }

    #[test]
    fn every_place_of_a_term_is_looked_at() {
        check(&[
            ("if .nodes.a then .nodes.b elif .nodes.c then .nodes.d else .nodes.e end", "#a #b #c #d #e"),
            ("try .nodes.a catch .nodes.b", "#a"),
            (".nodes.a.b = .nodes.c", "#a #c all"),
            (".nodes.a and .nodes.b or .nodes.c == .nodes.d", "#a #b #c #d"),
            ("{a: .nodes.a, (.nodes.b): 1, \"\\(.nodes.c)\": 2}", "#a #b #c"),
            ("{input, run}", "input run"),
            ("{nodes}", "all"),
            ("{title}", "!title"),
            ("{$x}", "-$x"),
            ("@base64 \"a\\(.nodes.a)\"", "#a"),
            ("@frob \"a\\(.nodes.a)\"", "#a -@frob"),
            (".nodes.a[.nodes.b.i]", "#b #a"),
            (".nodes.a[.nodes.b:.nodes.c]", "#b #c #a"),
            ("reduce .nodes.a[] as $x (.nodes.b; . + $x + .nodes.c)", "#a #b"),
            ("foreach .nodes.a[] as {b: $x} (.nodes.b; . + $x; [$x, .])", "#a #b"),
            (".nodes.a as [$x, {y: $z}] | $x + $z + .nodes.b", "#a #b"),
            (".nodes.a as {(.nodes.b): $x} | $x", "#a #b?"),
            ("limit(.nodes.a; .nodes.b[])", "#a #b"),
            ("any(.nodes.a[]; . > 3)", "#a"),
            ("any(.nodes.a[]; .nodes.b)", "#a"),
            ("[range(.nodes.a; .nodes.b)]", "#a #b"),
            ("pow(.nodes.a; 2)", "#a"),
            ("[.nodes.a[] | select(.x == 1)]", "#a"),
            ("first(.nodes.a[])", "#a"),
        ]);
    }

    #[test]
    fn the_context_as_a_value_is_everything() {
        check(&[
            (".", "all"),
            ("..", "all"),
            (".[]", "all"),
            (".nodes", "all"),
            (".nodes[]", "all"),
            (".nodes | .a", "all"),
            (".nodes[.item.id]", "item all"),
            (".nodes[\"\\(.item.id)\"]", "item all"),
            (".[.input.key]", "input all"),
            (".[0]", "all"),
            ("keys", "all"),
            ("tojson", "all"),
            ("to_entries", "all"),
            ("with_entries(.value)", "!value? all"),
            ("del(.input)", "input? all"),
            ("getpath([\"nodes\", \"a\"])", "all"),
            ("paths", "all"),
            ("[.]", "all"),
            ("{a: .}", "all"),
            ("\"\\(.)\"", "all"),
            (". == .input", "input all"),
            (". as $x | .nodes.a", "#a all"),
            (". as $x | $x.nodes.a", "all"),
            ("reduce .input[] as $x (.; .nodes.a)", "input #a? all"),
            ("reduce .input[] as $x (.; .nodes.a) | .title", "input #a? !title?"),
            (".input |= 1", "input all"),
            (". |= .nodes.a", "#a? all"),
            ("map(.nodes.a)", "#a? all"),
            ("isempty(.)", "all"),
            ("@json", "all"),
            ("@json \"x\\(1)\"", ""),
            ("length", "all"),
            ("env", "-env"),
        ]);
    }

    #[test]
    fn definitions_count_where_they_are_called() {
        check(&[
            ("def f: . + 1; .nodes.a | f", "#a"),
            ("def f: . + 1; f", "all"),
            ("def f: .title; .nodes.a | f", "!title? #a"),
            ("def f: .nodes.b; .input | f", "#b? input"),
            ("def f(g): g; f(.nodes.a)", "#a?"),
            ("def f(g): [g]; .nodes.a | f(.)", "#a"),
            ("def f(g): [g]; f(.)", "all"),
            ("def f($x): $x; f(.nodes.a)", "#a?"),
            ("def f($x): x; f(1)", "-x"),
            ("def f(g): .nodes.a | g; f(.title)", "#a? !title?"),
            ("def r: if . > 3 then . else . + 1 | r end; .input | r", "input"),
            ("def r: if . then . else r end; r", "all"),
            ("def outer: def inner: keys; inner; .input | outer", "input"),
            ("def outer: def inner: keys; inner; outer", "all"),
            ("def f: g; def g: 1; f", "-g"),
            ("def f: def g: 1; g; g", "-g"),
            ("def keys: 1; keys", ""),
            ("def select(f): 1; select(.title)", "!title?"),
            ("def f: 1; f(2)", "-f"),
            ("def f(g): def h: g; h; f(.input)", "input?"),
            ("def f(g; h): g | h; .nodes.a | f(.; .b)", "#a"),
            ("def f(g; h): g | h; f(.; .b)", "!b? all"),
        ]);
    }

    /// Says the same as jaq's compiler about names, for one that knows the same filters.
    #[test]
    fn names_are_resolved_as_jaq_resolves_them() {
        for code in [
            "frobnicate",
            "map",
            "map(1;2)",
            "length(1)",
            "$x",
            ". as $x | $x",
            ". as $x | $y",
            "break $out",
            "label $out | break $out",
            "label $out | break $in",
            "reduce .[] as $x (0; 1; 2)",
            "reduce .[] as $x (0)",
            "foreach .[] as $x (0; 1; 2)",
            "foreach .[] as $x (0; 1; 2; 3)",
            "reduce .[] as $x ($x; $x)",
            "foreach .[] as $x (0; $x; $y)",
            "def f($a; b): $a + b + a; f(1; 2)",
            "def f: f; f",
            "def f(f): f; f(1)",
            "def f(g): g(1); f(2)",
            "{$x}",
            "{(x): y}",
            "\"\\(x)\"",
            "@x",
            "@x \"\"",
            "[.[] as {a: $x, $y} | $x, $y, $z]",
            ". as {($x): $x} | $x",
            "input",
            "inputs",
            "now",
            "localtime",
            "$ENV",
            "env",
            "input_line_number",
            "debug",
            "debug(1)",
            "stderr",
            "halt",
            "halt_error",
            "todate",
            "a::b",
            "$__loc__",
            "then",
            ".[x:y]",
            ".a[z]?",
            "if a then b elif c then d else e end",
            "try a catch b",
            "a |= b",
            "def f: def g: h; g; g",
            "def f: 1; def f: f; f",
            "splits(\"a\")",
            "ascii",
            "@csv",
            "getpath([])",
            "IN(1)",
            "INDEX(.x)",
            "tojson",
            "limit(1; 2)",
            "ltrimstr(\"a\")",
        ] {
            let term = parse(code).unwrap();
            let mut ours: Vec<_> =
                uses(code, &term, filters()).missing.iter().map(|missing| missing.name.to_owned()).collect();
            // jaq names a module alone.
            ours.iter_mut().for_each(|name| *name = name.split("::").next().unwrap_or_default().to_owned());
            let mut theirs = undefined_by_jaq(code);
            ours.sort_unstable();
            theirs.sort_unstable();
            assert_eq!(ours, theirs, "{code}");
        }
    }

    /// Numbers that look random and are the same every time: xorshift.
    struct Random(u64);

    impl Random {
        fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            choices[(self.0 % choices.len() as u64) as usize]
        }

        /// A term that is nested at most so deep. In the forms, `#` stands for a term.
        fn term(&mut self, depth: usize) -> String {
            const LEAVES: [&str; 20] = [
                ".",
                ".",
                ".input",
                ".nodes",
                ".nodes.a",
                ".nodes[\"b\"]",
                ".nodes.c.x",
                ".item",
                ".x",
                ".[]",
                "..",
                "keys",
                "length",
                "tojson",
                "1",
                "null",
                "\"a\"",
                "to_entries",
                "$v",
                "g",
            ];
            const FORMS: [&str; 52] = [
                "# | #",
                "# | #",
                "# | #",
                "#, #",
                "# + #",
                "# // #",
                "# == #",
                "# and #",
                "[#]",
                "{a: #}",
                "{(#): #}",
                "{input}",
                "if # then # else # end",
                "if # then # end",
                "try # catch #",
                "try error(#) catch #",
                "#?",
                "# as $v | #",
                "# as [$v] | #",
                "# as {a: $v} | #",
                "# as {(#): $v} | #",
                "reduce # as $v (#; #)",
                "foreach # as $v (#; #)",
                "foreach # as $v (#; #; #)",
                "first(#)",
                "limit(2; #)",
                "select(#)",
                "select(#).nodes.a",
                "map(#)",
                "map_values(#)",
                "any(#; #)",
                "all(#)",
                "isempty(#)",
                "path(#)",
                "getpath(#)",
                "del(#)",
                "# = #",
                "# |= #",
                "# += #",
                "with_entries(#)",
                "\"\\(#)\"",
                "@json \"\\(#)\"",
                ".[#]",
                ".nodes[#]",
                "(#)[#]",
                ".nodes.a[#:#]",
                "def f: #; # | f",
                "def f: #; f, #",
                "def f(g): #; f(#)",
                "def f(g): # | g; f(#)",
                "def f($v): #; f(#)",
                "label $out | #, break $out, #",
            ];
            if depth == 0 {
                return self.of(&LEAVES).to_owned();
            }
            let form = self.of(&FORMS);
            let mut term = String::from("(");
            for character in form.chars() {
                if character == '#' { term.push_str(&self.term(depth - 1)) } else { term.push(character) }
            }
            term + ")"
        }
    }

    /// On a context without what an expression is said not to use, it has the same values.
    #[test]
    fn what_is_not_referred_to_is_not_used() {
        let whole = serde_json::json!({
            "input": { "a": [1, 2], "nodes": { "a": 5 } }, "item": { "x": "i" }, "run": { "id": "r" },
            "nodes": { "a": { "x": [3], "nodes": { "b": 1 } }, "b": "a", "c": { "x": { "input": 7 } } },
        });
        let mut random = Random(0xC0FFEE);
        let (mut compared, mut tried) = (0, 0);
        while compared < 4_000 {
            tried += 1;
            assert!(tried < 200_000, "{compared}");
            let code = format!("def g: 0; null as $v | {}", random.term(1 + tried % 3));
            let term = parse(&code).unwrap();
            let uses = uses(&code, &term, filters());
            assert_eq!(uses.missing, [], "{code}");
            if uses.everything {
                continue;
            }
            compared += 1;
            let used = |wanted: &Part| uses.references.iter().any(|reference| reference.part == *wanted);
            let mut rest = whole.clone();
            for (key, part) in [("input", Part::Input), ("item", Part::Item), ("run", Part::Run)] {
                if !used(&part) {
                    rest.as_object_mut().unwrap().remove(key);
                }
            }
            for id in ["a", "b", "c"] {
                if !used(&Part::Node(id.into())) {
                    rest["nodes"].as_object_mut().unwrap().remove(id);
                }
            }
            assert_eq!(evaluated(&code, &whole), evaluated(&code, &rest), "{code}");
        }
    }
}
