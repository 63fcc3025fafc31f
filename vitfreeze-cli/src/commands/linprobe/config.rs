//! Every number of a linear probe: its default, its flag, its key in a TOML file.
use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::settings::Settings;
use crate::train::{TrainSettings, Training, TrainingFlags, FREE_KEYS};
use crate::usage::usage;

/// All numbers of a run, with MAE's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Config {
    #[serde(flatten)]
    pub training: Training,
    pub cached: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            training: Training {
                blr: 0.1,
                // 512 x 32 = 16384, the published batch.
                ..Training::defaults(90, 10, (512, 32))
            },
            cached: false,
        }
    }
}

/// The same as flags: all optional.
#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Flags {
    #[command(flatten)]
    #[serde(flatten)]
    pub training: TrainingFlags,
    /// Compute the features of all images once, as they are judged, and train on those: fast, without augmentation
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", help_heading = "Data")]
    pub cached: Option<bool>,
}

impl TrainSettings for Config {
    fn training(&self) -> &Training {
        &self.training
    }
}

impl Settings for Config {
    type Flags = Flags;
    const COMMAND: &'static str = "linprobe";
    const FREE_KEYS: &'static [&'static str] = &FREE_KEYS;

    fn complete(given: &mut toml::Table) {
        Training::complete(given);
    }

    fn resolve(&mut self) -> Result<()> {
        self.training.resolve()?;
        if self.training.batch_size < 2 {
            return Err(usage(
                "batch-size is 1, it must be at least 2: features are normalised by their batch's variance",
            ));
        }
        if self.training.checkpoint.is_none() {
            return Err(usage(
                "--checkpoint C is missing: a pretraining run's folder, a file or hf://org/name",
            ));
        }
        Ok(())
    }
}
