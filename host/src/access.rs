//! Who is asking: API keys of tenants, and the operator's key.
//!
//! Keys are stored as hashes, and a hash is compared in constant time. A key looks like `sw_<id>_<secret>`: the id
//! finds the record without a search, the secret has 256 random bits.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use sha2::{Digest as _, Sha256};
use stepwell_core::{Digest, TenantId};
use subtle::ConstantTimeEq;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::journal::catalog::ApiKeyRecord;
use crate::journal::{JournalError, RedbJournal};
use crate::whole::whole;

/// The name of the file in the data directory that holds the operator's key.
pub const OPERATOR_KEY_FILE: &str = "operator.key";
/// The tenant of `serve --dev`, and its API key.
pub const DEV: &str = "dev";

/// Whoever holds a valid key.
#[derive(Debug, Clone)]
pub enum Caller {
    /// A tenant, who reaches its own things.
    Tenant {
        /// Which.
        tenant: TenantId,
        /// Cancelled when the key is revoked: what it has opened is closed then.
        revoked: CancellationToken,
    },
    /// The operator, who reaches `/v1/admin` and no tenant's things.
    Operator,
}

/// All keys that are valid now.
#[derive(Debug)]
pub struct Access {
    /// By key id.
    tenants: RwLock<HashMap<String, Key>>,
    operator: Digest,
    // Held over a write, so that memory and disk see changes in the same order.
    writing: Mutex<()>,
}

/// A valid key of a tenant.
#[derive(Debug)]
struct Key {
    sha256: Digest,
    tenant: TenantId,
    revoked: CancellationToken,
}

impl Key {
    fn new(sha256: Digest, tenant: TenantId) -> Self {
        Self { sha256, tenant, revoked: CancellationToken::new() }
    }
}

/// A new API key. The only time that the key itself can be seen.
#[derive(Debug)]
pub struct NewApiKey {
    /// The key.
    pub key: String,
    /// What is stored of it.
    pub record: ApiKeyRecord,
}

impl Access {
    /// Reads the keys that are valid.
    pub fn open(journal: &RedbJournal, operator_key: &str) -> Result<Self, JournalError> {
        let valid = journal.api_keys()?.into_iter().filter(|record| record.revoked_at.is_none());
        let tenants = valid.map(|record| (record.id, Key::new(record.sha256, record.tenant))).collect();
        Ok(Self { tenants: RwLock::new(tenants), operator: hash(operator_key), writing: Mutex::new(()) })
    }

    /// Accepts the key `dev` for the tenant `dev`, until the process ends. For loopback only.
    pub fn allow_dev(&self, tenant: TenantId) {
        self.write().insert(DEV.to_owned(), Key::new(hash(DEV), tenant));
    }

    /// Whether the key `dev` is accepted.
    #[must_use]
    pub fn is_dev(&self) -> bool {
        self.tenants.read().unwrap_or_else(PoisonError::into_inner).contains_key(DEV)
    }

    /// Whose key it is.
    #[must_use]
    pub fn caller(&self, key: &str) -> Option<Caller> {
        let presented = hash(key);
        let same = |stored: &Digest| bool::from(stored.as_bytes().ct_eq(presented.as_bytes()));
        if same(&self.operator) {
            return Some(Caller::Operator);
        }
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let Key { sha256, tenant, revoked } = tenants.get(key_id(key)?)?;
        same(sha256).then(|| Caller::Tenant { tenant: tenant.clone(), revoked: revoked.clone() })
    }

    /// Makes a key for a tenant and accepts it. `None` when there is no such tenant. Is done whole, even when it is not
    /// waited for to the end.
    pub async fn create_key(
        self: &Arc<Self>,
        journal: &Arc<RedbJournal>,
        tenant: TenantId,
    ) -> Result<Option<NewApiKey>, JournalError> {
        let (access, journal) = (Arc::clone(self), Arc::clone(journal));
        whole(async move {
            let _writing = access.writing.lock().await;
            access.create(&journal, tenant).await
        })
        .await
    }

    async fn create(&self, journal: &RedbJournal, tenant: TenantId) -> Result<Option<NewApiKey>, JournalError> {
        let id = hex::encode(clock::random_bytes::<6>());
        let key = format!("sw_{id}_{}", hex::encode(clock::random_bytes::<32>()));
        let record = ApiKeyRecord { id, tenant, sha256: hash(&key), created_at: clock::now(), revoked_at: None };
        if !journal.create_api_key(record.clone()).await? {
            return Ok(None);
        }
        self.write().insert(record.id.clone(), Key::new(record.sha256, record.tenant.clone()));
        Ok(Some(NewApiKey { key, record }))
    }

    /// Stops accepting a key, and ends what it has opened. `None` when there is no such key. Is done whole, even when it is
    /// not waited for to the end.
    pub async fn revoke_key(
        self: &Arc<Self>,
        journal: &Arc<RedbJournal>,
        id: &str,
    ) -> Result<Option<ApiKeyRecord>, JournalError> {
        let (access, journal, id) = (Arc::clone(self), Arc::clone(journal), id.to_owned());
        whole(async move {
            let _writing = access.writing.lock().await;
            access.revoke(&journal, id).await
        })
        .await
    }

    async fn revoke(&self, journal: &RedbJournal, id: String) -> Result<Option<ApiKeyRecord>, JournalError> {
        let record = journal.revoke_api_key(id.clone(), clock::now()).await?;
        let key = self.write().remove(&id).filter(|_| record.is_some());
        if let Some(key) = key {
            key.revoked.cancel();
        }
        Ok(record)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<String, Key>> {
        self.tenants.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The operator's key of a data directory; a new one is written, readable by its owner alone, when there is none.
pub fn operator_key(data_dir: &Path) -> io::Result<String> {
    let path = data_dir.join(OPERATOR_KEY_FILE);
    match fs::read_to_string(&path) {
        Ok(key) if key.trim().len() >= 32 => return Ok(key.trim().to_owned()),
        Ok(_) => return Err(io::Error::other(format!("{} holds no key of at least 32 characters", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let key = format!("sw_operator_{}", hex::encode(clock::random_bytes::<32>()));
    // Under another name first: a crash must not leave a file without a key.
    let mut file = tempfile::NamedTempFile::new_in(data_dir)?; // readable by its owner alone
    writeln!(file, "{key}")?;
    file.as_file().sync_all()?;
    file.persist_noclobber(&path)?;
    Ok(key)
}

fn hash(key: &str) -> Digest {
    Digest::from_bytes(Sha256::digest(key.as_bytes()).into())
}

fn key_id(key: &str) -> Option<&str> {
    if key == DEV {
        return Some(DEV);
    }
    let (id, _secret) = key.strip_prefix("sw_")?.split_once('_')?;
    // `dev` names the development key; nothing of the form `sw_dev_…` may find it.
    (id != DEV).then_some(id)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;
    use crate::journal::catalog::TenantRecord;

    /// *The story:* a client hung up while a key's end was written. What it had asked for was dropped between the disk and
    /// the memory, and the key was accepted until the next start.
    #[tokio::test]
    async fn a_key_that_is_revoked_is_refused_even_if_nobody_waits_for_that() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Arc::new(RedbJournal::open(&dir.path().join("journal.redb")).unwrap());
        let id: TenantId = "a".parse().unwrap();
        let record = TenantRecord {
            id: id.clone(),
            created_at: clock::now(),
            retention_days: 30,
            artifact_retention_days: None,
            limits: Default::default(),
        };
        journal.create_tenant(record).await.unwrap();
        let access = Arc::new(Access::open(&journal, "operator").unwrap());
        let NewApiKey { key, record } = access.create_key(&journal, id).await.unwrap().unwrap();
        let Some(Caller::Tenant { revoked, .. }) = access.caller(&key) else { panic!("it is not accepted") };
        let asked = access.revoke_key(&journal, &record.id).now_or_never();
        assert!(asked.is_none(), "it was over before anybody could hang up");
        tokio::time::timeout(Duration::from_secs(30), revoked.cancelled()).await.unwrap();
        assert!(access.caller(&key).is_none());
    }
}
