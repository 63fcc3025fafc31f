//! One stage's decoder: from the encoder's visible tokens to a prediction on the stage's grid.
use std::sync::Arc;

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};
use vit::ops::{self, Compute, Rows};
use vit::{sincos_2d, Block, LayerNorm, Linear, VitConfig};

use crate::{LocalMimConfig, Stage};

/// What the mask token starts as.
const TOKEN: Init = Init::Randn {
    mean: 0.0,
    stdev: 0.02,
};

/// Uniform in +-1 / sqrt(fan_in), PyTorch's law for convolutions.
fn convolution(fan_in: usize) -> Init {
    let bound = 1.0 / (fan_in as f64).sqrt();
    Init::Uniform {
        lo: -bound,
        up: bound,
    }
}

/// Decodes a stage's latent: embed, put mask tokens in the removed places, one block, norm, head.
#[derive(Debug, Clone)]
pub struct Decoder {
    embed: Linear,
    mask_token: Tensor,
    /// (1, 1 + N, C), fixed; row 0 is the class token's, which a Swin has not.
    pos_embed: Tensor,
    /// Of a Swin.
    units: Option<Units>,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Head,
    /// Its tokens along one side of the image.
    side: usize,
    compute: Compute,
}

impl Decoder {
    /// Variables `embed.*`, `mask_token`, `blocks.{i}.*`, `norm.*`, `pred.{i}.*`.
    ///
    /// # Errors
    /// A variable that is missing or has another shape.
    pub fn new(cfg: &LocalMimConfig, stage: &Stage, vb: VarBuilder) -> Result<Self> {
        let (dim, eps) = (cfg.decoder_embed_dim, cfg.vit.norm_eps);
        let plain = VitConfig {
            embed_dim: dim,
            depth: cfg.decoder_depth,
            num_heads: cfg.decoder_num_heads,
            mlp_ratio: 4.0,
            norm_eps: eps,
            ..VitConfig::default()
        };
        let cells = cfg.decoder_cells(stage);
        let side = cfg.side() * cells;
        let units = cfg.vit.swin.map(|_| Units {
            cells,
            across: cfg.tokens_across(stage),
        });
        let merged = units.as_ref().map_or(1, |units| units.merged());
        Ok(Self {
            embed: Linear::new(merged * cfg.width(stage), dim, vb.pp("embed"))?,
            mask_token: vb.get_with_hints((1, 1, dim), "mask_token", TOKEN)?,
            pos_embed: sincos_2d(dim, (side, side), vb.device())?.to_dtype(vb.dtype())?,
            blocks: (0..cfg.decoder_depth)
                .map(|i| Block::new(&plain, i, vb.pp("blocks").pp(i)))
                .collect::<Result<_>>()?,
            norm: LayerNorm::new(dim, eps, vb.pp("norm"))?,
            head: Head::new(
                stage.scale / cells as f64,
                dim,
                cfg.outputs(stage),
                vb.pp("pred"),
            )?,
            units,
            compute: Compute::default(),
            side,
        })
    }

    /// The same, computing so.
    #[must_use]
    pub fn with_compute(self, compute: &Compute) -> Self {
        let blocks = self.blocks.into_iter();
        Self {
            embed: self.embed.with_compute(compute),
            blocks: blocks.map(|block| block.with_compute(compute)).collect(),
            norm: self.norm.with_compute(compute),
            head: self.head.with_compute(compute),
            compute: compute.clone(),
            ..self
        }
    }

    /// `(B, 1 + K, D) -> (B, (S * scale)^2, outputs)`, of a Swin `(B, K t^2, D)` with t tokens along a unit.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, latent: &Tensor, ids_restore: &Arc<Vec<u32>>) -> Result<Tensor> {
        let mut x = match &self.units {
            Some(units) => self.placed(latent, units, ids_restore)?,
            None => {
                let x = self.embed.forward(latent)?;
                let (mask, pos) = (&self.mask_token, &self.pos_embed);
                ops::unshuffle(&x, mask, pos, ids_restore, &self.compute)?
            }
        };
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        let mut x = self.norm.forward(&x)?;
        if self.units.is_none() {
            x = ops::patch_tokens(&x, &self.compute)?;
        }
        self.head.forward(&x, self.side, &self.compute)
    }

    /// `(B, K t^2, D) -> (B, N, C)`: the tokens of each cell side by side, embedded; mask tokens in the places of hidden units;
    /// positions added.
    fn placed(&self, latent: &Tensor, units: &Units, ids_restore: &[u32]) -> Result<Tensor> {
        let (batch, tokens, width) = latent.dims3()?;
        let (of_unit, cells) = (units.across.pow(2), units.cells);
        let visible = tokens / of_unit;
        let x = ops::take_rows(latent, &units.by_cell(visible)?, &self.compute)?;
        let x = x.reshape((batch, visible * cells * cells, units.merged() * width))?;
        let x = self.embed.forward(&x)?;
        let (places, hidden) = units.places(self.side, batch, visible, ids_restore)?;
        let (all, dim) = (self.side * self.side, self.mask_token.dim(2)?);
        let x = ops::take_rows(&x.reshape((1, (), dim))?, &places, &self.compute)?;
        let hidden = Tensor::from_vec(hidden, (batch, all, 1), x.device())?.to_dtype(x.dtype())?;
        let mask = hidden.broadcast_mul(&self.mask_token)?;
        let x = (x.reshape((batch, all, dim))? + mask)?;
        x.broadcast_add(&self.pos_embed.narrow(1, 1, all)?)
    }

    /// Whether its weights are variables that train.
    pub fn is_live(&self) -> bool {
        self.embed.is_live()
    }
}

/// How the tokens of a Swin's stage become a decoder's.
#[derive(Debug, Clone)]
struct Units {
    /// The decoder's tokens along one side of a unit.
    cells: usize,
    /// The encoder's.
    across: usize,
}

impl Units {
    /// Tokens of the encoder in one of the decoder.
    fn merged(&self) -> usize {
        (self.across / self.cells).pow(2)
    }

    /// From tokens unit by unit, each unit's row by row, to cell by cell.
    fn by_cell(&self, visible: usize) -> Result<Rows> {
        let (across, part) = (self.across, self.across / self.cells);
        let mut from = Vec::with_capacity(visible * across * across);
        for unit in 0..visible {
            for cell in 0..self.cells * self.cells {
                let (top, left) = (cell / self.cells * part, cell % self.cells * part);
                for i in 0..part * part {
                    let (y, x) = (top + i / part, left + i % part);
                    from.push(((unit * across + y) * across + x) as u32);
                }
            }
        }
        Rows::new(visible * across * across, from)
    }

    /// Where the visible cells of all images come on grids with so many along a side, and 1 where none does.
    fn places(
        &self,
        side: usize,
        batch: usize,
        visible: usize,
        ids_restore: &[u32],
    ) -> Result<(Rows, Vec<f32>)> {
        let units = side / self.cells;
        if ids_restore.len() != batch * units * units {
            candle_core::bail!(
                "decoder: {} ids for {batch} images of {units} x {units} units",
                ids_restore.len()
            );
        }
        let of_unit = self.cells * self.cells;
        let mut from = Vec::with_capacity(batch * side * side);
        for image in 0..batch {
            for at in 0..side * side {
                let (y, x) = (at / side, at % side);
                let unit = y / self.cells * units + x / self.cells;
                let cell = y % self.cells * self.cells + x % self.cells;
                let rank = ids_restore[image * units * units + unit] as usize;
                from.push(match rank < visible {
                    true => ((image * visible + rank) * of_unit + cell) as u32,
                    false => Rows::NONE,
                });
            }
        }
        let hidden = from
            .iter()
            .map(|&row| f32::from(u8::from(row == Rows::NONE)))
            .collect();
        Ok((Rows::new(batch * visible * of_unit, from)?, hidden))
    }
}

/// Steps of a prediction head on a square grid, channels last.
#[derive(Debug, Clone)]
enum Step {
    /// 2 x 2 transposed convolution with stride 2: twice the side.
    Up(Deconv),
    /// LayerNorm over the channels.
    Norm(LayerNorm),
    Gelu,
    /// 2 x 2 average pool: half the side.
    Pool,
    /// 1 x 1 convolution.
    Conv(Conv1x1),
}

/// A stage's head; variables are numbered by step, as in a PyTorch `Sequential`.
#[derive(Debug, Clone)]
struct Head(Vec<Step>);

/// LayerNorm over channels in the heads, as ConvNeXt's.
const HEAD_EPS: f64 = 1e-6;

impl Head {
    fn new(scale: f64, dim: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        let doublings = scale.log2().max(0.0) as usize;
        let mut steps = Vec::new();
        let mut width = dim;
        for i in 0..doublings {
            let up = Deconv::new(width, width / 2, vb.pp(steps.len()))?;
            steps.push(Step::Up(up));
            width /= 2;
            if i + 1 < doublings {
                let norm = LayerNorm::new(width, HEAD_EPS, vb.pp(steps.len()))?;
                steps.push(Step::Norm(norm));
                steps.push(Step::Gelu);
            }
        }
        if scale < 1.0 {
            steps.push(Step::Pool);
        }
        let conv = Conv1x1::new(width, outputs, vb.pp(steps.len()))?;
        steps.push(Step::Conv(conv));
        Ok(Self(steps))
    }

    fn with_compute(self, compute: &Compute) -> Self {
        let step = |step| match step {
            Step::Norm(norm) => Step::Norm(norm.with_compute(compute)),
            other => other,
        };
        Self(self.0.into_iter().map(step).collect())
    }

    /// `(B, side^2, C) -> (B, (side * scale)^2, outputs)`
    fn forward(&self, x: &Tensor, mut side: usize, compute: &Compute) -> Result<Tensor> {
        let mut x = x.clone();
        for step in &self.0 {
            x = match step {
                Step::Up(deconv) => {
                    side *= 2;
                    deconv.forward(&x, side / 2, compute)?
                }
                Step::Norm(norm) => norm.forward(&x)?,
                Step::Gelu => ops::gelu(&x, compute)?,
                Step::Pool => {
                    side /= 2;
                    pool(&x, side)?
                }
                Step::Conv(conv) => conv.forward(&x, compute)?,
            };
        }
        Ok(x)
    }
}

/// `(B, (2 side)^2, C) -> (B, side^2, C)`: means of 2 x 2 cells.
fn pool(x: &Tensor, side: usize) -> Result<Tensor> {
    let (batch, _, width) = x.dims3()?;
    x.contiguous()?
        .reshape((batch * side, 2, side, 2 * width))?
        .sum(1)?
        .reshape((batch, side * side, 2, width))?
        .sum(2)?
        * 0.25
}

/// Transposed convolution, kernel and stride 2, as a matrix product: every input cell becomes 2 x 2 output cells of its
/// own. Variables `weight` (I, O, 2, 2) and `bias` (O), as PyTorch stores them.
#[derive(Debug, Clone)]
struct Deconv {
    weight: Tensor,
    bias: Tensor,
}

impl Deconv {
    fn new(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        // Its fan-in as PyTorch counts it: of the weight's second dimension, which are the outputs here.
        let law = convolution(4 * outputs);
        Ok(Self {
            weight: vb.get_with_hints((inputs, outputs, 2, 2), "weight", law)?,
            bias: vb.get_with_hints(outputs, "bias", Init::Const(0.0))?,
        })
    }

    /// `(B, side^2, I) -> (B, (2 side)^2, O)`
    fn forward(&self, x: &Tensor, side: usize, compute: &Compute) -> Result<Tensor> {
        let (inputs, outputs, _, _) = self.weight.dims4()?;
        // Rows (ky, kx, o): the two cells of an output row are then neighbours in memory and move as one block.
        let weight = self.weight.permute((2, 3, 1, 0))?.contiguous()?;
        let weight = weight.reshape((4 * outputs, inputs))?;
        let bias = self.bias.expand((4, outputs))?.contiguous()?;
        let bias = bias.reshape(4 * outputs)?;
        let x = ops::linear(x, &weight, &bias, compute)?;
        ops::unfold_cells(&x, side, compute)
    }
}

/// 1 x 1 convolution, channels last; variables `weight` (O, I, 1, 1) and `bias` (O).
#[derive(Debug, Clone)]
struct Conv1x1 {
    weight: Tensor,
    bias: Tensor,
}

impl Conv1x1 {
    fn new(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        let law = convolution(inputs);
        Ok(Self {
            weight: vb.get_with_hints((outputs, inputs, 1, 1), "weight", law)?,
            bias: vb.get_with_hints(outputs, "bias", Init::Const(0.0))?,
        })
    }

    fn forward(&self, x: &Tensor, compute: &Compute) -> Result<Tensor> {
        let (outputs, inputs, _, _) = self.weight.dims4()?;
        let weight = self.weight.reshape((outputs, inputs))?;
        ops::linear(x, &weight, &self.bias, compute)
    }
}
