//! `vitfreeze watch`: a run while it goes on, or when it has ended, from another terminal.
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::console::print;
use crate::watch::{self, Followed};

const EXAMPLES: &str = "\
Examples:
  vitfreeze watch runs/pretrain-1              until q is pressed
  vitfreeze watch runs/pretrain-1 --once       a few lines (also without a terminal)
  vitfreeze pretrain --watch                   the same instead of the progress line

Loss by stage, images per second, accuracy, frozen layers and the next to freeze, phases, time left, and \
what deserves a look. It only reads the run's files: the run is not affected.

Keys:
  q   leave                l   loss on a logarithmic scale, or a linear one
  ?   help                 r   the last 200 steps, or all";

/// Flags of `vitfreeze watch`.
#[derive(clap::Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder of a run of pretrain, finetune or linprobe
    run: PathBuf,
    /// Print the present state and exit
    #[arg(long)]
    once: bool,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    let mut run = Followed::new(&args.run)?;
    match args.once || !watch::possible() {
        true => watch::lines(&run).into_iter().try_for_each(print)?,
        false => watch::follow(&mut run)?,
    }
    Ok(ExitCode::SUCCESS)
}
