//! `vitfreeze embed`: a folder of images as feature vectors.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, Result};
use candle_core::{Device, Tensor};
use datasets::{EvalTransform, ImageFolder, Source, Transform as _};
use rayon::prelude::*;
use serde_json::json;
use vit::{Head, Vit};

use crate::folder::quoted;
use crate::pretrained::{input_size, load, open, transform, ModelArgs};
use crate::progress::{Progress, Unit};
use crate::report::{note, print};
use crate::usage::usage;
use crate::{device, metrics};

const EXAMPLES: &str = "\
Examples:
  vitfreeze embed --checkpoint runs/pretrain-1/encoder.safetensors --data cifar10 --out features.safetensors
  vitfreeze embed --checkpoint hf://facebook/dinov2-small --data imagenet --split val --out dino.safetensors

The file holds features (N, D) and labels (N); its metadata key 'vitfreeze' is JSON with the file names, the classes and
the checkpoint. Images that cannot be read are left out and told about.";

/// Flags of `vitfreeze embed`.
#[derive(clap::Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// File (.safetensors, .pth, .bin, .index.json), folder, or hf://org/name@revision
    #[arg(long, value_name = "CHECKPOINT")]
    checkpoint: String,
    /// Folder of images: one folder per class, or splits with them inside
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Which split, where there are several
    #[arg(long, value_name = "NAME", default_value = "train")]
    split: String,
    /// Safetensors file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Images computed at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch_size: u32,
    /// Threads, 0 = one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    device: String,
    #[command(flatten)]
    model: ModelArgs,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    device::set_threads(args.threads)?;
    let device = device::open(&args.device)?;
    writable(&args.out)?;
    let source = ImageFolder::open(&args.data, &args.split).map_err(usage)?;
    let checkpoint = open(&args.checkpoint, &args.model)?;
    let model_args = input_size(&checkpoint, args.model);
    let pretrained = load(&checkpoint, &model_args, Head::Drop, &device)?;
    let transform = transform(&pretrained);
    transform.check().map_err(usage)?;
    let model = pretrained.model()?;
    note(source.describe());

    let started = std::time::Instant::now();
    let progress = Progress::new(source.len() as u64, Unit::Images);
    let mut all = Features::default();
    for first in (0..source.len()).step_by(args.batch_size as usize) {
        let last = source.len().min(first + args.batch_size as usize);
        let (images, read) = batch(&source, &transform, first..last, &mut all, &progress)?;
        if !read.is_empty() {
            let (height, width) = transform.size;
            let images = Tensor::from_vec(images, (read.len(), 3, height, width), &device)?;
            all.add(&model, &images, &source, &read)?;
        }
        progress.at("", last as u64, source.len() as u64);
    }
    progress.close();
    let (rows, skipped) = (all.labels.len(), all.skipped);
    all.write(&args.out, &source, &args.checkpoint)?;
    let seconds = started.elapsed().as_secs_f64();
    print(format!(
        "{}: {rows} images, {} numbers each, {skipped} left out; {} ({:.1} images/s)",
        quoted(&args.out),
        pretrained.cfg.features(),
        metrics::duration(seconds),
        rows as f64 / seconds
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Decodes and transforms images on all threads; what cannot be read is told about and left out.
fn batch(
    source: &ImageFolder,
    transform: &EvalTransform,
    range: std::ops::Range<usize>,
    all: &mut Features,
    progress: &Progress,
) -> Result<(Vec<f32>, Vec<usize>)> {
    let (height, width) = transform.size;
    let one = |index: usize| -> Result<Vec<f32>, datasets::Error> {
        let mut pixels = vec![0f32; 3 * height * width];
        transform.apply(&source.image(index)?, &mut pixels)?;
        Ok(pixels)
    };
    let decoded: Vec<_> = range.into_par_iter().map(|i| (i, one(i))).collect();
    let (mut images, mut read) = (Vec::new(), Vec::new());
    for (index, pixels) in decoded {
        match pixels {
            Ok(pixels) => {
                images.extend(pixels);
                read.push(index);
            }
            Err(e) => {
                all.skipped += 1;
                progress.say(format!("warning: left out: {e}"));
                if all.skipped > 10 + source.len() / 100 {
                    bail!("{} images cannot be read; repair the dataset", all.skipped);
                }
            }
        }
    }
    Ok((images, read))
}

#[derive(Default)]
struct Features {
    values: Vec<f32>,
    labels: Vec<i64>,
    names: Vec<String>,
    skipped: usize,
}

impl Features {
    fn add(
        &mut self,
        model: &Vit,
        images: &Tensor,
        source: &ImageFolder,
        read: &[usize],
    ) -> Result<()> {
        let features = model.pool(&model.forward_features(images)?)?;
        let features = features.flatten_all()?.to_device(&Device::Cpu)?;
        self.values.extend(features.to_vec1::<f32>()?);
        self.labels
            .extend(read.iter().map(|&i| source.label(i) as i64));
        self.names.extend(read.iter().map(|&i| source.name(i)));
        Ok(())
    }

    fn write(self, path: &Path, source: &ImageFolder, checkpoint: &str) -> Result<()> {
        let rows = self.labels.len();
        if rows == 0 {
            bail!("not one image could be read");
        }
        let width = self.values.len() / rows;
        let tensors = BTreeMap::from([
            (
                "features".to_owned(),
                Tensor::from_vec(self.values, (rows, width), &Device::Cpu)?,
            ),
            (
                "labels".to_owned(),
                Tensor::from_vec(self.labels, rows, &Device::Cpu)?,
            ),
        ]);
        let about = json!({
            "checkpoint": checkpoint,
            "classes": source.classes(),
            "names": self.names,
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
