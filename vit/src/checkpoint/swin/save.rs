//! A Swin in the layouts of timm and transformers.
use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use serde_json::{json, Map, Value};

use super::super::load::Pretrained;
use super::super::preprocess;
use super::super::save::{ratio, Files};
use crate::swin::STAGES;
use crate::{Error, SwinConfig, VitConfig};

/// Of timm's `model_args` what ViTs have not, and the names of its tensors; the rest of its config.json is every model's.
pub(in super::super) fn to_timm(
    model: &Pretrained,
    swin: &SwinConfig,
) -> (Value, BTreeMap<String, Tensor>) {
    let args = json!({
        "window_size": swin.window_size,
        "depths": swin.depths,
        "num_heads": swin.num_heads,
    });
    let with = |(name, tensor): (&String, &Tensor)| {
        let name = match name.strip_prefix("head.") {
            Some(kind) => format!("head.fc.{kind}"),
            None => name.clone(),
        };
        (name, tensor.clone())
    };
    (args, model.tensors.iter().map(with).collect())
}

/// What transformers' Swin computes otherwise than ours (and timm's) at this image size, or cannot hold.
pub(in super::super) fn differs_in_transformers(cfg: &VitConfig) -> Option<String> {
    let swin = cfg.swin?;
    let side = swin.window_size;
    for stage in 0..STAGES {
        let (rows, columns) = cfg.stage_grid(stage);
        let why = match () {
            () if rows.min(columns) < side => "has none smaller than the others",
            () if rows != columns && rows.min(columns) == side => {
                "shifts none where one side is as long as a window"
            }
            () if swin.depths[stage] > 1
                && (rows % side > 0 || columns % side > 0)
                && rows.max(columns) > side =>
            {
                "fills up a grid before it is shifted, timm and we afterwards"
            }
            () => continue,
        };
        return Some(format!(
            "stage {stage} has {rows} x {columns} tokens in windows of {side}: transformers' Swin {why}"
        ));
    }
    None
}

fn no(reason: String) -> Error {
    Error::Layout {
        layout: "hf",
        reason,
    }
}

/// Whether transformers computes the same.
///
/// # Errors
/// [`Error::Layout`] with what it does otherwise and what to do.
pub(in super::super) fn check(cfg: &VitConfig) -> Result<(), Error> {
    let reason = differs_in_transformers(cfg).map(|why| format!("{why}; use --to timm"));
    let eps = (cfg.norm_eps != 1e-5).then(|| {
        format!(
            "its norms add 1e-5, this model's {:e}; use --to timm",
            cfg.norm_eps
        )
    });
    reason.or(eps).map_or(Ok(()), |reason| Err(no(reason)))
}

/// A folder of transformers' `SwinModel` or `SwinForImageClassification`.
pub(in super::super) fn to_hugging_face(
    model: &Pretrained,
    swin: &SwinConfig,
    dtype: DType,
) -> Result<Files, Error> {
    let cfg = &model.cfg;
    check(cfg)?;
    let mut tensors = BTreeMap::new();
    for (name, tensor) in &model.tensors {
        rename(cfg, name, tensor, &mut tensors)?;
    }
    let (images, notes) = preprocess::to_hugging_face(&model.preprocess, cfg.image());
    let files = vec![
        ("config.json", config(model, swin, dtype)),
        ("preprocessor_config.json", images),
    ];
    Ok((files, tensors, notes))
}

fn rename(
    cfg: &VitConfig,
    name: &str,
    tensor: &Tensor,
    out: &mut BTreeMap<String, Tensor>,
) -> Result<(), Error> {
    // The base model alone has no prefix.
    let base = match cfg.num_classes {
        0 => "",
        _ => "swin.",
    };
    let unknown = || no(format!("tensor '{name}' has no place in it"));
    let (module, kind) = name.rsplit_once('.').ok_or_else(unknown)?;
    let whole = match module {
        "patch_embed.proj" => "embeddings.patch_embeddings.projection",
        "patch_embed.norm" => "embeddings.norm",
        "norm" => "layernorm",
        "head" => {
            out.insert(format!("classifier.{kind}"), tensor.clone());
            return Ok(());
        }
        _ => "",
    };
    if !whole.is_empty() {
        out.insert(format!("{base}{whole}.{kind}"), tensor.clone());
        return Ok(());
    }
    let (stage, rest) = module
        .strip_prefix("layers.")
        .and_then(|rest| rest.split_once('.'))
        .ok_or_else(unknown)?;
    let stage: usize = stage.parse().map_err(|_| unknown())?;
    if let Some(part) = rest.strip_prefix("downsample.") {
        let before = stage.checked_sub(1).ok_or_else(unknown)?;
        let name = format!("{base}encoder.layers.{before}.downsample.{part}.{kind}");
        out.insert(name, tensor.clone());
        return Ok(());
    }
    let (index, part) = rest
        .strip_prefix("blocks.")
        .and_then(|rest| rest.split_once('.'))
        .ok_or_else(unknown)?;
    let block = format!("{base}encoder.layers.{stage}.blocks.{index}");
    if part == "attn.qkv" {
        let dim = cfg.stage_dim(stage);
        for (i, part) in ["query", "key", "value"].into_iter().enumerate() {
            let part_name = format!("{block}.attention.self.{part}.{kind}");
            out.insert(part_name, tensor.narrow(0, i * dim, dim)?.contiguous()?);
        }
        return Ok(());
    }
    let theirs = match part {
        "norm1" => "layernorm_before",
        "norm2" => "layernorm_after",
        "attn" => "attention.self",
        "attn.proj" => "attention.output.dense",
        "mlp.fc1" => "intermediate.dense",
        "mlp.fc2" => "output.dense",
        _ => return Err(unknown()),
    };
    out.insert(format!("{block}.{theirs}.{kind}"), tensor.clone());
    Ok(())
}

fn config(model: &Pretrained, swin: &SwinConfig, dtype: DType) -> Value {
    let cfg = &model.cfg;
    let class = match cfg.num_classes {
        0 => "SwinModel",
        _ => "SwinForImageClassification",
    };
    let (height, width) = cfg.image();
    let mut config = json!({
        "architectures": [class],
        "model_type": "swin",
        "image_size": if height == width { json!(height) } else { json!([height, width]) },
        "patch_size": cfg.patch_size,
        "num_channels": cfg.in_chans,
        "embed_dim": cfg.embed_dim,
        "depths": swin.depths,
        "num_heads": swin.num_heads,
        "window_size": swin.window_size,
        "mlp_ratio": ratio(cfg),
        "qkv_bias": cfg.qkv_bias,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "layer_norm_eps": cfg.norm_eps,
        "use_absolute_embeddings": false,
        "dtype": match dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        },
    });
    if cfg.num_classes > 0 {
        let (mut names, mut numbers) = (Map::new(), Map::new());
        for i in 0..cfg.num_classes {
            let name = model.labels.get(&i).cloned();
            let name = name.unwrap_or_else(|| format!("LABEL_{i}"));
            names.insert(i.to_string(), json!(name));
            numbers.insert(name, json!(i));
        }
        config["id2label"] = Value::Object(names);
        config["label2id"] = Value::Object(numbers);
    }
    config
}
