//! Lists of what is due, of many tenants, that show who waits without going through what waits.
//!
//! Owns: the layout of such a list: (tenant, lane, time, what), and its turns, (time, tenant, lane) of the first entry of each
//! lane. A lane is what of one tenant must not stand in each other's way, a webhook for example.
//! Does not: know what the entries mean.
//! Keeps: a lane with entries has one turn, at the time of the first of them. So whoever looks for what is due reads as many
//! turns as lanes wait, however much waits in each of them.

use ::redb::{ReadableTable, WriteTransaction};
use stepwell_core::{TenantId, Timestamp};

use super::redb::{RedbJournal, storage};
use super::writer::{Bytes2Bytes, Table};
use super::{JournalError, keys};

/// A list and its turns.
pub(super) struct DueList {
    /// (tenant, lane, time, what) → nothing.
    pub(super) entries: Bytes2Bytes,
    /// (time, tenant, lane) → nothing.
    pub(super) turns: Bytes2Bytes,
}

/// What has turns of its own in a list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane {
    /// The tenant.
    pub tenant: TenantId,
    /// Names it among the tenant's.
    pub name: String,
}

impl Lane {
    fn key(&self) -> Vec<u8> {
        keys::named(&self.tenant, &self.name)
    }
}

fn turn_key(at: Timestamp, lane: &[u8]) -> Vec<u8> {
    [at.as_millis().to_be_bytes().as_slice(), lane].concat()
}

fn entry_key(lane: &[u8], at: Timestamp, what: &[u8]) -> Vec<u8> {
    [lane, at.as_millis().to_be_bytes().as_slice(), what].concat()
}

/// The time of an entry, and what it is.
fn parse_entry<'a>(lane: &[u8], entry: &'a [u8]) -> Option<(Timestamp, &'a [u8])> {
    let (at, what) = entry.get(lane.len()..)?.split_first_chunk::<8>()?;
    Some((Timestamp::from_millis(u64::from_be_bytes(*at)), what))
}

fn parse_turn(turn: &[u8]) -> Option<Lane> {
    let (_, lane) = turn.split_first_chunk::<8>()?;
    let mut texts = lane.split(|byte| *byte == 0).map(|text| std::str::from_utf8(text).ok());
    Some(Lane { tenant: texts.next()??.parse().ok()?, name: texts.next()??.to_owned() })
}

impl DueList {
    /// Takes an entry out, puts one in, or moves it.
    pub(super) fn change(
        &self,
        transaction: &WriteTransaction,
        lane: &Lane,
        what: &[u8],
        before: Option<Timestamp>,
        after: Option<Timestamp>,
    ) -> Result<(), JournalError> {
        if before == after {
            return Ok(());
        }
        let failed = || storage("write what is due");
        let lane = lane.key();
        let mut entries = transaction.open_table(self.entries).map_err(storage("open what is due"))?;
        let first_before = first(&entries, &lane)?;
        if let Some(before) = before {
            entries.remove(entry_key(&lane, before, what).as_slice()).map_err(failed())?;
        }
        if let Some(after) = after {
            entries.insert(entry_key(&lane, after, what).as_slice(), [].as_slice()).map_err(failed())?;
        }
        let first_after = first(&entries, &lane)?;
        if first_before == first_after {
            return Ok(());
        }
        let mut turns = transaction.open_table(self.turns).map_err(storage("open what is due"))?;
        if let Some(at) = first_before {
            turns.remove(turn_key(at, &lane).as_slice()).map_err(failed())?;
        }
        if let Some(at) = first_after {
            turns.insert(turn_key(at, &lane).as_slice(), [].as_slice()).map_err(failed())?;
        }
        Ok(())
    }

    /// Takes an entry out. `false` when it is not there.
    pub(super) fn take(
        &self,
        transaction: &WriteTransaction,
        lane: &Lane,
        what: &[u8],
        at: Timestamp,
    ) -> Result<bool, JournalError> {
        let entry = entry_key(&lane.key(), at, what);
        let is_there = {
            let entries = transaction.open_table(self.entries).map_err(storage("open what is due"))?;
            entries.get(entry.as_slice()).map_err(storage("look for what is due"))?.is_some()
        };
        if !is_there {
            return Ok(false);
        }
        self.change(transaction, lane, what, Some(at), None)?;
        Ok(true)
    }

    /// The lanes that have something due at a time, each once.
    pub(super) fn lanes(&self, journal: &RedbJournal, until: Timestamp) -> Result<Vec<Lane>, JournalError> {
        let turns = journal.reader()?.open_table(self.turns).map_err(storage("open what is due"))?;
        let end = turn_key(until.plus_millis(1), &[]);
        let mut lanes = Vec::new();
        for turn in turns.range(..end.as_slice()).map_err(storage("list what is due"))? {
            lanes.extend(parse_turn(turn.map_err(storage("list what is due"))?.0.value()));
        }
        Ok(lanes)
    }

    /// What is due in a lane at a time, oldest first, at most `limit`, behind the entry `after`.
    pub(super) fn of_lane(
        &self,
        journal: &RedbJournal,
        lane: &Lane,
        after: Option<(Timestamp, &[u8])>,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<(Timestamp, Vec<u8>)>, JournalError> {
        let entries = journal.reader()?.open_table(self.entries).map_err(storage("open what is due"))?;
        let lane = lane.key();
        let start =
            after.map_or_else(|| lane.clone(), |(at, what)| [entry_key(&lane, at, what).as_slice(), &[0]].concat());
        let end = entry_key(&lane, until.plus_millis(1), &[]);
        let mut due = Vec::new();
        if start >= end {
            return Ok(due);
        }
        let range = entries.range(start.as_slice()..end.as_slice()).map_err(storage("list what is due"))?;
        for entry in range.take(limit) {
            let (entry, _) = entry.map_err(storage("list what is due"))?;
            due.extend(parse_entry(&lane, entry.value()).map(|(at, what)| (at, what.to_vec())));
        }
        Ok(due)
    }
}

/// The time of a lane's first entry.
fn first(entries: &Table<'_>, lane: &[u8]) -> Result<Option<Timestamp>, JournalError> {
    let range = keys::starting_with(lane.to_vec());
    let mut found = entries.range(range.start.as_slice()..range.end.as_slice()).map_err(storage("list what is due"))?;
    let Some(entry) = found.next() else { return Ok(None) };
    let (entry, _) = entry.map_err(storage("list what is due"))?;
    Ok(parse_entry(lane, entry.value()).map(|(at, _)| at))
}

#[cfg(test)]
mod tests {
    use ::redb::TableDefinition;

    use super::*;

    const LIST: DueList =
        DueList { entries: TableDefinition::new("test_due"), turns: TableDefinition::new("test_turns") };

    fn lane(tenant: &str, name: &str) -> Lane {
        Lane { tenant: tenant.parse().unwrap(), name: name.to_owned() }
    }

    async fn change(journal: &RedbJournal, lane: &Lane, what: &'static [u8], before: Option<u64>, after: Option<u64>) {
        let lane = lane.clone();
        let at = |at: Option<u64>| at.map(Timestamp::from_millis);
        journal.write(move |transaction| LIST.change(transaction, &lane, what, at(before), at(after))).await.unwrap();
    }

    #[tokio::test]
    async fn a_lane_has_one_turn_at_the_time_of_its_first_entry() {
        let dir = tempfile::tempdir().unwrap();
        let journal = RedbJournal::open(&dir.path().join("journal.redb")).unwrap();
        let (a, a_b, b) = (lane("a", ""), lane("a-b", "w"), lane("b", "w"));
        for at in [30, 10, 20] {
            change(&journal, &a, if at == 10 { b"x" } else { b"y" }, None, Some(at)).await;
        }
        change(&journal, &b, b"z", None, Some(15)).await;
        change(&journal, &a_b, b"z", None, Some(40)).await;
        let lanes = |until| LIST.lanes(&journal, Timestamp::from_millis(until)).unwrap();
        let due = |lane, until, limit| {
            let due = LIST.of_lane(&journal, lane, None, Timestamp::from_millis(until), limit).unwrap();
            due.into_iter().map(|(at, what)| (at.as_millis(), what)).collect::<Vec<_>>()
        };
        assert_eq!((lanes(9), lanes(10), lanes(39)), (vec![], vec![a.clone()], vec![a.clone(), b.clone()]));
        assert_eq!(due(&a, 20, 9), [(10, b"x".to_vec()), (20, b"y".to_vec())]);
        assert_eq!(due(&a, 99, 1), [(10, b"x".to_vec())]);

        change(&journal, &a, b"x", Some(10), Some(50)).await;
        assert_eq!(lanes(99), [b.clone(), a.clone(), a_b.clone()], "the turn moves with the first entry");
        change(&journal, &b, b"z", Some(15), None).await;
        assert_eq!(lanes(99), [a.clone(), a_b.clone()], "nothing is left");
        change(&journal, &a, b"y", Some(20), Some(20)).await;
        assert_eq!(due(&a, 99, 9).len(), 3);
    }
}
