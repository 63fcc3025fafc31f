//! What a stage is to predict of the image.
use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};
use vit::ops::Compute;

use crate::{hog, pixels, LocalMimConfig, Stage};

/// What the stages predict (LocalMIM, arXiv 2303.05251, section 3.2: HOG or pixels).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Histograms of oriented gradients: [`hog`].
    #[default]
    Hog,
    /// The cells' own pixels: [`pixels`].
    Pixel {
        /// Each cell with mean 0 and variance 1.
        normalise: bool,
    },
}

impl LocalMimConfig {
    /// Numbers that a stage predicts of each of its cells.
    pub fn outputs(&self, stage: &Stage) -> usize {
        match self.target {
            Target::Hog => 3 * self.hog_bins,
            Target::Pixel { .. } => 3 * self.pool(stage) * self.pool(stage),
        }
    }

    /// `(B, 3, H, W) -> [(B, (S * scale)^2, outputs)]`: what these stages are to predict. None of it gets a gradient.
    ///
    /// # Errors
    /// Images of another size.
    pub fn targets(
        &self,
        images: &Tensor,
        stages: &[Stage],
        compute: &Compute,
    ) -> Result<Vec<Tensor>> {
        let pools: Vec<usize> = stages.iter().map(|stage| self.pool(stage)).collect();
        match self.target {
            Target::Hog => hog(images, self.hog_bins, self.finest_pool(), &pools, compute),
            Target::Pixel { normalise } => pixels(images, &pools, normalise, compute),
        }
    }
}
