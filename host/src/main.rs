//! The `stepwell` program. Everything is in the library.

use std::process::ExitCode;

// Short-lived allocations of many threads are what this program mostly makes; see docs/measurements.md.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    stepwell::cli::main()
}
