//! A run's journal as a stream, and a channel.
//!
//! Owns: reading on from a position, and waiting for more.
//! Does not: keep events in memory. The [tail](crate::journal::Tail) says how far the journal goes, and what there is
//! is read from the journal itself, so history and live are the same thing: there is no cut-over to lose events in, no
//! buffer to overflow, and a subscriber that is slow holds its position and at most one page.
//! Keeps: whoever starts after `n` gets `n + 1`, `n + 2`, … without gap or repetition, up to the terminal event.

use std::sync::Arc;

use stepwell_core::{Recorded, RunKey, Seq};

use crate::journal::channels::{ChannelEntry, ChannelFilter, ChannelKey};
use crate::journal::{Journal, JournalError, RedbJournal, Tail, TailState};

/// Stored bytes read for a subscriber at once.
const PAGE_BYTES: usize = 256 << 10;
/// Entries of a channel read for a subscriber at once: that many small updates have about those bytes.
const PAGE_ENTRIES: usize = 1_000;

/// The events of one run from a position on.
#[derive(Debug)]
pub struct RunStream<J> {
    journal: Arc<J>,
    key: RunKey,
    tail: Tail,
    after: Seq,
}

impl<J: Journal> RunStream<J> {
    /// Starts after an event; 0 starts with the first. The run must exist. [`JournalError::Truncated`] when what would
    /// come first does not exist any more.
    pub fn new(journal: Arc<J>, key: RunKey, after: Seq) -> Result<Self, JournalError> {
        // The listener stands before the first read.
        let tail = journal.tail(&key)?;
        if tail.state().last_seq > after {
            journal.read(&key, after, 0)?; // told now, and not in the middle of an answer
        }
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

/// The entries of a channel from a position on. It does not end.
#[derive(Debug)]
pub struct ChannelStream {
    journal: Arc<RedbJournal>,
    key: ChannelKey,
    filter: ChannelFilter,
    tail: Tail<ChannelKey>,
    after: u64,
}

impl ChannelStream {
    /// Starts after an entry; `None` starts with the first that exists. [`JournalError::Truncated`] when what would come
    /// first was deleted.
    pub fn new(
        journal: Arc<RedbJournal>,
        key: ChannelKey,
        filter: ChannelFilter,
        after: Option<u64>,
    ) -> Result<Self, JournalError> {
        // The listener stands before the first read.
        let tail = journal.channel_tail(&key)?;
        let (first_seq, _) = journal.channel_bounds(&key)?;
        let after = after.unwrap_or(first_seq - 1);
        if after.saturating_add(1) < first_seq {
            return Err(JournalError::Truncated { first_seq });
        }
        Ok(Self { journal, key, filter, tail, after })
    }

    /// The next entries, at least one; waits for them. Cancel safe: entries are given out only by returning.
    pub async fn next(&mut self) -> Result<Vec<ChannelEntry>, JournalError> {
        loop {
            self.tail.beyond(self.after).await;
            let page = self.journal.channel(&self.key, &self.filter, self.after, PAGE_ENTRIES, PAGE_BYTES)?;
            self.after = page.cursor;
            if !page.entries.is_empty() {
                return Ok(page.entries);
            }
            tokio::task::yield_now().await; // a filter that matches little must not hold up others
        }
    }
}
