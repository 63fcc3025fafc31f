//! `vitfreeze linprobe`: how much a linear classifier makes of an encoder's features; the encoder stays as it is.
mod config;
mod head;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{bail, Result};
use candle_core::{Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use datasets::{Batch, Loader, PretrainTransform, Source};
use freezeout::{Lars, Optimizer, Schedule};
use vit::{Backbone, Pretrained, VitConfig};

use crate::accuracy::Accuracy;
use crate::console::{counted, note, Progress, Unit};
use crate::features::{extract, Output};
use crate::input::channels::{pretrain_recipe, Judged};
use crate::input::splits::Data;
use crate::input::subset::Share;
use crate::machine::budget::Budget;
use crate::machine::workers::Workers;
use crate::machine::Machine;
use crate::run::checkpoint::{fnv, FNV};
use crate::settings::Settings as _;
use crate::train::{self, load_encoder, Features, Feed, Images, Loss, Plan, RunArgs, Task};
use crate::usage::usage;
use config::Config;
use head::Head;

const EXAMPLES: &str = "\
Examples:
  vitfreeze linprobe --checkpoint runs/p --data imagenet         MAE's recipe
  vitfreeze linprobe --checkpoint runs/p --data cifar10 --cached --accum 1 --lr 6.4
  vitfreeze linprobe --checkpoint hf://facebook/dinov2-small --pool token --data imagenet --cached
  vitfreeze linprobe --resume runs/linprobe-1                    go on where a run stopped

The head sees the tokens behind the checkpoint's last norm, pooled as --pool says. For a LocalMIM \
encoder that is the norm in front of the last stage's decoder. docs/finetune.md says more.";

/// Rows that the head computes at once in an evaluation.
const ROWS: usize = 4096;

/// Flags of `vitfreeze linprobe`.
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
    train::run::<Probe>(&args.run)
}

/// A head on an encoder of plain tensors.
struct Probe {
    origin: String,
    encoder: Backbone,
    pretrained: Pretrained,
    classes: Vec<String>,
    seed: u64,
    cached: bool,
    device: Device,
    workers: Workers,
    /// Of the validation split: nothing about them changes.
    val: Features,
}

impl Task for Probe {
    type Settings = Config;
    type Model = Head;

    const EXPORT: (&'static str, &'static str) =
        ("last.safetensors", "the classifier as it is now");
    const EVALUATES: bool = true;
    /// The head normalises by the batches of all.
    const TOGETHER: bool = true;

    fn open(config: &Config, machine: &Machine) -> Result<(Self, Images)> {
        let (device, threads) = (&machine.device, machine.threads);
        if config.cached && machine.workers.size() > 1 {
            return Err(usage(
                "--cached needs no further workers: one trains on features in seconds",
            ));
        }
        let training = &config.training;
        let origin = config.supervised.checkpoint.clone().unwrap_or_default();
        let mut pretrained =
            load_encoder(training, &config.supervised, &origin, device)?.pretrained;
        let size = pretrained.cfg.image_size;
        let mut data = Data::open(training, &config.supervised, size)?;
        data.fingerprint = data.fingerprint.with_weights(&pretrained.tensors)?;
        if training.batch_size > data.train.len() {
            return Err(usage(format!(
                "batch-size {} is larger than the {} training images; choose at most {1}",
                training.batch_size,
                data.train.len()
            )));
        }
        pretrained.preprocess = pretrained.preprocess.judged((size, size));
        let judged = Judged::new(&pretrained.preprocess, (size, size));
        let encoder = pretrained.backbone()?;
        let encoder = encoder.with_compute(&training.compute(device)?);
        let features = |split, source| {
            let batch_size = training.batch_size.min(64);
            note(format!("computing the features of the {split} images"));
            let (mut features, hash) =
                features(&encoder, source, &judged, (batch_size, threads), device)?;
            (features.batch_size, features.seed) = (training.batch_size, training.seed);
            Ok::<_, anyhow::Error>((features, hash))
        };
        let share = Share::of(&data.val, &machine.workers);
        let (val, val_hash) = features("validation", &share)?;
        let feed = match config.cached {
            true => {
                let (train, hash) = features("training", &data.train)?;
                if train.labels.is_empty() {
                    bail!("not one training image could be read");
                }
                // What could be read decides how many steps an epoch has.
                let fingerprint = data.fingerprint.with_pixels(hash);
                data.fingerprint = fingerprint.with_pixels(val_hash);
                Feed::Features(train)
            }
            false => {
                let like = PretrainTransform {
                    scale: (training.crop_scale, 1.0),
                    ..PretrainTransform::imagenet(size)
                };
                let recipe = pretrain_recipe(&like, &pretrained.preprocess);
                let loader = training.loader(machine);
                let train = Arc::clone(&data.train);
                Feed::Images(Loader::new(train, recipe, loader).map_err(usage)?)
            }
        };
        let images = Images {
            feed,
            count: data.train.len(),
            fingerprint: data.fingerprint,
            description: data.describe(),
        };
        let task = Self {
            origin,
            classes: data.classes().to_vec(),
            seed: training.seed,
            cached: config.cached,
            device: device.clone(),
            workers: machine.workers.clone(),
            val,
            encoder,
            pretrained,
        };
        Ok((task, images))
    }

    fn describe(&self) -> String {
        format!(
            "a linear head of {} on {} features of {}{}",
            counted(self.classes.len(), "class"),
            self.pretrained.cfg.features(),
            self.origin,
            if self.cached { ", computed once" } else { "" }
        )
    }

    fn layers(&self) -> usize {
        1
    }

    fn layer_of(&self, _: &str) -> Option<usize> {
        Some(0)
    }

    fn layer_name(&self, _: usize) -> String {
        "head".into()
    }

    fn schedule(&self, config: &Config, plan: &Plan) -> Result<Schedule> {
        config.training.schedule(plan, self.layers())
    }

    fn budget(&self, config: &Config, _: usize) -> Budget {
        let precision = self.encoder.compute().precision;
        let batch = config.training.batch_size;
        Budget::inference(&self.pretrained.cfg, batch, precision).beside_weights()
    }

    fn vars(&mut self) -> Result<VarMap> {
        let width = self.pretrained.cfg.features();
        head::variables(width, self.classes.len(), self.seed, &self.device)
    }

    fn optimizer(&self, config: &Config) -> Optimizer {
        Optimizer::new(Lars {
            momentum: 0.9,
            trust: 1e-3,
            weight_decay: config.training.weight_decay,
        })
    }

    fn model(&self, vb: VarBuilder, _step: usize) -> Result<Head> {
        Head::new(self.pretrained.cfg.features(), self.classes.len(), vb)
    }

    fn loss(&self, head: &Head, batch: Batch) -> Result<Loss> {
        let features = self.features(batch.images, batch.labels.len());
        // The head's statistics are of all workers.
        let features = self.workers.agree(features)?;
        let logits = head.train(&features, self.workers.comm().as_ref())?;
        Ok(vit::cross_entropy(&logits, &batch.labels, 0.0)?.into())
    }

    fn evaluate(&self, head: &Head) -> Result<Accuracy> {
        let (width, mut accuracy) = (
            self.pretrained.cfg.features(),
            Accuracy::new(self.classes.len()),
        );
        let rows = self.val.values.chunks(ROWS * width);
        for (values, labels) in rows.zip(self.val.labels.chunks(ROWS)) {
            let x = Tensor::from_slice(values, (labels.len(), width), &self.device)?;
            let logits = head.forward(&x)?.flatten_all()?.to_device(&Device::Cpu)?;
            accuracy.add(&logits.to_vec1::<f32>()?, labels);
        }
        Ok(accuracy)
    }

    fn classes(&self) -> Vec<String> {
        self.classes.clone()
    }

    fn export(&self, weights: &BTreeMap<String, Tensor>, path: &Path) -> Result<()> {
        let mut tensors = self.pretrained.tensors.clone();
        for (name, tensor) in head::folded(weights)? {
            if self.pretrained.cfg.dist_token {
                // The probe saw the mean of both tokens: the same head on each, averaged, is the same function.
                tensors.insert(name.replace("head.", "head_dist."), tensor.clone());
            }
            tensors.insert(name, tensor);
        }
        let classifier = Pretrained {
            cfg: VitConfig {
                num_classes: self.classes.len(),
                ..self.pretrained.cfg
            },
            tensors,
            labels: self.classes.iter().cloned().enumerate().collect(),
            preprocess: self.pretrained.preprocess.clone(),
        };
        Ok(classifier.save_file(path)?)
    }

    fn next(&self, dir: &str) -> Vec<String> {
        train::with_a_classifier(dir)
    }
}

impl Probe {
    /// What the head sees of a batch, `(B, D)`.
    fn features(&self, values: Vec<f32>, count: usize) -> Result<Tensor> {
        if self.cached {
            let width = self.pretrained.cfg.features();
            return Ok(Tensor::from_vec(values, (count, width), &self.device)?);
        }
        let (channels, (height, width)) =
            (self.pretrained.cfg.in_chans, self.pretrained.cfg.image());
        let images = Tensor::from_vec(values, (count, channels, height, width), &self.device)?;
        let tokens = self.encoder.forward_features(&images)?;
        Ok(self.encoder.pool(&tokens)?)
    }
}

/// What the head will see of every image that can be read, and a hash of these images: of their pixels and not of their
/// features, which another device rounds otherwise.
fn features(
    encoder: &Backbone,
    source: &Arc<dyn Source>,
    judged: &Judged,
    (batch_size, threads): (usize, usize),
    device: &Device,
) -> Result<(Features, u64)> {
    let mut hash = FNV;
    let mut all = Features {
        values: Vec::new(),
        labels: Vec::new(),
        batch_size,
        seed: 0,
    };
    let progress = Progress::new(source.len() as u64, Unit::Images);
    extract(
        encoder,
        source,
        judged,
        batch_size,
        threads,
        device,
        Output::Pooled,
        &progress,
        |batch, values| {
            for index in &batch.indices {
                hash = fnv(hash, &index.to_le_bytes());
            }
            for value in &batch.images {
                hash = fnv(hash, &value.to_le_bytes());
            }
            all.values.extend(values);
            all.labels.extend(&batch.labels);
            Ok(())
        },
    )?;
    progress.close();
    Ok((all, hash))
}
