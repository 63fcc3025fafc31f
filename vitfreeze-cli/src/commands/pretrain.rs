//! `vitfreeze pretrain`: LocalMIM under FreezeOut.
pub mod config;
mod init;
mod looks;
pub mod sizes;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use datasets::{Batch, Loader, PretrainTransform};
use freezeout::{Optimizer, Schedule};
use localmim::{LocalMim, LocalMimConfig, Masking};
use serde_json::Value;
use vit::ops::Compute;
use vit::Pretrained;

use crate::console::counted;
use crate::input::channels::{pretrain_recipe, RGB};
use crate::input::pretrained::eval_transform;
use crate::input::splits::open_split;
use crate::input::{dataset, normal};
use crate::machine::budget::Budget;
use crate::machine::Machine;
use crate::run::checkpoint::Fingerprint;
use crate::run::work::Work;
use crate::train::{self, Feed, Images, Loss, Pace, Plan, RunArgs, Seen, Task};
use crate::usage::usage;
use config::Config;
use looks::Looks;

const EXAMPLES: &str = concat!(
    "\
Examples:
  vitfreeze pretrain                                     two minutes, no data needed
  vitfreeze pretrain --watch                             the same, drawn while it trains
  vitfreeze pretrain --data cifar10 --config configs/tiny-cifar.toml
  vitfreeze pretrain --data imagenet --model vit-small --batch-size 32 --accum 64
  vitfreeze pretrain --resume runs/pretrain-1            go on where a run stopped
  vitfreeze pretrain --init runs/pretrain-1 --data DIR   a new run that begins with its weights
  vitfreeze pretrain --freeze none --out runs/unfrozen   the same without freezing, to compare

Without --data and --config these keys take the places of the defaults:

",
    include_str!("../../configs/tiny-shapes.toml")
);

/// Flags of `vitfreeze pretrain`.
#[derive(clap::Parser)]
#[command(after_help = EXAMPLES, args_override_self = true, allow_negative_numbers = true)]
pub struct Args {
    #[command(flatten)]
    run: RunArgs<Config>,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    if args.run.resume.is_some() && args.run.flags.has("init") {
        return Err(usage(
            "--init starts a new run from a checkpoint's weights, --resume continues a run, which has its own: give one of them",
        ));
    }
    train::run::<Pretrain>(&args.run)
}

/// How long this run's steps take with so many layers frozen, each number by turns.
pub fn pace(config: &Config, frozen: &[usize]) -> Result<Pace> {
    Pace::measure::<Pretrain>(config, frozen)
}

/// Whole batches in an epoch of this run's images.
pub fn batches(config: &Config) -> Result<usize> {
    let training = &config.training;
    let size = config.model()?.vit.image_size;
    let images = open_split(training.data(), "train", training.samples, size)?.len();
    match images / training.batch_size {
        0 => Err(usage(format!(
            "batch-size {} is larger than the {images} images",
            training.batch_size
        ))),
        batches => Ok(batches),
    }
}

/// A LocalMIM model: an encoder, and decoders that hang on some of its blocks.
struct Pretrain {
    config: Config,
    /// The model as it is at the end.
    cfg: LocalMimConfig,
    /// The same for each size of the images, with its first step.
    models: Vec<(usize, LocalMimConfig)>,
    work: Work,
    compute: Compute,
    device: Device,
    looks: Looks,
}

impl Pretrain {
    /// The model as it is in this step; behind the last one, as it is at the end.
    fn at(&self, step: usize) -> &LocalMimConfig {
        let at = self.models.iter().rfind(|(first, _)| *first <= step);
        at.map_or(&self.cfg, |(_, cfg)| cfg)
    }
}

impl Task for Pretrain {
    type Settings = Config;
    type Model = LocalMim;

    const EXPORT: (&'static str, &'static str) =
        ("encoder.safetensors", "the encoder under timm's names");
    const EVALUATES: bool = false;

    fn open(config: &Config, machine: &Machine) -> Result<(Self, Images)> {
        let (training, cfg) = (&config.training, config.model()?);
        let size = cfg.vit.image_size;
        normal::check_data(config.channels.count(), training.data())?;
        config.channels.check_new(training.data())?;
        dataset::note_samples(training.data(), training.samples);
        let source = open_split(training.data(), "train", training.samples, size)?;
        let (fingerprint, count) = (Fingerprint::of(&*source), source.len());
        let description = source.describe();
        let preprocess = config.preprocess()?;
        let transform = |size: usize| {
            let like = PretrainTransform {
                scale: (training.crop_scale, 1.0),
                ..PretrainTransform::imagenet(size)
            };
            pretrain_recipe(&like, &preprocess)
        };
        let drawn = (training.seed, config.mask_ratio);
        let judged = eval_transform(&preprocess, cfg.vit.image());
        let looks = Looks::new(source.clone(), &cfg, judged, drawn);
        let (loader, first) = (training.loader(machine), transform(config.sizes()?.first()));
        let mut loader = Loader::new(source, first, loader).map_err(usage)?;
        let plan = training.plan(loader.batches_per_epoch(), machine.workers.size())?;
        let models = config.models(&plan.steps)?;
        for (step, cfg) in &models[1..] {
            let from = (plan.steps.epoch(*step), plan.steps.first_batch(*step));
            let larger = transform(cfg.vit.image_size);
            loader = loader.then(from, larger).map_err(usage)?;
        }
        let (feed, work) = (Feed::Images(loader), config.work(&plan.steps)?);
        let compute = training.compute(&machine.device)?;
        let (config, device) = (config.clone(), machine.device.clone());
        let images = Images {
            feed,
            count,
            fingerprint,
            description,
        };
        Ok((
            Self {
                config,
                cfg,
                models,
                work,
                compute,
                device,
                looks,
            },
            images,
        ))
    }

    fn describe(&self) -> String {
        let size = |(step, cfg): &(usize, LocalMimConfig)| match step {
            0 => format!("{} px", cfg.vit.image_size),
            step => format!("{} px from step {step} on", cfg.vit.image_size),
        };
        let sizes: Vec<String> = self.models.iter().map(size).collect();
        let begun = self.config.init.iter();
        let begun: String = begun.map(|init| format!(", begun with {init}")).collect();
        format!(
            "{} {}, patch {}, {}{begun}",
            self.config.name(),
            sizes.join(", "),
            self.cfg.vit.patch_size,
            counted(self.cfg.stages.len(), "decoder")
        )
    }

    fn layers(&self) -> usize {
        self.cfg.layers()
    }

    fn layer_of(&self, name: &str) -> Option<usize> {
        self.cfg.layer_of(name, self.config.train_cls_token)
    }

    fn layer_name(&self, layer: usize) -> String {
        let Some(block) = layer.checked_sub(1) else {
            return "patch_embed".to_owned();
        };
        let stages = self.cfg.stages_of(layer);
        let stages: String = stages
            .map(|k| format!(" and stage {k} with its decoder"))
            .collect();
        self.cfg.vit.block_name(block) + &stages
    }

    fn schedule(&self, config: &Config, plan: &Plan) -> Result<Schedule> {
        config.schedule(plan, self.layers())
    }

    fn budget(&self, config: &Config, frozen: usize) -> Budget {
        Budget::pretraining(
            &self.cfg,
            config.mask_ratio,
            config.training.batch_size,
            frozen,
            self.compute.precision,
        )
    }

    fn vars(&mut self) -> Result<VarMap> {
        let vars = VarMap::new();
        let seed = self.config.training.seed;
        self.model(vit::seeded(&vars, seed, DType::F32, &self.device), 0)?;
        Ok(vars)
    }

    fn begin(&self, vars: &VarMap) -> Result<()> {
        init::begin(&self.config, &self.cfg, vars, &self.device)
    }

    /// A class token that trains was asked for.
    fn warns(&self) -> bool {
        !self.config.train_cls_token
    }

    fn optimizer(&self, config: &Config) -> Optimizer {
        Optimizer::new(config.adamw())
    }

    fn model(&self, vb: VarBuilder, step: usize) -> Result<LocalMim> {
        Ok(LocalMim::new(self.at(step), vb)?.with_compute(&self.compute))
    }

    fn image_size(&self, step: usize) -> Option<usize> {
        (self.models.len() > 1).then(|| self.at(step).vit.image_size)
    }

    fn work(&self) -> Work {
        self.work.clone()
    }

    fn loss(&self, model: &LocalMim, batch: Batch) -> Result<Loss> {
        let (seed, vit) = (self.config.training.seed, &model.config().vit);
        let units = model.config().units();
        let noise = datasets::rng::noise(seed, "mask", &batch, units);
        let masking = Masking::from_noise(&noise, units, self.config.mask_ratio)?;
        let (count, size) = (batch.labels.len(), vit.image_size);
        let shape = (count, vit.in_chans, size, size);
        let images = Tensor::from_vec(batch.images, shape, &self.device)?;
        let loss = model.loss(&images, &masking)?;
        Ok(Loss {
            total: loss.total,
            stages: loss.stages,
        })
    }

    fn look(&self, model: &LocalMim, epochs: usize, frozen: usize) -> Result<Vec<Seen>> {
        if self.cfg.vit.in_chans != RGB {
            return Ok(Vec::new());
        }
        let [targets, column] = self.looks.draw(model, (epochs, frozen), &self.device)?;
        let seen = |file: String, tag, svg| Seen { file, tag, svg };
        Ok(vec![
            seen("targets".into(), "targets", targets),
            seen(format!("epoch-{epochs:05}"), "predictions", column),
        ])
    }

    fn export(&self, weights: &BTreeMap<String, Tensor>, path: &Path) -> Result<()> {
        let tensors = self.cfg.encoder_tensors(weights)?;
        let prepared = self.config.preprocess()?;
        Ok(vit::save_encoder_prepared(
            path,
            &self.cfg.vit,
            &prepared,
            &tensors,
        )?)
    }

    fn about(&self) -> Result<Option<Value>> {
        let encoder = Pretrained {
            cfg: self.cfg.vit,
            tensors: BTreeMap::new(),
            labels: BTreeMap::new(),
            preprocess: self.config.preprocess()?,
        };
        Ok(Some(encoder.metadata()?))
    }

    /// All three take this run's data unless told otherwise.
    fn next(&self, dir: &str) -> Vec<String> {
        let mut next = vec![
            format!("vitfreeze knn --checkpoint {dir}         how good the features are; trains nothing"),
            format!("vitfreeze linprobe --checkpoint {dir}    the same, with a linear classifier"),
            format!("vitfreeze finetune --checkpoint {dir}    a classifier"),
        ];
        if self.config.training.data() == "shapes" {
            next.push(
                "vitfreeze pretrain --data DIR --model vit-small    your own images, a folder per class".into(),
            );
        }
        next
    }
}
