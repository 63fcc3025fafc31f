//! A model over a whole dataset in its own order, decoding ahead while it computes.
use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use datasets::{Batch, EvalTransform, Loader, LoaderConfig, Source};
use vit::Vit;

use crate::progress::Progress;

/// What to compute of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// What the head sees.
    Pooled,
    Logits,
}

/// Gives `each` every batch with its outputs (B, F). Images that cannot be read are left out of it and told about.
#[allow(clippy::too_many_arguments)]
pub fn extract(
    model: &Vit,
    source: &Arc<dyn Source>,
    transform: EvalTransform,
    batch_size: usize,
    threads: usize,
    device: &Device,
    what: Output,
    progress: &Progress,
    mut each: impl FnMut(&Batch, Vec<f32>) -> Result<()>,
) -> Result<()> {
    let config = LoaderConfig {
        batch_size,
        threads,
        shuffle: false,
        keep_last: true,
        ..LoaderConfig::default()
    };
    let (height, width) = transform.size;
    let loader = Loader::new(Arc::clone(source), transform, config)?;
    let batches = loader.stream(0, 0).take(loader.batches_per_epoch());
    let mut told = 0;
    for (number, batch) in batches.enumerate() {
        let batch = without_substitutes(batch?, number * batch_size);
        for image in loader.skipped().iter().skip(told) {
            progress.say(format!(
                "warning: left out {}: {}",
                image.name, image.reason
            ));
        }
        told = loader.skipped().len();
        let count = batch.labels.len();
        if count > 0 {
            let images = batch.images.clone();
            let images = Tensor::from_vec(images, (count, 3, height, width), device)?;
            let tokens = model.forward_features(&images)?;
            let out = match what {
                Output::Pooled => model.pool(&tokens)?,
                Output::Logits => model.forward_head(&tokens)?,
            };
            let out = out.flatten_all()?.to_device(&Device::Cpu)?.to_vec1()?;
            each(&batch, out).context("features")?;
        }
        let done = source.len().min((number + 1) * batch_size);
        progress.at("", done as u64, source.len() as u64);
    }
    Ok(())
}

/// Without the images that the loader put in the place of unreadable ones.
fn without_substitutes(mut batch: Batch, first: usize) -> Batch {
    let count = batch.labels.len();
    let keep: Vec<usize> = (0..count)
        .filter(|&i| batch.indices[i] == (first + i) as u64)
        .collect();
    if keep.len() < count {
        let size = batch.images.len() / count;
        let rows = keep.iter().flat_map(|&i| &batch.images[i * size..][..size]);
        batch.images = rows.copied().collect();
        batch.labels = keep.iter().map(|&i| batch.labels[i]).collect();
        batch.indices = keep.iter().map(|&i| batch.indices[i]).collect();
    }
    batch
}
