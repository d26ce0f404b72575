//! What is not a run: tenants, their API keys, workflows and versions, secrets and providers. Kept in the journal's file and written by its
//! writer, so that one file and one order hold everything.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use ::redb::{ReadableTable, ReadableTableMetadata, TableDefinition, TableHandle};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use stepwell_core::{Digest, GraphSpec, TenantId, Timestamp, WorkflowName};
use utoipa::ToSchema;

use super::limits::{Limits, SetLimits};
use super::redb::{RedbJournal, parse, storage, to_json};
use super::usage::{self, Change, entry};
use super::writer::{Bytes2Bytes, put_content};
use super::{Journal, JournalError, keys};

/// tenant → its record.
const TENANTS: Bytes2Bytes = TableDefinition::new("tenants");
/// key id → its record.
const API_KEYS: Bytes2Bytes = TableDefinition::new("api_keys");
/// (tenant, workflow) → its record.
const WORKFLOWS: Bytes2Bytes = TableDefinition::new("workflows");
/// (tenant, workflow, version) → its record.
pub(super) const VERSIONS: Bytes2Bytes = TableDefinition::new("versions");

/// (tenant, name) → a secret's record.
const SECRETS: Bytes2Bytes = TableDefinition::new("secrets");
/// (tenant, name) → a provider's record.
const PROVIDERS: Bytes2Bytes = TableDefinition::new("providers");

/// All of them.
pub(super) const TABLES: &[Bytes2Bytes] = &[TENANTS, API_KEYS, WORKFLOWS, VERSIONS, SECRETS, PROVIDERS];

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantRecord {
    /// Its id.
    pub id: TenantId,
    /// When it was created.
    pub created_at: Timestamp,
    /// Days after its end that a run, with its events and content, is deleted.
    pub retention_days: u32,
    /// Days after its end that a run's content is deleted: files, and values that are stored apart from their events. With
    /// the run when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_retention_days: Option<u32>,
    /// What its operator has set.
    #[serde(default)]
    pub limits: SetLimits,
}

/// An API key, without the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKeyRecord {
    /// The public part of the key: names it in lists and logs.
    pub id: String,
    /// Who may do things with it.
    pub tenant: TenantId,
    /// SHA-256 of the whole key. The key has 256 random bits, so a plain hash cannot be searched.
    pub sha256: Digest,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it stopped working.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
}

/// A workflow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowRecord {
    /// Its name.
    pub name: WorkflowName,
    /// The version that new runs get.
    pub latest: Digest,
    /// When its first version was deployed.
    pub created_at: Timestamp,
    /// When that was deployed or promoted.
    pub updated_at: Timestamp,
}

/// A version of a workflow: immutable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// SHA-256 of the component.
    pub version: Digest,
    /// When it was first deployed under this name.
    pub created_at: Timestamp,
    /// Bytes of the component.
    pub size_bytes: u64,
    /// What the component imports, which is all that it may ask the host for.
    pub imports: Vec<String>,
    /// What the component described, checked.
    pub graph: GraphSpec,
    /// Whether this host has made the component of a graph document, which is then in it.
    #[serde(default)]
    pub is_of_document: bool,
}

/// A secret, sealed (see `vault.rs`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRecord {
    /// Its name.
    pub name: String,
    /// The hosts that an `http` node may send it to, such as `api.example.com` or `*.example.com`.
    pub hosts: Vec<String>,
    /// When it was first set.
    pub created_at: Timestamp,
    /// When it was last set.
    pub updated_at: Timestamp,
    /// The sealed value.
    pub sealed: String,
}

/// A provider of language models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProviderRecord {
    /// Its name.
    pub name: String,
    /// How it is spoken to.
    pub kind: ProviderKindRecord,
    /// What comes before `/chat/completions` or `/v1/messages`; without it, the address of whoever invented the protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// The name of the secret that holds its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// By model.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prices: BTreeMap<String, PriceRecord>,
}

/// How a provider is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProviderKindRecord {
    /// Chat completions, by OpenAI and many who are compatible.
    Openai,
    /// Messages, by Anthropic.
    Anthropic,
    /// Made up by the host, without a network.
    Mock,
}

/// What a model costs, in US dollars for a million tokens, with at most six places.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PriceRecord {
    /// For what it reads.
    pub input_usd_per_mtok: f64,
    /// For what it writes.
    pub output_usd_per_mtok: f64,
}

impl ProviderRecord {
    /// The providers that every tenant has, unless it sets up one of the same name.
    #[must_use]
    pub fn built_in(name: &str) -> Option<Self> {
        let (kind, secret) = match name {
            "openai" => (ProviderKindRecord::Openai, Some("OPENAI_API_KEY")),
            "anthropic" => (ProviderKindRecord::Anthropic, Some("ANTHROPIC_API_KEY")),
            "mock" => (ProviderKindRecord::Mock, None),
            _ => return None,
        };
        let secret = secret.map(str::to_owned);
        Some(Self { name: name.to_owned(), kind, base_url: None, secret, prices: BTreeMap::new() })
    }
}

impl RedbJournal {
    /// Stores a secret in place of one with the same name, whose `created_at` it keeps.
    pub async fn put_secret(&self, tenant: &TenantId, mut record: SecretRecord) -> Result<SecretRecord, JournalError> {
        let key = keys::named(tenant, &record.name);
        self.write(move |transaction| {
            let mut table = transaction.open_table(SECRETS).map_err(storage("open the secrets"))?;
            let known = table.get(key.as_slice()).map_err(storage("look for a secret"))?;
            let known =
                known.map(|value| parse::<SecretRecord>(value.value(), || "a secret".to_owned())).transpose()?;
            if let Some(known) = known {
                record.created_at = known.created_at;
            }
            let value = to_json(&record, "a secret")?;
            table.insert(key.as_slice(), value.as_slice()).map_err(storage("write a secret"))?;
            Ok(record)
        })
        .await
    }

    /// A secret.
    pub fn secret_record(&self, tenant: &TenantId, name: &str) -> Result<Option<SecretRecord>, JournalError> {
        self.one(SECRETS, &keys::named(tenant, name))
    }

    /// A tenant's secrets, by name.
    pub fn secret_records(&self, tenant: &TenantId) -> Result<Vec<SecretRecord>, JournalError> {
        self.all(SECRETS, keys::of_tenant(tenant))
    }

    /// Whether any tenant has a secret.
    pub fn has_secrets(&self) -> Result<bool, JournalError> {
        let table = self.reader()?.open_table(SECRETS).map_err(storage("open the secrets"))?;
        Ok(!table.is_empty().map_err(storage("look for secrets"))?)
    }

    /// Deletes a secret. `false` when there is none.
    pub async fn delete_secret(&self, tenant: &TenantId, name: &str) -> Result<bool, JournalError> {
        self.delete(SECRETS, keys::named(tenant, name)).await
    }

    /// Stores a provider in place of one with the same name.
    pub async fn put_provider(&self, tenant: &TenantId, record: &ProviderRecord) -> Result<(), JournalError> {
        let key = keys::named(tenant, &record.name);
        let value = to_json(record, "a provider")?;
        self.write(move |transaction| {
            let mut table = transaction.open_table(PROVIDERS).map_err(storage("open the providers"))?;
            table.insert(key.as_slice(), value.as_slice()).map_err(storage("write a provider"))?;
            Ok(())
        })
        .await
    }

    /// A provider that the tenant has set up.
    pub fn provider(&self, tenant: &TenantId, name: &str) -> Result<Option<ProviderRecord>, JournalError> {
        self.one(PROVIDERS, &keys::named(tenant, name))
    }

    /// The providers that a tenant has set up, by name.
    pub fn providers(&self, tenant: &TenantId) -> Result<Vec<ProviderRecord>, JournalError> {
        self.all(PROVIDERS, keys::of_tenant(tenant))
    }

    /// Deletes a provider. `false` when there is none.
    pub async fn delete_provider(&self, tenant: &TenantId, name: &str) -> Result<bool, JournalError> {
        self.delete(PROVIDERS, keys::named(tenant, name)).await
    }

    pub(super) async fn delete(&self, table: Bytes2Bytes, key: Vec<u8>) -> Result<bool, JournalError> {
        self.write(move |transaction| {
            let mut table = transaction.open_table(table).map_err(storage("open a table"))?;
            let found = table.remove(key.as_slice()).map_err(storage("delete an entry"))?;
            Ok(found.is_some())
        })
        .await
    }

    /// Creates a tenant. `false` when there is one of this id already; then nothing has changed.
    pub async fn create_tenant(&self, tenant: TenantRecord) -> Result<bool, JournalError> {
        let key = tenant.id.as_str().as_bytes().to_vec();
        let value = to_json(&tenant, "a tenant")?;
        let created = self.write(move |transaction| {
            let mut table = transaction.open_table(TENANTS).map_err(storage("open the tenants"))?;
            let exists = table.get(key.as_slice()).map_err(storage("look for a tenant"))?.is_some();
            if !exists {
                table.insert(key.as_slice(), value.as_slice()).map_err(storage("write a tenant"))?;
            }
            Ok(!exists)
        });
        let created = created.await?;
        self.read_limits_of(&tenant.id)?;
        Ok(created)
    }

    /// Changes a tenant. `None` when there is none; after an error of `change` nothing has changed. When this returns, what it
    /// says of limits holds for whatever is asked from here on.
    pub async fn change_tenant<E: Send + 'static>(
        &self,
        id: &TenantId,
        change: impl FnOnce(&mut TenantRecord) -> Result<(), E> + Send + 'static,
    ) -> Result<Option<Result<TenantRecord, E>>, JournalError> {
        let key = id.as_str().as_bytes().to_vec();
        let changed = self.write(move |transaction| {
            let mut table = transaction.open_table(TENANTS).map_err(storage("open the tenants"))?;
            let found = table.get(key.as_slice()).map_err(storage("look for a tenant"))?;
            let found =
                found.map(|value| parse::<TenantRecord>(value.value(), || "a tenant".to_owned())).transpose()?;
            let Some(mut record) = found else { return Ok(None) };
            if let Err(refused) = change(&mut record) {
                return Ok(Some(Err(refused)));
            }
            let value = to_json(&record, "a tenant")?;
            table.insert(key.as_slice(), value.as_slice()).map_err(storage("write a tenant"))?;
            Ok(Some(Ok(record)))
        });
        let changed = changed.await?;
        self.read_limits_of(id)?;
        Ok(changed)
    }

    /// What a tenant may have. From memory: asked for whatever it does.
    #[must_use]
    pub fn limits(&self, tenant: &TenantId) -> Limits {
        self.limits.read().unwrap_or_else(PoisonError::into_inner).get(tenant).copied().unwrap_or_default()
    }

    /// Whether a tenant may have one more run.
    pub fn may_start(&self, tenant: &TenantId) -> Result<(), JournalError> {
        self.usage(tenant)?.admits(&self.limits(tenant))
    }

    pub(super) fn read_limits(&self) -> Result<(), JournalError> {
        let limits = self.tenants()?.into_iter().map(|tenant| (tenant.id, tenant.limits.effective())).collect();
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
        Ok(())
    }

    fn read_limits_of(&self, id: &TenantId) -> Result<(), JournalError> {
        // Read with the lock held: of two changes the later one stays.
        let mut limits = self.limits.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenant) = self.tenant(id)? {
            limits.insert(tenant.id, tenant.limits.effective());
        }
        Ok(())
    }

    /// A tenant.
    pub fn tenant(&self, id: &TenantId) -> Result<Option<TenantRecord>, JournalError> {
        self.one(TENANTS, id.as_str().as_bytes())
    }

    /// All tenants, by id.
    pub fn tenants(&self) -> Result<Vec<TenantRecord>, JournalError> {
        self.all(TENANTS, keys::everything())
    }

    /// Records an API key. `false` when its tenant does not exist; then nothing has changed.
    pub async fn create_api_key(&self, record: ApiKeyRecord) -> Result<bool, JournalError> {
        if self.tenant(&record.tenant)?.is_none() {
            return Ok(false); // tenants are never deleted, so this cannot become wrong in between
        }
        let value = to_json(&record, "an API key")?;
        self.write(move |transaction| {
            let mut table = transaction.open_table(API_KEYS).map_err(storage("open the API keys"))?;
            table.insert(record.id.as_bytes(), value.as_slice()).map_err(storage("write an API key"))?;
            Ok(true)
        })
        .await
    }

    /// Records that an API key stopped working. `None` when there is no such key; a key that was revoked before
    /// keeps its time.
    pub async fn revoke_api_key(&self, id: String, at: Timestamp) -> Result<Option<ApiKeyRecord>, JournalError> {
        self.write(move |transaction| {
            let mut table = transaction.open_table(API_KEYS).map_err(storage("open the API keys"))?;
            let found = table.get(id.as_bytes()).map_err(storage("look for an API key"))?;
            let found =
                found.map(|value| parse::<ApiKeyRecord>(value.value(), || format!("the API key {id}"))).transpose()?;
            let Some(mut record) = found else { return Ok(None) };
            record.revoked_at.get_or_insert(at);
            let value = to_json(&record, "an API key")?;
            table.insert(id.as_bytes(), value.as_slice()).map_err(storage("write an API key"))?;
            Ok(Some(record))
        })
        .await
    }

    /// All API keys ever created, by id.
    pub fn api_keys(&self) -> Result<Vec<ApiKeyRecord>, JournalError> {
        self.all(API_KEYS, keys::everything())
    }

    /// Stores a version and its component. With `promote`, and when it is the workflow's first, it becomes the one that new runs
    /// get. A version that was deployed under this name before keeps its record, which is returned. [`JournalError::Full`] when
    /// the tenant has as much as it may and the version is new.
    pub async fn put_version(
        &self,
        tenant: &TenantId,
        name: &WorkflowName,
        record: VersionRecord,
        component: Bytes,
        promote: bool,
    ) -> Result<VersionRecord, JournalError> {
        let at = record.created_at;
        let workflow_key = keys::workflow(tenant, name);
        let version_key = keys::version(tenant, name, &record.version);
        let content_key = keys::content(tenant, &record.version);
        // Content is kept while somebody refers to it. A run's id never starts with this byte before the year 10889.
        let referrer = [content_key.as_slice(), &[u8::MAX], name.as_str().as_bytes()].concat();
        let (name, tenant, limits) = (name.clone(), tenant.clone(), self.limits(tenant));
        self.write(move |transaction| {
            let mut versions = transaction.open_table(VERSIONS).map_err(storage("open the versions"))?;
            let stored = versions.get(version_key.as_slice()).map_err(storage("look for a version"))?;
            let stored = stored.map(|value| parse(value.value(), || "a version".to_owned())).transpose()?;
            let record = match stored {
                Some(record) => record,
                None => {
                    if usage::of(transaction, &tenant)?.journal_bytes >= limits.journal_bytes {
                        return Err(JournalError::Full { bytes_max: limits.journal_bytes });
                    }
                    let value = to_json(&record, "a version")?;
                    versions.insert(version_key.as_slice(), value.as_slice()).map_err(storage("write a version"))?;
                    let bytes = put_content(transaction, &content_key, &referrer, &component)?;
                    let bytes = bytes + entry(&version_key, &value);
                    usage::add(transaction, &tenant, Change { bytes, ..Change::default() })?;
                    record
                }
            };
            let mut workflows = transaction.open_table(WORKFLOWS).map_err(storage("open the workflows"))?;
            let known = workflows.get(workflow_key.as_slice()).map_err(storage("look for a workflow"))?;
            let known =
                known.map(|value| parse::<WorkflowRecord>(value.value(), || "a workflow".to_owned())).transpose()?;
            if known.is_some() && !promote {
                return Ok(record);
            }
            let created_at = known.map_or(at, |known| known.created_at);
            let workflow = WorkflowRecord { name, latest: record.version, created_at, updated_at: at };
            let value = to_json(&workflow, "a workflow")?;
            workflows.insert(workflow_key.as_slice(), value.as_slice()).map_err(storage("write a workflow"))?;
            Ok(record)
        })
        .await
    }

    /// Makes a version the one that new runs get. `None` when the workflow has no such version; then nothing has changed.
    pub async fn promote(
        &self,
        tenant: &TenantId,
        name: &WorkflowName,
        version: Digest,
        at: Timestamp,
    ) -> Result<Option<WorkflowRecord>, JournalError> {
        let (workflow_key, version_key) = (keys::workflow(tenant, name), keys::version(tenant, name, &version));
        self.write(move |transaction| {
            let versions = transaction.open_table(VERSIONS).map_err(storage("open the versions"))?;
            if versions.get(version_key.as_slice()).map_err(storage("look for a version"))?.is_none() {
                return Ok(None);
            }
            let mut workflows = transaction.open_table(WORKFLOWS).map_err(storage("open the workflows"))?;
            let known = workflows.get(workflow_key.as_slice()).map_err(storage("look for a workflow"))?;
            let known =
                known.map(|value| parse::<WorkflowRecord>(value.value(), || "a workflow".to_owned())).transpose()?;
            let Some(mut workflow) = known else { return Ok(None) };
            if workflow.latest != version {
                (workflow.latest, workflow.updated_at) = (version, at);
                let value = to_json(&workflow, "a workflow")?;
                workflows.insert(workflow_key.as_slice(), value.as_slice()).map_err(storage("write a workflow"))?;
            }
            Ok(Some(workflow))
        })
        .await
    }

    /// A workflow.
    pub fn workflow(&self, tenant: &TenantId, name: &WorkflowName) -> Result<Option<WorkflowRecord>, JournalError> {
        self.one(WORKFLOWS, &keys::workflow(tenant, name))
    }

    /// A tenant's workflows, by name.
    pub fn workflows(&self, tenant: &TenantId) -> Result<Vec<WorkflowRecord>, JournalError> {
        self.all(WORKFLOWS, keys::of_tenant(tenant))
    }

    /// A version.
    pub fn version(
        &self,
        tenant: &TenantId,
        name: &WorkflowName,
        version: &Digest,
    ) -> Result<Option<VersionRecord>, JournalError> {
        self.one(VERSIONS, &keys::version(tenant, name, version))
    }

    /// The versions of a workflow, by digest.
    pub fn versions(&self, tenant: &TenantId, name: &WorkflowName) -> Result<Vec<VersionRecord>, JournalError> {
        self.all(VERSIONS, keys::starting_with(keys::workflow(tenant, name)))
    }

    /// The bytes of a version's component.
    pub fn component(&self, tenant: &TenantId, version: &Digest) -> Result<Option<Bytes>, JournalError> {
        self.content(tenant, version)
    }

    pub(super) fn one<T: DeserializeOwned>(&self, table: Bytes2Bytes, key: &[u8]) -> Result<Option<T>, JournalError> {
        let name = table.name().to_owned();
        let what = || format!("an entry of {name}");
        let table = self.reader()?.open_table(table).map_err(storage("open a table"))?;
        let found = table.get(key).map_err(storage("read an entry"))?;
        found.map(|value| parse(value.value(), what)).transpose()
    }

    pub(super) fn all<T: DeserializeOwned>(
        &self,
        table: Bytes2Bytes,
        range: std::ops::Range<Vec<u8>>,
    ) -> Result<Vec<T>, JournalError> {
        let name = table.name().to_owned();
        let what = || format!("an entry of {name}");
        let table = self.reader()?.open_table(table).map_err(storage("open a table"))?;
        let entries = table.range(range.start.as_slice()..range.end.as_slice()).map_err(storage("list entries"))?;
        entries
            .map(|entry| {
                let (_, value) = entry.map_err(storage("list entries"))?;
                parse(value.value(), what)
            })
            .collect()
    }
}
