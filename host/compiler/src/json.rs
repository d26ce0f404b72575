//! The document's text as JSON.
//!
//! Owns: what is refused before anybody looks at what the document says: text that is too large, is not JSON, or is
//! nested too deeply; and keys that are given twice, which JSON parsers commonly swallow.
//! Does not: know what a document consists of.
//! Invariant: never recurses deeper than [`JSON_DEPTH_MAX`], and neither does whoever walks the value.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use stepwell_core::graph::PROBLEMS_MAX;
use stepwell_core::json::JSON_DEPTH_MAX;

use crate::DOCUMENT_BYTES_MAX;
use crate::problems::{Fault, Path, Place, Problems, clip};

/// A step from a value to one inside it.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// Reads a text. `None` when it is no value; the problems say why. With duplicate keys the last one counts, so that the
/// rest of the check has something to go on.
pub(crate) fn parse(text: &[u8], problems: &mut Problems) -> Option<Value> {
    if text.len() > DOCUMENT_BYTES_MAX {
        let message = format!("the document has {} bytes, at most {DOCUMENT_BYTES_MAX} are allowed", text.len());
        problems.add(Fault::new(Place::Document, "", "too_large", message));
        return None;
    }
    let notes = Notes::default();
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let read = Reader { notes: &notes, path: &RefCell::default() }.deserialize(&mut deserializer);
    let value = read.and_then(|value| deserializer.end().map(|()| value));
    if notes.too_deep.take() {
        let message = format!("the document is nested more than {JSON_DEPTH_MAX} levels deep");
        problems.add(Fault::new(Place::Document, "", "too_deep", message));
        return None;
    }
    match value {
        Ok(value) => {
            notes.duplicates.take().iter().for_each(|path| problems.add(duplicate(path)));
            Some(value)
        }
        Err(error) => {
            problems.add(Fault::new(Place::Document, "", "invalid_json", format!("the document is not JSON: {error}")));
            None
        }
    }
}

/// What is noticed while a text is read.
#[derive(Default)]
struct Notes {
    duplicates: RefCell<Vec<Vec<Step>>>,
    too_deep: RefCell<bool>,
}

/// Reads one value. `path` leads to it.
#[derive(Clone, Copy)]
struct Reader<'a> {
    notes: &'a Notes,
    path: &'a RefCell<Vec<Step>>,
}

impl Reader<'_> {
    /// Goes into an array or an object.
    fn enter<E: Error>(self) -> Result<(), E> {
        if self.path.borrow().len() < JSON_DEPTH_MAX {
            return Ok(());
        }
        self.notes.too_deep.replace(true);
        Err(E::custom("nested too deeply"))
    }
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number that is none"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.enter()?;
        let mut list = Vec::new();
        loop {
            self.path.borrow_mut().push(Step::Index(list.len()));
            let item = items.next_element_seed(self)?;
            self.path.borrow_mut().pop();
            match item {
                Some(item) => list.push(item),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.enter()?;
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            self.path.borrow_mut().push(Step::Key(key.clone()));
            let value = entries.next_value_seed(self)?;
            if map.insert(key, value).is_some() {
                let mut duplicates = self.notes.duplicates.borrow_mut();
                if duplicates.len() < PROBLEMS_MAX {
                    duplicates.push(self.path.borrow().clone());
                }
            }
            self.path.borrow_mut().pop();
        }
        Ok(Value::Object(map))
    }
}

/// The problem of a key that was given twice: a node's or an edge's where it stands in one.
fn duplicate(path: &[Step]) -> Fault {
    let (place, inside) = match path {
        [Step::Key(list), Step::Index(index), inside @ ..] if list == "nodes" => (Place::Node(*index), inside),
        [Step::Key(list), Step::Index(index), inside @ ..] if list == "edges" => (Place::Edge(*index), inside),
        whole => (Place::Document, whole),
    };
    let field = match inside {
        [Step::Key(first), rest @ ..] => field_of(first, rest),
        _ => String::new(), // the document is a list, which is told by itself
    };
    let key = if let Some(Step::Key(key)) = path.last() { key } else { "" };
    let message = format!("`{}` is given twice", clip(key));
    Fault::new(place, field, "duplicate_key", message).hint("most programs would read the last one only")
}

fn field_of(first: &str, rest: &[Step]) -> String {
    fn show(path: Path<'_>, rest: &[Step]) -> String {
        match rest {
            [] => path.to_string(),
            [Step::Key(key), rest @ ..] => show(Path::Key(&path, key), rest),
            [Step::Index(index), rest @ ..] => show(Path::Index(&path, *index), rest),
        }
    }
    show(Path::Field(clip(first)), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let mut problems = Problems::default();
        let value = parse(text.as_bytes(), &mut problems);
        let problems = problems.finish(|_| None);
        let problems = problems.iter().map(|p| format!(" {} {}: {}", p.field, p.code, p.message));
        value.map_or("-".to_owned(), |value| value.to_string()) + &problems.collect::<String>()
    }

    #[test]
    fn a_text_is_read_as_serde_json_reads_it() {
        for text in ["null", "[1,-2,3.5,1e300,18446744073709551615,true,\"\\u00e9é\"]", "{\"a\":{\"b\":[]}}", "\"\""] {
            assert_eq!(shown(text), serde_json::from_str::<Value>(text).unwrap().to_string());
        }
    }

    #[test]
    fn what_is_no_json_is_refused_with_its_place() {
        for (text, expected) in [
            ("", "-  invalid_json: the document is not JSON: EOF while parsing a value at line 1 column 0"),
            ("{\"a\":1,}", "-  invalid_json: the document is not JSON: trailing comma at line 1 column 8"),
            ("{}\n{}", "-  invalid_json: the document is not JSON: trailing characters at line 2 column 1"),
            ("1e999", "-  invalid_json: the document is not JSON: number out of range at line 1 column 5"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
        let mut problems = Problems::default();
        assert_eq!(parse(b"\"\xff\"", &mut problems), None);
    }

    #[test]
    fn a_key_that_is_given_twice_is_told_where_it_stands() {
        for (text, expected) in [
            (r#"{"a":1,"a":2}"#, r#"{"a":2} a duplicate_key: `a` is given twice"#),
            (r#"[{"a":1,"a":2}]"#, r#"[{"a":2}]  duplicate_key: `a` is given twice"#),
            (r#"{"nodes":[{"x":[{"y":1,"y":1}]}]}"#, r#"nodes[0].x[0].y duplicate_key: `y` is given twice"#),
            (r#"{"edges":[{},{"to":"a","to":"b"}]}"#, r#"edges[1].to duplicate_key: `to` is given twice"#),
        ] {
            assert!(shown(text).ends_with(expected), "{}", shown(text));
        }
    }

    #[test]
    fn nesting_ends_at_a_hundred_levels() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(!shown(&nested(JSON_DEPTH_MAX)).contains("too_deep"));
        for levels in [JSON_DEPTH_MAX + 1, 128, 129, 10_000, 700_000] {
            assert!(shown(&nested(levels)).contains("too_deep"), "{levels}");
            assert!(shown(&"{\"a\":".repeat(levels)).contains("too_deep"), "{levels}");
        }
    }
}
