//! How the report looks: one page that loads nothing.
//!
//! Its invariant: everything from the document is escaped, so a document cannot put markup or a script into the page.

use std::fmt::{self, Display, Write};

use crate::analysis::{Lines, Summary};

const STYLE: &str = include_str!("report.css");

/// The report as an HTML page.
pub fn page(title: &str, summary: &Summary) -> String {
    let mut page = String::new();
    // Writing to a string cannot fail.
    let _ = write_page(&mut page, title, summary);
    page
}

fn write_page(out: &mut String, title: &str, summary: &Summary) -> fmt::Result {
    let title = Escaped(if title.trim().is_empty() { "Untitled" } else { title });
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title} – digest</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header><p>Document digest</p><h1>{title}</h1></header>\n"
    )?;
    write_figures(out, summary)?;
    write_lines(out, &summary.lines)?;
    write_terms(out, summary)?;
    write_outline(out, summary)?;
    out.write_str("</main>\n</body>\n</html>\n")
}

fn write_figures(out: &mut String, summary: &Summary) -> fmt::Result {
    let reading = match summary.reading_minutes {
        minutes if minutes < 1.0 => "under a minute".to_owned(),
        minutes => format!("{minutes} min"),
    };
    let figures = [
        ("Words", Grouped(summary.words).to_string()),
        ("Distinct words", Grouped(summary.distinct_words).to_string()),
        ("Characters", Grouped(summary.characters).to_string()),
        ("Lines", Grouped(summary.lines.total).to_string()),
        ("Longest line", format!("{} characters", Grouped(summary.longest_line_chars))),
        ("Reading time", reading),
    ];
    out.write_str("<dl class=\"figures\">\n")?;
    for (name, figure) in figures {
        writeln!(out, "<div><dt>{name}</dt><dd>{figure}</dd></div>")?;
    }
    out.write_str("</dl>\n")
}

fn write_lines(out: &mut String, lines: &Lines) -> fmt::Result {
    if lines.total == 0 {
        return out.write_str("<p class=\"note\">The document is empty.</p>\n");
    }
    let kinds = [("text", lines.text), ("code", lines.code), ("comment", lines.comment), ("blank", lines.blank)];
    out.write_str("<section>\n<h2>Lines</h2>\n<div class=\"shares\">")?;
    for (kind, count) in kinds.into_iter().filter(|&(_, count)| count > 0) {
        write!(out, "<span class=\"{kind}\" style=\"flex-grow:{count}\"></span>")?;
    }
    out.write_str("</div>\n<ul class=\"legend\">\n")?;
    for (kind, count) in kinds {
        let share = percent(count, lines.total);
        writeln!(out, "<li><i class=\"{kind}\"></i>{kind} {share}<small>{}</small></li>", Grouped(count))?;
    }
    out.write_str("</ul>\n</section>\n")
}

fn write_terms(out: &mut String, summary: &Summary) -> fmt::Result {
    let Some(most) = summary.top_terms.first().map(|term| term.count) else { return Ok(()) };
    out.write_str("<section>\n<h2>Most frequent terms</h2>\n<ol class=\"terms\">\n")?;
    for term in &summary.top_terms {
        writeln!(
            out,
            "<li><b>{}</b><span><i style=\"width:{}\"></i></span><em>{}</em></li>",
            Escaped(&term.term),
            percent(term.count, most),
            Grouped(term.count),
        )?;
    }
    out.write_str("</ol>\n</section>\n")
}

fn write_outline(out: &mut String, summary: &Summary) -> fmt::Result {
    if summary.headings.is_empty() {
        return Ok(());
    }
    out.write_str("<section>\n<h2>Outline</h2>\n<ul class=\"outline\">\n")?;
    for heading in &summary.headings {
        writeln!(out, "<li class=\"level-{}\">{}</li>", heading.level, Escaped(&heading.text))?;
    }
    out.write_str("</ul>\n")?;
    let left_out = summary.headings_total - summary.headings.len();
    if left_out > 0 {
        writeln!(out, "<p class=\"note\">and {} more</p>", Grouped(left_out))?;
    }
    out.write_str("</section>\n")
}

fn percent(part: usize, whole: usize) -> String {
    format!("{:.1}%", part as f64 * 100.0 / whole as f64)
}

/// Text that is safe between tags and inside a quoted attribute.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// A number with its digits in groups of three: 1,234,567.
struct Grouped(usize);

impl Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place).is_multiple_of(3) {
                f.write_char(',')?;
            }
            f.write_char(digit)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::Stats;
    use crate::chunks::Chunk;

    fn summary(text: &str) -> Summary {
        let mut stats = Stats::default();
        stats.add(text, &Chunk { start: 0, end: text.len(), in_code: false, mid_line: false });
        stats.summarise(text.len())
    }

    #[test]
    fn what_comes_from_the_document_is_escaped() {
        let page = page("<script>alert('x')</script>", &summary("# <img src=x onerror=\"y\">\n"));
        assert!(!page.contains("<script"));
        assert!(!page.contains("<img"));
        assert!(page.contains("<h1>&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;</h1>"));
    }

    #[test]
    fn an_empty_document_says_so() {
        let page = page(" ", &summary(""));
        assert!(page.contains("<h1>Untitled</h1>"));
        assert!(page.contains("The document is empty."));
        assert!(!page.contains("NaN"));
    }

    #[test]
    fn digits_come_in_groups() {
        let grouped = [0, 999, 1_000, 123_456, 1_234_567].map(|number| Grouped(number).to_string());
        assert_eq!(grouped, ["0", "999", "1,000", "123,456", "1,234,567"]);
    }

    #[test]
    fn the_page_loads_nothing() {
        let page = page("t", &summary("# h\nsome words"));
        for loads in ["src=", "href=", "@import", "url("] {
            assert!(!page.contains(loads), "{loads}");
        }
    }
}
