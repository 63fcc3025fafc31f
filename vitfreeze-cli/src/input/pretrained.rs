//! Opening and loading a checkpoint: what `inspect`, `convert`, `embed` and `classify` share.
use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device};
use datasets::{EvalTransform, Interpolation, Normalize, Transform as _};
use vit::ops::Compute;
use vit::{Backbone, Checkpoint, Filter, Head, Hints, LoadOptions, Preprocess, Pretrained};

use crate::console::{counted, note};
use crate::input::channels::{normalize, Judged, RGB};
use crate::machine::device::{self, Dtype};
use crate::usage::usage;

/// What a checkpoint is named by, for helps and messages.
pub const CHECKPOINT: &str =
    "Run folder, file (.safetensors, .pth, .bin, .index.json), folder, or hf://org/name[/file][@revision]";

/// Flags for what no file of a checkpoint tells.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ModelArgs {
    /// Attention heads, where no config.json tells them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    heads: Option<u32>,
    /// Side of a Swin's windows in tokens, where no config.json tells it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    window_size: Option<u32>,
    /// Height and width of the images in pixels, 384 or 256x192; the position table is resampled [default: the checkpoint's]
    #[arg(long, value_name = "PX|HxW", value_parser = image_size)]
    image_size: Option<(usize, usize)>,
    /// Channels of the images; the patch embedding of a checkpoint for others is adapted; 3 are read as numbers of their own
    /// depth [default: the checkpoint's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    channels: Option<u32>,
}

impl ModelArgs {
    /// So many heads, windows of this side, images of this height and width and so many channels.
    pub fn new(
        heads: Option<usize>,
        window_size: Option<usize>,
        image_size: Option<(usize, usize)>,
        channels: Option<usize>,
    ) -> Self {
        let small = |n: Option<usize>| n.and_then(|n| u32::try_from(n).ok());
        Self {
            heads: small(heads),
            window_size: small(window_size),
            image_size,
            channels: small(channels),
        }
    }
}

/// Flags of the commands that compute something of every image of a dataset.
#[derive(Debug, clap::Args)]
pub struct ComputeArgs {
    /// Threads, 0 = one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// cpu, cuda, cuda:N or metal
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    device: String,
    /// Type of the operands of matrix products; f32 where the processor has no bf16 unit
    #[arg(long, value_enum, default_value = "f32", value_name = "NAME")]
    pub dtype: Dtype,
    #[command(flatten)]
    pub model: ModelArgs,
}

impl ComputeArgs {
    /// Sets up the threads, whose number is returned, and the device.
    pub fn start(&self) -> Result<(usize, Device)> {
        Ok((
            device::set_threads(self.threads)?,
            device::open(&self.device)?,
        ))
    }
}

/// An encoder without its head, and how it sees images.
pub struct Encoder {
    pub pretrained: Pretrained,
    pub judged: Judged,
    pub model: Backbone,
    pub compute: Compute,
}

/// Loads it for features as [`pooling`] makes them.
pub fn encoder(origin: &str, args: &ComputeArgs, device: &Device) -> Result<Encoder> {
    let checkpoint = open(origin, &args.model)?;
    let size = input_size(&checkpoint, args.model.clone());
    let mut pretrained = load(&checkpoint, &size, Head::Drop, device)?;
    pretrained.cfg.pool = pooling(&checkpoint, None);
    let compute = args.dtype.compute(device)?;
    let judged = judged(&checkpoint, &pretrained)?;
    Ok(Encoder {
        model: pretrained.backbone()?.with_compute(&compute),
        pretrained,
        judged,
        compute,
    })
}

fn image_size(text: &str) -> Result<(usize, usize), String> {
    let number = |text: &str| match text.parse::<usize>() {
        Ok(n) if (1..=16384).contains(&n) => Ok(n),
        _ => Err(format!("'{text}' is no size from 1 to 16384 pixels")),
    };
    match text.split_once('x') {
        Some((height, width)) => Ok((number(height)?, number(width)?)),
        None => number(text).map(|n| (n, n)),
    }
}

/// Opens `origin`: a [`CHECKPOINT`].
pub fn open(origin: &str, args: &ModelArgs) -> Result<Checkpoint> {
    let checkpoint = open_quietly(origin, args)?;
    for line in checkpoint.notes() {
        note(format!("note: {line}"));
    }
    Ok(checkpoint)
}

/// The same without its notes.
pub fn open_quietly(origin: &str, args: &ModelArgs) -> Result<Checkpoint> {
    let hints = Hints {
        num_heads: args.heads.map(|n| n as usize),
        window_size: args.window_size.map(|n| n as usize),
        fallback_image: args.image_size,
        ..Hints::default()
    };
    let checkpoint = match origin.starts_with("hf://") {
        true => from_hub(origin, &hints),
        // A link to nowhere is there: that it leads nowhere is said when it is read.
        false if Path::new(origin).symlink_metadata().is_err() => {
            return Err(usage(format!("{origin}: no such file or folder")));
        }
        false => Checkpoint::open_with(origin, &hints),
    };
    checkpoint.map_err(explain)
}

#[cfg(feature = "hub")]
fn from_hub(origin: &str, hints: &Hints) -> Result<Checkpoint, vit::Error> {
    use crate::console::{Progress, Unit};
    let progress = std::sync::Arc::new(Progress::new(0, Unit::Bytes));
    let told = progress.clone();
    let on_progress =
        std::sync::Arc::new(move |file: &str, done, total| told.at(file, done, total));
    let folder = vit::Hub::from_env()?.fetch(origin, on_progress);
    progress.close();
    Checkpoint::open_path(origin, &folder?, hints)
}

#[cfg(not(feature = "hub"))]
fn from_hub(origin: &str, hints: &Hints) -> Result<Checkpoint, vit::Error> {
    Checkpoint::open_with(origin, hints)
}

/// Loads all weights as f32.
pub fn load(
    checkpoint: &Checkpoint,
    args: &ModelArgs,
    head: Head,
    device: &Device,
) -> Result<Pretrained> {
    // Before the position table is resampled to a size that a file states.
    if let Some((height, width)) = args.image_size {
        let size = EvalTransform {
            size: (height, width),
            ..EvalTransform::imagenet(1)
        };
        size.check().map_err(usage)?;
    }
    let options = LoadOptions {
        image: args.image_size,
        channels: args.channels.map(|n| n as usize),
        head,
        dtype: DType::F32,
        device: device.clone(),
    };
    let own = checkpoint.config().in_chans;
    note_channels(own, options.channels.unwrap_or(own));
    let mut pretrained = checkpoint.load(&options).map_err(explain)?;
    pretrained.preprocess.bands |= options.channels == Some(RGB);
    Ok(pretrained)
}

/// Says what becomes of a patch embedding for so many channels where there are to be others.
pub fn note_channels(own: usize, channels: usize) {
    if own == channels {
        return;
    }
    let how = match channels {
        1 => "summed",
        _ => "repeated and scaled",
    };
    note(format!(
        "note: the checkpoint is for images of {}; its patch embedding is {how} for {channels}",
        counted(own, "channel")
    ));
}

/// The same of mean and deviation, for who has no others.
pub fn note_normalisation(own: usize, channels: usize) {
    if own == channels {
        return;
    }
    let how = match channels {
        1 => "averaged",
        _ => "repeated in order",
    };
    note(format!(
        "note: images are normalised with the mean and deviation of the checkpoint's {}, {how}",
        counted(own, "channel")
    ));
}

/// What to say where the checkpoint's files prepare images of another size than the model was made for, and nobody
/// asked for one.
fn two_sizes(checkpoint: &Checkpoint, args: &ModelArgs) -> Option<String> {
    let (height, width) = checkpoint.preprocess().size?;
    let own = checkpoint.config().image();
    // Rotary positions and windows are no table of the image's size.
    let cfg = checkpoint.config();
    let what = match cfg.rope_theta().is_some() || cfg.swin.is_some() {
        true => "the model was made",
        false => "its position table is",
    };
    (own != (height, width) && args.image_size.is_none()).then(|| {
        format!(
            "the checkpoint's files prepare images of {height} x {width}, {what} for {} x {}",
            own.0, own.1
        )
    })
}

/// The same for those who use the table as it is.
pub fn note_other_size(checkpoint: &Checkpoint, args: &ModelArgs) {
    if let (Some(text), Some((height, width))) =
        (two_sizes(checkpoint, args), checkpoint.preprocess().size)
    {
        note(format!(
            "note: {text}; the latter is used (--image-size {height}x{width} for the other)"
        ));
    }
}

/// The size at which the checkpoint's own files feed it, unless `--image-size` says another.
pub fn input_size(checkpoint: &Checkpoint, args: ModelArgs) -> ModelArgs {
    if let Some(text) = two_sizes(checkpoint, &args) {
        note(format!(
            "note: {text}; the files' size is used (--image-size sets another)"
        ));
    }
    let own = checkpoint.preprocess().size;
    ModelArgs {
        image_size: args.image_size.or(own),
        ..args
    }
}

/// How decoded images become the model's input.
pub fn judged(checkpoint: &Checkpoint, pretrained: &Pretrained) -> Result<Judged> {
    note_normalisation(checkpoint.config().in_chans, pretrained.cfg.in_chans);
    let p = &pretrained.preprocess;
    if !p.known {
        note(format!(
            "note: no file says how images are prepared: ImageNet's mean and deviation, crop of {}, {} assumed",
            p.crop_told(),
            p.filter.name()
        ));
    }
    let judged = Judged::new(p, pretrained.cfg.image());
    judged.check()?;
    p.check().map_err(usage)?;
    Ok(judged)
}

/// These preparations for RGB images of this height and width; for others all but the normalisation.
pub fn eval_transform(p: &Preprocess, size: (usize, usize)) -> EvalTransform {
    EvalTransform {
        size,
        crop_pct: p.crop_pct,
        squash: p.squash,
        floor_margin: p.floor_margin,
        interpolation: match p.filter {
            Filter::Nearest => Interpolation::Nearest,
            Filter::Lanczos => Interpolation::Lanczos,
            Filter::Bilinear => Interpolation::Bilinear,
            Filter::Bicubic => Interpolation::Bicubic,
            Filter::Box => Interpolation::Box,
            Filter::Hamming => Interpolation::Hamming,
        },
        normalize: normalize(p).unwrap_or(Normalize::IMAGENET),
    }
}

/// Which vector stands for an image: what the user says, else the checkpoint's own; that it is assumed is told.
pub fn pooling(checkpoint: &Checkpoint, asked: Option<vit::Pool>) -> vit::Pool {
    asked.unwrap_or_else(|| {
        if let Some(text) = checkpoint.pool_note() {
            note(format!("note: {text}"));
        }
        checkpoint.config().pool
    })
}

/// What the user can mend with other flags ends with exit code 2.
pub fn explain(error: vit::Error) -> anyhow::Error {
    match error {
        vit::Error::Unknown { .. } | vit::Error::Config(_) | vit::Error::Layout { .. } => {
            usage(error)
        }
        other => other.into(),
    }
}
