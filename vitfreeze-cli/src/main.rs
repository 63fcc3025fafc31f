//! `vitfreeze`: pretraining Vision Transformers that freeze while they train.
//!
//! A table of contents: one file per subcommand.
mod allocator;
mod bench;
mod checkpoint;
mod config;
mod data;
mod device;
mod folder;
mod interrupt;
mod memory;
mod metrics;
mod pretrain;
mod report;
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
    /// Time the training step with more and more layers frozen
    Bench(bench::Args),
    /// Look at a dataset, cache it, time its loader
    Data(data::Args),
}

fn main() -> ExitCode {
    allocator::keep_memory();
    let result = match Cli::parse().command {
        Command::Pretrain(args) => pretrain::run(*args),
        Command::Bench(args) => bench::run(args),
        Command::Data(args) => data::run(args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            report::note(format!("error: {error:#}"));
            ExitCode::from(if usage::is_usage(&error) { 2 } else { 1 })
        }
    }
}
