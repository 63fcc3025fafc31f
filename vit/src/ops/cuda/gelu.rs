//! `gelu(x) = x Phi(x)`.
use candle_core::{CudaStorage, Layout, Result, Shape, Tensor};

use super::{element_grid, Kernel, OPS};

fn kernel<'a>(name: &'static str, shape: &Shape, ints: &'a [usize]) -> Kernel<'a> {
    Kernel {
        kernels: &OPS,
        name,
        shape: shape.clone(),
        grid: element_grid(shape.elem_count()),
        ints,
        floats: &[],
    }
}

/// Its values.
pub fn forward(x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
    let shape = layout.shape();
    let y = kernel("gelu", shape, &[shape.elem_count()]).run(&[(x, layout)])?;
    Ok((y, shape.clone()))
}

/// The gradient of x from that of the values.
pub fn backward(x: &Tensor, grad: &Tensor) -> Result<Tensor> {
    kernel("gelu_backward", x.shape(), &[x.elem_count()]).of(&[x, grad])
}
