//! The folder of a run: claiming a new one, reading an old one.
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};

use crate::checkpoint::Checkpoint;
use crate::config::{Config, Flags};
use crate::metrics::Metrics;
use crate::usage::usage;

/// The training state of the run in `dir`.
pub fn checkpoint_path(dir: &Path) -> PathBuf {
    dir.join("checkpoint.safetensors")
}

/// What a run writes.
pub const FILES: [&str; 4] = [
    "config.toml",
    "metrics.jsonl",
    "checkpoint.safetensors",
    "encoder.safetensors",
];

/// A path as a shell takes it.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "_./:@%+=,-".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// A run to go on with: its configuration, its checkpoint, and its metrics, which are locked before anything is read.
pub fn resume(dir: &Path, flags: &Flags) -> Result<(Config, Checkpoint, Metrics)> {
    let path = checkpoint_path(dir);
    if !path.is_file() {
        return Err(usage(format!(
            "{} holds no run: there is no checkpoint.safetensors in it",
            dir.display()
        )));
    }
    let metrics = Metrics::lock(&dir.join("metrics.jsonl"))?;
    let checkpoint = Checkpoint::load(&path)?;
    let saved = &checkpoint.header.config;
    // Where config.toml has got lost, the checkpoint knows its numbers.
    let file = dir.join("config.toml");
    let config = match file.is_file() {
        true => Config::of_run(&file, flags)?,
        false => Config::of_checkpoint(saved, flags)?,
    };
    let differences = config.differences(saved)?;
    if !differences.is_empty() {
        return Err(usage(format!(
            "{} was trained with other numbers ({}); resume it without these, or start a new run",
            dir.display(),
            differences.join(", ")
        )));
    }
    Ok((config, checkpoint, metrics))
}

/// Makes the folder `out`, or runs/pretrain-N with the first N that is free. Nothing that exists is written over.
pub fn claim(out: Option<&Path>) -> Result<PathBuf> {
    let Some(out) = out else {
        std::fs::create_dir_all("runs").context("cannot make the folder runs")?;
        for n in 1.. {
            let dir = PathBuf::from(format!("runs/pretrain-{n}"));
            match std::fs::create_dir(&dir) {
                Ok(()) => return Ok(dir),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e).with_context(|| format!("cannot make {}", dir.display())),
            }
        }
        bail!("no free folder in runs");
    };
    let dir = out.display();
    if checkpoint_path(out).exists() {
        return Err(usage(format!(
            "--out {dir} holds a run already; go on with it by --resume {}, or choose another folder",
            quoted(out)
        )));
    }
    std::fs::create_dir_all(out).map_err(|e| usage(format!("cannot make --out {dir}: {e}")))?;
    for entry in std::fs::read_dir(out).with_context(|| format!("cannot read {dir}"))? {
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
    Ok(out.to_owned())
}

/// Replaces config.toml as a whole or not at all; nothing to do if it is as it should be.
pub fn write_config(dir: &Path, config: &Config) -> Result<()> {
    let (path, temporary) = (dir.join("config.toml"), dir.join(".config.toml.saving"));
    let text = config.to_toml()?;
    if std::fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let write = || {
        let mut file = std::fs::File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)
    };
    write()
        .inspect_err(|_| drop(std::fs::remove_file(&temporary)))
        .with_context(|| format!("cannot write {}", path.display()))
}
