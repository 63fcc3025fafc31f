//! New vectors without the zeros, which one thread would write: 2 to 4 % of a training step.

/// `length` numbers that have not been written. In debug builds they are NaN, so that tests see it if one is left out.
///
/// # Safety
/// Each number is written before it is read.
#[allow(clippy::uninit_vec)]
pub(super) unsafe fn unwritten(length: usize) -> Vec<f32> {
    if cfg!(debug_assertions) {
        return vec![f32::NAN; length];
    }
    let mut numbers = Vec::with_capacity(length);
    // SAFETY: they are inside the capacity, all bits are a number, and the caller writes them before anything reads them.
    unsafe { numbers.set_len(length) };
    numbers
}
