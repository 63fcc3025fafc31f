//! `vitfreeze knn`: how well an encoder's features tell classes apart, without training anything.
mod search;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{bail, Result};
use candle_core::Device;
use datasets::Source;
use serde_json::json;
use vit::ops::Compute;
use vit::{Backbone, Head, Pretrained};

use crate::console::{counted, duration, note, print, Progress, Unit};
use crate::features::{extract, Output};
use crate::input::channels::Judged;
use crate::input::pretrained::{input_size, judged, load, open, pooling, ComputeArgs, CHECKPOINT};
use crate::input::splits::Data;
use crate::input::subset::Subset;
use crate::machine::device::peak_bytes;
use crate::machine::interrupt;
use crate::run::data::RunData;
use crate::run::folder::{abandon, claim, quoted};
use crate::run::metrics::Metrics;
use crate::run::result::{self, RunResult};
use crate::settings::absolute;
use crate::train::Pool;
use crate::usage::usage;
use search::{vote, Bank};

/// DINO's neighbourhoods and temperature.
const KS: [usize; 4] = [10, 20, 100, 200];
/// The one that DINO reports. Fixed: to choose the best on the validation split would flatter.
const HEADLINE: usize = 20;
const TEMPERATURE: f64 = 0.07;

const EXAMPLES: &str = "\
Examples:
  vitfreeze knn --checkpoint runs/pretrain-1
  vitfreeze knn --checkpoint hf://facebook/dinov2-small --data imagenet --max-images 20000

The k most similar training images vote for the class of each validation image. Similarity is the \
cosine of the features; a vote counts exp(similarity / 0.07). This is DINO's protocol, for k = 10, \
20, 100, 200. The search is exact.";

/// Flags of `vitfreeze knn`.
#[derive(clap::Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[arg(long, value_name = "CHECKPOINT", help = CHECKPOINT)]
    checkpoint: String,
    /// Dataset with the splits train and val; see 'vitfreeze data --help' [default: the dataset of the checkpoint's run]
    #[arg(long, value_name = "SRC")]
    data: Option<String>,
    /// Dataset to take the split val from [default: --data]
    #[arg(long, value_name = "SRC")]
    val_data: Option<String>,
    /// Folder for result.json and metrics.jsonl [default: runs/knn-N, the next free N]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// For a quick look: only so many images of each split, the first after a shuffle by --seed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_images: Option<u32>,
    /// Seed of that shuffle
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Images of 'shapes' [default: 4096, or those of the checkpoint's run]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(10..))]
    samples: Option<u32>,
    /// An image's feature: token (class token) or avg (mean of the patches) [default: the checkpoint's own]
    #[arg(long, value_name = "NAME")]
    pool: Option<Pool>,
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
    let pool = pooling(&checkpoint, args.pool.map(Into::into));
    let size = input_size(&checkpoint, args.compute.model.clone());
    let mut pretrained = load(&checkpoint, &size, Head::Drop, &device)?;
    pretrained.cfg.pool = pool;
    pretrained.cfg.validate().map_err(usage)?;
    let judged = judged(&checkpoint, &pretrained)?;
    let (given, val_data) = (args.data.as_deref(), args.val_data.as_deref());
    let of_run = RunData::asked_or_of(given, val_data, args.samples, &args.checkpoint)?;
    let names = (of_run.data.as_str(), of_run.val_data.as_deref());
    let data = Data::open_both(names, of_run.samples(), judged.size().0)?;
    let compute = args.compute.dtype.compute(&device)?;
    note(data.describe());
    let dir = claim(args.out.as_deref(), "knn")?;
    interrupt::listen_saying("stopping; nothing is left behind")?;
    let done = compare_all(
        &args,
        &of_run,
        &dir,
        data,
        &pretrained,
        &compute,
        judged,
        threads,
        &device,
        started,
    );
    match done {
        Ok(lines) => {
            for line in lines {
                print(line)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => abandon(&dir, &["metrics.jsonl"], error),
    }
}

/// Computes and writes everything, and returns what is to be said of it.
#[allow(clippy::too_many_arguments)]
fn compare_all(
    args: &Args,
    of_run: &RunData,
    dir: &Path,
    data: Data,
    pretrained: &Pretrained,
    compute: &Compute,
    judged: Judged,
    threads: usize,
    device: &Device,
    started: Instant,
) -> Result<Vec<String>> {
    let classes = data.classes().len();
    let part = |source: Arc<dyn Source>| Subset::of(source, args.max_images, args.seed);
    let (train, val) = (part(data.train), part(data.val));
    let extractor = Extractor {
        model: pretrained.backbone()?.with_compute(compute),
        judged,
        batch_size: args.batch_size as usize,
        threads,
        device,
    };
    let bank = extractor.bank("training", &train, pretrained.cfg.features())?;
    let queries = extractor.bank("validation", &val, pretrained.cfg.features())?;
    let ks: Vec<usize> = KS.iter().copied().filter(|&k| k <= bank.len()).collect();
    let ks = if ks.is_empty() { vec![bank.len()] } else { ks };
    if ks.len() < KS.len() {
        note(format!(
            "note: {} training images, so k = {}",
            bank.len(),
            list(&ks)
        ));
    }
    let most = ks.iter().copied().max().unwrap_or(1);
    let progress = Progress::new(queries.len() as u64, Unit::Images);
    let mut counts = vec![[0usize; 2]; ks.len()];
    bank.nearest(&queries, most, device, |label, neighbours, done| {
        for (count, &k) in counts.iter_mut().zip(&ks) {
            let near = neighbours.get(..k).unwrap_or(neighbours);
            if let Some(rank) = vote(near, bank.labels(), classes, TEMPERATURE, label) {
                count[0] += usize::from(rank == 0);
                count[1] += usize::from(rank < 5);
            }
        }
        progress.at("compared", done as u64, queries.len() as u64);
    })?;
    progress.close();
    if interrupt::asked() {
        bail!("interrupted");
    }

    let percent = |n: usize| 100.0 * n as f64 / queries.len() as f64;
    let seconds = started.elapsed().as_secs_f64();
    let mut metrics = Metrics::lock(&dir.join("metrics.jsonl"))?;
    let mut lines = vec!["    k   top-1 %   top-5 %".to_owned()];
    let mut headline: Option<(f64, f64, usize)> = None;
    for (&k, count) in ks.iter().zip(&counts) {
        let (top1, top5) = (percent(count[0]), percent(count[1]));
        lines.push(format!("{k:>5}  {top1:>8.2}  {top5:>8.2}"));
        metrics.write(&Row { k, top1, top5 })?;
        if headline.is_none() || k <= HEADLINE {
            headline = Some((top1, top5, k));
        }
    }
    metrics.flush()?;
    let Some((top1, top5, k)) = headline else {
        bail!("no neighbourhood to count with");
    };
    let written = RunResult {
        kind: "knn".into(),
        top1: Some(top1),
        top5: Some(top5),
        loss: None,
        best_epoch: None,
        images: queries.len(),
        saved: None,
        seconds,
        peak_bytes: peak_bytes(device),
        settings: json!({
            "checkpoint": absolute("checkpoint", &args.checkpoint)?,
            "data": of_run.data,
            "val-data": of_run.val_data,
            "pool": pretrained.cfg.pool,
            "k": k,
            "temperature": TEMPERATURE,
            "max-images": args.max_images,
            "seed": args.seed,
            "image-size": extractor.judged.size(),
            "channels": pretrained.cfg.in_chans,
            "training-images": bank.len(),
            "dtype": args.compute.dtype,
            "bf16-unit": compute.bf16_unit(),
        }),
        versions: result::versions(),
    };
    result::write(dir, &written)?;
    lines.push(format!(
        "{} validation against {} training images, {} numbers each, in {}; {}",
        queries.len(),
        bank.len(),
        pretrained.cfg.features(),
        duration(seconds),
        quoted(&dir.join("result.json")),
    ));
    Ok(lines)
}

/// One neighbourhood's line in metrics.jsonl.
#[derive(serde::Serialize, serde::Deserialize)]
struct Row {
    k: usize,
    top1: f64,
    top5: f64,
}

impl crate::run::metrics::Line for Row {
    fn step(&self) -> usize {
        self.k
    }
}

fn list(ks: &[usize]) -> String {
    let ks: Vec<String> = ks.iter().map(usize::to_string).collect();
    ks.join(", ")
}

struct Extractor<'a> {
    model: Backbone,
    judged: Judged,
    batch_size: usize,
    threads: usize,
    device: &'a Device,
}

impl Extractor<'_> {
    /// The features of all images that can be read.
    fn bank(&self, what: &str, source: &Arc<dyn Source>, width: usize) -> Result<Bank> {
        let progress = Progress::new(source.len() as u64, Unit::Images);
        let mut bank = Bank::with_capacity(source.len(), width);
        let left_out = extract(
            &self.model,
            source,
            &self.judged,
            self.batch_size,
            self.threads,
            self.device,
            Output::Pooled,
            &progress,
            |batch, features| {
                if interrupt::asked() {
                    bail!("interrupted");
                }
                if let Some(bad) = bank.add(&features, &batch.labels) {
                    let index = batch.indices.get(bad).map_or(0, |&i| i as usize);
                    let name = source.name(index);
                    bail!("{}: its features are not finite", name.escape_debug());
                }
                Ok(())
            },
        )?;
        progress.close();
        if left_out > 0 {
            note(format!(
                "{} left out",
                counted(left_out, &format!("{what} image"))
            ));
        }
        if bank.len() == 0 {
            bail!("not one {what} image could be read");
        }
        Ok(bank)
    }
}
