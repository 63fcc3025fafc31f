//! `vitfreeze classify`: the likeliest classes of images.
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor, D};
use vit::{printable, Head};

use crate::console::{note, print};
use crate::input::pretrained::{input_size, judged, load, open, ModelArgs, CHECKPOINT};
use crate::machine::device::{self, Dtype};
use crate::usage::usage;

const EXAMPLES: &str = "\
Examples:
  vitfreeze classify --checkpoint hf://google/vit-base-patch16-224 cat.jpg
  vitfreeze classify --checkpoint vit_small.safetensors *.jpg";

/// Images computed at once.
const BATCH: usize = 16;

/// Flags of `vitfreeze classify`.
#[derive(clap::Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[arg(long, value_name = "CHECKPOINT", help = CHECKPOINT)]
    checkpoint: String,
    /// JPEG and PNG files
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
}

/// Runs it.
pub fn run(args: Args) -> Result<ExitCode> {
    device::set_threads(0)?;
    let checkpoint = open(&args.checkpoint, &args.model)?;
    if checkpoint.config().num_classes == 0 {
        return Err(usage(format!(
            "{}: has no head, so no classes; vitfreeze embed computes features",
            args.checkpoint
        )));
    }
    let model_args = input_size(&checkpoint, args.model);
    let pretrained = load(&checkpoint, &model_args, Head::Keep, &Device::Cpu)?;
    let judged = judged(&checkpoint, &pretrained)?;
    let compute = Dtype::F32.compute(&Device::Cpu)?;
    let model = pretrained.backbone()?.with_compute(&compute);
    let (channels, (height, width)) = (judged.channels(), judged.size());
    let mut failed = 0;
    for paths in args.images.chunks(BATCH) {
        let (mut pixels, mut read) = (Vec::new(), Vec::new());
        for path in paths {
            let one = || -> Result<Vec<f32>> {
                let bytes = crate::input::files::bytes(path)?;
                judged.input(&bytes)
            };
            match one().with_context(|| path.display().to_string()) {
                Ok(image) => {
                    pixels.extend(image);
                    read.push(path);
                }
                Err(e) => {
                    failed += 1;
                    note(format!("error: {e:#}"));
                }
            }
        }
        if read.is_empty() {
            continue;
        }
        let images = Tensor::from_vec(pixels, (read.len(), channels, height, width), &Device::Cpu)?;
        let logits = model.forward(&images)?;
        let rows = candle_nn::ops::softmax(&logits, D::Minus1)?.to_vec2::<f32>()?;
        for (path, row) in read.iter().zip(rows) {
            print(path.display().to_string())?;
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
            for &class in order.iter().take(5) {
                let name = match pretrained.labels.get(&class) {
                    Some(name) => printable(name),
                    None => format!("class {class}"),
                };
                print(format!("  {:5.1} %  {name}", 100.0 * row[class]))?;
            }
        }
    }
    Ok(match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
