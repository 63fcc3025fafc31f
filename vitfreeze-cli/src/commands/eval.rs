//! `vitfreeze eval`: how good a classifier is, as a number, by class, and image by image.
pub mod confusion;
mod labels;
mod mistakes;
mod tables;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{bail, Result};
use candle_core::Device;
use datasets::Source;
use serde_json::{json, Value};
use vit::ops::Compute;
use vit::{Head, Pretrained};

use crate::accuracy::Accuracy;
use crate::console::{counted, duration, note, print, Progress, Unit};
use crate::draw;
use crate::features::{extract, Output};
use crate::input::channels::Judged;
use crate::input::classes::Relabelled;
use crate::input::pretrained::{input_size, judged, load, open, ComputeArgs, CHECKPOINT};
use crate::input::splits::{check_labels, open_split};
use crate::machine::{device, interrupt};
use crate::run::data::RunData;
use crate::run::folder::{abandon, claim, quoted};
use crate::run::result::{self, RunResult};
use crate::settings::absolute;
use crate::usage::usage;
use labels::{listed, Labels};
use mistakes::Mistakes;
use tables::Table;

const EXAMPLES: &str = "\
Examples:
  vitfreeze eval --checkpoint runs/finetune-1
  vitfreeze eval --checkpoint hf://google/vit-base-patch16-224 --data imagenet --predictions p.csv

Writes to --out: result.json (accuracy, settings, seconds), per_class.csv, confusion.csv, \
confusion.png, mistakes.png (the wrong predictions with the highest confidence).";

/// What is written beside result.json.
const FILES: [&str; 4] = [
    "per_class.csv",
    "confusion.csv",
    "confusion.png",
    "mistakes.png",
];

/// Flags of `vitfreeze eval`.
#[derive(clap::Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[arg(long, value_name = "CHECKPOINT", help = CHECKPOINT)]
    checkpoint: String,
    /// Dataset; see 'vitfreeze data --help' [default: the dataset of the checkpoint's run]
    #[arg(long, value_name = "SRC")]
    data: Option<String>,
    /// Which split
    #[arg(long, value_name = "NAME", default_value = "val")]
    split: String,
    /// Folder for the results [default: runs/eval-N, the next free N]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// CSV file of every image: name, class, and the five likeliest classes with their probabilities
    #[arg(long, value_name = "FILE")]
    predictions: Option<PathBuf>,
    /// Images of 'shapes' (its split val has a quarter of them) [default: 4096, or those of the checkpoint's run]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(10..))]
    samples: Option<u32>,
    /// Images computed at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch_size: u32,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    let started = Instant::now();
    let (threads, device) = args.compute.start()?;
    let checkpoint = open(&args.checkpoint, &args.compute.model)?;
    let outputs = checkpoint.config().num_classes;
    if outputs == 0 {
        return Err(usage(format!(
            "{}: has no head, so no classes; use 'vitfreeze knn' or 'vitfreeze linprobe' for encoders",
            args.checkpoint
        )));
    }
    let size = input_size(&checkpoint, args.compute.model.clone());
    let pretrained = load(&checkpoint, &size, Head::Keep, &device)?;
    let judged = judged(&checkpoint, &pretrained)?;
    let (given, samples) = (args.data.as_deref(), args.samples);
    let of_run = RunData::asked_or_of(given, None, samples, &args.checkpoint)?;
    let data = match (&of_run.val_data, args.split.as_str()) {
        (Some(val_data), "val") => val_data,
        _ => &of_run.data,
    };
    let source = open_split(data, &args.split, of_run.samples(), judged.size().0)?;
    if source.is_empty() {
        return Err(usage(format!(
            "{data}: the split '{}' has no images",
            args.split
        )));
    }
    check_labels(&args.split, &*source)?;
    let labels = Labels::new(&pretrained.labels, outputs, source.classes())
        .map_err(|e| usage(format!("{}: {e}", args.checkpoint)))?;
    for line in &labels.notes {
        note(format!("note: {line}"));
    }
    let known = Relabelled::new(source.clone(), labels.names.clone(), &labels.map);
    let left_out = source.len() - known.len();
    if left_out > 0 {
        let classes = source.classes().iter().zip(&labels.map);
        let unknown = classes
            .filter(|(_, m)| m.is_none())
            .map(|(c, _)| c.as_str());
        note(format!(
            "note: {left_out} of {} images are left out: the checkpoint does not know {} of the data's {} classes, or knows several of that name ({})",
            source.len(),
            unknown.clone().count(),
            source.classes().len(),
            listed(unknown)
        ));
    }
    if labels.names.len() < 2 {
        return Err(usage(format!(
            "only one of the {outputs} classes of {} is in the data ('{}'), and among one class every answer is right; add images of other classes, or look at these with vitfreeze classify",
            args.checkpoint,
            labels.names.first().map_or("", String::as_str).escape_debug()
        )));
    }
    if known.is_empty() {
        return Err(usage(format!(
            "{data}: no image is of a class that the checkpoint knows"
        )));
    }
    let record = labels.record(source.classes(), left_out);
    let source: Arc<dyn Source> = Arc::new(known);
    let compute = args.compute.dtype.compute(&device)?;
    note(source.describe());
    let dir = claim(args.out.as_deref(), "eval")?;
    interrupt::listen_saying("stopping; nothing is left behind")?;
    let judge = Judge {
        args: &args,
        data,
        record,
        pretrained: &pretrained,
        compute,
        source: &source,
        labels: &labels,
        judged,
        threads,
        device: &device,
    };
    match judge.run(&dir, started) {
        Ok((accuracy, seconds)) => {
            judge.tell(&dir, &accuracy, seconds)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            if let Some(path) = args.predictions.filter(|path| path.starts_with(&dir)) {
                let _ = std::fs::remove_file(path);
            }
            abandon(&dir, &FILES, error)
        }
    }
}

struct Judge<'a> {
    args: &'a Args,
    data: &'a str,
    /// How the classes were matched.
    record: Value,
    pretrained: &'a Pretrained,
    compute: Compute,
    source: &'a Arc<dyn Source>,
    labels: &'a Labels,
    judged: Judged,
    threads: usize,
    device: &'a Device,
}

impl Judge<'_> {
    /// Computes and writes everything; also returns the seconds that it took.
    fn run(&self, dir: &Path, started: Instant) -> Result<(Accuracy, f64)> {
        // In the folder just made it may be, too.
        let path = self.args.predictions.as_deref();
        let mut table = path.map(Table::predictions).transpose()?;
        let (accuracy, mistakes) = self.accuracy(table.as_mut())?;
        let seconds = self.write(dir, &accuracy, table, started)?;
        // Of other channels there is no picture.
        let drawn = self.judged.rgb().map_or(Ok(None), |transform| {
            mistakes.draw(self.source, &self.labels.names, transform)
        });
        let drawn = drawn.and_then(|picture| match picture {
            Some(picture) => draw::save(&dir.join("mistakes.png"), &picture),
            None => Ok(()),
        });
        // The numbers do not need it.
        if let Err(error) = drawn {
            note(vit::printable(&format!("note: no mistakes.png: {error:#}")));
        }
        Ok((accuracy, seconds))
    }

    fn accuracy(&self, mut table: Option<&mut Table>) -> Result<(Accuracy, Mistakes)> {
        let classes = self.labels.names.len();
        let (mut accuracy, mut mistakes) = (Accuracy::new(classes), Mistakes::default());
        let model = self.pretrained.backbone()?.with_compute(&self.compute);
        let progress = Progress::new(self.source.len() as u64, Unit::Images);
        let left_out = extract(
            &model,
            self.source,
            &self.judged,
            self.args.batch_size as usize,
            self.threads,
            self.device,
            Output::Logits,
            &progress,
            |batch, logits| {
                if interrupt::asked() {
                    bail!("interrupted");
                }
                let logits = self.labels.judged(logits);
                accuracy.add(&logits, &batch.labels);
                let rows = logits.chunks_exact(classes).zip(&batch.labels);
                for (&index, (row, &label)) in batch.indices.iter().zip(rows) {
                    mistakes.add(index as usize, label as usize, row);
                    if let Some(table) = table.as_mut() {
                        let name = self.source.name(index as usize);
                        table.prediction(&name, label, row, &self.labels.names)?;
                    }
                }
                Ok(())
            },
        )?;
        progress.close();
        if left_out > 0 {
            note(format!("{} left out", counted(left_out, "image")));
        }
        if accuracy.images() == 0 {
            bail!("not one image could be read");
        }
        if accuracy.loss().is_nan() {
            note("warning: some logits are NaN; these images count as wrong");
        }
        Ok((accuracy, mistakes))
    }

    fn write(
        &self,
        dir: &Path,
        accuracy: &Accuracy,
        table: Option<Table>,
        started: Instant,
    ) -> Result<f64> {
        let (names, cells) = (&self.labels.names, accuracy.confusion());
        tables::per_class(&dir.join("per_class.csv"), names, cells)?;
        tables::confusion(&dir.join("confusion.csv"), names, cells)?;
        draw::save(&dir.join("confusion.png"), &confusion::draw(names, cells))?;
        if let Some(table) = table {
            table.finish()?;
        }
        let seconds = started.elapsed().as_secs_f64();
        let args = self.args;
        let written = RunResult {
            kind: "eval".into(),
            top1: Some(accuracy.top1()),
            top5: Some(accuracy.top5()),
            loss: Some(accuracy.loss()).filter(|loss| loss.is_finite()),
            best_epoch: None,
            images: accuracy.images(),
            saved: None,
            seconds,
            peak_bytes: device::peak_bytes(self.device),
            settings: json!({
                "checkpoint": absolute("checkpoint", &args.checkpoint)?,
                "data": self.data,
                "split": args.split,
                "classes": self.record,
                "image-size": self.judged.size(),
                "channels": self.judged.channels(),
                "crop-pct": self.pretrained.preprocess.crop_told(),
                "dtype": self.args.compute.dtype,
                "bf16-unit": self.compute.bf16_unit(),
            }),
            versions: result::versions(),
        };
        result::write(dir, &written)?;
        Ok(seconds)
    }

    fn tell(&self, dir: &Path, accuracy: &Accuracy, seconds: f64) -> Result<()> {
        print(format!(
            "top-1 {:.2} %, top-5 {:.2} %, loss {:.4}; {} images in {}",
            accuracy.top1(),
            accuracy.top5(),
            accuracy.loss(),
            accuracy.images(),
            duration(seconds)
        ))?;
        for line in tables::worst(&self.labels.names, accuracy.confusion()) {
            print(line)?;
        }
        print(format!("Files in {}:", quoted(dir)))?;
        print("  result.json      accuracy, settings, seconds, versions")?;
        print("  per_class.csv    accuracy of each class")?;
        print(match self.labels.names.len() > tables::DENSE {
            true => "  confusion.csv    label,prediction,count: which class was taken for which",
            false => "  confusion.csv    which class was taken for which, as numbers",
        })?;
        print("  confusion.png    the same as a picture")?;
        if dir.join("mistakes.png").is_file() {
            print("  mistakes.png     the wrong predictions with the highest confidence")?;
        }
        Ok(())
    }
}
