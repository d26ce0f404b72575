//! How far each run's journal goes, and each channel, for those who wait for it to go further.
//!
//! A tail says only *how far*: what there is to read is read from the journal itself. So the live stream cannot
//! disagree with the history, and a slow subscriber costs a number.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stepwell_core::{Recorded, RunKey, Seq};
use tokio::sync::watch;

/// Locks that the runs are spread over. More than cores, so that writers of different runs rarely meet.
const SHARDS: usize = 16;

/// How far a run's journal or a channel goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TailState {
    /// Its last durable event.
    pub last_seq: Seq,
    /// Whether that one is terminal.
    pub ended: bool,
}

/// The events after a position, as one follower of a run has read them, for the others who are where it was.
pub type Latest = Arc<Mutex<Option<(Seq, Arc<[Recorded]>)>>>;

type Shard<K> = HashMap<K, Followed>;

/// What is kept of what somebody follows.
#[derive(Debug, Default)]
struct Followed {
    sender: watch::Sender<TailState>,
    latest: Latest,
}

/// All runs, or channels, that somebody follows.
#[derive(Debug)]
pub(super) struct Tails<K = RunKey> {
    shards: [Mutex<Shard<K>>; SHARDS],
    hasher: RandomState,
}

/// Follows one run or channel.
#[derive(Debug)]
pub struct Tail<K: Clone + Eq + Hash = RunKey> {
    tails: Arc<Tails<K>>,
    key: K,
    // `Option` only so that Drop can let go of it first.
    receiver: Option<watch::Receiver<TailState>>,
    latest: Latest,
}

impl<K: Clone + Eq + Hash> Tails<K> {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new() })
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, Shard<K>> {
        let index = self.hasher.hash_one(key) as usize % SHARDS;
        #[expect(clippy::indexing_slicing, reason = "a remainder of SHARDS is below SHARDS")]
        let shard = &self.shards[index];
        // Nothing panics while it holds this lock, and the map is whole at every step.
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows a run. `current` is read after the listener stands, so what is appended in between is in one of both.
    pub(super) fn follow<E>(
        self: &Arc<Self>,
        key: &K,
        current: impl FnOnce() -> Result<TailState, E>,
    ) -> Result<Tail<K>, E> {
        let (receiver, latest) = {
            let mut shard = self.shard(key);
            let followed = shard.entry(key.clone()).or_default();
            (followed.sender.subscribe(), Arc::clone(&followed.latest))
        };
        let tail = Tail { tails: Arc::clone(self), key: key.clone(), receiver: Some(receiver), latest };
        self.moved(key, current()?);
        Ok(tail)
    }

    /// Tells those who follow a run how far it goes now.
    pub(super) fn moved(&self, key: &K, state: TailState) {
        if let Some(followed) = self.shard(key).get(key) {
            // A reader that looked before the writer may speak after it; a tail never goes back.
            followed.sender.send_if_modified(|known| {
                let further = state.last_seq > known.last_seq;
                if further {
                    *known = state;
                }
                further
            });
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap().len()).sum()
    }
}

impl<K: Clone + Eq + Hash> Tail<K> {
    /// How far the journal goes.
    #[must_use]
    pub fn state(&self) -> TailState {
        self.receiver.as_ref().map(|receiver| *receiver.borrow()).unwrap_or_default()
    }

    /// What those who follow the same share.
    #[must_use]
    pub const fn latest(&self) -> &Latest {
        &self.latest
    }

    /// Waits until the journal goes beyond `seq`, or the run has ended before that.
    pub async fn beyond(&mut self, seq: Seq) -> TailState {
        self.until(|state| state.last_seq > seq || state.ended).await
    }

    /// Waits until the run has ended.
    pub async fn ended(&mut self) -> TailState {
        self.until(|state| state.ended).await
    }

    async fn until(&mut self, condition: impl Fn(&TailState) -> bool) -> TailState {
        if let Some(receiver) = self.receiver.as_mut() {
            let reached = receiver.wait_for(|state| condition(state)).await.map(|state| *state);
            if let Ok(state) = reached {
                return state;
            }
        }
        // Never: the sender is in the map for as long as this tail is.
        std::future::pending().await
    }
}

impl<K: Clone + Eq + Hash> Drop for Tail<K> {
    fn drop(&mut self) {
        let mut shard = self.tails.shard(&self.key);
        drop(self.receiver.take());
        if shard.get(&self.key).is_some_and(|followed| followed.sender.receiver_count() == 0) {
            shard.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use stepwell_core::RunId;

    use super::*;

    fn at(last_seq: Seq) -> TailState {
        TailState { last_seq, ended: false }
    }

    #[tokio::test]
    async fn a_tail_never_goes_back_and_is_forgotten_with_its_last_follower() {
        let tails = Tails::new();
        let key = RunKey { tenant: "a".parse().unwrap(), run: RunId::from_bytes([1; 16]) };
        let mut one = tails.follow(&key, || Ok::<_, Infallible>(at(3))).unwrap();
        // The second reader looked before the writer moved on.
        tails.moved(&key, at(5));
        let two = tails.follow(&key, || Ok::<_, Infallible>(at(4))).unwrap();
        assert_eq!((one.state(), two.state()), (at(5), at(5)));
        assert_eq!(one.beyond(4).await, at(5));
        drop(one);
        assert_eq!(tails.len(), 1);
        drop(two);
        assert_eq!(tails.len(), 0);
    }
}
