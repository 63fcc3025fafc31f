//! New vectors without the zeros, which one thread would write: 2 to 4 % of a training step.

use super::scratch::Line;

/// A type in which every bit pattern is a number.
pub trait Number: Clone {
    /// NaN.
    const UNWRITTEN: Self;
}

impl Number for f32 {
    const UNWRITTEN: Self = f32::NAN;
}

/// bf16.
impl Number for u16 {
    const UNWRITTEN: Self = 0x7fc0;
}

/// Pairs of bf16.
impl Number for Line {
    const UNWRITTEN: Self = Line([0x7fc0_7fc0; 16]);
}

/// `length` numbers that have not been written. In debug builds they are NaN, so that tests see it if one is left out.
///
/// # Safety
/// Each number is written before it is read.
#[allow(clippy::uninit_vec)]
pub unsafe fn unwritten<T: Number>(length: usize) -> Vec<T> {
    if cfg!(debug_assertions) {
        return vec![T::UNWRITTEN; length];
    }
    let mut numbers = Vec::with_capacity(length);
    // SAFETY: they are inside the capacity, and the caller writes them before anything reads them. (`set_len` asks for written
    // numbers: they will have been when the vector leaves the op, and until then only kernels hold it.)
    unsafe { numbers.set_len(length) };
    numbers
}
