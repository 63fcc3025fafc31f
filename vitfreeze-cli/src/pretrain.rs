//! `vitfreeze pretrain`: LocalMIM under FreezeOut.
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{bail, Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use datasets::{ImageFolder, Loader, LoaderConfig, PretrainTransform, Shapes, Source};
use freezeout::{AdamW, FreezeOut, Gradients};
use localmim::{LocalMim, LocalMimConfig, Masking};

use crate::checkpoint::{self, Checkpoint};
use crate::config::{Config, Flags};
use crate::metrics::{timed, Metrics, Row, Seconds};
use crate::report::Report;
use crate::usage::usage;
use crate::{allocator, device, interrupt};

const EXAMPLES: &str = "\
Examples:
  vitfreeze pretrain                                     two minutes, no data needed
  vitfreeze pretrain --data cifar10 --config configs/tiny-cifar.toml
  vitfreeze pretrain --data imagenet --model vit-small --batch-size 32 --accum 64
  vitfreeze pretrain --resume runs/pretrain-1            go on where a run stopped
  vitfreeze pretrain --freeze none --out runs/unfrozen   the same without freezing, to compare";

/// Flags of `vitfreeze pretrain`.
#[derive(clap::Parser)]
#[command(after_help = EXAMPLES, args_override_self = true)]
pub struct Args {
    #[command(flatten)]
    flags: Flags,
    /// TOML file with the same keys as the flags; flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder for the run's files [default: runs/pretrain-N, the next free N]
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    out: Option<PathBuf>,
    /// Go on with the run in this folder
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    resume: Option<PathBuf>,
    /// Stop after this many optimiser steps of the whole run; the schedule stays that of the whole run
    #[arg(long, value_name = "N")]
    max_steps: Option<usize>,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    let mut run = Run::open(&args)?;
    let mut report = run.report();
    let steps = run.freeze.schedule().steps;
    let stop = args.max_steps.unwrap_or(steps).min(steps);
    interrupt::listen()?;
    let mut batches = run.batches();
    for step in run.step..stop {
        if run.freeze.advance(step)? {
            run.model = LocalMim::new(&run.cfg, run.freeze.vars())?;
            allocator::release_memory();
            report.froze(step, &run.newly_frozen(step), run.freeze.frozen());
        }
        let (row, grads) = run.forward_backward(step, &mut batches, &report)?;
        report.step(run.update(row, &grads)?);
        let interrupted = interrupt::asked();
        if interrupted || run.step == stop || run.step % run.save_every == 0 {
            run.save()?;
        }
        if interrupted {
            report.close();
            eprintln!("saved after step {} of {steps}; to go on:", run.step);
            eprintln!("  vitfreeze pretrain --resume {}", run.dir.display());
            return Ok(ExitCode::from(interrupt::EXIT_CODE));
        }
    }
    report.close();
    run.finish(&report)
}

/// A run in progress.
struct Run {
    dir: PathBuf,
    config: Config,
    cfg: LocalMimConfig,
    device: Device,
    loader: Loader,
    images: usize,
    /// Batches of an epoch, and optimiser steps of an epoch: the last step may have fewer batches than the others.
    batches_per_epoch: usize,
    steps_per_epoch: usize,
    save_every: usize,
    freeze: FreezeOut,
    model: LocalMim,
    opt: AdamW,
    metrics: Metrics,
    /// Rows of earlier sessions, until the report takes them.
    rows: Vec<Row>,
    /// Optimiser steps done, and those of the latest checkpoint.
    step: usize,
    saved: usize,
    /// Damaged images told about.
    told: usize,
    started: Instant,
}

impl Run {
    /// Checks everything, then makes or reads the run's folder.
    fn open(args: &Args) -> Result<Self> {
        let (dir, config, checkpoint) = match &args.resume {
            Some(dir) => {
                let (config, checkpoint) = resume(dir, &args.flags)?;
                (dir.clone(), config, Some(checkpoint))
            }
            None => {
                let config = Config::new(args.config.as_deref(), &args.flags)?;
                (free_dir(args.out.as_deref())?, config, None)
            }
        };
        let threads = device::set_threads(config.threads)?;
        let device = device::open(&config.device)?;
        let cfg = config.model()?;
        let (loader, images, line) = open_data(&config, threads)?;
        if let Some(saved) = checkpoint.as_ref().map(|c| c.header.images) {
            if saved != images {
                return Err(usage(format!(
                    "{}: the run was made with {saved} images, {} has {images}",
                    dir.display(),
                    config.data
                )));
            }
        }
        let batches_per_epoch = loader.batches_per_epoch();
        let steps_per_epoch = batches_per_epoch.div_ceil(config.accum);
        let schedule = config.schedule(steps_per_epoch, cfg.layers())?;

        let vars = VarMap::new();
        let mut model = LocalMim::new(&cfg, VarBuilder::from_varmap(&vars, DType::F32, &device))?;
        vit::init(&vars, config.seed)?;
        let layer_of = |name: &str| cfg.layer_of(name, config.train_cls_token);
        let mut freeze = FreezeOut::new(&vars, schedule, layer_of)?;
        let mut opt = AdamW::new(config.adamw());
        let mut step = 0;
        if let Some(checkpoint) = &checkpoint {
            step = checkpoint.header.step;
        }
        let fresh = checkpoint.is_none();
        if let Some(checkpoint) = checkpoint {
            if freeze.advance(step.saturating_sub(1))? {
                model = LocalMim::new(&cfg, freeze.vars())?;
            }
            checkpoint
                .restore(&freeze, &mut opt)
                .with_context(|| checkpoint_path(&dir).display().to_string())?;
        }

        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        write_config(&dir, &config)?;
        let (metrics, rows) = Metrics::open(&dir.join("metrics.jsonl"), step)?;
        let run = Self {
            save_every: config.save_every.unwrap_or(steps_per_epoch),
            dir,
            config,
            cfg,
            device,
            loader,
            images,
            batches_per_epoch,
            steps_per_epoch,
            freeze,
            model,
            opt,
            metrics,
            rows,
            step,
            saved: step,
            told: 0,
            started: Instant::now(),
        };
        if fresh {
            // From here on a kill at any moment leaves something to resume.
            run.write_checkpoint()?;
        }
        run.banner(&line, threads);
        Ok(run)
    }

    fn banner(&self, data: &str, threads: usize) {
        let (config, schedule) = (&self.config, self.freeze.schedule());
        let count: usize = self.freeze.all().map(|(_, v)| v.elem_count()).sum();
        eprintln!("{data}");
        eprintln!(
            "{} {} px, patch {}: {:.1} M parameters with {} decoders; {} on {threads} threads",
            config.model,
            config.image_size,
            config.patch_size,
            count as f64 / 1e6,
            self.cfg.stages.len(),
            config.device,
        );
        eprintln!(
            "{} epochs of {} steps, {} images each; learning rate {:.2e}; freezing {}",
            config.epochs,
            self.steps_per_epoch,
            config.batch_size * config.accum.min(self.batches_per_epoch),
            schedule.lr,
            match schedule.freeze_step(0) {
                Some(first) => format!("from step {first} of {}", schedule.steps),
                None => "nothing".into(),
            },
        );
        if self.step > 0 {
            eprintln!("resuming after step {}", self.step);
        }
    }

    fn report(&mut self) -> Report {
        let (steps, layers) = (self.freeze.schedule().steps, self.cfg.layers());
        let rows = std::mem::take(&mut self.rows);
        Report::new(steps, self.step, self.steps_per_epoch, layers, rows)
    }

    /// The batches from the next step on.
    fn batches(&self) -> datasets::Batches {
        let (epoch, within) = (
            self.step / self.steps_per_epoch,
            self.step % self.steps_per_epoch,
        );
        self.loader.stream(epoch, within * self.config.accum)
    }

    /// The gradients of one optimiser step: the mean over its batches.
    fn forward_backward(
        &mut self,
        step: usize,
        batches: &mut datasets::Batches,
        report: &Report,
    ) -> Result<(Row, Gradients)> {
        self.started = Instant::now();
        let (epoch, within) = (step / self.steps_per_epoch, step % self.steps_per_epoch);
        let first = within * self.config.accum;
        let micro = self.config.accum.min(self.batches_per_epoch - first);
        let schedule = self.freeze.schedule();
        let mut row = Row {
            step,
            epoch,
            loss: 0.0,
            stage_losses: vec![None; self.cfg.stages.len()],
            lr: (0..schedule.layers)
                .map(|l| schedule.lr(step, Some(l)))
                .collect(),
            frozen: self.freeze.frozen(),
            graph_nodes: 0,
            images: micro * self.config.batch_size,
            images_per_second: 0.0,
            seconds: Seconds::default(),
        };
        let mut grads = Gradients::default();
        for _ in 0..micro {
            let batch = timed(&mut row.seconds.data, || batches.next());
            self.tell_skipped(report);
            let batch = batch.context("the loader ended early")??;
            let masking = self.masking(&batch)?;
            let size = self.config.image_size;
            let shape = (self.config.batch_size, 3, size, size);
            let loss = timed(&mut row.seconds.forward, || {
                let images = Tensor::from_vec(batch.images, shape, &self.device)?;
                self.model.loss(&images, &masking)
            })?;
            let value = f64::from(loss.total.to_scalar::<f32>()?);
            if !value.is_finite() {
                bail!(self.non_finite(value, &row));
            }
            row.loss += value / micro as f64;
            for (sum, stage) in row.stage_losses.iter_mut().zip(&loss.stages) {
                if let Some(stage) = stage {
                    *sum.get_or_insert(0.0) += f64::from(stage.to_scalar::<f32>()?) / micro as f64;
                }
            }
            let part = timed(&mut row.seconds.backward, || -> Result<Gradients> {
                let total = match micro {
                    1 => loss.total,
                    _ => (loss.total * (1.0 / micro as f64))?,
                };
                row.graph_nodes = total.sorted_nodes().len();
                Ok(self.freeze.backward(&total)?)
            })?;
            grads.add(part)?;
        }
        Ok((row, grads))
    }

    /// One optimiser step; completes the row and writes it.
    fn update(&mut self, mut row: Row, grads: &Gradients) -> Result<Row> {
        timed(&mut row.seconds.optimizer, || {
            self.opt.step(&self.freeze, row.step, grads)
        })?;
        row.seconds.total = self.started.elapsed().as_secs_f64();
        row.images_per_second = row.images as f64 / row.seconds.total;
        self.metrics.write(&row)?;
        self.step = row.step + 1;
        Ok(row)
    }

    /// Which patches of which image are hidden: a function of (seed, epoch, index).
    fn masking(&self, batch: &datasets::Batch) -> Result<Masking> {
        let patches = self.cfg.vit.patches();
        let mut noise = Vec::with_capacity(batch.indices.len() * patches);
        for &index in &batch.indices {
            let mut rng = datasets::rng::rng(self.config.seed, "mask", batch.epoch as u64, index);
            noise.extend((0..patches).map(|_| datasets::rng::uniform(&mut rng)));
        }
        Ok(Masking::from_noise(
            &noise,
            patches,
            self.config.mask_ratio,
        )?)
    }

    fn newly_frozen(&self, step: usize) -> String {
        let before = self.freeze.schedule().frozen(step.saturating_sub(1));
        let mut names = Vec::new();
        for layer in before..self.freeze.frozen() {
            let Some(block) = layer.checked_sub(1) else {
                names.push("patch_embed".to_owned());
                continue;
            };
            names.push(
                match self.cfg.stages.iter().position(|s| s.block == block) {
                    Some(stage) => format!("blocks.{block} and stage {stage} with its decoder"),
                    None => format!("blocks.{block}"),
                },
            );
        }
        names.join(", ")
    }

    fn non_finite(&self, value: f64, row: &Row) -> String {
        let lr = row.lr.iter().copied().fold(0.0, f64::max);
        format!(
            "step {}: the loss is {value} at learning rate {lr:.3e}; {} still holds step {}; start again with a lower --lr",
            row.step,
            checkpoint_path(&self.dir).display(),
            self.saved,
        )
    }

    /// Warns of damaged images as they turn up.
    fn tell_skipped(&mut self, report: &Report) {
        let skipped = self.loader.skipped();
        for image in &skipped[self.told.min(skipped.len())..] {
            report.say(format!("warning: skipped {}: {}", image.name, image.reason));
        }
        self.told = skipped.len();
    }

    fn save(&mut self) -> Result<()> {
        self.metrics.flush()?;
        self.write_checkpoint().with_context(|| {
            format!(
                "the checkpoint of step {} is untouched; to go on from there: vitfreeze pretrain --resume {}",
                self.saved,
                self.dir.display()
            )
        })?;
        self.saved = self.step;
        Ok(())
    }

    fn write_checkpoint(&self) -> Result<()> {
        checkpoint::save(
            &checkpoint_path(&self.dir),
            &self.config,
            self.step,
            self.images,
            &self.freeze,
            &self.opt,
        )
    }

    /// Exports the encoder and says what there is now.
    fn finish(self, report: &Report) -> Result<ExitCode> {
        let encoder = self.dir.join("encoder.safetensors");
        let tensors = self
            .cfg
            .encoder_tensors(&checkpoint::weights(&self.freeze))?;
        vit::save_encoder(&encoder, &self.cfg.vit, &tensors)?;
        let (steps, dir) = (self.freeze.schedule().steps, self.dir.display());
        println!("{}", report.summary());
        let skipped = self.loader.skipped().len();
        if skipped > 0 {
            println!("  {skipped} damaged image(s) skipped");
        }
        println!("Files in {dir}:");
        println!("  encoder.safetensors     the encoder under timm's names");
        println!(
            "  checkpoint.safetensors  the training state after step {}",
            self.step
        );
        println!("  metrics.jsonl           one line per step");
        println!("  config.toml             every number of this run");
        println!("Next:");
        if self.step < steps {
            println!(
                "  vitfreeze pretrain --resume {dir}    the other {} steps",
                steps - self.step
            );
        }
        println!("  python3 scripts/timm_check.py {}", encoder.display());
        println!("  vitfreeze pretrain --data DIR --model vit-small    your own images, one folder per class");
        println!("  vitfreeze bench --model vit-small    what freezing saves at 224 px");
        Ok(ExitCode::SUCCESS)
    }
}

fn checkpoint_path(dir: &Path) -> PathBuf {
    dir.join("checkpoint.safetensors")
}

/// The configuration and checkpoint of a run to go on with.
fn resume(dir: &Path, flags: &Flags) -> Result<(Config, Checkpoint)> {
    let path = checkpoint_path(dir);
    if !path.is_file() {
        return Err(usage(format!(
            "{} holds no run: there is no checkpoint.safetensors in it",
            dir.display()
        )));
    }
    let config = Config::of_run(&dir.join("config.toml"), flags)?;
    let checkpoint = Checkpoint::load(&path)?;
    let differences = config.differences(&checkpoint.header.config)?;
    if !differences.is_empty() {
        return Err(usage(format!(
            "{} was trained with other numbers ({}); resume it without these, or start a new run",
            dir.display(),
            differences.join(", ")
        )));
    }
    Ok((config, checkpoint))
}

/// `out`, or runs/pretrain-N with the first N that is free.
fn free_dir(out: Option<&Path>) -> Result<PathBuf> {
    let Some(out) = out else {
        let name = |n: usize| PathBuf::from(format!("runs/pretrain-{n}"));
        let free = (1..).map(name).find(|dir| !dir.exists());
        return free.context("no free folder in runs/");
    };
    if out.is_file() {
        return Err(usage(format!("--out {} is a file", out.display())));
    }
    if checkpoint_path(out).exists() {
        return Err(usage(format!(
            "--out {} holds a run already; go on with it by --resume {0}, or choose another folder",
            out.display()
        )));
    }
    Ok(out.to_owned())
}

/// Replaces config.toml as a whole or not at all.
fn write_config(dir: &Path, config: &Config) -> Result<()> {
    let (path, temporary) = (dir.join("config.toml"), dir.join("config.toml.tmp"));
    std::fs::write(&temporary, config.to_toml()?)
        .and_then(|()| std::fs::rename(&temporary, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The loader, the number of images and a line that says what they are.
fn open_data(config: &Config, threads: usize) -> Result<(Loader, usize, String)> {
    let source: Arc<dyn Source> = if config.data == "shapes" {
        Arc::new(Shapes::new(0, config.image_size, config.samples))
    } else {
        Arc::new(ImageFolder::open(Path::new(&config.data), "train").map_err(usage)?)
    };
    let (images, line) = (source.len(), source.describe());
    let transform = PretrainTransform {
        scale: (config.crop_scale, 1.0),
        ..PretrainTransform::imagenet(config.image_size)
    };
    let loader = LoaderConfig {
        batch_size: config.batch_size,
        seed: config.seed,
        threads,
        prefetch: 2,
    };
    let loader = Loader::new(source, transform, loader).map_err(usage)?;
    Ok((loader, images, line))
}
