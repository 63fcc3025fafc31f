//! Swapping the two middle dimensions.
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor};

use super::{element_grid, Kernel, OPS};

/// `(N, A, B, C) -> (N, B, A, C)`, of `ints`: how many numbers, 1, N, A, B, C; the result is seen as `shape`.
fn kernel<'a>(ints: &'a [usize; 6], shape: &Shape) -> Kernel<'a> {
    Kernel {
        kernels: &OPS,
        name: "split_heads",
        shape: shape.clone(),
        grid: element_grid(ints[0]),
        ints,
        floats: &[],
    }
}

/// `(B, S^2, 4 O) -> (B, (2 S)^2, O)`: the 2 x 2 cells that each of S x S cells gave, rows (ky, kx, o), in their places.
pub fn forward(x: &CudaStorage, layout: &Layout, side: usize) -> Result<(CudaStorage, Shape)> {
    let (batch, cells, width) = layout.shape().dims3()?;
    let shape = Shape::from((batch, 4 * cells, width / 4));
    // (B * S, S, 2, 2 * O) -> (B * S, 2, S, 2 * O)
    let ints = [shape.elem_count(), 1, batch * side, side, 2, width / 2];
    let y = kernel(&ints, &shape).run(&[(x, layout)])?;
    Ok((y, shape))
}

/// The gradient of x from that of the result.
pub fn backward(x: &Tensor, grad: &Tensor, side: usize) -> Result<Tensor> {
    let (batch, _, width) = x.dims3()?;
    let ints = [x.elem_count(), 1, batch * side, 2, side, width / 2];
    kernel(&ints, x.shape()).of(&[grad])
}
