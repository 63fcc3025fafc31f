//! What a worker thread does: single images, and from the last of a batch the batch.
//!
//! The unit of work is one image and not one batch, so that the first batch comes soon and memory does not grow with
//! the number of threads. Until its batch is complete an image is kept as bytes; the last pass, which turns bytes
//! into the batch's floats, is done by whoever completes the batch, so nothing is copied twice.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender};

use super::{Batch, OnBad, Shared};
use crate::panics::panic_message;
use crate::rng::rng;
use crate::{ChaCha8Rng, Drawn, Error, Permit, Recipe};

/// A batch in the making.
pub(super) struct Draft {
    pub epoch: usize,
    pub batch: usize,
    /// The images that the order of the epoch gives.
    pub picks: Vec<Pick>,
    pub samples: Mutex<Samples>,
    /// Takes one message: the batch, or the first error.
    pub done: Sender<Result<Batch, Error>>,
}

impl Draft {
    /// Which batch it is of which epoch.
    fn place(&self) -> (usize, usize) {
        (self.epoch, self.batch)
    }
}

/// An image of the dataset, and which of its repetitions in the epoch.
#[derive(Clone, Copy)]
pub(super) struct Pick {
    pub index: usize,
    pub copy: usize,
}

/// The images of a batch that are there already.
pub(super) struct Samples {
    slots: Vec<Option<Sample>>,
    missing: usize,
}

impl Samples {
    pub fn none_of(batch_size: usize) -> Self {
        Self {
            slots: (0..batch_size).map(|_| None).collect(),
            missing: batch_size,
        }
    }
}

/// One image of a batch, before normalisation.
pub(super) struct Sample {
    /// Its own index, which is not the one asked for if that was bad.
    index: usize,
    made: Made,
}

enum Made {
    Rgb(Box<Drawn>),
    /// All planes, as they go into the batch.
    Bands(Vec<f32>),
}

impl Made {
    /// Reads and augments image `index`.
    fn new(
        shared: &Shared,
        recipe: &Recipe,
        index: usize,
        permit: &mut Permit,
        rng: &mut ChaCha8Rng,
    ) -> Result<Self, Error> {
        match recipe {
            Recipe::Rgb(transform) => {
                let image = shared.source.read(index, permit)?;
                Ok(Self::Rgb(Box::new(transform.draw(&image, rng)?)))
            }
            Recipe::Bands(transform) => {
                let image = shared.source.bands(index, transform.channels(), permit)?;
                Ok(Self::Bands(transform.draw(&image, rng)?))
            }
        }
    }

    fn write(&self, recipe: &Recipe, out: &mut [f32]) -> Result<(), Error> {
        match (self, recipe) {
            (Self::Rgb(drawn), Recipe::Rgb(transform)) => drawn.write(transform.normalize(), out),
            (Self::Bands(planes), _) if planes.len() == out.len() => {
                out.copy_from_slice(planes);
                Ok(())
            }
            _ => Err(Error::InvalidArgument(
                "an image that was made by another transform than its batch".into(),
            )),
        }
    }
}

/// Make one image of one batch.
pub(super) struct Job {
    pub draft: Arc<Draft>,
    pub slot: usize,
}

/// Works until there are no more jobs or `stop` is set.
pub(super) fn work(shared: &Shared, jobs: &Receiver<Job>, stop: &AtomicBool) {
    for Job { draft, slot } in jobs {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let result =
            catch_unwind(AssertUnwindSafe(|| make(shared, &draft, slot))).unwrap_or_else(|panic| {
                let name = draft
                    .picks
                    .get(slot)
                    .map_or_else(String::new, |pick| shared.source.name(pick.index));
                Err(Error::WorkerPanic {
                    name,
                    message: panic_message(&*panic),
                })
            });
        // A failed send means that an error was first, or that nobody waits any more.
        match result {
            Ok(Some(batch)) => drop(draft.done.try_send(Ok(batch))),
            Ok(None) => {}
            Err(error) => drop(draft.done.try_send(Err(error))),
        }
    }
}

/// Makes one image; returns the batch if it was the last one missing.
fn make(shared: &Shared, draft: &Draft, slot: usize) -> Result<Option<Batch>, Error> {
    let sample = sample(shared, draft, draft.picks[slot])?;
    let mut samples = draft.samples.lock().unwrap_or_else(PoisonError::into_inner);
    samples.slots[slot] = sample;
    samples.missing -= 1;
    if samples.missing > 0 {
        return Ok(None);
    }
    let samples: Vec<Sample> = samples.slots.drain(..).flatten().collect();
    finish(shared, draft, &samples).map(Some)
}

/// Reads and augments an image; if it is bad, the first good one after it, or none.
fn sample(shared: &Shared, draft: &Draft, pick: Pick) -> Result<Option<Sample>, Error> {
    let Pick { mut index, copy } = pick;
    let (epoch, recipe) = (draft.epoch, shared.recipe(draft.place()));
    // An image takes memory until it is cut and resized.
    let mut permit = shared.memory.permit();
    loop {
        // No dataset has 2^48 images.
        let place = index as u64 | (copy as u64) << 48;
        let mut rng = rng(shared.config.seed, "augment", epoch as u64, place);
        match Made::new(shared, recipe, index, &mut permit, &mut rng) {
            Ok(made) => return Ok(Some(Sample { index, made })),
            // Were all images bad, this would be an error long before the search has gone round.
            Err(error) => shared.skip(index, error)?,
        }
        if shared.config.on_bad == OnBad::LeaveOut {
            return Ok(None);
        }
        index = (index + 1) % shared.source.len();
    }
}

/// Turns the samples into the batch.
pub(super) fn finish(shared: &Shared, draft: &Draft, samples: &[Sample]) -> Result<Batch, Error> {
    let recipe = shared.recipe(draft.place());
    let (height, width) = recipe.size();
    let floats = recipe.channels() * height * width;
    let buffers = shared.buffers.lock();
    let mut images = buffers
        .unwrap_or_else(PoisonError::into_inner)
        .pop()
        .unwrap_or_default();
    // Every value is overwritten.
    images.resize(samples.len() * floats, 0.0);
    for (sample, out) in samples.iter().zip(images.chunks_exact_mut(floats)) {
        sample.made.write(recipe, out)?;
    }
    let labels = samples
        .iter()
        .map(|s| shared.source.label(s.index) as u32)
        .collect();
    let indices = samples.iter().map(|s| s.index as u64).collect();
    Ok(Batch {
        images,
        labels,
        indices,
        epoch: draft.epoch,
        batch: draft.batch,
    })
}
