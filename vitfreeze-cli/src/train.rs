//! Training a classifier: the loop that `finetune` and `linprobe` share.
mod backbone;
mod feed;
mod run;
mod settings;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use candle_core::{Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use datasets::Batch;
use freezeout::{Group, Optimizer, Param, Schedule};
use vit::Pretrained;

use crate::input::splits::Data;
pub use backbone::{load_encoder, Encoder};
pub use feed::{Features, Feed};
pub use settings::{Pool, TrainSettings, Training, TrainingFlags, FREE_KEYS};

use crate::accuracy::Accuracy;
use crate::machine::budget::Budget;
use crate::machine::interrupt;
use crate::run::folder;
use crate::run::metrics::NotFinite;
use crate::run::report::Report;
use crate::settings::Settings;
use run::Run;

/// What is trained.
pub trait Task: Sized {
    type Settings: TrainSettings;
    type Model;

    /// Loads the encoder, opens the data, draws the first weights and checks everything; writes nothing.
    fn open(config: &Self::Settings, device: &Device, threads: usize) -> Result<(Self, Start)>;

    /// What it is, in a line.
    fn describe(&self) -> String;

    /// Number of layers that can freeze.
    fn layers(&self) -> usize;

    /// Which of them a variable belongs to; `None` trains to the end.
    fn layer_of(&self, name: &str) -> Option<usize>;

    /// What a layer is called.
    fn layer_name(&self, layer: usize) -> String;

    /// The schedule: `plain` has warm-up and decay of the learning rate and freezes nothing.
    fn schedule(&self, config: &Self::Settings, plain: Schedule) -> Result<Schedule>;

    /// The memory that it needs; the first `frozen` layers never train.
    fn budget(&self, config: &Self::Settings, frozen: usize) -> Budget;

    /// The optimiser, but for its groups.
    fn optimizer(&self, config: &Self::Settings) -> Optimizer;

    /// Rate and weight decay by variable.
    fn groups(&self, config: &Self::Settings) -> Groups;

    /// The model from these variables: live ones, or plain tensors to be evaluated.
    fn model(&self, vb: VarBuilder) -> Result<Self::Model>;

    /// The mean loss of a batch, while training.
    fn loss(&self, model: &Self::Model, batch: Batch) -> Result<Tensor>;

    /// Judges a model of plain tensors on the validation split.
    fn evaluate(&self, model: &Self::Model) -> Result<Accuracy>;

    /// A classifier of these weights, to be saved.
    fn classifier(&self, weights: &BTreeMap<String, Tensor>) -> Result<Pretrained>;
}

/// Rate and weight decay by variable.
pub type Groups = Box<dyn Fn(&Param<'_>) -> Group + Send>;

/// What a training starts from.
pub struct Start {
    pub data: Data,
    pub feed: Feed,
    pub vars: VarMap,
}

/// Flags beside the settings.
#[derive(clap::Args)]
pub struct RunArgs<F: clap::Args> {
    #[command(flatten)]
    pub flags: F,
    /// TOML file with the same keys as the flags; flags win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder for the run's files [default: runs/COMMAND-N, the next free N]
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    pub out: Option<PathBuf>,
    /// Go on with the run in this folder
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub resume: Option<PathBuf>,
    /// Stop after this many optimiser steps of the whole run; the schedule stays that of the whole run
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_steps: Option<u32>,
}

/// Trains.
pub fn run<T: Task>(args: &RunArgs<<T::Settings as Settings>::Flags>) -> Result<ExitCode> {
    let mut run = Run::<T>::open(args)?;
    let steps = run.freeze.schedule().steps;
    let stop = args.max_steps.map_or(steps, |n| steps.min(n as usize));
    let mut report: Report = run.report(stop);
    interrupt::listen()?;
    let feed = run.feed.clone();
    let mut batches = feed.stream(run.epoch(), run.first_batch());
    run.catch_up(&report)?;
    for step in run.step..stop {
        run.advance(step, &mut report)?;
        let gradients = run.gradients(step, &mut batches, &report);
        // A checkpoint waits for its name until this step's loss has proved its weights good.
        if !gradients.as_ref().is_err_and(|e| e.is::<NotFinite>()) {
            run.commit()?;
        }
        let (row, grads) = gradients?;
        report.step(run.update(row, &grads)?);
        if run.evaluation_is_due() {
            run.evaluate(&report)?;
        }
        let interrupted = interrupt::asked();
        if interrupted || run.step == stop {
            run.save()?;
        } else if run.save_is_due() {
            run.stage()?;
        }
        if interrupted && run.step < stop {
            report.close();
            folder::say_stopped(T::Settings::COMMAND, &run.dir, run.step, steps);
            return Ok(ExitCode::from(interrupt::exit_code()));
        }
    }
    report.close();
    run.finish(&report)
}
