//! Short programs that use the vitfreeze crates; see `examples/`.
use std::collections::HashMap;
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

/// The program's arguments, named in `usage`, and whether `--tiny` follows them.
pub fn args<const N: usize>(usage: &str) -> Result<([String; N], bool), Box<dyn Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let tiny = args.len() == N + 1 && args[N] == "--tiny";
    args.truncate(N + usize::from(!tiny));
    let args = <[String; N]>::try_from(args).map_err(|_| format!("usage: {usage} [--tiny]"))?;
    Ok((args, tiny))
}

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

/// A checkpoint's mark: the steps done, and by how many ranks, since another number of them makes other steps.
pub fn mark(done: usize, ranks: &dyn Communicator) -> candle_core::Result<Tensor> {
    Tensor::new(&[done as i64, ranks.size() as i64], &Device::Cpu)
}

/// Takes a checkpoint's mark out of its tensors and gives the steps done.
pub fn marked(
    saved: &mut HashMap<String, Tensor>,
    ranks: &dyn Communicator,
) -> Result<usize, Box<dyn Error>> {
    let mark = saved.remove("step").ok_or("the checkpoint has no 'step'")?;
    match mark.to_vec1::<i64>()?[..] {
        [done, by] if by == ranks.size() as i64 => Ok(done.try_into()?),
        [_, by] => Err(format!(
            "{by} ranks began this run, {} cannot go on with it",
            ranks.size()
        )
        .into()),
        _ => Err("the checkpoint's 'step' is none of this program".into()),
    }
}

/// Refuses a loss that has ruined the weights.
pub fn check_loss(step: usize, loss: f64) -> Result<(), Box<dyn Error>> {
    match loss.is_finite() {
        true => Ok(()),
        false => Err(format!("step {step}: the loss is {loss}; take a smaller lr").into()),
    }
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
