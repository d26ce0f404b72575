//! A graph document to a component and its code, in a compiling process.
//!
//! Owns: what passes between this process and that one, and the *kit*: what is the same for all graphs and made once,
//! the loader (the nodes guest, compiled to load a program) and the guest's compiled functions.
//! Keeps: the kit is made of the guest that is part of this program, and of nothing that came from outside; it is
//! kept with this host's signature like all compiled code. A process that has seen a tenant's document gives back a
//! component and code, and its own copy of the kit goes with it.
//!
//! ```text
//!   document ─► check ─► load into the guest ─► snapshot ─► component ─► code, function by function from the kit
//! ```

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use stepwell_compiler::specialize::{self, SpecializeError};
use stepwell_compiler::{Checked, DOCUMENT_BYTES_MAX};
use stepwell_core::graph::Problem;
use stepwell_core::{Digest, TenantId};
use wasmtime::{CacheStore, Module};

use super::code::CodeError;
use super::compile::{self, CompileError};
use super::limits::COMPONENT_BYTES_MAX;
use super::upload::{self, UploadError};
use super::{Inspection, Sandbox, engine};

/// The most that a compiling process reads: a document and a kit.
pub(super) const WORK_BYTES_MAX: usize = DOCUMENT_BYTES_MAX + KIT_BYTES_MAX + 64;
/// A kit has some twenty megabytes.
const KIT_BYTES_MAX: usize = 128 << 20;

/// What a compiling process is to do: the first byte of its work.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Make a kit.
    Prepare = b'p' as isize,
    /// Find the problems of a document.
    Check = b'v' as isize,
    /// Make a component of a document.
    Compile = b'c' as isize,
}

/// What came of it: the first byte of what it writes.
const MADE: u8 = b'+';
const PROBLEMS: u8 = b'!';
const TOO_MUCH: u8 = b'>';

/// A graph that was compiled and looked at like every upload.
#[derive(Debug, Clone)]
pub struct CompiledGraph {
    /// The component.
    pub component: Bytes,
    /// What it is and asks for.
    pub inspection: Inspection,
}

/// The kit, once it was needed.
pub(super) type Kit = tokio::sync::OnceCell<Bytes>;

impl Sandbox {
    /// All problems of a graph document.
    pub async fn check_graph(&self, tenant: &TenantId, document: Bytes) -> Result<Vec<Problem>, UploadError> {
        match self.in_process(tenant, Work::Check, &[document]).await? {
            (MADE, _) => Ok(Vec::new()),
            (PROBLEMS, problems) => parse_problems(&problems),
            (_, why) => Err(too_much(&why)),
        }
    }

    /// Makes a component of a graph document and looks at it like at every upload.
    pub async fn compile_graph(&self, tenant: &TenantId, document: Bytes) -> Result<CompiledGraph, UploadError> {
        let kit = self.kit.get_or_try_init(|| self.make_kit(tenant)).await?.clone();
        let made = match self.in_process(tenant, Work::Compile, &[frame_length(&document), document, kit]).await? {
            (MADE, made) => made,
            (PROBLEMS, problems) => return Err(UploadError::Graph(parse_problems(&problems)?)),
            (_, why) => return Err(too_much(&why)),
        };
        let mut rest = made.as_ref();
        let unreadable = || UploadError::CompilerUnavailable("what it made cannot be read".to_owned());
        let component = Bytes::copy_from_slice(frame(&mut rest).ok_or_else(unreadable)?);
        if component.len() > COMPONENT_BYTES_MAX {
            return Err(UploadError::TooLarge(component.len()));
        }
        let compiled = self.code.of_process(frame(&mut rest).ok_or_else(unreadable)?.to_vec());
        let compiled = compiled.map_err(|error: CodeError| UploadError::DoesNotFit(error.to_string()))?;
        let inspection = upload::inspect_compiled(self, tenant, &component, compiled).await?;
        Ok(CompiledGraph { component, inspection })
    }

    /// The kit: from disk, or made anew.
    async fn make_kit(&self, tenant: &TenantId) -> Result<Bytes, UploadError> {
        // One for each build of the guest; the engine has a folder of its own.
        let name = Digest::from_bytes(Sha256::digest(specialize::GUEST).into());
        if let Some(kit) = self.code.read_kit(name) {
            return Ok(kit);
        }
        match self.in_process(tenant, Work::Prepare, &[]).await? {
            (MADE, kit) => {
                self.code.keep_kit(name, &kit);
                Ok(kit)
            }
            _ => Err(UploadError::CompilerUnavailable("it could not be prepared for graphs".to_owned())),
        }
    }

    async fn in_process(&self, tenant: &TenantId, work: Work, parts: &[Bytes]) -> Result<(u8, Bytes), UploadError> {
        let head = Bytes::copy_from_slice(&[work as u8]);
        let parts: Vec<Bytes> = std::iter::once(head).chain(parts.iter().cloned()).collect();
        let made = self.compiler.run(tenant, compile::GRAPH_SUBCOMMAND, &parts).await;
        let made = made.map_err(|error| match error {
            // The document's problems come in another way; what is told like this is a defect of ours.
            CompileError::Invalid(why) | CompileError::Unavailable(why) => UploadError::CompilerUnavailable(why),
            CompileError::Exceeded => UploadError::CompilerExceeded,
        })?;
        let mut made = Bytes::from(made);
        if made.is_empty() {
            return Err(UploadError::CompilerUnavailable("it made nothing".to_owned()));
        }
        let kind = made.split_to(1);
        Ok((kind.first().copied().unwrap_or_default(), made))
    }
}

fn parse_problems(json: &[u8]) -> Result<Vec<Problem>, UploadError> {
    serde_json::from_slice(json).map_err(|error| UploadError::CompilerUnavailable(error.to_string()))
}

fn too_much(why: &[u8]) -> UploadError {
    UploadError::GraphTooMuch(String::from_utf8_lossy(why).into_owned())
}

/// The compiling process.
pub(super) fn compile(work: &[u8]) -> anyhow::Result<Vec<u8>> {
    let (kind, mut rest) = work.split_first().context("there is nothing to do")?;
    if *kind == Work::Prepare as u8 {
        return Ok([&[MADE], prepare()?.as_slice()].concat());
    }
    if *kind == Work::Check as u8 {
        return Ok(match stepwell_compiler::check(rest) {
            Ok(_) => vec![MADE],
            Err(problems) => told(&problems)?,
        });
    }
    if *kind != Work::Compile as u8 {
        bail!("there is no such work");
    }
    let document = frame(&mut rest).context("there is no document")?;
    let Checked { program, .. } = match stepwell_compiler::check(document) {
        Ok(checked) => checked,
        Err(problems) => return told(&problems),
    };
    let loader = frame(&mut rest).context("there is no loader")?;
    let functions = Functions::read(rest).context("there are no functions")?;
    let engine = engine::compiler(Some(Arc::new(functions)))?;
    let component = match load(&engine, loader, &program) {
        Ok(component) => component,
        Err(SpecializeError::Problems(problems)) => return told(&problems),
        Err(SpecializeError::TooMuch(why)) => return Ok([&[TOO_MUCH], why.as_bytes()].concat()),
        Err(error @ SpecializeError::Broken(_)) => return Err(error.into()),
    };
    let code = engine.precompile_component(&component)?;
    let mut made = vec![MADE];
    push_frame(&mut made, &component);
    push_frame(&mut made, &code);
    Ok(made)
}

#[expect(unsafe_code, reason = "wasmtime cannot check compiled code; see the argument at the call")]
fn load(
    engine: &wasmtime::Engine,
    loader: &[u8],
    program: &stepwell_document::Program,
) -> Result<Vec<u8>, SpecializeError> {
    // SAFETY: `deserialize` runs whatever machine code it is given, so `loader` must be what wasmtime has compiled,
    // unchanged. It comes over a pipe from the process that started this one, which has it from a process like this one
    // that saw nothing from outside (`prepare`), or from disk with its MAC verified (`code.rs`). wasmtime itself refuses
    // code of another version or configuration.
    let loader = unsafe { Module::deserialize(engine, loader) };
    let loader = loader.map_err(|error| SpecializeError::Broken(format!("{error:#}")))?;
    specialize::specialize(&loader, program)
}

fn told(problems: &[Problem]) -> anyhow::Result<Vec<u8>> {
    Ok([&[PROBLEMS], serde_json::to_vec(problems)?.as_slice()].concat())
}

/// Makes a kit: compiles the loader, and the guest as the component it will be the body of, so that a graph finds all
/// functions compiled.
fn prepare() -> anyhow::Result<Vec<u8>> {
    let functions = Arc::new(Functions::default());
    let engine = engine::compiler(Some(Arc::clone(&functions) as Arc<dyn CacheStore>))?;
    let loader = engine.precompile_module(&specialize::loader()?)?;
    engine.precompile_component(&specialize::unspecialized()?)?;
    let mut kit = Vec::new();
    push_frame(&mut kit, &loader);
    functions.write(&mut kit);
    Ok(kit)
}

/// Compiled functions, by what they were compiled from.
#[derive(Debug, Default)]
struct Functions {
    known: HashMap<Vec<u8>, Vec<u8>>,
    new: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
}

impl Functions {
    fn read(mut bytes: &[u8]) -> Option<Self> {
        let mut known = HashMap::new();
        while !bytes.is_empty() {
            let (key, code) = (frame(&mut bytes)?, frame(&mut bytes)?);
            known.insert(key.to_vec(), code.to_vec());
        }
        Some(Self { known, new: Mutex::default() })
    }

    fn write(&self, to: &mut Vec<u8>) {
        let new = self.new.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, code) in self.known.iter().chain(new.iter()) {
            push_frame(to, key);
            push_frame(to, code);
        }
    }
}

impl CacheStore for Functions {
    fn get(&self, key: &[u8]) -> Option<Cow<'_, [u8]>> {
        if let Some(code) = self.known.get(key) {
            return Some(Cow::Borrowed(code));
        }
        let new = self.new.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Cow::Owned(new.get(key)?.clone()))
    }

    fn insert(&self, key: &[u8], value: Vec<u8>) -> bool {
        let mut new = self.new.lock().unwrap_or_else(PoisonError::into_inner);
        new.insert(key.to_vec(), value);
        true
    }
}

/// The length that stands before a part.
fn frame_length(part: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&(part.len() as u64).to_le_bytes())
}

fn push_frame(to: &mut Vec<u8>, part: &[u8]) {
    to.extend_from_slice(&(part.len() as u64).to_le_bytes());
    to.extend_from_slice(part);
}

/// Takes a part off the front.
fn frame<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (part, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    *bytes = rest;
    Some(part)
}
