//! `vitfreeze pretrain`: LocalMIM under FreezeOut.
pub mod config;
mod init;
mod looks;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use datasets::{Batch, Loader, PretrainTransform};
use freezeout::{Optimizer, Schedule};
use localmim::{LocalMim, LocalMimConfig, Masking};
use vit::ops::Compute;

use crate::console::counted;
use crate::input::dataset;
use crate::input::splits::open_split;
use crate::machine::budget::Budget;
use crate::machine::Machine;
use crate::run::checkpoint::Fingerprint;
use crate::train::{self, Feed, Images, Loss, Pace, Plan, RunArgs, Seen, Task};
use crate::usage::usage;
use config::Config;
use looks::Looks;

const EXAMPLES: &str = concat!(
    "\
Examples:
  vitfreeze pretrain                                     two minutes, no data needed
  vitfreeze pretrain --watch                             the same, drawn while it goes on
  vitfreeze pretrain --data cifar10 --config configs/tiny-cifar.toml
  vitfreeze pretrain --data imagenet --model vit-small --batch-size 32 --accum 64
  vitfreeze pretrain --resume runs/pretrain-1            go on where a run stopped
  vitfreeze pretrain --init runs/pretrain-1 --data DIR   a new run that begins with a checkpoint's weights
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
            "--init begins a new run with a checkpoint's weights, --resume goes on with a run that has its own: give one of them",
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
    cfg: LocalMimConfig,
    compute: Compute,
    device: Device,
    looks: Looks,
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
        dataset::note_samples(training.data(), training.samples);
        let source = open_split(training.data(), "train", training.samples, size)?;
        let (fingerprint, count) = (Fingerprint::of(&*source), source.len());
        let description = source.describe();
        let transform = PretrainTransform {
            scale: (training.crop_scale, 1.0),
            ..PretrainTransform::imagenet(size)
        };
        let drawn = (training.seed, config.mask_ratio);
        let looks = Looks::new(source.clone(), &cfg, drawn);
        let loader = training.loader(machine);
        let feed = Feed::Images(Loader::new(source, transform, loader).map_err(usage)?);
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
                compute,
                device,
                looks,
            },
            images,
        ))
    }

    fn describe(&self) -> String {
        let vit = &self.cfg.vit;
        let begun = self.config.init.iter();
        let begun: String = begun.map(|init| format!(", begun with {init}")).collect();
        format!(
            "{} {} px, patch {}, {}{begun}",
            self.config.name(),
            vit.image_size,
            vit.patch_size,
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
        match self.cfg.stages.iter().position(|s| s.block == block) {
            Some(stage) => format!("blocks.{block} and stage {stage} with its decoder"),
            None => format!("blocks.{block}"),
        }
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
        self.model(vit::seeded(&vars, seed, DType::F32, &self.device))?;
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

    fn model(&self, vb: VarBuilder) -> Result<LocalMim> {
        Ok(LocalMim::new(&self.cfg, vb)?.with_compute(&self.compute))
    }

    fn loss(&self, model: &LocalMim, batch: Batch) -> Result<Loss> {
        let (seed, patches) = (self.config.training.seed, self.cfg.vit.patches());
        let noise = datasets::rng::noise(seed, "mask", &batch, patches);
        let masking = Masking::from_noise(&noise, patches, self.config.mask_ratio)?;
        let (count, size) = (batch.labels.len(), self.cfg.vit.image_size);
        let images = Tensor::from_vec(batch.images, (count, 3, size, size), &self.device)?;
        let loss = model.loss(&images, &masking)?;
        Ok(Loss {
            total: loss.total,
            stages: loss.stages,
        })
    }

    fn look(&self, model: &LocalMim, epochs: usize, frozen: usize) -> Result<Vec<Seen>> {
        let [targets, column] = self.looks.draw(model, (epochs, frozen), &self.device)?;
        let seen = |file: String, tag, svg| Seen { file, tag, svg };
        Ok(vec![
            seen("targets".into(), "targets", targets),
            seen(format!("epoch-{epochs:05}"), "predictions", column),
        ])
    }

    fn export(&self, weights: &BTreeMap<String, Tensor>, path: &Path) -> Result<()> {
        let tensors = self.cfg.encoder_tensors(weights)?;
        Ok(vit::save_encoder(path, &self.cfg.vit, &tensors)?)
    }

    /// All three take this run's data unless told otherwise.
    fn next(&self, dir: &str) -> Vec<String> {
        let mut next = vec![
            format!("vitfreeze knn --checkpoint {dir}         how good the features are; trains nothing"),
            format!("vitfreeze linprobe --checkpoint {dir}    the same by a linear classifier"),
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
