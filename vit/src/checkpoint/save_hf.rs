//! Our weights in the words of Hugging Face's transformers.
use std::collections::BTreeMap;

use candle_core::{DType, Tensor, D};
use serde_json::{json, Map, Value};

use super::load::Pretrained;
use super::preprocess::to_hugging_face;
use super::save::{extend, Files};
use crate::{Activation, Error, Pool, VitConfig};

/// transformers' models that have the parts of ours.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Class token and patches.
    Vit,
    /// One token more.
    Deit,
    /// LayerScale (all ones where ours has none), SwiGLU, registers, a head on class token and mean of the patches.
    Dinov2,
    /// The same with rotary positions, and without a head.
    Dinov3,
}

pub(super) fn convert(model: &Pretrained, dtype: DType) -> Result<Files, Error> {
    let cfg = &model.cfg;
    if let Some(swin) = &cfg.swin {
        return super::swin::to_hugging_face(model, swin, dtype);
    }
    let kind = kind(cfg)?;
    let mut tensors = BTreeMap::new();
    for (name, tensor) in model.with_table()? {
        rename(kind, cfg, &name, tensor, &mut tensors)?;
    }
    complete(kind, cfg, &mut tensors)?;
    let base = match kind {
        Kind::Vit => "vit.",
        Kind::Deit => "deit.",
        Kind::Dinov2 if cfg.reg_tokens > 0 => "dinov2_with_registers.",
        Kind::Dinov2 => "dinov2.",
        Kind::Dinov3 => "",
    };
    if cfg.num_classes > 0 {
        let with = |(name, tensor): (String, Tensor)| match name.contains("classifier.") {
            true => (name, tensor),
            false => (format!("{base}{name}"), tensor),
        };
        tensors = tensors.into_iter().map(with).collect();
    }
    let (images, notes) = to_hugging_face(&model.preprocess, cfg.image());
    let files = vec![
        ("config.json", config(kind, model, dtype)?),
        ("preprocessor_config.json", images),
    ];
    Ok((files, tensors, notes))
}

fn no(reason: &str) -> Error {
    Error::Layout {
        layout: "hf",
        reason: reason.to_owned(),
    }
}

pub(super) fn check(cfg: &VitConfig) -> Result<(), Error> {
    if cfg.swin.is_some() {
        return super::swin::check_hugging_face(cfg);
    }
    kind(cfg).map(drop)
}

/// What serves where transformers' own classes do not.
const TIMM: &str = "use --to timm, whose folder transformers loads too, by AutoModelForImageClassification (as TimmWrapper; timm must be installed)";

fn kind(cfg: &VitConfig) -> Result<Kind, Error> {
    let head = cfg.num_classes > 0;
    if cfg.pre_norm {
        return Err(no(&format!(
            "transformers' ViT has no norm before the blocks (CLIP); {TIMM}"
        )));
    }
    if cfg.fc_norm {
        return Err(no(&format!(
            "transformers' ViT has no norm after the pooling (fc_norm); {TIMM}"
        )));
    }
    if cfg.rope_theta().is_some() {
        return match (head, cfg.dist_token) {
            (false, false) => Ok(Kind::Dinov3),
            (true, _) => Err(no(&format!(
                "transformers' DINOv3 has no classifier; use --drop-head, or {TIMM}"
            ))),
            (false, true) => Err(no("transformers' DINOv3 has no distillation token")),
        };
    }
    if cfg.qkv_bias && !cfg.key_bias {
        return Err(no("transformers' ViT has a bias of keys or none at all"));
    }
    let dinov2 = cfg.init_values.is_some()
        || cfg.activation == Activation::SwiGlu
        || cfg.reg_tokens > 1
        || (head && cfg.pool != Pool::Token);
    match (dinov2, cfg.dist_token, cfg.reg_tokens) {
        (false, false, 0) => Ok(Kind::Vit),
        (false, true, 0) | (false, false, 1) => Ok(Kind::Deit),
        (true, false, registers) if registers == 0 || cfg.no_embed_class => Ok(Kind::Dinov2),
        _ => Err(no(&format!(
            "transformers has no ViT with these tokens before the patches; {TIMM}"
        ))),
    }
}

fn rename(
    kind: Kind,
    cfg: &VitConfig,
    name: &str,
    tensor: Tensor,
    out: &mut BTreeMap<String, Tensor>,
) -> Result<(), Error> {
    let mut put = |name: String, tensor: Tensor| {
        out.insert(name, tensor);
    };
    let dim = cfg.embed_dim;
    if let Some(rest) = name.strip_prefix("blocks.") {
        let (index, part) = rest.split_once('.').unwrap_or_default();
        let dinov3 = kind == Kind::Dinov3;
        let layer = match dinov3 {
            true => format!("layer.{index}"),
            false => format!("encoder.layer.{index}"),
        };
        let (module, value) = part.rsplit_once('.').unwrap_or_default();
        for (ours, theirs) in [("q_bias", "q_proj"), ("v_bias", "v_proj")] {
            if dinov3 && value == ours {
                put(format!("{layer}.attention.{theirs}.bias"), tensor);
                return Ok(());
            }
        }
        if dinov3 && module == "mlp.fc1" && cfg.activation == Activation::SwiGlu {
            let half = tensor.dim(0)? / 2;
            for (i, part) in ["gate_proj", "up_proj"].into_iter().enumerate() {
                let name = format!("{layer}.mlp.{part}.{value}");
                put(name, tensor.narrow(0, i * half, half)?.contiguous()?);
            }
            return Ok(());
        }
        if module == "attn.qkv" {
            let parts = match dinov3 {
                true => ["q_proj", "k_proj", "v_proj"],
                false => ["attention.query", "attention.key", "attention.value"],
            };
            for (i, part) in parts.into_iter().enumerate() {
                let name = format!("{layer}.attention.{part}.{value}");
                put(name, tensor.narrow(0, i * dim, dim)?.contiguous()?);
            }
            return Ok(());
        }
        for (scale, theirs) in [("ls1", "layer_scale1"), ("ls2", "layer_scale2")] {
            if module == scale {
                put(format!("{layer}.{theirs}.lambda1"), tensor);
                return Ok(());
            }
        }
        let swiglu = cfg.activation == Activation::SwiGlu;
        let theirs = match (module, kind) {
            ("norm1", Kind::Dinov2 | Kind::Dinov3) => "norm1",
            ("norm2", Kind::Dinov2 | Kind::Dinov3) => "norm2",
            ("attn.proj", Kind::Dinov3) => "attention.o_proj",
            ("mlp.fc1", Kind::Dinov3) => "mlp.up_proj",
            ("mlp.fc2", Kind::Dinov3) => "mlp.down_proj",
            ("norm1", _) => "layernorm_before",
            ("norm2", _) => "layernorm_after",
            ("attn.proj", _) => "attention.output.dense",
            ("mlp.fc1", Kind::Dinov2) if swiglu => "mlp.weights_in",
            ("mlp.fc2", Kind::Dinov2) if swiglu => "mlp.weights_out",
            ("mlp.fc1", Kind::Dinov2) => "mlp.fc1",
            ("mlp.fc2", Kind::Dinov2) => "mlp.fc2",
            ("mlp.fc1", _) => "intermediate.dense",
            ("mlp.fc2", _) => "output.dense",
            _ => return Err(no(&format!("tensor '{name}' has no place in it"))),
        };
        put(format!("{layer}.{theirs}.{value}"), tensor);
        return Ok(());
    }
    let (module, value) = name.rsplit_once('.').unwrap_or((name, ""));
    let teacher = kind == Kind::Deit && cfg.dist_token;
    match module {
        "cls_token" => put("embeddings.cls_token".into(), tensor),
        "dist_token" => put("embeddings.distillation_token".into(), tensor),
        "reg_token" if kind == Kind::Deit => {
            put("embeddings.distillation_token".into(), tensor);
        }
        "reg_token" => put("embeddings.register_tokens".into(), tensor),
        "pos_embed" => {
            // Theirs has rows for the first tokens, zeros where ours has none; DINOv2's only for the class token.
            let wanted = if kind == Kind::Deit { 2 } else { 1 };
            let missing = wanted - cfg.embedded_prefix().min(wanted);
            let zeros = tensor
                .narrow(1, 0, 1)?
                .zeros_like()?
                .repeat((1, missing, 1))?;
            let tensor = match missing {
                0 => tensor,
                _ => Tensor::cat(&[&zeros, &tensor], 1)?,
            };
            put("embeddings.position_embeddings".into(), tensor);
        }
        "patch_embed.proj" if kind == Kind::Dinov3 => {
            put(format!("embeddings.patch_embeddings.{value}"), tensor);
        }
        "norm" if kind == Kind::Dinov3 => put(format!("norm.{value}"), tensor),
        "patch_embed.proj" => put(
            format!("embeddings.patch_embeddings.projection.{value}"),
            tensor,
        ),
        "norm" => put(format!("layernorm.{value}"), tensor),
        "head" if teacher => put(format!("cls_classifier.{value}"), tensor),
        "head_dist" => put(format!("distillation_classifier.{value}"), tensor),
        "head" => {
            // DINOv2's head sees class token and mean: what ours does not see gets zeros.
            let tensor = match (kind, cfg.pool, value) {
                (Kind::Dinov2, Pool::Token, "weight") => {
                    Tensor::cat(&[&tensor, &tensor.zeros_like()?], D::Minus1)?
                }
                (Kind::Dinov2, Pool::Avg, "weight") => {
                    Tensor::cat(&[&tensor.zeros_like()?, &tensor], D::Minus1)?
                }
                _ => tensor,
            };
            put(format!("classifier.{value}"), tensor);
        }
        _ => return Err(no(&format!("tensor '{name}' has no place in it"))),
    }
    Ok(())
}

/// Parts that theirs has and ours does without.
fn complete(kind: Kind, cfg: &VitConfig, out: &mut BTreeMap<String, Tensor>) -> Result<(), Error> {
    let Some(token) = out.get("embeddings.cls_token") else {
        return Ok(());
    };
    let (dim, dtype, device) = (cfg.embed_dim, token.dtype(), token.device().clone());
    if kind == Kind::Dinov2 || kind == Kind::Dinov3 {
        let (mask, layers) = match kind {
            Kind::Dinov3 => (vec![1, 1, dim], "layer"),
            _ => (vec![1, dim], "encoder.layer"),
        };
        let zeros = |shape: Vec<usize>| Tensor::zeros(shape, dtype, &device);
        out.insert("embeddings.mask_token".into(), zeros(mask)?);
        if kind == Kind::Dinov3 && cfg.reg_tokens == 0 {
            let none = zeros(vec![1, 0, dim])?;
            out.insert("embeddings.register_tokens".into(), none);
        }
        if cfg.init_values.is_none() {
            let one = Tensor::ones(dim, dtype, &device)?;
            for i in 0..cfg.depth {
                for k in [1, 2] {
                    let name = format!("{layers}.{i}.layer_scale{k}.lambda1");
                    out.insert(name, one.clone());
                }
            }
        }
    } else if cfg.num_classes == 0 {
        // The base models have a pooler: the identity, so that pooler_output is the class token.
        out.insert(
            "pooler.dense.weight".into(),
            Tensor::eye(dim, dtype, &device)?,
        );
        out.insert(
            "pooler.dense.bias".into(),
            Tensor::zeros(dim, dtype, &device)?,
        );
    }
    Ok(())
}

fn config(kind: Kind, model: &Pretrained, dtype: DType) -> Result<Value, Error> {
    let cfg = &model.cfg;
    let head = cfg.num_classes > 0;
    let registers = kind == Kind::Dinov2 && cfg.reg_tokens > 0;
    let (model_type, class) = match (kind, head) {
        (Kind::Vit, true) => ("vit", "ViTForImageClassification"),
        (Kind::Vit, false) => ("vit", "ViTModel"),
        (Kind::Deit, true) if cfg.dist_token => ("deit", "DeiTForImageClassificationWithTeacher"),
        (Kind::Deit, true) => ("deit", "DeiTForImageClassification"),
        (Kind::Deit, false) => ("deit", "DeiTModel"),
        (Kind::Dinov3, _) => ("dinov3_vit", "DINOv3ViTModel"),
        (_, true) if registers => (
            "dinov2_with_registers",
            "Dinov2WithRegistersForImageClassification",
        ),
        (_, false) if registers => ("dinov2_with_registers", "Dinov2WithRegistersModel"),
        (_, true) => ("dinov2", "Dinov2ForImageClassification"),
        (_, false) => ("dinov2", "Dinov2Model"),
    };
    let (height, width) = cfg.image();
    let mut config = json!({
        "architectures": [class],
        "model_type": model_type,
        "hidden_size": cfg.embed_dim,
        "num_hidden_layers": cfg.depth,
        "num_attention_heads": cfg.num_heads,
        "hidden_act": match cfg.activation {
            Activation::GeluTanh => "gelu_pytorch_tanh",
            Activation::QuickGelu => "quick_gelu",
            Activation::Gelu | Activation::SwiGlu => "gelu",
        },
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": cfg.norm_eps,
        "image_size": if height == width { json!(height) } else { json!([height, width]) },
        "patch_size": cfg.patch_size,
        "num_channels": cfg.in_chans,
        "qkv_bias": cfg.qkv_bias,
        "dtype": match dtype {
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            _ => "float32",
        },
    });
    if kind == Kind::Dinov3 {
        let gated = cfg.activation == Activation::SwiGlu;
        let hidden = cfg.mlp_hidden() / (1 + usize::from(gated));
        let biases = cfg.qkv_bias;
        let own = json!({
            "hidden_act": if gated { json!("silu") } else { config["hidden_act"].clone() },
            "intermediate_size": hidden,
            "key_bias": biases && cfg.key_bias,
            "layerscale_value": cfg.init_values.unwrap_or(1.0),
            "num_register_tokens": cfg.reg_tokens,
            "query_bias": biases,
            "rope_theta": cfg.rope_theta(),
            // Of their training alone; ours moves no positions.
            "pos_embed_rescale": null,
            "use_gated_mlp": gated,
            "value_bias": biases,
        });
        if let Some(config) = config.as_object_mut() {
            for key in [
                "attention_probs_dropout_prob",
                "hidden_dropout_prob",
                "qkv_bias",
            ] {
                config.remove(key);
            }
        }
        extend(&mut config, own);
    } else if kind == Kind::Dinov2 {
        config["mlp_ratio"] = json!(mlp_ratio(cfg)?);
        config["use_swiglu_ffn"] = json!(cfg.activation == Activation::SwiGlu);
        config["layerscale_value"] = json!(cfg.init_values.unwrap_or(1.0));
        if registers {
            config["num_register_tokens"] = json!(cfg.reg_tokens);
        }
    } else {
        config["intermediate_size"] = json!(cfg.mlp_hidden());
        if !head {
            config["pooler_act"] = json!("linear");
            config["pooler_output_size"] = json!(cfg.embed_dim);
        }
    }
    if head {
        let name = |i: usize| match model.labels.get(&i) {
            Some(name) => name.clone(),
            None => format!("LABEL_{i}"),
        };
        let (mut names, mut numbers) = (Map::new(), Map::new());
        for i in 0..cfg.num_classes {
            names.insert(i.to_string(), json!(name(i)));
            numbers.insert(name(i), json!(i));
        }
        config["id2label"] = Value::Object(names);
        config["label2id"] = Value::Object(numbers);
    }
    Ok(config)
}

/// The whole number of which transformers makes this MLP's width.
fn mlp_ratio(cfg: &VitConfig) -> Result<usize, Error> {
    let (dim, hidden) = (cfg.embed_dim, cfg.mlp_hidden());
    let fits = |&ratio: &usize| match cfg.activation {
        // Two thirds of it, rounded up to a multiple of 8, for each half.
        Activation::SwiGlu => 2 * (dim * ratio * 2 / 3).next_multiple_of(8) == hidden,
        _ => dim * ratio == hidden,
    };
    (1..=64).find(fits).ok_or_else(|| {
        no(&format!(
            "its MLP is {hidden} wide, which is no whole multiple of {dim} as transformers' DINOv2 needs; {TIMM}"
        ))
    })
}
