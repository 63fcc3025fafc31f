//! The same ops composed of candle's own: for GPUs, other types, and to compare the fused ones with.
use candle_core::{DType, Result, Tensor, D};

use super::Precision;

/// `lhs . rhs` with operands as `precision` says, and the result in their own type. On the CPU, where candle multiplies bf16
/// by way of f32, operands are rounded and multiplied as f32.
fn matmul(lhs: &Tensor, rhs: &Tensor, precision: Precision) -> Result<Tensor> {
    if precision == Precision::F32 {
        return lhs.matmul(rhs);
    }
    let dtype = lhs.dtype();
    let inside = match lhs.device().is_cpu() {
        true => dtype,
        false => DType::BF16,
    };
    let round = |t: &Tensor| t.to_dtype(DType::BF16)?.to_dtype(inside);
    round(lhs)?.matmul(&round(rhs)?)?.to_dtype(dtype)
}

/// See [`super::linear`].
///
/// # Errors
/// Shapes that do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: &Tensor, precision: Precision) -> Result<Tensor> {
    let (outputs, inputs) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    // One 2-D product: on a 3-D input candle's backward would build one weight gradient per sample.
    let y = matmul(&x.reshape(((), inputs))?, &weight.t()?, precision)?;
    if let Some(last) = dims.last_mut() {
        *last = outputs;
    }
    y.broadcast_add(bias)?.reshape(dims)
}

/// See [`super::gelu`].
///
/// # Errors
/// An error of candle.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    x.gelu_erf()
}

/// See [`super::layer_norm`].
///
/// # Errors
/// Shapes that do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let var = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred
        .broadcast_div(&(var + eps)?.sqrt()?)?
        .broadcast_mul(weight)?
        .broadcast_add(bias)
}

/// See [`super::attention`].
///
/// # Errors
/// A last dimension that is not 3 x heads x something.
pub fn attention(qkv: &Tensor, heads: usize, precision: Precision) -> Result<Tensor> {
    let (batch, tokens, packed) = qkv.dims3()?;
    if heads == 0 || packed % (3 * heads) != 0 {
        candle_core::bail!("attention: qkv of width {packed} for {heads} heads");
    }
    let dim = packed / 3 / heads;
    let qkv = qkv
        .reshape((batch, tokens, 3, heads, dim))?
        .permute((2, 0, 3, 1, 4))?
        .contiguous()?;
    let (q, k, v) = (qkv.get(0)?, qkv.get(1)?, qkv.get(2)?);
    let scores = (matmul(&q, &k.t()?, precision)? * (1.0 / (dim as f64).sqrt()))?;
    let p = candle_nn::ops::softmax(&scores, D::Minus1)?;
    matmul(&p, &v, precision)?
        .transpose(1, 2)?
        .reshape((batch, tokens, heads * dim))
}

/// See [`super::unshuffle`].
///
/// # Errors
/// Shapes that do not fit.
pub fn unshuffle(x: &Tensor, mask_token: &Tensor, ids_restore: &[u32]) -> Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    let patches = ids_restore.len() / batch.max(1);
    if patches == 0 {
        candle_core::bail!("unshuffle: {} ids for {batch} images", ids_restore.len());
    }
    // Rows of one table: all tokens of all images, then the mask token.
    let table = Tensor::cat(
        &[
            &x.reshape((batch * tokens, width))?,
            &mask_token.reshape((1, width))?,
        ],
        0,
    )?;
    let mut rows = Vec::with_capacity(batch * (1 + patches));
    for (image, ids) in ids_restore.chunks_exact(patches).enumerate() {
        let first = (image * tokens) as u32;
        rows.push(first);
        rows.extend(ids.iter().map(|&id| match 1 + id {
            token if (token as usize) < tokens => first + token,
            _ => (batch * tokens) as u32,
        }));
    }
    let rows = Tensor::from_vec(rows, batch * (1 + patches), x.device())?;
    table
        .index_select(&rows, 0)?
        .reshape((batch, 1 + patches, width))
}
