//! The output of a 2 x 2 transposed convolution on its grid, and tokens without the first: ops that only move numbers.
//!
//! candle has them as views and copies, but its backward fills a tensor with zeros and adds to it for each one on the way.
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::storage::{cpu_f32, slice};
use super::cpu::unwritten::unwritten;
use super::profile::region;

/// `(B, side^2, 4 O) -> (B, (2 side)^2, O)`: the 2 x 2 cells (ky, kx, o) of each cell, to their places on the grid of twice the
/// side.
///
/// # Errors
/// Shapes that do not fit.
pub fn unfold_cells(x: &Tensor, side: usize) -> Result<Tensor> {
    let (_, cells, width) = x.dims3()?;
    if cells != side * side || width % 4 != 0 {
        candle_core::bail!("unfold_cells: {:?} on a grid of {side}", x.dims());
    }
    #[cfg(feature = "cuda")]
    if super::cuda::is_cuda(x) {
        return super::cuda::unfold_cells(x, side);
    }
    if super::is_fused(x) && x.elem_count() > 0 {
        x.contiguous()?.apply_op1(UnfoldCells { side })
    } else {
        super::plain::unfold_cells(x, side)
    }
}

struct UnfoldCells {
    side: usize,
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

impl CustomOp1 for UnfoldCells {
    fn name(&self) -> &'static str {
        "unfold_cells"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _region = region("unfold_cells forward");
        let (batch, cells, width) = layout.shape().dims3()?;
        let x = slice(x, layout)?;
        // The two cells of an output row are neighbours: they move as one.
        // SAFETY: `swap` writes all numbers: as many as there are in x.
        let mut y = unsafe { unwritten(x.len()) };
        swap([self.side, 2, width / 2], x, &mut y);
        let shape = Shape::from((batch, 4 * cells, width / 4));
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _region = region("unfold_cells backward");
        let width = x.dim(2)?;
        let grad = grad.contiguous()?;
        let g = cpu_f32(&grad)?;
        // SAFETY: as above.
        let mut dx = unsafe { unwritten(g.len()) };
        swap([2, self.side, width / 2], &g, &mut dx);
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

/// `(B, 1 + N, D) -> (B, N, D)`: all tokens but the first, the class token.
///
/// # Errors
/// An input of other dimensions, or without a token.
pub fn patch_tokens(x: &Tensor) -> Result<Tensor> {
    let (_, tokens, _) = x.dims3()?;
    if tokens > 1 && super::is_fused(x) && x.elem_count() > 0 {
        x.contiguous()?.apply_op1(PatchTokens)
    } else {
        super::plain::patch_tokens(x)
    }
}

struct PatchTokens;

impl CustomOp1 for PatchTokens {
    fn name(&self) -> &'static str {
        "patch_tokens"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _region = region("patch_tokens forward");
        let (batch, tokens, width) = layout.shape().dims3()?;
        let x = slice(x, layout)?;
        let each = (tokens - 1) * width;
        // SAFETY: the loop writes all images.
        let mut y = unsafe { unwritten(batch * each) };
        y.par_chunks_mut(each)
            .zip(x.par_chunks(tokens * width))
            .for_each(|(y, x)| y.copy_from_slice(&x[width..]));
        let shape = Shape::from((batch, tokens - 1, width));
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _region = region("patch_tokens backward");
        let (batch, tokens, width) = x.dims3()?;
        let grad = grad.contiguous()?;
        let g = cpu_f32(&grad)?;
        // SAFETY: the loop writes all images.
        let mut dx = unsafe { unwritten(batch * tokens * width) };
        dx.par_chunks_mut(tokens * width)
            .zip(g.par_chunks((tokens - 1) * width))
            .for_each(|(dx, g)| {
                dx[..width].fill(0.0);
                dx[width..].copy_from_slice(g);
            });
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
