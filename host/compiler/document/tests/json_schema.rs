//! Values against schemas, keyword by keyword.

use serde_json::{Value, json};

use stepwell_document::json_schema::{Problem, check, validate};

fn pointers(problems: &[Problem]) -> Vec<&str> {
    problems.iter().map(|problem| problem.pointer.as_str()).collect()
}

/// A schema, values that follow it, and values that do not with the places of their problems.
#[track_caller]
fn table(schema: Value, good: &[Value], bad: &[(Value, &[&str])]) {
    assert_eq!(check(&schema), [], "{schema}");
    for value in good {
        assert_eq!(validate(&schema, value), [], "{schema}: {value}");
    }
    for (value, expected) in bad {
        assert_eq!(pointers(&validate(&schema, value)), *expected, "{schema}: {value}");
    }
}

#[test]
fn types() {
    table(
        json!({ "type": "integer" }),
        &[json!(1), json!(1.0), json!(-3)],
        &[(json!(1.5), &[""]), (json!("1"), &[""])],
    );
    table(json!({ "type": "number" }), &[json!(1), json!(1.5)], &[(json!(null), &[""])]);
    table(json!({ "type": ["null", "string"] }), &[json!(null), json!("")], &[(json!(false), &[""])]);
    table(json!({ "type": "object" }), &[json!({})], &[(json!([]), &[""])]);
    table(json!({ "type": "array" }), &[json!([])], &[(json!({}), &[""])]);
    table(json!({ "type": "boolean" }), &[json!(true)], &[(json!(0), &[""])]);
    table(json!(true), &[json!(1)], &[]);
    table(json!(false), &[], &[(json!(1), &[""])]);
    table(json!({}), &[json!(1)], &[]);
}

#[test]
fn values() {
    table(json!({ "const": { "a": 1, "b": [] } }), &[json!({ "b": [], "a": 1.0 })], &[(json!({ "a": 1 }), &[""])]);
    table(json!({ "enum": [1, "x", null] }), &[json!(1.0), json!("x"), json!(null)], &[(json!("1"), &[""])]);
    table(
        json!({ "const": 9007199254740993u64 }),
        &[json!(9007199254740993u64)],
        &[(json!(9007199254740992u64), &[""])],
    );
}

#[test]
fn numbers() {
    table(
        json!({ "minimum": 1, "maximum": 2 }),
        &[json!(1), json!(2), json!("3")],
        &[(json!(0.9), &[""]), (json!(3), &[""])],
    );
    table(
        json!({ "exclusiveMinimum": 1, "exclusiveMaximum": 2 }),
        &[json!(1.5)],
        &[(json!(1), &[""]), (json!(2), &[""])],
    );
    table(json!({ "multipleOf": 0.1 }), &[json!(0.3), json!(7), json!(0)], &[(json!(0.35), &[""])]);
    table(json!({ "multipleOf": 3 }), &[json!(9)], &[(json!(10), &[""])]);
}

#[test]
fn texts() {
    table(
        json!({ "minLength": 2, "maxLength": 2 }),
        &[json!("é€"), json!(1)],
        &[(json!("é"), &[""]), (json!("abc"), &[""])],
    );
    table(json!({ "pattern": "^a+$" }), &[json!("aa")], &[(json!("ab"), &[""])]);
    table(json!({ "pattern": "b" }), &[json!("abc")], &[(json!("ac"), &[""])]);
}

#[test]
fn arrays() {
    table(
        json!({ "items": { "type": "integer" } }),
        &[json!([]), json!([1])],
        &[(json!([1, "x", null]), &["/1", "/2"])],
    );
    table(
        json!({ "prefixItems": [{ "type": "string" }, true], "items": false }),
        &[json!(["a"]), json!(["a", 1])],
        &[(json!([1, 2, 3]), &["/0", "/2"])],
    );
    table(json!({ "minItems": 1, "maxItems": 2 }), &[json!([1])], &[(json!([]), &[""]), (json!([1, 2, 3]), &[""])]);
    table(json!({ "uniqueItems": true }), &[json!([1, "1", [1]])], &[(json!([{ "a": 1 }, 2, { "a": 1.0 }]), &["/2"])]);
    table(json!({ "uniqueItems": false }), &[json!([1, 1])], &[]);
}

#[test]
fn objects() {
    table(
        json!({ "properties": { "a/b~": { "type": "string" } }, "required": ["a/b~"], "additionalProperties": false }),
        &[json!({ "a/b~": "x" }), json!(1)],
        &[(json!({}), &["/a~1b~0"]), (json!({ "a/b~": 1, "c": 2 }), &["/a~1b~0", "/c"])],
    );
    table(
        json!({ "patternProperties": { "^x-": { "type": "integer" } }, "additionalProperties": { "type": "string" } }),
        &[json!({ "x-a": 1, "b": "" })],
        &[(json!({ "b": 1, "x-a": "" }), &["/b", "/x-a"])],
    );
    table(json!({ "minProperties": 1, "maxProperties": 1 }), &[json!({ "a": 1 })], &[(json!({}), &[""])]);
    table(json!({ "propertyNames": { "maxLength": 1 } }), &[json!({ "a": 1 })], &[(json!({ "ab": 1 }), &["/ab"])]);
}

#[test]
fn combinations() {
    let (small, even) = (json!({ "maximum": 10 }), json!({ "multipleOf": 2 }));
    table(json!({ "allOf": [small, even] }), &[json!(4)], &[(json!(11), &["", ""]), (json!(3), &[""])]);
    table(json!({ "anyOf": [small, even] }), &[json!(3), json!(12)], &[(json!(11), &[""])]);
    table(json!({ "oneOf": [small, even] }), &[json!(3), json!(12)], &[(json!(4), &[""]), (json!(11), &[""])]);
    table(json!({ "not": even }), &[json!(3)], &[(json!(4), &[""])]);
    table(
        json!({ "if": { "type": "string" }, "then": { "minLength": 1 }, "else": { "minimum": 1 } }),
        &[json!("a"), json!(1)],
        &[(json!(""), &[""]), (json!(0), &[""])],
    );
}

#[test]
fn references() {
    let tree = json!({
        "$ref": "#/$defs/node",
        "$defs": { "node": {
            "type": "object", "required": ["value"],
            "properties": { "value": { "type": "integer" }, "next": { "$ref": "#/$defs/node" } },
        } },
    });
    table(
        tree,
        &[json!({ "value": 1, "next": { "value": 2 } })],
        &[(json!({ "value": 1, "next": { "value": "x", "next": {} } }), &["/next/next/value", "/next/value"])],
    );
    table(json!({ "properties": { "a": { "$ref": "#" } }, "maxProperties": 1 }), &[json!({ "a": { "a": {} } })], &[]);
    // Without end, but not for us.
    assert_eq!(validate(&json!({ "$ref": "#" }), &json!(1)).len(), 1);
}

#[test]
fn a_deep_value_follows_a_schema_that_is_as_deep() {
    let schema = json!({ "anyOf": [{ "type": "integer" }, { "type": "array", "items": { "$ref": "#" } }] });
    let mut value = json!(1);
    for _ in 0..99 {
        value = json!([value]);
    }
    assert_eq!(validate(&schema, &value), []);
}

#[test]
fn no_more_than_twenty_problems_are_reported() {
    let value = Value::from(vec!["x"; 100]);
    assert_eq!(validate(&json!({ "items": { "type": "integer" } }), &value).len(), 20);
}

#[test]
fn annotations_say_nothing() {
    table(
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "x", "$comment": "c", "title": "t",
            "description": "d", "default": 1, "examples": [], "format": "email", "deprecated": true,
            "readOnly": true, "writeOnly": true, "contentMediaType": "text/html", "definitions": { "a": true },
        }),
        &[json!("not an address")],
        &[],
    );
}

#[test]
fn what_would_not_be_enforced_is_refused() {
    for (schema, pointer) in [
        (json!({ "unevaluatedProperties": false }), "/unevaluatedProperties"),
        (json!({ "properties": { "a": { "nullable": true } } }), "/properties/a/nullable"),
        (json!({ "allOf": [true, { "contains": {} }] }), "/allOf/1/contains"),
        (json!({ "$defs": { "a": { "dependentRequired": {} } } }), "/$defs/a/dependentRequired"),
        (json!({ "$ref": "https://example.com/schema" }), "/$ref"),
        (json!({ "$ref": "#/$defs/none" }), "/$ref"),
        (json!({ "$ref": "#anchor" }), "/$ref"),
        (json!({ "type": "text" }), "/type"),
        (json!({ "type": [] }), "/type"),
        (json!({ "enum": [] }), "/enum"),
        (json!({ "minimum": "1" }), "/minimum"),
        (json!({ "multipleOf": 0 }), "/multipleOf"),
        (json!({ "minLength": -1 }), "/minLength"),
        (json!({ "maxItems": 1.5 }), "/maxItems"),
        (json!({ "uniqueItems": 1 }), "/uniqueItems"),
        (json!({ "required": "a" }), "/required"),
        (json!({ "pattern": "(" }), "/pattern"),
        (json!({ "pattern": "(?=a)" }), "/pattern"),
        (json!({ "patternProperties": { "[": true } }), "/patternProperties/["),
        (json!({ "items": [true] }), "/items"),
        (json!({ "anyOf": [] }), "/anyOf"),
        (json!({ "properties": [] }), "/properties"),
        (json!("object"), ""),
    ] {
        assert_eq!(pointers(&check(&schema)), [pointer], "{schema}");
    }
}
