//! What the class token attends to. The fused attention keeps no probabilities, so those of the last block are computed here
//! from what it takes.
use anyhow::Result;
use candle_core::{Device, Tensor, D};
use vit::Vit;

/// `(1, 3, H, W)` -> for each head, the probability that the class token gives each patch in the last block.
pub fn by_head(model: &Vit, image: &Tensor) -> Result<Vec<Vec<f32>>> {
    let cfg = model.config();
    let qkv = model.qkv(image, cfg.depth - 1)?;
    let all = probabilities(&qkv, cfg.num_heads)?;
    let patches = all.narrow(D::Minus1, cfg.prefix_tokens(), cfg.patches())?;
    Ok(patches.squeeze(0)?.to_device(&Device::Cpu)?.to_vec2()?)
}

/// `(B, T, 3D) -> (B, heads, T)`: `softmax(q K^T / sqrt(D / heads))` of the first token.
fn probabilities(qkv: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let (batch, tokens, packed) = qkv.dims3()?;
    let dim = packed / 3 / heads;
    let part = |i: usize| {
        let part = qkv.narrow(2, i * heads * dim, heads * dim)?;
        let part = part.reshape((batch, tokens, heads, dim))?;
        part.transpose(1, 2)?.contiguous()
    };
    let query = part(0)?.narrow(2, 0, 1)?.contiguous()?;
    let keys = part(1)?.transpose(2, 3)?.contiguous()?;
    let scores = (query.matmul(&keys)? * (dim as f64).powf(-0.5))?;
    candle_nn::ops::softmax_last_dim(&scores)?.squeeze(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vit::ops::{attention, Compute};

    /// Where each token's value is a unit vector of its own, the output of attention is the probabilities.
    #[test]
    fn equals_the_fused_attention() {
        let (tokens, heads, dim) = (4, 2, 4);
        let width = heads * dim;
        let value = |i: usize| {
            let (token, column) = (i / (3 * width), i % (3 * width));
            match column.checked_sub(2 * width) {
                Some(column) => f32::from(u8::from(column % dim == token)),
                None => ((i * 7919) % 100) as f32 / 25.0 - 2.0,
            }
        };
        let data: Vec<f32> = (0..tokens * 3 * width).map(value).collect();
        let qkv = Tensor::from_vec(data, (1, tokens, 3 * width), &Device::Cpu).unwrap();
        let fused = attention(&qkv, heads, &Compute::default()).unwrap();
        let fused: Vec<f32> = fused.get(0).unwrap().get(0).unwrap().to_vec1().unwrap();
        let plain = probabilities(&qkv, heads).unwrap();
        let plain: Vec<f32> = plain.flatten_all().unwrap().to_vec1().unwrap();
        for (a, b) in fused.iter().zip(&plain) {
            assert!((a - b).abs() < 1e-5, "{fused:?} {plain:?}");
        }
        assert!((plain[..4].iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
}
