//! What a network sees in masked pretraining.

use rand_chacha::ChaCha8Rng;

use super::{Drawn, RandomResizedCrop, Transform};
use crate::rng::uniform;
use crate::{Error, Image, Interpolation, Normalize};

/// The augmentation of masked pretraining: random resized crop, horizontal flip, normalisation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PretrainTransform {
    /// Side of the result in pixels.
    pub size: usize,
    /// Smallest and largest share of the image's area.
    pub scale: (f64, f64),
    /// Smallest and largest width over height of the part taken.
    pub ratio: (f64, f64),
    /// Whether half of the images are mirrored.
    pub flip: bool,
    /// How to resize.
    pub interpolation: Interpolation,
    /// The last step.
    pub normalize: Normalize,
}

impl PretrainTransform {
    /// The settings of MAE and LocalMIM on ImageNet, at `size` pixels.
    pub fn imagenet(size: usize) -> Self {
        Self {
            size,
            scale: (0.2, 1.0),
            ratio: (3.0 / 4.0, 4.0 / 3.0),
            flip: true,
            interpolation: Interpolation::Bicubic,
            normalize: Normalize::IMAGENET,
        }
    }

    pub(crate) fn crop(&self) -> RandomResizedCrop {
        RandomResizedCrop {
            size: self.size,
            scale: self.scale,
            ratio: self.ratio,
            interpolation: self.interpolation,
        }
    }
}

impl Transform for PretrainTransform {
    fn size(&self) -> (usize, usize) {
        (self.size, self.size)
    }

    fn draw(&self, image: &Image, rng: &mut ChaCha8Rng) -> Result<Drawn, Error> {
        Ok(Drawn {
            image: self.crop().apply(image, rng)?,
            flip: self.flip && uniform(rng) < 0.5,
            erased: None,
        })
    }

    fn normalize(&self) -> &Normalize {
        &self.normalize
    }

    fn check(&self) -> Result<(), Error> {
        self.crop().check()?;
        self.normalize.check()
    }
}
