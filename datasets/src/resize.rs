//! Resizing as Pillow does it: antialiased, to 8 bits after each direction, along the rows first.

mod pass;

use crate::{Error, Image};
pub(crate) use pass::Taps;

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
        self.check_within((image.width, image.height))
    }

    /// The same of an image of this width and height.
    pub(crate) fn check_within(&self, (w, h): (usize, usize)) -> Result<(), Error> {
        let fits = |start: usize, len: usize, all: usize| {
            len > 0 && start.checked_add(len).is_some_and(|end| end <= all)
        };
        if fits(self.top, self.height, h) && fits(self.left, self.width, w) {
            return Ok(());
        }
        Err(Error::InvalidArgument(format!(
            "{self:?} does not lie within the image of {w} x {h} pixels"
        )))
    }
}

/// How pixels are weighted when an image is resized. All but the nearest widen with the step when shrinking (antialiasing).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interpolation {
    /// Triangle of width 2.
    Bilinear,
    /// Cubic of width 4 with a = -0.5 (Catmull-Rom).
    #[default]
    Bicubic,
    /// The pixel that holds the centre.
    Nearest,
    /// Mean over width 1.
    Box,
    /// Hamming window of width 2.
    Hamming,
    /// Windowed sinc of width 6.
    Lanczos,
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
    let x = Part::new(image.width, width, window.left, window.width, filter);
    let y = Part::new(image.height, height, window.top, window.height, filter);
    let rows: Vec<&[u8]> = (y.first..y.last)
        .map(|y| &image.rgb[3 * (y * image.width + x.first)..][..3 * (x.last - x.first)])
        .collect();
    let rows = pass::across(&rows, &x.taps(window.width, filter));
    let taps = y.taps(window.height, filter);
    Ok(Image {
        width: window.width,
        height: window.height,
        rgb: pass::down(&rows, 3 * window.width, &taps),
    })
}

/// What `len` of `to` pixels from `start` on depend on, of a side of `from` pixels: the first pixel, the one behind the last,
/// and the weights of those between.
pub(crate) fn part_of(
    from: usize,
    to: usize,
    (start, len): (usize, usize),
    filter: Interpolation,
) -> (usize, usize, Taps) {
    let part = Part::new(from, to, start, len, filter);
    (part.first, part.last, part.taps(len, filter))
}

/// What a window depends on, along one side of the original.
struct Part {
    /// Where the window lies, and how long it is, in pixels of the original.
    start: f64,
    len: f64,
    /// The pixels that have an influence on it, and a few more.
    first: usize,
    last: usize,
}

impl Part {
    /// For `len` of `to` pixels from `start` on, of a side of `from` pixels.
    fn new(from: usize, to: usize, start: usize, len: usize, filter: Interpolation) -> Self {
        let step = from as f64 / to as f64;
        let (start, len) = (start as f64 * step, len as f64 * step);
        // One more on either side for the roundings.
        let margin = filter.support() * step.max(1.0) + 1.0;
        let first = ((start - margin).max(0.0) as usize).min(from - 1);
        let last = ((start + len + margin).ceil() as usize).clamp(first + 1, from);
        Self {
            start,
            len,
            first,
            last,
        }
    }

    fn taps(&self, to: usize, filter: Interpolation) -> Taps {
        let place = (self.start - self.first as f64, self.len);
        Taps::new(place, self.last - self.first, to, filter)
    }
}
