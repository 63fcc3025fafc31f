//! Whose checkpoint it is, told from the names of its tensors, and what each tensor is called in timm.
use std::collections::BTreeMap;
use std::fmt;

use super::table::StoredTensor;

/// Who named the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// timm's ViT, DeiT, AugReg, CLIP image towers; our own exported encoders.
    Timm,
    /// Masked autoencoders (facebookresearch/mae), with or without the decoder.
    Mae,
    /// DINO (facebookresearch/dino), a backbone or a whole training state.
    Dino,
    /// DINOv2 (facebookresearch/dinov2), with or without registers.
    Dinov2,
    /// DINOv3 (facebookresearch/dinov3); timm's own is [`Family::Timm`].
    Dinov3,
    /// LocalMIM, ViTFreeze and our own training states: a norm and a decoder for each stage.
    LocalMim,
    /// Hugging Face `ViTModel`, `ViTForImageClassification`.
    HfVit,
    /// Hugging Face `ViTMAEModel`, `ViTMAEForPreTraining`.
    HfVitMae,
    /// Hugging Face `DeiTModel`, `DeiTForImageClassification`, `..WithTeacher`.
    HfDeit,
    /// Hugging Face `Dinov2Model`, `Dinov2WithRegistersModel`, `..ForImageClassification`.
    HfDinov2,
    /// Hugging Face `DINOv3ViTModel`.
    HfDinov3,
    /// timm's Swin Transformer, its authors' (microsoft/Swin-Transformer, SimMIM), and our own training states.
    Swin,
    /// LocalMIM's Swin Transformer: mergings that take neighbours row by row, a norm and a decoder for each stage.
    LocalMimSwin,
    /// Hugging Face `SwinModel`, `SwinForImageClassification`, `SwinForMaskedImageModeling`.
    HfSwin,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Timm => "timm ViT",
            Self::Mae => "MAE",
            Self::Dino => "DINO",
            Self::Dinov2 => "DINOv2",
            Self::Dinov3 => "DINOv3",
            Self::LocalMim => "LocalMIM",
            Self::HfVit => "Hugging Face ViT",
            Self::HfVitMae => "Hugging Face ViTMAE",
            Self::HfDeit => "Hugging Face DeiT",
            Self::HfDinov2 => "Hugging Face DINOv2",
            Self::HfDinov3 => "Hugging Face DINOv3",
            Self::Swin => "Swin",
            Self::LocalMimSwin => "LocalMIM Swin",
            Self::HfSwin => "Hugging Face Swin",
        })
    }
}

/// How one of timm's tensors comes from the stored ones, which are given by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Recipe {
    /// As it is.
    Copy(String),
    /// One below the other along dimension 0 (queries, keys, values; the halves of a SwiGLU).
    Stack(Vec<String>),
    /// DINOv2's class token with its position embedding added: timm's has none where there are registers.
    AddFirstRow { token: String, table: String },
    /// DINOv2's position embeddings without the class token's.
    WithoutFirstRow(String),
    /// The queries' part (0) or the values' (2) of a bias of queries, keys and values.
    Third(String, usize),
    /// Of a Swin's merging that takes four neighbours row by row: the last dimension's second and third quarter change places,
    /// as for one that takes them column by column.
    ByColumn(String),
}

impl Recipe {
    pub fn sources(&self) -> Vec<&String> {
        match self {
            Self::Copy(name)
            | Self::WithoutFirstRow(name)
            | Self::Third(name, _)
            | Self::ByColumn(name) => vec![name],
            Self::Stack(names) => names.iter().collect(),
            Self::AddFirstRow { token, table } => vec![token, table],
        }
    }

    /// The shape it makes.
    pub fn shape(&self, tensors: &BTreeMap<String, StoredTensor>) -> Vec<usize> {
        let shape = |name: &String| tensors.get(name).map_or(vec![], |t| t.shape.clone());
        match self {
            Self::Copy(name) | Self::ByColumn(name) | Self::AddFirstRow { token: name, .. } => {
                shape(name)
            }
            Self::WithoutFirstRow(name) => {
                let mut shape = shape(name);
                if let Some(rows) = shape.get_mut(1) {
                    *rows = rows.saturating_sub(1);
                }
                shape
            }
            Self::Third(name, _) => {
                let mut shape = shape(name);
                if let Some(rows) = shape.first_mut() {
                    *rows /= 3;
                }
                shape
            }
            Self::Stack(names) => {
                let mut all = names.first().map_or(vec![], shape);
                if let Some(rows) = all.first_mut() {
                    let each = names.iter().map(|n| shape(n).first().copied().unwrap_or(0));
                    *rows = each.fold(0, usize::saturating_add);
                }
                all
            }
        }
    }
}

/// What a checkpoint's names turned out to mean.
#[derive(Debug)]
pub(crate) struct Named {
    pub family: Family,
    /// timm's name -> where it comes from.
    pub recipes: BTreeMap<String, Recipe>,
    /// Belong to the model's file but not to an encoder with its head: decoders, projection heads, mask tokens, poolers.
    pub beside: Vec<String>,
    /// Of these, the decoders of masked pretraining and the norms before them under LocalMIM's names (`decoder.0.*`,
    /// `norm.0.*`); MAE's decoder is number 0.
    pub decoders: BTreeMap<String, Recipe>,
    /// Other networks, optimiser states.
    pub outside: Vec<String>,
    /// Nobody knows them.
    pub unexpected: Vec<String>,
}

/// Where the patch embedding is, by family of names; what stands before is the model's prefix.
const TIMM_MARK: &str = "patch_embed.proj.weight";
const HF_MARKS: [&str; 2] = [
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.weight",
];
const HF_MODELS: [&str; 5] = [
    "vit.",
    "deit.",
    "dinov2.",
    "dinov2_with_registers.",
    "swin.",
];

/// Whether a tensor is training state, whose names may end as a weight's.
fn of_training(name: &str) -> bool {
    ["optimizer.", "freezing."]
        .iter()
        .any(|start| name.starts_with(start))
}

/// Recognises the model in `tensors`; `None` when there is no Vision Transformer.
pub(crate) fn recognise(tensors: &BTreeMap<String, StoredTensor>) -> Option<Named> {
    let mut candidates: Vec<(u8, &str, bool)> = Vec::new();
    for name in tensors.keys() {
        if of_training(name) {
            continue;
        }
        if let Some(prefix) = name.strip_suffix(TIMM_MARK) {
            candidates.push((rank(prefix), prefix, false));
        } else if let Some(mut prefix) = HF_MARKS.iter().find_map(|m| name.strip_suffix(m)) {
            for model in HF_MODELS {
                prefix = prefix.strip_suffix(model).unwrap_or(prefix);
            }
            candidates.push((rank(prefix), prefix, true));
        }
    }
    candidates.retain(|(_, prefix, _)| prefix.is_empty() || prefix.ends_with('.'));
    candidates.sort();
    let &(_, prefix, hf) = candidates.first()?;
    let mut named = Named {
        family: Family::Timm,
        recipes: BTreeMap::new(),
        beside: Vec::new(),
        decoders: BTreeMap::new(),
        outside: Vec::new(),
        unexpected: Vec::new(),
    };
    let mut inside: Vec<(String, &String)> = Vec::new();
    for name in tensors.keys() {
        match name.strip_prefix(prefix) {
            Some(rest) if !of_training(rest) => inside.push((unwrapped(rest), name)),
            _ => named.outside.push(name.clone()),
        }
    }
    let inside: Vec<(&str, &String)> = inside.iter().map(|(n, s)| (n.as_str(), *s)).collect();
    if super::swin::is_swin(inside.iter().map(|(name, _)| *name)) {
        super::swin::rename(&inside, hf, &mut named);
        super::swin::take_decoders(prefix, &mut named);
    } else if hf {
        super::hf_names::rename(&inside, &mut named);
    } else {
        timm_names(&inside, prefix, &mut named);
    }
    // transformers' DINOv3 without registers has a tensor of none.
    if let Some(recipe) = named.recipes.get("reg_token") {
        if recipe.shape(tensors).contains(&0) {
            let none = recipe.sources().into_iter().cloned();
            named.beside.extend(none.collect::<Vec<_>>());
            named.recipes.remove("reg_token");
        }
    }
    Some(named)
}

/// A name without what PyTorch's wrappers (FSDP, activation checkpointing, compile) put in between, and without the
/// number of the chunk where DINOv2's training code has blocks in chunks: their own numbers go on from chunk to chunk.
fn unwrapped(name: &str) -> String {
    let mut name = name.to_owned();
    for wrapper in [
        "_fsdp_wrapped_module.",
        "_checkpoint_wrapped_module.",
        "_orig_mod.",
    ] {
        name = name.replace(wrapper, "");
    }
    let mut parts = name.splitn(4, '.');
    let number = |part: Option<&str>| part.is_some_and(|p| p.parse::<u32>().is_ok());
    match (
        parts.next(),
        number(parts.next()),
        parts.next(),
        parts.next(),
    ) {
        (Some("blocks"), true, Some(block), Some(rest)) if number(Some(block)) => {
            format!("blocks.{block}.{rest}")
        }
        _ => name,
    }
}

/// Which of several copies of a model to take: averaged weights first (as timm does), the teacher before the student (as
/// DINO does).
fn rank(prefix: &str) -> u8 {
    // `model_ema.`, `ema.`, but not `schema.`
    let has = |word: &str| prefix.split(['.', '_']).any(|w| w == word);
    match () {
        () if has("student") => 3,
        () if has("ema") || has("teacher") => 0,
        () => 1,
    }
}

fn timm_names(inside: &[(&str, &String)], prefix: &str, named: &mut Named) {
    let has = |start: &str| inside.iter().any(|(name, _)| name.starts_with(start));
    let is = |whole: &str| inside.iter().any(|(name, _)| *name == whole);
    let registers = is("register_tokens");
    let dinov3 = is("storage_tokens") || has("rope_embed.");
    named.family = if is("norm.0.weight") {
        Family::LocalMim
    } else if has("decoder_embed.") || is("decoder_pos_embed") {
        Family::Mae
    } else if dinov3 {
        Family::Dinov3
    } else if registers || is("mask_token") {
        Family::Dinov2
    } else if has("head.last_layer") || has_dino_head(prefix, &named.outside) {
        Family::Dino
    } else {
        Family::Timm
    };
    let family = named.family;
    // LocalMIM: the last stage's norm is the final one.
    let stages = inside.iter().filter_map(|(name, _)| {
        name.strip_prefix("norm.")?
            .strip_suffix(".weight")?
            .parse::<usize>()
            .ok()
    });
    let last_norm = stages.max().map(|k| format!("norm.{k}."));
    for &(name, stored) in inside {
        let first = name.split('.').next().unwrap_or_default();
        let known = match first {
            "patch_embed" | "cls_token" | "dist_token" | "reg_token" | "pos_embed" | "norm_pre"
            | "blocks" | "norm" | "fc_norm" | "head" | "head_dist" => true,
            "register_tokens" => registers,
            "storage_tokens" => dinov3,
            _ => false,
        };
        let stage = match &last_norm {
            Some(last) if first == "norm" => Some(name.starts_with(last.as_str())),
            _ => None,
        };
        let beside = match first {
            "mask_token" => true,
            // Numbers that follow from the architecture, and what only its training uses.
            "rope_embed" | "local_cls_norm" | "projectors" => dinov3,
            // `rope.freqs` are learnt: of another kind.
            "rope" => name == "rope.periods",
            "blocks" if name.ends_with(BIAS_MASK) => true,
            "decoder" | "hog_enc" | "inter" | "recal_mask" => family == Family::LocalMim,
            "head" => family == Family::Dino,
            _ => first.starts_with("decoder_") || stage == Some(false),
        };
        if beside {
            let decoder = match (family, first) {
                (Family::LocalMim, "decoder" | "norm") => Some(name.to_owned()),
                (Family::Mae, _) => mae_decoder(name),
                _ => None,
            };
            if let Some(name) = decoder {
                named.decoders.insert(name, Recipe::Copy(stored.clone()));
            }
            named.beside.push(stored.clone());
            continue;
        }
        if !known {
            named.unexpected.push(stored.clone());
            continue;
        }
        let target = match (&last_norm, stage) {
            (Some(last), Some(true)) => name.replacen(last.as_str(), "norm.", 1),
            _ => name
                .replace("register_tokens", "reg_token")
                .replace("storage_tokens", "reg_token")
                .replace(".mlp.w12.", ".mlp.fc1.")
                .replace(".mlp.w1.", ".mlp.fc1_g.")
                .replace(".mlp.w2.", ".mlp.fc1_x.")
                .replace(".mlp.w3.", ".mlp.fc2."),
        };
        let target = match target.split_once(".gamma_") {
            Some((block, "1")) => format!("{block}.ls1.gamma"),
            Some((block, "2")) => format!("{block}.ls2.gamma"),
            _ => target,
        };
        // Two of one name: neither is known to be the right one.
        if named.recipes.contains_key(&target) {
            named.unexpected.push(stored.clone());
            continue;
        }
        named.recipes.insert(target, Recipe::Copy(stored.clone()));
    }
    if registers {
        fold_class_position(named);
    }
    pack_gates(named);
    if inside.iter().any(|(name, _)| name.ends_with(BIAS_MASK)) {
        unpack_biases(named);
    }
}

/// DINOv3's own code masks the keys' part of a bias out.
const BIAS_MASK: &str = ".attn.qkv.bias_mask";

/// The two halves of SwiGLU's hidden layer, where they are apart (timm's `fc1_g` and `fc1_x`), as one.
fn pack_gates(named: &mut Named) {
    let whole = |name: &String| name.contains(".mlp.fc1_g.").then(|| name.clone());
    let gates: Vec<String> = named.recipes.keys().filter_map(whole).collect();
    for gate in gates {
        let value = gate.replace(".mlp.fc1_g.", ".mlp.fc1_x.");
        let target = gate.replace(".mlp.fc1_g.", ".mlp.fc1.");
        if named.recipes.contains_key(&target) || !named.recipes.contains_key(&value) {
            continue;
        }
        let halves = [gate, value].map(|name| named.recipes.remove(&name));
        let names = halves.into_iter().flatten();
        let names = names.flat_map(|half| half.sources().into_iter().cloned().collect::<Vec<_>>());
        named.recipes.insert(target, Recipe::Stack(names.collect()));
    }
}

/// Masked biases as those of queries and of values.
fn unpack_biases(named: &mut Named) {
    const WHOLE: &str = ".attn.qkv.bias";
    let whole = |name: &String| name.ends_with(WHOLE).then(|| name.clone());
    let biases: Vec<String> = named.recipes.keys().filter_map(whole).collect();
    for bias in biases {
        let Some(Recipe::Copy(stored)) = named.recipes.remove(&bias) else {
            continue;
        };
        for (part, name) in [(0, ".attn.q_bias"), (2, ".attn.v_bias")] {
            let target = bias.replace(WHOLE, name);
            let third = Recipe::Third(stored.clone(), part);
            named.recipes.insert(target, third);
        }
    }
}

/// MAE's names of its decoder in LocalMIM's words.
pub(super) fn mae_decoder(name: &str) -> Option<String> {
    match name {
        "mask_token" => return Some("decoder.0.mask_token".into()),
        "decoder_pos_embed" => return Some("decoder.0.pos_embed".into()),
        _ => {}
    }
    let (part, rest) = name.strip_prefix("decoder_")?.split_once('.')?;
    match part {
        "embed" | "blocks" | "norm" => Some(format!("decoder.0.{part}.{rest}")),
        // The head's only step, at scale 1.
        "pred" => Some(format!("decoder.0.pred.0.{rest}")),
        _ => None,
    }
}

/// Whether DINO's projection head stands beside the backbone. Others (segmentation, Lightning modules) call theirs
/// `backbone.` too.
fn has_dino_head(prefix: &str, outside: &[String]) -> bool {
    let Some(model) = prefix.strip_suffix("backbone.") else {
        return false;
    };
    let head = format!("{model}head.last_layer.");
    outside.iter().any(|name| name.starts_with(&head))
}

/// DINOv2's position table covers class token and patches, registers have none. timm's model has it for patches alone.
pub(crate) fn fold_class_position(named: &mut Named) {
    let source = |name: &str| match named.recipes.get(name) {
        Some(Recipe::Copy(name)) => Some(name.clone()),
        _ => None,
    };
    if let (Some(token), Some(table)) = (source("cls_token"), source("pos_embed")) {
        let without = Recipe::WithoutFirstRow(table.clone());
        named.recipes.insert("pos_embed".into(), without);
        let sum = Recipe::AddFirstRow { token, table };
        named.recipes.insert("cls_token".into(), sum);
    }
}
