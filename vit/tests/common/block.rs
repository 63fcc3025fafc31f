//! A transformer block of given tensors: as one op, and of its parts in their plain forms.
use candle_core::{Device, Result, Tensor};
use vit::ops::{self, plain, BlockOptions, BlockWeights, Compute, Pair, Rotation};

type Paths = [Option<Vec<f32>>; 2];

/// A block of ops without drop path, or with these factors; without rotary positions.
pub fn plain_block(x: &[Tensor], heads: usize, paths: &Paths, compute: &Compute) -> Result<Tensor> {
    plain_turned(x, heads, paths, None, compute)
}

/// The same with them, or not.
pub fn plain_turned(
    x: &[Tensor],
    heads: usize,
    paths: &Paths,
    rotation: Option<&Rotation>,
    compute: &Compute,
) -> Result<Tensor> {
    let factor = |y: Tensor, path: &Option<Vec<f32>>| match path {
        Some(path) => {
            let path = Tensor::new(path.as_slice(), &Device::Cpu)?.to_dtype(y.dtype())?;
            y.broadcast_mul(&path.reshape((path.elem_count(), 1, 1))?)
        }
        None => Ok(y),
    };
    let n = plain::layer_norm(&x[0], &x[1], &x[2], 1e-6)?;
    let qkv = plain::linear(&n, &x[3], &x[4], compute)?;
    let qkv = match rotation {
        Some(rotation) => plain::rotate(&qkv, heads, rotation)?,
        None => qkv,
    };
    let a = plain::attention(&qkv, heads, compute)?;
    let x1 = (&x[0] + factor(plain::linear(&a, &x[5], &x[6], compute)?, &paths[0])?)?;
    let n = plain::layer_norm(&x1, &x[7], &x[8], 1e-6)?;
    let h = plain::gelu(&plain::linear(&n, &x[9], &x[10], compute)?)?;
    &x1 + factor(plain::linear(&h, &x[11], &x[12], compute)?, &paths[1])?
}

/// The same as one op.
pub fn fused_block(x: &[Tensor], heads: usize, paths: &Paths, compute: &Compute) -> Result<Tensor> {
    fused_turned(x, heads, paths, None, compute)
}

/// The same with rotary positions, or not.
pub fn fused_turned(
    x: &[Tensor],
    heads: usize,
    paths: &Paths,
    rotation: Option<&Rotation>,
    compute: &Compute,
) -> Result<Tensor> {
    let options = BlockOptions {
        heads,
        eps: 1e-6,
        paths: paths.clone(),
        rotation: rotation.cloned(),
        compute: compute.clone(),
        held: None,
    };
    ops::block(&x[0], &weights(x), options)
}

/// Angles of all tokens but the first, of one image or of several.
pub fn rotation(images: usize, tokens: usize, half: usize, device: &Device) -> Rotation {
    let angle = |i: usize| match i / half % tokens {
        0 => 0.0,
        _ => ((i * 7919) % 1000) as f32 / 160.0 - 3.0,
    };
    let table = |f: fn(f32) -> f32| {
        let numbers: Vec<f32> = (0..images * tokens * half).map(|i| f(angle(i))).collect();
        Tensor::from_vec(numbers, (images, tokens, half), device)
    };
    Rotation::new(&table(f32::cos).unwrap(), &table(f32::sin).unwrap()).unwrap()
}

/// Of x and its weights, those.
pub fn weights(x: &[Tensor]) -> BlockWeights<&Tensor> {
    let pair = |i: usize| Pair {
        weight: &x[i],
        bias: &x[i + 1],
    };
    BlockWeights {
        norm1: pair(1),
        qkv: pair(3),
        proj: pair(5),
        norm2: pair(7),
        fc1: pair(9),
        fc2: pair(11),
    }
}

/// Of x, then of the weights and biases in the order of [`ops::BlockWeights`].
pub fn block_shapes(batch: usize, tokens: usize, d: usize, hidden: usize) -> Vec<Vec<usize>> {
    vec![
        vec![batch, tokens, d],
        vec![d],
        vec![d],
        vec![3 * d, d],
        vec![3 * d],
        vec![d, d],
        vec![d],
        vec![d],
        vec![d],
        vec![hidden, d],
        vec![hidden],
        vec![d, hidden],
        vec![d],
    ]
}
