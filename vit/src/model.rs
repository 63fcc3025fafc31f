//! The Vision Transformer.
use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::{sincos_2d, Block, LayerNorm, PatchEmbed, VitConfig};

/// A Vision Transformer (Dosovitskiy et al., arXiv 2010.11929): pure forward, no training logic, timm's variable names.
///
/// B images, N patches, K visible patches, D width.
#[derive(Debug, Clone)]
pub struct Vit {
    patch_embed: PatchEmbed,
    cls_token: Tensor,
    /// (1, 1 + N, D): the variable `pos_embed` where the builder has one, else the fixed sin-cos table.
    pos_embed: Tensor,
    blocks: Vec<Block>,
    /// Where the builder has one.
    norm: Option<LayerNorm>,
}

impl Vit {
    /// The encoder alone, without a final norm, with the fixed sin-cos position embedding: what pretraining needs.
    ///
    /// # Errors
    /// Sizes that do not fit, a variable that is missing or has another shape.
    pub fn encoder(cfg: &VitConfig, vb: VarBuilder) -> Result<Self> {
        let pos_embed = sincos_2d(cfg.embed_dim, cfg.grid(), vb.device())?;
        Self::build(cfg, pos_embed.to_dtype(vb.dtype())?, None, vb)
    }

    /// With learnt or stored `pos_embed` and the final `norm`: what an exported checkpoint holds.
    ///
    /// # Errors
    /// Sizes that do not fit, a variable that is missing or has another shape.
    pub fn new(cfg: &VitConfig, vb: VarBuilder) -> Result<Self> {
        let shape = (1, 1 + cfg.patches(), cfg.embed_dim);
        let pos_embed = vb.get_with_hints(shape, "pos_embed", Init::Const(0.0))?;
        let norm = LayerNorm::new(cfg.embed_dim, cfg.norm_eps, vb.pp("norm"))?;
        Self::build(cfg, pos_embed, Some(norm), vb)
    }

    fn build(
        cfg: &VitConfig,
        pos_embed: Tensor,
        norm: Option<LayerNorm>,
        vb: VarBuilder,
    ) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let dim = cfg.embed_dim;
        let block = |i| {
            let vb = vb.pp("blocks").pp(i);
            Block::new(dim, cfg.num_heads, cfg.mlp_ratio, cfg.norm_eps, vb)
        };
        Ok(Self {
            patch_embed: PatchEmbed::new(cfg.patch_size, dim, vb.pp("patch_embed"))?,
            cls_token: vb.get_with_hints((1, 1, dim), "cls_token", Init::Const(0.0))?,
            pos_embed,
            blocks: (0..cfg.depth).map(block).collect::<Result<_>>()?,
            norm,
        })
    }

    /// `(B, 3, H, W) -> (B, 1 + K, D)`: class token and patches with their position embeddings; only the patches in
    /// `ids_keep` (B * K numbers), or all.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn tokens(&self, images: &Tensor, ids_keep: Option<&[u32]>) -> Result<Tensor> {
        let x = self.patch_embed.forward(images, ids_keep)?;
        let (batch, kept, dim) = x.dims3()?;
        let table = self.pos_embed.squeeze(0)?;
        let patches = table.dim(0)? - 1;
        let x = match ids_keep {
            None => x.broadcast_add(&table.narrow(0, 1, patches)?)?,
            Some(ids) => {
                let ids: Vec<u32> = ids.iter().map(|id| 1 + id).collect();
                let ids = Tensor::from_vec(ids, batch * kept, x.device())?;
                let pos = table.index_select(&ids, 0)?;
                (x + pos.reshape((batch, kept, dim))?)?
            }
        };
        let cls = (&self.cls_token + self.pos_embed.narrow(1, 0, 1)?)?;
        Tensor::cat(&[&cls.expand((batch, 1, dim))?.contiguous()?, &x], 1)
    }

    /// `(B, 3, H, W) -> [(B, 1 + K, D)]`: the tokens after each of `blocks` (0-based, ascending), before any norm.
    ///
    /// # Errors
    /// Shapes that do not fit, a block that is not there.
    pub fn features(
        &self,
        images: &Tensor,
        ids_keep: Option<&[u32]>,
        blocks: &[usize],
    ) -> Result<Vec<Tensor>> {
        if !blocks.is_sorted_by(|a, b| a < b) || blocks.iter().any(|&b| b >= self.blocks.len()) {
            candle_core::bail!(
                "features: blocks {blocks:?}, expected ascending numbers below {}",
                self.blocks.len()
            );
        }
        let mut x = self.tokens(images, ids_keep)?;
        let mut features = Vec::with_capacity(blocks.len());
        let last = blocks.last().map_or(0, |&b| b + 1);
        for (i, block) in self.blocks.iter().enumerate().take(last) {
            x = block.forward(&x)?;
            if blocks.contains(&i) {
                features.push(x.clone());
            }
        }
        Ok(features)
    }

    /// `(B, 3, H, W) -> (B, 1 + N, D)`: all blocks and the final norm, as timm's `forward_features`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward_features(&self, images: &Tensor) -> Result<Tensor> {
        let mut x = self.tokens(images, None)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        match &self.norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }
}
