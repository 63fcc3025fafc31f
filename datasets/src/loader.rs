//! Batches in an order that depends on nothing but the seed.

mod batches;
mod worker;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::first;
use crate::{DecodeMemory, Error, Recipe, Source};

pub use batches::Batches;

/// How to load. `threads` and `prefetch` are speed alone; everything else decides what is loaded.
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
    /// Whether each epoch has an order of its own; else it is the dataset's.
    pub shuffle: bool,
    /// Repeated augmentation (arXiv 1901.09335): how often an image comes in an epoch, each time augmented differently.
    /// An epoch is as long as ever, so only one image in so many takes part in it.
    pub repeats: usize,
    /// Whether the last, shorter batch of an epoch is kept; training drops it, an evaluation must not.
    pub keep_last: bool,
    /// What becomes of an image that cannot be read.
    pub on_bad: OnBad,
    /// Which of the processes this one is, from 0, when several share the data.
    pub rank: usize,
    /// How many processes share the data. Their batches together are that of one process with a batch so many times as
    /// large. Images that `Mixup` mixes with each other there, as the first and the last, are in one process here, if
    /// `batch_size` is even.
    pub ranks: usize,
}

impl Default for LoaderConfig {
    /// Batches of 64, shuffled, one thread, two batches ahead, the last one dropped, one process.
    fn default() -> Self {
        Self {
            batch_size: 64,
            seed: 0,
            threads: 1,
            prefetch: 2,
            shuffle: true,
            repeats: 1,
            keep_last: false,
            on_bad: OnBad::Replace,
            rank: 0,
            ranks: 1,
        }
    }
}

/// What becomes of an image that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBad {
    /// The next image of the dataset takes its place, so that all batches are whole: for training.
    Replace,
    /// Its batch has one image less, so that no image counts twice: for an evaluation.
    LeaveOut,
}

impl OnBad {
    /// How many bad images of `len` are put up with: 1 %, and ten more where each is counted and told.
    fn limit(self, len: usize) -> usize {
        len / 100
            + match self {
                Self::Replace => 0,
                Self::LeaveOut => 10,
            }
    }
}

/// One batch: B images of C channels (3 of RGB) and S x S pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `[B, C, S, S]`, normalised.
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
/// any number of threads gives the same bytes, and a stream can begin at any batch.
///
/// An image that cannot be read is replaced by the next in the dataset or left out ([`OnBad`]), and listed in
/// [`Loader::skipped`]. If more than 1 % of the dataset is like that (and ten more, where they are left out), the stream
/// ends with [`Error::TooManyBad`].
///
/// Its threads share one [`DecodeMemory`]: an image waits until what the others take leaves room for it.
pub struct Loader {
    shared: Arc<Shared>,
}

/// What the loader, its streams and their workers have in common.
struct Shared {
    source: Arc<dyn Source>,
    recipe: Recipe,
    /// Those that take its place later: from this (epoch, batch) on, ascending.
    later: Vec<((usize, usize), Recipe)>,
    config: LoaderConfig,
    skipped: Mutex<BTreeMap<usize, Skipped>>,
    /// What the images that are decoded take, in all workers together.
    memory: DecodeMemory,
    /// Memory of batches that are no longer needed.
    buffers: Mutex<Vec<Vec<f32>>>,
}

impl Loader {
    /// Checks the settings; nothing is read yet.
    pub fn new(
        source: Arc<dyn Source>,
        transform: impl Into<Recipe>,
        config: LoaderConfig,
    ) -> Result<Self, Error> {
        let recipe = transform.into();
        recipe.check()?;
        for (name, value) in [
            ("batch size", config.batch_size),
            ("loader threads", config.threads),
            ("repeats", config.repeats),
            ("ranks", config.ranks),
        ] {
            if value == 0 {
                return Err(Error::InvalidArgument(format!(
                    "{name} 0; expected at least 1"
                )));
            }
        }
        if config.repeats > 1 << 16 {
            let repeats = config.repeats;
            return Err(Error::InvalidArgument(format!(
                "{repeats} repeats; expected at most 65536"
            )));
        }
        if config.prefetch > 1024 {
            let prefetch = config.prefetch;
            return Err(Error::InvalidArgument(format!(
                "{prefetch} batches to prefetch; expected at most 1024"
            )));
        }
        if config.rank >= config.ranks {
            let (rank, ranks) = (config.rank, config.ranks);
            return Err(Error::InvalidArgument(format!(
                "rank {rank}; expected less than the {ranks} ranks"
            )));
        }
        let (batch_size, len) = (config.batch_size.saturating_mul(config.ranks), source.len());
        if len == 0 || (batch_size > len && !config.keep_last) {
            return Err(Error::BatchTooLarge {
                batch_size: config.batch_size,
                ranks: config.ranks,
                len,
            });
        }
        Ok(Self {
            shared: Arc::new(Shared {
                source,
                recipe,
                later: Vec::new(),
                config,
                skipped: Mutex::default(),
                memory: DecodeMemory::default(),
                buffers: Mutex::default(),
            }),
        })
    }

    /// The same, but from batch `from.1` of epoch `from.0` on images are made by `transform`, which may give them another
    /// size. What is drawn at random for an image does not depend on where the change lies.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`]: a setting makes no sense, `from` does not lie behind the change before, or a stream of this
    /// loader has begun.
    pub fn then(
        mut self,
        from: (usize, usize),
        transform: impl Into<Recipe>,
    ) -> Result<Self, Error> {
        let recipe = transform.into();
        recipe.check()?;
        let Some(shared) = Arc::get_mut(&mut self.shared) else {
            return Err(Error::InvalidArgument(
                "a stream of this loader has begun; say before which transforms follow".into(),
            ));
        };
        let before = shared.later.last().map_or((0, 0), |(before, _)| *before);
        if from <= before || from.1 >= shared.batches_per_epoch() {
            return Err(Error::InvalidArgument(format!(
                "another transform from epoch {}, batch {} on; expected a batch of an epoch, behind epoch {}, batch {}",
                from.0, from.1, before.0, before.1
            )));
        }
        shared.later.push((from, recipe));
        Ok(self)
    }

    /// Batches in an epoch.
    pub fn batches_per_epoch(&self) -> usize {
        self.shared.batches_per_epoch()
    }

    /// All batches from this one on, without end: one epoch follows the other. Workers start at once.
    pub fn stream(&self, epoch: usize, batch: usize) -> Batches {
        Batches::start(Arc::clone(&self.shared), epoch, batch)
    }

    /// The images found bad so far, by index. A copy: ask [`skipped_count`](Self::skipped_count) first whether there are more.
    pub fn skipped(&self) -> Vec<Skipped> {
        self.shared.skipped().values().cloned().collect()
    }

    /// How many images were found bad so far; cheap enough to ask after each batch.
    pub fn skipped_count(&self) -> usize {
        self.shared.skipped().len()
    }
}

impl Shared {
    /// What makes the images of this (epoch, batch).
    fn recipe(&self, at: (usize, usize)) -> &Recipe {
        let later = self.later.iter().rfind(|(from, _)| *from <= at);
        later.map_or(&self.recipe, |(_, recipe)| recipe)
    }

    fn batches_per_epoch(&self) -> usize {
        let (len, all) = (self.source.len(), self.together());
        if self.config.keep_last {
            len.div_ceil(all)
        } else {
            len / all
        }
    }

    /// Images in the batches of all ranks together.
    fn together(&self) -> usize {
        self.config.batch_size.saturating_mul(self.config.ranks)
    }

    fn skipped(&self) -> MutexGuard<'_, BTreeMap<usize, Skipped>> {
        self.skipped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a bad image; an error once there are too many.
    fn skip(&self, index: usize, error: Error) -> Result<(), Error> {
        let (name, reason) = match error {
            Error::Image { name, reason } => (name, reason),
            other => (self.source.name(index), other.to_string()),
        };
        let mut skipped = self.skipped();
        skipped.insert(
            index,
            Skipped {
                index,
                name,
                reason,
            },
        );
        let (count, len) = (skipped.len(), self.source.len());
        if count <= self.config.on_bad.limit(len) {
            return Ok(());
        }
        let lines: Vec<String> = skipped
            .values()
            .map(|s| format!("{}: {}", s.name.escape_debug(), s.reason.escape_debug()))
            .collect();
        Err(Error::TooManyBad {
            count,
            len,
            first: first(3, &lines, "; "),
        })
    }
}
