//! The numbers that make a Vision Transformer a Swin Transformer.
use serde::{Deserialize, Serialize};

use crate::{Activation, Pool, PosEmbed, VitConfig};

/// Stages of every Swin Transformer here.
pub const STAGES: usize = 4;
/// Widest window. The published ones are up to 24 wide.
pub const MAX_WINDOW: usize = 64;

/// What makes a Vision Transformer a Swin Transformer (Liu et al., arXiv 2103.14030): four stages, each but the first with
/// half as many rows and columns of tokens, twice as wide, as the one before; attention inside windows that are shifted in every
/// second block; a bias for each offset in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwinConfig {
    /// Blocks of each stage; their sum is [`VitConfig::depth`].
    pub depths: [usize; STAGES],
    /// Attention heads of each stage; the first is [`VitConfig::num_heads`].
    pub num_heads: [usize; STAGES],
    /// Side of a window in tokens. A stage with no more rows (or columns) has windows as high (or wide) as it is, which are
    /// not shifted, as in timm.
    pub window_size: usize,
}

/// Height and width.
pub(crate) type Size = (usize, usize);

impl SwinConfig {
    /// An architecture of this width and these stages, for images of `window_size * 32` pixels, which all stages divide into
    /// windows without a rest: 224 for windows of 7. Patches of 4 pixels, epsilon 1e-5, mean of the tokens; no head.
    pub fn model(self, embed_dim: usize) -> VitConfig {
        VitConfig {
            image_size: self.window_size.saturating_mul(32),
            patch_size: 4,
            embed_dim,
            depth: self.depths.iter().fold(0, |sum, d| sum.saturating_add(*d)),
            num_heads: self.num_heads[0],
            norm_eps: 1e-5,
            pool: Pool::Avg,
            swin: Some(self),
            ..VitConfig::default()
        }
    }

    /// Stage of a block, counted over all stages, and its number there.
    pub fn place(&self, block: usize) -> Option<(usize, usize)> {
        let mut first = 0;
        for (stage, &depth) in self.depths.iter().enumerate() {
            if block < first + depth {
                return Some((stage, block - first));
            }
            first += depth;
        }
        None
    }

    /// The stage whose grid the tokens have that [`Swin::visible_features`](crate::Swin::visible_features) gives behind a block: the
    /// block's own, behind the last one of a stage the next one's, since a merging stands between.
    pub fn stage_behind(&self, block: usize) -> Option<usize> {
        let (stage, index) = self.place(block)?;
        let merges = index + 1 == self.depths[stage] && stage + 1 < STAGES;
        Some(stage + usize::from(merges))
    }

    /// The first block of a stage, counted over all stages.
    pub fn first_block(&self, stage: usize) -> usize {
        self.depths.iter().take(stage).sum()
    }

    /// Windows' height and width, and how far they are shifted, in block `index` of a stage of such a grid.
    pub(crate) fn window(&self, (rows, columns): Size, index: usize) -> (Size, Size) {
        let (side, shifted) = (self.window_size, index % 2 == 1);
        let shift = |length: usize| match shifted && length > side {
            true => side / 2,
            false => 0,
        };
        (
            (rows.min(side), columns.min(side)),
            (shift(rows), shift(columns)),
        )
    }

    /// Refuses what does not fit together; the sizes that a ViT has too have been checked.
    pub(crate) fn check(&self, cfg: &VitConfig) -> Result<(), String> {
        if self.window_size == 0 || self.window_size > MAX_WINDOW {
            return Err(format!(
                "window size is {}, it must be 1 to {MAX_WINDOW}",
                self.window_size
            ));
        }
        let depth = (self.depths.iter()).try_fold(0usize, |sum, d| sum.checked_add(*d));
        if self.depths.contains(&0) || depth != Some(cfg.depth) {
            return Err(format!(
                "a Swin of depths {:?} has {} blocks; each stage needs one at least",
                self.depths, cfg.depth
            ));
        }
        if self.num_heads[0] != cfg.num_heads {
            return Err(format!(
                "num_heads is {}, the first stage's {}",
                cfg.num_heads, self.num_heads[0]
            ));
        }
        for (stage, &heads) in self.num_heads.iter().enumerate() {
            let dim = cfg.stage_dim(stage);
            if heads == 0 || !dim.is_multiple_of(heads) {
                return Err(format!(
                    "width {dim} of stage {stage} is not divisible by its {heads} heads"
                ));
            }
        }
        let no = |what: &str| Err(format!("a Swin has no {what}"));
        match () {
            () if cfg.pool != Pool::Avg => no("class token: its pooling is the mean (avg)"),
            () if cfg.dist_token || cfg.reg_tokens > 0 || cfg.no_embed_class => {
                no("tokens beside its patches")
            }
            () if cfg.pos_embed != PosEmbed::Learnt => no("position table"),
            () if cfg.activation != Activation::Gelu => no("activation but GELU here"),
            () if cfg.pre_norm || cfg.fc_norm || cfg.init_values.is_some() => {
                no("norm before the blocks, fc_norm or LayerScale here")
            }
            () if cfg.drop_rate > 0.0 => no("dropout here, only drop path"),
            () => Ok(()),
        }
    }
}

impl VitConfig {
    /// Width of the tokens in a stage: doubled from stage to stage in a Swin.
    pub fn stage_dim(&self, stage: usize) -> usize {
        self.embed_dim << stage
    }

    /// Rows and columns of tokens in a stage: halved from stage to stage in a Swin, odd ones rounded up.
    pub fn stage_grid(&self, stage: usize) -> (usize, usize) {
        let half = |(rows, columns): (usize, usize)| (rows.div_ceil(2), columns.div_ceil(2));
        (0..stage).fold(self.grid(), |grid, _| half(grid))
    }

    /// Width of the MLP's hidden layer in a stage.
    pub(crate) fn stage_hidden(&self, stage: usize) -> usize {
        (self.mlp_ratio * self.stage_dim(stage) as f64).round() as usize
    }
}
