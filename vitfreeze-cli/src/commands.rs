//! The subcommands, one file each.
mod bench;
mod classify;
mod compare;
mod completions;
mod convert;
mod data;
mod embed;
pub mod eval;
mod features;
mod finetune;
mod inspect;
mod knn;
mod linprobe;
mod man;
pub mod pretrain;
mod reconstruct;
pub mod report;
mod schedule;
mod study;
mod watch;

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Command {
    /// Pretrain a ViT: LocalMIM under FreezeOut (without arguments: a two-minute demonstration)
    Pretrain(Box<pretrain::Args>),
    /// Fine-tune an encoder into a classifier (or train one from scratch)
    Finetune(Box<finetune::Args>),
    /// Train a linear classifier on an encoder's features
    Linprobe(Box<linprobe::Args>),
    /// Evaluate an encoder's features by their nearest neighbours (k-NN); trains nothing
    Knn(Box<knn::Args>),
    /// Evaluate a classifier: top-1, top-5, loss, accuracy by class, confusion matrix, predictions
    Eval(Box<eval::Args>),
    /// Print runs side by side and draw accuracy against wall time
    Compare(compare::Args),
    /// Write a report of runs, as one page (.html) or picture: loss, seconds per step, rates, phases
    Report(report::Args),
    /// Follow a run on a terminal: loss, speed, frozen layers, time left
    Watch(watch::Args),
    /// Compare freezing with training less for the same time, over variants and seeds
    Study(study::Args),
    /// Time the training step with more and more layers frozen
    Bench(bench::Args),
    /// Print and draw what a freezing schedule will do; trains nothing
    Schedule(Box<schedule::Args>),
    /// Draw what a pretraining run predicts of patches it does not see, beside the targets
    Reconstruct(reconstruct::Args),
    /// Show what a checkpoint is: family, architecture, tensors, norms, NaNs
    Inspect(inspect::Args),
    /// Write a checkpoint of any family as a folder that timm or transformers loads
    Convert(convert::Args),
    /// Compute the features of a folder of images
    Embed(embed::Args),
    /// Draw an encoder's features: as colours, attention by head, a map of all images
    Features(features::Args),
    /// Name the likeliest classes of images
    Classify(classify::Args),
    /// Look at a dataset, cache it, time its loader
    Data(data::Args),
    /// Print what a shell needs to complete commands and flags
    Completions(completions::Args),
    /// Write manual pages
    Man(man::Args),
}

impl Command {
    /// Runs it. `program` is what the command line was read by.
    pub fn run(self, program: fn() -> clap::Command) -> Result<ExitCode> {
        match self {
            Self::Pretrain(args) => pretrain::run(*args),
            Self::Finetune(args) => finetune::run(*args),
            Self::Linprobe(args) => linprobe::run(*args),
            Self::Knn(args) => knn::run(*args),
            Self::Eval(args) => eval::run(*args),
            Self::Compare(args) => compare::run(args),
            Self::Report(args) => report::run(args),
            Self::Watch(args) => watch::run(args),
            Self::Study(args) => study::run(args),
            Self::Bench(args) => bench::run(args),
            Self::Schedule(args) => schedule::run(*args),
            Self::Reconstruct(args) => reconstruct::run(args),
            Self::Inspect(args) => inspect::run(args),
            Self::Convert(args) => convert::run(args),
            Self::Embed(args) => embed::run(args),
            Self::Features(args) => features::run(args),
            Self::Classify(args) => classify::run(args),
            Self::Data(args) => data::run(args),
            Self::Completions(args) => completions::run(args, program()),
            Self::Man(args) => man::run(args, program()),
        }
    }
}
