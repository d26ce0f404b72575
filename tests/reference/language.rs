//! The expression language of the reference: a few words of jq, and what they mean.
//!
//! Owns: expressions and templates as trees, how they are printed into a document, and their values.
//! Does not: read jq. What is printed is all that is ever parsed, and by the product alone. Every operation stands in
//! brackets, so it is meaning that is compared here and not precedence.

use std::cmp::Ordering;

use serde_json::{Map, Value, json};

/// An expression has failed. Its message is the product's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Raised;

#[derive(Debug, Clone)]
pub(super) enum Expr {
    Const(Value),
    /// `.nodes.a.b`
    Path(Vec<String>),
    Array(Vec<Expr>),
    Object(Vec<(&'static str, Expr)>),
    /// `a // b`
    Else(Box<[Expr; 2]>),
    /// `if a then b else c end`
    If(Box<[Expr; 3]>),
    Operation(Operator, Box<[Expr; 2]>),
    Not(Box<Expr>),
    Length(Box<Expr>),
    /// `[range(a)]`
    Range(Box<Expr>),
    /// `[a[] | . // 0] | add // 0`
    Sum(Box<Expr>),
    /// `a[:3]`
    Take(Box<Expr>, usize),
    /// `[a[].field]`
    Pluck(Box<Expr>, &'static str),
    /// `"\(a)-\(b)"`
    Interpolate(Vec<Expr>),
    /// `error("boom")`
    Boom,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Remainder,
    /// `(a - a % b) / b`: division among whole numbers.
    Quotient,
    Equal,
    Unequal,
    Less,
    AtMost,
    And,
    Or,
}

/// JSON of a document, with expressions in its strings.
#[derive(Debug, Clone)]
pub(super) enum Template {
    Const(Value),
    /// A string that is one expression.
    Whole(Expr),
    /// A longer string: text, an expression behind it, and so on.
    Text(Vec<(&'static str, Expr)>),
    Array(Vec<Template>),
    Object(Vec<(&'static str, Template)>),
}

impl Expr {
    /// As it stands between `${` and `}`.
    pub(super) fn jq(&self) -> String {
        let list = |items: &[Self], between: &str| items.iter().map(Self::jq).collect::<Vec<_>>().join(between);
        match self {
            Self::Const(value) => format!("({value})"),
            Self::Path(keys) => keys.iter().map(|key| step(key)).collect(),
            Self::Array(items) => format!("[{}]", list(items, ", ")),
            Self::Object(fields) => {
                let fields: Vec<_> = fields.iter().map(|(name, value)| format!("{name}: {}", value.jq())).collect();
                format!("{{{}}}", fields.join(", "))
            }
            Self::Else(of) => format!("({} // {})", of[0].jq(), of[1].jq()),
            Self::If(of) => format!("(if {} then {} else {} end)", of[0].jq(), of[1].jq(), of[2].jq()),
            Self::Operation(Operator::Quotient, of) => {
                let (a, b) = (of[0].jq(), of[1].jq());
                format!("(({a} - ({a} % {b})) / {b})")
            }
            Self::Operation(operator, of) => format!("({} {} {})", of[0].jq(), operator.sign(), of[1].jq()),
            Self::Not(of) => format!("({} | not)", of.jq()),
            Self::Length(of) => format!("({} | length)", of.jq()),
            Self::Range(of) => format!("[range({})]", of.jq()),
            Self::Sum(of) => format!("([{}[] | . // 0] | add // 0)", of.jq()),
            Self::Take(of, most) => format!("({}[:{most}])", of.jq()),
            Self::Pluck(of, field) => format!("[{}[].{field}]", of.jq()),
            Self::Interpolate(parts) => {
                let parts: Vec<_> = parts.iter().map(|part| format!("\\({})", part.jq())).collect();
                format!("\"{}\"", parts.join("-"))
            }
            Self::Boom => "error(\"boom\")".to_owned(),
        }
    }

    /// Its value on a context.
    pub(super) fn value(&self, context: &Value) -> Result<Value, Raised> {
        Ok(match self {
            Self::Const(value) => value.clone(),
            Self::Path(keys) => keys.iter().try_fold(context.clone(), |at, key| field(&at, key))?,
            Self::Array(items) => items.iter().map(|item| item.value(context)).collect::<Result<_, _>>()?,
            Self::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| Ok(((*name).to_owned(), value.value(context)?)));
                Value::Object(fields.collect::<Result<_, _>>()?)
            }
            Self::Else(of) => {
                let first = of[0].value(context)?;
                if holds(&first) { first } else { of[1].value(context)? }
            }
            Self::If(of) => of[if holds(&of[0].value(context)?) { 1 } else { 2 }].value(context)?,
            // These two look at their right side only when the left one leaves it open.
            Self::Operation(Operator::And, of) => {
                json!(holds(&of[0].value(context)?) && holds(&of[1].value(context)?))
            }
            Self::Operation(Operator::Or, of) => {
                json!(holds(&of[0].value(context)?) || holds(&of[1].value(context)?))
            }
            Self::Operation(operator, of) => operator.apply(&of[0].value(context)?, &of[1].value(context)?)?,
            Self::Not(of) => json!(!holds(&of.value(context)?)),
            Self::Length(of) => match of.value(context)? {
                Value::Null => json!(0),
                Value::String(text) => json!(text.chars().count()),
                Value::Array(items) => json!(items.len()),
                other => unreachable!("nobody asks for the length of {other}"),
            },
            Self::Range(of) => (0..int(&of.value(context)?)?).collect(),
            Self::Sum(of) => {
                let items = list(&of.value(context)?)?;
                let sum: Result<i64, _> = items.iter().map(|item| if holds(item) { int(item) } else { Ok(0) }).sum();
                json!(sum?)
            }
            Self::Take(of, most) => match of.value(context)? {
                Value::String(text) => text.chars().take(*most).collect::<String>().into(),
                other => list(&other)?.into_iter().take(*most).collect(),
            },
            Self::Pluck(of, name) => {
                list(&of.value(context)?)?.iter().map(|item| field(item, name)).collect::<Result<_, _>>()?
            }
            Self::Interpolate(parts) => {
                let parts: Result<Vec<_>, _> = parts.iter().map(|part| Ok(text(&part.value(context)?))).collect();
                parts?.join("-").into()
            }
            Self::Boom => return Err(Raised),
        })
    }
}

impl Operator {
    fn sign(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Subtract => "-",
            Self::Multiply => "*",
            Self::Remainder => "%",
            Self::Quotient => unreachable!("is written with others"),
            Self::Equal => "==",
            Self::Unequal => "!=",
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::And => "and",
            Self::Or => "or",
        }
    }

    fn apply(self, a: &Value, b: &Value) -> Result<Value, Raised> {
        Ok(match (self, a, b) {
            (Self::Equal, ..) => json!(a == b),
            (Self::Unequal, ..) => json!(a != b),
            (Self::Less, ..) => json!(order(a, b) == Ordering::Less),
            (Self::AtMost, ..) => json!(order(a, b) != Ordering::Greater),
            (Self::Add, Value::Null, other) | (Self::Add, other, Value::Null) => other.clone(),
            (Self::Add, Value::String(a), Value::String(b)) => json!(format!("{a}{b}")),
            (Self::Add, Value::Array(a), Value::Array(b)) => a.iter().chain(b).cloned().collect(),
            (Self::Add, ..) => json!(int(a)? + int(b)?),
            (Self::Subtract, ..) => json!(int(a)? - int(b)?),
            (Self::Multiply, ..) => json!(int(a)? * int(b)?),
            (Self::Remainder, ..) => json!(int(a)?.checked_rem(int(b)?).ok_or(Raised)?),
            (Self::Quotient, ..) => json!(int(a)?.checked_div(int(b)?).ok_or(Raised)?),
            (Self::And | Self::Or, ..) => unreachable!("do not always look at both"),
        })
    }
}

impl Template {
    /// As it stands in a document.
    pub(super) fn document(&self) -> Value {
        match self {
            Self::Const(value) => value.clone(),
            Self::Whole(expr) => whole(expr),
            Self::Text(parts) => {
                parts.iter().map(|(text, expr)| format!("{text}${{ {} }}", expr.jq())).collect::<String>().into()
            }
            Self::Array(items) => items.iter().map(Self::document).collect(),
            Self::Object(fields) => {
                Value::Object(fields.iter().map(|(name, field)| ((*name).to_owned(), field.document())).collect())
            }
        }
    }

    pub(super) fn value(&self, context: &Value) -> Result<Value, Raised> {
        Ok(match self {
            Self::Const(value) => value.clone(),
            Self::Whole(expr) => expr.value(context)?,
            Self::Text(parts) => {
                let parts = parts.iter().map(|(before, expr)| Ok(format!("{before}{}", text(&expr.value(context)?))));
                parts.collect::<Result<String, _>>()?.into()
            }
            Self::Array(items) => items.iter().map(|item| item.value(context)).collect::<Result<_, _>>()?,
            Self::Object(fields) => {
                let fields = fields.iter().map(|(name, field)| Ok(((*name).to_owned(), field.value(context)?)));
                Value::Object(fields.collect::<Result<Map<_, _>, _>>()?)
            }
        })
    }
}

/// A string that is one expression.
pub(super) fn whole(expr: &Expr) -> Value {
    format!("${{ {} }}", expr.jq()).into()
}

/// What jq takes for true.
pub(super) fn holds(value: &Value) -> bool {
    !matches!(value, Value::Null | Value::Bool(false))
}

fn step(key: &str) -> String {
    let is_plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !matches!(key, "if" | "and");
    if is_plain { format!(".{key}") } else { format!("[\"{key}\"]") }
}

fn field(value: &Value, key: &str) -> Result<Value, Raised> {
    match value {
        Value::Null => Ok(Value::Null),
        Value::Object(fields) => Ok(fields.get(key).cloned().unwrap_or_default()),
        _ => Err(Raised),
    }
}

fn int(value: &Value) -> Result<i64, Raised> {
    value.as_i64().ok_or(Raised)
}

fn list(value: &Value) -> Result<Vec<Value>, Raised> {
    value.as_array().cloned().ok_or(Raised)
}

/// A value within a text.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// `null`, then booleans, then numbers, then strings.
fn order(a: &Value, b: &Value) -> Ordering {
    let rank = |value: &Value| match value {
        Value::Null => 0,
        Value::Bool(false) => 1,
        Value::Bool(true) => 2,
        Value::Number(_) => 3,
        Value::String(_) => 4,
        other => unreachable!("nobody asks for the order of {other}"),
    };
    rank(a).cmp(&rank(b)).then_with(|| (a.as_i64(), a.as_str()).cmp(&(b.as_i64(), b.as_str())))
}
