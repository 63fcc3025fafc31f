//! Targets and predictions of single images.
use anyhow::Result;
use candle_core::{Device, Tensor};
use datasets::rng::{rng, uniform};
use datasets::{EvalTransform, Normalize, Transform as _};
use localmim::{mean_and_deviation, LocalMim, LocalMimConfig, Masking, Stage, Target};
use vit::ops::Compute;

use super::glyphs;
use crate::draw::color::GRID;
use crate::draw::{Pixels, Stroke, Svg};
use crate::input::look::{self, Look};

/// An image, and which of its patches are hidden.
pub struct Shown {
    pub index: usize,
    input: Vec<f32>,
    norm: Normalize,
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
        let units = cfg.units();
        let input = look.input(transform, (index, &image), 0)?;
        let mut rng = rng(seed, "mask", 0, index as u64);
        let noise: Vec<f32> = (0..units).map(|_| uniform(&mut rng)).collect();
        Ok(Some(Self {
            index,
            image: look::pixels(&input, transform.size(), transform.normalize()),
            input,
            norm: *transform.normalize(),
            masking: Masking::from_noise(&noise, units, ratio)?,
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
        let drawn: Vec<Stage> = stages.iter().map(|&k| cfg.stages[k]).collect();
        let targets = cfg.targets(&image, &drawn, &Compute::default())?;
        let predictions = model.predict(&image, &self.masking)?;
        let values = |t: &Tensor| t.flatten_all()?.to_device(&Device::Cpu)?.to_vec1::<f32>();
        let one = |(&k, target): (&usize, Tensor)| {
            let stage = &cfg.stages[k];
            let (target, prediction) = (values(&target)?, values(&predictions[k].pred)?);
            let drawn = match cfg.target {
                Target::Hog => [Drawn::Histograms, Drawn::Histograms],
                Target::Pixel { normalise } => {
                    let predicted = self.predicted(cfg, stage, &prediction, normalise);
                    [self.image.clone(), predicted].map(Drawn::Pixels)
                }
            };
            let cells = StageCells {
                name: stage_name(cfg, k),
                across: cfg.grid(stage),
                bins: cfg.hog_bins,
                target,
                prediction,
                drawn,
                hidden: self.masking.on_grid(cfg.side(), stage.scale),
                error: 0.0,
            };
            Ok(cells.with_error())
        };
        stages.iter().zip(targets).map(one).collect()
    }

    /// The image with its hidden patches as a stage predicts their pixels; where each cell was normalised, with its own mean
    /// and deviation.
    fn predicted(
        &self,
        cfg: &LocalMimConfig,
        stage: &Stage,
        prediction: &[f32],
        normalised: bool,
    ) -> Pixels {
        let (size, side, unit) = (cfg.vit.image_size, cfg.side(), cfg.vit.mask_unit());
        let (pool, across) = (cfg.pool(stage), cfg.grid(stage));
        let (plane, length) = (size * size, 3 * pool * pool);
        let mut values = self.input.clone();
        for (cell, predicted) in prediction.chunks_exact(length).enumerate() {
            let (top, left) = (cell / across * pool, cell % across * pool);
            let at = |i: usize| (top + i / 3 / pool) * size + left + i / 3 % pool;
            let place = |i: usize| i % 3 * plane + at(i);
            let (mean, deviation) = match normalised {
                true => {
                    let own: Vec<f32> = (0..length).map(|i| self.input[place(i)]).collect();
                    mean_and_deviation(&own)
                }
                false => (0.0, 1.0),
            };
            for (i, &value) in predicted.iter().enumerate() {
                let (y, x) = (at(i) / size, at(i) % size);
                if self.masking.mask[y / unit * side + x / unit] > 0.0 {
                    values[place(i)] = (f64::from(value) * deviation + mean) as f32;
                }
            }
        }
        look::pixels(&values, (size, size), &self.norm)
    }
}

pub fn stage_name(cfg: &LocalMimConfig, k: usize) -> String {
    format!("stage {k}, block {}", cfg.stages[k].block)
}

/// How a target or a prediction is drawn.
enum Drawn {
    Histograms,
    Pixels(Pixels),
}

/// What one stage should have said of an image and what it said.
pub struct StageCells {
    pub name: String,
    /// Cells along one side.
    pub across: usize,
    bins: usize,
    target: Vec<f32>,
    prediction: Vec<f32>,
    /// Of both.
    drawn: [Drawn; 2],
    /// The part of each cell that was hidden.
    hidden: Vec<f32>,
    pub error: f64,
}

impl StageCells {
    /// Draws the target over a square.
    pub fn draw_target(&self, svg: &mut Svg, square: [f64; 4]) {
        self.draw(svg, square, (&self.target, &self.drawn[0]));
    }

    /// Draws the prediction over a square.
    pub fn draw_prediction(&self, svg: &mut Svg, square: [f64; 4]) {
        self.draw(svg, square, (&self.prediction, &self.drawn[1]));
    }

    fn draw(&self, svg: &mut Svg, square: [f64; 4], (values, drawn): (&[f32], &Drawn)) {
        match drawn {
            Drawn::Histograms => {
                svg.outline(square, Stroke::new(GRID, 1.0));
                glyphs::draw(svg, square, (values, self.bins), &self.hidden);
            }
            Drawn::Pixels(pixels) => svg.pixels(square, pixels),
        }
    }

    /// With the loss of this image: the mean squared error of the hidden cells.
    fn with_error(self) -> Self {
        let (target, prediction) = (&self.target, &self.prediction);
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

#[cfg(test)]
mod tests {
    use super::*;
    use vit::VitConfig;

    /// The target itself as the prediction gives the image back, normalised or not; a wrong one changes hidden patches alone.
    #[test]
    fn predicted_pixels_are_an_image() {
        let preset = VitConfig::preset("vit-tiny").unwrap();
        let vit = VitConfig {
            image_size: 32,
            patch_size: 8,
            ..preset
        };
        let mut cfg = LocalMimConfig::new(vit).unwrap();
        let input: Vec<f32> = (0..3 * 32 * 32)
            .map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0)
            .collect();
        let norm = Normalize::IMAGENET;
        let noise: Vec<f32> = (0..16).map(|i| (i * 7 % 16) as f32).collect();
        let shown = Shown {
            index: 0,
            image: look::pixels(&input, (32, 32), &norm),
            norm,
            masking: Masking::from_noise(&noise, 16, 0.75).unwrap(),
            input,
        };
        let image = Tensor::from_slice(&shown.input, (1, 3, 32, 32), &Device::Cpu).unwrap();
        for normalise in [false, true] {
            cfg.target = Target::Pixel { normalise };
            let targets = cfg.targets(&image, &cfg.stages, &Compute::default());
            for (stage, target) in cfg.stages.iter().zip(targets.unwrap()) {
                let target: Vec<f32> = target.flatten_all().unwrap().to_vec1().unwrap();
                let same = shown.predicted(&cfg, stage, &target, normalise);
                let wrong = shown.predicted(&cfg, stage, &vec![9.0; target.len()], normalise);
                for (x, y) in (0..32 * 32).map(|i| (i % 32, i / 32)) {
                    let hidden = shown.masking.mask[y / 8 * 4 + x / 8] > 0.0;
                    let (want, got) = (shown.image.at(x, y), same.at(x, y));
                    let near = want.iter().zip(got).all(|(a, b)| a.abs_diff(b) <= 1);
                    assert!(near, "{stage:?}: {got:?}, not {want:?}");
                    assert_eq!(wrong.at(x, y) != want, hidden, "{stage:?} at {x}, {y}");
                }
            }
        }
    }
}
