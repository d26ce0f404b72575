//! Sentences and words: what the summary and the action items are both made of.

/// Abbreviations whose full stop does not end a sentence, in lower case.
const ABBREVIATIONS: &[&str] =
    &["approx.", "dr.", "e.g.", "etc.", "fig.", "i.e.", "mr.", "mrs.", "ms.", "no.", "p.", "prof.", "st.", "vs."];

/// Sentences in the order of the text. A heading is none; an item of a list is one, without its mark.
pub(crate) fn sentences(text: &str) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut paragraph = String::new();
    for line in text.lines().map(str::trim) {
        let item = list_item(line);
        if line.is_empty() || line.starts_with('#') || item.is_some() || is_labelled(line) {
            split_into(&mut sentences, &std::mem::take(&mut paragraph));
        }
        if line.starts_with('#') {
            continue;
        }
        // A sentence goes on over the end of a line.
        if !paragraph.is_empty() {
            paragraph.push(' ');
        }
        paragraph.push_str(item.unwrap_or(line));
    }
    split_into(&mut sentences, &paragraph);
    sentences
}

/// Words in lower case.
pub(crate) fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric() && c != '\'')
        .map(|word| word.trim_matches('\'').to_lowercase())
        .filter(|word| !word.is_empty())
}

/// What follows the mark of a list's item.
fn list_item(line: &str) -> Option<&str> {
    let numbered = || {
        let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
        if rest.len() == line.len() { None } else { rest.strip_prefix(". ").or_else(|| rest.strip_prefix(") ")) }
    };
    ["- ", "* ", "• "].iter().find_map(|mark| line.strip_prefix(mark)).or_else(numbered).map(str::trim_start)
}

/// A line like `TODO: …` begins something new even without an empty line before it.
fn is_labelled(line: &str) -> bool {
    line.split_whitespace().next().is_some_and(|word| word.ends_with(':') && word.starts_with(char::is_uppercase))
}

fn split_into(sentences: &mut Vec<String>, paragraph: &str) {
    let mut sentence = String::new();
    let mut words = paragraph.split_whitespace().peekable();
    while let Some(word) = words.next() {
        if !sentence.is_empty() {
            sentence.push(' ');
        }
        sentence.push_str(word);
        let next_begins = words.peek().is_none_or(|next| next.starts_with(|c: char| !c.is_lowercase()));
        if ends_sentence(word) && next_begins {
            sentences.push(std::mem::take(&mut sentence));
        }
    }
    if !sentence.is_empty() {
        sentences.push(sentence);
    }
}

fn ends_sentence(word: &str) -> bool {
    let bare = word.trim_end_matches(['"', '\'', '”', '’', ')', ']']);
    let abbreviated = || ABBREVIATIONS.contains(&word.trim_start_matches(['(', '"']).to_lowercase().as_str());
    bare.ends_with(['.', '!', '?', '…', '。']) && !abbreviated()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_at_their_marks_and_not_at_abbreviations() {
        assert_eq!(
            sentences("Dr. Rao came, e.g. on Monday.\nDid he stay? \"He did.\" No. 5 is\nversion 1.5 of it"),
            ["Dr. Rao came, e.g. on Monday.", "Did he stay?", "\"He did.\"", "No. 5 is version 1.5 of it"]
        );
    }

    #[test]
    fn headings_are_left_out_and_items_stand_alone() {
        assert_eq!(
            sentences("# Title\nText\n- first item\n- [ ] second\n2. third\n\nend"),
            ["Text", "first item", "[ ] second", "third", "end"]
        );
    }

    #[test]
    fn a_text_without_sentences_has_none() {
        assert!(sentences(" \n# only a heading\n").is_empty());
    }
}
