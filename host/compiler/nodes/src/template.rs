//! JSON of the document with expressions in its strings, taken apart once.
//!
//! Owns: what a template's value is. A string that is one `${ … }` and nothing else stands for the expression's value; in
//! any other text a string is inserted as it is and anything else as JSON.
//! Does not: know what a field is for.

use std::collections::BTreeMap;

use jaq_json::Val;
use serde_json::Value;
use stepwell_document::template::{Part, Unclosed, has_parts, parts};

use crate::jq::{Expression, Expressions, Invalid, NoValue};
use crate::json;

/// What a field of a node stands for.
pub(crate) enum Template {
    /// A value without expressions.
    Literal(Val),
    /// The value of an expression.
    Expression(Expression),
    /// A text with values in it.
    Text(Vec<Piece>),
    Array(Vec<Template>),
    Object(Vec<(String, Template)>),
}

/// A piece of a [`Template::Text`].
pub(crate) enum Piece {
    Text(String),
    Value(Expression),
}

/// Why a template has no value.
pub(crate) struct Wrong {
    /// Where in the field, as `.title` or `[2].title`.
    pub(crate) path: String,
    pub(crate) cause: Cause,
}

/// What is wrong with an expression's value.
pub(crate) enum Cause {
    /// It has no value, or more than one.
    Expression(NoValue),
    /// It is no JSON: this is in it.
    NotJson(&'static str),
}

impl Template {
    /// Its value on a context.
    pub(crate) fn value(&self, expressions: &Expressions, context: &Val) -> Result<Val, Wrong> {
        match self {
            Self::Literal(value) => Ok(value.clone()),
            Self::Expression(expression) => evaluate(expressions, *expression, context),
            Self::Text(_) => Ok(Val::from(self.text(expressions, context, |text| text)?)),
            Self::Array(items) => {
                let items = items.iter().enumerate();
                let values = items.map(|(number, item)| {
                    item.value(expressions, context).map_err(|wrong| wrong.within(&format!("[{number}]")))
                });
                values.collect()
            }
            Self::Object(fields) => {
                let mut values = Vec::with_capacity(fields.len());
                for (name, field) in fields {
                    let value = field.value(expressions, context).map_err(|wrong| wrong.within(&format!(".{name}")))?;
                    values.push((name.as_str(), value));
                }
                Ok(json::object(values))
            }
        }
    }

    /// Its value as a text. What expressions insert into a longer text goes through `insert` first.
    pub(crate) fn text(
        &self,
        expressions: &Expressions,
        context: &Val,
        insert: impl Fn(String) -> String,
    ) -> Result<String, Wrong> {
        let Self::Text(pieces) = self else { return as_text(&self.value(expressions, context)?) };
        let mut text = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Value(expression) => {
                    text.push_str(&insert(as_text(&evaluate(expressions, *expression, context)?)?));
                }
            }
        }
        Ok(text)
    }
}

fn evaluate(expressions: &Expressions, expression: Expression, context: &Val) -> Result<Val, Wrong> {
    expressions.value(expression, context).map_err(|cause| Cause::Expression(cause).here())
}

fn as_text(value: &Val) -> Result<String, Wrong> {
    json::text(value).map_err(|what| Cause::NotJson(what).here())
}

impl Cause {
    fn here(self) -> Wrong {
        Wrong { path: String::new(), cause: self }
    }
}

impl Wrong {
    fn within(self, step: &str) -> Self {
        Self { path: format!("{step}{}", self.path), ..self }
    }
}

/// A place in the document where something does not compile.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) node: String,
    /// As `output.title`.
    pub(crate) field: String,
    /// Where in that text the expression begins, in bytes.
    pub(crate) at: usize,
    pub(crate) expression: String,
    pub(crate) message: String,
}

/// Takes the templates of a program apart, and collects the expressions in them: each text is compiled once.
#[derive(Default)]
pub(crate) struct Templates {
    /// The node whose fields come next.
    node: String,
    numbers: BTreeMap<String, usize>,
    /// Where expressions stand, to say where a wrong one does.
    places: Vec<Place>,
    problems: Vec<Problem>,
}

struct Place {
    expression: usize,
    node: String,
    field: String,
    at: usize,
}

impl Templates {
    /// The templates that come next are of this node.
    pub(crate) fn enter(&mut self, node: &str) {
        node.clone_into(&mut self.node);
    }

    /// Any JSON.
    pub(crate) fn value(&mut self, field: &str, value: &Value) -> Template {
        match value {
            Value::String(text) => self.text(field, text),
            Value::Array(items) => {
                let items = items.iter().enumerate();
                let items: Vec<_> =
                    items.map(|(number, item)| self.value(&format!("{field}[{number}]"), item)).collect();
                if items.iter().all(is_literal) {
                    Template::Literal(json::from_document(value))
                } else {
                    Template::Array(items)
                }
            }
            Value::Object(fields) => {
                let fields = fields.iter();
                let fields: Vec<_> =
                    fields.map(|(name, value)| (name.clone(), self.value(&format!("{field}.{name}"), value))).collect();
                if fields.iter().all(|(_, field)| is_literal(field)) {
                    Template::Literal(json::from_document(value))
                } else {
                    Template::Object(fields)
                }
            }
            value => Template::Literal(json::from_document(value)),
        }
    }

    /// A text.
    pub(crate) fn text(&mut self, field: &str, text: &str) -> Template {
        if !has_parts(text) {
            return Template::Literal(Val::from(text.to_owned()));
        }
        let parts = match parts(text) {
            Ok(parts) => parts,
            Err(Unclosed { at }) => {
                self.problem(field, at, "", "`${` is not closed");
                return Template::Literal(Val::Null);
            }
        };
        if let [Part::Expression { code, at }] = parts.as_slice() {
            return Template::Expression(self.expression(field, code, *at));
        }
        let mut pieces = Vec::with_capacity(parts.len());
        for part in parts {
            pieces.push(match part {
                Part::Text(text) => Piece::Text(text.to_owned()),
                Part::Expression { code, at } => Piece::Value(self.expression(field, code, at)),
            });
        }
        if pieces.iter().all(|piece| matches!(piece, Piece::Text(_))) {
            let whole: String =
                pieces.iter().map(|piece| if let Piece::Text(text) = piece { text } else { "" }).collect();
            return Template::Literal(Val::from(whole));
        }
        Template::Text(pieces)
    }

    /// A text that must be one expression.
    pub(crate) fn condition(&mut self, field: &str, text: &str) -> Expression {
        match self.text(field, text) {
            Template::Expression(expression) => expression,
            _ => {
                self.problem(field, 0, "", "must be one expression, `${ … }`");
                Expression(usize::MAX)
            }
        }
    }

    fn expression(&mut self, field: &str, code: &str, at: usize) -> Expression {
        let next = self.numbers.len();
        let number = *self.numbers.entry(code.to_owned()).or_insert(next);
        self.places.push(Place { expression: number, node: self.node.clone(), field: field.to_owned(), at });
        Expression(number)
    }

    fn problem(&mut self, field: &str, at: usize, expression: &str, message: &str) {
        self.problems.push(Problem {
            node: self.node.clone(),
            field: field.to_owned(),
            at,
            expression: expression.to_owned(),
            message: message.to_owned(),
        });
    }

    /// Compiles what was collected.
    pub(crate) fn finish(self) -> Result<Expressions, Vec<Problem>> {
        let Self { numbers, places, mut problems, .. } = self;
        let mut codes: Vec<_> = numbers.iter().map(|(code, number)| (*number, code.as_str())).collect();
        codes.sort_unstable();
        let codes: Vec<_> = codes.into_iter().map(|(_, code)| code).collect();
        let compiled = Expressions::compile(&codes);
        for Invalid { expression, message } in compiled.as_ref().err().into_iter().flatten() {
            // An expression that stands in several places is wrong in each.
            let places = places.iter().filter(|place| expression.is_none_or(|found| found.0 == place.expression));
            problems.extend(places.map(|place| Problem {
                node: place.node.clone(),
                field: place.field.clone(),
                at: place.at,
                expression: codes.get(place.expression).copied().unwrap_or_default().to_owned(),
                message: message.clone(),
            }));
        }
        match compiled {
            Ok(expressions) if problems.is_empty() => Ok(expressions),
            _ => Err(problems),
        }
    }
}

fn is_literal(template: &Template) -> bool {
    matches!(template, Template::Literal(_))
}
