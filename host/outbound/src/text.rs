//! Text from outside, made fit for an error message.

/// At most `bytes_max` bytes of a text, without control characters and without space around it.
pub(crate) fn excerpt(text: &str, bytes_max: usize) -> String {
    let text = text.trim_matches(|character: char| character.is_control() || character.is_whitespace());
    let kept = text.get(..text.floor_char_boundary(bytes_max)).unwrap_or_default();
    kept.chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_short_and_on_one_line() {
        assert_eq!(excerpt(" one\r\ntwo\0 ", 100), "one  two");
        assert_eq!(excerpt("üüü", 3), "ü");
        assert_eq!(excerpt("", 3), "");
    }
}
