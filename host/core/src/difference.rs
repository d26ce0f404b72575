//! Whether two values are the same, and where they first are not.
//!
//! The same are values, not texts: numbers count by what they are worth (`1`, `1.0` and `10e-1` are one number, however
//! many digits it has), the order of an object's keys does not count, the order of an array does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::json::Json;

/// Where two values first differ, as an RFC 6901 JSON pointer (`""` is the whole); `None` when they are the same. As deep
/// as a value may be, it does not go deeper.
#[must_use]
pub fn first_difference(one: &Json, other: &Json) -> Option<String> {
    let mut at = String::new();
    differ(one.as_str(), other.as_str(), &mut at).then_some(at)
}

/// Whether two texts of valid JSON differ; `at` then says where.
fn differ(one: &str, other: &str, at: &mut String) -> bool {
    let (one, other) = (one.trim(), other.trim());
    if one == other {
        return false;
    }
    match (one.bytes().next(), other.bytes().next()) {
        (Some(b'{'), Some(b'{')) => match (read::<BTreeMap<String, &RawValue>>(one), read(other)) {
            (Some(one), Some(other)) => objects_differ(&one, &other, at),
            _ => true,
        },
        (Some(b'['), Some(b'[')) => match (read::<Vec<&RawValue>>(one), read::<Vec<&RawValue>>(other)) {
            (Some(one), Some(other)) => arrays_differ(&one, &other, at),
            _ => true,
        },
        (Some(b'"'), Some(b'"')) => read::<String>(one) != read::<String>(other),
        (Some(b'-' | b'0'..=b'9'), Some(b'-' | b'0'..=b'9')) => match (Decimal::of(one), Decimal::of(other)) {
            (Some(one), Some(other)) => one != other,
            // An exponent that no number needs: then their texts must do.
            _ => true,
        },
        // `true`, `false`, `null`, or of two kinds.
        _ => true,
    }
}

fn objects_differ(one: &BTreeMap<String, &RawValue>, other: &BTreeMap<String, &RawValue>, at: &mut String) -> bool {
    let before = at.len();
    // In the order of the keys, whichever of the two has them.
    let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    for key in keys {
        // Writing to a string does not fail.
        let _ = write!(at, "/{}", key.replace('~', "~0").replace('/', "~1"));
        let differ = match (one.get(key), other.get(key)) {
            (Some(one), Some(other)) => differ(one.get(), other.get(), at),
            _ => true,
        };
        if differ {
            return true;
        }
        at.truncate(before);
    }
    false
}

fn arrays_differ(one: &[&RawValue], other: &[&RawValue], at: &mut String) -> bool {
    let before = at.len();
    for (place, (one, other)) in one.iter().zip(other).enumerate() {
        let _ = write!(at, "/{place}");
        if differ(one.get(), other.get(), at) {
            return true;
        }
        at.truncate(before);
    }
    if one.len() == other.len() {
        return false;
    }
    let _ = write!(at, "/{}", one.len().min(other.len()));
    true
}

fn read<'a, T: Deserialize<'a>>(text: &'a str) -> Option<T> {
    serde_json::from_str(text).ok()
}

/// What a number is worth: its significant digits, and the power of ten that the last of them counts. All that are worth
/// the same have the same.
#[derive(PartialEq, Eq)]
struct Decimal {
    negative: bool,
    digits: String,
    exponent: i64,
}

impl Decimal {
    /// `None` when its exponent has no place in an `i64`.
    fn of(text: &str) -> Option<Self> {
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>()),
            None => (text, Ok(0)),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = [whole, fraction].concat();
        let without_end = digits.trim_end_matches('0');
        let significant = without_end.trim_start_matches('0');
        if significant.is_empty() {
            // Zero, whatever its sign and its exponent.
            return Some(Self { negative: false, digits: String::new(), exponent: 0 });
        }
        let moved = i64::try_from(digits.len() - without_end.len()).ok()? - i64::try_from(fraction.len()).ok()?;
        Some(Self { negative, digits: significant.to_owned(), exponent: exponent.ok()?.checked_add(moved)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(one: &str, other: &str) -> Option<String> {
        // As it is read from a journal, where there may be numbers that are not taken any more.
        let json = |text: &str| serde_json::from_str(text).unwrap();
        let found = first_difference(&json(one), &json(other));
        assert_eq!(found, first_difference(&json(other), &json(one)), "{one} {other}");
        found
    }

    #[test]
    fn values_are_compared_and_not_texts() {
        for (one, other) in [
            ("1", "1.0"),
            ("1", "10e-1"),
            ("1.50", "15E-1"),
            ("-0", "0.0"),
            ("0e5", "0"),
            ("100", "1e+2"),
            ("0.001", "1e-3"),
            ("123456789012345678901234567890", "1.2345678901234567890123456789e29"),
            (r#""A/ü""#, r#""\u0041\/ü""#),
            (r#"{"a":1,"b":[1,2]}"#, r#" { "b" : [1.0, 2] , "a" : 1 } "#),
            ("[]", "[ ]"),
            ("null", " null"),
        ] {
            assert_eq!(difference(one, other), None, "{one} {other}");
        }
    }

    #[test]
    fn the_first_difference_is_told_by_its_place() {
        for (one, other, at) in [
            ("1", "2", ""),
            ("1", "-1", ""),
            ("1", "\"1\"", ""),
            ("true", "false", ""),
            ("null", "0", ""),
            ("9007199254740993", "9007199254740992", ""),
            ("123456789012345678901234567890", "123456789012345678901234567891", ""),
            ("1e99999999999999999999", "1e99999999999999999998", ""),
            ("[1,2]", "[2,1]", "/0"),
            ("[1,2]", "[1]", "/1"),
            (r#"{"a":1}"#, r#"{"b":1}"#, "/a"),
            (r#"{"a":{"b":[0,{"c":1}]}}"#, r#"{"a":{"b":[0,{"c":2}]}}"#, "/a/b/1/c"),
            (r#"{"a/b~c":1}"#, r#"{"a/b~c":2}"#, "/a~1b~0c"),
            (r#"{"a":1,"z":1}"#, r#"{"a":1.0,"z":2}"#, "/z"),
        ] {
            assert_eq!(difference(one, other).as_deref(), Some(at), "{one} {other}");
        }
    }
}
