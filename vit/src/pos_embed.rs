//! The fixed 2-D sin-cos position embedding.
use candle_core::{Device, Result, Tensor};

/// `(1, 1 + grid * grid, dim)`: row 0, the class token's, is zero; the first half of the others encodes the column, the
/// second half the row. Each half is `[sin(p w_0), sin(p w_1), .., cos(p w_0), ..]` with `w_i = 10000^(-4i / dim)`
/// (Vaswani et al., arXiv 1706.03762, section 3.5; in two dimensions as MAE, arXiv 2111.06377).
///
/// # Errors
/// A `dim` that is not divisible by 4.
pub fn sincos_2d(dim: usize, grid: usize, device: &Device) -> Result<Tensor> {
    if !dim.is_multiple_of(4) {
        candle_core::bail!("a sin-cos position embedding needs a width divisible by 4, got {dim}");
    }
    let quarter = dim / 4;
    let frequencies: Vec<f64> = (0..quarter)
        .map(|i| 10_000f64.powf(-(i as f64) / quarter as f64))
        .collect();
    let mut table = vec![0f32; dim];
    for row in 0..grid {
        for column in 0..grid {
            for position in [column, row] {
                let angles = frequencies.iter().map(|w| position as f64 * w);
                table.extend(angles.clone().map(|a| a.sin() as f32));
                table.extend(angles.map(|a| a.cos() as f32));
            }
        }
    }
    Tensor::from_vec(table, (1, 1 + grid * grid, dim), device)
}
