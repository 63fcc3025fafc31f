//! `y = x W^T + b`.
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::matmul::{matmul, Mat, Threads};
use super::storage::{cpu_f32, slice};

/// `(.., I) -> (.., O)`: `y = x W^T + b` with `weight` (O, I) and `bias` (O).
///
/// The backward computes only what is needed: nothing for an input or a weight that is a plain tensor.
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if super::is_fused(x) {
        x.contiguous()?
            .apply_op3(&weight.contiguous()?, bias, LinearOp)
    } else {
        super::plain::linear(x, weight, bias)
    }
}

/// Keeps for backward: x and W, which live anyway.
struct LinearOp;

/// Rows summed in one task for the bias gradient; fixed, so that the bits do not depend on the number of threads.
const ROWS: usize = 128;

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
        // The rows start as the bias and the product is added to them.
        let mut y = Vec::with_capacity(rows * outputs);
        for _ in 0..rows {
            y.extend_from_slice(b);
        }
        matmul(
            (rows, inputs, outputs),
            1.0,
            Mat::rows(x, inputs),
            Mat::rows(w, inputs).t(),
            &mut y,
            outputs,
            true,
            Threads::All,
        );
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
        let (outputs, inputs) = w.dims2()?;
        let grad = grad.contiguous()?;
        let g = cpu_f32(&grad)?;
        let rows = g.len() / outputs;
        let device = x.device();
        let dx = if x.track_op() {
            let mut dx = vec![0f32; rows * inputs];
            matmul(
                (rows, outputs, inputs),
                1.0,
                Mat::rows(&g, outputs),
                Mat::rows(&cpu_f32(w)?, inputs),
                &mut dx,
                inputs,
                false,
                Threads::All,
            );
            Some(Tensor::from_vec(dx, x.shape(), device)?)
        } else {
            None
        };
        let dw = if w.track_op() {
            let mut dw = vec![0f32; outputs * inputs];
            matmul(
                (outputs, rows, inputs),
                1.0,
                Mat::rows(&g, outputs).t(),
                Mat::rows(&cpu_f32(x)?, inputs),
                &mut dw,
                inputs,
                false,
                Threads::All,
            );
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
    let partial: Vec<Vec<f32>> = data
        .par_chunks(ROWS * cols)
        .map(|rows| {
            let mut sums = vec![0f32; cols];
            super::math::simd(|| {
                for row in rows.chunks_exact(cols) {
                    add(&mut sums, row);
                }
            });
            sums
        })
        .collect();
    sum_all(partial, cols)
}

/// Sums vectors in their order.
pub(super) fn sum_all(partial: Vec<Vec<f32>>, cols: usize) -> Vec<f32> {
    let mut total = vec![0f32; cols];
    for sums in &partial {
        add(&mut total, sums);
    }
    total
}

#[inline(always)]
fn add(sums: &mut [f32], row: &[f32]) {
    for (sum, &x) in sums.iter_mut().zip(row) {
        *sum += x;
    }
}
