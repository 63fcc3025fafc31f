//! SVG to PNG.
use std::sync::Arc;

use anyhow::{anyhow, Context, Result};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{fontdb::Database, Options, Tree};

use super::font;

/// Pixels of the PNG for one of the SVG, so that it is sharp on paper and on dense screens.
pub const SCALE: f32 = 2.0;
/// Longest side of a PNG in pixels; larger pictures are drawn at a smaller scale.
const MOST: f32 = 16_384.0;

/// The picture's PNG.
pub fn png(svg: &str) -> Result<Vec<u8>> {
    let mut fonts = Database::new();
    fonts.load_font_data(font::bytes().to_vec());
    fonts.set_sans_serif_family("DejaVu Sans");
    let options = Options {
        fontdb: Arc::new(fonts),
        ..Options::default()
    };
    let tree = Tree::from_str(svg, &options)?;
    let (width, height) = (tree.size().width(), tree.size().height());
    let scale = SCALE.min(MOST / width.max(height));
    let side = |length: f32| (length * scale).round() as u32;
    let mut pixels = Pixmap::new(side(width), side(height))
        .ok_or_else(|| anyhow!("{width} x {height} is no size of a picture"))?;
    let scale = Transform::from_scale(scale, scale);
    resvg::render(&tree, scale, &mut pixels.as_mut());
    pixels.encode_png().context("cannot encode the PNG")
}
