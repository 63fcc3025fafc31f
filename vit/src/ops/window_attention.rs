//! Self-attention inside windows, with a bias for each pair of places (Swin).
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, D};
use rayon::prelude::*;

use super::cpu::engine::Engine;
use super::cpu::math::{exp, simd_fn, sum, sum_by};
use super::cpu::matrix::{Mat, Product, Threads};
use super::cpu::storage::{cpu_f32, slice};
use super::cpu::sums::sum_all;
use super::cpu::unwritten::unwritten;
use super::take_rows::{plain as take_rows, Rows};
use super::{Compute, Form};

/// What is added to the score of two places of different regions, as Swin's authors have it: no infinity.
const APART: f32 = -100.0;

/// How the rows of a sequence fall into windows: one window's rows behind the other's, each row with its place in the window.
/// A window may have fewer rows than places, at least one.
#[derive(Debug, Clone)]
pub struct Windows {
    places: usize,
    /// The first row of each window, then their number.
    starts: Arc<Vec<usize>>,
    /// By row.
    place: Arc<Vec<u16>>,
    /// By row: rows of different regions of a window do not see each other.
    region: Arc<Vec<u8>>,
}

impl Windows {
    /// Windows of so many places with `counts` rows each; place and region of each row.
    ///
    /// # Errors
    /// Numbers that do not fit together.
    pub fn new(places: usize, counts: &[usize], place: Vec<u16>, region: Vec<u8>) -> Result<Self> {
        let mut starts = vec![0];
        for count in counts {
            starts.push(starts[starts.len() - 1] + count);
        }
        let rows = starts[counts.len()];
        // By place: the last window that has a row there.
        let mut taken = vec![usize::MAX; places];
        let mut free = |window: usize, place: u16| match taken.get_mut(place as usize) {
            Some(last) => std::mem::replace(last, window) != window,
            None => false,
        };
        let mut of_window = |(window, ends): (usize, &[usize])| {
            (place.get(ends[0]..ends[1])).is_some_and(|p| p.iter().all(|&p| free(window, p)))
        };
        if counts.contains(&0)
            || place.len() != rows
            || region.len() != rows
            || !starts.windows(2).enumerate().all(&mut of_window)
        {
            candle_core::bail!(
                "window_attention: {} windows of {places} places for {} rows of {} regions",
                counts.len(),
                place.len(),
                region.len()
            );
        }
        Ok(Self {
            places,
            starts: Arc::new(starts),
            place: Arc::new(place),
            region: Arc::new(region),
        })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.place.len()
    }

    /// Places of a window.
    pub fn places(&self) -> usize {
        self.places
    }

    /// Number of windows.
    fn count(&self) -> usize {
        self.starts.len() - 1
    }

    /// Rows of all windows, each window's at its places, zeros where it has no row.
    fn spread(&self) -> Result<Rows> {
        let mut from = vec![Rows::NONE; self.count() * self.places];
        for (window, ends) in self.starts.windows(2).enumerate() {
            for row in ends[0]..ends[1] {
                from[window * self.places + self.place[row] as usize] = row as u32;
            }
        }
        Rows::new(self.rows(), from)
    }
}

/// `(B, M, 3D), (H, T, T) -> (B, M, D)`: in each window and head `softmax(Q K^T / sqrt(D / H) + bias + mask) V`, with `qkv`
/// packed as timm packs it, rows in the order of `windows`, the bias of two rows by their places, and a mask of -100 between
/// rows of different regions (Liu et al., arXiv 2103.14030, equation 4 and figure 4).
///
/// # Errors
/// Shapes that do not fit.
pub fn window_attention(
    qkv: &Tensor,
    bias: &Tensor,
    windows: &Windows,
    compute: &Compute,
) -> Result<Tensor> {
    check(qkv, bias, windows)?;
    if compute.form(qkv) != Form::Cpu {
        return plain(qkv, bias, windows, compute);
    }
    let op = WindowAttention {
        windows: windows.clone(),
        compute: compute.clone(),
    };
    qkv.contiguous()?.apply_op2(&bias.contiguous()?, op)
}

fn check(qkv: &Tensor, bias: &Tensor, windows: &Windows) -> Result<()> {
    let ((_, rows, packed), (heads, tall, wide)) = (qkv.dims3()?, bias.dims3()?);
    let fits = rows == windows.rows() && (tall, wide) == (windows.places, windows.places);
    if !fits || heads == 0 || packed == 0 || packed % (3 * heads) != 0 {
        candle_core::bail!(
            "window_attention: qkv {:?}, bias {:?}, {} rows in windows of {}",
            qkv.dims(),
            bias.dims(),
            windows.rows(),
            windows.places
        );
    }
    Ok(())
}

/// See [`window_attention`](super::window_attention). Computes whole windows and masks the places where there is no row.
///
/// # Errors
/// As there.
pub fn plain(qkv: &Tensor, bias: &Tensor, windows: &Windows, compute: &Compute) -> Result<Tensor> {
    check(qkv, bias, windows)?;
    let ((batch, _, packed), heads) = (qkv.dims3()?, bias.dim(0)?);
    let (count, t, dim) = (windows.count(), windows.places, packed / 3 / heads);
    let spread = windows.spread()?;
    let qkv = take_rows(qkv, &spread)?
        .reshape((batch * count, t, 3, heads, dim))?
        .permute((2, 0, 3, 1, 4))?
        .contiguous()?;
    let (q, k, v) = (qkv.get(0)?, qkv.get(1)?, qkv.get(2)?);
    let scores = (compute.plain_product(&q, &k.t()?)? * (1.0 / (dim as f64).sqrt()))?;
    let scores = scores
        .broadcast_add(&bias.unsqueeze(0)?)?
        .reshape((batch, count, heads, t, t))?
        .broadcast_add(&mask(windows, &qkv)?)?;
    let p = candle_nn::ops::softmax(&scores, D::Minus1)?.reshape((batch * count, heads, t, t))?;
    let y =
        compute
            .plain_product(&p, &v)?
            .transpose(1, 2)?
            .reshape((batch, count * t, heads * dim))?;
    take_rows(&y, &spread.inverse())
}

/// (1, G, 1, T, T): what is added to the scores.
fn mask(windows: &Windows, like: &Tensor) -> Result<Tensor> {
    let t = windows.places;
    let mut all = vec![0f32; windows.count() * t * t];
    for (mask, ends) in all.chunks_exact_mut(t * t).zip(windows.starts.windows(2)) {
        // Regions by place; none where there is no row.
        let mut region = vec![None; t];
        for row in ends[0]..ends[1] {
            region[windows.place[row] as usize] = Some(windows.region[row]);
        }
        for (row, own) in mask.chunks_exact_mut(t).zip(&region) {
            for (score, other) in row.iter_mut().zip(&region) {
                *score = match (own, other) {
                    // Whatever is computed there is nobody's, but must be finite.
                    (None, _) => 0.0,
                    (Some(_), None) => f32::NEG_INFINITY,
                    (Some(own), Some(other)) if own != other => APART,
                    _ => 0.0,
                };
            }
        }
    }
    Tensor::from_vec(all, (1, windows.count(), 1, t, t), like.device())?.to_dtype(like.dtype())
}

/// One window of one image.
struct Window<'a> {
    /// Its rows of the packed (M, 3D).
    qkv: &'a [f32],
    place: &'a [u16],
    region: &'a [u8],
    /// (H, T, T)
    bias: &'a [f32],
    places: usize,
    width: usize,
    heads: usize,
    engine: Engine<'a>,
}

impl<'a> Window<'a> {
    fn dim(&self) -> usize {
        self.width / self.heads
    }

    /// Queries (0), keys (1) or values (2) of a head.
    fn part(&self, part: usize, head: usize) -> Mat<'a> {
        let start = part * self.width + head * self.dim();
        Mat::rows(&self.qkv[start..], 3 * self.width)
    }

    /// `dst = lhs . rhs`, rows `stride` apart, on this thread.
    fn product(
        &self,
        shape: (usize, usize, usize),
        (lhs, rhs): (Mat, Mat),
        dst: &mut [f32],
        stride: usize,
    ) {
        let product = Product {
            threads: Threads::One,
            stride,
            ..Product::new(shape, lhs, rhs)
        };
        product.into(dst, self.engine);
    }

    /// `softmax(scale * Q K^T + bias + mask)` into `p`, (t, t) of its t rows.
    fn probabilities(&self, head: usize, p: &mut [f32]) {
        let (t, dim) = (self.place.len(), self.dim());
        let (q, k) = (self.part(0, head), self.part(1, head));
        self.product((t, dim, t), (q, k.t()), p, t);
        let square = self.places * self.places;
        let bias = &self.bias[head * square..][..square];
        let scale = 1.0 / (dim as f32).sqrt();
        biased_softmax(p, bias, self.places, self.place, self.region, scale);
    }

    /// Into `out`, its rows of (M, D).
    fn forward(&self, p: &mut [f32], out: &mut [f32]) {
        let (t, dim) = (self.place.len(), self.dim());
        for head in 0..self.heads {
            self.probabilities(head, p);
            let (p, v) = (Mat::rows(p, t), self.part(2, head));
            self.product((t, t, dim), (p, v), &mut out[head * dim..], self.width);
        }
    }

    /// The gradient of qkv into `d`, from that of the output, `g`; that of the bias is added to `db`. With `P` the
    /// probabilities: `dV = P^T dO`, `dP = dO V^T`, `dS = P * (dP - rowsum(P * dP))`, `db = dS`, `dQ = scale dS K`,
    /// `dK = scale dS^T Q`.
    fn backward(&self, g: &[f32], p: &mut [f32], dp: &mut [f32], d: &mut [f32], db: &mut [f32]) {
        let (t, dim, width) = (self.place.len(), self.dim(), self.width);
        let (inner, outer) = ((t, t, dim), (t, dim, t));
        let square = self.places * self.places;
        let scale = 1.0 / (dim as f32).sqrt();
        for head in 0..self.heads {
            self.probabilities(head, p);
            let g = Mat::rows(&g[head * dim..], width);
            let at = |part: usize| part * width + head * dim;
            let probabilities = Mat::rows(p, t);
            self.product(inner, (probabilities.t(), g), &mut d[at(2)..], 3 * width);
            self.product(outer, (g, self.part(2, head).t()), dp, t);
            let db: &mut [f32] = match db.is_empty() {
                true => &mut [],
                false => &mut db[head * square..][..square],
            };
            score_gradient(p, dp, self.place, self.places, scale, db);
            let ds = Mat::rows(dp, t);
            self.product(inner, (ds, self.part(1, head)), &mut d[at(0)..], 3 * width);
            self.product(
                inner,
                (ds.t(), self.part(0, head)),
                &mut d[at(1)..],
                3 * width,
            );
        }
    }
}

simd_fn! {
    /// Softmax of every row of `scale * p + bias + mask`.
    fn biased_softmax<'a>(p: &'a mut [f32], bias: &'a [f32], places: usize, place: &'a [u16], region: &'a [u8], scale: f32) -> () {
        let t = place.len();
        // Most windows are whole and in order: their bias lies as their scores do.
        let whole = t == places && place.iter().enumerate().all(|(i, &p)| i == p as usize);
        let mixed = region.iter().any(|r| *r != region[0]);
        for (i, row) in p.chunks_exact_mut(t).enumerate() {
            let bias = &bias[place[i] as usize * places..][..places];
            match whole {
                true => {
                    for (x, b) in row.iter_mut().zip(bias) {
                        *x = scale * *x + b;
                    }
                }
                false => {
                    for (x, &place) in row.iter_mut().zip(place) {
                        *x = scale * *x + bias[place as usize];
                    }
                }
            }
            if mixed {
                for (x, other) in row.iter_mut().zip(region) {
                    *x += if *other == region[i] { 0.0 } else { APART };
                }
            }
            softmax(row);
        }
    }
}

simd_fn! {
    /// `dp` becomes `scale * dS` of `dS = p * (dp - rowsum(p * dp))`; `dS` is added to `db` by places, unless that is empty.
    fn score_gradient<'a>(p: &'a [f32], dp: &'a mut [f32], place: &'a [u16], places: usize, scale: f32, db: &'a mut [f32]) -> () {
        let t = place.len();
        for (i, (dp, p)) in dp.chunks_exact_mut(t).zip(p.chunks_exact(t)).enumerate() {
            let dot = sum_by(dp, p, |a, b| a * b);
            for (dp, &p) in dp.iter_mut().zip(p) {
                *dp = p * (*dp - dot);
            }
            if !db.is_empty() {
                let db = &mut db[place[i] as usize * places..][..places];
                for (ds, &place) in dp.iter().zip(place) {
                    db[place as usize] += ds;
                }
            }
            for dp in dp.iter_mut() {
                *dp *= scale;
            }
        }
    }
}

#[inline(always)]
fn softmax(row: &mut [f32]) {
    let max = row
        .iter()
        .fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    for x in row.iter_mut() {
        *x = exp(*x - max);
    }
    let inverse = 1.0 / sum(row);
    for x in row.iter_mut() {
        *x *= inverse;
    }
}

/// Keeps for backward: qkv and the bias. The scores are computed again, never stored.
struct WindowAttention {
    windows: Windows,
    compute: Compute,
}

/// Windows per task; fixed, so that the bits do not depend on the number of threads.
const TASK: usize = 16;

impl WindowAttention {
    /// The first row of every [`TASK`] windows of a batch, and the numbers of these windows.
    fn tasks(&self, batch: usize) -> Vec<std::ops::Range<usize>> {
        let all = batch * self.windows.count();
        let starts = (0..all).step_by(TASK);
        starts.map(|start| start..all.min(start + TASK)).collect()
    }

    /// The rows of a window of a batch.
    fn rows(&self, window: usize) -> std::ops::Range<usize> {
        let (image, own) = (window / self.windows.count(), window % self.windows.count());
        let first = image * self.windows.rows();
        first + self.windows.starts[own]..first + self.windows.starts[own + 1]
    }

    fn window<'a>(
        &'a self,
        window: usize,
        qkv: &'a [f32],
        bias: &'a [f32],
        (width, heads): (usize, usize),
    ) -> Window<'a> {
        let (rows, own) = (self.rows(window), window % self.windows.count());
        let of_image = self.windows.starts[own]..self.windows.starts[own + 1];
        Window {
            qkv: &qkv[rows.start * 3 * width..rows.end * 3 * width],
            place: &self.windows.place[of_image.clone()],
            region: &self.windows.region[of_image],
            bias,
            places: self.windows.places,
            width,
            heads,
            engine: self.compute.engine().untimed(),
        }
    }

    /// `all`, rows of this width, in a piece for each task.
    fn split<'a>(
        &self,
        mut all: &'a mut [f32],
        tasks: &[std::ops::Range<usize>],
        width: usize,
    ) -> Vec<&'a mut [f32]> {
        let mut pieces = Vec::with_capacity(tasks.len());
        for task in tasks {
            let rows = self.rows(task.end - 1).end - self.rows(task.start).start;
            let (piece, rest) = std::mem::take(&mut all).split_at_mut(rows * width);
            pieces.push(piece);
            all = rest;
        }
        pieces
    }
}

impl CustomOp2 for WindowAttention {
    fn name(&self) -> &'static str {
        "window_attention"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        ql: &Layout,
        bias: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let _region = self.compute.profile.region("window_attention forward");
        let (batch, rows, packed) = ql.shape().dims3()?;
        let (width, heads) = (packed / 3, bl.dims()[0]);
        // SAFETY: each window writes its rows, and each row is in a window.
        let mut out = unsafe { unwritten(batch * rows * width) };
        if !out.is_empty() {
            let (qkv, bias) = (slice(qkv, ql)?, slice(bias, bl)?);
            let square = self.windows.places * self.windows.places;
            let tasks = self.tasks(batch);
            let pieces = self.split(&mut out, &tasks, width);
            tasks.par_iter().zip(pieces).for_each_init(
                || vec![0f32; square],
                |p, (task, mut piece)| {
                    for window in task.clone() {
                        let w = self.window(window, qkv, bias, (width, heads));
                        let t = w.place.len();
                        let (out, rest) = piece.split_at_mut(t * width);
                        w.forward(&mut p[..t * t], out);
                        piece = rest;
                    }
                },
            );
        }
        Ok((CpuStorage::F32(out), Shape::from((batch, rows, width))))
    }

    fn bwd(
        &self,
        qkv: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let _region = self.compute.profile.region("window_attention backward");
        let (batch, _, packed) = qkv.dims3()?;
        let (width, heads) = (packed / 3, bias.dim(0)?);
        let grad = grad.contiguous()?;
        // SAFETY: each window writes its rows, and each row is in a window.
        let mut d = unsafe { unwritten(qkv.elem_count()) };
        let mut db = vec![0f32; bias.elem_count()];
        if !d.is_empty() {
            let (data, b, g) = (cpu_f32(qkv)?, cpu_f32(bias)?, cpu_f32(&grad)?);
            let square = self.windows.places * self.windows.places;
            let own = match bias.track_op() {
                true => b.len(),
                false => 0,
            };
            let tasks = self.tasks(batch);
            let pieces = self.split(&mut d, &tasks, 3 * width);
            let (data, b, g): (&[f32], &[f32], &[f32]) = (&data, &b, &g);
            let sums: Vec<Vec<f32>> = tasks
                .par_iter()
                .zip(pieces)
                .map_init(
                    || (vec![0f32; square], vec![0f32; square]),
                    |(p, dp), (task, mut piece)| {
                        let mut db = vec![0f32; own];
                        for window in task.clone() {
                            let w = self.window(window, data, b, (width, heads));
                            let (t, rows) = (w.place.len(), self.rows(window));
                            let (d, rest) = piece.split_at_mut(t * 3 * width);
                            let g = &g[rows.start * width..rows.end * width];
                            w.backward(g, &mut p[..t * t], &mut dp[..t * t], d, &mut db);
                            piece = rest;
                        }
                        db
                    },
                )
                .collect();
            if own > 0 {
                db = sum_all(sums, own);
            }
        }
        let dq = Tensor::from_vec(d, qkv.shape(), qkv.device())?;
        let db = match bias.track_op() {
            true => Some(Tensor::from_vec(db, bias.shape(), bias.device())?),
            false => None,
        };
        Ok((Some(dq), db))
    }
}
