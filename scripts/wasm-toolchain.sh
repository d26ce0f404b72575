#!/usr/bin/env bash
# Makes sure that Rust can compile for wasm32-unknown-unknown.
#
# 1. The target is installed: nothing to do.
# 2. rustup can add it.
# 3. Otherwise a compiler and the sources of the standard library are taken from Debian's packages and unpacked into
#    target/wasm-toolchain, without installing anything; cargo then builds the standard library itself. What it takes to
#    use them is written to target/wasm-toolchain/env, which `stepwell build` reads.
#
# STEPWELL_WASM_FALLBACK=1 goes to the third way at once, to try it.
set -euo pipefail
cd "$(dirname "$0")/.."
target=wasm32-unknown-unknown
dir=$PWD/target/wasm-toolchain

installed() { [ -d "$(rustc --print target-libdir --target $target 2>/dev/null)" ]; }

if [ -z "${STEPWELL_WASM_FALLBACK:-}" ]; then
  installed && exit 0
  if command -v rustup > /dev/null && rustup target add $target > /dev/null 2>&1 && installed; then
    echo "added the Rust target $target" >&2
    exit 0
  fi
fi
[ -s "$dir/env" ] && exit 0

give_up() {
  cat >&2 <<MESSAGE
Rust cannot compile for $target here: $1.
Install one of these and run make again:
  - the target:          rustup target add $target
  - on Debian or Ubuntu: the packages that scripts/wasm-toolchain.sh names, or a network that reaches Debian's mirrors
MESSAGE
  exit 1
}

command -v apt-get > /dev/null || give_up "the target cannot be added, and there is no apt-get for the other way"
command -v dpkg > /dev/null || give_up "the target cannot be added, and there is no dpkg for the other way"
echo "the Rust target $target cannot be added; taking a compiler for it from Debian's packages" >&2
rm -rf "$dir"
mkdir -p "$dir/packages" "$dir/root"

# The standard library's package carries the compiler's version in its name, and names the LLVM that it needs.
available() { apt-cache show "$1" > /dev/null 2>&1; }
depends() { { apt-cache show "$1" | sed -n 's/^Depends: //p' | head -n 1 | grep -o "$2" | head -n 1; } 2> /dev/null || true; }
available rustc-web || apt-get update > /dev/null 2>&1 || true
available rustc-web || give_up "Debian's packages do not have rustc-web"
std=$(depends libstd-rust-web-dev 'libstd-rust-web-[0-9.]*[0-9]')
[ -n "$std" ] || give_up "the package of Rust's standard library cannot be found"
packages="rustc-web libstd-rust-web-dev $std rust-web-src $(depends "$std" 'libllvm[0-9][0-9.]*')"
if available rust-web-llvm; then packages="$packages rust-web-llvm"; fi

(cd "$dir/packages" && apt-get download $packages > log 2>&1) || { cat "$dir/packages/log" >&2; give_up "Debian's packages cannot be downloaded"; }
for package in "$dir"/packages/*.deb; do dpkg -x "$package" "$dir/root"; done
rm -rf "$dir/packages"

rustc=$dir/root/usr/bin/rustc
lib=$dir/root/usr/lib/x86_64-linux-gnu
[ -x "$rustc" ] || give_up "the packages hold no compiler"
LD_LIBRARY_PATH=$lib "$rustc" --version > /dev/null || give_up "the unpacked compiler does not run"
sysroot=$(LD_LIBRARY_PATH=$lib "$rustc" --print sysroot)
# cargo looks for the sources of the standard library in the compiler's folder.
source=$(find "$dir/root/usr/src" -maxdepth 3 -type d -name library | head -n 1)
[ -n "$source" ] || give_up "the packages hold no sources of the standard library"
mkdir -p "$sysroot/lib/rustlib/src/rust"
[ -e "$sysroot/lib/rustlib/src/rust/library" ] || ln -s "$source" "$sysroot/lib/rustlib/src/rust/library"
linker=$(find "$(rustc --print sysroot)/lib/rustlib" -name rust-lld -type f | head -n 1)
[ -n "$linker" ] || linker=$(command -v wasm-ld || true)
[ -n "$linker" ] || give_up "there is no linker for WebAssembly (rust-lld or wasm-ld)"

cat > "$dir/env" <<ENV
RUSTC=$rustc
LD_LIBRARY_PATH=$lib
RUSTC_BOOTSTRAP=1
CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=$linker
CARGO_ARGUMENTS=-Z build-std=std,panic_abort
ENV
echo "$(LD_LIBRARY_PATH=$lib "$rustc" --version), in target/wasm-toolchain" >&2
