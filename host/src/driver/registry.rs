//! Which runs have a loop, and how to reach it.
//!
//! Keeps: a run has at most one loop in this process. A loop is entered here before it begins and leaves only when its
//! inbox is empty.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use stepwell_core::{RunId, RunKey, TenantId};
use tokio::sync::mpsc;

use super::run_loop::Message;

/// Locks that the runs are spread over. More than cores, so that runs rarely wait for each other.
const SHARDS: usize = 32;

// Unbounded, because what can be in it is bounded: a step waits for each answer, so there is one message for each
// attempt under way, and one for each API request.
pub(super) type Inbox = mpsc::UnboundedSender<Message>;
pub(super) type Messages = mpsc::UnboundedReceiver<Message>;

/// The inboxes of each tenant's runs.
type Shard = HashMap<TenantId, HashMap<RunId, Inbox>>;

#[derive(Debug)]
pub(super) struct Registry {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

impl Default for Registry {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), hasher: RandomState::new() }
    }
}

impl Registry {
    fn shard(&self, key: &RunKey) -> MutexGuard<'_, Shard> {
        let index = self.hasher.hash_one(key) as usize % SHARDS;
        #[expect(clippy::indexing_slicing, reason = "a remainder of SHARDS is below SHARDS")]
        let shard = &self.shards[index];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inbox of a run's loop. When there was none, also the other end, for the loop that the caller must start.
    pub(super) fn enter(&self, key: &RunKey) -> (Inbox, Option<Messages>) {
        let mut shard = self.shard(key);
        if let Some(inbox) = shard.get(&key.tenant).and_then(|runs| runs.get(&key.run)) {
            return (inbox.clone(), None);
        }
        let (inbox, messages) = mpsc::unbounded_channel();
        shard.entry(key.tenant.clone()).or_default().insert(key.run, inbox.clone());
        (inbox, Some(messages))
    }

    /// A new inbox for a loop that begins anew. What is in the old one is let go of, and whoever still has it learns that.
    pub(super) fn renew(&self, key: &RunKey) -> (Inbox, Messages) {
        let (inbox, messages) = mpsc::unbounded_channel();
        self.shard(key).entry(key.tenant.clone()).or_default().insert(key.run, inbox.clone());
        (inbox, messages)
    }

    /// Takes a loop out, unless a message has come meanwhile. After `true` nobody can find it any more.
    pub(super) fn leave(&self, key: &RunKey, messages: &Messages) -> bool {
        let mut shard = self.shard(key);
        let leaves = messages.is_empty();
        if leaves {
            take_out(&mut shard, key);
        }
        leaves
    }

    /// Takes a loop out, whatever is in its inbox: whoever sent it learns that it was let go of.
    pub(super) fn remove(&self, key: &RunKey) {
        take_out(&mut self.shard(key), key);
    }

    /// Whether a run has a loop.
    pub(super) fn has(&self, key: &RunKey) -> bool {
        self.shard(key).get(&key.tenant).is_some_and(|runs| runs.contains_key(&key.run))
    }

    pub(super) fn len(&self) -> usize {
        self.sum(|shard| shard.values().map(HashMap::len).sum())
    }

    /// How many of a tenant's runs have a loop.
    pub(super) fn len_of(&self, tenant: &TenantId) -> usize {
        self.sum(|shard| shard.get(tenant).map_or(0, HashMap::len))
    }

    fn sum(&self, of: impl Fn(&Shard) -> usize) -> usize {
        self.shards.iter().map(|shard| of(&shard.lock().unwrap_or_else(PoisonError::into_inner))).sum()
    }
}

fn take_out(shard: &mut Shard, key: &RunKey) {
    if let Some(runs) = shard.get_mut(&key.tenant) {
        runs.remove(&key.run);
        if runs.is_empty() {
            shard.remove(&key.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_one_loop_and_each_tenant_is_counted_by_itself() {
        let key = |tenant: &str, run| RunKey { tenant: tenant.parse().unwrap(), run: RunId::from_bytes([run; 16]) };
        let registry = Registry::default();
        let mut all: Vec<_> = (0..9).map(|run| (key("a", run), registry.enter(&key("a", run)))).collect();
        let (inbox, other) = registry.enter(&key("a", 0));
        assert!(
            other.is_none() && registry.enter(&key("b", 0)).1.is_some(),
            "the same id of another tenant is another run"
        );
        let counts = |registry: &Registry| (registry.len(), registry.len_of(&key("a", 0).tenant));
        assert_eq!(counts(&registry), (10, 9));
        let (first, (_, messages)) = all.remove(0);
        let mut messages = messages.unwrap();
        inbox.send(Message::Superseded { by: None }).unwrap();
        assert!(!registry.leave(&first, &messages), "somebody has something to tell it");
        messages.try_recv().unwrap();
        assert!(registry.leave(&first, &messages) && !registry.has(&first) && registry.has(&key("b", 0)));
        let (second, (old, _)) = &all[0];
        let (_, mut renewed) = registry.renew(second);
        drop(old.send(Message::Superseded { by: None }));
        assert!(renewed.try_recv().is_err(), "what the old inbox is told is not heard");
        registry.enter(second).0.send(Message::Superseded { by: None }).unwrap();
        assert!(renewed.try_recv().is_ok());
        all.iter().for_each(|(key, _)| registry.remove(key));
        assert_eq!(
            (counts(&registry), registry.shards.iter().all(|shard| shard.lock().unwrap().len() <= 1)),
            ((1, 0), true)
        );
    }
}
