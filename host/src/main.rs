//! The `stepwell` program. Everything is in the library.

use std::process::ExitCode;

// Short-lived allocations of many threads are what this program mostly makes, and what this allocator is made for. Not
// measured against the system's here.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    stepwell::cli::main()
}
