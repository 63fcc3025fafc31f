//! `vitfreeze`: pretraining Vision Transformers that freeze while they train.
//!
//! A table of contents.
mod accuracy;
mod architecture;
mod commands;
mod console;
mod costs;
mod features;
mod input;
mod machine;
mod plot;
mod run;
mod settings;
mod train;
mod usage;

use std::process::ExitCode;

use clap::Parser;

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
    console::quiet_caught_panics();
    match Cli::parse().command.run() {
        Ok(code) => code,
        Err(error) => {
            // A line break in it can only come from a name.
            console::note(vit::printable(&format!("error: {error:#}")));
            ExitCode::from(if usage::is_usage(&error) { 2 } else { 1 })
        }
    }
}
