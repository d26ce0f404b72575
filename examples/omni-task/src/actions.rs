//! What somebody is to do, as far as the text says it in so many words.
//!
//! Sentences are recognised by how they begin or by the verb in them, and left as they are. It is a list to start
//! from: a task that is only meant is not found, and an opinion with a `must` in it is.

use std::fmt::{self, Display};

use serde::Serialize;

use crate::summary::shortened;
use crate::text;

/// Enough for the longest meeting; a text that has more is a list already.
const ACTIONS_MAX: usize = 50;

/// How an item begins that was written as one, in lower case.
const MARKS: &[&str] = &["[ ]", "todo:", "todo", "action item:", "action:", "please"];

/// What makes a sentence a task, in lower case.
const VERBS: &[&str] = &["must", "should", "will", "needs to", "need to", "has to", "have to"];

/// Words that begin a sentence with a capital letter and are nobody's name.
const NOBODY: &[&str] = &[
    "A", "All", "An", "And", "Any", "But", "Each", "Every", "He", "I", "If", "It", "No", "Nobody", "Our", "She", "So",
    "Somebody", "Someone", "That", "The", "Then", "There", "These", "They", "This", "Those", "We", "What", "Who",
    "You",
];

/// What a day is called, in lower case, after `by`.
const DAYS: &[&str] = &[
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
    "today",
    "tonight",
    "tomorrow",
    "noon",
    "next",
    "the",
    "end",
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

/// A sentence that asks for something to be done.
#[derive(Debug, PartialEq, Serialize)]
pub struct Action {
    /// The sentence.
    pub text: String,
    /// Who is to do it, when the sentence begins with a name.
    pub owner: Option<String>,
    /// By when, in the words of the sentence.
    pub due: Option<String>,
}

impl Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match (&self.owner, &self.due) {
            (Some(owner), Some(due)) => write!(f, " ({owner}, by {due})"),
            (Some(owner), None) => write!(f, " ({owner})"),
            (None, Some(due)) => write!(f, " (by {due})"),
            (None, None) => Ok(()),
        }
    }
}

/// The first 50 action items, in the order of the text.
pub fn find(text: &str) -> Vec<Action> {
    text::sentences(text).iter().filter_map(|sentence| action(sentence)).take(ACTIONS_MAX).collect()
}

fn action(sentence: &str) -> Option<Action> {
    let lower = sentence.to_lowercase();
    if lower.ends_with('?') {
        return None;
    }
    let mark = MARKS.iter().find(|&&mark| begins_with(&lower, mark));
    let owner = owner(sentence);
    // Without a mark or an owner, "will" only tells what is going to happen.
    let verb = VERBS.iter().any(|&verb| contains(&lower, verb) && (verb != "will" || owner.is_some()));
    if mark.is_none() && !verb {
        return None;
    }
    // Marks are ASCII, so they are as long in the sentence as in lower case.
    let text = match mark {
        Some(&mark) if mark != "please" => {
            sentence.get(mark.len()..).unwrap_or(sentence).trim_start_matches([':', ' '])
        }
        _ => sentence,
    };
    (!text.is_empty()).then(|| Action { text: shortened(text), owner, due: due(sentence) })
}

/// The name at the beginning of `Asha will …`, `Asha and Ben must …`, `Asha to …`.
fn owner(sentence: &str) -> Option<String> {
    let is_name = |word: &str| {
        word.starts_with(char::is_uppercase) && word.chars().all(char::is_alphabetic) && !NOBODY.contains(&word)
    };
    let words: Vec<&str> = sentence.split_whitespace().take(4).collect();
    let (names, verb) = match words.as_slice() {
        [one, "and", other, verb] if is_name(one) && is_name(other) => (format!("{one} and {other}"), *verb),
        [first, last, verb, ..] if is_name(first) && is_name(last) => (format!("{first} {last}"), *verb),
        [name, verb, ..] if is_name(name) => ((*name).to_owned(), *verb),
        _ => return None,
    };
    ["will", "must", "should", "needs", "need", "has", "have", "to"].contains(&verb).then_some(names)
}

/// What follows `by`, when it begins like a time.
fn due(sentence: &str) -> Option<String> {
    let words: Vec<&str> = sentence.split_whitespace().collect();
    let place = words.windows(2).position(|pair| matches!(pair, ["by" | "By", time] if is_time(time)))?;
    let mut due: Vec<&str> = Vec::new();
    for word in words.iter().skip(place + 1).take(5) {
        let bare = word.trim_end_matches(['.', ',', ';', ':', '!', ')']);
        if ["and", "or", "so", "but", "to", "because"].contains(&bare) {
            break;
        }
        due.push(bare);
        if bare.len() < word.len() {
            break;
        }
    }
    (!due.is_empty()).then(|| due.join(" "))
}

fn is_time(word: &str) -> bool {
    let bare = word.trim_end_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    bare.starts_with(|c: char| c.is_ascii_digit()) || DAYS.contains(&bare.as_str())
}

fn begins_with(sentence: &str, mark: &str) -> bool {
    sentence.strip_prefix(mark).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
}

/// As whole words.
fn contains(sentence: &str, verb: &str) -> bool {
    sentence.match_indices(verb).any(|(start, _)| {
        let before = sentence.get(..start).and_then(|text| text.chars().next_back());
        let after = sentence.get(start + verb.len()..).and_then(|text| text.chars().next());
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(|c| c.is_alphanumeric() || c == '\'')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(String, Option<String>, Option<String>)> {
        find(text).into_iter().map(|action| (action.text, action.owner, action.due)).collect()
    }

    #[test]
    fn owners_and_times_are_found() {
        assert_eq!(
            found("Asha will order the seals by Friday. Ben and Carla must test it by 3 May, before the rain."),
            [
                ("Asha will order the seals by Friday.".to_owned(), Some("Asha".to_owned()), Some("Friday".to_owned())),
                (
                    "Ben and Carla must test it by 3 May, before the rain.".to_owned(),
                    Some("Ben and Carla".to_owned()),
                    Some("3 May".to_owned())
                ),
            ]
        );
    }

    #[test]
    fn items_that_are_marked_lose_their_mark() {
        let texts: Vec<String> =
            find("- [ ] call the plumber\nTODO: sweep\n\nPlease close the gate.").into_iter().map(|a| a.text).collect();
        assert_eq!(texts, ["call the plumber", "sweep", "Please close the gate."]);
    }

    #[test]
    fn what_is_only_told_or_asked_is_no_action() {
        assert!(find("The water will rise. Should we wait? Mustard is yellow. It was read by the way.").is_empty());
    }

    #[test]
    fn a_long_list_is_cut_off() {
        assert_eq!(find(&"We must go on.\n".repeat(500)).len(), ACTIONS_MAX);
    }
}
