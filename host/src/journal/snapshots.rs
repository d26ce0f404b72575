//! States of long runs, kept so that they need not be folded from their first event.
//!
//! Owns: how a state is laid out: in pieces, each written by itself, so that a large one holds up nobody for longer than a
//! small one does.
//! Does not: know what a state is made of.
//! Keeps: what is read is whole, and of one event. A state that is half written is not seen, and those before it are
//! deleted with its last piece; so whatever a crash leaves behind goes with the next, and all of it with the run's end.

use std::ops::Range;

use ::redb::{ReadableTable, WriteTransaction};
use bytes::Bytes;
use stepwell_core::{RunKey, Seq};

use super::redb::{RedbJournal, storage};
use super::usage::{self, Change, entry};
use super::writer::{RUNS, SNAPSHOTS, Table};
use super::{JournalError, RunSummary, keys};

/// Bytes of a piece: as many as a transaction takes of other writes.
const PIECE_BYTES: usize = 4 << 20;
/// What a piece begins with when others follow, and when it is the last.
const MORE: u8 = 0;
const LAST: u8 = 1;

/// All pieces of all states of a run.
fn of_run(key: &RunKey) -> Range<Vec<u8>> {
    keys::starting_with(keys::run(key))
}

/// Where the pieces of one state stand: a run, the number of the event, and the number of the piece.
fn of_seq(key: &RunKey, seq: Seq) -> Vec<u8> {
    keys::numbered(keys::run(key), seq)
}

/// Writes a state, and then deletes the one before it.
pub(super) async fn put(journal: &RedbJournal, key: &RunKey, seq: Seq, bytes: Vec<u8>) -> Result<(), JournalError> {
    let bytes = Bytes::from(bytes);
    let pieces = bytes.len().div_ceil(PIECE_BYTES).max(1);
    for number in 0..pieces {
        let range = number * PIECE_BYTES..bytes.len().min((number + 1) * PIECE_BYTES);
        let is_last = number + 1 == pieces;
        let value = [[if is_last { LAST } else { MORE }].as_slice(), &bytes.slice(range)].concat();
        let piece = keys::numbered(of_seq(key, seq), number as u64);
        let key = key.clone();
        journal.write(move |transaction| put_piece(transaction, &key, seq, (&piece, &value), is_last)).await?;
    }
    Ok(())
}

fn put_piece(
    transaction: &WriteTransaction,
    key: &RunKey,
    seq: Seq,
    (piece, value): (&[u8], &[u8]),
    is_last: bool,
) -> Result<(), JournalError> {
    let failed = || storage("write a snapshot");
    // A run that has ended or was deleted meanwhile has no use for it, and nobody would delete it.
    let runs = transaction.open_table(RUNS).map_err(storage("open the runs"))?;
    let run = runs.get(keys::run(key).as_slice()).map_err(storage("look for a run"))?;
    let summary = run.and_then(|run| serde_json::from_slice::<RunSummary>(run.value()).ok());
    if summary.is_none_or(|summary| summary.status.is_terminal()) {
        return Ok(());
    }
    let mut snapshots = transaction.open_table(SNAPSHOTS).map_err(storage("open the snapshots"))?;
    let before = snapshots.insert(piece, value).map_err(failed())?.map_or(0, |before| entry(piece, before.value()));
    let mut bytes = entry(piece, value) - before;
    if is_last {
        // Of a later one, pieces may be there already.
        bytes -= delete_in(&mut snapshots, &(of_run(key).start..of_seq(key, seq)))?;
    }
    drop(snapshots);
    usage::add(transaction, &key.tenant, Change { bytes, ..Change::default() })
}

/// Deletes the states of a run that has ended: nobody takes it up any more. Returns the bytes that were theirs.
pub(super) fn delete(snapshots: &mut Table<'_>, key: &RunKey) -> Result<i64, JournalError> {
    delete_in(snapshots, &of_run(key))
}

fn delete_in(snapshots: &mut Table<'_>, range: &Range<Vec<u8>>) -> Result<i64, JournalError> {
    let failed = || storage("delete a snapshot");
    let range = range.start.as_slice()..range.end.as_slice();
    // Few runs are so long that they have one, and a look is cheaper than a deletion of nothing.
    if snapshots.range(range.clone()).map_err(failed())?.next().is_none() {
        return Ok(0);
    }
    let mut bytes = 0;
    let goes = |piece: &[u8], value: &[u8]| {
        bytes += entry(piece, value);
        false
    };
    snapshots.retain_in(range, goes).map_err(failed())?;
    Ok(bytes)
}

/// The last whole state of a run, and the event that it stands after.
pub(super) fn get(journal: &RedbJournal, key: &RunKey) -> Result<Option<(Seq, Vec<u8>)>, JournalError> {
    let snapshots = journal.reader()?.open_table(SNAPSHOTS).map_err(storage("open the snapshots"))?;
    let all = of_run(key);
    let pieces = snapshots.range(all.start.as_slice()..all.end.as_slice()).map_err(storage("read a snapshot"))?;
    let (mut whole, mut begun) = (None, None);
    for entry in pieces {
        let (piece, value) = entry.map_err(storage("read a snapshot"))?;
        let Some((seq, number)) = numbers_of(piece.value().get(all.start.len()..).unwrap_or_default()) else {
            continue;
        };
        let Some((kind, bytes)) = value.value().split_first() else { continue };
        let (of, next, mut state): (Seq, u64, Vec<u8>) = begun.take().unwrap_or_default();
        match (of == seq && next == number, number) {
            (true, _) => state.extend_from_slice(bytes),
            (false, 0) => state = bytes.to_vec(),
            // Its first pieces are gone.
            (false, _) => continue,
        }
        match *kind {
            LAST => whole = Some((seq, state)),
            _ => begun = Some((seq, number + 1, state)),
        }
    }
    Ok(whole)
}

/// The event's number and the piece's.
fn numbers_of(rest: &[u8]) -> Option<(Seq, u64)> {
    let (seq, rest) = rest.split_first_chunk::<8>()?;
    Some((Seq::from_be_bytes(*seq), u64::from_be_bytes(rest.try_into().ok()?)))
}

#[cfg(test)]
mod tests {
    use stepwell_core::{Digest, Event, Payload, RunId, RunStatus, Timestamp};

    use super::*;
    use crate::journal::{Batch, Journal, RunSummary};

    async fn journal_with_a_run() -> (tempfile::TempDir, RedbJournal, RunKey) {
        let dir = tempfile::tempdir().unwrap();
        let journal = RedbJournal::open(&dir.path().join("journal.redb")).unwrap();
        let key = RunKey { tenant: "a".parse().unwrap(), run: RunId::from_bytes([1; 16]) };
        let queued = Event::RunQueued {
            workflow: "w".parse().unwrap(),
            version: Digest::from_bytes([0; 32]),
            input: Payload::Inline(stepwell_core::Json::null()),
            parent: None,
            rerun_of: None,
            shadow_of: None,
            place: None,
        };
        let (at, events) = (Timestamp::from_millis(1), vec![queued]);
        let summary = RunSummary::after(None, 1, at, &events);
        assert_eq!(summary.as_ref().unwrap().status, RunStatus::Queued);
        journal.create(&key, Batch { at, events, summary, ..Batch::default() }, None).await.unwrap();
        (dir, journal, key)
    }

    fn state(len: usize) -> Vec<u8> {
        (0..len).map(|n| (n % 251) as u8).collect()
    }

    #[tokio::test]
    async fn a_state_of_many_pieces_comes_back_whole_and_replaces_the_one_before() {
        let (_dir, journal, key) = journal_with_a_run().await;
        for (seq, len) in [(7, 0), (8, 10), (300, 2 * PIECE_BYTES + 5), (301, PIECE_BYTES), (302, 3)] {
            journal.put_snapshot(&key, seq, state(len)).await.unwrap();
            assert!(journal.snapshot(&key).unwrap() == Some((seq, state(len))), "{seq}");
        }
        let count = |journal: &RedbJournal| {
            let snapshots = journal.reader().unwrap().open_table(SNAPSHOTS).unwrap();
            snapshots.range::<&[u8]>(..).unwrap().count()
        };
        assert_eq!(count(&journal), 1, "no piece is left of those before");
        let nobody = RunKey { run: RunId::from_bytes([2; 16]), ..key };
        journal.put_snapshot(&nobody, 1, state(1)).await.unwrap();
        assert_eq!(count(&journal), 1, "a run that is gone leaves nothing");
    }

    #[tokio::test]
    async fn no_piece_outlives_the_end_of_its_run_and_what_is_counted_says_so() {
        let (_dir, journal, key) = journal_with_a_run().await;
        journal.put_snapshot(&key, 1, state(PIECE_BYTES + 1)).await.unwrap();
        assert!(journal.usage(&key.tenant).unwrap().journal_bytes > PIECE_BYTES as u64);
        let (at, events) = (Timestamp::from_millis(2), vec![Event::RunCancelled { reason: None }]);
        let before = journal.summary(&key).unwrap();
        let summary = RunSummary::after(before.as_ref(), 2, at, &events);
        journal.append(&key, 1, Batch { at, events, summary, ..Batch::default() }).await.unwrap();
        assert_eq!(journal.snapshot(&key).unwrap(), None);
        journal.put_snapshot(&key, 1, state(PIECE_BYTES + 1)).await.unwrap();
        assert_eq!(journal.snapshot(&key).unwrap(), None, "it was on its way when the run ended");
        assert!(journal.usage(&key.tenant).unwrap().journal_bytes < 10_000);
        assert_eq!(journal.usage(&key.tenant).unwrap(), journal.recount(&key.tenant).unwrap());
    }

    #[tokio::test]
    async fn a_state_that_is_half_written_is_not_seen() {
        let (_dir, journal, key) = journal_with_a_run().await;
        journal.put_snapshot(&key, 5, state(10)).await.unwrap();
        // A crash comes after the first of two pieces; and one day a piece is missing.
        for (seq, number, kind) in [(6u64, 0u64, MORE), (7, 1, LAST)] {
            let (of, piece) = (key.clone(), keys::numbered(of_seq(&key, seq), number));
            journal.write(move |tx| put_piece(tx, &of, seq, (&piece, &[kind, 1, 2]), false)).await.unwrap();
        }
        assert_eq!(journal.snapshot(&key).unwrap(), Some((5, state(10))));
    }

    /// The pieces of two states were once able to come in turns, and the older one's last piece deleted the first ones of
    /// the newer: neither was left.
    #[tokio::test]
    async fn states_that_are_written_at_the_same_time_leave_the_newer_one() {
        let (_dir, journal, key) = journal_with_a_run().await;
        for (seq, number, kind) in [(5u64, 0u64, MORE), (9, 0, MORE), (5, 1, LAST), (9, 1, LAST)] {
            let (of, piece) = (key.clone(), keys::numbered(of_seq(&key, seq), number));
            let value = [kind, seq as u8, number as u8];
            journal.write(move |tx| put_piece(tx, &of, seq, (&piece, &value), kind == LAST)).await.unwrap();
        }
        assert_eq!(journal.snapshot(&key).unwrap(), Some((9, vec![9, 0, 9, 1])));
    }
}
