//! Gradients averaged over all ranks.
use std::time::Instant;

use candle_core::{DType, Device, Tensor};

use super::{agree, Begun, Communicator, BUCKET_BYTES};
use crate::reduce::{on_host, slice};
use crate::{Error, Gradients};

/// What [`Gradients::all_reduce`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Reduced {
    /// Bytes of this rank's gradients that went into the sum: 4 for each element. When a layer freezes it falls by 4 times the
    /// layer's parameters.
    pub bytes: usize,
    /// Seconds that it took, waiting for slower ranks included.
    pub seconds: f64,
}

impl Gradients {
    /// Replaces the gradients by their mean over all ranks, so that all update their weights alike. Each rank's loss must be
    /// the mean over its own part of the batch, and all parts of one size.
    ///
    /// Call it once a step, after all micro-steps ([`Gradients::add`]) and before [`Optimizer::step`](crate::Optimizer::step),
    /// which then clips by the mean's norm. The gradients go as f32, whatever their type, last names first, in flat buckets
    /// of 25 MB. Only those that exist: a frozen layer has none and so sends nothing, on all ranks at once since the schedule
    /// knows the step alone.
    ///
    /// With one rank nothing happens, and nothing is copied.
    ///
    /// # Errors
    /// [`Error::Distributed`] where the ranks have not the same gradients (on all ranks), or do not answer; some gradients may
    /// be reduced then, others not.
    pub fn all_reduce(&mut self, ranks: &dyn Communicator) -> Result<Reduced, Error> {
        if ranks.size() == 1 {
            return Ok(Reduced::default());
        }
        let start = Instant::now();
        let sizes = self.iter().map(|(name, grad)| (name, grad.elem_count()));
        agree("gradients", sizes, ranks)?;
        let tensors: Vec<&Tensor> = self.iter().map(|(_, grad)| grad).rev().collect();
        if let Some(sums) = ranks.all_reduce_tensors(&tensors) {
            let sums = sums?;
            let bytes = sums.iter().map(|sum| 4 * sum.elem_count()).sum();
            for (grad, sum) in self.replaceable().zip(sums) {
                *grad = (sum / ranks.size() as f64)?.to_dtype(grad.dtype())?;
            }
            let seconds = start.elapsed().as_secs_f64();
            return Ok(Reduced { bytes, seconds });
        }
        let (mut sent, mut bucket) = (None, Bucket::default());
        let mut bytes = 0;
        for grad in self.replaceable() {
            let full = 4 * (bucket.values.len() + grad.elem_count()) > BUCKET_BYTES;
            if full && !bucket.grads.is_empty() {
                // Begun before the last one is unpacked, so that there is always one on its way.
                if let Some(last) = sent.replace(bucket.begin(ranks)?) {
                    bucket.values = finish(last, ranks)?;
                }
            }
            bytes += 4 * grad.elem_count();
            bucket.push(grad)?;
        }
        let last = bucket.begin(ranks)?;
        for bucket in sent.into_iter().chain([last]) {
            finish(bucket, ranks)?;
        }
        let seconds = start.elapsed().as_secs_f64();
        Ok(Reduced { bytes, seconds })
    }
}

/// Some gradients, one after another in one piece of memory. While one bucket is on its way the next is filled.
#[derive(Default)]
struct Bucket<'a> {
    values: Vec<f32>,
    grads: Vec<&'a mut Tensor>,
}

impl<'a> Bucket<'a> {
    fn push(&mut self, grad: &'a mut Tensor) -> Result<(), Error> {
        append(&mut self.values, grad)?;
        self.grads.push(grad);
        Ok(())
    }

    /// Sends what is in it, and leaves it empty.
    fn begin(&mut self, ranks: &dyn Communicator) -> Result<Sent<'a>, Error> {
        let Self { values, grads } = std::mem::take(self);
        Ok((ranks.begin(values)?, grads))
    }
}

type Sent<'a> = (Begun, Vec<&'a mut Tensor>);

/// Puts the means instead of the gradients. Gives the memory back, to be filled again.
fn finish((begun, grads): Sent<'_>, ranks: &dyn Communicator) -> Result<Vec<f32>, Error> {
    let count = grads.iter().map(|grad| grad.elem_count()).sum();
    let mut sums = receive(begun, count, ranks)?;
    let mut rest = &sums[..];
    for grad in grads {
        let (sum, after) = rest.split_at(grad.elem_count());
        rest = after;
        *grad = mean(sum, ranks, grad)?;
    }
    sums.clear();
    Ok(sums)
}

/// Waits for `count` sums.
pub(super) fn receive(
    begun: Begun,
    count: usize,
    ranks: &dyn Communicator,
) -> Result<Vec<f32>, Error> {
    let sums = ranks.finish(begun)?;
    if sums.len() == count {
        return Ok(sums);
    }
    Err(Error::Distributed(format!(
        "rank {} of {}: {} sums came back, not {count}; sums must be finished in the order in which they were begun",
        ranks.rank(),
        ranks.size(),
        sums.len()
    )))
}

/// Appends the elements of a gradient as f32.
pub(super) fn append(values: &mut Vec<f32>, grad: &Tensor) -> Result<(), Error> {
    if on_host(grad) {
        slice(grad, |grad| values.extend_from_slice(grad))?;
    } else {
        let flat = grad.to_dtype(DType::F32)?.flatten_all()?;
        values.extend(flat.to_vec1::<f32>()?);
    }
    Ok(())
}

/// The mean as a tensor like `grad`, in memory of its own: candle may have given two gradients the same.
pub(super) fn mean(sum: &[f32], ranks: &dyn Communicator, grad: &Tensor) -> Result<Tensor, Error> {
    let size = ranks.size() as f32;
    let mean: Vec<f32> = sum.iter().map(|sum| sum / size).collect();
    let mean = Tensor::from_vec(mean, grad.shape(), &Device::Cpu)?;
    Ok(mean.to_device(grad.device())?.to_dtype(grad.dtype())?)
}
