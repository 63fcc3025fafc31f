//! `vitfreeze`: pretraining Vision Transformers that freeze while they train.
//!
//! A table of contents.
mod accuracy;
mod architecture;
mod commands;
mod console;
mod costs;
mod draw;
mod features;
mod input;
mod machine;
mod run;
mod settings;
mod train;
mod usage;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use commands::Command;

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

fn main() -> ExitCode {
    machine::allocator::keep_memory();
    machine::interrupt::survive_file_limit();
    machine::interrupt::follow_leader();
    console::quiet_caught_panics();
    let result = match Cli::try_parse() {
        Ok(cli) => cli.command.run(Cli::command),
        Err(said) => console::print_clap(&said),
    };
    result.unwrap_or_else(|error| ExitCode::from(usage::tell(&error)))
}
