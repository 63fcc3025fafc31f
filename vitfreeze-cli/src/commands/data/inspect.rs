//! `vitfreeze data inspect`.
use std::process::ExitCode;

use anyhow::Result;
use datasets::{DecodeMemory, Error, Source};
use rayon::prelude::*;
use vit::printable;

use super::Which;
use crate::console::{print, Progress, Unit};
use crate::machine::{device, interrupt};

/// Without --check so many images are decoded, for their sizes.
const SAMPLE: usize = 200;
/// Images decoded between two looks at the progress.
const CHUNK: usize = 256;
/// Classes that are all listed.
const ALL_CLASSES: usize = 20;

/// Flags of `vitfreeze data inspect`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  vitfreeze data inspect imagenet\n  vitfreeze data inspect imagenet --split val --check\n\n\
                  Exit code 1 if --check finds bad images."
)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Decode every image and list those that cannot be read
    #[arg(long)]
    check: bool,
    /// Threads, 0 = one per core
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    device::set_threads(args.threads)?;
    let source = args.which.open()?;
    print(source.describe())?;
    files(&*source)?;
    if source.labelled() {
        classes(&*source)?;
    }
    let (len, all) = (source.len(), args.check);
    let looked_at: Vec<usize> = if all {
        (0..len).collect()
    } else {
        let count = len.min(SAMPLE);
        (0..count).map(|i| i * len / count).collect()
    };
    interrupt::listen_saying("stopping")?;
    let progress = Progress::new(looked_at.len() as u64, Unit::Images);
    let memory = DecodeMemory::default();
    let (mut sizes, mut bad) = (Vec::new(), Vec::new());
    for chunk in looked_at.chunks(CHUNK) {
        if interrupt::asked() {
            progress.close();
            return Ok(ExitCode::from(interrupt::exit_code()));
        }
        let read = |&index: &usize| {
            let image = source.read(index, &mut memory.permit())?;
            Ok((image.width, image.height))
        };
        let results: Vec<Result<(usize, usize), Error>> = chunk.par_iter().map(read).collect();
        for result in results {
            match result {
                Ok(size) => sizes.push(size),
                Err(error) => bad.push(error),
            }
        }
        let done = sizes.len() + bad.len();
        progress.at("decoded", done as u64, looked_at.len() as u64);
    }
    progress.close();
    let some = if all || looked_at.len() == len {
        String::new()
    } else {
        format!(" (of {} images looked at)", looked_at.len())
    };
    print(format!("sizes{some}, smallest / median / largest"))?;
    for (what, side) in [
        ("width", (|s| s.0) as fn(&(usize, usize)) -> usize),
        ("height", |s| s.1),
    ] {
        let mut sides: Vec<usize> = sizes.iter().map(side).collect();
        sides.sort_unstable();
        if let [first, .., last] | [first @ last] = sides[..] {
            let middle = sides[sides.len() / 2];
            print(format!("  {what:<7} {first} / {middle} / {last}"))?;
        }
    }
    for error in &bad {
        print(format!("bad: {}", printable(&error.to_string())))?;
    }
    match (bad.len(), all) {
        (0, true) => print("all images can be read")?,
        (0, false) => print("--check decodes every image and lists the bad ones")?,
        (count, _) => print(format!(
            "{count} of {} images cannot be read",
            looked_at.len()
        ))?,
    }
    let failed = all && !bad.is_empty();
    Ok(ExitCode::from(u8::from(failed)))
}

/// All files that are there: the images and the others, by kind.
fn files(source: &dyn Source) -> Result<()> {
    let others = source.other_files();
    if others.is_empty() {
        return Ok(());
    }
    let count: usize = others.iter().map(|(_, count)| count).sum();
    let images = source.len();
    let form = |n: usize, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
    let place = source.counted_in();
    let place = place.map(|folder| format!(", in {}", printable(&folder.display().to_string())));
    print(format!(
        "files {} = {} + {}{}",
        images + count,
        form(images, "image"),
        form(count, "other"),
        place.unwrap_or_default()
    ))?;
    for (what, count) in others {
        print(format!("  {count:>6} {what}"))?;
    }
    Ok(())
}

/// Images per class: of few classes each, of many the extremes.
fn classes(source: &dyn Source) -> Result<()> {
    let names = source.classes();
    let mut counts = vec![0usize; names.len()];
    for index in 0..source.len() {
        if let Some(count) = counts.get_mut(source.label(index)) {
            *count += 1;
        }
    }
    let mut order: Vec<usize> = (0..names.len()).collect();
    if names.len() > ALL_CLASSES {
        order.sort_by_key(|&c| counts[c]);
        let (low, high) = (order[0], order[order.len() - 1]);
        let middle = counts[order[order.len() / 2]];
        print(format!(
            "images per class: {} ({}) to {} ({}), median {middle}",
            counts[low],
            printable(&names[low]),
            counts[high],
            printable(&names[high])
        ))?;
        return Ok(());
    }
    print("images per class")?;
    for class in order {
        print(format!(
            "  {class:>3} {:<20} {}",
            printable(&names[class]),
            counts[class]
        ))?;
    }
    Ok(())
}
