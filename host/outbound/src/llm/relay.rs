//! Between the words of a model and those who follow it.
//!
//! Each delta becomes a durable event with a cost of its own, and models send single syllables. So text is held back
//! until it is worth an event, or until somebody might notice the wait.
//!
//! The invariants: what was handed on is a prefix of the text, text waits no longer than [`WAIT_MAX`] while there is
//! somebody to call [`Relay::flush`] at [`Relay::due`], and a piece is cut between characters.

use std::time::Duration;

use tokio::time::Instant;

use super::{DeltaSink, LlmError, Stopped};

/// Of an answer. The same as for a step's output.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A fiftieth of a second is not noticed, and keeps a fast model to fifty events in a second.
const WAIT_MAX: Duration = Duration::from_millis(20);
/// Text that is handed on at once: far more than a model writes in [`WAIT_MAX`], so it came in one go.
const WORTH_BYTES: usize = 1024;
/// Of one delta. JSON can make six bytes of one, and an update has at most 256 KiB.
const DELTA_BYTES_MAX: usize = 32 * 1024;

/// An answer as it grows.
pub(super) struct Relay<'a> {
    sink: &'a mut dyn DeltaSink,
    text: String,
    /// How much of the text the sink has been told.
    told: usize,
    /// When the oldest text after that came.
    waiting_since: Option<Instant>,
}

impl<'a> Relay<'a> {
    pub(super) fn new(sink: &'a mut dyn DeltaSink) -> Self {
        Self { sink, text: String::new(), told: 0, waiting_since: None }
    }

    /// Adds text, and hands on what is worth it.
    pub(super) async fn push(&mut self, text: &str, now: Instant) -> Result<(), LlmError> {
        if text.is_empty() {
            return Ok(());
        }
        if self.text.len() + text.len() > ANSWER_BYTES_MAX {
            return Err(LlmError::TooLarge);
        }
        self.text.push_str(text);
        self.waiting_since.get_or_insert(now);
        if self.text.len() - self.told >= WORTH_BYTES || self.due().is_some_and(|due| due <= now) {
            self.flush().await?;
        }
        Ok(())
    }

    /// When the text that waits should be handed on. `None` when none waits.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting_since.map(|since| since + WAIT_MAX)
    }

    /// Hands on all that waits.
    pub(super) async fn flush(&mut self) -> Result<(), LlmError> {
        self.waiting_since = None;
        while let Some(rest) = self.text.get(self.told..).filter(|rest| !rest.is_empty()) {
            let piece = rest.get(..rest.floor_char_boundary(DELTA_BYTES_MAX)).unwrap_or(rest).to_owned();
            self.told += piece.len();
            self.sink.delta(piece).await.map_err(|Stopped| LlmError::Cancelled)?;
        }
        Ok(())
    }

    /// Whether the answer has begun.
    pub(super) fn has_text(&self) -> bool {
        !self.text.is_empty()
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;

    use super::*;

    /// Keeps the deltas, and stops after some.
    struct Kept {
        deltas: Vec<String>,
        stop_after: usize,
    }

    impl DeltaSink for Kept {
        fn delta(&mut self, text: String) -> BoxFuture<'_, Result<(), Stopped>> {
            self.deltas.push(text);
            let result = if self.deltas.len() < self.stop_after { Ok(()) } else { Err(Stopped) };
            Box::pin(std::future::ready(result))
        }
    }

    fn kept() -> Kept {
        Kept { deltas: Vec::new(), stop_after: usize::MAX }
    }

    /// Pushes each text at its millisecond and flushes at the end.
    async fn deltas(texts: &[(u64, &str)]) -> Vec<String> {
        let start = Instant::now();
        let mut kept = kept();
        let mut relay = Relay::new(&mut kept);
        for (at_ms, text) in texts {
            relay.push(text, start + Duration::from_millis(*at_ms)).await.unwrap();
        }
        relay.flush().await.unwrap();
        kept.deltas
    }

    #[tokio::test]
    async fn syllables_within_the_wait_are_one_delta() {
        assert_eq!(deltas(&[(0, "a"), (10, "b"), (19, "c")]).await, ["abc"]);
        assert_eq!(deltas(&[(0, "a"), (19, "b"), (20, "c"), (39, "d"), (45, "e")]).await, ["abc", "de"]);
        assert_eq!(deltas(&[(0, "a"), (50, "b"), (60, "c")]).await, ["ab", "c"]);
    }

    #[tokio::test]
    async fn much_text_does_not_wait() {
        let half = "x".repeat(WORTH_BYTES / 2);
        assert_eq!(deltas(&[(0, &half), (0, &half), (0, "y")]).await, [half.repeat(2), "y".to_owned()]);
    }

    #[tokio::test]
    async fn nothing_said_is_no_delta() {
        assert!(deltas(&[]).await.is_empty());
        assert!(deltas(&[(0, ""), (100, "")]).await.is_empty());
    }

    #[tokio::test]
    async fn what_waits_says_since_when() {
        let start = Instant::now();
        let mut kept = kept();
        let mut relay = Relay::new(&mut kept);
        assert_eq!(relay.due(), None);
        relay.push("a", start).await.unwrap();
        relay.push("b", start + Duration::from_millis(5)).await.unwrap();
        assert_eq!(relay.due(), Some(start + WAIT_MAX));
        relay.flush().await.unwrap();
        assert_eq!(relay.due(), None);
    }

    #[tokio::test]
    async fn a_long_text_is_cut_between_characters() {
        let text = format!("{}{}", "x".repeat(DELTA_BYTES_MAX - 1), "ü".repeat(DELTA_BYTES_MAX));
        let deltas = deltas(&[(0, &text)]).await;
        assert_eq!(deltas.concat(), text);
        assert_eq!(deltas.iter().map(String::len).collect::<Vec<_>>(), [32_767, 32_768, 32_768]);
    }

    #[tokio::test]
    async fn an_answer_beyond_the_limit_is_an_error_and_not_told() {
        let mut kept = kept();
        let mut relay = Relay::new(&mut kept);
        relay.push(&"x".repeat(ANSWER_BYTES_MAX), Instant::now()).await.unwrap();
        assert_eq!(relay.push("y", Instant::now()).await, Err(LlmError::TooLarge));
        assert_eq!(kept.deltas.concat().len(), ANSWER_BYTES_MAX);
    }

    #[tokio::test]
    async fn a_sink_that_stops_is_not_told_more() {
        let mut kept = Kept { deltas: Vec::new(), stop_after: 2 };
        let mut relay = Relay::new(&mut kept);
        let text = "x".repeat(DELTA_BYTES_MAX * 3);
        assert_eq!(relay.push(&text, Instant::now()).await, Err(LlmError::Cancelled));
        assert_eq!(kept.deltas.len(), 2);
    }
}
