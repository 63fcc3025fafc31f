//! Architectures by name.
use crate::{Activation, PosEmbed, VitConfig};

/// (name, short name, D, blocks, heads, hidden layer, patch)
#[rustfmt::skip]
const SIZES: [(&str, &str, usize, usize, usize, usize, usize); 7] = [
    ("tiny",     "Ti", 192,  12, 3,  768,  16),
    ("small",    "S",  384,  12, 6,  1536, 16),
    ("base",     "B",  768,  12, 12, 3072, 16),
    ("large",    "L",  1024, 24, 16, 4096, 16),
    ("huge",     "H",  1280, 32, 16, 5120, 14),
    ("giant",    "g",  1408, 40, 16, 6144, 14),
    ("gigantic", "G",  1664, 48, 16, 8192, 14),
];

impl VitConfig {
    /// An architecture by name, without a head (set `num_classes` for one):
    ///
    /// - `vit-tiny`, `vit-small`, `vit-base`, `vit-large` (patch 16), `vit-huge`, `vit-giant`, `vit-gigantic` (patch 14),
    ///   all for 224 px;
    /// - the short form of the papers: `B/16`, `L/14@336`, sizes `Ti`, `S`, `B`, `L`, `H`, `g`, `G`;
    /// - timm's names: `vit_base_patch16_224`, `deit_base_distilled_patch16_224`, `deit3_small_patch16_224`,
    ///   `vit_base_patch16_clip_quickgelu_224`, `vit_giant_patch14_reg4_dinov2`, `vit_huge_plus_patch16_dinov3`; a tag after
    ///   a dot is left out;
    /// - `swin-tiny`, `swin-small`, `swin-base`, `swin-large` (windows of 7, 224 px), and timm's
    ///   `swin_large_patch4_window12_384`.
    ///
    /// `None` for any other name.
    pub fn preset(name: &str) -> Option<Self> {
        if let Some((size, rest)) = name.split_once('/') {
            let (patch, image) = rest.split_once('@').unwrap_or((rest, "224"));
            let cfg = size_of(|_, short| short == size)?;
            return cfg.sized(patch.parse().ok()?, image.parse().ok()?);
        }
        if let Some(size) = name.strip_prefix("vit-") {
            return size_of(|name, _| name == size);
        }
        let name = name.split('.').next()?;
        crate::swin::preset(name).or_else(|| timm(name))
    }

    fn sized(self, patch_size: usize, image_size: usize) -> Option<Self> {
        let cfg = Self {
            patch_size,
            image_size,
            ..self
        };
        cfg.validate().ok().map(|()| cfg)
    }
}

fn size_of(is: impl Fn(&str, &str) -> bool) -> Option<VitConfig> {
    let found = SIZES.iter().find(|(name, short, ..)| is(name, short))?;
    let &(_, _, embed_dim, depth, num_heads, hidden, patch_size) = found;
    Some(VitConfig {
        patch_size,
        embed_dim,
        depth,
        num_heads,
        mlp_ratio: hidden as f64 / embed_dim as f64,
        ..VitConfig::default()
    })
}

fn timm(name: &str) -> Option<VitConfig> {
    if let Some(cfg) = dinov3(name) {
        return Some(cfg);
    }
    let mut parts = name.split('_');
    let family = parts.next()?;
    let size = parts.next()?;
    let mut cfg = size_of(|name, _| name == size)?;
    match family {
        "vit" | "deit" => {}
        "deit3" => {
            cfg.no_embed_class = true;
            cfg.init_values = Some(1e-6);
        }
        _ => return None,
    }
    let (mut patch, mut image) = (None, None);
    for part in parts {
        let number = |prefix: &str| part.strip_prefix(prefix)?.parse::<usize>().ok();
        if let Some(n) = number("patch") {
            patch = Some(n);
        } else if let Some(n) = number("reg") {
            cfg.reg_tokens = n;
            cfg.no_embed_class = true;
        } else if let Some(n) = number("") {
            image = Some(n);
        } else {
            match part {
                "distilled" if family == "deit" => cfg.dist_token = true,
                "clip" => {
                    cfg.pre_norm = true;
                    cfg.norm_eps = 1e-5;
                }
                "quickgelu" if cfg.pre_norm => cfg.activation = Activation::QuickGelu,
                "dinov2" => {
                    cfg.init_values = Some(1e-5);
                    image = image.or(Some(518));
                    if size == "giant" {
                        // Not the giant of the other families.
                        cfg.embed_dim = 1536;
                        cfg.num_heads = 24;
                        cfg.mlp_ratio = 8192.0 / 1536.0;
                        cfg.activation = Activation::SwiGlu;
                    }
                }
                _ => return None,
            }
        }
    }
    cfg.sized(patch?, image?)
}

/// timm's names of DINOv3, and of what is built alike: `vit_SIZE[_plus]_patch16_dinov3[_qkvb]`, `vit_SIZE_patch16_lingbot`.
fn dinov3(name: &str) -> Option<VitConfig> {
    let name = name.strip_prefix("vit_")?;
    let (size, kind) = name.split_once("_patch16_")?;
    let (qkv_bias, image_size) = match kind {
        "dinov3" => (false, 256),
        "dinov3_qkvb" => (true, 256),
        "lingbot" => (size != "giant", 512),
        _ => return None,
    };
    let (size, plus) = match size.strip_suffix("_plus") {
        Some(size) => (size, true),
        None => (size, false),
    };
    // Width of the hidden layer's one half where it is gated.
    let (embed_dim, depth, num_heads, gate) = match (size, plus, kind) {
        ("tiny", false, "dinov3_qkvb") => (192, 12, 3, None),
        ("small", _, _) => (384, 12, 6, plus.then_some(1536)),
        ("base", false, _) => (768, 12, 12, None),
        ("large", false, _) => (1024, 24, 16, None),
        ("huge", true, _) => (1280, 32, 20, Some(5120)),
        ("7b", false, "dinov3") => (4096, 40, 32, Some(8192)),
        ("giant", false, "lingbot") => (1536, 40, 24, Some(4096)),
        _ => return None,
    };
    Some(VitConfig {
        image_size,
        embed_dim,
        depth,
        num_heads,
        mlp_ratio: gate.map_or(4.0, |half| 2.0 * f64::from(half) / embed_dim as f64),
        activation: match gate {
            Some(_) => Activation::SwiGlu,
            None => Activation::Gelu,
        },
        norm_eps: 1e-5,
        pos_embed: PosEmbed::Rope { theta: 100.0 },
        qkv_bias,
        key_bias: !qkv_bias,
        reg_tokens: 4,
        init_values: Some(1e-5),
        ..VitConfig::default()
    })
}

/// Heads of a width that some preset or published checkpoint has, else one head for 64 channels.
pub(crate) fn usual_heads(embed_dim: usize) -> Option<usize> {
    match embed_dim {
        1280 | 1408 | 1664 | 1152 => Some(16),
        _ => embed_dim.is_multiple_of(64).then_some(embed_dim / 64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let preset = |name| VitConfig::preset(name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(preset("vit-base"), VitConfig::default());
        assert_eq!(preset("vit_base_patch16_224.augreg_in1k"), preset("B/16"));
        assert_eq!(preset("L/14@336"), preset("vit_large_patch14_336"));
        let giant = preset("vit_giant_patch14_224");
        assert_eq!(
            (giant.embed_dim, giant.num_heads, giant.mlp_hidden()),
            (1408, 16, 6144)
        );
        assert_eq!(preset("g/14"), giant);
        let dino = preset("vit_giant_patch14_reg4_dinov2");
        assert_eq!(
            (dino.reg_tokens, dino.image_size, dino.mlp_hidden()),
            (4, 518, 8192)
        );
        assert!(preset("deit_tiny_distilled_patch16_224").dist_token);
        assert_eq!(preset("vit_base_patch32_clip_224").norm_eps, 1e-5);
        let plus = preset("vit_huge_plus_patch16_dinov3_qkvb.lvd1689m");
        assert_eq!(
            (plus.num_heads, plus.mlp_hidden(), plus.rope_theta()),
            (20, 10240, Some(100.0))
        );
        assert!(plus.qkv_bias && !plus.key_bias && !preset("vit_7b_patch16_dinov3").qkv_bias);
        for name in [
            "",
            "B",
            "B/15",
            "B/0",
            "X/16",
            "vit_base",
            "vit_base_patch16",
            "vit_base_patch16_224_miil",
            "resnet_base_patch16_224",
            "vit_base_plus_patch16_dinov3",
            "vit_base_patch14_dinov3",
            "B/16@99999999999999999999",
        ] {
            assert!(VitConfig::preset(name).is_none(), "{name}");
        }
    }
}
