//! What a block keeps of its forward for the backward.
use std::ops::{Deref, DerefMut};

use super::bf16::{round_slice, widen_slice};
use super::scratch::Buffer;
use super::unwritten::unwritten;

/// Activations on their way through a block: memory of their own, or the pool's, which the next block uses again.
pub enum Numbers {
    Own(Vec<f32>),
    Pooled(Buffer),
}

impl Numbers {
    /// So many, of whatever values.
    ///
    /// # Safety
    /// Each number is written before it is read.
    pub unsafe fn new(length: usize, pooled: bool) -> Self {
        match pooled {
            true => Self::Pooled(Buffer::new(length)),
            // SAFETY: the caller's.
            false => Self::Own(unsafe { unwritten(length) }),
        }
    }
}

impl Deref for Numbers {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Own(x) => x,
            Self::Pooled(x) => x,
        }
    }
}

impl DerefMut for Numbers {
    fn deref_mut(&mut self) -> &mut [f32] {
        match self {
            Self::Own(x) => x,
            Self::Pooled(x) => x,
        }
    }
}

/// The same while it waits for the backward.
///
/// In f32 it is given back to the allocator and not to the pool: the weights' gradients, of about the same size, take its
/// place. In bf16 it is half as large: qkv and the heads' output are operands of products, rounded in any case; GELU's derivative
/// is smooth in the hidden layer.
pub enum Waiting {
    F32(Numbers),
    Bf16(Vec<u16>),
}

impl Waiting {
    /// Keeps `numbers` as bf16 or as they are.
    pub fn new(numbers: Numbers, bf16: bool) -> Self {
        match bf16 {
            true => Self::Bf16(round_slice(&numbers)),
            false => Self::F32(numbers),
        }
    }

    /// For use.
    pub fn numbers(self) -> Numbers {
        match self {
            Self::F32(numbers) => numbers,
            Self::Bf16(half) => {
                let mut buffer = Buffer::new(half.len());
                widen_slice(&half, &mut buffer);
                Numbers::Pooled(buffer)
            }
        }
    }
}
