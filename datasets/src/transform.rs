//! From a decoded image to the numbers a network sees.

mod affine;
mod bands;
mod crop;
mod erasing;
mod eval;
mod finetune;
mod jitter;
mod ops;
mod pretrain;
mod rand_augment;

pub use bands::{BandsTransform, Recipe};
pub use crop::RandomResizedCrop;
pub use erasing::{EraseFill, RandomErasing};
pub use eval::EvalTransform;
pub use finetune::FinetuneTransform;
pub use jitter::{turn_hue, ColorJitter};
pub use ops::{Geometry, Op};
pub use pretrain::PretrainTransform;
pub use rand_augment::RandAugment;

use rand_chacha::ChaCha8Rng;

use crate::{Error, Image, Normalize};
use erasing::Erased;

/// What a loader does to each image, in two halves: [`draw`](Self::draw) makes bytes of the final size, which are kept
/// until the batch is complete, and [`Drawn::write`] turns them into the batch's floats in one pass.
pub trait Transform: Send + Sync {
    /// Height and width of the result in pixels.
    fn size(&self) -> (usize, usize);

    /// Everything but normalisation; random numbers come from `rng` alone.
    fn draw(&self, image: &Image, rng: &mut ChaCha8Rng) -> Result<Drawn, Error>;

    /// The last step.
    fn normalize(&self) -> &Normalize;

    /// An error if a setting makes no sense.
    fn check(&self) -> Result<(), Error>;
}

impl<T: Transform + ?Sized> Transform for Box<T> {
    fn size(&self) -> (usize, usize) {
        (**self).size()
    }

    fn draw(&self, image: &Image, rng: &mut ChaCha8Rng) -> Result<Drawn, Error> {
        (**self).draw(image, rng)
    }

    fn normalize(&self) -> &Normalize {
        (**self).normalize()
    }

    fn check(&self) -> Result<(), Error> {
        (**self).check()
    }
}

/// A transformed image before normalisation.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// Pixels, as large as the result.
    pub image: Image,
    /// Whether it is to be mirrored.
    pub flip: bool,
    /// What is to be overwritten after normalisation.
    pub(crate) erased: Option<Erased>,
}

impl Drawn {
    /// Mirrors, normalises and erases into `out`: `[3, height, width]`, one plane per channel.
    pub fn write(&self, normalize: &Normalize, out: &mut [f32]) -> Result<(), Error> {
        normalize.apply(&self.image, self.flip, out)?;
        if let Some(erased) = &self.erased {
            erased.write(self.image.width, out);
        }
        Ok(())
    }
}

/// An error for a side that no network has.
fn check_size(size: usize) -> Result<(), Error> {
    if (1..=1 << 14).contains(&size) {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "image size {size}; expected 1 to 16384"
    )))
}

/// An error unless `value` is a probability.
fn check_prob(name: &str, value: f64) -> Result<(), Error> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "{name} {value}; expected 0 to 1"
    )))
}
