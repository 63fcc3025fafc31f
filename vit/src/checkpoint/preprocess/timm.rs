//! timm's `pretrained_cfg`, whose absent keys have timm's defaults.
use serde_json::{json, Value};

use super::keys::{many, side, Keys};
use super::{Filter, Preprocess, BANDS, CROP_PCT, FLOOR_MARGIN, IMAGENET};

/// The keys that are heeded; then those that do not change what a model sees of an image. timm itself reads those with
/// `test` only where it is told to.
const KNOWN: [&str; 34] = [
    "input_size",
    "interpolation",
    "crop_pct",
    "crop_mode",
    "mean",
    "std",
    "architecture",
    "classifier",
    "custom_load",
    "description",
    "file",
    "first_conv",
    "fixed_input_size",
    "global_pool",
    "hf_hub_filename",
    "hf_hub_id",
    "label_descriptions",
    "label_names",
    "label_offset",
    "labels",
    "license",
    "min_input_size",
    "notes",
    "num_classes",
    "num_features",
    "origin_url",
    "paper_ids",
    "paper_name",
    "pool_size",
    "source",
    "tag",
    "test_crop_pct",
    "test_input_size",
    "url",
];

/// Of images of so many channels, where that is told elsewhere.
pub(in super::super) fn read(
    json: &Value,
    channels: Option<usize>,
    notes: &mut Vec<String>,
) -> Result<Preprocess, String> {
    let keys = Keys::of(json)?;
    let told = match keys.get("input_size").and_then(Value::as_array) {
        Some(items) => match &items[..] {
            [c, h, w] => many(c).zip(side(h).zip(side(w))),
            _ => None,
        },
        None => None,
    };
    if told.is_none() && keys.get("input_size").is_some() {
        return keys.wrong("input_size", "[channels, height, width]");
    }
    let size = told.map(|(_, size)| size);
    let channels = channels.or(told.map(|(own, _)| own)).unwrap_or(3);
    let squash = match keys.text("crop_mode")? {
        None | Some("center") => false,
        Some("squash") => true,
        // 'border' fills up with a colour.
        Some(_) => return keys.wrong("crop_mode", "'center' or 'squash', which can be done here"),
    };
    let name = keys.text("interpolation")?.unwrap_or("bicubic");
    let Some(filter) = Filter::of_name(name) else {
        return keys.wrong(
            "interpolation",
            "nearest, box, bilinear, hamming, bicubic or lanczos",
        );
    };
    if let Some(offset) = keys.get("label_offset").filter(|n| n.as_u64() != Some(0)) {
        notes.push(format!(
            "config.json, 'label_offset': {offset}: timm leaves so many of the first classes out for a data set without \
             them; here all are kept"
        ));
    }
    let absent: Vec<&str> = ["mean", "std"]
        .into_iter()
        .filter(|key| keys.get(key).is_none())
        .collect();
    if !absent.is_empty() {
        notes.push(format!(
            "config.json has no {}: ImageNet's taken, timm's default",
            absent.join(" and no ")
        ));
    }
    let part = keys.positive("crop_pct", CROP_PCT, 1.0)?;
    keys.note_others(&KNOWN, "config.json, 'pretrained_cfg'", notes);
    Ok(Preprocess {
        size,
        crop_pct: (part, part),
        squash,
        floor_margin: false,
        filter,
        mean: keys.by_channel("mean", channels, &IMAGENET.0)?,
        std: keys.deviations("std", channels, &IMAGENET.1)?,
        bands: false,
        known: true,
    })
}

/// Puts into a config.json how images are prepared; what timm will do otherwise is returned.
pub(in super::super) fn write(
    p: &Preprocess,
    image: (usize, usize),
    config: &mut Value,
) -> Vec<String> {
    // timm takes no key in 'pretrained_cfg' that it does not know.
    if p.floor_margin {
        config[FLOOR_MARGIN] = json!(true);
    }
    if p.bands {
        config[BANDS] = json!(true);
    }
    let cfg = &mut config["pretrained_cfg"];
    cfg["input_size"] = json!([p.mean.len(), image.0, image.1]);
    cfg["fixed_input_size"] = json!(true);
    cfg["interpolation"] = json!(p.filter.name());
    cfg["crop_pct"] = json!(p.crop_pct.0);
    cfg["crop_mode"] = json!(if p.squash { "squash" } else { "center" });
    cfg["mean"] = json!(p.mean);
    cfg["std"] = json!(p.std);
    let (height, width) = p.crop_pct;
    let one = (height != width).then(|| {
        format!(
            "timm has one crop_pct for both sides, here it is {height} of the height and {width} of the width: \
             {height} is written, and timm resizes images otherwise"
        )
    });
    let margin = p.margin_note(image, false, "timm");
    one.into_iter().chain(margin).collect()
}
