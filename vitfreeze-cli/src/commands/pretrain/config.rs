//! Every number of a pretraining run: its default, its flag, its key in a TOML file.
use std::path::Path;

use anyhow::Result;
use clap::ValueEnum;
use freezeout::{AdamW, Costs, LayerLr, Schedule, Spacing, Steps, Warmup};
use localmim::{LocalMimConfig, Masking, Target};
use serde::{Deserialize, Serialize};
use toml::Table;
use vit::{PosEmbed, Preprocess, VitConfig, MAX_WINDOW};

use super::sizes::ImageSizes;
use crate::architecture::{preset, stages, with_windows, Architecture, DEFAULT};
use crate::costs;
use crate::input::channels::Channels;
use crate::input::normal::prepared;
use crate::input::pretrained::CHECKPOINT;
use crate::run::work::Work;
use crate::settings::{absolute, bounded, name, not_negative, parse, Given, Settings};
use crate::train::{Adaptive, Plan, TrainSettings, Training};
use crate::usage::usage;

/// The run without arguments: no data needed, a few minutes on two cores.
pub const TINY_SHAPES: &str = include_str!("../../../configs/tiny-shapes.toml");

/// All numbers of a run, with the defaults of the method (docs/paper.md names their sources).
#[derive(Debug, Clone, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Config {
    /// vit-tiny, vit-small, vit-base, vit-large, vit-huge, swin-tiny, swin-small, swin-base or swin-large [default: vit-base,
    /// with --init the checkpoint's]
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    pub model: Option<String>,
    #[arg(
        long,
        value_name = "CHECKPOINT",
        help_heading = "Model",
        help = format!("Start from this checkpoint's weights instead of random ones (--resume continues a run): {CHECKPOINT}"),
    )]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// Attention heads of --init's encoder, where no file tells them
    #[arg(long, value_name = "N", help_heading = "Model")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Side of a Swin's windows in tokens [default: 7]; with --init, where no file tells it
    #[arg(long, value_name = "N", help_heading = "Model")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_size: Option<usize>,
    /// The architecture of --init's encoder: a run keeps it, so that going on needs no file but its own
    #[arg(long, value_name = "JSON", hide = true)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<Architecture>,
    /// Side of the image in pixels [default: 224, with --init the checkpoint's]; or sizes that grow, each but the last with
    /// the part of the run or the epoch where it ends, as in 128:80%,224
    #[arg(long, value_name = "PX", help_heading = "Model")]
    pub image_size: Option<ImageSizes>,
    /// Side of a patch in pixels; divides the image size, that of a Swin into squares of 8 x 8 patches [default: 16, vit-huge 14,
    /// Swin 4, with --init the checkpoint's]
    #[arg(long, value_name = "PX", help_heading = "Model")]
    pub patch_size: Option<usize>,
    /// Part of the patches that is hidden, of a Swin in squares of 8 x 8 patches
    #[arg(long, value_name = "X", default_value = "0.75", help_heading = "Model")]
    pub mask_ratio: f64,
    /// What is predicted
    #[arg(long, value_enum, value_name = "NAME", default_value_t = Predicted::Hog, help_heading = "Model")]
    #[serde(default)]
    pub target: Predicted,
    /// With --target pixel: each cell normalised by its own mean and deviation
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", value_name = "BOOL", help_heading = "Model")]
    #[serde(default)]
    pub norm_pix: bool,
    /// Orientation bins of the HOG target [default: 9, vit-large, vit-huge and Swin 18]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub hog_bins: Option<usize>,
    /// Which blocks are decoded: default, all, or BLOCK:SCALE,... with scales 8, 4, 2, 1, 0.5
    #[arg(
        long,
        value_name = "LIST",
        default_value = "default",
        help_heading = "Model"
    )]
    pub stages: String,
    /// Width of a decoder; of a Swin's fine tokens half of it [default: 256, Swin 128]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub decoder_dim: Option<usize>,
    /// Blocks of a decoder
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Model")]
    pub decoder_depth: usize,
    /// Attention heads of a decoder [default: 8, Swin 4]
    #[arg(long, value_name = "N", help_heading = "Model")]
    pub decoder_heads: Option<usize>,

    #[command(flatten)]
    #[serde(flatten)]
    pub channels: Channels,
    #[command(flatten)]
    #[serde(flatten)]
    pub training: Training,
    /// AdamW's decay of the first moment
    #[arg(
        long,
        value_name = "X",
        default_value = "0.9",
        help_heading = "Training"
    )]
    pub beta1: f64,
    /// AdamW's decay of the second moment
    #[arg(
        long,
        value_name = "X",
        default_value = "0.95",
        help_heading = "Training"
    )]
    pub beta2: f64,
    /// AdamW's epsilon
    #[arg(
        long,
        value_name = "X",
        default_value = "1e-8",
        help_heading = "Training"
    )]
    pub eps: f64,

    /// How freezing times are spread over the layers: linear, squared, cubic, power:P, none, or a plan
    /// at:STEP=FROZEN,...
    #[arg(long, value_name = "NAME", default_value = "cubic", value_parser = name::<Spacing>, help_heading = "Freezing")]
    pub freeze: Spacing,
    /// Let measurements decide what freezes when, instead of --freeze: autofreeze (gradients) or plasticity (weights).
    /// Options follow a colon: autofreeze:interval=50,percentile=50,start=0
    #[arg(long, value_name = "NAME", conflicts_with_all = ["freeze", "t0"], help_heading = "Freezing")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Adaptive>,
    /// When the first layer freezes, before spacing: in (0, 1], 1 = never
    #[arg(
        long,
        value_name = "X",
        default_value = "0.8",
        help_heading = "Freezing"
    )]
    pub t0: f64,
    // Shared: the thesis' own schedule, and its best result.
    /// Learning rates by layer: scaled, unscaled or shared
    #[arg(long, value_name = "NAME", default_value = "shared", value_parser = name::<LayerLr>, help_heading = "Freezing")]
    pub layer_lr: LayerLr,
    /// Warm-up: common (all layers alike) or continuous (each to its own rate)
    #[arg(long, value_name = "NAME", default_value = "common", value_parser = name::<Warmup>, help_heading = "Freezing")]
    pub warmup: Warmup,
    /// Never freeze the class token, as in the published code (frozen blocks then save almost nothing)
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", value_name = "BOOL", help_heading = "Freezing")]
    pub train_cls_token: bool,
}

/// What the decoders predict of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Predicted {
    /// Histograms of oriented gradients, as LocalMIM
    #[default]
    Hog,
    /// The pixels themselves, as MAE
    Pixel,
}

impl TrainSettings for Config {
    fn training(&self) -> &Training {
        &self.training
    }

    fn by_image(&self) -> bool {
        true
    }

    fn policy(&self) -> Option<&Adaptive> {
        self.policy.as_ref()
    }
}

impl Settings for Config {
    const COMMAND: &'static str = "pretrain";
    const RECIPE: &'static [(&'static str, &'static str)] = &[
        ("data", "shapes"),
        ("crop-scale", "0.2"),
        ("epochs", "100"),
        ("warmup-epochs", "10"),
        // 64 x 32 = 2048, the published batch, in pieces that fit into memory.
        ("batch-size", "64"),
        ("accum", "32"),
        ("blr", "2e-4"),
        ("min-lr", "1e-6"),
        ("weight-decay", "0.05"),
    ];
    const FREE_KEYS: &'static [&'static [&'static str]] = &[Training::FREE_KEYS];
    const FOUND_KEYS: &'static [&'static str] = &["encoder"];

    fn complete(file: &mut Table, flags: &Table) {
        Training::complete(file, flags);
        Adaptive::complete(file, flags);
        // Another checkpoint's, or for another grid.
        let other = |key: &str| {
            flags
                .get(key)
                .is_some_and(|value| file.get(key) != Some(value))
        };
        if ["init", "heads", "window-size", "image-size"]
            .into_iter()
            .any(other)
        {
            file.remove("encoder");
        }
    }

    /// Without file and data, the embedded demonstration's.
    fn new(file: Option<&Path>, flags: &Given<Self>) -> Result<Self> {
        let data = flags.get("data", |c| c.training.data().to_owned());
        match file {
            Some(path) => Self::of_run(path, flags),
            None if data.is_none_or(|data| data == "shapes") => {
                let mut file = parse::<Self>(TINY_SHAPES, "tiny-shapes")?;
                if flags.has("init") {
                    // These are the checkpoint's.
                    file.retain(|key, _| !["model", "image-size", "patch-size"].contains(&key));
                }
                Self::merge(file, flags)
            }
            None => Self::merge(Table::new(), flags),
        }
    }

    fn resolve(&mut self) -> Result<()> {
        if let Some(init) = &mut self.init {
            *init = absolute("init", init)?;
        }
        bounded(&[
            ("heads", self.heads.unwrap_or(1), 4096),
            ("window-size", self.window_size.unwrap_or(1), MAX_WINDOW),
        ])?;
        if self.heads.is_some() && self.init.is_none() {
            return Err(usage(
                "heads is for the encoder of --init; of a new model they follow from --model",
            ));
        }
        self.follow_init()?;
        self.model.get_or_insert_with(|| DEFAULT.to_owned());
        let preset = self.preset()?;
        let sizes = self.sizes()?;
        self.image_size = Some(sizes.clone());
        let patch = *self.patch_size.get_or_insert(preset.patch_size);
        let large = preset.depth > 12 || preset.swin.is_some();
        let bins = if large { 18 } else { 9 };
        let bins = *self.hog_bins.get_or_insert(bins);
        let (dim, heads) = LocalMimConfig::usual_decoder(&preset);
        let dim = *self.decoder_dim.get_or_insert(dim);
        self.decoder_heads.get_or_insert(heads);
        self.training.resolve()?;
        let sides: Vec<_> = sizes.all().map(|size| ("image-size", size, 4096)).collect();
        bounded(&sides)?;
        bounded(&[
            ("patch-size", patch, 4096),
            ("hog-bins", bins, 4096),
            ("decoder-dim", dim, 8192),
            ("decoder-depth", self.decoder_depth, 64),
        ])?;
        self.training.check_batch(sizes.last())?;
        self.channels.check()?;
        self.preprocess()?;
        sizes.check(self.training.epochs)?;
        for (key, value) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&value) {
                return Err(usage(format!("{key} is {value}, it must lie in [0, 1)")));
            }
        }
        not_negative(&[("eps", self.eps)])?;
        if self.norm_pix && self.target != Predicted::Pixel {
            return Err(usage("norm-pix is for pixels: it needs --target pixel"));
        }
        if self.train_cls_token && preset.swin.is_some() {
            return Err(usage(
                "train-cls-token: a Swin has no class token; leave it out",
            ));
        }
        let freezes = self.freeze != Spacing::None;
        Adaptive::check(self.policy(), freezes, self.layer_lr)?;
        for size in sizes.all() {
            let fits = self.model_at(size).and_then(|model| self.visible(&model));
            fits.map_err(|e| match sizes.grow() {
                true => usage(format!("image-size {sizes}: {size} px: {e:#}")),
                false => e,
            })?;
        }
        let model = self.model()?;
        if sizes.grow() && model.vit.swin.is_some() {
            return Err(usage(format!(
                "image-size {sizes}: a Swin's windows and their tables follow from the size, so that its images cannot grow"
            )));
        }
        if sizes.grow() && model.vit.pos_embed == PosEmbed::Learnt {
            return Err(usage(format!(
                "image-size {sizes}: the checkpoint's position table is for one size and trains; images grow where it is the fixed sin-cos one"
            )));
        }
        // How many steps an epoch has is not known yet, so that a plan in steps must wait.
        if !matches!(self.freeze, Spacing::At(_)) {
            self.schedule(&self.training.plan(1, 1)?, model.layers())?;
        }
        Ok(())
    }
}

impl Config {
    /// What its encoder is called.
    pub fn name(&self) -> &str {
        self.model.as_deref().unwrap_or(DEFAULT)
    }

    /// The encoder, but for the sizes that have a key of their own.
    fn preset(&self) -> Result<VitConfig> {
        match self.encoder {
            Some(encoder) => Ok(encoder.0),
            None => {
                let preset = preset(self.name())?.with_fixed_positions();
                with_windows(preset, self.window_size)
            }
        }
    }

    /// The model, for images of the size that it has at the run's end.
    pub fn model(&self) -> Result<LocalMimConfig> {
        self.model_at(self.sizes()?.last())
    }

    /// The models of a run of these steps, one for each size of its images, each with its first step.
    pub fn models(&self, steps: &Steps) -> Result<Vec<(usize, LocalMimConfig)>> {
        let sizes = self.sizes()?.by_step(steps)?.into_iter();
        sizes
            .map(|(step, size)| Ok((step, self.model_at(size)?)))
            .collect()
    }

    /// What a step costs with so many layers frozen, by the size of its images.
    pub fn costs_by_size(&self) -> Result<Vec<(usize, Costs)>> {
        let cost = |size| Ok((size, costs::costs(&self.model_at(size)?, self.mask_ratio)));
        self.sizes()?.all().map(cost).collect()
    }

    /// The same by the first step of each size, in a run of these steps.
    pub fn costs(&self, steps: &Steps) -> Result<Vec<(usize, Costs)>> {
        let starts = self.sizes()?.by_step(steps)?.into_iter();
        let costs = starts.zip(self.costs_by_size()?);
        Ok(costs.map(|((step, _), (_, costs))| (step, costs)).collect())
    }

    /// How much of the run's work its steps are: each as much as it computes, nothing frozen.
    pub fn work(&self, steps: &Steps) -> Result<Work> {
        let sizes = self.sizes()?;
        if !sizes.grow() {
            return Ok(Work::even());
        }
        let costs = self.costs(steps)?.into_iter();
        let parts = costs.map(|(step, costs)| (step, costs.step(0).compute));
        Ok(Work::by_step(parts.collect()))
    }

    /// How images become the encoder's input.
    pub fn preprocess(&self) -> Result<Preprocess> {
        let size = self.sizes()?.last();
        let usual = Preprocess::usual((size, size));
        prepared(&self.channels, usual.in_channels(self.channels.count()))
    }

    /// How many of a model's units a mask shows.
    fn visible(&self, model: &LocalMimConfig) -> Result<usize> {
        let (units, unit, size) = (model.units(), model.vit.mask_unit(), model.vit.image_size);
        Masking::visible(units, self.mask_ratio).map_err(|e| match model.vit.swin {
            None => usage(e),
            Some(_) => usage(format!(
                "{e}; those of a Swin are hidden in squares of {unit} px, of which {size} px make {units}: take larger images or smaller patches"
            )),
        })
    }

    /// The sizes of the images.
    pub fn sizes(&self) -> Result<ImageSizes> {
        let preset = self.preset()?;
        let sizes = self.image_size.clone();
        Ok(sizes.unwrap_or(ImageSizes::one(preset.image_size)))
    }

    /// The model for images of this size.
    fn model_at(&self, size: usize) -> Result<LocalMimConfig> {
        let preset = self.preset()?;
        let vit = VitConfig {
            image_size: size,
            in_chans: self.channels.count(),
            patch_size: self.patch_size.unwrap_or(preset.patch_size),
            ..preset
        };
        let (dim, heads) = LocalMimConfig::usual_decoder(&vit);
        let model = LocalMimConfig {
            stages: stages(&self.stages, &vit)?,
            vit,
            decoder_embed_dim: self.decoder_dim.unwrap_or(dim),
            decoder_depth: self.decoder_depth,
            decoder_num_heads: self.decoder_heads.unwrap_or(heads),
            target: match self.target {
                Predicted::Hog => Target::Hog,
                Predicted::Pixel => Target::Pixel {
                    normalise: self.norm_pix,
                },
            },
            hog_bins: self.hog_bins.unwrap_or(9),
        };
        model.validate().map_err(usage)?;
        Ok(model)
    }

    /// Learning rates and freezing times.
    pub fn schedule(&self, plan: &Plan, layers: usize) -> Result<Schedule> {
        let schedule = Schedule {
            spacing: self.freeze.clone(),
            t0: self.t0,
            layer_lr: self.layer_lr,
            warmup: self.warmup,
            ..self.training.schedule(plan, layers)?
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
            weight_decay: self.training.weight_decay,
        }
    }
}
