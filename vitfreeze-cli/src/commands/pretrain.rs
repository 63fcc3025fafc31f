//! `vitfreeze pretrain`: LocalMIM under FreezeOut.
pub mod config;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{bail, Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use datasets::{Loader, LoaderConfig, PretrainTransform, Shapes, Source, MAX_PIXELS};
use freezeout::{FreezeOut, Gradients, Optimizer};
use localmim::{LocalMim, LocalMimConfig, Masking};

use crate::console::{amount, note, print};
use crate::input::dataset;
use crate::machine::budget::{always_frozen, Budget};
use crate::machine::{device, interrupt};
use crate::run::checkpoint::{self, Fingerprint, Header};
use crate::run::event_file::EventFile;
use crate::run::folder::{self, checkpoint_path, quoted};
use crate::run::metrics::{timed, timed_on, Metrics, NotFinite, Row, Seconds};
use crate::run::report::{changed_layers, Report};
use crate::run::result::{self, RunResult};
use crate::settings::Settings as _;
use crate::usage::usage;
use config::{Config, Flags};

const EXAMPLES: &str = "\
Examples:
  vitfreeze pretrain                                     two minutes, no data needed
  vitfreeze pretrain --data cifar10 --config configs/tiny-cifar.toml
  vitfreeze pretrain --data imagenet --model vit-small --batch-size 32 --accum 64
  vitfreeze pretrain --resume runs/pretrain-1            go on where a run stopped
  vitfreeze pretrain --freeze none --out runs/unfrozen   the same without freezing, to compare

Without --data and --config the defaults are those of the built-in
configs/tiny-shapes.toml: vit-tiny, 32 px, patch 4, decoders 96 wide with 3 heads,
2048 samples, 12 epochs with 1 of warm-up, batch 64, accum 1, lr 1e-3.";

/// Flags of `vitfreeze pretrain`.
#[derive(clap::Parser)]
#[command(after_help = EXAMPLES, args_override_self = true, allow_negative_numbers = true)]
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
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_steps: Option<u32>,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    let mut run = Run::open(&args)?;
    let steps = run.freeze.schedule().steps;
    let stop = args.max_steps.map_or(steps, |n| steps.min(n as usize));
    let mut report = run.report(stop);
    interrupt::listen()?;
    let mut batches = run.batches();
    for step in run.step..stop {
        if run.freeze.advance(step)? {
            run.model = LocalMim::new(&run.cfg, run.freeze.vars())?;
            device::release_memory(&run.device);
        }
        let name = |layer| run.layer_name(layer);
        if let Some(what) = changed_layers(run.freeze.schedule(), step, name) {
            report.froze(step, &what, run.freeze.frozen());
        }
        let gradients = run.forward_backward(step, &mut batches, &report);
        // A checkpoint waits for its name until this step's loss has proved its weights good.
        if !gradients.as_ref().is_err_and(|e| e.is::<NotFinite>()) {
            run.commit()?;
        }
        let (row, grads) = gradients?;
        report.step(run.update(row, &grads)?);
        let interrupted = interrupt::asked();
        if interrupted || run.step == stop {
            run.save()?;
        } else if run.save_is_due() {
            run.stage()?;
        }
        if interrupted && run.step < stop {
            report.close();
            folder::say_stopped("pretrain", &run.dir, run.step, steps);
            return Ok(ExitCode::from(interrupt::exit_code()));
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
    data: Fingerprint,
    /// Batches of an epoch, and optimiser steps of an epoch: the last step may have fewer batches than the others.
    batches_per_epoch: usize,
    steps_per_epoch: usize,
    save_every: usize,
    freeze: FreezeOut,
    model: LocalMim,
    opt: Optimizer,
    metrics: Metrics,
    events: Option<EventFile>,
    /// Rows of earlier sessions, until the report takes them.
    rows: Vec<Row>,
    /// Optimiser steps done, and those of the latest checkpoint.
    step: usize,
    saved: usize,
    staged: Option<vit::Staged>,
    /// Damaged images told about.
    told: BTreeSet<usize>,
    started: Instant,
}

impl Run {
    /// Checks everything, then makes or reads the run's folder.
    fn open(args: &Args) -> Result<Self> {
        let (config, resumed) = match &args.resume {
            Some(dir) => {
                let (config, checkpoint, metrics) = folder::resume::<Config>(dir, &args.flags)?;
                (config, Some((dir.clone(), checkpoint, metrics)))
            }
            None => (Config::new(args.config.as_deref(), &args.flags)?, None),
        };
        let threads = device::set_threads(config.threads)?;
        let device = device::open(&config.device)?;
        let mut cfg = config.model()?;
        let (loader, data, line) = open_data(&config, threads)?;
        let batches_per_epoch = loader.batches_per_epoch();
        let steps_per_epoch = batches_per_epoch.div_ceil(config.accum);
        let schedule = config.schedule(steps_per_epoch, cfg.layers())?;
        let frozen = always_frozen(&schedule);
        Budget::pretraining(&cfg, config.mask_ratio, config.batch_size, frozen).check(&device)?;
        let mut step = 0;
        if let Some(Header {
            data: saved,
            step: done,
            ..
        }) = resumed.as_ref().map(|(_, c, _)| &c.header)
        {
            if *saved != data {
                return Err(usage(format!(
                    "the run was made with other images ({} of them, or other names) than {} has ({})",
                    saved.images, config.data, data.images
                )));
            }
            if *done > schedule.steps {
                bail!(
                    "the checkpoint is of step {done}, the run has {} steps",
                    schedule.steps
                );
            }
            step = *done;
        }

        cfg.vit.precision = config.dtype.precision(&device)?;
        let vars = VarMap::new();
        let mut model = LocalMim::new(&cfg, VarBuilder::from_varmap(&vars, DType::F32, &device))?;
        vit::init(&vars, config.seed)?;
        let layer_of = |name: &str| cfg.layer_of(name, config.train_cls_token);
        let mut freeze = FreezeOut::new(&vars, schedule, layer_of)?;
        // A class token that trains keeps the frozen blocks' graph alive: asked for, so no warning.
        let told = !config.train_cls_token;
        freeze = freeze.on_warning(move |text| {
            if told {
                note(format!("warning: {text}"));
            }
        });
        let mut opt = Optimizer::new(config.adamw());
        let fresh = resumed.is_none();
        let (dir, mut metrics) = match resumed {
            Some((dir, checkpoint, metrics)) => {
                if freeze.advance(step)? {
                    model = LocalMim::new(&cfg, freeze.vars())?;
                }
                checkpoint
                    .restore(&freeze, &mut opt, None)
                    .with_context(|| checkpoint_path(&dir).display().to_string())?;
                (dir, metrics)
            }
            None => {
                let dir = folder::claim(args.out.as_deref(), "pretrain")?;
                let metrics = Metrics::lock(&dir.join("metrics.jsonl"))?;
                (dir, metrics)
            }
        };
        let rows = metrics.take_up(step)?;
        let mut run = Self {
            save_every: config.save_every.unwrap_or(steps_per_epoch),
            dir,
            config,
            cfg,
            device,
            loader,
            data,
            batches_per_epoch,
            steps_per_epoch,
            freeze,
            model,
            opt,
            metrics,
            events: None,
            rows,
            step,
            saved: step,
            staged: None,
            told: BTreeSet::new(),
            started: Instant::now(),
        };
        folder::start(&run.dir, &run.config, fresh, || {
            Ok(run.staged_checkpoint()?.commit()?)
        })?;
        if run.config.tensorboard {
            run.events = Some(EventFile::open(&run.dir, step)?);
        }
        run.banner(&line, threads);
        Ok(run)
    }

    fn banner(&self, data: &str, threads: usize) {
        let (config, schedule) = (&self.config, self.freeze.schedule());
        let count: usize = self.freeze.all().map(|(_, v)| v.elem_count()).sum();
        note(data);
        note(format!(
            "{} {} px, patch {}: {} parameters with {} decoders; {} on {threads} threads",
            config.model,
            config.image_size,
            config.patch_size,
            amount(count),
            self.cfg.stages.len(),
            config.device,
        ));
        note(format!(
            "{} epochs of {} steps, {} images each; learning rate {:.2e}; freezing {}",
            config.epochs,
            self.steps_per_epoch,
            config.batch_size * config.accum.min(self.batches_per_epoch),
            schedule.lr,
            match schedule.freeze_step(0) {
                Some(first) => format!("from step {first} of {}", schedule.steps),
                None => "nothing".into(),
            },
        ));
        if self.step > 0 {
            note(format!("resuming after step {}", self.step));
        }
    }

    fn report(&mut self, stop: usize) -> Report {
        let (epochs, layers) = (self.config.epochs, self.cfg.layers());
        let rows = std::mem::take(&mut self.rows);
        Report::new(self.step, stop, epochs, self.steps_per_epoch, layers, rows)
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
            grad_norm: None,
            images: micro * self.config.batch_size,
            images_per_second: 0.0,
            seconds: Seconds::default(),
        };
        let mut grads = Gradients::default();
        // Until the optimiser's step: what products need of the weights is made once.
        let _held = (micro > 1).then(vit::ops::hold_weights);
        for _ in 0..micro {
            let batch = timed(&mut row.seconds.data, || batches.next());
            if self.loader.skipped_count() > self.told.len() {
                report.tell_skipped(&mut self.told, self.loader.skipped());
            }
            let batch = batch.context("the loader ended early")??;
            let (seed, patches) = (self.config.seed, self.cfg.vit.patches());
            let noise = datasets::rng::noise(seed, "mask", &batch, patches);
            let masking = Masking::from_noise(&noise, patches, self.config.mask_ratio)?;
            let size = self.config.image_size;
            let shape = (self.config.batch_size, 3, size, size);
            let loss = timed_on(&self.device, &mut row.seconds.forward, || {
                let images = Tensor::from_vec(batch.images, shape, &self.device)?;
                self.model.loss(&images, &masking)
            })?;
            let value = f64::from(loss.total.to_scalar::<f32>()?);
            if !value.is_finite() {
                return Err(NotFinite(self.not_finite(value, &row)).into());
            }
            row.loss += value / micro as f64;
            for (sum, stage) in row.stage_losses.iter_mut().zip(&loss.stages) {
                if let Some(stage) = stage {
                    *sum.get_or_insert(0.0) += f64::from(stage.to_scalar::<f32>()?) / micro as f64;
                }
            }
            let total = match micro {
                1 => loss.total,
                _ => (loss.total * (1.0 / micro as f64))?,
            };
            row.graph_nodes = total.sorted_nodes().len();
            let backward = || self.freeze.backward_by(&total, vit::ops::backward);
            let part = timed_on(&self.device, &mut row.seconds.backward, backward)?;
            grads.add(part)?;
        }
        Ok((row, grads))
    }

    /// One optimiser step; completes the row and writes it.
    fn update(&mut self, mut row: Row, grads: &Gradients) -> Result<Row> {
        timed_on(&self.device, &mut row.seconds.optimizer, || {
            self.opt.step(&self.freeze, row.step, grads)
        })?;
        row.seconds.total = self.started.elapsed().as_secs_f64();
        row.images_per_second = row.images as f64 / row.seconds.total;
        self.metrics.write(&row)?;
        self.log(&row)?;
        self.step = row.step + 1;
        Ok(row)
    }

    fn log(&mut self, row: &Row) -> Result<()> {
        let Some(events) = &mut self.events else {
            return Ok(());
        };
        events.scalar("loss", row.step, row.loss)?;
        for (stage, loss) in row.stage_losses.iter().enumerate() {
            if let Some(loss) = loss {
                events.scalar(&format!("loss/stage_{stage}"), row.step, *loss)?;
            }
        }
        for (layer, &lr) in row.lr.iter().enumerate() {
            events.scalar(&format!("lr/layer_{layer:02}"), row.step, lr)?;
        }
        events.scalar("frozen", row.step, row.frozen as f64)?;
        events.scalar("images_per_second", row.step, row.images_per_second)
    }

    fn save_is_due(&self) -> bool {
        self.step > self.saved && self.step.is_multiple_of(self.save_every)
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

    fn not_finite(&self, value: f64, row: &Row) -> String {
        let lr = row.lr.iter().copied().fold(0.0, f64::max);
        format!(
            "step {}: the loss is {value} at learning rate {lr:.3e}; {} still holds step {}; start again with a lower --lr",
            row.step,
            checkpoint_path(&self.dir).display(),
            self.saved,
        )
    }

    fn save(&mut self) -> Result<()> {
        self.stage()?;
        self.commit()
    }

    /// Writes the state as it is now, before the next forward pass changes any of it (BatchNorm's statistics).
    fn stage(&mut self) -> Result<()> {
        self.metrics.flush()?;
        if let Some(events) = &mut self.events {
            events.flush()?;
        }
        let staged = self.staged_checkpoint().map_err(|e| self.untouched(e))?;
        self.staged = Some(staged);
        Ok(())
    }

    /// Makes what was staged, if anything was, the run's checkpoint.
    fn commit(&mut self) -> Result<()> {
        let Some(staged) = self.staged.take() else {
            return Ok(());
        };
        staged.commit().map_err(|e| self.untouched(e.into()))?;
        self.saved = self.step;
        Ok(())
    }

    fn staged_checkpoint(&self) -> Result<vit::Staged> {
        let header = Header::new(&self.config, self.step, self.data, None);
        let path = checkpoint_path(&self.dir);
        checkpoint::stage(&path, &header, &self.freeze, &self.opt, None)
    }

    fn untouched(&self, error: anyhow::Error) -> anyhow::Error {
        folder::untouched(error, "pretrain", &self.dir, self.saved)
    }

    /// Exports the encoder and says what there is now.
    fn finish(self, report: &Report) -> Result<ExitCode> {
        let encoder = self.dir.join("encoder.safetensors");
        let tensors = self
            .cfg
            .encoder_tensors(&freezeout::checkpoint::weights(&self.freeze))?;
        vit::save_encoder(&encoder, &self.cfg.vit, &tensors)?;
        let (steps, dir) = (self.freeze.schedule().steps, quoted(&self.dir));
        let (seconds, images) = report.totals();
        let written = RunResult {
            kind: "pretrain".into(),
            top1: None,
            top5: None,
            loss: report.last_loss(),
            best_epoch: None,
            images,
            saved: report.saved().map(|saved| 100.0 * saved),
            seconds,
            settings: serde_json::to_value(&self.config)?,
            versions: result::versions(),
        };
        result::write(&self.dir, &written)?;
        print(report.summary())?;
        let skipped = self.loader.skipped_count();
        if skipped > 0 {
            print(format!("  {skipped} damaged image(s) skipped"))?;
        }
        print(format!("Files in {}:", self.dir.display()))?;
        print("  encoder.safetensors     the encoder under timm's names")?;
        print(format!(
            "  checkpoint.safetensors  the training state after step {}",
            self.step
        ))?;
        print("  metrics.jsonl           one line per step")?;
        print("  result.json             loss, seconds, settings, versions")?;
        print("  config.toml             every number of this run")?;
        print("Next:")?;
        if self.step < steps {
            let left = steps - self.step;
            print(format!(
                "  vitfreeze pretrain --resume {dir}    the other {left} steps"
            ))?;
        }
        // All three take this run's data unless told otherwise.
        print(format!(
            "  vitfreeze knn --checkpoint {dir}         how good the features are; trains nothing"
        ))?;
        print(format!(
            "  vitfreeze linprobe --checkpoint {dir}    the same by a linear classifier"
        ))?;
        print(format!(
            "  vitfreeze finetune --checkpoint {dir}    a classifier"
        ))?;
        if self.config.data == "shapes" {
            print("  vitfreeze pretrain --data DIR --model vit-small    your own images, a folder per class")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The loader, what the images are, and a line that says it.
fn open_data(config: &Config, threads: usize) -> Result<(Loader, Fingerprint, String)> {
    dataset::note_samples(&config.data, config.samples);
    let source: Arc<dyn Source> = if config.data == "shapes" {
        Arc::new(Shapes::new(0, config.image_size, config.samples))
    } else {
        dataset::open(&config.data, "train", MAX_PIXELS)?
    };
    let (data, line) = (Fingerprint::of(&*source), source.describe());
    let transform = PretrainTransform {
        scale: (config.crop_scale, 1.0),
        ..PretrainTransform::imagenet(config.image_size)
    };
    let loader = LoaderConfig {
        batch_size: config.batch_size,
        seed: config.seed,
        threads,
        prefetch: 2,
        ..LoaderConfig::default()
    };
    let loader = Loader::new(source, transform, loader).map_err(usage)?;
    Ok((loader, data, line))
}
