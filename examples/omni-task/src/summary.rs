//! A summary that consists of sentences of the text.
//!
//! A sentence counts for as much as its words do on average, and a word for as often as it comes. This finds
//! what a text keeps returning to. It understands nothing, writes no sentence of its own, and says so.

use std::collections::{HashMap, HashSet};

use crate::actions::Action;
use crate::text;

/// What a person reads at a glance.
const SENTENCES_MAX: usize = 5;

/// One sentence in so many is picked, up to the maximum.
const SENTENCES_PER_PICK: usize = 5;

/// A longer sentence is cut off: text without full stops must not become its own summary.
const SENTENCE_CHARS_MAX: usize = 500;

/// A sentence with fewer words is rarely worth quoting, and its average would be high by chance.
const WORDS_MIN: usize = 5;

/// Said wherever the summary is shown.
const METHOD: &str = "extracted by word frequency, no language model was used";

/// Words that would make every sentence count. Sorted, for a binary search.
const STOP_WORDS: &[&str] = &[
    "a", "about", "after", "all", "also", "an", "and", "any", "are", "as", "at", "be", "because", "been", "before",
    "but", "by", "can", "could", "did", "do", "does", "for", "from", "had", "has", "have", "he", "her", "his", "how",
    "i", "if", "in", "into", "is", "it", "its", "just", "may", "more", "most", "must", "my", "no", "not", "now", "of",
    "on", "one", "only", "or", "other", "our", "out", "over", "she", "should", "so", "some", "such", "than", "that",
    "the", "their", "them", "then", "there", "these", "they", "this", "those", "to", "up", "us", "very", "was", "we",
    "were", "what", "when", "where", "which", "while", "who", "will", "with", "would", "you", "your",
];

/// A text in a few of its own sentences.
#[derive(Debug, PartialEq)]
pub struct Summary {
    /// In the order of the text.
    pub picked: Vec<String>,
    /// How many sentences the text has.
    pub sentences: usize,
}

/// Picks the sentences that say most of what the text says.
pub fn summarise(text: &str) -> Summary {
    let sentences = text::sentences(text);
    let content: Vec<Vec<String>> = sentences.iter().map(|sentence| content_words(sentence)).collect();
    let mut frequency: HashMap<&str, usize> = HashMap::new();
    for word in content.iter().flatten() {
        *frequency.entry(word).or_insert(0) += 1;
    }

    let score = |words: &[String]| {
        let sum: usize = words.iter().filter_map(|word| frequency.get(word.as_str())).sum();
        sum as f64 / words.len().max(WORDS_MIN) as f64
    };
    let mut ranked: Vec<(usize, f64)> = content.iter().map(|words| score(words)).enumerate().collect();
    // Stable, so that the earlier one of equals is picked.
    ranked.sort_by(|(_, one), (_, other)| other.total_cmp(one));

    let wanted = sentences.len().div_ceil(SENTENCES_PER_PICK).min(SENTENCES_MAX);
    let mut seen = HashSet::new();
    let mut places: Vec<usize> = ranked
        .into_iter()
        .map(|(place, _)| place)
        .filter(|&place| sentences.get(place).is_some_and(|sentence| seen.insert(sentence.to_lowercase())))
        .take(wanted)
        .collect();
    places.sort_unstable();
    let picked = places.into_iter().filter_map(|place| sentences.get(place)).map(|sentence| shortened(sentence));
    Summary { picked: picked.collect(), sentences: sentences.len() }
}

/// For a message: plain text.
pub fn plain(summary: &Summary, actions: &[Action]) -> String {
    let mut text = format!("Summary ({METHOD}):\n{}\n", summary.picked.join(" "));
    if !actions.is_empty() {
        text.push_str("\nAction items:\n");
    }
    for action in actions {
        text.push_str(&format!("- {action}\n"));
    }
    text
}

/// For a file.
pub fn markdown(summary: &Summary, actions: &[Action]) -> String {
    let mut page = format!("# Summary\n\n*{} of {} sentences, {METHOD}.*\n\n", summary.picked.len(), summary.sentences);
    for sentence in &summary.picked {
        page.push_str(&format!("> {sentence}\n\n"));
    }
    page.push_str("## Action items\n\n");
    if actions.is_empty() {
        page.push_str("None found.\n");
    }
    for action in actions {
        page.push_str(&format!("- [ ] {action}\n"));
    }
    page
}

fn content_words(sentence: &str) -> Vec<String> {
    text::words(sentence).filter(|word| STOP_WORDS.binary_search(&word.as_str()).is_err()).collect()
}

pub(crate) fn shortened(sentence: &str) -> String {
    match sentence.char_indices().nth(SENTENCE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", sentence.get(..end).unwrap_or(sentence).trim_end()),
        None => sentence.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_words_are_sorted() {
        assert!(STOP_WORDS.is_sorted());
    }

    #[test]
    fn what_a_text_returns_to_is_picked() {
        let summary = summarise(
            "It rained. The pump in the north well fails when the pump runs hot. Lunch was good. \
             A hot pump stops the north well. Somebody sang.",
        );
        assert_eq!(summary.sentences, 5);
        assert_eq!(summary.picked, ["The pump in the north well fails when the pump runs hot."]);
    }

    #[test]
    fn picked_sentences_keep_their_order_and_do_not_repeat() {
        let text = "Water rises in the well slowly. Other things happen at times. ".repeat(10);
        let summary = summarise(&text);
        assert_eq!(summary.picked, ["Water rises in the well slowly.", "Other things happen at times."]);
    }

    #[test]
    fn a_text_without_full_stops_is_cut_off() {
        let summary = summarise(&"word ".repeat(10_000));
        assert_eq!(summary.picked.len(), 1);
        assert!(summary.picked[0].chars().count() <= SENTENCE_CHARS_MAX + 1);
    }

    #[test]
    fn a_text_without_words_has_an_empty_summary() {
        assert_eq!(summarise("…"), Summary { picked: vec!["…".to_owned()], sentences: 1 });
        assert_eq!(summarise(""), Summary { picked: Vec::new(), sentences: 0 });
    }

    #[test]
    fn the_method_is_said() {
        let summary = summarise("One sentence is enough.");
        assert!(plain(&summary, &[]).contains(METHOD));
        assert!(markdown(&summary, &[]).contains(METHOD));
    }
}
