//! A valid program to a component: the nodes guest with the program in its memory.
//!
//! Owns: the guest, which `build.rs` compiles, and the way from it to a component.
//! Does not: compile machine code for what it makes, or run a step.
//! Keeps: the same program gives the same bytes; the component imports just what its nodes need; the program is loaded
//! in the sandbox, with fuel and without imports.
//!
//! ```text
//!   loader, compiled once ─┐                            guest
//!                          ├─ instance ─ load ─ memory ─┴─ module ─ component
//!                 program ─┘
//! ```
//!
//! What a component imports is what it may ask for, so interfaces that a graph has no use for must not be among its
//! imports. Their functions come from small modules within the component instead, and trap. The guest's own functions
//! are the same in every component, byte for byte, so that their machine code is made once.

use futures_util::FutureExt;
use stepwell_core::graph::Problem;
use stepwell_document::{Kind, Program};
use wasm_encoder::{
    CodeSection, ComponentSection, CustomSection, ExportKind, ExportSection, Function, FunctionSection, Instruction,
    TypeSection, ValType as Type,
};
use wasmparser::{Parser, Payload, TypeRef, ValType};
use wasmtime::{Engine, Extern, Instance, Linker, Module, Store, StoreLimits, StoreLimitsBuilder, Val};
use wasmtime_wizer::{InstanceState, SnapshotVal, Wizer};
use wit_component::ComponentEncoder;

/// Metered instructions for loading a program. The largest graphs take a fifth of it.
const LOAD_FUEL: u64 = 50_000_000_000;
/// Memory that a loaded program may take, which every step of it begins with.
pub const LOAD_MEMORY_BYTES: usize = 64 << 20;

/// The nodes guest, a core module.
pub static GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/nodes.wasm"));

const PUBLISH: &str = "stepwell:workflow/publish@0.1.0";
const HTTP: &str = "stepwell:workflow/http@0.1.0";
const LLM: &str = "stepwell:workflow/llm@0.1.0";
const WAIT: &str = "stepwell:workflow/wait@0.1.0";
const CHILDREN: &str = "stepwell:workflow/children@0.1.0";

/// The section of a component that holds the document it was made of.
const DOCUMENT_SECTION: &str = "stepwell:document";

/// Why there is no component.
#[derive(Debug, thiserror::Error)]
pub enum SpecializeError {
    /// The guest found something that the check before had not.
    #[error("the graph has {} problem(s)", .0.len())]
    Problems(Vec<Problem>),
    /// Loading the program took more than there is.
    #[error("the graph takes too much to load: {0}")]
    TooMuch(String),
    /// A defect of ours.
    #[error("the guest could not be specialised: {0}")]
    Broken(String),
}

/// The module to compile for [`specialize`]: the guest, with a way to look into its memory.
pub fn loader() -> Result<Vec<u8>, SpecializeError> {
    let (_, module) = wizer().instrument(GUEST).map_err(broken)?;
    Ok(module)
}

/// A component without a program: its functions are those of every component there will be.
pub fn unspecialized() -> Result<Vec<u8>, SpecializeError> {
    encode(GUEST, &[])
}

/// The component that evaluates expressions which belong to no graph: the guest without a program, and without imports.
pub fn evaluator() -> Result<Vec<u8>, SpecializeError> {
    encode(GUEST, &[PUBLISH, HTTP, LLM, WAIT, CHILDREN])
}

/// The component of a program. `loader` is the [`loader`], compiled.
pub fn specialize(loader: &Module, program: &Program) -> Result<Vec<u8>, SpecializeError> {
    let wizer = wizer();
    let (context, _) = wizer.instrument(GUEST).map_err(broken)?;
    let mut loader = Loader::new(loader)?;
    loader.load(program)?;
    // Nothing in it waits: the store is not asynchronous.
    let snapshot = wizer.snapshot(&context, &mut loader).now_or_never();
    let module = snapshot.ok_or_else(|| broken("a snapshot waits for something"))?.map_err(broken)?;
    let mut component = encode(&module, &unneeded(program))?;
    // So that a component can be edited again as what it was: the document, in one spelling for all that mean the same.
    let document = serde_json::to_vec(&program.document).map_err(broken)?;
    CustomSection { name: DOCUMENT_SECTION.into(), data: document.into() }.append_to_component(&mut component);
    Ok(component)
}

/// The document that a component was made of, as JSON. `None` for one that was made in another way.
#[must_use]
pub fn document_of(component: &[u8]) -> Option<&[u8]> {
    let mut depth = 0;
    for payload in Parser::new(0).parse_all(component) {
        match payload.ok()? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) if depth > 0 => depth -= 1,
            Payload::CustomSection(section) if depth == 0 && section.name() == DOCUMENT_SECTION => {
                return Some(section.data());
            }
            _ => {}
        }
    }
    None
}

/// The interfaces that a program has no use for.
fn unneeded(program: &Program) -> Vec<&'static str> {
    let has = |kind: fn(&Kind) -> bool| program.document.nodes.iter().any(|node| kind(&node.kind));
    let needed = [
        (PUBLISH, has(|kind| matches!(kind, Kind::Transform(transform) if transform.topic.is_some()))),
        (HTTP, has(|kind| matches!(kind, Kind::Http(_)))),
        (LLM, has(|kind| matches!(kind, Kind::Llm(_)))),
        (WAIT, has(|kind| matches!(kind, Kind::Sleep(_) | Kind::Signal(_)))),
        (CHILDREN, has(|kind| matches!(kind, Kind::Workflow(_)))),
    ];
    needed.into_iter().filter(|(_, needed)| !needed).map(|(name, _)| name).collect()
}

fn wizer() -> Wizer {
    let mut wizer = Wizer::new();
    // Only to have it taken out: the program is loaded by hand, with an argument.
    wizer.init_func("load_program");
    wizer
}

fn broken(error: impl std::fmt::Display) -> SpecializeError {
    SpecializeError::Broken(format!("{error:#}"))
}

/// A module as a component that does not import these interfaces.
fn encode(module: &[u8], unneeded: &[&str]) -> Result<Vec<u8>, SpecializeError> {
    let mut encoder = ComponentEncoder::default().module(module).map_err(broken)?;
    for name in unneeded {
        encoder = encoder.adapter(name, &trapping(name)?).map_err(broken)?;
    }
    encoder.encode().map_err(broken)
}

/// A module with the functions that the guest imports from an interface, all of which trap.
fn trapping(interface: &str) -> Result<Vec<u8>, SpecializeError> {
    let mut kinds = Vec::new();
    let (mut types, mut functions, mut exports, mut code) =
        (TypeSection::new(), FunctionSection::new(), ExportSection::new(), CodeSection::new());
    let mut count = 0;
    for payload in Parser::new(0).parse_all(GUEST) {
        match payload.map_err(broken)? {
            Payload::TypeSection(section) => {
                kinds = section.into_iter_err_on_gc_types().collect::<Result<_, _>>().map_err(broken)?;
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import.map_err(broken)?;
                    let (true, TypeRef::Func(kind)) = (import.module == interface, import.ty) else { continue };
                    let kind = kinds.get(kind as usize).ok_or_else(|| broken("an import without a type"))?;
                    let convert = |types: &[ValType]| types.iter().copied().map(number).collect::<Option<Vec<_>>>();
                    let both = convert(kind.params()).zip(convert(kind.results()));
                    let (parameters, results) = both.ok_or_else(|| broken("an import of an odd type"))?;
                    types.ty().function(parameters, results);
                    functions.function(count);
                    exports.export(import.name, ExportKind::Func, count);
                    let mut body = Function::new([]);
                    body.instruction(&Instruction::Unreachable).instruction(&Instruction::End);
                    code.function(&body);
                    count += 1;
                }
            }
            _ => {}
        }
    }
    let mut module = wasm_encoder::Module::new();
    module.section(&types).section(&functions).section(&exports).section(&code);
    Ok(module.finish())
}

/// A type that functions of a component's interface have.
fn number(kind: ValType) -> Option<Type> {
    match kind {
        ValType::I32 => Some(Type::I32),
        ValType::I64 => Some(Type::I64),
        ValType::F32 => Some(Type::F32),
        ValType::F64 => Some(Type::F64),
        ValType::V128 | ValType::Ref(_) => None,
    }
}

/// An instance that loads a program.
struct Loader {
    store: Store<StoreLimits>,
    instance: Instance,
}

impl Loader {
    fn new(module: &Module) -> Result<Self, SpecializeError> {
        let engine: &Engine = module.engine();
        let limits = StoreLimitsBuilder::new().memory_size(LOAD_MEMORY_BYTES).build();
        let mut store = Store::new(engine, limits);
        store.limiter(|limits| limits);
        store.set_fuel(LOAD_FUEL).map_err(broken)?;
        store.set_epoch_deadline(u64::MAX / 2);
        let mut linker = Linker::new(engine);
        // Loading asks for nothing; whatever it asked for would not be in the snapshot.
        linker.define_unknown_imports_as_traps(module).map_err(broken)?;
        let instance = linker.instantiate(&mut store, module).map_err(broken)?;
        Ok(Self { store, instance })
    }

    fn load(&mut self, program: &Program) -> Result<(), SpecializeError> {
        let bytes = serde_json::to_vec(program).map_err(broken)?;
        let length = u32::try_from(bytes.len()).map_err(broken)?;
        let place = self.call::<u32>("program_buffer", length)?;
        let memory = self.instance.get_memory(&mut self.store, "memory").ok_or_else(|| broken("no memory"))?;
        memory.write(&mut self.store, place as usize, &bytes).map_err(broken)?;
        if self.call::<()>("load_program", ())? == 0 {
            return Ok(());
        }
        let (place, length) = (self.call::<()>("program_error", ())?, self.call::<()>("program_error_len", ())?);
        let range = place as usize..place as usize + length as usize;
        let told = memory.data(&self.store).get(range).ok_or_else(|| broken("its problems lie outside"))?;
        let problems: Vec<Problem> = serde_json::from_slice(told).map_err(broken)?;
        Err(SpecializeError::Problems(problems))
    }

    fn call<P: wasmtime::WasmParams>(&mut self, name: &str, parameters: P) -> Result<u32, SpecializeError> {
        let function = self.instance.get_typed_func::<P, u32>(&mut self.store, name).map_err(broken)?;
        function.call(&mut self.store, parameters).map_err(|error| SpecializeError::TooMuch(format!("{error:#}")))
    }
}

impl InstanceState for Loader {
    async fn global_get(&mut self, name: &str, _type: ValType) -> SnapshotVal {
        let value = self.instance.get_global(&mut self.store, name).map(|global| global.get(&mut self.store));
        match value {
            Some(Val::I32(value)) => SnapshotVal::I32(value),
            Some(Val::I64(value)) => SnapshotVal::I64(value),
            Some(Val::F32(bits)) => SnapshotVal::F32(bits),
            Some(Val::F64(bits)) => SnapshotVal::F64(bits),
            // rustc makes globals of numbers only, and the template is ours.
            _ => SnapshotVal::I32(0),
        }
    }

    async fn memory_contents(&mut self, name: &str, contents: impl FnOnce(&[u8]) + Send) {
        if let Some(Extern::Memory(memory)) = self.instance.get_export(&mut self.store, name) {
            contents(memory.data(&self.store));
        }
    }
}
