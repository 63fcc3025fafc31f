//! Architectures by name.
use anyhow::Result;
use localmim::Stage;
use vit::VitConfig;

use crate::usage::usage;

/// The architecture of this name; only the plain ones, which LocalMIM pretrains.
pub fn preset(model: &str) -> Result<VitConfig> {
    let plain = model.starts_with("vit-").then(|| VitConfig::preset(model));
    plain.flatten().ok_or_else(|| {
        usage(format!(
            "model '{model}': expected vit-tiny, vit-small, vit-base, vit-large or vit-huge"
        ))
    })
}

/// `default`, `all`, or `BLOCK:SCALE,...`.
pub fn stages(text: &str, depth: usize) -> Result<Vec<Stage>> {
    match text {
        "default" => Stage::default_for(depth).map_err(usage),
        "all" => Stage::all(depth).map_err(usage),
        list => list
            .split(',')
            .map(|item| {
                let parsed = item.trim().split_once(':').and_then(|(block, scale)| {
                    Some(Stage {
                        block: block.trim().parse().ok()?,
                        scale: scale.trim().parse().ok()?,
                    })
                });
                parsed.ok_or_else(|| {
                    usage(format!(
                        "stages: '{item}' is not BLOCK:SCALE, as in 1:4,3:2,9:1,11:0.5"
                    ))
                })
            })
            .collect(),
    }
}
