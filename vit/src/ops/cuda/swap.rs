//! Swapping the two middle dimensions.
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{element_grid, Kernel, OPS};

/// `(B, S^2, 4 O) -> (B, (2 S)^2, O)`: the 2 x 2 cells that each of S x S cells gave, rows (ky, kx, o), in their places.
///
/// # Errors
/// Shapes that do not fit.
pub fn unfold_cells(x: &Tensor, side: usize) -> Result<Tensor> {
    let (batch, cells, width) = x.dims3()?;
    if cells != side * side || width % 4 != 0 {
        candle_core::bail!("unfold_cells: {:?} on a grid of {side}", x.dims());
    }
    // (B * S, S, 2, 2 * O) -> (B * S, 2, S, 2 * O)
    let op = Swap {
        dims: [batch * side, side, 2, width / 2],
        shape: Shape::from((batch, 4 * cells, width / 4)),
    };
    x.contiguous()?.apply_op1(op)
}

struct Swap {
    dims: [usize; 4],
    /// What the result is seen as.
    shape: Shape,
}

/// `(N, A, B, C) -> (N, B, A, C)`
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

impl CustomOp1 for Swap {
    fn name(&self) -> &'static str {
        "swap"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("swap: on CUDA devices alone")
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let [n, a, b, c] = self.dims;
        let y = kernel(&[n * a * b * c, 1, n, a, b, c], &self.shape).run(&[(x, layout)])?;
        Ok((y, self.shape.clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [n, a, b, c] = self.dims;
        let ints = [n * a * b * c, 1, n, b, a, c];
        let back = kernel(&ints, x.shape());
        grad.contiguous()?.apply_op1_no_bwd(&back).map(Some)
    }
}
