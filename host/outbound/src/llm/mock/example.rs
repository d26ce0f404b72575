//! The smallest JSON that follows a JSON Schema.
//!
//! It understands what people write for language models: `type`, `enum`, `const`, `properties`, `required`, `items`,
//! `minItems`, `minLength`, `minimum`, `exclusiveMinimum`, `anyOf`, `oneOf` and `$ref` within the schema. Other keywords
//! are ignored, so that the result may break them: whether an answer follows a schema is always for the caller to check.
//!
//! The invariant: it ends. A schema that can only be followed by something endless, or something large, is refused.

use serde_json::{Map, Value};

/// Of schemas within each other, through `$ref` as well. A schema has at most 100 levels of its own.
const DEPTH_MAX: usize = 100;
/// Schemas that are looked at. With `anyOf` they could be looked at again and again.
const VISITS_MAX: usize = 10_000;
/// Of an example. `minItems` and `minLength` can ask for more than there is memory.
const BYTES_MAX: usize = 64 * 1024;

/// Says what it is wherever the schema leaves room for it.
const TEXT: &str = "[mock]";

/// Why there is no example.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoExample {
    #[error("the schema is not understood")]
    NotUnderstood,
    #[error("the schema refers to something that is not in it")]
    Unresolved,
    #[error("nothing follows the schema")]
    Impossible,
    #[error("what follows the schema is too large, or has no end")]
    TooLarge,
}

/// An example for a schema, as JSON text.
pub(super) fn of(schema: &str) -> Result<String, NoExample> {
    let root: Value = serde_json::from_str(schema).map_err(|_| NoExample::NotUnderstood)?;
    let mut maker = Maker { root: &root, within: vec![""], visits_left: VISITS_MAX, bytes_left: BYTES_MAX };
    maker.example(&root, 0).map(|example| example.to_string())
}

struct Maker<'a> {
    root: &'a Value,
    /// Where the references lead that are being followed, beginning with the root.
    within: Vec<&'a str>,
    visits_left: usize,
    bytes_left: usize,
}

impl<'a> Maker<'a> {
    fn example(&mut self, schema: &'a Value, depth: usize) -> Result<Value, NoExample> {
        self.visits_left = self.visits_left.checked_sub(1).ok_or(NoExample::TooLarge)?;
        if depth > DEPTH_MAX {
            return Err(NoExample::TooLarge);
        }
        let schema = match schema {
            Value::Bool(true) => return Ok(Value::Null),
            Value::Bool(false) => return Err(NoExample::Impossible),
            Value::Object(schema) => schema,
            _ => return Err(NoExample::NotUnderstood),
        };
        if let Some(value) = schema.get("const") {
            return self.copy(value);
        }
        if let Some(values) = schema.get("enum") {
            let first = values.as_array().and_then(|values| values.first()).ok_or(NoExample::Impossible)?;
            return self.copy(first);
        }
        if let Some(target) = schema.get("$ref") {
            let pointer = target.as_str().and_then(|target| target.strip_prefix('#')).ok_or(NoExample::Unresolved)?;
            let target = self.root.pointer(pointer).ok_or(NoExample::Unresolved)?;
            // Inside an example for a schema, another one for the same schema only makes it larger.
            if self.within.contains(&pointer) {
                return Err(NoExample::TooLarge);
            }
            self.within.push(pointer);
            let example = self.example(target, depth + 1);
            self.within.pop();
            return example;
        }
        if let Some(choices) = schema.get("anyOf").or_else(|| schema.get("oneOf")) {
            return self.first_possible(choices, depth);
        }
        match kind(schema)? {
            "object" => self.object(schema, depth),
            "array" => self.array(schema, depth),
            "string" => self.string(schema),
            "integer" => self.spend(20).map(|()| integer(schema).into()),
            "number" => self.spend(20).map(|()| number(schema)),
            "boolean" => self.spend(5).map(|()| false.into()),
            "null" => self.spend(4).map(|()| Value::Null),
            _ => Err(NoExample::NotUnderstood),
        }
    }

    /// Recursive schemas end in one of their choices, which need not be the first.
    fn first_possible(&mut self, choices: &'a Value, depth: usize) -> Result<Value, NoExample> {
        let mut why_not = NoExample::Impossible;
        for choice in choices.as_array().ok_or(NoExample::NotUnderstood)? {
            match self.example(choice, depth + 1) {
                Ok(example) => return Ok(example),
                Err(error) => why_not = error,
            }
        }
        Err(why_not)
    }

    fn object(&mut self, schema: &'a Map<String, Value>, depth: usize) -> Result<Value, NoExample> {
        self.spend(2)?;
        let required = schema.get("required").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let mut object = Map::new();
        for name in required {
            let name = name.as_str().ok_or(NoExample::NotUnderstood)?;
            self.spend(name.len() + 4)?;
            let property = schema.get("properties").and_then(|properties| properties.get(name));
            // What is required without being described may be anything.
            let value = property.map_or(Ok(Value::Null), |property| self.example(property, depth + 1))?;
            object.insert(name.to_owned(), value);
        }
        Ok(Value::Object(object))
    }

    fn array(&mut self, schema: &'a Map<String, Value>, depth: usize) -> Result<Value, NoExample> {
        self.spend(2)?;
        let mut items = Vec::new();
        for _ in 0..schema.get("minItems").and_then(Value::as_u64).unwrap_or_default() {
            self.spend(1)?;
            items.push(schema.get("items").map_or(Ok(Value::Null), |item| self.example(item, depth + 1))?);
        }
        Ok(Value::Array(items))
    }

    fn string(&mut self, schema: &Map<String, Value>) -> Result<Value, NoExample> {
        let length = |name: &str| {
            let length = schema.get(name).and_then(Value::as_u64)?;
            Some(usize::try_from(length).unwrap_or(usize::MAX))
        };
        let (min, max) = (length("minLength").unwrap_or(0), length("maxLength").unwrap_or(usize::MAX));
        self.spend(min.saturating_add(TEXT.len() + 2))?;
        let text = TEXT.chars().chain(std::iter::repeat('.')).take(min.max(TEXT.len()).min(max));
        Ok(Value::String(text.collect()))
    }

    fn copy(&mut self, value: &Value) -> Result<Value, NoExample> {
        self.spend(value.to_string().len())?;
        Ok(value.clone())
    }

    fn spend(&mut self, bytes: usize) -> Result<(), NoExample> {
        self.bytes_left = self.bytes_left.checked_sub(bytes).ok_or(NoExample::TooLarge)?;
        Ok(())
    }
}

/// The type, or the first of several, or what the other keywords let guess.
fn kind(schema: &Map<String, Value>) -> Result<&str, NoExample> {
    match schema.get("type") {
        Some(Value::String(kind)) => Ok(kind),
        Some(Value::Array(kinds)) => kinds.first().and_then(Value::as_str).ok_or(NoExample::NotUnderstood),
        Some(_) => Err(NoExample::NotUnderstood),
        None if schema.contains_key("properties") || schema.contains_key("required") => Ok("object"),
        None if schema.contains_key("items") => Ok("array"),
        None => Ok("null"),
    }
}

/// 0, or the smallest that is allowed.
fn integer(schema: &Map<String, Value>) -> i64 {
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    // Conversions saturate, far away from everything that a schema for people says.
    let least = bound("minimum").map(|least| least.ceil() as i64);
    let above = bound("exclusiveMinimum").map(|above| (above.floor() as i64).saturating_add(1));
    let most = bound("maximum").map(|most| most.floor() as i64);
    let below = bound("exclusiveMaximum").map(|below| (below.ceil() as i64).saturating_sub(1));
    let most = [most, below].into_iter().flatten().min().unwrap_or(i64::MAX);
    least.max(above).unwrap_or(0_i64.min(most))
}

fn number(schema: &Map<String, Value>) -> Value {
    match schema.get("minimum") {
        Some(minimum) if minimum.is_number() && !schema.contains_key("exclusiveMinimum") => minimum.clone(),
        _ => integer(schema).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_is_the_smallest_that_follows() {
        for (schema, example) in [
            (r#"{}"#, "null"),
            (r#"{"type":"string"}"#, r#""[mock]""#),
            (r#"{"type":"string","maxLength":3}"#, r#""[mo""#),
            (r#"{"type":"string","minLength":8}"#, r#""[mock]..""#),
            (r#"{"type":["integer","null"]}"#, "0"),
            (r#"{"type":"integer","minimum":3}"#, "3"),
            (r#"{"type":"integer","exclusiveMinimum":3}"#, "4"),
            (r#"{"type":"integer","maximum":-2}"#, "-2"),
            (r#"{"type":"integer","maximum":5}"#, "0"),
            (r#"{"type":"number","minimum":0.5}"#, "0.5"),
            (r#"{"type":"number"}"#, "0"),
            (r#"{"type":"boolean"}"#, "false"),
            (r#"{"type":"null"}"#, "null"),
            (r#"{"enum":["red","blue"]}"#, r#""red""#),
            (r#"{"const":{"a":[1]}}"#, r#"{"a":[1]}"#),
            (r#"{"type":"array","items":{"type":"integer"}}"#, "[]"),
            (r#"{"type":"array","items":{"type":"integer"},"minItems":2}"#, "[0,0]"),
            (r#"{"items":{},"minItems":1}"#, "[null]"),
            (r#"{"properties":{"a":{"type":"integer"},"b":{}},"required":["a"]}"#, r#"{"a":0}"#),
            (r#"{"required":["x"]}"#, r#"{"x":null}"#),
            (r#"{"anyOf":[false,{"type":"integer"}]}"#, "0"),
            (r##"{"$ref":"#/$defs/n","$defs":{"n":{"type":"boolean"}}}"##, "false"),
            (
                r##"{"type":"object","required":["value","next"],"properties":{"value":{"type":"integer"},
                    "next":{"anyOf":[{"$ref":"#"},{"type":"null"}]}}}"##,
                r#"{"next":null,"value":0}"#,
            ),
        ] {
            assert_eq!(of(schema).unwrap(), example, "{schema}");
        }
    }

    #[test]
    fn a_schema_that_cannot_be_followed_is_refused() {
        for (schema, why) in [
            (r#"{"enum":[]}"#, NoExample::Impossible),
            (r#"{"properties":{"a":false},"required":["a"]}"#, NoExample::Impossible),
            (r#"{"type":"colour"}"#, NoExample::NotUnderstood),
            (r#"{"type":7}"#, NoExample::NotUnderstood),
            (r#"{"$ref":"https://a.example/schema"}"#, NoExample::Unresolved),
            (r##"{"$ref":"#/nowhere"}"##, NoExample::Unresolved),
            (r##"{"$ref":"#"}"##, NoExample::TooLarge),
            (r##"{"properties":{"a":{"$ref":"#"}},"required":["a"]}"##, NoExample::TooLarge),
            (r##"{"items":{"$ref":"#"},"minItems":2}"##, NoExample::TooLarge),
            (r##"{"anyOf":[{"$ref":"#"},{"$ref":"#"}]}"##, NoExample::TooLarge),
            (r#"{"type":"array","minItems":1000000000000}"#, NoExample::TooLarge),
            (r#"{"type":"string","minLength":18446744073709551615}"#, NoExample::TooLarge),
        ] {
            assert_eq!(of(schema), Err(why), "{schema}");
        }
    }
}
