//! Some images of a dataset, for a quick look.
use std::sync::Arc;

use datasets::rng::{permutation, rng};
use datasets::{Bands, Error, Image, Permit, Source};

use crate::console::note;
use crate::machine::workers::Workers;

/// The images of `source` at `indices`, in that order.
pub struct Subset {
    source: Arc<dyn Source>,
    indices: Vec<usize>,
}

impl Subset {
    /// The first `count` images after a shuffle, so that all classes are among them; all of them in their own order
    /// without a `count` or with one that is no smaller.
    pub fn of(source: Arc<dyn Source>, count: Option<u32>, seed: u64) -> Arc<dyn Source> {
        let (len, count) = (source.len(), count.map_or(usize::MAX, |n| n as usize));
        if count >= len {
            return source;
        }
        let mut indices = permutation(&mut rng(seed, "subset", 0, 0), len);
        indices.truncate(count);
        note(format!(
            "note: {count} of {len} images, drawn by seed {seed}"
        ));
        Arc::new(Self { source, indices })
    }
}

/// A worker's share of the images: every so many-th.
pub struct Share;

impl Share {
    /// All of them, if there is one worker.
    pub fn of(source: &Arc<dyn Source>, workers: &Workers) -> Arc<dyn Source> {
        let indices = (workers.rank()..source.len()).step_by(workers.size());
        match workers.size() {
            1 => Arc::clone(source),
            _ => Arc::new(Subset {
                source: Arc::clone(source),
                indices: indices.collect(),
            }),
        }
    }
}

impl Source for Subset {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn classes(&self) -> &[String] {
        self.source.classes()
    }

    fn label(&self, index: usize) -> usize {
        self.source.label(self.indices[index])
    }

    fn read(&self, index: usize, permit: &mut Permit) -> Result<Image, Error> {
        self.source.read(self.indices[index], permit)
    }

    fn bands(&self, index: usize, channels: usize, permit: &mut Permit) -> Result<Bands, Error> {
        self.source.bands(self.indices[index], channels, permit)
    }

    fn name(&self, index: usize) -> String {
        self.source.name(self.indices[index])
    }

    fn describe(&self) -> String {
        format!("{} of: {}", self.indices.len(), self.source.describe())
    }
}
