//! A whole transformer block as one op: no graph inside, activations kept once, residuals added by the matrix product.
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::bundle::{bundle, Gradients};
use super::cpu::activations::{Activations, Factors, Numbers};
use super::cpu::engine::Engine;
use super::cpu::held::Held;
use super::cpu::matrix::{Data, DataMut};
use super::cpu::rounding::round_all;
use super::cpu::scratch::Buffer;
use super::cpu::storage::{cpu_f32, slice, CpuF32};
use super::cpu::tiles::Tiles;
use super::cpu::unwritten::unwritten;
use super::linear::{Gradient, Weight};
use super::rope::{Rotation, Way};
use super::{attention, gelu, layer_norm, linear, Compute};

/// A weight and the bias that belongs to it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pair<T> {
    /// `weight`
    pub weight: T,
    /// `bias`
    pub bias: T,
}

/// One thing for each weight of a block: LayerNorms (D), qkv (3D, D), proj (D, D), fc1 (F, D), fc2 (D, F).
#[derive(Debug, Clone, Copy, Default)]
pub struct BlockWeights<T> {
    /// `norm1`, before attention.
    pub norm1: Pair<T>,
    /// `attn.qkv`.
    pub qkv: Pair<T>,
    /// `attn.proj`.
    pub proj: Pair<T>,
    /// `norm2`, before the MLP.
    pub norm2: Pair<T>,
    /// `mlp.fc1`.
    pub fc1: Pair<T>,
    /// `mlp.fc2`.
    pub fc2: Pair<T>,
}

impl<T> Pair<T> {
    fn as_ref(&self) -> Pair<&T> {
        Pair {
            weight: &self.weight,
            bias: &self.bias,
        }
    }

    fn try_map<U>(self, f: &mut impl FnMut(T) -> Result<U>) -> Result<Pair<U>> {
        Ok(Pair {
            weight: f(self.weight)?,
            bias: f(self.bias)?,
        })
    }
}

impl<T> BlockWeights<T> {
    fn as_ref(&self) -> BlockWeights<&T> {
        BlockWeights {
            norm1: self.norm1.as_ref(),
            qkv: self.qkv.as_ref(),
            proj: self.proj.as_ref(),
            norm2: self.norm2.as_ref(),
            fc1: self.fc1.as_ref(),
            fc2: self.fc2.as_ref(),
        }
    }

    fn try_map<U>(self, mut f: impl FnMut(T) -> Result<U>) -> Result<BlockWeights<U>> {
        Ok(BlockWeights {
            norm1: self.norm1.try_map(&mut f)?,
            qkv: self.qkv.try_map(&mut f)?,
            proj: self.proj.try_map(&mut f)?,
            norm2: self.norm2.try_map(&mut f)?,
            fc1: self.fc1.try_map(&mut f)?,
            fc2: self.fc2.try_map(&mut f)?,
        })
    }

    /// All, in one order.
    fn into_array(self) -> [T; 12] {
        let Self {
            norm1: a,
            qkv: b,
            proj: c,
            norm2: d,
            fc1: e,
            fc2: f,
        } = self;
        [
            a.weight, a.bias, b.weight, b.bias, c.weight, c.bias, //
            d.weight, d.bias, e.weight, e.bias, f.weight, f.bias,
        ]
    }
}

/// What products need of a block's weights, from one pass to the next; see [`super::Hold`].
#[derive(Default)]
pub struct HeldWeights {
    qkv: Held,
    proj: Held,
    fc1: Held,
    fc2: Held,
}

impl std::fmt::Debug for HeldWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeldWeights")
    }
}

/// What a block is beside its weights, and how it is computed.
#[derive(Debug, Clone)]
pub struct BlockOptions {
    /// Attention heads.
    pub heads: usize,
    /// Added to the variance in both LayerNorms.
    pub eps: f64,
    /// Factors of the two branches for each image (drop path), or none.
    pub paths: [Option<Vec<f32>>; 2],
    /// What queries and keys are turned by, if anything.
    pub rotation: Option<Rotation>,
    /// How it is computed.
    pub compute: Compute,
    /// Where to hold what products need of the weights.
    pub held: Option<Arc<HeldWeights>>,
}

/// `(B, T, D) -> (B, T, D)`: `x1 = x + s1 * proj(attention(qkv(norm1(x))))`, `y = x1 + s2 * fc2(gelu(fc1(norm2(x1))))` with
/// one factor for each image in `s1` and `s2` (drop path), or none; between qkv and attention the rotation, if there is one.
///
/// Equal to its parts, [`super::layer_norm`], [`super::linear`], [`super::rotate`], [`super::attention`], [`super::gelu`], but for the
/// rounding of the residual sums, and of the hidden layer where products are bf16. f32 on the CPU alone.
///
/// # Errors
/// Shapes that do not fit.
pub fn block(x: &Tensor, weights: &BlockWeights<&Tensor>, options: BlockOptions) -> Result<Tensor> {
    let (batch, tokens, dim) = x.dims3()?;
    let hidden = weights.fc1.bias.elem_count();
    let expected: [(&str, Pair<&Tensor>, &[usize]); 6] = [
        ("norm1", weights.norm1, &[dim]),
        ("qkv", weights.qkv, &[3 * dim, dim]),
        ("proj", weights.proj, &[dim, dim]),
        ("norm2", weights.norm2, &[dim]),
        ("fc1", weights.fc1, &[hidden, dim]),
        ("fc2", weights.fc2, &[dim, hidden]),
    ];
    for (name, Pair { weight, bias }, dims) in expected {
        if weight.dims() != dims || bias.dims() != &dims[..1] {
            candle_core::bail!(
                "block: {name} is {:?} with bias {:?}, expected {dims:?}",
                weight.dims(),
                bias.dims()
            );
        }
    }
    let BlockOptions {
        heads,
        eps,
        paths,
        rotation,
        compute,
        held,
    } = options;
    if heads == 0 || dim == 0 || !dim.is_multiple_of(heads) || hidden == 0 {
        candle_core::bail!("block: width {dim}, hidden {hidden}, {heads} heads");
    }
    if let Some(path) = paths.iter().flatten().find(|path| path.len() != batch) {
        candle_core::bail!("block: {} path factors for {batch} images", path.len());
    }
    if let Some(rotation) = &rotation {
        rotation.check(batch, tokens, dim / heads)?;
    }
    let weights = weights.try_map(|t| t.contiguous())?;
    let gradients = Gradients::default();
    let bundle = bundle(&weights.as_ref().into_array(), &gradients)?;
    let op = BlockOp {
        keep: x.track_op() || bundle.track_op(),
        weights,
        heads,
        eps: eps as f32,
        paths,
        rotation,
        compute,
        held,
        kept: Arc::default(),
        gradients,
    };
    x.contiguous()?.apply_op2(&bundle, op)
}

struct BlockOp {
    weights: BlockWeights<Tensor>,
    heads: usize,
    eps: f32,
    paths: [Option<Vec<f32>>; 2],
    rotation: Option<Rotation>,
    compute: Compute,
    held: Option<Arc<HeldWeights>>,
    /// Whether there will be a backward.
    keep: bool,
    /// Freed by the backward; a second one computes them again.
    kept: Arc<Mutex<Option<Half>>>,
    gradients: Gradients,
}

/// Everything up to the hidden layer, as it is kept for backward too: 9 numbers for each of x (with an MLP of ratio 4), all but
/// one of them bf16 if products are. Normalised inputs and GELU are computed again.
struct Half {
    qkv: Activations,
    /// The heads' outputs, times the path's factor.
    heads: Activations,
    /// The residual stream: always f32.
    x1: Numbers<f32>,
    /// The MLP's hidden layer before GELU.
    hidden: Activations,
}

/// Rows in one task.
const ROWS: usize = 64;
/// Numbers in one task.
const CHUNK: usize = 64 * 1024;

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

/// The linear layers' weights as products take them.
struct Weights<'a> {
    qkv: Weight<'a>,
    proj: Weight<'a>,
    fc1: Weight<'a>,
    fc2: Weight<'a>,
}

impl BlockOp {
    fn numbers(&self) -> Result<BlockWeights<CpuF32<'_>>> {
        self.weights.as_ref().try_map(cpu_f32)
    }

    fn weights<'a>(&'a self, w: &'a BlockWeights<CpuF32>) -> Weights<'a> {
        let weight = |pair: &'a Pair<CpuF32>, held: fn(&HeldWeights) -> &Held| Weight {
            data: &pair.weight,
            outputs: pair.bias.len(),
            held: self.held.as_deref().map(held),
        };
        Weights {
            qkv: weight(&w.qkv, |held| &held.qkv),
            proj: weight(&w.proj, |held| &held.proj),
            fc1: weight(&w.fc1, |held| &held.fc1),
            fc2: weight(&w.fc2, |held| &held.fc2),
        }
    }

    fn engine(&self) -> Engine<'_> {
        self.compute.engine()
    }

    /// Whether products round their operands.
    fn rounds(&self) -> bool {
        self.engine().unit.is_some()
    }

    /// For the operand of a product.
    ///
    /// # Safety
    /// Each number is written before it is read.
    unsafe fn room(&self, rows: usize, width: usize, pooled: bool) -> Activations {
        // SAFETY: the caller's.
        unsafe {
            match self.rounds() {
                true => Activations::Tiles(Tiles::rows(rows, width, pooled)),
                false => Activations::F32(Numbers::new(rows * width, pooled)),
            }
        }
    }

    fn factors(&self, path: usize, tokens: usize) -> Factors<'_> {
        Factors {
            images: self.paths[path].as_deref(),
            tokens,
        }
    }

    fn norm(&self, x: &[f32], norm: &Pair<CpuF32>, y: &mut Activations) {
        let profile = &self.compute.profile;
        layer_norm::forward(x, &norm.weight, &norm.bias, self.eps, y.data_mut(), profile);
    }

    /// Turns queries and keys, or their gradients back.
    fn rotate(&self, qkv: &mut [f32], width: usize, way: Way) -> Result<()> {
        let Some(rotation) = &self.rotation else {
            return Ok(());
        };
        let _region = self.compute.profile.region("rotate");
        rotation.turn(qkv, width, way)
    }

    /// `y = x + factor * bias`, to which the branch's product is added.
    fn residual(&self, path: usize, x: &[f32], bias: &[f32], y: &mut [f32], tokens: usize) {
        let _region = self.compute.profile.region("residual");
        let (width, factors) = (bias.len(), self.factors(path, tokens));
        each_row(y, width, |y, i| {
            let factor = factors.row(i);
            let x = &x[i * width..(i + 1) * width];
            for ((y, x), b) in y.iter_mut().zip(x).zip(bias) {
                *y = x + factor * b;
            }
        });
    }

    fn first_half(&self, x: &[f32], tokens: usize, w: &BlockWeights<CpuF32>) -> Result<Half> {
        let (weights, engine) = (self.weights(w), self.engine());
        let (width, wide) = (w.norm1.bias.len(), w.fc1.bias.len());
        // What is not kept comes from the pool.
        let pooled = !self.keep;
        let rows = x.len() / width;
        // SAFETY: each of them is written whole, by the norm, product or attention right behind it.
        let room = |width, pooled| unsafe { self.room(rows, width, pooled) };
        let mut n = room(width, true);
        self.norm(x, &w.norm1, &mut n);
        // By rows, since attention takes parts of it.
        // SAFETY: as above.
        let mut qkv = unsafe {
            match self.rounds() {
                true => Activations::Bf16(Numbers::new(3 * x.len(), pooled)),
                false => Activations::F32(Numbers::new(3 * x.len(), pooled)),
            }
        };
        match (qkv.data_mut(), &self.rotation) {
            (DataMut::F32(qkv), _) => {
                let to = DataMut::F32(&mut *qkv);
                weights.qkv.forward(n.data(), &w.qkv.bias, to, engine);
                self.rotate(qkv, width, Way::There)?;
            }
            // Turned before they are rounded.
            (DataMut::Bf16(rounded), Some(_)) => {
                let mut qkv = Buffer::new(3 * x.len());
                let to = DataMut::F32(&mut qkv);
                weights.qkv.forward(n.data(), &w.qkv.bias, to, engine);
                self.rotate(&mut qkv, width, Way::There)?;
                round_all(&qkv, rounded);
            }
            (to, _) => weights.qkv.forward(n.data(), &w.qkv.bias, to, engine),
        }
        let mut heads = room(width, pooled);
        let (size, factors) = ((tokens, width), self.factors(0, tokens));
        let to = heads.data_mut();
        attention::forward(qkv.data(), size, self.heads, factors, to, engine);
        // SAFETY: `residual` writes all of it.
        let mut x1 = unsafe { Numbers::new(x.len(), pooled) };
        self.residual(0, x, &w.proj.bias, &mut x1, tokens);
        weights.proj.add_product(heads.data(), &mut x1, engine);
        self.norm(&x1, &w.norm2, &mut n);
        let mut hidden = room(wide, pooled);
        let to = hidden.data_mut();
        weights.fc1.forward(n.data(), &w.fc1.bias, to, engine);
        Ok(Half {
            qkv,
            heads,
            x1,
            hidden,
        })
    }

    /// Fills `dx`, which holds the output's gradient at first, and returns the weights' gradients.
    fn backward(
        &self,
        x: &[f32],
        kept: Half,
        tokens: usize,
        dx: &mut [f32],
    ) -> Result<BlockWeights<Option<Tensor>>> {
        let Half {
            qkv,
            heads,
            x1,
            hidden,
        } = kept;
        let numbers = self.numbers()?;
        let (weights, w) = (self.weights(&numbers), &numbers);
        let (engine, profile) = (self.engine(), &self.compute.profile);
        let (width, wide) = (w.norm1.bias.len(), w.fc1.bias.len());
        let (live, rows) = (&self.weights, x.len() / width);
        let mut grads: BlockWeights<Option<Tensor>> = BlockWeights::default();
        // SAFETY: each of them is written whole, by the norm or GELU right behind it.
        let room = |width| unsafe { self.room(rows, width, true) };

        // The MLP: the gradient of its hidden layer is that behind GELU times GELU's derivative.
        let d_hidden = {
            let d = Gradient::new(dx, width, self.factors(1, tokens), engine);
            let mut big = room(wide);
            let derivative = gelu::forward_and_derivative(hidden, big.data_mut(), profile);
            let dw = || linear::weight_gradient(d.data(), big.data(), width, wide, engine);
            grads.fc2.weight = gradient(&live.fc2.weight, dw)?;
            grads.fc2.bias = gradient(&live.fc2.bias, || d.bias(width, engine))?;
            drop(big);
            let mut behind = Buffer::new(rows * wide);
            weights.fc2.input_gradient(d.data(), &mut behind, engine);
            gelu::gradient(derivative, &behind, wide, engine)
        };
        grads.fc1.weight = gradient(&live.fc1.weight, || {
            let mut n = room(width);
            self.norm(&x1, &w.norm2, &mut n);
            linear::weight_gradient(d_hidden.data(), n.data(), wide, width, engine)
        })?;
        grads.fc1.bias = gradient(&live.fc1.bias, || d_hidden.bias(wide, engine))?;
        let mut dn = Buffer::new(x.len());
        weights.fc1.input_gradient(d_hidden.data(), &mut dn, engine);
        drop(d_hidden);
        let (dw, db) = layer_norm::backward(&x1, &w.norm2.weight, self.eps, &dn, dx, profile);
        grads.norm2.weight = gradient(&live.norm2.weight, || dw)?;
        grads.norm2.bias = gradient(&live.norm2.bias, || db)?;
        drop((x1, dn));

        // Attention; dx is the gradient of x1 now.
        let d_heads = {
            // The heads' outputs are kept times the factor: of dx itself.
            let d = Gradient::new(dx, width, Factors::NONE, engine);
            let dw = || linear::weight_gradient(d.data(), heads.data(), width, width, engine);
            grads.proj.weight = gradient(&live.proj.weight, dw)?;
            let d = match self.factors(0, tokens) {
                Factors { images: None, .. } => d,
                factors => {
                    drop(d);
                    Gradient::new(dx, width, factors, engine)
                }
            };
            grads.proj.bias = gradient(&live.proj.bias, || d.bias(width, engine))?;
            let mut d_heads = Buffer::new(x.len());
            weights.proj.input_gradient(d.data(), &mut d_heads, engine);
            d_heads
        };
        drop(heads);
        let d_qkv = self.attention_gradient(qkv.data(), &d_heads, (tokens, width))?;
        drop(d_heads);
        drop(qkv);
        grads.qkv.weight = gradient(&live.qkv.weight, || {
            let mut n = room(width);
            self.norm(x, &w.norm1, &mut n);
            linear::weight_gradient(d_qkv.data(), n.data(), 3 * width, width, engine)
        })?;
        grads.qkv.bias = gradient(&live.qkv.bias, || d_qkv.bias(3 * width, engine))?;
        let mut dn = Buffer::new(x.len());
        weights.qkv.input_gradient(d_qkv.data(), &mut dn, engine);
        let (dw, db) = layer_norm::backward(x, &w.norm1.weight, self.eps, &dn, dx, profile);
        grads.norm1.weight = gradient(&live.norm1.weight, || dw)?;
        grads.norm1.bias = gradient(&live.norm1.bias, || db)?;
        Ok(grads)
    }

    /// Of qkv before the rotation, from that of the heads' outputs; `size` is tokens and width.
    fn attention_gradient(
        &self,
        qkv: Data,
        g: &[f32],
        size: (usize, usize),
    ) -> Result<Gradient<'static>> {
        let (width, engine) = (size.1, self.engine());
        if self.rounds() && self.rotation.is_none() {
            // SAFETY: attention writes all of it.
            let mut rounded = unsafe { Tiles::rows(g.len() / width, 3 * width, true) };
            let sums = attention::backward_rounded(qkv, g, size, self.heads, &mut rounded, engine);
            return Ok(Gradient::Bf16 { rounded, sums });
        }
        let mut d = Buffer::new(3 * g.len());
        attention::backward(qkv, g, size, self.heads, &mut d, engine);
        self.rotate(&mut d, width, Way::Back)?;
        Ok(match self.rounds() {
            true => Gradient::rounded(&d, 3 * width, Factors::NONE, engine),
            false => Gradient::Own(Numbers::Pooled(d)),
        })
    }
}

/// A copy, made by all threads.
fn copied(x: &[f32]) -> Vec<f32> {
    // SAFETY: all of it is written right below.
    let mut y = unsafe { unwritten(x.len()) };
    y.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .for_each(|(y, x)| y.copy_from_slice(x));
    y
}

/// That of a weight that trains; of others it is not computed.
fn gradient(weight: &Tensor, compute: impl FnOnce() -> Vec<f32>) -> Result<Option<Tensor>> {
    let tensor = || Tensor::from_vec(compute(), weight.shape(), weight.device());
    weight.track_op().then(tensor).transpose()
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
        let _region = self.compute.profile.region("block forward, other");
        let (_, tokens, _) = layout.shape().dims3()?;
        let x = slice(x, layout)?;
        // SAFETY: `residual` writes all of it.
        let mut y = unsafe { unwritten(x.len()) };
        if !x.is_empty() {
            let w = self.numbers()?;
            let half = self.first_half(x, tokens, &w)?;
            let wide = w.fc1.bias.len();
            let (hidden, factors) = (half.hidden.data(), self.factors(1, tokens));
            // SAFETY: GELU writes all of it.
            let mut big = unsafe { self.room(hidden.len() / wide, wide, true) };
            let profile = &self.compute.profile;
            gelu::rows(hidden, wide, factors, big.data_mut(), profile);
            self.residual(1, &half.x1, &w.fc2.bias, &mut y, tokens);
            let fc2 = self.weights(&w).fc2;
            fc2.add_product(big.data(), &mut y, self.engine());
            if self.keep {
                *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(half);
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
        let _region = self.compute.profile.region("block backward, other");
        let (_, tokens, _) = x.dims3()?;
        let mut dx = copied(&cpu_f32(&grad.contiguous()?)?);
        if !dx.is_empty() {
            let data = cpu_f32(x)?;
            let kept = self
                .kept
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            let kept = match kept {
                Some(kept) => kept,
                None => self.first_half(&data, tokens, &self.numbers()?)?,
            };
            let gradients = self.backward(&data, kept, tokens, &mut dx)?;
            self.gradients.put(gradients.into_array().into());
        }
        let dx = match x.track_op() {
            true => Some(Tensor::from_vec(dx, x.shape(), x.device())?),
            false => None,
        };
        let visit = bundle.track_op().then(|| bundle.zeros_like()).transpose()?;
        Ok((dx, visit))
    }
}
