//! `vitfreeze embed`: a folder of images as feature vectors.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, Result};
use candle_core::{Device, Tensor};
use datasets::{Batch, Source, MAX_PIXELS};
use serde_json::json;

use crate::console::{duration, note, print, Progress, Unit};
use crate::features::{extract, Output};
use crate::input::dataset;
use crate::input::pretrained::{encoder, ComputeArgs, Encoder, CHECKPOINT};
use crate::run::folder::quoted;
use crate::usage::usage;

const EXAMPLES: &str = "\
Examples:
  vitfreeze embed --checkpoint runs/pretrain-1 --data cifar10 --out features.safetensors
  vitfreeze embed --checkpoint hf://facebook/dinov2-small --data imagenet --out dino.safetensors

The file holds features (N, D) and, if the images have any, labels (N). Its metadata key 'vitfreeze' is \
JSON with the file names, the classes and the checkpoint. Images that cannot be read are skipped, with a warning.";

/// Flags of `vitfreeze embed`.
#[derive(clap::Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[arg(long, value_name = "CHECKPOINT", help = CHECKPOINT)]
    checkpoint: String,
    /// Dataset of any kind; see 'vitfreeze data --help'
    #[arg(long, value_name = "SRC")]
    data: String,
    /// Which split, where there are several
    #[arg(long, value_name = "NAME", default_value = "train")]
    split: String,
    /// Safetensors file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Images computed at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch_size: u32,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    let (threads, device) = args.compute.start()?;
    writable(&args.out)?;
    let source = dataset::open(&args.data, &args.split, MAX_PIXELS)?;
    let Encoder {
        pretrained,
        judged,
        model,
        compute,
    } = encoder(&args.checkpoint, &args.compute, &device)?;
    note(source.describe());

    let started = std::time::Instant::now();
    let progress = Progress::new(source.len() as u64, Unit::Images);
    let mut all = Features::default();
    let skipped = extract(
        &model,
        &source,
        &judged,
        args.batch_size as usize,
        threads,
        &device,
        Output::Pooled,
        &progress,
        |batch, values| {
            all.add(batch, values, &*source);
            Ok(())
        },
    )?;
    progress.close();
    let rows = all.labels.len();
    let unit = compute.bf16_unit();
    all.write(&args.out, &*source, &args.checkpoint, unit)?;
    let seconds = started.elapsed().as_secs_f64();
    print(format!(
        "{}: {rows} images, {} numbers each, {skipped} left out; {} ({:.1} images/s)",
        quoted(&args.out),
        pretrained.cfg.features(),
        duration(seconds),
        rows as f64 / seconds
    ))?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Default)]
struct Features {
    values: Vec<f32>,
    labels: Vec<i64>,
    names: Vec<String>,
}

impl Features {
    fn add(&mut self, batch: &Batch, values: Vec<f32>, source: &dyn Source) {
        self.values.extend(values);
        self.labels
            .extend(batch.labels.iter().map(|&l| i64::from(l)));
        let name = |&index: &u64| source.name(index as usize);
        self.names.extend(batch.indices.iter().map(name));
    }

    fn write(
        self,
        path: &Path,
        source: &dyn Source,
        checkpoint: &str,
        unit: Option<&str>,
    ) -> Result<()> {
        let rows = self.labels.len();
        if rows == 0 {
            bail!("not one image could be read");
        }
        let width = self.values.len() / rows;
        let features = Tensor::from_vec(self.values, (rows, width), &Device::Cpu)?;
        let mut tensors = BTreeMap::from([("features".to_owned(), features)]);
        if source.labelled() {
            let labels = Tensor::from_vec(self.labels, rows, &Device::Cpu)?;
            tensors.insert("labels".to_owned(), labels);
        }
        let about = json!({
            "checkpoint": checkpoint,
            "classes": source.classes(),
            "names": self.names,
            "bf16-unit": unit,
        });
        vit::save_atomic(path, &tensors, ("vitfreeze", about.to_string()))?;
        Ok(())
    }
}

/// Better now than after an hour of work.
fn writable(path: &Path) -> Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if path.is_dir() || path.file_name().is_none() {
        return Err(usage(format!(
            "--out {}: a folder; name a file",
            path.display()
        )));
    }
    if !parent.is_dir() {
        return Err(usage(format!(
            "--out {}: no folder {}",
            path.display(),
            parent.display()
        )));
    }
    Ok(())
}
