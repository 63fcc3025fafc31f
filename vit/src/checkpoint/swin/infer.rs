//! A Swin's architecture, from the shapes of its tensors and what stands beside them.
use std::collections::BTreeMap;

use super::super::describe::Hints;
use super::super::family::Family;
use super::super::infer::patch_embed;
use super::TABLE;
use crate::swin::STAGES;
use crate::{Pool, SwinConfig, VitConfig};

/// The architecture of tensors with these shapes under timm's names, LocalMIM's decoders among them, and what had to be assumed.
///
/// # Errors
/// What cannot be told, and what to do.
pub(in super::super) fn infer(
    shapes: &BTreeMap<String, Vec<usize>>,
    family: Family,
    hints: &Hints,
) -> Result<(VitConfig, Vec<String>), String> {
    let mut notes = Vec::new();
    let shape = |name: &str| shapes.get(name).map(Vec::as_slice);
    let [embed_dim, in_chans, patch_size] = patch_embed(shapes)?;
    let depths = depths(shapes)?;
    let (mut num_heads, mut sides, mut tables) = ([0; STAGES], [0; STAGES], [0; STAGES]);
    for (stage, (heads, side)) in num_heads.iter_mut().zip(&mut sides).enumerate() {
        let name = format!("layers.{stage}.blocks.0.{TABLE}");
        let Some(&[offsets, own]) = shape(&name) else {
            return Err(format!(
                "'{name}' is missing or no table of (offsets, heads), from which windows and heads are told"
            ));
        };
        (*heads, tables[stage]) = (own, offsets);
        // (2 w - 1)^2 offsets in a window of side w.
        let across = offsets.isqrt();
        *side = match across * across == offsets && across % 2 == 1 {
            true => across.div_ceil(2),
            false => 0,
        };
    }
    if let Some(asked) = hints.num_heads.filter(|asked| *asked != num_heads[0]) {
        return Err(format!(
            "its bias tables are of {num_heads:?} heads by stage, not {asked} as --heads or its files say"
        ));
    }
    let largest = sides.iter().copied().max().unwrap_or(0);
    let Some(window_size) = hints.window_size.or((largest > 0).then_some(largest)) else {
        return Err("its windows are not square, and no file gives their size".into());
    };
    let fc1 = shape("layers.0.blocks.0.mlp.fc1.weight").and_then(|s| s.first().copied());
    let num_classes = shape("head.weight").and_then(|s| s.first().copied());
    let swin = SwinConfig {
        depths,
        num_heads,
        window_size,
    };
    let cfg = VitConfig {
        in_chans,
        patch_size,
        mlp_ratio: fc1.unwrap_or(4usize.saturating_mul(embed_dim)) as f64 / embed_dim as f64,
        norm_eps: hints.norm_eps.unwrap_or(match family {
            Family::LocalMimSwin => 1e-6,
            _ => 1e-5,
        }),
        qkv_bias: shapes.contains_key("layers.0.blocks.0.attn.qkv.bias"),
        activation: hints.activation.unwrap_or_default(),
        pool: hints.pool.unwrap_or(Pool::Avg),
        num_classes: num_classes.unwrap_or(0),
        ..swin.model(embed_dim)
    };
    // Windows that are smaller in a late stage are as large as it is, which tells the image's size; other sizes no tensor tells.
    let small = sides
        .iter()
        .position(|&side| side > 0 && side < window_size);
    let told = small.map(|stage| (sides[stage] << stage).saturating_mul(patch_size));
    let told = told.or_else(|| Some(decoded_grid(shapes)?.saturating_mul(cfg.mask_unit())));
    // The first stage whose windows have another bias table than the file.
    let unlike = |cfg: &VitConfig| (0..STAGES).find(|&i| offsets(cfg, i) != tables[i]);
    let fits = |image: &(usize, usize)| unlike(&cfg.with_image(*image)).is_none();
    let image = match (hints.image.or(hints.fallback_image.filter(fits)), told) {
        (Some(image), _) => image,
        (None, Some(side)) => (side, side),
        (None, None) => {
            let side = window_size.saturating_mul(8).saturating_mul(patch_size);
            notes.push(format!(
                "no file gives the image size: {side} x {side} assumed, as usual for windows of {window_size}"
            ));
            (side, side)
        }
    };
    let cfg = cfg.with_image(image);
    cfg.validate().map_err(|e| e.to_string())?;
    if let Some(stage) = unlike(&cfg) {
        let (rows, columns) = cfg.stage_grid(stage);
        let full = (2 * window_size - 1).pow(2);
        if family == Family::HfSwin && tables[stage] == full && rows.min(columns) < window_size {
            return Err(format!(
                "stage {stage} has {rows} x {columns} tokens in windows of {window_size}: transformers' Swin has none smaller than \
                 the others, timm and we do; that is not computed here"
            ));
        }
        let of_images = match hints.image {
            Some(_) => "of images, in the file that gives it",
            None => "of images (--image-size)",
        };
        return Err(format!(
            "windows of {window_size} on images of {} x {} pixels have {} offsets in stage {stage}, its bias table has {}; correct the \
             size of windows (--window-size) or {of_images}",
            image.0,
            image.1,
            offsets(&cfg, stage),
            tables[stage]
        ));
    }
    Ok((cfg, notes))
}

/// Offsets in a window of a stage, (2 h - 1) (2 w - 1).
fn offsets(cfg: &VitConfig, stage: usize) -> usize {
    let window = |swin: SwinConfig| swin.window(cfg.stage_grid(stage), 0).0;
    let (height, width) = cfg.swin.map_or((0, 0), window);
    let across = |side: usize| side.saturating_mul(2).saturating_sub(1);
    across(height).saturating_mul(across(width))
}

/// Tokens along a side of the last stage, by the position table of LocalMIM's decoder of it.
fn decoded_grid(shapes: &BTreeMap<String, Vec<usize>>) -> Option<usize> {
    let table = shapes.get(&format!("decoder.{}.pos_embed", STAGES - 1))?;
    let &[1, tokens, _] = table.as_slice() else {
        return None;
    };
    let side = tokens.isqrt();
    (side > 0 && side * side == tokens).then_some(side)
}

/// Blocks of each stage.
fn depths(shapes: &BTreeMap<String, Vec<usize>>) -> Result<[usize; STAGES], String> {
    let mut depths = BTreeMap::new();
    for name in shapes.keys() {
        let place = name
            .strip_prefix("layers.")
            .and_then(|rest| rest.split_once(".blocks."));
        let Some((stage, rest)) = place else {
            continue;
        };
        let index = rest.split('.').next().unwrap_or_default();
        let (Ok(stage), Ok(index)) = (stage.parse::<usize>(), index.parse::<usize>()) else {
            return Err(format!("'{}' is in no block", crate::shown(name)));
        };
        let depth: &mut usize = depths.entry(stage).or_default();
        *depth = (*depth).max(index.saturating_add(1));
    }
    let all: usize = depths.values().fold(0, |sum, d| sum.saturating_add(*d));
    if !depths.keys().copied().eq(0..STAGES) || all > shapes.len() {
        return Err(format!(
            "a Swin of {} stages with {all} blocks in {} tensors; only those of {STAGES} stages are computed here",
            depths.len(),
            shapes.len()
        ));
    }
    let mut out = [0; STAGES];
    for (out, depth) in out.iter_mut().zip(depths.into_values()) {
        *out = depth;
    }
    Ok(out)
}
