//! `stepwell build`: a Rust crate → a core module (by cargo) → a component.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde::Deserialize;
use wit_component::ComponentEncoder;

use super::{EXIT_OK, out};

const TARGET: &str = "wasm32-unknown-unknown";
/// The guest's own stack, in linear memory. rustc's default of 1 MiB would be most of what a small step touches.
const STACK_BYTES: usize = 256 << 10;
/// Where `make` leaves the settings of a toolchain that it had to put together itself.
const TOOLCHAIN_FILE: &str = "target/wasm-toolchain/env";

pub(super) fn build(path: &Path) -> anyhow::Result<u8> {
    let manifest = path.join("Cargo.toml");
    if !manifest.is_file() {
        bail!("{} is no crate: it has no Cargo.toml", path.display());
    }
    let module = compile(&manifest)?;
    let bytes = std::fs::read(&module).with_context(|| format!("cannot read {}", module.display()))?;
    let encoder = ComponentEncoder::default().validate(true).module(&bytes);
    let component = encoder.and_then(|mut encoder| encoder.encode()).context(
        "the crate is no workflow. It needs `#[workflow]` from stepwell-guest, `crate-type = [\"cdylib\"]`, \
         and no dependency on wasm-bindgen or on a source of time or randomness in a browser",
    )?;
    let component_path = module.with_extension("component.wasm");
    std::fs::write(&component_path, component).with_context(|| format!("cannot write {}", component_path.display()))?;
    out::line(component_path.display());
    Ok(EXIT_OK)
}

/// A line of cargo's messages.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

/// Compiles the crate and finds the module.
fn compile(manifest: &Path) -> anyhow::Result<PathBuf> {
    let toolchain = Toolchain::find(manifest)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--release", "--target", TARGET, "--message-format", "json-render-diagnostics"])
        .arg("--manifest-path")
        .arg(manifest)
        .args(&toolchain.arguments)
        .envs(&toolchain.variables)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let flags = "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS";
    if std::env::var_os(flags).is_none() {
        command.env(flags, format!("-C link-arg=-zstack-size={STACK_BYTES}"));
    }
    // cargo tells its own progress, on standard error.
    let output = command.output().context("cannot run cargo; Rust comes from https://rustup.rs")?;
    if !output.status.success() {
        bail!("the crate does not compile");
    }
    let manifest = manifest.canonicalize()?;
    let messages =
        output.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Message>(line).ok());
    let artifacts =
        messages.filter(|message| message.reason == "compiler-artifact" && message.manifest_path == manifest);
    let module =
        artifacts.flat_map(|message| message.filenames).find(|file| file.extension().is_some_and(|e| e == "wasm"));
    module.context("the crate has no WebAssembly library: its [lib] needs `crate-type = [\"cdylib\"]`")
}

/// What it takes to compile for [`TARGET`] here.
#[derive(Default)]
struct Toolchain {
    variables: HashMap<String, String>,
    arguments: Vec<String>,
}

impl Toolchain {
    fn find(manifest: &Path) -> anyhow::Result<Self> {
        if let Some(file) = std::env::var_os("STEPWELL_WASM_TOOLCHAIN") {
            return Self::read(Path::new(&file));
        }
        if is_installed() {
            return Ok(Self::default());
        }
        if let Some(file) = Self::file(manifest) {
            return Self::read(&file);
        }
        out::note(format_args!("adding the target {TARGET}"));
        let added = Command::new("rustup").args(["target", "add", TARGET]).stdout(Stdio::null()).status();
        if added.is_ok_and(|status| status.success()) && is_installed() {
            return Ok(Self::default());
        }
        bail!(
            "Rust cannot compile for {TARGET} here. Install the target with `rustup target add {TARGET}`, \
             or run `make wasm` in Stepwell's folder and set STEPWELL_WASM_TOOLCHAIN to its {TOOLCHAIN_FILE}"
        )
    }

    /// The settings that `make` has left in a folder above the crate or this one.
    fn file(manifest: &Path) -> Option<PathBuf> {
        let starts = [manifest.canonicalize().ok(), std::env::current_dir().ok()];
        let found = |start: &PathBuf| start.ancestors().map(|dir| dir.join(TOOLCHAIN_FILE)).find(|file| file.is_file());
        starts.iter().flatten().find_map(found)
    }

    fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut toolchain = Self::default();
        for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
            if name == "CARGO_ARGUMENTS" {
                toolchain.arguments = value.split_whitespace().map(str::to_owned).collect();
            } else {
                toolchain.variables.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(toolchain)
    }
}

/// Whether rustc has a standard library for the target.
fn is_installed() -> bool {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output();
    let libdir =
        output.ok().filter(|output| output.status.success()).and_then(|output| String::from_utf8(output.stdout).ok());
    libdir.is_some_and(|libdir| Path::new(libdir.trim()).is_dir())
}
