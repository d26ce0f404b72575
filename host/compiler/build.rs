//! Builds the nodes guest, of which `specialize.rs` makes the components of graphs.

#![expect(clippy::expect_used, clippy::panic, reason = "a panic is how a build script fails")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const TARGET: &str = "wasm32-unknown-unknown";
/// Room for the recursion of deep values and expressions. It lies in the memory of every step, as zeros.
const STACK_BYTES: u32 = 512 << 10;

fn main() {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(variable("OUT_DIR"));
    for changed in ["nodes", "document", "../../wit", "../../examples/Cargo.toml", "../../examples/Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", here.join(changed).display());
    }
    let guest = build(&here, &out);
    // A copy of its own: the folder of the guests is written to by others too.
    fs::copy(guest, out.join("nodes.wasm")).expect("the guest that was just built can be copied to OUT_DIR");
}

/// Compiles the guest, into the folder where the other guests are compiled.
fn build(here: &Path, out: &Path) -> PathBuf {
    // OUT_DIR is <target>/release/build/<crate>/out.
    let target_dir = out.ancestors().nth(4).expect("OUT_DIR lies in the target folder").join("guests");
    let mut command = Command::new(variable("CARGO"));
    command
        .args(["build", "--release", "--locked", "--target", TARGET, "--manifest-path"])
        .arg(here.join("nodes/Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir)
        // What cargo and clippy have set for the host is not for the guest.
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS", format!("-C link-arg=-zstack-size={STACK_BYTES}"));
    // `scripts/wasm-toolchain.sh` leaves this where rustup cannot add the target.
    let settings = here.ancestors().map(|dir| dir.join("target/wasm-toolchain/env")).find(|file| file.is_file());
    if let Some(text) = settings.filter(|_| !is_installed()).and_then(|file| fs::read_to_string(file).ok()) {
        for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
            if name == "CARGO_ARGUMENTS" {
                command.args(value.split_whitespace());
            } else {
                command.env(name, value);
            }
        }
    }
    let status = command.status().expect("cargo runs");
    assert!(
        status.success(),
        "the nodes guest does not compile; `make wasm` makes sure that Rust can compile for {TARGET}"
    );
    target_dir.join(TARGET).join("release/stepwell_nodes.wasm")
}

fn is_installed() -> bool {
    let output = Command::new(variable("RUSTC")).args(["--print", "target-libdir", "--target", TARGET]).output();
    let libdir = output.ok().and_then(|output| String::from_utf8(output.stdout).ok());
    libdir.is_some_and(|libdir| Path::new(libdir.trim()).is_dir())
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
