//! The Vision Transformer.
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::drop::Drops;
use crate::init::TOKEN;
use crate::ops::{Compute, Precision, Rotation};
use crate::pos_embed::Rope;
use crate::{sincos_2d, Block, LayerNorm, Linear, PatchEmbed, Pool, PosEmbed, VitConfig};

/// A Vision Transformer (Dosovitskiy et al., arXiv 2010.11929) and its variants: pure forward, no training logic, timm's
/// variable names.
///
/// B images of C channels, N patches, K visible patches, P tokens before them (class, distillation, registers), D width.
#[derive(Debug, Clone)]
pub struct Vit {
    cfg: VitConfig,
    patch_embed: PatchEmbed,
    /// (1, P, D) in parts: `cls_token`, `dist_token`, `reg_token`.
    prefix: Vec<Tensor>,
    positions: Positions,
    norm_pre: Option<LayerNorm>,
    blocks: Vec<Block>,
    norm: Option<LayerNorm>,
    fc_norm: Option<LayerNorm>,
    head: Option<Linear>,
    head_dist: Option<Linear>,
    compute: Compute,
}

#[derive(Debug, Clone)]
enum Positions {
    /// Added to the tokens: (1, P + N, D), or (1, N, D) with `no_embed_class`.
    Table(Tensor),
    /// In the blocks.
    Rotary(Rope),
}

impl Vit {
    /// The encoder alone, without final norm and head: what pretraining needs.
    ///
    /// # Errors
    /// Sizes that do not fit, a variable that is missing or has another shape.
    pub fn encoder(cfg: &VitConfig, vb: VarBuilder) -> Result<Self> {
        Self::build(cfg, vb)
    }

    /// The whole model. Variables beside those of [`PatchEmbed`] and [`Block`]: `cls_token`, `dist_token` (1, 1, D),
    /// `reg_token` (1, R, D), `pos_embed` (1, P + N, D), `norm_pre.*`, `norm.*` or `fc_norm.*`, `head.*`, `head_dist.*`;
    /// each only where the architecture has it.
    ///
    /// # Errors
    /// Sizes that do not fit, a variable that is missing or has another shape.
    pub fn new(cfg: &VitConfig, vb: VarBuilder) -> Result<Self> {
        let mut model = Self::build(cfg, vb.clone())?;
        let norm = |name, is: bool| {
            is.then(|| LayerNorm::new(cfg.embed_dim, cfg.norm_eps, vb.pp(name)))
                .transpose()
        };
        let head = |name, is: bool| {
            is.then(|| Linear::new(cfg.features(), cfg.num_classes, vb.pp(name)))
                .transpose()
        };
        model.norm = norm("norm", !cfg.fc_norm)?;
        model.fc_norm = norm("fc_norm", cfg.fc_norm)?;
        model.head = head("head", cfg.num_classes > 0)?;
        model.head_dist = head("head_dist", cfg.num_classes > 0 && cfg.dist_token)?;
        Ok(model)
    }

    fn build(cfg: &VitConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        if cfg.swin.is_some() {
            candle_core::bail!("a Swin, not a ViT: Swin::new builds it, Backbone::new either");
        }
        let (dim, rows) = (cfg.embed_dim, cfg.embedded_prefix());
        let mut prefix = vec![vb.get_with_hints((1, 1, dim), "cls_token", TOKEN)?];
        if cfg.dist_token {
            prefix.push(vb.get_with_hints((1, 1, dim), "dist_token", TOKEN)?);
        }
        if cfg.reg_tokens > 0 {
            prefix.push(vb.get_with_hints((1, cfg.reg_tokens, dim), "reg_token", TOKEN)?);
        }
        let positions = match cfg.pos_embed {
            PosEmbed::Rope { theta } => {
                let (head, prefix) = (dim / cfg.num_heads, cfg.prefix_tokens());
                Positions::Rotary(Rope::new(head, cfg.grid(), theta, prefix, vb.device())?)
            }
            PosEmbed::Learnt => {
                let shape = (1, rows + cfg.patches(), dim);
                Positions::Table(vb.get_with_hints(shape, "pos_embed", TOKEN)?)
            }
            PosEmbed::SinCos => {
                let table = sincos_2d(dim, cfg.grid(), vb.device())?;
                let zeros = table.narrow(1, 0, 1)?.repeat((1, rows, 1))?;
                let table = table.narrow(1, 1, cfg.patches())?;
                Positions::Table(Tensor::cat(&[&zeros, &table], 1)?.to_dtype(vb.dtype())?)
            }
        };
        let norm_pre = cfg
            .pre_norm
            .then(|| LayerNorm::new(dim, cfg.norm_eps, vb.pp("norm_pre")));
        Ok(Self {
            cfg: *cfg,
            patch_embed: PatchEmbed::new(cfg, vb.pp("patch_embed"))?,
            prefix,
            positions,
            norm_pre: norm_pre.transpose()?,
            blocks: (0..cfg.depth)
                .map(|i| Block::new(cfg, i, vb.pp("blocks").pp(i)))
                .collect::<Result<_>>()?,
            norm: None,
            fc_norm: None,
            head: None,
            head_dist: None,
            compute: Compute::default(),
        })
    }

    /// The same, computing so. The head's products stay f32.
    #[must_use]
    pub fn with_compute(self, compute: &Compute) -> Self {
        let head = &Compute {
            precision: Precision::F32,
            ..compute.clone()
        };
        let blocks = self.blocks.into_iter();
        Self {
            patch_embed: self.patch_embed.with_compute(compute),
            norm_pre: self.norm_pre.map(|norm| norm.with_compute(compute)),
            blocks: blocks.map(|block| block.with_compute(compute)).collect(),
            norm: self.norm.map(|norm| norm.with_compute(compute)),
            fc_norm: self.fc_norm.map(|norm| norm.with_compute(compute)),
            head: self.head.map(|linear| linear.with_compute(head)),
            head_dist: self.head_dist.map(|linear| linear.with_compute(head)),
            compute: compute.clone(),
            ..self
        }
    }

    /// How it computes.
    pub fn compute(&self) -> &Compute {
        &self.compute
    }

    /// The architecture.
    pub fn config(&self) -> &VitConfig {
        &self.cfg
    }

    /// `(B, C, H, W) -> (B, P + K, D)`: what the first block sees; only the patches in `ids_keep` (B * K numbers), or all.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn tokens(&self, images: &Tensor, ids_keep: Option<&[u32]>) -> Result<Tensor> {
        self.embed(images, ids_keep, None)
    }

    fn embed(
        &self,
        images: &Tensor,
        ids_keep: Option<&[u32]>,
        drops: Option<Drops>,
    ) -> Result<Tensor> {
        self.cfg.check_images(images)?;
        let x = self.patch_embed.forward(images, ids_keep)?;
        let (batch, kept, dim) = x.dims3()?;
        let mut prefix = match &self.prefix[..] {
            [cls_token] => cls_token.clone(),
            several => Tensor::cat(several, 1)?,
        };
        let x = match (&self.positions, ids_keep) {
            (Positions::Rotary(_), _) => x,
            (Positions::Table(table), ids_keep) => {
                let rows = self.cfg.embedded_prefix();
                if rows > 0 {
                    prefix = (prefix + table.narrow(1, 0, rows)?)?;
                }
                let table = table.squeeze(0)?;
                match ids_keep {
                    None => x.broadcast_add(&table.narrow(0, rows, self.cfg.patches())?)?,
                    Some(ids) => {
                        let ids: Vec<u32> = ids.iter().map(|id| rows as u32 + id).collect();
                        let ids = Tensor::from_vec(ids, batch * kept, x.device())?;
                        let pos = table.index_select(&ids, 0)?;
                        (x + pos.reshape((batch, kept, dim))?)?
                    }
                }
            }
        };
        let prefix = prefix.expand((batch, self.cfg.prefix_tokens(), dim))?;
        let mut x = Tensor::cat(&[&prefix.contiguous()?, &x], 1)?;
        if let Some(drops) = drops {
            x = drops.dropout(&x, self.cfg.drop_rate, 0)?;
        }
        match &self.norm_pre {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }

    /// Of a model with rotary positions, the angles of the tokens of [`Vit::tokens`].
    fn rotation(&self, batch: usize, ids_keep: Option<&[u32]>) -> Result<Option<Rotation>> {
        match &self.positions {
            Positions::Table(_) => Ok(None),
            Positions::Rotary(rope) => rope.rotation(ids_keep, batch).map(Some),
        }
    }

    /// `(B, C, H, W) -> [(B, P + K, D)]`: the tokens after each of `blocks` (0-based, ascending), before any norm.
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
        let rotation = self.rotation(x.dim(0)?, ids_keep)?;
        let mut features = Vec::with_capacity(blocks.len());
        let last = blocks.last().map_or(0, |&b| b + 1);
        for (i, block) in self.blocks.iter().enumerate().take(last) {
            x = block.run(&x, rotation.as_ref(), None)?;
            if blocks.contains(&i) {
                features.push(x.clone());
            }
        }
        Ok(features)
    }

    /// `(B, C, H, W) -> (B, P + N, 3D)`: queries, keys and values of a block (0-based), packed as
    /// [`attention`](crate::ops::attention) takes them, turned where positions are rotary.
    ///
    /// # Errors
    /// Shapes that do not fit, a block that is not there.
    pub fn qkv(&self, images: &Tensor, block: usize) -> Result<Tensor> {
        let Some(of) = self.blocks.get(block) else {
            candle_core::bail!("qkv: block {block} of {}", self.blocks.len());
        };
        let x = match block.checked_sub(1) {
            Some(before) => self.features(images, None, &[before])?.remove(0),
            None => self.tokens(images, None)?,
        };
        of.packed(&x, self.rotation(x.dim(0)?, None)?.as_ref())
    }

    /// `(B, C, H, W) -> (B, P + N, D)`: all blocks and the final norm (which comes later with `fc_norm`), as timm's
    /// `forward_features`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward_features(&self, images: &Tensor) -> Result<Tensor> {
        self.run(images, None)
    }

    fn run(&self, images: &Tensor, drops: Option<Drops>) -> Result<Tensor> {
        let mut x = self.embed(images, None, drops)?;
        let rotation = self.rotation(x.dim(0)?, None)?;
        for block in &self.blocks {
            x = block.run(&x, rotation.as_ref(), drops)?;
        }
        match &self.norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }

    /// `(B, P + N, D) -> (B, F)`: the tokens of [`Vit::forward_features`] as one vector, what the head sees; F is
    /// [`VitConfig::features`]. With a distillation token, the mean of it and the class token, as timm.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn pool(&self, tokens: &Tensor) -> Result<Tensor> {
        let token = |i| tokens.narrow(1, i, 1)?.squeeze(1)?.contiguous();
        let mean = || {
            let prefix = self.cfg.prefix_tokens();
            let patches = tokens.dim(1)?.saturating_sub(prefix);
            tokens.narrow(1, prefix, patches)?.contiguous()?.mean(1)
        };
        let x = match self.cfg.pool {
            Pool::Token if self.cfg.dist_token => ((token(0)? + token(1)?)? * 0.5)?,
            Pool::Token => token(0)?,
            Pool::Avg => mean()?,
            Pool::TokenAvg => Tensor::cat(&[&token(0)?, &mean()?], 1)?,
        };
        match &self.fc_norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }

    /// `(B, P + N, D) -> (B, classes)`: pooling and head. With a distillation token, the mean of the two heads.
    ///
    /// # Errors
    /// Shapes that do not fit, a model without a head.
    pub fn forward_head(&self, tokens: &Tensor) -> Result<Tensor> {
        let Some(head) = &self.head else {
            candle_core::bail!("this model has no head: its num_classes is 0");
        };
        let Some(head_dist) = &self.head_dist else {
            return head.forward(&self.pool(tokens)?);
        };
        let token = |i| tokens.narrow(1, i, 1)?.squeeze(1)?.contiguous();
        (head.forward(&token(0)?)? + head_dist.forward(&token(1)?)?)? * 0.5
    }

    /// `(B, C, H, W) -> (B, classes)`: logits.
    ///
    /// # Errors
    /// Shapes that do not fit, a model without a head.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        self.forward_head(&self.forward_features(images)?)
    }

    /// The same while training: with the dropout and drop path of the architecture, drawn from `drops`.
    ///
    /// # Errors
    /// Shapes that do not fit, a number of seeds that is not B, a model without a head.
    pub fn forward_train(&self, images: &Tensor, drops: Drops) -> Result<Tensor> {
        self.forward_head(&self.run(images, Some(drops))?)
    }
}
