//! What a network sees in masked pretraining.

use rand_chacha::ChaCha8Rng;

use crate::rng::uniform;
use crate::{Error, Image, Interpolation, Normalize, RandomResizedCrop};

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

    /// Writes the transformed image to `out`: `[3, size, size]`, one plane per channel.
    pub fn apply(&self, image: &Image, rng: &mut ChaCha8Rng, out: &mut [f32]) -> Result<(), Error> {
        let (crop, flip) = self.draw(image, rng)?;
        self.normalize.apply(&crop, flip, out)
    }

    /// The random part: a crop of `size` x `size` pixels, and whether it is to be mirrored.
    pub fn draw(&self, image: &Image, rng: &mut ChaCha8Rng) -> Result<(Image, bool), Error> {
        let crop = self.crop().apply(image, rng)?;
        Ok((crop, self.flip && uniform(rng) < 0.5))
    }

    fn crop(&self) -> RandomResizedCrop {
        RandomResizedCrop {
            size: self.size,
            scale: self.scale,
            ratio: self.ratio,
            interpolation: self.interpolation,
        }
    }

    /// An error if a setting makes no sense.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.crop().check()?;
        self.normalize.check()
    }
}
