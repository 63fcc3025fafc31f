//! What trainings of a classifier are told beside what every training is: the encoder and the images that judge it.
use anyhow::Result;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use vit::MAX_WINDOW;

use crate::input::channels::Channels;
use crate::input::pretrained::CHECKPOINT;
use crate::run::data::RunData;
use crate::settings::{absolute, bounded};

/// Numbers that all trainings of a classifier have.
#[derive(Debug, Clone, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Supervised {
    #[arg(
        long,
        value_name = "CHECKPOINT",
        help_heading = "Model",
        help = format!("{CHECKPOINT}; without --data its run's images are taken"),
    )]
    pub checkpoint: Option<String>,
    /// Side of the image in pixels; a learnt position table is resampled [default: the checkpoint's]
    #[arg(long, value_name = "PX", help_heading = "Model")]
    pub image_size: Option<usize>,
    /// Attention heads, where no file of the checkpoint tells them
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub heads: Option<usize>,
    /// Side of a Swin's windows in tokens, where no file of the checkpoint tells it [default of a new Swin: 7]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub window_size: Option<usize>,
    /// What the head sees [default: the mean of the patches; a classifier keeps its own]
    #[arg(long, value_enum, value_name = "NAME", help_heading = "Model")]
    pub pool: Option<Pool>,

    #[command(flatten)]
    #[serde(flatten)]
    pub channels: Channels,
    /// Where the validation images are, if not in --data
    #[arg(long, value_name = "SRC", help_heading = "Data")]
    pub val_data: Option<String>,

    /// Epochs between evaluations on the validation split; there is one at the end in any case
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Running")]
    pub eval_every: usize,
}

impl Supervised {
    /// Keys that a resumed run may change.
    pub const FREE_KEYS: &'static [&'static str] = &["checkpoint", "val-data"];

    /// Where no data is given, that of the run that the checkpoint is of.
    pub fn complete(file: &mut Table, flags: &Table) {
        let given = |key| flags.get(key).or_else(|| file.get(key));
        let checkpoint = given("checkpoint").and_then(Value::as_str);
        let Some(of_run) = checkpoint
            .filter(|_| given("data").is_none())
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
            // Flags take their places afterwards.
            if let (Some(value), false) = (value, file.contains_key(key)) {
                file.insert(key.into(), value);
            }
        }
    }

    /// Makes paths absolute and refuses numbers that make no sense.
    pub fn resolve(&mut self) -> Result<()> {
        for (key, path) in [
            ("checkpoint", &mut self.checkpoint),
            ("val-data", &mut self.val_data),
        ] {
            if let Some(path) = path {
                *path = absolute(key, path)?;
            }
        }
        self.channels.check()?;
        bounded(&[
            ("eval-every", self.eval_every, 1_000_000),
            ("image-size", self.image_size.unwrap_or(1), 4096),
            ("heads", self.heads.unwrap_or(1), 4096),
            ("window-size", self.window_size.unwrap_or(1), MAX_WINDOW),
        ])
    }
}

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
