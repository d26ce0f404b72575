//! Printing. The one place that writes to standard output.
#![expect(clippy::print_stdout, reason = "this is the place for it")]

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

use serde_json::Value;

/// When a wait is long enough to say so, and how often.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// A line of the result.
pub(super) fn line(text: impl Display) {
    println!("{text}");
}

/// A value of the result.
pub(super) fn json(value: &Value) {
    line(format_args!("{value:#}"));
}

/// A line for people.
pub(super) fn note(text: impl Display) {
    eprintln!("{text}");
}

/// An error with all that caused it.
pub(super) fn error(error: &anyhow::Error) {
    eprintln!("stepwell: {error:#}");
}

/// Waits, and says so when it takes longer than a second.
pub(super) async fn with_progress<T>(what: &str, work: impl Future<Output = T>) -> T {
    let started = Instant::now();
    let mut every = tokio::time::interval_at(tokio::time::Instant::now() + PROGRESS_EVERY, PROGRESS_EVERY);
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return result,
            _ = every.tick() => note(format_args!("{what} … {} s", started.elapsed().as_secs())),
        }
    }
}

/// Bytes for people.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1_024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// An event of a run, on a line for people.
pub(super) fn event(json: &str) {
    let event: Value = serde_json::from_str(json).unwrap_or_default();
    let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default();
    let number = |name: &str| event.get(name).and_then(Value::as_u64).unwrap_or_default();
    let value = |name: &str| short(&event.get(name).map(Value::to_string).unwrap_or_default());
    let failure = || {
        let failure =
            |name: &str| event.pointer(&format!("/failure/{name}")).and_then(Value::as_str).unwrap_or_default();
        format!("{}: {}", failure("code"), failure("message"))
    };
    // `node[0][2]` inside fan-outs and loops.
    let items = event.get("items").and_then(Value::as_array).into_iter().flatten();
    let step = text("node").to_owned() + &items.map(|item| format!("[{item}]")).collect::<String>();
    let kind = text("kind");
    let attempt = if number("attempt") > 1 { format!(" (attempt {})", number("attempt")) } else { String::new() };
    let until = || match text("until") {
        "" => String::new(),
        until => format!(", until {until}"),
    };
    let what = match kind {
        "run.queued" => format!("{} {}", text("workflow"), text("version").get(..12).unwrap_or_default()),
        "run.suspended" => format!("waits for {}{}", text("reason"), until()),
        "run.completed" => value("output"),
        "run.failed" => format!("{} {}", step, failure()),
        "run.cancelled" | "run.paused" => text("reason").to_owned(),
        "signal.received" => format!("{} {}", text("name"), value("payload")),
        "step.taken_over" => format!("{step} {}", value("output")),
        "step.resumed" => match text("woke") {
            "" => step,
            "child" => format!("{step} by a child, which was {}", text("child_status")),
            woke => format!("{step} by {woke}"),
        },
        "step.started" => format!("{}{attempt}", step),
        "step.update" => format!("{} {} {}", step, text("topic"), value("payload")),
        "step.call" => format!("{step} {}, {}", text("call"), size(number("size_bytes"))),
        "step.log" => format!("{} {}: {}", step, text("level"), text("message")),
        "step.artifact" => {
            format!("{} {} ({}, {})", step, text("name"), text("media_type"), size(number("size_bytes")))
        }
        "step.suspended" => {
            let what = if text("signal").is_empty() { text("reason") } else { text("signal") };
            format!("{step} waits for {what}{}", until())
        }
        "step.completed" => format!("{}{attempt} {}", step, value("output")),
        "step.failed" => {
            let is = |name: &str| event.get(name).and_then(Value::as_bool) == Some(true);
            let next = if is("will_retry") {
                ", will retry"
            } else if is("pauses") {
                ", waits for an operator"
            } else {
                ""
            };
            format!("{}{attempt} {}{next}", step, failure())
        }
        "step.rolled_back" => {
            format!("{}{attempt} updates {} to {}", step, number("first_seq"), number("last_seq"))
        }
        _ => step,
    };
    let time = text("at").get(11..23).unwrap_or_default();
    // JSON keeps DEL and C1 as they are, and a terminal would act on them.
    let what = printable(&what);
    line(format_args!("{time} {:>4}  {kind:<16} {what}", number("seq")).to_string().trim_end());
}

/// Text of a guest as it can be shown on a terminal: nothing in it moves the cursor or changes a colour.
pub(super) fn printable(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' { '\u{fffd}' } else { c };
    text.chars().map(shown).collect::<String>().replace('\n', "\n      ")
}

/// The start of a long value. JSON has no raw control characters.
fn short(text: &str) -> String {
    const SHOWN_CHARS: usize = 160;
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}
