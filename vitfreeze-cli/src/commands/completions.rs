//! `vitfreeze completions`: what a shell needs to complete commands and flags.
use std::process::ExitCode;

use anyhow::Result;
use clap_complete::Shell;

use crate::console;

const EXAMPLES: &str = "\
Examples:
  vitfreeze completions bash > ~/.local/share/bash-completion/completions/vitfreeze
  vitfreeze completions zsh > ~/.zfunc/_vitfreeze
  vitfreeze completions fish > ~/.config/fish/completions/vitfreeze.fish";

/// Flags of `vitfreeze completions`.
#[derive(clap::Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Shell to write them for
    shell: Shell,
}

/// Runs it.
pub fn run(args: Args, mut program: clap::Command) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "vitfreeze", &mut script);
    console::print(String::from_utf8_lossy(&script).trim_end())?;
    Ok(ExitCode::SUCCESS)
}
