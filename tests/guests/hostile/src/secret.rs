//! One instance leaves a pattern in its memory, another one looks for it: what it finds came out of the sandbox.
//!
//! The pattern is never stored as a constant and the reader never holds a copy of it. Each byte is
//! computed where it is compared, so a search cannot find itself.

use std::hint::black_box;
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::{Value, json};

const PATTERN_BYTES: usize = 64;
const HEAP_BYTES: usize = 1024 * 1024;
const STACK_BYTES: usize = 16 * 1024;
const PAGE_BYTES: usize = 64 * 1024;

/// Memory the reader asks for besides its own: more than the writer had, and small enough to search with the
/// fuel of a step.
const EXTRA_PAGES: usize = 48;

static STATIC_BYTES: [AtomicU8; 4096] = [const { AtomicU8::new(0) }; 4096];

/// Leaves the pattern in heap, stack and static memory. The search that follows must find it: a search that
/// finds nothing proves nothing.
pub(crate) fn write() -> Value {
    let seed = black_box(0x5eed_u32);
    let heap: Vec<u8> = (0..HEAP_BYTES).map(|place| pattern(seed, place)).collect();
    black_box(heap.leak());
    for (place, byte) in STATIC_BYTES.iter().enumerate() {
        byte.store(pattern(seed, place), Ordering::Relaxed);
    }
    // Nobody reads it as far as the compiler can see, and what nobody reads it does not write.
    black_box(&STATIC_BYTES);
    let mut stack = [0_u8; STACK_BYTES];
    for (place, byte) in stack.iter_mut().enumerate() {
        *byte = pattern(seed, place);
    }
    black_box(&stack);
    search(seed, 0)
}

/// Searches this instance's memory, and memory that it gets anew, for the pattern.
pub(crate) fn read() -> Value {
    search(black_box(0x5eed), EXTRA_PAGES)
}

/// `hits` is how often the pattern was found, `dirty_bytes` how many bytes of the new memory were not zero.
fn search(seed: u32, extra_pages: usize) -> Value {
    let old_pages = core::arch::wasm32::memory_grow::<0>(extra_pages);
    let grown = old_pages != usize::MAX;
    let end = core::arch::wasm32::memory_size::<0>() * PAGE_BYTES;
    let new_start = if grown { old_pages * PAGE_BYTES } else { end };

    let first = pattern(seed, 0);
    // Not from 0: the null page holds nothing of Rust's, and a null pointer must not be read.
    let hits = (PATTERN_BYTES..=end - PATTERN_BYTES)
        .filter(|&start| {
            byte(start) == first && (1..PATTERN_BYTES).all(|place| byte(start + place) == pattern(seed, place))
        })
        .count();
    let dirty_bytes = (new_start..end).filter(|&address| byte(address) != 0).count();
    json!({ "hits": hits, "dirty_bytes": dirty_bytes, "searched_bytes": end, "grown": grown })
}

/// Repeats every 64 bytes and looks like nothing else.
fn pattern(seed: u32, place: usize) -> u8 {
    let place = (place % PATTERN_BYTES) as u32;
    let mixed = (seed ^ place).wrapping_mul(0x9e37_79b1).rotate_left(place % 31);
    (mixed ^ (mixed >> 13)).to_le_bytes()[0]
}

fn byte(address: usize) -> u8 {
    // SAFETY: `search` stays between the first bytes and the end of linear memory, every byte of which can be
    // read. Volatile, because the compiler does not know who wrote it.
    unsafe { std::ptr::read_volatile(std::ptr::without_provenance::<u8>(address)) }
}
