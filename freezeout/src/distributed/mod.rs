//! Data parallel training: every process computes the gradients of its part of a batch, and all of them update the same
//! weights with the mean.
//!
//! A [`Communicator`] is what connects the processes: [`Alone`] for one, `Mpi` (feature `mpi`) for many.
mod alone;
mod communicator;

pub use alone::Alone;
pub use communicator::Communicator;
