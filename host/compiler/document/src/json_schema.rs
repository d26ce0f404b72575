//! Whether a value follows a JSON Schema.
//!
//! Owns: the keywords of JSON Schema 2020-12 that say something about one value alone, and `$ref` within the schema.
//! Does not: fetch other schemas, follow anchors, or tell formats apart: `format` is an annotation.
//! Invariant: **nothing is silently not enforced.** A keyword is checked by [`validate`], an annotation, or refused by
//! [`check`]. Patterns are regular expressions of jq's filters here, which know no backreferences and no look-around.

use std::collections::BTreeSet;
use std::fmt;

use regex_bites::bytes::Regex;
use serde_json::{Map, Value};

/// More problems than this help nobody.
const PROBLEMS_MAX: usize = 20;
/// Schemas within schemas, counting each `$ref`: more than a value of 100 levels takes, and little enough for the stack.
const DEPTH_MAX: usize = 400;

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// An RFC 6901 JSON pointer; empty for the whole.
    pub pointer: String,
    /// In a few words.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let place = if self.pointer.is_empty() { "the whole" } else { &self.pointer };
        write!(f, "{place} {}", self.message)
    }
}

/// What is wrong with a schema. Only one with nothing wrong can be relied on.
pub fn check(schema: &Value) -> Vec<Problem> {
    let mut check = Check { root: schema, problems: Vec::new() };
    check.schema(schema, "", 0);
    check.problems
}

/// How a value does not follow a schema: at most 20 problems, none if it follows it.
pub fn validate(schema: &Value, value: &Value) -> Vec<Problem> {
    let mut validation = Validation { root: schema, problems: Vec::new() };
    validation.value(schema, value, "", 0);
    validation.problems
}

/// What stands in a keyword.
#[derive(Clone, Copy)]
enum Form {
    /// Nothing that matters here.
    Annotation,
    /// Any JSON.
    Any,
    /// A non-empty array.
    Values,
    /// The name of a type, or an array of them.
    Type,
    /// A number.
    Number,
    /// A number over 0.
    Positive,
    /// A whole number from 0 on.
    Count,
    Boolean,
    /// Names of properties.
    Names,
    /// A regular expression.
    Pattern,
    /// A place in the schema.
    Reference,
    Schema,
    /// A non-empty array of schemas.
    Schemas,
    /// Schemas by name.
    Named,
    /// Schemas by pattern.
    Patterned,
}

/// Every keyword there is.
fn form(keyword: &str) -> Option<Form> {
    Some(match keyword {
        "title" | "description" | "default" | "examples" | "format" | "$schema" | "$id" | "$comment" | "deprecated"
        | "readOnly" | "writeOnly" | "contentMediaType" | "contentEncoding" => Form::Annotation,
        "const" => Form::Any,
        "enum" => Form::Values,
        "type" => Form::Type,
        "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => Form::Number,
        "multipleOf" => Form::Positive,
        "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties" | "maxProperties" => Form::Count,
        "uniqueItems" => Form::Boolean,
        "required" => Form::Names,
        "pattern" => Form::Pattern,
        "$ref" => Form::Reference,
        "items" | "additionalProperties" | "propertyNames" | "not" | "if" | "then" | "else" => Form::Schema,
        "allOf" | "anyOf" | "oneOf" | "prefixItems" => Form::Schemas,
        "properties" | "$defs" | "definitions" => Form::Named,
        "patternProperties" => Form::Patterned,
        _ => return None,
    })
}

const TYPES: [&str; 7] = ["null", "boolean", "object", "array", "number", "integer", "string"];

struct Check<'a> {
    root: &'a Value,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn schema(&mut self, schema: &Value, pointer: &str, depth: usize) {
        if self.problems.len() >= PROBLEMS_MAX {
            return;
        }
        if depth > DEPTH_MAX {
            return self.problem(pointer, "is nested too deeply");
        }
        let fields = match schema {
            Value::Bool(_) => return,
            Value::Object(fields) => fields,
            _ => return self.problem(pointer, "must be a schema: an object or a boolean"),
        };
        for (keyword, value) in fields {
            let pointer = joined(pointer, keyword);
            match form(keyword) {
                Some(form) => self.keyword(form, value, &pointer, depth),
                None => self.problem(&pointer, "is a keyword that is not supported"),
            }
        }
    }

    fn keyword(&mut self, form: Form, value: &Value, pointer: &str, depth: usize) {
        let expected = match form {
            Form::Annotation | Form::Any => return,
            Form::Schema => return self.schema(value, pointer, depth + 1),
            Form::Schemas => match value {
                Value::Array(schemas) if !schemas.is_empty() => {
                    for (number, schema) in schemas.iter().enumerate() {
                        self.schema(schema, &joined(pointer, &number.to_string()), depth + 1);
                    }
                    return;
                }
                _ => "a non-empty array of schemas",
            },
            Form::Named | Form::Patterned => match value {
                Value::Object(schemas) => {
                    for (name, schema) in schemas {
                        let pointer = joined(pointer, name);
                        if matches!(form, Form::Patterned) {
                            self.pattern(name, &pointer);
                        }
                        self.schema(schema, &pointer, depth + 1);
                    }
                    return;
                }
                _ => "an object of schemas",
            },
            Form::Pattern => match value {
                Value::String(pattern) => return self.pattern(pattern, pointer),
                _ => "a regular expression",
            },
            Form::Reference => match value {
                Value::String(reference) if resolve(self.root, reference).is_some() => return,
                _ => "`#` or a place in this schema, such as `#/$defs/item`",
            },
            Form::Values if value.as_array().is_some_and(|values| !values.is_empty()) => return,
            Form::Values => "a non-empty array",
            Form::Type if is_type(value) => return,
            Form::Type => "one of null, boolean, object, array, number, integer and string, or an array of these",
            Form::Number if value.is_number() => return,
            Form::Number => "a number",
            Form::Positive if value.as_f64().is_some_and(|number| number > 0.0) => return,
            Form::Positive => "a number over 0",
            Form::Count if value.is_u64() => return,
            Form::Count => "a whole number from 0 on",
            Form::Boolean if value.is_boolean() => return,
            Form::Boolean => "a boolean",
            Form::Names if value.as_array().is_some_and(|names| names.iter().all(Value::is_string)) => return,
            Form::Names => "an array of strings",
        };
        self.problem(pointer, &format!("must be {expected}"));
    }

    fn pattern(&mut self, pattern: &str, pointer: &str) {
        if let Err(error) = Regex::new(pattern) {
            self.problem(pointer, &format!("is not a regular expression: {error}"));
        }
    }

    fn problem(&mut self, pointer: &str, message: &str) {
        self.problems.push(Problem { pointer: pointer.to_owned(), message: message.to_owned() });
    }
}

fn is_type(value: &Value) -> bool {
    let known = |name: &Value| name.as_str().is_some_and(|name| TYPES.contains(&name));
    known(value) || value.as_array().is_some_and(|names| !names.is_empty() && names.iter().all(known))
}

struct Validation<'a> {
    root: &'a Value,
    problems: Vec<Problem>,
}

impl Validation<'_> {
    fn value(&mut self, schema: &Value, value: &Value, pointer: &str, depth: usize) {
        if self.problems.len() >= PROBLEMS_MAX {
            return;
        }
        if depth > DEPTH_MAX {
            return self.problem(pointer, "is nested too deeply, or its schema refers to itself without end");
        }
        let fields = match schema {
            Value::Object(fields) => fields,
            Value::Bool(false) => return self.problem(pointer, "must not be there"),
            _ => return,
        };
        self.any(fields, value, pointer);
        self.applied(fields, value, pointer, depth + 1);
        match value {
            Value::Number(number) => self.number(fields, number.as_f64().unwrap_or(f64::NAN), pointer),
            Value::String(text) => self.text(fields, text, pointer),
            Value::Array(items) => self.array(fields, items, pointer, depth + 1),
            Value::Object(properties) => self.object(fields, properties, pointer, depth + 1),
            _ => {}
        }
    }

    /// Keywords for values of every type.
    fn any(&mut self, schema: &Map<String, Value>, value: &Value, pointer: &str) {
        match schema.get("type") {
            Some(Value::String(name)) if !is_of(value, name) => {
                self.problem(pointer, &format!("must be of type {name}"))
            }
            Some(Value::Array(names)) if !names.iter().filter_map(Value::as_str).any(|name| is_of(value, name)) => {
                self.problem(pointer, &format!("must be of one of the types {}", Value::from(names.clone())));
            }
            _ => {}
        }
        if let Some(expected) = schema.get("const")
            && canonical(expected) != canonical(value)
        {
            self.problem(pointer, &format!("must be {expected}"));
        }
        if let Some(Value::Array(allowed)) = schema.get("enum") {
            let value = canonical(value);
            if !allowed.iter().any(|allowed| canonical(allowed) == value) {
                self.problem(pointer, &format!("must be one of {}", Value::from(allowed.clone())));
            }
        }
    }

    /// Keywords that apply other schemas to the same value.
    fn applied(&mut self, schema: &Map<String, Value>, value: &Value, pointer: &str, depth: usize) {
        if let Some(Value::String(reference)) = schema.get("$ref") {
            match resolve(self.root, reference) {
                Some(found) => self.value(found, value, pointer, depth),
                None => self.problem(pointer, &format!("cannot be checked: there is no {reference} in the schema")),
            }
        }
        for schema in array(schema, "allOf") {
            self.value(schema, value, pointer, depth);
        }
        if let Some(Value::Array(choices)) = schema.get("anyOf")
            && !choices.iter().any(|choice| self.follows(choice, value, depth))
        {
            self.problem(pointer, "follows none of the schemas of `anyOf`");
        }
        if let Some(Value::Array(choices)) = schema.get("oneOf") {
            match choices.iter().filter(|choice| self.follows(choice, value, depth)).count() {
                1 => {}
                0 => self.problem(pointer, "follows none of the schemas of `oneOf`"),
                _ => self.problem(pointer, "follows several of the schemas of `oneOf`"),
            }
        }
        if let Some(not) = schema.get("not")
            && self.follows(not, value, depth)
        {
            self.problem(pointer, "follows the schema of `not`");
        }
        if let Some(condition) = schema.get("if") {
            let next = if self.follows(condition, value, depth) { "then" } else { "else" };
            if let Some(schema) = schema.get(next) {
                self.value(schema, value, pointer, depth);
            }
        }
    }

    fn number(&mut self, schema: &Map<String, Value>, number: f64, pointer: &str) {
        let limit = |keyword: &str| schema.get(keyword).and_then(Value::as_f64);
        if let Some(least) = limit("minimum").filter(|least| number < *least) {
            self.problem(pointer, &format!("must be at least {least}"));
        }
        if let Some(most) = limit("maximum").filter(|most| number > *most) {
            self.problem(pointer, &format!("must be at most {most}"));
        }
        if let Some(bound) = limit("exclusiveMinimum").filter(|bound| number <= *bound) {
            self.problem(pointer, &format!("must be more than {bound}"));
        }
        if let Some(bound) = limit("exclusiveMaximum").filter(|bound| number >= *bound) {
            self.problem(pointer, &format!("must be less than {bound}"));
        }
        if let Some(unit) = limit("multipleOf") {
            // 0.3 is a multiple of 0.1 for everybody but for floating-point division.
            let count = number / unit;
            if (count - count.round()).abs() > 1e-9 * count.abs().max(1.0) {
                self.problem(pointer, &format!("must be a multiple of {unit}"));
            }
        }
    }

    fn text(&mut self, schema: &Map<String, Value>, text: &str, pointer: &str) {
        self.count(schema, "minLength", "maxLength", "characters", text.chars().count(), pointer);
        if let Some(Value::String(pattern)) = schema.get("pattern")
            && !matches(pattern, text)
        {
            self.problem(pointer, &format!("must match {pattern}"));
        }
    }

    fn array(&mut self, schema: &Map<String, Value>, items: &[Value], pointer: &str, depth: usize) {
        self.count(schema, "minItems", "maxItems", "items", items.len(), pointer);
        if schema.get("uniqueItems") == Some(&Value::Bool(true)) {
            let mut seen = BTreeSet::new();
            if let Some(number) = items.iter().position(|item| !seen.insert(canonical(item))) {
                self.problem(&joined(pointer, &number.to_string()), "is there already");
            }
        }
        let first = array(schema, "prefixItems");
        for (number, item) in items.iter().enumerate() {
            if let Some(schema) = first.get(number).or_else(|| schema.get("items")) {
                self.value(schema, item, &joined(pointer, &number.to_string()), depth);
            }
        }
    }

    fn object(&mut self, schema: &Map<String, Value>, fields: &Map<String, Value>, pointer: &str, depth: usize) {
        self.count(schema, "minProperties", "maxProperties", "properties", fields.len(), pointer);
        for name in array(schema, "required").iter().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                self.problem(&joined(pointer, name), "is missing");
            }
        }
        let named = schema.get("properties").and_then(Value::as_object);
        let patterned = schema.get("patternProperties").and_then(Value::as_object);
        for (name, value) in fields {
            let pointer = joined(pointer, name);
            if let Some(names) = schema.get("propertyNames")
                && !self.follows(names, &Value::from(name.as_str()), depth)
            {
                self.problem(&pointer, "does not follow `propertyNames`");
            }
            let of_name = named.and_then(|named| named.get(name));
            let of_pattern = patterned.into_iter().flatten().filter(|(pattern, _)| matches(pattern, name));
            let mut known = false;
            for schema in of_name.into_iter().chain(of_pattern.map(|(_, schema)| schema)) {
                known = true;
                self.value(schema, value, &pointer, depth);
            }
            match schema.get("additionalProperties") {
                Some(Value::Bool(false)) if !known => self.problem(&pointer, "is not a property that is known"),
                Some(schema) if !known => self.value(schema, value, &pointer, depth),
                _ => {}
            }
        }
    }

    fn count(&mut self, schema: &Map<String, Value>, min: &str, max: &str, what: &str, count: usize, pointer: &str) {
        let limit = |keyword: &str| schema.get(keyword).and_then(Value::as_u64);
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        if let Some(least) = limit(min).filter(|least| count < *least) {
            self.problem(pointer, &format!("must have at least {least} {what}"));
        }
        if let Some(most) = limit(max).filter(|most| count > *most) {
            self.problem(pointer, &format!("must have at most {most} {what}"));
        }
    }

    fn follows(&self, schema: &Value, value: &Value, depth: usize) -> bool {
        let mut inner = Validation { root: self.root, problems: Vec::new() };
        inner.value(schema, value, "", depth);
        inner.problems.is_empty()
    }

    fn problem(&mut self, pointer: &str, message: &str) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(Problem { pointer: pointer.to_owned(), message: message.to_owned() });
        }
    }
}

fn is_of(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "string" => value.is_string(),
        _ => false,
    }
}

/// The elements of an array; none where there is no array.
fn array<'a>(schema: &'a Map<String, Value>, keyword: &str) -> &'a [Value] {
    schema.get(keyword).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn resolve<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

fn matches(pattern: &str, text: &str) -> bool {
    Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text.as_bytes()))
}

fn joined(pointer: &str, name: &str) -> String {
    format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// A text that is the same for values that are equal: properties have an order, and `1.0` is `1`.
fn canonical(value: &Value) -> String {
    match value {
        Value::Number(number) if number.is_f64() => match number.as_f64() {
            Some(float) if float.fract() == 0.0 => format!("{float:.0}"),
            _ => number.to_string(),
        },
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(canonical).collect();
            format!("[{}]", items.join(","))
        }
        // A map of serde_json is sorted.
        Value::Object(fields) => {
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| format!("{}:{}", Value::from(name.as_str()), canonical(value)))
                .collect();
            format!("{{{}}}", fields.join(","))
        }
        value => value.to_string(),
    }
}
