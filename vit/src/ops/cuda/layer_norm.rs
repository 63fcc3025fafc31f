//! Layer normalisation.
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor};

use super::{column_sums, grid, row_grid, Kernel, LaunchConfig, OPS};

/// Rows that one block of the backward handles.
const CHUNK: usize = 32;
/// Bytes of memory that its warps share, and how wide a row may be for one of them: 2 sums for each column.
const SHARED: usize = 48 * 1024;
pub const MAX_WIDTH: usize = SHARED / 8;

/// `x`, weight and bias to the result.
pub fn forward(
    (x, xl): (&CudaStorage, &Layout),
    (w, wl): (&CudaStorage, &Layout),
    (b, bl): (&CudaStorage, &Layout),
    eps: f32,
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
        floats: &[eps],
    };
    Ok((kernel.run(&[(x, xl), (w, wl), (b, bl)])?, shape.clone()))
}

/// The gradients of those that train.
pub fn backward(
    x: &Tensor,
    w: &Tensor,
    b: &Tensor,
    grad: &Tensor,
    eps: f32,
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
        grid: LaunchConfig {
            grid_dim: (blocks as u32, 1, 1),
            ..grid(1, (32, warps as u32), warps * 8 * width)
        },
        ints: &sizes,
        floats: &[eps],
    };
    let all = kernel.of(&[x, w, grad])?;
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
