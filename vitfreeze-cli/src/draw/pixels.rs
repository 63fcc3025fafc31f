//! Pictures made of pixels, inside of a drawing.
use base64::prelude::{Engine as _, BASE64_STANDARD};
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder as _};

use super::color::Color;

/// Rows of red, green, blue.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    pub width: usize,
    pub height: usize,
    data: Vec<u8>,
}

impl Pixels {
    /// Each pixel by its column and row.
    pub fn new(width: usize, height: usize, at: impl Fn(usize, usize) -> Color) -> Self {
        let pixel = |i: usize| at(i % width, i / width);
        Self {
            width,
            height,
            data: (0..width * height).flat_map(pixel).collect(),
        }
    }

    pub fn at(&self, x: usize, y: usize) -> Color {
        let i = 3 * (y * self.width + x);
        [self.data[i], self.data[i + 1], self.data[i + 2]]
    }

    /// The same with each pixel changed.
    pub fn map(&self, change: impl Fn(usize, usize, Color) -> Color) -> Self {
        Self::new(self.width, self.height, |x, y| change(x, y, self.at(x, y)))
    }

    /// `data:image/png;base64,...`; empty if it has no pixels.
    pub fn data_url(&self) -> String {
        let mut png = Vec::new();
        let (width, height) = (self.width as u32, self.height as u32);
        let encoder = PngEncoder::new(&mut png);
        // Memory does not fail to be written to; a picture without pixels does.
        match encoder.write_image(&self.data, width, height, ExtendedColorType::Rgb8) {
            Ok(()) => format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png)),
            Err(_) => String::new(),
        }
    }
}
