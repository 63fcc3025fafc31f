//! A training in progress.
mod evaluation;
mod finish;
mod step;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{bail, Context, Result};
use candle_core::Device;
use freezeout::{Change, Ema, FreezeOut, Optimizer, Schedule, Steps};

use super::feed::Feed;
use super::settings::TrainSettings as _;
use super::{Groups, RunArgs, Task, Training};
use crate::console::{amount, counted, note};
use crate::machine::budget::always_frozen;
use crate::machine::device;
use crate::run::checkpoint::{Best, Fingerprint};
use crate::run::event_file::EventFile;
use crate::run::folder::{self, checkpoint_path};
use crate::run::metrics::{Metrics, Row};
use crate::run::report::{changed_layers, Report};
use crate::settings::Settings;
use crate::usage::usage;
use evaluation::Logged;

/// `0: 12, 40: 11, ...`: how many layers are frozen from which step on.
fn plan(schedule: &Schedule) -> String {
    let change = |c: &Change| format!("{}: {}", c.step, c.frozen);
    let all: Vec<String> = schedule.changes().iter().map(change).collect();
    all.join(", ")
}

/// A training in progress.
pub struct Run<T: Task> {
    pub dir: PathBuf,
    config: T::Settings,
    task: T,
    pub feed: Arc<Feed>,
    data: Fingerprint,
    pub save_every: usize,
    pub steps: Steps,
    pub freeze: FreezeOut,
    /// Those that have a learning rate, `None` for what is in no layer.
    layers: Vec<Option<usize>>,
    model: T::Model,
    groups: Groups,
    opt: Optimizer,
    ema: Option<Ema>,
    device: Device,
    metrics: Metrics,
    events: Option<EventFile>,
    /// Rows of earlier sessions, until the report takes them.
    rows: Vec<Row>,
    best: Option<Best>,
    /// Wall time of all steps and evaluations, and of what came before: loading, a probe's features.
    seconds: f64,
    /// Optimiser steps done, those of the latest checkpoint, and those of the latest evaluation.
    pub step: usize,
    saved: usize,
    /// A checkpoint that waits for its name, of the step in hand.
    staged: Option<vit::Staged>,
    judged: Option<usize>,
    /// Damaged images told about.
    told: BTreeSet<usize>,
    /// When the step began.
    started: Instant,
}

impl<T: Task> Run<T> {
    /// Checks everything, then makes or reads the run's folder.
    pub fn open(args: &RunArgs<T::Settings>) -> Result<Self> {
        let (config, resumed) = match &args.resume {
            Some(dir) => {
                let (config, checkpoint, metrics) =
                    folder::resume::<T::Settings>(dir, &args.flags)?;
                (config, Some((dir.clone(), checkpoint, metrics)))
            }
            None => (T::Settings::new(args.config.as_deref(), &args.flags)?, None),
        };
        let training = config.training();
        let threads = device::set_threads(training.threads)?;
        let device = device::open(&training.device)?;
        if let (Some(out), None) = (&args.out, &resumed) {
            folder::check_free(out)?;
        }
        let opened = Instant::now();
        let (mut task, images) = T::open(&config, &device, threads)?;
        let steps = training.steps(images.feed.batches_per_epoch())?;
        let schedule = task.schedule(&config, &steps)?;
        let budget = task.budget(&config, always_frozen(&schedule));
        budget.check(&device)?;
        let (mut step, mut best) = (0, None);
        if let Some((_, checkpoint, _)) = &resumed {
            (step, best) = (checkpoint.header.step, checkpoint.header.best);
            let now = images.fingerprint;
            if checkpoint.header.data.weights != now.weights {
                return Err(usage(
                    "the encoder's checkpoint has other weights now than when the run began",
                ));
            }
            if checkpoint.header.data != now {
                return Err(usage(format!(
                    "the run was made with other images or classes than {} has now ({} then, {} now)",
                    training.data(),
                    counted(checkpoint.header.data.images, "image"),
                    now.images
                )));
            }
            if step > schedule.steps {
                bail!(
                    "the checkpoint is of step {step}, the run has {}",
                    counted(schedule.steps, "step")
                );
            }
        }

        let vars = task.vars()?;
        let mut freeze = FreezeOut::new(&vars, schedule, |name| task.layer_of(name))?;
        if task.warns() {
            freeze = freeze.on_warning(|text| note(format!("warning: {text}")));
        }
        let mut ema = match config.ema() {
            Some(decay) => Some(Ema::new(&freeze, decay).map_err(usage)?),
            None => None,
        };
        let mut opt = task.optimizer(&config).groups(task.groups(&config));
        let fresh = resumed.is_none();
        freeze.advance(step)?;
        let (dir, mut metrics) = match resumed {
            Some((dir, checkpoint, metrics)) => {
                checkpoint
                    .restore(&freeze, &mut opt, ema.as_mut())
                    .with_context(|| checkpoint_path(&dir).display().to_string())?;
                (dir, metrics)
            }
            None => {
                let dir = folder::claim(args.out.as_deref(), T::Settings::COMMAND)?;
                let metrics = Metrics::lock(&dir.join("metrics.jsonl"))?;
                (dir, metrics)
            }
        };
        let mut seconds = opened.elapsed().as_secs_f64();
        let (mut rows, mut judged) = (Vec::new(), None);
        for line in metrics.take_up(step)? {
            match line {
                Logged::Step(row) => {
                    seconds += row.seconds.total;
                    rows.push(row);
                }
                Logged::Evaluation(line) => {
                    seconds += line.seconds;
                    judged = Some(line.step + 1);
                }
            }
        }
        let mut layers: Vec<Option<usize>> = (0..task.layers()).map(Some).collect();
        if freeze.all().any(|(name, _)| task.layer_of(name).is_none()) {
            layers.push(None);
        }
        let mut run = Self {
            layers,
            save_every: training.save_every.unwrap_or(steps.per_epoch()),
            model: task.model(freeze.vars())?,
            groups: task.groups(&config),
            data: images.fingerprint,
            feed: Arc::new(images.feed),
            told: BTreeSet::new(),
            saved: step,
            staged: None,
            dir,
            config,
            task,
            steps,
            freeze,
            opt,
            ema,
            device,
            metrics,
            events: None,
            rows,
            best,
            seconds,
            step,
            judged,
            started: Instant::now(),
        };
        folder::start(&run.dir, &run.config, fresh, || {
            Ok(run.staged_checkpoint()?.commit()?)
        })?;
        if run.training().tensorboard && step < run.freeze.schedule().steps {
            run.events = Some(EventFile::open(&run.dir, step)?);
        }
        run.banner(&images.description, threads);
        Ok(run)
    }

    fn training(&self) -> &Training {
        self.config.training()
    }

    fn banner(&self, data: &str, threads: usize) {
        let (training, schedule) = (self.training(), self.freeze.schedule());
        note(data);
        let count: usize = self.freeze.all().map(|(_, v)| v.elem_count()).sum();
        note(format!(
            "{}; {} parameters train; {} on {}",
            self.task.describe(),
            amount(count),
            training.device,
            counted(threads, "thread"),
        ));
        let changes = match schedule.changes().len() {
            0 => String::new(),
            _ => format!("; layers frozen from step on: {}", plan(schedule)),
        };
        note(format!(
            "{} of {}, {} each; learning rate {:.2e}{changes}",
            counted(training.epochs, "epoch"),
            counted(self.steps.per_epoch(), "step"),
            counted(training.batch_size * self.steps.largest(), "image"),
            schedule.lr,
        ));
        if self.step > 0 {
            note(format!("resuming after step {}", self.step));
        }
    }

    pub fn save_is_due(&self) -> bool {
        self.step > self.saved && self.step.is_multiple_of(self.save_every)
    }

    pub fn report(&mut self, stop: usize) -> Report {
        let (epochs, layers) = (self.training().epochs, self.task.layers());
        let rows = std::mem::take(&mut self.rows);
        Report::new(
            self.step,
            stop,
            epochs,
            self.steps.per_epoch(),
            layers,
            rows,
        )
    }

    /// Moves to `step`: freezes and unfreezes what is due.
    pub fn advance(&mut self, step: usize, report: &mut Report) -> Result<()> {
        if self.freeze.advance(step)? {
            self.model = self.task.model(self.freeze.vars())?;
            device::release_memory(&self.device);
        }
        let name = |layer| self.task.layer_name(layer);
        if let Some(what) = changed_layers(self.freeze.schedule(), step, name) {
            report.froze(step, &what, self.freeze.frozen());
        }
        Ok(())
    }
}
