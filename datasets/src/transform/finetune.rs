//! What a network sees when it learns to classify.

use rand_chacha::ChaCha8Rng;

use super::{
    ColorJitter, Drawn, EraseFill, RandAugment, RandomErasing, RandomResizedCrop, Transform,
};
use crate::rng::uniform;
use crate::{Error, Image, Interpolation, Normalize};

/// Random resized crop, horizontal flip, RandAugment, colour jitter, normalisation, random erasing: timm's order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FinetuneTransform {
    /// The part of the image that is taken, and its size.
    pub crop: RandomResizedCrop,
    /// Whether half of the images are mirrored.
    pub flip: bool,
    /// Random operations, if any.
    pub rand_augment: Option<RandAugment>,
    /// Colour jitter, if any; timm uses it instead of RandAugment.
    pub color_jitter: Option<ColorJitter>,
    /// Random erasing, if any.
    pub erasing: Option<RandomErasing>,
    /// Normalisation.
    pub normalize: Normalize,
}

impl FinetuneTransform {
    /// The settings of MAE's and LocalMIM's fine-tuning on ImageNet, at `size` pixels: crops of at least 8 % of the
    /// area, `rand-m9-mstd0.5-inc1`, erasing with probability 0.25 (pixel).
    pub fn imagenet(size: usize) -> Self {
        Self {
            crop: RandomResizedCrop {
                size,
                scale: (0.08, 1.0),
                ratio: (3.0 / 4.0, 4.0 / 3.0),
                interpolation: Interpolation::Bicubic,
            },
            flip: true,
            rand_augment: Some(RandAugment {
                magnitude: 9.0,
                magnitude_std: 0.5,
                increasing: true,
                ..RandAugment::default()
            }),
            color_jitter: None,
            erasing: Some(RandomErasing::new(0.25, EraseFill::Pixel)),
            normalize: Normalize::IMAGENET,
        }
    }
}

impl Transform for FinetuneTransform {
    fn size(&self) -> (usize, usize) {
        (self.crop.size, self.crop.size)
    }

    fn draw(&self, image: &Image, rng: &mut ChaCha8Rng) -> Result<Drawn, Error> {
        let mut image = self.crop.apply(image, rng)?;
        // Before the operations, which know left from right.
        if self.flip && uniform(rng) < 0.5 {
            image.mirror();
        }
        if let Some(augment) = &self.rand_augment {
            image = augment.apply(image, rng);
        }
        if let Some(jitter) = &self.color_jitter {
            image = jitter.apply(image, rng);
        }
        let erased = self
            .erasing
            .and_then(|erasing| erasing.draw(image.height, image.width, rng));
        Ok(Drawn {
            image,
            flip: false,
            erased,
        })
    }

    fn normalize(&self) -> &Normalize {
        &self.normalize
    }

    fn check(&self) -> Result<(), Error> {
        self.crop.check()?;
        self.rand_augment.map_or(Ok(()), |a| a.check())?;
        self.color_jitter.map_or(Ok(()), |j| j.check())?;
        self.erasing.map_or(Ok(()), |e| e.check())?;
        self.normalize.check()
    }
}
