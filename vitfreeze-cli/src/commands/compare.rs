//! `vitfreeze compare`: runs side by side, and accuracy against wall time.
mod picture;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, Context, Result};
use serde_json::{Map, Value};

use crate::console::{counted, duration, note, percent, print};
use crate::draw;
use crate::run::folder::checkpoint_path;
use crate::run::result::RunResult;
use crate::usage::usage;
use picture::Curve;

/// Longest result.json and longest metrics.jsonl that are read.
const MAX_RESULT: u64 = 16 << 20;
const MAX_METRICS: u64 = 4 << 30;
/// Longest chain of runs that began with one another.
const MAX_CHAIN: usize = 16;

const EXAMPLES: &str = "\
Examples:
  vitfreeze compare runs/*
  vitfreeze compare runs/finetune-1 runs/finetune-2 runs/knn-1 --out accuracy.png

'time' is the run's own. 'with pretraining' adds the time of the runs from which its checkpoint came, \
if their folders are still there. 'saved' is how much shorter freezing made the run, compared with its \
own unfrozen steps.";

/// Flags of `vitfreeze compare`.
#[derive(clap::Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folders of runs: pretrain, finetune, linprobe, knn, eval
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Picture to draw: top-1 against wall time with pretraining (.png or .svg)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What is known of a run.
struct Summary {
    name: String,
    result: RunResult,
    /// Seconds of the runs that it began with.
    before: f64,
    /// (seconds of this run, top-1) after each evaluation.
    evaluations: Vec<(f64, f64)>,
}

/// What can be read of several runs; what cannot is told, and is an error only where nothing is left.
pub fn readable<T>(dirs: &[PathBuf], read: impl Fn(&Path) -> Result<T>) -> Result<Vec<T>> {
    let mut runs = Vec::new();
    for dir in dirs {
        match read(dir) {
            Ok(run) => runs.push(run),
            Err(e) => note(format!("error: {e:#}")),
        }
    }
    if runs.is_empty() {
        bail!("no run could be read");
    }
    Ok(runs)
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    if let Some(out) = &args.out {
        draw::check(out)?;
    }
    let runs = readable(&args.runs, Summary::read)?;
    for line in table(&runs) {
        print(line)?;
    }
    if let Some(out) = &args.out {
        let names = short_names(&runs);
        let curves = runs
            .iter()
            .zip(names)
            .filter_map(|(run, name)| run.curve(name));
        let curves: Vec<Curve> = curves.collect();
        if curves.is_empty() {
            return Err(usage("no run has an accuracy to draw"));
        }
        draw::save(out, &picture::draw(&curves))?;
        print(format!("{}", out.display()))?;
    }
    Ok(match runs.len() == args.runs.len() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Reads a text file of bounded size.
fn read(path: &Path, most: u64) -> Result<String> {
    let read = || {
        let length = std::fs::metadata(path)?.len();
        if length > most {
            return Err(std::io::Error::other(format!(
                "{length} bytes, at most {most} are expected"
            )));
        }
        crate::input::files::text(path)
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

fn result_of(dir: &Path) -> Result<RunResult> {
    let path = dir.join("result.json");
    if !path.exists() && checkpoint_path(dir).is_file() {
        bail!(
            "{} has no result yet: its run has not ended; continue it with --resume",
            dir.display()
        );
    }
    // An object: serde would take a list of the values for one, too.
    let object = serde_json::from_str::<Map<String, Value>>(&read(&path, MAX_RESULT)?);
    object
        .and_then(|object| serde_json::from_value(Value::Object(object)))
        .with_context(|| format!("{} is damaged, or not of a run", path.display()))
}

impl Summary {
    fn read(dir: &Path) -> Result<Self> {
        let result = result_of(dir)?;
        let metrics = dir.join("metrics.jsonl");
        let mut rows = Vec::new();
        if metrics.is_file() {
            // Whoever damaged it left the result whole.
            match read(&metrics, MAX_METRICS) {
                Ok(text) => {
                    let lines = text.lines().map(serde_json::from_str::<Value>);
                    let count = text.lines().count();
                    rows = lines.flatten().collect();
                    if rows.len() < count {
                        note(format!(
                            "warning: {} in {}",
                            counted(count - rows.len(), "unreadable line"),
                            metrics.display()
                        ));
                    }
                }
                Err(e) => note(format!("warning: {e:#}")),
            }
        } else if result.kind != "eval" {
            note(format!("warning: there is no {}", metrics.display()));
        }
        let classes = &result.settings["classes"];
        if let (Some(judged), Some(of)) = (classes["judged"].as_u64(), classes["of"].as_u64()) {
            let unknown = classes["images-of-unknown"].as_u64().unwrap_or(0);
            if judged < of || unknown > 0 {
                note(format!(
                    "note: {}: evaluated among {judged} of the checkpoint's {of} classes, {unknown} images of other classes left out",
                    dir.display().to_string().escape_debug()
                ));
            }
        }
        let checkpoint = result.settings["checkpoint"].as_str();
        Ok(Self {
            name: dir.display().to_string(),
            before: checkpoint.map_or(0.0, |checkpoint| before(checkpoint, MAX_CHAIN)),
            evaluations: evaluations(&rows),
            result,
        })
    }

    fn curve(&self, name: String) -> Option<Curve> {
        let top1 = self.result.top1?;
        let mut points: Vec<(f64, f64)> = self.evaluations.clone();
        if points.is_empty() {
            points.push((self.result.seconds, top1));
        }
        for point in &mut points {
            point.0 += self.before;
        }
        points.retain(|(x, y)| x.is_finite() && y.is_finite());
        (!points.is_empty()).then_some(Curve { name, points })
    }
}

/// (seconds since the start, top-1) after each evaluation of a finetune or linprobe run: lines of steps have their seconds
/// split, those of evaluations a `top1` and their own seconds.
fn evaluations(rows: &[Value]) -> Vec<(f64, f64)> {
    let (mut seconds, mut points) = (0.0, Vec::new());
    for row in rows {
        let own = row["seconds"].as_f64();
        seconds += own.or(row["seconds"]["total"].as_f64()).unwrap_or(0.0);
        let top1 = row["ema_top1"].as_f64().or(row["top1"].as_f64());
        points.extend(own.and(top1).map(|top1| (seconds, top1)));
    }
    points
}

/// Seconds of the run that a checkpoint is of, and of those that this one began with; 0 if it is of none.
fn before(checkpoint: &str, chain: usize) -> f64 {
    let path = Path::new(checkpoint);
    let dir = match path.is_dir() {
        true => path,
        false => path.parent().unwrap_or(path),
    };
    if chain == 0 || !dir.join("result.json").is_file() {
        return 0.0;
    }
    match result_of(dir) {
        Ok(result) => {
            let first = result.settings["checkpoint"].as_str();
            result.seconds + first.map_or(0.0, |first| before(first, chain - 1))
        }
        Err(e) => {
            note(format!("warning: {e:#}"));
            0.0
        }
    }
}

/// What each run is called in a picture: the end of its path, as much of it as tells it from the others.
fn short_names(runs: &[Summary]) -> Vec<String> {
    let parts = |run: &Summary| {
        let path = Path::new(&run.name).components();
        let parts = path.map(|part| part.as_os_str().to_string_lossy().into_owned());
        parts.collect::<Vec<_>>()
    };
    let paths: Vec<Vec<String>> = runs.iter().map(parts).collect();
    let end = |path: &[String], parts: usize| path[path.len().saturating_sub(parts)..].join("/");
    let name = |path: &Vec<String>| {
        let alone = |&parts: &usize| {
            let own = end(path, parts);
            paths
                .iter()
                .filter(|other| end(other, parts) == own)
                .count()
                == 1
        };
        let parts = (1..path.len()).find(alone).unwrap_or(path.len());
        vit::printable(&end(path, parts))
    };
    paths.iter().map(name).collect()
}

/// Header and one line for each run, in columns.
fn table(runs: &[Summary]) -> Vec<String> {
    let number = |x: Option<f64>, digits: usize| match x {
        Some(x) => format!("{x:.digits$}"),
        None => "-".into(),
    };
    let header = [
        "run",
        "kind",
        "top-1 %",
        "top-5 %",
        "loss",
        "time",
        "with pretraining",
        "saved",
    ];
    let mut rows: Vec<Vec<String>> = vec![header.map(str::to_owned).into()];
    for run in runs {
        let r = &run.result;
        rows.push(vec![
            vit::shown(&run.name),
            vit::shown(&r.kind),
            number(r.top1, 2),
            number(r.top5, 2),
            number(r.loss, 4),
            duration(r.seconds),
            match run.before > 0.0 {
                true => duration(r.seconds + run.before),
                false => "-".into(),
            },
            r.saved.map_or("-".into(), |s| percent(s / 100.0)),
        ]);
    }
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(column, (cell, width))| match column {
            0 | 1 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}
