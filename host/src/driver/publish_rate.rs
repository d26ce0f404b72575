//! How fast a tenant may publish.
//!
//! Owns: for each tenant, the moment up to which its updates are paid for.
//! Does not: refuse. A publish that comes too early waits for its turn, and the step with it. A refusal would depend on
//! the time, and an attempt that is taken up again could not go through it a second time: it is on no record, and the
//! step's next calls would not be those that are.
//! Keeps: over any time a tenant orders at most its rate and one burst; and nobody waits for another tenant's updates.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stepwell_core::TenantId;
use tokio::time::Instant;

/// Updates a second of one tenant unless the operator says otherwise. A hundred runs that stream text at fifty pieces a
/// second; a tenth of what one disk takes.
pub const UPDATES_PER_SECOND_DEFAULT: u32 = 5_000;
/// Seconds' worth of updates that a tenant may order at once after a pause: as many as one attempt may publish.
const BURST_SECONDS: u32 = 2;
/// A wait that is shorter than this is put off until it has grown: timers have milliseconds.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// The rates of all tenants.
#[derive(Debug)]
pub(super) struct PublishRates {
    began: Instant,
    per_update: Duration,
    burst: Duration,
    // An entry for each tenant that ever published; tenants are few and never deleted.
    tenants: Mutex<HashMap<TenantId, Arc<Mutex<Paid>>>>,
}

/// The rate of one tenant.
#[derive(Debug, Clone)]
pub(super) struct PublishRate {
    began: Instant,
    per_update: Duration,
    burst: Duration,
    paid: Arc<Mutex<Paid>>,
}

/// The moment up to which updates are paid for, since the host began.
#[derive(Debug, Default)]
struct Paid(Duration);

impl Paid {
    /// Takes an update, and says how long it is before its turn.
    fn take(&mut self, now: Duration, per_update: Duration, burst: Duration) -> Duration {
        self.0 = self.0.max(now) + per_update;
        self.0.saturating_sub(now + burst)
    }
}

impl PublishRates {
    pub(super) fn new(per_second: u32) -> Self {
        let per_update = Duration::from_secs(1) / per_second.max(1);
        let burst = Duration::from_secs(BURST_SECONDS.into());
        Self { began: Instant::now(), per_update, burst, tenants: Mutex::default() }
    }

    pub(super) fn of(&self, tenant: &TenantId) -> PublishRate {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let paid = Arc::clone(tenants.entry(tenant.clone()).or_default());
        PublishRate { began: self.began, per_update: self.per_update, burst: self.burst, paid }
    }
}

impl PublishRate {
    /// Waits until the tenant may publish one more update.
    pub(super) async fn turn(&self) {
        let wait = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            paid.take(self.began.elapsed(), self.per_update, self.burst)
        };
        if wait >= WAIT_MIN {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let mut paid = Paid::default();
        let mut take = |at| paid.take(at, MS, 10 * MS);
        let waits: Vec<Duration> = (0..13).map(|_| take(Duration::ZERO)).collect();
        assert_eq!(waits, [vec![Duration::ZERO; 10], vec![MS, 2 * MS, 3 * MS]].concat());
        // Whoever came too early is paid for when its turn comes, and a pause earns a burst and no more.
        assert_eq!(take(4 * MS), Duration::ZERO);
        let later = Duration::from_secs(60);
        assert_eq!((0..11).filter(|_| take(later) == Duration::ZERO).count(), 10);
    }

    #[tokio::test]
    async fn a_tenant_that_floods_slows_down_itself_alone() {
        let rates = PublishRates::new(1_000);
        let (flood, other) = (rates.of(&"a".parse().unwrap()), rates.of(&"b".parse().unwrap()));
        let began = Instant::now();
        for _ in 0..2_100 {
            flood.turn().await;
        }
        assert!(began.elapsed() >= 90 * MS, "{:?}", began.elapsed());
        let paid = other.paid.lock().unwrap().take(other.began.elapsed(), other.per_update, other.burst);
        assert_eq!(paid, Duration::ZERO);
    }
}
