//! Who may read a tenant's streams from a browser: the origins of its pages, and the key that its stream tokens are
//! signed with. Kept in the journal's file.

use ::redb::TableDefinition;
use serde::{Deserialize, Serialize};
use stepwell_core::{TenantId, Timestamp};

use super::JournalError;
use super::redb::{RedbJournal, storage, to_json};
use super::writer::Bytes2Bytes;

/// tenant → the origins of its pages.
const ORIGINS: Bytes2Bytes = TableDefinition::new("origins");
/// tenant → the key of its stream tokens.
const STREAM_KEYS: Bytes2Bytes = TableDefinition::new("stream_keys");

/// All of them.
pub(super) const TABLES: &[Bytes2Bytes] = &[ORIGINS, STREAM_KEYS];

/// The origins of a tenant's pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginsRecord {
    /// Whose they are.
    pub tenant: TenantId,
    /// As browsers spell them, such as `https://app.example`.
    pub origins: Vec<String>,
}

/// The key that a tenant's stream tokens are signed with, sealed (see `vault.rs`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamKeyRecord {
    /// Whose it is.
    pub tenant: TenantId,
    /// The sealed key.
    pub sealed: String,
    /// When it was made; tokens of before are not valid.
    pub created_at: Timestamp,
}

impl RedbJournal {
    /// Sets a tenant's origins.
    pub async fn put_origins(&self, record: &OriginsRecord) -> Result<(), JournalError> {
        self.put(ORIGINS, &record.tenant, to_json(record, "origins")?).await
    }

    /// The origins of all tenants.
    pub fn origins(&self) -> Result<Vec<OriginsRecord>, JournalError> {
        self.all(ORIGINS, super::keys::everything())
    }

    /// Sets the key of a tenant's stream tokens.
    pub async fn put_stream_key(&self, record: &StreamKeyRecord) -> Result<(), JournalError> {
        self.put(STREAM_KEYS, &record.tenant, to_json(record, "a stream key")?).await
    }

    /// The keys of all tenants' stream tokens.
    pub fn stream_keys(&self) -> Result<Vec<StreamKeyRecord>, JournalError> {
        self.all(STREAM_KEYS, super::keys::everything())
    }

    async fn put(&self, table: Bytes2Bytes, tenant: &TenantId, value: Vec<u8>) -> Result<(), JournalError> {
        let key = tenant.as_str().as_bytes().to_vec();
        self.write(move |transaction| {
            let mut table = transaction.open_table(table).map_err(storage("open a table"))?;
            table.insert(key.as_slice(), value.as_slice()).map_err(storage("write an entry"))?;
            Ok(())
        })
        .await
    }
}
