//! Who is asking: API keys of tenants, and the operator's key.
//!
//! Keys are stored as hashes, and a hash is compared in constant time. A key looks like `sw_<id>_<secret>`: the id
//! finds the record without a search, the secret has 256 random bits.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use sha2::{Digest as _, Sha256};
use stepwell_core::{Digest, TenantId};
use subtle::ConstantTimeEq;

use crate::clock;
use crate::journal::catalog::ApiKeyRecord;
use crate::journal::{JournalError, RedbJournal};

/// The name of the file in the data directory that holds the operator's key.
pub const OPERATOR_KEY_FILE: &str = "operator.key";
/// The tenant of `serve --dev`, and its API key.
pub const DEV: &str = "dev";

/// Whoever holds a valid key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A tenant, who reaches its own things.
    Tenant(TenantId),
    /// The operator, who reaches `/v1/admin` and no tenant's things.
    Operator,
}

/// All keys that are valid now.
#[derive(Debug)]
pub struct Access {
    /// By key id.
    tenants: RwLock<HashMap<String, (Digest, TenantId)>>,
    operator: Digest,
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
        let tenants = valid.map(|record| (record.id, (record.sha256, record.tenant))).collect();
        Ok(Self { tenants: RwLock::new(tenants), operator: hash(operator_key) })
    }

    /// Accepts the key `dev` for the tenant `dev`, until the process ends. For loopback only.
    pub fn allow_dev(&self, tenant: TenantId) {
        self.write().insert(DEV.to_owned(), (hash(DEV), tenant));
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
        let (stored, tenant) = tenants.get(key_id(key)?)?;
        same(stored).then(|| Caller::Tenant(tenant.clone()))
    }

    /// Makes a key for a tenant and accepts it. `None` when there is no such tenant.
    pub async fn create_key(&self, journal: &RedbJournal, tenant: TenantId) -> Result<Option<NewApiKey>, JournalError> {
        let id = hex::encode(clock::random_bytes::<6>());
        let key = format!("sw_{id}_{}", hex::encode(clock::random_bytes::<32>()));
        let record = ApiKeyRecord { id, tenant, sha256: hash(&key), created_at: clock::now(), revoked_at: None };
        if !journal.create_api_key(record.clone()).await? {
            return Ok(None);
        }
        self.write().insert(record.id.clone(), (record.sha256, record.tenant.clone()));
        Ok(Some(NewApiKey { key, record }))
    }

    /// Stops accepting a key. `None` when there is no such key.
    pub async fn revoke_key(&self, journal: &RedbJournal, id: &str) -> Result<Option<ApiKeyRecord>, JournalError> {
        let record = journal.revoke_api_key(id.to_owned(), clock::now()).await?;
        if record.is_some() {
            self.write().remove(id);
        }
        Ok(record)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<String, (Digest, TenantId)>> {
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
