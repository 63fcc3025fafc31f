//! `vitfreeze finetune`: an encoder becomes a classifier; all of it trains.
mod config;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use datasets::rng::{keys, normal, rng};
use datasets::{
    BandsTransform, Batch, EraseFill, FinetuneTransform, Loader, Mixup, RandomErasing,
    RandomResizedCrop, Recipe, Source,
};
use freezeout::{layer_decay, AdamW, Optimizer, Schedule, Spacing};
use serde_json::Value;
use vit::ops::Compute;
use vit::{Backbone, Drops, Layout, Pool, Preprocess, Pretrained, VitConfig};

use crate::accuracy::Accuracy;
use crate::console::{counted, note, Progress, Unit};
use crate::features::{extract, Output};
use crate::input::channels::{normalize, Judged};
use crate::input::normal;
use crate::input::splits::Data;
use crate::input::subset::Share;
use crate::machine::budget::Budget;
use crate::machine::Machine;
use crate::settings::Settings as _;
use crate::train::{
    self, load_encoder, Encoder, Feed, Groups, Images, Loss, Plan, RunArgs, Task, TrainSettings,
};
use crate::usage::usage;
use config::{Config, Freezing};

const EXAMPLES: &str = "\
Examples:
  vitfreeze finetune --checkpoint runs/p --data imagenet --device cuda      LocalMIM's recipe
  vitfreeze finetune --checkpoint runs/p --data cifar10 --config configs/finetune-tiny-cifar.toml
  vitfreeze finetune --checkpoint hf://facebook/dinov2-small --data imagenet --freeze gradual:1
  vitfreeze finetune --model vit-tiny --image-size 32 --patch-size 4 --data cifar10  from scratch
  vitfreeze finetune --checkpoint runs/p --data cifar10 --max-steps 20      a quick look
  vitfreeze finetune --resume runs/finetune-1                               go on after a stop

The defaults are LocalMIM's for ViT-B on ImageNet (100 epochs of batch 1024); docs/finetune.md says more.";

/// Standard deviation of a new head's weights (MAE, BEiT).
const HEAD_STD: f32 = 2e-5;

/// Flags of `vitfreeze finetune`.
#[derive(clap::Parser)]
#[command(after_help = EXAMPLES, args_override_self = true, allow_negative_numbers = true)]
pub struct Args {
    #[command(flatten)]
    run: RunArgs<Config>,
}

impl Args {
    /// Epochs of a new run; refuses what one would.
    pub fn epochs(&self) -> Result<usize> {
        let config = Config::new(self.run.config.as_deref(), &self.run.flags)?;
        Ok(config.training.epochs)
    }
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    train::run::<Finetune>(&args.run)
}

/// A classifier that trains as a whole.
struct Finetune {
    /// The first weights, until they are asked for, and where they come from.
    vars: VarMap,
    origin: String,
    cfg: VitConfig,
    compute: Compute,
    /// Names of the classes, and how images are judged, for the saved classifiers.
    labels: BTreeMap<usize, String>,
    preprocess: Preprocess,
    mixup: Mixup,
    seed: u64,
    batch_size: usize,
    threads: usize,
    device: Device,
    val: Arc<dyn Source>,
    judged: Judged,
}

impl Task for Finetune {
    type Settings = Config;
    type Model = Backbone;

    const EXPORT: (&'static str, &'static str) =
        ("last.safetensors", "the classifier as it is now");
    const EVALUATES: bool = true;

    fn open(config: &Config, machine: &Machine) -> Result<(Self, Images)> {
        let device = &machine.device;
        let training = &config.training;
        let (encoder, origin) = match &config.supervised.checkpoint {
            Some(origin) => (
                load_encoder(training, &config.supervised, origin, device)?,
                origin.clone(),
            ),
            None => (scratch(config, device)?, "scratch".to_owned()),
        };
        let size = encoder.pretrained.cfg.image_size;
        let data = Data::open(training, &config.supervised, size)?;
        let pretrained = with_head(encoder, data.classes().len(), config)?;
        if let Err(error) = Layout::HuggingFace.check(&pretrained.cfg) {
            note(format!("note: what this trains {error}"));
        }
        let recipe = recipe(config, &pretrained.preprocess, size)?;
        config.check_workers(machine.workers.size())?;
        let loader = training.loader(machine);
        let loader = Loader::new(Arc::clone(&data.train), recipe, loader).map_err(usage)?;
        let compute = training.compute(device)?;
        let preprocess = pretrained.preprocess.judged((size, size));
        let judged = Judged::new(&preprocess, (size, size));
        let images = Images {
            feed: Feed::Images(loader),
            count: data.train.len(),
            fingerprint: data.fingerprint,
            description: data.describe(),
        };
        let task = Self {
            vars: pretrained.vars()?,
            origin,
            cfg: pretrained.cfg,
            compute,
            labels: data.classes().iter().cloned().enumerate().collect(),
            preprocess,
            mixup: config.mixup(data.classes().len()),
            seed: training.seed,
            batch_size: training.batch_size,
            threads: machine.threads,
            device: device.clone(),
            val: Share::of(&data.val, &machine.workers),
            judged,
        };
        Ok((task, images))
    }

    fn describe(&self) -> String {
        let cfg = &self.cfg;
        format!(
            "{} of width {}, {} px, patch {}, head of {} on {}, from {}; evaluated on {}",
            counted(cfg.depth, "block"),
            match cfg.swin {
                Some(_) => format!("{} to {}", cfg.embed_dim, cfg.features()),
                None => cfg.embed_dim.to_string(),
            },
            cfg.image_size,
            cfg.patch_size,
            counted(cfg.num_classes, "class"),
            match cfg.pool {
                Pool::Token => "the class token",
                Pool::Avg => "the mean of the patches",
                Pool::TokenAvg => "class token and mean of the patches",
            },
            self.origin,
            match self.judged.crop_pct() {
                1.0 => "whole images".to_owned(),
                part => format!("the middle {:.1} %", 100.0 * part),
            }
        )
    }

    fn layers(&self) -> usize {
        self.cfg.depth + 1
    }

    fn layer_of(&self, name: &str) -> Option<usize> {
        self.cfg.layer_of(name)
    }

    fn layer_name(&self, layer: usize) -> String {
        match layer.checked_sub(1) {
            None => "patch_embed".to_owned(),
            Some(block) => self.cfg.block_name(block),
        }
    }

    fn schedule(&self, config: &Config, plan: &Plan) -> Result<Schedule> {
        config.freezing(config.training.schedule(plan, self.layers())?)
    }

    fn budget(&self, config: &Config, frozen: usize) -> Budget {
        let average = TrainSettings::ema(config).is_some();
        let precision = self.compute.precision;
        Budget::finetuning(&self.cfg, self.batch_size, frozen, average, precision).beside_weights()
    }

    fn vars(&mut self) -> Result<VarMap> {
        Ok(std::mem::replace(&mut self.vars, VarMap::new()))
    }

    fn optimizer(&self, config: &Config) -> Optimizer {
        optimizer(config)
    }

    fn groups(&self, config: &Config) -> Groups {
        groups(config, self.layers())
    }

    fn model(&self, vb: VarBuilder, _step: usize) -> Result<Backbone> {
        Ok(Backbone::new(&self.cfg, vb)?.with_compute(&self.compute))
    }

    fn loss(&self, model: &Backbone, mut batch: Batch) -> Result<Loss> {
        let (count, (height, width)) = (batch.labels.len(), self.cfg.image());
        let shape = (count, self.cfg.in_chans, height, width);
        let targets = self.mixup.apply(&mut batch, (height, width), self.seed)?;
        let targets = Tensor::from_vec(targets, (count, self.cfg.num_classes), &self.device)?;
        let drops = keys(self.seed, "drop", &batch);
        let images = Tensor::from_vec(batch.images, shape, &self.device)?;
        let logits = model.forward_train(&images, Drops(&drops))?;
        Ok(vit::soft_target_cross_entropy(&logits, &targets)?.into())
    }

    fn evaluate(&self, model: &Backbone) -> Result<Accuracy> {
        let mut accuracy = Accuracy::new(self.cfg.num_classes);
        let progress = Progress::new(self.val.len() as u64, Unit::Images);
        extract(
            model,
            &self.val,
            &self.judged,
            self.batch_size,
            self.threads,
            &self.device,
            Output::Logits,
            &progress,
            |batch, logits| {
                accuracy.add(&logits, &batch.labels);
                Ok(())
            },
        )?;
        progress.close();
        Ok(accuracy)
    }

    fn classes(&self) -> Vec<String> {
        self.labels.values().cloned().collect()
    }

    fn export(&self, weights: &BTreeMap<String, Tensor>, path: &Path) -> Result<()> {
        Ok(self.classifier(weights.clone()).save_file(path)?)
    }

    fn about(&self) -> Result<Option<Value>> {
        Ok(Some(self.classifier(BTreeMap::new()).metadata()?))
    }

    fn next(&self, dir: &str) -> Vec<String> {
        train::with_a_classifier(dir)
    }
}

impl Finetune {
    /// For others to use, with these weights.
    fn classifier(&self, tensors: BTreeMap<String, Tensor>) -> Pretrained {
        Pretrained {
            cfg: VitConfig {
                drop_path_rate: 0.0,
                ..self.cfg
            },
            tensors,
            labels: self.labels.clone(),
            preprocess: self.preprocess.clone(),
        }
    }
}

fn optimizer(config: &Config) -> Optimizer {
    let opt = Optimizer::new(AdamW {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: config.training.weight_decay,
    });
    match config.clip_grad {
        Some(norm) => opt.clip_norm(norm),
        None => opt,
    }
}

fn groups(config: &Config, layers: usize) -> Groups {
    Box::new(layer_decay(config.layer_decay.unwrap_or(1.0), layers))
}

/// How training images are made. What changes colours, or fills with them, is for RGB.
fn recipe(config: &Config, p: &Preprocess, size: usize) -> Result<Recipe> {
    let usual = FinetuneTransform::imagenet(size);
    let crop = RandomResizedCrop {
        scale: (config.training.crop_scale, 1.0),
        ..usual.crop
    };
    let (rand_augment, erasing) = (config.rand_augment()?, config.erasing);
    let Some(normalize) = normalize(p) else {
        if rand_augment.is_some() || erasing > 0.0 {
            note(format!(
                "note: RandAugment and random erasing are for RGB; images of {} are cropped and mirrored",
                counted(p.mean.len(), "channel")
            ));
        }
        let (mean, std) = (p.mean.clone(), p.std.clone());
        return Ok(BandsTransform::random(crop, usual.flip, mean, std).into());
    };
    Ok(FinetuneTransform {
        crop,
        rand_augment,
        erasing: (erasing > 0.0).then(|| RandomErasing::new(erasing, EraseFill::Pixel)),
        normalize,
        ..usual
    }
    .into())
}

/// First weights of the model that the flags describe. A ViT's position table starts as the sin-cos one, as a pretrained
/// encoder's and MAE's from scratch (arXiv 2111.06377, A.2).
fn scratch(config: &Config, device: &Device) -> Result<Encoder> {
    let training = &config.training;
    let preset = config.preset()?.with_fixed_positions();
    let cfg = VitConfig {
        image_size: config.supervised.image_size.unwrap_or(preset.image_size),
        in_chans: config.supervised.channels.count(),
        patch_size: config.patch_size.unwrap_or(preset.patch_size),
        pool: config.supervised.pool.map_or(Pool::Avg, Pool::from),
        ..preset
    };
    cfg.validate().map_err(usage)?;
    training.check_batch(cfg.image_size)?;
    let channels = &config.supervised.channels;
    normal::check_data(channels.count(), training.data())?;
    channels.check_new(training.data())?;
    // Before the weights are made; a plan may keep layers frozen from the start, which its steps tell later.
    let (batch, precision) = (training.batch_size, training.dtype.precision());
    let budget = match &config.freeze {
        Freezing::Spacing(Spacing::At(_)) => Budget::inference(&cfg, batch, precision),
        _ => {
            let average = TrainSettings::ema(config).is_some();
            Budget::finetuning(&cfg, batch, 0, average, precision)
        }
    };
    budget.check(device)?;
    let vars = VarMap::new();
    let vb = vit::seeded(&vars, training.seed, DType::F32, device);
    Backbone::new(&cfg, vb)?; // makes the variables
    let map = vars.data().lock().unwrap_or_else(|e| e.into_inner());
    let tensors = (map.iter()).map(|(name, var)| (name.clone(), var.as_detached_tensor()));
    Ok(Encoder {
        pretrained: Pretrained {
            cfg,
            tensors: tensors.collect(),
            labels: BTreeMap::new(),
            preprocess: normal::prepared(
                channels,
                Preprocess::usual(cfg.image()).in_channels(cfg.in_chans),
            )?,
        },
        classifier: false,
    })
}

/// The encoder with a new head and drop path. A norm of its own (`fc_norm`) comes with the head where there was none yet.
fn with_head(encoder: Encoder, classes: usize, config: &Config) -> Result<Pretrained> {
    let mut all = encoder.pretrained;
    all.cfg.drop_path_rate = config.drop_path;
    let draw = |head: &str, count| {
        let index = u64::from(head == "head_dist");
        let mut rng = rng(config.training.seed, "head", 0, index);
        (0..count).map(|_| HEAD_STD * normal(&mut rng)).collect()
    };
    let all = all.with_new_head(classes, !encoder.classifier, draw);
    all.map_err(crate::input::pretrained::explain)
}

#[cfg(test)]
mod tests;
