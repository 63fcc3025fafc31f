//! Hugging Face's config.json. Absent keys have the defaults of transformers' ViT, DeiT, ViTMAE and DINOv2.
use serde_json::Value;

use super::{activation, labels, Claim, Description, Hints};
use crate::checkpoint::keys::Keys;
use crate::Activation;

/// Keys that are heeded or held against the tensors; then those that say how to train, what else a file holds (decoder,
/// pooler, mask token), or nothing about numbers. Of transformers 5.24 and before.
const KNOWN: [&str; 60] = [
    "architectures",
    "hidden_act",
    "hidden_size",
    "id2label",
    "image_size",
    "intermediate_size",
    "layer_norm_eps",
    "mlp_ratio",
    "model_type",
    "num_attention_heads",
    "num_channels",
    "num_hidden_layers",
    "num_register_tokens",
    "patch_size",
    "problem_type",
    "qkv_bias",
    "use_swiglu_ffn",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "_num_labels",
    "attention_probs_dropout_prob",
    "attn_implementation",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "decoder_hidden_size",
    "decoder_intermediate_size",
    "decoder_num_attention_heads",
    "decoder_num_hidden_layers",
    "drop_path_rate",
    "dtype",
    "encoder_stride",
    "finetuning_task",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "layerscale_value",
    "mask_ratio",
    "norm_pix_loss",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "pooler_act",
    "pooler_output_size",
    "return_dict",
    "tie_word_embeddings",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "use_bfloat16",
    "use_cache",
    "use_mask_token",
    "use_return_dict",
    // Of backbones, of which a note tells.
    "apply_layernorm",
    "out_features",
    "out_indices",
    "reshape_hidden_states",
    "stage_names",
];
/// Heads of every model type here whose config.json has none.
const HEADS: usize = 12;
/// The same of ViTMAE's decoder.
const DECODER_HEADS: usize = 16;

pub(super) fn read(json: &Value, into: &mut Description) -> Result<Hints, String> {
    let keys = Keys::of(json)?;
    into.channels = keys.channels("num_channels")?;
    into.decoder_heads = match keys.count("decoder_num_attention_heads")? {
        None if into.name.as_deref() == Some("vit_mae") => Some(DECODER_HEADS),
        heads => heads,
    };
    keys.note_others(&KNOWN, "config.json", &mut into.notes);
    if let Some(value) = keys.get("id2label") {
        if !value.is_object() && !value.is_array() {
            return keys.wrong("id2label", "names of classes by number");
        }
        into.labels = labels(value);
    }
    classes(&keys, &mut into.notes)?;
    let num_heads = match keys.count("num_attention_heads")? {
        None if transformers_has(into.name.as_deref()) => {
            into.notes.push(format!(
                "config.json has no 'num_attention_heads': {HEADS} taken, transformers' default"
            ));
            Some(HEADS)
        }
        heads => heads,
    };
    claims(&keys, &mut into.claims)?;
    Ok(Hints {
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

fn claims(keys: &Keys, claims: &mut Vec<Claim>) -> Result<(), String> {
    type Found = fn(&crate::VitConfig) -> Value;
    let mut counts: Vec<(&'static str, Found)> = vec![
        ("num_hidden_layers", |cfg| cfg.depth.into()),
        ("hidden_size", |cfg| cfg.embed_dim.into()),
        ("num_channels", |cfg| cfg.in_chans.into()),
    ];
    let swiglu = keys.told("use_swiglu_ffn")?;
    if let Some(swiglu) = swiglu {
        claims.push(Claim::new("use_swiglu_ffn", swiglu, |cfg| {
            (cfg.activation == Activation::SwiGlu).into()
        }));
    }
    // How wide SwiGLU's layers are follows from these by a rule.
    if swiglu != Some(true) {
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
