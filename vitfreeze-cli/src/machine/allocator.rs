//! Memory between the steps.
//!
//! Tensors of many megabytes come and go with every step. An allocator that hands free memory back to the kernel at once
//! pays for fresh zeroed pages in the next step: more than half of a small model's step (docs/performance.md).

use std::alloc::{GlobalAlloc, Layout};

use mimalloc::MiMalloc;

/// mimalloc; where there is no memory left, the program ends with one line and not with an abort and a core dump.
struct Allocator;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Requests beyond this are of data; for a small one that fails nothing could be printed either.
const LARGE: usize = 1 << 16;

/// `memory` as it is, unless there is none.
fn checked(memory: *mut u8, size: usize) -> *mut u8 {
    if memory.is_null() && size >= LARGE {
        use std::io::Write;
        let _ = writeln!(
            std::io::stderr(),
            "error: out of memory: {} MiB more are not available; use a smaller batch, model or image, or fewer threads",
            size.div_ceil(1 << 20)
        );
        std::process::exit(1);
    }
    memory
}

// SAFETY: every call goes to mimalloc as it came, whose contract is the same; what it returns is returned, or the program ends.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        checked(unsafe { MiMalloc.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        checked(unsafe { MiMalloc.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's.
        checked(unsafe { MiMalloc.realloc(memory, layout, size) }, size)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { MiMalloc.dealloc(memory, layout) }
    }
}

/// `mi_option_purge_delay` of mimalloc.h, which the binding does not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
/// Milliseconds that free memory is kept. What is due goes back all at once, also what was freed a moment ago: with ten seconds
/// that was 2 GB every ten seconds, 3 % of a ViT-B's time. What a freeze leaves over goes back at once ([`release_memory`]), what a
/// start or an evaluation leaves over after this time.
const DELAY_MS: std::ffi::c_long = 60_000;

/// Makes the allocator keep free memory for a minute. `MIMALLOC_PURGE_DELAY` in the environment wins.
pub fn keep_memory() {
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: stores a number in a table inside mimalloc, bounds-checked there; called before any other thread runs.
        // There is no safe way: mimalloc reads the environment before main, and the binding has no wrapper.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, DELAY_MS) }
    }
}

/// Hands free memory back now; see `device::release_memory`.
pub fn release_memory() {
    vit::ops::release_buffers();
    // SAFETY: walks the allocator's own lists of free pages; allowed at any time from any thread.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
