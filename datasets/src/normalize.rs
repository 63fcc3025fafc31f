//! The last pass: from bytes to the floats a network sees.

use crate::{Error, Image};

/// Mean of red, green and blue over ImageNet, in units of full brightness.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];

/// Standard deviation of red, green and blue over ImageNet.
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// `(v / 255 - mean) / std`, channel by channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalize {
    /// Subtracted from each channel, in units of full brightness.
    pub mean: [f32; 3],
    /// Each channel is then divided by it.
    pub std: [f32; 3],
}

impl Normalize {
    /// The numbers of ImageNet.
    pub const IMAGENET: Self = Self {
        mean: IMAGENET_MEAN,
        std: IMAGENET_STD,
    };

    /// Mirrors, normalises and separates the channels in one pass; `out` is `[3, height, width]`.
    pub fn apply(&self, image: &Image, flip: bool, out: &mut [f32]) -> Result<(), Error> {
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

    /// An error if a number makes no sense.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.std.iter().all(|s| s.is_normal()) && self.mean.iter().all(|m| m.is_finite()) {
            return Ok(());
        }
        Err(Error::InvalidArgument(format!(
            "mean {:?} and std {:?}; expected finite numbers and no zero std",
            self.mean, self.std
        )))
    }
}
