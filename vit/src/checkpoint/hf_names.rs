//! Hugging Face's names in timm's words.
use std::collections::BTreeMap;

use super::family::{fold_class_position, mae_decoder, Family, Named, Recipe};

/// What the decoder's names begin with in ours.
const DECODER: &str = "decoder.0.";

/// Both of Hugging Face's ways to name a layer's parts: on disk, and in a `state_dict` of transformers 5.
const LAYER: [(&str, &str); 20] = [
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("norm1", "norm1"),
    ("norm2", "norm2"),
    ("attention.attention.query", "attn.qkv.0"),
    ("attention.attention.key", "attn.qkv.1"),
    ("attention.attention.value", "attn.qkv.2"),
    ("attention.q_proj", "attn.qkv.0"),
    ("attention.k_proj", "attn.qkv.1"),
    ("attention.v_proj", "attn.qkv.2"),
    ("attention.output.dense", "attn.proj"),
    ("attention.o_proj", "attn.proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("mlp.fc1", "mlp.fc1"),
    ("mlp.fc2", "mlp.fc2"),
    ("mlp.weights_in", "mlp.fc1"),
    ("mlp.weights_out", "mlp.fc2"),
    ("mlp.gate_proj", "mlp.fc1.0"),
    ("mlp.up_proj", "mlp.fc1.1"),
];

/// Fills `named` from names without their prefix, each with its stored name.
pub(super) fn rename(inside: &[(&str, &String)], named: &mut Named) {
    let has = |part: &str| inside.iter().any(|(name, _)| name.contains(part));
    let is = |whole: &str| inside.iter().any(|(name, _)| *name == whole);
    named.family = if is("embeddings.patch_embeddings.weight") {
        Family::HfDinov3
    } else if has("layer_scale1.") {
        Family::HfDinov2
    } else if has("distillation_token") {
        Family::HfDeit
    } else if has("decoder.decoder_embed.") {
        Family::HfVitMae
    } else {
        Family::HfVit
    };
    // A distillation token without a head of its own is a register.
    let dinov3 = named.family == Family::HfDinov3;
    let distilled = has("distillation_classifier.") || !has("classifier.");
    let distillation = if distilled { "dist_token" } else { "reg_token" };
    let mut parts: BTreeMap<String, Vec<(usize, String)>> = BTreeMap::new();
    for &(name, stored) in inside {
        // DINOv3's layers are `layer.0` on disk, `model.layer.0` in a `state_dict` of transformers 5.
        let models = match named.family {
            Family::HfDinov3 => &["model."][..],
            _ => &["vit.", "deit.", "dinov2.", "dinov2_with_registers."],
        };
        let name = models
            .iter()
            .find_map(|model| name.strip_prefix(model))
            .unwrap_or(name);
        let decoder = name.strip_prefix("decoder.");
        let beside = name.starts_with("pooler.")
            || name == "rope_embeddings.inv_freq"
            || ["embeddings.mask_token", "embeddings.position_ids"].contains(&name);
        if beside || decoder.is_some() {
            named.beside.push(stored.clone());
        }
        let target = match decoder {
            Some(name) => decoder_target(name),
            None if beside => None,
            None => target(name, distillation),
        };
        let Some(target) = target else {
            if !beside && decoder.is_none() {
                named.unexpected.push(stored.clone());
            }
            continue;
        };
        // `attn.qkv.1.weight`: part 1 of `attn.qkv.weight`.
        let mut words = target.rsplitn(3, '.');
        let (kind, number, rest) = (words.next(), words.next(), words.next());
        match (kind, number.and_then(|n| n.parse().ok()), rest) {
            (Some(kind), Some(part), Some(rest))
                if rest.contains("qkv") || rest.contains("fc1") =>
            {
                let whole = format!("{rest}.{kind}");
                parts.entry(whole).or_default().push((part, stored.clone()));
            }
            _ => {
                named.recipes.insert(target, Recipe::Copy(stored.clone()));
            }
        }
    }
    for (target, mut stack) in parts {
        stack.sort();
        let wanted = if target.contains("qkv") { 3 } else { 2 };
        let has: Vec<usize> = stack.iter().map(|p| p.0).collect();
        let lone = |target: &str, named: &mut Named, name: String| {
            named.recipes.insert(target.to_owned(), Recipe::Copy(name));
        };
        if has.iter().copied().eq(0..wanted) {
            let names = stack.into_iter().map(|p| p.1).collect();
            named.recipes.insert(target, Recipe::Stack(names));
        } else if dinov3 && has == [0, 2] && target.ends_with(".attn.qkv.bias") {
            for (part, name) in stack {
                let ours = if part == 0 { "q_bias" } else { "v_bias" };
                lone(&target.replace("qkv.bias", ours), named, name);
            }
        } else if dinov3 && has == [1] && target.contains(".mlp.fc1.") {
            // Without a gate.
            for (_, name) in stack {
                lone(&target, named, name);
            }
        } else if !target.starts_with(DECODER) {
            // The whole is then missing, and these have no use.
            named.unexpected.extend(stack.into_iter().map(|p| p.1));
        }
    }
    let recipes = std::mem::take(&mut named.recipes).into_iter();
    (named.decoders, named.recipes) = recipes.partition(|(name, _)| name.starts_with(DECODER));
    if named.recipes.contains_key("reg_token") && named.family == Family::HfDinov2 {
        fold_class_position(named);
    }
}

/// A name of ViTMAE's decoder, whose layers are called as the encoder's.
fn decoder_target(name: &str) -> Option<String> {
    // On disk as transformers 4 and 5 write it.
    let layers = ["decoder_layers.", "decoder_encoder.layer."];
    match layers.iter().find_map(|p| name.strip_prefix(p)) {
        Some(layer) => Some(format!(
            "{DECODER}{}",
            target(&format!("layers.{layer}"), "")?
        )),
        None => mae_decoder(name),
    }
}

fn target(name: &str, distillation: &str) -> Option<String> {
    let whole = match name {
        "embeddings.cls_token" => "cls_token",
        "embeddings.distillation_token" => distillation,
        "embeddings.register_tokens" => "reg_token",
        "embeddings.position_embeddings" => "pos_embed",
        _ => "",
    };
    if !whole.is_empty() {
        return Some(whole.to_owned());
    }
    let modules = [
        (
            "embeddings.patch_embeddings.projection.",
            "patch_embed.proj.",
        ),
        ("embeddings.patch_embeddings.", "patch_embed.proj."),
        ("layernorm.", "norm."),
        ("norm.", "norm."),
        ("classifier.", "head."),
        ("cls_classifier.", "head."),
        ("distillation_classifier.", "head_dist."),
    ];
    if let Some(name) = renamed(name, &modules) {
        return Some(name);
    }
    let layers = ["encoder.layer.", "encoder.layers.", "layers.", "layer."];
    let rest = layers.iter().find_map(|p| name.strip_prefix(p))?;
    let (index, part) = rest.split_once('.')?;
    index.parse::<usize>().ok()?;
    for (theirs, ours) in [
        ("layer_scale1.lambda1", "ls1.gamma"),
        ("layer_scale2.lambda1", "ls2.gamma"),
    ] {
        if part == theirs {
            return Some(format!("blocks.{index}.{ours}"));
        }
    }
    if let Some(kind) = part.strip_prefix("mlp.down_proj.") {
        return Some(format!("blocks.{index}.mlp.fc2.{kind}"));
    }
    Some(format!("blocks.{index}.{}", renamed_part(part, &LAYER)?))
}

/// A name that begins as one of `modules`, in our words.
pub(super) fn renamed(name: &str, modules: &[(&str, &str)]) -> Option<String> {
    let ours =
        |(theirs, ours): &(&str, &str)| Some(format!("{ours}{}", name.strip_prefix(theirs)?));
    modules.iter().find_map(ours)
}

/// A weight or bias of one of a block's `parts`, in our words.
pub(super) fn renamed_part(name: &str, parts: &[(&str, &str)]) -> Option<String> {
    let (module, kind) = name.rsplit_once('.')?;
    let (_, ours) = parts.iter().find(|(theirs, _)| *theirs == module)?;
    Some(format!("{ours}.{kind}"))
}
