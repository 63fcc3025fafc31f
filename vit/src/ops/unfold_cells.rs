//! The output of a 2 x 2 transposed convolution on its grid: an op that only moves numbers.
//!
//! candle has it as views and copies, but its backward fills a tensor with zeros and adds to it for each one on the way.
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::storage::{cpu_f32, slice};
use super::cpu::unwritten::unwritten;
use super::profile::Profile;
use super::{linear, Compute, Form};

/// `(B, side^2, 4 O) -> (B, (2 side)^2, O)`: the 2 x 2 cells (ky, kx, o) of each cell, to their places on the grid of twice the
/// side.
///
/// # Errors
/// Shapes that do not fit.
pub fn unfold_cells(x: &Tensor, side: usize, compute: &Compute) -> Result<Tensor> {
    let (_, cells, width) = x.dims3()?;
    if cells != side * side || width % 4 != 0 {
        candle_core::bail!("unfold_cells: {:?} on a grid of {side}", x.dims());
    }
    if compute.form(x) == Form::Plain || x.elem_count() == 0 {
        return plain(x, side);
    }
    let profile = compute.profile.clone();
    x.contiguous()?.apply_op1(UnfoldCellsOp { side, profile })
}

/// `(B, side^2, I) -> (B, (2 side)^2, O)`: [`linear`](super::linear) with `weight` (4 O, I) and `bias` (4 O), then [`unfold_cells`]: a
/// 2 x 2 transposed convolution with stride 2. On the CPU one op, which spares candle's backward a tensor.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear_cells(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    side: usize,
    compute: &Compute,
) -> Result<Tensor> {
    let (_, cells, _) = x.dims3()?;
    let outputs = bias.elem_count();
    if cells != side * side || !outputs.is_multiple_of(4) {
        candle_core::bail!(
            "linear_cells: {:?} on a grid of {side}, {outputs} outputs",
            x.dims()
        );
    }
    if compute.product_form(x) != Form::Cpu || x.elem_count() == 0 {
        return unfold_cells(&super::linear(x, weight, bias, compute)?, side, compute);
    }
    linear::fused(x, weight, bias, Some(side), compute)
}

/// See [`unfold_cells`](super::unfold_cells).
///
/// # Errors
/// Shapes that do not fit.
pub fn plain(x: &Tensor, side: usize) -> Result<Tensor> {
    let (batch, cells, width) = x.dims3()?;
    x.reshape((batch * side, side, 2, width / 2))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((batch, 4 * cells, width / 4))
}

struct UnfoldCellsOp {
    side: usize,
    profile: Profile,
}

/// `(N, A, B, C) -> (N, B, A, C)`.
fn swap([a, b, c]: [usize; 3], from: &[f32], to: &mut [f32]) {
    to.par_chunks_mut(a * b * c)
        .zip(from.par_chunks(a * b * c))
        .for_each(|(to, from)| {
            for (i, to) in to.chunks_exact_mut(c).enumerate() {
                let (b_at, a_at) = (i / a, i % a);
                to.copy_from_slice(&from[(a_at * b + b_at) * c..][..c]);
            }
        });
}

/// Cells of `width` numbers on a grid of `side` to their places.
pub(super) fn unfold(x: &[f32], side: usize, width: usize, y: &mut [f32]) {
    // The two cells of an output row are neighbours: they move as one.
    swap([side, 2, width / 2], x, y);
}

/// Back.
pub(super) fn fold(y: &[f32], side: usize, width: usize, x: &mut [f32]) {
    swap([2, side, width / 2], y, x);
}

impl CustomOp1 for UnfoldCellsOp {
    fn name(&self) -> &'static str {
        "unfold_cells"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _region = self.profile.region("unfold_cells forward");
        let (batch, cells, width) = layout.shape().dims3()?;
        let x = slice(x, layout)?;
        // SAFETY: all numbers are written: as many as there are in x.
        let mut y = unsafe { unwritten(x.len()) };
        unfold(x, self.side, width, &mut y);
        let shape = Shape::from((batch, 4 * cells, width / 4));
        Ok((CpuStorage::F32(y), shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        super::cuda::unfold_cells::forward(x, layout, self.side)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _region = self.profile.region("unfold_cells backward");
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return super::cuda::unfold_cells::backward(x, &grad, self.side).map(Some);
        }
        let width = x.dim(2)?;
        let g = cpu_f32(&grad)?;
        // SAFETY: as above.
        let mut dx = unsafe { unwritten(g.len()) };
        fold(&g, self.side, width, &mut dx);
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
