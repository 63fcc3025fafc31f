//! `y = x W^T + b`.
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::cuda_backend::WrapErr;
use candle_core::{CudaStorage, Layout, Result, Tensor};

use super::{column_sums, element_grid, ints, view, OPS};

/// x, weight and bias, whose shapes fit, to y.
pub fn forward(
    (x, xl): (&CudaStorage, &Layout),
    (w, wl): (&CudaStorage, &Layout),
    (b, bl): (&CudaStorage, &Layout),
) -> Result<CudaStorage> {
    let (outputs, inputs) = wl.shape().dims2()?;
    let rows = xl.shape().elem_count() / inputs;
    if rows == 0 {
        let nothing = x.device().alloc_zeros::<f32>(0)?;
        return Ok(CudaStorage::wrap_cuda_slice(nothing, x.device().clone()));
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
    Ok(y)
}

/// The gradients of those that train.
pub fn backward(
    x: &Tensor,
    w: &Tensor,
    b: &Tensor,
    grad: &Tensor,
) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
    let (outputs, inputs) = w.dims2()?;
    let g = grad.reshape(((), outputs))?;
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
