//! What training needs of the processes that train together.
use std::fmt;

use candle_core::Tensor;

use crate::Error;

/// The processes that train together: `size` of them, each with its `rank`.
///
/// All methods but [`Communicator::rank`] and [`Communicator::size`] are collective: every rank calls the same ones in the
/// same order, with buffers of the same length, and each returns when this rank's part is done. They are MPI's
/// `MPI_Allreduce`, `MPI_Bcast` and `MPI_Barrier` (MPI 4.0, chapter 6).
///
/// # Errors
/// [`Error::Distributed`] where the others did not take part. What was going on then is lost, and the buffer holds anything:
/// no further call will work, end the process.
pub trait Communicator: fmt::Debug {
    /// Which one this process is, from 0.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn size(&self) -> usize;

    /// Replaces every element by its sum over all ranks. The same bits on all ranks, and from run to run for a given number
    /// of ranks; another number of ranks adds in another order.
    ///
    /// # Errors
    /// See [`Communicator`].
    fn all_reduce(&self, values: &mut [f32]) -> Result<(), Error>;

    /// The same in f64: for sums that must be exact (counts up to 2^53) or better than f32.
    ///
    /// # Errors
    /// See [`Communicator`].
    fn all_reduce_f64(&self, values: &mut [f64]) -> Result<(), Error>;

    /// Begins [`Communicator::all_reduce`] on a buffer that is given away until [`Communicator::finish`] gives it back, while
    /// this process does something else. Any number may be under way; other collective calls may come between.
    ///
    /// Unless overridden it does all at once.
    ///
    /// # Errors
    /// See [`Communicator`].
    fn begin(&self, mut values: Vec<f32>) -> Result<Begun, Error> {
        self.all_reduce(&mut values)?;
        Ok(Begun(Some(values)))
    }

    /// Waits for a sum that [`Communicator::begin`] began: for each of them once, in the order in which they were begun.
    ///
    /// # Errors
    /// See [`Communicator`].
    fn finish(&self, begun: Begun) -> Result<Vec<f32>, Error> {
        begun.0.ok_or_else(|| {
            Error::Distributed(
                "a communicator that overrides begin() must override finish()".into(),
            )
        })
    }

    /// The sums of these tensors as f32, in new memory, where this communicator reaches all of them on their device; `None`
    /// where it does not, and they go through the host's memory by [`Communicator::begin`].
    ///
    /// # Errors
    /// See [`Communicator`].
    fn all_reduce_tensors(&self, _: &[&Tensor]) -> Option<Result<Vec<Tensor>, Error>> {
        None
    }

    /// Copies `bytes` of rank `root` into those of all others.
    ///
    /// # Errors
    /// See [`Communicator`]; a `root` that does not exist.
    fn broadcast(&self, bytes: &mut [u8], root: usize) -> Result<(), Error>;

    /// Waits for all ranks.
    ///
    /// # Errors
    /// See [`Communicator`].
    fn barrier(&self) -> Result<(), Error>;

    /// Ends this process with exit code `code`, and the others with it: for an error of one rank, whom the others would wait
    /// for until their time-out. It is not collective.
    ///
    /// Unless overridden it ends this process alone; launchers take that for the job's failure and end the others.
    fn abort(&self, code: i32) -> ! {
        std::process::exit(code)
    }
}

/// A sum under way, see [`Communicator::begin`].
#[derive(Debug)]
#[must_use]
pub struct Begun(Option<Vec<f32>>);

impl Begun {
    /// One whose values the communicator keeps until it is finished.
    pub fn elsewhere() -> Self {
        Self(None)
    }
}
