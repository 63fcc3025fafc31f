//! Every picture of the program: drawn once as SVG, with one font and one set of colours, written as SVG or as PNG.
pub mod axis;
pub mod color;
pub mod font;
pub mod frame;
pub mod pixels;
mod raster;
pub mod svg;

use std::path::Path;

use anyhow::{Context, Result};

pub use pixels::Pixels;
pub use svg::{Stroke, Svg, Text};

use crate::usage::usage;

/// Sizes of letters: of titles, of everything else, of numbers beside marks.
pub const TITLE: f64 = 15.0;
pub const BODY: f64 = 12.0;
pub const SMALL: f64 = 10.5;

/// A side near to or above `side` at which each of `pixels` pixels is as wide as the others in a PNG.
pub fn whole_pixels(side: f64, pixels: usize) -> f64 {
    let scale = f64::from(raster::SCALE);
    let each = (scale * side / pixels as f64).ceil().max(1.0);
    each * pixels as f64 / scale
}

/// Refuses a file name that says neither PNG nor SVG, and a folder that is not there.
pub fn check(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        let (path, folder) = (path.display(), folder.display());
        return Err(usage(format!(
            "cannot write {path}: there is no folder {folder}"
        )));
    }
    match path.extension().and_then(|e| e.to_str()) {
        Some("png" | "svg") => Ok(()),
        _ => Err(usage(format!(
            "{}: the name must end in .png or .svg",
            path.display()
        ))),
    }
}

/// A picture as a PNG.
pub fn png(picture: &Svg) -> Result<Vec<u8>> {
    raster::png(&picture.document())
}

/// Writes a picture, as its name ends; as a whole or not at all.
pub fn save(path: &Path, picture: &Svg) -> Result<()> {
    let bytes = match path.extension().is_some_and(|e| e == "svg") {
        true => picture.document().into_bytes(),
        false => png(picture).with_context(|| format!("cannot draw {}", path.display()))?,
    };
    Ok(vit::write_atomic(path, &bytes)?)
}
