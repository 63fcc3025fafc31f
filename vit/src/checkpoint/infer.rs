//! The architecture, from the shapes of the tensors and what stands beside them.
use std::collections::BTreeMap;

use super::describe::Hints;
use super::family::Family;
use crate::presets::usual_heads;
use crate::{Activation, Pool, PosEmbed, VitConfig};

/// The architecture of tensors with these shapes under timm's names, and what had to be assumed.
///
/// # Errors
/// What cannot be told, and what to do.
pub(crate) fn infer(
    shapes: &BTreeMap<String, Vec<usize>>,
    family: Family,
    hints: &Hints,
) -> Result<(VitConfig, Vec<String>), String> {
    let mut notes = Vec::new();
    let shape = |name: &str| shapes.get(name).map(Vec::as_slice);
    let [embed_dim, in_chans, patch_size] = patch_embed(shapes)?;
    let Some(&[1, 1, _]) = shape("cls_token") else {
        return Err("there is no class token 'cls_token' of shape (1, 1, width)".into());
    };
    let block = |name: &String| -> Option<usize> {
        name.strip_prefix("blocks.")?
            .split('.')
            .next()?
            .parse()
            .ok()
    };
    let depth = shapes.keys().filter_map(block).max();
    let depth = depth.map_or(0, |b: usize| b.saturating_add(1));
    if depth == 0 || depth > shapes.len() {
        return Err(format!("{depth} blocks in {} tensors", shapes.len()));
    }
    let fc1 = shape("blocks.0.mlp.fc1.weight").and_then(|s| s.first().copied());
    let fc2 = shape("blocks.0.mlp.fc2.weight").and_then(|s| s.get(1).copied());
    let swiglu = fc1.is_some() && fc1 == fc2.map(|n| n.saturating_mul(2));
    let num_classes = shape("head.weight").and_then(|s| s.first().copied());
    let wide_head = shape("head.weight").and_then(|s| s.get(1).copied()) == Some(2 * embed_dim);
    let fc_norm = shapes.contains_key("fc_norm.weight");
    let pre_norm = shapes.contains_key("norm_pre.weight");

    let pos_embed = positions(shapes, family, hints, &mut notes)?;
    let rotary = matches!(pos_embed, PosEmbed::Rope { .. });
    let apart = shapes.contains_key("blocks.0.attn.q_bias");
    if apart && !rotary {
        return Err(
            "'attn.q_bias', and no rotary positions of DINOv3's kind: EVA or BEiT, whose own (rotary, relative) are not computed here"
                .into(),
        );
    }

    if hints.window_size.is_some() {
        return Err(
            "it is a ViT, which has no windows, but --window-size or its metadata give their size"
                .into(),
        );
    }
    let num_heads = hints.num_heads.or_else(|| {
        let heads = match rotary {
            true => dinov3_heads(embed_dim)?,
            false => usual_heads(embed_dim)?,
        };
        notes.push(format!(
            "no file gives the number of heads: {heads} assumed, as usual for width {embed_dim}"
        ));
        Some(heads)
    });
    let Some(num_heads) = num_heads else {
        return Err(format!(
            "no file gives the number of heads of this model of width {embed_dim}; give it (--heads N)"
        ));
    };
    let activation = match hints.activation {
        _ if swiglu => Activation::SwiGlu,
        Some(Activation::SwiGlu) => {
            return Err(
                "its files say that its MLPs are SwiGLU; fc1 is not twice as wide as fc2".into(),
            )
        }
        Some(activation) => activation,
        None => {
            if pre_norm {
                notes.push("no file gives CLIP's activation: exact GELU assumed (OpenAI's have quick-gelu)".into());
            }
            Activation::Gelu
        }
    };
    let pool = if wide_head {
        Pool::TokenAvg
    } else {
        // A norm behind the pooling is usual for the mean; a file that says otherwise goes before that.
        hints
            .pool
            .filter(|p| *p != Pool::TokenAvg)
            .unwrap_or(if fc_norm { Pool::Avg } else { Pool::Token })
    };
    let reg_tokens = shape("reg_token").and_then(|s| s.get(1).copied());
    let mut cfg = VitConfig {
        in_chans,
        patch_size,
        embed_dim,
        depth,
        num_heads,
        mlp_ratio: fc1.unwrap_or(4 * embed_dim) as f64 / embed_dim as f64,
        norm_eps: hints
            .norm_eps
            .unwrap_or(match (pre_norm || rotary, family) {
                (true, _) => 1e-5,
                (_, Family::HfVit | Family::HfVitMae | Family::HfDeit) => 1e-12,
                _ => 1e-6,
            }),
        pos_embed,
        reg_tokens: reg_tokens.unwrap_or(0),
        dist_token: shapes.contains_key("dist_token"),
        pre_norm,
        qkv_bias: apart || shapes.contains_key("blocks.0.attn.qkv.bias"),
        key_bias: !apart,
        activation,
        init_values: shapes
            .contains_key("blocks.0.ls1.gamma")
            .then(|| hints.init_values.unwrap_or(1e-5)),
        pool,
        fc_norm,
        num_classes: num_classes.unwrap_or(0),
        ..VitConfig::default()
    };
    match rotary {
        true => any_grid(&mut cfg, hints, &mut notes),
        false => place_grid(&mut cfg, shape("pos_embed"), hints)?,
    }
    cfg.validate().map_err(|e| e.to_string())?;
    Ok((cfg, notes))
}

/// Width, channels and patch size, from the patch embedding.
pub(super) fn patch_embed(shapes: &BTreeMap<String, Vec<usize>>) -> Result<[usize; 3], String> {
    let shape = shapes.get("patch_embed.proj.weight").map(Vec::as_slice);
    let Some(&[embed_dim, in_chans, patch_size, width]) = shape else {
        return Err(format!(
            "the patch embedding has shape {:?}; expected (width, channels, patch, patch)",
            shape.unwrap_or_default()
        ));
    };
    if patch_size != width || patch_size == 0 || embed_dim == 0 {
        return Err(format!(
            "patches of {patch_size} x {width} pixels and width {embed_dim}; expected square ones"
        ));
    }
    Ok([embed_dim, in_chans, patch_size])
}

/// What positions its tokens have. No tensor tells rotary ones.
fn positions(
    shapes: &BTreeMap<String, Vec<usize>>,
    family: Family,
    hints: &Hints,
    notes: &mut Vec<String>,
) -> Result<PosEmbed, String> {
    const DINOV3: PosEmbed = PosEmbed::Rope { theta: 100.0 };
    let has = |name: &str| shapes.contains_key(name);
    let table = has("pos_embed");
    let told = hints
        .pos_embed
        .filter(|told| matches!(told, PosEmbed::Rope { .. }));
    let dinov3 = matches!(family, Family::Dinov3 | Family::HfDinov3);
    match told.or(dinov3.then_some(DINOV3)) {
        Some(_) if table => Err("there is a position table 'pos_embed' beside rotary positions; both at once are not computed here".into()),
        Some(rotary) => Ok(rotary),
        None if table => Ok(PosEmbed::Learnt),
        // timm's DINOv3: registers, no table, keys without a bias.
        None if family == Family::Timm
            && hints.pos_embed.is_none()
            && has("reg_token")
            && !has("blocks.0.attn.qkv.bias")
            // Of timm's other rotary models, whose positions are of another kind.
            && !has("fc_norm.weight")
            && !has("norm_pre.weight") =>
        {
            notes.push("no position table, and no file tells why: DINOv3's rotary positions with theta 100 assumed".into());
            Ok(DINOV3)
        }
        None => Ok(hints.pos_embed.unwrap_or_default()),
    }
}

/// Heads of DINOv3's models by their width.
fn dinov3_heads(embed_dim: usize) -> Option<usize> {
    match embed_dim {
        4096 => Some(32),
        _ => embed_dim.is_multiple_of(64).then_some(embed_dim / 64),
    }
}

/// Rotary positions are for images of any size.
fn any_grid(cfg: &mut VitConfig, hints: &Hints, notes: &mut Vec<String>) {
    let image = hints.image.or(hints.fallback_image).unwrap_or_else(|| {
        let usual = cfg.image_size;
        let side = (usual - usual % cfg.patch_size).max(cfg.patch_size);
        notes.push(format!(
            "no file gives the image size: {side} x {side} taken (its rotary positions fit any; --image-size)"
        ));
        (side, side)
    });
    *cfg = cfg.with_image(image);
}

/// Image size, and whether the tokens before the patches have position embeddings, from the table's rows.
fn place_grid(cfg: &mut VitConfig, table: Option<&[usize]>, hints: &Hints) -> Result<(), String> {
    let patch = cfg.patch_size;
    let (rows, prefix) = match table {
        Some(&[1, rows, _]) => (rows, cfg.prefix_tokens()),
        Some(other) => {
            return Err(format!(
                "'pos_embed' has shape {other:?}; expected (1, rows, width)"
            ))
        }
        None => {
            let Some(image) = hints.image.or(hints.fallback_image) else {
                return match cfg.pos_embed {
                    PosEmbed::Rope { .. } => Ok(()),
                    PosEmbed::Learnt => Ok(()), // 'pos_embed' will be reported as missing
                    PosEmbed::SinCos => {
                        Err("no file gives the image size; give it (--image-size)".into())
                    }
                };
            };
            *cfg = cfg.with_image(image);
            cfg.no_embed_class = hints.no_embed_class == Some(true);
            return Ok(());
        }
    };
    // Which numbers of rows before the patches are possible, the likeliest first.
    let options = match hints.no_embed_class {
        Some(true) => vec![0],
        Some(false) => vec![prefix],
        None if cfg.reg_tokens > 0 => vec![0, prefix],
        None => vec![prefix, 0],
    };
    for &option in &options {
        let Some(patches) = rows.checked_sub(option).filter(|&n| n > 0) else {
            continue;
        };
        cfg.no_embed_class = option == 0;
        let fits = |&(h, w): &(usize, usize)| {
            h % patch == 0 && w % patch == 0 && (h / patch).checked_mul(w / patch) == Some(patches)
        };
        if let Some(image) = hints.image.filter(fits) {
            *cfg = cfg.with_image(image);
            return Ok(());
        }
        let side = patches.isqrt();
        if side * side == patches {
            *cfg = cfg.with_image((side * patch, side * patch));
            return Ok(());
        }
        if let Some(image) = hints.fallback_image.filter(fits) {
            *cfg = cfg.with_image(image);
            return Ok(());
        }
    }
    Err(format!(
        "the position table has {rows} rows for {prefix} token(s) and a grid that is not square; give the image's height \
         and width (--image-size HxW)"
    ))
}
