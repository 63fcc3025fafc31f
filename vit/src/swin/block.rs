//! A Swin Transformer's block and its patch merging.
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

use super::config::Size;
use super::geometry::{merging, offsets, table_rows, Layout};
use crate::drop::Drops;
use crate::init::TOKEN;
use crate::ops::{self, Compute, Rows};
use crate::{LayerNorm, Linear, SwinConfig, VitConfig};

/// A block: `x + attn(norm1(x))` in windows, then `x + mlp(norm2(x))` (Liu et al., arXiv 2103.14030, equation 3). Variables as
/// timm names them: `norm1.*`, `attn.relative_position_bias_table` (offsets, heads), `attn.qkv.*`, `attn.proj.*`, `norm2.*`,
/// `mlp.fc1.*`, `mlp.fc2.*`.
#[derive(Debug, Clone)]
pub(super) struct SwinBlock {
    norm1: LayerNorm,
    table: Tensor,
    /// (T * T): rows of the table.
    offsets: Tensor,
    heads: usize,
    qkv: Linear,
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    drop_path: f64,
    /// Number of its first place where something is dropped.
    site: u64,
    compute: Compute,
}

impl SwinBlock {
    /// Block `index` of a stage.
    pub fn new(
        (cfg, swin): (&VitConfig, &SwinConfig),
        (stage, index): (usize, usize),
        vb: VarBuilder,
    ) -> Result<Self> {
        let (dim, hidden, eps) = (cfg.stage_dim(stage), cfg.stage_hidden(stage), cfg.norm_eps);
        let (window, _) = swin.window(cfg.stage_grid(stage), index);
        let (heads, attn, mlp) = (swin.num_heads[stage], vb.pp("attn"), vb.pp("mlp"));
        let name = "relative_position_bias_table";
        let number = swin.first_block(stage) + index;
        let qkv = match cfg.qkv_bias {
            true => Linear::new(dim, 3 * dim, attn.pp("qkv"))?,
            false => Linear::no_bias(dim, 3 * dim, attn.pp("qkv"))?,
        };
        let offsets = offsets(window);
        let count = offsets.len();
        Ok(Self {
            norm1: LayerNorm::new(dim, eps, vb.pp("norm1"))?,
            table: attn.get_with_hints((table_rows(window), heads), name, TOKEN)?,
            offsets: Tensor::from_vec(offsets, count, vb.device())?,
            heads,
            qkv,
            proj: Linear::new(dim, dim, attn.pp("proj"))?,
            norm2: LayerNorm::new(dim, eps, vb.pp("norm2"))?,
            fc1: Linear::new(dim, hidden, mlp.pp("fc1"))?,
            fc2: Linear::new(hidden, dim, mlp.pp("fc2"))?,
            drop_path: cfg.drop_path(number),
            site: 1 + 5 * number as u64,
            compute: Compute::default(),
        })
    }

    pub fn with_compute(self, compute: &Compute) -> Self {
        Self {
            norm1: self.norm1.with_compute(compute),
            qkv: self.qkv.with_compute(compute),
            proj: self.proj.with_compute(compute),
            norm2: self.norm2.with_compute(compute),
            fc1: self.fc1.with_compute(compute),
            fc2: self.fc2.with_compute(compute),
            compute: compute.clone(),
            ..self
        }
    }

    /// `(H, T, T)`: what is added to the scores of two places.
    fn bias(&self) -> Result<Tensor> {
        let places = self.offsets.elem_count().isqrt();
        let by_pair = self.table.index_select(&self.offsets, 0)?;
        let by_head = by_pair.t()?.contiguous()?;
        by_head.reshape((self.heads, places, places))
    }

    /// `(B, N, D) -> (B, N, D)`
    pub fn run(&self, x: &Tensor, layout: &Layout, drops: Option<Drops>) -> Result<Tensor> {
        let path = |x: Tensor, site| match drops {
            Some(drops) => drops.path(&x, self.drop_path, self.site + site),
            None => Ok(x),
        };
        let y = ops::take_rows(&self.norm1.forward(x)?, &layout.rows, &self.compute)?;
        let qkv = self.qkv.forward(&y)?;
        let y = ops::window_attention(&qkv, &self.bias()?, &layout.windows, &self.compute)?;
        let y = ops::take_rows(
            &self.proj.forward(&y)?,
            &layout.rows.inverse(),
            &self.compute,
        )?;
        let x = (x + path(y, 1)?)?;
        let y = self.fc1.forward(&self.norm2.forward(&x)?)?;
        let y = self.fc2.forward(&ops::gelu(&y, &self.compute)?)?;
        &x + path(y, 4)?
    }
}

/// Between two stages: each 2 x 2 tokens side by side, a norm, and a product without bias to twice the width. Variables `norm.*`
/// and `reduction.weight` (2D, 4D).
#[derive(Debug, Clone)]
pub(super) struct Merging {
    norm: LayerNorm,
    reduction: Linear,
    rows: Rows,
    compute: Compute,
}

impl Merging {
    /// From a grid of this size and tokens of this width.
    pub fn new(grid: Size, dim: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            norm: LayerNorm::new(4 * dim, eps, vb.pp("norm"))?,
            reduction: Linear::no_bias(4 * dim, 2 * dim, vb.pp("reduction"))?,
            rows: merging(grid)?,
            compute: Compute::default(),
        })
    }

    pub fn with_compute(self, compute: &Compute) -> Self {
        Self {
            norm: self.norm.with_compute(compute),
            reduction: self.reduction.with_compute(compute),
            compute: compute.clone(),
            ..self
        }
    }

    /// `(B, N, D) -> (B, N / 4, 2D)`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.merge(x, &self.rows)
    }

    /// The same of other tokens than a whole grid's.
    pub fn merge(&self, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        let (batch, _, dim) = x.dims3()?;
        let x = ops::take_rows(x, rows, &self.compute)?;
        let x = x.reshape((batch, rows.places() / 4, 4 * dim))?;
        self.reduction.forward(&self.norm.forward(&x)?)
    }
}
