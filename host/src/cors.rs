//! Which pages may read a tenant's streams.
//!
//! Owns: the origins that each tenant has named, in memory, as they are in the journal.
//! Does not: let anybody in: an origin is no credential. A browser asks for it in addition to the token.
//! Keeps: what is answered here is on disk.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use stepwell_core::TenantId;
use tokio::sync::Mutex;

use crate::journal::access::OriginsRecord;
use crate::journal::{JournalError, RedbJournal};
use crate::whole::whole;

/// Origins of one tenant. More pages than anybody has; a browser's question is answered from memory.
pub const ORIGINS_MAX: usize = 64;
/// Bytes of an origin: a scheme, the longest name that DNS has, a port.
pub const ORIGIN_BYTES_MAX: usize = 270;

/// The origins of all tenants.
#[derive(Debug)]
pub struct Origins {
    by_origin: RwLock<HashMap<String, HashSet<TenantId>>>,
    // Held over a write, so that memory and disk see changes in the same order.
    writing: Mutex<()>,
}

impl Origins {
    /// Reads the origins that tenants have named.
    pub fn open(journal: &RedbJournal) -> Result<Self, JournalError> {
        let origins = Self { by_origin: RwLock::default(), writing: Mutex::new(()) };
        journal.origins()?.into_iter().for_each(|record| origins.replace(&record));
        Ok(origins)
    }

    /// Sets a tenant's origins. Is done whole, even when it is not waited for to the end.
    pub async fn set(self: &Arc<Self>, journal: &Arc<RedbJournal>, record: OriginsRecord) -> Result<(), JournalError> {
        let (origins, journal) = (Arc::clone(self), Arc::clone(journal));
        whole(async move {
            let _writing = origins.writing.lock().await;
            journal.put_origins(&record).await?;
            origins.replace(&record);
            Ok(())
        })
        .await
    }

    /// A tenant's origins, in order.
    #[must_use]
    pub fn of(&self, tenant: &TenantId) -> Vec<String> {
        let by_origin = self.by_origin.read().unwrap_or_else(PoisonError::into_inner);
        let own = by_origin.iter().filter(|(_, tenants)| tenants.contains(tenant));
        let mut own: Vec<String> = own.map(|(origin, _)| origin.clone()).collect();
        own.sort_unstable();
        own
    }

    /// Whether the tenant's streams may be read by pages of this origin.
    #[must_use]
    pub fn allows(&self, tenant: &TenantId, origin: &str) -> bool {
        let by_origin = self.by_origin.read().unwrap_or_else(PoisonError::into_inner);
        by_origin.get(origin).is_some_and(|tenants| tenants.contains(tenant))
    }

    fn replace(&self, record: &OriginsRecord) {
        let mut by_origin = self.by_origin.write().unwrap_or_else(PoisonError::into_inner);
        by_origin.retain(|_, tenants| {
            tenants.remove(&record.tenant);
            !tenants.is_empty()
        });
        for origin in &record.origins {
            by_origin.entry(origin.clone()).or_default().insert(record.tenant.clone());
        }
    }
}

/// Whether a text is an origin as browsers spell it: scheme, name or address in lower case, port unless it is the
/// scheme's own. No `*`: it would let every page read, and `null` is the origin of pages that have none.
#[must_use]
pub fn is_origin(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let is_literal = host.starts_with('[') && host.ends_with(']');
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    let host_fits =
        !host.is_empty() && host.bytes().all(|b| plain(b) || (is_literal && matches!(b, b'[' | b']' | b':')));
    let own_port = if scheme == "https" { "443" } else { "80" };
    let port_fits = port.is_none_or(|port| {
        port != own_port && !port.starts_with('0') && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    matches!(scheme, "https" | "http") && text.len() <= ORIGIN_BYTES_MAX && host_fits && port_fits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_spelled_as_browsers_do() {
        for good in
            ["https://app.example", "http://localhost:5173", "https://a-b.c:8443", "http://[::1]", "http://[::1]:8080"]
        {
            assert!(is_origin(good), "{good}");
        }
        for bad in [
            "",
            "*",
            "null",
            "app.example",
            "https://",
            "https://*",
            "https://*.example",
            "https://App.example",
            "https://app.example/",
            "https://app.example:443",
            "http://app.example:80",
            "https://app.example:0",
            "https://app.example:080",
            "https://app.example:x",
            "ftp://app.example",
            "https://a b",
            "https://a\r\nb",
            "https://user@app.example",
            "https://app.example:65536",
        ] {
            assert!(!is_origin(bad), "{bad}");
        }
        assert!(!is_origin(&format!("https://{}", "a".repeat(ORIGIN_BYTES_MAX))));
    }

    #[test]
    fn a_tenant_s_origins_are_its_own() {
        let origins = Origins { by_origin: RwLock::default(), writing: Mutex::new(()) };
        let (a, b): (TenantId, TenantId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let set = |tenant: &TenantId, list: &[&str]| {
            let origins_of = list.iter().map(|origin| (*origin).to_owned()).collect();
            origins.replace(&OriginsRecord { tenant: tenant.clone(), origins: origins_of });
        };
        set(&a, &["https://one", "https://two"]);
        set(&b, &["https://two"]);
        assert!(origins.allows(&a, "https://one") && !origins.allows(&b, "https://one"));
        set(&a, &["https://one"]);
        assert!(origins.allows(&b, "https://two") && !origins.allows(&a, "https://two"));
        set(&b, &[]);
        assert!(!origins.allows(&b, "https://two"));
        assert_eq!(origins.of(&a), ["https://one"]);
    }
}
