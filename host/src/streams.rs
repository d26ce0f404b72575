//! A run's journal as a stream.
//!
//! Owns: reading on from a position, and waiting for more.
//! Does not: keep events in memory. The [tail](crate::journal::Tail) says how far the journal goes, and what there is
//! is read from the journal itself, so history and live are the same thing: there is no cut-over to lose events in, no
//! buffer to overflow, and a subscriber that is slow holds its position and at most one page.
//! Keeps: whoever starts after `n` gets `n + 1`, `n + 2`, … without gap or repetition, up to the terminal event.

use std::sync::Arc;

use stepwell_core::{Recorded, RunKey, Seq};

use crate::journal::{Journal, JournalError, Tail, TailState};

/// Stored bytes read for a subscriber at once.
const PAGE_BYTES: usize = 256 << 10;

/// The events of one run from a position on.
#[derive(Debug)]
pub struct RunStream<J> {
    journal: Arc<J>,
    key: RunKey,
    tail: Tail,
    after: Seq,
}

impl<J: Journal> RunStream<J> {
    /// Starts after an event; 0 starts with the first. The run must exist.
    pub fn new(journal: Arc<J>, key: RunKey, after: Seq) -> Result<Self, JournalError> {
        // The listener stands before the first read.
        let tail = journal.tail(&key)?;
        Ok(Self { journal, key, tail, after })
    }

    /// How far the journal goes now.
    #[must_use]
    pub fn state(&self) -> TailState {
        self.tail.state()
    }

    /// Whether the run has ended and everything up to its end was given out.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        let state = self.tail.state();
        state.ended && self.after >= state.last_seq
    }

    /// The next events, at least one; waits for them. `None` after the terminal event. Cancel safe: events are given
    /// out only by returning.
    pub async fn next(&mut self) -> Result<Option<Vec<Recorded>>, JournalError> {
        let state = self.tail.beyond(self.after).await;
        if self.is_at_end() {
            return Ok(None);
        }
        let page = self.journal.read(&self.key, self.after, PAGE_BYTES)?;
        match page.last() {
            Some(last) => self.after = last.seq,
            None => {
                // The tail is moved only by what is on disk, so somebody has deleted the run meanwhile.
                tracing::debug!(run = %self.key, last_seq = state.last_seq, "a run was deleted under its reader");
                return Ok(None);
            }
        }
        Ok(Some(page))
    }
}
