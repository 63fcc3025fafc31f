//! From a decoded image to the numbers a network sees.

use fast_image_resize::images::{CroppedImage, Image as Plane, ImageRef};
use fast_image_resize::{FilterType, IntoImageView, PixelType, ResizeAlg, ResizeOptions, Resizer};
use rand_chacha::ChaCha8Rng;

use crate::rng::{below, uniform, uniform_f64};
use crate::{Error, Image};

/// Mean of red, green and blue over ImageNet, in units of full brightness.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];

/// Standard deviation of red, green and blue over ImageNet.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropBox {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// Resizes the part `crop` of `image` to `(width, height)`: bicubic (a = -0.5) and antialiased, as Pillow does.
///
/// Pixels outside the part have no influence. Values are within 2 of Pillow's (before 13), nearly all are equal.
pub fn resize(
    image: &Image,
    crop: CropBox,
    (width, height): (usize, usize),
) -> Result<Image, Error> {
    image.check()?;
    let fits = |start: usize, len: usize, all: usize| {
        len > 0 && start.checked_add(len).is_some_and(|end| end <= all)
    };
    if !fits(crop.top, crop.height, image.height) || !fits(crop.left, crop.width, image.width) {
        let (w, h) = (image.width, image.height);
        return Err(Error::InvalidArgument(format!(
            "{crop:?} does not lie within the image of {w} x {h} pixels"
        )));
    }
    if width == 0 || height == 0 {
        return Err(Error::InvalidArgument(format!(
            "cannot resize to {width} x {height} pixels"
        )));
    }
    let number = |n: usize| {
        u32::try_from(n).map_err(|_| Error::InvalidArgument(format!("{n} pixels are too many")))
    };
    let whole = ImageRef::new(
        number(image.width)?,
        number(image.height)?,
        &image.rgb,
        PixelType::U8x3,
    )
    .map_err(other)?;
    let (top, left) = (number(crop.top)?, number(crop.left)?);
    let part = CroppedImage::new(&whole, left, top, number(crop.width)?, number(crop.height)?)
        .map_err(other)?;
    // Each pass rounds to 8 bits, so their order shows. Pillow goes along the rows first; fast_image_resize, given
    // both at once, down the columns.
    let rows = pass(&part, number(width)?, part.height())?;
    let both = pass(&rows, number(width)?, number(height)?)?;
    Ok(Image {
        width,
        height,
        rgb: both.into_vec(),
    })
}

fn pass(from: &impl IntoImageView, width: u32, height: u32) -> Result<Plane<'static>, Error> {
    let mut to = Plane::new(width, height, PixelType::U8x3);
    let bicubic = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    Resizer::new()
        .resize(from, &mut to, &bicubic)
        .map_err(other)?;
    Ok(to)
}

fn other(error: impl std::fmt::Display) -> Error {
    Error::InvalidArgument(format!("cannot resize: {error}"))
}

/// A part of random size, shape and place, resized to a square: torchvision's transform of this name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomResizedCrop {
    /// Side of the result in pixels.
    pub size: usize,
    /// Smallest and largest share of the image's area.
    pub scale: (f64, f64),
    /// Smallest and largest width over height.
    pub ratio: (f64, f64),
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

    /// Draws a part of `image` and resizes it.
    pub fn apply(&self, image: &Image, rng: &mut ChaCha8Rng) -> Result<Image, Error> {
        let crop = self.crop_box(image.width, image.height, rng);
        resize(image, crop, (self.size, self.size))
    }
}

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
    /// Subtracted from each channel.
    pub mean: [f32; 3],
    /// Each channel is then divided by it.
    pub std: [f32; 3],
}

impl PretrainTransform {
    /// The settings of MAE and LocalMIM on ImageNet, at `size` pixels.
    pub fn imagenet(size: usize) -> Self {
        Self {
            size,
            scale: (0.2, 1.0),
            ratio: (3.0 / 4.0, 4.0 / 3.0),
            flip: true,
            mean: IMAGENET_MEAN,
            std: IMAGENET_STD,
        }
    }

    /// Writes the transformed image to `out`: `[3, size, size]`, one plane per channel.
    pub fn apply(&self, image: &Image, rng: &mut ChaCha8Rng, out: &mut [f32]) -> Result<(), Error> {
        let (crop, flip) = self.draw(image, rng)?;
        self.normalize(&crop, flip, out)
    }

    /// The random part: a crop of `size` x `size` pixels, and whether it is to be mirrored.
    pub fn draw(&self, image: &Image, rng: &mut ChaCha8Rng) -> Result<(Image, bool), Error> {
        let crop = RandomResizedCrop {
            size: self.size,
            scale: self.scale,
            ratio: self.ratio,
        };
        Ok((crop.apply(image, rng)?, self.flip && uniform(rng) < 0.5))
    }

    /// The fixed part: mirrors, normalises and separates the channels in one pass.
    pub fn normalize(&self, image: &Image, flip: bool, out: &mut [f32]) -> Result<(), Error> {
        image.check()?;
        if out.len() != image.rgb.len() {
            let (got, need) = (out.len(), image.rgb.len());
            return Err(Error::InvalidArgument(format!(
                "the output holds {got} values; {need} are needed"
            )));
        }
        // A byte has 256 values: with a table the result is, bit for bit, that of torchvision's two divisions.
        let table = |c: usize| -> [f32; 256] {
            std::array::from_fn(|v| (v as f32 / 255.0 - self.mean[c]) / self.std[c])
        };
        let width = image.width;
        for (c, plane) in out.chunks_exact_mut(width * image.height).enumerate() {
            let table = table(c);
            for (to, from) in plane
                .chunks_exact_mut(width)
                .zip(image.rgb.chunks_exact(3 * width))
            {
                let pixels = from
                    .chunks_exact(3)
                    .map(|pixel| table[usize::from(pixel[c])]);
                if flip {
                    to.iter_mut()
                        .rev()
                        .zip(pixels)
                        .for_each(|(to, value)| *to = value);
                } else {
                    to.iter_mut()
                        .zip(pixels)
                        .for_each(|(to, value)| *to = value);
                }
            }
        }
        Ok(())
    }

    /// An error if a setting makes no sense.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let range = |(low, high): (f64, f64)| low > 0.0 && low <= high && high.is_finite();
        let wrong = if !(1..=1 << 14).contains(&self.size) {
            format!("image size {}; expected 1 to 16384", self.size)
        } else if !range(self.scale) || self.scale.1 > 1.0 {
            format!(
                "crop scale {:?}; expected 0 < smallest <= largest <= 1",
                self.scale
            )
        } else if !range(self.ratio) {
            format!(
                "crop ratio {:?}; expected 0 < smallest <= largest",
                self.ratio
            )
        } else if self.std.iter().any(|s| !s.is_normal())
            || self.mean.iter().any(|m| !m.is_finite())
        {
            format!(
                "mean {:?} and std {:?}; expected finite numbers and no zero std",
                self.mean, self.std
            )
        } else {
            return Ok(());
        };
        Err(Error::InvalidArgument(wrong))
    }
}
