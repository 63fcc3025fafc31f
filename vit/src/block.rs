//! A transformer block: attention and MLP around a residual stream.
use std::sync::Arc;

use candle_core::{Result, Tensor, D};
use candle_nn::{Init, VarBuilder};

use crate::drop::Drops;
use crate::init::ZERO;
use crate::ops::{self, BlockOptions, BlockWeights, Compute, Form, HeldWeights, Hold, Rotation};
use crate::{Activation, LayerNorm, Linear, VitConfig};

/// Multi-head self-attention; variables `qkv.*` (3D, D) and `proj.*` (D, D). Without keys' bias `q_bias` and `v_bias` (D)
/// are there instead of `qkv.bias`, as timm's EVA names them.
#[derive(Debug, Clone)]
struct Attention {
    qkv: Linear,
    /// Of queries, zeros, of values.
    biases: Option<[Tensor; 3]>,
    proj: Linear,
    heads: usize,
    compute: Compute,
}

impl Attention {
    fn new(cfg: &VitConfig, vb: VarBuilder) -> Result<Self> {
        let (dim, qkv) = (cfg.embed_dim, vb.pp("qkv"));
        let bias = |name| vb.get_with_hints(dim, name, ZERO);
        Ok(Self {
            qkv: match cfg.qkv_bias && cfg.key_bias {
                true => Linear::new(dim, 3 * dim, qkv)?,
                false => Linear::no_bias(dim, 3 * dim, qkv)?,
            },
            biases: match cfg.qkv_bias && !cfg.key_bias {
                true => {
                    let none = Tensor::zeros(dim, vb.dtype(), vb.device())?;
                    Some([bias("q_bias")?, none, bias("v_bias")?])
                }
                false => None,
            },
            proj: Linear::new(dim, dim, vb.pp("proj"))?,
            heads: cfg.num_heads,
            compute: Compute::default(),
        })
    }

    fn with_compute(self, compute: &Compute) -> Self {
        Self {
            qkv: self.qkv.with_compute(compute),
            proj: self.proj.with_compute(compute),
            compute: compute.clone(),
            ..self
        }
    }

    /// Queries, keys and values; their bias is put together at each pass, as its parts may have changed.
    fn qkv(&self) -> Result<Linear> {
        match &self.biases {
            None => Ok(self.qkv.clone()),
            Some(parts) => Ok(self.qkv.with_bias(Tensor::cat(parts, 0)?)),
        }
    }

    /// `(B, T, D) -> (B, T, 3D)`: queries, keys and values, turned.
    fn packed(&self, x: &Tensor, rotation: Option<&Rotation>) -> Result<Tensor> {
        let qkv = self.qkv()?.forward(x)?;
        match rotation {
            Some(rotation) => ops::rotate(&qkv, self.heads, rotation, &self.compute),
            None => Ok(qkv),
        }
    }

    fn forward(&self, x: &Tensor, rotation: Option<&Rotation>) -> Result<Tensor> {
        let x = ops::attention(&self.packed(x, rotation)?, self.heads, &self.compute)?;
        self.proj.forward(&x)
    }
}

/// Two linear layers with a non-linearity between; variables `fc1.*` and `fc2.*`.
#[derive(Debug, Clone)]
struct Mlp {
    fc1: Linear,
    activation: Activation,
    fc2: Linear,
    compute: Compute,
}

impl Mlp {
    fn new(cfg: &VitConfig, vb: VarBuilder) -> Result<Self> {
        let (dim, hidden) = (cfg.embed_dim, cfg.mlp_hidden());
        let halves = if cfg.activation == Activation::SwiGlu {
            2
        } else {
            1
        };
        Ok(Self {
            fc1: Linear::new(dim, hidden, vb.pp("fc1"))?,
            activation: cfg.activation,
            fc2: Linear::new(hidden / halves, dim, vb.pp("fc2"))?,
            compute: Compute::default(),
        })
    }

    fn with_compute(self, compute: &Compute) -> Self {
        Self {
            fc1: self.fc1.with_compute(compute),
            fc2: self.fc2.with_compute(compute),
            compute: compute.clone(),
            ..self
        }
    }

    fn hidden(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.fc1.forward(x)?;
        match self.activation {
            Activation::Gelu => ops::gelu(&x, &self.compute),
            Activation::GeluTanh => x.gelu(),
            Activation::QuickGelu => &x * candle_nn::ops::sigmoid(&(&x * 1.702)?)?,
            Activation::SwiGlu => {
                let half = x.dim(D::Minus1)? / 2;
                let gate = x.narrow(D::Minus1, 0, half)?.contiguous()?.silu()?;
                gate * x.narrow(D::Minus1, half, half)?.contiguous()?
            }
        }
    }
}

/// A pre-norm transformer block: `x + ls1 * attn(norm1(x))`, then `x + ls2 * mlp(norm2(x))` (Dosovitskiy et al., arXiv
/// 2010.11929, equations 2 and 3). Variables as timm names them: `norm1.*`, `attn.*`, `ls1.gamma`, `norm2.*`, `mlp.*`,
/// `ls2.gamma`, the gammas (D) only with LayerScale.
#[derive(Debug, Clone)]
pub struct Block {
    norm1: LayerNorm,
    attn: Attention,
    norm2: LayerNorm,
    mlp: Mlp,
    scales: Option<(Tensor, Tensor)>,
    /// Whether queries and keys are turned by their tokens' places.
    rotates: bool,
    drop_rate: f64,
    drop_path: f64,
    /// Number of its first place where something is dropped.
    site: u64,
    compute: Compute,
    held: Option<Arc<HeldWeights>>,
}

impl Block {
    /// Block `index` of a model.
    ///
    /// # Errors
    /// A variable that is missing or has another shape.
    pub fn new(cfg: &VitConfig, index: usize, vb: VarBuilder) -> Result<Self> {
        let (dim, eps) = (cfg.embed_dim, cfg.norm_eps);
        let scale = |value, name| vb.pp(name).get_with_hints(dim, "gamma", Init::Const(value));
        Ok(Self {
            norm1: LayerNorm::new(dim, eps, vb.pp("norm1"))?,
            attn: Attention::new(cfg, vb.pp("attn"))?,
            norm2: LayerNorm::new(dim, eps, vb.pp("norm2"))?,
            mlp: Mlp::new(cfg, vb.pp("mlp"))?,
            scales: match cfg.init_values {
                Some(value) => Some((scale(value, "ls1")?, scale(value, "ls2")?)),
                None => None,
            },
            rotates: cfg.rope_theta().is_some(),
            drop_rate: cfg.drop_rate,
            drop_path: cfg.drop_path(index),
            site: 1 + 5 * index as u64,
            compute: Compute::default(),
            held: None,
        })
    }

    /// The same, computing so. What is held of its weights, its clones share.
    #[must_use]
    pub fn with_compute(self, compute: &Compute) -> Self {
        let hold = match compute.hold {
            Hold::Nothing => false,
            Hold::Frozen => !self.attn.qkv.is_live(),
            Hold::All => true,
        };
        Self {
            norm1: self.norm1.with_compute(compute),
            attn: self.attn.with_compute(compute),
            norm2: self.norm2.with_compute(compute),
            mlp: self.mlp.with_compute(compute),
            compute: compute.clone(),
            held: hold.then(Arc::default),
            ..self
        }
    }

    /// `(B, T, D) -> (B, T, D)`
    ///
    /// # Errors
    /// Shapes that do not fit, a block of a model with rotary positions.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.run(x, None, None)
    }

    /// The same of a model with rotary positions, with the angles of the tokens of `x`.
    ///
    /// # Errors
    /// Shapes that do not fit, a block of another model.
    pub fn forward_rotated(&self, x: &Tensor, rotation: &Rotation) -> Result<Tensor> {
        self.run(x, Some(rotation), None)
    }

    /// The same, dropping what `drops` says, if anything.
    pub(crate) fn run(
        &self,
        x: &Tensor,
        rotation: Option<&Rotation>,
        drops: Option<Drops>,
    ) -> Result<Tensor> {
        if rotation.is_some() != self.rotates {
            candle_core::bail!(
                "a block's tokens have angles where its model has rotary positions, and only there"
            );
        }
        let plain_mlp = self.mlp.activation == Activation::Gelu && self.scales.is_none();
        let drops_numbers = drops.is_some() && self.drop_rate > 0.0;
        if self.compute.form(x) == Form::Cpu && plain_mlp && !drops_numbers {
            return self.fused(x, rotation, drops);
        }
        let dropout = |x: Tensor, site| match drops {
            Some(drops) => drops.dropout(&x, self.drop_rate, self.site + site),
            None => Ok(x),
        };
        let branch = |x: Tensor, scale: Option<&Tensor>, site| {
            let x = match scale {
                Some(gamma) => x.broadcast_mul(gamma)?,
                None => x,
            };
            match drops {
                Some(drops) => drops.path(&x, self.drop_path, self.site + site),
                None => Ok(x),
            }
        };
        let y = self.attn.forward(&self.norm1.forward(x)?, rotation)?;
        let y = branch(dropout(y, 0)?, self.scales.as_ref().map(|s| &s.0), 1)?;
        let x = (x + y)?;
        let y = dropout(self.mlp.hidden(&self.norm2.forward(&x)?)?, 2)?;
        let y = dropout(self.mlp.fc2.forward(&y)?, 3)?;
        &x + branch(y, self.scales.as_ref().map(|s| &s.1), 4)?
    }

    /// `(B, T, D) -> (B, T, 3D)`: queries, keys and values as its attention takes them.
    pub(crate) fn packed(&self, x: &Tensor, rotation: Option<&Rotation>) -> Result<Tensor> {
        self.attn.packed(&self.norm1.forward(x)?, rotation)
    }

    /// [`Block::run`] as one op.
    fn fused(
        &self,
        x: &Tensor,
        rotation: Option<&Rotation>,
        drops: Option<Drops>,
    ) -> Result<Tensor> {
        let (batch, qkv) = (x.dim(0)?, self.attn.qkv()?);
        let path = |site| match drops {
            Some(drops) => drops.path_factors(batch, self.drop_path, self.site + site),
            None => Ok(None),
        };
        let weights = BlockWeights {
            norm1: self.norm1.pair(),
            qkv: qkv.pair(),
            proj: self.attn.proj.pair(),
            norm2: self.norm2.pair(),
            fc1: self.mlp.fc1.pair(),
            fc2: self.mlp.fc2.pair(),
        };
        let options = BlockOptions {
            heads: self.attn.heads,
            eps: self.norm1.eps(),
            paths: [path(1)?, path(4)?],
            rotation: rotation.cloned(),
            compute: self.compute.clone(),
            held: self.held.clone(),
        };
        ops::block(x, &weights, options)
    }
}
