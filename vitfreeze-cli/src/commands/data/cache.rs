//! `vitfreeze data cache`.
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{bail, Context, Result};
use datasets::{write_cache, DecodeMemory, Error, Image, Source};
use rayon::prelude::*;

use super::Which;
use crate::console::{counted, print, Progress, Unit};
use crate::machine::{device, interrupt};
use crate::run::folder::quoted;
use crate::usage::usage;

/// Images decoded at once by each thread: more would only need more memory.
const CHUNK: usize = 4;
/// Bytes of decoded images that wait to be written; one more may be larger.
const MAX_WAITING: u64 = 256 << 20;

/// Flags of `vitfreeze data cache`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  vitfreeze data cache cifar10 --out cifar10.cache\n  \
                  vitfreeze pretrain --config configs/tiny-cifar.toml --data cifar10.cache\n\n\
                  Batches are the same as without the cache, bit for bit. Images keep their size: 3 bytes a pixel.\n\
                  RGB of 8 bits: pretrain --channels takes the images themselves."
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
    memory: DecodeMemory,
    next: usize,
    ready: std::vec::IntoIter<Result<Image, Error>>,
    progress: Progress,
}

impl<'a> Decoded<'a> {
    fn new(source: &'a dyn Source) -> Self {
        Self {
            source,
            memory: DecodeMemory::default(),
            next: 0,
            ready: vec![].into_iter(),
            progress: Progress::new(source.len() as u64, Unit::Images),
        }
    }

    /// The images from `next` to `end`, or only the first of them where they are so large that all would take more than
    /// `most` bytes.
    fn chunk(&self, end: usize, most: u64) -> Vec<Result<Image, Error>> {
        let held = AtomicU64::new(0);
        let decode = |index| {
            if held.load(Ordering::Relaxed) > most {
                return None;
            }
            let mut permit = self.memory.permit();
            let image = self.source.read(index, &mut permit);
            let bytes = image.as_ref().map_or(0, |i| i.rgb.len() as u64);
            // Images that other threads made meanwhile may have filled it: this one is decoded again later.
            (held.fetch_add(bytes, Ordering::Relaxed) <= most).then_some(image)
        };
        let images: Vec<Option<_>> = (self.next..end).into_par_iter().map(decode).collect();
        let images: Vec<_> = images.into_iter().map_while(|image| image).collect();
        match images.is_empty() {
            true => vec![self.source.read(self.next, &mut self.memory.permit())],
            false => images,
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
        let images = self.chunk(end, MAX_WAITING);
        for error in images.iter().filter_map(|i| i.as_ref().err()) {
            self.progress.say(format!("warning: {error}"));
        }
        let all = self.source.len() as u64;
        self.next += images.len();
        self.progress.at("cached", self.next as u64, all);
        self.ready = images.into_iter();
        self.ready.next()
    }
}

#[cfg(test)]
mod tests {
    use datasets::Shapes;

    use super::*;

    /// 9 images of 3 * 16 * 16 bytes.
    fn read(most: u64) -> Vec<Image> {
        let shapes = Shapes::new(0, 16, 9);
        let mut decoded = Decoded::new(&shapes);
        let mut images = Vec::new();
        while decoded.next < shapes.len() {
            let chunk = decoded.chunk(shapes.len(), most);
            let bytes: usize = chunk.iter().flatten().map(|i| i.rgb.len()).sum();
            assert!(bytes as u64 <= most + 768, "{bytes} of {most}");
            decoded.next += chunk.len();
            images.extend(chunk.into_iter().map(|image| image.unwrap()));
        }
        images
    }

    #[test]
    fn few_bytes_wait_and_no_image_is_missing() {
        let shapes = Shapes::new(0, 16, 9);
        let all: Vec<Image> = (0..9).map(|i| shapes.image(i).unwrap()).collect();
        for most in [0, 767, 768, 2000, 1 << 20] {
            assert!(read(most) == all, "{most}");
        }
    }
}
