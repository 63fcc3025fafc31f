//! `vitfreeze data cache`.
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{bail, Context, Result};
use datasets::{write_cache, Error, Image, Source};
use rayon::prelude::*;

use super::Which;
use crate::console::{counted, print, Progress, Unit};
use crate::machine::{device, interrupt};
use crate::run::folder::quoted;
use crate::usage::usage;

/// Images decoded at once by each thread: more would only need more memory.
const CHUNK: usize = 4;

/// Flags of `vitfreeze data cache`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  vitfreeze data cache cifar10 --out cifar10.cache\n  \
                  vitfreeze pretrain --config configs/tiny-cifar.toml --data cifar10.cache\n\n\
                  Batches are the same as without the cache, bit for bit. Images keep their size: 3 bytes a pixel."
)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// File to write; must not exist
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Threads, 0 = one per core
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    device::set_threads(args.threads)?;
    if args.out.exists() {
        let out = args.out.display();
        return Err(usage(format!(
            "{out} exists; remove it or name another --out"
        )));
    }
    let source = args.which.open()?;
    print(source.describe())?;
    interrupt::listen_saying("stopping; nothing is left behind")?;
    let write = || -> Result<usize> {
        let staged = vit::Staged::beside(&args.out)?;
        let file = File::create(staged.place())?;
        let images = Decoded::new(&*source);
        let origin = (args.which.place()?, args.which.split.as_str());
        let bad = write_cache(&file, &*source, (&origin.0, origin.1), images)?;
        // What cannot be read now would be missing for good.
        if bad * 100 > source.len() {
            bail!(
                "{bad} of {} images could not be read, more than 1 %; nothing was written",
                source.len()
            );
        }
        staged.commit()?;
        Ok(bad)
    };
    let bad = match write() {
        Err(_) if interrupt::asked() => return Ok(ExitCode::from(interrupt::exit_code())),
        other => other.with_context(|| format!("cannot write {}", args.out.display()))?,
    };
    if bad > 0 {
        print(format!(
            "{} could not be read; the loader will skip them",
            counted(bad, "image")
        ))?;
    }
    let bytes = std::fs::metadata(&args.out)?.len();
    print(format!(
        "{}: {:.1} MB",
        args.out.display(),
        bytes as f64 / 1e6
    ))?;
    let out = quoted(&args.out);
    print(match args.which.split.as_str() {
        "train" => format!("next: vitfreeze pretrain --data {out} ..."),
        split => format!("next: vitfreeze data inspect {out} --split {split}"),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The images in order, decoded in parallel. Ends early when interrupted.
struct Decoded<'a> {
    source: &'a dyn Source,
    next: usize,
    ready: std::vec::IntoIter<Result<Image, Error>>,
    progress: Progress,
}

impl<'a> Decoded<'a> {
    fn new(source: &'a dyn Source) -> Self {
        Self {
            source,
            next: 0,
            ready: vec![].into_iter(),
            progress: Progress::new(source.len() as u64, Unit::Images),
        }
    }
}

impl Iterator for Decoded<'_> {
    type Item = Result<Image, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(image) = self.ready.next() {
            return Some(image);
        }
        let end = self
            .source
            .len()
            .min(self.next + CHUNK * rayon::current_num_threads());
        if interrupt::asked() || self.next == end {
            self.progress.close();
            return None;
        }
        let chunk = self.next..end;
        let images: Vec<_> = chunk
            .into_par_iter()
            .map(|i| self.source.image(i))
            .collect();
        for error in images.iter().filter_map(|i| i.as_ref().err()) {
            self.progress.say(format!("warning: {error}"));
        }
        let all = self.source.len() as u64;
        self.progress.at("cached", end as u64, all);
        self.next = end;
        self.ready = images.into_iter();
        self.ready.next()
    }
}
