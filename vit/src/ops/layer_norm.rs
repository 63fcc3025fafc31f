//! Layer normalisation over the last dimension.
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, D};
use rayon::prelude::*;

use super::cpu::math::{simd_fn, sum, sum_by};
use super::cpu::matrix::DataMut;
use super::cpu::rounding::round;
use super::cpu::scratch::Buffer;
use super::cpu::storage::{cpu_f32, slice};
use super::cpu::sums::sum_all;
use super::cpu::tiles::{halves_mut, Tile, DEPTH, PANEL};
use super::cpu::unwritten::unwritten;
use super::profile::Profile;
use super::{gelu, Compute, Form};

/// `(.., D) -> (.., D)`: `y = (x - mean) / sqrt(var + eps) * weight + bias` over the last dimension, with the biased
/// variance (Ba et al., arXiv 1607.06450).
///
/// # Errors
/// Shapes that do not fit.
pub fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    compute: &Compute,
) -> Result<Tensor> {
    let form = match compute.form(x) {
        #[cfg(feature = "cuda")]
        Form::Cuda if weight.elem_count() > super::cuda::layer_norm::MAX_WIDTH => Form::Plain,
        form => form,
    };
    if form == Form::Plain {
        return plain(x, weight, bias, eps);
    }
    fused(x, weight, bias, eps, false, compute)
}

/// The same with [`gelu`](super::gelu) behind it, on the CPU as one op: candle's backward then fills one tensor less with zeros and adds
/// to it. Equal to both, to the bit.
///
/// # Errors
/// Shapes that do not fit.
pub fn layer_norm_gelu(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    compute: &Compute,
) -> Result<Tensor> {
    if compute.form(x) != Form::Cpu {
        return gelu::gelu(&layer_norm(x, weight, bias, eps, compute)?, compute);
    }
    fused(x, weight, bias, eps, true, compute)
}

fn fused(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    gelu: bool,
    compute: &Compute,
) -> Result<Tensor> {
    let op = LayerNormOp {
        eps: eps as f32,
        gelu,
        profile: compute.profile.clone(),
    };
    x.contiguous()?
        .apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
}

/// See [`layer_norm`](super::layer_norm).
///
/// # Errors
/// Shapes that do not fit.
pub fn plain(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let var = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred
        .broadcast_div(&(var + eps)?.sqrt()?)?
        .broadcast_mul(weight)?
        .broadcast_add(bias)
}

/// Rows per task, a multiple of a panel of tiles; fixed, so that the bits do not depend on the number of threads.
const ROWS: usize = 32;

/// `y = (x - mean) / sqrt(var + eps) * w + b` for rows as wide as `w`, which is not empty.
pub(super) fn forward(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: DataMut, profile: &Profile) {
    let _region = profile.region("layer_norm forward");
    let rows = x.par_chunks(ROWS * w.len());
    match y {
        DataMut::F32(y) => y
            .par_chunks_mut(ROWS * w.len())
            .zip(rows)
            .for_each(|(y, x)| normalise(x, w, b, eps, y)),
        DataMut::Tiles(y) => y.par_rows_mut(ROWS).zip(rows).for_each(|(y, x)| {
            normalise_into(x, w, b, eps, y);
        }),
        DataMut::Bf16(_) => panic!("layer_norm: bf16 by rows"),
    }
}

/// With `h = (x - mean) * rstd` and `d = g * w`: `dx += rstd * (d - mean(d) - h * mean(d * h))`; returns
/// `dw = sum g * h` and `db = sum g`.
pub(super) fn backward(
    x: &[f32],
    w: &[f32],
    eps: f32,
    g: &[f32],
    dx: &mut [f32],
    profile: &Profile,
) -> (Vec<f32>, Vec<f32>) {
    let _region = profile.region("layer_norm backward");
    let width = w.len();
    let partial: Vec<(Vec<f32>, Vec<f32>)> = dx
        .par_chunks_mut(ROWS * width)
        .zip(x.par_chunks(ROWS * width))
        .zip(g.par_chunks(ROWS * width))
        .map(|((dx, x), g)| {
            let (mut dw, mut db) = (vec![0f32; width], vec![0f32; width]);
            let (mut h, mut d) = (vec![0f32; width], vec![0f32; width]);
            gradients(x, w, eps, g, dx, &mut dw, &mut db, &mut h, &mut d);
            (dw, db)
        })
        .collect();
    let (dw, db): (Vec<_>, Vec<_>) = partial.into_iter().unzip();
    (sum_all(dw, width), sum_all(db, width))
}

#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f32;
    let mean = sum(x) / n;
    let var = sum_by(x, x, |a, _| (a - mean) * (a - mean)) / n;
    (mean, 1.0 / (var + eps).sqrt())
}

simd_fn! {
    fn normalise<'a>(x: &'a [f32], w: &'a [f32], b: &'a [f32], eps: f32, y: &'a mut [f32]) -> () {
        let width = w.len();
        for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let (mean, rstd) = moments(x, eps);
            for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(w).zip(b) {
                *y = (x - mean) * rstd * w + b;
            }
        }
    }
}

simd_fn! {
    /// Rounded into tiles, in their order: memory is written faster one line behind the other.
    fn normalise_into<'a>(x: &'a [f32], w: &'a [f32], b: &'a [f32], eps: f32, y: &'a mut [Tile]) -> () {
        let width = w.len();
        let ((w, w_rest), (b, b_rest)) = (w.as_chunks::<DEPTH>(), b.as_chunks::<DEPTH>());
        let panels = x.chunks(PANEL * width).zip(y.chunks_exact_mut(width.div_ceil(DEPTH)));
        for (x, tiles) in panels {
            let mut norms = [(0f32, 0f32); PANEL];
            for (norm, x) in norms.iter_mut().zip(x.chunks_exact(width)) {
                *norm = moments(x, eps);
            }
            for (step, ((w, b), tile)) in w.iter().zip(b).zip(&mut *tiles).enumerate() {
                for ((x, &norm), line) in x.chunks_exact(width).zip(&norms).zip(tile) {
                    let (x, _) = x.as_chunks::<DEPTH>();
                    normalise_line(&x[step], w, b, norm, halves_mut(line));
                }
            }
            if let (Some(tile), false) = (tiles.last_mut(), w_rest.is_empty()) {
                for ((x, &norm), line) in x.chunks_exact(width).zip(&norms).zip(tile) {
                    let (_, x) = x.as_chunks::<DEPTH>();
                    normalise_line(x, w_rest, b_rest, norm, halves_mut(line));
                }
            }
        }
    }
}

/// A line at a time, of a length that the compiler knows for all but the last.
#[inline(always)]
fn normalise_line(x: &[f32], w: &[f32], b: &[f32], (mean, rstd): (f32, f32), y: &mut [u16]) {
    for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(w).zip(b) {
        *y = round((x - mean) * rstd * w + b);
    }
}

simd_fn! {
    fn gradients<'a>(
        x: &'a [f32],
        w: &'a [f32],
        eps: f32,
        g: &'a [f32],
        dx: &'a mut [f32],
        dw: &'a mut [f32],
        db: &'a mut [f32],
        h: &'a mut [f32],
        d: &'a mut [f32],
    ) -> () {
        let width = w.len();
        let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width));
        for ((dx, x), g) in rows.zip(g.chunks_exact(width)) {
            let (mean, rstd) = moments(x, eps);
            for (h, &x) in h.iter_mut().zip(x) {
                *h = (x - mean) * rstd;
            }
            for ((dw, &h), &g) in dw.iter_mut().zip(&*h).zip(g) {
                *dw += g * h;
            }
            for ((db, &g), (d, &w)) in db.iter_mut().zip(g).zip(d.iter_mut().zip(w)) {
                *db += g;
                *d = g * w;
            }
            let mean_d = sum(d) / width as f32;
            let mean_dh = sum_by(d, h, |d, h| d * h) / width as f32;
            for ((dx, &d), &h) in dx.iter_mut().zip(&*d).zip(&*h) {
                *dx += rstd * (d - mean_d - h * mean_dh);
            }
        }
    }
}

/// Keeps for backward: x; mean and variance are computed again.
struct LayerNormOp {
    eps: f32,
    /// Whether GELU comes behind it.
    gelu: bool,
    profile: Profile,
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
        let _region = self.profile.region("layer_norm, other");
        let (x, w, b) = (slice(x, xl)?, slice(w, wl)?, slice(b, bl)?);
        if w.is_empty() || xl.dims().last() != Some(&w.len()) || b.len() != w.len() {
            candle_core::bail!(
                "layer_norm: input {:?}, weight ({}), bias ({})",
                xl.dims(),
                w.len(),
                b.len()
            );
        }
        // SAFETY: the op writes all of it.
        let mut y = unsafe { unwritten(x.len()) };
        match self.gelu {
            true => {
                let mut n = Buffer::new(x.len());
                forward(x, w, b, self.eps, DataMut::F32(&mut n), &self.profile);
                gelu::forward(&n, &mut y, &self.profile);
            }
            false => forward(x, w, b, self.eps, DataMut::F32(&mut y), &self.profile),
        }
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        w: &CudaStorage,
        wl: &Layout,
        b: &CudaStorage,
        bl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        super::cuda::layer_norm::forward((x, xl), (w, wl), (b, bl), self.eps)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let _region = self.profile.region("layer_norm, other");
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return super::cuda::layer_norm::backward(x, w, b, &grad, self.eps);
        }
        let mut dx = vec![0f32; grad.elem_count()];
        let (numbers, weight, grad) = (cpu_f32(x)?, cpu_f32(w)?, cpu_f32(&grad)?);
        let (bias, profile) = (cpu_f32(b)?, &self.profile);
        // The gradient of what GELU was given.
        let before = self.gelu.then(|| {
            let mut n = Buffer::new(grad.len());
            let to = DataMut::F32(&mut n);
            forward(&numbers, &weight, &bias, self.eps, to, profile);
            gelu::times_derivative(&mut n, &grad, profile);
            n
        });
        let g = before.as_deref().unwrap_or(&grad);
        let (dw, db) = backward(&numbers, &weight, self.eps, g, &mut dx, profile);
        let of = |t: &Tensor, values: Vec<f32>| -> Result<Option<Tensor>> {
            let tensor = || Tensor::from_vec(values, t.shape(), t.device());
            t.track_op().then(tensor).transpose()
        };
        Ok((of(x, dx)?, of(w, dw)?, of(b, db)?))
    }
}
