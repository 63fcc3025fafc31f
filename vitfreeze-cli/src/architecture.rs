//! Architectures by name.
use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use localmim::Stage;
use serde::{Deserialize, Serialize};
use vit::{SwinConfig, VitConfig};

use crate::usage::usage;

/// Sizes that have a name.
const SIZES: [&str; 11] = [
    "vit-tiny",
    "vit-small",
    "vit-base",
    "vit-large",
    "vit-huge",
    "vit-giant",
    "vit-gigantic",
    "swin-tiny",
    "swin-small",
    "swin-base",
    "swin-large",
];
/// The one that is meant where none is named.
pub const DEFAULT: &str = "vit-base";
/// What a checkpoint's encoder is called that is none of them.
const OTHER: &str = "vit";
const OTHER_SWIN: &str = "swin";

/// The architecture of this name; only the plain ones.
pub fn preset(model: &str) -> Result<VitConfig> {
    let plain = SIZES.contains(&model).then(|| VitConfig::preset(model));
    plain.flatten().ok_or_else(|| {
        usage(format!(
            "model '{model}': expected vit-tiny, vit-small, vit-base, vit-large or vit-huge, or swin-tiny, swin-small, swin-base or swin-large"
        ))
    })
}

/// With windows of this many tokens a side, where there is any number.
pub fn with_windows(cfg: VitConfig, side: Option<usize>) -> Result<VitConfig> {
    let Some(window_size) = side else {
        return Ok(cfg);
    };
    let Some(swin) = cfg.swin else {
        return Err(usage(
            "window-size is for a Swin, this is a ViT: leave it out",
        ));
    };
    let swin = Some(SwinConfig {
        window_size,
        ..swin
    });
    Ok(VitConfig { swin, ..cfg })
}

/// What an encoder of a checkpoint is called: by its depth, width and heads, and those of a Swin's stages.
pub fn name_of(cfg: &VitConfig) -> &'static str {
    let stages = |cfg: &VitConfig| cfg.swin.map(|swin| (swin.depths, swin.num_heads));
    let size = |cfg: &VitConfig| (cfg.depth, cfg.embed_dim, cfg.num_heads, stages(cfg));
    let same = |name: &&str| VitConfig::preset(name).is_some_and(|p| size(&p) == size(cfg));
    let other = cfg.swin.map_or(OTHER, |_| OTHER_SWIN);
    SIZES.into_iter().find(same).unwrap_or(other)
}

/// An architecture as a line of JSON, in which a configuration keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Architecture(pub VitConfig);

impl Architecture {
    /// As it is once it was written and read: the last bit of a number may be another.
    pub fn new(cfg: VitConfig) -> Result<Self> {
        Self(cfg).to_string().parse().map_err(usage)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let json = serde_json::to_string(&self.0).map_err(|_| fmt::Error)?;
        f.write_str(&json)
    }
}

impl FromStr for Architecture {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cfg: VitConfig =
            serde_json::from_str(text).map_err(|e| format!("no architecture: {e}"))?;
        cfg.validate().map_err(|e| e.to_string())?;
        Ok(Self(cfg))
    }
}

impl TryFrom<String> for Architecture {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Architecture> for String {
    fn from(architecture: Architecture) -> Self {
        architecture.to_string()
    }
}

/// `default`, `all`, or `BLOCK:SCALE,...`.
pub fn stages(text: &str, vit: &VitConfig) -> Result<Vec<Stage>> {
    match text {
        "default" => Stage::default_of(vit).map_err(usage),
        "all" if vit.swin.is_some() => Err(usage(
            "stages 'all' is for a ViT of 12 blocks; leave it out for a Swin, or name stages as BLOCK:SCALE,...",
        )),
        "all" => Stage::all(vit.depth).map_err(usage),
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
