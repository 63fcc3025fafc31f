//! A training in progress.
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{bail, Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use datasets::Batch;
use freezeout::{Change, Ema, FreezeOut, Gradients, Optimizer, Param, Schedule};
use serde::{Deserialize, Serialize};

use super::feed::Feed;
use super::settings::TrainSettings as _;
use super::{Groups, RunArgs, Start, Task, Training};
use crate::accuracy::Accuracy;
use crate::checkpoint::{self, Best, Fingerprint, Header};
use crate::folder::{self, checkpoint_path, quoted};
use crate::metrics::{timed, Line, Metrics, Row, Seconds};
use crate::report::{changed_layers, note, print, Report};
use crate::result::{self, RunResult};
use crate::settings::Settings;
use crate::tensorboard::EventFile;
use crate::usage::usage;
use crate::{allocator, device};

/// A line of metrics.jsonl: a step, or the evaluation after it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Logged {
    Step(Row),
    Evaluation(Evaluation),
}

/// An evaluation on the validation split; accuracies in percent.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Evaluation {
    /// Steps done before the one that it follows.
    step: usize,
    epoch: usize,
    top1: f64,
    top5: f64,
    loss: f64,
    /// The same of the weights' moving average.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ema_top1: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ema_top5: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ema_loss: Option<f64>,
    images: usize,
    seconds: f64,
}

impl Line for Logged {
    fn step(&self) -> usize {
        match self {
            Self::Step(row) => row.step,
            Self::Evaluation(evaluation) => evaluation.step,
        }
    }
}

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
    steps_per_epoch: usize,
    pub freeze: FreezeOut,
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
    /// Wall time of all steps and evaluations.
    seconds: f64,
    /// Optimiser steps done, those of the latest checkpoint, and those of the latest evaluation.
    pub step: usize,
    saved: usize,
    judged: Option<usize>,
    /// Damaged images told about.
    told: BTreeSet<usize>,
}

impl<T: Task> Run<T> {
    /// Checks everything, then makes or reads the run's folder.
    pub fn open(args: &RunArgs<<T::Settings as Settings>::Flags>) -> Result<Self> {
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
        let (task, Start { data, feed, vars }) = T::open(&config, &device, threads)?;
        let per_epoch = feed.batches_per_epoch();
        if per_epoch == 0 {
            return Err(usage(format!(
                "batch-size {} is larger than the {} training images",
                training.batch_size,
                data.train.len()
            )));
        }
        let plain = training.schedule(per_epoch, task.layers())?;
        let schedule = task.schedule(&config, plain)?;
        let (mut step, mut best) = (0, None);
        if let Some((_, checkpoint, _)) = &resumed {
            (step, best) = (checkpoint.header.step, checkpoint.header.best);
            if checkpoint.header.data.weights != data.fingerprint.weights {
                return Err(usage(format!(
                    "{} has other weights now than when the run began",
                    training.checkpoint.as_deref().unwrap_or_default()
                )));
            }
            if checkpoint.header.data != data.fingerprint {
                return Err(usage(format!(
                    "the run was made with other images than {} has now",
                    training.data
                )));
            }
            if step > schedule.steps {
                bail!(
                    "the checkpoint is of step {step}, the run has {} steps",
                    schedule.steps
                );
            }
        }

        let mut freeze = FreezeOut::new(&vars, schedule, |name| task.layer_of(name))?
            .on_warning(|text| note(format!("warning: {text}")));
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
        let (mut rows, mut seconds, mut judged) = (Vec::new(), 0.0, None);
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
        let events = match training.tensorboard {
            true => Some(EventFile::open(&dir, step)?),
            false => None,
        };
        let steps_per_epoch = per_epoch.div_ceil(training.accum);
        let run = Self {
            save_every: training.save_every.unwrap_or(steps_per_epoch),
            model: task.model(freeze.vars())?,
            groups: task.groups(&config),
            data: data.fingerprint,
            feed: Arc::new(feed),
            told: BTreeSet::new(),
            saved: step,
            dir,
            config,
            task,
            steps_per_epoch,
            freeze,
            opt,
            ema,
            device,
            metrics,
            events,
            rows,
            best,
            seconds,
            step,
            judged,
        };
        folder::start(&run.dir, &run.config, fresh, || run.write_checkpoint())?;
        run.banner(&data.describe(), threads);
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
            "{}; {:.2} M parameters train; {} on {threads} threads",
            self.task.describe(),
            count as f64 / 1e6,
            training.device,
        ));
        let changes = match schedule.changes().len() {
            0 => String::new(),
            _ => format!("; layers frozen from step on: {}", plan(schedule)),
        };
        note(format!(
            "{} epochs of {} steps, {} images each; learning rate {:.2e}{changes}",
            training.epochs,
            self.steps_per_epoch,
            training.batch_size * training.accum.min(self.feed.batches_per_epoch()),
            schedule.lr,
        ));
        if self.step > 0 {
            note(format!("resuming after step {}", self.step));
        }
    }

    pub fn report(&mut self, stop: usize) -> Report {
        let (epochs, layers) = (self.training().epochs, self.task.layers());
        let rows = std::mem::take(&mut self.rows);
        Report::new(self.step, stop, epochs, self.steps_per_epoch, layers, rows)
    }

    /// The epoch of the next step.
    pub fn epoch(&self) -> usize {
        self.step / self.steps_per_epoch
    }

    /// The next step's first batch in its epoch.
    pub fn first_batch(&self) -> usize {
        self.step % self.steps_per_epoch * self.training().accum
    }

    /// Moves to `step`: freezes and unfreezes what is due.
    pub fn advance(&mut self, step: usize, report: &mut Report) -> Result<()> {
        if self.freeze.advance(step)? {
            self.model = self.task.model(self.freeze.vars())?;
            allocator::release_memory();
        }
        let name = |layer| self.task.layer_name(layer);
        if let Some(what) = changed_layers(self.freeze.schedule(), step, name) {
            report.froze(step, &what, self.freeze.frozen());
        }
        Ok(())
    }

    /// One optimiser step on the mean gradient of its batches.
    pub fn train(
        &mut self,
        step: usize,
        batches: &mut dyn Iterator<Item = Result<Batch>>,
        report: &Report,
    ) -> Result<Row> {
        let started = Instant::now();
        let (training, schedule) = (self.config.training(), self.freeze.schedule());
        let micro = training
            .accum
            .min(self.feed.batches_per_epoch() - self.first_batch());
        let rate = |layer| {
            let group = (self.groups)(&Param {
                name: "",
                layer,
                dims: &[],
            });
            schedule.lr(step, layer) * group.lr_scale
        };
        let mut row = Row {
            step,
            epoch: self.epoch(),
            loss: 0.0,
            stage_losses: Vec::new(),
            lr: (0..schedule.layers)
                .map(Some)
                .chain([None])
                .map(rate)
                .collect(),
            frozen: self.freeze.frozen(),
            graph_nodes: 0,
            grad_norm: None,
            images: micro * training.batch_size,
            images_per_second: 0.0,
            seconds: Seconds::default(),
        };
        let mut grads = Gradients::default();
        for _ in 0..micro {
            let batch = timed(&mut row.seconds.data, || batches.next());
            report.tell_skipped(&mut self.told, self.feed.skipped());
            let batch = batch.context("the loader ended early")??;
            let loss = timed(&mut row.seconds.forward, || {
                self.task.loss(&self.model, batch)
            })?;
            let value = f64::from(loss.to_scalar::<f32>()?);
            if !value.is_finite() {
                bail!(
                    "step {step}: the loss is {value} at learning rate {:.3e}; {} still holds step {}; start again with a lower --lr",
                    row.lr.iter().copied().fold(0.0, f64::max),
                    checkpoint_path(&self.dir).display(),
                    self.saved,
                );
            }
            row.loss += value / micro as f64;
            let part = match micro {
                1 => loss,
                _ => (loss * (1.0 / micro as f64))?,
            };
            row.graph_nodes = part.sorted_nodes().len();
            grads.add(timed(&mut row.seconds.backward, || {
                self.freeze.backward(&part)
            })?)?;
        }
        row.grad_norm = timed(&mut row.seconds.optimizer, || -> Result<_> {
            let norm = self.opt.step(&self.freeze, step, &grads)?;
            if let Some(ema) = &mut self.ema {
                ema.update(&self.freeze)?;
            }
            Ok(norm)
        })?;
        row.seconds.total = started.elapsed().as_secs_f64();
        row.images_per_second = row.images as f64 / row.seconds.total;
        self.seconds += row.seconds.total;
        self.log_step(&row)?;
        self.step = step + 1;
        Ok(row)
    }

    fn log_step(&mut self, row: &Row) -> Result<()> {
        self.metrics.write(row)?;
        let Some(events) = &mut self.events else {
            return Ok(());
        };
        events.scalar("train/loss", row.step, row.loss)?;
        for (layer, &lr) in row.lr.iter().enumerate() {
            events.scalar(&format!("lr/layer_{layer:02}"), row.step, lr)?;
        }
        if let Some(norm) = row.grad_norm {
            events.scalar("train/grad_norm", row.step, norm)?;
        }
        events.scalar("frozen", row.step, row.frozen as f64)?;
        events.scalar("images_per_second", row.step, row.images_per_second)
    }

    /// Whether the steps done end an epoch after which there is an evaluation.
    pub fn evaluation_is_due(&self) -> bool {
        let done = self.step / self.steps_per_epoch;
        self.step.is_multiple_of(self.steps_per_epoch)
            && (done.is_multiple_of(self.training().eval_every) || done == self.training().epochs)
    }

    /// Evaluates, logs, and keeps the best. Part of the step before, so that a resumed run has the same lines and files.
    pub fn evaluate(&mut self, report: &Report) -> Result<()> {
        let step = self.step.saturating_sub(1);
        let (evaluation, told) = report.pause(|| self.judge(step))?;
        self.metrics
            .write(&Logged::Evaluation(evaluation.clone()))?;
        self.seconds += evaluation.seconds;
        self.judged = Some(self.step);
        let result = self.counted(&evaluation);
        if self.best.is_none_or(|best| result.top1 > best.top1) {
            self.best = Some(result);
            self.export("best.safetensors")?;
        }
        report.say(told);
        let Some(events) = &mut self.events else {
            return Ok(());
        };
        let e = evaluation;
        let scalars = [
            ("val/top1", Some(e.top1)),
            ("val/top5", Some(e.top5)),
            ("val/loss", Some(e.loss)),
            ("val/ema_top1", e.ema_top1),
            ("val/ema_top5", e.ema_top5),
            ("val/ema_loss", e.ema_loss),
        ];
        for (tag, value) in scalars {
            if let Some(value) = value {
                events.scalar(tag, step, value)?;
            }
        }
        events.flush()
    }

    /// The weights, and their average, on the validation split, and a line that says it.
    fn judge(&self, step: usize) -> Result<(Evaluation, String)> {
        let started = Instant::now();
        let judge = |vb| -> Result<Accuracy> { self.task.evaluate(&self.task.model(vb)?) };
        // Plain tensors: an evaluation records no graph.
        let weights = checkpoint::weights(&self.freeze).into_iter().collect();
        let own = judge(VarBuilder::from_tensors(weights, DType::F32, &self.device))?;
        let average = self.ema.as_ref().map(|ema| judge(ema.vars())).transpose()?;
        if !own.loss().is_finite() {
            bail!(
                "after step {step} the validation loss is {}; start again with a lower --lr",
                own.loss()
            );
        }
        let evaluation = Evaluation {
            step,
            epoch: step / self.steps_per_epoch,
            top1: own.top1(),
            top5: own.top5(),
            loss: own.loss(),
            ema_top1: average.as_ref().map(Accuracy::top1),
            ema_top5: average.as_ref().map(Accuracy::top5),
            ema_loss: average.as_ref().map(Accuracy::loss),
            images: own.images(),
            seconds: started.elapsed().as_secs_f64(),
        };
        let say = |a: &Accuracy| {
            let (top1, top5, loss) = (a.top1(), a.top5(), a.loss());
            format!("top-1 {top1:.2} %, top-5 {top5:.2} %, loss {loss:.4}")
        };
        let mut told = format!(
            "epoch {}/{}: {} on {} validation images",
            evaluation.epoch + 1,
            self.training().epochs,
            say(&own),
            own.images()
        );
        if let Some(average) = &average {
            told += &format!("; moving average {}", say(average));
        }
        Ok((evaluation, told))
    }

    /// The numbers that count: of the average, where there is one.
    fn counted(&self, e: &Evaluation) -> Best {
        Best {
            epoch: e.epoch,
            top1: e.ema_top1.unwrap_or(e.top1),
            top5: e.ema_top5.unwrap_or(e.top5),
            loss: e.ema_loss.unwrap_or(e.loss),
            images: e.images,
        }
    }

    /// Writes the classifier (of the average, where there is one) into the run's folder.
    fn export(&self, name: &str) -> Result<()> {
        let weights: BTreeMap<String, Tensor> = match &self.ema {
            Some(ema) => ema.tensors().clone(),
            None => checkpoint::weights(&self.freeze),
        };
        self.task
            .classifier(&weights)?
            .save_file(&self.dir.join(name))?;
        Ok(())
    }

    pub fn save(&mut self) -> Result<()> {
        self.metrics.flush()?;
        if let Some(events) = &mut self.events {
            events.flush()?;
        }
        self.write_checkpoint()
            .map_err(|e| folder::untouched(e, T::Settings::COMMAND, &self.dir, self.saved))?;
        self.saved = self.step;
        Ok(())
    }

    fn write_checkpoint(&self) -> Result<()> {
        let header = Header::new(&self.config, self.step, self.data, self.best);
        let path = checkpoint_path(&self.dir);
        checkpoint::save(&path, &header, &self.freeze, &self.opt, self.ema.as_ref())
    }

    /// Exports the last classifier, writes result.json and says what there is now.
    pub fn finish(mut self, report: &Report) -> Result<ExitCode> {
        self.export("last.safetensors")?;
        print(report.summary().trim_end())?;
        let mut result = self.best;
        if self.judged != Some(self.step) {
            // Stopped inside an epoch: told, but no evaluation of the whole run.
            let (evaluation, told) = self.judge(self.step.saturating_sub(1))?;
            self.seconds += evaluation.seconds;
            print(format!("  after step {}: {told}", self.step))?;
            result = result.or(Some(self.counted(&evaluation)));
        }
        if let Some(best) = self.best {
            print(format!(
                "  best: top-1 {:.2} %, top-5 {:.2} % after epoch {}",
                best.top1,
                best.top5,
                best.epoch + 1
            ))?;
        }
        let written = RunResult {
            kind: T::Settings::COMMAND.into(),
            top1: result.map(|r| r.top1),
            top5: result.map(|r| r.top5),
            loss: result.map(|r| r.loss),
            best_epoch: self.best.map(|b| b.epoch),
            images: result.map_or(0, |r| r.images),
            seconds: self.seconds,
            settings: serde_json::to_value(&self.config)?,
            versions: result::versions(),
        };
        result::write(&self.dir, &written)?;
        let skipped = self.feed.skipped().len();
        if skipped > 0 {
            print(format!("  {skipped} damaged image(s) skipped"))?;
        }
        let dir = quoted(&self.dir);
        print(format!("Files in {}:", self.dir.display()))?;
        if self.best.is_some() {
            print("  best.safetensors        the classifier of the best epoch")?;
        }
        print("  last.safetensors        the classifier as it is now")?;
        print(format!(
            "  checkpoint.safetensors  the training state after step {}",
            self.step
        ))?;
        print("  metrics.jsonl           one line per step and per evaluation")?;
        print("  result.json             accuracy, settings, seconds, versions")?;
        print("  config.toml             every number of this run")?;
        print("Next:")?;
        let left = self.freeze.schedule().steps - self.step;
        if left > 0 {
            let command = T::Settings::COMMAND;
            print(format!(
                "  vitfreeze {command} --resume {dir}    the other {left} steps"
            ))?;
        }
        print(format!("  vitfreeze classify --checkpoint {dir} IMAGE..."))?;
        Ok(ExitCode::SUCCESS)
    }
}
