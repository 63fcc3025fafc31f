//! `vitfreeze data bench`.
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use datasets::{Loader, LoaderConfig};
use serde::Serialize;

use super::{Kind, Which};
use crate::console::{print, print_json};
use crate::machine::device;
use crate::settings::bounded;
use crate::usage::usage;

/// Flags of `vitfreeze data bench`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  vitfreeze data bench imagenet --threads 2\n  \
                  vitfreeze data bench cifar10.cache --image-size 32 --threads 1\n  \
                  python3 benches/pytorch/data.py --vitfreeze target/release/vitfreeze imagenet    beside torchvision"
)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// What is done to the images
    #[arg(long, value_enum, default_value_t = Kind::Pretrain)]
    transform: Kind,
    /// Side of the result in pixels
    #[arg(long, default_value_t = 224, value_name = "PX")]
    image_size: usize,
    /// Images in a batch
    #[arg(long, default_value_t = 64, value_name = "N")]
    batch_size: usize,
    /// Threads, 0 = one per core
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
    /// How long to measure
    #[arg(long, default_value_t = 5, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=86400))]
    seconds: u64,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Output {
    images_per_second: f64,
    first_batch_s: f64,
    images: usize,
    threads: usize,
    skipped: usize,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    bounded(&[
        ("--image-size", args.image_size, 4096),
        ("--batch-size", args.batch_size, 1 << 20),
    ])?;
    let threads = device::set_threads(args.threads)?;
    let source = args.which.open()?;
    let line = source.describe();
    let config = LoaderConfig {
        batch_size: args.batch_size.min(source.len()),
        threads,
        prefetch: 4,
        ..LoaderConfig::default()
    };
    let transform = args.transform.transform(args.image_size);
    let loader = Loader::new(source, transform, config).map_err(usage)?;
    let start = Instant::now();
    let mut batches = loader.stream(0, 0);
    let mut next = || -> Result<usize> {
        let batch = batches.next().context("the loader ended early")??;
        let images = batch.labels.len();
        batches.recycle(batch.images);
        Ok(images)
    };
    next()?;
    let first_batch_s = start.elapsed().as_secs_f64();
    // What was prepared beside the first batch is no measure of speed.
    for _ in 0..config.prefetch {
        next()?;
    }
    let (start, mut images) = (Instant::now(), 0);
    while start.elapsed().as_secs() < args.seconds {
        images += next()?;
    }
    let output = Output {
        images_per_second: images as f64 / start.elapsed().as_secs_f64(),
        first_batch_s,
        images,
        threads,
        skipped: loader.skipped_count(),
    };
    if args.json {
        print_json(&output)?;
        return Ok(ExitCode::SUCCESS);
    }
    print(line)?;
    print(format!(
        "{:.0} images/s at {} px, {threads} threads, batches of {} (first batch after {:.0} ms, {} images skipped)",
        output.images_per_second,
        args.image_size,
        config.batch_size,
        1e3 * first_batch_s,
        output.skipped
    ))?;
    Ok(ExitCode::SUCCESS)
}
