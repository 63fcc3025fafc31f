//! Putting visible tokens back in their places and mask tokens in the others, and telling all of them where they are.
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::cpu::storage::{cpu_f32, slice};
use super::cpu::unwritten::unwritten;
use super::profile::region;

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
    if super::is_fused(x) {
        let op = UnshuffleOp {
            ids_restore: ids_restore.clone(),
            patches,
            pos_embed: pos_embed.detach().contiguous()?,
        };
        x.contiguous()?.apply_op2(mask_token, op)
    } else {
        super::plain::unshuffle(x, mask_token, &pos_embed.detach(), ids_restore)
    }
}

/// Keeps for backward: the ids.
struct UnshuffleOp {
    ids_restore: Arc<Vec<u32>>,
    patches: usize,
    pos_embed: Tensor,
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
        let _region = region("unshuffle forward");
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
        let _region = region("unshuffle backward");
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
