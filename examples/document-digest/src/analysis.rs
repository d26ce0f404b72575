//! What is found in a text.
//!
//! Owns what a word, a heading and a line of code are. These are rules of thumb that are the same for every
//! text, not a parser for Markdown or for any programming language. Its invariant: adding chunks one by one to one
//! [`Stats`], or to several that are merged in order, gives the same result.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::chunks::{self, Chunk};

/// Silent reading of non-fiction in English, per minute.
const READING_WORDS_PER_MINUTE: f64 = 238.0;

const TOP_TERMS: usize = 20;

/// More headings than anybody reads in an outline. They are counted all the same.
const HEADINGS_MAX: usize = 100;

/// Words that say nothing about what a text is about. Sorted, for a binary search.
const STOP_WORDS: &[&str] = &[
    "about", "after", "again", "all", "also", "am", "an", "and", "any", "are", "as", "at", "be", "because", "been",
    "before", "being", "between", "both", "but", "by", "can", "could", "did", "do", "does", "down", "during", "each",
    "even", "every", "few", "for", "from", "had", "has", "have", "he", "her", "here", "him", "his", "how", "i", "if",
    "in", "into", "is", "it", "its", "just", "like", "may", "me", "more", "most", "much", "must", "my", "no", "not",
    "now", "of", "off", "on", "once", "one", "only", "or", "other", "our", "out", "over", "own", "same", "she",
    "should", "so", "some", "still", "such", "than", "that", "the", "their", "them", "then", "there", "these", "they",
    "this", "those", "through", "to", "too", "two", "under", "until", "up", "upon", "us", "very", "was", "we", "well",
    "were", "what", "when", "where", "which", "while", "who", "why", "will", "with", "without", "would", "yet", "you",
    "your",
];

/// Counts of a part of a text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    characters: usize,
    lines: Lines,
    /// How often each word comes, in lower case.
    terms: BTreeMap<String, usize>,
    /// The first of them, at most `HEADINGS_MAX`.
    headings: Vec<Heading>,
    headings_total: usize,
}

/// Lines by kind. Each line is of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lines {
    /// All lines.
    pub total: usize,
    /// Nothing but white space.
    pub blank: usize,
    /// In a code block, or looking like code.
    pub code: usize,
    /// A comment, in code or of HTML.
    pub comment: usize,
    /// Everything else.
    pub text: usize,
}

/// A heading of Markdown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heading {
    /// 1 to 6.
    pub level: usize,
    /// Without the marks.
    pub text: String,
}

/// A word and how often it comes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Term {
    /// In lower case.
    pub term: String,
    /// How often it comes.
    pub count: usize,
}

/// What was found in a whole text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Unicode scalar values.
    pub characters: usize,
    /// All words.
    pub words: usize,
    /// Words that differ, regardless of case.
    pub distinct_words: usize,
    /// Lines by kind.
    pub lines: Lines,
    /// Of the longest line, without its end.
    pub longest_line_chars: usize,
    /// To one decimal place.
    pub reading_minutes: f64,
    /// The most frequent words of two letters and more that are no stop words; equally frequent ones by alphabet.
    pub top_terms: Vec<Term>,
    /// The first 100 headings.
    pub headings: Vec<Heading>,
    /// All of them.
    pub headings_total: usize,
}

enum Kind {
    Blank,
    Code,
    Comment,
    Heading(Heading),
    Text,
}

impl Stats {
    /// Counts a chunk.
    pub fn add(&mut self, text: &str, chunk: &Chunk) {
        self.characters += text.chars().count();
        for word in words(text) {
            // Looked up first: most words are known, and a known one needs no key of its own.
            let word = word.to_lowercase();
            match self.terms.get_mut(&word) {
                Some(count) => *count += 1,
                None => {
                    self.terms.insert(word, 1);
                }
            }
        }

        let mut in_code = chunk.in_code;
        for (nth, line) in text.lines().enumerate() {
            // The chunk that began the line has counted it.
            if nth == 0 && chunk.mid_line {
                continue;
            }
            self.lines.total += 1;
            match kind(line, in_code) {
                Kind::Blank => self.lines.blank += 1,
                Kind::Code => self.lines.code += 1,
                Kind::Comment => self.lines.comment += 1,
                Kind::Text => self.lines.text += 1,
                Kind::Heading(heading) => {
                    self.lines.text += 1;
                    self.headings_total += 1;
                    self.headings.push(heading);
                    self.headings.truncate(HEADINGS_MAX);
                }
            }
            if chunks::is_fence(line) {
                in_code = !in_code;
            }
        }
    }

    /// Adds what was found in the part of the text that follows.
    pub fn merge(&mut self, next: Self) {
        self.characters += next.characters;
        self.lines.total += next.lines.total;
        self.lines.blank += next.lines.blank;
        self.lines.code += next.lines.code;
        self.lines.comment += next.lines.comment;
        self.lines.text += next.lines.text;
        for (term, count) in next.terms {
            *self.terms.entry(term).or_insert(0) += count;
        }
        self.headings_total += next.headings_total;
        self.headings.extend(next.headings);
        self.headings.truncate(HEADINGS_MAX);
    }

    /// What the counts come to.
    pub fn summarise(self, longest_line_chars: usize) -> Summary {
        let words: usize = self.terms.values().sum();
        Summary {
            characters: self.characters,
            words,
            distinct_words: self.terms.len(),
            lines: self.lines,
            longest_line_chars,
            reading_minutes: (words as f64 / READING_WORDS_PER_MINUTE * 10.0).round() / 10.0,
            top_terms: top_terms(self.terms),
            headings: self.headings,
            headings_total: self.headings_total,
        }
    }
}

/// Runs of letters and digits, with what joins them. A script without spaces makes long words.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && !is_apostrophe(c) && !is_mark(c))
        .map(|word| word.trim_matches(is_apostrophe))
        .filter(|word| word.contains(char::is_alphanumeric))
}

fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '’')
}

/// Marks inside words that are no letters themselves: accents written apart, joiners, and the nukta and
/// virama that each Indic script has at the same places of its block.
fn is_mark(c: char) -> bool {
    match c {
        '\u{300}'..='\u{36f}' | '\u{200c}' | '\u{200d}' => true,
        '\u{900}'..='\u{dff}' => matches!(u32::from(c) % 0x80, 0x3c | 0x4d),
        _ => false,
    }
}

fn top_terms(terms: BTreeMap<String, usize>) -> Vec<Term> {
    let says_something =
        |term: &str| term.chars().nth(1).is_some() && STOP_WORDS.binary_search(&term).is_err() && !is_number(term);
    let mut terms: Vec<Term> =
        terms.into_iter().filter(|(term, _)| says_something(term)).map(|(term, count)| Term { term, count }).collect();
    // Stable, so that the alphabet of the map decides between equals.
    terms.sort_by_key(|term| std::cmp::Reverse(term.count));
    terms.truncate(TOP_TERMS);
    terms
}

fn is_number(term: &str) -> bool {
    term.bytes().all(|byte| byte.is_ascii_digit())
}

fn kind(line: &str, in_code: bool) -> Kind {
    let trimmed = line.trim();
    let starts_with_any = |marks: &[&str]| marks.iter().any(|mark| trimmed.starts_with(mark));
    if trimmed.is_empty() {
        Kind::Blank
    } else if chunks::is_fence(line) {
        Kind::Code
    } else if in_code {
        // A `#` with `[` or `!` is an attribute or the first line of a script.
        let comment = starts_with_any(&["//", "/*", "*/", "* ", "--", "<!--"])
            || (trimmed.starts_with('#') && !starts_with_any(&["#[", "#!", "#include", "#define"]));
        if comment { Kind::Comment } else { Kind::Code }
    } else if starts_with_any(&["//", "/*", "<!--"]) {
        Kind::Comment
    } else if let Some(heading) = heading(trimmed) {
        Kind::Heading(heading)
    } else if line.starts_with('\t') || line.starts_with("    ") || trimmed.ends_with([';', '{', '}']) {
        Kind::Code
    } else {
        Kind::Text
    }
}

fn heading(line: &str) -> Option<Heading> {
    let text = line.trim_start_matches('#');
    let level = line.len() - text.len();
    let text = text.strip_prefix(' ')?.trim().trim_end_matches('#').trim_end();
    (1..=6).contains(&level).then(|| Heading { level, text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(text: &str) -> Summary {
        let mut stats = Stats::default();
        stats.add(text, &Chunk { start: 0, end: text.len(), in_code: false, mid_line: false });
        stats.summarise(0)
    }

    #[test]
    fn stop_words_are_sorted() {
        assert!(STOP_WORDS.is_sorted());
    }

    #[test]
    fn words_are_counted_regardless_of_case() {
        let summary = summary("Wells are deep. WELLS don't 'end'; wells hold water, water, 7 times.");
        assert_eq!(summary.words, 12);
        assert_eq!(summary.distinct_words, 9);
        assert_eq!(
            summary.top_terms.iter().map(|term| (term.term.as_str(), term.count)).take(3).collect::<Vec<_>>(),
            [("wells", 3), ("water", 2), ("deep", 1)]
        );
        assert!(summary.top_terms.iter().all(|term| term.term != "are" && term.term != "7"));
    }

    #[test]
    fn words_of_any_script_are_words() {
        assert_eq!(summary("Brunnen führen zu Wasser. बावड़ी, कुआँ; вода! cafe\u{301}").distinct_words, 8);
        assert_eq!(summary("вода ВОДА").distinct_words, 1);
    }

    #[test]
    fn lines_are_of_one_kind_each() {
        let lines = summary(
            "# Title\n\nText.\n<!-- note -->\n```rust\n// comment\nlet x = 1;\n#[test]\n\n# also\n```\n    indented\n",
        )
        .lines;
        assert_eq!(lines, Lines { total: 12, blank: 2, code: 5, comment: 3, text: 2 });
    }

    #[test]
    fn headings_have_a_level_and_are_not_looked_for_in_code() {
        let summary = summary("# One\n## Two ##\n####### seven\n#tag\n```\n# comment\n```\n");
        assert_eq!(
            summary.headings,
            [Heading { level: 1, text: "One".to_owned() }, Heading { level: 2, text: "Two".to_owned() }]
        );
    }

    #[test]
    fn only_the_first_headings_are_kept_but_all_are_counted() {
        let summary = summary(&"# again\n".repeat(150));
        assert_eq!((summary.headings.len(), summary.headings_total), (100, 150));
    }

    #[test]
    fn a_line_across_chunks_is_counted_once() {
        let mut stats = Stats::default();
        stats.add("begin ", &Chunk { start: 0, end: 6, in_code: false, mid_line: false });
        stats.add("end\nnext", &Chunk { start: 6, end: 14, in_code: false, mid_line: true });
        assert_eq!(stats.lines.total, 2);
    }

    #[test]
    fn reading_time_follows_from_the_words() {
        assert_eq!(summary(&"word ".repeat(2380)).reading_minutes, 10.0);
        assert_eq!(summary("").reading_minutes, 0.0);
    }
}
