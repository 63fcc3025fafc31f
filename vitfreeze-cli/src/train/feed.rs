//! Where a training's batches come from: images out of a loader, or features that were computed before.
use anyhow::{Context, Result};
use datasets::rng::{permutation, rng};
use datasets::{Batch, Loader, Skipped};

/// The batches of a training.
pub enum Feed {
    Images(Loader),
    Features(Features),
}

/// Features of a dataset in memory, D numbers for each image.
pub struct Features {
    /// (N, D)
    pub values: Vec<f32>,
    /// (N)
    pub labels: Vec<u32>,
    pub batch_size: usize,
    pub seed: u64,
}

impl Feed {
    /// Whole batches in an epoch.
    pub fn batches_per_epoch(&self) -> usize {
        match self {
            Self::Images(loader) => loader.batches_per_epoch(),
            Self::Features(features) => features.labels.len() / features.batch_size,
        }
    }

    /// All batches from this one on, without end. What is called images in a batch of features is its features.
    pub fn stream(
        &self,
        epoch: usize,
        batch: usize,
    ) -> Box<dyn Iterator<Item = Result<Batch>> + '_> {
        match self {
            Self::Images(loader) => Box::new(
                loader
                    .stream(epoch, batch)
                    .map(|b| b.context("loading images")),
            ),
            Self::Features(features) => Box::new(
                (epoch..).flat_map(move |e| features.epoch(e, if e == epoch { batch } else { 0 })),
            ),
        }
    }

    /// How many images could not be read so far.
    pub fn skipped_count(&self) -> usize {
        match self {
            Self::Images(loader) => loader.skipped_count(),
            Self::Features(_) => 0,
        }
    }

    /// Images that could not be read so far.
    pub fn skipped(&self) -> Vec<Skipped> {
        match self {
            Self::Images(loader) => loader.skipped(),
            Self::Features(_) => Vec::new(),
        }
    }
}

impl Features {
    /// The batches of one epoch in an order that is a function of (seed, epoch), from `first` on.
    fn epoch(&self, epoch: usize, first: usize) -> impl Iterator<Item = Result<Batch>> + '_ {
        let count = self.labels.len();
        let order = permutation(&mut rng(self.seed, "shuffle", epoch as u64, 0), count);
        let width = self.values.len() / count.max(1);
        (first..count / self.batch_size).map(move |batch| {
            let rows = &order[batch * self.batch_size..][..self.batch_size];
            let values = |&i: &usize| &self.values[i * width..][..width];
            Ok(Batch {
                images: rows.iter().flat_map(values).copied().collect(),
                labels: rows.iter().map(|&i| self.labels[i]).collect(),
                indices: rows.iter().map(|&i| i as u64).collect(),
                epoch,
                batch,
            })
        })
    }
}
