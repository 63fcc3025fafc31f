//! Many processes over MPI.
mod thread;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use thread::{Job, Place};

use super::{Begun, Communicator, BUCKET_BYTES};
use crate::Error;

/// What launchers tell their processes of how many there are: Open MPI, MPICH and Intel MPI, `srun`.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

const ALL_REDUCE: &str = "an all-reduce";
const BROADCAST: &str = "a broadcast";

/// All processes that `mpirun`, `mpiexec` or `srun` started.
///
/// MPI runs on a thread of its own, which only this type talks to: a process that waits for a peer that hangs gives up after
/// the time-out with an error, whatever MPI does. Data goes in pieces of 25 MB, and the time-out holds for each.
///
/// Dropping it ends MPI, which waits for the other ranks to do the same. After a time-out and in a panic it does not: the
/// launcher then takes the end of this process for a failure and ends the others. A process that fails for another reason
/// should call [`Communicator::abort`], or the others wait for it until their time-out.
pub struct Mpi {
    place: Place,
    timeout: Duration,
    jobs: Option<Sender<Job>>,
    done: Receiver<Job>,
    aborted: Arc<OnceLock<i32>>,
    /// Whether somebody did not answer: the thread is stuck then.
    lost: Cell<bool>,
    /// How many sums are still with the thread.
    begun: Cell<usize>,
    /// Sums that came back before anybody asked for them.
    early: RefCell<VecDeque<Vec<f32>>>,
    /// Carries f32 to the thread and back.
    buffer: RefCell<Vec<f32>>,
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Mpi");
        out.field("place", &self.place);
        out.field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Mpi {
    /// Initialises MPI; once a process. No collective call may take longer than `timeout`.
    ///
    /// # Errors
    /// [`Error::Distributed`]: MPI was initialised before, no answer in time, or the launcher started several processes of
    /// which MPI knows nothing (a launcher of another MPI than the one the program was built with).
    pub fn new(timeout: Duration) -> Result<Self, Error> {
        let (jobs, queue) = channel();
        let (answers, done) = channel();
        let (started, start) = channel();
        let aborted = Arc::new(OnceLock::new());
        let abort = aborted.clone();
        std::thread::Builder::new()
            .name("mpi".into())
            .spawn(move || thread::run(&queue, &answers, &started, &abort))
            .map_err(|e| Error::Distributed(format!("no thread for MPI: {e}")))?;
        let place = match start.recv_timeout(timeout) {
            Ok(place) => place.map_err(Error::Distributed)?,
            Err(error) => {
                // The thread may be inside MPI: leave it there.
                std::mem::forget(jobs);
                return Err(Error::Distributed(match error {
                    RecvTimeoutError::Timeout => format!(
                        "MPI was not initialised within {} s; does every process that was started get as far as this?",
                        timeout.as_secs_f64()
                    ),
                    RecvTimeoutError::Disconnected => "MPI could not be initialised".into(),
                }));
            }
        };
        let mpi = Self {
            place,
            timeout,
            jobs: Some(jobs),
            done,
            aborted,
            lost: Cell::new(false),
            begun: Cell::new(0),
            early: RefCell::default(),
            buffer: RefCell::default(),
        };
        let told = |key: &&str| std::env::var(key).ok()?.parse::<usize>().ok();
        if let Some((key, told)) = SIZES.iter().find_map(|key| Some((key, told(key)?))) {
            if mpi.place.size == 1 && told > 1 {
                return Err(Error::Distributed(format!(
                    "the launcher started {told} processes ({key}), but MPI sees this one alone; launch with the mpirun of \
                     the MPI that the program was built with ({}), under Slurm with srun --mpi=pmix or pmi2",
                    mpi.place.library
                )));
            }
        }
        Ok(mpi)
    }

    /// Which one this process is among those on the same machine, from 0: the GPU to take.
    pub fn local_rank(&self) -> usize {
        self.place.local_rank
    }

    /// How many of the processes run on this machine.
    pub fn local_size(&self) -> usize {
        self.place.local_size
    }

    /// Name and version of the MPI in use, as it calls itself.
    pub fn library(&self) -> &str {
        &self.place.library
    }

    fn error(&self, what: impl fmt::Display) -> Error {
        let (rank, size) = (self.place.rank, self.place.size);
        Error::Distributed(format!("rank {rank} of {size}: {what}"))
    }

    /// Has the thread do something, and waits for it.
    fn run(&self, what: &str, job: Job) -> Result<Job, Error> {
        self.send(what, job)?;
        // The thread does one after another.
        while self.begun.get() > 0 {
            let sum = self.next_sum()?;
            self.early.borrow_mut().push_back(sum);
        }
        self.wait(what)
    }

    fn send(&self, what: &str, job: Job) -> Result<(), Error> {
        if self.lost.get() {
            return Err(
                self.error("another process did not answer before, so there is nobody to talk to")
            );
        }
        let jobs = self.jobs.as_ref();
        match jobs.is_some_and(|jobs| jobs.send(job).is_ok()) {
            true => Ok(()),
            false => Err(self.ended(what)),
        }
    }

    fn wait(&self, what: &str) -> Result<Job, Error> {
        match self.done.recv_timeout(self.timeout) {
            Ok(job) => Ok(job),
            Err(RecvTimeoutError::Disconnected) => Err(self.ended(what)),
            Err(RecvTimeoutError::Timeout) => {
                self.lost.set(true);
                let seconds = self.timeout.as_secs_f64();
                Err(self.error(format!(
                    "nobody answered {what} for {seconds} s; another process hangs, has ended, or is much slower than this \
                     one: see what it printed, or give a longer time-out"
                )))
            }
        }
    }

    /// The oldest sum that is still with the thread.
    fn next_sum(&self) -> Result<Vec<f32>, Error> {
        let Job::Sum(sum) = self.wait(ALL_REDUCE)? else {
            return Err(self.ended(ALL_REDUCE));
        };
        self.begun.set(self.begun.get().saturating_sub(1));
        Ok(sum)
    }

    fn ended(&self, what: &str) -> Error {
        self.lost.set(true);
        self.error(format!("MPI ended during {what}"))
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.place.rank
    }

    fn size(&self) -> usize {
        self.place.size
    }

    fn all_reduce(&self, values: &mut [f32]) -> Result<(), Error> {
        if self.place.size == 1 {
            return Ok(());
        }
        for piece in values.chunks_mut(BUCKET_BYTES / size_of::<f32>()) {
            let mut buffer = self.buffer.take();
            buffer.clear();
            buffer.extend_from_slice(piece);
            let Job::Sum(sum) = self.run(ALL_REDUCE, Job::Sum(buffer))? else {
                return Err(self.ended(ALL_REDUCE));
            };
            piece.copy_from_slice(&sum);
            self.buffer.replace(sum);
        }
        Ok(())
    }

    fn all_reduce_f64(&self, values: &mut [f64]) -> Result<(), Error> {
        if self.place.size == 1 {
            return Ok(());
        }
        for piece in values.chunks_mut(BUCKET_BYTES / size_of::<f64>()) {
            let job = Job::SumF64(piece.to_vec());
            let Job::SumF64(sum) = self.run(ALL_REDUCE, job)? else {
                return Err(self.ended(ALL_REDUCE));
            };
            piece.copy_from_slice(&sum);
        }
        Ok(())
    }

    fn begin(&self, values: Vec<f32>) -> Result<Begun, Error> {
        if self.place.size == 1 {
            self.early.borrow_mut().push_back(values);
        } else {
            self.send(ALL_REDUCE, Job::Sum(values))?;
            self.begun.set(self.begun.get() + 1);
        }
        Ok(Begun::elsewhere())
    }

    fn finish(&self, _: Begun) -> Result<Vec<f32>, Error> {
        let early = self.early.borrow_mut().pop_front();
        early.map_or_else(|| self.next_sum(), Ok)
    }

    fn broadcast(&self, bytes: &mut [u8], root: usize) -> Result<(), Error> {
        if root >= self.place.size {
            return Err(self.error(format!("there is no rank {root} to broadcast from")));
        }
        if self.place.size == 1 {
            return Ok(());
        }
        for piece in bytes.chunks_mut(BUCKET_BYTES) {
            let job = Job::Broadcast(piece.to_vec(), root);
            let Job::Broadcast(sent, _) = self.run(BROADCAST, job)? else {
                return Err(self.ended(BROADCAST));
            };
            piece.copy_from_slice(&sent);
        }
        Ok(())
    }

    fn barrier(&self) -> Result<(), Error> {
        match self.place.size {
            1 => Ok(()),
            _ => self.run("a barrier", Job::Barrier).map(drop),
        }
    }

    fn abort(&self, code: i32) -> ! {
        let _ = self.aborted.set(code);
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(Job::Abort);
        }
        // MPI ends the process. If it does not, because its thread is stuck, the launcher sees that the process failed.
        std::thread::sleep(Duration::from_secs(5));
        std::process::exit(code)
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        let jobs = self.jobs.take();
        if self.lost.get() || std::thread::panicking() {
            // The thread goes on waiting, and MPI is not ended.
            std::mem::forget(jobs);
            return;
        }
        drop(jobs);
        // The thread is done when it hangs up; before that come sums that nobody has asked for.
        while self.done.recv_timeout(self.timeout).is_ok() {}
    }
}
