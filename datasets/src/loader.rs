//! Batches in an order that depends on nothing but the seed.

mod batches;
mod worker;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::first_ten;
use crate::{Error, Source, Transform};

pub use batches::Batches;

/// How to load. Only `batch_size` and `seed` decide what is loaded; the rest is speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderConfig {
    /// Images in a batch.
    pub batch_size: usize,
    /// Everything random follows from it.
    pub seed: u64,
    /// Worker threads.
    pub threads: usize,
    /// Batches that are prepared while one is in use.
    pub prefetch: usize,
}

/// One batch: B images of S x S pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `[B, 3, S, S]`, normalised.
    pub images: Vec<f32>,
    /// `[B]`: labels.
    pub labels: Vec<u32>,
    /// `[B]`: where in the dataset each image stands.
    pub indices: Vec<u64>,
    /// The epoch it belongs to, from 0.
    pub epoch: usize,
    /// Its place in the epoch, from 0.
    pub batch: usize,
}

/// An image that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Where in the dataset it stands.
    pub index: usize,
    /// Its path.
    pub name: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Reads, augments and batches a dataset.
///
/// The order of an epoch is a function of (seed, epoch), the augmentation of an image one of (seed, epoch, index), so
/// any number of threads gives the same bytes, and a stream can begin at any batch. The last, partial batch of an
/// epoch is dropped.
///
/// An image that cannot be read is replaced by the next in the dataset, and listed in [`Loader::skipped`]. If more
/// than 1 % of the dataset is like that, the stream ends with [`Error::TooManyBad`].
pub struct Loader {
    shared: Arc<Shared>,
}

/// What the loader, its streams and their workers have in common.
struct Shared {
    source: Arc<dyn Source>,
    transform: Box<dyn Transform>,
    config: LoaderConfig,
    skipped: Mutex<BTreeMap<usize, Skipped>>,
}

impl Loader {
    /// Checks the settings; nothing is read yet.
    pub fn new(
        source: Arc<dyn Source>,
        transform: impl Transform + 'static,
        config: LoaderConfig,
    ) -> Result<Self, Error> {
        transform.check()?;
        for (name, value) in [
            ("batch size", config.batch_size),
            ("loader threads", config.threads),
        ] {
            if value == 0 {
                return Err(Error::InvalidArgument(format!(
                    "{name} 0; expected at least 1"
                )));
            }
        }
        if config.prefetch > 1024 {
            let prefetch = config.prefetch;
            return Err(Error::InvalidArgument(format!(
                "{prefetch} batches to prefetch; expected at most 1024"
            )));
        }
        let (batch_size, len) = (config.batch_size, source.len());
        if batch_size > len {
            return Err(Error::BatchTooLarge { batch_size, len });
        }
        Ok(Self {
            shared: Arc::new(Shared {
                source,
                transform: Box::new(transform),
                config,
                skipped: Mutex::default(),
            }),
        })
    }

    /// Whole batches in an epoch.
    pub fn batches_per_epoch(&self) -> usize {
        self.shared.batches_per_epoch()
    }

    /// All batches from this one on, without end: one epoch follows the other. Workers start at once.
    pub fn stream(&self, epoch: usize, batch: usize) -> Batches {
        Batches::start(Arc::clone(&self.shared), epoch, batch)
    }

    /// The images found bad so far, by index.
    pub fn skipped(&self) -> Vec<Skipped> {
        let skipped = self
            .shared
            .skipped
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        skipped.values().cloned().collect()
    }
}

impl Shared {
    fn batches_per_epoch(&self) -> usize {
        self.source.len() / self.config.batch_size
    }

    /// Notes a bad image; an error once there are too many.
    fn skip(&self, index: usize, error: Error) -> Result<(), Error> {
        let (name, reason) = match error {
            Error::Image { name, reason } => (name, reason),
            other => (self.source.name(index), other.to_string()),
        };
        let mut skipped = self.skipped.lock().unwrap_or_else(PoisonError::into_inner);
        skipped.insert(
            index,
            Skipped {
                index,
                name,
                reason,
            },
        );
        let (count, len) = (skipped.len(), self.source.len());
        if count.saturating_mul(100) <= len {
            return Ok(());
        }
        let lines: Vec<String> = skipped
            .values()
            .map(|s| format!("{}: {}", s.name, s.reason))
            .collect();
        Err(Error::TooManyBad {
            count,
            len,
            first: first_ten(&lines, "; "),
        })
    }
}
