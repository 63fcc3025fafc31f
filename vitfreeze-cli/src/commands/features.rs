//! `vitfreeze features`: what an encoder makes of images, to be looked at.
mod attention;
mod map;
mod pca;
mod picture;
mod tsne;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{bail, Result};
use candle_core::{Device, Tensor};
use datasets::{EvalTransform, Source, Transform as _, MAX_PIXELS};
use vit::{Backbone, Pretrained, Vit};

use crate::console::{note, percent, print, Progress, Unit};
use crate::draw;
use crate::features::{extract, Output};
use crate::input::channels::Judged;
use crate::input::dataset;
use crate::input::look::{pixels, Look};
use crate::input::pretrained::{encoder, ComputeArgs, Encoder, CHECKPOINT};
use crate::input::subset::Subset;
use crate::run::folder::quoted;
use crate::settings::bounded;
use crate::usage::usage;
use map::Map;
use pca::Pca;
use picture::{Row, MOST_HEADS};

const EXAMPLES: &str = "\
Examples:
  vitfreeze features cifar10 --checkpoint runs/pretrain-1 --out features.png
  vitfreeze features imagenet --checkpoint hf://facebook/dinov2-small --foreground --out dino.png
  vitfreeze features cifar10 --checkpoint runs/pretrain-1 --map tsne --out map.png
  vitfreeze features imagenet --checkpoint mae_pretrain_vit_base.pth --map-images 0 --out mae.svg

Each row is an image: whole; its patches' features, whose three largest principal components over all \
images shown are red, green and blue; how much the class token attends to each patch in the last block, by \
head. Below, all images' vectors (what k-NN compares) by their two largest components, or by t-SNE, which \
keeps neighbours together; distances between groups mean nothing.";

/// Most images of a map: components cost little, t-SNE looks at all pairs.
const MOST_MAPPED: usize = 100_000;
const MOST_TSNE: usize = 5_000;

/// What puts images on a map.
#[derive(Debug, Clone, Copy, PartialEq, clap::ValueEnum)]
enum MapBy {
    Pca,
    Tsne,
}

/// Flags of `vitfreeze features`.
#[derive(clap::Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Dataset of any kind; see 'vitfreeze data --help'
    #[arg(value_name = "SRC")]
    source: String,
    #[arg(long, value_name = "CHECKPOINT", help = CHECKPOINT)]
    checkpoint: String,
    /// Picture to write (.png or .svg)
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Which split, where there are several
    #[arg(long, value_name = "NAME", default_value = "train")]
    split: String,
    /// Images shown
    #[arg(long, value_name = "N", default_value_t = 6)]
    images: usize,
    /// Images on the map, 0 = no map
    #[arg(long, value_name = "N", default_value_t = 1000)]
    map_images: usize,
    /// How the map is made: the two largest components, or t-SNE (at most 5000 images)
    #[arg(long, value_enum, value_name = "NAME", default_value = "pca")]
    map: MapBy,
    /// Which images
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Colour only the foreground: the side of the first component that holds fewer corners of the image
    #[arg(long)]
    foreground: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    draw::check(&args.out)?;
    bounded(&[("--images", args.images, 64)])?;
    let (most, by) = match args.map {
        MapBy::Pca => (MOST_MAPPED, ""),
        MapBy::Tsne => (MOST_TSNE, " with --map tsne"),
    };
    if args.map_images > most {
        return Err(usage(format!(
            "--map-images is {}, it must be at most {most}{by}",
            args.map_images
        )));
    }
    let (threads, device) = args.compute.start()?;
    let source = dataset::open(&args.source, &args.split, MAX_PIXELS)?;
    let Encoder {
        pretrained,
        judged,
        model,
        ..
    } = encoder(&args.checkpoint, &args.compute, &device)?;
    let transform = judged.rgb_only("features")?;
    let Backbone::Vit(vit) = &model else {
        return Err(usage(format!(
            "{}: a Swin, which has no class token whose attention could be drawn; vitfreeze embed computes its features",
            args.checkpoint
        )));
    };
    note(source.describe());

    let (mut rows, features) = shown(&args, &source, transform, &pretrained, vit, &device)?;
    let (width, grid) = (pretrained.cfg.embed_dim, pretrained.cfg.grid());
    let told = picture::color(&mut rows, &features, width, grid, args.foreground);
    let map = match args.map_images {
        0 => None,
        count => Some(mapped(
            count,
            &args,
            Arc::clone(&source),
            &judged,
            threads,
            &model,
            &device,
        )?),
    };
    let heads = pretrained.cfg.num_heads;
    if heads > MOST_HEADS {
        note(format!("note: {MOST_HEADS} of {heads} heads are drawn"));
    }
    draw::save(
        &args.out,
        &picture::draw(&short(&args.checkpoint), &rows, grid, map.as_ref()),
    )?;
    print(format!(
        "patches: three components hold {} of their variance",
        percent(told)
    ))?;
    if let Some(map) = &map {
        print(format!("map: {} images {}", map.points.len(), map.by))?;
    }
    print(quoted(&args.out))?;
    Ok(ExitCode::SUCCESS)
}

/// The end of a path is enough to know a checkpoint by; a name on the Hub is taken whole.
fn short(checkpoint: &str) -> String {
    if checkpoint.starts_with("hf://") {
        return checkpoint.to_owned();
    }
    let parts: Vec<&str> = checkpoint.split('/').filter(|p| !p.is_empty()).collect();
    parts[parts.len().saturating_sub(2)..].join("/")
}

/// The images that are shown, and the features of all their patches.
fn shown(
    args: &Args,
    source: &Arc<dyn Source>,
    transform: &EvalTransform,
    pretrained: &Pretrained,
    model: &Vit,
    device: &Device,
) -> Result<(Vec<Row>, Vec<f32>)> {
    let (cfg, size) = (&pretrained.cfg, transform.size());
    let mut look = Look::new(Arc::clone(source), args.seed);
    let (mut rows, mut features) = (Vec::new(), Vec::new());
    while rows.len() < args.images {
        let Some((index, image)) = look.next_image()? else {
            break;
        };
        let input = look.input(transform, (index, &image), 0)?;
        let image = Tensor::from_slice(&input, (1, 3, size.0, size.1), device)?;
        let tokens = model.forward_features(&image)?;
        let patches = tokens.narrow(1, cfg.prefix_tokens(), cfg.patches())?;
        let patches = patches.to_device(&Device::Cpu)?;
        features.extend(patches.flatten_all()?.to_vec1::<f32>()?);
        rows.push(Row {
            caption: look.class(index),
            image: pixels(&input, size, transform.normalize()),
            colors: Vec::new(),
            attention: attention::by_head(model, &image)?,
        });
    }
    if rows.is_empty() {
        bail!("there is not one image");
    }
    Ok((rows, features))
}

/// The vectors of many images by their two largest components.
fn mapped(
    count: usize,
    args: &Args,
    source: Arc<dyn Source>,
    judged: &Judged,
    threads: usize,
    model: &Backbone,
    device: &Device,
) -> Result<Map> {
    const BATCH: usize = 32;
    let subset = Subset::of(source, u32::try_from(count).ok(), args.seed);
    let progress = Progress::new(subset.len() as u64, Unit::Images);
    let (mut values, mut labels) = (Vec::new(), Vec::new());
    extract(
        model,
        &subset,
        judged,
        BATCH,
        threads,
        device,
        Output::Pooled,
        &progress,
        |batch, features| {
            values.extend(features);
            labels.extend(batch.labels.iter().map(|&label| label as usize));
            Ok(())
        },
    )?;
    progress.close();
    let width = model.config().features();
    let pca = Pca::new(&values, width, 2);
    let points: Vec<(f64, f64)> = pca.of(&values).map(|p| (p[0], p[1])).collect();
    let told = percent(pca.told);
    let perplexity = tsne::perplexity(points.len());
    let (points, by) = match args.map {
        MapBy::Tsne if perplexity.is_some() => {
            note("t-SNE");
            let used = perplexity.unwrap_or_default();
            let by = format!("by t-SNE of their vectors (perplexity {used:.0})");
            (tsne::tsne(&values, width, &points), by)
        }
        // Also where there are too few for another map.
        _ => (
            points,
            format!("by the two largest components of their vectors ({told} of the variance)"),
        ),
    };
    Ok(Map {
        points,
        by,
        labels,
        classes: match subset.labelled() {
            true => subset.classes().iter().map(|c| vit::printable(c)).collect(),
            false => Vec::new(),
        },
    })
}
