//! timm's config.json: its architecture, `model_args` and `pretrained_cfg`.
use serde_json::Value;

use super::{activation, labels, Claim, Description, Hints};
use crate::checkpoint::keys::Keys;
use crate::checkpoint::preprocess::{self, BANDS, FLOOR_MARGIN};
use crate::checkpoint::swin;
use crate::config::MAX_THETA;
use crate::{Pool, PosEmbed, VitConfig};

/// Beside `model_args` and `pretrained_cfg`: what is heeded, what the tensors tell, what transformers' wrapper adds.
const KNOWN: [&str; 19] = [
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
    BANDS,
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

/// The same of timm's EVA, of which its DINOv3 is one.
const EVA_ARGS: [&str; 24] = [
    "attn_only_layer_scale",
    "attn_type",
    "head_init_scale",
    "num_reg_tokens",
    "qkv_fused",
    "ref_feat_shape",
    "rope_grid_indexing",
    "rope_grid_offset",
    "rope_jitter_coords",
    "rope_rescale_coords",
    "rope_rotate_half",
    "rope_shift_coords",
    "rope_temperature",
    "rope_type",
    "scale_attn_inner",
    "scale_mlp",
    "swiglu_align_to",
    "swiglu_mlp",
    "use_abs_pos_emb",
    "use_fc_norm",
    "use_post_norm",
    "use_post_transformer_norm",
    "use_pre_transformer_norm",
    "use_rot_pos_emb",
];

/// The positions of one of timm's EVA models: `None` where they are a table alone.
///
/// # Errors
/// Rotary positions of another kind than DINOv3's, and blocks of another order, which no tensor tells.
fn rotary(
    name: &str,
    preset: Option<&VitConfig>,
    args: &Keys,
    notes: &mut Vec<String>,
) -> Result<Option<PosEmbed>, String> {
    const ONLY: &str = "only those of DINOv3 ('rope_type': 'dinov3') are computed here";
    let own = preset.and_then(VitConfig::rope_theta);
    let base = name.split('.').next().unwrap_or(name);
    let other = base.starts_with("eva02")
        || ["_rope", "vit_pe_", "_sapiens2"]
            .iter()
            .any(|part| base.contains(part));
    if other {
        return Err(format!(
            "'architecture' is '{name}', whose rotary positions are of another kind: {ONLY}"
        ));
    }
    if !args.flag("use_rot_pos_emb", own.is_some())? {
        return match own {
            None => Ok(None),
            Some(_) => Err(format!(
                "'use_rot_pos_emb' is false, and '{name}' has no other positions"
            )),
        };
    }
    // What a model function of DINOv3's sets, else EVA's own defaults.
    let text = |key: &'static str, of_dinov3: &'static str, eva: &'static str| {
        let usual = if own.is_some() { of_dinov3 } else { eva };
        let said = args.text(key)?.unwrap_or(usual);
        match said == of_dinov3 {
            true => Ok(()),
            false => Err(format!("'{key}' is '{said}': of rotary positions, {ONLY}")),
        }
    };
    text("rope_type", "dinov3", "cat")?;
    text("rope_grid_indexing", "ij", "ij")?;
    for (key, usual, wanted) in [
        ("rope_rotate_half", own.is_some(), true),
        ("use_abs_pos_emb", own.is_none(), false),
        ("use_post_norm", false, false),
    ] {
        if args.flag(key, usual)? != wanted {
            return Err(format!(
                "'{key}' is {}: of models with rotary positions, only those like DINOv3's are computed here",
                !wanted
            ));
        }
    }
    if args
        .get("rope_grid_offset")
        .is_some_and(|offset| offset.as_f64() != Some(0.0))
    {
        return args.wrong("rope_grid_offset", "0, as in DINOv3");
    }
    let moves = [
        "rope_shift_coords",
        "rope_jitter_coords",
        "rope_rescale_coords",
    ];
    let moves: Vec<&str> = moves
        .into_iter()
        .filter(|key| args.get(key).is_some())
        .collect();
    if !moves.is_empty() {
        notes.push(format!(
            "config.json: {} moves positions at random in training; here they are never moved",
            moves.join(", ")
        ));
    }
    let theta = args.positive("rope_temperature", own.unwrap_or(EVA_THETA), MAX_THETA)?;
    Ok(Some(PosEmbed::Rope { theta }))
}

/// timm's default where no model function sets another.
const EVA_THETA: f64 = 10_000.0;

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
    read.bands = keys.flag(BANDS, read.bands)?;
    let size = read.size;
    into.preprocess = Some(read);
    into.labels = names(json);
    let preset = VitConfig::preset(name);
    let positions = rotary(name, preset.as_ref(), &args, &mut into.notes)?;
    let swin = name.starts_with("swin_");
    if !swin {
        let known: &[&[&str]] = match positions {
            Some(_) => &[&ARGS, &EVA_ARGS],
            None => &[&ARGS],
        };
        args.note_others(
            &known.concat(),
            "config.json, 'model_args'",
            &mut into.notes,
        );
    }
    if let Some(said) = args.get("num_reg_tokens").filter(|_| positions.is_some()) {
        let found = |cfg: &VitConfig| cfg.reg_tokens.into();
        into.claims
            .push(Claim::new("num_reg_tokens", said.clone(), found));
    }
    for keys in [&args, &Keys::of(cfg)?] {
        if let Some(said) = keys.channels("in_chans")? {
            into.claims
                .push(Claim::new("in_chans", said, |cfg| cfg.in_chans.into()));
        }
    }
    let pool = match args.text("global_pool")? {
        Some(pool) => Some(pool),
        None => keys.text("global_pool")?,
    };
    if swin {
        return swin::of_timm(name, &args, pool, size, into);
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
    Ok(Hints {
        num_heads: args.count("num_heads")?,
        image: args.pixels("img_size")?.or(size),
        fallback_image: None,
        // EVA's own; a model function of DINOv3's sets another.
        norm_eps: (positions.is_some() && preset.is_none()).then_some(1e-6),
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
        pos_embed: positions,
        window_size: None,
        init_values: None,
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
