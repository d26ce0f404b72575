//! `stepwell build examples/document-digest`, then `stepwell deploy document-digest COMPONENT` and
//! `stepwell run document-digest --input @examples/document-digest/input.json --follow`.
//!
//! Takes a document apart, analyses four parts of it side by side, and puts what it found into a report.
//!
//! ```text
//!         ┌─ analyse_1 ─┐
//!         ├─ analyse_2 ─┤
//! split ──┼─ analyse_3 ─┼── join ── report ── report.html
//!         └─ analyse_4 ─┘
//! ```
//!
//! While it works it publishes on topic `update`: `{"type": "progress", "part": 1, "done": 3, "of": 12}` for each
//! chunk, and `{"type": "file_created", …}` for the report.
//!
//! This file owns the workflow: who waits for whom and what is published. What a document's words and lines are is
//! in [`analysis`], where it is cut in [`chunks`], how the report looks in [`html`]; these three are
//! pure and know nothing of workflows.

pub mod analysis;
pub mod chunks;
pub mod html;

use analysis::{Stats, Summary};
use chunks::Split;
use serde::{Deserialize, Serialize};
use serde_json::json;
use stepwell_guest::prelude::*;

/// The run's input.
#[derive(Debug, Deserialize)]
pub struct Document {
    /// Shown above the report.
    pub title: String,
    /// Any text; Markdown's headings and code blocks are recognised.
    pub text: String,
}

/// The run's output.
#[derive(Debug, Serialize)]
pub struct Digest {
    /// The document's title.
    pub title: String,
    /// What was found in its text.
    #[serde(flatten)]
    pub summary: Summary,
    /// The id of `report.html`.
    pub artifact: String,
    /// Where `report.html` can be fetched.
    pub url: String,
}

#[workflow(topics = ["update"], output = "report")]
mod digest {
    use super::*;

    /// Cuts the text into chunks and deals them out to four parts.
    #[step(timeout = "60s", fuel = 5_000_000_000, memory = "128MiB")]
    pub fn split(ctx: &Ctx, input: Document) -> Result<Split, Failure> {
        let split = chunks::split(&input.text);
        let count: usize = split.parts.iter().map(Vec::len).sum();
        ctx.log(format_args!("{} bytes in {count} chunks", input.text.len()));
        Ok(split)
    }

    /// Analyses the first part.
    #[step(timeout = "60s", fuel = 20_000_000_000, memory = "128MiB")]
    pub fn analyse_1(ctx: &Ctx, input: Document, split: Split) -> Result<Stats, Failure> {
        analyse(ctx, 1, &input, &split)
    }

    /// Analyses the second part.
    #[step(timeout = "60s", fuel = 20_000_000_000, memory = "128MiB")]
    pub fn analyse_2(ctx: &Ctx, input: Document, split: Split) -> Result<Stats, Failure> {
        analyse(ctx, 2, &input, &split)
    }

    /// Analyses the third part.
    #[step(timeout = "60s", fuel = 20_000_000_000, memory = "128MiB")]
    pub fn analyse_3(ctx: &Ctx, input: Document, split: Split) -> Result<Stats, Failure> {
        analyse(ctx, 3, &input, &split)
    }

    /// Analyses the fourth part.
    #[step(timeout = "60s", fuel = 20_000_000_000, memory = "128MiB")]
    pub fn analyse_4(ctx: &Ctx, input: Document, split: Split) -> Result<Stats, Failure> {
        analyse(ctx, 4, &input, &split)
    }

    /// Adds the four parts up.
    #[step(timeout = "60s", fuel = 20_000_000_000, memory = "128MiB")]
    pub fn join(
        split: Split,
        analyse_1: Stats,
        analyse_2: Stats,
        analyse_3: Stats,
        analyse_4: Stats,
    ) -> Result<Summary, Failure> {
        let mut stats = analyse_1;
        for part in [analyse_2, analyse_3, analyse_4] {
            stats.merge(part);
        }
        Ok(stats.summarise(split.longest_line_chars))
    }

    /// Writes the report as a web page.
    #[step(memory = "128MiB")]
    pub fn report(ctx: &Ctx, input: Document, join: Summary) -> Result<Digest, Failure> {
        let (name, media_type) = ("report.html", "text/html; charset=utf-8");
        let page = html::page(&input.title, &join);
        let file = ctx.artifact(name, media_type, page.as_bytes())?;
        let created = json!({
            "type": "file_created",
            "name": name,
            "media_type": media_type,
            "artifact": file.id,
            "size_bytes": file.size_bytes,
            "url": file.url(),
        });
        ctx.publish("update", &created)?;
        Ok(Digest { title: input.title, summary: join, url: file.url(), artifact: file.id })
    }
}

/// What the four analysing steps do. `part` counts from 1.
fn analyse(ctx: &Ctx, part: usize, document: &Document, split: &Split) -> Result<Stats, Failure> {
    let chunks = split.parts.get(part - 1).map_or(&[][..], Vec::as_slice);
    let mut stats = Stats::default();
    for (done, chunk) in (1..).zip(chunks) {
        let text = document.text.get(chunk.start..chunk.end).ok_or_else(|| {
            Failure::permanent("invalid_split", format!("bytes {}..{} are not in the text", chunk.start, chunk.end))
        })?;
        stats.add(text, chunk);
        ctx.publish("update", &json!({ "type": "progress", "part": part, "done": done, "of": chunks.len() }))?;
    }
    Ok(stats)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        Document { title: "A & B".to_owned(), text: text.to_owned() }
    }

    /// The whole workflow, by hand.
    fn digest(text: &str) -> (Digest, stepwell_guest::Recorded) {
        let ctx = Ctx::for_test();
        let split = digest::split(&ctx, document(text)).unwrap();
        let parts = [digest::analyse_1, digest::analyse_2, digest::analyse_3, digest::analyse_4]
            .map(|analyse| analyse(&ctx, document(text), split.clone()).unwrap());
        let [one, two, three, four] = parts;
        let summary = digest::join(split, one, two, three, four).unwrap();
        (digest::report(&ctx, document(text), summary).unwrap(), ctx.recorded())
    }

    #[test]
    fn an_empty_document_has_a_report_too() {
        let (digest, recorded) = digest("");
        assert_eq!(digest.summary.words, 0);
        assert_eq!(recorded.updates.len(), 1, "only the file");
        assert_eq!(recorded.artifacts[0].name, "report.html");
    }

    #[test]
    fn the_parts_add_up_to_what_one_part_would_find() {
        let text = "# Heading\n\nSome words in a line, and some more of them.\n".repeat(3_000);
        let (digest, recorded) = digest(&text);
        assert_eq!(digest.summary.words, 11 * 3_000);
        assert_eq!(digest.summary.lines.total, 3 * 3_000);
        assert_eq!(digest.summary.lines.blank, 3_000);
        assert_eq!(digest.summary.characters, text.chars().count());
        assert_eq!(digest.summary.distinct_words, 10);
        let progress = recorded.updates.iter().filter(|update| update.payload["type"] == "progress").count();
        assert_eq!(progress, chunks::split(&text).parts.iter().map(Vec::len).sum::<usize>());
    }

    #[test]
    fn the_report_announces_its_file() {
        let (digest, recorded) = digest("word");
        let created = &recorded.updates.last().unwrap().payload;
        assert_eq!(created["type"], "file_created");
        assert_eq!(created["artifact"], digest.artifact.as_str());
        assert_eq!(created["url"], digest.url.as_str());
        assert_eq!(created["size_bytes"], recorded.artifacts[0].content.len());
    }
}
