//! The layers of a transformer: a struct of tensors, `new(.., vb)`, `forward`.
use candle_core::{Result, Tensor};
use candle_nn::{Init, VarBuilder};

use crate::ops;

const ZERO: Init = Init::Const(0.0);
const ONE: Init = Init::Const(1.0);

/// `y = x W^T + b`; variables `weight` (O, I) and `bias` (O).
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// Starts at zero: [`crate::init`] draws the weights.
    ///
    /// # Errors
    /// A variable that is missing or has another shape.
    pub fn new(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            weight: vb.get_with_hints((outputs, inputs), "weight", ZERO)?,
            bias: vb.get_with_hints(outputs, "bias", ZERO)?,
        })
    }

    /// `(.., I) -> (.., O)`
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, &self.weight, &self.bias)
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
        })
    }

    /// `(.., D) -> (.., D)`
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

/// Multi-head self-attention; variables `qkv.*` (3D, D) and `proj.*` (D, D).
#[derive(Debug, Clone)]
struct Attention {
    qkv: Linear,
    proj: Linear,
    heads: usize,
}

impl Attention {
    fn new(dim: usize, heads: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            qkv: Linear::new(dim, 3 * dim, vb.pp("qkv"))?,
            proj: Linear::new(dim, dim, vb.pp("proj"))?,
            heads,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = ops::attention(&self.qkv.forward(x)?, self.heads)?;
        self.proj.forward(&x)
    }
}

/// Two linear layers with an exact GELU between; variables `fc1.*` and `fc2.*`.
#[derive(Debug, Clone)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
}

impl Mlp {
    fn new(dim: usize, hidden: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            fc1: Linear::new(dim, hidden, vb.pp("fc1"))?,
            fc2: Linear::new(hidden, dim, vb.pp("fc2"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc2.forward(&ops::gelu(&self.fc1.forward(x)?)?)
    }
}

/// A pre-norm transformer block: `x + attn(norm1(x))`, then `x + mlp(norm2(x))` (Dosovitskiy et al., arXiv 2010.11929,
/// equations 2 and 3). Variables as timm names them: `norm1.*`, `attn.*`, `norm2.*`, `mlp.*`.
#[derive(Debug, Clone)]
pub struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    /// `dim` wide, with an MLP of `mlp_ratio * dim`.
    ///
    /// # Errors
    /// A variable that is missing or has another shape.
    pub fn new(
        dim: usize,
        heads: usize,
        mlp_ratio: usize,
        eps: f64,
        vb: VarBuilder,
    ) -> Result<Self> {
        Ok(Self {
            norm1: LayerNorm::new(dim, eps, vb.pp("norm1"))?,
            attn: Attention::new(dim, heads, vb.pp("attn"))?,
            norm2: LayerNorm::new(dim, eps, vb.pp("norm2"))?,
            mlp: Mlp::new(dim, mlp_ratio * dim, vb.pp("mlp"))?,
        })
    }

    /// `(B, T, D) -> (B, T, D)`
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = (x + self.attn.forward(&self.norm1.forward(x)?)?)?;
        &x + self.mlp.forward(&self.norm2.forward(&x)?)?
    }
}

/// Patch embedding: a convolution with kernel and stride `patch`, computed as a matrix product on flattened patches.
/// Variables `proj.weight` (D, 3, P, P) and `proj.bias` (D).
#[derive(Debug, Clone)]
pub struct PatchEmbed {
    weight: Tensor,
    bias: Tensor,
    patch: usize,
}

impl PatchEmbed {
    /// For RGB images.
    ///
    /// # Errors
    /// A variable that is missing or has another shape.
    pub fn new(patch: usize, dim: usize, vb: VarBuilder) -> Result<Self> {
        let vb = vb.pp("proj");
        Ok(Self {
            weight: vb.get_with_hints((dim, 3, patch, patch), "weight", ZERO)?,
            bias: vb.get_with_hints(dim, "bias", ZERO)?,
            patch,
        })
    }

    /// `(B, 3, H, W) -> (B, K, D)`: all patches row by row, or only those whose numbers `ids_keep` (B * K) gives, image
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
        ops::linear(&x, &weight, &self.bias)?.reshape((batch, kept, dim))
    }
}
