//! Mean and deviation of images: whether what flags and files say can be computed with, and fits the data.
use anyhow::Result;
use vit::Preprocess;

use super::channels::{Channels, RGB};
use crate::usage::usage;

/// As [`Channels::prepared`], and all numbers are such that f32 computes with what they make of images.
pub fn prepared(channels: &Channels, p: Preprocess) -> Result<Preprocess> {
    for (name, numbers) in [("mean", &channels.mean), ("std", &channels.std)] {
        let wide = |x: &&f64| x.is_finite() && !(**x as f32).is_finite();
        if let Some(number) = numbers.iter().flatten().find(wide) {
            return Err(usage(format!(
                "{name}: {number:e} is more than f32 holds (3.4e38)"
            )));
        }
    }
    let prepared = channels.prepared(p)?;
    prepared.check().map_err(usage)?;
    Ok(prepared)
}

/// Refuses data that do not have so many channels, where that is known before they are read.
pub fn check_data(channels: usize, data: &str) -> Result<()> {
    // Grey is made of colours.
    if data == "shapes" && ![1, RGB].contains(&channels) {
        return Err(usage(format!(
            "channels is {channels}, but 'shapes' are drawn in red, green and blue: give your own images (--data SRC)"
        )));
    }
    Ok(())
}
