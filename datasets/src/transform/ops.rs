//! The operations of RandAugment on 8-bit images, in Pillow's arithmetic.

use super::affine::{rotation, transform};
use crate::{Image, Interpolation};

/// One of timm's fifteen operations; what its argument means is said at each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Stretches each channel to 0..255; no argument.
    AutoContrast,
    /// Makes each channel's histogram flat; no argument.
    Equalize,
    /// Negative; no argument.
    Invert,
    /// Rotates counterclockwise by so many degrees.
    Rotate,
    /// Keeps so many high bits of each channel; 8 and more keep all.
    Posterize,
    /// Inverts the values from this one on.
    Solarize,
    /// Adds this to the values below 128.
    SolarizeAdd,
    /// Saturation: 0 is grey, 1 the image, more is more.
    Color,
    /// Contrast: 0 is flat grey of the mean brightness, 1 the image.
    Contrast,
    /// Brightness: 0 is black, 1 the image.
    Brightness,
    /// Sharpness: 0 is smoothed, 1 the image.
    Sharpness,
    /// Shifts each row by so many times its height.
    ShearX,
    /// Shifts each column by so many times its place.
    ShearY,
    /// Shifts to the left by this part of the width.
    TranslateX,
    /// Shifts upwards by this part of the height.
    TranslateY,
}

/// How the operations that move pixels fill and interpolate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Colour of what comes in from outside the image.
    pub fill: [u8; 3],
    /// How values between pixels are computed.
    pub interpolation: Interpolation,
}

impl Op {
    /// All of them, in timm's order.
    pub const ALL: [Self; 15] = [
        Self::AutoContrast,
        Self::Equalize,
        Self::Invert,
        Self::Rotate,
        Self::Posterize,
        Self::Solarize,
        Self::SolarizeAdd,
        Self::Color,
        Self::Contrast,
        Self::Brightness,
        Self::Sharpness,
        Self::ShearX,
        Self::ShearY,
        Self::TranslateX,
        Self::TranslateY,
    ];

    /// Applies it to an image that has pixels.
    pub fn apply(self, mut image: Image, argument: f64, geometry: &Geometry) -> Image {
        let (width, height) = (image.width, image.height);
        let matrix = match self {
            Self::Rotate => rotation(width, height, argument),
            Self::ShearX => [1.0, argument, 0.0, 0.0, 1.0, 0.0],
            Self::ShearY => [1.0, 0.0, 0.0, argument, 1.0, 0.0],
            Self::TranslateX => [1.0, 0.0, argument * width as f64, 0.0, 1.0, 0.0],
            Self::TranslateY => [1.0, 0.0, 0.0, 0.0, 1.0, argument * height as f64],
            _ => {
                self.recolor(&mut image, argument);
                return image;
            }
        };
        transform(&image, matrix, geometry.fill, geometry.interpolation)
    }

    /// The operations that move nothing.
    fn recolor(self, image: &mut Image, argument: f64) {
        match self {
            Self::AutoContrast => per_channel(image, stretch),
            Self::Equalize => per_channel(image, equalize),
            Self::Invert => all_channels(image, |v| 255 - v),
            Self::Posterize if argument >= 8.0 => {}
            Self::Posterize => {
                let mask = !(0xff_u16 >> (argument as u16)) as u8;
                all_channels(image, |v| v & mask);
            }
            Self::Solarize => {
                all_channels(image, |v| if f64::from(v) < argument { v } else { 255 - v })
            }
            Self::SolarizeAdd => {
                let add = argument as u8;
                all_channels(image, |v| if v < 128 { v.saturating_add(add) } else { v });
            }
            Self::Color => blend_each(image, argument, |pixel| [luma(pixel); 3]),
            Self::Contrast => {
                let mean = mean_luma(image);
                blend_each(image, argument, |_| [mean; 3]);
            }
            Self::Brightness => blend_each(image, argument, |_| [0; 3]),
            Self::Sharpness => {
                let smooth = smooth(image);
                for (to, from) in image.rgb.iter_mut().zip(smooth) {
                    *to = blend(from, *to, argument as f32);
                }
            }
            _ => {}
        }
    }
}

/// Brightness of a pixel (ITU-R 601-2) in Pillow's fixed point.
fn luma(pixel: &[u8]) -> u8 {
    let [r, g, b] = [0, 1, 2].map(|c| u32::from(pixel[c]));
    ((r * 19_595 + g * 38_470 + b * 7_471 + 0x8000) >> 16) as u8
}

fn mean_luma(image: &Image) -> u8 {
    let sum: u64 = image.rgb.chunks_exact(3).map(|p| u64::from(luma(p))).sum();
    (sum as f64 / (image.rgb.len() / 3) as f64 + 0.5) as u8
}

/// `from + factor (to - from)`, also beyond the two, cut to a byte.
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let (from, to) = (i32::from(from), i32::from(to));
    // A cast cuts off what is beyond 0 and 255, and fractions.
    (from as f32 + factor * (to - from) as f32) as u8
}

fn blend_each(image: &mut Image, factor: f64, from: impl Fn(&[u8]) -> [u8; 3]) {
    for pixel in image.rgb.chunks_exact_mut(3) {
        let base = from(pixel);
        for (to, from) in pixel.iter_mut().zip(base) {
            *to = blend(from, *to, factor as f32);
        }
    }
}

fn all_channels(image: &mut Image, f: impl Fn(u8) -> u8) {
    let table: [u8; 256] = std::array::from_fn(|v| f(v as u8));
    for value in &mut image.rgb {
        *value = table[usize::from(*value)];
    }
}

/// Replaces each channel's values by a table made from its histogram.
fn per_channel(image: &mut Image, table: fn(&[usize; 256]) -> [u8; 256]) {
    let mut histograms = [[0; 256]; 3];
    for pixel in image.rgb.chunks_exact(3) {
        for c in 0..3 {
            histograms[c][usize::from(pixel[c])] += 1;
        }
    }
    let tables = histograms.map(|h| table(&h));
    for pixel in image.rgb.chunks_exact_mut(3) {
        for c in 0..3 {
            pixel[c] = tables[c][usize::from(pixel[c])];
        }
    }
}

fn stretch(histogram: &[usize; 256]) -> [u8; 256] {
    let low = histogram.iter().position(|&n| n > 0).unwrap_or(0);
    let high = histogram.iter().rposition(|&n| n > 0).unwrap_or(0);
    if high <= low {
        return std::array::from_fn(|v| v as u8);
    }
    let scale = 255.0 / (high - low) as f64;
    let offset = -(low as f64) * scale;
    std::array::from_fn(|v| (v as f64 * scale + offset) as u8)
}

fn equalize(histogram: &[usize; 256]) -> [u8; 256] {
    let sum: usize = histogram.iter().sum();
    let last = histogram.iter().rev().find(|&&n| n > 0).unwrap_or(&0);
    let step = (sum - last) / 255;
    if step == 0 {
        return std::array::from_fn(|v| v as u8);
    }
    let mut below = step / 2;
    std::array::from_fn(|v| {
        let value = (below / step).min(255) as u8;
        below += histogram[v];
        value
    })
}

/// Pillow's SMOOTH: a 3 x 3 mean in which the centre counts five times; the border stays.
fn smooth(image: &Image) -> Vec<u8> {
    let (width, height) = (image.width, image.height);
    let mut out = image.rgb.clone();
    if width < 3 || height < 3 {
        return out;
    }
    let stride = 3 * width;
    for y in 1..height - 1 {
        let inner = &mut out[y * stride + 3..(y + 1) * stride - 3];
        for (x, to) in inner.iter_mut().enumerate() {
            let at = y * stride + 3 + x;
            let mut sum = 4 * u32::from(image.rgb[at]);
            for row in [at - stride, at, at + stride] {
                for place in [row - 3, row, row + 3] {
                    sum += u32::from(image.rgb[place]);
                }
            }
            // Rounded to the nearest thirteenth.
            *to = ((2 * sum + 13) / 26) as u8;
        }
    }
    out
}
