//! The ops on CUDA devices: cuBLAS products and kernels of our own, which NVRTC compiles when the first one runs.
pub(super) mod attention;
pub(super) mod gelu;
pub(super) mod layer_norm;
pub(super) mod linear;
pub(super) mod unfold_cells;

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaView, LaunchConfig, PushKernelArg,
};
use candle_core::cuda_backend::cudarc::nvrtc::{compile_ptx_with_opts, CompileOptions};
use candle_core::cuda_backend::WrapErr;
use candle_core::op::BackpropOp;
use candle_core::{
    CudaDevice, CudaStorage, Error, Layout, Result, Shape, Storage, StorageRef, Tensor,
};

/// A file of kernels in CUDA C.
pub struct Kernels {
    name: &'static str,
    source: &'static str,
    ptx: OnceLock<std::result::Result<String, String>>,
}

impl Kernels {
    /// `name` must be another one than that of any other file.
    ///
    /// # Safety
    /// Wherever a [`Kernel`] of the file runs, it must stay within the tensors and write the whole output.
    pub const unsafe fn new(name: &'static str, source: &'static str) -> Self {
        let ptx = OnceLock::new();
        Self { name, source, ptx }
    }

    fn get(&self, device: &CudaDevice, function: &str) -> Result<CudaFunction> {
        let ptx = self.ptx.get_or_init(|| {
            let options = CompileOptions {
                // As on the host: a product is rounded before it is added. These kernels wait for memory, not for arithmetic.
                fmad: Some(false),
                ..CompileOptions::default()
            };
            let ptx = compile_ptx_with_opts(self.source, options);
            ptx.map(|ptx| ptx.to_src()).map_err(|e| e.to_string())
        });
        match ptx {
            Ok(ptx) => Ok(device
                .get_or_load_custom_func(function, self.name, ptx)?
                .into_cuda_function()),
            Err(e) => Err(Error::Msg(format!("{}: {e}", self.name)).bt()),
        }
    }
}

// SAFETY: the ops give the sizes of their tensors.
static OPS: Kernels = unsafe { Kernels::new("vit-ops", include_str!("kernels.cu")) };

/// One run of a kernel, on contiguous f32 tensors: its arguments are the output, the inputs, `ints`, `floats`.
///
/// Without gradient; an op calls [`Kernel::run`] in its `cuda_fwd` and [`Kernel::of`] in its `bwd`.
pub struct Kernel<'a> {
    /// Where it is.
    pub kernels: &'static Kernels,
    /// Its name there.
    pub name: &'static str,
    /// Shape of the output, of which the kernel must write every element.
    pub shape: Shape,
    /// Blocks and threads.
    pub grid: LaunchConfig,
    /// Sizes.
    pub ints: &'a [usize],
    /// Other numbers.
    pub floats: &'a [f32],
}

impl Kernel<'_> {
    /// Runs it.
    ///
    /// # Errors
    /// Another type or layout, a size beyond i32, an error of CUDA.
    pub fn run(&self, inputs: &[(&CudaStorage, &Layout)]) -> Result<CudaStorage> {
        let Some((first, _)) = inputs.first() else {
            candle_core::bail!("{}: no input", self.name);
        };
        let device = first.device().clone();
        // SAFETY: the kernel writes all of it, see `Kernels::new`.
        let mut out = unsafe { device.alloc::<f32>(self.shape.elem_count())? };
        if self.shape.elem_count() == 0 {
            // There is no grid of 0 blocks.
            return Ok(CudaStorage::wrap_cuda_slice(out, device));
        }
        let inputs = inputs
            .iter()
            .map(|(storage, layout)| view(storage, layout))
            .collect::<Result<Vec<_>>>()?;
        let ints = ints(self.ints)?;
        let function = self.kernels.get(&device, self.name)?;
        let stream = device.cuda_stream();
        let mut arguments = stream.launch_builder(&function);
        arguments.arg(&mut out);
        inputs.iter().for_each(|x| {
            arguments.arg(x);
        });
        ints.iter().for_each(|x| {
            arguments.arg(x);
        });
        self.floats.iter().for_each(|x| {
            arguments.arg(x);
        });
        // SAFETY: see `Kernels::new`.
        unsafe { arguments.launch(self.grid) }.w()?;
        Ok(CudaStorage::wrap_cuda_slice(out, device))
    }

    /// The same with tensors.
    ///
    /// # Errors
    /// As [`Kernel::run`], and a tensor that is not on a CUDA device.
    pub fn of(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let inputs: Vec<(StorageRef<'_>, &Layout)> =
            inputs.iter().map(|x| x.storage_and_layout()).collect();
        let on_cuda = inputs.iter().map(|(storage, layout)| match &**storage {
            Storage::Cuda(storage) => Ok((storage, *layout)),
            _ => candle_core::bail!("{}: on CUDA devices alone", self.name),
        });
        let out = self.run(&on_cuda.collect::<Result<Vec<_>>>()?)?;
        Ok(Tensor::from_storage(
            Storage::Cuda(out),
            self.shape.clone(),
            BackpropOp::none(),
            false,
        ))
    }
}

/// The elements of a contiguous f32 tensor.
fn view<'a>(storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, f32>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("expected a contiguous tensor, got {layout:?}");
    };
    Ok(storage.as_cuda_slice::<f32>()?.slice(start..end))
}

fn ints(sizes: &[usize]) -> Result<Vec<i32>> {
    let int = |&x: &usize| {
        i32::try_from(x).map_err(|_| Error::Msg(format!("{x} elements are too many")).bt())
    };
    sizes.iter().map(int).collect()
}

/// Blocks of `threads` for `count` rows, `threads.1` in each block.
fn grid(count: usize, threads: (u32, u32), shared_bytes: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (count.div_ceil(threads.1 as usize) as u32, 1, 1),
        block_dim: (threads.0, threads.1, 1),
        shared_mem_bytes: shared_bytes as u32,
    }
}

/// A warp for each row.
fn row_grid(rows: usize) -> LaunchConfig {
    grid(rows, (32, 8), 0)
}

/// A thread for each element.
pub fn element_grid(count: usize) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (count.div_ceil(256) as u32, 1, 1),
        block_dim: (256, 1, 1),
        shared_mem_bytes: 0,
    }
}

/// `(rows, width) -> (width)`: sums over the rows, in an order that the size alone decides.
fn column_sums(x: &Tensor) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    // Enough blocks for the device, and not more than a grid may have; then one more run over their sums.
    let chunk = match rows > 512 {
        true => rows.div_ceil(65_535).max(128),
        false => rows.max(1),
    };
    let chunks = rows.div_ceil(chunk).max(1);
    let kernel = Kernel {
        kernels: &OPS,
        name: "column_sums",
        shape: Shape::from((chunks, width)),
        grid: LaunchConfig {
            grid_dim: (width.div_ceil(32) as u32, chunks as u32, 1),
            block_dim: (32, 8, 1),
            shared_mem_bytes: 0,
        },
        ints: &[rows, width, chunk],
        floats: &[],
    };
    let sums = kernel.of(&[x])?;
    match chunks {
        1 => sums.squeeze(0),
        _ => column_sums(&sums),
    }
}
