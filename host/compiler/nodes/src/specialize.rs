//! How the compiler hands over a program, and where it stays: see the crate's documentation for the order of calls.
//!
//! Owns: the one thing that lasts from loading to the steps. Everything else that loading leaves in memory is garbage,
//! and is zeroed ([`crate::tidy`]).
//! Invariant: none of these functions calls an import.

use std::cell::{Cell, RefCell};

use crate::program::{Program, problems_json};
use crate::tidy;

thread_local! {
    // There is one thread. The program is never dropped: an instance ends as a whole.
    static PROGRAM: Cell<Option<&'static Program>> = const { Cell::new(None) };
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

/// The program that this guest was specialised with.
pub(crate) fn program() -> Option<&'static Program> {
    PROGRAM.get()
}

/// Room for a program of so many bytes, which is the compiler's until it calls [`load_program`].
#[unsafe(no_mangle)] // SAFETY: no other function has this name, nor one of those below.
extern "C" fn program_buffer(length: u32) -> *mut u8 {
    let mut buffer = vec![0; usize::try_from(length).unwrap_or(0)];
    let place = buffer.as_mut_ptr();
    BUFFER.set(buffer);
    place
}

/// Loads the program in the buffer and returns how many problems there are.
#[unsafe(no_mangle)]
extern "C" fn load_program() -> u32 {
    tidy::set(true);
    let loaded = Program::load(&BUFFER.take());
    tidy::set(false);
    match loaded {
        Ok(program) => {
            PROGRAM.set(Some(Box::leak(Box::new(program))));
            0
        }
        Err(problems) => {
            ERROR.set(problems_json(&problems));
            u32::try_from(problems.len()).unwrap_or(u32::MAX)
        }
    }
}

/// Where the problems are, as JSON.
#[unsafe(no_mangle)]
extern "C" fn program_error() -> *const u8 {
    ERROR.with_borrow(|error| error.as_ptr())
}

/// How many bytes that is.
#[unsafe(no_mangle)]
extern "C" fn program_error_len() -> u32 {
    ERROR.with_borrow(|error| u32::try_from(error.len()).unwrap_or(0))
}
