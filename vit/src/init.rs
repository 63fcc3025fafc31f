//! Drawing the first weights, as a function of (seed, name) alone.
use candle_core::{Result, Tensor};
use candle_nn::VarMap;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Draws all variables of `vars` afresh:
///
/// | variable | law |
/// |---|---|
/// | `*bias` | 0 |
/// | `*gamma` (LayerScale) | as the model made it |
/// | other vectors (norm weights) | 1 |
/// | `*cls_token`, `*mask_token`, `*pos_embed` | normal, standard deviation 0.02 |
/// | matrices, and the patch embedding flattened to one | uniform in +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010) |
/// | other 4-D kernels (decoder heads) | uniform in +-1 / sqrt(fan_in), PyTorch's law for convolutions |
///
/// Each variable is drawn from a generator of its own, keyed by seed and name: adding a layer changes no other.
///
/// # Errors
/// An error of candle.
pub fn init(vars: &VarMap, seed: u64) -> Result<()> {
    let map = vars.data().lock().unwrap_or_else(|e| e.into_inner());
    for (name, var) in map.iter() {
        if name.ends_with(".gamma") {
            continue;
        }
        let mut rng = generator(seed, name);
        let dims = var.dims();
        let count = var.elem_count();
        let values: Vec<f32> = if name.ends_with("bias") {
            vec![0.0; count]
        } else if dims.len() < 2 {
            vec![1.0; count]
        } else if name.ends_with("_token") || name.ends_with("pos_embed") {
            (0..count).map(|_| 0.02 * normal(&mut rng)).collect()
        } else {
            let receptive: usize = dims[2..].iter().product();
            let bound = if dims.len() == 2 || name.starts_with("patch_embed") {
                (6.0 / (dims[0] + dims[1] * receptive) as f64).sqrt()
            } else {
                1.0 / ((dims[1] * receptive) as f64).sqrt()
            };
            (0..count)
                .map(|_| (bound * (2.0 * uniform(&mut rng) - 1.0)) as f32)
                .collect()
        };
        let values = Tensor::from_vec(values, dims, var.device())?;
        var.set(&values.to_dtype(var.dtype())?)?;
    }
    Ok(())
}

/// ChaCha8 with the key (seed, FNV-1a hash of the name, "init").
fn generator(seed: u64, name: &str) -> ChaCha8Rng {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&hash.to_le_bytes());
    key[16..20].copy_from_slice(b"init");
    ChaCha8Rng::from_seed(key)
}

/// In [0, 1), 53 bits.
fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Standard normal, by Box and Muller.
fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let radius = (-2.0 * (1.0 - uniform(rng)).ln()).sqrt();
    (radius * (std::f64::consts::TAU * uniform(rng)).cos()) as f32
}
