//! The random part that an image is trained on.

use rand_chacha::ChaCha8Rng;

use super::check_size;
use crate::rng::{below, uniform_f64};
use crate::{resize, CropBox, Error, Image, Interpolation};

/// A part of random size, shape and place, resized to a square: torchvision's transform of this name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomResizedCrop {
    /// Side of the result in pixels.
    pub size: usize,
    /// Smallest and largest share of the image's area.
    pub scale: (f64, f64),
    /// Smallest and largest width over height.
    pub ratio: (f64, f64),
    /// How to resize.
    pub interpolation: Interpolation,
}

impl RandomResizedCrop {
    /// Draws the part of a `width` x `height` image to take.
    ///
    /// Ten times: area uniform in `scale`, logarithm of the shape uniform in `ratio`, and if that fits, the place is
    /// uniform. If none fits, the largest central part whose shape is within `ratio`.
    pub fn crop_box(&self, width: usize, height: usize, rng: &mut ChaCha8Rng) -> CropBox {
        let between =
            |rng: &mut ChaCha8Rng, (low, high): (f64, f64)| low + (high - low) * uniform_f64(rng);
        let log_ratio = (libm::log(self.ratio.0), libm::log(self.ratio.1));
        for _ in 0..10 {
            let area = width as f64 * height as f64 * between(rng, self.scale);
            let ratio = libm::exp(between(rng, log_ratio));
            // Python rounds halves to even. A float too large or not a number becomes a size that does not fit.
            let w = (area * ratio).sqrt().round_ties_even() as usize;
            let h = (area / ratio).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&w) && (1..=height).contains(&h) {
                let top = below(rng, height - h + 1);
                let left = below(rng, width - w + 1);
                return CropBox {
                    top,
                    left,
                    height: h,
                    width: w,
                };
            }
        }
        let shape = width as f64 / height as f64;
        let (mut w, mut h) = (width, height);
        if shape < self.ratio.0 {
            h = ((width as f64 / self.ratio.0).round_ties_even() as usize).clamp(1, height.max(1));
        } else if shape > self.ratio.1 {
            w = ((height as f64 * self.ratio.1).round_ties_even() as usize).clamp(1, width.max(1));
        }
        CropBox {
            top: (height - h.min(height)) / 2,
            left: (width - w.min(width)) / 2,
            height: h,
            width: w,
        }
    }

    /// An error if a setting makes no sense.
    pub(crate) fn check(&self) -> Result<(), Error> {
        check_size(self.size)?;
        let range = |(low, high): (f64, f64)| low > 0.0 && low <= high && high.is_finite();
        let wrong = if !range(self.scale) || self.scale.1 > 1.0 {
            format!(
                "crop scale {:?}; expected 0 < smallest <= largest <= 1",
                self.scale
            )
        } else if !range(self.ratio) {
            format!(
                "crop ratio {:?}; expected 0 < smallest <= largest",
                self.ratio
            )
        } else {
            return Ok(());
        };
        Err(Error::InvalidArgument(wrong))
    }

    /// Draws a part of `image` and resizes it.
    pub fn apply(&self, image: &Image, rng: &mut ChaCha8Rng) -> Result<Image, Error> {
        let crop = self.crop_box(image.width, image.height, rng);
        resize(image, crop, (self.size, self.size), self.interpolation)
    }
}
