//! Every number of a pretraining run: its default, its flag, its key in a TOML file.
use std::path::Path;

use anyhow::Result;
use freezeout::{AdamW, LayerLr, Schedule, Spacing, Warmup};
use localmim::{LocalMimConfig, Masking, Stage};
use serde::{Deserialize, Serialize};
use vit::VitConfig;

use crate::input::dataset::SAMPLES;
use crate::machine::device::Dtype;
use crate::settings::{absolute, bounded, name, not_negative, parse, Settings};
use crate::usage::usage;

/// The run without arguments: no data needed, a few minutes on two cores.
pub const TINY_SHAPES: &str = include_str!("../../../configs/tiny-shapes.toml");

/// All numbers of a run, with the defaults of the method (docs/paper.md names their sources).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    pub data: String,
    pub samples: usize,
    pub crop_scale: f64,
    pub model: String,
    pub image_size: usize,
    pub patch_size: usize,
    pub mask_ratio: f64,
    pub hog_bins: usize,
    pub stages: String,
    pub decoder_dim: usize,
    pub decoder_depth: usize,
    pub decoder_heads: usize,
    pub epochs: usize,
    pub warmup_epochs: usize,
    pub batch_size: usize,
    pub accum: usize,
    pub blr: f64,
    pub lr: Option<f64>,
    pub min_lr: f64,
    pub weight_decay: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub freeze: Spacing,
    pub t0: f64,
    pub layer_lr: LayerLr,
    pub warmup: Warmup,
    pub train_cls_token: bool,
    pub seed: u64,
    pub save_every: Option<usize>,
    pub threads: usize,
    pub device: String,
    pub dtype: Dtype,
    pub tensorboard: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: "shapes".into(),
            samples: SAMPLES,
            crop_scale: 0.2,
            model: "vit-base".into(),
            image_size: 0, // 0 = the model's own
            patch_size: 0,
            mask_ratio: 0.75,
            hog_bins: 0,
            stages: "default".into(),
            decoder_dim: 256,
            decoder_depth: 1,
            decoder_heads: 8,
            epochs: 100,
            warmup_epochs: 10,
            batch_size: 64, // 64 x 32 = 2048, the published batch, in pieces that fit into memory
            accum: 32,
            blr: 2e-4,
            lr: None,
            min_lr: 1e-6,
            weight_decay: 0.05,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            freeze: Spacing::Cubic,
            t0: 0.8,
            layer_lr: LayerLr::Shared, // the thesis' own schedule, and its best result
            warmup: Warmup::Common,
            train_cls_token: false,
            seed: 0,
            save_every: None,
            threads: 0,
            device: "cpu".into(),
            dtype: Dtype::F32,
            tensorboard: false,
        }
    }
}

/// The same as flags: all optional.
#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Flags {
    /// Dataset: folder of class folders (or train/ with them inside), CIFAR, ILSVRC2012 or WebDataset tars, Parquet files, a cache
    /// ('vitfreeze data --help'); 'shapes' = drawn by the program [default: shapes]
    #[arg(long, value_name = "SRC", help_heading = "Data")]
    pub data: Option<String>,
    /// Number of images of 'shapes' [default: 4096]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub samples: Option<usize>,
    /// Smallest area of a random crop, as a part of the image [default: 0.2]
    #[arg(long, value_name = "X", help_heading = "Data")]
    pub crop_scale: Option<f64>,

    /// vit-tiny, vit-small, vit-base, vit-large or vit-huge [default: vit-base]
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    pub model: Option<String>,
    /// Side of the image in pixels [default: 224]
    #[arg(long, value_name = "PX", help_heading = "Model")]
    pub image_size: Option<usize>,
    /// Side of a patch in pixels; divides the image size [default: 16, vit-huge 14]
    #[arg(long, value_name = "PX", help_heading = "Model")]
    pub patch_size: Option<usize>,
    /// Part of the patches that is hidden [default: 0.75]
    #[arg(long, value_name = "X", help_heading = "Model")]
    pub mask_ratio: Option<f64>,
    /// Orientation bins of the HOG target [default: 9, vit-large and vit-huge 18]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub hog_bins: Option<usize>,
    /// Which blocks are decoded: default, all, or BLOCK:SCALE,... with scales 8, 4, 2, 1, 0.5 [default: default]
    #[arg(long, value_name = "LIST", help_heading = "Model")]
    pub stages: Option<String>,
    /// Width of a decoder [default: 256]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub decoder_dim: Option<usize>,
    /// Blocks of a decoder [default: 1]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub decoder_depth: Option<usize>,
    /// Attention heads of a decoder [default: 8]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub decoder_heads: Option<usize>,

    /// Passes over the data [default: 100]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub epochs: Option<usize>,
    /// Epochs in which the learning rate rises [default: 10]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub warmup_epochs: Option<usize>,
    /// Images computed at once [default: 64]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub batch_size: Option<usize>,
    /// Batches whose gradients are averaged for one optimiser step [default: 32]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub accum: Option<usize>,
    /// Learning rate per 256 images; the rate is blr * batch-size * accum / 256 [default: 2e-4]
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub blr: Option<f64>,
    /// Learning rate itself; goes before --blr
    #[arg(
        long,
        value_name = "X",
        conflicts_with = "blr",
        help_heading = "Training"
    )]
    pub lr: Option<f64>,
    /// Learning rate at the end [default: 1e-6]
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub min_lr: Option<f64>,
    /// Decoupled weight decay of AdamW, on matrices [default: 0.05]
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub weight_decay: Option<f64>,
    /// AdamW's decay of the first moment [default: 0.9]
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub beta1: Option<f64>,
    /// AdamW's decay of the second moment [default: 0.95]
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub beta2: Option<f64>,
    /// AdamW's epsilon [default: 1e-8]
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub eps: Option<f64>,
    /// Everything random is a function of it [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub seed: Option<u64>,

    /// How freezing times are spread over the layers: linear, squared, cubic, power:P, none, or a plan
    /// at:STEP=FROZEN,... [default: cubic]
    #[arg(long, value_name = "NAME", value_parser = name::<Spacing>, help_heading = "Freezing")]
    pub freeze: Option<Spacing>,
    /// When the first layer freezes, before spacing: in (0, 1], 1 = never [default: 0.8]
    #[arg(long, value_name = "X", help_heading = "Freezing")]
    pub t0: Option<f64>,
    /// Learning rates by layer: scaled, unscaled or shared [default: shared]
    #[arg(long, value_name = "NAME", value_parser = name::<LayerLr>, help_heading = "Freezing")]
    pub layer_lr: Option<LayerLr>,
    /// Warm-up: common (all layers alike) or continuous (each to its own rate) [default: common]
    #[arg(long, value_name = "NAME", value_parser = name::<Warmup>, help_heading = "Freezing")]
    pub warmup: Option<Warmup>,
    /// Never freeze the class token, as the published code (frozen blocks then save next to nothing)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Freezing")]
    pub train_cls_token: Option<bool>,

    /// Optimiser steps between checkpoints [default: once an epoch]
    #[arg(long, value_name = "N", help_heading = "Running")]
    pub save_every: Option<usize>,
    /// Threads, 0 = one per core [default: 0]
    #[arg(long, value_name = "N", help_heading = "Running")]
    pub threads: Option<usize>,
    /// cpu, cuda, cuda:N or metal [default: cpu]
    #[arg(long, value_name = "NAME", help_heading = "Running")]
    pub device: Option<String>,
    /// Type of the operands of matrix products; f32 where there is no unit for bf16 [default: f32]
    #[arg(long, value_enum, value_name = "NAME", help_heading = "Running")]
    pub dtype: Option<Dtype>,
    /// Write TensorBoard event files into the run's folder
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Running")]
    pub tensorboard: Option<bool>,
}

impl Settings for Config {
    type Flags = Flags;
    const COMMAND: &'static str = "pretrain";
    const FREE_KEYS: &'static [&'static str] =
        &["data", "threads", "device", "save-every", "tensorboard"];

    /// Without file and data, the embedded demonstration's.
    fn new(file: Option<&Path>, flags: &Flags) -> Result<Self> {
        match file {
            Some(path) => Self::of_run(path, flags),
            None if flags.data.as_deref().unwrap_or("shapes") == "shapes" => {
                Self::merge(parse::<Self>(TINY_SHAPES, "tiny-shapes")?, flags)
            }
            None => Self::merge(Flags::default(), flags),
        }
    }

    fn resolve(&mut self) -> Result<()> {
        let preset = preset(&self.model)?;
        let or = |value: &mut usize, default| {
            if *value == 0 {
                *value = default;
            }
        };
        or(&mut self.image_size, preset.image_size);
        or(&mut self.patch_size, preset.patch_size);
        or(&mut self.hog_bins, if preset.depth > 12 { 18 } else { 9 });
        self.data = absolute("data", &self.data)?;
        // Bounds far beyond use, so that nothing overflows and most typing errors end here.
        bounded(&[
            ("samples", self.samples, 100_000_000),
            ("epochs", self.epochs, 1_000_000),
            ("batch-size", self.batch_size, 1_000_000),
            ("accum", self.accum, 1_000_000),
            ("save-every", self.save_every.unwrap_or(1), usize::MAX),
            ("image-size", self.image_size, 4096),
            ("decoder-dim", self.decoder_dim, 8192),
            ("decoder-depth", self.decoder_depth, 64),
        ])?;
        if !batch_fits(self.batch_size, self.image_size) {
            return Err(usage(format!(
                "batch-size {} is too large for {} px; use a smaller one and a larger accum",
                self.batch_size, self.image_size
            )));
        }
        if self.warmup_epochs >= self.epochs {
            return Err(usage(format!(
                "warmup-epochs is {}, it must be less than epochs ({})",
                self.warmup_epochs, self.epochs
            )));
        }
        if !(self.crop_scale > 0.0 && self.crop_scale <= 1.0) {
            return Err(usage(format!(
                "crop-scale is {}, it must lie in (0, 1]",
                self.crop_scale
            )));
        }
        for (key, value) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&value) {
                return Err(usage(format!("{key} is {value}, it must lie in [0, 1)")));
            }
        }
        not_negative(&[
            ("blr", self.blr),
            ("lr", self.lr.unwrap_or(0.0)),
            ("min-lr", self.min_lr),
            ("weight-decay", self.weight_decay),
            ("eps", self.eps),
        ])?;
        let model = self.model()?;
        Masking::visible(model.vit.patches(), self.mask_ratio).map_err(usage)?;
        // How many steps an epoch has is not known yet, so that a plan in steps must wait.
        if !matches!(self.freeze, Spacing::At(_)) {
            self.schedule(1, model.layers())?;
        }
        Ok(())
    }
}

impl Config {
    /// The model.
    pub fn model(&self) -> Result<LocalMimConfig> {
        let preset = preset(&self.model)?;
        let vit = VitConfig {
            image_size: self.image_size,
            patch_size: self.patch_size,
            ..preset
        };
        let model = LocalMimConfig {
            stages: stages(&self.stages, vit.depth)?,
            vit,
            decoder_embed_dim: self.decoder_dim,
            decoder_depth: self.decoder_depth,
            decoder_num_heads: self.decoder_heads,
            hog_bins: self.hog_bins,
        };
        model.validate().map_err(usage)?;
        Ok(model)
    }

    /// Learning rates and freezing times for epochs of so many optimiser steps.
    pub fn schedule(&self, steps_per_epoch: usize, layers: usize) -> Result<Schedule> {
        let effective = (self.batch_size * self.accum) as f64;
        if self.epochs.checked_mul(steps_per_epoch).is_none() {
            return Err(usage(format!(
                "{} epochs of {steps_per_epoch} steps are too many",
                self.epochs
            )));
        }
        let schedule = Schedule {
            warmup_steps: self.warmup_epochs.saturating_mul(steps_per_epoch),
            spacing: self.freeze.clone(),
            layer_lr: self.layer_lr,
            warmup: self.warmup,
            lr: self.lr.unwrap_or(self.blr * effective / 256.0),
            min_lr: self.min_lr,
            ..Schedule::cubic(self.t0, layers, self.epochs * steps_per_epoch)
        };
        schedule.validate().map_err(usage)?;
        Ok(schedule)
    }

    /// The optimiser's numbers.
    pub fn adamw(&self) -> AdamW {
        AdamW {
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            weight_decay: self.weight_decay,
        }
    }
}

/// The architecture of this name; only the plain ones, which LocalMIM pretrains.
pub fn preset(model: &str) -> Result<VitConfig> {
    let plain = model.starts_with("vit-").then(|| VitConfig::preset(model));
    plain.flatten().ok_or_else(|| {
        usage(format!(
            "model '{model}': expected vit-tiny, vit-small, vit-base, vit-large or vit-huge"
        ))
    })
}

/// Whether a batch of square images stays below 2^30 pixels.
pub fn batch_fits(batch_size: usize, image_size: usize) -> bool {
    batch_size * image_size * image_size <= 1 << 30
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
