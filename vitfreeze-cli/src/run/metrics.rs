//! `metrics.jsonl`: one JSON object per optimiser step, and one per evaluation.
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::Device;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::console::{counted, note};
use crate::usage::usage;

/// A line that belongs to a step.
pub trait Line: Serialize + DeserializeOwned {
    /// Steps done before this one.
    fn step(&self) -> usize;
}

/// One step.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// Steps done before this one.
    pub step: usize,
    pub epoch: usize,
    /// Sum of the live stages' losses, mean over the batches of the step.
    pub loss: f64,
    /// In pretraining, each stage's own loss, null once it is frozen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stage_losses: Vec<Option<f64>>,
    /// Learning rate of each layer, 0 where frozen.
    pub lr: Vec<f64>,
    /// Frozen layers, counted from the input.
    pub frozen: usize,
    /// Side of the images in pixels, of a run in which they grow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// Nodes that the backward pass walked.
    pub graph_nodes: usize,
    /// The gradients' global norm before clipping, where there is clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    pub images: usize,
    pub images_per_second: f64,
    /// Bytes of gradients that each of several workers handed round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reduced_bytes: Option<usize>,
    pub seconds: Seconds,
}

impl Line for Row {
    fn step(&self) -> usize {
        self.step
    }
}

/// What a line of metrics.jsonl says, of any command that trains.
pub enum Said {
    Step(Row),
    /// Steps done, and top-1 in percent: of the weights' average, where there is one.
    Evaluation(usize, f64),
}

impl Said {
    /// `None`: the line cannot be read.
    pub fn of(line: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(line).ok()?;
        // More steps than any run has come of damage.
        let step = value["step"].as_u64().filter(|step| *step < 1 << 48)?;
        let top1 = value["ema_top1"].as_f64().or(value["top1"].as_f64());
        match top1 {
            Some(top1) => Some(Self::Evaluation(step as usize + 1, top1)),
            None => serde_json::from_value(value).ok().map(Self::Step),
        }
    }
}

/// Forgets what a run that was gone on with does again from this step on.
pub fn again<T>(
    steps: &mut Vec<T>,
    evaluations: &mut Vec<(usize, f64)>,
    step: usize,
    of: impl Fn(&T) -> usize,
) {
    steps.truncate(steps.partition_point(|s| of(s) < step));
    evaluations.truncate(evaluations.partition_point(|e| e.0 <= step));
}

/// Wall time of one step, split.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Seconds {
    /// Waiting for the loader.
    pub data: f64,
    /// Targets, encoder, decoders, loss.
    pub forward: f64,
    pub backward: f64,
    pub optimizer: f64,
    /// Of several workers: handing gradients round.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub communication: f64,
    /// All of it, and what lies between.
    pub total: f64,
}

fn is_zero(x: &f64) -> bool {
    *x == 0.0
}

impl Seconds {
    pub fn add(&mut self, other: &Seconds) {
        self.data += other.data;
        self.forward += other.forward;
        self.backward += other.backward;
        self.optimizer += other.optimizer;
        self.communication += other.communication;
        self.total += other.total;
    }
}

/// Runs `f` and adds its wall time to `seconds`.
pub fn timed<T>(seconds: &mut f64, f: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let out = f();
    *seconds += start.elapsed().as_secs_f64();
    out
}

/// The same on a device, which works on while the program does: until it is done.
pub fn timed_on<T, E: From<candle_core::Error>>(
    device: &Device,
    seconds: &mut f64,
    f: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    timed(seconds, || {
        let out = f()?;
        device.synchronize()?;
        Ok(out)
    })
}

/// The loss is NaN or infinite: the weights are ruined.
#[derive(Debug)]
pub struct NotFinite(pub String);

impl std::fmt::Display for NotFinite {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotFinite {}

/// The file of a run, open for appending.
pub struct Metrics {
    file: File,
    path: PathBuf,
}

impl Metrics {
    /// Opens the file at `path` for this process alone, which makes it the only one that works on the run.
    pub fn lock(path: &Path) -> Result<Self> {
        // Opening a pipe would wait for whoever reads it.
        if path.exists() {
            datasets::open_file(path)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(usage(format!(
                "another process is working on this run ({} is locked)",
                path.display()
            )));
        }
        let path = path.to_owned();
        Ok(Self { file, path })
    }

    /// The rows of the first `steps` steps. Those of later steps (done after the checkpoint) and a torn last line are cut
    /// off: these steps will be done again.
    pub fn take_up<L: Line>(&mut self, steps: usize) -> Result<Vec<L>> {
        let path = &self.path;
        let mut old = Vec::new();
        crate::input::files::fits(&self.file)
            .and_then(|()| self.file.read_to_end(&mut old))
            .with_context(|| format!("cannot read {}", path.display()))?;
        let (mut rows, mut length, mut unreadable) = (Vec::new(), 0, 0);
        for line in old.split_inclusive(|&byte| byte == b'\n') {
            match serde_json::from_slice::<L>(line) {
                Ok(row) if row.step() >= steps => break,
                Ok(row) if line.ends_with(b"\n") => rows.push(row),
                _ if line.ends_with(b"\n") => unreadable += 1,
                _ => break,
            }
            length += line.len();
        }
        if unreadable > 0 {
            note(format!(
                "warning: {} in {} left out of the summary",
                counted(unreadable, "unreadable line"),
                path.display()
            ));
        }
        self.file
            .set_len(length as u64)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(rows)
    }

    pub fn write(&mut self, row: &impl Line) -> Result<()> {
        let mut line = serde_json::to_string(row)?;
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Makes sure that all rows are on the disk.
    pub fn flush(&self) -> Result<()> {
        self.file
            .sync_data()
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// The middle value, or the mean of the two in the middle; `None` of nothing.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let low = values.get(values.len().checked_sub(1)? / 2)?;
    Some((low + values.get(values.len() / 2)?) / 2.0)
}

/// Median, and by how much chance moves it: its standard error, from the median distance to it, which no single slow step
/// moves. `None` of fewer than five.
pub fn median_and_error(values: &[f64]) -> Option<(f64, f64)> {
    if values.len() < 5 {
        return None;
    }
    let middle = median(values.iter().copied())?;
    let distance = median(values.iter().map(|x| (x - middle).abs()))?;
    // Of a normal distribution: deviation = 1.4826 distances, error of the median = 1.2533 deviations / sqrt(n).
    let error = 1.4826 * 1.2533 * distance / (values.len() as f64).sqrt();
    Some((middle, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_step_is_no_scatter() {
        let (middle, error) = median_and_error(&[1.0, 1.01, 0.99, 1.0, 9.0, 1.01, 0.99]).unwrap();
        assert!(middle == 1.0 && error < 0.01, "{middle} {error}");
        assert!(median_and_error(&[1.0; 4]).is_none());
    }
}
