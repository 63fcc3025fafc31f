//! Resizing as Pillow does it: antialiased, to 8 bits after each direction, along the rows first.

use std::cell::RefCell;

use fast_image_resize::images::{CroppedImage, Image as Plane, ImageRef};
use fast_image_resize::{FilterType, IntoImageView, PixelType, ResizeAlg, ResizeOptions, Resizer};

use crate::{Error, Image};

thread_local! {
    /// Keeps its tables and buffers from image to image.
    static RESIZER: RefCell<Resizer> = RefCell::new(Resizer::new());
}

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

impl Interpolation {
    /// Half of the filter's width at scale 1.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn options(self) -> ResizeOptions {
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(match self {
            Self::Bilinear => FilterType::Bilinear,
            Self::Bicubic => FilterType::CatmullRom,
        }))
    }
}

/// Resizes the part `crop` of `image` to `(width, height)`.
///
/// Pixels outside the part have no influence. Values are within 2 of Pillow's (before 13), nearly all are equal.
pub fn resize(
    image: &Image,
    crop: CropBox,
    (width, height): (usize, usize),
    filter: Interpolation,
) -> Result<Image, Error> {
    image.check()?;
    crop.check(image)?;
    let whole = view(image)?;
    let (top, left) = (number(crop.top)?, number(crop.left)?);
    let part = CroppedImage::new(&whole, left, top, number(crop.width)?, number(crop.height)?)
        .map_err(other)?;
    // Each pass rounds to 8 bits, so their order shows. Pillow goes along the rows first; fast_image_resize, given
    // both at once, down the columns.
    let options = filter.options();
    let rows = pass(&part, (width, crop.height), &options)?;
    let both = pass(&rows, (width, height), &options)?;
    Ok(Image {
        width,
        height,
        rgb: both.into_vec(),
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
    let (x, y) = (
        Axis::new(image.width, width, window.left, window.width),
        Axis::new(image.height, height, window.top, window.height),
    );
    let (first, last) = y.rows(image.height, filter);
    let whole = view(image)?;
    let part = CroppedImage::new(
        &whole,
        0,
        number(first)?,
        whole.width(),
        number(last - first)?,
    )
    .map_err(other)?;
    let options = filter.options();
    let across = options.crop(x.start, 0.0, x.len, (last - first) as f64);
    let rows = pass(&part, (window.width, last - first), &across)?;
    let start = y.start - first as f64;
    let len = y.len.min((last - first) as f64 - start);
    let down = options.crop(0.0, start, window.width as f64, len);
    let both = pass(&rows, (window.width, window.height), &down)?;
    Ok(Image {
        width: window.width,
        height: window.height,
        rgb: both.into_vec(),
    })
}

/// Where a window lies along one side of the original, in pixels.
struct Axis {
    start: f64,
    len: f64,
    step: f64,
}

impl Axis {
    fn new(from: usize, to: usize, start: usize, len: usize) -> Self {
        let step = from as f64 / to as f64;
        let start = start as f64 * step;
        Self {
            start,
            len: (len as f64 * step).min(from as f64 - start),
            step,
        }
    }

    /// The original's rows that the window depends on.
    fn rows(&self, all: usize, filter: Interpolation) -> (usize, usize) {
        // One more on either side for the roundings.
        let margin = filter.support() * self.step.max(1.0) + 1.0;
        let first = (self.start - margin).max(0.0) as usize;
        let last = (self.start + self.len + margin).ceil() as usize;
        (first.min(all - 1), last.clamp(1, all))
    }
}

fn view(image: &Image) -> Result<ImageRef<'_>, Error> {
    let (width, height) = (number(image.width)?, number(image.height)?);
    ImageRef::new(width, height, &image.rgb, PixelType::U8x3).map_err(other)
}

fn number(n: usize) -> Result<u32, Error> {
    u32::try_from(n).map_err(|_| Error::InvalidArgument(format!("{n} pixels are too many")))
}

fn pass(
    from: &impl IntoImageView,
    (width, height): (usize, usize),
    options: &ResizeOptions,
) -> Result<Plane<'static>, Error> {
    if width == 0 || height == 0 {
        return Err(Error::InvalidArgument(format!(
            "cannot resize to {width} x {height} pixels"
        )));
    }
    let mut to = Plane::new(number(width)?, number(height)?, PixelType::U8x3);
    RESIZER
        .with_borrow_mut(|resizer| resizer.resize(from, &mut to, options))
        .map_err(other)?;
    Ok(to)
}

fn other(error: impl std::fmt::Display) -> Error {
    Error::InvalidArgument(format!("cannot resize: {error}"))
}
