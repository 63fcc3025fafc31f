//! What config.json or our metadata say and the tensors say as well: the tensors are built by, and a contradiction is an error.
use serde_json::{json, Value};

use super::METADATA;
use crate::{Activation, VitConfig};

type Found = fn(&VitConfig) -> Value;

/// What the tensors tell of an architecture, by its keys.
const TOLD: [(&str, Found); 17] = [
    ("image_size", |cfg| json!([cfg.image().0, cfg.image().1])),
    ("in_chans", |cfg| cfg.in_chans.into()),
    ("patch_size", |cfg| cfg.patch_size.into()),
    ("embed_dim", |cfg| cfg.embed_dim.into()),
    ("depth", |cfg| cfg.depth.into()),
    ("mlp_ratio", |cfg| {
        (cfg.mlp_hidden() as f64 / cfg.embed_dim as f64).into()
    }),
    ("reg_tokens", |cfg| cfg.reg_tokens.into()),
    ("dist_token", |cfg| cfg.dist_token.into()),
    ("pre_norm", |cfg| cfg.pre_norm.into()),
    ("qkv_bias", |cfg| cfg.qkv_bias.into()),
    ("key_bias", |cfg| (cfg.qkv_bias && cfg.key_bias).into()),
    ("activation", |cfg| match cfg.activation {
        Activation::SwiGlu => "SwiGLU".into(),
        _ => "no SwiGLU".into(),
    }),
    ("init_values", |cfg| match cfg.init_values {
        Some(_) => "LayerScale".into(),
        None => "no LayerScale".into(),
    }),
    ("fc_norm", |cfg| cfg.fc_norm.into()),
    ("num_classes", |cfg| cfg.num_classes.into()),
    // Of a Swin's stages.
    ("depths", |cfg| cfg.swin.map(|s| s.depths.to_vec()).into()),
    ("num_heads", |cfg| {
        cfg.swin.map(|s| s.num_heads.to_vec()).into()
    }),
];

/// Of an architecture that our own metadata state, in these words.
pub(super) fn of_architecture<'a>(
    cfg: &'a VitConfig,
    json: &'a Value,
) -> impl Iterator<Item = Claim> + 'a {
    let claim = |(key, found): (&'static str, Found)| Claim {
        place: METADATA,
        written: json.get(key).unwrap_or(&json["swin"][key]).clone(),
        ..Claim::new(key, found(cfg), found)
    };
    TOLD.into_iter().map(claim)
}

/// A key, what it says, and how the same is told from the architecture that the tensors have.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    place: &'static str,
    key: &'static str,
    said: Value,
    /// The same in the file's words.
    written: Value,
    found: Found,
    advice: &'static str,
}

impl Claim {
    pub fn new(key: &'static str, said: impl Into<Value>, found: Found) -> Self {
        let said = said.into();
        Self {
            place: "config.json",
            key,
            written: said.clone(),
            said,
            found,
            advice: "correct the one that is wrong",
        }
    }

    /// The same, said elsewhere.
    pub fn of(self, place: &'static str) -> Self {
        Self { place, ..self }
    }

    pub fn with_advice(self, advice: &'static str) -> Self {
        Self { advice, ..self }
    }

    /// In what the tensors contradict it.
    pub fn contradicts(&self, cfg: &VitConfig) -> Option<String> {
        let Self {
            place,
            key,
            said,
            written,
            advice,
            ..
        } = self;
        let found = (self.found)(cfg);
        (*said != found)
            .then(|| format!("{place} says '{key}' is {written}, the tensors {found}; {advice}"))
    }
}
