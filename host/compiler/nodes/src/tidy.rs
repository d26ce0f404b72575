//! The allocator: the usual one, which leaves no garbage behind while a program is loaded.
//!
//! All of the memory as it is after loading becomes part of the component, and of every instance. What loading has
//! freed is zeroed, because zeros are not stored. Afterwards this costs a look at a flag.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

static TIDY: AtomicBool = AtomicBool::new(false);

#[global_allocator]
static ALLOCATOR: Tidy = Tidy;

struct Tidy;

/// While this is `true`, freed memory is zeroed.
pub(crate) fn set(tidy: bool) {
    TIDY.store(tidy, Ordering::Relaxed);
}

fn is_set() -> bool {
    TIDY.load(Ordering::Relaxed)
}

// SAFETY: everything is left to `System`, whose guarantees these are. Memory is written to only where the caller has
// given it up with its size, before it is given back.
unsafe impl GlobalAlloc for Tidy {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        if is_set() {
            unsafe { place.write_bytes(0, layout.size()) };
        }
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !is_set() {
            return unsafe { System.realloc(place, layout, size) };
        }
        // What grows in place would be faster, but where it moves its old place would be left as it is.
        let Ok(wanted) = Layout::from_size_align(size, layout.align()) else { return std::ptr::null_mut() };
        let moved = unsafe { System.alloc(wanted) };
        if !moved.is_null() {
            unsafe { moved.copy_from_nonoverlapping(place, size.min(layout.size())) };
            unsafe { self.dealloc(place, layout) };
        }
        moved
    }
}
