//! JSON texts and the values that expressions work on.
//!
//! jaq's values are more than JSON: byte strings, keys that are no strings, numbers that are none, text that is not
//! UTF-8. It writes all of them so that they can be told apart, and what it writes is then no JSON. Here a value is
//! written as RFC 8259 has it, or not at all.

use jaq_json::{Map, Num, Val};
use serde_json::Value;

/// What the host takes. A value that is deeper has come out of an expression, and would be refused.
const DEPTH_MAX: usize = 100;
/// From here on a float is written with an exponent, as jq does.
const PLAIN_FLOAT_MAX: f64 = 1e17;

/// A JSON text as a value.
pub(crate) fn read(text: &str) -> Result<Val, String> {
    jaq_json::read::parse_single(text.as_bytes()).map_err(|error| error.to_string())
}

/// A value of the document.
pub(crate) fn from_document(value: &Value) -> Val {
    match value {
        Value::Null => Val::Null,
        Value::Bool(value) => Val::Bool(*value),
        Value::Number(number) => Val::Num(number_from_document(number)),
        Value::String(text) => Val::from(text.clone()),
        Value::Array(items) => items.iter().map(from_document).collect(),
        Value::Object(fields) => object(fields.iter().map(|(name, value)| (name.as_str(), from_document(value)))),
    }
}

fn number_from_document(number: &serde_json::Number) -> Num {
    match number.as_i64().map(isize::try_from) {
        Some(Ok(integer)) => Num::Int(integer),
        // Also where this is compiled for the sandbox, whose machine integers have 32 bits.
        _ => jaq_json::read::parse_single_num(number.to_string().as_bytes()).unwrap_or(Num::Float(f64::NAN)),
    }
}

/// An object.
pub(crate) fn object<'a>(fields: impl IntoIterator<Item = (&'a str, Val)>) -> Val {
    Val::obj(fields.into_iter().map(|(name, value)| (Val::from(name.to_owned()), value)).collect::<Map>())
}

/// A value as JSON. The error says what in it cannot be.
pub(crate) fn write(value: &Val) -> Result<String, &'static str> {
    let mut text = Vec::new();
    write_value(&mut text, value, 0)?;
    String::from_utf8(text).map_err(|_| "a text that is not UTF-8")
}

/// A value as it stands in a text: a string as it is, anything else as JSON.
pub(crate) fn text(value: &Val) -> Result<String, &'static str> {
    match value {
        Val::TStr(bytes) => Ok(String::from_utf8_lossy(bytes).into_owned()),
        value => write(value),
    }
}

/// What a value is, for people.
pub(crate) fn kind(value: &Val) -> &'static str {
    match value {
        Val::Null => "null",
        Val::Bool(_) => "a boolean",
        Val::Num(_) => "a number",
        Val::TStr(_) => "a string",
        Val::BStr(_) => "a byte string",
        Val::Arr(_) => "an array",
        Val::Obj(_) => "an object",
    }
}

fn write_value(out: &mut Vec<u8>, value: &Val, depth: usize) -> Result<(), &'static str> {
    if depth > DEPTH_MAX {
        return Err("more than 100 levels");
    }
    match value {
        Val::Null => out.extend_from_slice(b"null"),
        Val::Bool(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
        Val::Num(number) => out.extend_from_slice(number_text(number).as_bytes()),
        Val::TStr(bytes) => write_string(out, bytes)?,
        Val::BStr(_) => return Err("a byte string"),
        Val::Arr(items) => {
            out.push(b'[');
            for (number, item) in items.iter().enumerate() {
                if number > 0 {
                    out.push(b',');
                }
                write_value(out, item, depth + 1)?;
            }
            out.push(b']');
        }
        Val::Obj(fields) => {
            out.push(b'{');
            for (number, (name, value)) in fields.iter().enumerate() {
                if number > 0 {
                    out.push(b',');
                }
                let Val::TStr(name) = name else { return Err("an object with a key that is not a string") };
                write_string(out, name)?;
                out.push(b':');
                write_value(out, value, depth + 1)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn write_string(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), &'static str> {
    serde_json::to_writer(out, &*String::from_utf8_lossy(bytes)).map_err(|_| "a text that cannot be written")
}

/// As jq writes it: a whole number without a fraction, and `null` for what is not a finite number.
fn number_text(number: &Num) -> String {
    let float = match number {
        Num::Int(_) | Num::BigInt(_) => return number.to_string(),
        // A number that was read keeps its digits, unless they are not such as JSON has them.
        Num::Dec(digits) if serde_json::from_str::<serde_json::Number>(digits).is_ok() => return digits.to_string(),
        Num::Dec(digits) => digits.parse().unwrap_or(f64::NAN),
        Num::Float(float) => *float,
    };
    if !float.is_finite() {
        "null".to_owned()
    } else if float.fract() == 0.0 && float.abs() < PLAIN_FLOAT_MAX {
        format!("{float:.0}")
    } else {
        Num::Float(float).to_string()
    }
}
