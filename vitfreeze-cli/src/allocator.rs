//! Memory between the steps.
//!
//! Tensors of many megabytes come and go with every step. An allocator that hands free memory back to the kernel at once
//! pays for fresh zeroed pages in the next step: more than half of a small model's step (docs/performance.md).

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h, which the binding does not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
/// Milliseconds that free memory is kept: the next steps reuse it, and what a freeze leaves over goes back.
const DELAY_MS: std::ffi::c_long = 10_000;

/// Makes the allocator keep free memory for ten seconds. `MIMALLOC_PURGE_DELAY` in the environment wins.
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
