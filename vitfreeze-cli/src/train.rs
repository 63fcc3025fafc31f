//! Training: the loop of all commands that train.
mod adaptive;
mod backbone;
mod feed;
mod pace;
mod run;
mod settings;
mod supervised;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, Result};
use candle_core::Tensor;
use candle_nn::{VarBuilder, VarMap};
use datasets::Batch;
use freezeout::{Group, Optimizer, Param, Schedule};
use serde_json::Value;

pub use adaptive::Adaptive;
pub use backbone::{load_encoder, Encoder};
pub use feed::{Features, Feed};
pub use pace::Pace;
pub use settings::{check_batch, Plan, TrainSettings, Training};
pub use supervised::{Pool, Supervised};

use crate::accuracy::Accuracy;
use crate::console::note;
use crate::draw::Svg;
use crate::machine::budget::Budget;
use crate::machine::workers::{self, Workers};
use crate::machine::{interrupt, Machine};
use crate::run::checkpoint::Fingerprint;
use crate::run::report::Report;
use crate::run::work::Work;
use crate::settings::{Given, Settings};
use crate::watch::Inside;
use run::Run;

/// What is trained.
pub trait Task: Sized {
    type Settings: TrainSettings;
    type Model;

    /// The file of the trained weights, and what it is.
    const EXPORT: (&'static str, &'static str);

    /// Opens the data and what else is read, and checks everything; writes nothing.
    fn open(config: &Self::Settings, machine: &Machine) -> Result<(Self, Images)>;

    /// What it is, in a line.
    fn describe(&self) -> String;

    /// Number of layers that can freeze.
    fn layers(&self) -> usize;

    /// Which of them a variable belongs to; `None` trains to the end.
    fn layer_of(&self, name: &str) -> Option<usize>;

    /// What a layer is called.
    fn layer_name(&self, layer: usize) -> String;

    /// What freezes when.
    fn schedule(&self, config: &Self::Settings, plan: &Plan) -> Result<Schedule>;

    /// The memory that is still to be taken; the first `frozen` layers never train.
    fn budget(&self, config: &Self::Settings, frozen: usize) -> Budget;

    /// The first weights.
    fn vars(&mut self) -> Result<VarMap>;

    /// Puts what a new run begins with in the places of first weights; one that is gone on with has its own.
    fn begin(&self, _vars: &VarMap) -> Result<()> {
        Ok(())
    }

    /// Whether to tell that what stays live keeps frozen layers in the graph.
    fn warns(&self) -> bool {
        true
    }

    /// The optimiser, but for its groups.
    fn optimizer(&self, config: &Self::Settings) -> Optimizer;

    /// Rate and weight decay by variable.
    fn groups(&self, _config: &Self::Settings) -> Groups {
        Box::new(Group::of)
    }

    /// The model from these variables, live ones, or plain tensors to be evaluated, as it is in this step.
    fn model(&self, vb: VarBuilder, step: usize) -> Result<Self::Model>;

    /// Side of the images of a step, where it changes during the run; the model is then made anew.
    fn image_size(&self, _step: usize) -> Option<usize> {
        None
    }

    /// How much of the run's work its steps are.
    fn work(&self) -> Work {
        Work::even()
    }

    /// Whether the loss needs what the other workers compute at the same time.
    const TOGETHER: bool = false;

    /// The mean loss of a batch, while training.
    fn loss(&self, model: &Self::Model, batch: Batch) -> Result<Loss>;

    /// Whether there is a validation split, that is, [`evaluate`](Task::evaluate).
    const EVALUATES: bool;

    /// Evaluates a model of plain tensors on this worker's part of the validation split.
    fn evaluate(&self, _model: &Self::Model) -> Result<Accuracy> {
        bail!("there is no validation split")
    }

    /// Pictures of what a model of plain tensors makes of a few images after so many epochs, where the
    /// first `frozen` layers are frozen.
    fn look(&self, _model: &Self::Model, _epochs: usize, _frozen: usize) -> Result<Vec<Seen>> {
        Ok(Vec::new())
    }

    /// Names of the classes, for who evaluates.
    fn classes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Writes these weights for others to use.
    fn export(&self, weights: &BTreeMap<String, Tensor>, path: &Path) -> Result<()>;

    /// What stands beside exported weights, [`vit::Pretrained::metadata`], where the state has a whole model's.
    fn about(&self) -> Result<Option<Value>> {
        Ok(None)
    }

    /// Commands to go on with after a run in this folder, written as a shell takes it.
    fn next(&self, dir: &str) -> Vec<String>;
}

/// Rate and weight decay by variable.
pub type Groups = Box<dyn Fn(&Param<'_>) -> Group + Send>;

/// The images of a training.
pub struct Images {
    pub feed: Feed,
    /// How many train.
    pub count: usize,
    /// To notice other ones.
    pub fingerprint: Fingerprint,
    /// What they are, in a line for each split.
    pub description: String,
}

/// A picture of what a model makes of images.
pub struct Seen {
    /// The file's name, without `.png`, and what TensorBoard calls it.
    pub file: String,
    pub tag: &'static str,
    pub svg: Svg,
}

/// The loss of a batch.
pub struct Loss {
    pub total: Tensor,
    /// Of a LocalMIM model, each stage's own; `None` once it is frozen.
    pub stages: Vec<Option<Tensor>>,
}

/// How to go on with the classifier of a run.
pub fn with_a_classifier(dir: &str) -> Vec<String> {
    vec![
        format!("vitfreeze eval --checkpoint {dir}    accuracy by class, on this run's data"),
        format!("vitfreeze classify --checkpoint {dir} IMAGE..."),
    ]
}

impl From<Tensor> for Loss {
    fn from(total: Tensor) -> Self {
        let stages = Vec::new();
        Self { total, stages }
    }
}

/// Flags beside the settings.
#[derive(clap::Args)]
pub struct RunArgs<S: Settings> {
    #[command(flatten)]
    pub flags: Given<S>,
    /// TOML file with the same keys as the flags; flags win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder for the run's files [default: runs/COMMAND-N, the next free N]
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    pub out: Option<PathBuf>,
    /// Continue the run in this folder
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub resume: Option<PathBuf>,
    /// Each worker has a batch of its own
    #[command(flatten)]
    pub workers: workers::Flags,
    /// Draw what 'vitfreeze watch' draws, instead of the progress line
    #[arg(long)]
    pub watch: bool,
    /// Stop after this many optimiser steps of the whole run; the schedule stays that of the whole run
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_steps: Option<u32>,
}

/// Trains, together with the other workers that a launcher has started.
pub fn run<T: Task>(args: &RunArgs<T::Settings>) -> Result<ExitCode> {
    workers::together(&args.workers, |workers| train::<T>(args, workers))
}

fn train<T: Task>(args: &RunArgs<T::Settings>, workers: &Workers) -> Result<ExitCode> {
    let mut run = Run::<T>::open(args, workers)?;
    let steps = run.freeze.schedule().steps;
    let stop = args.max_steps.map_or(steps, |n| steps.min(n as usize));
    let view = match args.watch && run.step < stop {
        true => Inside::open(&run.dir),
        false => None,
    };
    let mut report: Report = run.report(stop);
    interrupt::listen()?;
    let feed = run.feed.clone();
    let mut batches = feed.stream(run.steps.epoch(run.step), run.steps.first_batch(run.step));
    run.catch_up(&report)?;
    for step in run.step..stop {
        run.advance(step, &mut report)?;
        let gradients = run.gradients(step, &mut batches, &report);
        // A checkpoint waits for its name until this step's loss has proved its weights good.
        if !gradients.as_ref().is_err_and(|e| run.ruined(e)) {
            run.commit()?;
        }
        let (row, grads) = gradients?;
        report.step(run.update(row, &grads)?);
        if run.evaluation_is_due() {
            run.evaluate(&report)?;
        }
        run.look(&report);
        let asked = run.asked();
        if asked.is_some() || run.step == stop {
            run.save()?;
        } else if run.save_is_due() {
            run.stage()?;
        }
        if let (Some(signal), true) = (asked, run.step < stop) {
            drop(view);
            report.close();
            note(format!(
                "saved after step {} of {steps}; to continue:",
                run.step
            ));
            note(format!("  {}", run.resume_command()));
            return Ok(ExitCode::from(128 + signal));
        }
    }
    drop(view);
    report.close();
    run.finish(&report)
}
