//! `y = x W^T + b`.
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::cpu::engine::Engine;
use super::cpu::matrix::{Mat, Product, Start};
use super::cpu::prepared::Held;
use super::cpu::scratch::Buffer;
use super::cpu::storage::{cpu_f32, slice};
use super::cpu::sums::column_sums;
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
    pub fn forward(self, x: &[f32], b: &[f32], y: &mut [f32], engine: Engine) {
        self.product(x, Start::Row(b), y, engine);
    }

    /// `y += x W^T`
    pub fn add_product(self, x: &[f32], y: &mut [f32], engine: Engine) {
        self.product(x, Start::Sum, y, engine);
    }

    fn product(self, x: &[f32], start: Start, y: &mut [f32], engine: Engine) {
        let _region = engine.profile.region("matmul forward");
        let (inputs, outputs) = (self.inputs(), self.outputs);
        let shape = (y.len() / outputs, inputs, outputs);
        let (x, w) = (Mat::rows(x, inputs), Mat::rows(self.data, inputs).t());
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
    pub fn input_gradient(self, g: &[f32], dx: &mut [f32], engine: Engine) {
        let _region = engine.profile.region("matmul dX");
        let (inputs, outputs) = (self.inputs(), self.outputs);
        let shape = (g.len() / outputs, outputs, inputs);
        let (g, w) = (Mat::rows(g, outputs), Mat::rows(self.data, inputs));
        Product::new(shape, g, w).held_into(self.held, dx, engine);
    }
}

/// `dW = g^T x`, (outputs, inputs).
pub(super) fn weight_gradient(
    g: &[f32],
    x: &[f32],
    outputs: usize,
    inputs: usize,
    engine: Engine,
) -> Vec<f32> {
    let _region = engine.profile.region("matmul dW");
    // SAFETY: a product that starts from zero writes all of it.
    let mut dw = unsafe { unwritten(outputs * inputs) };
    let shape = (outputs, g.len() / outputs, inputs);
    let (g, x) = (Mat::rows(g, outputs).t(), Mat::rows(x, inputs));
    Product::new(shape, g, x).into(&mut dw, engine);
    dw
}

/// `db`: sums over the rows of g.
pub(super) fn bias_gradient(g: &[f32], outputs: usize, engine: Engine) -> Vec<f32> {
    let _region = engine.profile.region("column sums");
    column_sums(g, outputs)
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
            w.forward(x, b, &mut y, engine);
            return Ok((CpuStorage::F32(y), dims));
        };
        let mut cells = Buffer::new(length);
        w.forward(x, b, &mut cells, engine);
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
        let dx = if x.track_op() {
            // SAFETY: a product that starts from zero writes all of it.
            let mut dx = unsafe { unwritten(g.len() / outputs * inputs) };
            let w = Weight {
                data: &cpu_f32(w)?,
                outputs,
                held: None,
            };
            w.input_gradient(g, &mut dx, engine);
            Some(Tensor::from_vec(dx, x.shape(), device)?)
        } else {
            None
        };
        let dw = if w.track_op() {
            let dw = weight_gradient(g, &cpu_f32(x)?, outputs, inputs, engine);
            Some(Tensor::from_vec(dw, w.shape(), device)?)
        } else {
            None
        };
        let db = if b.track_op() {
            let db = bias_gradient(g, outputs, engine);
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
