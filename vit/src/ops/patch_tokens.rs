//! Tokens without the first, the class token: an op that only moves numbers.
//!
//! candle has it as views and copies, but its backward fills a tensor with zeros and adds to it for each one on the way.
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::storage::{cpu_f32, slice};
use super::cpu::unwritten::unwritten;
use super::profile::Profile;
use super::{Compute, Form};

/// `(B, 1 + N, D) -> (B, N, D)`: all tokens but the first, the class token.
///
/// # Errors
/// An input of other dimensions, or without a token.
pub fn patch_tokens(x: &Tensor, compute: &Compute) -> Result<Tensor> {
    let (_, tokens, _) = x.dims3()?;
    if compute.form(x) != Form::Cpu || tokens <= 1 || x.elem_count() == 0 {
        return plain(x);
    }
    let profile = compute.profile.clone();
    x.contiguous()?.apply_op1(PatchTokensOp { profile })
}

/// See [`patch_tokens`](super::patch_tokens).
///
/// # Errors
/// An input without a token.
pub fn plain(x: &Tensor) -> Result<Tensor> {
    match x.dim(1)? {
        0 => candle_core::bail!("patch_tokens: no token"),
        tokens => x.narrow(1, 1, tokens - 1),
    }
}

struct PatchTokensOp {
    profile: Profile,
}

impl CustomOp1 for PatchTokensOp {
    fn name(&self) -> &'static str {
        "patch_tokens"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _region = self.profile.region("patch_tokens forward");
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
        let _region = self.profile.region("patch_tokens backward");
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
