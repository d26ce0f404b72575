//! The examples of jq's manual. They run as a `transform` runs them, and what differs from jq is listed here with its
//! reason, so that nobody finds out in production.

use serde_json::{Value, json};

use super::{Fake, context};
use crate::bindings::stepwell::workflow::types::Outcome;
use crate::step;

const EXAMPLES: &str = include_str!("../../tests/jq-man.test");

/// Programs whose outcome differs from the manual's, and why.
const DIFFERENT: &[(&str, &str)] = &[
    (
        r#"map([., . == 1]) | tojson == if have_decnum then "[[1,true],[1.000,true],[1.0,true],[1.00,true]]" else "[[1,true],[1,true],[1,true],[1,true]]" end"#,
        "`100e-2` keeps its digits as they are written",
    ),
    (
        r#". as $big | [$big, $big + 1] | map(. > 10000000000000000000000000000000) | . == if have_decnum then [true, false] else [false, false] end"#,
        "whole numbers are exact here, however large, so one more is larger",
    ),
    (r#"try error("\($__loc__)") catch ."#, "an expression stands in a document and has no line"),
    (r#"$ENV.PAGER"#, "there is no environment"),
    (r#"env.PAGER"#, "there is no environment"),
    (r#"fromdate"#, "expressions know no time"),
    (r#"strptime("%Y-%m-%dT%H:%M:%SZ")"#, "expressions know no time"),
    (r#"strptime("%Y-%m-%dT%H:%M:%SZ")|mktime"#, "expressions know no time"),
    (
        r#".[] as {$a, $b, c: {$d, $e}} ?// {$a, $b, c: [{$d, $e}]} | {$a, $b, $d, $e}"#,
        "jaq has no alternative destructuring",
    ),
    (r#".[] as {$a, $b, c: {$d}} ?// {$a, $b, c: [{$e}]} | {$a, $b, $d, $e}"#, "jaq has no alternative destructuring"),
    (
        r#".[] as [$a] ?// [$b] | if $a != null then error("err: \($a)") else {$a,$b} end"#,
        "jaq has no alternative destructuring",
    ),
];

struct Example {
    program: String,
    /// As it stands there: a number has digits that a float does not.
    input: String,
    outputs: Vec<Value>,
}

fn examples() -> Vec<Example> {
    let blocks = EXAMPLES.split("\n\n").map(|block| {
        block.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()).collect::<Vec<_>>()
    });
    let examples = blocks.filter_map(|lines| match lines.as_slice() {
        [program, input, outputs @ ..] if *program != "%%FAIL" => Some(Example {
            program: (*program).to_owned(),
            input: (*input).to_owned(),
            outputs: outputs.iter().map(|output| super::parsed(output)).collect(),
        }),
        _ => None,
    });
    examples.collect()
}

/// Whether an example comes out as in the manual; what came out otherwise.
fn outcome(example: &Example) -> Result<(), String> {
    let code = format!("${{.input | [{}]}}", example.program);
    let node = json!({ "id": "t", "kind": "transform", "output": code });
    let program = super::load(json!([node])).map_err(|problems| problems[0].message.clone())?;
    let handed = [("input".to_owned(), example.input.clone())];
    match step::run(&program, &Fake::default(), &context("t", &[]), &handed) {
        Ok(Outcome::Output(json)) => {
            let made = super::parsed(&json);
            if same(&made, &Value::from(example.outputs.clone())) { Ok(()) } else { Err(json) }
        }
        Ok(other) => Err(format!("{other:?}")),
        Err(failure) => Err(failure.message),
    }
}

/// Numbers are the same however they are written.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(name, one)| other.get(name).is_some_and(|other| same(one, other)))
        }
        (one, other) => one == other,
    }
}

#[test]
fn the_examples_of_jqs_manual_come_out_as_there_but_for_what_is_listed() {
    let examples = examples();
    assert!(examples.len() > 200, "{}", examples.len());
    let mut unexpected = Vec::new();
    let mut different = 0;
    for example in &examples {
        let listed = DIFFERENT.iter().any(|(program, _)| *program == example.program);
        match outcome(example) {
            Err(_) if listed => different += 1,
            Err(made) => unexpected
                .push(format!("{}\n    {} => {made}, not {:?}", example.program, example.input, example.outputs)),
            Ok(()) if listed => unexpected.push(format!("{}\n    no longer differs", example.program)),
            Ok(()) => {}
        }
    }
    println!("{} examples, {different} differ", examples.len());
    assert!(unexpected.is_empty(), "{} of {}:\n{}", unexpected.len(), examples.len(), unexpected.join("\n"));
    for (program, reason) in DIFFERENT {
        assert!(examples.iter().any(|example| example.program == *program), "no example: {program} ({reason})");
    }
}
