//! The update of one f32 variable on a CUDA device as one kernel.
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, LaunchConfig, PushKernelArg};
use candle_core::cuda_backend::cudarc::nvrtc::compile_ptx;
use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{
    CpuStorage, CudaStorage, DType, Device, Error, InplaceOp2, Layout, Result, Tensor,
};

use super::{Rule, Update};

/// How a rule with two state tensors updates one element.
pub struct Formula {
    /// CUDA C that changes `p`, `m` and `v` by the clipped gradient `g` and the numbers `n0` to `n7`; touches nothing else.
    pub(super) statements: &'static str,
    /// Those numbers.
    pub(super) numbers: [f32; 8],
}

/// The two state tensors of a variable.
pub(super) type Buffers = [RefCell<CudaSlice<f32>>; 2];

/// The device of a variable that this file can update under `rule`.
pub(super) fn device<'a>(rule: &dyn Rule, var: &'a Tensor) -> Option<&'a CudaDevice> {
    let fits = rule.buffers().len() == 2 && var.dtype() == DType::F32 && var.is_contiguous();
    match var.device() {
        Device::Cuda(device) if fits && rule.cuda(&Update::NONE).is_some() => Some(device),
        _ => None,
    }
}

/// State that is zero.
pub(super) fn zeros(device: &CudaDevice, count: usize) -> Result<Buffers> {
    let zeros = || device.alloc_zeros::<f32>(count).map(RefCell::new);
    Ok([zeros()?, zeros()?])
}

/// State from saved values.
pub(super) fn upload(device: &CudaDevice, buffers: [&Tensor; 2]) -> Result<Buffers> {
    let upload = |t: &Tensor| {
        let values = t.flatten_all()?.to_vec1::<f32>()?;
        device.clone_htod(&values).map(RefCell::new)
    };
    Ok([upload(buffers[0])?, upload(buffers[1])?])
}

/// The values of one state tensor, on the host.
pub(super) fn download(buffer: &CudaSlice<f32>) -> Result<Vec<f32>> {
    buffer.stream().clone_dtoh(buffer).w()
}

/// A rule as an in-place op.
pub(super) struct CudaStep<'a> {
    pub rule: &'a dyn Rule,
    pub update: &'a Update,
    pub buffers: &'a Buffers,
}

impl CudaStep<'_> {
    /// The kernel with these statements, compiled once.
    fn ptx(&self, statements: &'static str) -> Result<String> {
        static COMPILED: Mutex<Option<HashMap<&str, String>>> = Mutex::new(None);
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        let compiled = compiled.get_or_insert_default();
        if let Some(ptx) = compiled.get(statements) {
            return Ok(ptx.clone());
        }
        let source = format!(
            "extern \"C\" __global__ void step(float *ps, const float *gs, float *ms, float *vs, int count, float scale,
                float limit, float n0, float n1, float n2, float n3, float n4, float n5, float n6, float n7) {{
                int i = blockIdx.x * blockDim.x + threadIdx.x;
                if (i >= count) return;
                float p = ps[i], g = gs[i] * scale, m = ms[i], v = vs[i];
                // Not fminf and fmaxf, which lose NaN.
                g = g > limit ? limit : g < -limit ? -limit : g;
                {statements}
                ps[i] = p;
                ms[i] = m;
                vs[i] = v;
            }}"
        );
        let ptx = compile_ptx(source)
            .map_err(|e| Error::Msg(format!("{}: {e}", self.rule.name())).bt())?
            .to_src();
        compiled.insert(statements, ptx.clone());
        Ok(ptx)
    }
}

impl InplaceOp2 for CudaStep<'_> {
    fn name(&self) -> &'static str {
        self.rule.name()
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<()> {
        candle_core::bail!("{}: on CUDA devices alone", self.rule.name())
    }

    fn cuda_fwd(
        &self,
        var: &mut CudaStorage,
        var_layout: &Layout,
        grad: &CudaStorage,
        grad_layout: &Layout,
    ) -> Result<()> {
        let name = self.rule.name();
        let Some(formula) = self.rule.cuda(self.update) else {
            candle_core::bail!("{name}: no formula for CUDA");
        };
        let (Some((v0, v1)), Some((g0, g1))) = (
            var_layout.contiguous_offsets(),
            grad_layout.contiguous_offsets(),
        ) else {
            candle_core::bail!("{name}: variable and gradient must be contiguous");
        };
        let [first, second] = self.buffers;
        let (mut first, mut second) = (first.borrow_mut(), second.borrow_mut());
        let n = v1 - v0;
        if [g1 - g0, first.len(), second.len()] != [n; 3] {
            candle_core::bail!("{name}: variable of {n} elements, gradient of {}", g1 - g0);
        }
        if n == 0 {
            return Ok(());
        }
        let count = i32::try_from(n).map_err(Error::wrap)?;
        let device = var.device.clone();
        // The statements name the module: two rules may have one name.
        let statements = formula.statements;
        let step = device.get_or_load_custom_func("step", statements, &self.ptx(statements)?)?;
        let grad = grad.as_cuda_slice::<f32>()?.slice(g0..g1);
        let mut var = var.as_cuda_slice_mut::<f32>()?.slice_mut(v0..v1);
        let limits = [self.update.scale as f32, self.update.limit as f32];
        let mut arguments = step.builder();
        arguments.arg(&mut var).arg(&grad);
        arguments.arg(&mut *first).arg(&mut *second).arg(&count);
        limits.iter().chain(&formula.numbers).for_each(|x| {
            arguments.arg(x);
        });
        let grid = LaunchConfig {
            grid_dim: (n.div_ceil(256) as u32, 1, 1),
            block_dim: (256, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: all four have `count` elements, checked above; the arguments are those of the kernel above.
        unsafe { arguments.launch(grid) }.w()?;
        Ok(())
    }
}
