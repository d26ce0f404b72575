//! A run's journal as a stream, and a channel.
//!
//! Owns: reading on from a position, and waiting for more.
//! Does not: keep events in memory. The [tail](crate::journal::Tail) says how far the journal goes, and what there is
//! is read from the journal itself, so history and live are the same thing: there is no cut-over to lose events in, no
//! buffer to overflow, and a subscriber that is slow holds its position and at most one page: 256 KiB, and the append
//! that goes beyond them (the driver's are about a megabyte at most). Subscribers who are at the same place share what one
//! of them has read there.
//! Keeps: whoever starts after `n` gets `n + 1`, `n + 2`, … without gap or repetition, up to the terminal event.

use std::sync::{Arc, PoisonError};

use stepwell_core::event::{ChildEnd, Woke};
use stepwell_core::{Event, Payload, Recorded, RunKey, Seq};

use crate::journal::channels::{ChannelFilter, ChannelKey, ChannelPage};
use crate::journal::{Journal, JournalError, RedbJournal, Tail, TailState};

/// Stored bytes read for a subscriber at once.
const PAGE_BYTES: usize = 256 << 10;
/// Events of a page that is kept for whoever comes to the same place: what one append brings.
const SHARED_EVENTS_MAX: usize = 64;
/// Bytes of values in such a page. One is kept for each run that somebody follows.
const SHARED_BYTES_MAX: usize = 16 << 10;
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
    pub async fn next(&mut self) -> Result<Option<Arc<[Recorded]>>, JournalError> {
        let state = self.tail.beyond(self.after).await;
        if self.is_at_end() {
            return Ok(None);
        }
        let page = self.page()?;
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

    /// What comes next, at least as far as the journal goes now. When an update comes to a thousand subscribers, the
    /// first of them reads it.
    fn page(&self) -> Result<Arc<[Recorded]>, JournalError> {
        let latest = || self.tail.latest().lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, page)) = latest().as_ref().filter(|(after, _)| *after == self.after) {
            return Ok(Arc::clone(page));
        }
        let page: Arc<[Recorded]> = self.journal.read(&self.key, self.after, PAGE_BYTES)?.into();
        let bytes: usize = page.iter().map(|recorded| bytes_of(&recorded.event)).sum();
        if !page.is_empty() && page.len() <= SHARED_EVENTS_MAX && bytes <= SHARED_BYTES_MAX {
            *latest() = Some((self.after, Arc::clone(&page)));
        }
        Ok(page)
    }
}

/// Bytes of what an event carries, as far as it can be much.
fn bytes_of(event: &Event) -> usize {
    let value = match event.payload() {
        Some(Payload::Inline(json)) => json.len_bytes(),
        Some(Payload::Stored(_)) | None => 0,
    };
    let text = match event {
        Event::StepLog { message, .. } => message.len(),
        // What else others carry is small, but for these, which are so rare that they are not kept.
        Event::StepFailed { .. } | Event::RunFailed { .. } => SHARED_BYTES_MAX + 1,
        Event::StepResumed { woke: Some(woke), .. } if matches!(**woke, Woke::Child(ChildEnd::Failed { .. })) => {
            SHARED_BYTES_MAX + 1
        }
        _ => 0,
    };
    value + text
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

    /// The last entry that was looked at.
    #[must_use]
    pub const fn after(&self) -> u64 {
        self.after
    }

    /// The next part of the channel; waits for one. None of its entries may be wanted: then it says how far the channel was
    /// looked at. Cancel safe: entries are given out only by returning.
    pub async fn next(&mut self) -> Result<ChannelPage, JournalError> {
        self.tail.beyond(self.after).await;
        let page = self.journal.channel(&self.key, &self.filter, self.after, PAGE_ENTRIES, PAGE_BYTES)?;
        self.after = page.cursor;
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use stepwell_core::{Json, RunId, Timestamp};

    use super::*;
    use crate::journal::Batch;

    fn update(bytes: usize) -> Event {
        let payload = Payload::Inline(Json::parse(format!("\"{}\"", "x".repeat(bytes))).unwrap());
        let step = "a".parse::<stepwell_core::NodeId>().unwrap().into();
        Event::StepUpdate { step, attempt: 1, topic: "t".into(), payload, within_call: false }
    }

    #[tokio::test]
    async fn who_is_at_the_same_place_shares_what_one_has_read_unless_it_is_much() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(RedbJournal::open(&dir.path().join("journal.redb")).unwrap());
        let key = RunKey { tenant: "a".parse().unwrap(), run: RunId::from_bytes([1; 16]) };
        let batch = |events| Batch { at: Timestamp::from_millis(1), events, ..Batch::default() };
        journal.create(&key, batch(vec![update(1), update(2)]), None).await.unwrap();
        let stream = |after| RunStream::new(Arc::clone(&journal), key.clone(), after).unwrap();
        let (mut one, mut two, mut other) = (stream(0), stream(0), stream(1));
        let next = async |stream: &mut RunStream<RedbJournal>| stream.next().await.unwrap().unwrap();
        let seqs = |page: &[Recorded]| page.iter().map(|recorded| recorded.seq).collect::<Vec<_>>();
        let (first, same) = (next(&mut one).await, next(&mut two).await);
        assert!(Arc::ptr_eq(&first, &same));
        assert_eq!((seqs(&first), seqs(&next(&mut other).await)), (vec![1, 2], vec![2]));
        // What is kept may be less than there is by now: the rest comes next.
        let mut late = stream(1);
        journal.append(&key, 2, batch(vec![update(3)])).await.unwrap();
        assert_eq!((seqs(&next(&mut late).await), seqs(&next(&mut late).await)), (vec![2], vec![3]));
        assert_eq!(seqs(&next(&mut one).await), [3]);
        // A large one is each subscriber's own, for as long as it takes to send it.
        journal.append(&key, 3, batch(vec![update(SHARED_BYTES_MAX)])).await.unwrap();
        let (first, same) = (next(&mut one).await, next(&mut late).await);
        assert!(!Arc::ptr_eq(&first, &same) && first == same);
    }
}
