#!/usr/bin/env bash
# All tests: the host's, the SDK's, its documentation's, and those of the example guests on this machine.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}

# cargo-nextest runs each test in a process of its own and shows what is slow; without it cargo does it all the same.
if $cargo nextest --version > /dev/null 2>&1; then
  $cargo nextest run --cargo-profile release --locked --workspace
else
  $cargo test --release --locked --workspace --lib --bins --tests
fi
$cargo test --release --locked --quiet -p stepwell-guest -p stepwell-core -p stepwell --doc
scripts/client-test.sh
(cd examples && CARGO_TARGET_DIR=${GUEST_DIR:-$PWD/../target/guests} $cargo test --release --locked --quiet --lib)
