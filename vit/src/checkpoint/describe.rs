//! What stands beside the tensors: config.json of timm or Hugging Face, preprocessor_config.json, our own metadata.
use std::collections::BTreeMap;

use serde_json::Value;

use crate::{Activation, Pool, PosEmbed, VitConfig};

/// What no tensor tells. A value given to [`super::Checkpoint::open_with`] goes before the checkpoint's own files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Hints {
    /// Attention heads.
    pub num_heads: Option<usize>,
    /// Height and width in pixels of the images that the position table was made for.
    pub image: Option<(usize, usize)>,
    /// The same, where no file tells it and the table is not square either.
    pub fallback_image: Option<(usize, usize)>,
    /// Added to the variance in every LayerNorm.
    pub norm_eps: Option<f64>,
    /// The MLP's non-linearity.
    pub activation: Option<Activation>,
    /// How tokens become one vector.
    pub pool: Option<Pool>,
    /// Whether tokens before the patches have no position embedding.
    pub no_embed_class: Option<bool>,
    /// Whether the position table is the fixed one, so that no tensor holds it.
    pub pos_embed: Option<PosEmbed>,
}

impl Hints {
    /// Its values, else those of `other`.
    pub(crate) fn or(self, other: Hints) -> Hints {
        Hints {
            num_heads: self.num_heads.or(other.num_heads),
            image: self.image.or(other.image),
            fallback_image: self.fallback_image.or(other.fallback_image),
            norm_eps: self.norm_eps.or(other.norm_eps),
            activation: self.activation.or(other.activation),
            pool: self.pool.or(other.pool),
            no_embed_class: self.no_embed_class.or(other.no_embed_class),
            pos_embed: self.pos_embed.or(other.pos_embed),
        }
    }

    /// All that an architecture tells.
    fn of(cfg: &VitConfig) -> Self {
        Self {
            num_heads: Some(cfg.num_heads),
            image: Some(cfg.image()),
            fallback_image: None,
            norm_eps: Some(cfg.norm_eps),
            activation: Some(cfg.activation),
            pool: Some(cfg.pool),
            no_embed_class: Some(cfg.no_embed_class),
            pos_embed: Some(cfg.pos_embed),
        }
    }
}

/// How images become the model's input.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocess {
    /// Height and width of the input in pixels, where the checkpoint's files tell.
    pub size: Option<(usize, usize)>,
    /// The part of the resized image's side that the central crop keeps.
    pub crop_pct: f64,
    /// Whether resizing changes the image's proportions to those of the input (Hugging Face's ViT and DeiT); else it covers
    /// the input.
    pub squash: bool,
    /// Whether resizing is bicubic, else bilinear.
    pub bicubic: bool,
    /// Subtracted from each channel, of values between 0 and 1.
    pub mean: [f32; 3],
    /// Each channel is then divided by it.
    pub std: [f32; 3],
    /// Whether the checkpoint's files say so; else these are ImageNet's usual numbers.
    pub known: bool,
}

impl Default for Preprocess {
    fn default() -> Self {
        Self {
            size: None,
            crop_pct: 0.875,
            squash: false,
            bicubic: true,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            known: false,
        }
    }
}

/// All that stands beside the tensors.
#[derive(Debug, Clone, Default)]
pub(crate) struct Description {
    pub hints: Hints,
    pub labels: BTreeMap<usize, String>,
    pub preprocess: Preprocess,
    /// Hugging Face's `model_type` or timm's `architecture`.
    pub name: Option<String>,
}

impl Description {
    /// config.json
    pub fn add_config(&mut self, json: &Value) {
        let before = std::mem::take(&mut self.hints);
        if let Some(name) = json["architecture"].as_str() {
            self.name = Some(name.to_owned());
            self.hints = before.or(self.timm(name, json));
        } else if let Some(name) = json["model_type"].as_str() {
            self.name = Some(name.to_owned());
            self.labels = labels(&json["id2label"]);
            self.hints = before.or(hugging_face(json));
        } else {
            self.hints = before;
        }
    }

    fn timm(&mut self, name: &str, json: &Value) -> Hints {
        let cfg = &json["pretrained_cfg"];
        let args = &json["model_args"];
        let names = match &json["label_descriptions"] {
            Value::Null => &json["label_names"],
            descriptions => descriptions,
        };
        self.labels = match (names, &json["label_names"]) {
            // Descriptions are by name, names in order.
            (Value::Object(text), Value::Array(order)) => {
                let text = |n: &Value| text.get(n.as_str()?)?.as_str().map(str::to_owned);
                let each = order.iter().enumerate();
                each.filter_map(|(i, n)| Some((i, text(n)?))).collect()
            }
            _ => labels(names),
        };
        let size = pixels(&cfg["input_size"]);
        if let (Some(mean), Some(std)) = (three(&cfg["mean"]), three(&cfg["std"])) {
            self.preprocess = Preprocess {
                size,
                crop_pct: positive(&cfg["crop_pct"]).unwrap_or(0.875),
                squash: cfg["crop_mode"].as_str() == Some("squash"),
                bicubic: cfg["interpolation"].as_str() != Some("bilinear"),
                mean,
                std,
                known: true,
            };
        }
        let preset = VitConfig::preset(name);
        let pool = json["global_pool"].as_str();
        let pool = args["global_pool"].as_str().or(pool);
        Hints {
            num_heads: count(&args["num_heads"]),
            image: pixels(&args["img_size"]).or(size),
            fallback_image: None,
            norm_eps: None,
            activation: args["act_layer"].as_str().and_then(activation),
            pool: match pool {
                Some("token") => Some(Pool::Token),
                Some("avg") => Some(Pool::Avg),
                _ => None,
            },
            no_embed_class: args["no_embed_class"].as_bool(),
            pos_embed: None,
        }
        .or(Hints {
            pool: None, // the tensors tell more than a name
            ..preset.as_ref().map(Hints::of).unwrap_or_default()
        })
    }

    /// preprocessor_config.json
    pub fn add_preprocessor(&mut self, json: &Value) {
        let (Some(mean), Some(std)) = (three(&json["image_mean"]), three(&json["image_std"]))
        else {
            return;
        };
        // One number means both sides, and with the processors of CLIP and BiT the shorter side.
        let kind = json["image_processor_type"].as_str();
        let kind = kind
            .or(json["feature_extractor_type"].as_str())
            .unwrap_or_default();
        let both = !kind.starts_with("CLIP") && !kind.starts_with("Bit");
        let (resized, squash) = match (&json["size"], count(&json["size"]["shortest_edge"])) {
            (_, Some(edge)) => (Some((edge, edge)), false),
            (size, None) => (pixels(size), both || size.is_object()),
        };
        let squash = squash && json["do_resize"] != false;
        let crop = pixels(&json["crop_size"]);
        let crop = crop.filter(|_| json["do_center_crop"].as_bool().unwrap_or(!squash));
        self.preprocess = Preprocess {
            size: crop.or(resized),
            crop_pct: match (crop, resized) {
                (Some(crop), Some(from)) => (crop.0 as f64 / from.0 as f64).clamp(0.01, 1.0),
                _ => 1.0,
            },
            squash,
            bicubic: json["resample"].as_u64() == Some(3),
            mean,
            std,
            known: true,
        };
    }

    /// The metadata key `vitfreeze` of our own files: a [`VitConfig`] (a classifier's with class names and preprocessing), or
    /// the head of a training state.
    pub fn add_metadata(&mut self, text: &str) {
        let Ok(json) = serde_json::from_str::<Value>(text) else {
            return;
        };
        let before = std::mem::take(&mut self.hints);
        self.labels = labels(&json["labels"]);
        let images = &json["preprocess"];
        if let (Some(mean), Some(std)) = (three(&images["mean"]), three(&images["std"])) {
            self.preprocess = Preprocess {
                size: None,
                crop_pct: positive(&images["crop_pct"]).unwrap_or(0.875),
                squash: images["squash"] == true,
                bicubic: images["bicubic"] != false,
                mean,
                std,
                known: true,
            };
        }
        let run = &json["config"];
        self.hints = before.or(match serde_json::from_str::<VitConfig>(text) {
            Ok(cfg) => Hints::of(&cfg),
            // Training states have no position table: it is fixed.
            Err(_) => Hints {
                num_heads: run["model"]
                    .as_str()
                    .and_then(VitConfig::preset)
                    .map(|cfg| cfg.num_heads),
                image: pixels(&run["image-size"]),
                norm_eps: Some(1e-6),
                pos_embed: Some(PosEmbed::SinCos),
                ..Hints::default()
            },
        });
    }
}

fn hugging_face(json: &Value) -> Hints {
    Hints {
        num_heads: count(&json["num_attention_heads"]),
        image: pixels(&json["image_size"]),
        norm_eps: positive(&json["layer_norm_eps"]),
        activation: json["hidden_act"].as_str().and_then(activation),
        ..Hints::default()
    }
}

fn activation(name: &str) -> Option<Activation> {
    Some(match name {
        "gelu" => Activation::Gelu,
        "gelu_tanh" | "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
        "quick_gelu" => Activation::QuickGelu,
        _ => return None,
    })
}

fn count(value: &Value) -> Option<usize> {
    let n = value.as_u64().filter(|&n| n > 0)?;
    usize::try_from(n).ok()
}

fn positive(value: &Value) -> Option<f64> {
    value.as_f64().filter(|&x| x > 0.0 && x <= 1.0)
}

/// `224`, `[height, width]`, `[3, height, width]` or `{"height": .., "width": ..}`.
fn pixels(value: &Value) -> Option<(usize, usize)> {
    match value {
        Value::Number(_) => count(value).map(|n| (n, n)),
        Value::Array(items) => match &items[..] {
            [h, w] | [_, h, w] => Some((count(h)?, count(w)?)),
            _ => None,
        },
        Value::Object(map) => Some((count(map.get("height")?)?, count(map.get("width")?)?)),
        _ => None,
    }
}

fn three(value: &Value) -> Option<[f32; 3]> {
    let numbers: Option<Vec<f32>> = value
        .as_array()?
        .iter()
        .map(|x| x.as_f64().map(|x| x as f32))
        .collect();
    numbers?.try_into().ok()
}

/// A list of names, or an object from numbers to names. Transformers' `LABEL_0` is no name.
fn labels(value: &Value) -> BTreeMap<usize, String> {
    let text = |v: &Value| {
        v.as_str()
            .filter(|t| !t.starts_with("LABEL_"))
            .map(str::to_owned)
    };
    match value {
        Value::Array(names) => {
            let each = names.iter().enumerate();
            each.filter_map(|(i, v)| Some((i, text(v)?))).collect()
        }
        Value::Object(map) => map
            .iter()
            .filter_map(|(i, v)| Some((i.parse().ok()?, text(v)?)))
            .collect(),
        _ => BTreeMap::new(),
    }
}
