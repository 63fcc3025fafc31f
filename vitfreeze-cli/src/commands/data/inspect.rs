//! `vitfreeze data inspect`.
use std::process::ExitCode;

use anyhow::Result;
use datasets::{Bands, ChannelStats, DecodeMemory, Error, Source};
use rayon::prelude::*;
use vit::printable;

use super::Which;
use crate::console::{counted, print, Progress, Unit};
use crate::input::channels::RGB;
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
    after_help = "Examples:\n  vitfreeze data inspect imagenet\n  vitfreeze data inspect imagenet --split val --check\n  \
                  vitfreeze data inspect multispectral --channels 13 --stats\n\n\
                  Exit code 1 if --check finds bad images."
)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Decode every image and list those that cannot be read
    #[arg(long)]
    check: bool,
    /// Decode every image, and print mean and deviation of each channel: what training normalises by (--mean, --std)
    #[arg(long)]
    stats: bool,
    /// Channels of the images: 1 is grey; of PNG, TIFF and .npy files as many as they have; 3 are read as numbers of their own
    /// depth [default: RGB of 8 bits]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    channels: Option<u32>,
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
    let (len, all) = (source.len(), args.check || args.stats);
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
    let mut stats = ChannelStats::default();
    for chunk in looked_at.chunks(CHUNK) {
        if interrupt::asked() {
            progress.close();
            return Ok(ExitCode::from(interrupt::exit_code()));
        }
        let read = |&index: &usize| {
            let mut permit = memory.permit();
            let image = match args.channels {
                None => {
                    let image = source.read(index, &mut permit)?;
                    if !args.stats {
                        return Ok(((image.width, image.height), None));
                    }
                    // As training sees them.
                    Bands::of_rgb(&image, RGB).map_err(|e| Error::InvalidArgument(e.to_string()))?
                }
                Some(channels) => source.bands(index, channels as usize, &mut permit)?,
            };
            let stats = args.stats.then(|| ChannelStats::of(&image));
            Ok(((image.width, image.height), stats))
        };
        type Read = ((usize, usize), Option<ChannelStats>);
        let results: Vec<Result<Read, Error>> = chunk.par_iter().map(read).collect();
        // In the order of the images, whatever threads there are.
        for result in results {
            match result {
                Ok((size, of_image)) => {
                    sizes.push(size);
                    of_image.iter().for_each(|of_image| stats.merge(of_image));
                }
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
    if args.stats && !sizes.is_empty() {
        let list = |numbers: Vec<f64>| {
            let numbers: Vec<String> = numbers.into_iter().map(six_digits).collect();
            numbers.join(",")
        };
        print(format!(
            "mean and deviation of each channel, over {}",
            counted(sizes.len(), "image")
        ))?;
        let (mean, std) = (list(stats.mean()), list(stats.deviation()));
        print(format!("  --mean={mean} --std={std}"))?;
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

/// With six digits that count, whatever the size.
fn six_digits(x: f64) -> String {
    let power = match x == 0.0 {
        true => 0.0,
        false => x.abs().log10().floor(),
    };
    match power {
        -5.0..=5.0 => format!("{x:.*}", (5.0 - power) as usize),
        _ => format!("{x:.5e}"),
    }
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

#[cfg(test)]
mod tests {
    use super::six_digits;

    #[test]
    fn small_deviations_keep_their_digits() {
        for (x, text) in [
            (0.439_226_94, "0.439227"),
            (6.6e-7, "6.60000e-7"),
            (1.0, "1.00000"),
            (-123.456_78, "-123.457"),
            (1e30, "1.00000e30"),
            (0.0, "0.00000"),
        ] {
            assert_eq!(six_digits(x), text);
            assert!((text.parse::<f64>().unwrap() - x).abs() <= 1e-5 * x.abs());
        }
    }
}
