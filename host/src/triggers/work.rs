//! Doing what a list says is due: each entry by one task at a time, few at once, and no tenant in the way of another.
//!
//! Keeps: an entry that is under way is not taken again; one that a crash cuts off is still on the list.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use stepwell_core::{TenantId, Timestamp};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::journal::{JournalError, error_chain};

/// How often the list is looked at. Looking at an empty one takes microseconds.
const LOOK: Duration = Duration::from_millis(100);
/// Entries that one look goes through. More than any tenant's share, so that one with much that is due hides nobody.
const SCANNED_MAX: usize = 10_000;

/// How much is done at once.
pub(super) struct Width {
    pub(super) all: usize,
    pub(super) per_tenant: usize,
}

/// Does what is due until the host stops. Whoever does it sees to it that the list changes.
pub(super) async fn drive<K, F>(
    width: Width,
    stopping: &CancellationToken,
    tenant_of: impl Fn(&K) -> TenantId,
    due: impl Fn(Timestamp, usize) -> Result<Vec<(Timestamp, K)>, JournalError>,
    work: impl Fn(Timestamp, K) -> F,
) where
    K: Clone + Eq + Hash + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let mut under_way: HashSet<K> = HashSet::new();
    let mut of_tenant: HashMap<TenantId, usize> = HashMap::new();
    let mut tasks: JoinSet<K> = JoinSet::new();
    loop {
        let now = clock::now();
        let found = due(now, SCANNED_MAX).unwrap_or_else(|error| {
            tracing::error!(error = error_chain(&error), "what is due could not be read");
            Vec::new()
        });
        for (at, key) in found {
            if tasks.len() >= width.all {
                break;
            }
            let count = of_tenant.entry(tenant_of(&key)).or_default();
            if *count >= width.per_tenant || !under_way.insert(key.clone()) {
                continue;
            }
            *count += 1;
            let work = AssertUnwindSafe(work(at, key.clone())).catch_unwind();
            tasks.spawn(async move {
                if work.await.is_err() {
                    tracing::error!("a task of the triggers has panicked"); // a defect of ours; it is still on the list
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                key
            });
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stopping.cancelled() => return,
        }
        while let Some(done) = tasks.try_join_next() {
            let Ok(key) = done else { continue };
            under_way.remove(&key);
            let tenant = tenant_of(&key);
            let left = of_tenant.get(&tenant).map_or(0, |count| count.saturating_sub(1));
            if left == 0 {
                of_tenant.remove(&tenant);
            } else {
                of_tenant.insert(tenant, left);
            }
        }
    }
}
