//! Patch embeddings for images of another number of channels.
use candle_core::{DType, Result, Tensor};

/// `(D, C, P, P) -> (D, channels, P, P)`: a patch embedding's weight for images of another number of channels, as timm's
/// `adapt_input_conv` does. For one channel the C channels' weights are summed: what grey images in C equal channels gave,
/// they give in one. For others the weights are repeated in their order, cut after so many, and scaled by C / channels, so
/// that their sum stays what it was for like channels. timm does the latter for C = 3 alone. Computed in f32.
///
/// # Errors
/// A tensor of another shape, no channels.
pub fn adapt_input_channels(weight: &Tensor, channels: usize) -> Result<Tensor> {
    let (_, own, _, _) = weight.dims4()?;
    if own == channels {
        return Ok(weight.clone());
    }
    if own == 0 || channels == 0 {
        candle_core::bail!("a patch embedding of {own} channels for {channels}");
    }
    let numbers = weight.to_dtype(DType::F32)?;
    let adapted = match channels {
        1 => numbers.sum_keepdim(1)?,
        _ => {
            let repeated = numbers.repeat((1, channels.div_ceil(own), 1, 1))?;
            let cut = repeated.narrow(1, 0, channels)?.contiguous()?;
            (cut * (own as f64 / channels as f64))?
        }
    };
    adapted.to_dtype(weight.dtype())
}
