//! Activations on their way through a block.
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;

use super::matrix::{Data, DataMut};
use super::scratch::Memory;
use super::tiles::Tiles;
use super::unwritten::{unwritten, Number};

/// f32, or bf16 if products are: nearly all of them are operands of products, which round them in any case, and bf16 is half as
/// much to write, to read and to keep for the backward. In tiles, products take them as they are.
pub enum Activations {
    F32(Numbers<f32>),
    Bf16(Numbers<u16>),
    Tiles(Tiles),
}

impl Activations {
    pub fn data(&self) -> Data<'_> {
        match self {
            Self::F32(numbers) => Data::F32(numbers),
            Self::Bf16(numbers) => Data::Bf16(numbers),
            Self::Tiles(tiles) => Data::Tiles(tiles),
        }
    }

    pub fn data_mut(&mut self) -> DataMut<'_> {
        match self {
            Self::F32(numbers) => DataMut::F32(numbers),
            Self::Bf16(numbers) => DataMut::Bf16(numbers),
            Self::Tiles(tiles) => DataMut::Tiles(tiles),
        }
    }
}

/// Memory of their own, which what comes next of the allocator's takes when they are gone; or the pool's, which the next block
/// uses again.
pub enum Numbers<T> {
    Own(Vec<T>),
    Pooled(Memory<T>),
}

impl<T: Number + Pod> Numbers<T> {
    /// So many, of whatever values.
    ///
    /// # Safety
    /// Each number is written before it is read.
    pub unsafe fn new(length: usize, pooled: bool) -> Self {
        match pooled {
            true => Self::Pooled(Memory::new(length)),
            // SAFETY: the caller's.
            false => Self::Own(unsafe { unwritten(length) }),
        }
    }
}

impl<T: Pod> Deref for Numbers<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Own(x) => x,
            Self::Pooled(x) => x,
        }
    }
}

impl<T: Pod> DerefMut for Numbers<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::Own(x) => x,
            Self::Pooled(x) => x,
        }
    }
}

/// A factor for the rows of each image (drop path), or none.
#[derive(Clone, Copy)]
pub struct Factors<'a> {
    pub images: Option<&'a [f32]>,
    /// Rows of an image.
    pub tokens: usize,
}

impl Factors<'_> {
    /// 1 for each.
    pub const NONE: Self = Self {
        images: None,
        tokens: 1,
    };

    pub fn image(&self, image: usize) -> f32 {
        self.images.map_or(1.0, |images| images[image])
    }

    pub fn row(&self, row: usize) -> f32 {
        self.image(row / self.tokens)
    }
}
