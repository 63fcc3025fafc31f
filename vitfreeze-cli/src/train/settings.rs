//! What every training is told, as flags and as keys.
use anyhow::Result;
use candle_core::Device;
use datasets::LoaderConfig;
use freezeout::{Schedule, Spacing, Steps};
use serde::{Deserialize, Serialize};
use toml::Table;
use vit::ops::{Compute, Hold};

use crate::input::dataset::SAMPLES;
use crate::machine::device::Dtype;
use crate::machine::Machine;
use crate::settings::{absolute, bounded, not_negative, Settings};
use crate::train::Adaptive;
use crate::usage::usage;

/// Settings of a command that trains.
pub trait TrainSettings: Settings {
    /// What it shares with the others.
    fn training(&self) -> &Training;

    /// Epochs between evaluations, for who evaluates.
    fn eval_every(&self) -> usize {
        1
    }

    /// Whether a step is a mean over its images, whatever batches they come in.
    fn by_image(&self) -> bool {
        false
    }

    /// What decides while the model trains what freezes, if a schedule does not.
    fn policy(&self) -> Option<&Adaptive> {
        None
    }

    /// Decay of the weights' moving average, if there is one.
    fn ema(&self) -> Option<f64> {
        None
    }
}

/// What a learning rate follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    pub steps: Steps,
    /// Images of a step, of all workers.
    pub images: usize,
}

impl Plan {
    /// Whether step by step as many images make the other's steps.
    pub fn has_the_steps_of(&self, other: &Self) -> bool {
        let of = |plan: &Self| {
            let steps = &plan.steps;
            let last = steps.batches(steps.per_epoch() - 1);
            let images = |batches| plan.images / steps.largest() * batches;
            (steps.total(), steps.per_epoch(), plan.images, images(last))
        };
        of(self) == of(other)
    }
}

/// Numbers that all trainings have. Those without a default here have one in each command's recipe.
#[derive(Debug, Clone, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Training {
    /// Dataset: folder of class folders (or train/ and val/ with them inside), CIFAR, ILSVRC2012 or WebDataset tars, Parquet
    /// files, a cache ('vitfreeze data --help'); 'shapes' = drawn by the program
    #[arg(long, value_name = "SRC", help_heading = "Data")]
    pub data: Option<String>,
    /// Number of training images of 'shapes'; a validation split has a quarter as many
    #[arg(long, value_name = "N", default_value_t = SAMPLES, help_heading = "Data")]
    pub samples: usize,
    /// Smallest area of a random crop, as a part of the image
    #[arg(long, value_name = "X", help_heading = "Data")]
    pub crop_scale: f64,

    /// Passes over the data
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub epochs: usize,
    /// Epochs in which the learning rate rises
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub warmup_epochs: usize,
    /// Images computed at once
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub batch_size: usize,
    /// Batches whose gradients are averaged for one optimiser step
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub accum: usize,
    /// Learning rate per 256 images; the rate is blr * (images of a step) / 256
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub blr: f64,
    /// Learning rate itself; overrides --blr
    #[arg(
        long,
        value_name = "X",
        conflicts_with = "blr",
        help_heading = "Training"
    )]
    pub lr: Option<f64>,
    /// Learning rate at the end
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub min_lr: f64,
    /// Weight decay, on matrices
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub weight_decay: f64,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Training")]
    pub seed: u64,

    /// Optimiser steps between checkpoints [default: once an epoch]
    #[arg(long, value_name = "N", help_heading = "Running")]
    pub save_every: Option<usize>,
    /// Threads, 0 = one per core
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Running")]
    pub threads: usize,
    /// cpu, cuda, cuda:N or metal
    #[arg(
        long,
        value_name = "NAME",
        default_value = "cpu",
        help_heading = "Running"
    )]
    pub device: String,
    /// Type of the operands of matrix products; f32 where the processor has no bf16 unit
    #[arg(long, value_enum, value_name = "NAME", default_value_t = Dtype::F32, help_heading = "Running")]
    #[serde(default)]
    pub dtype: Dtype,
    /// Write TensorBoard event files into the run's folder
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", value_name = "BOOL", help_heading = "Running")]
    pub tensorboard: bool,
    /// With --tensorboard: also the weights of each layer as histograms, after some epochs
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", value_name = "BOOL", help_heading = "Running")]
    #[serde(default)]
    pub histograms: bool,
}

impl Training {
    /// Keys that a resumed run may change.
    pub const FREE_KEYS: &'static [&'static str] = &[
        "data",
        "threads",
        "device",
        "save-every",
        "tensorboard",
        "histograms",
    ];

    /// A rate by images among the flags overrides a file's rate.
    pub fn complete(file: &mut Table, flags: &Table) {
        if flags.contains_key("blr") {
            file.remove("lr");
        }
    }

    /// Where the images are.
    pub fn data(&self) -> &str {
        self.data.as_deref().unwrap_or_default()
    }

    /// Makes paths absolute and refuses numbers that make no sense.
    pub fn resolve(&mut self) -> Result<()> {
        if self.data().is_empty() {
            return Err(usage(
                "--data SRC is missing: images to train on, such as a folder with train/ and val/ ('shapes' = drawn by the program)",
            ));
        }
        self.data = Some(absolute("data", self.data())?);
        if self.histograms && !self.tensorboard {
            return Err(usage("--histograms is for --tensorboard; give both"));
        }
        // Bounds far beyond use, so that nothing overflows and most typing errors end here.
        bounded(&[
            ("samples", self.samples, 100_000_000),
            ("epochs", self.epochs, 1_000_000),
            ("batch-size", self.batch_size, 1_000_000),
            ("accum", self.accum, 1_000_000),
            ("save-every", self.save_every.unwrap_or(1), usize::MAX),
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

    /// How models compute: blocks hold what products of bf16 need of their weights where a step has several batches, frozen ones always.
    pub fn compute(&self, device: &Device) -> Result<Compute> {
        Ok(Compute {
            hold: match self.accum {
                1 => Hold::Frozen,
                _ => Hold::All,
            },
            ..self.dtype.compute(device)?
        })
    }

    /// Refuses batches that no memory holds.
    pub fn check_batch(&self, image_size: usize) -> Result<()> {
        check_batch(self.batch_size, image_size)
    }

    /// How batches make steps and epochs, where so many workers compute one each at a time.
    pub fn plan(&self, batches_per_epoch: usize, workers: usize) -> Result<Plan> {
        let steps = Steps::new(batches_per_epoch, self.accum, self.epochs).map_err(usage)?;
        Ok(Plan {
            steps,
            images: self.batch_size * workers * steps.largest(),
        })
    }

    /// How this worker's images are loaded.
    pub fn loader(&self, machine: &Machine) -> LoaderConfig {
        LoaderConfig {
            batch_size: self.batch_size,
            seed: self.seed,
            threads: machine.threads,
            rank: machine.workers.rank(),
            ranks: machine.workers.size(),
            ..LoaderConfig::default()
        }
    }

    /// Warm-up from 0, then a cosine, step by step; nothing freezes.
    pub fn schedule(&self, plan: &Plan, layers: usize) -> Result<Schedule> {
        let (steps, images) = (&plan.steps, plan.images);
        let schedule = Schedule {
            warmup_steps: self.warmup_epochs * steps.per_epoch(),
            spacing: Spacing::None,
            lr: self.lr.unwrap_or(self.blr * images as f64 / 256.0),
            min_lr: self.min_lr,
            ..Schedule::cubic(1.0, layers, steps.total())
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

/// Refuses a batch of square images of 2^30 pixels and more.
pub fn check_batch(batch_size: usize, image_size: usize) -> Result<()> {
    if batch_size * image_size * image_size <= 1 << 30 {
        return Ok(());
    }
    Err(usage(format!(
        "batch-size {batch_size} is too large for {image_size} px; use a smaller one and a larger accum"
    )))
}
