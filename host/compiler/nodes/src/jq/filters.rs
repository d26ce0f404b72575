//! The filters that expressions can use.
//!
//! They are jaq's, without those that need a clock, an environment, a console or further inputs, or that end the
//! program. The natives here are those that jaq-std has behind features, for the definitions that it has in any case,
//! and what jq has and jaq leaves out (`defs.jq`).

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use jaq_core::load::parse::Def;
use jaq_core::native::{Filter, Fun, bome, run, v};
use jaq_core::{Cv, RunPtr, ValT as _, ValXs};
use jaq_json::{Error, Val, ValR};
use jaq_std::ValT as _;
use regex_bites::bytes::{Captures, Regex, RegexBuilder};

use super::Jq;
use super::updates::{self, number as made};
use crate::json;

/// Definitions of jaq that need a filter which is not there, or are written in Rust here.
const LEFT_OUT: [&str; 8] = ["stderr", "debug", "halt", "halt_error", "todate", "fromdate", "setpath", "delpaths"];

const DEFINITIONS: &str = include_str!("defs.jq");

/// As jq reads it: with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The filters that are written in jq. Later ones can use earlier ones, and hide those of the same name.
pub(super) fn definitions<'a>() -> Vec<Def<&'a str>> {
    let standard = jaq_core::defs().chain(jaq_std::defs()).filter(|def| !LEFT_OUT.contains(&def.name));
    let own = jaq_core::load::parse(DEFINITIONS, |parser| parser.defs()).unwrap_or_default();
    standard.chain(jaq_json::defs()).chain(own).collect()
}

/// The filters that are written in Rust.
pub(super) fn natives() -> impl Iterator<Item = Fun<Jq>> {
    let standard = jaq_core::funs().chain(jaq_std::base_funs()).filter(|(name, ..)| *name != "halt");
    // The first of a name is the one that is called.
    let own = texts().into_iter().chain(regexes()).chain(math()).chain(updates::natives()).map(run::<Jq>);
    own.chain(standard).chain(jaq_json::funs())
}

type Native = Filter<RunPtr<Jq>>;

fn texts() -> [Native; 6] {
    [
        ("encode_uri", v(0), |cv| bome(map_bytes(&cv.1, |bytes| percent_encoded(bytes).into_bytes()))),
        ("decode_uri", v(0), |cv| bome(map_bytes(&cv.1, percent_decoded))),
        ("encode_base64", v(0), |cv| bome(map_bytes(&cv.1, |bytes| BASE64.encode(bytes).into_bytes()))),
        ("decode_base64", v(0), |cv| {
            let decoded = cv.1.try_as_utf8_bytes_owned().and_then(|text| BASE64.decode(text).map_err(Error::str));
            bome(decoded.map(Val::utf8_str))
        }),
        ("escape_html", v(0), |cv| bome(map_bytes(&cv.1, escape_html))),
        ("unescape_html", v(0), |cv| bome(map_bytes(&cv.1, unescape_html))),
    ]
}

fn map_bytes(value: &Val, f: impl FnOnce(&[u8]) -> Vec<u8>) -> ValR {
    Ok(Val::utf8_str(f(&value.try_as_utf8_bytes_owned()?)))
}

/// All but letters, digits and `-_.~` as `%XX`, as in jq's `@uri`.
pub(crate) fn percent_encoded(bytes: &[u8]) -> String {
    let mut encoded = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.extend(['%', hex_digit(byte >> 4), hex_digit(byte & 15)]);
        }
    }
    encoded
}

fn hex_digit(nibble: u8) -> char {
    char::from_digit(u32::from(nibble), 16).unwrap_or('0').to_ascii_uppercase()
}

fn percent_decoded(bytes: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = (first == b'%').then(|| after.split_at_checked(2)).flatten();
        let byte = escaped.and_then(|(digits, _)| u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok());
        (rest, _) = match (byte, escaped) {
            (Some(byte), Some((_, after))) => (after, decoded.push(byte)),
            _ => (after, decoded.push(first)),
        };
    }
    decoded
}

const HTML: [(&str, u8); 5] = [("&lt;", b'<'), ("&gt;", b'>'), ("&amp;", b'&'), ("&#39;", b'\''), ("&quot;", b'"')];

fn escape_html(bytes: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(bytes.len());
    for byte in bytes {
        match HTML.iter().find(|(_, plain)| plain == byte) {
            Some((name, _)) => escaped.extend_from_slice(name.as_bytes()),
            None => escaped.push(*byte),
        }
    }
    escaped
}

fn unescape_html(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, after)) = rest.split_first() {
        let named = HTML.iter().find_map(|(name, byte)| Some((*byte, rest.strip_prefix(name.as_bytes())?)));
        let (byte, after) = named.unwrap_or((first, after));
        plain.push(byte);
        rest = after;
    }
    plain
}

/// What jaq-std's definitions of `match`, `sub`, `split` and their like stand on.
fn regexes() -> [Native; 3] {
    let two = || v(2);
    [
        ("matches", two(), |cv| bome(search(cv, Parts { between: false, matches: true }))),
        ("split_matches", two(), |cv| bome(search(cv, Parts { between: true, matches: true }))),
        ("split_", two(), |cv| bome(search(cv, Parts { between: true, matches: false }))),
    ]
}

/// What of a text is wanted: the text between matches, the matches, or both in their order.
#[derive(Clone, Copy)]
struct Parts {
    between: bool,
    matches: bool,
}

fn search(mut cv: Cv<Jq>, wanted: Parts) -> ValR {
    let flags = cv.0.pop_var();
    let pattern = cv.0.pop_var();
    let (regex, global, skip_empty) = regex(&json::text(&pattern).map_err(Error::str)?, &flags)?;
    let text = cv.1.try_as_utf8_bytes_owned()?;

    let mut found = Vec::new();
    let mut places = Places::new(&text);
    let mut end = 0;
    for captures in regex.captures_iter(&text) {
        let Some(whole) = captures.get(0) else { continue };
        if skip_empty && whole.is_empty() {
            continue;
        }
        if wanted.between {
            found.push(Val::utf8_str(text.slice(end..whole.start())));
        }
        end = whole.end();
        if wanted.matches {
            places.advance(whole.start());
            found.push(groups(&regex, &captures, &places)?);
        }
        if !global {
            break;
        }
    }
    if wanted.between {
        found.push(Val::utf8_str(text.slice(end..)));
    }
    Ok(found.into_iter().collect())
}

/// A regular expression, whether all its matches are wanted, and whether empty ones are not.
fn regex(pattern: &str, flags: &Val) -> Result<(Regex, bool, bool), Error> {
    let flags = match flags {
        Val::Null => String::new(),
        flags => json::text(flags).map_err(Error::str)?,
    };
    let mut builder = RegexBuilder::new(pattern);
    let (mut global, mut skip_empty) = (false, false);
    for flag in flags.chars() {
        match flag {
            'g' => global = true,
            'n' => skip_empty = true,
            'i' => drop(builder.case_insensitive(true)),
            'x' => drop(builder.ignore_whitespace(true)),
            's' => drop(builder.dot_matches_new_line(true)),
            'm' => drop(builder.multi_line(true)),
            'p' => drop(builder.multi_line(true).dot_matches_new_line(true)),
            other => return Err(Error::str(format_args!("`{other}` is not a flag of a regular expression"))),
        }
    }
    let regex = builder.build().map_err(|error| Error::str(format_args!("not a regular expression: {error}")))?;
    Ok((regex, global, skip_empty))
}

/// A match as an array of the whole and each group. The whole has no `name`.
fn groups(regex: &Regex, captures: &Captures, places: &Places) -> ValR {
    let mut groups = Vec::new();
    for (number, (group, name)) in captures.iter().zip(regex.capture_names()).enumerate() {
        let (offset, length, string) = match group {
            Some(group) => {
                let (offset, text) = (places.characters_before(group.start()), group.as_bytes());
                (Val::from(offset), Val::from(characters(text)), Val::utf8_str(text.to_vec()))
            }
            None => (Val::from(-1isize), Val::from(0usize), Val::Null),
        };
        let mut fields = vec![("offset", offset), ("length", length), ("string", string)];
        if number > 0 {
            fields.push(("name", name.map_or(Val::Null, |name| Val::from(name.to_owned()))));
        }
        let fields = fields.into_iter().map(|(name, value)| (Val::from(name.to_owned()), value));
        groups.push(Val::from_map(fields)?);
    }
    Ok(groups.into_iter().collect())
}

/// Counts characters up to places in a text, each time from the last match on: a text with many matches is counted once.
struct Places<'a> {
    text: &'a [u8],
    /// Where the last match began, in bytes, and how many characters are before it.
    known: (usize, usize),
}

impl<'a> Places<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self { text, known: (0, 0) }
    }

    /// Goes on to the next match.
    fn advance(&mut self, start: usize) {
        self.known = (start, self.characters_before(start));
    }

    /// Of a place within the match.
    fn characters_before(&self, place: usize) -> usize {
        let (start, before) = self.known;
        before + characters(self.text.get(start..place).unwrap_or_default())
    }
}

/// Each character has one byte that does not continue another.
fn characters(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte & 0xC0 != 0x80).count()
}

/// Functions of numbers. Left out are Bessel functions and `erf`, which cost much code and are of little use to a graph.
fn math() -> impl Iterator<Item = Native> {
    macro_rules! of_input {
        ($($name:ident)*) => {
            [$(of_input(stringify!($name), |cv| bome(number(&cv.1).map(|x| made(libm::$name(x)))))),*]
        };
    }
    macro_rules! of_two {
        ($($name:ident)*) => {
            [$(of_two(stringify!($name), |mut cv| {
                let (y, x) = (cv.0.pop_var(), cv.0.pop_var());
                bome((|| Ok(made(libm::$name(number(&x)?, number(&y)?))))())
            })),*]
        };
    }
    let of_input = of_input![
        acos acosh asin asinh atan atanh cbrt cos cosh exp exp10 exp2 expm1 fabs lgamma log log10 log1p log2 rint sin sinh
        sqrt tan tanh tgamma trunc
    ];
    let of_two = of_two![atan2 copysign fdim fmax fmin fmod hypot nextafter pow remainder];
    let others: [Native; 7] = [
        ("nearbyint", v(0), |cv| bome(number(&cv.1).map(|x| made(libm::rint(x))))),
        ("ilogb", v(0), |cv| bome(number(&cv.1).map(|x| Val::from(libm::ilogb(x) as isize)))),
        ("frexp", v(0), |cv| {
            let pair = |(mantissa, exponent)| [made(mantissa), Val::from(exponent as isize)].into_iter().collect();
            bome(number(&cv.1).map(|x| pair(libm::frexp(x))))
        }),
        ("modf", v(0), |cv| {
            bome(number(&cv.1).map(|x| <[f64; 2]>::from(libm::modf(x)).map(made).into_iter().collect()))
        }),
        ("ldexp", v(2), power_of_two),
        ("scalbln", v(2), power_of_two),
        ("fma", v(3), |mut cv| {
            let (z, y, x) = (cv.0.pop_var(), cv.0.pop_var(), cv.0.pop_var());
            bome((|| Ok(made(libm::fma(number(&x)?, number(&y)?, number(&z)?))))())
        }),
    ];
    of_input.into_iter().chain(of_two).chain(others)
}

fn of_input(name: &'static str, run: RunPtr<Jq>) -> Native {
    (name, v(0), run)
}

fn of_two(name: &'static str, run: RunPtr<Jq>) -> Native {
    (name, v(2), run)
}

fn power_of_two(mut cv: Cv<'_, Jq>) -> ValXs<'_, Val> {
    let (exponent, x) = (cv.0.pop_var(), cv.0.pop_var());
    // As a float saturates where it is made an integer, so does the power.
    bome((|| Ok(made(libm::scalbn(number(&x)?, number(&exponent)? as i32))))())
}

fn number(value: &Val) -> Result<f64, Error> {
    value.as_f64().ok_or_else(|| Error::typ(value.clone(), "number"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use stepwell_document::filters::NATIVES;

    use super::{math, regexes, texts};

    #[test]
    fn the_compiler_knows_what_there_is() {
        let own =
            texts().into_iter().chain(regexes()).chain(math()).map(|(name, arguments, _)| (name, arguments.len()));
        let known = NATIVES.iter().flat_map(|(names, arguments)| names.iter().map(|name| (*name, *arguments)));
        assert_eq!(own.collect::<BTreeSet<_>>(), known.collect::<BTreeSet<_>>());
    }
}
