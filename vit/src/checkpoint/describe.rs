//! What stands beside the tensors: config.json of timm or Hugging Face, preprocessor_config.json, our own metadata.
use std::collections::BTreeMap;

use serde_json::Value;

use super::preprocess::{self, Preprocess};
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
    /// Number of blocks. The tensors tell it as well: another number is an error.
    pub depth: Option<usize>,
    /// Whether queries, keys and values have a bias; so do the tensors.
    pub qkv_bias: Option<bool>,
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
            depth: self.depth.or(other.depth),
            qkv_bias: self.qkv_bias.or(other.qkv_bias),
        }
    }

    /// What contradicts the architecture that the tensors have.
    pub(crate) fn check(&self, cfg: &VitConfig) -> Result<(), String> {
        let fail = |key: &str, said: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
            Err(format!(
                "config.json says {key} {said}, the tensors {found}; correct the one that is wrong"
            ))
        };
        match (self.depth, self.qkv_bias) {
            (Some(depth), _) if depth != cfg.depth => fail("number of blocks", &depth, &cfg.depth),
            (_, Some(bias)) if bias != cfg.qkv_bias => fail("qkv_bias", &bias, &cfg.qkv_bias),
            _ => Ok(()),
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
            // Of a preset the tensors are right.
            depth: None,
            qkv_bias: None,
        }
    }
}

/// All that stands beside the tensors.
#[derive(Debug, Clone, Default)]
pub(crate) struct Description {
    pub hints: Hints,
    pub labels: BTreeMap<usize, String>,
    /// None where no file tells.
    pub preprocess: Option<Preprocess>,
    /// What is not heeded and what had to be assumed, in sentences for a person.
    pub notes: Vec<String>,
    /// Hugging Face's `model_type` or timm's `architecture`.
    pub name: Option<String>,
}

impl Description {
    /// config.json
    ///
    /// # Errors
    /// What a key says that cannot be heeded.
    pub fn add_config(&mut self, json: &Value) -> Result<(), String> {
        let before = std::mem::take(&mut self.hints);
        let hints = if let Some(name) = json["architecture"].as_str() {
            self.name = Some(name.to_owned());
            self.timm(name, json)?
        } else if let Some(name) = json["model_type"].as_str() {
            self.name = Some(name.to_owned());
            self.labels = labels(&json["id2label"]);
            hugging_face(json)?
        } else {
            Hints::default()
        };
        self.hints = before.or(hints);
        Ok(())
    }

    fn timm(&mut self, name: &str, json: &Value) -> Result<Hints, String> {
        // Before timm 0.8 its keys stood beside the architecture.
        let cfg = match &json["pretrained_cfg"] {
            Value::Null => json,
            cfg => cfg,
        };
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
        let read = preprocess::of_timm(cfg, &mut self.notes)?;
        let size = read.size;
        self.preprocess = Some(read);
        let unheeded = unheeded_args(args);
        if !unheeded.is_empty() {
            self.notes.push(format!(
                "config.json: not known and not heeded in 'model_args': {}",
                crate::error::some(&unheeded)
            ));
        }
        three_channels(args, "in_chans")?;
        three_channels(cfg, "in_chans")?;
        let preset = VitConfig::preset(name);
        let pool = json["global_pool"].as_str();
        let pool = args["global_pool"].as_str().or(pool);
        Ok(Hints {
            num_heads: number(args, "num_heads")?,
            image: pixels(args, "img_size")?.or(size),
            fallback_image: None,
            norm_eps: None,
            activation: activation(args, "act_layer")?,
            pool: match pool {
                Some("token") => Some(Pool::Token),
                Some("avg") => Some(Pool::Avg),
                None | Some("") => None,
                Some(other) => {
                    return Err(format!("'global_pool' is '{other}'; expected token or avg"))
                }
            },
            no_embed_class: args["no_embed_class"].as_bool(),
            pos_embed: None,
            depth: number(args, "depth")?,
            qkv_bias: args["qkv_bias"].as_bool(),
        }
        .or(Hints {
            pool: None, // the tensors tell more than a name
            ..preset.as_ref().map(Hints::of).unwrap_or_default()
        }))
    }

    /// preprocessor_config.json
    ///
    /// # Errors
    /// What a key says that cannot be heeded.
    pub fn add_preprocessor(&mut self, json: &Value) -> Result<(), String> {
        let model = self.name.as_deref();
        let read = preprocess::of_hugging_face(json, model, &mut self.notes)?;
        self.preprocess = Some(read);
        Ok(())
    }

    /// The metadata key `vitfreeze` of our own files: a [`VitConfig`] (a classifier's with class names and preprocessing), or
    /// the head of a training state.
    ///
    /// # Errors
    /// What a key says that cannot be heeded.
    pub fn add_metadata(&mut self, text: &str) -> Result<(), String> {
        let Ok(json) = serde_json::from_str::<Value>(text) else {
            return Ok(());
        };
        let before = std::mem::take(&mut self.hints);
        self.labels = labels(&json["labels"]);
        let run = &json["config"];
        self.hints = before.or(match serde_json::from_str::<VitConfig>(text) {
            // An encoder's own says nothing: masked pretraining has no pooling.
            Ok(cfg) if cfg.num_classes == 0 => Hints {
                pool: Some(Pool::Avg),
                ..Hints::of(&cfg)
            },
            Ok(cfg) => Hints::of(&cfg),
            // Training states have no position table: it is fixed.
            Err(_) => Hints {
                num_heads: run["model"]
                    .as_str()
                    .and_then(VitConfig::preset)
                    .map(|cfg| cfg.num_heads),
                image: pixels(run, "image-size")?,
                norm_eps: Some(1e-6),
                pos_embed: Some(PosEmbed::SinCos),
                ..Hints::default()
            },
        });
        if let Some(image) = self.hints.image {
            let usual = Preprocess::usual(image);
            let read = preprocess::of_ours(&json["preprocess"], usual)?;
            self.preprocess = Some(read);
        }
        Ok(())
    }
}

fn hugging_face(json: &Value) -> Result<Hints, String> {
    three_channels(json, "num_channels")?;
    Ok(Hints {
        num_heads: number(json, "num_attention_heads")?,
        image: pixels(json, "image_size")?,
        depth: number(json, "num_hidden_layers")?,
        qkv_bias: json["qkv_bias"].as_bool(),
        norm_eps: match &json["layer_norm_eps"] {
            Value::Null => None,
            value => match value.as_f64().filter(|&x| x > 0.0 && x <= 1.0) {
                Some(eps) => Some(eps),
                None => return Err(wrong("layer_norm_eps", value, "a number between 0 and 1")),
            },
        },
        activation: activation(json, "hidden_act")?,
        ..Hints::default()
    })
}

/// Arguments of timm's model that are heeded, that the tensors tell, or that only training uses.
const ARGS: [&str; 38] = [
    "act_layer",
    "attn_drop_rate",
    "block_fn",
    "class_token",
    "depth",
    "drop_path_rate",
    "drop_rate",
    "dynamic_img_pad",
    "dynamic_img_size",
    "embed_dim",
    "embed_layer",
    "fc_norm",
    "features_only",
    "final_norm",
    "fix_init",
    "global_pool",
    "img_size",
    "in_chans",
    "init_values",
    "mlp_ratio",
    "no_embed_class",
    "num_classes",
    "num_heads",
    "patch_drop_rate",
    "patch_size",
    "pos_drop_rate",
    "pos_embed",
    "pre_norm",
    "proj_bias",
    "proj_drop_rate",
    "qk_norm",
    "qkv_bias",
    "reg_tokens",
    "scriptable",
    "strict_img_size",
    "weight_init",
    "mlp_layer",
    "exportable",
];

/// Those that say something and are not among them.
fn unheeded_args(args: &Value) -> Vec<String> {
    let all = args.as_object().into_iter().flatten();
    let says = all.filter(|(_, value)| !value.is_null() && **value != false);
    let others = says.filter(|(key, _)| !ARGS.contains(&key.as_str()));
    others.map(|(key, _)| key.clone()).collect()
}

fn activation(json: &Value, key: &str) -> Result<Option<Activation>, String> {
    match &json[key] {
        Value::Null => Ok(None),
        Value::String(name) => match name.as_str() {
            "gelu" | "gelu_python" => Ok(Some(Activation::Gelu)),
            "gelu_tanh" | "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => {
                Ok(Some(Activation::GeluTanh))
            }
            "quick_gelu" => Ok(Some(Activation::QuickGelu)),
            // DINOv2's giants; the tensors' shapes say so too.
            "silu" | "swiglu" => Ok(None),
            _ => Err(wrong(key, &json[key], "gelu, gelu_tanh or quick_gelu")),
        },
        other => Err(wrong(key, other, "a name")),
    }
}

fn number(json: &Value, key: &str) -> Result<Option<usize>, String> {
    match &json[key] {
        Value::Null => Ok(None),
        value => match count(value) {
            Some(n) => Ok(Some(n)),
            None => Err(wrong(key, value, "a whole number above 0")),
        },
    }
}

fn wrong(key: &str, value: &Value, expected: &str) -> String {
    let short: String = value.to_string().chars().take(60).collect();
    format!("'{key}' is {short}; expected {expected}")
}

fn count(value: &Value) -> Option<usize> {
    let n = value.as_u64().filter(|&n| n > 0)?;
    usize::try_from(n).ok()
}

/// Height and width under a key: `224`, `[height, width]`, `[3, height, width]` or `{"height": .., "width": ..}`.
fn pixels(json: &Value, key: &str) -> Result<Option<(usize, usize)>, String> {
    let value = &json[key];
    let sides = match value {
        Value::Null => return Ok(None),
        Value::Number(_) => count(value).map(|n| (n, n)),
        Value::Array(items) => match &items[..] {
            [h, w] | [_, h, w] => count(h).zip(count(w)),
            _ => None,
        },
        Value::Object(map) => {
            let side = |name| map.get(name).and_then(count);
            side("height").zip(side("width"))
        }
        _ => None,
    };
    match sides {
        Some(sides) => Ok(Some(sides)),
        None => Err(wrong(key, value, "a height and a width above 0")),
    }
}

/// Images have three channels here.
fn three_channels(json: &Value, key: &str) -> Result<(), String> {
    match number(json, key)? {
        None | Some(3) => Ok(()),
        Some(_) => Err(wrong(key, &json[key], "3: images are RGB")),
    }
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
