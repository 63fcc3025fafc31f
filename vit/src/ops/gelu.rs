//! Exact GELU.
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::activations::{Activations, Factors, Numbers};
use super::cpu::engine::Engine;
use super::cpu::math::{erf, exp, simd_fn};
use super::cpu::matrix::{Data, DataMut};
use super::cpu::rounding::{round, widen};
use super::cpu::scratch::Buffer;
use super::cpu::storage::{cpu_f32, slice};
use super::cpu::sums::round_product_and_sum;
use super::cpu::tiles::{halves, halves_mut, Tile, Tiles, PANEL};
use super::cpu::unwritten::unwritten;
use super::linear::Gradient;
use super::profile::Profile;
use super::{Compute, Form};

/// `y = x / 2 * (1 + erf(x / sqrt 2))`, element-wise (Hendrycks and Gimpel, arXiv 1606.08415).
///
/// # Errors
/// An error of candle.
pub fn gelu(x: &Tensor, compute: &Compute) -> Result<Tensor> {
    if compute.form(x) == Form::Plain {
        return plain(x);
    }
    let profile = compute.profile.clone();
    x.contiguous()?.apply_op1(GeluOp { profile })
}

/// See [`gelu`](super::gelu).
///
/// # Errors
/// An error of candle.
pub fn plain(x: &Tensor) -> Result<Tensor> {
    x.gelu_erf()
}

const CHUNK: usize = 16 * 1024;

/// `y = gelu(x)`
pub(super) fn forward(x: &[f32], y: &mut [f32], profile: &Profile) {
    let _region = profile.region("gelu forward");
    y.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .for_each(|(y, x)| values(x, 1.0, y));
}

/// `y = factor * gelu(x)` with a factor for each row; x and y of one type.
pub(super) fn rows(x: Data, width: usize, factors: Factors, y: DataMut, profile: &Profile) {
    /// Rows in one task.
    const ROWS: usize = 16;
    let _region = profile.region("gelu forward");
    match (x, y) {
        (Data::F32(x), DataMut::F32(y)) => y
            .par_chunks_mut(width)
            .with_min_len(ROWS)
            .zip(x.par_chunks(width))
            .enumerate()
            .for_each(|(row, (y, x))| values(x, factors.row(row), y)),
        (Data::Tiles(x), DataMut::Tiles(y)) => {
            let (steps, rows) = (x.steps(), x.outer());
            y.par_rows_mut(PANEL)
                .zip(x.tiles().par_chunks(steps))
                .enumerate()
                .for_each(|(panel, (y, x))| {
                    let factor = |r: usize| factors.row((PANEL * panel + r).min(rows - 1));
                    rounded_values(x, &std::array::from_fn(factor), y);
                });
        }
        _ => panic!("gelu: two types"),
    }
}

/// `y = gelu(x)`, and the derivative `Phi(x) + x phi(x)` in f32, in the order of x, with the normal distribution's Phi and phi.
pub(super) fn forward_and_derivative(
    x: Activations,
    y: DataMut,
    profile: &Profile,
) -> Numbers<f32> {
    let _region = profile.region("gelu backward");
    match (x, y) {
        (Activations::F32(mut x), DataMut::F32(y)) => {
            y.par_chunks_mut(CHUNK)
                .zip(x.par_chunks_mut(CHUNK))
                .for_each(|(y, x)| values_and_derivatives(x, y));
            x
        }
        (Activations::Tiles(x), DataMut::Tiles(y)) => {
            let (x, y) = (x.tiles(), y.tiles_mut());
            let x: &[u16] = bytemuck::cast_slice(x.as_flattened());
            let y: &mut [u16] = bytemuck::cast_slice_mut(y.as_flattened_mut());
            let mut d = Buffer::new(x.len());
            y.par_chunks_mut(CHUNK)
                .zip(d.par_chunks_mut(CHUNK))
                .zip(x.par_chunks(CHUNK))
                .for_each(|((y, d), x)| rounded_values_and_derivatives(x, y, d));
            Numbers::Pooled(d)
        }
        _ => panic!("gelu: two types"),
    }
}

/// `x` becomes `g` times the derivative at x.
pub(super) fn times_derivative(x: &mut [f32], g: &[f32], profile: &Profile) {
    let _region = profile.region("gelu backward");
    x.par_chunks_mut(CHUNK)
        .zip(g.par_chunks(CHUNK))
        .for_each(|(x, g)| {
            derivatives(x);
            products(x, g);
        });
}

/// `g` times the derivative, as products take it.
pub(super) fn gradient(
    mut derivative: Numbers<f32>,
    g: &[f32],
    width: usize,
    engine: Engine,
) -> Gradient<'static> {
    let _region = engine.profile.region("gelu backward");
    match engine.unit {
        Some(_) => {
            // SAFETY: written whole right below.
            let mut rounded = unsafe { Tiles::rows(g.len() / width, width, true) };
            let sums = round_product_and_sum(&derivative, g, &mut rounded);
            Gradient::Bf16 { rounded, sums }
        }
        None => {
            let pairs = derivative.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK));
            pairs.for_each(|(a, b)| products(a, b));
            Gradient::Own(derivative)
        }
    }
}

#[inline(always)]
fn phi_of(x: f32) -> f32 {
    0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

simd_fn! {
    fn values<'a>(x: &'a [f32], factor: f32, y: &'a mut [f32]) -> () {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = factor * (x * phi_of(x));
        }
    }
}

simd_fn! {
    /// Of a panel, each row times its factor.
    fn rounded_values<'a>(x: &'a [Tile], factors: &'a [f32; PANEL], y: &'a mut [Tile]) -> () {
        for (x, y) in x.iter().zip(y) {
            for ((x, y), factor) in x.iter().zip(y).zip(factors) {
                for (y, &x) in halves_mut(y).iter_mut().zip(halves(x)) {
                    let x = widen(x);
                    *y = round(factor * (x * phi_of(x)));
                }
            }
        }
    }
}

simd_fn! {
    fn products<'a>(a: &'a mut [f32], b: &'a [f32]) -> () {
        for (a, b) in a.iter_mut().zip(b) {
            *a *= b;
        }
    }
}

/// Of x, with Phi(x) given.
#[inline(always)]
fn derivative(x: f32, cdf: f32) -> f32 {
    const INV_SQRT_2PI: f32 = 0.398_942_3;
    cdf + x * INV_SQRT_2PI * exp(-0.5 * x * x)
}

simd_fn! {
    fn values_and_derivatives<'a>(x: &'a mut [f32], y: &'a mut [f32]) -> () {
        for (y, x) in y.iter_mut().zip(x) {
            let cdf = phi_of(*x);
            *y = *x * cdf;
            *x = derivative(*x, cdf);
        }
    }
}

simd_fn! {
    fn rounded_values_and_derivatives<'a>(x: &'a [u16], y: &'a mut [u16], d: &'a mut [f32]) -> () {
        for ((y, d), &x) in y.iter_mut().zip(d).zip(x) {
            let x = widen(x);
            let cdf = phi_of(x);
            *y = round(x * cdf);
            *d = derivative(x, cdf);
        }
    }
}

simd_fn! {
    fn derivatives<'a>(x: &'a mut [f32]) -> () {
        for x in x.iter_mut() {
            *x = derivative(*x, phi_of(*x));
        }
    }
}

/// Keeps for backward: x.
struct GeluOp {
    profile: Profile,
}

impl CustomOp1 for GeluOp {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _region = self.profile.region("gelu, other");
        let x = slice(x, layout)?;
        // SAFETY: the op writes all of it.
        let mut y = unsafe { unwritten(x.len()) };
        forward(x, &mut y, &self.profile);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        super::cuda::gelu::forward(x, layout)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _region = self.profile.region("gelu, other");
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return super::cuda::gelu::backward(x, &grad).map(Some);
        }
        let mut dx = cpu_f32(x)?.to_vec();
        times_derivative(&mut dx, &cpu_f32(&grad)?, &self.profile);
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
