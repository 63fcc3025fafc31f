//! Rotary positions: queries and keys, turned by the angles of their tokens.
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::math::simd_fn;
use super::cpu::storage::{cpu_f32, slice};
use super::cpu::unwritten::unwritten;
use super::profile::Profile;
use super::{Compute, Form};

/// The angles of tokens, by their cosines and sines. They are no variables.
#[derive(Debug, Clone)]
pub struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    /// Of cosines and sines (B, T, d / 2) for heads of d numbers, or (1, T, d / 2) where all images have the same.
    ///
    /// # Errors
    /// Other dimensions, or not the same ones.
    pub fn new(cos: &Tensor, sin: &Tensor) -> Result<Self> {
        cos.dims3()?;
        if cos.dims() != sin.dims() {
            candle_core::bail!("rotation: cosines {:?}, sines {:?}", cos.dims(), sin.dims());
        }
        let plain = |t: &Tensor| t.detach().to_dtype(DType::F32)?.contiguous();
        Ok(Self {
            cos: plain(cos)?,
            sin: plain(sin)?,
        })
    }

    /// Refuses tokens or heads of other numbers than it is for.
    pub(super) fn check(&self, batch: usize, tokens: usize, head: usize) -> Result<()> {
        let (images, own, half) = self.cos.dims3()?;
        if own != tokens || 2 * half != head || (images != 1 && images != batch) {
            candle_core::bail!(
                "rotation: cosines {:?} for {batch} images of {tokens} tokens and heads of {head}",
                self.cos.dims()
            );
        }
        Ok(())
    }

    /// Turns the queries and keys of rows `qkv` (B * T, 3 D), in place.
    pub(super) fn turn(&self, qkv: &mut [f32], width: usize, way: Way) -> Result<()> {
        self.turn_filled(qkv, width, way, |_, _| {})
    }

    /// The same of rows that `fill` writes before, given their place among all numbers.
    fn turn_filled(
        &self,
        qkv: &mut [f32],
        width: usize,
        way: Way,
        fill: impl Fn(&mut [f32], usize) + Sync,
    ) -> Result<()> {
        let (images, tokens, half) = self.cos.dims3()?;
        let (cos, sin) = (cpu_f32(&self.cos)?, cpu_f32(&self.sin)?);
        let (cos, sin): (&[f32], &[f32]) = (&cos, &sin);
        let (rows, packed) = (images * tokens, 3 * width);
        if rows == 0 || packed == 0 {
            return Ok(());
        }
        qkv.par_chunks_mut(ROWS * packed)
            .enumerate()
            .for_each(|(chunk, qkv)| {
                fill(qkv, chunk * ROWS * packed);
                for (i, row) in qkv.chunks_exact_mut(packed).enumerate() {
                    let at = (chunk * ROWS + i) % rows * half;
                    let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
                    turn(&mut row[..2 * width], cos, sin, way.sign());
                }
            });
        Ok(())
    }
}

/// By the angles, or back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    There,
    /// Also how gradients go: the transpose of a rotation is its inverse.
    Back,
}

impl Way {
    fn sign(self) -> f32 {
        match self {
            Self::There => 1.0,
            Self::Back => -1.0,
        }
    }
}

/// Rows per task.
const ROWS: usize = 32;

simd_fn! {
    /// Turns each head in `heads` (n, 2, half): `a' = a cos - b sin`, `b' = b cos + a sin`.
    fn turn<'a>(heads: &'a mut [f32], cos: &'a [f32], sin: &'a [f32], sign: f32) -> () {
        let half = cos.len();
        for head in heads.chunks_exact_mut(2 * half) {
            let (a, b) = head.split_at_mut(half);
            for (((a, b), &cos), &sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                let (x, y, sin) = (*a, *b, sign * sin);
                *a = x * cos - y * sin;
                *b = y * cos + x * sin;
            }
        }
    }
}

/// `(B, T, 3D) -> (B, T, 3D)`: queries and keys of `qkv`, packed as [`super::attention`] wants it, turned by their tokens'
/// angles (RoFormer: Su et al., arXiv 2104.09864, equation 34; in halves as DINOv3, arXiv 2508.10104): of a head `[a, b]` of
/// two halves, with the angles t of its token, `[a cos t - b sin t, b cos t + a sin t]`. Values stay.
///
/// # Errors
/// A last dimension that is not 3 x heads x 2 x something, angles of other tokens or heads.
pub fn rotate(
    qkv: &Tensor,
    heads: usize,
    rotation: &Rotation,
    compute: &Compute,
) -> Result<Tensor> {
    if compute.form(qkv) != Form::Cpu {
        return plain(qkv, heads, rotation);
    }
    check(qkv, heads, rotation)?;
    qkv.contiguous()?.apply_op1(RotateOp {
        rotation: rotation.clone(),
        profile: compute.profile.clone(),
    })
}

fn check(qkv: &Tensor, heads: usize, rotation: &Rotation) -> Result<()> {
    let (batch, tokens, packed) = qkv.dims3()?;
    if heads == 0 || packed == 0 || packed % (6 * heads) != 0 {
        candle_core::bail!("rotate: qkv of width {packed} for {heads} heads");
    }
    rotation.check(batch, tokens, packed / 3 / heads)
}

/// See [`rotate`](super::rotate).
///
/// # Errors
/// A last dimension that is not 3 x heads x 2 x something, angles of other tokens or heads.
pub fn plain(qkv: &Tensor, heads: usize, rotation: &Rotation) -> Result<Tensor> {
    check(qkv, heads, rotation)?;
    let (batch, tokens, packed) = qkv.dims3()?;
    let half = packed / 6 / heads;
    let x = qkv.reshape((batch, tokens, 3 * heads, 2, half))?;
    let part = |i| {
        x.narrow(2, 0, 2 * heads)?
            .narrow(3, i, 1)?
            .squeeze(3)?
            .contiguous()
    };
    let (a, b) = (part(0)?, part(1)?);
    let angles = |t: &Tensor| t.to_dtype(qkv.dtype())?.unsqueeze(2);
    let (cos, sin) = (angles(&rotation.cos)?, angles(&rotation.sin)?);
    let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let turned = Tensor::stack(&[first, second], 3)?;
    let values = x.narrow(2, 2 * heads, heads)?;
    Tensor::cat(&[&turned, &values.contiguous()?], 2)?.reshape((batch, tokens, packed))
}

/// Keeps nothing for backward.
struct RotateOp {
    rotation: Rotation,
    profile: Profile,
}

impl RotateOp {
    fn run(&self, x: &[f32], width: usize, way: Way) -> Result<Vec<f32>> {
        let _region = self.profile.region("rotate");
        if width == 0 || x.is_empty() {
            return Ok(Vec::new());
        }
        // SAFETY: `fill` writes all rows, of which there are some.
        let mut y = unsafe { unwritten(x.len()) };
        let fill = |y: &mut [f32], at: usize| y.copy_from_slice(&x[at..at + y.len()]);
        self.rotation.turn_filled(&mut y, width, way, fill)?;
        Ok(y)
    }
}

impl CustomOp1 for RotateOp {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, _, packed) = layout.shape().dims3()?;
        let y = self.run(slice(qkv, layout)?, packed / 3, Way::There)?;
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, packed) = qkv.dims3()?;
        let grad = grad.contiguous()?;
        let d = self.run(&cpu_f32(&grad)?, packed / 3, Way::Back)?;
        Ok(Some(Tensor::from_vec(d, qkv.shape(), qkv.device())?))
    }
}
