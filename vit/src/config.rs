//! The numbers of an architecture.
use serde::{Deserialize, Serialize};

use crate::Error;

/// Width, depth and sizes of a Vision Transformer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct VitConfig {
    /// Side of the square input image, in pixels.
    pub image_size: usize,
    /// Side of a square patch, in pixels; divides `image_size`.
    pub patch_size: usize,
    /// Width of a token, D.
    pub embed_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads; divides `embed_dim`.
    pub num_heads: usize,
    /// Width of the MLP's hidden layer over `embed_dim`.
    pub mlp_ratio: usize,
    /// Added to the variance in every LayerNorm. 1e-6, as timm.
    pub norm_eps: f64,
}

impl VitConfig {
    /// A preset by name: `vit-tiny`, `vit-small`, `vit-base`, `vit-large` (224 px, patch 16) or `vit-huge` (patch 14).
    pub fn preset(name: &str) -> Option<Self> {
        let (embed_dim, depth, num_heads, patch_size) = match name {
            "vit-tiny" => (192, 12, 3, 16),
            "vit-small" => (384, 12, 6, 16),
            "vit-base" => (768, 12, 12, 16),
            "vit-large" => (1024, 24, 16, 16),
            "vit-huge" => (1280, 32, 16, 14),
            _ => return None,
        };
        Some(Self {
            image_size: 224,
            patch_size,
            embed_dim,
            depth,
            num_heads,
            mlp_ratio: 4,
            norm_eps: 1e-6,
        })
    }

    /// Patches along one side, S.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Number of patches, N = S * S.
    pub fn patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Refuses sizes that do not fit together.
    ///
    /// # Errors
    /// [`Error::Config`] with both numbers.
    pub fn validate(&self) -> Result<(), Error> {
        let fail = |message: String| Err(Error::Config(message));
        let sizes = [
            ("image size", self.image_size),
            ("patch size", self.patch_size),
            ("embed_dim", self.embed_dim),
            ("depth", self.depth),
            ("num_heads", self.num_heads),
            ("mlp_ratio", self.mlp_ratio),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, n)| *n == 0) {
            return fail(format!("{name} is 0"));
        }
        if !self.image_size.is_multiple_of(self.patch_size) {
            return fail(format!(
                "image size {} is not divisible by patch size {}",
                self.image_size, self.patch_size
            ));
        }
        if !self.embed_dim.is_multiple_of(self.num_heads) {
            return fail(format!(
                "embed_dim {} is not divisible by num_heads {}",
                self.embed_dim, self.num_heads
            ));
        }
        if !self.embed_dim.is_multiple_of(4) {
            return fail(format!(
                "embed_dim {} is not divisible by 4, as the sin-cos position embedding needs",
                self.embed_dim
            ));
        }
        Ok(())
    }
}
