//! The numbers of a LocalMIM model.
use serde::{Deserialize, Serialize};
use vit::VitConfig;

use crate::{Error, Target};

/// What a stage's scale may be.
const SCALES: [f64; 5] = [8.0, 4.0, 2.0, 1.0, 0.5];

/// One stage: an encoder block whose output is decoded and compared with a target of its own resolution. Below, a unit is what is
/// hidden as a whole: a patch; of a Swin 32 x 32 pixels ([`VitConfig::mask_unit`]).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// The encoder block, 0-based.
    pub block: usize,
    /// Side of the prediction grid over the side of the grid of units: 8, 4, 2, 1 or 0.5.
    pub scale: f64,
}

/// Numbers of a LocalMIM model (Wang et al., arXiv 2303.05251).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocalMimConfig {
    /// The encoder. With [`vit::PosEmbed::SinCos`] its position embedding is fixed, as published; with
    /// [`vit::PosEmbed::Learnt`] it is a variable, as that of many checkpoints (see [`LocalMimConfig::begin`]), of which some
    /// have [`vit::PosEmbed::Rope`].
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
    /// The published numbers around a ViT: default stages, decoders 256 wide, one block, 8 heads, HOG with 9 bins, a fixed
    /// position embedding. Around a Swin the same with 18 bins, which is our choice.
    ///
    /// # Errors
    /// An encoder too shallow for the default stages.
    pub fn new(vit: VitConfig) -> Result<Self, Error> {
        Ok(Self {
            stages: Stage::default_of(&vit)?,
            vit: vit.with_fixed_positions(),
            decoder_embed_dim: 256,
            decoder_depth: 1,
            decoder_num_heads: 8,
            target: Target::Hog,
            hog_bins: if vit.swin.is_some() { 18 } else { 9 },
        })
    }

    /// Pixels along one side of a cell of a stage: those of a unit / scale.
    pub fn pool(&self, stage: &Stage) -> usize {
        (self.vit.mask_unit() as f64 / stage.scale) as usize
    }

    /// The smallest [`LocalMimConfig::pool`] of all stages.
    pub fn finest_pool(&self) -> usize {
        let pools = self.stages.iter().map(|stage| self.pool(stage));
        pools.min().unwrap_or(self.vit.mask_unit())
    }

    /// Units along one side of the (square) image: patches; of a Swin squares of 8 x 8 patches.
    pub fn side(&self) -> usize {
        self.vit.image_size / self.vit.mask_unit()
    }

    /// Units of an image, of which a mask hides some.
    pub fn units(&self) -> usize {
        self.side().pow(2)
    }

    /// Cells along one side of a unit that a stage's decoder works on. Those of a Swin are of 16 px in the first three stages, as
    /// a ViT's patches: attention over all tokens of its first stage would cost more than the encoder.
    pub fn decoder_cells(&self, stage: &Stage) -> usize {
        self.tokens_across(stage).min(2)
    }

    /// The encoder's tokens along one side of a unit behind the block of a stage.
    pub fn tokens_across(&self, stage: &Stage) -> usize {
        let place = self.vit.swin.and_then(|swin| swin.place(stage.block));
        let across = self.vit.mask_unit() / self.vit.patch_size.max(1);
        place.map_or(1, |(number, _)| across >> number)
    }

    /// Width of the encoder's tokens behind the block of a stage.
    pub fn width(&self, stage: &Stage) -> usize {
        let place = self.vit.swin.and_then(|swin| swin.place(stage.block));
        place.map_or(self.vit.embed_dim, |(number, _)| self.vit.stage_dim(number))
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
            "cls_token" => (!train_cls_token).then_some(0),
            "norm" | "decoder" => number().and_then(|k| Some(self.stages.get(k)?.block + 1)),
            _ => self.vit.layer_of(name),
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
        let (unit, side) = (self.vit.mask_unit(), self.side());
        let (what, units) = match self.vit.swin {
            Some(_) => ("the unit that is hidden,", "units"),
            None => ("patch size", "patches"),
        };
        if !height.is_multiple_of(unit) {
            return fail(format!(
                "image size {height} is not divisible by {what} {unit}"
            ));
        }
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
            if (unit as f64 / scale).fract() != 0.0 {
                let fits = |scale: &f64| (unit as f64 / scale).fract() == 0.0;
                let scales: Vec<f64> = SCALES.into_iter().filter(fits).collect();
                return fail(format!(
                    "stage at block {block}: {what} {unit} is not divisible by scale {scale}; name stages as \
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
                    "stage at block {block}: {side} x {side} {units} cannot be pooled 2 x 2 for scale 0.5; choose an \
                     image size divisible by {}",
                    2 * unit
                ));
            }
            let up = scale / self.decoder_cells(stage) as f64;
            if !SCALES.contains(&up) {
                return fail(format!(
                    "stage at block {block}: scale {scale} is less than half of the {} decoder cells along a unit",
                    self.decoder_cells(stage)
                ));
            }
            if up >= 4.0 && dim % (up as usize) != 0 {
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
    /// Of a ViT those of the paper, [`default_for`](Stage::default_for) its depth; of a Swin, by our choice, after the last
    /// block of each of its stages, cells of as many pixels as a token there: 4, 8, 16 and 32.
    ///
    /// # Errors
    /// A ViT of fewer than 8 blocks.
    pub fn default_of(vit: &VitConfig) -> Result<Vec<Stage>, Error> {
        let Some(swin) = &vit.swin else {
            return Self::default_for(vit.depth);
        };
        let stage = |(number, scale)| Stage {
            block: swin.first_block(number + 1).saturating_sub(1),
            scale,
        };
        let scales = [8.0, 4.0, 2.0, 1.0];
        Ok(scales.into_iter().enumerate().map(stage).collect())
    }

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
