//! preprocessor_config.json of Hugging Face's image processors, whose absent keys have the class's defaults.
use serde_json::{json, Value};

use super::keys::{side, Keys};
use super::{crop_pct, of_timm, Filter, Preprocess, BANDS, FLOOR_MARGIN, IMAGENET};

const HALF: ([f32; 3], [f32; 3]) = ([0.5; 3], [0.5; 3]);
const CLIP: ([f32; 3], [f32; 3]) = (
    [0.481_454_66, 0.457_827_5, 0.408_210_73],
    [0.268_629_54, 0.261_302_6, 0.275_777_1],
);

/// Keys that are heeded; then those that do not change what a model sees of an image.
const KNOWN: [&str; 29] = [
    "crop_size",
    "do_center_crop",
    "do_normalize",
    "do_rescale",
    "do_resize",
    "feature_extractor_type",
    "image_mean",
    "image_processor_type",
    "image_std",
    "resample",
    "rescale_factor",
    "size",
    FLOOR_MARGIN,
    BANDS,
    "_processor_class",
    "_valid_processor_keys",
    "auto_map",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_convert_rgb",
    "image_seq_length",
    "input_data_format",
    "processor_class",
    "return_tensors",
    "transformers_version",
    "use_fast",
    "backend",
];

/// Defaults of a class.
struct Class {
    /// Without `ImageProcessor` behind it.
    name: &'static str,
    filter: Filter,
    normal: ([f32; 3], [f32; 3]),
    size: usize,
    /// Whether the size without a word is of both sides; else of the shorter one.
    squash: bool,
    /// Whether a lone number is the size of both sides.
    square: bool,
    center_crop: bool,
}

const fn class(name: &'static str, filter: Filter, normal: ([f32; 3], [f32; 3])) -> Class {
    Class {
        name,
        filter,
        normal,
        size: 224,
        squash: true,
        square: true,
        center_crop: false,
    }
}

const fn covering(name: &'static str) -> Class {
    Class {
        squash: false,
        square: false,
        center_crop: true,
        ..class(name, Filter::Bicubic, CLIP)
    }
}

const CLASSES: [Class; 9] = [
    class("ViT", Filter::Bilinear, HALF),
    class("DINOv3ViT", Filter::Bilinear, IMAGENET),
    class("Beit", Filter::Bicubic, HALF),
    Class {
        square: false,
        ..class("Siglip", Filter::Bicubic, HALF)
    },
    Class {
        size: 384,
        ..class("Blip", Filter::Bicubic, CLIP)
    },
    Class {
        size: 256,
        center_crop: true,
        ..class("DeiT", Filter::Bicubic, HALF)
    },
    covering("Bit"),
    covering("CLIP"),
    covering("ChineseCLIP"),
];
/// Nothing is cropped.
const UNCUT: (f64, f64) = (1.0, 1.0);
/// What every class crops to unless told otherwise.
const CROP: (usize, usize) = (224, 224);

/// The class that a file names; else that of the model.
fn class_of(
    keys: &Keys,
    model_type: Option<&str>,
    notes: &mut Vec<String>,
) -> Result<&'static Class, String> {
    let find = |name: &str| CLASSES.iter().find(|class| class.name == name);
    let named = match keys.text("image_processor_type")? {
        Some(name) => Some(name),
        None => keys.text("feature_extractor_type")?,
    };
    if let Some(full) = named {
        let short = ["Fast", "Pil"].iter().find_map(|s| full.strip_suffix(s));
        let short = short.unwrap_or(full);
        let short = ["ImageProcessor", "FeatureExtractor"]
            .iter()
            .find_map(|s| short.strip_suffix(s));
        if let Some(class) = short.and_then(find) {
            return Ok(class);
        }
        notes.push(format!(
            "preprocessor_config.json: '{full}' is not known; read as ViTImageProcessor's"
        ));
    }
    let class = match model_type.filter(|_| named.is_none()) {
        Some("deit") => "DeiT",
        Some("dinov2" | "dinov2_with_registers" | "bit") => "Bit",
        Some("dinov3_vit") => "DINOv3ViT",
        Some("beit" | "data2vec-vision") => "Beit",
        Some("siglip") => "Siglip",
        Some("clip" | "clip_vision_model") => "CLIP",
        _ => "ViT",
    };
    Ok(find(class).unwrap_or(&CLASSES[0]))
}

/// Height and width that images are resized to, and whether proportions are lost.
fn resized(keys: &Keys, class: &Class) -> Result<((usize, usize), bool), String> {
    let found = match keys.get("size") {
        None => return Ok(((class.size, class.size), class.squash)),
        Some(Value::Array(items)) => match &items[..] {
            [h, w] => side(h).zip(side(w)).map(|size| (size, true)),
            _ => None,
        },
        Some(Value::Object(map)) => {
            let one = |key| map.get(key).and_then(side);
            let unknown = map.iter().any(|(key, value)| {
                !value.is_null() && !["height", "width", "shortest_edge"].contains(&key.as_str())
            });
            match (unknown, one("shortest_edge"), one("height"), one("width")) {
                (false, Some(n), None, None) => Some(((n, n), false)),
                (false, None, Some(h), Some(w)) => Some(((h, w), true)),
                _ => None,
            }
        }
        Some(one) => side(one).map(|n| ((n, n), class.square)),
    };
    match found {
        Some(found) => Ok(found),
        None => keys.wrong(
            "size",
            "a number, {\"height\": .., \"width\": ..} or {\"shortest_edge\": ..}",
        ),
    }
}

fn crop(keys: &Keys) -> Result<(usize, usize), String> {
    let found = match keys.get("crop_size") {
        None => Some(CROP),
        Some(Value::Array(items)) => match &items[..] {
            [h, w] => side(h).zip(side(w)),
            _ => None,
        },
        Some(Value::Object(map)) => {
            let one = |key| map.get(key).and_then(side);
            one("height").zip(one("width"))
        }
        Some(one) => side(one).map(|n| (n, n)),
    };
    match found {
        Some(found) => Ok(found),
        None => keys.wrong("crop_size", "a number or {\"height\": .., \"width\": ..}"),
    }
}

pub(in super::super) fn read(
    json: &Value,
    model_type: Option<&str>,
    channels: Option<usize>,
    notes: &mut Vec<String>,
) -> Result<Preprocess, String> {
    let keys = Keys::of(json)?;
    if keys.text("image_processor_type")? == Some("TimmWrapperImageProcessor") {
        return of_timm(&json["pretrained_cfg"], channels, notes);
    }
    let channels = channels.unwrap_or(3);
    let class = class_of(&keys, model_type, notes)?;
    let filter = match keys.get("resample") {
        None => class.filter,
        Some(number) => match number.as_u64().and_then(Filter::of_number) {
            Some(filter) => filter,
            None => return keys.wrong("resample", "a number of Pillow's filters, 0 to 5"),
        },
    };
    let mut note = |text: &str| notes.push(format!("preprocessor_config.json: {text}"));
    let (from, squash) = resized(&keys, class)?;
    let resize = keys.flag("do_resize", true)?;
    if !resize {
        note("'do_resize' is false; images of another size than the model's are resized here");
    }
    let center_crop = keys.flag("do_center_crop", class.center_crop)?;
    let (size, share) = match (resize, center_crop) {
        (true, true) => {
            let to = crop(&keys)?;
            if to.0 > from.0 || to.1 > from.1 {
                return Err(format!(
                    "'crop_size' {} x {} is more than 'size' {} x {}, and no border is added here",
                    to.0, to.1, from.0, from.1
                ));
            }
            (to, (crop_pct(to.0, from.0), crop_pct(to.1, from.1)))
        }
        (true, false) => {
            if !squash {
                note("no 'do_center_crop', and the model takes one size; the middle of the image is taken");
            }
            (from, UNCUT)
        }
        (false, true) => (crop(&keys)?, UNCUT),
        (false, false) => (from, UNCUT),
    };
    // Here values between 0 and 1 are normalised; theirs are what 'rescale_factor' makes of 0 to 255.
    let (mean, std) = match keys.flag("do_normalize", true)? {
        true => (
            keys.by_channel("image_mean", channels, &class.normal.0)?,
            keys.deviations("image_std", channels, &class.normal.1)?,
        ),
        false => (vec![0.0; channels], vec![1.0; channels]),
    };
    let most = match keys.flag("do_rescale", true)? {
        true => 255.0 * keys.positive("rescale_factor", 1.0 / 255.0, 1e6)?,
        false => 255.0,
    };
    let scaled = |numbers: Vec<f32>| match (most - 1.0).abs() < 1e-6 {
        true => numbers,
        false => {
            let one = |x: f32| (f64::from(x) / most) as f32;
            numbers.into_iter().map(one).collect()
        }
    };
    keys.note_others(&KNOWN, "preprocessor_config.json", notes);
    Ok(Preprocess {
        // Without resizing, no size is asked for but the model's own.
        size: (resize || center_crop).then_some(size),
        crop_pct: share,
        squash: squash && resize,
        floor_margin: keys.flag(FLOOR_MARGIN, true)?,
        filter,
        mean: scaled(mean),
        std: scaled(std),
        bands: keys.flag(BANDS, false)?,
        known: true,
    })
}

/// The whole file, and what transformers will do otherwise.
pub(in super::super) fn write(p: &Preprocess, image: (usize, usize)) -> (Value, Vec<String>) {
    let (height, width) = p.resized(image);
    let mut notes = Vec::new();
    let size = match p.squash {
        true => json!({ "height": height, "width": width }),
        false => {
            // Theirs knows one number for the shorter side; with the larger one the crop is within every image.
            let side = height.max(width);
            if height != width {
                notes.push(format!(
                    "transformers resizes an image's shorter side to {side}; here images just cover {height} x {width}, \
                     so it sees a smaller part of some"
                ));
            }
            json!({ "shortest_edge": side })
        }
    };
    notes.extend(p.margin_note(image, true, "transformers"));
    let mut file = json!({
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": true,
        "do_resize": true,
        "size": size,
        "resample": p.filter.number(),
        "do_center_crop": true,
        "crop_size": { "height": image.0, "width": image.1 },
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": p.mean,
        "image_std": p.std,
    });
    if !p.floor_margin {
        file[FLOOR_MARGIN] = json!(false);
    }
    if p.bands {
        file[BANDS] = json!(true);
    }
    (file, notes)
}
