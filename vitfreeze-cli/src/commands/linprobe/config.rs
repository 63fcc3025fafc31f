//! Every number of a linear probe: its default, its flag, its key in a TOML file.
use anyhow::Result;
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::input::pretrained::CHECKPOINT;
use crate::settings::Settings;
use crate::train::{Supervised, TrainSettings, Training};
use crate::usage::usage;

/// All numbers of a run, with MAE's defaults.
#[derive(Debug, Clone, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Config {
    #[command(flatten)]
    #[serde(flatten)]
    pub supervised: Supervised,
    #[command(flatten)]
    #[serde(flatten)]
    pub training: Training,
    /// Compute the features of all images once, prepared as for an evaluation, and train on those: fast, without augmentation
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", value_name = "BOOL", help_heading = "Data")]
    pub cached: bool,
}

impl TrainSettings for Config {
    fn training(&self) -> &Training {
        &self.training
    }

    fn eval_every(&self) -> usize {
        self.supervised.eval_every
    }
}

impl Settings for Config {
    const COMMAND: &'static str = "linprobe";
    const RECIPE: &'static [(&'static str, &'static str)] = &[
        ("crop-scale", "0.08"),
        ("epochs", "90"),
        ("warmup-epochs", "10"),
        // 512 x 32 = 16384, the published batch.
        ("batch-size", "512"),
        ("accum", "32"),
        ("blr", "0.1"),
        ("min-lr", "0"),
        ("weight-decay", "0"),
    ];
    const FREE_KEYS: &'static [&'static [&'static str]] =
        &[Training::FREE_KEYS, Supervised::FREE_KEYS];

    fn complete(file: &mut Table, flags: &Table) {
        Training::complete(file, flags);
        Supervised::complete(file, flags);
    }

    fn resolve(&mut self) -> Result<()> {
        self.supervised.resolve()?;
        self.training.resolve()?;
        if self.training.batch_size < 2 {
            return Err(usage(
                "batch-size is 1, it must be at least 2: features are normalised by their batch's variance",
            ));
        }
        if self.supervised.checkpoint.is_none() {
            return Err(usage(format!("--checkpoint C is missing: {CHECKPOINT}")));
        }
        Ok(())
    }
}
