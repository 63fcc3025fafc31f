//! The numbers of a LocalMIM model.
use serde::{Deserialize, Serialize};
use vit::{PosEmbed, VitConfig};

use crate::{Error, Target};

/// What a stage's scale may be.
const SCALES: [f64; 5] = [8.0, 4.0, 2.0, 1.0, 0.5];

/// One stage: an encoder block whose output is decoded and compared with a target of its own resolution.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// The encoder block, 0-based.
    pub block: usize,
    /// Side of the prediction grid over the side of the patch grid: 8, 4, 2, 1 or 0.5.
    pub scale: f64,
}

/// Numbers of a LocalMIM model (Wang et al., arXiv 2303.05251).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocalMimConfig {
    /// The encoder. With [`PosEmbed::SinCos`] its position embedding is fixed, as published; with [`PosEmbed::Learnt`] it is a
    /// variable, as that of many checkpoints (see [`LocalMimConfig::begin`]).
    pub vit: VitConfig,
    /// The stages, nearest the input first.
    pub stages: Vec<Stage>,
    /// Width of every decoder. 256.
    pub decoder_embed_dim: usize,
    /// Blocks of every decoder. 1.
    pub decoder_depth: usize,
    /// Attention heads of every decoder. 8.
    pub decoder_num_heads: usize,
    /// What is predicted.
    #[serde(default)]
    pub target: Target,
    /// Orientation bins of the HOG target. 9 (ViT-B) or 18 (ViT-L).
    pub hog_bins: usize,
}

impl LocalMimConfig {
    /// The published numbers around an encoder: default stages, decoders 256 wide, one block, 8 heads, HOG with 9 bins, the
    /// fixed position embedding.
    ///
    /// # Errors
    /// An encoder too shallow for the default stages.
    pub fn new(vit: VitConfig) -> Result<Self, Error> {
        Ok(Self {
            stages: Stage::default_for(vit.depth)?,
            vit: VitConfig {
                pos_embed: PosEmbed::SinCos,
                ..vit
            },
            decoder_embed_dim: 256,
            decoder_depth: 1,
            decoder_num_heads: 8,
            target: Target::Hog,
            hog_bins: 9,
        })
    }

    /// Pixels along one side of a cell of a stage: patch size / scale.
    pub fn pool(&self, stage: &Stage) -> usize {
        (self.vit.patch_size as f64 / stage.scale) as usize
    }

    /// The smallest [`LocalMimConfig::pool`] of all stages.
    pub fn finest_pool(&self) -> usize {
        let pools = self.stages.iter().map(|stage| self.pool(stage));
        pools.min().unwrap_or(self.vit.patch_size)
    }

    /// Patches along one side of the (square) image.
    pub fn side(&self) -> usize {
        self.vit.grid().0
    }

    /// Cells along one side of a stage's grid.
    pub fn grid(&self, stage: &Stage) -> usize {
        (self.side() as f64 * stage.scale) as usize
    }

    /// Which FreezeOut layer a variable belongs to: 0 = patch embedding, class token and what else comes before the blocks,
    /// k + 1 = block k; a stage's norm and decoder go with the block that feeds them. With `train_cls_token` the class token belongs to no layer
    /// and trains to the end, as in the published code (which costs the whole saving of the frozen blocks).
    pub fn layer_of(&self, name: &str, train_cls_token: bool) -> Option<usize> {
        let mut parts = name.split('.');
        let first = parts.next()?;
        let number = || name.split('.').nth(1)?.parse::<usize>().ok();
        match first {
            "patch_embed" | "pos_embed" | "dist_token" | "reg_token" | "norm_pre" => Some(0),
            "cls_token" => (!train_cls_token).then_some(0),
            "blocks" => number().map(|block| block + 1),
            "norm" | "decoder" => number().and_then(|k| Some(self.stages.get(k)?.block + 1)),
            _ => None,
        }
    }

    /// Number of FreezeOut layers: patch embedding and blocks.
    pub fn layers(&self) -> usize {
        self.vit.depth + 1
    }

    /// Refuses numbers that do not fit together.
    ///
    /// # Errors
    /// [`Error::Config`] with the numbers.
    pub fn validate(&self) -> Result<(), Error> {
        self.vit.validate()?;
        let fail = |message: String| Err(Error::Config(message));
        let (height, width) = self.vit.image();
        if height != width {
            return fail(format!(
                "LocalMIM needs square images, not {height} x {width} pixels"
            ));
        }
        if self.stages.is_empty() {
            return fail("there are no stages".into());
        }
        if self.hog_bins == 0 || self.hog_bins > 255 {
            return fail(format!(
                "hog bins is {}, it must be 1 to 255",
                self.hog_bins
            ));
        }
        let (dim, heads) = (self.decoder_embed_dim, self.decoder_num_heads);
        if self.decoder_depth == 0 || dim == 0 || dim % 4 != 0 || heads == 0 || dim % heads != 0 {
            return fail(format!(
                "decoder of depth {}, width {dim} and {heads} heads: depth must be at least 1, width divisible by 4 and \
                 by the heads",
                self.decoder_depth
            ));
        }
        for pair in self.stages.windows(2) {
            if pair[0].block >= pair[1].block {
                return fail(format!(
                    "stages must come in order of their blocks: {} stands before {}",
                    pair[0].block, pair[1].block
                ));
            }
        }
        let last = self.vit.depth - 1;
        let (patch, side) = (self.vit.patch_size, self.side());
        for stage in &self.stages {
            let Stage { block, scale } = *stage;
            if block >= self.vit.depth {
                return fail(format!(
                    "stage at block {block}: the encoder has blocks 0 to {last}"
                ));
            }
            if !SCALES.contains(&scale) {
                return fail(format!(
                    "stage at block {block}: scale {scale} is none of 8, 4, 2, 1, 0.5"
                ));
            }
            if (patch as f64 / scale).fract() != 0.0 {
                let fits = |scale: &f64| (patch as f64 / scale).fract() == 0.0;
                let scales: Vec<f64> = SCALES.into_iter().filter(fits).collect();
                return fail(format!(
                    "stage at block {block}: patch size {patch} is not divisible by scale {scale}; name stages as \
                     BLOCK:SCALE,... with scales of {scales:?}"
                ));
            }
            let numbers = self.vit.in_chans * self.pool(stage).pow(2);
            if self.target == (Target::Pixel { normalise: true }) && numbers < 2 {
                return fail(format!(
                    "stage at block {block}: with scale {scale} its cells are single numbers, which have no deviation to be \
                     normalised by; name stages as BLOCK:SCALE,... with smaller scales, or leave norm-pix out"
                ));
            }
            if (side as f64 * scale).fract() != 0.0 {
                return fail(format!(
                    "stage at block {block}: {side} x {side} patches cannot be pooled 2 x 2 for scale 0.5; choose an \
                     image size divisible by {}",
                    2 * patch
                ));
            }
            if scale >= 4.0 && dim % (scale as usize) != 0 {
                return fail(format!(
                    "stage at block {block}: decoder width {dim} is not divisible by scale {scale}"
                ));
            }
        }
        if self.stages.last().is_some_and(|s| s.block != last) {
            return fail(format!(
                "the last stage must be at the last block, {last}: blocks behind it would learn nothing"
            ));
        }
        Ok(())
    }
}

impl Stage {
    /// After blocks 1, 3, D-3 and D-1 with scales 4, 2, 1 and 0.5.
    ///
    /// # Errors
    /// Fewer than 8 blocks.
    pub fn default_for(depth: usize) -> Result<Vec<Stage>, Error> {
        if depth < 8 {
            return Err(Error::Config(format!(
                "the default stages need at least 8 blocks, the encoder has {depth}; name stages as BLOCK:SCALE,..."
            )));
        }
        let blocks = [1, 3, depth - 3, depth - 1];
        let stage = |(block, scale)| Stage { block, scale };
        Ok(blocks
            .into_iter()
            .zip([4.0, 2.0, 1.0, 0.5])
            .map(stage)
            .collect())
    }

    /// A stage after every block, for 12 blocks: scales 8, 4, 4, six times 2, 1, 1, 0.5.
    ///
    /// # Errors
    /// Another depth than 12.
    pub fn all(depth: usize) -> Result<Vec<Stage>, Error> {
        const SCALES: [f64; 12] = [8., 4., 4., 2., 2., 2., 2., 2., 2., 1., 1., 0.5];
        if depth != SCALES.len() {
            return Err(Error::Config(format!(
                "stages 'all' is defined for 12 blocks, the encoder has {depth}; name stages as BLOCK:SCALE,..."
            )));
        }
        let stage = |(block, scale)| Stage { block, scale };
        Ok(SCALES.into_iter().enumerate().map(stage).collect())
    }
}
