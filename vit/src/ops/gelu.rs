//! Exact GELU.
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::math::{erf, exp, simd_fn};
use super::cpu::storage::{cpu_f32, slice};
use super::cpu::unwritten::unwritten;
use super::profile::region;

/// `y = x / 2 * (1 + erf(x / sqrt 2))`, element-wise (Hendrycks and Gimpel, arXiv 1606.08415).
///
/// # Errors
/// An error of candle.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if super::cuda::is_cuda(x) {
        return super::cuda::gelu(x);
    }
    if super::is_fused(x) {
        x.contiguous()?.apply_op1(GeluOp)
    } else {
        super::plain::gelu(x)
    }
}

const CHUNK: usize = 16 * 1024;

/// `y = gelu(x)`
pub(super) fn forward(x: &[f32], y: &mut [f32]) {
    let _region = region("gelu forward");
    y.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .for_each(|(y, x)| values(x, y));
}

/// `y = gelu(x)`, and `x` becomes the derivative `Phi(x) + x phi(x)`, with the normal distribution's Phi and phi.
pub(super) fn forward_and_derivative(x: &mut [f32], y: &mut [f32]) {
    let _region = region("gelu backward");
    y.par_chunks_mut(CHUNK)
        .zip(x.par_chunks_mut(CHUNK))
        .for_each(|(y, x)| values_and_derivatives(x, y));
}

/// `a *= b`
pub(super) fn multiply(a: &mut [f32], b: &[f32]) {
    let _region = region("gelu backward");
    a.par_chunks_mut(CHUNK)
        .zip(b.par_chunks(CHUNK))
        .for_each(|(a, b)| a.iter_mut().zip(b).for_each(|(a, b)| *a *= b));
}

#[inline(always)]
fn phi_of(x: f32) -> f32 {
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

simd_fn! {
    fn values<'a>(x: &'a [f32], y: &'a mut [f32]) -> () {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * phi_of(x);
        }
    }
}

simd_fn! {
    fn values_and_derivatives<'a>(x: &'a mut [f32], y: &'a mut [f32]) -> () {
        const INV_SQRT_2PI: f32 = 0.398_942_3;
        for (y, x) in y.iter_mut().zip(x) {
            let cdf = phi_of(*x);
            *y = *x * cdf;
            *x = cdf + *x * INV_SQRT_2PI * exp(-0.5 * *x * *x);
        }
    }
}

/// Keeps for backward: x.
struct GeluOp;

impl CustomOp1 for GeluOp {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _region = region("gelu, other");
        let x = slice(x, layout)?;
        // SAFETY: the op writes all of it.
        let mut y = unsafe { unwritten(x.len()) };
        forward(x, &mut y);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _region = region("gelu, other");
        let grad = grad.contiguous()?;
        let mut dx = cpu_f32(x)?.to_vec();
        let mut y = super::cpu::scratch::Buffer::new(dx.len());
        forward_and_derivative(&mut dx, &mut y);
        multiply(&mut dx, &cpu_f32(&grad)?);
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
