//! `vitfreeze report`: what runs did, as one page that needs nothing else, or as one picture.
mod charts;
mod numbers;
pub mod page;
mod read;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, Result};

use crate::commands::compare::readable;
use crate::console::{note, print};
use crate::draw;
use crate::run::folder::quoted;
use crate::usage::usage;
use read::RunRead;

const EXAMPLES: &str = "\
Examples:
  vitfreeze report runs/pretrain-1 --out report.html
  vitfreeze report runs/pretrain-1 runs/finetune-1 runs/eval-1 --out report.html     side by side
  vitfreeze report runs/pretrain-1 --out report.png          the charts alone

The page is one file and loads nothing from elsewhere. It has the settings and how to run it again, loss \
by stage, seconds per step as layers freeze, learning rates, phases, memory and accuracies. Of pretraining \
it shows predictions, of eval the confusion matrix and the worst mistakes. Every training leaves one in its \
folder.";

/// The page that a training leaves in its folder.
pub const NAME: &str = "report.html";

/// Flags of `vitfreeze report`.
#[derive(clap::Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folders of runs; a run may still be going on
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Page (.html), or picture of one run's charts (.png or .svg)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    let html = args.out.extension().is_some_and(|e| e == "html");
    if !html {
        draw::check(&args.out).map_err(|e| usage(format!("{e:#} (or .html)")))?;
        if args.runs.len() > 1 {
            return Err(usage(
                "a picture is of one run; name --out FILE.html for several",
            ));
        }
    }
    let runs = readable(&args.runs, RunRead::new)?;
    if html {
        save(&args.out, &runs)?;
    } else {
        let Some(charts) = charts::training(&runs[0]) else {
            bail!("{}: there are no steps to draw", args.runs[0].display());
        };
        draw::save(&args.out, &charts)?;
    }
    print(quoted(&args.out))?;
    Ok(match runs.len() == args.runs.len() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn save(path: &Path, runs: &[RunRead]) -> Result<()> {
    Ok(vit::write_atomic(path, page::page(runs).as_bytes())?)
}

/// Writes the page of a run that has ended into its folder. That it fails is told, and is no failure of the run.
pub fn of_a_run_at_its_end(dir: &Path) -> bool {
    let written = RunRead::new(dir).and_then(|run| save(&dir.join(NAME), &[run]));
    if let Err(error) = &written {
        note(vit::printable(&format!(
            "note: there is no {NAME}: {error:#}"
        )));
    }
    written.is_ok()
}
