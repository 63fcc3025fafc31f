//! The layers around a transformer's blocks: a struct of tensors, `new(.., vb)`, `forward`.
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use crate::init::{glorot, ONE, ZERO};
use crate::ops::{self, Compute, Pair};
use crate::VitConfig;

/// `y = x W^T + b`; variables `weight` (O, I) and `bias` (O).
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
    compute: Compute,
}

impl Linear {
    /// With [`seeded`](crate::seeded) the weights start uniform (Glorot and Bengio, 2010).
    ///
    /// # Errors
    /// A variable that is missing or has another shape.
    pub fn new(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints((outputs, inputs), "weight", glorot(inputs, outputs))?,
            bias: vb.get_with_hints(outputs, "bias", ZERO)?,
            compute: Compute::default(),
        })
    }

    /// The same without `bias`.
    ///
    /// # Errors
    /// A variable that is missing or has another shape.
    pub fn no_bias(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints((outputs, inputs), "weight", glorot(inputs, outputs))?,
            bias: Tensor::zeros(outputs, vb.dtype(), vb.device())?,
            compute: Compute::default(),
        })
    }

    /// The same with another bias.
    pub(crate) fn with_bias(&self, bias: Tensor) -> Self {
        Self {
            bias,
            ..self.clone()
        }
    }

    /// The same, computing so.
    #[must_use]
    pub fn with_compute(mut self, compute: &Compute) -> Self {
        self.compute = compute.clone();
        self
    }

    /// `(.., I) -> (.., O)`
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, &self.weight, &self.bias, &self.compute)
    }

    pub(crate) fn pair(&self) -> Pair<&Tensor> {
        Pair {
            weight: &self.weight,
            bias: &self.bias,
        }
    }

    /// Whether its weights are variables that train.
    pub fn is_live(&self) -> bool {
        self.weight.track_op()
    }
}

/// Layer normalisation; variables `weight` (D), starts at 1, and `bias` (D), starts at 0.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
    compute: Compute,
}

impl LayerNorm {
    /// Over a last dimension of `dim`.
    ///
    /// # Errors
    /// A variable that is missing or has another shape.
    pub fn new(dim: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints(dim, "weight", ONE)?,
            bias: vb.get_with_hints(dim, "bias", ZERO)?,
            eps,
            compute: Compute::default(),
        })
    }

    /// The same, computing so.
    #[must_use]
    pub fn with_compute(mut self, compute: &Compute) -> Self {
        self.compute = compute.clone();
        self
    }

    /// `(.., D) -> (.., D)`
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.weight, &self.bias, self.eps, &self.compute)
    }

    /// The same, then GELU.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward_gelu(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm_gelu(x, &self.weight, &self.bias, self.eps, &self.compute)
    }

    pub(crate) fn eps(&self) -> f64 {
        self.eps
    }

    pub(crate) fn pair(&self) -> Pair<&Tensor> {
        Pair {
            weight: &self.weight,
            bias: &self.bias,
        }
    }
}

/// Patch embedding: a convolution with kernel and stride `patch`, computed as a matrix product on flattened patches.
/// Variables `proj.weight` (D, C, P, P) of images with C channels and, unless the model is pre-normed (CLIP), `proj.bias` (D).
#[derive(Debug, Clone)]
pub struct PatchEmbed {
    weight: Tensor,
    bias: Tensor,
    patch: usize,
    compute: Compute,
}

impl PatchEmbed {
    /// For images of `cfg.in_chans` channels.
    ///
    /// # Errors
    /// A variable that is missing or has another shape.
    pub fn new(cfg: &VitConfig, vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp("proj");
        let (dim, patch, channels) = (cfg.embed_dim, cfg.patch_size, cfg.in_chans);
        let law = glorot(channels * patch * patch, dim);
        Ok(Self {
            weight: vb.get_with_hints((dim, channels, patch, patch), "weight", law)?,
            bias: match cfg.pre_norm {
                true => Tensor::zeros(dim, vb.dtype(), vb.device())?,
                false => vb.get_with_hints(dim, "bias", ZERO)?,
            },
            patch,
            compute: Compute::default(),
        })
    }

    /// The same, computing so.
    #[must_use]
    pub fn with_compute(mut self, compute: &Compute) -> Self {
        self.compute = compute.clone();
        self
    }

    /// `(B, C, H, W) -> (B, K, D)`: all patches row by row, or only those whose numbers `ids_keep` (B * K) gives, image
    /// by image. What is not kept is not computed.
    ///
    /// # Errors
    /// Shapes that do not fit, a number beyond the patches.
    pub fn forward(&self, images: &Tensor, ids_keep: Option<&[u32]>) -> Result<Tensor> {
        let (batch, channels, height, width) = images.dims4()?;
        let p = self.patch;
        let (rows, columns) = (height / p, width / p);
        let patches = rows * columns;
        let length = channels * p * p;
        // (B, S, S, C, P, P): each patch flattened as the convolution's kernel is.
        let mut x = images
            .reshape((batch * channels, rows, p, columns, p))?
            .transpose(2, 3)?
            .reshape((batch, channels, patches, p * p))?
            .transpose(1, 2)?
            .reshape((batch * patches, length))?;
        let mut kept = patches;
        if let Some(ids) = ids_keep {
            kept = ids.len() / batch.max(1);
            if kept == 0
                || kept * batch != ids.len()
                || ids.iter().any(|&id| id as usize >= patches)
            {
                candle_core::bail!(
                    "patch_embed: {} ids_keep for {batch} images of {patches} patches, or one beyond them",
                    ids.len()
                );
            }
            let ids: Vec<u32> = ids
                .iter()
                .enumerate()
                .map(|(i, &id)| (i / kept * patches) as u32 + id)
                .collect();
            let ids = Tensor::from_vec(ids, batch * kept, images.device())?;
            x = x.index_select(&ids, 0)?;
        }
        let dim = self.bias.dim(0)?;
        let weight = self.weight.reshape((dim, length))?;
        ops::linear(&x, &weight, &self.bias, &self.compute)?.reshape((batch, kept, dim))
    }
}

impl VitConfig {
    /// Refuses images of other channels or another size.
    pub(crate) fn check_images(&self, images: &Tensor) -> Result<()> {
        let (_, channels, height, width) = images.dims4()?;
        if channels != self.in_chans {
            candle_core::bail!(
                "images of {channels} channels for a model of {}; load it for as many channels",
                self.in_chans
            );
        }
        if (height, width) != self.image() {
            candle_core::bail!(
                "images of {height} x {width} pixels for a model of {:?}; resize them, or load it with another image size",
                self.image()
            );
        }
        Ok(())
    }
}
