//! The runs that wait for a time, and when to wake them.
//!
//! Owns: the list of them, each tenant's in the order of time.
//! Does not: know what a run waits for. That it is in the list is one write with the event that made it wait.

use ::redb::{TableDefinition, WriteTransaction};
use stepwell_core::{RunId, RunKey, TenantId, Timestamp};

use super::due::{DueList, Lane};
use super::redb::RedbJournal;
use super::{JournalError, WakeChange};

/// A tenant has one lane.
pub(super) const WAKING: DueList =
    DueList { entries: TableDefinition::new("waking"), turns: TableDefinition::new("waking_turns") };

fn lane(tenant: &TenantId) -> Lane {
    Lane { tenant: tenant.clone(), name: String::new() }
}

pub(super) fn write(transaction: &WriteTransaction, key: &RunKey, change: WakeChange) -> Result<(), JournalError> {
    WAKING.change(transaction, &lane(&key.tenant), key.run.as_bytes(), change.before, change.after)
}

impl RedbJournal {
    /// Tenants with runs that are to be woken up to `until`, whoever has the earliest first.
    pub fn tenants_to_wake(&self, until: Timestamp) -> Result<Vec<TenantId>, JournalError> {
        Ok(WAKING.lanes(self, until)?.into_iter().map(|lane| lane.tenant).collect())
    }

    /// A tenant's runs that are to be woken up to `until`, at most `limit`, after `after` in the order of time and ids.
    pub fn wakes(
        &self,
        tenant: &TenantId,
        after: Option<(Timestamp, RunId)>,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<(Timestamp, RunId)>, JournalError> {
        let after = after.map(|(at, run)| (at, run.as_bytes().to_vec()));
        let after = after.as_ref().map(|(at, run)| (*at, run.as_slice()));
        let found = WAKING.of_lane(self, &lane(tenant), after, until, limit)?;
        Ok(found.into_iter().filter_map(|(at, run)| Some((at, RunId::from_bytes(run.try_into().ok()?)))).collect())
    }
}

#[cfg(test)]
mod tests {
    use stepwell_core::Event;

    use super::*;
    use crate::journal::{Batch, Journal};

    #[tokio::test]
    async fn a_run_is_in_the_list_at_the_time_that_was_written_last() {
        let dir = tempfile::tempdir().unwrap();
        let journal = RedbJournal::open(&dir.path().join("journal.redb")).unwrap();
        let key = |tenant: &str, run| RunKey { tenant: tenant.parse().unwrap(), run: RunId::from_bytes([run; 16]) };
        let at = Timestamp::from_millis;
        for (key, from, before, after) in [
            (key("a", 1), 0, None, Some(30)),
            (key("a", 2), 0, None, Some(20)),
            (key("a-b", 3), 0, None, Some(25)),
            (key("a", 1), 1, Some(30), Some(10)),
            (key("a-b", 3), 1, Some(25), None),
        ] {
            let wake = WakeChange { before: before.map(at), after: after.map(at) };
            let events = vec![Event::RunResumed {}];
            let batch = Batch { at: at(1), events, wake: Some(wake), ..Batch::default() };
            journal.append(&key, from, batch).await.unwrap();
        }
        let a = key("a", 0).tenant;
        assert_eq!(journal.tenants_to_wake(at(99)).unwrap(), std::slice::from_ref(&a));
        assert_eq!(journal.tenants_to_wake(at(9)).unwrap(), []);
        let [first, second] = [(at(10), key("a", 1).run), (at(20), key("a", 2).run)];
        assert_eq!(journal.wakes(&a, None, at(99), 9).unwrap(), [first, second]);
        assert_eq!(journal.wakes(&a, None, at(10), 9).unwrap(), [first]);
        assert_eq!(journal.wakes(&a, None, at(99), 1).unwrap(), [first]);
        assert_eq!(journal.wakes(&a, Some(first), at(99), 9).unwrap(), [second]);
        assert_eq!(journal.wakes(&a, Some(second), at(99), 9).unwrap(), []);
    }
}
