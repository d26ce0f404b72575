//! Where a text is cut.
//!
//! Owns everything about a text that a chunk alone cannot tell: whether it starts inside a code block or in the
//! middle of a line, and how long the longest line is. Its invariant: chunks are in order, do not overlap,
//! leave nothing out, and begin and end between characters.

use serde::{Deserialize, Serialize};

/// A chunk is work for a few milliseconds: short enough for a progress bar that moves.
const CHUNK_BYTES_MAX: usize = 16 * 1024;

/// How many steps analyse chunks side by side.
const PARTS: usize = 4;

/// A text's chunks, dealt out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// Four parts of neighbouring chunks, in the order of the text. A short text leaves some of them empty.
    pub parts: Vec<Vec<Chunk>>,
    /// Of the longest line, without its end.
    pub longest_line_chars: usize,
}

/// A piece of the text, in bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// Of its first byte.
    pub start: usize,
    /// Behind its last byte.
    pub end: usize,
    /// It starts inside a fenced code block.
    pub in_code: bool,
    /// It goes on with a line that the chunk before it began, because that line is longer than a chunk.
    pub mid_line: bool,
}

/// Cuts a text at line ends. A line that is longer than a chunk is cut at white space, or between characters if
/// it has none.
pub fn split(text: &str) -> Split {
    let mut chunks: Vec<Chunk> = Vec::new();
    let mut longest_line_chars = 0;
    let mut in_code = false;
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim_end_matches(['\n', '\r']);
        longest_line_chars = longest_line_chars.max(content.chars().count());
        for (nth, piece) in pieces(line).enumerate() {
            let end = start + piece.len();
            match chunks.last_mut() {
                // Only whole lines share a chunk.
                Some(chunk) if nth == 0 && !chunk.mid_line && end - chunk.start <= CHUNK_BYTES_MAX => chunk.end = end,
                _ => chunks.push(Chunk { start, end, in_code, mid_line: nth > 0 }),
            }
            start = end;
        }
        if is_fence(line) {
            in_code = !in_code;
        }
    }

    let per_part = chunks.len().div_ceil(PARTS).max(1);
    let mut parts: Vec<Vec<Chunk>> = chunks.chunks(per_part).map(<[Chunk]>::to_vec).collect();
    parts.resize(PARTS, Vec::new());
    Split { parts, longest_line_chars }
}

/// Whether a line opens or closes a code block.
pub(crate) fn is_fence(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("```") || line.starts_with("~~~")
}

/// The line itself, or pieces of it that are not longer than a chunk.
fn pieces(line: &str) -> impl Iterator<Item = &str> {
    let mut rest = line;
    std::iter::from_fn(move || {
        let (piece, left) = rest.split_at(piece_len(rest));
        rest = left;
        (!piece.is_empty()).then_some(piece)
    })
}

fn piece_len(text: &str) -> usize {
    if text.len() <= CHUNK_BYTES_MAX {
        return text.len();
    }
    let end = text.floor_char_boundary(CHUNK_BYTES_MAX);
    let (piece, _) = text.split_at(end);
    match piece.char_indices().rev().find(|(_, c)| c.is_whitespace()) {
        Some((place, c)) => place + c.len_utf8(),
        None => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunks(text: &str) -> Vec<Chunk> {
        let split = split(text);
        assert_eq!(split.parts.len(), PARTS);
        let chunks: Vec<Chunk> = split.parts.into_iter().flatten().collect();
        let mut end = 0;
        for chunk in &chunks {
            assert_eq!(chunk.start, end, "nothing is left out");
            assert!(chunk.end - chunk.start <= CHUNK_BYTES_MAX);
            assert!(text.get(chunk.start..chunk.end).is_some_and(|piece| !piece.is_empty()));
            end = chunk.end;
        }
        assert_eq!(end, text.len());
        chunks
    }

    #[test]
    fn a_short_text_is_one_chunk_and_an_empty_one_is_none() {
        assert_eq!(chunks("one\ntwo"), [Chunk { start: 0, end: 7, in_code: false, mid_line: false }]);
        assert!(chunks("").is_empty());
    }

    #[test]
    fn lines_stay_whole() {
        let text = "a line of some length\n".repeat(5_000);
        let chunks = chunks(&text);
        assert!(chunks.len() > 4);
        assert!(chunks.iter().all(|chunk| text.get(..chunk.end).unwrap().ends_with('\n') && !chunk.mid_line));
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_at_white_space() {
        let text = "word ".repeat(10_000);
        let chunks = chunks(&text);
        assert!(chunks.iter().all(|chunk| text.get(..chunk.end).unwrap().ends_with(' ')));
        assert_eq!(chunks.iter().filter(|chunk| !chunk.mid_line).count(), 1);
    }

    #[test]
    fn a_word_that_is_too_long_is_cut_between_characters() {
        assert_eq!(chunks(&"ü".repeat(20_000)).len(), 3);
        assert_eq!(chunks(&"𝄞".repeat(5_000)).len(), 2);
    }

    #[test]
    fn a_chunk_knows_that_it_starts_in_code() {
        let text = format!("```\n{}```\nafter\n", "code\n".repeat(5_000));
        let chunks = chunks(&text);
        assert!(!chunks[0].in_code);
        assert!(chunks[1..].iter().all(|chunk| chunk.in_code));
    }

    #[test]
    fn the_longest_line_is_counted_in_characters() {
        assert_eq!(split("äöü\r\nab\n").longest_line_chars, 3);
    }
}
