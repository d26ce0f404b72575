//! Which runs have a loop, and how to reach it.
//!
//! Keeps: a run has at most one loop in this process. A loop is entered here before it begins and leaves only when its
//! inbox is empty.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use stepwell_core::RunKey;
use tokio::sync::mpsc;

use super::run_loop::Message;

/// Locks that the runs are spread over. More than cores, so that runs rarely wait for each other.
const SHARDS: usize = 32;

// Unbounded, because what can be in it is bounded: a step waits for each answer, so there is one message for each
// attempt under way, and one for each API request.
pub(super) type Inbox = mpsc::UnboundedSender<Message>;
pub(super) type Messages = mpsc::UnboundedReceiver<Message>;

#[derive(Debug)]
pub(super) struct Registry {
    shards: [Mutex<HashMap<RunKey, Inbox>>; SHARDS],
    hasher: RandomState,
}

impl Default for Registry {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new() }
    }
}

impl Registry {
    fn shard(&self, key: &RunKey) -> MutexGuard<'_, HashMap<RunKey, Inbox>> {
        let index = self.hasher.hash_one(key) as usize % SHARDS;
        #[expect(clippy::indexing_slicing, reason = "a remainder of SHARDS is below SHARDS")]
        let shard = &self.shards[index];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inbox of a run's loop. When there was none, also the other end, for the loop that the caller must start.
    pub(super) fn enter(&self, key: &RunKey) -> (Inbox, Option<Messages>) {
        let mut shard = self.shard(key);
        if let Some(inbox) = shard.get(key) {
            return (inbox.clone(), None);
        }
        let (inbox, messages) = mpsc::unbounded_channel();
        shard.insert(key.clone(), inbox.clone());
        (inbox, Some(messages))
    }

    /// Takes a loop out, unless a message has come meanwhile. After `true` nobody can find it any more.
    pub(super) fn leave(&self, key: &RunKey, messages: &Messages) -> bool {
        let mut shard = self.shard(key);
        let leaves = messages.is_empty();
        if leaves {
            shard.remove(key);
        }
        leaves
    }

    /// Takes a loop out, whatever is in its inbox: whoever sent it learns that it was let go of.
    pub(super) fn remove(&self, key: &RunKey) {
        self.shard(key).remove(key);
    }

    /// Whether a run has a loop.
    pub(super) fn has(&self, key: &RunKey) -> bool {
        self.shard(key).contains_key(key)
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }
}
