//! Reading what takes long: records of attempts, and runs that are taken up.
//!
//! Owns: threads for it, so that neither requests nor guests wait behind a long history.
//! Keeps: a tenant with long histories waits for itself. Whoever reads much does so in turns, each of some tens of
//! milliseconds.

use std::sync::Arc;

use stepwell_core::TenantId;

use crate::permits::{Permit, Permits};

/// Turns at once, and those of one tenant. Decoding is all computing; more would not read faster on a machine of this
/// size, and the tenants that share it take turns.
const READERS_MAX: usize = 8;
const READERS_PER_TENANT: usize = 2;

/// Who may read much at this moment.
#[derive(Debug, Clone)]
pub(super) struct Readers(Arc<Permits>);

impl Default for Readers {
    fn default() -> Self {
        Self(Arc::new(Permits::new(READERS_MAX, READERS_PER_TENANT)))
    }
}

/// The host is on its way down, and reads nothing any more.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the host is stopping")]
pub(super) struct Stopping;

impl Readers {
    /// Does one turn of a tenant's reading, on a thread for work that takes long.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        tenant: &TenantId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stopping> {
        let turn = self.0.acquire(tenant).await;
        let work = move || {
            // Given back when the work is done, also when nobody waits for it any more.
            let _turn = turn;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| match error.try_into_panic() {
            // A defect of ours, which is told where the caller's would be.
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_cancelled) => Stopping,
        })
    }

    /// Leave for one turn, if there is one at once: for work that can as well be done later.
    pub(super) fn try_turn(&self, tenant: &TenantId) -> Option<Permit> {
        self.0.try_acquire(tenant)
    }
}

/// Does what takes long and cannot be done elsewhere: the other tasks of this thread go on on another one.
pub(super) fn in_place<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        // There is no other thread.
        _ => work(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Reading was once done where requests are answered, and one tenant's long histories held up everybody.
    #[tokio::test]
    async fn a_tenant_that_reads_much_waits_for_itself_and_holds_up_nobody() {
        let readers = Readers::default();
        let (greedy, other): (TenantId, TenantId) = ("greedy".parse().unwrap(), "other".parse().unwrap());
        let (mut go_on, mut under_way) = (Vec::new(), Vec::new());
        for _ in 0..READERS_PER_TENANT {
            let (tell, told) = mpsc::channel::<()>();
            let (began, has_begun) = tokio::sync::oneshot::channel();
            let (readers, greedy) = (readers.clone(), greedy.clone());
            let read = async move { readers.read(&greedy, move || (began.send(()), told.recv().is_ok())).await };
            under_way.push(tokio::spawn(read));
            has_begun.await.unwrap();
            go_on.push(tell);
        }
        assert!(readers.try_turn(&greedy).is_none());
        let next = readers.read(&greedy, || 1);
        tokio::pin!(next);
        assert!(futures_util::poll!(next.as_mut()).is_pending());
        assert_eq!(readers.read(&other, || 2).await.unwrap(), 2);
        // Whoever does not wait for the end any more gives the turn back only when the work is done.
        under_way.remove(0).abort();
        assert!(futures_util::poll!(next.as_mut()).is_pending());
        go_on.iter().for_each(|tell| tell.send(()).unwrap());
        let next = tokio::time::timeout(Duration::from_secs(30), next).await.unwrap();
        assert_eq!(next.unwrap(), 1);
    }

    #[tokio::test]
    async fn what_cannot_be_done_elsewhere_is_done_on_any_runtime() {
        assert_eq!(in_place(|| 1), 1);
        let many = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        assert_eq!(many.spawn(async { in_place(|| 2) }).await.unwrap(), 2);
        many.shutdown_background();
    }
}
