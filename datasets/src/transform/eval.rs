//! What a network sees when it is judged: no chance involved.

use rand_chacha::ChaCha8Rng;

use super::{check_size, Drawn, Transform};
use crate::resize::resize_window;
use crate::{CropBox, Error, Image, Interpolation, Normalize};

/// Resize, central crop, normalisation: timm's transform for evaluation.
///
/// The image is resized so that it just covers `floor(size / crop_pct)`, and the middle `size` of that is taken. With a
/// square of that, as torchvision's `Resize` and `CenterCrop`: the shorter side becomes `s = floor(size / crop_pct)`, the
/// longer one `floor(s * longer / shorter)`. With another, as timm's `ResizeKeepRatio`: each side is rounded to the
/// nearest number, ties to even. With `squash` each side becomes `floor(size / crop_pct)`, as timm's `crop_mode` of that
/// name. The crop begins at half of what is left over, ties to even; with `floor_margin` rounded down, as Hugging Face's
/// processors do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvalTransform {
    /// Height and width of the result in pixels.
    pub size: (usize, usize),
    /// The parts of the resized image's height and width that are kept, in (0, 1].
    pub crop_pct: (f64, f64),
    /// Whether resizing may change the proportions, so that all of the image is seen.
    pub squash: bool,
    /// Whether half a pixel of margin is rounded down; else to even.
    pub floor_margin: bool,
    /// How to resize.
    pub interpolation: Interpolation,
    /// The last step.
    pub normalize: Normalize,
}

impl EvalTransform {
    /// Square images of `size` pixels, `crop_pct` 0.875 (256 -> 224), bicubic, ImageNet's mean and deviation.
    pub fn imagenet(size: usize) -> Self {
        Self {
            size: (size, size),
            crop_pct: (0.875, 0.875),
            squash: false,
            floor_margin: false,
            interpolation: Interpolation::Bicubic,
            normalize: Normalize::IMAGENET,
        }
    }

    /// Writes the transformed image to `out`: `[3, height, width]`, one plane per channel.
    pub fn apply(&self, image: &Image, out: &mut [f32]) -> Result<(), Error> {
        self.normalize.apply(&self.crop(image)?, false, out)
    }

    /// The resized and cropped image.
    pub fn crop(&self, image: &Image) -> Result<Image, Error> {
        self.check()?;
        image.check()?;
        let (to, window) = self.window(image.height, image.width);
        resize_window(image, to, window, self.interpolation)
    }

    /// What an image of this height and width is resized to, as width and height, and the part of that which is taken.
    pub(crate) fn window(&self, height: usize, width: usize) -> ((usize, usize), CropBox) {
        let ((resized_height, resized_width), (height, width)) =
            (self.resized(height, width), self.size);
        let middle = |all: usize, part: usize| {
            let margin = all.saturating_sub(part);
            match self.floor_margin {
                true => margin / 2,
                false => (margin as f64 / 2.0).round_ties_even() as usize,
            }
        };
        let window = CropBox {
            top: middle(resized_height, height),
            left: middle(resized_width, width),
            height,
            width,
        };
        ((resized_width, resized_height), window)
    }

    /// Height and width after resizing, before the crop.
    fn resized(&self, height: usize, width: usize) -> (usize, usize) {
        let scaled = |n: usize, part: f64| (n as f64 / part) as usize;
        let to_height = scaled(self.size.0, self.crop_pct.0);
        let to_width = scaled(self.size.1, self.crop_pct.1);
        if self.squash {
            return (to_height, to_width);
        }
        if to_height == to_width {
            let long = |long: usize, short: usize| {
                (to_height as u128 * long as u128 / short as u128) as usize
            };
            return if height < width {
                (to_height, long(width, height))
            } else {
                (long(height, width), to_width)
            };
        }
        let ratio = (height as f64 / to_height as f64).min(width as f64 / to_width as f64);
        let side = |n: usize| (n as f64 / ratio).round_ties_even() as usize;
        (side(height), side(width))
    }
}

impl Transform for EvalTransform {
    fn size(&self) -> (usize, usize) {
        self.size
    }

    fn draw(&self, image: &Image, _: &mut ChaCha8Rng) -> Result<Drawn, Error> {
        Ok(Drawn {
            image: self.crop(image)?,
            flip: false,
            erased: None,
        })
    }

    fn normalize(&self) -> &Normalize {
        &self.normalize
    }

    fn check(&self) -> Result<(), Error> {
        check_size(self.size.0)?;
        check_size(self.size.1)?;
        for part in [self.crop_pct.0, self.crop_pct.1] {
            if !(part > 0.0 && part <= 1.0) {
                return Err(Error::InvalidArgument(format!(
                    "crop_pct {part}; expected more than 0 and at most 1"
                )));
            }
        }
        self.normalize.check()
    }
}
