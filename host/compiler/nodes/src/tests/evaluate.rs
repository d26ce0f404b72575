//! One expression on one value, without a program.

use super::*;
use crate::evaluate;

fn evaluated(expression: &str, input: Option<Value>) -> Result<Value, String> {
    let mut handed = vec![("expression".to_owned(), json!(expression).to_string())];
    handed.extend(input.map(|input| ("input".to_owned(), input.to_string())));
    match evaluate::run(&handed) {
        Ok(Outcome::Output(json)) => Ok(parsed(&json)),
        Ok(other) => panic!("{other:?}"),
        Err(failure) => Err(failure.code),
    }
}

#[test]
fn an_expression_has_one_value_or_a_failure_that_says_why() {
    let input = || Some(json!({"a": [1, 2], "kind": "order"}));
    assert_eq!(evaluated(".kind == \"order\" and (.a | length) > 1", input()), Ok(json!(true)));
    assert_eq!(evaluated(".a", input()), Ok(json!([1, 2])));
    assert_eq!(evaluated(".a[]", input()), Err("several_values".to_owned()));
    assert_eq!(evaluated("empty", input()), Err("no_value".to_owned()));
    assert_eq!(evaluated(".kind.x", input()), Err("expression_failed".to_owned()));
}

#[test]
fn without_a_value_an_expression_is_only_looked_at() {
    assert_eq!(evaluated(".a[]", None), Ok(Value::Null));
    assert_eq!(evaluated(".a[", None), Err("invalid_expression".to_owned()));
    assert_eq!(evaluated("frob", None), Err("invalid_expression".to_owned()));
    assert!(evaluate::run(&[]).is_err());
}
