//! A run's folder, read again and again: only what is new of its metrics. Nothing in it is locked or written.
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{bail, Context, Result};
use freezeout::{Schedule, Steps};
use serde_json::Value;

use crate::commands::pretrain::config::Config;
use crate::run::folder::checkpoint_path;
use crate::run::metrics::{again, median, Row, Said, Seconds};
use crate::run::work::Work;
use crate::train::Plan;

/// Read at once; a longer line is no line.
const PIECE: u64 = 4 << 20;
/// Longest header of a checkpoint that is read.
const MAX_HEADER: u64 = 64 << 20;
/// Steps whose median is the speed now.
const RECENT: usize = 50;
/// A run that has written nothing for so long, and for so many of its steps, stands still.
const SILENT: (Duration, f64) = (Duration::from_secs(60), 20.0);

/// What is kept of a step.
pub struct Step {
    pub step: usize,
    pub epoch: usize,
    pub loss: f64,
    pub stages: Vec<Option<f64>>,
    pub lr: f64,
    pub frozen: usize,
    pub image_size: Option<usize>,
    pub layers: usize,
    pub images_per_second: f64,
    pub seconds: Seconds,
}

impl From<Row> for Step {
    fn from(row: Row) -> Self {
        Self {
            step: row.step,
            epoch: row.epoch,
            loss: row.loss,
            lr: row.lr.iter().copied().fold(0.0, f64::max),
            frozen: row.frozen,
            image_size: row.image_size,
            layers: row.lr.len(),
            stages: row.stage_losses,
            images_per_second: row.images_per_second,
            seconds: row.seconds,
        }
    }
}

/// What a run is going to do, from its checkpoint.
pub struct Planned {
    pub command: String,
    pub model: String,
    pub epochs: usize,
    pub steps: Steps,
    /// Of pretraining.
    pub schedule: Option<Schedule>,
    pub work: Work,
}

/// What a run is doing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum State {
    Starting,
    Running,
    /// Nothing new for so long.
    Silent(Duration),
    Ended,
    /// Its folder is no longer there.
    Gone,
}

/// A run that is followed.
pub struct Followed {
    pub dir: PathBuf,
    pub name: String,
    pub planned: Option<Planned>,
    pub steps: Vec<Step>,
    /// (steps done, top-1).
    pub evaluations: Vec<(usize, f64)>,
    pub unreadable: usize,
    pub state: State,
    /// How much of metrics.jsonl has been read, and the line that is not ended yet.
    read: u64,
    rest: Vec<u8>,
}

impl Followed {
    pub fn new(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            bail!("{}: there is no such folder", dir.display());
        }
        let files = ["config.toml", "metrics.jsonl", "checkpoint.safetensors"];
        if !files.iter().any(|name| dir.join(name).is_file()) {
            bail!(
                "{} holds no run of pretrain, finetune or linprobe: none of {} is in it",
                dir.display(),
                files.join(", ")
            );
        }
        let full = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let name = full.file_name().unwrap_or_default().to_string_lossy();
        let mut run = Self {
            dir: dir.to_owned(),
            name: vit::printable(&name),
            planned: None,
            steps: Vec::new(),
            evaluations: Vec::new(),
            unreadable: 0,
            state: State::Starting,
            read: 0,
            rest: Vec::new(),
        };
        run.refresh()?;
        Ok(run)
    }

    /// Reads what is new.
    pub fn refresh(&mut self) -> Result<()> {
        let path = self.dir.join("metrics.jsonl");
        if path.is_file() {
            self.take_up(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
        }
        if self.planned.is_none() {
            // Without one, and while one is being replaced, there is no plan yet.
            self.planned = planned(&self.dir);
        }
        self.state = self.state_now(&path);
        Ok(())
    }

    fn take_up(&mut self, path: &Path) -> Result<()> {
        let mut file = datasets::open_file(path)?;
        let length = file.metadata()?.len();
        if length < self.read {
            // Cut off by a run that was gone on with.
            (self.read, self.unreadable) = (0, 0);
            self.rest.clear();
            self.steps.clear();
            self.evaluations.clear();
        }
        file.seek(SeekFrom::Start(self.read))?;
        while self.read < length {
            let mut piece = Vec::new();
            let read = (&mut file).take(PIECE).read_to_end(&mut piece)?;
            if read == 0 {
                break;
            }
            self.read += read as u64;
            self.rest.append(&mut piece);
            let rest = std::mem::take(&mut self.rest);
            let mut lines = rest.split_inclusive(|&byte| byte == b'\n').peekable();
            while let Some(line) = lines.next() {
                if lines.peek().is_none() && !line.ends_with(b"\n") {
                    self.rest = line.to_vec();
                    break;
                }
                self.line(line);
            }
            if self.rest.len() as u64 > PIECE {
                self.rest.clear();
                self.unreadable += 1;
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8]) {
        match Said::of(line) {
            Some(Said::Step(row)) => {
                again(&mut self.steps, &mut self.evaluations, row.step, |s| s.step);
                self.steps.push(row.into());
            }
            Some(Said::Evaluation(done, top1)) => self.evaluations.push((done, top1)),
            None => self.unreadable += 1,
        }
    }

    fn state_now(&self, metrics: &Path) -> State {
        let changed = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).ok();
        let (last, result) = (changed(metrics), changed(&self.dir.join("result.json")));
        if !self.dir.is_dir() {
            return State::Gone;
        }
        // A copy's times say nothing.
        let all = self.total().is_some_and(|total| self.done() >= total);
        if result.is_some() && (all || result >= last) {
            return State::Ended;
        }
        let quiet = last.and_then(|last| SystemTime::now().duration_since(last).ok());
        let quiet = quiet.unwrap_or_default();
        let usual = SILENT.1 * self.seconds_per_step().unwrap_or(0.0);
        match quiet {
            quiet if quiet > SILENT.0 && quiet.as_secs_f64() > usual => State::Silent(quiet),
            _ if self.steps.is_empty() => State::Starting,
            _ => State::Running,
        }
    }

    /// Steps done.
    pub fn done(&self) -> usize {
        self.steps.last().map_or(0, |s| s.step + 1)
    }

    /// Of the whole run, where that is known.
    pub fn total(&self) -> Option<usize> {
        self.planned.as_ref().map(|p| p.steps.total())
    }

    /// Those whose speed is the speed now.
    pub fn recent(&self) -> &[Step] {
        let kind = |step: &Step| (step.frozen, step.image_size);
        let now = self.steps.last().map(kind);
        let near = &self.steps[self.steps.len().saturating_sub(RECENT)..];
        let before = near.iter().rposition(|step| Some(kind(step)) != now);
        &near[before.map_or(0, |before| before + 1)..]
    }

    /// Now.
    pub fn seconds_per_step(&self) -> Option<f64> {
        median(self.recent().iter().map(|s| s.seconds.total))
    }

    /// Median of a step without frozen layers and with images as large as now, the first two, which warm up, left out.
    pub fn unfrozen_step(&self) -> Option<f64> {
        let size = self.steps.last()?.image_size;
        let unfrozen = self.steps.iter().skip(2).take_while(|s| s.frozen == 0);
        let unfrozen = unfrozen.filter(|s| s.image_size == size);
        median(unfrozen.map(|s| s.seconds.total))
    }

    /// Seconds that the other steps take at the speed of now, those with larger images by what they compute.
    pub fn left(&self) -> Option<f64> {
        let (work, done, total) = (&self.planned.as_ref()?.work, self.done(), self.total()?);
        let steps = work.between(done, total) / work.between(done.checked_sub(1)?, done);
        (done <= total).then_some(())?;
        Some(steps * self.seconds_per_step()?)
    }

    /// The next freeze (or thaw): (its step, layers frozen from it on).
    pub fn next_change(&self) -> Option<(usize, usize)> {
        let schedule = self.planned.as_ref()?.schedule.as_ref()?;
        let changes = schedule.changes();
        let next = changes.iter().find(|c| c.step >= self.done())?;
        Some((next.step, next.frozen))
    }

    /// What deserves a look.
    pub fn warnings(&self) -> Vec<String> {
        let mut all = Vec::new();
        if let State::Silent(quiet) = self.state {
            let quiet = crate::console::duration(quiet.as_secs_f64());
            all.push(format!(
                "nothing new for {quiet}: stopped, killed, or stuck"
            ));
        }
        if self.unreadable > 0 {
            let lines = crate::console::counted(self.unreadable, "unreadable line");
            all.push(format!("{lines} in metrics.jsonl"));
        }
        if self.planned.is_none() {
            all.push("no readable checkpoint.safetensors: the time left is unknown".into());
        }
        let sum = |part: fn(&Seconds) -> f64| -> f64 {
            self.recent().iter().map(|s| part(&s.seconds)).sum()
        };
        let waits = sum(|s| s.data) / sum(|s| s.total).max(1e-9);
        if waits > 0.2 {
            let percent = crate::console::percent(waits);
            all.push(format!(
                "waits for images {percent} of the time: see vitfreeze data bench"
            ));
        }
        all
    }
}

/// What the checkpoint's metadata say; its tensors are not read.
fn planned(dir: &Path) -> Option<Planned> {
    let mut file: File = datasets::open_file(&checkpoint_path(dir)).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return None;
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).ok()?;
    let header: Value = serde_json::from_slice(&header).ok()?;
    let header: Value = serde_json::from_str(header["__metadata__"]["vitfreeze"].as_str()?).ok()?;
    let config = &header["config"];
    let number = |key: &str| Some(config[key].as_u64()? as usize);
    let workers = header["workers"].as_u64().unwrap_or(1) as usize;
    let images = header["data"]["images"].as_u64()? as usize;
    let (epochs, of_batch) = (
        number("epochs")?,
        number("batch-size")?.checked_mul(workers)?,
    );
    let batches = images.checked_div(of_batch)?;
    let steps = Steps::new(batches, number("accum")?, epochs).ok()?;
    let command = header["command"].as_str().unwrap_or("pretrain");
    let pretraining = (command == "pretrain").then(|| serde_json::from_value(config.clone()).ok());
    let pretraining: Option<Config> = pretraining.flatten();
    let schedule = |config: &Config| {
        let images = of_batch.checked_mul(steps.largest())?;
        let layers = config.model().ok()?.layers();
        config.schedule(&Plan { steps, images }, layers).ok()
    };
    Some(Planned {
        // A policy decides as it goes.
        schedule: pretraining
            .as_ref()
            .filter(|config| config.policy.is_none())
            .and_then(schedule),
        work: pretraining
            .and_then(|config| config.work(&steps).ok())
            .unwrap_or(Work::even()),
        command: vit::printable(command),
        model: vit::printable(config["model"].as_str().unwrap_or_default()),
        epochs,
        steps,
    })
}
