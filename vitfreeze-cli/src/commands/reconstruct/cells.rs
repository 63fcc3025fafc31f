//! Targets and predictions of single images.
use anyhow::Result;
use candle_core::{Device, Tensor};
use datasets::rng::{rng, uniform};
use datasets::{EvalTransform, Transform as _};
use localmim::{hog, LocalMim, LocalMimConfig, Masking};
use vit::ops::Compute;

use crate::draw::Pixels;
use crate::input::look::{self, Look};

/// An image, and which of its patches are hidden.
pub struct Shown {
    pub index: usize,
    pub input: Vec<f32>,
    pub image: Pixels,
    pub masking: Masking,
}

impl Shown {
    /// The next of these images, whose hidden patches the seed draws; `None` behind the last.
    pub fn next(
        look: &mut Look,
        cfg: &LocalMimConfig,
        transform: &EvalTransform,
        (seed, ratio): (u64, f64),
    ) -> Result<Option<Self>> {
        let Some((index, image)) = look.next_image()? else {
            return Ok(None);
        };
        let patches = cfg.vit.patches();
        let input = look.input(transform, (index, &image), 0)?;
        let mut rng = rng(seed, "mask", 0, index as u64);
        let noise: Vec<f32> = (0..patches).map(|_| uniform(&mut rng)).collect();
        Ok(Some(Self {
            index,
            image: look::pixels(&input, transform.size(), transform.normalize()),
            input,
            masking: Masking::from_noise(&noise, patches, ratio)?,
        }))
    }

    /// Targets, predictions and errors of these stages.
    pub fn cells(
        &self,
        (cfg, model): (&LocalMimConfig, &LocalMim),
        stages: &[usize],
        device: &Device,
    ) -> Result<Vec<StageCells>> {
        let size = cfg.vit.image_size;
        let image = Tensor::from_slice(&self.input, (1, 3, size, size), device)?;
        let pools: Vec<usize> = stages.iter().map(|&k| cfg.pool(&cfg.stages[k])).collect();
        let compute = Compute::default();
        let targets = hog(&image, cfg.hog_bins, cfg.finest_pool(), &pools, &compute)?;
        let predictions = model.predict(&image, &self.masking)?;
        let values = |t: &Tensor| t.flatten_all()?.to_device(&Device::Cpu)?.to_vec1::<f32>();
        let one = |(&k, target): (&usize, Tensor)| {
            let stage = &cfg.stages[k];
            let cells = StageCells {
                name: stage_name(cfg, k),
                target: Cells::new(cfg.grid(stage), values(&target)?),
                prediction: Cells::new(cfg.grid(stage), values(&predictions[k].pred)?),
                hidden: self.masking.on_grid(cfg.side(), stage.scale),
                error: 0.0,
            };
            Ok(cells.with_error())
        };
        stages.iter().zip(targets).map(one).collect()
    }
}

pub fn stage_name(cfg: &LocalMimConfig, k: usize) -> String {
    format!("stage {k}, block {}", cfg.stages[k].block)
}

/// One stage's histograms of an image.
pub struct Cells {
    pub across: usize,
    pub values: Vec<f32>,
}

impl Cells {
    fn new(across: usize, values: Vec<f32>) -> Self {
        Self { across, values }
    }
}

/// What one stage should have said of an image and what it said.
pub struct StageCells {
    pub name: String,
    pub target: Cells,
    pub prediction: Cells,
    /// The part of each cell that was hidden.
    pub hidden: Vec<f32>,
    pub error: f64,
}

impl StageCells {
    /// With the loss of this image: the mean squared error of the hidden cells.
    fn with_error(self) -> Self {
        let (target, prediction) = (&self.target.values, &self.prediction.values);
        let channels = (target.len() / self.hidden.len().max(1)).max(1);
        let cells = target
            .chunks_exact(channels)
            .zip(prediction.chunks_exact(channels));
        let (mut sum, mut all) = (0.0, 0.0);
        for ((target, prediction), &hidden) in cells.zip(&self.hidden) {
            let squares = target
                .iter()
                .zip(prediction)
                .map(|(t, p)| f64::from(p - t).powi(2));
            sum += f64::from(hidden) * squares.sum::<f64>() / channels as f64;
            all += f64::from(hidden);
        }
        Self {
            error: sum / all,
            ..self
        }
    }
}
