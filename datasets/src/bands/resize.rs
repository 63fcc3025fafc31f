//! Resizing of floating-point channels: the filters of [`resize`](crate::resize), without rounding in between, as Pillow does
//! it for its mode F.

use crate::resize::{part_of, Taps};
use crate::{Bands, CropBox, Error, Interpolation};

/// Resizes the part `crop` of `image` to `(width, height)`; pixels outside the part have no influence.
pub(crate) fn resize_bands(
    image: &Bands,
    crop: CropBox,
    (width, height): (usize, usize),
    filter: Interpolation,
) -> Result<Bands, Error> {
    image.check()?;
    crop.check_within((image.width, image.height))?;
    let taps = |len: usize, to| Taps::new((0.0, len as f64), len, to, filter);
    let (x, y) = (taps(crop.width, width), taps(crop.height, height));
    Ok(pass(image, crop, (&x, width), (&y, height)))
}

/// The part `window` of what `image` resized to `(width, height)` would be.
pub(crate) fn resize_bands_window(
    image: &Bands,
    (width, height): (usize, usize),
    window: CropBox,
    filter: Interpolation,
) -> Result<Bands, Error> {
    image.check()?;
    let (left, right, x) = part_of(image.width, width, (window.left, window.width), filter);
    let (top, bottom, y) = part_of(image.height, height, (window.top, window.height), filter);
    let crop = CropBox {
        top,
        left,
        height: bottom - top,
        width: right - left,
    };
    Ok(pass(image, crop, (&x, window.width), (&y, window.height)))
}

/// Along the rows of the part, then down its columns.
fn pass(image: &Bands, crop: CropBox, x: (&Taps, usize), y: (&Taps, usize)) -> Bands {
    let channels = image.channels;
    let stride = x.1 * channels;
    let mut rows = vec![0f32; crop.height * stride];
    for (row, out) in rows.chunks_exact_mut(stride).enumerate() {
        let first = (crop.top + row) * image.width + crop.left;
        let from = &image.values[first * channels..][..crop.width * channels];
        for (i, out) in out.chunks_exact_mut(channels).enumerate() {
            let (start, weights) = x.0.of(i);
            let pixels = from[start * channels..].chunks_exact(channels);
            for (pixel, weight) in pixels.zip(weights) {
                for (out, value) in out.iter_mut().zip(pixel) {
                    *out += weight * value;
                }
            }
        }
    }
    let mut values = vec![0f32; y.1 * stride];
    for (i, out) in values.chunks_exact_mut(stride).enumerate() {
        let (start, weights) = y.0.of(i);
        let rows = rows[start * stride..].chunks_exact(stride);
        for (row, weight) in rows.zip(weights) {
            for (out, value) in out.iter_mut().zip(row) {
                *out += weight * value;
            }
        }
    }
    Bands {
        width: x.1,
        height: y.1,
        channels,
        values,
    }
}
