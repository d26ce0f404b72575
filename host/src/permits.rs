//! Permits that no tenant can use up: first the tenant's own, then one of all.
//!
//! Keeps: a tenant waits for its own permits before it can stand in anybody's way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use stepwell_core::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A number of permits, of which each tenant gets a part at most.
#[derive(Debug)]
pub(crate) struct Permits {
    all: Arc<Semaphore>,
    per_tenant: usize,
    // An entry for each tenant that ever asked; tenants are few and never deleted.
    tenants: Mutex<HashMap<TenantId, Arc<Semaphore>>>,
}

/// Leave to do one thing; given back on drop.
#[derive(Debug)]
pub(crate) struct Permit {
    _tenant: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Permits {
    pub(crate) fn new(all: usize, per_tenant: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(all.max(1))),
            per_tenant: per_tenant.clamp(1, all.max(1)),
            tenants: Mutex::default(),
        }
    }

    /// Waits for a permit.
    pub(crate) async fn acquire(&self, tenant: &TenantId) -> Permit {
        let tenant = self.tenant(tenant);
        match (tenant.acquire_owned().await, Arc::clone(&self.all).acquire_owned().await) {
            (Ok(tenant), Ok(all)) => Permit { _tenant: tenant, _all: all },
            // Never: these semaphores are not closed.
            _ => std::future::pending().await,
        }
    }

    /// A permit, if there is one at once.
    pub(crate) fn try_acquire(&self, tenant: &TenantId) -> Option<Permit> {
        let tenant = self.tenant(tenant).try_acquire_owned().ok()?;
        Some(Permit { _tenant: tenant, _all: self.all.clone().try_acquire_owned().ok()? })
    }

    /// A permit, if there is one at once and the tenant has fewer than are left. So there is always one for whoever has
    /// none, however many tenants take all they can and keep it.
    pub(crate) fn try_acquire_fairly(&self, tenant: &TenantId) -> Option<Permit> {
        let held = self.per_tenant - self.tenant(tenant).available_permits().min(self.per_tenant);
        if held < self.free() { self.try_acquire(tenant) } else { None }
    }

    /// Whether there is a permit at once.
    pub(crate) fn has_room(&self, tenant: &TenantId) -> bool {
        self.all.available_permits() > 0 && self.tenant(tenant).available_permits() > 0
    }

    /// Permits that nobody holds.
    pub(crate) fn free(&self) -> usize {
        self.all.available_permits()
    }

    fn tenant(&self, tenant: &TenantId) -> Arc<Semaphore> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(tenants.entry(tenant.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.per_tenant))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_tenant_cannot_use_up_what_all_share() {
        let permits = Permits::new(4, 3);
        let (greedy, other): (TenantId, TenantId) = ("greedy".parse().unwrap(), "other".parse().unwrap());
        let held: Vec<Permit> = std::iter::from_fn(|| permits.try_acquire(&greedy)).collect();
        assert_eq!((held.len(), permits.free()), (3, 1));
        let waiting = permits.acquire(&greedy);
        tokio::pin!(waiting);
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        assert!(permits.try_acquire(&other).is_some(), "whoever waits for his own holds up nobody");
        drop(held);
        waiting.await;
        assert_eq!(permits.free(), 4);
    }

    #[test]
    fn there_is_always_one_for_whoever_has_none() {
        let permits = Permits::new(100, 25);
        let mut held = Vec::new();
        for number in 0..20 {
            let tenant: TenantId = format!("t-{number}").parse().unwrap();
            let of_tenant: Vec<Permit> = std::iter::from_fn(|| permits.try_acquire_fairly(&tenant)).collect();
            assert!(!of_tenant.is_empty() || permits.free() == 0, "{number}");
            assert!(number > 4 || !of_tenant.is_empty());
            held.extend(of_tenant);
        }
        assert!(held.len() > 95);
    }
}
