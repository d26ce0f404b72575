//! The document's JSON Schema, and that serde and the compiler read the same.

use serde_json::{Value, json};
use stepwell_compiler::document_schema;
use stepwell_document::Document;

use crate::good::complete;
use crate::{checked, shown};

#[test]
fn the_schema_describes_the_document() {
    let schema = document_schema();
    assert_eq!(schema["title"], "Stepwell graph document");
    assert_eq!(schema.get("$id"), None);
    assert_eq!(schema["required"], json!(["stepwell", "nodes"]));
    assert_eq!(schema, document_schema());
    let text = schema.to_string();
    for word in ["transform", "on_failure", "while", "max_tokens", "Taken only when the source"] {
        assert!(text.contains(word), "{word}");
    }
}

/// Takes each value out of a document in turn, and puts a wrong one in its place: what serde refuses, the compiler
/// refuses.
#[test]
fn what_serde_refuses_is_refused() {
    fn variants(value: &Value, found: &mut Vec<Value>) {
        let mut wrap = |inner: Vec<Value>, outer: &dyn Fn(Value) -> Value| found.extend(inner.into_iter().map(outer));
        match value {
            Value::Object(fields) => {
                for (key, field) in fields {
                    let mut inner = Vec::new();
                    variants(field, &mut inner);
                    wrap(inner, &|changed| {
                        let mut copy = value.clone();
                        copy[key] = changed;
                        copy
                    });
                    let mut copy = value.clone();
                    copy.as_object_mut().unwrap().remove(key);
                    wrap(vec![copy], &|copy| copy);
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let mut inner = Vec::new();
                    variants(item, &mut inner);
                    wrap(inner, &|changed| {
                        let mut copy = value.clone();
                        copy[index] = changed;
                        copy
                    });
                }
            }
            _ => {}
        }
        found.extend([json!(null), json!(true), json!(-1), json!(0.5), json!("x"), json!([]), json!({})]);
    }
    let mut all = Vec::new();
    variants(&complete(), &mut all);
    assert!(all.len() > 1_000);
    let mut accepted = 0;
    for document in all {
        let read = serde_json::from_value::<Document>(document.clone());
        match (checked(&document.to_string()), read) {
            (Ok(checked), Ok(read)) => {
                assert_eq!(checked.program.document, read);
                accepted += 1;
            }
            (Ok(_), Err(error)) => panic!("{error}: {document}"),
            (Err(problems), _) => {
                assert!(problems.iter().all(|problem| problem.code != "incomplete"), "{}", shown(&problems))
            }
        }
    }
    assert!(accepted > 50, "{accepted}");
}
