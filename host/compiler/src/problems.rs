//! What is wrong with a document: collected from every part of the check, listed in the document's order.
//!
//! Owns: how many problems are kept, their order, how places and names are shown, and suggestions for misspelt names.
//! Does not: find problems.
//! Invariant: what is kept is bounded, whatever the document; what is shown of a text out of the document is bounded.

use std::fmt;

use stepwell_core::graph::{PROBLEMS_MAX, Problem};
/// What is shown of a text out of the document, in bytes. A node's id is at most 64, so every valid one is whole.
const SHOWN_BYTES_MAX: usize = 80;
/// What is shown of a path to a field, in bytes. Keys of a document can be megabytes long.
const FIELD_BYTES_MAX: usize = 200;
/// Names that a misspelt one is compared with. With as many problems as are kept that is a blink, for any document.
const SUGGESTED_FROM_MAX: usize = 1_000;
/// Changed letters up to which a name is taken for a misspelling of another.
const MISSPELT_MAX: usize = 2;

/// Names in a list of them. A node has fewer fields.
const LISTED_MAX: usize = 20;

/// The part of the document that a problem is about, in the order in which problems are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The document as a whole.
    Document,
    /// A node, by its place in the list.
    Node(usize),
    /// An edge, by its place in the list.
    Edge(usize),
    /// The run's output, which is named last.
    Output,
}

/// A problem before it is known what its node is called.
#[derive(Debug)]
pub(crate) struct Fault {
    place: Place,
    /// A path inside of the place: `cases[1].when`. Empty for the place itself.
    field: String,
    code: &'static str,
    message: String,
    hint: Option<String>,
}

impl Fault {
    pub(crate) fn new(place: Place, field: impl fmt::Display, code: &'static str, message: impl Into<String>) -> Self {
        Self { place, field: field.to_string(), code, message: message.into(), hint: None }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    pub(crate) fn maybe_hint(self, hint: Option<String>) -> Self {
        Self { hint, ..self }
    }
}

/// The problems of a document, as they are found.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    kept: Vec<Fault>,
    more: usize,
}

impl Problems {
    /// Keeps a problem, or counts it where enough are kept.
    pub(crate) fn add(&mut self, fault: Fault) {
        if self.kept.len() < PROBLEMS_MAX {
            self.kept.push(fault);
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// How many there are, kept or not.
    pub(crate) fn count(&self) -> usize {
        self.kept.len() + self.more
    }

    /// What takes time to find out, if the next problem is kept.
    pub(crate) fn if_kept<T>(&self, find: impl FnOnce() -> Option<T>) -> Option<T> {
        (self.kept.len() < PROBLEMS_MAX).then(find).flatten()
    }

    /// The list. A problem about a node without a usable id is told by the node's place.
    pub(crate) fn finish<'a>(self, id_of: impl Fn(usize) -> Option<&'a str>) -> Vec<Problem> {
        let mut kept = self.kept;
        kept.sort_by_key(|fault| fault.place);
        let mut listed: Vec<Problem> = kept.into_iter().map(|fault| fault.named(&id_of)).collect();
        if self.more > 0 {
            let message = format!("{} more problems are not listed", self.more);
            listed.push(Problem {
                node: None,
                field: String::new(),
                code: "more_problems".to_owned(),
                message,
                hint: None,
            });
        }
        listed
    }
}

impl Fault {
    fn named<'a>(self, id_of: &impl Fn(usize) -> Option<&'a str>) -> Problem {
        let (node, field) = match self.place {
            Place::Document | Place::Output => (None, self.field),
            Place::Node(index) => match id_of(index) {
                Some(id) => (Some(clip(id).to_owned()), self.field),
                None => (None, join(&format!("nodes[{index}]"), &self.field)),
            },
            Place::Edge(index) => (None, join(&format!("edges[{index}]"), &self.field)),
        };
        let field = clipped(&field, FIELD_BYTES_MAX).to_owned();
        Problem { node, field, code: self.code.to_owned(), message: self.message, hint: self.hint }
    }
}

fn join(path: &str, field: &str) -> String {
    if field.is_empty() || field.starts_with('[') { format!("{path}{field}") } else { format!("{path}.{field}") }
}

/// A path to a field, as it is walked: nothing is put together until a problem needs it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Path<'a> {
    /// A field of the node.
    Field(&'a str),
    /// What a key leads to.
    Key(&'a Path<'a>, &'a str),
    /// What a number leads to.
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |key: &str| {
            !key.is_empty()
                && key.len() <= SHOWN_BYTES_MAX
                && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        match self {
            Self::Field(name) => f.write_str(name),
            Self::Key(path, key) if plain(key) => write!(f, "{path}.{key}"),
            Self::Key(path, key) => write!(f, "{path}[{:?}]", clip(key)),
            Self::Index(path, index) => write!(f, "{path}[{index}]"),
        }
    }
}

/// The start of a text out of the document, for a message.
pub(crate) fn clip(text: &str) -> &str {
    clipped(text, SHOWN_BYTES_MAX)
}

fn clipped(text: &str, bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or(text)
}

/// ``did you mean `name`?``, where one of the names is close enough.
pub(crate) fn did_you_mean<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    closest(written, names).map(|name| format!("did you mean `{name}`?"))
}

/// The name that was most likely meant: the first of those with the fewest changed letters.
pub(crate) fn closest<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A short name is close to every other short one.
    let most = MISSPELT_MAX.min(written.chars().count() / 3).max(usize::from(written.len() > 1));
    let compared = names.into_iter().take(SUGGESTED_FROM_MAX).filter_map(|name| {
        let distance = distance(written, name, most)?;
        Some((distance, name))
    });
    compared.min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// How many letters are to be added, left out, replaced or swapped with their neighbour to get from one name to
/// another, if that is not more than `most`. Upper and lower case count as the same.
fn distance(from: &str, to: &str, most: usize) -> Option<usize> {
    if from.len() > SHOWN_BYTES_MAX || to.len() > SHOWN_BYTES_MAX || from.len().abs_diff(to.len()) > 4 * most {
        return None;
    }
    let letters = |text: &str| text.chars().map(|c| c.to_ascii_lowercase()).collect::<Vec<char>>();
    let (from, to) = (letters(from), letters(to));
    if from.len().abs_diff(to.len()) > most {
        return None;
    }
    // Three rows of the table of distances between the starts of both: this one, the last, and the one before it.
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    let mut previous_letter = None;
    for (row, a) in from.iter().enumerate() {
        let mut this = Vec::with_capacity(to.len() + 1);
        this.push(row + 1);
        let mut previous = None;
        for (column, b) in to.iter().enumerate() {
            let at = |row: &[usize], column: usize| row.get(column).copied().unwrap_or(usize::MAX / 2);
            let replaced = at(&last, column) + usize::from(a != b);
            let mut least = replaced.min(at(&last, column + 1) + 1).min(at(&this, column) + 1);
            if previous_letter == Some(b) && previous == Some(a) {
                least = least.min(at(&before, column - 1) + 1);
            }
            this.push(least);
            previous = Some(b);
        }
        if this.iter().min().is_none_or(|least| *least > most) {
            return None;
        }
        previous_letter = Some(a);
        before = std::mem::replace(&mut last, this);
    }
    last.last().copied().filter(|distance| *distance <= most)
}

/// `` `a`, `b` and `c` ``; of a long list the begin.
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut names = names.into_iter();
    let shown = names.by_ref().take(LISTED_MAX).map(|name| format!("`{}`", clip(name)));
    let mut shown: Vec<String> = shown.collect();
    if names.next().is_some() {
        shown.push("others".to_owned());
    }
    match shown.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_is_recognised_and_another_one_is_not() {
        let names = ["timeout", "retry", "description", "to", "kind", "output"];
        for (written, meant) in [
            ("timeuot", Some("timeout")),
            ("Timeout", Some("timeout")),
            ("retries", None),
            ("retri", Some("retry")),
            ("desciption", Some("description")),
            ("knid", Some("kind")),
            ("ot", Some("to")),
            ("x", None),
            ("", None),
            ("outputs", Some("output")),
            ("temperature", None),
        ] {
            assert_eq!(closest(written, names), meant, "{written}");
        }
    }

    #[test]
    fn a_path_shows_keys_as_they_have_to_be_written() {
        let root = Path::Field("output");
        let list = Path::Key(&root, "a b");
        assert_eq!(Path::Index(&list, 3).to_string(), r#"output["a b"][3]"#);
        assert_eq!(Path::Key(&Path::Key(&root, "title"), "").to_string(), r#"output.title[""]"#);
    }

    #[test]
    fn problems_are_listed_in_the_order_of_the_document_and_not_without_end() {
        let mut problems = Problems::default();
        problems.add(Fault::new(Place::Edge(0), "source", "b", "b"));
        problems.add(Fault::new(Place::Node(1), "", "a", "a"));
        for _ in 0..PROBLEMS_MAX {
            problems.add(Fault::new(Place::Output, "output", "c", "c"));
        }
        let listed = problems.finish(|_| None);
        assert_eq!(listed.len(), PROBLEMS_MAX + 1);
        assert_eq!(listed[0].field, "nodes[1]");
        assert_eq!(listed[1].field, "edges[0].source");
        assert_eq!(listed[PROBLEMS_MAX].message, "2 more problems are not listed");
    }
}
