//! Images of any number of channels: grey, depth, infrared, multispectral.

mod decode;
mod npy;
mod resize;
mod stats;

pub use decode::{decode_bands, decode_bands_within};
pub(crate) use npy::{rgb as npy_to_rgb, MAGIC as NPY};
pub(crate) use resize::{resize_bands, resize_bands_window};
pub use stats::ChannelStats;

use crate::{DecodeError, Error, Image};

/// What the parts of grey are in red, green and blue (ITU-R BT.601), as Pillow's `convert("L")`.
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// A decoded image of C channels.
#[derive(Clone, Debug, PartialEq)]
pub struct Bands {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Channels, C.
    pub channels: usize,
    /// `height * width * C` values: all channels of the first pixel of the first row, and so on. Of whole numbers without a
    /// sign they are parts of the largest one (255 or 65535 is 1), all others are as they were stored.
    pub values: Vec<f32>,
}

impl Bands {
    /// An RGB image as one of one channel, grey, or of three.
    ///
    /// # Errors
    /// [`DecodeError::Channels`] for another number.
    pub fn of_rgb(image: &Image, channels: usize) -> Result<Self, DecodeError> {
        let pick = Pick::of_colours(3, channels)?;
        let mut values = Vec::with_capacity(image.width * image.height * channels);
        for pixel in image.rgb.chunks_exact(3) {
            pick.push(
                &[pixel[0], pixel[1], pixel[2]].map(part_of_255),
                &mut values,
            );
        }
        Ok(Self {
            width: image.width,
            height: image.height,
            channels,
            values,
        })
    }

    /// An error if the image has no pixels or its buffer does not fit its size.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let pixels = self.width.checked_mul(self.height);
        let values = pixels.and_then(|n| n.checked_mul(self.channels));
        if self.values.is_empty() || values != Some(self.values.len()) {
            return Err(Error::InvalidArgument(format!(
                "{} values are no image of {} x {} pixels and {} channels",
                self.values.len(),
                self.width,
                self.height,
                self.channels
            )));
        }
        Ok(())
    }
}

fn part_of_255(value: u8) -> f32 {
    f32::from(value) / 255.0
}

/// How the channels of a file become those that are wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pick {
    /// All of them, or the first ones: alpha is dropped.
    First(usize),
    /// Grey of red, green and blue.
    Luma,
}

impl Pick {
    /// From so many channels, which are grey or RGB and perhaps alpha, to so many.
    fn of_colours(found: usize, wanted: usize) -> Result<Self, DecodeError> {
        match (found, wanted) {
            (2, 1) | (4, 3) => Ok(Self::First(wanted)),
            (3 | 4, 1) => Ok(Self::Luma),
            _ => Self::all(found, wanted),
        }
    }

    /// From channels of which nothing is known to as many.
    fn all(found: usize, wanted: usize) -> Result<Self, DecodeError> {
        match found == wanted {
            true => Ok(Self::First(found)),
            false => Err(DecodeError::Channels { found, wanted }),
        }
    }

    /// Appends what is wanted of a pixel.
    fn push(self, pixel: &[f32], to: &mut Vec<f32>) {
        match self {
            Self::First(count) => to.extend_from_slice(&pixel[..count]),
            Self::Luma => to.push(pixel.iter().zip(LUMA).map(|(x, part)| x * part).sum()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grey_is_made_of_colours_and_nothing_else_is_made_up() {
        let image = Image {
            width: 2,
            height: 1,
            rgb: vec![255, 255, 255, 255, 0, 0],
        };
        let grey = Bands::of_rgb(&image, 1).unwrap();
        assert!((grey.values[0] - 1.0).abs() < 1e-6 && grey.values[1] == 0.299);
        let rgb = Bands::of_rgb(&image, 3).unwrap();
        assert_eq!(rgb.values, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
        for wanted in [0, 2, 4, 9] {
            let error = Bands::of_rgb(&image, wanted).unwrap_err().to_string();
            assert!(
                error.contains(&format!("3 channels, {wanted} are wanted")),
                "{error}"
            );
        }
        assert!(rgb.check().is_ok());
        assert!(Bands { width: 3, ..rgb }.check().is_err());
    }
}
