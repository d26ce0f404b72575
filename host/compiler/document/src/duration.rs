//! Durations as people write them: `500ms`, `30s`, `1m30s`, `24h`.

/// Milliseconds of a duration: numbers with the units `ms`, `s`, `m`, `h`, `d`, one after the other, the larger unit
/// first. `None` for anything else, and for what does not fit.
pub fn parse_ms(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
    let mut rest = text;
    let mut total: u64 = 0;
    let mut last = usize::MAX;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, behind) = rest.split_at(digits);
        let letters = behind.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, behind) = behind.split_at(letters);
        let place = UNITS.iter().position(|(name, _)| *name == unit)?;
        if last != usize::MAX && place <= last {
            return None;
        }
        let ms = number.parse::<u64>().ok()?.checked_mul(UNITS.get(place)?.1)?;
        total = total.checked_add(ms)?;
        (last, rest) = (place, behind);
    }
    (last != usize::MAX).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::parse_ms;

    #[test]
    fn durations_read_as_they_are_written() {
        for (text, ms) in
            [("500ms", 500), ("30s", 30_000), ("1m30s", 90_000), ("24h", 86_400_000), ("1d2h", 93_600_000), ("0s", 0)]
        {
            assert_eq!(parse_ms(text), Some(ms), "{text}");
        }
        for text in [
            "",
            "30",
            "s",
            "1.5s",
            "-1s",
            "1s1m",
            "1s1s",
            "1 s",
            "1y",
            "99999999999999999999s",
            "9999999999999999d",
            "é",
        ] {
            assert_eq!(parse_ms(text), None, "{text}");
        }
    }
}
