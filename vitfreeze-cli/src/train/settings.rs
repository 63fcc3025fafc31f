//! What every training of a classifier is told, as keys and as flags.
use anyhow::Result;
use clap::ValueEnum;
use freezeout::{Schedule, Spacing};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::commands::pretrain::config::batch_fits;
use crate::input::dataset::SAMPLES;
use crate::machine::device::Dtype;
use crate::run::data::RunData;
use crate::settings::{absolute, bounded, not_negative, Settings};
use crate::usage::usage;

/// Settings of a command that trains a classifier.
pub trait TrainSettings: Settings {
    /// What it shares with the others.
    fn training(&self) -> &Training;

    /// Decay of the weights' moving average, if there is one.
    fn ema(&self) -> Option<f64> {
        None
    }
}

/// Numbers that all trainings of a classifier have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Training {
    pub checkpoint: Option<String>,
    pub data: String,
    pub val_data: Option<String>,
    pub samples: usize,
    pub crop_scale: f64,
    pub image_size: Option<usize>,
    pub heads: Option<usize>,
    pub pool: Option<Pool>,
    pub epochs: usize,
    pub warmup_epochs: usize,
    pub batch_size: usize,
    pub accum: usize,
    pub blr: f64,
    pub lr: Option<f64>,
    pub min_lr: f64,
    pub weight_decay: f64,
    pub seed: u64,
    pub eval_every: usize,
    pub save_every: Option<usize>,
    pub threads: usize,
    pub device: String,
    #[serde(default)]
    pub dtype: Dtype,
    pub tensorboard: bool,
}

/// Keys that a resumed run may change.
pub const FREE_KEYS: [&str; 7] = [
    "checkpoint",
    "data",
    "val-data",
    "threads",
    "device",
    "save-every",
    "tensorboard",
];

/// How tokens become the vector that the head sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pool {
    /// The mean of the patches
    Avg,
    /// The class token
    Token,
}

impl From<Pool> for vit::Pool {
    fn from(pool: Pool) -> Self {
        match pool {
            Pool::Avg => Self::Avg,
            Pool::Token => Self::Token,
        }
    }
}

/// The same as flags: all optional.
#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct TrainingFlags {
    /// Where the encoder comes from: a run's folder, a file (.safetensors, .pth, .bin, .index.json), or hf://org/name@revision
    #[arg(long, value_name = "CHECKPOINT", help_heading = "Model")]
    pub checkpoint: Option<String>,
    /// Side of the image in pixels; a learnt position table is resampled [default: the checkpoint's]
    #[arg(long, value_name = "PX", help_heading = "Model")]
    pub image_size: Option<usize>,
    /// Attention heads, where no file of the checkpoint tells them
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub heads: Option<usize>,
    /// What the head sees [default: the mean of the patches; a classifier keeps its own]
    #[arg(long, value_enum, value_name = "NAME", help_heading = "Model")]
    pub pool: Option<Pool>,

    /// Dataset with a training and a validation split ('vitfreeze data --help'); 'shapes' = drawn by the program
    /// [default: that of the checkpoint's run]
    #[arg(long, value_name = "SRC", help_heading = "Data")]
    pub data: Option<String>,
    /// Where the validation images are, if not in --data
    #[arg(long, value_name = "SRC", help_heading = "Data")]
    pub val_data: Option<String>,
    /// Number of training images of 'shapes'; a quarter as many more validate [default: 4096]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub samples: Option<usize>,
    /// Smallest area of a random crop, as a part of the image [default: 0.08]
    #[arg(long, value_name = "X", help_heading = "Data")]
    pub crop_scale: Option<f64>,

    /// Passes over the data [default: finetune 100, linprobe 90]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub epochs: Option<usize>,
    /// Epochs in which the learning rate rises [default: finetune 20, linprobe 10]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub warmup_epochs: Option<usize>,
    /// Images computed at once [default: finetune 64, linprobe 512]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub batch_size: Option<usize>,
    /// Batches whose gradients are averaged for one optimiser step [default: finetune 16, linprobe 32]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub accum: Option<usize>,
    /// Learning rate per 256 images; the rate is blr * (images of a step) / 256 [default: finetune 1e-3, linprobe 0.1]
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
    /// Learning rate at the end [default: finetune 1e-6, linprobe 0]
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub min_lr: Option<f64>,
    /// Weight decay, on matrices [default: finetune 0.05, linprobe 0]
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub weight_decay: Option<f64>,
    /// Everything random is a function of it [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub seed: Option<u64>,

    /// Epochs between evaluations on the validation split; there is one at the end in any case [default: 1]
    #[arg(long, value_name = "N", help_heading = "Running")]
    pub eval_every: Option<usize>,
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

impl Training {
    /// What all commands start from, but for the recipe.
    pub fn defaults(
        epochs: usize,
        warmup_epochs: usize,
        (batch_size, accum): (usize, usize),
    ) -> Self {
        Self {
            checkpoint: None,
            data: String::new(),
            val_data: None,
            samples: SAMPLES,
            crop_scale: 0.08,
            image_size: None,
            heads: None,
            pool: None,
            epochs,
            warmup_epochs,
            batch_size,
            accum,
            blr: 0.0,
            lr: None,
            min_lr: 0.0,
            weight_decay: 0.0,
            seed: 0,
            eval_every: 1,
            save_every: None,
            threads: 0,
            device: "cpu".into(),
            dtype: Dtype::F32,
            tensorboard: false,
        }
    }

    /// Where no data is given, that of the run that the checkpoint is of.
    pub fn complete(given: &mut Table) {
        let checkpoint = given.get("checkpoint").and_then(Value::as_str);
        let Some(of_run) = checkpoint
            .filter(|_| !given.contains_key("data"))
            .and_then(RunData::of)
        else {
            return;
        };
        of_run.tell();
        let samples = of_run.samples.and_then(|n| i64::try_from(n).ok());
        for (key, value) in [
            ("data", Some(Value::String(of_run.data))),
            ("val-data", of_run.val_data.map(Value::String)),
            ("samples", samples.map(Value::Integer)),
        ] {
            if let (Some(value), false) = (value, given.contains_key(key)) {
                given.insert(key.into(), value);
            }
        }
    }

    /// Makes paths absolute and refuses numbers that make no sense.
    pub fn resolve(&mut self) -> Result<()> {
        if self.data.is_empty() {
            return Err(usage(
                "--data SRC is missing: images to train on, such as a folder with train/ and val/ ('shapes' = drawn by the program)",
            ));
        }
        self.data = absolute("data", &self.data)?;
        for (key, path) in [
            ("checkpoint", &mut self.checkpoint),
            ("val-data", &mut self.val_data),
        ] {
            if let Some(path) = path {
                *path = absolute(key, path)?;
            }
        }
        bounded(&[
            ("samples", self.samples, 100_000_000),
            ("epochs", self.epochs, 1_000_000),
            ("batch-size", self.batch_size, 1_000_000),
            ("accum", self.accum, 1_000_000),
            ("eval-every", self.eval_every, 1_000_000),
            ("save-every", self.save_every.unwrap_or(1), usize::MAX),
            ("image-size", self.image_size.unwrap_or(1), 4096),
            ("heads", self.heads.unwrap_or(1), 4096),
        ])?;
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
        not_negative(&[
            ("blr", self.blr),
            ("lr", self.lr.unwrap_or(0.0)),
            ("min-lr", self.min_lr),
            ("weight-decay", self.weight_decay),
        ])
    }

    /// Refuses batches that no memory holds.
    pub fn check_batch(&self, image_size: usize) -> Result<()> {
        if batch_fits(self.batch_size, image_size) {
            return Ok(());
        }
        Err(usage(format!(
            "batch-size {} is too large for {image_size} px; use a smaller one and a larger accum",
            self.batch_size
        )))
    }

    /// Warm-up from 0, then a cosine, step by step; nothing freezes. For epochs of so many batches.
    pub fn schedule(&self, batches_per_epoch: usize, layers: usize) -> Result<Schedule> {
        let per_epoch = batches_per_epoch.div_ceil(self.accum);
        let Some(steps) = self.epochs.checked_mul(per_epoch) else {
            return Err(usage(format!(
                "{} epochs of {per_epoch} steps are too many",
                self.epochs
            )));
        };
        let images = self.batch_size * self.accum.min(batches_per_epoch);
        let schedule = Schedule {
            warmup_steps: self.warmup_epochs * per_epoch,
            spacing: Spacing::None,
            lr: self.lr.unwrap_or(self.blr * images as f64 / 256.0),
            min_lr: self.min_lr,
            ..Schedule::cubic(1.0, layers, steps)
        };
        schedule.validate().map_err(usage)?;
        if schedule.lr < schedule.min_lr {
            return Err(usage(format!(
                "the learning rate is {:e}, below min-lr ({:e})",
                schedule.lr, schedule.min_lr
            )));
        }
        Ok(schedule)
    }
}
