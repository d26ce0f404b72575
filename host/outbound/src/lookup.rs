//! How names become addresses, and which of those the client gets to see.
//!
//! [`Lookup`] finds addresses; [`Guarded`] stands between it and the HTTP client and lets only those through that the
//! [`Egress`] permits. The client connects to what it was given and resolves anew for each connection.
//!
//! The invariant: the address that was judged is the address that is connected to. A name that answers with a public
//! address first and with a private one later gains nothing.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

use crate::egress::{Denied, Egress};

/// Look-ups at the same time. Each blocks a thread for as long as the system's resolver takes, which can be half a
/// minute for names whose servers are silent; the threads are shared with everything else that blocks.
const LOOKUPS_AT_ONCE_MAX: usize = 64;

/// Finds the addresses of a name.
pub trait Lookup: Send + Sync + 'static {
    /// All of them, in the order in which they should be tried.
    fn lookup(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// Asks the operating system.
#[derive(Debug, Clone)]
pub struct SystemLookup {
    at_once: Arc<Semaphore>,
}

impl Default for SystemLookup {
    fn default() -> Self {
        Self { at_once: Arc::new(Semaphore::new(LOOKUPS_AT_ONCE_MAX)) }
    }
}

impl Lookup for SystemLookup {
    fn lookup(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let (name, at_once) = (name.to_owned(), Arc::clone(&self.at_once));
        Box::pin(async move {
            let permit = at_once.acquire_owned().await.map_err(io::Error::other)?;
            let found = tokio::task::spawn_blocking(move || {
                // Held by the thread: who asked may be gone long before the resolver answers.
                let _permit = permit;
                Ok((name, 0).to_socket_addrs()?.map(|address| address.ip()).collect())
            });
            found.await.map_err(io::Error::other)?
        })
    }
}

/// Hides the addresses that may not be reached.
pub(crate) struct Guarded {
    egress: Arc<Egress>,
    lookup: Arc<dyn Lookup>,
}

impl Guarded {
    pub(crate) fn new(egress: Arc<Egress>, lookup: Arc<dyn Lookup>) -> Self {
        Self { egress, lookup }
    }
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let egress = Arc::clone(&self.egress);
        let denied = Denied { host: name.as_str().to_owned() };
        if egress.is_closed() {
            return Box::pin(async { Err(denied.into()) });
        }
        let found = self.lookup.lookup(name.as_str());
        Box::pin(async move {
            let found = found.await?;
            if found.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address").into());
            }
            // A name with some addresses that may be reached is reached at those.
            let permitted: Vec<_> = found.into_iter().filter(|address| egress.permits(*address)).collect();
            if permitted.is_empty() {
                return Err(denied.into());
            }
            // The client puts the port of the URL in place of 0.
            let addresses: Addrs = Box::new(permitted.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}
