//! Exact GELU.
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::math::{erf, exp, simd};
use super::storage::{cpu_f32, slice};

/// `y = x / 2 * (1 + erf(x / sqrt 2))`, element-wise (Hendrycks and Gimpel, arXiv 1606.08415).
///
/// # Errors
/// An error of candle.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if super::is_fused(x) {
        x.contiguous()?.apply_op1(GeluOp)
    } else {
        super::plain::gelu(x)
    }
}

/// Keeps for backward: x.
struct GeluOp;

const CHUNK: usize = 16 * 1024;

impl CustomOp1 for GeluOp {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, layout)?;
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(CHUNK)
            .zip(x.par_chunks(CHUNK))
            .for_each(|(y, x)| {
                simd(|| {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
                    }
                })
            });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    /// `dy/dx = Phi(x) + x phi(x)` with the normal distribution's Phi and phi.
    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        const INV_SQRT_2PI: f32 = 0.398_942_3;
        let grad = grad.contiguous()?;
        let (xs, g) = (cpu_f32(x)?, cpu_f32(&grad)?);
        let mut dx = vec![0f32; xs.len()];
        dx.par_chunks_mut(CHUNK)
            .zip(xs.par_chunks(CHUNK))
            .zip(g.par_chunks(CHUNK))
            .for_each(|((dx, x), g)| {
                simd(|| {
                    for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(g) {
                        let cdf = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
                        let pdf = INV_SQRT_2PI * exp(-0.5 * x * x);
                        *dx = g * (cdf + x * pdf);
                    }
                })
            });
        drop((xs, g));
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
