//! Compiled code: in memory for the versions that run, on disk for all that ever ran here.
//!
//! Keeps: nothing is loaded that this host did not write. A file carries a MAC made with this installation's secret,
//! over the engine it is for, its version and its bytes; it is checked on the very bytes that are then loaded.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hmac::{Hmac, Mac};
use lru::LruCache;
use sha2::Sha256;
use stepwell_core::{Digest, TenantId};
use tokio::sync::OnceCell;
use wasmtime::Engine;
use wasmtime::component::{Component, Linker};

use super::attempt::AttemptState;
use super::compile::CompileError;
use super::generated::WorkflowPre;
use super::{Sandbox, imports};

/// Bytes of compiled code that are kept in memory; what was used longest ago goes first. A graph has some five
/// megabytes, a small component one. What runs stays until it has ended.
const CODE_BYTES_IN_MEMORY: usize = 512 << 20;
const MAC_BYTES: usize = 32;

/// Why code is not at hand.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CodeError {
    /// The component is not stored any more.
    #[error("its component is gone")]
    Gone,
    /// It could not be compiled.
    #[error("it could not be compiled: {0}")]
    Compile(#[from] CompileError),
    /// It does not fit the imports that the host offers.
    #[error("it does not fit this host: {0}")]
    Link(String),
}

pub(super) type Loaded = Arc<WorkflowPre<AttemptState>>;

/// A component and the code it was compiled to.
pub(super) struct Compiled {
    pub(super) component: Component,
    code: Vec<u8>,
}

pub(super) struct Code {
    engine: Engine,
    linker: Linker<AttemptState>,
    dir: PathBuf,
    /// Names the engine and its configuration.
    engine_hash: u64,
    secret: [u8; 32],
    loaded: Mutex<InMemory>,
}

/// The code that is in memory.
struct InMemory {
    versions: LruCache<Digest, Version>,
    bytes: usize,
}

/// A version's code, or a place for it.
#[derive(Default)]
struct Version {
    // A cell, so that many attempts of a version that is not loaded load it once.
    code: Arc<OnceCell<Loaded>>,
    /// 0 until it is loaded.
    bytes: usize,
}

impl InMemory {
    /// Gives up a place that nothing was loaded to.
    fn forget(&mut self, version: Digest) {
        if self.versions.peek(&version).is_some_and(|place| place.bytes == 0) {
            self.versions.pop(&version);
        }
    }

    /// Counts a version's code, and makes room for it. Its place may have been taken back meanwhile.
    fn count(&mut self, version: Digest, bytes: usize) {
        let Some(place) = self.versions.peek_mut(&version) else { return };
        self.bytes += bytes - std::mem::replace(&mut place.bytes, bytes).min(bytes);
        while self.bytes > CODE_BYTES_IN_MEMORY && self.versions.len() > 1 {
            let Some((_, oldest)) = self.versions.pop_lru() else { break };
            self.bytes -= oldest.bytes;
        }
    }
}

impl Code {
    pub(super) fn new(engine: &Engine, dir: PathBuf, secret: [u8; 32]) -> io::Result<Self> {
        let linker = imports::linker(engine).map_err(io::Error::other)?;
        // Another engine's code would not load; a folder of its own says so by name.
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let engine_hash = hasher.finish();
        let of_engine = dir.join(format!("{engine_hash:016x}"));
        fs::create_dir_all(&of_engine)?;
        forget_other_engines(&dir, &of_engine);
        let dir = of_engine;
        let loaded = Mutex::new(InMemory { versions: LruCache::unbounded(), bytes: 0 });
        Ok(Self { engine: engine.clone(), linker, dir, engine_hash, secret, loaded })
    }

    /// The code of a version: from memory, from disk, or compiled anew.
    pub(super) async fn load(
        &self,
        sandbox: &Sandbox,
        tenant: &TenantId,
        version: Digest,
        component: impl FnOnce() -> Option<Bytes> + Send,
    ) -> Result<Loaded, CodeError> {
        let loaded = || self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let cell = Arc::clone(&loaded().versions.get_or_insert(version, Version::default).code);
        let load = || async {
            let (component, bytes) = match self.read(version) {
                Some(found) => found,
                None => {
                    let bytes = component().ok_or(CodeError::Gone)?;
                    let compiled = self.compile(sandbox, tenant, bytes).await?;
                    self.keep(version, &compiled);
                    (compiled.component, compiled.code.len())
                }
            };
            let linked = self.link(&component)?;
            loaded().count(version, bytes);
            Ok(linked)
        };
        let found = cell.get_or_try_init(load).await.cloned();
        if found.is_err() {
            loaded().forget(version);
        }
        found
    }

    /// Compiles a component. Nothing is kept of it yet: it may still be refused.
    pub(super) async fn compile(
        &self,
        sandbox: &Sandbox,
        tenant: &TenantId,
        bytes: Bytes,
    ) -> Result<Compiled, CodeError> {
        self.of_process(sandbox.compiler.component(tenant, bytes).await?)
    }

    /// Code that a compiling process has just made.
    pub(super) fn of_process(&self, code: Vec<u8>) -> Result<Compiled, CodeError> {
        let component = self.deserialize(&code).map_err(|error| CodeError::Link(format!("{error:#}")))?;
        Ok(Compiled { component, code })
    }

    /// What is the same for all graphs, from disk.
    pub(super) fn read_kit(&self, name: Digest) -> Option<Bytes> {
        self.read_signed(&self.kit_path(name), name).map(Bytes::from)
    }

    /// Keeps it on disk. What cannot be kept is made again after the next start.
    pub(super) fn keep_kit(&self, name: Digest, kit: &[u8]) {
        if let Err(error) = self.write(&self.kit_path(name), name, kit) {
            tracing::warn!(%error, "what the compiler prepared could not be kept on disk");
        }
    }

    /// Keeps compiled code on disk. What cannot be kept is compiled again next time.
    pub(super) fn keep(&self, version: Digest, compiled: &Compiled) {
        if let Err(error) = self.write(&self.path(version), version, &compiled.code) {
            tracing::warn!(%version, %error, "compiled code could not be kept on disk");
        }
    }

    /// Binds a component to the host's imports.
    pub(super) fn link(&self, component: &Component) -> Result<Loaded, CodeError> {
        let failed = |error: wasmtime::Error| CodeError::Link(format!("{error:#}"));
        let pre = self.linker.instantiate_pre(component).map_err(failed)?;
        Ok(Arc::new(WorkflowPre::new(pre).map_err(failed)?))
    }

    fn read(&self, version: Digest) -> Option<(Component, usize)> {
        let path = self.path(version);
        let code = self.read_signed(&path, version)?;
        match self.deserialize(&code) {
            Ok(component) => Some((component, code.len())),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "compiled code is for another engine; it is compiled anew");
                None
            }
        }
    }

    /// What a file holds, if this host has written it under this name.
    fn read_signed(&self, path: &Path, name: Digest) -> Option<Vec<u8>> {
        let mut bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "compiled code could not be read; it is compiled anew");
                return None;
            }
        };
        let signed = bytes.split_first_chunk::<MAC_BYTES>();
        let is_ours = signed.is_some_and(|(mac, code)| self.mac(name, code).verify_slice(mac).is_ok());
        if !is_ours {
            tracing::warn!(path = %path.display(), "compiled code does not carry this host's signature; it is compiled anew");
            return None;
        }
        bytes.drain(..MAC_BYTES);
        Some(bytes)
    }

    fn write(&self, path: &Path, name: Digest, code: &[u8]) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(&self.mac(name, code).finalize().into_bytes())?;
        file.write_all(code)?;
        file.as_file().sync_data()?;
        file.persist(path)?;
        Ok(())
    }

    #[expect(unsafe_code, reason = "wasmtime cannot check compiled code; see the argument at the call")]
    fn deserialize(&self, code: &[u8]) -> wasmtime::Result<Component> {
        // SAFETY: `deserialize` runs whatever machine code it is given, so `code` must be what wasmtime has compiled,
        // unchanged. It comes from one of two places. Either this host's compiling process has just written it to a pipe
        // that nobody else holds: that process is trusted as wasmtime's compiler is trusted, wherever it runs, for it is the
        // same program with less memory and time; or it was read from disk and its MAC was verified, on these very bytes in memory and
        // not on the file they came from, with a secret that is in this installation's journal alone, which only
        // `write` signs with, and `write` signs nothing but the former. wasmtime itself refuses code of another version
        // or configuration.
        unsafe { Component::deserialize(&self.engine, code) }
    }

    fn path(&self, version: Digest) -> PathBuf {
        self.dir.join(format!("{version}.cwasm"))
    }

    fn kit_path(&self, name: Digest) -> PathBuf {
        self.dir.join(format!("{name}.kit"))
    }

    fn mac(&self, name: Digest, code: &[u8]) -> Hmac<Sha256> {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes keys of any length");
        mac.update(b"stepwell compiled code 1");
        mac.update(&self.engine_hash.to_be_bytes());
        mac.update(name.as_bytes());
        mac.update(code);
        mac
    }
}

/// Deletes the code for engines of other versions and configurations: nothing would ever load it.
fn forget_other_engines(dir: &Path, current: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path != current && path.is_dir()) {
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "compiled code for another engine could not be deleted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_in_memory_is_bounded_by_bytes_and_what_was_used_last_stays() {
        let mut memory = InMemory { versions: LruCache::unbounded(), bytes: 0 };
        let version = |n: u8| Digest::from_bytes([n; 32]);
        for n in 0..100 {
            memory.versions.get_or_insert(version(n), Version::default);
            memory.versions.get(&version(0));
            memory.count(version(n), CODE_BYTES_IN_MEMORY / 10);
            memory.count(version(n), CODE_BYTES_IN_MEMORY / 10);
        }
        assert_eq!((memory.versions.len(), memory.bytes), (10, 10 * (CODE_BYTES_IN_MEMORY / 10)));
        assert!(memory.versions.contains(&version(0)) && memory.versions.contains(&version(99)));
        memory.count(version(7), 1);
        assert_eq!(memory.versions.len(), 10, "a place that was taken back is not counted");
        memory.versions.get_or_insert(version(200), Version::default);
        memory.count(version(200), 2 * CODE_BYTES_IN_MEMORY);
        assert_eq!(memory.versions.len(), 1, "one that is too large by itself is there while it is used");
    }
}
