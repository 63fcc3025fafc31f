//! Dropout and stochastic depth, drawn on the host from seeds that the caller gives.
use candle_core::{Result, Tensor};
use rand_chacha::rand_core::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What a training pass drops: one seed per image of the batch, as a function of (seed, epoch, index). An image's
/// randomness then depends on nothing else: not on its place in the batch, not on threads or device.
#[derive(Debug, Clone, Copy)]
pub struct Drops<'a>(pub &'a [u64]);

impl Drops<'_> {
    /// Dropout: sets each number to 0 with probability `rate`, divides the others by `1 - rate`. `site` numbers the
    /// places of a model.
    pub(crate) fn dropout(&self, x: &Tensor, rate: f64, site: u64) -> Result<Tensor> {
        if rate == 0.0 {
            return Ok(x.clone());
        }
        let numbers = x.elem_count() / x.dim(0)?.max(1);
        let factors = self.factors(x.dim(0)?, rate, site, numbers)?;
        let factors = Tensor::from_vec(factors, x.shape(), x.device())?;
        x * factors.to_dtype(x.dtype())?
    }

    /// Drop path: the same for whole images.
    pub(crate) fn path(&self, x: &Tensor, rate: f64, site: u64) -> Result<Tensor> {
        if rate == 0.0 {
            return Ok(x.clone());
        }
        let shape: Vec<usize> = (0..x.rank())
            .map(|d| if d == 0 { x.dims()[0] } else { 1 })
            .collect();
        let factors = self.factors(x.dim(0)?, rate, site, 1)?;
        let factors = Tensor::from_vec(factors, shape, x.device())?;
        x.broadcast_mul(&factors.to_dtype(x.dtype())?)
    }

    /// The factors of [`Drops::path`] for each of `batch` images, `None` where there are none.
    pub(crate) fn path_factors(
        &self,
        batch: usize,
        rate: f64,
        site: u64,
    ) -> Result<Option<Vec<f32>>> {
        match rate == 0.0 {
            true => Ok(None),
            false => self.factors(batch, rate, site, 1).map(Some),
        }
    }

    /// `(B * count)`: 0 or `1 / (1 - rate)`.
    fn factors(&self, batch: usize, rate: f64, site: u64, count: usize) -> Result<Vec<f32>> {
        if self.0.len() != batch {
            candle_core::bail!("{} seeds for {batch} images", self.0.len());
        }
        let keep = (1.0 / (1.0 - rate)) as f32;
        let threshold = (rate * f64::from(u32::MAX)) as u32;
        let mut factors = Vec::with_capacity(batch * count);
        for &seed in self.0 {
            let mut rng = generator(seed, site);
            factors.extend((0..count).map(|_| match rng.next_u32() < threshold {
                true => 0.0,
                false => keep,
            }));
        }
        Ok(factors)
    }
}

fn generator(seed: u64, site: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&site.to_le_bytes());
    key[16..20].copy_from_slice(b"drop");
    ChaCha8Rng::from_seed(key)
}
