//! Hugging Face's config.json. Absent keys have the defaults of transformers' ViT, DeiT, ViTMAE, DINOv2 and DINOv3.
use serde_json::Value;

use super::{activation, labels, Claim, Description, Hints};
use crate::checkpoint::keys::Keys;
use crate::checkpoint::swin;
use crate::config::MAX_THETA;
use crate::{Activation, PosEmbed, VitConfig};

/// Keys of all model types that are heeded or held against the tensors; then those that say how to train, what else a file
/// holds, or nothing about numbers. Of transformers 5.24 and before.
pub(in super::super) const GENERAL: [&str; 43] = [
    "architectures",
    "hidden_act",
    "hidden_size",
    "id2label",
    "image_size",
    "layer_norm_eps",
    "mlp_ratio",
    "model_type",
    "num_attention_heads",
    "num_channels",
    "num_hidden_layers",
    "patch_size",
    "problem_type",
    "qkv_bias",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "_num_labels",
    "attention_probs_dropout_prob",
    "attn_implementation",
    "chunk_size_feed_forward",
    "drop_path_rate",
    "dtype",
    "encoder_stride",
    "finetuning_task",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "tie_word_embeddings",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_cache",
    "use_return_dict",
    // Of backbones, of which a note tells.
    "out_features",
    "out_indices",
    "stage_names",
];
/// The same of ViTs alone.
const KNOWN: [&str; 17] = [
    "intermediate_size",
    "num_register_tokens",
    "use_swiglu_ffn",
    "classifier_dropout",
    "decoder_hidden_size",
    "decoder_intermediate_size",
    "decoder_num_attention_heads",
    "decoder_num_hidden_layers",
    "layerscale_value",
    "mask_ratio",
    "norm_pix_loss",
    "pooler_act",
    "pooler_output_size",
    "use_bfloat16",
    "use_mask_token",
    "apply_layernorm",
    "reshape_hidden_states",
];
/// The same of DINOv3 alone. What only moves coordinates in training is in a note.
const KNOWN_DINOV3: [&str; 12] = [
    "attention_dropout",
    "key_bias",
    "mlp_bias",
    "pos_embed_jitter",
    "pos_embed_rescale",
    "pos_embed_shift",
    "proj_bias",
    "query_bias",
    "return_class_token",
    "rope_theta",
    "use_gated_mlp",
    "value_bias",
];
const DINOV3: &str = "dinov3_vit";
/// Of model types whose config.json has no number of heads.
const HEADS: usize = 12;
const DINOV3_HEADS: usize = 6;
const THETA: f64 = 100.0;
/// Heads of ViTMAE's decoder where its config.json has none.
const DECODER_HEADS: usize = 16;

pub(super) fn read(json: &Value, into: &mut Description) -> Result<Hints, String> {
    let keys = Keys::of(json)?;
    into.channels = keys.channels("num_channels")?;
    into.decoder_heads = match keys.count("decoder_num_attention_heads")? {
        None if into.name.as_deref() == Some("vit_mae") => Some(DECODER_HEADS),
        heads => heads,
    };
    // Some files name their class alone.
    let class = json["architectures"][0].as_str().unwrap_or_default();
    let dinov3 = match into.name.as_deref() {
        Some(name) => name == DINOV3,
        None => class.starts_with("DINOv3ViT"),
    };
    let swin = into.name.as_deref() == Some("swin");
    if !swin {
        let known: &[&[&str]] = match dinov3 {
            true => &[&GENERAL, &KNOWN, &KNOWN_DINOV3],
            false => &[&GENERAL, &KNOWN],
        };
        keys.note_others(&known.concat(), "config.json", &mut into.notes);
    }
    if let Some(value) = keys.get("id2label") {
        if !value.is_object() && !value.is_array() {
            return keys.wrong("id2label", "names of classes by number");
        }
        into.labels = labels(value);
    }
    classes(&keys, &mut into.notes)?;
    if swin {
        return swin::of_hugging_face(&keys, into);
    }
    let num_heads = match keys.count("num_attention_heads")? {
        None if dinov3 || transformers_has(into.name.as_deref()) => {
            let heads = if dinov3 { DINOV3_HEADS } else { HEADS };
            into.notes.push(format!(
                "config.json has no 'num_attention_heads': {heads} taken, transformers' default"
            ));
            Some(heads)
        }
        heads => heads,
    };
    claims(&keys, dinov3, &mut into.claims)?;
    Ok(Hints {
        pos_embed: match dinov3 {
            true => Some(rotary(&keys, into)?),
            false => None,
        },
        num_heads,
        image: keys.pixels("image_size")?,
        norm_eps: match keys.get("layer_norm_eps") {
            None => None,
            Some(_) => Some(keys.positive("layer_norm_eps", 0.0, 1.0)?),
        },
        activation: activation(&keys, "hidden_act", &mut into.claims)?,
        ..Hints::default()
    })
}

/// DINOv3's positions, and what its config.json says beside.
fn rotary(keys: &Keys, into: &mut Description) -> Result<PosEmbed, String> {
    let theta = keys.positive("rope_theta", THETA, MAX_THETA)?;
    if let Some(other) = keys.get("rope_parameters") {
        let said = other["rope_theta"].as_f64();
        if said.is_some_and(|said| said != theta) {
            return keys.wrong("rope_parameters", "the same theta as 'rope_theta', or none");
        }
    }
    let moves = ["pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"];
    let moves: Vec<&str> = moves
        .into_iter()
        .filter(|key| keys.get(key).is_some())
        .collect();
    if !moves.is_empty() {
        into.notes.push(format!(
            "config.json: {} moves positions at random in training; here they are never moved",
            moves.join(", ")
        ));
    }
    // Gates are SiLU here; of DINOv2's the key says nothing.
    if keys.flag("use_gated_mlp", false)? && keys.text("hidden_act")? != Some("silu") {
        return keys.wrong("hidden_act", "silu, as 'use_gated_mlp' is true");
    }
    Ok(PosEmbed::Rope { theta })
}

fn transformers_has(model_type: Option<&str>) -> bool {
    model_type.is_some_and(|name| {
        ["vit", "deit", "vit_mae", "dinov2", "dinov2_with_registers"].contains(&name)
    })
}

/// Of classes whose output is another than here.
fn classes(keys: &Keys, notes: &mut Vec<String>) -> Result<(), String> {
    let names = match keys.get("architectures") {
        None => &[][..],
        Some(Value::Array(names)) => names,
        Some(_) => return keys.wrong("architectures", "a list of names"),
    };
    let backbone = |name: &&str| name.ends_with("Backbone");
    if let Some(name) = names.iter().filter_map(Value::as_str).find(backbone) {
        notes.push(format!(
            "config.json: a '{name}' gives maps of single blocks ('out_features'); here features are the last block's, normalised"
        ));
    }
    match keys.text("problem_type")? {
        None | Some("single_label_classification") => {}
        Some(other) => notes.push(format!(
            "config.json: 'problem_type' is '{other}', not used: probabilities are by softmax over all classes"
        )),
    }
    Ok(())
}

fn gated(cfg: &VitConfig) -> Value {
    (cfg.activation == Activation::SwiGlu).into()
}

fn claims(keys: &Keys, dinov3: bool, claims: &mut Vec<Claim>) -> Result<(), String> {
    type Found = fn(&VitConfig) -> Value;
    let mut counts: Vec<(&'static str, Found)> = vec![
        ("num_hidden_layers", |cfg| cfg.depth.into()),
        ("hidden_size", |cfg| cfg.embed_dim.into()),
        ("num_channels", |cfg| cfg.in_chans.into()),
    ];
    let swiglu = keys.told("use_swiglu_ffn")?;
    if let Some(swiglu) = swiglu {
        claims.push(Claim::new("use_swiglu_ffn", swiglu, gated));
    }
    if dinov3 {
        // transformers' default is no gate.
        let asked = keys.flag("use_gated_mlp", false)?;
        claims.push(Claim::new("use_gated_mlp", asked, gated));
        let flags: [(&'static str, Found); 5] = [
            ("mlp_bias", |_| true.into()),
            ("proj_bias", |_| true.into()),
            ("query_bias", |cfg| cfg.qkv_bias.into()),
            ("key_bias", |cfg| (cfg.qkv_bias && cfg.key_bias).into()),
            ("value_bias", |cfg| cfg.qkv_bias.into()),
        ];
        for (key, found) in flags {
            if let Some(said) = keys.told(key)? {
                claims.push(Claim::new(key, said, found));
            }
        }
        if let Some(said) = keys.count("intermediate_size")? {
            let claim = Claim::new("intermediate_size", said, |cfg| match cfg.activation {
                Activation::SwiGlu => (cfg.mlp_hidden() / 2).into(),
                _ => cfg.mlp_hidden().into(),
            });
            claims.push(claim);
        }
    }
    // How wide SwiGLU's layers are follows from these by a rule.
    if swiglu != Some(true) && !dinov3 {
        counts.push(("intermediate_size", |cfg| cfg.mlp_hidden().into()));
        // Others than whole ones are rounded in transformers.
        let ratio = keys.get("mlp_ratio").and_then(Value::as_f64);
        if let Some(ratio) = ratio.filter(|x| x.fract() == 0.0) {
            claims.push(Claim::new("mlp_ratio", ratio, |cfg| cfg.mlp_ratio.into()));
        }
    }
    for (key, found) in counts {
        if let Some(said) = keys.count(key)? {
            claims.push(Claim::new(key, said, found));
        }
    }
    if let Some(said) = keys.get("num_register_tokens") {
        claims.push(Claim::new("num_register_tokens", said.clone(), |cfg| {
            cfg.reg_tokens.into()
        }));
    }
    if let Some((height, width)) = keys.pixels("patch_size")? {
        claims.push(Claim::new("patch_size", vec![height, width], |cfg| {
            vec![cfg.patch_size; 2].into()
        }));
    }
    if let Some((height, width)) = keys.pixels("image_size")? {
        claims.push(Claim::new("image_size", vec![height, width], |cfg| {
            vec![cfg.image().0, cfg.image().1].into()
        }));
    }
    if let Some(said) = keys.told("qkv_bias")? {
        claims.push(Claim::new("qkv_bias", said, |cfg| cfg.qkv_bias.into()));
    }
    Ok(())
}
