//! The stream of batches: hands out work ahead and waits for results in order.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use crossbeam_channel::{bounded, unbounded, Receiver, Sender};

use super::worker::{finish, work, Draft, Job, Pick, Samples};
use super::{Batch, LoaderConfig, Shared};
use crate::rng::{permutation, rng};
use crate::Error;

/// An endless iterator over batches, made by [`Loader::stream`](crate::Loader::stream).
///
/// It ends only after an error. Dropping it stops its threads; each finishes at most the image it is working on.
pub struct Batches {
    shared: Arc<Shared>,
    /// The next batch to hand to the workers.
    epoch: usize,
    batch: usize,
    /// The shuffled dataset of `epoch`; empty until its first batch.
    order: Vec<usize>,
    /// Results to come, in order. What is in here is all that is in flight.
    pending: VecDeque<Receiver<Result<Batch, Error>>>,
    /// `None` once stopped.
    jobs: Option<Sender<Job>>,
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
    /// The threads could not be started.
    failed: Option<Error>,
}

/// The places of a rank among `count` images that all ranks have together. The first and the last, the second and the one
/// before the last and so on stay in one rank, since [`Mixup`](crate::Mixup) mixes these; of batches of odd size, where
/// that cannot be, every so many-th.
fn share(config: &LoaderConfig, count: usize) -> impl Iterator<Item = usize> {
    let LoaderConfig { rank, ranks, .. } = *config;
    let pairs = config.batch_size.is_multiple_of(2);
    (0..count).filter(move |&place| match pairs {
        true => place.min(count - 1 - place) % ranks == rank,
        false => place % ranks == rank,
    })
}

impl Batches {
    pub(super) fn start(shared: Arc<Shared>, epoch: usize, batch: usize) -> Self {
        let (jobs, todo) = unbounded();
        let per_epoch = shared.batches_per_epoch();
        let mut batches = Self {
            epoch: epoch + batch / per_epoch,
            batch: batch % per_epoch,
            order: Vec::new(),
            pending: VecDeque::new(),
            jobs: Some(jobs),
            stop: Arc::default(),
            workers: Vec::new(),
            failed: None,
            shared,
        };
        for i in 0..batches.shared.config.threads {
            let (shared, todo, stop) = (
                Arc::clone(&batches.shared),
                todo.clone(),
                Arc::clone(&batches.stop),
            );
            match Builder::new()
                .name(format!("loader-{i}"))
                .spawn(move || work(&shared, &todo, &stop))
            {
                Ok(worker) => batches.workers.push(worker),
                Err(error) => {
                    batches.failed = Some(Error::Spawn(error));
                    return batches;
                }
            }
        }
        batches.submit(batches.shared.config.prefetch);
        batches
    }

    /// Hands out work until `ahead` batches are in flight.
    fn submit(&mut self, ahead: usize) {
        let Some(jobs) = &self.jobs else { return };
        let config = self.shared.config;
        while self.pending.len() < ahead {
            if self.order.is_empty() {
                let len = self.shared.source.len();
                self.order = if config.shuffle {
                    permutation(&mut rng(config.seed, "shuffle", self.epoch as u64, 0), len)
                } else {
                    (0..len).collect()
                };
            }
            let together = self.shared.together();
            let first = self.batch * together;
            let count = together.min(self.order.len().saturating_sub(first));
            let picks: Vec<Pick> = share(&config, count)
                .map(|place| first + place)
                .map(|place| Pick {
                    index: self.order[place / config.repeats],
                    copy: place % config.repeats,
                })
                .collect();
            let size = picks.len();
            let (done, result) = bounded(1);
            let draft = Arc::new(Draft {
                epoch: self.epoch,
                batch: self.batch,
                picks,
                samples: Mutex::new(Samples::none_of(size)),
                done,
            });
            if size == 0 {
                // A rank for which nothing was left of the last batch.
                let _ = draft.done.send(finish(&self.shared, &draft, &[]));
            }
            for slot in 0..size {
                // Fails only without workers; the wait for the result then says so.
                let _ = jobs.send(Job {
                    draft: Arc::clone(&draft),
                    slot,
                });
            }
            self.pending.push_back(result);
            self.batch += 1;
            if self.batch == self.shared.batches_per_epoch() {
                (self.epoch, self.batch) = (self.epoch + 1, 0);
                self.order.clear();
            }
        }
    }

    /// Takes back the `images` of a batch that is no longer needed, to be filled again.
    pub fn recycle(&self, images: Vec<f32>) {
        let buffers = self.shared.buffers.lock();
        let mut buffers = buffers.unwrap_or_else(PoisonError::into_inner);
        if buffers.len() <= self.shared.config.prefetch {
            buffers.push(images);
        }
    }

    /// Ends all threads and forgets what was in flight.
    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        self.pending.clear();
        for worker in self.workers.drain(..) {
            // Panics are caught and reported where they happen.
            let _ = worker.join();
        }
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let result = match self.failed.take() {
            Some(error) => Err(error),
            None => {
                self.submit(self.shared.config.prefetch.saturating_add(1));
                let gone = || Error::WorkerPanic {
                    name: "end".into(),
                    message: "all threads are gone".into(),
                };
                self.pending
                    .pop_front()?
                    .recv()
                    .unwrap_or_else(|_| Err(gone()))
            }
        };
        if result.is_err() {
            self.stop();
        }
        Some(result)
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.stop();
    }
}
