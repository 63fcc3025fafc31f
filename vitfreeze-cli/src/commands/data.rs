//! `vitfreeze data`: look at a dataset, cache it, time its loader.
mod bench;
mod cache;
mod inspect;
mod preview;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use datasets::{EvalTransform, FinetuneTransform, PretrainTransform, Source, Transform};

use crate::input::dataset;

const EXAMPLES: &str = "\
Examples:
  vitfreeze data inspect cifar-10-binary.tar.gz          what it is, images per class, sizes
  vitfreeze data inspect imagenet --check                decode every image, list the bad ones
  vitfreeze data preview imagenet --out grid.png         what the model sees
  vitfreeze data cache cifar10 --out cifar10.cache       decode once; then --data cifar10.cache
  vitfreeze data inspect hf://datasets/uoft-cs/cifar10   fetch from the Hub what is not in the cache
  vitfreeze data bench imagenet --threads 2              images per second of the loader

A dataset (SRC, and --data of the other commands) is recognised by what is there:
  shapes                            drawn by the program
  DIR/[train|val/]CLASS/*.jpg       ImageFolder; JPEG, PNG, WebP, BMP, TIFF, GIF, PPM, .npy
  DIR/[train|val/]*.jpg             the same without labels: for pretrain, embed, data
  cifar-10-binary.tar.gz            CIFAR-10 or -100, binary version, or unpacked
  DIR/ILSVRC2012_img_train.tar      ImageNet's own tars; val.tar needs the devkit
  DIR/*.tar, shard-{0000..0099}.tar WebDataset (.jpg, and .cls for labels)
  DIR/[data/]train-*.parquet        Hugging Face, downloaded
  hf://datasets/ORG/NAME[@REVISION] Hugging Face, fetched once into its cache
  FILE                              a file made by 'data cache'";

/// Subcommands of `vitfreeze data`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what a dataset is: images per class, sizes, and with --check which files are bad
    Inspect(inspect::Args),
    /// Draw a grid of augmented samples, so that you see what the model sees
    Preview(preview::Args),
    /// Decode all images once, into one file that is fast to read (for small images)
    Cache(cache::Args),
    /// Time the loader: images per second
    Bench(bench::Args),
}

/// Runs one.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Inspect(args) => inspect::run(args),
        Command::Preview(args) => preview::run(args),
        Command::Cache(args) => cache::run(args),
        Command::Bench(args) => bench::run(args),
    }
}

/// Which images.
#[derive(clap::Args)]
struct Which {
    /// The dataset; 'vitfreeze data --help' lists the kinds
    #[arg(value_name = "SRC")]
    source: String,
    /// Part of the dataset: train or val, in any usual spelling (val also finds test data)
    #[arg(long, default_value = "train", value_name = "NAME")]
    split: String,
    /// Images of more pixels count as bad
    #[arg(long, default_value_t = datasets::MAX_PIXELS, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_pixels: u64,
}

impl Which {
    fn open(&self) -> Result<Arc<dyn Source>> {
        dataset::open(&self.source, &self.split, self.max_pixels)
    }

    /// The dataset's name, wherever it is read.
    fn place(&self) -> Result<String> {
        let source = self.source.as_str();
        if source == "shapes" || source.starts_with("hf://") {
            return Ok(source.to_owned());
        }
        Ok(std::path::absolute(source)?.display().to_string())
    }
}

/// What is done to the images.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Random resized crop and flip, as 'pretrain' does
    Pretrain,
    /// Crop, flip, RandAugment rand-m9-mstd0.5-inc1, random erasing
    Finetune,
    /// Resize and central crop
    Eval,
}

impl Kind {
    fn transform(self, size: usize) -> Box<dyn Transform> {
        match self {
            Self::Pretrain => Box::new(PretrainTransform::imagenet(size)),
            Self::Finetune => Box::new(FinetuneTransform::imagenet(size)),
            Self::Eval => Box::new(EvalTransform::imagenet(size)),
        }
    }
}
