//! `y = x W^T + b`.
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::held::Weight;
use super::cpu::math::simd_fn;
use super::cpu::product::{matmul, Mat, Start, Threads};
use super::cpu::storage::{cpu_f32, slice};
use super::cpu::unwritten::unwritten;
use super::profile::region;
use super::Precision;

/// `(.., I) -> (.., O)`: `y = x W^T + b` with `weight` (O, I) and `bias` (O).
///
/// The backward computes only what is needed: nothing for an input or a weight that is a plain tensor.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, precision: Precision) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if super::cuda::is_cuda(x) && precision == Precision::F32 {
        return super::cuda::linear(x, weight, bias);
    }
    if super::is_fused(x) {
        x.contiguous()?
            .apply_op3(&weight.contiguous()?, bias, LinearOp { precision })
    } else {
        super::plain::linear(x, weight, bias, precision)
    }
}

/// Rows in one task; fixed, so that the bits do not depend on the number of threads.
const ROWS: usize = 128;

/// `y = x W^T + b`; `b` tells the outputs, at least 1.
pub(super) fn forward(x: &[f32], w: Weight, b: &[f32], y: &mut [f32], precision: Precision) {
    product(x, w, Start::Row(b), b.len(), y, precision);
}

/// `y += x W^T`, rows of y `outputs` wide.
pub(super) fn add_product(
    x: &[f32],
    w: Weight,
    outputs: usize,
    y: &mut [f32],
    precision: Precision,
) {
    product(x, w, Start::Sum, outputs, y, precision);
}

fn product(
    x: &[f32],
    w: Weight,
    start: Start,
    outputs: usize,
    y: &mut [f32],
    precision: Precision,
) {
    let _region = region("matmul forward");
    let inputs = w.data.len() / outputs;
    let (x, right) = (Mat::rows(x, inputs), Mat::rows(w.data, inputs).t());
    let shape = (y.len() / outputs, inputs, outputs);
    times_weight(precision, shape, x, w, right, y, start);
}

/// `dx = g W`, rows of g `outputs` wide.
pub(super) fn input_gradient(
    g: &[f32],
    w: Weight,
    outputs: usize,
    dx: &mut [f32],
    precision: Precision,
) {
    let _region = region("matmul dX");
    let inputs = w.data.len() / outputs;
    let shape = (g.len() / outputs, outputs, inputs);
    let (g, right) = (Mat::rows(g, outputs), Mat::rows(w.data, inputs));
    times_weight(precision, shape, g, w, right, dx, Start::Zero);
}

/// `dst = start + lhs . right`, rows of dst as wide as the product; `right` is `w` as it is or transposed, taken as it is held if
/// weights are.
fn times_weight(
    precision: Precision,
    shape: (usize, usize, usize),
    lhs: Mat,
    w: Weight,
    right: Mat,
    dst: &mut [f32],
    start: Start,
) {
    let prepared = w.prepared(right, shape, precision);
    let right = Mat {
        prepared: prepared.as_deref(),
        ..right
    };
    matmul(
        precision,
        shape,
        lhs,
        right,
        dst,
        shape.2,
        start,
        Threads::All,
    );
}

/// `dW = g^T x`, (outputs, inputs).
pub(super) fn weight_gradient(
    g: &[f32],
    x: &[f32],
    outputs: usize,
    inputs: usize,
    precision: Precision,
) -> Vec<f32> {
    let _region = region("matmul dW");
    // SAFETY: a product that starts from zero writes all of it.
    let mut dw = unsafe { unwritten(outputs * inputs) };
    let shape = (outputs, g.len() / outputs, inputs);
    let (g, x) = (Mat::rows(g, outputs).t(), Mat::rows(x, inputs));
    let zero = Start::Zero;
    matmul(precision, shape, g, x, &mut dw, inputs, zero, Threads::All);
    dw
}

/// Keeps for backward: x and W, which live anyway.
struct LinearOp {
    precision: Precision,
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
        let _region = region("linear, other");
        let (outputs, inputs) = wl.shape().dims2()?;
        let (x, w, b) = (slice(x, xl)?, slice(w, wl)?, slice(b, bl)?);
        let mut dims = xl.dims().to_vec();
        if dims.last() != Some(&inputs) || b.len() != outputs || inputs == 0 || outputs == 0 {
            candle_core::bail!(
                "linear: input {dims:?}, weight ({outputs}, {inputs}), bias ({})",
                b.len()
            );
        }
        if let Some(last) = dims.last_mut() {
            *last = outputs;
        }
        let rows = x.len() / inputs;
        // SAFETY: a product that starts from a row writes all of it.
        let mut y = unsafe { unwritten(rows * outputs) };
        // Its weight may be a copy made for this pass: not one to hold.
        let w = Weight { data: w, id: None };
        forward(x, w, b, &mut y, self.precision);
        Ok((CpuStorage::F32(y), Shape::from(dims)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let _region = region("linear, other");
        let (outputs, inputs) = w.dims2()?;
        let grad = grad.contiguous()?;
        let g = cpu_f32(&grad)?;
        let rows = g.len() / outputs;
        let device = x.device();
        let dx = if x.track_op() {
            // SAFETY: a product that starts from zero writes all of it.
            let mut dx = unsafe { unwritten(rows * inputs) };
            let data = &cpu_f32(w)?;
            let w = Weight { data, id: None };
            input_gradient(&g, w, outputs, &mut dx, self.precision);
            Some(Tensor::from_vec(dx, x.shape(), device)?)
        } else {
            None
        };
        let dw = if w.track_op() {
            let dw = weight_gradient(&g, &cpu_f32(x)?, outputs, inputs, self.precision);
            Some(Tensor::from_vec(dw, w.shape(), device)?)
        } else {
            None
        };
        let db = if b.track_op() {
            Some(Tensor::from_vec(
                column_sums(&g, outputs),
                b.shape(),
                device,
            )?)
        } else {
            None
        };
        Ok((dx, dw, db))
    }
}

/// Sums over the rows of a matrix `cols` wide.
pub(super) fn column_sums(data: &[f32], cols: usize) -> Vec<f32> {
    let _region = region("column sums");
    let partial: Vec<Vec<f32>> = data
        .par_chunks(ROWS * cols)
        .map(|rows| {
            let mut sums = vec![0f32; cols];
            add_rows(rows, &mut sums);
            sums
        })
        .collect();
    sum_all(partial, cols)
}

/// Sums vectors in their order.
pub(super) fn sum_all(partial: Vec<Vec<f32>>, cols: usize) -> Vec<f32> {
    let mut total = vec![0f32; cols];
    for sums in &partial {
        add_rows(sums, &mut total);
    }
    total
}

simd_fn! {
    fn add_rows<'a>(rows: &'a [f32], sums: &'a mut [f32]) -> () {
        for row in rows.chunks_exact(sums.len()) {
            for (sum, &x) in sums.iter_mut().zip(row) {
                *sum += x;
            }
        }
    }
}
