//! A training in progress.
mod evaluation;
mod finish;
mod look;
mod step;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{bail, Context, Result};
use freezeout::{Change, Ema, FreezeOut, Optimizer, Schedule, Steps};

use super::feed::Feed;
use super::settings::TrainSettings as _;
use super::{Groups, RunArgs, Task, Training};
use crate::accuracy::Confusion;
use crate::console::{amount, counted, note};
use crate::machine::budget::always_frozen;
use crate::machine::workers::Workers;
use crate::machine::{device, Machine};
use crate::run::checkpoint::{self, Best, Checkpoint, Fingerprint};
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

/// A run to go on with: its folder, its state, and for the first worker its metrics.
type Resumed<T> = (PathBuf, Checkpoint<<T as Task>::Settings>, Option<Metrics>);

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
    machine: Machine,
    /// Of the first worker.
    metrics: Option<Metrics>,
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
    /// Whether there is one, which only the first worker has.
    waiting: bool,
    judged: Option<usize>,
    /// What the best evaluation took for what, until it is drawn.
    confused: Option<Confusion>,
    /// Damaged images told about.
    told: BTreeSet<usize>,
    /// The signal by which one of the workers was asked to stop.
    asked: Option<u8>,
    /// When the step began.
    started: Instant,
}

impl<T: Task> Run<T> {
    /// Checks everything, then makes or reads the run's folder.
    pub fn open(args: &RunArgs<T::Settings>, workers: &Workers) -> Result<Self> {
        let opened = Instant::now();
        let (config, resumed, machine) = workers.agree(Self::settle(args, workers))?;
        // What decides who talks to whom when.
        let fresh = args.resume.is_none();
        workers.check_same("--resume", u64::from(fresh))?;
        let stop = args.max_steps.map_or(0, u64::from);
        workers.check_same("--max-steps", stop)?;
        let machine = machine.connected()?;
        let workers = machine.workers.clone();
        let prepared = Self::prepare(config, resumed, machine);
        let (mut run, images) = workers.agree(prepared)?;
        run.check_alike()?;
        if fresh {
            workers.first_does(|| {
                run.dir = folder::claim(args.out.as_deref(), T::Settings::COMMAND)?;
                run.metrics = Some(Metrics::lock(&run.dir.join("metrics.jsonl"))?);
                Ok(())
            })?;
            let dir = workers.text_of_first(&run.dir.to_string_lossy())?;
            if !workers.first() {
                run.dir = dir.into();
            }
        }
        workers.first_does(|| {
            run.take_up()?;
            folder::start(&run.dir, &run.config, fresh, || {
                Ok(run.staged_checkpoint()?.commit()?)
            })?;
            if run.training().tensorboard && run.step < run.freeze.schedule().steps {
                let mut events = EventFile::open(&run.dir, run.step)?;
                events.text("config", run.step, &run.config.to_toml()?)?;
                run.events = Some(events);
            }
            Ok(())
        })?;
        // Only the first has the lines; all evaluate together.
        let mut judged = [run.judged.unwrap_or(0) as f64];
        workers.comm().all_reduce_f64(&mut judged)?;
        run.judged = Some(judged[0] as usize).filter(|&step| step > 0);
        run.seconds += opened.elapsed().as_secs_f64();
        run.banner(&images);
        Ok(run)
    }

    /// Reads the settings, and the run to go on with, and opens what it computes on.
    fn settle(
        args: &RunArgs<T::Settings>,
        workers: &Workers,
    ) -> Result<(T::Settings, Option<Resumed<T>>, Machine)> {
        let (config, resumed) = match &args.resume {
            Some(dir) => {
                let (config, checkpoint, metrics) =
                    folder::resume::<T::Settings>(dir, &args.flags, workers)?;
                (config, Some((dir.clone(), checkpoint, metrics)))
            }
            None => (T::Settings::new(args.config.as_deref(), &args.flags)?, None),
        };
        if let (Some(out), None) = (&args.out, &resumed) {
            folder::check_free(out)?;
        }
        let training = config.training();
        let machine = Machine::open(&training.device, training.threads, workers)?;
        Ok((config, resumed, machine))
    }

    /// Opens and checks everything; writes nothing. Gives what the images are as well.
    fn prepare(
        config: T::Settings,
        resumed: Option<Resumed<T>>,
        machine: Machine,
    ) -> Result<(Self, String)> {
        let (training, workers) = (config.training(), &machine.workers);
        let (mut task, images) = T::open(&config, &machine)?;
        let plan = training.plan(images.feed.batches_per_epoch(), workers.size())?;
        let (steps, schedule) = (plan.steps, task.schedule(&config, &plan)?);
        let budget = task.budget(&config, always_frozen(&schedule));
        budget.check_for(&machine.device, workers.local)?;
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
            let header = &checkpoint.header;
            let changes = header.changed_model(task.about()?)?;
            if !changes.is_empty() {
                return Err(usage(format!(
                    "the run began with another model ({}): resume it with the checkpoint that it began with",
                    changes.join(", ")
                )));
            }
            let then = header.config.training();
            let batches = images.count / (then.batch_size * header.workers);
            let before = then.plan(batches, header.workers)?;
            if header.workers != workers.size() && !before.has_the_steps_of(&plan) {
                return Err(usage(format!(
                    "{} made {} of these {}, {} would make {}: the last images of an epoch are shared differently; use another --batch-size with the same product",
                    counted(header.workers, "worker"),
                    counted(before.steps.total(), "step"),
                    counted(images.count, "image"),
                    counted(workers.size(), "worker"),
                    counted(plan.steps.total(), "step"),
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
        if resumed.is_none() {
            task.begin(&vars)?;
        }
        let mut freeze = FreezeOut::new(&vars, schedule, |name| task.layer_of(name))?;
        match config.policy() {
            // It goes on from its own state.
            Some(policy) => freeze = policy.decide(freeze),
            None => drop(freeze.advance(step)?),
        }
        if task.warns() {
            freeze = freeze.on_warning(|text| note(format!("warning: {text}")));
        }
        let mut ema = match config.ema() {
            Some(decay) => Some(Ema::new(&freeze, decay).map_err(usage)?),
            None => None,
        };
        let mut opt = task.optimizer(&config).groups(task.groups(&config));
        let (dir, metrics) = match resumed {
            Some((dir, checkpoint, metrics)) => {
                checkpoint
                    .restore(&mut freeze, &mut opt, ema.as_mut())
                    .with_context(|| checkpoint_path(&dir).display().to_string())?;
                (dir, metrics)
            }
            None => (PathBuf::new(), None),
        };
        let mut layers: Vec<Option<usize>> = (0..task.layers()).map(Some).collect();
        if freeze.all().any(|(name, _)| task.layer_of(name).is_none()) {
            layers.push(None);
        }
        let run = Self {
            layers,
            save_every: training.save_every.unwrap_or(steps.per_epoch()),
            model: task.model(freeze.vars(), step)?,
            groups: task.groups(&config),
            data: images.fingerprint,
            feed: Arc::new(images.feed),
            told: BTreeSet::new(),
            saved: step,
            staged: None,
            waiting: false,
            dir,
            config,
            task,
            steps,
            freeze,
            opt,
            ema,
            machine,
            metrics,
            events: None,
            rows: Vec::new(),
            best,
            seconds: 0.0,
            step,
            judged: None,
            confused: None,
            asked: None,
            started: Instant::now(),
        };
        Ok((run, images.description))
    }

    /// Refuses workers that would not train the same: with settings, images or a checkpoint of their own.
    fn check_alike(&self) -> Result<()> {
        let workers = &self.machine.workers;
        if workers.size() == 1 {
            return Ok(());
        }
        let first = workers.text_of_first(&serde_json::to_string(&self.config)?)?;
        let differences = serde_json::from_str(&first)
            .map_err(anyhow::Error::from)
            .and_then(|first| self.config.differences(&first));
        workers.agree(differences.and_then(|lines| match lines.is_empty() {
            true => Ok(()),
            false => Err(usage(format!(
                "this worker has other settings than worker 1 ({}); all workers need the same",
                lines.join(", ")
            ))),
        }))?;
        workers.check_same("--save-every", self.save_every as u64)?;
        workers.check_same("images", self.data.hash())?;
        let state = freezeout::checkpoint::collect(&self.freeze, &self.opt, self.ema.as_ref())?;
        workers.check_same("weights", checkpoint::hash_of(&state)?)
    }

    /// Takes up the lines of earlier sessions.
    fn take_up(&mut self) -> Result<()> {
        let Some(metrics) = &mut self.metrics else {
            return Ok(());
        };
        for line in metrics.take_up(self.step)? {
            match line {
                Logged::Step(row) => {
                    self.seconds += row.seconds.total;
                    self.rows.push(row);
                }
                Logged::Evaluation(line) => {
                    self.seconds += line.seconds;
                    self.judged = Some(line.step + 1);
                }
            }
        }
        Ok(())
    }

    fn training(&self) -> &Training {
        self.config.training()
    }

    fn banner(&self, data: &str) {
        let (training, schedule) = (self.training(), self.freeze.schedule());
        let images = counted(self.images(self.steps.largest()), "image");
        let workers = self.machine.workers.size();
        if workers > 1 {
            let batch = training.batch_size;
            note(format!(
                "{workers} workers with batches of {batch}, {images} a step: learning rate {:.2e}",
                schedule.lr
            ));
        }
        note(data);
        let count: usize = self.freeze.all().map(|(_, v)| v.elem_count()).sum();
        note(format!(
            "{}; {} parameters train; {} on {}",
            self.task.describe(),
            amount(count),
            training.device,
            counted(self.machine.threads, "thread"),
        ));
        let changes = match (self.config.policy(), schedule.changes().len()) {
            (Some(policy), _) => format!("; layers are frozen by {policy}"),
            (None, 0) => String::new(),
            _ => format!("; layers frozen from step on: {}", plan(schedule)),
        };
        note(format!(
            "{} of {}, {images} each; learning rate {:.2e}{changes}",
            counted(training.epochs, "epoch"),
            counted(self.steps.per_epoch(), "step"),
            schedule.lr,
        ));
        if self.step > 0 {
            note(format!("resuming after step {}", self.step));
        }
    }

    /// Images of so many batches of all workers.
    fn images(&self, batches: usize) -> usize {
        batches * self.training().batch_size * self.machine.workers.size()
    }

    pub fn save_is_due(&self) -> bool {
        self.step > self.saved && self.step.is_multiple_of(self.save_every)
    }

    pub fn report(&mut self, stop: usize) -> Report {
        let (epochs, layers) = (self.training().epochs, self.task.layers());
        let rows = std::mem::take(&mut self.rows);
        let per_epoch = self.steps.per_epoch();
        Report::new(self.step, stop, epochs, per_epoch, layers, rows).with_work(self.task.work())
    }

    /// Moves to `step`: freezes and unfreezes what is due, and takes larger images where these begin.
    pub fn advance(&mut self, step: usize, report: &mut Report) -> Result<()> {
        let schedule = self.freeze.schedule();
        let before = match self.config.policy() {
            Some(_) => self.freeze.frozen(),
            // A run made or resumed at this step has frozen its layers already.
            None => schedule.frozen(step.saturating_sub(1)),
        };
        let size = self.task.image_size(step);
        let grown = size.filter(|_| step > 0 && size != self.task.image_size(step - 1));
        if self.freeze.advance(step)? || grown.is_some() {
            self.model = self.task.model(self.freeze.vars(), step)?;
            self.opt.forget_frozen(&self.freeze);
            device::release_memory(&self.machine.device);
        }
        if let Some(size) = grown {
            report.say(format!("step {step}: images of {size} px from here on"));
        }
        let name = |layer| self.task.layer_name(layer);
        if let Some(what) = changed_layers(before, self.freeze.frozen(), name) {
            report.froze(step, &what, self.freeze.frozen());
        }
        Ok(())
    }
}
