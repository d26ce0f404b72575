//! Whether a tenant has so much in the journal that its steps are not run any more.
//!
//! Owns: a look at the counts that is a moment old, so that a step that publishes does not read the journal each time.
//! Does not: refuse what is new; the journal does, and exactly ([`JournalError::Full`](crate::journal::JournalError)).
//! Keeps: a tenant goes beyond its limit and the margin by what its steps write in [`LOOK_AGAIN`], and what is then under
//! way.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use stepwell_core::TenantId;
use tokio::time::Instant;

use crate::journal::{JournalError, RedbJournal, error_chain};

/// How long a look is good for. In it a tenant writes some megabytes at most, and the margin is sixteen or more.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What was last seen of each tenant.
#[derive(Debug, Default)]
pub(super) struct Fullness {
    // An entry for each tenant that ever ran a step; tenants are few and never deleted.
    seen: Mutex<HashMap<TenantId, (Instant, bool)>>,
}

impl Fullness {
    /// Whether a tenant is beyond its limit and the margin.
    pub(super) fn is_beyond(&self, journal: &RedbJournal, tenant: &TenantId) -> bool {
        let now = Instant::now();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, is_beyond)) = seen.get(tenant)
            && now.duration_since(*at) < LOOK_AGAIN
        {
            return *is_beyond;
        }
        let is_beyond = look(journal, tenant).unwrap_or_else(|error| {
            tracing::error!(%tenant, error = error_chain(&error), "what a tenant has in the journal could not be read");
            false
        });
        seen.insert(tenant.clone(), (now, is_beyond));
        is_beyond
    }
}

/// The same, as it is now.
pub(super) fn look(journal: &RedbJournal, tenant: &TenantId) -> Result<bool, JournalError> {
    Ok(journal.usage(tenant)?.journal_bytes >= journal.limits(tenant).journal_bytes_hard())
}
