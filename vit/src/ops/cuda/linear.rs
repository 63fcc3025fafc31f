//! `y = x W^T + b`.
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::cuda_backend::WrapErr;
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::{column_sums, element_grid, ints, view, OPS};

/// See [`crate::ops::linear`].
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    x.contiguous()?
        .apply_op3(&weight.contiguous()?, &bias.contiguous()?, Linear)
}

/// Keeps for backward: x and W, which live anyway.
struct Linear;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
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
        candle_core::bail!("linear: on CUDA devices alone")
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
        let (outputs, inputs) = wl.shape().dims2()?;
        let mut dims = xl.dims().to_vec();
        if dims.last() != Some(&inputs) || bl.dims() != [outputs] || inputs == 0 || outputs == 0 {
            candle_core::bail!(
                "linear: input {dims:?}, weight ({outputs}, {inputs}), bias {:?}",
                bl.dims()
            );
        }
        if let Some(last) = dims.last_mut() {
            *last = outputs;
        }
        let rows = xl.shape().elem_count() / inputs;
        if rows == 0 {
            let nothing = x.device().alloc_zeros::<f32>(0)?;
            let y = CudaStorage::wrap_cuda_slice(nothing, x.device().clone());
            return Ok((y, Shape::from(dims)));
        }
        let x_rows = Layout::contiguous_with_offset((rows, inputs), xl.start_offset());
        let mut y = x.matmul(w, (1, rows, outputs, inputs), &x_rows, &wl.transpose(0, 1)?)?;

        let device = x.device();
        let function = OPS.get(device, "add_bias")?;
        let bias = view(b, bl)?;
        let sizes = ints(&[rows * outputs, outputs])?;
        let stream = device.cuda_stream();
        let mut arguments = stream.launch_builder(&function);
        arguments
            .arg(y.as_cuda_slice_mut::<f32>()?)
            .arg(&bias)
            .arg(&sizes[0])
            .arg(&sizes[1]);
        // SAFETY: y has rows * outputs elements, the bias has outputs.
        unsafe { arguments.launch(element_grid(rows * outputs)) }.w()?;
        Ok((y, Shape::from(dims)))
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
        let g = grad.contiguous()?.reshape(((), outputs))?;
        let dx = match x.track_op() {
            true => Some(g.matmul(&w.detach())?.reshape(x.shape())?),
            false => None,
        };
        let dw = match w.track_op() {
            true => Some(g.t()?.matmul(&x.detach().reshape(((), inputs))?)?),
            false => None,
        };
        let db = match b.track_op() {
            true => Some(column_sums(&g)?),
            false => None,
        };
        Ok((dx, dw, db))
    }
}
