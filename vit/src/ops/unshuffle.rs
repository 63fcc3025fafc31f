//! Putting visible tokens back in their places and mask tokens in the others, and telling all of them where they are.
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, Layout, MetalStorage, Result, Shape, Tensor,
};
use rayon::prelude::*;

use super::cpu::storage::{cpu_f32, slice};
use super::cpu::unwritten::unwritten;
use super::profile::Profile;
use super::{Compute, Form};

/// `(B, 1+K, D) -> (B, 1+N, D)`: token 0 stays; place `n` of image `b` takes visible token `ids_restore[b*N + n]` if that
/// is below K, else `mask_token` (1, 1, D); then `pos_embed` (1, 1+N, D) is added, which gets no gradient. Each index below N is
/// there once for each image.
///
/// # Errors
/// Shapes that do not fit, an index beyond N.
pub fn unshuffle(
    x: &Tensor,
    mask_token: &Tensor,
    pos_embed: &Tensor,
    ids_restore: &Arc<Vec<u32>>,
    compute: &Compute,
) -> Result<Tensor> {
    let (batch, _, width) = x.dims3()?;
    if batch == 0 || ids_restore.is_empty() || !ids_restore.len().is_multiple_of(batch) {
        candle_core::bail!("unshuffle: {} ids for {batch} images", ids_restore.len());
    }
    let patches = ids_restore.len() / batch;
    if let Some(id) = ids_restore.iter().find(|&&id| id as usize >= patches) {
        candle_core::bail!("unshuffle: id {id} of {patches} patches");
    }
    if pos_embed.dims() != [1, 1 + patches, width] {
        candle_core::bail!(
            "unshuffle: pos_embed {:?} for {patches} patches of width {width}",
            pos_embed.dims()
        );
    }
    if compute.form(x) != Form::Cpu {
        return plain(x, mask_token, &pos_embed.detach(), ids_restore);
    }
    let op = UnshuffleOp {
        ids_restore: ids_restore.clone(),
        patches,
        pos_embed: pos_embed.detach().contiguous()?,
        profile: compute.profile.clone(),
    };
    x.contiguous()?.apply_op2(mask_token, op)
}

/// Keeps for backward: the ids.
struct UnshuffleOp {
    ids_restore: Arc<Vec<u32>>,
    patches: usize,
    pos_embed: Tensor,
    profile: Profile,
}

impl CustomOp2 for UnshuffleOp {
    fn name(&self) -> &'static str {
        "unshuffle"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        m: &CpuStorage,
        ml: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let _region = self.profile.region("unshuffle forward");
        let (batch, tokens, width) = xl.shape().dims3()?;
        let (x, m) = (slice(x, xl)?, slice(m, ml)?);
        if m.len() != width || tokens == 0 || width == 0 {
            candle_core::bail!(
                "unshuffle: input {:?}, mask token {:?}",
                xl.dims(),
                ml.dims()
            );
        }
        let pos_embed = cpu_f32(&self.pos_embed)?;
        // SAFETY: the loop writes all tokens of all images.
        let mut y = unsafe { unwritten(batch * (1 + self.patches) * width) };
        y.par_chunks_mut((1 + self.patches) * width)
            .zip(x.par_chunks(tokens * width))
            .zip(self.ids_restore.par_chunks(self.patches))
            .for_each(|((y, x), ids)| {
                let tokens = |token: usize| x.chunks_exact(width).nth(token).unwrap_or(m);
                let from = ids.iter().map(|&id| tokens(1 + id as usize));
                let places = y.chunks_exact_mut(width).zip(pos_embed.chunks_exact(width));
                for ((y, pos), x) in places.zip(std::iter::once(tokens(0)).chain(from)) {
                    for ((y, x), pos) in y.iter_mut().zip(x).zip(pos) {
                        *y = x + pos;
                    }
                }
            });
        let shape = Shape::from((batch, 1 + self.patches, width));
        Ok((CpuStorage::F32(y), shape))
    }

    fn bwd(
        &self,
        x: &Tensor,
        mask_token: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let _region = self.profile.region("unshuffle backward");
        let (_, tokens, width) = x.dims3()?;
        let grad = grad.contiguous()?;
        let g = cpu_f32(&grad)?;
        let mut dx = vec![0f32; x.elem_count()];
        let mut dm = vec![0f32; width];
        for ((dx, g), ids) in dx
            .chunks_exact_mut(tokens * width)
            .zip(g.chunks_exact((1 + self.patches) * width))
            .zip(self.ids_restore.chunks_exact(self.patches))
        {
            dx[..width].copy_from_slice(&g[..width]);
            for (g, &id) in g[width..].chunks_exact(width).zip(ids) {
                let token = 1 + id as usize;
                if token < tokens {
                    dx[token * width..(token + 1) * width].copy_from_slice(g);
                } else {
                    dm.iter_mut().zip(g).for_each(|(d, g)| *d += g);
                }
            }
        }
        let dx = Tensor::from_vec(dx, x.shape(), x.device())?;
        let dm = Tensor::from_vec(dm, mask_token.shape(), x.device())?;
        Ok((Some(dx), Some(dm)))
    }
}

/// See [`unshuffle`](super::unshuffle).
///
/// # Errors
/// Shapes that do not fit, an index twice in an image.
pub fn plain(
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
