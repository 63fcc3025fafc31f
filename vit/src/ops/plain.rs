//! The same ops composed of candle's own: for GPUs, other types, and to compare the fused ones with.
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, DType, Layout, MetalStorage, Result, Shape, Tensor, D,
};

use super::Precision;

/// `lhs . rhs` with operands as `precision` says, and the result in their own type. On the CPU, where candle multiplies bf16
/// by way of f32, operands are rounded and multiplied as f32.
fn matmul(lhs: &Tensor, rhs: &Tensor, precision: Precision) -> Result<Tensor> {
    let on_cpu = lhs.device().is_cpu();
    if precision == Precision::F32 || (on_cpu && precision.unit().is_none()) {
        return lhs.matmul(rhs);
    }
    let dtype = lhs.dtype();
    let inside = match on_cpu {
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

/// See [`super::unfold_cells`].
///
/// # Errors
/// Shapes that do not fit.
pub fn unfold_cells(x: &Tensor, side: usize) -> Result<Tensor> {
    let (batch, cells, width) = x.dims3()?;
    x.reshape((batch * side, side, 2, width / 2))?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((batch, 4 * cells, width / 4))
}

/// See [`super::patch_tokens`].
///
/// # Errors
/// An input without a token.
pub fn patch_tokens(x: &Tensor) -> Result<Tensor> {
    match x.dim(1)? {
        0 => candle_core::bail!("patch_tokens: no token"),
        tokens => x.narrow(1, 1, tokens - 1),
    }
}

/// See [`super::unshuffle`].
///
/// # Errors
/// Shapes that do not fit, an index twice in an image.
pub fn unshuffle(
    x: &Tensor,
    mask_token: &Tensor,
    pos_embed: &Tensor,
    ids_restore: &[u32],
) -> Result<Tensor> {
    let (batch, tokens, width) = x.dims3()?;
    let patches = ids_restore.len() / batch.max(1);
    if patches == 0 || tokens == 0 || tokens > 1 + patches {
        candle_core::bail!(
            "unshuffle: {} ids for {batch} images of {tokens} tokens",
            ids_restore.len()
        );
    }
    // One table: all tokens of all images, then a mask token for each place that has none.
    let masked = 1 + patches - tokens;
    let mut parts = vec![x.reshape((batch * tokens, width))?];
    if masked > 0 {
        let mask_token = mask_token.reshape((1, width))?;
        parts.push(mask_token.broadcast_as((batch * masked, width))?);
    }
    let table = Tensor::cat(&parts, 0)?;
    let mut rows = Vec::with_capacity(batch * (1 + patches));
    for (image, ids) in ids_restore.chunks_exact(patches).enumerate() {
        rows.push(image * tokens);
        rows.extend(ids.iter().map(|&id| match 1 + id as usize {
            token if token < tokens => image * tokens + token,
            token => batch * tokens + image * masked + token - tokens,
        }));
    }
    permute_rows(&table, &rows)?
        .reshape((batch, 1 + patches, width))?
        .broadcast_add(pos_embed)
}

/// Row `rows[i]` of `x` (R, D) at place i; each of the R numbers once, or it is an error.
///
/// `index_select` with the inverse as its gradient: candle's own adds row after row, on a GPU with one thread for a column.
fn permute_rows(x: &Tensor, rows: &[usize]) -> Result<Tensor> {
    let mut places = vec![None; rows.len()];
    for (place, &row) in rows.iter().enumerate() {
        match places.get_mut(row) {
            Some(to @ None) => *to = Some(place as u32),
            Some(_) => candle_core::bail!("unshuffle: a token is in two places"),
            None => candle_core::bail!("unshuffle: token {row} of {}", rows.len()),
        }
    }
    let inverse: Vec<u32> = places.into_iter().flatten().collect();
    let numbers = rows.iter().map(|&row| row as u32).collect::<Vec<u32>>();
    let rows = Tensor::from_vec(numbers, inverse.len(), x.device())?;
    let inverse = Tensor::new(inverse, x.device())?;
    x.apply_op2(&rows, PermuteRows { inverse })
}

struct PermuteRows {
    inverse: Tensor,
}

impl PermuteRows {
    fn select<S: BackendStorage>(
        &self,
        (x, xl): (&S, &Layout),
        (rows, rl): (&S, &Layout),
    ) -> Result<(S, Shape)> {
        Ok((x.index_select(rows, xl, rl, 0)?, xl.shape().clone()))
    }
}

impl CustomOp2 for PermuteRows {
    fn name(&self) -> &'static str {
        "permute_rows"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        rows: &CpuStorage,
        rl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.select((x, xl), (rows, rl))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        xl: &Layout,
        rows: &CudaStorage,
        rl: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.select((x, xl), (rows, rl))
    }

    fn metal_fwd(
        &self,
        x: &MetalStorage,
        xl: &Layout,
        rows: &MetalStorage,
        rl: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.select((x, xl), (rows, rl))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = grad.contiguous()?.index_select(&self.inverse, 0)?;
        Ok((Some(dx), None))
    }
}
