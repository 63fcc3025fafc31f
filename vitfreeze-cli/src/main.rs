//! `vitfreeze`: pretraining Vision Transformers that freeze while they train.
//!
//! A table of contents: one file per subcommand.
mod accuracy;
mod allocator;
mod bench;
mod budget;
mod checkpoint;
mod classes;
mod classify;
mod compare;
mod config;
mod convert;
mod costs;
mod data;
mod device;
mod embed;
mod evaluate;
mod features;
mod finetune;
mod folder;
#[cfg(feature = "cuda")]
mod gpu;
mod input;
mod inspect;
mod interrupt;
mod knn;
mod linprobe;
mod memory;
mod metrics;
mod op_times;
mod plot;
mod pretrain;
mod pretrained;
mod progress;
mod report;
mod result;
mod run_data;
mod schedule;
mod settings;
mod subset;
mod tensorboard;
mod train;
mod unfinished;
mod usage;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Pretrain Vision Transformers with local masked image modeling, freezing layers on the way
#[derive(Parser)]
#[command(
    name = "vitfreeze",
    version,
    after_help = "Start with: vitfreeze pretrain"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pretrain a ViT: LocalMIM under FreezeOut (without arguments: a two-minute demonstration)
    Pretrain(Box<pretrain::Args>),
    /// Fine-tune an encoder into a classifier (or train one from scratch)
    Finetune(Box<finetune::Args>),
    /// Train a linear classifier on an encoder's features
    Linprobe(Box<linprobe::Args>),
    /// Judge an encoder's features by their nearest neighbours (k-NN); trains nothing
    Knn(Box<knn::Args>),
    /// Judge a classifier: top-1, top-5, loss, per class, confusion matrix, predictions
    Eval(Box<evaluate::Args>),
    /// Print runs side by side and draw accuracy against wall time
    Compare(compare::Args),
    /// Time the training step with more and more layers frozen
    Bench(bench::Args),
    /// Print and draw what a freezing schedule will do; trains nothing
    Schedule(Box<schedule::Args>),
    /// Say what a checkpoint is: family, architecture, tensors, norms, NaNs
    Inspect(inspect::Args),
    /// Write a checkpoint of any family as a folder that timm or transformers loads
    Convert(convert::Args),
    /// Compute the features of a folder of images
    Embed(embed::Args),
    /// Name the likeliest classes of images
    Classify(classify::Args),
    /// Look at a dataset, cache it, time its loader
    Data(data::Args),
}

fn main() -> ExitCode {
    allocator::keep_memory();
    interrupt::survive_file_limit();
    report::quiet_caught_panics();
    let result = match Cli::parse().command {
        Command::Pretrain(args) => pretrain::run(*args),
        Command::Finetune(args) => finetune::run(*args),
        Command::Linprobe(args) => linprobe::run(*args),
        Command::Knn(args) => knn::run(*args),
        Command::Eval(args) => evaluate::run(*args),
        Command::Compare(args) => compare::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Schedule(args) => schedule::run(*args),
        Command::Inspect(args) => inspect::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Embed(args) => embed::run(args),
        Command::Classify(args) => classify::run(args),
        Command::Data(args) => data::run(args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            // A line break in it can only come from a name.
            report::note(vit::printable(&format!("error: {error:#}")));
            ExitCode::from(if usage::is_usage(&error) { 2 } else { 1 })
        }
    }
}
