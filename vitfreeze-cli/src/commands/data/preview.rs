//! `vitfreeze data preview`.
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use datasets::rng::{rng, uniform};
use datasets::{Batch, Image, Mixup, Normalize, Source, Transform};
use localmim::Masking;

use super::{Kind, Which};
use crate::console::{note, print};
use crate::draw::{self, font, whole_pixels, Pixels, Svg, Text, SMALL};
use crate::input::look::{hide, pixels, Look};
use crate::settings::bounded;
use crate::usage::usage;

/// Least side of a sample in the picture, and what lies around it.
const LEAST: f64 = 96.0;
const GAP: f64 = 8.0;
const CAPTION: f64 = 16.0;
const MARGIN: f64 = 24.0;
const TOP: f64 = 76.0;
/// How much of a hidden patch is covered: a person may see what the model does not.
const COVERED: f64 = 0.8;

/// Flags of `vitfreeze data preview`.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  vitfreeze data preview imagenet --out grid.png\n  \
                  vitfreeze data preview cifar10 --transform finetune --image-size 32 --rows 10 --out grid.png\n  \
                  vitfreeze data preview imagenet --transform finetune --mixup 0 --cutmix 0 --out grid.svg\n\n\
                  A row is an image: first as in an evaluation, then as in one epoch after the other: in pretraining with the\n\
                  patches covered that are hidden from the encoder, in fine-tuning mixed with the image in the mirrored row."
)]
pub struct Args {
    #[command(flatten)]
    which: Which,
    /// Picture to write (.png or .svg)
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
    /// Seed of everything random
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// For 'pretrain': part of the patches that is hidden, 0 = none
    #[arg(long, default_value = "0.75", value_name = "X")]
    mask_ratio: f64,
    /// For 'pretrain': side of a patch in pixels [default: 16, or 4 of images below 64 px]
    #[arg(long, value_name = "PX")]
    patch_size: Option<usize>,
    /// For 'finetune': mixup's alpha, 0 = no mixup
    #[arg(long, default_value = "0.8", value_name = "X")]
    mixup: f64,
    /// For 'finetune': CutMix's alpha, 0 = no CutMix
    #[arg(long, default_value = "1.0", value_name = "X")]
    cutmix: f64,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    draw::check(&args.out)?;
    bounded(&[
        ("--image-size", args.image_size, 4096),
        ("--rows", args.rows, 100),
        ("--columns", args.columns, 100),
    ])?;
    let size = args.image_size;
    bounded(&[(
        "the grid's pixels",
        args.rows * args.columns * size * size,
        1 << 28,
    )])?;
    let source = args.which.open()?;
    let masks = match args.transform {
        Kind::Pretrain if args.mask_ratio != 0.0 => Some(Masks::new(&args)?),
        _ => None,
    };
    let mixup = match args.transform {
        Kind::Finetune if args.mixup > 0.0 || args.cutmix > 0.0 => mixup(&args, &*source)?,
        _ => None,
    };
    let plain = Kind::Eval.transform(size);
    let augment = args.transform.transform(size);
    let mut look = Look::new(Arc::clone(&source), args.seed);
    let mut images: Vec<(usize, Image)> = Vec::new();
    while images.len() < args.rows {
        let Some(next) = look.next_image()? else {
            break;
        };
        images.push(next);
    }

    let side = whole_pixels(LEAST, size);
    let caption = if mixup.is_some() {
        2.0 * CAPTION
    } else {
        CAPTION
    };
    let place = |row: usize, column: usize| {
        let x = MARGIN + column as f64 * (side + GAP);
        [x, TOP + row as f64 * (side + GAP + caption), side, side]
    };
    let [right, bottom, ..] = place(images.len(), args.columns);
    let title = args.transform.title(masks.is_some(), mixup.is_some());
    let width = (right - GAP + MARGIN).max(MARGIN * 2.0 + font::width(title, 15.0));
    let mut svg = Svg::new(width, bottom + 8.0, title);
    svg.text((MARGIN, 28.0), title, Text::title());
    for column in 0..args.columns {
        let [x, ..] = place(0, column);
        let head = match column {
            0 => "as evaluated".to_owned(),
            _ => format!("epoch {column}"),
        };
        let head = font::fit(&head, 12.0, side);
        svg.text((x + side / 2.0, TOP - 14.0), &head, Text::muted().middle());
        let transform = if column == 0 { &plain } else { &augment };
        let epoch = column.saturating_sub(1);
        let mixed = mixup.as_ref().filter(|_| column > 0);
        let (batch, targets) = samples(&look, &images, &**transform, epoch, mixed, args.seed)?;
        let values = batch.images.chunks_exact(3 * size * size);
        for (row, (values, (index, _))) in values.zip(&images).enumerate() {
            let mut tile = pixels(values, (size, size), &Normalize::IMAGENET);
            if let Some(masks) = masks.as_ref().filter(|_| column > 0) {
                tile = masks.cover(&tile, args.seed, epoch, *index)?;
            }
            let at = place(row, column);
            svg.pixels(at, &tile);
            let captions = match &targets {
                Some(targets) => shares(&source, &targets[row]),
                None if column == 0 => vec![look.class(*index)],
                None => continue,
            };
            for (line, caption) in captions.iter().enumerate() {
                let y = at[1] + side + 10.0 + CAPTION * line as f64;
                let caption = font::fit(caption, SMALL, side);
                svg.text((at[0] + side / 2.0, y), &caption, Text::small().middle());
            }
        }
    }
    draw::save(&args.out, &svg)?;
    print(source.describe())?;
    for (row, (index, _)) in images.iter().enumerate() {
        print(format!("row {}: {}", row + 1, look.caption(*index)))?;
    }
    print(args.out.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

impl Kind {
    fn title(self, masked: bool, mixed: bool) -> &'static str {
        match self {
            Self::Pretrain if masked => "What pretraining sees: covered patches are hidden",
            Self::Pretrain => "What pretraining crops",
            Self::Finetune if mixed => "What fine-tuning sees after mixup and CutMix",
            Self::Finetune => "What fine-tuning sees",
            Self::Eval => "What an evaluation sees",
        }
    }
}

/// Which patches are hidden.
struct Masks {
    side: usize,
    ratio: f64,
}

impl Masks {
    fn new(args: &Args) -> Result<Self> {
        let size = args.image_size;
        let patch = args.patch_size.unwrap_or(if size < 64 { 4 } else { 16 });
        if patch == 0 || !size.is_multiple_of(patch) {
            return Err(usage(format!(
                "--patch-size is {patch}, which does not divide the {size} px of --image-size; --mask-ratio 0 hides nothing"
            )));
        }
        let (side, ratio) = (size / patch, args.mask_ratio);
        Masking::visible(side * side, ratio).map_err(usage)?;
        Ok(Self { side, ratio })
    }

    /// The image as training hides it in this epoch.
    fn cover(&self, image: &Pixels, seed: u64, epoch: usize, index: usize) -> Result<Pixels> {
        let patches = self.side * self.side;
        let mut rng = rng(seed, "mask", epoch as u64, index as u64);
        let noise: Vec<f32> = (0..patches).map(|_| uniform(&mut rng)).collect();
        let masking = Masking::from_noise(&noise, patches, self.ratio)?;
        Ok(hide(image, &masking.mask, self.side, COVERED))
    }
}

/// How images are mixed, if they have labels.
fn mixup(args: &Args, source: &dyn Source) -> Result<Option<Mixup>> {
    if !source.labelled() || source.classes().is_empty() {
        note("note: images without labels are not mixed");
        return Ok(None);
    }
    let mixup = Mixup {
        mixup_alpha: args.mixup,
        cutmix_alpha: args.cutmix,
        ..Mixup::imagenet(source.classes().len())
    };
    mixup.check().map_err(usage)?;
    Ok(Some(mixup))
}

/// Shares of classes.
type Targets = Vec<Vec<f32>>;

/// All images in one epoch, and what they are to be taken for if they are mixed.
fn samples(
    look: &Look,
    images: &[(usize, Image)],
    transform: &dyn Transform,
    epoch: usize,
    mixup: Option<&Mixup>,
    seed: u64,
) -> Result<(Batch, Option<Targets>)> {
    let mut batch = Batch {
        images: Vec::new(),
        labels: Vec::new(),
        indices: Vec::new(),
        epoch,
        batch: 0,
    };
    for (index, image) in images {
        batch
            .images
            .extend(look.input(transform, (*index, image), epoch as u64)?);
        batch.labels.push(look.label(*index) as u32);
        batch.indices.push(*index as u64);
    }
    let targets = match mixup {
        Some(mixup) => {
            let targets = mixup.apply(&mut batch, transform.size(), seed)?;
            let rows = targets.chunks_exact(mixup.classes);
            Some(rows.map(<[f32]>::to_vec).collect())
        }
        None => None,
    };
    Ok((batch, targets))
}

/// `cat 0.63` and `dog 0.37`: the two largest shares, without what is spread over all classes.
fn shares(source: &Arc<dyn Source>, targets: &[f32]) -> Vec<String> {
    let spread = targets.iter().copied().fold(f32::INFINITY, f32::min);
    let whole: f32 = targets.iter().map(|t| t - spread).sum();
    let mut order: Vec<usize> = (0..targets.len()).collect();
    order.sort_by(|&a, &b| targets[b].total_cmp(&targets[a]));
    let share = |&class: &usize| (targets[class] - spread) / whole.max(1e-6);
    let told = order.iter().take(2).filter(|class| share(class) >= 0.005);
    let text = |class: &usize| {
        let name = source.classes().get(*class).map_or("", String::as_str);
        format!("{} {:.2}", vit::printable(name), share(class))
    };
    told.map(text).collect()
}
