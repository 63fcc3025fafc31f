//! Position embeddings: the fixed 2-D sin-cos table, rotary ones, and moving a learnt table to another grid.
use candle_core::{Device, Result, Tensor};

use crate::ops::Rotation;

/// `(1, 1 + rows * columns, dim)`: row 0, the class token's, is zero; the first half of the others encodes the column, the
/// second half the row. Each half is `[sin(p w_0), sin(p w_1), .., cos(p w_0), ..]` with `w_i = 10000^(-4i / dim)`
/// (Vaswani et al., arXiv 1706.03762, section 3.5; in two dimensions as MAE, arXiv 2111.06377).
///
/// # Errors
/// A `dim` that is not divisible by 4.
pub fn sincos_2d(dim: usize, (rows, columns): (usize, usize), device: &Device) -> Result<Tensor> {
    if !dim.is_multiple_of(4) {
        candle_core::bail!("a sin-cos position embedding needs a width divisible by 4, got {dim}");
    }
    let quarter = dim / 4;
    let frequencies: Vec<f64> = (0..quarter)
        .map(|i| 10_000f64.powf(-(i as f64) / quarter as f64))
        .collect();
    let mut table = vec![0f32; dim];
    for row in 0..rows {
        for column in 0..columns {
            for position in [column, row] {
                let angles = frequencies.iter().map(|w| position as f64 * w);
                table.extend(angles.clone().map(|a| a.sin() as f32));
                table.extend(angles.map(|a| a.cos() as f32));
            }
        }
    }
    Tensor::from_vec(table, (1, 1 + rows * columns, dim), device)
}

/// `[(rows * columns, d / 2); 2]`: cosines and sines of the angles of patches, for heads of d numbers (DINOv3: Simeoni et al.,
/// arXiv 2508.10104, section 3.2). A patch's place is that of its middle in the image, which reaches from -1 to 1 along both
/// axes: `c = 2 (i + 1/2) / n - 1` of row i of n, and of its column. The first half of the angles is of the row, the second
/// of the column; each half is `2 pi c / theta^(4 k / d)` for k from 0 to d / 4. So any grid has its angles, and an image of
/// another size spans the same ones.
///
/// # Errors
/// A `head_dim` that is not divisible by 4.
pub fn axial_rope(
    head_dim: usize,
    (rows, columns): (usize, usize),
    theta: f64,
    device: &Device,
) -> Result<[Tensor; 2]> {
    if head_dim == 0 || !head_dim.is_multiple_of(4) {
        candle_core::bail!("rotary positions need heads of a width divisible by 4, got {head_dim}");
    }
    let periods = (0..head_dim / 4).map(|k| theta.powf(4.0 * k as f64 / head_dim as f64));
    let periods: Vec<f64> = periods.collect();
    let middle = |i: usize, n: usize| 2.0 * (i as f64 + 0.5) / n as f64 - 1.0;
    let mut angles = Vec::with_capacity(rows * columns * head_dim / 2);
    for row in 0..rows {
        for column in 0..columns {
            for place in [middle(row, rows), middle(column, columns)] {
                let turn = |period: &f64| std::f64::consts::TAU * place / period;
                angles.extend(periods.iter().map(turn));
            }
        }
    }
    let table = |f: fn(f64) -> f64| {
        let numbers: Vec<f32> = angles.iter().map(|&angle| f(angle) as f32).collect();
        Tensor::from_vec(numbers, (rows * columns, head_dim / 2), device)
    };
    Ok([table(f64::cos)?, table(f64::sin)?])
}

/// The angles of a model with rotary positions.
#[derive(Debug, Clone)]
pub(crate) struct Rope {
    /// Cosines and sines (1 + N, d / 2); row 0 turns nothing.
    table: [Tensor; 2],
    /// Tokens before the patches.
    prefix: usize,
    /// Of all patches.
    whole: Rotation,
}

impl Rope {
    pub fn new(
        head_dim: usize,
        grid: (usize, usize),
        theta: f64,
        prefix: usize,
        device: &Device,
    ) -> Result<Self> {
        let [cos, sin] = axial_rope(head_dim, grid, theta, device)?;
        let still = cos.narrow(0, 0, 1)?.zeros_like()?;
        let table = [
            Tensor::cat(&[&still.ones_like()?, &cos], 0)?,
            Tensor::cat(&[&still, &sin], 0)?,
        ];
        let patches: Vec<u32> = (0..(grid.0 * grid.1) as u32).collect();
        Ok(Self {
            whole: rotation(&table, prefix, &patches, 1)?,
            table,
            prefix,
        })
    }

    /// Of all patches, or of those whose numbers `ids_keep` (B * K) gives, image by image.
    pub fn rotation(&self, ids_keep: Option<&[u32]>, batch: usize) -> Result<Rotation> {
        match ids_keep {
            None => Ok(self.whole.clone()),
            Some(ids) => rotation(&self.table, self.prefix, ids, batch),
        }
    }
}

fn rotation(
    [cos, sin]: &[Tensor; 2],
    prefix: usize,
    ids: &[u32],
    batch: usize,
) -> Result<Rotation> {
    let kept = ids.len() / batch.max(1);
    let (rows, half) = cos.dims2()?;
    if kept * batch != ids.len() || ids.iter().any(|&id| id as usize + 1 >= rows) {
        candle_core::bail!("rotary positions of {} patches for {batch} images of {} patches, or of one beyond them", ids.len(), rows - 1);
    }
    let mut places = Vec::with_capacity(batch * (prefix + kept));
    for ids in ids.chunks(kept.max(1)) {
        places.extend(std::iter::repeat_n(0, prefix));
        places.extend(ids.iter().map(|id| id + 1));
    }
    let places = Tensor::new(places, cos.device())?;
    let of = |table: &Tensor| {
        let rows = table.index_select(&places, 0)?;
        rows.reshape((batch, prefix + kept, half))
    };
    Rotation::new(&of(cos)?, &of(sin)?)
}

/// How to resample between grids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    /// Bicubic with antialiasing (a = -0.5), as timm.
    Antialias,
    /// Bicubic without (a = -0.75), as MAE and Hugging Face.
    Plain,
}

/// `(1, prefix + rows * columns, D) -> (1, prefix + new rows * new columns, D)`: a learnt table on another grid. The
/// first `prefix` rows (class token and such) stay. Computes in f32 with the weights in f64.
///
/// # Errors
/// A table that does not have `prefix + rows * columns` rows, an empty grid.
pub fn resample_pos_embed(
    table: &Tensor,
    prefix: usize,
    (rows, columns): (usize, usize),
    (new_rows, new_columns): (usize, usize),
    resample: Resample,
) -> Result<Tensor> {
    let (_, tokens, dim) = table.dims3()?;
    if table.dim(0)? != 1 || tokens != prefix + rows * columns || rows * columns == 0 {
        candle_core::bail!(
            "a position table of shape {:?} for {prefix} tokens and {rows} x {columns} patches",
            table.dims()
        );
    }
    if (rows, columns) == (new_rows, new_columns) {
        return Ok(table.clone());
    }
    let dtype = table.dtype();
    let grid = table.narrow(1, prefix, rows * columns)?;
    let grid = grid.to_dtype(candle_core::DType::F32)?;
    let matrix = |from, to| {
        let weights = weights(from, to, resample);
        Tensor::from_vec(weights, (to, from), table.device())
    };
    // Along the rows, then along the columns: each is one matrix product.
    let grid = matrix(rows, new_rows)?
        .matmul(&grid.reshape((rows, columns * dim))?)?
        .reshape((new_rows, columns, dim))?;
    let across = matrix(columns, new_columns)?;
    let across = across.expand((new_rows, new_columns, columns))?;
    let grid = across.contiguous()?.matmul(&grid)?;
    let grid = grid
        .reshape((1, new_rows * new_columns, dim))?
        .to_dtype(dtype)?;
    Tensor::cat(&[&table.narrow(1, 0, prefix)?, &grid], 1)
}

/// The matrix (to, from) of a bicubic resampling along one axis, pixel centres at half integers.
fn weights(from: usize, to: usize, resample: Resample) -> Vec<f32> {
    let scale = from as f64 / to as f64;
    let mut out = vec![0f32; from * to];
    for (i, row) in out.chunks_exact_mut(from).enumerate() {
        let centre = (i as f64 + 0.5) * scale;
        match resample {
            // The kernel widens with the step; its weights are those that lie inside, made to sum to 1.
            Resample::Antialias => {
                let wide = scale.max(1.0);
                let first = (centre - 2.0 * wide + 0.5).max(0.0) as usize;
                let last = ((centre + 2.0 * wide + 0.5) as usize).min(from);
                let weight = |k: usize| cubic((k as f64 - centre + 0.5) / wide, -0.5);
                let sum: f64 = (first..last).map(weight).sum();
                for (k, w) in row.iter_mut().enumerate().take(last).skip(first) {
                    *w = (weight(k) / sum) as f32;
                }
            }
            // Four taps; those beyond the edge fall on the edge.
            Resample::Plain => {
                let floor = (centre - 0.5).floor();
                for tap in -1..=2 {
                    let at = floor as isize + tap;
                    let weight = cubic(centre - 0.5 - at as f64, -0.75);
                    row[at.clamp(0, from as isize - 1) as usize] += weight as f32;
                }
            }
        }
    }
    out
}

/// Keys' cubic convolution kernel (1981).
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((x - 5.0) * x + 8.0) * x * a - 4.0 * a
    } else {
        0.0
    }
}
