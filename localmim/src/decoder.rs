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
    /// Of a Swin: tokens along one side of a unit.
    across: Option<usize>,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Head,
    /// Its tokens along one side of the image.
    side: usize,
    compute: Compute,
}

impl Decoder {
    /// Variables `embed.*`, `mask_token`, `blocks.{i}.*`, `norm.*`, and `pred.{i}.*`; of a Swin's stage that predicts a cell for each
    /// token `pred.*`.
    ///
    /// # Errors
    /// A variable that is missing or has another shape.
    pub fn new(cfg: &LocalMimConfig, stage: &Stage, vb: VarBuilder) -> Result<Self> {
        let (dim, eps) = (cfg.decoder_dim(stage), cfg.vit.norm_eps);
        let plain = VitConfig {
            embed_dim: dim,
            depth: cfg.decoder_depth,
            num_heads: cfg.decoder_num_heads,
            mlp_ratio: 4.0,
            norm_eps: eps,
            ..VitConfig::default()
        };
        let across = cfg.tokens_across(stage);
        let (side, scale) = (cfg.side() * across, stage.scale / across as f64);
        let (outputs, pred) = (cfg.outputs(stage), vb.pp("pred"));
        Ok(Self {
            embed: Linear::new(cfg.width(stage), dim, vb.pp("embed"))?,
            mask_token: vb.get_with_hints((1, 1, dim), "mask_token", TOKEN)?,
            pos_embed: sincos_2d(dim, (side, side), vb.device())?.to_dtype(vb.dtype())?,
            blocks: (0..cfg.decoder_depth)
                .map(|i| Block::new(&plain, i, vb.pp("blocks").pp(i)))
                .collect::<Result<_>>()?,
            norm: LayerNorm::new(dim, eps, vb.pp("norm"))?,
            head: match cfg.vit.swin.is_some() && scale == 1.0 {
                true => Head::Linear(Linear::new(dim, outputs, pred)?),
                false => Head::steps(scale, dim, outputs, pred)?,
            },
            across: cfg.vit.swin.map(|_| across),
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
        let x = self.embed.forward(latent)?;
        let mut x = match self.across {
            Some(across) => self.placed(&x, across, ids_restore)?,
            None => {
                let (mask, pos) = (&self.mask_token, &self.pos_embed);
                ops::unshuffle(&x, mask, pos, ids_restore, &self.compute)?
            }
        };
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        let mut x = self.norm.forward(&x)?;
        if self.across.is_none() {
            x = ops::patch_tokens(&x, &self.compute)?;
        }
        self.head.forward(&x, self.side, &self.compute)
    }

    /// `(B, K t^2, C) -> (B, N, C)`: tokens of visible units in their places; mask tokens in those of hidden ones; positions added.
    fn placed(&self, x: &Tensor, across: usize, ids_restore: &[u32]) -> Result<Tensor> {
        let (batch, tokens, dim) = x.dims3()?;
        let visible = tokens / across.pow(2);
        let (places, hidden) = places(self.side, across, (batch, visible), ids_restore)?;
        let all = self.side * self.side;
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

/// Where the tokens of so many visible units of each image, with so many tokens along a side, come on grids of `side` tokens, and 1
/// where none does.
fn places(
    side: usize,
    across: usize,
    (batch, visible): (usize, usize),
    ids_restore: &[u32],
) -> Result<(Rows, Vec<f32>)> {
    let units = side / across;
    if ids_restore.len() != batch * units * units {
        candle_core::bail!(
            "decoder: {} ids for {batch} images of {units} x {units} units",
            ids_restore.len()
        );
    }
    let of_unit = across * across;
    let mut from = Vec::with_capacity(batch * side * side);
    for image in 0..batch {
        for at in 0..side * side {
            let (y, x) = (at / side, at % side);
            let unit = y / across * units + x / across;
            let token = y % across * across + x % across;
            let rank = ids_restore[image * units * units + unit] as usize;
            from.push(match rank < visible {
                true => ((image * visible + rank) * of_unit + token) as u32,
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

/// Steps of a prediction head on a square grid, channels last.
#[derive(Debug, Clone)]
enum Step {
    /// 2 x 2 transposed convolution with stride 2: twice the side.
    Up(Deconv),
    /// LayerNorm over the channels, then GELU.
    NormGelu(LayerNorm),
    /// 2 x 2 average pool: half the side.
    Pool,
    /// 1 x 1 convolution.
    Conv(Conv1x1),
}

/// A stage's head.
#[derive(Debug, Clone)]
enum Head {
    /// Of a Swin's stage that predicts a cell for each token.
    Linear(Linear),
    /// Variables are numbered by step, as in a PyTorch `Sequential`.
    Steps(Vec<Step>),
}

/// LayerNorm over channels in the heads, as ConvNeXt's.
const HEAD_EPS: f64 = 1e-6;

impl Head {
    /// To a grid of so many times the side.
    fn steps(scale: f64, dim: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        let doublings = scale.log2().max(0.0) as usize;
        let mut steps = Vec::new();
        let mut width = dim;
        // Numbered as PyTorch's layers are, of which GELU is one.
        let mut number = 0;
        for i in 0..doublings {
            let up = Deconv::new(width, width / 2, vb.pp(number))?;
            steps.push(Step::Up(up));
            width /= 2;
            number += 1;
            if i + 1 < doublings {
                let norm = LayerNorm::new(width, HEAD_EPS, vb.pp(number))?;
                steps.push(Step::NormGelu(norm));
                number += 2;
            }
        }
        if scale < 1.0 {
            steps.push(Step::Pool);
            number += 1;
        }
        let conv = Conv1x1::new(width, outputs, vb.pp(number))?;
        steps.push(Step::Conv(conv));
        Ok(Self::Steps(steps))
    }

    fn with_compute(self, compute: &Compute) -> Self {
        let step = |step| match step {
            Step::NormGelu(norm) => Step::NormGelu(norm.with_compute(compute)),
            other => other,
        };
        match self {
            Self::Linear(linear) => Self::Linear(linear.with_compute(compute)),
            Self::Steps(steps) => Self::Steps(steps.into_iter().map(step).collect()),
        }
    }

    /// `(B, side^2, C) -> (B, (side * scale)^2, outputs)`
    fn forward(&self, x: &Tensor, mut side: usize, compute: &Compute) -> Result<Tensor> {
        let steps = match self {
            Self::Linear(linear) => return linear.forward(x),
            Self::Steps(steps) => steps,
        };
        let mut x = x.clone();
        for step in steps {
            x = match step {
                Step::Up(deconv) => {
                    side *= 2;
                    deconv.forward(&x, side / 2, compute)?
                }
                Step::NormGelu(norm) => norm.forward_gelu(&x)?,
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
        ops::linear_cells(x, &weight, &bias, side, compute)
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
