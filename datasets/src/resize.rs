//! Resizing as Pillow does it: antialiased, to 8 bits after each direction, along the rows first.

mod pass;

use crate::{Error, Image};
use pass::Taps;

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

impl CropBox {
    /// An error unless it lies within `image` and has pixels.
    pub(crate) fn check(&self, image: &Image) -> Result<(), Error> {
        let fits = |start: usize, len: usize, all: usize| {
            len > 0 && start.checked_add(len).is_some_and(|end| end <= all)
        };
        if fits(self.top, self.height, image.height) && fits(self.left, self.width, image.width) {
            return Ok(());
        }
        let (w, h) = (image.width, image.height);
        Err(Error::InvalidArgument(format!(
            "{self:?} does not lie within the image of {w} x {h} pixels"
        )))
    }
}

/// How pixels are weighted when an image is resized. Both widen with the step when shrinking (antialiasing).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interpolation {
    /// Triangle of width 2.
    Bilinear,
    /// Cubic of width 4 with a = -0.5 (Catmull-Rom).
    #[default]
    Bicubic,
}

/// Resizes the part `crop` of `image` to `(width, height)`.
///
/// Pixels outside the part have no influence. Values are within 1 of Pillow's (before 13), nearly all are equal.
pub fn resize(
    image: &Image,
    crop: CropBox,
    (width, height): (usize, usize),
    filter: Interpolation,
) -> Result<Image, Error> {
    image.check()?;
    crop.check(image)?;
    if width == 0 || height == 0 {
        return Err(Error::InvalidArgument(format!(
            "cannot resize to {width} x {height} pixels"
        )));
    }
    let taps = |len: usize, to| Taps::new((0.0, len as f64), len, to, filter);
    let rows: Vec<&[u8]> = (crop.top..crop.top + crop.height)
        .map(|y| &image.rgb[3 * (y * image.width + crop.left)..][..3 * crop.width])
        .collect();
    // Each pass rounds to 8 bits, so their order shows.
    let rows = pass::across(&rows, &taps(crop.width, width));
    Ok(Image {
        width,
        height,
        rgb: pass::down(&rows, 3 * width, &taps(crop.height, height)),
    })
}

/// The part `window` of what `image` resized to `(width, height)` would be, without making the rest: an image of
/// 1 x 100 000 pixels would otherwise become a very long one.
pub(crate) fn resize_window(
    image: &Image,
    (width, height): (usize, usize),
    window: CropBox,
    filter: Interpolation,
) -> Result<Image, Error> {
    image.check()?;
    let place = |from: usize, to: usize, start: usize, len: usize| {
        let step = from as f64 / to as f64;
        (start as f64 * step, len as f64 * step)
    };
    let x = place(image.width, width, window.left, window.width);
    let y = place(image.height, height, window.top, window.height);
    // The original's rows that the window depends on, and one more on either side for the roundings.
    let step = image.height as f64 / height as f64;
    let margin = filter.support() * step.max(1.0) + 1.0;
    let first = ((y.0 - margin).max(0.0) as usize).min(image.height - 1);
    let last = ((y.0 + y.1 + margin).ceil() as usize).clamp(first + 1, image.height);
    let rows: Vec<&[u8]> = (first..last)
        .map(|y| &image.rgb[3 * y * image.width..][..3 * image.width])
        .collect();
    let rows = pass::across(&rows, &Taps::new(x, image.width, window.width, filter));
    let taps = Taps::new(
        (y.0 - first as f64, y.1),
        last - first,
        window.height,
        filter,
    );
    Ok(Image {
        width: window.width,
        height: window.height,
        rgb: pass::down(&rows, 3 * window.width, &taps),
    })
}
