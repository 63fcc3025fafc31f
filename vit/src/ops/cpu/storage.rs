//! Reading a tensor's memory.
use std::ops::Deref;

use candle_core::{CpuStorage, Layout, Result, Storage, StorageRef, Tensor};

/// The elements of a contiguous f32 CPU tensor, borrowed.
pub struct CpuF32<'a> {
    guard: StorageRef<'a>,
    start: usize,
    end: usize,
}

impl Deref for CpuF32<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.start..self.end],
            // `cpu_f32` makes this struct for no other storage.
            _ => &[],
        }
    }
}

/// Borrows the elements of a contiguous f32 CPU tensor.
///
/// # Errors
/// Another device, type or layout.
pub fn cpu_f32(tensor: &Tensor) -> Result<CpuF32<'_>> {
    let (guard, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("expected a contiguous tensor, got {layout:?}");
    };
    if !matches!(&*guard, Storage::Cpu(CpuStorage::F32(_))) {
        candle_core::bail!("expected an f32 tensor on the CPU");
    }
    Ok(CpuF32 { guard, start, end })
}

/// The same, inside a `CustomOp`'s forward.
pub fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(data) = storage else {
        candle_core::bail!("expected f32");
    };
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("expected a contiguous tensor, got {layout:?}");
    };
    Ok(&data[start..end])
}
