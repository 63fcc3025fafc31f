//! Other names of a Swin's tensors in timm's words.
use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

use super::super::family::{Family, Named, Recipe};
use super::super::hf_names::{renamed, renamed_part};
use super::TABLE;
use crate::swin::STAGES;
use crate::{resample_pos_embed, shown, Resample, SwinConfig, VitConfig};

/// Hugging Face's names of a block's parts: on disk, and in a `state_dict` of transformers 5.
const PARTS: [(&str, &str); 18] = [
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.self.query", "attn.qkv.0"),
    ("attention.self.key", "attn.qkv.1"),
    ("attention.self.value", "attn.qkv.2"),
    ("attention.q_proj", "attn.qkv.0"),
    ("attention.k_proj", "attn.qkv.1"),
    ("attention.v_proj", "attn.qkv.2"),
    ("attention.self", "attn"),
    ("attention.relative_position_bias", "attn"),
    ("attention.output.dense", "attn.proj"),
    ("attention.o_proj", "attn.proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("mlp.fc1", "mlp.fc1"),
    ("mlp.fc2", "mlp.fc2"),
    ("norm", "norm"),
    ("reduction", "reduction"),
];

/// Whether these are names of a Swin, or of a relative of it.
pub(in super::super) fn is_swin<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    names.any(|name| {
        let name = name.strip_prefix("swin.").unwrap_or(name);
        let name = name.strip_prefix("encoder.").unwrap_or(name);
        name.starts_with("layers.0.blocks.0.")
    })
}

/// Whether these are a Swin's files.
pub(in super::super) fn is_family(family: Family) -> bool {
    matches!(family, Family::Swin | Family::LocalMimSwin | Family::HfSwin)
}

/// What is said of a checkpoint of LocalMIM's code.
pub(in super::super) const BY_ROW: &str =
    "LocalMIM's code merges four neighbours row by row, Swin's authors, timm and we column by column: \
     the mergings' weights are reordered";

/// Why these tensors cannot be loaded as a Swin Transformer: they belong to a relative of it, or what shows its architecture is missing.
pub(in super::super) fn unsupported(named: &Named) -> Option<String> {
    if !is_family(named.family) {
        return None;
    }
    let final_norm = format!("norm.{LAST}.weight");
    if named.family == Family::LocalMimSwin && !named.recipes.contains_key("norm.weight") {
        return Some(format!(
            "a Swin of LocalMIM's code without '{final_norm}', which is its final norm"
        ));
    }
    let relatives = [
        ("logit_scale", "a Swin Transformer V2"),
        ("cpb_mlp", "a Swin Transformer V2"),
        ("continuous_position_bias_mlp", "a Swin Transformer V2"),
        ("spatial_mlp", "a Swin-MLP"),
        (
            "absolute_pos_embed",
            "a Swin with absolute position embeddings",
        ),
        (
            "position_embeddings",
            "a Swin with absolute position embeddings",
        ),
    ];
    let find = |name: &String| {
        let of = |part: &str| name.split('.').any(|p| p == part);
        let (_, what) = relatives.iter().find(|(part, _)| of(part))?;
        Some(format!(
            "{what} (it has '{}'), which is not computed here; the Swin Transformer of 2021 is",
            shown(name)
        ))
    };
    let known = named.recipes.values().flat_map(Recipe::sources);
    named.unexpected.iter().chain(known).find_map(find)
}

/// The last stage.
const LAST: usize = STAGES - 1;

/// Fills `named` from names without their prefix, each with its stored name.
pub(in super::super) fn rename(inside: &[(&str, &String)], hf: bool, named: &mut Named) {
    // The authors and Hugging Face count a merging to the stage before it, timm to the one behind.
    let early = |(name, _): &(&str, &String)| {
        let name = name.strip_prefix("swin.").unwrap_or(name);
        let name = name.strip_prefix("encoder.").unwrap_or(name);
        name.starts_with("layers.0.downsample.")
    };
    let merges_early = inside.iter().any(early);
    let shift = usize::from(merges_early);
    let mut parts: BTreeMap<String, Vec<(usize, String)>> = BTreeMap::new();
    // LocalMIM: a norm for each stage, of which the last is the final one. Our own training states have the same, but timm's
    // mergings, and stages at any block.
    let stages = inside.iter().filter_map(|(name, _)| stage_of_norm(name));
    let (family, last_norm) = match stages.max() {
        _ if hf => (Family::HfSwin, None),
        Some(_) if merges_early => (Family::LocalMimSwin, Some(LAST)),
        last => (Family::Swin, last),
    };
    named.family = family;
    for &(name, stored) in inside {
        let name = name.strip_prefix("swin.").unwrap_or(name);
        let stage = stage_of_norm(name).filter(|_| !hf);
        if is_beside(name) || (stage.is_some() && stage != last_norm) {
            if !hf && (name.starts_with("decoder.") || stage.is_some()) {
                let recipe = Recipe::Copy(stored.clone());
                named.decoders.insert(name.to_owned(), recipe);
            }
            named.beside.push(stored.clone());
            continue;
        }
        let target = match (hf, stage) {
            (true, _) => of_hugging_face(name),
            (false, Some(stage)) => Some(name.replacen(&format!("norm.{stage}."), "norm.", 1)),
            (false, None) => Some(name.replacen("head.fc.", "head.", 1)),
        };
        let target = target.and_then(|name| later(&name, shift));
        let Some(target) = target.filter(|name| is_known(name)) else {
            named.unexpected.push(stored.clone());
            continue;
        };
        // `..attn.qkv.1.weight`: part 1 of `..attn.qkv.weight`.
        if let Some((block, rest)) = target.split_once("attn.qkv.") {
            if let Some((part, kind)) = rest.split_once('.') {
                let number = part.parse().unwrap_or(3);
                let whole = format!("{block}attn.qkv.{kind}");
                parts
                    .entry(whole)
                    .or_default()
                    .push((number, stored.clone()));
                continue;
            }
        }
        // Two of one name: neither is known to be the right one.
        if named.recipes.contains_key(&target) {
            named.unexpected.push(stored.clone());
            continue;
        }
        let by_row = family == Family::LocalMimSwin && target.contains(".downsample.");
        let recipe = match by_row {
            true => Recipe::ByColumn(stored.clone()),
            false => Recipe::Copy(stored.clone()),
        };
        named.recipes.insert(target, recipe);
    }
    for (target, mut stack) in parts {
        stack.sort();
        match stack.iter().map(|part| part.0).eq(0..3) {
            true => {
                let names = stack.into_iter().map(|part| part.1).collect();
                named.recipes.insert(target, Recipe::Stack(names));
            }
            // The whole is then missing, and these have no use.
            false => named
                .unexpected
                .extend(stack.into_iter().map(|part| part.1)),
        }
    }
}

/// LocalMIM's code has the decoders beside the encoder, not in it: those that stand beside the one with this prefix.
pub(in super::super) fn take_decoders(prefix: &str, named: &mut Named) {
    let Some(model) = prefix.strip_suffix("encoder.") else {
        return;
    };
    if named.family != Family::LocalMimSwin {
        return;
    }
    for stored in std::mem::take(&mut named.outside) {
        let name = stored.strip_prefix(model).unwrap_or_default();
        match name.split('.').next() {
            Some("decoder") => {
                let recipe = Recipe::Copy(stored.clone());
                named.decoders.insert(name.to_owned(), recipe);
                named.beside.push(stored);
            }
            Some("hog_enc") => named.beside.push(stored),
            _ => named.outside.push(stored),
        }
    }
}

/// `norm.3.weight`: 3.
fn stage_of_norm(name: &str) -> Option<usize> {
    let (stage, _) = name.strip_prefix("norm.")?.split_once('.')?;
    stage.parse().ok()
}

/// What files hold beside the weights: tables that follow from the sizes, and what masked pretraining needs.
fn is_beside(name: &str) -> bool {
    let tables = [
        "relative_position_index",
        "relative_coords_table",
        "attn_mask",
    ];
    let last = name.rsplit('.').next().unwrap_or_default();
    let first = name.split('.').next().unwrap_or_default();
    tables.contains(&last)
        || ["mask_token", "decoder", "pooler", "hidden_states_norms"].contains(&first)
        || name == "embeddings.mask_token"
}

/// Whether the name begins as one of a Swin's; the architecture then tells which there must be.
fn is_known(name: &str) -> bool {
    let first = name.split('.').next().unwrap_or_default();
    ["patch_embed", "layers", "norm", "head"].contains(&first)
}

/// With the number of a merging's stage raised by so much; `None` where it has none.
fn later(name: &str, shift: usize) -> Option<String> {
    let Some((stage, rest)) = name
        .strip_prefix("layers.")
        .and_then(|rest| rest.split_once(".downsample."))
    else {
        return Some(name.to_owned());
    };
    let stage = stage.parse::<usize>().ok()?.checked_add(shift)?;
    Some(format!("layers.{stage}.downsample.{rest}"))
}

fn of_hugging_face(name: &str) -> Option<String> {
    let modules = [
        (
            "embeddings.patch_embeddings.projection.",
            "patch_embed.proj.",
        ),
        ("embeddings.norm.", "patch_embed.norm."),
        ("layernorm.", "norm."),
        ("classifier.", "head."),
    ];
    if let Some(name) = renamed(name, &modules) {
        return Some(name);
    }
    let rest = name.strip_prefix("encoder.layers.")?;
    let (stage, rest) = rest.split_once('.')?;
    let (place, part) = match rest.strip_prefix("downsample.") {
        Some(part) => (format!("layers.{stage}.downsample"), part),
        None => {
            let (index, part) = rest.strip_prefix("blocks.")?.split_once('.')?;
            (format!("layers.{stage}.blocks.{index}"), part)
        }
    };
    Some(format!("{place}.{}", renamed_part(part, &PARTS)?))
}

impl SwinConfig {
    /// A bias table of a model for other images, where a stage is so small that its windows are others: resampled bicubically,
    /// as the authors' code does (microsoft/Swin-Transformer, `load_pretrained`); any other tensor as it is.
    pub(in super::super) fn fit_table(
        &self,
        name: &str,
        tensor: Tensor,
        (from, to): (&VitConfig, &VitConfig),
    ) -> Result<Tensor> {
        let Some(stage) = stage_of_table(name) else {
            return Ok(tensor);
        };
        let across = |cfg: &VitConfig| {
            let ((height, width), _) = self.window(cfg.stage_grid(stage), 0);
            (2 * height - 1, 2 * width - 1)
        };
        let table = tensor.unsqueeze(0)?;
        resample_pos_embed(&table, 0, across(from), across(to), Resample::Plain)?.squeeze(0)
    }
}

/// The stage of a bias table, by its name.
fn stage_of_table(name: &str) -> Option<usize> {
    let block = name.strip_suffix(TABLE)?.strip_prefix("layers.")?;
    block.split('.').next()?.parse().ok()
}
