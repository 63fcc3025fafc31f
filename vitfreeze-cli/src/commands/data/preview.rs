//! `vitfreeze data preview`.
use std::io::Cursor;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{bail, Context as _, Result};
use datasets::rng::{permutation, rng};
use datasets::{Image, Source, Transform};
use image::{imageops::replace, Rgb, RgbImage};

use super::{Kind, Which};
use crate::console::print;
use crate::settings::bounded;

/// Pixels between the samples.
const GAP: usize = 2;

/// Flags of `vitfreeze data preview`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  vitfreeze data preview imagenet --out grid.png\n  \
                  vitfreeze data preview cifar10 --transform finetune --image-size 32 --rows 10 --out grid.png\n\n\
                  A row is an image: first as in an evaluation, then as in one epoch after the other."
)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// PNG file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// What is done to the images
    #[arg(long, value_enum, default_value_t = Kind::Pretrain)]
    transform: Kind,
    /// Side of a sample in pixels
    #[arg(long, default_value_t = 224, value_name = "PX")]
    image_size: usize,
    /// Images
    #[arg(long, default_value_t = 6, value_name = "N")]
    rows: usize,
    /// Samples of each
    #[arg(long, default_value_t = 8, value_name = "N")]
    columns: usize,
    /// Everything random is a function of it
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    bounded(&[
        ("--image-size", args.image_size, 4096),
        ("--rows", args.rows, 100),
        ("--columns", args.columns, 100),
    ])?;
    let (size, step) = (args.image_size, args.image_size + GAP);
    bounded(&[(
        "the grid's pixels",
        args.rows * args.columns * step * step,
        1 << 28,
    )])?;
    let source = args.which.open()?;
    let (plain, augment) = (Kind::Eval.transform(size), args.transform.transform(size));
    let side = |n: usize| (n * step - GAP) as u32;
    let white = Rgb([255; 3]);
    let mut grid = RgbImage::from_pixel(side(args.columns), side(args.rows), white);
    let mut order = permutation(&mut rng(args.seed, "preview", 0, 0), source.len()).into_iter();
    let mut labels = Vec::new();
    for row in 0..args.rows {
        let Some((index, image)) = next_good(&*source, &mut order)? else {
            break;
        };
        for column in 0..args.columns {
            let transform = if column == 0 { &plain } else { &augment };
            let epoch = column.saturating_sub(1) as u64;
            let sample = sample(&**transform, &image, args.seed, epoch, index)?;
            let tile = RgbImage::from_raw(size as u32, size as u32, sample).context("sample")?;
            replace(
                &mut grid,
                &tile,
                (column * step) as i64,
                (row * step) as i64,
            );
        }
        let label = source.label(index);
        let class = source
            .classes()
            .get(label)
            .map_or("no label", String::as_str);
        let line = format!("row {}: {class} ({})", row + 1, source.name(index));
        labels.push(vit::printable(&line));
    }
    let mut png = Cursor::new(Vec::new());
    grid.write_to(&mut png, image::ImageFormat::Png)?;
    vit::write_atomic(&args.out, png.get_ref())?;
    print(source.describe())?;
    for label in labels {
        print(label)?;
    }
    print(format!(
        "{}: {} x {} pixels",
        args.out.display(),
        grid.width(),
        grid.height()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// The next image that can be read.
fn next_good(
    source: &dyn Source,
    order: &mut impl Iterator<Item = usize>,
) -> Result<Option<(usize, Image)>> {
    let mut failed = None;
    for index in order.take(100) {
        match source.image(index) {
            Ok(image) => return Ok(Some((index, image))),
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        Some(error) => bail!("none of the images tried can be read; the last: {error}"),
        None => Ok(None),
    }
}

/// What the model sees, turned back into pixels.
fn sample(
    transform: &dyn Transform,
    image: &Image,
    seed: u64,
    epoch: u64,
    index: usize,
) -> Result<Vec<u8>> {
    let (height, width) = transform.size();
    let mut values = vec![0.0; 3 * height * width];
    // The loader's generator: the same samples as in training.
    let mut rng = rng(seed, "augment", epoch, index as u64);
    let norm = *transform.normalize();
    transform.draw(image, &mut rng)?.write(&norm, &mut values)?;
    let plane = height * width;
    let byte = |c: usize, i: usize| {
        let value = values[c * plane + i] * norm.std[c] + norm.mean[c];
        (value * 255.0).round().clamp(0.0, 255.0) as u8
    };
    Ok((0..plane)
        .flat_map(|i| [0, 1, 2].map(|c| byte(c, i)))
        .collect())
}
