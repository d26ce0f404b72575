//! How keys are laid out. Every key of a tenant's data starts with the tenant, so no lookup can do without one.
//!
//! A tenant id cannot contain the separator (see `TenantId`), so no tenant's keys are a prefix of another's.
//! Numbers are big-endian: byte order is numeric order.

use std::ops::Range;

use sha2::{Digest as _, Sha256};
use stepwell_core::{Digest, RunId, RunKey, Seq, TenantId, Timestamp, WorkflowName};

/// Ends a text inside a key. Smaller than every byte an id may contain.
const END: u8 = 0;

fn texts(parts: &[&str]) -> Vec<u8> {
    let mut key = Vec::with_capacity(64);
    for part in parts {
        key.extend_from_slice(part.as_bytes());
        key.push(END);
    }
    key
}

/// All that belongs to a tenant in a table.
pub(super) fn of_tenant(tenant: &TenantId) -> Range<Vec<u8>> {
    let start = texts(&[tenant.as_str()]);
    let mut end = start.clone();
    if let Some(last) = end.last_mut() {
        *last = END + 1;
    }
    start..end
}

/// A run.
pub(super) fn run(key: &RunKey) -> Vec<u8> {
    let mut bytes = texts(&[key.tenant.as_str()]);
    bytes.extend_from_slice(key.run.as_bytes());
    bytes
}

/// The record of a run whose last event has this number.
pub(super) fn record(key: &RunKey, last_seq: Seq) -> Vec<u8> {
    let mut bytes = run(key);
    bytes.extend_from_slice(&last_seq.to_be_bytes());
    bytes
}

/// The run that a key of [`run`] names.
pub(super) fn parse_run(bytes: &[u8]) -> Option<RunKey> {
    let (tenant, rest) = bytes.split_at_checked(bytes.iter().position(|byte| *byte == END)?)?;
    let tenant = std::str::from_utf8(tenant).ok()?.parse().ok()?;
    let run: [u8; 16] = rest.get(1..)?.try_into().ok()?;
    Some(RunKey { tenant, run: RunId::from_bytes(run) })
}

/// That a run has ended at a time.
pub(super) fn ended(at: Timestamp, key: &RunKey) -> Vec<u8> {
    let mut bytes = ended_before(&key.tenant, at);
    bytes.extend_from_slice(key.run.as_bytes());
    bytes
}

/// Where the runs of a tenant begin that have ended at a time or later.
pub(super) fn ended_before(tenant: &TenantId, cutoff: Timestamp) -> Vec<u8> {
    let mut bytes = texts(&[tenant.as_str()]);
    bytes.extend_from_slice(&cutoff.as_millis().to_be_bytes());
    bytes
}

/// The run that a key of [`ended`] names.
pub(super) fn parse_ended(bytes: &[u8]) -> Option<RunKey> {
    let tenant = tenant_of(bytes)?;
    let (_at, run) = bytes.get(tenant.as_str().len() + 1..)?.split_first_chunk::<8>()?;
    Some(RunKey { tenant, run: RunId::from_bytes(run.try_into().ok()?) })
}

/// The tenant that a key begins with.
pub(super) fn tenant_of(bytes: &[u8]) -> Option<TenantId> {
    let end = bytes.iter().position(|byte| *byte == END)?;
    std::str::from_utf8(bytes.get(..end)?).ok()?.parse().ok()
}

/// Stored content.
pub(super) fn content(tenant: &TenantId, sha256: &Digest) -> Vec<u8> {
    let mut bytes = texts(&[tenant.as_str()]);
    bytes.extend_from_slice(sha256.as_bytes());
    bytes
}

/// That a run refers to stored content, ordered by content.
pub(super) fn content_run(key: &RunKey, sha256: &Digest) -> Vec<u8> {
    let mut bytes = content(&key.tenant, sha256);
    bytes.extend_from_slice(key.run.as_bytes());
    bytes
}

/// The same, ordered by run.
pub(super) fn run_content(key: &RunKey, sha256: &Digest) -> Vec<u8> {
    let mut bytes = run(key);
    bytes.extend_from_slice(sha256.as_bytes());
    bytes
}

/// An idempotency key. Hashed, so that its length and characters are the client's business.
pub(super) fn idempotency(tenant: &TenantId, workflow: &WorkflowName, key: &str) -> Vec<u8> {
    let mut bytes = texts(&[tenant.as_str(), workflow.as_str()]);
    bytes.extend_from_slice(&Sha256::digest(key.as_bytes()));
    bytes
}

/// Something of a tenant that has a name.
pub(super) fn named(tenant: &TenantId, name: &str) -> Vec<u8> {
    texts(&[tenant.as_str(), name])
}

/// A workflow.
pub(super) fn workflow(tenant: &TenantId, workflow: &WorkflowName) -> Vec<u8> {
    texts(&[tenant.as_str(), workflow.as_str()])
}

/// A version of a workflow.
pub(super) fn version(tenant: &TenantId, workflow: &WorkflowName, version: &Digest) -> Vec<u8> {
    let mut bytes = texts(&[tenant.as_str(), workflow.as_str()]);
    bytes.extend_from_slice(version.as_bytes());
    bytes
}

/// The keys that start with `prefix`, where what follows it is at most 64 bytes of digests and numbers.
pub(super) fn starting_with(prefix: Vec<u8>) -> Range<Vec<u8>> {
    let mut end = prefix.clone();
    end.extend_from_slice(&[u8::MAX; 65]);
    prefix..end
}

/// A numbered entry of something.
pub(super) fn numbered(mut key: Vec<u8>, number: u64) -> Vec<u8> {
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// All keys of a table whose keys are names.
pub(super) fn everything() -> Range<Vec<u8>> {
    Vec::new()..starting_with(vec![u8::MAX]).end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(tenant: &str, run: u8) -> RunKey {
        RunKey { tenant: tenant.parse().unwrap(), run: RunId::from_bytes([run; 16]) }
    }

    #[test]
    fn a_run_key_reads_back() {
        for tenant in ["a", "a-b", "z9"] {
            assert_eq!(parse_run(&run(&key(tenant, 0))), Some(key(tenant, 0)));
            assert_eq!(parse_run(&run(&key(tenant, 255))), Some(key(tenant, 255)));
        }
        assert_eq!(parse_run(b"a"), None);
        assert_eq!(parse_run(b"a\0short"), None);
    }

    #[test]
    fn a_tenants_range_holds_its_keys_and_no_others() {
        let range = of_tenant(&"a".parse().unwrap());
        assert!(range.contains(&run(&key("a", 0))) && range.contains(&record(&key("a", 255), u64::MAX)));
        assert!(!range.contains(&run(&key("a-b", 0))) && !range.contains(&run(&key("ab", 255))));
    }

    #[test]
    fn the_key_of_an_ended_run_reads_back_and_sorts_by_time() {
        let at = Timestamp::from_millis;
        assert_eq!(parse_ended(&ended(at(7), &key("a-b", 9))), Some(key("a-b", 9)));
        assert_eq!((parse_ended(b"a"), parse_ended(b"a\0short")), (None, None));
        let a = "a".parse().unwrap();
        let keys =
            [of_tenant(&a).start, ended(at(1), &key("a", 255)), ended_before(&a, at(2)), ended(at(2), &key("a", 0))];
        assert!(keys.is_sorted());
    }

    #[test]
    fn records_sort_by_run_and_then_by_number() {
        let keys =
            [record(&key("a", 1), 1), record(&key("a", 1), 256), record(&key("a", 2), 1), record(&key("b", 0), 1)];
        assert!(keys.is_sorted());
    }
}
