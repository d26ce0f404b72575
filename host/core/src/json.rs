//! JSON that is known to be valid, and payloads that may be too large to carry around.

use std::fmt;
use std::sync::Arc;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::ids::Digest;

/// How deep JSON may be nested. Common parsers stop at 128 levels, and a value is nested further inside an event.
pub const JSON_DEPTH_MAX: usize = 100;

/// Payloads up to this many bytes are part of their event; larger ones live once, by content hash, and the
/// event holds the reference. 64 KiB keeps a history that is read often small without a second read for
/// ordinary values.
pub const INLINE_BYTES_MAX: usize = 64 * 1024;

/// Valid JSON text on one line, at most [`JSON_DEPTH_MAX`] deep, kept as it was written. Whatever comes in goes through
/// [`parse`](Self::parse), so common parsers can read it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json(Arc<RawValue>);

/// Text that is not JSON we accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJson {
    /// It is not JSON; the text says where it stops being JSON.
    #[error("{0}")]
    Syntax(String),
    /// It is JSON, and common parsers cannot read it; the text says why.
    #[error("{0}")]
    Unreadable(String),
    /// It is nested too deeply.
    #[error("nested more than {JSON_DEPTH_MAX} levels deep")]
    TooDeep,
}

impl Json {
    /// Checks the text and keeps it, line breaks between tokens replaced by spaces.
    pub fn parse(text: String) -> Result<Self, InvalidJson> {
        let json = Self::stored(text)?;
        if may_be_unreadable(json.as_str().as_bytes()) {
            let unreadable = |error: serde_json::Error| InvalidJson::Unreadable(error.to_string());
            serde_json::from_str::<Readable>(json.as_str()).map_err(unreadable)?;
        }
        Ok(json)
    }

    /// The same for text that was taken before: in journals there may be what is JSON and cannot be read by all.
    pub fn stored(text: String) -> Result<Self, InvalidJson> {
        if depth_of(text.as_bytes()) > JSON_DEPTH_MAX {
            return Err(InvalidJson::TooDeep);
        }
        // A raw line break cannot stand inside a JSON string, so every one of them is white space; without them
        // an event is one line of a stream.
        let text = if text.bytes().any(|b| b == b'\n' || b == b'\r') { text.replace(['\n', '\r'], " ") } else { text };
        let raw = RawValue::from_string(text).map_err(|error| InvalidJson::Syntax(error.to_string()))?;
        Ok(Self(raw.into()))
    }

    /// The JSON text of a value. What is [`Json`] in it stays what it is.
    pub fn of(value: &impl Serialize) -> Result<Self, InvalidJson> {
        let text = serde_json::to_string(value).map_err(|error| InvalidJson::Syntax(error.to_string()))?;
        Self::stored(text)
    }

    /// An array of values, `null` where there is none. One level deeper than the deepest of them, and so perhaps one
    /// deeper than [`JSON_DEPTH_MAX`].
    #[must_use]
    pub fn array(values: &[Option<Self>]) -> Self {
        let mut text =
            String::with_capacity(2 + values.iter().flatten().map(|value| value.len_bytes() + 1).sum::<usize>());
        for (place, value) in values.iter().enumerate() {
            text.push(if place == 0 { '[' } else { ',' });
            text.push_str(value.as_ref().map_or("null", Self::as_str));
        }
        text.push_str(if values.is_empty() { "[]" } else { "]" });
        // Valid values between brackets and commas are a valid value.
        RawValue::from_string(text).map_or_else(|_| Self::null(), |raw| Self(raw.into()))
    }

    /// `null`.
    #[must_use]
    pub fn null() -> Self {
        Self(RawValue::NULL.to_owned().into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// Bytes of the text.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.as_str().len()
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Json {}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether valid JSON may have what the grammar allows and parsers refuse, the steps' among them: half of a surrogate pair, or a
/// number beyond those that 64 bits can hold. A quick look that may say yes too often.
fn may_be_unreadable(text: &[u8]) -> bool {
    let mut digits = 0;
    let mut before = 0;
    text.iter().any(|byte| {
        let is_escape = before == b'\\' && *byte == b'u';
        let is_power = before.is_ascii_digit() && matches!(byte, b'e' | b'E');
        digits = if byte.is_ascii_digit() { digits + 1 } else { 0 };
        before = *byte;
        is_escape || is_power || digits > f64::MAX_10_EXP
    })
}

/// A value of which nothing is kept but that it can be read.
struct Readable;

impl<'de> Deserialize<'de> for Readable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Readable {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        while entries.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }
}

/// The deepest nesting of brackets outside strings. Meaningful for valid JSON only; never recurses.
fn depth_of(text: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0usize, 0usize);
    let mut bytes = text.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => {
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'\\' => drop(bytes.next()),
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    deepest
}

/// A value of a run: its input, a step's output, an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// The value itself.
    Inline(Json),
    /// Where the value is: content stored with the tenant's other content.
    Stored(ContentRef),
}

impl Payload {
    /// Where the value is, when it is stored apart.
    #[must_use]
    pub const fn stored(&self) -> Option<&ContentRef> {
        match self {
            Self::Inline(_) => None,
            Self::Stored(content) => Some(content),
        }
    }

    /// Bytes of the value's JSON text, wherever it is.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        match self {
            Self::Inline(json) => json.len_bytes() as u64,
            Self::Stored(content) => content.size_bytes,
        }
    }
}

/// Names stored content of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentRef {
    /// SHA-256 of the content.
    pub sha256: Digest,
    /// Bytes of the content.
    pub size_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_strings_only() {
        assert_eq!(depth_of(br#"{"a":"[[[","b":["\"]",{}]}"#), 3);
        assert_eq!(depth_of(b"1"), 0);
    }

    #[test]
    fn too_deep_is_refused_without_recursing() {
        let deep = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(Json::parse(deep(JSON_DEPTH_MAX)).is_ok());
        assert_eq!(Json::parse(deep(JSON_DEPTH_MAX + 1)), Err(InvalidJson::TooDeep));
        assert_eq!(Json::parse(deep(1_000_000)), Err(InvalidJson::TooDeep));
        let parsed: serde_json::Value = serde_json::from_str(&deep(JSON_DEPTH_MAX)).unwrap();
        assert!(parsed.is_array());
    }

    #[test]
    fn what_the_grammar_allows_and_no_step_can_read_is_refused() {
        let digits = |count: usize| "9".repeat(count);
        for text in [r#""\ud800""#, r#"{"a":["\udc00\ud800"]}"#, r#"{"\uD8ff":1}"#, "1e400", "[-1E999]", &digits(400)] {
            assert!(matches!(Json::parse(text.to_owned()), Err(InvalidJson::Unreadable(_))), "{text}");
            assert_eq!(Json::stored(text.to_owned()).unwrap().as_str(), text, "it may be in a journal");
        }
        for text in [r#""\ud83d\ude00""#, r#""\\ud800""#, "1e-400", "-1.5E300", r#""1e400""#, &digits(300)] {
            assert_eq!(Json::parse(text.to_owned()).unwrap().as_str(), text, "and kept as it was written");
        }
    }

    #[test]
    fn what_is_kept_is_one_line_with_the_same_value() {
        let json = Json::parse("{\"a\":\r\n [1,\n2.50]}".to_owned()).unwrap();
        assert_eq!(json.as_str(), "{\"a\":   [1, 2.50]}");
    }

    #[test]
    fn what_is_not_json_says_where() {
        let Err(InvalidJson::Syntax(message)) = Json::parse("{\"a\":".to_owned()) else { panic!("accepted") };
        assert!(message.contains("line 1 column 5"), "{message}");
        assert!(Json::parse("1 2".to_owned()).is_err());
        assert!(Json::parse(String::new()).is_err());
    }
}
