//! `vitfreeze man`: a manual page for the program and each of its commands.
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::console;

const EXAMPLES: &str = "\
Examples:
  vitfreeze man ~/.local/share/man/man1
  vitfreeze man pages && man pages/vitfreeze-pretrain.1";

/// Flags of `vitfreeze man`.
#[derive(clap::Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder for the pages; made where there is none
    folder: PathBuf,
}

/// Runs it.
pub fn run(args: Args, program: clap::Command) -> Result<ExitCode> {
    let folder = &args.folder;
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(program, folder))
        .with_context(|| format!("cannot write manual pages into {}", folder.display()))?;
    console::print(format!(
        "manual pages: {}",
        folder.join("vitfreeze.1").display()
    ))?;
    Ok(ExitCode::SUCCESS)
}
