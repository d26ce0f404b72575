//! Tenants' secrets: sealed before they are written, opened only where a request leaves the host.
//!
//! Owns: the key that secrets are sealed with, which lies beside the journal and not in it, so that a copy of the
//! journal gives none of them away.
//! Keeps: a sealed secret opens only for the tenant and the name that it was sealed for.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use stepwell_core::TenantId;
use stepwell_outbound::Secret;

use crate::clock;

/// The name of the file in the data directory that holds the key.
const KEY_FILE: &str = "secrets.key";
const KEY_BYTES: usize = 32;

/// Seals and opens secrets.
pub struct Vault {
    key: LessSafeKey,
}

/// A stored secret that cannot be opened: it was sealed with another key, or changed.
#[derive(Debug, thiserror::Error)]
#[error("the secret cannot be opened with this installation's key")]
pub struct SealBroken;

impl Vault {
    /// The vault of a data directory. When there is no key, a new one is written, readable by its owner alone; unless
    /// there are secrets already, which only the old one opens.
    pub fn open(data_dir: &Path, has_secrets: bool) -> io::Result<Self> {
        let path = data_dir.join(KEY_FILE);
        let key = match fs::read_to_string(&path) {
            Ok(text) => hex::decode(text.trim()).map_err(io::Error::other)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && has_secrets => {
                let why = format!("there are secrets, and {} is gone that opens them", path.display());
                return Err(io::Error::other(why));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = clock::random_bytes::<KEY_BYTES>();
                // Under another name first: a crash must not leave a file without a key.
                let mut file = tempfile::NamedTempFile::new_in(data_dir)?;
                writeln!(file, "{}", hex::encode(key))?;
                file.as_file().sync_all()?;
                file.persist_noclobber(&path)?;
                // The name too must outlast a power cut, before anything is sealed.
                fs::File::open(data_dir)?.sync_all()?;
                key.to_vec()
            }
            Err(error) => return Err(error),
        };
        let key = UnboundKey::new(&CHACHA20_POLY1305, &key)
            .map_err(|_| io::Error::other(format!("{} does not hold {KEY_BYTES} bytes in hex", path.display())))?;
        Ok(Self { key: LessSafeKey::new(key) })
    }

    /// A secret in the form that is stored.
    #[must_use]
    pub fn seal(&self, tenant: &TenantId, name: &str, value: &str) -> String {
        let nonce = clock::random_bytes::<NONCE_LEN>();
        let mut sealed = value.as_bytes().to_vec();
        let nonce_once = Nonce::assume_unique_for_key(nonce);
        #[expect(clippy::expect_used, reason = "fails for 256 GiB and more; an API request has less")]
        self.key.seal_in_place_append_tag(nonce_once, bound_to(tenant, name), &mut sealed).expect("a short text");
        hex::encode([nonce.as_slice(), &sealed].concat())
    }

    /// The secret that was stored.
    pub fn unseal(&self, tenant: &TenantId, name: &str, sealed: &str) -> Result<Secret, SealBroken> {
        let bytes = hex::decode(sealed).map_err(|_| SealBroken)?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>().ok_or(SealBroken)?;
        let mut sealed = sealed.to_vec();
        let opened = self.key.open_in_place(Nonce::assume_unique_for_key(*nonce), bound_to(tenant, name), &mut sealed);
        let text = std::str::from_utf8(opened.map_err(|_| SealBroken)?).map_err(|_| SealBroken)?;
        Ok(Secret::new(text))
    }
}

/// What a secret is for is part of what is authenticated. A tenant's id has no zero byte.
fn bound_to(tenant: &TenantId, name: &str) -> Aad<Vec<u8>> {
    Aad::from([tenant.as_str().as_bytes(), &[0], name.as_bytes()].concat())
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_for_its_tenant_and_name_and_key_alone() {
        let (dir, other_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (a, b): (TenantId, TenantId) = ("a".parse().unwrap(), "b".parse().unwrap());
        assert!(Vault::open(dir.path(), true).is_err(), "a key that is gone is not replaced");
        let vault = Vault::open(dir.path(), false).unwrap();
        let sealed = vault.seal(&a, "KEY", "hunter2");
        assert!(!sealed.contains(&hex::encode("hunter2")));
        assert_ne!(sealed, vault.seal(&a, "KEY", "hunter2"), "the same secret never looks the same");
        let again = Vault::open(dir.path(), true).unwrap();
        assert_eq!(again.unseal(&a, "KEY", &sealed).unwrap().expose(), "hunter2");
        assert!(vault.unseal(&b, "KEY", &sealed).is_err());
        assert!(vault.unseal(&a, "OTHER", &sealed).is_err());
        assert!(Vault::open(other_dir.path(), false).unwrap().unseal(&a, "KEY", &sealed).is_err());
        for broken in ["", "zz", &sealed[2..], &sealed[..sealed.len() - 2]] {
            assert!(vault.unseal(&a, "KEY", broken).is_err());
        }
    }
}
