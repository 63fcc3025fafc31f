//! Drawing the first weights, as a function of (seed, name) and of the law that stands where a model asks for the variable.
use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder, VarMap};
use rand_chacha::rand_core::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Biases.
pub(crate) const ZERO: Init = Init::Const(0.0);
/// Weights of norms.
pub(crate) const ONE: Init = Init::Const(1.0);
/// Tokens and position embeddings: normal, standard deviation 0.02.
pub(crate) const TOKEN: Init = Init::Randn {
    mean: 0.0,
    stdev: 0.02,
};

/// Of the matrix of a linear layer: uniform in +-sqrt(6 / (inputs + outputs)) (Glorot and Bengio, 2010).
pub(crate) fn glorot(inputs: usize, outputs: usize) -> Init {
    let bound = (6.0 / (outputs + inputs) as f64).sqrt();
    Init::Uniform {
        lo: -bound,
        up: bound,
    }
}

/// A builder that makes a model's variables in `vars`, each drawn by the law that the model gives for it (constant, normal or
/// uniform) from a generator of its own, keyed by seed and name: adding a layer changes no other. What is in `vars` already
/// stays as it is.
///
/// ```
/// # use candle_core::{DType, Device};
/// # fn main() -> candle_core::Result<()> {
/// let vars = candle_nn::VarMap::new();
/// let vb = vit::seeded(&vars, 0, DType::F32, &Device::Cpu);
/// let linear = vit::Linear::new(2, 3, vb.pp("head"))?;
/// # Ok(())
/// # }
/// ```
pub fn seeded(vars: &VarMap, seed: u64, dtype: DType, device: &Device) -> VarBuilder<'static> {
    let vars = vars.clone();
    VarBuilder::from_backend(Box::new(Seeded { vars, seed }), dtype, device.clone())
}

struct Seeded {
    vars: VarMap,
    seed: u64,
}

impl SimpleBackend for Seeded {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        law: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let mut map = self.vars.data().lock().unwrap_or_else(|e| e.into_inner());
        if let Some(var) = map.get(name) {
            if var.shape() != &shape {
                candle_core::bail!(
                    "variable '{name}' has shape {:?}, the model asks for {shape:?}",
                    var.shape()
                );
            }
            return Ok(var.as_tensor().clone());
        }
        let var = Var::from_tensor(&draw(self.seed, name, shape, law, dtype, device)?)?;
        let tensor = var.as_tensor().clone();
        map.insert(name.to_owned(), var);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        self.vars.get_unchecked(name, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.vars.contains_tensor(name)
    }
}

/// The first value of the variable of this name.
pub(crate) fn draw(
    seed: u64,
    name: &str,
    shape: Shape,
    law: Init,
    dtype: DType,
    device: &Device,
) -> Result<Tensor> {
    let mut rng = generator(seed, name);
    let count = shape.elem_count();
    let values: Vec<f32> = match law {
        Init::Const(value) => vec![value as f32; count],
        Init::Randn { mean, stdev } => {
            let (mean, stdev) = (mean as f32, stdev as f32);
            (0..count)
                .map(|_| mean + stdev * normal(&mut rng))
                .collect()
        }
        Init::Uniform { lo, up } => {
            let (middle, half) = ((lo + up) / 2.0, (up - lo) / 2.0);
            (0..count)
                .map(|_| (middle + half * (2.0 * uniform(&mut rng) - 1.0)) as f32)
                .collect()
        }
        Init::Kaiming { .. } => candle_core::bail!("variable '{name}': no such law here"),
    };
    Tensor::from_vec(values, shape, device)?.to_dtype(dtype)
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
