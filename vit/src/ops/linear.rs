//! `y = x W^T + b`.
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::activations::{Factors, Numbers};
use super::cpu::engine::Engine;
use super::cpu::held::Held;
use super::cpu::math::simd_fn;
use super::cpu::matrix::{Data, DataMut, Mat, Product, Start};
use super::cpu::scratch::Buffer;
use super::cpu::storage::{cpu_f32, slice};
use super::cpu::sums::{column_sums, round_and_sum};
use super::cpu::tiles::Tiles;
use super::cpu::unwritten::unwritten;
use super::{unfold_cells, Compute, Form};

/// `(.., I) -> (.., O)`: `y = x W^T + b` with `weight` (O, I) and `bias` (O).
///
/// The backward computes only what is needed: nothing for an input or a weight that is a plain tensor.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, compute: &Compute) -> Result<Tensor> {
    if compute.product_form(x) == Form::Plain {
        return plain(x, weight, bias, compute);
    }
    fused(x, weight, bias, None, compute)
}

/// `unfold`: the side of the grid on which the outputs are 2 x 2 cells, that come to their places; see
/// [`linear_cells`](super::linear_cells).
pub(super) fn fused(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    unfold: Option<usize>,
    compute: &Compute,
) -> Result<Tensor> {
    let op = LinearOp {
        unfold,
        compute: compute.clone(),
    };
    x.contiguous()?
        .apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
}

/// See [`linear`](super::linear).
///
/// # Errors
/// Shapes that do not fit.
pub fn plain(x: &Tensor, weight: &Tensor, bias: &Tensor, compute: &Compute) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    // One 2-D product: on a 3-D input candle's backward would build one weight gradient per sample.
    let y = compute.plain_product(&x.reshape(((), inputs))?, &weight.t()?)?;
    if let Some(last) = dims.last_mut() {
        *last = outputs;
    }
    y.broadcast_add(bias)?.reshape(dims)
}

/// A weight (outputs, inputs), and what is held of it.
#[derive(Clone, Copy)]
pub(super) struct Weight<'a> {
    pub data: &'a [f32],
    pub outputs: usize,
    pub held: Option<&'a Held>,
}

impl Weight<'_> {
    fn inputs(&self) -> usize {
        self.data.len() / self.outputs
    }

    /// `y = x W^T + b`
    pub fn forward(self, x: Data, b: &[f32], y: DataMut, engine: Engine) {
        self.product(x, Start::Row(b), y, engine);
    }

    /// `y += x W^T`
    pub fn add_product(self, x: Data, y: &mut [f32], engine: Engine) {
        self.product(x, Start::Sum, DataMut::F32(y), engine);
    }

    fn product(self, x: Data, start: Start, y: DataMut, engine: Engine) {
        let _region = engine.profile.region("matmul forward");
        let (inputs, outputs) = (self.inputs(), self.outputs);
        let shape = (y.len() / outputs, inputs, outputs);
        let (x, w) = (Mat::of(x, inputs), Mat::rows(self.data, inputs).t());
        let product = Product {
            start,
            ..Product::new(shape, x, w)
        };
        if let Some(held) = self.held {
            held.look(&product, engine);
        }
        product.held_into(self.held, y, engine);
    }

    /// `dx = g W`
    pub fn input_gradient(self, g: Data, dx: &mut [f32], engine: Engine) {
        let _region = engine.profile.region("matmul dX");
        let (inputs, outputs) = (self.inputs(), self.outputs);
        let shape = (g.len() / outputs, outputs, inputs);
        let (g, w) = (Mat::of(g, outputs), Mat::rows(self.data, inputs));
        Product::new(shape, g, w).held_into(self.held, DataMut::F32(dx), engine);
    }
}

/// `dW = g^T x`, (outputs, inputs).
pub(super) fn weight_gradient(
    g: Data,
    x: Data,
    outputs: usize,
    inputs: usize,
    engine: Engine,
) -> Vec<f32> {
    let _region = engine.profile.region("matmul dW");
    // SAFETY: a product that starts from zero writes all of it.
    let mut dw = unsafe { unwritten(outputs * inputs) };
    let shape = (outputs, g.len() / outputs, inputs);
    let (g, x) = (Mat::of(g, outputs).t(), Mat::of(x, inputs));
    Product::new(shape, g, x).into(&mut dw, engine);
    dw
}

/// The gradient of a linear layer's outputs, as its three products want it.
pub(super) enum Gradient<'a> {
    /// Somebody's, as it is.
    Borrowed(&'a [f32]),
    /// Its own numbers.
    Own(Numbers<f32>),
    /// Rounded, with the sums over the rows of what was rounded: one look at f32 serves all three.
    Bf16 { rounded: Tiles, sums: Vec<f32> },
}

impl<'a> Gradient<'a> {
    /// `factor * g`, of so many outputs, with a factor for each row.
    pub fn new(g: &'a [f32], outputs: usize, factors: Factors, engine: Engine) -> Self {
        if engine.unit.is_some() {
            return Self::rounded(g, outputs, factors, engine);
        }
        let _region = engine.profile.region("residual");
        if factors.images.is_none() {
            return Self::Borrowed(g);
        }
        let mut scaled = Buffer::new(g.len());
        let rows = scaled
            .par_chunks_mut(outputs)
            .zip(g.par_chunks(outputs))
            .enumerate();
        rows.for_each(|(row, (to, from))| scale(from, factors.row(row), to));
        Self::Own(Numbers::Pooled(scaled))
    }

    /// The same in bf16.
    pub fn rounded(g: &[f32], outputs: usize, factors: Factors, engine: Engine) -> Self {
        let _region = engine.profile.region("gradients rounded");
        // SAFETY: written whole right below.
        let mut rounded = unsafe { Tiles::rows(g.len() / outputs, outputs, true) };
        let sums = round_and_sum(g, factors, &mut rounded);
        Self::Bf16 { rounded, sums }
    }

    /// For products.
    pub fn data(&self) -> Data<'_> {
        match self {
            Self::Borrowed(g) => Data::F32(g),
            Self::Own(g) => Data::F32(g),
            Self::Bf16 { rounded, .. } => Data::Tiles(rounded),
        }
    }

    /// That of the bias: sums over the rows.
    pub fn bias(&self, outputs: usize, engine: Engine) -> Vec<f32> {
        let _region = engine.profile.region("column sums");
        match self {
            Self::Borrowed(g) => column_sums(g, outputs),
            Self::Own(g) => column_sums(g, outputs),
            Self::Bf16 { sums, .. } => sums.clone(),
        }
    }
}

simd_fn! {
    fn scale<'a>(x: &'a [f32], factor: f32, y: &'a mut [f32]) -> () {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = factor * x;
        }
    }
}

/// Keeps for backward: x and W, which live anyway.
struct LinearOp {
    unfold: Option<usize>,
    compute: Compute,
}

impl CustomOp3 for LinearOp {
    fn name(&self) -> &'static str {
        "linear"
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
        let _region = self.compute.profile.region("linear, other");
        let (dims, outputs, inputs) = output(xl, wl, bl)?;
        let (x, data, b) = (slice(x, xl)?, slice(w, wl)?, slice(b, bl)?);
        let length = x.len() / inputs * outputs;
        // SAFETY: a product that starts from a row writes all of it, and so does what moves its cells.
        let mut y = unsafe { unwritten(length) };
        let engine = self.compute.engine();
        let w = Weight {
            data,
            outputs,
            held: None,
        };
        let Some(side) = self.unfold else {
            w.forward(Data::F32(x), b, DataMut::F32(&mut y), engine);
            return Ok((CpuStorage::F32(y), dims));
        };
        let mut cells = Buffer::new(length);
        w.forward(Data::F32(x), b, DataMut::F32(&mut cells), engine);
        let _region = engine.profile.region("unfold_cells forward");
        unfold_cells::unfold(&cells, side, outputs, &mut y);
        let dims = (xl.dims()[0], 4 * side * side, outputs / 4);
        Ok((CpuStorage::F32(y), Shape::from(dims)))
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
        let (dims, ..) = output(xl, wl, bl)?;
        let y = super::cuda::linear::forward((x, xl), (w, wl), (b, bl))?;
        Ok((y, dims))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let _region = self.compute.profile.region("linear, other");
        let grad = grad.contiguous()?;
        #[cfg(feature = "cuda")]
        if x.device().is_cuda() {
            return super::cuda::linear::backward(x, w, b, &grad);
        }
        let (outputs, inputs) = w.dims2()?;
        let g = cpu_f32(&grad)?;
        let (device, engine) = (x.device(), self.compute.engine());
        let folded = self.unfold.map(|side| {
            let _region = engine.profile.region("unfold_cells backward");
            let mut folded = Buffer::new(g.len());
            unfold_cells::fold(&g, side, outputs, &mut folded);
            folded
        });
        let g = folded.as_deref().unwrap_or(&g);
        let length = g.len();
        let g = Gradient::new(g, outputs, Factors::NONE, engine);
        let dx = if x.track_op() {
            // SAFETY: a product that starts from zero writes all of it.
            let mut dx = unsafe { unwritten(length / outputs * inputs) };
            let w = Weight {
                data: &cpu_f32(w)?,
                outputs,
                held: None,
            };
            w.input_gradient(g.data(), &mut dx, engine);
            Some(Tensor::from_vec(dx, x.shape(), device)?)
        } else {
            None
        };
        let dw = if w.track_op() {
            let x = cpu_f32(x)?;
            let dw = weight_gradient(g.data(), Data::F32(&x), outputs, inputs, engine);
            Some(Tensor::from_vec(dw, w.shape(), device)?)
        } else {
            None
        };
        let db = if b.track_op() {
            let db = g.bias(outputs, engine);
            Some(Tensor::from_vec(db, b.shape(), device)?)
        } else {
            None
        };
        Ok((dx, dw, db))
    }
}

/// The result's shape, outputs and inputs.
fn output(x: &Layout, w: &Layout, b: &Layout) -> Result<(Shape, usize, usize)> {
    let (outputs, inputs) = w.shape().dims2()?;
    let mut dims = x.dims().to_vec();
    if dims.last() != Some(&inputs) || b.dims() != [outputs] || inputs == 0 || outputs == 0 {
        candle_core::bail!(
            "linear: input {dims:?}, weight ({outputs}, {inputs}), bias {:?}",
            b.dims()
        );
    }
    if let Some(last) = dims.last_mut() {
        *last = outputs;
    }
    Ok((Shape::from(dims), outputs, inputs))
}
