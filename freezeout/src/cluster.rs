//! How long a step takes on many workers, from the costs of the layers.
use crate::distributed::BUCKET_BYTES;
use crate::{Costs, Error};

/// Workers that train together ([`distributed`](crate::distributed)), each on its part of the batch, for
/// [`Estimate::on`](crate::Estimate::on). The costs must be in seconds (of one worker and one micro-step) and bytes,
/// [`Costs::scaled`].
///
/// With f layers frozen a step takes
///
/// ```text
/// micro_steps * compute_f + wait
/// ring(bytes) = 2 (workers - 1) / workers * 8 bytes / (1e9 gbit)          seconds
/// wait        = ring(gradients_f)                                         without overlap
///             = max_k (ring(bytes of buckets k and later) - left_k, 0)    with overlap
/// ```
///
/// where `left_k` is the part of the last micro-step's backward pass that is still to come when bucket k's last gradient is
/// finished: buckets of 25 MB are reduced one after another, and the optimiser waits for the last. A layer's gradients become
/// finished evenly while its part of the backward pass runs. `ring` is the least that any all-reduce can send, and the ring
/// sends no more (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009, pages 117-124, doi 10.1016/j.jpdc.2008.09.002).
///
/// Not counted: latency (a ring of many workers has 2 (workers - 1) of them in each bucket), packing and summing, links that
/// others use too, workers that wait for the slowest, and what computing loses where the same processor also sends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cluster {
    /// How many workers; one sends nothing.
    pub workers: usize,
    /// What each can send, and at the same time receive, in Gbit/s (1e9 bits per second).
    pub gbit: f64,
    /// Backward passes whose gradients are added before one reduction.
    pub micro_steps: usize,
    /// Whether buckets are reduced while the backward pass runs
    /// ([`FreezeOut::backward_reduced`](crate::FreezeOut::backward_reduced)), or after it
    /// ([`Gradients::all_reduce`](crate::Gradients::all_reduce)).
    pub overlap: bool,
    /// Whether frozen layers are reduced too, as in frameworks that fix what is sent at the start. They come last.
    pub frozen_sent: bool,
}

/// What a step takes, see [`Cluster::step`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepTime {
    /// Seconds of forward and backward passes.
    pub compute: f64,
    /// Seconds for which the step waits for reductions after that.
    pub wait: f64,
    /// Bytes of each worker's gradients that go into the reduction.
    pub bytes: f64,
}

impl StepTime {
    /// Seconds of the step.
    pub fn seconds(&self) -> f64 {
        self.compute + self.wait
    }
}

/// Bytes of gradients beyond any model, so that a wrong unit ends in an error and not in endless buckets.
const MOST_BYTES: f64 = 1e15;

impl Cluster {
    /// One backward pass a step, with overlap, frozen layers out of the reduction.
    pub fn new(workers: usize, gbit: f64) -> Self {
        Self {
            workers,
            gbit,
            micro_steps: 1,
            overlap: true,
            frozen_sent: false,
        }
    }

    /// What a step takes with this many layers frozen; more than there are count as all.
    ///
    /// # Errors
    /// [`Error::Cluster`]: a number out of range, or gradients that are not finite or beyond 1e15 bytes.
    pub fn step(&self, costs: &Costs, frozen: usize) -> Result<StepTime, Error> {
        self.validate()?;
        let frozen = frozen.min(costs.layers());
        let cost = costs.step(frozen);
        let sent = costs.step(if self.frozen_sent { 0 } else { frozen });
        if !(0.0..=MOST_BYTES).contains(&sent.gradients) {
            return Err(Error::Cluster(format!(
                "a step has {:e} bytes of gradients, there must be 0 to {MOST_BYTES:e}",
                sent.gradients
            )));
        }
        let bytes = match self.workers {
            1 => 0.0,
            _ => sent.gradients,
        };
        Ok(StepTime {
            compute: self.micro_steps as f64 * cost.compute,
            wait: match self.overlap {
                true => self.wait(costs, frozen, bytes),
                false => self.ring(bytes),
            },
            bytes,
        })
    }

    fn validate(&self) -> Result<(), Error> {
        for (name, value) in [("workers", self.workers), ("micro_steps", self.micro_steps)] {
            if value == 0 {
                return Err(Error::Cluster(format!(
                    "{name} is 0, it must be at least 1"
                )));
            }
        }
        // One bit per second: whatever is slower, seconds stay finite.
        if self.gbit >= 1e-9 {
            return Ok(());
        }
        let gbit = self.gbit;
        Err(Error::Cluster(format!(
            "gbit is {gbit}, it must be at least 1e-9"
        )))
    }

    /// Seconds in which a ring reduces so many bytes of each worker.
    fn ring(&self, bytes: f64) -> f64 {
        let workers = self.workers as f64;
        2.0 * (workers - 1.0) / workers * 8.0 * bytes / (1e9 * self.gbit)
    }

    /// How long the last reduction lasts beyond the backward pass.
    fn wait(&self, costs: &Costs, frozen: usize, bytes: f64) -> f64 {
        let bucket = BUCKET_BYTES as f64;
        let (mut wait, mut start) = (0.0, 0.0);
        while start < bytes {
            let end = bytes.min(start + bucket);
            // If nothing had to wait before this bucket, it and those behind it go in one piece.
            wait = f64::max(wait, self.ring(bytes - start) - left(costs, frozen, end));
            start = end;
        }
        wait
    }
}

/// Seconds of the backward pass that are still to come when so many bytes of gradients are finished: first those of what
/// never freezes, then from the last layer to the first live one.
fn left(costs: &Costs, frozen: usize, bytes: f64) -> f64 {
    let whole = costs.step(frozen).backward;
    let (mut from, mut before) = (0.0, whole);
    for layer in (frozen..=costs.layers()).rev() {
        let cost = costs.step(layer);
        // What is measured may go up and down.
        let after = (whole - cost.backward).clamp(0.0, before);
        if bytes <= cost.gradients {
            return before + (after - before) * (bytes - from) / (cost.gradients - from);
        }
        (from, before) = (cost.gradients.max(from), after);
    }
    0.0
}
