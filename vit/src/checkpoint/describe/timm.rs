//! timm's config.json: its architecture, `model_args` and `pretrained_cfg`.
use serde_json::Value;

use super::{activation, labels, Claim, Description, Hints};
use crate::checkpoint::keys::Keys;
use crate::checkpoint::preprocess::{self, FLOOR_MARGIN};
use crate::{Pool, VitConfig};

/// Beside `model_args` and `pretrained_cfg`: what is heeded, what the tensors tell, what transformers' wrapper adds.
const KNOWN: [&str; 18] = [
    "architecture",
    "architectures",
    "do_pooling",
    "dtype",
    "global_pool",
    "id2label",
    "initializer_range",
    "label2id",
    "label_descriptions",
    "label_names",
    "model_args",
    "model_type",
    "num_classes",
    "num_features",
    "pretrained_cfg",
    "torch_dtype",
    "transformers_version",
    FLOOR_MARGIN,
];

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

pub(super) fn read(name: &str, json: &Value, into: &mut Description) -> Result<Hints, String> {
    let keys = Keys::of(json)?;
    let args = keys.object("model_args")?;
    // Before timm 0.8 its keys stood beside the architecture.
    let cfg = match keys.get("pretrained_cfg") {
        None => json,
        Some(cfg) => {
            keys.note_others(&KNOWN, "config.json", &mut into.notes);
            cfg
        }
    };
    let channels = match args.channels("in_chans")? {
        None => Keys::of(cfg)?.channels("in_chans")?,
        told => told,
    };
    let mut read = preprocess::of_timm(cfg, channels, &mut into.notes)?;
    read.floor_margin = keys.flag(FLOOR_MARGIN, read.floor_margin)?;
    let size = read.size;
    into.preprocess = Some(read);
    into.labels = names(json);
    args.note_others(&ARGS, "config.json, 'model_args'", &mut into.notes);
    for keys in [&args, &Keys::of(cfg)?] {
        if let Some(said) = keys.channels("in_chans")? {
            into.claims
                .push(Claim::new("in_chans", said, |cfg| cfg.in_chans.into()));
        }
    }
    if let Some(said) = args.count("depth")? {
        into.claims
            .push(Claim::new("depth", said, |cfg| cfg.depth.into()));
    }
    if let Some(said) = args.count("embed_dim")? {
        into.claims
            .push(Claim::new("embed_dim", said, |cfg| cfg.embed_dim.into()));
    }
    if let Some(said) = args.told("qkv_bias")? {
        into.claims
            .push(Claim::new("qkv_bias", said, |cfg| cfg.qkv_bias.into()));
    }
    let pool = match args.text("global_pool")? {
        Some(pool) => Some(pool),
        None => keys.text("global_pool")?,
    };
    let preset = VitConfig::preset(name);
    Ok(Hints {
        num_heads: args.count("num_heads")?,
        image: args.pixels("img_size")?.or(size),
        fallback_image: None,
        norm_eps: None,
        activation: activation(&args, "act_layer", &mut into.claims)?,
        pool: match pool {
            Some("token") => Some(Pool::Token),
            Some("avg") => Some(Pool::Avg),
            None | Some("") => None,
            Some(other) => {
                return Err(format!("'global_pool' is '{other}'; expected token or avg"))
            }
        },
        no_embed_class: args.told("no_embed_class")?,
        pos_embed: None,
    }
    .or(Hints {
        pool: None, // the tensors tell more than a name
        ..preset.as_ref().map(Hints::of).unwrap_or_default()
    }))
}

fn names(json: &Value) -> std::collections::BTreeMap<usize, String> {
    match (&json["label_descriptions"], &json["label_names"]) {
        // Descriptions are by name, names in order.
        (Value::Object(text), Value::Array(order)) => {
            let text = |n: &Value| text.get(n.as_str()?)?.as_str().map(str::to_owned);
            let each = order.iter().enumerate();
            each.filter_map(|(i, n)| Some((i, text(n)?))).collect()
        }
        (Value::Null, names) | (names, _) => labels(names),
    }
}
