//! Every number of a fine-tuning run: its default, its flag, its key in a TOML file.
use std::str::FromStr;

use anyhow::Result;
use datasets::{MixMode, Mixup, RandAugment};
use freezeout::{LayerLr, Schedule, Spacing};
use serde::{Deserialize, Serialize};
use toml::Table;
use vit::VitConfig;

use crate::architecture::{preset, with_windows};
use crate::input::pretrained::CHECKPOINT;
use crate::settings::{name, not_negative, Settings};
use crate::train::{Adaptive, Supervised, TrainSettings, Training};
use crate::usage::usage;

/// All numbers of a run, with the defaults of LocalMIM's fine-tuning of ViT-B (docs/finetune.md names their sources).
#[derive(Debug, Clone, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Config {
    #[command(flatten)]
    #[serde(flatten)]
    pub supervised: Supervised,
    #[command(flatten)]
    #[serde(flatten)]
    pub training: Training,
    /// Without --checkpoint, train from scratch: vit-tiny, vit-small, vit-base, vit-large, vit-huge, swin-tiny, swin-small,
    /// swin-base or swin-large
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    pub model: Option<String>,
    /// From scratch, side of a patch in pixels [default: 16, vit-huge 14, Swin 4]
    #[arg(long, value_name = "PX", help_heading = "Model")]
    pub patch_size: Option<usize>,
    /// Stochastic depth: the last block's rate; it rises from 0 over the depth
    #[arg(long, default_value = "0.1", value_name = "X", help_heading = "Model")]
    pub drop_path: f64,

    /// Each layer's learning rate is this factor times that of the next layer [default: 0.75, from scratch 1]
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub layer_decay: Option<f64>,
    /// Scale gradients down to this global norm [default: no clipping]
    #[arg(long, value_name = "NORM", help_heading = "Training")]
    pub clip_grad: Option<f64>,
    /// Keep a moving average of the weights with this decay, evaluate it too, and save it instead of them [default: none]
    #[arg(long, value_name = "DECAY", help_heading = "Training")]
    pub ema: Option<f64>,

    /// Mixup's alpha, 0 = off
    #[arg(
        long,
        default_value = "0.8",
        value_name = "X",
        help_heading = "Augmentation"
    )]
    pub mixup: f64,
    /// CutMix's alpha, 0 = off
    #[arg(
        long,
        default_value = "1",
        value_name = "X",
        help_heading = "Augmentation"
    )]
    pub cutmix: f64,
    /// Probability of CutMix where both are on
    #[arg(
        long,
        default_value = "0.5",
        value_name = "X",
        help_heading = "Augmentation"
    )]
    pub mixup_switch: f64,
    /// Part of each target that is spread over all classes
    #[arg(
        long,
        default_value = "0.1",
        value_name = "X",
        help_heading = "Augmentation"
    )]
    pub smoothing: f64,
    /// RandAugment as timm writes it, or none
    #[arg(
        long,
        default_value = "rand-m9-mstd0.5-inc1",
        value_name = "SPEC",
        help_heading = "Augmentation"
    )]
    pub rand_augment: String,
    /// Probability of random erasing
    #[arg(
        long,
        default_value = "0.25",
        value_name = "X",
        help_heading = "Augmentation"
    )]
    pub erasing: f64,

    /// Which layers train when: none, linear, squared, cubic, power:P (FreezeOut), a plan at:STEP=FROZEN,..., or
    /// gradual:EPOCHS (unfreezing one more block every so many epochs)
    #[arg(
        long,
        default_value = "none",
        value_name = "NAME",
        help_heading = "Freezing"
    )]
    pub freeze: Freezing,
    /// Let measurements decide what freezes when, instead of --freeze: autofreeze (gradients) or plasticity (weights).
    /// Options follow a colon: autofreeze:interval=50,percentile=50,start=0
    #[arg(long, value_name = "NAME", conflicts_with_all = ["freeze", "t0"], help_heading = "Freezing")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Adaptive>,
    /// When the first layer freezes, before spacing: in (0, 1], 1 = never
    #[arg(
        long,
        default_value = "0.8",
        value_name = "X",
        help_heading = "Freezing"
    )]
    pub t0: f64,
    /// Learning rates by layer: scaled, unscaled or shared
    #[arg(long, default_value = "shared", value_name = "NAME", value_parser = name::<LayerLr>, help_heading = "Freezing")]
    pub layer_lr: LayerLr,
}

/// Which layers train when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Freezing {
    /// FreezeOut, a plan, or nothing.
    Spacing(Spacing),
    /// `gradual:EPOCHS`: first the head and the last block, then a block more every so many epochs.
    Gradual(f64),
}

impl FromStr for Freezing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(epochs) = text.strip_prefix("gradual:") else {
            let spacing = text.parse().map(Self::Spacing);
            return spacing.map_err(|e: freezeout::Error| format!("{e}, or gradual:EPOCHS"));
        };
        match epochs.parse::<f64>() {
            Ok(epochs) if epochs > 0.0 && epochs.is_finite() => Ok(Self::Gradual(epochs)),
            _ => Err(format!(
                "gradual:{epochs}: expected a number of epochs above 0"
            )),
        }
    }
}

impl TryFrom<String> for Freezing {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Freezing> for String {
    fn from(freezing: Freezing) -> Self {
        match freezing {
            Freezing::Spacing(spacing) => spacing.to_string(),
            Freezing::Gradual(epochs) => format!("gradual:{epochs}"),
        }
    }
}

impl TrainSettings for Config {
    fn training(&self) -> &Training {
        &self.training
    }

    fn by_image(&self) -> bool {
        self.mixup == 0.0 && self.cutmix == 0.0
    }

    fn eval_every(&self) -> usize {
        self.supervised.eval_every
    }

    fn policy(&self) -> Option<&Adaptive> {
        self.policy.as_ref()
    }

    fn ema(&self) -> Option<f64> {
        self.ema
    }
}

impl Settings for Config {
    const COMMAND: &'static str = "finetune";
    const RECIPE: &'static [(&'static str, &'static str)] = &[
        ("crop-scale", "0.08"),
        ("epochs", "100"),
        ("warmup-epochs", "20"),
        // 64 x 16 = 1024, the published batch, in pieces that fit into memory.
        ("batch-size", "64"),
        ("accum", "16"),
        ("blr", "1e-3"),
        ("min-lr", "1e-6"),
        ("weight-decay", "0.05"),
    ];
    const FREE_KEYS: &'static [&'static [&'static str]] =
        &[Training::FREE_KEYS, Supervised::FREE_KEYS];

    fn complete(file: &mut Table, flags: &Table) {
        Training::complete(file, flags);
        Adaptive::complete(file, flags);
        Supervised::complete(file, flags);
    }

    fn resolve(&mut self) -> Result<()> {
        self.supervised.resolve()?;
        self.training.resolve()?;
        let scratch = match (&self.supervised.checkpoint, &self.model) {
            (Some(_), None) => false,
            (None, Some(_)) => true,
            (Some(_), Some(_)) => {
                return Err(usage(
                    "both checkpoint and model are given: --checkpoint starts from an encoder, --model from scratch",
                ))
            }
            (None, None) => {
                return Err(usage(format!(
                    "--checkpoint C is missing: {CHECKPOINT} (or --model NAME to train from scratch)"
                )))
            }
        };
        if scratch {
            self.preset()?;
        }
        if self.patch_size.is_some() && !scratch {
            return Err(usage(
                "patch-size is the checkpoint's; it can be chosen only from scratch (--model)",
            ));
        }
        if self.supervised.heads.is_some() && scratch {
            return Err(usage(
                "heads follows from --model; give it only with --checkpoint",
            ));
        }
        let decay = *self
            .layer_decay
            .get_or_insert(if scratch { 1.0 } else { 0.75 });
        for (key, value, fits, range) in [
            ("layer-decay", decay, decay > 0.0 && decay <= 1.0, "(0, 1]"),
            (
                "drop-path",
                self.drop_path,
                (0.0..1.0).contains(&self.drop_path),
                "[0, 1)",
            ),
            (
                "ema",
                self.ema.unwrap_or(0.0),
                (0.0..1.0).contains(&self.ema.unwrap_or(0.0)),
                "[0, 1)",
            ),
            (
                "erasing",
                self.erasing,
                (0.0..=1.0).contains(&self.erasing),
                "[0, 1]",
            ),
            (
                "mixup",
                self.mixup,
                (0.0..=1e6).contains(&self.mixup),
                "[0, 1e6]",
            ),
            (
                "cutmix",
                self.cutmix,
                (0.0..=1e6).contains(&self.cutmix),
                "[0, 1e6]",
            ),
            (
                "mixup-switch",
                self.mixup_switch,
                (0.0..=1.0).contains(&self.mixup_switch),
                "[0, 1]",
            ),
            (
                "smoothing",
                self.smoothing,
                (0.0..=1.0).contains(&self.smoothing),
                "[0, 1]",
            ),
        ] {
            if !fits {
                return Err(usage(format!("{key} is {value}, it must lie in {range}")));
            }
        }
        not_negative(&[("clip-grad", self.clip_grad.unwrap_or(0.0))])?;
        if self.clip_grad == Some(0.0) {
            return Err(usage("clip-grad is 0, it must be above 0"));
        }
        let freezes = self.freeze != Freezing::Spacing(Spacing::None);
        Adaptive::check(self.policy(), freezes, self.layer_lr)?;
        self.rand_augment()?;
        self.mixup(2).check().map_err(usage)?;
        Ok(())
    }
}

impl Config {
    /// What is trained from scratch, but for the sizes that have a key of their own.
    pub fn preset(&self) -> Result<VitConfig> {
        let preset = preset(self.model.as_deref().unwrap_or_default())?;
        with_windows(preset, self.supervised.window_size)
    }

    /// Refuses what so many workers cannot do as one does.
    pub fn check_workers(&self, workers: usize) -> Result<()> {
        let (odd, mixes) = (self.training.batch_size % 2 == 1, self.mixup(2).prob > 0.0);
        if workers > 1 && odd && mixes {
            return Err(usage(format!(
                "batch-size is {}; {workers} workers need an even one, since mixup and cutmix mix pairs of images",
                self.training.batch_size
            )));
        }
        Ok(())
    }

    /// RandAugment, if any.
    pub fn rand_augment(&self) -> Result<Option<RandAugment>> {
        match self.rand_augment.as_str() {
            "none" => Ok(None),
            spec => {
                let parsed: Result<RandAugment, datasets::Error> = spec.parse();
                parsed.map(Some).map_err(usage)
            }
        }
    }

    /// What makes the targets.
    pub fn mixup(&self, classes: usize) -> Mixup {
        let none = self.mixup == 0.0 && self.cutmix == 0.0;
        Mixup {
            mixup_alpha: self.mixup,
            cutmix_alpha: self.cutmix,
            prob: if none { 0.0 } else { 1.0 },
            switch_prob: self.mixup_switch,
            mode: MixMode::Batch,
            label_smoothing: self.smoothing,
            classes,
        }
    }

    /// What freezes when, on top of a schedule without freezing.
    pub fn freezing(&self, plain: Schedule) -> Result<Schedule> {
        let schedule = match &self.freeze {
            Freezing::Spacing(spacing) => Schedule {
                spacing: spacing.clone(),
                t0: self.t0,
                // The head is in no layer: a plan may freeze the whole encoder.
                keep_last: usize::from(!matches!(spacing, Spacing::At(_))),
                layer_lr: self.layer_lr,
                ..plain
            },
            Freezing::Gradual(epochs) => {
                let every = epochs * (plain.steps / self.training.epochs) as f64;
                let at: Vec<usize> = (1..plain.layers)
                    .map(|layer| (layer as f64 * every).round() as usize)
                    .filter(|&step| step < plain.steps)
                    .collect();
                let gradual = Schedule::gradual_unfreeze(&at, plain.layers, plain.steps);
                Schedule {
                    spacing: gradual.spacing,
                    keep_last: gradual.keep_last,
                    layer_lr: self.layer_lr,
                    ..plain
                }
            }
        };
        schedule.validate().map_err(usage)?;
        Ok(schedule)
    }
}
