//! What is known of a run from its folder.
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use base64::prelude::{Engine as _, BASE64_STANDARD};
use freezeout::Costs;
use serde_json::Value;
use toml::Table;

use crate::commands::pretrain::config::Config;
use crate::console::{counted, note};
use crate::input::files;
use crate::run::folder::{checkpoint_path, SEEN};
use crate::run::metrics::{again, Row, Said};
use crate::run::report::unfrozen_step;
use crate::run::result::RunResult;
use crate::settings::{Given, Settings as _};

/// Longest files that are read: a configuration, a result, metrics, a picture.
const MAX_TEXT: u64 = 16 << 20;
const MAX_METRICS: u64 = 1 << 30;
const MAX_PICTURE: u64 = 4 << 20;
/// Most pictures of what it predicted, and files that are looked at for them.
const MAX_SEEN: usize = 24;
const MAX_ENTRIES: usize = 1000;

/// The commands that train.
const TRAINING: [&str; 3] = ["pretrain", "finetune", "linprobe"];

/// A run.
pub struct RunRead {
    pub dir: PathBuf,
    pub name: String,
    /// Text of config.toml.
    pub config: Option<String>,
    /// `None` while it goes on.
    pub result: Option<RunResult>,
    pub steps: Vec<Row>,
    /// (step, top-1) after each evaluation.
    pub evaluations: Vec<(usize, f64)>,
    /// What a step costs with so many layers frozen, counted, by its images' size; of pretraining.
    pub costs: Vec<(usize, Costs)>,
    /// confusion.png and mistakes.png as data URLs.
    pub confusion: Option<String>,
    pub mistakes: Option<String>,
    /// What it predicted while it trained: targets.png, and (epochs, picture), as data URLs.
    pub targets: Option<String>,
    pub seen: Vec<(usize, String)>,
    /// What is not as it should be, a line each.
    pub lacks: Vec<String>,
}

impl RunRead {
    pub fn new(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            bail!("{}: there is no such folder", dir.display());
        }
        let config = optional(&dir.join("config.toml"), MAX_TEXT)?;
        let result = optional(&dir.join("result.json"), MAX_TEXT)?;
        let metrics = optional(&dir.join("metrics.jsonl"), MAX_METRICS)?;
        if config.is_none() && result.is_none() && metrics.is_none() {
            bail!(
                "{} holds no run: none of config.toml, result.json, metrics.jsonl is in it",
                dir.display()
            );
        }
        let result = match result {
            Some(text) => Some(
                serde_json::from_str::<RunResult>(&text)
                    .with_context(|| format!("{} is damaged", dir.join("result.json").display()))?,
            ),
            None => None,
        };
        let (steps, evaluations, unreadable) = lines(metrics.as_deref().unwrap_or_default());
        let mut lacks = Vec::new();
        if unreadable > 0 {
            let lines = counted(unreadable, "unreadable line");
            lacks.push(format!("{lines} in metrics.jsonl left out"));
        }
        // Runs that do not train have neither steps nor a checkpoint.
        let trains = result
            .as_ref()
            .is_none_or(|r| TRAINING.contains(&r.kind.as_str()));
        if trains && steps.is_empty() {
            lacks.push("no step in metrics.jsonl: nothing to draw".into());
        }
        if trains && !checkpoint_path(dir).is_file() {
            lacks.push("no checkpoint.safetensors: the run cannot go on".into());
        }
        for line in &lacks {
            note(format!(
                "warning: {}: {line}",
                vit::printable(&dir.display().to_string())
            ));
        }
        let mut seen = seen(&dir.join(SEEN));
        seen.sort();
        let full = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let name = full.file_name().unwrap_or_default().to_string_lossy();
        Ok(Self {
            dir: dir.to_owned(),
            name: vit::printable(&name),
            costs: counted_costs(dir).unwrap_or_default(),
            confusion: picture(&dir.join("confusion.png")),
            mistakes: picture(&dir.join("mistakes.png")),
            targets: picture(&dir.join(SEEN).join("targets.png")),
            seen,
            lacks,
            config,
            result,
            steps,
            evaluations,
        })
    }

    /// The subcommand that made it.
    pub fn kind(&self) -> String {
        if let Some(result) = &self.result {
            return result.kind.clone();
        }
        match self.steps.first() {
            Some(row) if !row.stage_losses.is_empty() => "pretrain".into(),
            Some(_) if self.evaluations.is_empty() => "training".into(),
            Some(_) => "finetune".into(),
            None => "run".into(),
        }
    }

    /// A key of its configuration.
    pub fn setting(&self, key: &str) -> Option<String> {
        let table: Option<Table> = self.config.as_deref().and_then(|t| toml::from_str(t).ok());
        let of_config = table.and_then(|table| table.get(key).cloned());
        let of_config = of_config.map(|value| match value {
            toml::Value::String(text) => text,
            other => other.to_string(),
        });
        let of_result = || match self.result.as_ref()?.settings.get(key)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        of_config.or_else(of_result)
    }

    /// Seconds of all steps so far.
    pub fn seconds(&self) -> f64 {
        let steps = self.steps.iter().map(|row| row.seconds.total).sum();
        self.result.as_ref().map_or(steps, |result| result.seconds)
    }

    /// What a step with such images costs, counted, by its number of frozen layers.
    pub fn costs_of(&self, size: Option<usize>) -> Option<&Costs> {
        let mut costs = self.costs.iter();
        let of = |(at, _): &&(usize, Costs)| size.is_none_or(|size| size == *at);
        costs.find(of).map(|(_, costs)| costs)
    }

    /// Median seconds of a step without frozen layers, with the images that the run began with.
    pub fn unfrozen_step(&self) -> Option<f64> {
        unfrozen_step(&self.steps, self.steps.first()?.image_size)
    }
}

/// A file's text, `None` if there is none.
fn optional(path: &Path, most: u64) -> Result<Option<String>> {
    let at = || format!("cannot read {}", path.display());
    let length = match path.symlink_metadata() {
        Err(_) => return Ok(None),
        Ok(_) => std::fs::metadata(path).with_context(at)?.len(),
    };
    if length > most {
        bail!("{}: {length} bytes, at most {most} are expected", at());
    }
    Ok(Some(files::text(path).with_context(at)?))
}

/// Steps, evaluations, and how many lines are neither.
fn lines(text: &str) -> (Vec<Row>, Vec<(usize, f64)>, usize) {
    let (mut steps, mut evaluations, mut unreadable) = (Vec::new(), Vec::new(), 0);
    for line in text.lines() {
        match Said::of(line.as_bytes()) {
            Some(Said::Step(row)) => {
                again(&mut steps, &mut evaluations, row.step, |row: &Row| row.step);
                steps.push(row);
            }
            Some(Said::Evaluation(done, top1)) => evaluations.push((done, top1)),
            None => unreadable += 1,
        }
    }
    (steps, evaluations, unreadable)
}

/// The pictures epoch-N.png of a folder, by N.
fn seen(dir: &Path) -> Vec<(usize, String)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let one = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let epoch = name.strip_prefix("epoch-")?.strip_suffix(".png")?;
        Some((epoch.parse().ok()?, picture(&entry.path())?))
    };
    entries
        .take(MAX_ENTRIES)
        .filter_map(one)
        .take(MAX_SEEN)
        .collect()
}

/// Of a run of pretraining, whose configuration says its model.
fn counted_costs(dir: &Path) -> Option<Vec<(usize, Costs)>> {
    let file = dir.join("config.toml");
    let config = Config::of_run(&file, &Given::nothing()).ok()?;
    config.costs_by_size().ok()
}

fn picture(path: &Path) -> Option<String> {
    let length = std::fs::metadata(path).ok().filter(|m| m.is_file())?.len();
    let png = (length <= MAX_PICTURE).then(|| files::bytes(path).ok())??;
    let png = png.starts_with(b"\x89PNG").then_some(png)?;
    Some(format!(
        "data:image/png;base64,{}",
        BASE64_STANDARD.encode(png)
    ))
}
