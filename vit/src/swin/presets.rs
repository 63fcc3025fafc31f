//! Swin Transformers by name.
use super::{SwinConfig, STAGES};
use crate::VitConfig;

/// (name, D, depths, heads), as published (arXiv 2103.14030, section 3.3 and table 7).
type Size = (&'static str, usize, [usize; STAGES], [usize; STAGES]);
const SIZES: [Size; 4] = [
    ("tiny", 96, [2, 2, 6, 2], [3, 6, 12, 24]),
    ("small", 96, [2, 2, 18, 2], [3, 6, 12, 24]),
    ("base", 128, [2, 2, 18, 2], [4, 8, 16, 32]),
    ("large", 192, [2, 2, 18, 2], [6, 12, 24, 48]),
];

/// `swin-tiny`, for 224 px; timm's `swin_tiny_patch4_window7_224`, Hugging Face's `swin-tiny-patch4-window7-224`.
pub(crate) fn preset(name: &str) -> Option<VitConfig> {
    let rest = name.strip_prefix("swin")?.strip_prefix(['-', '_'])?;
    let mut parts = rest.split(['-', '_']);
    let size = parts.next()?;
    let &(_, embed_dim, depths, num_heads) = SIZES.iter().find(|(name, ..)| *name == size)?;
    let mut swin = SwinConfig {
        depths,
        num_heads,
        window_size: 7,
    };
    let (mut patch, mut image) = (None, None);
    for part in parts {
        let number = |prefix: &str| part.strip_prefix(prefix)?.parse::<usize>().ok();
        if let Some(n) = number("patch") {
            patch = Some(n);
        } else if let Some(n) = number("window") {
            swin.window_size = n;
        } else {
            image = Some(number("")?);
        }
    }
    let cfg = swin.model(embed_dim);
    let cfg = VitConfig {
        patch_size: patch.unwrap_or(cfg.patch_size),
        image_size: image.unwrap_or(cfg.image_size),
        ..cfg
    };
    cfg.validate().ok().map(|()| cfg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let tiny = preset("swin-tiny").unwrap();
        assert_eq!(
            (tiny.depth, tiny.features(), tiny.image_size),
            (12, 768, 224)
        );
        assert_eq!(preset("swin_tiny_patch4_window7_224"), Some(tiny));
        let large = preset("swin_large_patch4_window12_384").unwrap();
        assert_eq!(
            (large.depth, large.features(), large.image_size),
            (24, 1536, 384)
        );
        assert_eq!(large.stage_grid(3), (12, 12));
        for name in [
            "swin",
            "swin-",
            "swin-huge",
            "swin_s3_tiny_224",
            "swinv2_tiny_window8_256",
            "swin_tiny_patch0_window7_224",
            "swin_tiny_patch4_window0_224",
            "swin_tiny_patch4_window7_225",
            "swin_tiny_patch4_window99999999999999999999_224",
        ] {
            assert!(preset(name).is_none(), "{name}");
        }
    }
}
