//! One stage's decoder: from the encoder's visible tokens to a prediction on the stage's grid.
use std::sync::Arc;

use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};
use vit::ops::{self, Compute};
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
    /// (1, 1 + N, C), fixed.
    pos_embed: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Head,
    /// Patches along one side.
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
        let side = cfg.side();
        Ok(Self {
            embed: Linear::new(cfg.vit.embed_dim, dim, vb.pp("embed"))?,
            mask_token: vb.get_with_hints((1, 1, dim), "mask_token", TOKEN)?,
            pos_embed: sincos_2d(dim, (side, side), vb.device())?.to_dtype(vb.dtype())?,
            blocks: (0..cfg.decoder_depth)
                .map(|i| Block::new(&plain, i, vb.pp("blocks").pp(i)))
                .collect::<Result<_>>()?,
            norm: LayerNorm::new(dim, eps, vb.pp("norm"))?,
            head: Head::new(stage.scale, dim, cfg.outputs(stage), vb.pp("pred"))?,
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

    /// `(B, 1 + K, D) -> (B, (S * scale)^2, outputs)`
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, latent: &Tensor, ids_restore: &Arc<Vec<u32>>) -> Result<Tensor> {
        let x = self.embed.forward(latent)?;
        let (mask, pos) = (&self.mask_token, &self.pos_embed);
        let mut x = ops::unshuffle(&x, mask, pos, ids_restore, &self.compute)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        let x = self.norm.forward(&x)?;
        let x = ops::patch_tokens(&x, &self.compute)?;
        self.head.forward(&x, self.side, &self.compute)
    }

    /// Whether its weights are variables that train.
    pub fn is_live(&self) -> bool {
        self.embed.is_live()
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
