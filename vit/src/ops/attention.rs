//! Multi-head self-attention on packed queries, keys and values.
use std::marker::PhantomData;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, D};
use rayon::prelude::*;

use super::cpu::activations::Factors;
use super::cpu::engine::Engine;
use super::cpu::math::{exp, simd_fn, sum, sum_by};
use super::cpu::matrix::{Data, DataMut, Mat, Product, Threads};
use super::cpu::rounding::round;
use super::cpu::storage::{cpu_f32, slice};
use super::cpu::sums::add_rows;
use super::cpu::tiles::{place, Tiles, DEPTH};
use super::cpu::unwritten::unwritten;
use super::{Compute, Form};

/// `(B, T, 3D) -> (B, T, D)`: `softmax(Q K^T / sqrt(D / H)) V` per head, with `qkv` packed as timm packs it: queries of
/// all heads, then keys, then values (Vaswani et al., arXiv 1706.03762).
///
/// # Errors
/// A last dimension that is not 3 x heads x something.
pub fn attention(qkv: &Tensor, heads: usize, compute: &Compute) -> Result<Tensor> {
    let (_, _, packed) = qkv.dims3()?;
    if heads == 0 || packed == 0 || packed % (3 * heads) != 0 {
        candle_core::bail!("attention: qkv of width {packed} for {heads} heads");
    }
    if compute.product_form(qkv) == Form::Plain {
        return plain(qkv, heads, compute);
    }
    qkv.contiguous()?.apply_op1(AttentionOp {
        heads,
        compute: compute.clone(),
        #[cfg(feature = "cuda")]
        kept: super::cuda::attention::Kept::new(qkv),
    })
}

/// See [`attention`](super::attention).
///
/// # Errors
/// A last dimension that is not 3 x heads x something.
pub fn plain(qkv: &Tensor, heads: usize, compute: &Compute) -> Result<Tensor> {
    let (batch, tokens, packed) = qkv.dims3()?;
    if heads == 0 || packed % (3 * heads) != 0 {
        candle_core::bail!("attention: qkv of width {packed} for {heads} heads");
    }
    let dim = packed / 3 / heads;
    let qkv = qkv
        .reshape((batch, tokens, 3, heads, dim))?
        .permute((2, 0, 3, 1, 4))?
        .contiguous()?;
    let (q, k, v) = (qkv.get(0)?, qkv.get(1)?, qkv.get(2)?);
    let scores = (compute.plain_product(&q, &k.t()?)? * (1.0 / (dim as f64).sqrt()))?;
    let p = candle_nn::ops::softmax(&scores, D::Minus1)?;
    compute
        .plain_product(&p, &v)?
        .transpose(1, 2)?
        .reshape((batch, tokens, heads * dim))
}

/// One head of one image inside its packed (T, 3D) block.
struct Head<'a> {
    q: Mat<'a>,
    k: Mat<'a>,
    v: Mat<'a>,
    tokens: usize,
    dim: usize,
    scale: f32,
    engine: Engine<'a>,
}

impl<'a> Head<'a> {
    fn new(
        qkv: Data<'a>,
        (tokens, width): (usize, usize),
        (head, heads): (usize, usize),
        engine: Engine<'a>,
    ) -> Self {
        let dim = width / heads;
        let part = |i: usize| Mat::of(qkv.from(i * width + head * dim), 3 * width);
        Self {
            q: part(0),
            k: part(1),
            v: part(2),
            tokens,
            dim,
            scale: 1.0 / (dim as f32).sqrt(),
            engine: engine.untimed(),
        }
    }

    /// `dst = lhs . rhs`, rows of dst as wide as the product, on this thread.
    fn product(&self, shape: (usize, usize, usize), lhs: Mat, rhs: Mat, dst: &mut [f32]) {
        let product = Product {
            threads: Threads::One,
            ..Product::new(shape, lhs, rhs)
        };
        product.into(dst, self.engine);
    }

    /// `softmax(scale * Q K^T)` into `p` (T, T).
    fn probabilities(&self, p: &mut [f32]) {
        let t = self.tokens;
        self.product((t, self.dim, t), self.q, self.k.t(), p);
        softmax_rows(p, t, self.scale);
    }
}

/// `(B, T, 3D) -> (B, T, D)`, times the image's factor; `tokens` and `width` are T and D, both at least 1.
pub(super) fn forward(
    qkv: Data,
    (tokens, width): (usize, usize),
    heads: usize,
    factors: Factors,
    out: DataMut,
    engine: Engine,
) {
    let _region = engine.profile.region("attention forward");
    let dim = width / heads;
    // Each head of each image is a task, which writes columns of its own.
    let tasks = out.len() / (tokens * width) * heads;
    let head = |p: &mut [f32], piece: &mut [f32], i: usize| {
        let qkv = qkv.from(i / heads * tokens * 3 * width);
        let h = Head::new(qkv, (tokens, width), (i % heads, heads), engine);
        h.probabilities(p);
        h.product((tokens, tokens, dim), Mat::rows(p, tokens), h.v, piece);
        (i / heads, i % heads * dim, factors.image(i / heads))
    };
    let memory = || (vec![0f32; tokens * tokens], vec![0f32; tokens * dim]);
    match out {
        DataMut::F32(out) => {
            let columns = Columns::new(out, width, tokens);
            (0..tasks)
                .into_par_iter()
                .for_each_init(memory, |(p, piece), i| {
                    let (image, first, factor) = head(p, piece, i);
                    scale(piece, factor);
                    // SAFETY: no other task has this image and head.
                    unsafe { columns.put(image, first, piece, dim) };
                });
        }
        DataMut::Tiles(out) => {
            let columns = TileColumns::new(out);
            let memory = || (memory(), vec![0u16; tokens * dim]);
            (0..tasks)
                .into_par_iter()
                .for_each_init(memory, |((p, piece), rounded), i| {
                    let (image, first, factor) = head(p, piece, i);
                    round_scaled(piece, factor, rounded);
                    // SAFETY: no other task has this image and head.
                    unsafe { columns.put(image * tokens, first, rounded, dim) };
                });
        }
        DataMut::Bf16(_) => panic!("attention: bf16 by rows"),
    }
}

/// A matrix of which each task writes some columns of one image's rows.
struct Columns<'a> {
    data: *mut f32,
    width: usize,
    tokens: usize,
    length: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: it holds the only reference to its numbers, and tasks write different ones, as `put` demands.
unsafe impl Sync for Columns<'_> {}

impl<'a> Columns<'a> {
    fn new(data: &'a mut [f32], width: usize, tokens: usize) -> Self {
        Self {
            data: data.as_mut_ptr(),
            width,
            tokens,
            length: data.len(),
            lifetime: PhantomData,
        }
    }

    /// A piece of `dim` columns to the columns from `first` on of an image's rows.
    ///
    /// # Safety
    /// No other thread uses these columns of this image meanwhile.
    unsafe fn put(&self, image: usize, first: usize, piece: &[f32], dim: usize) {
        let images = self.length / (self.tokens * self.width);
        assert!(image < images && first + dim <= self.width);
        assert_eq!(piece.len(), self.tokens * dim);
        for (token, row) in piece.chunks_exact(dim).enumerate() {
            let at = (image * self.tokens + token) * self.width + first;
            // SAFETY: inside the matrix, as asserted; the caller's for the rest.
            unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), self.data.add(at), dim) };
        }
    }
}

/// The same in tiles.
struct TileColumns<'a> {
    halves: *mut u16,
    rows: usize,
    width: usize,
    steps: usize,
    lifetime: PhantomData<&'a mut Tiles>,
}

// SAFETY: it holds the only reference to its numbers, and tasks write different ones, as `put` demands.
unsafe impl Sync for TileColumns<'_> {}

impl<'a> TileColumns<'a> {
    fn new(tiles: &'a mut Tiles) -> Self {
        Self {
            rows: tiles.outer(),
            width: tiles.depth(),
            steps: tiles.steps(),
            halves: tiles.tiles_mut().as_mut_ptr().cast(),
            lifetime: PhantomData,
        }
    }

    /// A piece of `dim` columns to the columns from `first` on, of the rows from `row` on.
    ///
    /// # Safety
    /// No other thread uses these columns of these rows meanwhile.
    unsafe fn put(&self, row: usize, first: usize, piece: &[u16], dim: usize) {
        assert!(row + piece.len() / dim <= self.rows && first + dim <= self.width);
        // Line by line of each row's, rows inside, which follow one another in a tile.
        let mut column = first;
        while column < first + dim {
            let count = (DEPTH - column % DEPTH).min(first + dim - column);
            for (row, values) in (row..).zip(piece.chunks_exact(dim)) {
                let values = &values[column - first..][..count];
                // SAFETY: inside the matrix, as asserted, and inside the line; the caller's for the rest.
                unsafe {
                    let to = self.halves.add(place(row, column, self.steps));
                    match count {
                        // Of a length that the compiler knows.
                        DEPTH => std::ptr::copy_nonoverlapping(values.as_ptr(), to, DEPTH),
                        _ => std::ptr::copy_nonoverlapping(values.as_ptr(), to, count),
                    }
                }
            }
            column += count;
        }
    }
}

/// The gradient of qkv into `d` (B, T, 3D), from that of the output, `g` (B, T, D). With `P` the probabilities:
/// `dV = P^T dO`, `dP = dO V^T`, `dS = scale P * (dP - rowsum(P * dP))`, `dQ = dS K`, `dK = dS^T Q`.
pub(super) fn backward(
    qkv: Data,
    g: &[f32],
    (tokens, width): (usize, usize),
    heads: usize,
    d: &mut [f32],
    engine: Engine,
) {
    let _region = engine.profile.region("attention backward");
    let dim = width / heads;
    let columns = Columns::new(d, 3 * width, tokens);
    each_gradient(qkv, g, (tokens, width), heads, engine, |i, pieces| {
        for (part, piece) in pieces.chunks_exact(tokens * dim).enumerate() {
            let first = part * width + i % heads * dim;
            // SAFETY: no other task has this image and head.
            unsafe { columns.put(i / heads, first, piece, dim) };
        }
    });
}

/// The same, rounded into tiles; returns the sums over the rows, of what is not rounded.
pub(super) fn backward_rounded(
    qkv: Data,
    g: &[f32],
    (tokens, width): (usize, usize),
    heads: usize,
    d: &mut Tiles,
    engine: Engine,
) -> Vec<f32> {
    let _region = engine.profile.region("attention backward");
    let dim = width / heads;
    let columns = TileColumns::new(d);
    let sums = each_gradient(qkv, g, (tokens, width), heads, engine, |i, pieces| {
        let mut sums = vec![0f32; 3 * dim];
        let mut rounded = vec![0u16; tokens * dim];
        let parts = pieces
            .chunks_exact(tokens * dim)
            .zip(sums.chunks_exact_mut(dim));
        for (part, (piece, sums)) in parts.enumerate() {
            add_rows(piece, sums);
            round_scaled(piece, 1.0, &mut rounded);
            let first = part * width + i % heads * dim;
            // SAFETY: no other task has this image and head.
            unsafe { columns.put(i / heads * tokens, first, &rounded, dim) };
        }
        sums
    });
    let mut total = vec![0f32; 3 * width];
    for (i, sums) in sums.iter().enumerate() {
        for (part, sums) in sums.chunks_exact(dim).enumerate() {
            let first = part * width + i % heads * dim;
            add_rows(sums, &mut total[first..first + dim]);
        }
    }
    total
}

/// `take` of each head's number (image by image) and its gradients of queries, keys and values, one after the other.
fn each_gradient<R: Send>(
    qkv: Data,
    g: &[f32],
    (tokens, width): (usize, usize),
    heads: usize,
    engine: Engine,
    take: impl Fn(usize, &[f32]) -> R + Sync,
) -> Vec<R> {
    let dim = width / heads;
    let zeros = |length| vec![0f32; length];
    let memory = || {
        let square = tokens * tokens;
        (zeros(square), zeros(square), zeros(3 * tokens * dim))
    };
    (0..g.len() / (tokens * width) * heads)
        .into_par_iter()
        .map_init(memory, |(p, dp, pieces), i| {
            let (image, head) = (i / heads, i % heads);
            let g = &g[image * tokens * width + head * dim..];
            let qkv = qkv.from(image * tokens * 3 * width);
            let h = Head::new(qkv, (tokens, width), (head, heads), engine);
            h.backward(p, dp, Mat::rows(g, width), pieces);
            take(i, pieces)
        })
        .collect()
}

simd_fn! {
    fn scale<'a>(x: &'a mut [f32], factor: f32) -> () {
        for x in x.iter_mut() {
            *x *= factor;
        }
    }
}

simd_fn! {
    fn round_scaled<'a>(x: &'a [f32], factor: f32, rounded: &'a mut [u16]) -> () {
        for (rounded, &x) in rounded.iter_mut().zip(x) {
            *rounded = round(factor * x);
        }
    }
}

impl Head<'_> {
    /// The gradients of queries, keys and values, one after the other, into `d`.
    fn backward(&self, p: &mut [f32], dp: &mut [f32], g: Mat, d: &mut [f32]) {
        let (t, dim) = (self.tokens, self.dim);
        self.probabilities(p);
        let (inner, outer) = ((t, t, dim), (t, dim, t));
        let (dq, rest) = d.split_at_mut(t * dim);
        let (dk, dv) = rest.split_at_mut(t * dim);
        self.product(inner, Mat::rows(p, t).t(), g, dv);
        self.product(outer, g, self.v.t(), dp);
        softmax_gradient(p, dp, t, self.scale);
        let ds = Mat::rows(dp, t);
        self.product(inner, ds, self.k, dq);
        self.product(inner, ds.t(), self.q, dk);
    }
}

simd_fn! {
    /// Softmax of every row of `scale * p`, `t` wide.
    fn softmax_rows<'a>(p: &'a mut [f32], t: usize, scale: f32) -> () {
        // A loop, not for_each, whose closure the compiler need not inline: it was SSE2 then, 5 % of a step.
        for row in p.chunks_exact_mut(t) {
            softmax(row, scale);
        }
    }
}

simd_fn! {
    /// `dp` becomes `scale * p * (dp - rowsum(p * dp))`.
    fn softmax_gradient<'a>(p: &'a [f32], dp: &'a mut [f32], t: usize, scale: f32) -> () {
        for (dp, p) in dp.chunks_exact_mut(t).zip(p.chunks_exact(t)) {
            let dot = sum_by(dp, p, |a, b| a * b);
            for (dp, &p) in dp.iter_mut().zip(p) {
                *dp = scale * p * (*dp - dot);
            }
        }
    }
}

#[inline(always)]
fn softmax(row: &mut [f32], scale: f32) {
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
        *x = exp(scale * (*x - max));
    }
    let inverse = 1.0 / sum(row);
    for x in row.iter_mut() {
        *x *= inverse;
    }
}

/// Keeps for backward: qkv. The score matrix is computed again, never stored.
struct AttentionOp {
    heads: usize,
    compute: Compute,
    /// On a GPU it is stored.
    #[cfg(feature = "cuda")]
    kept: super::cuda::attention::Kept,
}

impl CustomOp1 for AttentionOp {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, tokens, packed) = layout.shape().dims3()?;
        let shape = (tokens, packed / 3);
        // SAFETY: the op writes all of it.
        let mut out = unsafe { unwritten(batch * tokens * shape.1) };
        if tokens > 0 {
            let (qkv, engine) = (slice(qkv, layout)?, self.compute.engine());
            let (none, to) = (Factors::NONE, DataMut::F32(&mut out));
            forward(Data::F32(qkv), shape, self.heads, none, to, engine);
        }
        Ok((CpuStorage::F32(out), Shape::from((batch, tokens, shape.1))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, qkv: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        super::cuda::attention::forward(qkv, layout, self.heads, &self.kept)
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if qkv.device().is_cuda() {
            return super::cuda::attention::backward(qkv, &grad, self.heads, &self.kept).map(Some);
        }
        let (_, tokens, packed) = qkv.dims3()?;
        // SAFETY: the op writes all of it.
        let mut d = unsafe { unwritten(qkv.elem_count()) };
        if tokens > 0 {
            let (qkv, grad) = (cpu_f32(qkv)?, cpu_f32(&grad)?);
            let (shape, engine) = ((tokens, packed / 3), self.compute.engine());
            backward(Data::F32(&qkv), &grad, shape, self.heads, &mut d, engine);
        }
        Ok(Some(Tensor::from_vec(d, qkv.shape(), qkv.device())?))
    }
}
