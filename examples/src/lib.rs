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

/// The processes that train together and the threads of each: this one alone with all cores, or with the feature `mpi` those
/// that `mpirun` started. A peer that is silent for so long counts as hanging.
pub fn ranks(timeout: Duration) -> Result<(Box<dyn Communicator>, usize), Box<dyn Error>> {
    let cores = available_parallelism().map_or(1, NonZero::get);
    #[cfg(feature = "mpi")]
    {
        let ranks = Mpi::new(timeout)?;
        let threads = (cores / ranks.local_size()).max(1);
        Ok((Box::new(ranks), threads))
    }
    #[cfg(not(feature = "mpi"))]
    {
        let _ = timeout;
        Ok((Box::new(Alone), cores))
    }
}

/// Percent of the images whose class has the largest logit; every rank computes its part of them.
pub fn top1(
    model: &Vit,
    val: &Arc<dyn Source>,
    size: usize,
    ranks: &dyn Communicator,
) -> Result<f64, Box<dyn Error>> {
    let config = LoaderConfig {
        shuffle: false,
        keep_last: true,
        ..LoaderConfig::default()
    };
    let loader = Loader::new(val.clone(), EvalTransform::imagenet(size), config)?;
    let mut counts = [0.0; 2];
    let parts = loader.stream(0, 0).take(loader.batches_per_epoch());
    for (i, part) in parts.enumerate() {
        let (labels, images) = part.map(|part| (part.labels, part.images))?;
        if i % ranks.size() != ranks.rank() {
            continue;
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
