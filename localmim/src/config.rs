//! The numbers of a LocalMIM model.
use serde::{Deserialize, Serialize};
use vit::VitConfig;

use crate::{Error, Target};

/// What a stage's scale may be.
const SCALES: [f64; 5] = [8.0, 4.0, 2.0, 1.0, 0.5];

/// One stage: an encoder block whose output is decoded and compared with a target of its own resolution. Where a Swin's merging
/// follows the block, its output is what is behind that. Below, a unit is what is hidden as a whole: a patch; of a Swin 32 x 32
/// pixels ([`VitConfig::mask_unit`]).
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
    /// Width of every decoder, but for those of a Swin's fine tokens ([`LocalMimConfig::decoder_dim`]). 256; of a Swin 128.
    pub decoder_embed_dim: usize,
    /// Blocks of every decoder. 1.
    pub decoder_depth: usize,
    /// Attention heads of every decoder. 8; of a Swin 4.
    pub decoder_num_heads: usize,
    /// What is predicted.
    #[serde(default)]
    pub target: Target,
    /// Orientation bins of the HOG target. 9 (ViT-B) or 18 (ViT-L, Swin).
    pub hog_bins: usize,
}

/// The least common multiple.
fn lcm(a: usize, b: usize) -> usize {
    (a..=a * b)
        .step_by(a)
        .find(|n| n.is_multiple_of(b))
        .unwrap_or(a * b)
}

impl LocalMimConfig {
    /// The published numbers. Around a ViT: default stages, decoders 256 wide, one block, 8 heads, HOG with 9 bins, a fixed
    /// position embedding. Around a Swin: decoders 64, 128, 128 and 128 wide, one block, 4 heads, HOG with 18 bins.
    ///
    /// # Errors
    /// An encoder too shallow for the default stages.
    pub fn new(vit: VitConfig) -> Result<Self, Error> {
        let (decoder_embed_dim, decoder_num_heads) = Self::usual_decoder(&vit);
        Ok(Self {
            stages: Stage::default_of(&vit)?,
            vit: vit.with_fixed_positions(),
            decoder_embed_dim,
            decoder_depth: 1,
            decoder_num_heads,
            target: Target::Hog,
            hog_bins: if vit.swin.is_some() { 18 } else { 9 },
        })
    }

    /// Width and heads of decoders, as published: 256 and 8, behind a Swin 128 and 4.
    pub fn usual_decoder(vit: &VitConfig) -> (usize, usize) {
        match vit.swin {
            Some(_) => (128, 4),
            None => (256, 8),
        }
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

    /// Which of a Swin's own stages has the tokens that a stage decodes; those of a ViT are all alike.
    pub(crate) fn place(&self, stage: &Stage) -> Option<usize> {
        self.vit.swin?.stage_behind(stage.block)
    }

    /// The encoder's tokens along one side of a unit that a stage decodes: behind the block, or behind the merging that follows it.
    pub fn tokens_across(&self, stage: &Stage) -> usize {
        let across = self.vit.mask_unit() / self.vit.patch_size.max(1);
        self.place(stage).map_or(1, |place| across >> place)
    }

    /// Width of the encoder's tokens that a stage decodes.
    pub fn width(&self, stage: &Stage) -> usize {
        let place = self.place(stage);
        place.map_or(self.vit.embed_dim, |place| self.vit.stage_dim(place))
    }

    /// Width of a stage's decoder: [`LocalMimConfig::decoder_embed_dim`], half of it where a unit has four tokens or more along a
    /// side (8 px with patches of 4), of which there are many.
    pub fn decoder_dim(&self, stage: &Stage) -> usize {
        match self.tokens_across(stage) {
            0..4 => self.decoder_embed_dim,
            _ => self.decoder_embed_dim / 2,
        }
    }

    /// Cells along one side of a stage's grid.
    pub fn grid(&self, stage: &Stage) -> usize {
        (self.side() as f64 * stage.scale) as usize
    }

    /// The FreezeOut layer of a stage's norm and decoder: the last one that feeds them. That is the block's, k + 1 for block k; of a
    /// Swin's stage that reads behind a merging the merging's, which goes with the block behind it.
    pub fn layer(&self, stage: &Stage) -> usize {
        let own = self.vit.swin.and_then(|swin| swin.place(stage.block));
        let merges = own.map(|(number, _)| number) != self.place(stage);
        stage.block + 1 + usize::from(merges)
    }

    /// Numbers of the stages of a FreezeOut layer.
    pub fn stages_of(&self, layer: usize) -> impl Iterator<Item = usize> + '_ {
        let stages = self.stages.iter().enumerate();
        stages.filter_map(move |(k, stage)| (self.layer(stage) == layer).then_some(k))
    }

    /// Which FreezeOut layer a variable belongs to: 0 = patch embedding, class token and what else comes before the blocks,
    /// k + 1 = block k; a stage's norm and decoder go with [`LocalMimConfig::layer`]. With `train_cls_token` the class token belongs to no layer
    /// and trains to the end, as in the published code (which costs the whole saving of the frozen blocks).
    pub fn layer_of(&self, name: &str, train_cls_token: bool) -> Option<usize> {
        let mut parts = name.split('.');
        let first = parts.next()?;
        let number = || name.split('.').nth(1)?.parse::<usize>().ok();
        match first {
            "cls_token" => (!train_cls_token).then_some(0),
            "norm" | "decoder" => number().and_then(|k| Some(self.layer(self.stages.get(k)?))),
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
        let (whole, heads) = (self.decoder_embed_dim, self.decoder_num_heads);
        if self.decoder_depth == 0 || !fits_decoder(whole, heads) {
            return fail(format!(
                "decoder of depth {}, width {whole} and {heads} heads: depth must be at least 1, width divisible by 4 and \
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
            let dim = self.decoder_dim(stage);
            if !fits_decoder(dim, heads) {
                return fail(format!(
                    "stage at block {block}: its decoder is half as wide as decoder-dim {}, {dim}, which must be divisible by 4 and \
                     by the {heads} heads; take a multiple of {}",
                    self.decoder_embed_dim,
                    2 * lcm(4, heads)
                ));
            }
            let up = scale / self.tokens_across(stage) as f64;
            if !SCALES.contains(&up) {
                return fail(format!(
                    "stage at block {block}: scale {scale} is less than half of the {} tokens along a unit",
                    self.tokens_across(stage)
                ));
            }
            if up >= 4.0 && !dim.is_multiple_of(up as usize) {
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

/// Whether a decoder can be so wide with so many heads.
fn fits_decoder(dim: usize, heads: usize) -> bool {
    dim > 0 && dim.is_multiple_of(4) && heads > 0 && dim.is_multiple_of(heads)
}

impl Stage {
    /// Of a ViT [`default_for`](Stage::default_for) its depth. Of a Swin after the last block of each of its stages, behind the
    /// merging where there is one, with cells as large as a token there: scales 4, 2, 1 and 1, which are 8, 16, 32 and 32 px with
    /// patches of 4.
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
        let scales = [4.0, 2.0, 1.0, 1.0];
        Ok(scales.into_iter().enumerate().map(stage).collect())
    }

    /// After blocks 1, 3, D-3 and D-1 with scales 4, 2, 1 and 0.5.
    ///
    /// # Errors
    /// Fewer than 8 blocks.
    pub fn default_for(depth: usize) -> Result<Vec<Stage>, Error> {
        if depth < 8 {
            return Err(Error::Config(format!(
                "the default stages need at least 8 blocks, the encoder has {depth}; name stages (--stages) as BLOCK:SCALE,..."
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
