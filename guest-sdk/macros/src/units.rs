//! Times and sizes as an author writes them: a whole number and a unit.

use syn::LitStr;

/// A wait or a timeout, in milliseconds.
pub(crate) fn milliseconds(literal: &LitStr) -> syn::Result<u64> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];
    scaled(literal, &units, "a time is a whole number with `ms`, `s`, `m` or `h`, like \"500ms\"")
}

/// A size of memory, in bytes.
pub(crate) fn bytes(literal: &LitStr) -> syn::Result<u64> {
    let units = [("KiB", 1024), ("MiB", 1024 * 1024)];
    scaled(literal, &units, "a size is a whole number with `KiB` or `MiB`, like \"32MiB\"")
}

fn scaled(literal: &LitStr, units: &[(&str, u64)], help: &str) -> syn::Result<u64> {
    let text = literal.value();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let scale = units.iter().find(|(name, _)| *name == unit.trim()).map(|&(_, scale)| scale);
    number
        .parse::<u64>()
        .ok()
        .zip(scale)
        .and_then(|(number, scale)| number.checked_mul(scale))
        .ok_or_else(|| syn::Error::new(literal.span(), help))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn literal(text: &str) -> LitStr {
        LitStr::new(text, proc_macro2::Span::call_site())
    }

    #[test]
    fn a_number_and_a_unit_make_a_time_or_a_size() {
        assert_eq!(milliseconds(&literal("500ms")).ok(), Some(500));
        assert_eq!(milliseconds(&literal("10s")).ok(), Some(10_000));
        assert_eq!(milliseconds(&literal("2 m")).ok(), Some(120_000));
        assert_eq!(milliseconds(&literal("24h")).ok(), Some(86_400_000));
        assert_eq!(bytes(&literal("32MiB")).ok(), Some(33_554_432));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "10", "s", "1.5s", "-1s", "10 parsecs", "10S", "99999999999999999999s", "9999999999999999h"] {
            assert!(milliseconds(&literal(text)).is_err(), "{text}");
        }
        assert!(bytes(&literal("32MB")).is_err());
    }
}
