//! `gelu(x) = x Phi(x)`.
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{element_grid, Kernel, OPS};

/// See [`crate::ops::gelu`].
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Gelu)
}

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

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        candle_core::bail!("gelu: on CUDA devices alone")
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let shape = layout.shape();
        let y = kernel("gelu", shape, &[shape.elem_count()]).run(&[(x, layout)])?;
        Ok((y, shape.clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let sizes = [x.elem_count()];
        let kernel = kernel("gelu_backward", x.shape(), &sizes);
        x.apply_op2_no_bwd(&grad.contiguous()?, &kernel).map(Some)
    }
}
