//! How batches make optimiser steps and epochs.
use crate::Error;

/// Counts optimiser steps where the gradients of `accum` batches are averaged for one.
///
/// An epoch of B batches has ceil(B / accum) steps; its last one has the batches that are left.
///
/// ```
/// let steps = freezeout::Steps::new(10, 4, 100)?; // 10 batches an epoch, 4 a step, 100 epochs
/// assert_eq!((steps.per_epoch(), steps.total()), (3, 300));
/// assert_eq!((steps.epoch(5), steps.first_batch(5), steps.batches(5)), (1, 8, 2));
/// # Ok::<(), freezeout::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Steps {
    batches_per_epoch: usize,
    accum: usize,
    epochs: usize,
}

impl Steps {
    /// For epochs of so many batches.
    ///
    /// # Errors
    /// [`Error::Schedule`]: a number is 0, or there are more steps than can be counted.
    pub fn new(batches_per_epoch: usize, accum: usize, epochs: usize) -> Result<Self, Error> {
        for (what, value) in [
            ("batches in an epoch", batches_per_epoch),
            ("batches in a step", accum),
            ("epochs", epochs),
        ] {
            if value == 0 {
                return Err(Error::Schedule(format!("0 {what}, expected at least 1")));
            }
        }
        let steps = Self {
            batches_per_epoch,
            accum,
            epochs,
        };
        match epochs.checked_mul(batches_per_epoch) {
            Some(_) => Ok(steps),
            None => Err(Error::Schedule(format!(
                "{epochs} epochs of {batches_per_epoch} batches are too many"
            ))),
        }
    }

    /// Steps of an epoch.
    pub fn per_epoch(&self) -> usize {
        self.batches_per_epoch.div_ceil(self.accum)
    }

    /// Steps of all epochs.
    pub fn total(&self) -> usize {
        self.epochs * self.per_epoch()
    }

    /// The epoch that a step belongs to, from 0.
    pub fn epoch(&self, step: usize) -> usize {
        step / self.per_epoch()
    }

    /// A step's first batch, counted in its epoch from 0.
    pub fn first_batch(&self, step: usize) -> usize {
        step % self.per_epoch() * self.accum
    }

    /// Batches of a step.
    pub fn batches(&self, step: usize) -> usize {
        self.accum
            .min(self.batches_per_epoch - self.first_batch(step))
    }

    /// Batches of the largest step: its images are what a learning rate is scaled by.
    pub fn largest(&self) -> usize {
        self.accum.min(self.batches_per_epoch)
    }

    /// Whether so many steps are whole epochs.
    pub fn ends_epoch(&self, done: usize) -> bool {
        done.is_multiple_of(self.per_epoch())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_batch_is_in_one_step() {
        for (batches, accum) in [(1, 1), (7, 1), (7, 3), (6, 3), (2, 5)] {
            let steps = Steps::new(batches, accum, 3).unwrap();
            let mut next = (0, 0);
            for step in 0..steps.total() {
                assert_eq!((steps.epoch(step), steps.first_batch(step)), next);
                next.1 += steps.batches(step);
                assert!(steps.batches(step) <= steps.largest());
                if steps.ends_epoch(step + 1) {
                    assert_eq!(next.1, batches);
                    next = (next.0 + 1, 0);
                }
            }
            assert_eq!(next, (3, 0));
        }
    }

    #[test]
    fn nothing_counts_no_steps() {
        for (batches, accum, epochs) in [(0, 1, 1), (1, 0, 1), (1, 1, 0), (usize::MAX, 1, 2)] {
            assert!(Steps::new(batches, accum, epochs).is_err());
        }
    }
}
