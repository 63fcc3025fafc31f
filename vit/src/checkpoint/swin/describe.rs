//! What config.json says of a Swin.
use serde_json::Value;

use super::super::describe::{activation, Claim, Description, Hints, GENERAL};
use super::super::keys::Keys;
use crate::{Pool, VitConfig};

type Found = fn(&VitConfig) -> Value;

/// Arguments of timm's model that are heeded, that the tensors tell, or that only training uses.
const ARGS: [&str; 21] = [
    "always_partition",
    "attn_drop_rate",
    "depths",
    "drop_path_rate",
    "drop_rate",
    "dynamic_img_size",
    "embed_dim",
    "features_only",
    "global_pool",
    "img_size",
    "in_chans",
    "mlp_ratio",
    "num_classes",
    "num_heads",
    "patch_size",
    "proj_drop_rate",
    "qkv_bias",
    "scriptable",
    "strict_img_size",
    "weight_init",
    "window_size",
];

/// timm's `model_args`, and the `global_pool` that stands beside them.
///
/// # Errors
/// What a key says that cannot be heeded.
pub(in super::super) fn of_timm(
    name: &str,
    args: &Keys,
    global_pool: Option<&str>,
    size: Option<(usize, usize)>,
    into: &mut Description,
) -> Result<Hints, String> {
    args.note_others(&ARGS, "config.json, 'model_args'", &mut into.notes);
    claims(args, "num_heads", into)?;
    if args.flag("always_partition", false)? {
        return args.wrong(
            "always_partition",
            "false: here a stage that is no larger than a window is one window",
        );
    }
    match global_pool {
        None | Some("" | "avg") => {}
        Some(other) => {
            return Err(format!(
                "'global_pool' is '{other}'; of a Swin expected avg"
            ))
        }
    }
    let preset = crate::swin::preset(name.split('.').next().unwrap_or_default());
    let usual = preset.and_then(|cfg| cfg.swin);
    let window_size = match args.get("window_size") {
        Some(_) => Some(window(args)?),
        None => usual.map(|swin| swin.window_size),
    };
    Ok(Hints {
        image: args
            .pixels("img_size")?
            .or(size)
            .or(preset.map(|cfg| cfg.image())),
        pool: Some(Pool::Avg),
        window_size,
        ..Hints::default()
    })
}

/// Keys of transformers' SwinConfig, beside [`GENERAL`], that are heeded or held against the tensors, or say nothing about numbers.
const KNOWN: [&str; 7] = [
    "depths",
    "embed_dim",
    "num_heads",
    "num_layers",
    "path_norm",
    "use_absolute_embeddings",
    "window_size",
];

/// The config.json of transformers' Swin.
///
/// # Errors
/// What a key says that cannot be heeded.
pub(in super::super) fn of_hugging_face(
    keys: &Keys,
    into: &mut Description,
) -> Result<Hints, String> {
    let known: [&[&str]; 2] = [&GENERAL, &KNOWN];
    keys.note_others(&known.concat(), "config.json", &mut into.notes);
    claims(keys, "num_heads", into)?;
    if let Some(said) = keys.count("hidden_size")? {
        into.claims
            .push(Claim::new("hidden_size", said, |cfg| cfg.features().into()));
    }
    if keys.told("use_absolute_embeddings")? == Some(true) {
        return keys.wrong(
            "use_absolute_embeddings",
            "false: such tables are not computed here",
        );
    }
    // Its merging and embedding have this one whatever the key says.
    let eps = keys.positive("layer_norm_eps", 1e-5, 1.0)?;
    if (eps - 1e-5).abs() > 1e-9 {
        return keys.wrong(
            "layer_norm_eps",
            "1e-5, which all norms of a Swin have here",
        );
    }
    Ok(Hints {
        image: keys.pixels("image_size")?,
        norm_eps: Some(1e-5),
        activation: activation(keys, "hidden_act", &mut into.claims)?,
        window_size: Some(match keys.get("window_size") {
            Some(_) => window(keys)?,
            None => 7,
        }),
        pool: Some(Pool::Avg),
        ..Hints::default()
    })
}

/// One size for all windows: `7`, or `[7, 7]`.
fn window(keys: &Keys) -> Result<usize, String> {
    match keys.get("window_size") {
        Some(Value::Array(sides)) => {
            let sides: Vec<Option<u64>> = sides.iter().map(Value::as_u64).collect();
            match sides.first() {
                Some(&Some(side)) if side > 0 && sides.iter().all(|s| *s == Some(side)) => {
                    usize::try_from(side).map_err(|e| e.to_string())
                }
                _ => keys.wrong(
                    "window_size",
                    "one size for the square windows of all stages",
                ),
            }
        }
        _ => Ok(keys.count("window_size")?.unwrap_or(0)),
    }
}

/// What the tensors tell as well.
fn claims(keys: &Keys, heads: &'static str, into: &mut Description) -> Result<(), String> {
    let of_stages: [(&'static str, Found); 2] = [
        ("depths", |cfg| cfg.swin.map(|s| s.depths.to_vec()).into()),
        (heads, |cfg| cfg.swin.map(|s| s.num_heads.to_vec()).into()),
    ];
    for (key, found) in of_stages {
        match keys.get(key) {
            None => {}
            Some(said @ Value::Array(_)) => {
                into.claims.push(Claim::new(key, said.clone(), found));
            }
            Some(_) => return keys.wrong(key, "a number for each stage"),
        }
    }
    if let Some(said) = keys.count("embed_dim")? {
        into.claims
            .push(Claim::new("embed_dim", said, |cfg| cfg.embed_dim.into()));
    }
    if let Some(said) = keys.told("qkv_bias")? {
        into.claims
            .push(Claim::new("qkv_bias", said, |cfg| cfg.qkv_bias.into()));
    }
    if let Some((height, width)) = keys.pixels("patch_size")? {
        into.claims
            .push(Claim::new("patch_size", vec![height, width], |cfg| {
                vec![cfg.patch_size; 2].into()
            }));
    }
    // Others than whole ones are rounded.
    let ratio = keys.get("mlp_ratio").and_then(Value::as_f64);
    if let Some(ratio) = ratio.filter(|x| x.fract() == 0.0) {
        into.claims
            .push(Claim::new("mlp_ratio", ratio, |cfg| cfg.mlp_ratio.into()));
    }
    Ok(())
}
