//! The Swin Transformer.
mod block;
mod config;
mod geometry;
mod names;
mod presets;
mod visible;

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::drop::Drops;
use crate::ops::{Compute, Precision};
use crate::{LayerNorm, Linear, PatchEmbed, VitConfig};
use block::{Merging, SwinBlock};
pub use config::{SwinConfig, MAX_WINDOW, STAGES};
use geometry::Layout;
pub(crate) use presets::preset;

/// A Swin Transformer (Liu et al., arXiv 2103.14030): pure forward, no training logic, timm's variable names.
///
/// B images of C channels, N tokens of the first stage, D its width. Stage i has about N / 4^i tokens of width 2^i D.
#[derive(Debug, Clone)]
pub struct Swin {
    cfg: VitConfig,
    patch_embed: PatchEmbed,
    embed_norm: LayerNorm,
    stages: Vec<Stage>,
    norm: Option<LayerNorm>,
    head: Option<Linear>,
    compute: Compute,
}

#[derive(Debug, Clone)]
struct Stage {
    merging: Option<Merging>,
    blocks: Vec<SwinBlock>,
    /// Of blocks with windows in their places, and of those whose windows are shifted.
    layouts: [Layout; 2],
}

impl Swin {
    /// The encoder alone, without final norm and head.
    ///
    /// # Errors
    /// An architecture without [`VitConfig::swin`], sizes that do not fit, a variable that is missing or has another shape.
    pub fn encoder(cfg: &VitConfig, vb: VarBuilder) -> Result<Self> {
        cfg.validate().map_err(candle_core::Error::wrap)?;
        let Some(swin) = cfg.swin else {
            candle_core::bail!("a ViT, not a Swin: Vit::new builds it");
        };
        let stage = |stage: usize| -> Result<Stage> {
            let (vb, grid) = (vb.pp("layers").pp(stage), cfg.stage_grid(stage));
            let merging = stage.checked_sub(1).map(|before| {
                let (grid, dim) = (cfg.stage_grid(before), cfg.stage_dim(before));
                Merging::new(grid, dim, cfg.norm_eps, vb.pp("downsample"))
            });
            let block = |index: usize| {
                SwinBlock::new((cfg, &swin), (stage, index), vb.pp("blocks").pp(index))
            };
            let layout = |index| {
                let (window, shift) = swin.window(grid, index);
                Layout::new(grid, window, shift)
            };
            Ok(Stage {
                merging: merging.transpose()?,
                blocks: (0..swin.depths[stage]).map(block).collect::<Result<_>>()?,
                layouts: [layout(0)?, layout(1)?],
            })
        };
        Ok(Self {
            cfg: *cfg,
            patch_embed: PatchEmbed::new(cfg, vb.pp("patch_embed"))?,
            embed_norm: LayerNorm::new(
                cfg.embed_dim,
                cfg.norm_eps,
                vb.pp("patch_embed").pp("norm"),
            )?,
            stages: (0..STAGES).map(stage).collect::<Result<_>>()?,
            norm: None,
            head: None,
            compute: Compute::default(),
        })
    }

    /// The whole model. Variables: `patch_embed.proj.*`, `patch_embed.norm.*`, `layers.{stage}.blocks.{n}.*`,
    /// `layers.{stage}.downsample.*` of all stages but the first, `norm.*`, and `head.*` if there is one.
    ///
    /// # Errors
    /// As [`Swin::encoder`].
    pub fn new(cfg: &VitConfig, vb: VarBuilder) -> Result<Self> {
        let encoder = Self::encoder(cfg, vb.clone())?;
        let width = cfg.features();
        let head = (cfg.num_classes > 0)
            .then(|| Linear::new(width, cfg.num_classes, vb.pp("head")))
            .transpose()?;
        Ok(Self {
            norm: Some(LayerNorm::new(width, cfg.norm_eps, vb.pp("norm"))?),
            head,
            ..encoder
        })
    }

    /// The same, computing so. The head's products stay f32.
    #[must_use]
    pub fn with_compute(self, compute: &Compute) -> Self {
        let head = &Compute {
            precision: Precision::F32,
            ..compute.clone()
        };
        let stage = |stage: Stage| Stage {
            merging: stage.merging.map(|merging| merging.with_compute(compute)),
            blocks: (stage.blocks.into_iter())
                .map(|block| block.with_compute(compute))
                .collect(),
            ..stage
        };
        Self {
            patch_embed: self.patch_embed.with_compute(compute),
            embed_norm: self.embed_norm.with_compute(compute),
            stages: self.stages.into_iter().map(stage).collect(),
            norm: self.norm.map(|norm| norm.with_compute(compute)),
            head: self.head.map(|linear| linear.with_compute(head)),
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

    /// `(B, C, H, W) -> (B, N, D)`: patches as tokens, normed.
    fn embed(&self, images: &Tensor) -> Result<Tensor> {
        self.cfg.check_images(images)?;
        self.embed_norm
            .forward(&self.patch_embed.forward(images, None)?)
    }

    /// `(B, C, H, W) -> [(B, N / 4^i, 2^i D)]`: the tokens after each of `blocks` (counted over all stages from 0, ascending),
    /// before any norm and merging.
    ///
    /// # Errors
    /// Shapes that do not fit, a block that is not there.
    pub fn features(&self, images: &Tensor, blocks: &[usize]) -> Result<Vec<Tensor>> {
        self.check_blocks(blocks)?;
        let mut features = Vec::with_capacity(blocks.len());
        let last = blocks.last().map_or(0, |&b| b + 1);
        self.blocks(self.embed(images)?, None, last, |block, x| {
            if blocks.contains(&block) {
                features.push(x.clone());
            }
        })?;
        Ok(features)
    }

    fn check_blocks(&self, blocks: &[usize]) -> Result<()> {
        if !blocks.is_sorted_by(|a, b| a < b) || blocks.iter().any(|&b| b >= self.cfg.depth) {
            candle_core::bail!(
                "features: blocks {blocks:?}, expected ascending numbers below {}",
                self.cfg.depth
            );
        }
        Ok(())
    }

    /// The first `count` blocks, with what stands between their stages; `each` sees what comes out of every one.
    fn blocks(
        &self,
        mut x: Tensor,
        drops: Option<Drops>,
        count: usize,
        mut each: impl FnMut(usize, &Tensor),
    ) -> Result<Tensor> {
        let mut number = 0;
        for stage in &self.stages {
            for (index, block) in stage.blocks.iter().enumerate() {
                if number == count {
                    return Ok(x);
                }
                if let (0, Some(merging)) = (index, &stage.merging) {
                    x = merging.forward(&x)?;
                }
                x = block.run(&x, &stage.layouts[index % 2], drops)?;
                each(number, &x);
                number += 1;
            }
        }
        Ok(x)
    }

    /// `(B, C, H, W) -> (B, N / 64, 8D)`: all blocks and the final norm, as timm's `forward_features` with rows and columns in
    /// one dimension.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward_features(&self, images: &Tensor) -> Result<Tensor> {
        self.run(images, None)
    }

    fn run(&self, images: &Tensor, drops: Option<Drops>) -> Result<Tensor> {
        let x = self.blocks(self.embed(images)?, drops, self.cfg.depth, |_, _| ())?;
        match &self.norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }

    /// `(B, N / 64, 8D) -> (B, 8D)`: the mean of the tokens, what the head sees.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn pool(&self, tokens: &Tensor) -> Result<Tensor> {
        tokens.mean(1)
    }

    /// `(B, N / 64, 8D) -> (B, classes)`: pooling and head.
    ///
    /// # Errors
    /// Shapes that do not fit, a model without a head.
    pub fn forward_head(&self, tokens: &Tensor) -> Result<Tensor> {
        let Some(head) = &self.head else {
            candle_core::bail!("this model has no head: its num_classes is 0");
        };
        head.forward(&self.pool(tokens)?)
    }

    /// `(B, C, H, W) -> (B, classes)`: logits.
    ///
    /// # Errors
    /// Shapes that do not fit, a model without a head.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        self.forward_head(&self.forward_features(images)?)
    }

    /// The same while training: with the drop path of the architecture, drawn from `drops`.
    ///
    /// # Errors
    /// Shapes that do not fit, a number of seeds that is not B, a model without a head.
    pub fn forward_train(&self, images: &Tensor, drops: Drops) -> Result<Tensor> {
        self.forward_head(&self.run(images, Some(drops))?)
    }
}
