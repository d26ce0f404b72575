//! What an answer costs.
//!
//! The invariant: amounts are whole numbers of micro-dollars and are rounded once, at the end, half up.

use std::fmt;
use std::str::FromStr;

/// Tokens that a price is for.
const TOKENS_PER_MTOK: u128 = 1_000_000;
/// Places after the point that a micro-dollar needs.
const PLACES: usize = 6;

/// US dollars for a million tokens, exact to a micro-dollar. Read from text such as `0.075`, or from a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UsdPerMtok {
    /// The same amount in millionths of a dollar.
    pub micros: u64,
}

/// A price is not a decimal number with at most six places, or not a plausible one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an amount of US dollars with at most six places")]
pub struct UsdPerMtokError(String);

/// What a model costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Price {
    /// For what it reads.
    pub input: UsdPerMtok,
    /// For what it writes.
    pub output: UsdPerMtok,
}

impl Price {
    /// The price of an answer. `None` where it is beyond all numbers.
    pub(super) fn cost_micros(&self, input_tokens: u64, output_tokens: u64) -> Option<u64> {
        let input = u128::from(self.input.micros).checked_mul(input_tokens.into())?;
        let output = u128::from(self.output.micros).checked_mul(output_tokens.into())?;
        let exact = input.checked_add(output)?.checked_add(TOKENS_PER_MTOK / 2)? / TOKENS_PER_MTOK;
        u64::try_from(exact).ok()
    }
}

impl FromStr for UsdPerMtok {
    type Err = UsdPerMtokError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !are_digits(whole) || !are_digits(fraction) || fraction.len() > PLACES {
            return Err(UsdPerMtokError(text.to_owned()));
        }
        let micros = format!("{whole}{fraction:0<PLACES$}").parse().map_err(|_| UsdPerMtokError(text.to_owned()))?;
        Ok(Self { micros })
    }
}

impl TryFrom<f64> for UsdPerMtok {
    type Error = UsdPerMtokError;

    /// Takes the number as it is written: the shortest decimal that reads as this number.
    fn try_from(usd: f64) -> Result<Self, Self::Error> {
        usd.to_string().parse()
    }
}

impl fmt::Display for UsdPerMtok {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.micros / 1_000_000, self.micros % 1_000_000);
        let text = format!("{whole}.{fraction:0PLACES$}");
        formatter.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_read_exactly() {
        for (text, micros) in [("3", 3_000_000), ("0.075", 75_000), ("0.000001", 1), ("15.50", 15_500_000), ("0", 0)] {
            assert_eq!(text.parse(), Ok(UsdPerMtok { micros }));
        }
        for (number, micros) in [(0.1, 100_000), (0.075, 75_000), (1.1, 1_100_000), (60.0, 60_000_000)] {
            assert_eq!(UsdPerMtok::try_from(number), Ok(UsdPerMtok { micros }));
        }
        for text in ["", ".5", "5.", "-1", "+1", "1e3", "1,5", "0.0000001", "99999999999999999999", "NaN", "inf"] {
            assert!(text.parse::<UsdPerMtok>().is_err(), "{text}");
        }
        for number in [f64::NAN, f64::INFINITY, -1.0, 1e-9, 1e300] {
            assert!(UsdPerMtok::try_from(number).is_err(), "{number}");
        }
        assert_eq!(UsdPerMtok { micros: 75_000 }.to_string(), "0.075");
        assert_eq!(UsdPerMtok { micros: 3_000_000 }.to_string(), "3");
        assert_eq!(UsdPerMtok { micros: 0 }.to_string(), "0");
        assert_eq!(UsdPerMtok { micros: 10_000_000 }.to_string(), "10");
    }

    #[test]
    fn a_cost_is_rounded_once_and_half_up() {
        let price =
            |input: &str, output: &str| Price { input: input.parse().unwrap(), output: output.parse().unwrap() };
        assert_eq!(price("3", "15").cost_micros(1_000, 200), Some(6_000));
        assert_eq!(price("0.5", "0").cost_micros(1, 0), Some(1));
        assert_eq!(price("0.499999", "0").cost_micros(1, 0), Some(0));
        // Each part alone would be rounded down.
        assert_eq!(price("0.3", "0.3").cost_micros(1, 1), Some(1));
        assert_eq!(price("0", "0").cost_micros(u64::MAX, u64::MAX), Some(0));
        assert_eq!(price("1000000", "1000000").cost_micros(u64::MAX, u64::MAX), None);
        let most = Price { input: UsdPerMtok { micros: u64::MAX }, output: UsdPerMtok { micros: u64::MAX } };
        assert_eq!(most.cost_micros(u64::MAX, u64::MAX), None);
    }
}
