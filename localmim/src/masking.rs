//! Random masking, per sample.
use std::sync::Arc;

use crate::Error;

/// Which patches the encoder sees, for a batch of B images with N patches each, K of them visible.
#[derive(Debug, Clone)]
pub struct Masking {
    /// Visible patches of each image in the order the encoder sees them; B * K.
    pub ids_keep: Vec<u32>,
    /// Where each patch stands in the shuffled order (visible ones first); B * N.
    pub ids_restore: Arc<Vec<u32>>,
    /// 1 where a patch is removed, 0 where it is kept; B * N.
    pub mask: Vec<f32>,
    /// Number of images, B.
    pub batch: usize,
}

impl Masking {
    /// From `noise`, B * N numbers: each image's patches in ascending order of noise, the first `int(N * (1 - ratio))`
    /// kept (He et al., arXiv 2111.06377, section 3; equal noise keeps the order of the patches).
    ///
    /// # Errors
    /// A ratio outside [0, 1), or one that leaves no patch visible or none to predict; noise that is not `patches` long
    /// for each image.
    pub fn from_noise(noise: &[f32], patches: usize, ratio: f64) -> Result<Self, Error> {
        if patches == 0 || noise.is_empty() || !noise.len().is_multiple_of(patches) {
            return Err(Error::Config(format!(
                "{} noise values for images of {patches} patches",
                noise.len()
            )));
        }
        let keep = Self::visible(patches, ratio)?;
        let batch = noise.len() / patches;
        let mut ids_keep = Vec::with_capacity(batch * keep);
        let mut ids_restore = vec![0; noise.len()];
        let mut mask = vec![1.0; noise.len()];
        for (image, noise) in noise.chunks_exact(patches).enumerate() {
            let mut order: Vec<u32> = (0..patches as u32).collect();
            order.sort_by(|&a, &b| noise[a as usize].total_cmp(&noise[b as usize]));
            for (place, &patch) in order.iter().enumerate() {
                let at = image * patches + patch as usize;
                ids_restore[at] = place as u32;
                if place < keep {
                    mask[at] = 0.0;
                }
            }
            ids_keep.extend_from_slice(&order[..keep]);
        }
        Ok(Self {
            ids_keep,
            ids_restore: Arc::new(ids_restore),
            mask,
            batch,
        })
    }

    /// How many of `patches` stay visible: `int(patches * (1 - ratio))`.
    ///
    /// # Errors
    /// A ratio that leaves no patch visible, or none to predict.
    pub fn visible(patches: usize, ratio: f64) -> Result<usize, Error> {
        let keep = (patches as f64 * (1.0 - ratio)) as usize;
        if !(0.0..1.0).contains(&ratio) || keep == 0 || keep == patches {
            return Err(Error::Config(format!(
                "mask ratio {ratio} keeps {keep} of {patches} patches; some must be kept and some removed"
            )));
        }
        Ok(keep)
    }

    /// The mask on a grid `scale` times the patch grid: repeated to a finer grid, averaged to a coarser one (a soft
    /// weight); B * (side * scale)^2.
    pub fn on_grid(&self, side: usize, scale: f64) -> Vec<f32> {
        let grid = (side as f64 * scale) as usize;
        let mut out = Vec::with_capacity(self.batch * grid * grid);
        for mask in self.mask.chunks_exact(side * side) {
            for row in 0..grid {
                for column in 0..grid {
                    out.push(if scale >= 1.0 {
                        let s = scale as usize;
                        mask[row / s * side + column / s]
                    } else {
                        let s = (1.0 / scale) as usize;
                        let cells =
                            (0..s * s).map(|i| mask[(row * s + i / s) * side + column * s + i % s]);
                        cells.sum::<f32>() / (s * s) as f32
                    });
                }
            }
        }
        out
    }
}
