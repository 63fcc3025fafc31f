//! Layer normalisation.
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::{column_sums, grid, row_grid, Kernel, OPS};
use crate::ops::plain;

/// See [`crate::ops::layer_norm`].
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    if weight.elem_count() > MAX_WIDTH {
        return plain::layer_norm(x, weight, bias, eps);
    }
    let op = LayerNorm { eps: eps as f32 };
    x.contiguous()?
        .apply_op3(&weight.contiguous()?, &bias.contiguous()?, op)
}

/// Rows that one block of the backward handles.
const CHUNK: usize = 32;
/// Bytes of memory that its warps share, and how wide a row may be for one of them: 2 sums for each column.
const SHARED: usize = 48 * 1024;
const MAX_WIDTH: usize = SHARED / 8;

/// Keeps for backward: x, which lives anyway.
struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("layer_norm: on CUDA devices alone")
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        w: &CudaStorage,
        wl: &Layout,
        b: &CudaStorage,
        bl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (shape, width) = (xl.shape(), wl.shape().elem_count());
        if width == 0 || xl.dims().last() != Some(&width) || bl.shape().elem_count() != width {
            candle_core::bail!(
                "layer_norm: input {shape:?}, weight {:?}, bias {:?}",
                wl.dims(),
                bl.dims()
            );
        }
        let rows = shape.elem_count() / width;
        let kernel = Kernel {
            kernels: &OPS,
            name: "layer_norm",
            shape: shape.clone(),
            grid: row_grid(rows),
            ints: &[rows, width],
            floats: &[self.eps],
        };
        Ok((kernel.run(&[(x, xl), (w, wl), (b, bl)])?, shape.clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (count, width) = (x.elem_count(), w.elem_count());
        let rows = count / width;
        let blocks = rows.div_ceil(CHUNK);
        // Each warp has sums of its own.
        let warps = (SHARED / (8 * width)).clamp(1, 4);
        let sizes = [rows, width, CHUNK];
        let kernel = Kernel {
            kernels: &OPS,
            name: "layer_norm_backward",
            shape: Shape::from(count + blocks * 2 * width),
            grid: super::LaunchConfig {
                grid_dim: (blocks as u32, 1, 1),
                ..grid(1, (32, warps as u32), warps * 8 * width)
            },
            ints: &sizes,
            floats: &[self.eps],
        };
        let all = x.apply_op3_no_bwd(w, &grad.contiguous()?, &kernel)?;
        let dx = match x.track_op() {
            true => Some(all.narrow(0, 0, count)?.reshape(x.shape())?),
            false => None,
        };
        if !w.track_op() && !b.track_op() {
            return Ok((dx, None, None));
        }
        let parts = all.narrow(0, count, blocks * 2 * width)?;
        let sums = column_sums(&parts.reshape((blocks, 2 * width))?)?;
        let (dw, db) = (sums.narrow(0, 0, width)?, sums.narrow(0, width, width)?);
        Ok((
            dx,
            Some(dw).filter(|_| w.track_op()),
            Some(db).filter(|_| b.track_op()),
        ))
    }
}
