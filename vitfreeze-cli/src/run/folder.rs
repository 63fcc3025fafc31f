//! The folder of a run: claiming a new one, reading an old one.
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{anyhow, bail, Context, Result};

use crate::console::{counted, note};
use crate::machine::interrupt;
use crate::machine::workers::Workers;
use crate::run::checkpoint::Checkpoint;
use crate::run::metrics::Metrics;
use crate::settings::{Given, Settings};
use crate::train::TrainSettings;
use crate::usage::usage;

/// The training state of the run in `dir`.
pub fn checkpoint_path(dir: &Path) -> PathBuf {
    dir.join("checkpoint.safetensors")
}

/// The folder, in that of a run, of pictures of what it predicted while it trained.
pub const SEEN: &str = "seen";

/// What a run has written when it starts.
const FIRST_FILES: [&str; 3] = ["config.toml", "metrics.jsonl", "checkpoint.safetensors"];

/// A path as a shell and then the program take it.
pub fn quoted(path: &Path) -> String {
    let mut text = path.display().to_string();
    if text.starts_with('-') {
        // Else it would be a flag.
        text.insert_str(0, "./");
    }
    let plain = |c: char| c.is_alphanumeric() || "_./:@%+=,-".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// A run to go on with: its configuration, its checkpoint, and for the first worker its metrics, which are locked before
/// anything is read. Another number of workers may go on with it, in steps of as many images.
pub fn resume<S: TrainSettings>(
    dir: &Path,
    flags: &Given<S>,
    workers: &Workers,
) -> Result<(S, Checkpoint<S>, Option<Metrics>)> {
    if dir.is_file() {
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty());
        return Err(usage(format!(
            "{} is a file; --resume takes the folder of the run: --resume {}",
            dir.display(),
            quoted(parent.unwrap_or(Path::new(".")))
        )));
    }
    let path = checkpoint_path(dir);
    if !path.is_file() {
        return Err(usage(format!(
            "{} holds no run: there is no checkpoint.safetensors in it",
            dir.display()
        )));
    }
    let metrics = match workers.first() {
        true => Some(Metrics::lock(&dir.join("metrics.jsonl"))?),
        false => None,
    };
    let checkpoint = Checkpoint::<S>::load(&path)?;
    let saved = &checkpoint.header.config;
    // Where config.toml has got lost, the checkpoint knows its numbers.
    let file = dir.join("config.toml");
    let file = file.symlink_metadata().is_ok().then_some(file);
    let config = S::of_checkpoint(saved, file.as_deref(), flags)?;
    let others = checkpoint.header.workers != workers.size();
    if others {
        let (then, now) = (checkpoint.header.workers, workers.size());
        let images = |config: &S, workers: usize| {
            let training = config.training();
            training.batch_size * training.accum * workers
        };
        let (was, is) = (images(saved, then), images(&config, now));
        if was != is {
            return Err(usage(format!(
                "{} was trained by {} in steps of {was} images; {} with batch-size {} and accum {} {} {is}: start as many workers again{}, or give the --batch-size{} that makes {was} again",
                dir.display(),
                counted(then, "worker"),
                counted(now, "worker"),
                config.training().batch_size,
                config.training().accum,
                if now == 1 { "has" } else { "have" },
                match then {
                    1 => String::new(),
                    _ => format!(" (--nproc {then})"),
                },
                if config.by_image() { " or --accum" } else { "" }
            )));
        }
        note(format!(
            "note: {} began this run, {now} continue it: losses are equal to rounding",
            counted(then, "worker")
        ));
    }
    // How a step's images are shared changes its rounding, not its meaning; unless batches mean something: BatchNorm, Mixup.
    let mut differences = config.differences(saved)?;
    let shared = |line: &str| {
        line.starts_with("batch-size: ") || config.by_image() && line.starts_with("accum: ")
    };
    differences.retain(|line| !(others && shared(line)));
    if !differences.is_empty() {
        return Err(usage(format!(
            "{} was trained with other numbers ({}); resume it without these, or start a new run",
            dir.display(),
            differences.join(", ")
        )));
    }
    Ok((config, checkpoint, metrics))
}

/// Makes the folder `out`, or runs/COMMAND-N with the first N that is free. Nothing that exists is written over.
pub fn claim(out: Option<&Path>, command: &str) -> Result<PathBuf> {
    let Some(out) = out else {
        std::fs::create_dir_all("runs").context("cannot make the folder runs")?;
        for n in 1.. {
            let dir = PathBuf::from(format!("runs/{command}-{n}"));
            match std::fs::create_dir(&dir) {
                Ok(()) => return Ok(dir),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e).with_context(|| format!("cannot make {}", dir.display())),
            }
        }
        bail!("no free folder in runs");
    };
    check_free(out)?;
    std::fs::create_dir_all(out)
        .map_err(|e| usage(format!("cannot make --out {}: {e}", out.display())))?;
    Ok(out.to_owned())
}

/// Refuses a folder with something in it: to be asked before work that takes long.
pub fn check_free(out: &Path) -> Result<()> {
    let dir = out.display();
    if checkpoint_path(out).exists() {
        return Err(usage(format!(
            "--out {dir} holds a run already; continue it with --resume {}, or choose another folder",
            quoted(out)
        )));
    }
    let entries = match std::fs::read_dir(out) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(usage(format!("cannot make --out {dir}: {e}"))),
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {dir}"))?;
        // What a run leaves that was killed before its first checkpoint may stay.
        let leftover = match entry.file_name().to_str() {
            Some("metrics.jsonl") => entry.metadata().is_ok_and(|m| m.len() == 0),
            Some(".checkpoint.safetensors.saving" | ".config.toml.saving") => true,
            _ => false,
        };
        if !leftover {
            return Err(usage(format!(
                "--out {dir} is not empty; choose a new folder"
            )));
        }
    }
    Ok(())
}

/// Removes these files of a folder that was claimed, and the folder once it is empty: what failed leaves nothing that
/// looks like a result or stands in the way of the next attempt. Gives the error back, unless ctrl-C was the cause.
pub fn abandon(dir: &Path, files: &[&str], error: anyhow::Error) -> Result<ExitCode> {
    for name in files.iter().chain(&["result.json"]) {
        let _ = std::fs::remove_file(dir.join(name));
    }
    let _ = std::fs::remove_dir(dir);
    match interrupt::asked() {
        true => Ok(ExitCode::from(interrupt::exit_code())),
        false => Err(error),
    }
}

/// Writes a new (`fresh`) run's first checkpoint, and config.toml: from here on a kill at any moment leaves something to
/// resume. If that fails, a new run leaves nothing behind.
pub fn start<S: Settings>(
    dir: &Path,
    config: &S,
    fresh: bool,
    write_checkpoint: impl FnOnce() -> Result<()>,
) -> Result<()> {
    // The checkpoint first: it knows the configuration, should this be cut off in between.
    let written = match fresh {
        true => write_checkpoint(),
        false => Ok(()),
    };
    written
        .and_then(|()| write_config(dir, config))
        .inspect_err(|_| {
            if fresh {
                for name in FIRST_FILES {
                    let _ = std::fs::remove_file(dir.join(name));
                }
                let _ = std::fs::remove_dir(dir);
            }
        })
}

/// The command that goes on with a run of so many workers.
pub fn resume_command(command: &str, dir: &Path, workers: usize) -> String {
    let resume = format!("vitfreeze {command} --resume {}", quoted(dir));
    match workers {
        1 => resume,
        _ => format!("{resume} --nproc {workers}"),
    }
}

/// The same error, and where a checkpoint could not be written, what is still there, and the command that goes on with it.
pub fn untouched(error: anyhow::Error, dir: &Path, saved: usize, resume: &str) -> anyhow::Error {
    match error.is::<vit::Error>() {
        true if !checkpoint_path(dir).is_file() => anyhow!(
            "{error:#}; the run's own checkpoint is gone too: something has removed or moved {}",
            dir.display()
        ),
        true => anyhow!("{error:#}; the checkpoint of step {saved} is untouched: {resume}"),
        false => error,
    }
}

/// Writes config.toml, unless it is as it should be.
fn write_config<S: Settings>(dir: &Path, config: &S) -> Result<()> {
    let (path, text) = (dir.join("config.toml"), config.to_toml()?);
    if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
        // Its writer may have been killed right behind giving it its name.
        vit::Staged::sweep(&path);
        return Ok(());
    }
    Ok(vit::write_atomic(&path, text.as_bytes())?)
}
