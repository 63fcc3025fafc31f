//! Layer normalisation over the last dimension.
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::linear::sum_all;
use super::math::{simd, sum, sum_by};
use super::storage::{cpu_f32, slice};

/// `(.., D) -> (.., D)`: `y = (x - mean) / sqrt(var + eps) * weight + bias` over the last dimension, with the biased
/// variance (Ba et al., arXiv 1607.06450).
///
/// # Errors
/// Shapes that do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if super::is_fused(x) {
        let op = LayerNormOp { eps: eps as f32 };
        x.contiguous()?.apply_op3(weight, bias, op)
    } else {
        super::plain::layer_norm(x, weight, bias, eps)
    }
}

/// Keeps for backward: x; mean and variance are computed again.
struct LayerNormOp {
    eps: f32,
}

/// Rows per task; fixed, so that the bits do not depend on the number of threads.
const ROWS: usize = 32;

#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum(x) / n;
    let var = sum_by(x, x, |a, _| (a - mean) * (a - mean)) / n;
    (mean, 1.0 / (var + eps).sqrt())
}

impl CustomOp3 for LayerNormOp {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w, b) = (slice(x, xl)?, slice(w, wl)?, slice(b, bl)?);
        let width = w.len();
        if width == 0 || xl.dims().last() != Some(&width) || b.len() != width {
            candle_core::bail!(
                "layer_norm: input {:?}, weight ({width}), bias ({})",
                xl.dims(),
                b.len()
            );
        }
        let mut y = vec![0f32; x.len()];
        y.par_chunks_mut(ROWS * width)
            .zip(x.par_chunks(ROWS * width))
            .for_each(|(y, x)| {
                simd(|| {
                    for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                        let (mean, rstd) = moments(x, self.eps);
                        for i in 0..width {
                            y[i] = (x[i] - mean) * rstd * w[i] + b[i];
                        }
                    }
                })
            });
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    /// With `h = (x - mean) * rstd` and `d = grad * weight`: `dx = rstd * (d - mean(d) - h * mean(d * h))`,
    /// `dweight = sum grad * h`, `dbias = sum grad`.
    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (xs, g, weight) = (cpu_f32(x)?, cpu_f32(&grad)?, cpu_f32(w)?);
        let width = weight.len();
        let weight: &[f32] = &weight;
        let mut dx = vec![0f32; xs.len()];
        let partial: Vec<(Vec<f32>, Vec<f32>)> = dx
            .par_chunks_mut(ROWS * width)
            .zip(xs.par_chunks(ROWS * width))
            .zip(g.par_chunks(ROWS * width))
            .map(|((dx, x), g)| {
                let (mut dw, mut db) = (vec![0f32; width], vec![0f32; width]);
                let mut h = vec![0f32; width];
                simd(|| {
                    let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width));
                    for ((dx, x), g) in rows.zip(g.chunks_exact(width)) {
                        let (mean, rstd) = moments(x, self.eps);
                        for i in 0..width {
                            h[i] = (x[i] - mean) * rstd;
                            dw[i] += g[i] * h[i];
                            db[i] += g[i];
                            dx[i] = g[i] * weight[i];
                        }
                        let mean_d = sum(dx) / width as f32;
                        let mean_dh = sum_by(dx, &h, |d, h| d * h) / width as f32;
                        for i in 0..width {
                            dx[i] = rstd * (dx[i] - mean_d - h[i] * mean_dh);
                        }
                    }
                });
                (dw, db)
            })
            .collect();
        let (dw, db): (Vec<_>, Vec<_>) = partial.into_iter().unzip();
        let device = x.device();
        let param = |t: &Tensor, partial| -> Result<Option<Tensor>> {
            t.track_op()
                .then(|| Tensor::from_vec(sum_all(partial, width), t.shape(), device))
                .transpose()
        };
        let dx = x
            .track_op()
            .then(|| Tensor::from_vec(dx, x.shape(), device))
            .transpose()?;
        Ok((dx, param(w, dw)?, param(b, db)?))
    }
}
