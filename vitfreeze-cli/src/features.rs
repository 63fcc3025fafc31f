//! A model over a whole dataset in its own order, decoding ahead while it computes.
use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;
use candle_core::{Device, Tensor};
use datasets::{Batch, Loader, LoaderConfig, OnBad, Source};
use vit::ops::{Compute, Hold};
use vit::Backbone;

use crate::console::Progress;
use crate::input::channels::Judged;
use crate::machine::budget::Budget;
use crate::machine::device;

/// What to compute of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// What the head sees.
    Pooled,
    Logits,
}

/// Gives `each` every batch with its outputs (B, F). Images that cannot be read are left out of it
/// and told about; returns how many these are.
#[allow(clippy::too_many_arguments)]
pub fn extract(
    model: &Backbone,
    source: &Arc<dyn Source>,
    judged: &Judged,
    batch_size: usize,
    threads: usize,
    device: &Device,
    what: Output,
    progress: &Progress,
    mut each: impl FnMut(&Batch, Vec<f32>) -> Result<()>,
) -> Result<usize> {
    // A worker's share of few images.
    if source.is_empty() {
        return Ok(0);
    }
    let config = LoaderConfig {
        batch_size,
        threads,
        shuffle: false,
        keep_last: true,
        on_bad: OnBad::LeaveOut,
        ..LoaderConfig::default()
    };
    let (channels, (height, width)) = (judged.channels(), judged.size());
    let budget = Budget::inference(model.config(), batch_size, model.compute().precision);
    budget.beside_weights().check(device)?;
    let loader = Loader::new(Arc::clone(source), judged.recipe(), config)?;
    let batches = loader.stream(0, 0).take(loader.batches_per_epoch());
    let mut told = BTreeSet::new();
    // All batches see the same weights.
    let model = model.clone().with_compute(&Compute {
        hold: Hold::All,
        ..model.compute().clone()
    });
    for (number, batch) in batches.enumerate() {
        let batch = batch?;
        for image in loader.skipped() {
            if told.insert(image.index) {
                progress.warn(format!(
                    "warning: left out {}: {}",
                    image.name.escape_debug(),
                    image.reason
                ));
            }
        }
        let count = batch.labels.len();
        if count > 0 {
            let shape = (count, channels, height, width);
            let images = Tensor::from_slice(&batch.images, shape, device)?;
            let tokens = model.forward_features(&images)?;
            let out = match what {
                Output::Pooled => model.pool(&tokens)?,
                Output::Logits => model.forward_head(&tokens)?,
            };
            let out = out.flatten_all()?.to_device(&Device::Cpu)?.to_vec1()?;
            each(&batch, out)?;
        }
        let done = source.len().min((number + 1) * batch_size);
        progress.at("", done as u64, source.len() as u64);
    }
    // Training that goes on has no use for them.
    drop(model);
    device::release_memory(device);
    Ok(told.len())
}
