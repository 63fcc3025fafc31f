//! In the metadata of our own files.
use serde_json::{json, Value};

use super::keys::{share, Keys};
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
    let crop_pct = match keys.get("crop_pct") {
        None => Some(usual.crop_pct),
        Some(Value::Array(items)) => match &items[..] {
            [height, width] => share(height).zip(share(width)),
            _ => None,
        },
        Some(one) => share(one).map(|part| (part, part)),
    };
    let Some(crop_pct) = crop_pct else {
        return keys.wrong("crop_pct", "one or two numbers above 0 and at most 1");
    };
    Ok(Preprocess {
        size: None,
        crop_pct,
        squash: keys.flag("squash", false)?,
        floor_margin: keys.flag("floor_margin", false)?,
        filter,
        mean: keys.by_channel("mean", usual.mean.len(), &usual.mean)?,
        std: keys.deviations("std", usual.std.len(), &usual.std)?,
        bands: keys.flag("bands", false)?,
        known: true,
    })
}

pub(crate) fn write(p: &Preprocess) -> Value {
    json!({
        "crop_pct": p.crop_told(),
        "squash": p.squash,
        "floor_margin": p.floor_margin,
        "interpolation": p.filter.name(),
        "mean": p.mean,
        "std": p.std,
        "bands": p.bands,
    })
}
