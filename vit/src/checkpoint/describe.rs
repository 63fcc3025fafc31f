//! What stands beside the tensors: config.json of timm or Hugging Face, preprocessor_config.json, our own metadata.
mod claim;
mod hugging_face;
mod timm;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{json, Value};

use super::keys::Keys;
use super::preprocess::{self, Preprocess};
use crate::{Activation, Pool, PosEmbed, VitConfig};
pub(crate) use claim::Claim;
pub(super) use hugging_face::GENERAL;

/// Where our own files say what they say.
const METADATA: &str = "metadata 'vitfreeze'";

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
    /// Positions that no tensor holds: the fixed table, rotary ones.
    pub pos_embed: Option<PosEmbed>,
    /// Side of a Swin's windows in tokens.
    pub window_size: Option<usize>,
    /// Where LayerScale's factors started.
    pub init_values: Option<f64>,
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
            window_size: self.window_size.or(other.window_size),
            init_values: self.init_values.or(other.init_values),
        }
    }

    /// In what these go before what the files say otherwise.
    pub(super) fn over(&self, files: &Self) -> Vec<String> {
        let note = |what: &str, given: Option<usize>, told: Option<usize>| {
            let (given, told) = (given?, told?);
            (given != told)
                .then(|| format!("its files say {told} {what}; {given} are taken, as asked for"))
        };
        let heads = note("attention heads", self.num_heads, files.num_heads);
        let windows = note(
            "tokens a side of a window",
            self.window_size,
            files.window_size,
        );
        heads.into_iter().chain(windows).collect()
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
            window_size: cfg.swin.map(|swin| swin.window_size),
            init_values: cfg.init_values,
        }
    }
}

/// An architecture as our files have it, and what else is among its keys.
#[derive(Deserialize)]
struct Stated {
    #[serde(flatten)]
    cfg: VitConfig,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

impl Stated {
    /// Whether these are an architecture's keys.
    fn is(json: &Value) -> bool {
        json.get("embed_dim").is_some()
    }

    /// # Errors
    /// What is missing, of another type, or not known here, where it may change what the model computes.
    fn read(json: &Value) -> Result<VitConfig, String> {
        let Self { cfg, others } =
            Self::deserialize(json).map_err(|e| format!("no architecture: {e}"))?;
        let beside = |key: &&String| !["labels", "preprocess"].contains(&key.as_str());
        let unknown: Vec<String> = others.keys().filter(beside).cloned().collect();
        if !unknown.is_empty() {
            return Err(format!(
                "an architecture with unknown keys: {}; a later version may have written them, and computes by them",
                crate::error::some(&unknown)
            ));
        }
        cfg.validate().map_err(|e| e.to_string())?;
        Ok(cfg)
    }
}

/// All that stands beside the tensors.
#[derive(Debug, Clone, Default)]
pub(crate) struct Description {
    pub hints: Hints,
    /// Whether our own metadata are in the weights' file.
    pub told: bool,
    /// Of our own training states, the run's numbers as JSON.
    pub run: Option<String>,
    /// What the tensors tell as well.
    pub claims: Vec<Claim>,
    pub labels: BTreeMap<usize, String>,
    /// Of the images, where Hugging Face's config.json tells.
    pub channels: Option<usize>,
    /// Of the decoder of masked pretraining, where Hugging Face's config.json tells.
    pub decoder_heads: Option<usize>,
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
        let keys = Keys::of(json)?;
        let hints = match keys.text("architecture")? {
            Some(name) => {
                self.name = Some(name.to_owned());
                timm::read(name, json, self)?
            }
            None => {
                self.name = keys.text("model_type")?.map(str::to_owned);
                hugging_face::read(json, self)?
            }
        };
        self.add(hints);
        Ok(())
    }

    /// preprocessor_config.json
    ///
    /// # Errors
    /// What a key says that cannot be heeded.
    pub fn add_preprocessor(&mut self, json: &Value) -> Result<(), String> {
        let model = self.name.as_deref();
        let read = preprocess::of_hugging_face(json, model, self.channels, &mut self.notes)?;
        self.preprocess = Some(read);
        Ok(())
    }

    /// The metadata key `vitfreeze` of our own files: what [`Pretrained::metadata`](super::Pretrained::metadata) makes, or the
    /// head of a training state, in which that is under `model`. States of before 2026-11-29 have their run alone.
    ///
    /// # Errors
    /// What a key says that cannot be heeded.
    pub fn add_metadata(&mut self, text: &str) -> Result<(), String> {
        let json = super::json::parse(text.as_bytes())?;
        self.told = true;
        let keys = Keys::of(&json)?;
        let run = &json["config"];
        self.run = run.is_object().then(|| run.to_string());
        match keys.get("model") {
            Some(model) => self.add_model(model),
            None if Stated::is(&json) => self.add_model(&json),
            None => self.add_run(run, &keys.object("config")?),
        }
    }

    /// An architecture, with names of classes and preprocessing.
    fn add_model(&mut self, json: &Value) -> Result<(), String> {
        let keys = Keys::of(json)?;
        keys.channels("in_chans")?;
        let cfg = Stated::read(json)?;
        self.claims.extend(claim::of_architecture(&cfg, json));
        self.labels = labels(&json["labels"]);
        let usual = Preprocess::usual(cfg.image()).in_channels(cfg.in_chans);
        self.preprocess = Some(preprocess::of_ours(&json["preprocess"], usual)?);
        self.add(Hints {
            // An encoder's own says nothing: masked pretraining has no pooling.
            pool: Some(match cfg.num_classes {
                0 if !cfg.dist_token => Pool::Avg,
                _ => cfg.pool,
            }),
            ..Hints::of(&cfg)
        });
        Ok(())
    }

    /// A training state's run, of which the architecture follows.
    fn add_run(&mut self, run: &Value, keys: &Keys) -> Result<(), String> {
        let told = keys.channels("channels")?;
        if let Some(said) = told {
            let claim = Claim::new("channels", said, |cfg| cfg.in_chans.into());
            self.claims.push(claim.of(METADATA));
        }
        self.add(Hints {
            image: size_of_run(keys)?,
            ..of_run(run)?
        });
        if let Some(image) = self.hints.image {
            let usual = Preprocess::usual(image).in_channels(told.unwrap_or(3));
            // Three channels that were asked for are not RGB.
            let bands = run["channels"] == 3;
            let of_run = match bands || run["mean"].is_array() {
                true => json!({ "mean": run["mean"], "std": run["std"], "bands": bands }),
                false => Value::Null,
            };
            self.preprocess = Some(preprocess::of_ours(&of_run, usual)?);
        }
        Ok(())
    }

    /// What was told before goes first.
    fn add(&mut self, hints: Hints) {
        self.hints = std::mem::take(&mut self.hints).or(hints);
    }
}

/// What a training state's run tells of its encoder, but for the images.
fn of_run(run: &Value) -> Result<Hints, String> {
    // Begun with a checkpoint: its architecture.
    if let Some(text) = run["encoder"].as_str() {
        let cfg = serde_json::from_str::<VitConfig>(text);
        let cfg = cfg.map_err(|e| format!("'encoder' is no architecture: {e}"))?;
        return Ok(Hints {
            pool: None,
            ..Hints::of(&cfg)
        });
    }
    let preset = run["model"].as_str().and_then(VitConfig::preset);
    if let Some(swin) = preset.filter(|cfg| cfg.swin.is_some()) {
        return Ok(Hints::of(&swin));
    }
    Ok(Hints {
        num_heads: preset.map(|cfg| cfg.num_heads),
        // There is no position table in it: it is fixed.
        pos_embed: Some(PosEmbed::SinCos),
        ..Hints::default()
    })
}

/// The size that a run's images have at its end: `224`, or the last of `128:80%,224`.
fn size_of_run(config: &Keys) -> Result<Option<(usize, usize)>, String> {
    const KEY: &str = "image-size";
    let Some(Value::String(sizes)) = config.get(KEY) else {
        return config.pixels(KEY);
    };
    let last = sizes.rsplit(',').next().and_then(|size| size.parse().ok());
    match last.filter(|size: &usize| *size > 0) {
        Some(size) => Ok(Some((size, size))),
        None => config.wrong(KEY, "a size, or several of which the last has no end"),
    }
}

/// The MLP's non-linearity under this key.
pub(super) fn activation(
    keys: &Keys,
    key: &'static str,
    claims: &mut Vec<Claim>,
) -> Result<Option<Activation>, String> {
    match keys.text(key)? {
        None => Ok(None),
        Some("gelu" | "gelu_python") => Ok(Some(Activation::Gelu)),
        Some(
            "gelu_tanh" | "gelu_new" | "gelu_fast" | "gelu_accurate" | "gelu_pytorch_tanh"
            | "gelu_python_tanh",
        ) => Ok(Some(Activation::GeluTanh)),
        Some("quick_gelu") => Ok(Some(Activation::QuickGelu)),
        // Only within SwiGLU (DINOv2's giants), which the tensors' shapes tell.
        Some("silu" | "swiglu") => {
            let claim = Claim::new(key, "silu", |cfg| match cfg.activation {
                Activation::SwiGlu => "silu".into(),
                _ => "no SwiGLU".into(),
            });
            claims.push(claim.with_advice("silu is computed in SwiGLU only"));
            Ok(None)
        }
        Some(_) => keys.wrong(key, "gelu, gelu_tanh or quick_gelu"),
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
