//! In the metadata of our own files.
use serde_json::{json, Value};

use super::keys::Keys;
use super::{Filter, Preprocess};

/// Ours without a word about it are from before it was written down, when only ImageNet's numbers were in use.
pub(in super::super) fn read(json: &Value, usual: Preprocess) -> Result<Preprocess, String> {
    if json.is_null() {
        return Ok(Preprocess {
            known: true,
            ..usual
        });
    }
    let keys = Keys::of(json)?;
    let filter = match keys.text("interpolation")? {
        Some(name) => match Filter::of_name(name) {
            Some(filter) => filter,
            None => return keys.wrong("interpolation", "a filter's name"),
        },
        // What files said before 0.2.
        None => match keys.flag("bicubic", true)? {
            true => Filter::Bicubic,
            false => Filter::Bilinear,
        },
    };
    Ok(Preprocess {
        size: None,
        crop_pct: keys.positive("crop_pct", usual.crop_pct, 1.0)?,
        squash: keys.flag("squash", false)?,
        filter,
        mean: keys.three("mean", usual.mean)?,
        std: keys.deviations("std", usual.std)?,
        known: true,
    })
}

pub(crate) fn write(p: &Preprocess) -> Value {
    json!({
        "crop_pct": p.crop_pct,
        "squash": p.squash,
        "interpolation": p.filter.name(),
        "mean": p.mean,
        "std": p.std,
    })
}
