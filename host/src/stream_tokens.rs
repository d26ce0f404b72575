//! Stream tokens: what a browser shows to read one stream of a tenant for a while.
//!
//! Owns: the key that each tenant's tokens are signed with; it is sealed in the vault's way, and opened once.
//! Does not: keep the tokens. What one permits is written in it, and its signature says that we wrote it.
//! Keeps: a token is valid until it expires or the key is replaced, whichever is first; and a refusal does not say what
//! was wrong with a token that is not ours.
//!
//! A token is `sws_`, its claims and their HMAC-SHA256, both in base64url. The claims can be read by whoever holds it;
//! they name the tenant, the stream, what of it is shown, and the end.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use stepwell_core::{RunId, TenantId, Timestamp, WorkflowName};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::journal::access::StreamKeyRecord;
use crate::journal::{JournalError, RedbJournal};
use crate::vault::Vault;
use crate::whole::whole;

/// How every token begins, so that one can be found where it does not belong.
pub const PREFIX: &str = "sws_";
/// Bytes of a token that is looked at: 64 topics of 64 characters, a correlation, and the rest.
const TOKEN_BYTES_MAX: usize = 8 << 10;
const KEY_BYTES: usize = 32;
/// What the key is sealed as. With a space, which no secret's name has.
const SEALED_AS: &str = "stream key";
/// What is signed besides the claims: nothing else that is ever signed with this key begins so.
const SIGNED_AS: &[u8] = b"stepwell stream token 1\0";

/// The stream that a token opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A run's.
    Run(RunId),
    /// A channel's.
    Channel(String),
}

/// What a token permits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Whose stream it is.
    pub tenant: TenantId,
    /// The stream.
    pub target: Target,
    /// The only topics whose updates are shown; without it, everything is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topics: Option<Vec<String>>,
    /// Whether inputs, outputs and details of failures are shown.
    #[serde(default)]
    pub outputs: bool,
    /// The runs that a channel is limited to.
    #[serde(default)]
    pub of: RunsClaim,
    /// The last moment that it opens anything.
    pub expires_at: Timestamp,
}

/// The runs whose entries of a channel are shown: those that fit all that is named here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunsClaim {
    /// This one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// Those of this workflow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow: Option<WorkflowName>,
    /// Those that were started with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
}

/// A token that opens something.
#[derive(Debug, Clone)]
pub struct Verified {
    /// What.
    pub claims: Claims,
    /// Cancelled when the key is replaced: what the token has opened is closed then.
    pub rotated: CancellationToken,
}

/// Why a token opens nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenError {
    /// It is not one of ours, or not any more.
    Invalid,
    /// It was one of this tenant's, and its time is over.
    Expired(TenantId),
}

struct Key {
    bytes: [u8; KEY_BYTES],
    rotated: CancellationToken,
}

/// Signs and checks tokens.
pub struct StreamTokens {
    vault: Arc<Vault>,
    keys: RwLock<HashMap<TenantId, Key>>,
    // Held over a write, so that memory and disk see changes in the same order.
    writing: Mutex<()>,
    /// What tokens of tenants without a key are checked with, so that they take as long as others.
    nobodys: [u8; KEY_BYTES],
}

impl StreamTokens {
    /// Reads the keys.
    pub fn open(journal: &RedbJournal, vault: Arc<Vault>) -> Result<Self, JournalError> {
        let mut keys = HashMap::new();
        for StreamKeyRecord { tenant, sealed, .. } in journal.stream_keys()? {
            let opened = vault.unseal(&tenant, SEALED_AS, &sealed).ok();
            let bytes = opened.and_then(|key| <[u8; KEY_BYTES]>::try_from(hex::decode(key.expose()).ok()?).ok());
            match bytes {
                Some(bytes) => drop(keys.insert(tenant, Key { bytes, rotated: CancellationToken::new() })),
                // The next token that is asked for gets a new one.
                None => tracing::warn!(%tenant, "a key of stream tokens cannot be opened; its tokens are not valid"),
            }
        }
        Ok(Self { vault, keys: RwLock::new(keys), writing: Mutex::new(()), nobodys: clock::random_bytes() })
    }

    /// A token for these claims. A tenant's first one makes its key.
    pub async fn sign(self: &Arc<Self>, journal: &Arc<RedbJournal>, claims: &Claims) -> Result<String, JournalError> {
        if !self.keys().contains_key(&claims.tenant) {
            self.make_first(journal, &claims.tenant).await?;
        }
        let text = serde_json::to_vec(claims).unwrap_or_default();
        let mac = self.with_key(&claims.tenant, |key| mac_of(&key.bytes, &text).finalize().into_bytes());
        let mac = mac.ok_or(JournalError::Closed)?; // never: keys are replaced and not removed
        Ok(format!("{PREFIX}{}.{}", URL_SAFE_NO_PAD.encode(text), URL_SAFE_NO_PAD.encode(mac)))
    }

    /// What a token permits now.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Verified, TokenError> {
        let (claims, text, mac) = parse(token).ok_or(TokenError::Invalid)?;
        // `verify_slice` takes as long for a wrong signature as for a right one.
        let checked = self.with_key(&claims.tenant, |key| {
            mac_of(&key.bytes, &text).verify_slice(&mac).ok().map(|()| key.rotated.clone())
        });
        let Some(checked) = checked else {
            let _ = mac_of(&self.nobodys, &text).verify_slice(&mac);
            return Err(TokenError::Invalid);
        };
        let rotated = checked.ok_or(TokenError::Invalid)?;
        if claims.expires_at < now { Err(TokenError::Expired(claims.tenant)) } else { Ok(Verified { claims, rotated }) }
    }

    /// Replaces a tenant's key: none of its tokens is valid any more. Returns when that was. Is done whole, even when it is
    /// not waited for to the end.
    pub async fn rotate(
        self: &Arc<Self>,
        journal: &Arc<RedbJournal>,
        tenant: &TenantId,
    ) -> Result<Timestamp, JournalError> {
        let (tokens, journal, tenant) = (Arc::clone(self), Arc::clone(journal), tenant.clone());
        whole(async move {
            let _writing = tokens.writing.lock().await;
            tokens.replace(&journal, &tenant).await
        })
        .await
    }

    /// A tenant's first key, unless somebody else has just made it.
    async fn make_first(self: &Arc<Self>, journal: &Arc<RedbJournal>, tenant: &TenantId) -> Result<(), JournalError> {
        let (tokens, journal, tenant) = (Arc::clone(self), Arc::clone(journal), tenant.clone());
        whole(async move {
            let _writing = tokens.writing.lock().await;
            if !tokens.keys().contains_key(&tenant) {
                tokens.replace(&journal, &tenant).await?;
            }
            Ok(())
        })
        .await
    }

    async fn replace(&self, journal: &RedbJournal, tenant: &TenantId) -> Result<Timestamp, JournalError> {
        let bytes = clock::random_bytes::<KEY_BYTES>();
        let created_at = clock::now();
        let sealed = self.vault.seal(tenant, SEALED_AS, &hex::encode(bytes));
        journal.put_stream_key(&StreamKeyRecord { tenant: tenant.clone(), sealed, created_at }).await?;
        let key = Key { bytes, rotated: CancellationToken::new() };
        let old = self.keys.write().unwrap_or_else(PoisonError::into_inner).insert(tenant.clone(), key);
        if let Some(old) = old {
            old.rotated.cancel();
        }
        Ok(created_at)
    }

    fn keys(&self) -> std::sync::RwLockReadGuard<'_, HashMap<TenantId, Key>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_key<T>(&self, tenant: &TenantId, use_it: impl FnOnce(&Key) -> T) -> Option<T> {
        self.keys().get(tenant).map(use_it)
    }
}

fn mac_of(key: &[u8; KEY_BYTES], claims: &[u8]) -> Hmac<Sha256> {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(SIGNED_AS);
    mac.update(claims);
    mac
}

/// Claims that nobody has checked, their text, and what is said to be their signature.
fn parse(token: &str) -> Option<(Claims, Vec<u8>, Vec<u8>)> {
    if token.len() > TOKEN_BYTES_MAX {
        return None;
    }
    let (text, mac) = token.strip_prefix(PREFIX)?.split_once('.')?;
    let (text, mac) = (URL_SAFE_NO_PAD.decode(text).ok()?, URL_SAFE_NO_PAD.decode(mac).ok()?);
    Some((serde_json::from_slice(&text).ok()?, text, mac))
}

impl std::fmt::Debug for StreamTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StreamTokens")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    fn claims(tenant: &str, expires_at: u64) -> Claims {
        let (tenant, target) = (tenant.parse().unwrap(), Target::Run(RunId::from_bytes([7; 16])));
        Claims {
            tenant,
            target,
            topics: Some(vec!["update".to_owned()]),
            outputs: false,
            of: RunsClaim::default(),
            expires_at: Timestamp::from_millis(expires_at),
        }
    }

    #[tokio::test]
    async fn a_token_is_good_until_its_end_or_its_key_s() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Arc::new(Vault::open(dir.path(), false).unwrap());
        let journal = Arc::new(RedbJournal::open(&dir.path().join("journal.redb")).unwrap());
        let tokens = Arc::new(StreamTokens::open(&journal, Arc::clone(&vault)).unwrap());
        let at = Timestamp::from_millis;
        let claims = claims("a", 1_000);
        let token = tokens.sign(&journal, &claims).await.unwrap();
        assert_eq!(tokens.verify(&token, at(1_000)).unwrap().claims, claims);
        assert_eq!(tokens.verify(&token, at(1_001)).unwrap_err(), TokenError::Expired("a".parse().unwrap()));
        // After a start the key is the same.
        let again = Arc::new(StreamTokens::open(&journal, Arc::clone(&vault)).unwrap());
        let verified = again.verify(&token, at(0)).unwrap();
        assert!(!verified.rotated.is_cancelled());
        again.rotate(&journal, &claims.tenant).await.unwrap();
        assert!(verified.rotated.is_cancelled());
        assert_eq!(again.verify(&token, at(0)).unwrap_err(), TokenError::Invalid);
        let third = Arc::new(StreamTokens::open(&journal, vault).unwrap());
        assert_eq!(third.verify(&token, at(0)).unwrap_err(), TokenError::Invalid);
        assert!(third.verify(&third.sign(&journal, &claims).await.unwrap(), at(0)).is_ok());
    }

    /// *The story:* a client hung up while the new key was written. What it had asked for was dropped between the disk and
    /// the memory, and tokens of the old key were valid until the next start.
    #[tokio::test]
    async fn a_rotation_that_nobody_waits_for_is_done_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Arc::new(Vault::open(dir.path(), false).unwrap());
        let journal = Arc::new(RedbJournal::open(&dir.path().join("journal.redb")).unwrap());
        let tokens = Arc::new(StreamTokens::open(&journal, vault).unwrap());
        let claims = claims("a", 1_000);
        let token = tokens.sign(&journal, &claims).await.unwrap();
        let Verified { rotated, .. } = tokens.verify(&token, Timestamp::from_millis(0)).unwrap();
        let asked = tokens.rotate(&journal, &claims.tenant);
        assert!(asked.now_or_never().is_none(), "it was over before anybody could hang up");
        tokio::time::timeout(Duration::from_secs(30), rotated.cancelled()).await.unwrap();
        assert_eq!(tokens.verify(&token, Timestamp::from_millis(0)).unwrap_err(), TokenError::Invalid);
    }

    #[tokio::test]
    async fn a_token_that_was_touched_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Arc::new(Vault::open(dir.path(), false).unwrap());
        let journal = Arc::new(RedbJournal::open(&dir.path().join("journal.redb")).unwrap());
        let tokens = Arc::new(StreamTokens::open(&journal, vault).unwrap());
        let now = Timestamp::from_millis(0);
        let token = tokens.sign(&journal, &claims("a", 1_000)).await.unwrap();
        let others = tokens.sign(&journal, &claims("b", 1_000)).await.unwrap();
        assert!(tokens.verify(&token, now).is_ok());
        for place in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
            let touched = String::from_utf8(bytes).unwrap();
            assert_eq!(tokens.verify(&touched, now).unwrap_err(), TokenError::Invalid, "at {place}");
        }
        for cut in 0..token.len() {
            assert_eq!(tokens.verify(&token[..cut], now).unwrap_err(), TokenError::Invalid, "cut at {cut}");
        }
        // One tenant's signature under another's claims; claims of a tenant that has no key.
        let (text, _) = token.split_once('.').unwrap();
        let (_, others_mac) = others.split_once('.').unwrap();
        let unknown = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims("c", 1_000)).unwrap());
        for forged in [
            format!("{text}.{others_mac}"),
            format!("{PREFIX}{unknown}.{others_mac}"),
            format!("{token}."),
            format!("{PREFIX}."),
        ] {
            assert_eq!(tokens.verify(&forged, now).unwrap_err(), TokenError::Invalid, "{forged}");
        }
        assert_eq!(tokens.verify(&format!("{PREFIX}{}", "A".repeat(1 << 20)), now).unwrap_err(), TokenError::Invalid);
    }
}
