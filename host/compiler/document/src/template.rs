//! Texts with jq expressions in them, written `${ … }`.
//!
//! An expression ends at the brace that closes it: braces within it, in its strings and in what is interpolated into
//! those, count as jq counts them. `$${` stands for the two characters `${`.

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part<'a> {
    /// As it stands.
    Text(&'a str),
    /// A jq expression, without `${` and `}`.
    Expression {
        /// The expression.
        code: &'a str,
        /// Where it begins in the whole text, in bytes.
        at: usize,
    },
}

/// An expression that does not end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unclosed {
    /// Where its `${` stands, in bytes.
    pub at: usize,
}

/// Whether a text holds anything but itself.
pub fn has_parts(text: &str) -> bool {
    text.contains("${")
}

/// A text as its parts, in order. A text of nothing but one expression is just that [`Part::Expression`], and stands for
/// that expression's value rather than for a text.
pub fn parts(text: &str) -> Result<Vec<Part<'_>>, Unclosed> {
    let mut found = Vec::new();
    // Where the text begins that is not in a part yet.
    let mut from = 0;
    let mut search = 0;
    while let Some(offset) = text.get(search..).and_then(|rest| rest.find("${")) {
        let at = search + offset;
        if text.get(..at).is_some_and(|before| before.ends_with('$')) && at > from {
            // `$${`: what is before the first `$`, then `${` as it stands.
            push_text(&mut found, text.get(from..at - 1));
            push_text(&mut found, text.get(at..at + 2));
            (from, search) = (at + 2, at + 2);
            continue;
        }
        push_text(&mut found, text.get(from..at));
        let begin = at + 2;
        let length = text.get(begin..).and_then(expression_length).ok_or(Unclosed { at })?;
        if let Some(code) = text.get(begin..begin + length) {
            found.push(Part::Expression { code, at: begin });
        }
        (from, search) = (begin + length + 1, begin + length + 1);
    }
    push_text(&mut found, text.get(from..));
    Ok(found)
}

fn push_text<'a>(found: &mut Vec<Part<'a>>, text: Option<&'a str>) {
    if let Some(text) = text.filter(|text| !text.is_empty()) {
        found.push(Part::Text(text));
    }
}

/// Bytes up to the brace that closes an expression.
fn expression_length(text: &str) -> Option<usize> {
    // What is open around the place that is looked at: a brace or parenthesis of jq, or a string.
    #[derive(PartialEq)]
    enum Open {
        Brace,
        Parenthesis,
        String,
    }
    let mut open = Vec::new();
    let mut bytes = text.bytes().enumerate().peekable();
    while let Some((at, byte)) = bytes.next() {
        if open.last() == Some(&Open::String) {
            match byte {
                b'"' => drop(open.pop()),
                b'\\' => {
                    // `\(` begins an interpolation, in which jq's own rules hold again.
                    if let Some((_, b'(')) = bytes.next() {
                        open.push(Open::Parenthesis);
                    }
                }
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => open.push(Open::String),
            b'{' => open.push(Open::Brace),
            b'(' => open.push(Open::Parenthesis),
            b')' if open.last() == Some(&Open::Parenthesis) => drop(open.pop()),
            b'}' if open.is_empty() => return Some(at),
            b'}' if open.last() == Some(&Open::Brace) => drop(open.pop()),
            b'#' => while bytes.next_if(|(_, byte)| *byte != b'\n').is_some() {},
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        match parts(text) {
            Ok(parts) => parts
                .iter()
                .map(|part| match part {
                    Part::Text(text) => format!("[{text}]"),
                    Part::Expression { code, at } => format!("<{code}@{at}>"),
                })
                .collect(),
            Err(Unclosed { at }) => format!("unclosed at {at}"),
        }
    }

    #[test]
    fn an_expression_ends_where_jq_says_so() {
        for (text, expected) in [
            ("", ""),
            ("plain", "[plain]"),
            ("${.a}", "<.a@2>"),
            ("a ${ .b } c ${.d}", "[a ]< .b @4>[ c ]<.d@14>"),
            (r#"${ {a: "}"} }!"#, r#"< {a: "}"} @2>[!]"#),
            (r#"${ "\(.a | {b: "\("}")"})" }"#, r#"< "\(.a | {b: "\("}")"})" @2>"#),
            (r#"${ "\"}" }"#, r#"< "\"}" @2>"#),
            ("${ 1 # }\n }", "< 1 # }\n @2>"),
            ("costs $5 and $${not}", "[costs $5 and ][${][not}]"),
            ("$${a}${.b}", "[${][a}]<.b@7>"),
            ("x ${ .a", "unclosed at 2"),
            ("x ${ ( }", "unclosed at 2"),
            ("é${ \"é\" }é", "[é]< \"é\" @4>[é]"),
            ("$", "[$]"),
            ("${}", "<@2>"),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }
}
