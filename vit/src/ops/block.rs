//! A whole transformer block as one op: no graph inside, activations kept once, residuals added by the matrix product.
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, TensorId};
use rayon::prelude::*;

use super::bundle::{bundle, Gradients};
use super::cpu::held::Weight;
use super::cpu::kept::{Numbers, Waiting};
use super::cpu::scratch::Buffer;
use super::cpu::storage::{cpu_f32, slice, CpuF32};
use super::cpu::unwritten::unwritten;
use super::profile::region;
use super::{attention, gelu, layer_norm, linear, Precision};

/// The weights of a block: LayerNorms (D), qkv (3D, D), proj (D, D), fc1 (F, D), fc2 (D, F), each followed by its bias.
#[derive(Debug, Clone, Copy)]
pub struct BlockWeights<'a> {
    /// `norm1`, before attention.
    pub norm1: [&'a Tensor; 2],
    /// `attn.qkv`.
    pub qkv: [&'a Tensor; 2],
    /// `attn.proj`.
    pub proj: [&'a Tensor; 2],
    /// `norm2`, before the MLP.
    pub norm2: [&'a Tensor; 2],
    /// `mlp.fc1`.
    pub fc1: [&'a Tensor; 2],
    /// `mlp.fc2`.
    pub fc2: [&'a Tensor; 2],
}

/// `(B, T, D) -> (B, T, D)`: `x1 = x + s1 * proj(attention(qkv(norm1(x))))`, `y = x1 + s2 * fc2(gelu(fc1(norm2(x1))))` with
/// one factor for each image in `s1` and `s2` (drop path), or none.
///
/// Equal to its parts, [`super::layer_norm`], [`super::linear`], [`super::attention`], [`super::gelu`], but for the rounding of
/// the residual sums. f32 on the CPU alone.
///
/// # Errors
/// Shapes that do not fit.
pub fn block(
    x: &Tensor,
    weights: &BlockWeights,
    heads: usize,
    eps: f64,
    paths: [Option<Vec<f32>>; 2],
    precision: Precision,
) -> Result<Tensor> {
    let (batch, _, dim) = x.dims3()?;
    let BlockWeights {
        norm1,
        qkv,
        proj,
        norm2,
        fc1,
        fc2,
    } = weights;
    let hidden = fc1[1].elem_count();
    let expected: [(&str, &[&Tensor; 2], &[usize]); 6] = [
        ("norm1", norm1, &[dim]),
        ("qkv", qkv, &[3 * dim, dim]),
        ("proj", proj, &[dim, dim]),
        ("norm2", norm2, &[dim]),
        ("fc1", fc1, &[hidden, dim]),
        ("fc2", fc2, &[dim, hidden]),
    ];
    for (name, [weight, bias], dims) in expected {
        if weight.dims() != dims || bias.dims() != &dims[..1] {
            candle_core::bail!(
                "block: {name} is {:?} with bias {:?}, expected {dims:?}",
                weight.dims(),
                bias.dims()
            );
        }
    }
    if heads == 0 || dim == 0 || !dim.is_multiple_of(heads) || hidden == 0 {
        candle_core::bail!("block: width {dim}, hidden {hidden}, {heads} heads");
    }
    if let Some(path) = paths.iter().flatten().find(|path| path.len() != batch) {
        candle_core::bail!("block: {} path factors for {batch} images", path.len());
    }
    let all = expected.iter().flat_map(|(_, pair, _)| pair.iter());
    // A weight that is made anew for each pass is none to hold.
    let lasts = |t: &Tensor| t.is_contiguous() && (t.is_variable() || !t.track_op());
    let ids = twelve(all.clone().map(|t| Ok(lasts(t).then(|| t.id()))))?;
    let weights = twelve(all.map(|t| t.contiguous()))?;
    let gradients = Gradients::default();
    let bundle = bundle(&weights, &gradients)?;
    let op = BlockOp {
        keep: x.track_op() || bundle.track_op(),
        weights,
        ids,
        heads,
        eps: eps as f32,
        paths,
        precision,
        kept: Arc::default(),
        gradients,
    };
    x.contiguous()?.apply_op2(&bundle, op)
}

fn twelve<T>(items: impl Iterator<Item = Result<T>>) -> Result<[T; 12]> {
    let items = items.collect::<Result<Vec<T>>>()?;
    let wrong = |items: Vec<T>| candle_core::Error::Msg(format!("block: {} weights", items.len()));
    items.try_into().map_err(wrong)
}

struct BlockOp {
    /// In the order of [`BlockWeights`].
    weights: [Tensor; 12],
    /// Of those that may be held.
    ids: [Option<TensorId>; 12],
    heads: usize,
    eps: f32,
    paths: [Option<Vec<f32>>; 2],
    precision: Precision,
    /// Whether there will be a backward.
    keep: bool,
    /// Freed by the backward; a second one computes them again.
    kept: Arc<Mutex<Option<Kept>>>,
    gradients: Gradients,
}

/// Everything up to the hidden layer.
struct Half {
    qkv: Numbers,
    /// The heads' outputs, times the path's factor.
    heads: Numbers,
    x1: Numbers,
    /// The MLP's hidden layer before GELU.
    hidden: Numbers,
}

/// The same as it is kept for backward, 9 numbers for each of x (with an MLP of ratio 4), all but one of them bf16 if products
/// are: normalised inputs and GELU are computed again.
struct Kept {
    qkv: Waiting,
    heads: Waiting,
    /// The residual stream: always f32.
    x1: Numbers,
    hidden: Waiting,
}

/// Rows in one task.
const ROWS: usize = 64;

/// `rows(i)` of a matrix, in parallel: `f(row, its number)`.
fn each_row(data: &mut [f32], width: usize, f: impl Fn(&mut [f32], usize) + Sync) {
    data.par_chunks_mut(ROWS * width)
        .enumerate()
        .for_each(|(chunk, rows)| {
            for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                f(row, chunk * ROWS + i);
            }
        });
}

impl BlockOp {
    fn weights(&self) -> Result<[CpuF32<'_>; 12]> {
        twelve(self.weights.iter().map(cpu_f32))
    }

    /// Number `i` of `w` as the weight of a linear layer.
    fn weight<'a>(&self, w: &'a [CpuF32; 12], i: usize) -> Weight<'a> {
        Weight {
            data: &w[i],
            id: self.ids[i],
        }
    }

    /// Multiplies the rows of each image by its factor.
    fn scale(&self, path: usize, data: &mut [f32], tokens: usize, width: usize) {
        let _region = region("residual");
        if let Some(path) = &self.paths[path] {
            each_row(data, width, |row, i| {
                let factor = path[i / tokens];
                row.iter_mut().for_each(|x| *x *= factor);
            });
        }
    }

    /// `y = x + factor * bias`, to which the branch's product is added.
    fn residual(&self, path: usize, x: &[f32], bias: &[f32], y: &mut [f32], tokens: usize) {
        let _region = region("residual");
        let width = bias.len();
        each_row(y, width, |y, i| {
            let factor = self.paths[path].as_ref().map_or(1.0, |p| p[i / tokens]);
            let x = &x[i * width..(i + 1) * width];
            for ((y, x), b) in y.iter_mut().zip(x).zip(bias) {
                *y = x + factor * b;
            }
        });
    }

    fn first_half(&self, x: &[f32], tokens: usize, w: &[CpuF32; 12]) -> Half {
        let [norm1, norm1_b, _, qkv_b, _, proj_b, norm2, norm2_b, _, fc1_b, ..] = w;
        let width = norm1.len();
        let mut n = Buffer::new(x.len());
        layer_norm::forward(x, norm1, norm1_b, self.eps, &mut n);
        let precision = self.precision;
        // What is not kept as it is comes from the pool.
        let pooled = !self.keep || self.keeps_bf16();
        // SAFETY: each of the four is written whole, by the product, attention or sum right behind it.
        let numbers = |length, pooled| unsafe { Numbers::new(length, pooled) };
        let mut qkv = numbers(3 * x.len(), pooled);
        linear::forward(&n, self.weight(w, 2), qkv_b, &mut qkv, precision);
        let mut heads = numbers(x.len(), pooled);
        let shape = (tokens, width);
        attention::forward(&qkv, shape, self.heads, &mut heads, precision);
        self.scale(0, &mut heads, tokens, width);
        let mut x1 = numbers(x.len(), !self.keep);
        self.residual(0, x, proj_b, &mut x1, tokens);
        linear::add_product(&heads, self.weight(w, 4), width, &mut x1, precision);
        layer_norm::forward(&x1, norm2, norm2_b, self.eps, &mut n);
        let mut hidden = numbers(x.len() / width * fc1_b.len(), pooled);
        linear::forward(&n, self.weight(w, 8), fc1_b, &mut hidden, precision);
        Half {
            qkv,
            heads,
            x1,
            hidden,
        }
    }

    fn keeps_bf16(&self) -> bool {
        self.precision.unit().is_some()
    }

    fn kept(&self, half: Half) -> Kept {
        let bf16 = self.keeps_bf16();
        let _region = bf16.then(|| region("kept as bf16"));
        let waiting = |numbers| Waiting::new(numbers, bf16);
        Kept {
            qkv: waiting(half.qkv),
            heads: waiting(half.heads),
            x1: half.x1,
            hidden: waiting(half.hidden),
        }
    }

    /// Fills `dx`, which holds the output's gradient at first, and returns the weights' gradients.
    fn backward(
        &self,
        x: &[f32],
        kept: Kept,
        tokens: usize,
        dx: &mut [f32],
    ) -> Result<Vec<Option<Tensor>>> {
        let Kept {
            qkv,
            heads,
            x1,
            hidden,
        } = kept;
        let (precision, mut hidden) = (self.precision, hidden.numbers());
        let w = self.weights()?;
        let [norm1, norm1_b, _, _, _, _, norm2, norm2_b, ..] = &w;
        let weight = |i: usize| self.weight(&w, i);
        let (width, wide) = (norm1.len(), hidden.len() / (x.len() / norm1.len()));
        let live = |i: usize| self.weights[i].track_op();
        let mut grads: [Option<Vec<f32>>; 12] = Default::default();
        // d of a branch's output: dx times the path's factor. Without factors it is dx itself.
        let scaled = |path: usize, dx: &[f32]| {
            self.paths[path].as_ref().map(|_| {
                let mut d = Buffer::new(dx.len());
                d.copy_from_slice(dx);
                self.scale(path, &mut d, tokens, width);
                d
            })
        };

        // The MLP. `hidden` becomes GELU's derivative, then the gradient before it.
        let mut n = Buffer::new(x.len());
        {
            let d = scaled(1, dx);
            let d = d.as_deref().unwrap_or(dx);
            let mut big = Buffer::new(hidden.len());
            gelu::forward_and_derivative(&mut hidden, &mut big);
            if live(10) {
                grads[10] = Some(linear::weight_gradient(d, &big, width, wide, precision));
            }
            if live(11) {
                grads[11] = Some(linear::column_sums(d, width));
            }
            linear::input_gradient(d, weight(10), width, &mut big, precision);
            gelu::multiply(&mut hidden, &big);
        }
        if live(8) {
            layer_norm::forward(&x1, norm2, norm2_b, self.eps, &mut n);
            grads[8] = Some(linear::weight_gradient(&hidden, &n, wide, width, precision));
        }
        if live(9) {
            grads[9] = Some(linear::column_sums(&hidden, wide));
        }
        linear::input_gradient(&hidden, weight(8), wide, &mut n, precision);
        drop(hidden);
        let (dw, db) = layer_norm::backward(&x1, norm2, self.eps, &n, dx);
        (grads[6], grads[7]) = (Some(dw), Some(db));
        drop(x1);

        // Attention; dx is the gradient of x1 now.
        let (qkv, heads) = (qkv.numbers(), heads.numbers());
        let mut dqkv = Buffer::new(qkv.len());
        {
            let d = scaled(0, dx);
            let d = d.as_deref().unwrap_or(dx);
            if live(4) {
                // The heads' outputs are kept times the factor: of dx itself.
                let dw = linear::weight_gradient(dx, &heads, width, width, precision);
                grads[4] = Some(dw);
            }
            if live(5) {
                grads[5] = Some(linear::column_sums(d, width));
            }
            linear::input_gradient(d, weight(4), width, &mut n, precision);
            let shape = (tokens, width);
            attention::backward(&qkv, &n, shape, self.heads, &mut dqkv, precision);
        }
        drop((heads, qkv));
        if live(2) {
            layer_norm::forward(x, norm1, norm1_b, self.eps, &mut n);
            let dw = linear::weight_gradient(&dqkv, &n, 3 * width, width, precision);
            grads[2] = Some(dw);
        }
        if live(3) {
            grads[3] = Some(linear::column_sums(&dqkv, 3 * width));
        }
        linear::input_gradient(&dqkv, weight(2), 3 * width, &mut n, precision);
        let (dw, db) = layer_norm::backward(x, norm1, self.eps, &n, dx);
        (grads[0], grads[1]) = (Some(dw), Some(db));

        drop(w);
        let tensor = |(grad, weight): (Option<Vec<f32>>, &Tensor)| {
            grad.filter(|_| weight.track_op())
                .map(|grad| Tensor::from_vec(grad, weight.shape(), weight.device()))
                .transpose()
        };
        grads.into_iter().zip(&self.weights).map(tensor).collect()
    }
}

impl CustomOp2 for BlockOp {
    fn name(&self) -> &'static str {
        "block"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let _region = region("block forward, other");
        let (_, tokens, width) = layout.shape().dims3()?;
        let x = slice(x, layout)?;
        // SAFETY: `residual` writes all of it.
        let mut y = unsafe { unwritten(x.len()) };
        if !x.is_empty() {
            let w = self.weights()?;
            let half = self.first_half(x, tokens, &w);
            let mut big = Buffer::new(half.hidden.len());
            gelu::forward(&half.hidden, &mut big);
            let wide = big.len() / (x.len() / width);
            self.scale(1, &mut big, tokens, wide);
            self.residual(1, &half.x1, &w[11], &mut y, tokens);
            linear::add_product(&big, self.weight(&w, 10), width, &mut y, self.precision);
            if self.keep {
                let kept = self.kept(half);
                *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
            }
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        bundle: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let _region = region("block backward, other");
        let (_, tokens, _) = x.dims3()?;
        let mut dx = cpu_f32(&grad.contiguous()?)?.to_vec();
        if !dx.is_empty() {
            let data = cpu_f32(x)?;
            let kept = self
                .kept
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            let kept = match kept {
                Some(kept) => kept,
                None => self.kept(self.first_half(&data, tokens, &self.weights()?)),
            };
            let gradients = self.backward(&data, kept, tokens, &mut dx)?;
            self.gradients.put(gradients);
        }
        let dx = match x.track_op() {
            true => Some(Tensor::from_vec(dx, x.shape(), x.device())?),
            false => None,
        };
        let visit = bundle.track_op().then(|| bundle.zeros_like()).transpose()?;
        Ok((dx, visit))
    }
}
