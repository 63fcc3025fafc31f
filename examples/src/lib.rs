//! Short programs that use the vitfreeze crates; see `examples/`.
use std::error::Error;
use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use candle_core::{Device, Tensor};
use datasets::{EvalTransform, Loader, LoaderConfig, Source};
#[cfg(not(feature = "mpi"))]
use freezeout::distributed::Alone;
use freezeout::distributed::Communicator;
#[cfg(feature = "mpi")]
use freezeout::distributed::Mpi;
use vit::Vit;

/// Has the processes that train together do so, each with its part of the machine's cores: this one alone, or with the feature
/// `mpi` those that `mpirun` started. A peer that is silent for `timeout` counts as hanging; an error of one ends all.
pub fn together(
    timeout: Duration,
    train: impl FnOnce(&dyn Communicator, usize) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let cores = available_parallelism().map_or(1, NonZero::get);
    #[cfg(feature = "mpi")]
    let (ranks, here) = {
        let ranks = Mpi::new(timeout)?;
        let here = ranks.local_size();
        (ranks, here)
    };
    #[cfg(not(feature = "mpi"))]
    let ((ranks, here), _) = ((Alone, 1), timeout);
    let threads = (cores / here).max(1);
    // For what candle computes by itself.
    std::env::set_var("RAYON_NUM_THREADS", threads.to_string());
    let done = train(&ranks, threads);
    if let (Err(error), true) = (&done, ranks.size() > 1) {
        eprintln!("rank {}: {error}", ranks.rank());
        ranks.abort(1);
    }
    done
}

/// Percent of the images whose class has the largest logit; every rank computes its part of them.
pub fn top1(
    model: &Vit,
    val: &Arc<dyn Source>,
    size: usize,
    threads: usize,
    ranks: &dyn Communicator,
) -> Result<f64, Box<dyn Error>> {
    let config = LoaderConfig {
        threads,
        shuffle: false,
        keep_last: true,
        rank: ranks.rank(),
        ranks: ranks.size(),
        ..LoaderConfig::default()
    };
    let loader = Loader::new(val.clone(), EvalTransform::imagenet(size), config)?;
    let mut counts = [0.0; 2];
    let parts = loader.stream(0, 0).take(loader.batches_per_epoch());
    for part in parts {
        let (labels, images) = part.map(|part| (part.labels, part.images))?;
        if labels.is_empty() {
            continue; // the last batch may not reach all
        }
        let images = Tensor::from_vec(images, (labels.len(), 3, size, size), &Device::Cpu)?;
        let best = model.forward(&images)?.argmax(1)?.to_vec1::<u32>()?;
        let right = best.iter().zip(&labels).filter(|(a, b)| a == b).count();
        counts[0] += right as f64;
        counts[1] += labels.len() as f64;
    }
    ranks.all_reduce_f64(&mut counts)?;
    Ok(100.0 * counts[0] / counts[1])
}
