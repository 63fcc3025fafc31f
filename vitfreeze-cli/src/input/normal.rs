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

/// Of a model whose checkpoint, if there is one, does not tell how images are prepared: refuses channels that the data do
/// not have or that nothing is known of.
pub fn check_new(channels: &Channels, data: &str) -> Result<()> {
    // Grey is made of them.
    if data == "shapes" && ![1, RGB].contains(&channels.count()) {
        return Err(usage(format!(
            "channels is {}, but 'shapes' are drawn in red, green and blue: give your own images (--data SRC)",
            channels.count()
        )));
    }
    channels.check_new(data)
}
