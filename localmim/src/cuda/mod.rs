//! HOG targets and the masked error by kernels of our own.
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, Tensor};
use vit::ops::cuda::{element_grid, Kernel, Kernels};

// SAFETY: the callers below give the sizes of the tensors.
static KERNELS: Kernels = unsafe { Kernels::new("localmim", include_str!("kernels.cu")) };

/// See [`crate::hog`], which has checked the sizes.
pub fn hog(
    images: &Tensor,
    edges: &[(f32, f32)],
    finest: usize,
    pools: &[usize],
) -> Result<Vec<Tensor>> {
    let (batch, channels, height, width) = images.dims4()?;
    let (bins, rows, columns) = (edges.len(), height / finest, width / finest);
    let edges: Vec<f32> = edges.iter().flat_map(|&(cos, sin)| [cos, sin]).collect();
    let edges = Tensor::new(edges, images.device())?;
    let count = batch * channels * rows * columns;
    let kernel = Kernel {
        kernels: &KERNELS,
        name: "hog_sums",
        shape: Shape::from((batch, rows * columns, channels * bins)),
        grid: element_grid(count),
        ints: &[count, height, width, finest, bins, channels],
        floats: &[],
    };
    let images = images.detach().contiguous()?;
    let sums = kernel.of(&[&images, &edges])?;
    pools
        .iter()
        .map(|pool| {
            let cells = (height / pool) * (width / pool);
            let count = batch * cells * channels;
            let kernel = Kernel {
                kernels: &KERNELS,
                name: "hog_cells",
                shape: Shape::from((batch, cells, channels * bins)),
                grid: element_grid(count),
                ints: &[count, rows, columns, pool / finest, bins, channels],
                floats: &[1.0 / (pool * pool) as f32],
            };
            kernel.of(&[&sums])
        })
        .collect()
}

/// See [`crate::masked_mse`], which has checked the shapes.
pub fn masked_mse(pred: &Tensor, target: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let (pred, target) = (pred.contiguous()?, target.detach().contiguous()?);
    pred.apply_op3(&target, &mask.detach(), MaskedMse)?.get(0)
}

/// Gives the loss and what it was divided by.
struct MaskedMse;

/// Blocks of a sum over everything.
const BLOCKS: usize = 512;

impl CustomOp3 for MaskedMse {
    fn name(&self) -> &'static str {
        "masked_mse"
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
        candle_core::bail!("masked_mse: on CUDA devices alone")
    }

    fn cuda_fwd(
        &self,
        pred: &CudaStorage,
        pl: &Layout,
        target: &CudaStorage,
        tl: &Layout,
        mask: &CudaStorage,
        ml: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let (_, _, channels) = pl.shape().dims3()?;
        let parts = Kernel {
            kernels: &KERNELS,
            name: "masked_parts",
            shape: Shape::from((BLOCKS, 2)),
            grid: element_grid(256 * BLOCKS),
            ints: &[pl.shape().elem_count(), channels],
            floats: &[],
        };
        let sums = parts.run(&[(pred, pl), (target, tl), (mask, ml)])?;
        let quotient = Kernel {
            kernels: &KERNELS,
            name: "masked_quotient",
            shape: Shape::from(2),
            grid: element_grid(256),
            ints: &[BLOCKS],
            floats: &[],
        };
        let both = quotient.run(&[(&sums, &Layout::contiguous(&parts.shape))])?;
        Ok((both, quotient.shape))
    }

    fn bwd(
        &self,
        pred: &Tensor,
        target: &Tensor,
        mask: &Tensor,
        both: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let factor = (grad.detach().get(0)? * 2.0)?.div(&both.detach().get(1)?)?;
        let mask = mask.broadcast_mul(&factor)?;
        let kernel = Kernel {
            kernels: &KERNELS,
            name: "masked_backward",
            shape: pred.shape().clone(),
            grid: element_grid(pred.elem_count()),
            ints: &[pred.elem_count(), pred.dim(2)?],
            floats: &[],
        };
        let d = kernel.of(&[pred, target, &mask])?;
        Ok((Some(d), None, None))
    }
}
