//! Multi-head self-attention on packed queries, keys and values.
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::math::{exp, simd, sum, sum_by};
use super::matmul::{matmul, Mat, Threads};
use super::storage::{cpu_f32, slice};

/// `(B, T, 3D) -> (B, T, D)`: `softmax(Q K^T / sqrt(D / H)) V` per head, with `qkv` packed as timm packs it: queries of
/// all heads, then keys, then values (Vaswani et al., arXiv 1706.03762).
///
/// # Errors
/// A last dimension that is not 3 x heads x something.
pub fn attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let (_, _, packed) = qkv.dims3()?;
    if heads == 0 || packed == 0 || packed % (3 * heads) != 0 {
        candle_core::bail!("attention: qkv of width {packed} for {heads} heads");
    }
    if super::is_fused(qkv) {
        qkv.contiguous()?.apply_op1(AttentionOp { heads })
    } else {
        super::plain::attention(qkv, heads)
    }
}

/// Keeps for backward: qkv. The score matrix is computed again, never stored.
struct AttentionOp {
    heads: usize,
}

/// One head of one image inside its packed (T, 3D) block.
struct Head<'a> {
    q: Mat<'a>,
    k: Mat<'a>,
    v: Mat<'a>,
    tokens: usize,
    dim: usize,
    scale: f32,
}

impl<'a> Head<'a> {
    fn new(qkv: &'a [f32], tokens: usize, width: usize, heads: usize, head: usize) -> Self {
        let dim = width / heads;
        let part = |i: usize| Mat::rows(&qkv[i * width + head * dim..], 3 * width);
        Self {
            q: part(0),
            k: part(1),
            v: part(2),
            tokens,
            dim,
            scale: 1.0 / (dim as f32).sqrt(),
        }
    }

    /// `softmax(scale * Q K^T)` into `p` (T, T).
    fn probabilities(&self, p: &mut [f32]) {
        let t = self.tokens;
        let shape = (t, self.dim, t);
        matmul(
            shape,
            self.scale,
            self.q,
            self.k.t(),
            p,
            t,
            false,
            Threads::One,
        );
        simd(|| p.chunks_exact_mut(t).for_each(softmax));
    }
}

#[inline(always)]
fn softmax(row: &mut [f32]) {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = row.chunks_exact(16);
    let mut max = f32::NEG_INFINITY;
    for &x in chunks.remainder() {
        max = if x > max { x } else { max };
    }
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] = if chunk[i] > lanes[i] {
                chunk[i]
            } else {
                lanes[i]
            };
        }
    }
    for x in lanes {
        max = if x > max { x } else { max };
    }
    for x in row.iter_mut() {
        // A NaN must stay one: the clamp inside exp keeps it.
        *x = exp(*x - max);
    }
    let inverse = 1.0 / sum(row);
    for x in row.iter_mut() {
        *x *= inverse;
    }
}

impl CustomOp1 for AttentionOp {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, tokens, packed) = layout.shape().dims3()?;
        let width = packed / 3;
        let qkv = slice(qkv, layout)?;
        let mut out = vec![0f32; batch * tokens * width];
        if tokens > 0 {
            out.par_chunks_mut(tokens * width)
                .zip(qkv.par_chunks(tokens * packed))
                .for_each_init(
                    || vec![0f32; tokens * tokens],
                    |p, (out, qkv)| {
                        for head in 0..self.heads {
                            let h = Head::new(qkv, tokens, width, self.heads, head);
                            h.probabilities(p);
                            let out = &mut out[head * h.dim..];
                            let shape = (tokens, tokens, h.dim);
                            let p = Mat::rows(p, tokens);
                            matmul(shape, 1.0, p, h.v, out, width, false, Threads::One);
                        }
                    },
                );
        }
        let shape = Shape::from((batch, tokens, width));
        Ok((CpuStorage::F32(out), shape))
    }

    /// With `P` the probabilities: `dV = P^T dO`, `dP = dO V^T`, `dS = P * (dP - rowsum(P * dP))`,
    /// `dQ = scale dS K`, `dK = scale dS^T Q`.
    fn bwd(&self, qkv: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, tokens, packed) = qkv.dims3()?;
        let width = packed / 3;
        let grad = grad.contiguous()?;
        let (data, g) = (cpu_f32(qkv)?, cpu_f32(&grad)?);
        let mut d = vec![0f32; data.len()];
        if tokens > 0 {
            d.par_chunks_mut(tokens * packed)
                .zip(data.par_chunks(tokens * packed))
                .zip(g.par_chunks(tokens * width))
                .for_each_init(
                    || (vec![0f32; tokens * tokens], vec![0f32; tokens * tokens]),
                    |(p, dp), ((d, qkv), g)| {
                        for head in 0..self.heads {
                            let h = Head::new(qkv, tokens, width, self.heads, head);
                            let g = Mat::rows(&g[head * h.dim..], width);
                            h.backward(p, dp, g, &mut d[head * h.dim..], width);
                        }
                    },
                );
        }
        drop((data, g));
        Ok(Some(Tensor::from_vec(d, qkv.shape(), qkv.device())?))
    }
}

impl Head<'_> {
    fn backward(&self, p: &mut [f32], dp: &mut [f32], g: Mat, d: &mut [f32], width: usize) {
        let (t, dim) = (self.tokens, self.dim);
        let one = Threads::One;
        self.probabilities(p);
        let (inner, outer) = ((t, t, dim), (t, dim, t));
        let dv = &mut d[2 * width..];
        matmul(
            inner,
            1.0,
            Mat::rows(p, t).t(),
            g,
            dv,
            3 * width,
            false,
            one,
        );
        matmul(outer, 1.0, g, self.v.t(), dp, t, false, one);
        simd(|| {
            for (dp, p) in dp.chunks_exact_mut(t).zip(p.chunks_exact(t)) {
                let dot = sum_by(dp, p, |a, b| a * b);
                for (dp, &p) in dp.iter_mut().zip(p) {
                    *dp = p * (*dp - dot);
                }
            }
        });
        let ds = Mat::rows(dp, t);
        matmul(inner, self.scale, ds, self.k, d, 3 * width, false, one);
        let dk = &mut d[width..];
        matmul(inner, self.scale, ds.t(), self.q, dk, 3 * width, false, one);
    }
}
