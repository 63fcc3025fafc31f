//! What a network sees of images of any number of channels.

use rand_chacha::ChaCha8Rng;

use super::{EvalTransform, PretrainTransform, RandomResizedCrop, Transform};
use crate::bands::{resize_bands, resize_bands_window};
use crate::rng::uniform;
use crate::{Bands, Error};

/// Crop, flip and normalisation of images of C channels: `(value - mean) / std`, of [`Bands::values`], channel by channel.
#[derive(Clone, Debug, PartialEq)]
pub struct BandsTransform {
    part: Part,
    mean: Vec<f32>,
    std: Vec<f32>,
}

/// Which part of an image is taken, and how large it becomes.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    /// One at random, mirrored or not.
    Random { crop: RandomResizedCrop, flip: bool },
    /// The middle.
    Middle(EvalTransform),
}

impl BandsTransform {
    /// The crops and flips of `like`, drawn by the same random numbers, and this mean and deviation of each channel.
    pub fn pretrain(like: &PretrainTransform, mean: Vec<f32>, std: Vec<f32>) -> Self {
        Self::random(like.crop(), like.flip, mean, std)
    }

    /// A random part, mirrored half of the times with `flip`.
    pub fn random(crop: RandomResizedCrop, flip: bool, mean: Vec<f32>, std: Vec<f32>) -> Self {
        let part = Part::Random { crop, flip };
        Self { part, mean, std }
    }

    /// The part that `like` takes, no chance involved.
    pub fn eval(like: &EvalTransform, mean: Vec<f32>, std: Vec<f32>) -> Self {
        let part = Part::Middle(*like);
        Self { part, mean, std }
    }

    /// How many channels images must have.
    pub fn channels(&self) -> usize {
        self.mean.len()
    }

    /// Height and width of the result in pixels.
    pub fn size(&self) -> (usize, usize) {
        match &self.part {
            Part::Random { crop, .. } => (crop.size, crop.size),
            Part::Middle(eval) => eval.size,
        }
    }

    /// `[C, height, width]`, one plane for each channel; random numbers come from `rng` alone.
    ///
    /// # Errors
    /// An image of another number of channels.
    pub fn draw(&self, image: &Bands, rng: &mut ChaCha8Rng) -> Result<Vec<f32>, Error> {
        if image.channels != self.channels() {
            return Err(Error::InvalidArgument(format!(
                "an image of {} channels; expected {}",
                image.channels,
                self.channels()
            )));
        }
        let (drawn, flip) = match &self.part {
            Part::Random { crop, flip } => {
                let part = crop.crop_box(image.width, image.height, rng);
                let to = (crop.size, crop.size);
                let drawn = resize_bands(image, part, to, crop.interpolation)?;
                (drawn, *flip && uniform(rng) < 0.5)
            }
            Part::Middle(eval) => {
                let (to, window) = eval.window(image.height, image.width);
                let drawn = resize_bands_window(image, to, window, eval.interpolation)?;
                (drawn, false)
            }
        };
        let mut out = Vec::with_capacity(drawn.values.len());
        for (c, (mean, std)) in self.mean.iter().zip(&self.std).enumerate() {
            for row in drawn.values.chunks_exact(drawn.width * drawn.channels) {
                let values = row.iter().skip(c).step_by(drawn.channels);
                let start = out.len();
                out.extend(values.map(|value| (value - mean) / std));
                if flip {
                    out[start..].reverse();
                }
            }
        }
        Ok(out)
    }

    /// An error if a setting makes no sense.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match &self.part {
            Part::Random { crop, .. } => crop.check()?,
            Part::Middle(eval) => eval.check()?,
        }
        let sensible = !self.mean.is_empty()
            && self.mean.len() == self.std.len()
            && self.mean.iter().all(|m| m.is_finite())
            && self.std.iter().all(|s| s.is_normal());
        match sensible {
            true => Ok(()),
            false => Err(Error::InvalidArgument(format!(
                "mean {:?} and std {:?}; expected as many finite numbers, one for each channel, and no zero std",
                self.mean, self.std
            ))),
        }
    }
}

/// How a loader makes its images: of RGB by a [`Transform`], of any channels by a [`BandsTransform`].
pub enum Recipe {
    /// Three channels of 8 bits.
    Rgb(Box<dyn Transform>),
    /// Any number of channels.
    Bands(BandsTransform),
}

impl<T: Transform + 'static> From<T> for Recipe {
    fn from(transform: T) -> Self {
        Self::Rgb(Box::new(transform))
    }
}

impl From<BandsTransform> for Recipe {
    fn from(transform: BandsTransform) -> Self {
        Self::Bands(transform)
    }
}

impl Recipe {
    /// Channels of the result.
    pub fn channels(&self) -> usize {
        match self {
            Self::Rgb(_) => 3,
            Self::Bands(bands) => bands.channels(),
        }
    }

    /// Height and width of the result in pixels.
    pub fn size(&self) -> (usize, usize) {
        match self {
            Self::Rgb(transform) => transform.size(),
            Self::Bands(bands) => bands.size(),
        }
    }

    /// An error if a setting makes no sense.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the setting.
    pub fn check(&self) -> Result<(), Error> {
        match self {
            Self::Rgb(transform) => transform.check(),
            Self::Bands(bands) => bands.check(),
        }
    }
}
