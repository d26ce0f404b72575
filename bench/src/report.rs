//! What is printed, and what is kept: figures on standard output and in a JSON file, progress on standard error.
//!
//! The file is one flat object of numbers. It may hold other benchmarks' figures too: what is not measured here stays
//! as it is.
#![expect(clippy::print_stdout, reason = "this is the place for it")]

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use serde_json::{Map, Number, Value};

/// Figures that were measured, and what was wrong.
#[derive(Debug)]
pub(crate) struct Report {
    figures: Map<String, Value>,
    failures: usize,
}

impl Report {
    /// Prints what the figures are of.
    pub(crate) fn begin(quick: bool) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
        println!("Stepwell on {cores} cores ({}), kernel {}", cpu.unwrap_or("unknown"), kernel.trim());
        println!("The clients share these cores with the server. p50 and p99: half, and 99 of 100, are not slower.");
        if quick {
            println!("Quick: short measurements, good to see that everything works, too short to compare.");
        }
        Self { figures: Map::new(), failures: 0 }
    }

    /// Begins a part of the figures.
    pub(crate) fn part(&mut self, what: &str) {
        println!("\n{what}");
    }

    /// Prints a figure and keeps it.
    pub(crate) fn row(&mut self, name: &str, value: f64, unit: &str, note: &str) {
        self.row_shown(name, value, unit, note);
        // Three decimals of a millisecond are a microsecond, which is more than there is to know.
        let number = Number::from_f64((value * 1e3).round() / 1e3);
        self.figures.extend(number.map(|number| (name.to_owned(), Value::Number(number))));
    }

    /// Prints a figure that is not kept.
    pub(crate) fn row_shown(&mut self, name: &str, value: f64, unit: &str, note: &str) {
        let value = if value < 1e3 { format!("{value:.2}") } else { thousands(value) };
        println!("  {name:<31} {value:>12} {unit:<3} {note}");
    }

    /// Prints and keeps the median and the 99th percentile of latencies that are in order of size. `{}` in `name`
    /// is where `p50` and `p99` go.
    pub(crate) fn latencies(&mut self, name: &str, sorted_ms: &[f64], note: &str) {
        for (word, percent) in [("p50", 50.0), ("p99", 99.0)] {
            if let Some(value) = percentile(sorted_ms, percent) {
                self.row(&name.replace("{}", word), value, "ms", note);
            }
        }
    }

    /// Prints what was wrong in a part: how often, and the first of it.
    pub(crate) fn failures(&mut self, what: &str, failures: &[String]) {
        if let Some(first) = failures.first() {
            println!("  WRONG, {what}: {} times, first: {first}", failures.len());
            self.failures += failures.len();
        }
    }

    /// Writes the file, and fails when something was wrong.
    pub(crate) fn finish(self, path: &Path) -> anyhow::Result<()> {
        let mut all = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                progress(&format!("{} is written anew: it was no JSON object ({error})", path.display()));
                Map::new()
            }),
            Err(_) => Map::new(), // if it cannot be written either, that says why
        };
        all.extend(self.figures);
        let text = format!("{:#}\n", Value::Object(all));
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("\nThe figures are in {}.", path.display());
        ensure!(self.failures == 0, "{} answers were wrong; see above", self.failures);
        Ok(())
    }
}

/// The value that `percent` of the sorted values do not exceed; `None` when there are none.
pub(crate) fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * percent / 100.0).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Says what is going on, for whoever waits.
pub(crate) fn progress(what: &str) {
    eprintln!("  … {what}");
}

/// Says why it came to nothing.
pub(crate) fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("stepwell-bench: {error:#}");
    ExitCode::FAILURE
}

/// A whole number with a comma after each three digits.
pub(crate) fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let sorted: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(percentile(&sorted, 50.0), Some(100.0));
        assert_eq!(percentile(&sorted, 99.0), Some(198.0));
        assert_eq!(percentile(&[7.0], 99.0), Some(7.0));
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn large_numbers_are_readable() {
        assert_eq!(thousands(1234.6), "1,235");
        assert_eq!(thousands(100_000.0), "100,000");
        assert_eq!(thousands(999.0), "999");
    }

    #[test]
    fn figures_of_other_benchmarks_stay_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bench.json");
        std::fs::write(&path, r#"{"other": 1, "mine": 2}"#).unwrap();
        let mut report = Report::begin(true);
        report.row("mine", 3.0, "ms", "");
        report.row_shown("shown", 4.0, "ms", "");
        report.finish(&path).unwrap();
        let written: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(written, serde_json::json!({ "other": 1, "mine": 3.0 }));
    }
}
